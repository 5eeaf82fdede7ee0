"""``kill -9`` before every call that changes a file: two processes on one directory lose nothing.

With ``THREADLOOM_EVERY_KILL=1`` every call is tried, which takes minutes; otherwise some, spread evenly.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files.fork_server import ForkServer
from tests.files.killable import STORY, story_of, telling
from tests.files.test_kills import check_files, difference
from threadloom import FileStore, MemoryStore, Message, ProblemKind, Run, RunStatus, RunWrite, ThreadNotFoundError

EVERY_KILL = bool(os.environ.get("THREADLOOM_EVERY_KILL"))
SOME_KILLS = 25
MOST_CHANGES = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer("tests.files.killable")
    yield server
    server.close()


async def expected() -> list[dict[str, object]]:
    """Return what is there before the first transaction of the story, and after each."""
    async with MemoryStore() as store:
        states = [await story_of(store)]
        async for _ in telling(store, {}):
            states.append(await story_of(store))  # noqa: PERF401 - each state is that of its moment
    return states


async def changes_of(server: ForkServer, root: Path, durability: str) -> int:
    """Return how many changes the story makes."""
    child = server.fork("tell", str(root / "whole"), durability, MOST_CHANGES)
    await child.ended()
    return int(child.lines[-1])


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_two_processes_and_kill_9_at_every_call_lose_nothing(server, tmp_path, durability):
    states = await expected()
    count = await changes_of(server, tmp_path, durability)
    assert count > 100
    for at in range(0, count, 1 if EVERY_KILL else count // SOME_KILLS | 1):
        root = tmp_path / f"store_{at}"
        async with FileStore(root, durability=durability) as survivor:
            child = server.fork("tell", str(root), durability, at)
            await child.ended()
            done = sum(line == "done" for line in child.lines)
            await go_on(survivor)
            found = await story_of(survivor)
            may_be = states[done : done + 2]
            assert found in may_be, (at, difference(found, *may_be))
            await use(survivor)
        async with FileStore(root, durability=durability) as again:
            problems = (await again.check()).problems
            assert {problem.kind for problem in problems} <= {ProblemKind.DEAD_LEASE}, (at, problems)
        for thread in root.glob("thread_*"):
            check_files(thread)
        shutil.rmtree(root)


async def go_on(store: FileStore) -> None:
    """Write into what is there, so that the survivor takes the lock of each thread."""
    for thread_id in await store.list_thread_ids():
        await store.update_thread(thread_id, tool_resources={"survived": {}})


async def use(store: FileStore) -> None:
    """Work on, also on the run of the process that was killed."""
    while (claim := await store.try_claim_run("survivor")) is not None:
        await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    try:
        await store.append_message(STORY, Message.user(STORY, "the end"))
    except ThreadNotFoundError:
        return
    run = await store.create_run(STORY, Run.new(STORY, model="m"), on_busy="interrupt")
    await store.force_update_run_status(STORY, run.id, RunStatus.COMPLETED)
