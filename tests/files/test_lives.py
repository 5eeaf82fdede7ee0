"""Who is alive is judged by what the onlooker saw, in time that it spent looking; no clock on a wall has a say."""

import asyncio
import subprocess
import sys
from datetime import timedelta

import pytest

from threadloom import FileStore, Run, RunStatus, RunWrite, Thread
from threadloom.stores.files._life import Peers
from threadloom.testing import ManualClock

PATIENCE = 20
LEASE = 30.0

LIFE = """
import sys
from pathlib import Path
from threadloom.stores.files._life import Life

directory = Path(sys.argv[1])
life = Life(directory / "made", directory / "lives" / "life_1")
print("alive", flush=True)
for _ in sys.stdin:
    life.beat()
    print("beaten", flush=True)
"""


class OtherLife:
    """A process that lives on the directory, and beats when it is told to."""

    def __init__(self, directory):
        (directory / "lives").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-c", LIFE, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._heard() == "alive"

    def beat(self):
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        assert self._heard() == "beaten"

    def end(self):
        self._process.kill()
        self._process.communicate()

    def _heard(self):
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def other(tmp_path):
    other = OtherLife(tmp_path)
    yield other
    other.end()


@pytest.fixture
def peers(tmp_path, other):
    peers = Peers(tmp_path / "lives", LEASE)
    peers.look(0)
    return peers


def test_a_life_whose_counter_stands_still_for_a_lease_is_gone(peers):
    for now in range(5, 30, 5):
        peers.look(now)
        assert not peers.is_gone("life_1")
    peers.look(30)
    assert peers.is_gone("life_1")


def test_an_onlooker_that_slept_has_seen_nothing_of_what_the_others_did_meanwhile(peers, other):
    peers.look(5)
    peers.look(100_000)  # with the whole machine, or frozen: the other had no chance to beat that could be seen
    assert not peers.is_gone("life_1")
    other.beat()
    peers.look(100_005)
    for now in range(100_010, 100_035, 5):
        peers.look(now)
        assert not peers.is_gone("life_1")
    peers.look(100_035)
    assert peers.is_gone("life_1")


def test_one_that_beats_after_the_last_look_is_not_gone(peers, other):
    for now in range(5, 65, 5):
        peers.look(now)
    assert peers.is_gone("life_1")
    other.beat()
    assert not peers.is_gone("life_1")


def test_a_clock_that_stands_still_or_runs_backwards_makes_nobody_hung(peers):
    for now in (5, 5, 5, 4, 3, -1_000, -1_000):
        peers.look(now)
        assert not peers.is_gone("life_1")


def test_one_whose_process_ended_is_gone_at_once(peers, other):
    other.end()
    assert peers.is_gone("life_1")


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400)])
async def test_a_clock_on_the_wall_that_is_set_takes_no_lease_from_anybody(tmp_path, jump):
    clock = ManualClock()
    async with FileStore(tmp_path, clock=clock) as store, FileStore(tmp_path, clock=clock) as other:
        thread = await store.create_thread(Thread.new())
        run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        claim = await store.try_claim_run("worker")
        assert claim is not None
        assert await other.try_claim_run("worker") is None
        clock.step_wall_clock(jump)
        async with asyncio.timeout(PATIENCE):
            for recovery in (store._parts.recovery, other._parts.recovery):
                recovery._searched = None
                recovery._heard.set()
                while recovery._searched is None:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        await other.check_lease(claim.lease)
        ended = await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    assert (ended.id, ended.attempt) == (run.id, 1)
