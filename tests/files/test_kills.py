"""``kill -9`` at random moments: what was acknowledged is there and whole, and there is next to nothing else."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import random
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from tests.files.fork_server import PATIENCE, Child, ForkServer
from tests.files.killable import SHARED, state_of, texts_of, writing
from tests.support.worker_fixtures import until
from threadloom import FileStore, MemoryStore, Message, Run, RunStatus, RunWrite, Thread, ToolOutput

ROUNDS = 60
LONGEST_DELAY = 40_000  # turns of an empty loop: some acts take no longer
MOST_CALLS = 5_000  # and returns of functions: more than any act takes


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer("tests.files.killable")
    yield server
    server.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def delay(chance: random.Random) -> None:
    """Pass a little time, which is never the same: the kill then meets every moment of an act."""
    for _ in range(chance.randrange(LONGEST_DELAY)):
        pass


# What lies in the files, whatever a store makes of it


def lines_of(path: Path, *, may_be_torn: bool = False) -> list[dict[str, Any]]:
    """Return what the lines of a log say; only its last one may be torn, and only if it is not yet appended to."""
    *lines, rest = path.read_bytes().split(b"\n")
    assert rest == b"" or may_be_torn, f"{path} is torn"
    parsed = [orjson.loads(line) for line in lines]
    assert all(isinstance(record, dict) for record in parsed)
    return parsed


def check_keys(thread: Path) -> None:
    """Show that a key is there with what was created under it, and neither without the other."""
    messages = (lines_of(thread / "messages.jsonl", may_be_torn=True)) if (thread / "messages.jsonl").exists() else []
    made = {record["id"] for record in messages} | {path.name for path in thread.glob("runs/*")}
    # A key is written before what it names, and counts only if that is there.
    kept = {orjson.loads(path.read_bytes())["created"]["id"] for path in thread.glob("keys/*")}
    assert kept & made == {id_ for id_ in made if id_.endswith("_k")}


def check_files(thread: Path, *, may_be_torn: bool = False) -> None:
    """Show that every file of a thread is whole, that nothing is in them twice, and that there are no others."""
    for directory, _, names in os.walk(thread):
        for name in names:
            path = Path(directory, name)
            match name:
                case "messages.jsonl":
                    ids = [record["id"] for record in lines_of(path, may_be_torn=may_be_torn)]
                    assert len(ids) == len(set(ids)), f"{path} has a message twice"
                case "edits.jsonl":
                    lines_of(path, may_be_torn=may_be_torn)
                case "events.jsonl":
                    records = lines_of(path, may_be_torn=may_be_torn)
                    numbers = [record["number"] for record in records if "number" in record]
                    assert numbers == sorted(set(numbers)), f"{path} has a number twice"
                case "meta.json":
                    assert orjson.loads(path.read_bytes())["id"] == thread.name
                case "status.json":
                    assert orjson.loads(path.read_bytes())["id"] == path.parent.name
                case _ if path.parent.name == "keys":
                    record = orjson.loads(path.read_bytes())
                    assert record["created"]["thread_id"] == thread.name
                case _:
                    assert path.parent.name == "steps", f"what is {path}?"
                    assert f"{orjson.loads(path.read_bytes())['id']}.json" == name


async def check_nothing_stays(root: Path) -> None:
    """Show that a store that was opened and has worked leaves nothing of the dead in its own directory."""
    own = root / ".threadloom"
    for path in (own / "tmp").iterdir():
        os.utime(path, (0, 0))  # long ago, as the next opening sees it
    async with FileStore(root, durability="process") as store:
        while claim := await store.try_claim_run("worker"):
            await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        await until(lambda: len(list((own / "stores").iterdir())) == 1)
        await store.create_thread(Thread.new())
    await asyncio.sleep(0)
    left = {name: list((own / name).glob("*")) for name in ("tmp", "trash", "journals")}
    assert left == {"tmp": [], "trash": [], "journals": []}


# Writers


async def expected_of(writer: str, count: int) -> list[dict[str, object]]:
    """Return what is there after so many acts of a writer, and after one more."""
    states = []
    async with MemoryStore() as store:
        await store.create_thread(attrs.evolve(Thread.new(), id=SHARED))
        acts = writing(store, writer)
        for _ in range(count):
            await anext(acts)
        states.append(await state_of(store, writer))
        await anext(acts)
        states.append(await state_of(store, writer))
    return states


class Writers:
    """What was found of each writer after its death: it must stay so, whatever others do after it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: dict[str, dict[str, object]] = {}
        self.unacknowledged = 0

    async def check(self, child: Child, writers: list[str]) -> None:
        acknowledged = collections.Counter(child.lines)
        async with FileStore(self.root) as store:
            for writer in writers:
                self.found[writer] = await state_of(store, writer)
        for writer in writers:
            check_files(self.root / f"thread_{writer}", may_be_torn=True)
            check_keys(self.root / f"thread_{writer}")
            before, after = await expected_of(writer, acknowledged[writer])
            assert self.found[writer] in (before, after), difference(self.found[writer], before, after)
            self.unacknowledged += self.found[writer] != before

    async def check_all(self) -> None:
        """Show that what was found still is, and that every log is whole once it was appended to."""
        async with FileStore(self.root) as store:
            for writer, found in self.found.items():
                assert await state_of(store, writer) == found
            for thread_id in await store.list_thread_ids():
                await store.append_message(thread_id, Message.user(thread_id, "the end"))
                [message, *_] = await store.list_messages(thread_id, limit=1)
                await store.update_message(thread_id, message.id, metadata={"the": "end"})
        for thread in self.root.glob("thread_*"):
            check_files(thread)
        await check_nothing_stays(self.root)
        assert 0 < self.unacknowledged < len(self.found), "kills came within acts and between them"


def difference(found: dict[str, object], *wanted: dict[str, object]) -> str:
    """Say where what was found differs from each state that might have been."""
    said = []
    for state in wanted:
        for key in {**found, **state}:
            has, should = repr(found.get(key)), repr(state.get(key))
            at = next((at for at, (a, b) in enumerate(zip(has, should, strict=False)) if a != b), 0)
            if has != should:
                said += [f"{key}: found  ...{has[max(0, at - 300) : at + 300]}"]
                said += [f"{key}: wanted ...{should[max(0, at - 300) : at + 300]}"]
    return "\n".join(said)


@pytest.mark.parametrize(("tasks", "processes"), [(1, 1), (4, 1), (1, 4)])
async def test_what_was_acknowledged_before_a_kill_is_there_and_at_most_one_act_more_of_each_task(
    server, root, tasks, processes
):
    async with FileStore(root) as store:
        await store.create_thread(attrs.evolve(Thread.new(), id=SHARED))
    writers = Writers(root)
    numbers = iter(range(ROUNDS))

    async def live_and_die() -> None:
        for number in numbers:
            chance = random.Random(f"{tasks} {processes} {number}")
            acts, calls = chance.randrange(60), chance.randrange(MOST_CALLS)
            doom = (acts, calls) if number % 3 else None
            names = [f"{number}_{task}" for task in range(tasks)]
            child = server.fork("write", str(root), "power" if number % 6 == 5 else "process", doom, *names)
            if doom is None:
                await child.said(acts)
                delay(chance)
                child.send(signal.SIGKILL)
            await child.killed()
            await writers.check(child, names)

    async with asyncio.TaskGroup() as lives:
        for _ in range(processes):
            lives.create_task(live_and_die())
    await writers.check_all()


async def test_a_process_that_is_killed_while_it_opens_the_store_leaves_nothing_for_ever(server, root):
    async with FileStore(root) as store:
        await store.create_thread(attrs.evolve(Thread.new(), id=SHARED))
    had_begun = False
    for calls in range(0, 1_500, 25):
        child = server.fork("write", str(root), "process", (0, calls), f"opening_{calls}")
        await child.killed()
        had_begun = had_begun or any((root / ".threadloom" / "tmp").iterdir())
    assert had_begun
    await check_nothing_stays(root)


# Workers

# What each acknowledged act of a handler says in the run's events, and the ends of its calls that nobody acknowledges.
ACTS = {
    "checkpoint": "checkpoint",
    "step opened": "step.created step.in_progress step.delta",
    "step": "step.completed",
    "message opened": "step.created step.in_progress message.created message.in_progress",
    "word": "message.delta",
    "message": "message.completed step.completed",
    "reply": "step.created step.in_progress message.created message.in_progress message.delta "
    "message.completed step.completed",
}
CALLED = "step.created step.in_progress step.delta run.requires_action step.completed run.queued"
RETURNED = f"{ACTS['reply']} run.completed"
TAKEN_BACK = "(message.incomplete )?(step.failed )?run.queued"


class Guest:
    """Asks one thing after the other in a thread of its own, does what tools are called for, and awaits the end."""

    def __init__(self, store: FileStore, name: str) -> None:
        self.store = store
        self.name = name
        self.runs: list[Run] = []
        self.is_leaving = False

    async def stay(self) -> None:
        thread = await self.store.create_thread(Thread.new())
        while not self.is_leaving:
            words = str(random.Random(f"{self.name} {len(self.runs)}").randrange(12))
            await self.store.append_message(thread.id, Message.user(thread.id, "hello"))
            run = await self.store.create_run(thread.id, Run.new(thread.id, model="m", metadata={"words": words}))
            self.runs.append(run)
            waiting = await self.store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=PATIENCE))
            assert waiting.required_action is not None
            [call] = waiting.required_action.tool_calls
            await self.store.submit_tool_outputs(thread.id, run.id, [ToolOutput(call.id, f"told {run.id}")])
            ended = await self.store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=PATIENCE))
            assert ended.status is RunStatus.COMPLETED


class Said:
    """What all handlers of a run have acknowledged, by the call of the handler: its attempt and turn."""

    def __init__(self) -> None:
        self.acts: dict[tuple[int, int], list[tuple[str, str, Any]]] = collections.defaultdict(list)

    def all(self, kind: str) -> list[tuple[str, Any]]:
        return [(id_, more) for acts in self.acts.values() for kind_, id_, more in acts if kind_ == kind]


def check_run(root: Path, run: Run, said: Said) -> None:
    """Show by its files that a run ended once, with each thing once, and with all that was acknowledged."""
    directory = root / run.thread_id / "runs" / run.id
    record = orjson.loads((directory / "status.json").read_bytes())
    assert record["status"] == "completed"
    assert "lease" not in record
    events = lines_of(directory / "events.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds.count("thread.run.completed") == 1
    assert kinds[-1] == "thread.run.completed"

    messages = [m for m in lines_of(root / run.thread_id / "messages.jsonl") if m.get("run_id") == run.id]
    texts = {m["id"]: "".join(part["text"]["value"] for part in m["content"]) for m in messages}
    assert list(texts.values()) == texts_of(run)
    assert {m["status"] for m in messages} == {"completed"}
    for id_, _ in said.all("message") + said.all("reply"):
        assert id_ in texts

    steps = {step["id"]: step for step in map(orjson.loads, (p.read_bytes() for p in directory.glob("steps/*.json")))}
    completed = [step for step in steps.values() if step["status"] == "completed"]
    outputs = sorted(
        call["function"]["output"] for step in completed for call in step["step_details"].get("tool_calls", ())
    )
    assert outputs == [f"found {run.id}", f"told {run.id}"]
    assert sorted(s["step_details"]["message_id"] for s in completed if s["step_type"] == "message_creation") == sorted(
        texts
    )
    assert {step["status"] for step in steps.values()} <= {"completed", "failed"}
    for id_, _ in said.all("step"):
        assert steps[id_]["status"] == "completed"

    [drawn] = [event["data"]["result"] for event in events if event["event"] == "threadloom.checkpoint"]
    assert {result for id_, result in said.all("checkpoint") + said.all("kept") if id_ == "drawn"} == {drawn}

    by_message: dict[str, list[str]] = collections.defaultdict(list)
    for event in events:
        if event["event"] == "thread.message.delta":
            by_message[event["data"]["id"]].append(event["data"]["text"])
    acknowledged: dict[str, list[str]] = collections.defaultdict(list)
    for id_, word in said.all("word"):
        acknowledged[id_].append(word)
    for id_, accepted in acknowledged.items():
        # Words are accepted before they are written: a kill may take the last of them, and never one in between.
        streamed = by_message[id_]
        assert streamed[: len(accepted)] == accepted[: len(streamed)]
        assert id_ not in texts or len(streamed) >= len(accepted)
    check_calls(events, said)


def check_calls(events: list[dict[str, Any]], said: Said) -> None:
    """Show that each call of the handler wrote what it acknowledged, and at most one act more."""
    calls: list[list[dict[str, Any]]] = []
    for event in events[2:]:  # without created and queued
        if event["event"] == "thread.run.in_progress":
            calls.append([])
        calls[-1].append(event)
    any_act = "|".join(ACTS.values())
    for call in calls:
        run = call[0]["data"]
        ids = {event["data"].get("id") for event in call}
        acts = [
            ACTS[kind]
            for kind, id_, _ in said.acts[run.get("attempt", 1), run.get("turn", 0)]
            if kind not in {"kept", "word"} and (kind != "reply" or id_ in ids)  # a reply does not say that it was kept
        ]
        replies = {
            id_ for kind, id_, _ in said.acts[run.get("attempt", 1), run.get("turn", 0)] if kind == "message opened"
        }
        told = [
            event for event in call if event["event"] != "thread.message.delta" or event["data"]["id"] not in replies
        ]
        wrote = " ".join(re.sub(r"^thread(loom\.|\.run\.(?=step)|\.)", "", event["event"]) for event in told)
        begun = " ".join(["run.in_progress", *acts])
        assert re.fullmatch(f"{begun}( {CALLED}| {RETURNED}|( ({any_act}))? {TAKEN_BACK})", wrote)


class Workers:
    """Four processes at a time, of which some are killed from outside and some, at any instruction, by themselves."""

    def __init__(self, server: ForkServer, root: Path) -> None:
        self.all: list[Child] = []
        self._server = server
        self._root = root
        self._chance = random.Random("workers")
        self._living: list[tuple[Child, bool]] = []

    def start(self, number: int) -> None:
        is_doomed = number % 3 > 0
        doom = (self._chance.randrange(30), self._chance.randrange(MOST_CALLS)) if is_doomed else None
        child = self._server.fork("work", str(self._root), "power" if number % 6 == 5 else "process", doom)
        self._living.append((child, is_doomed))
        self.all.append(child)

    async def end_one(self) -> None:
        child, is_doomed = self._living.pop(self._chance.randrange(len(self._living)))
        if not is_doomed:
            await child.said(len(child.lines) + self._chance.randrange(1, 30))
            delay(self._chance)
            child.send(signal.SIGKILL)
        await child.killed()

    async def end_all(self) -> None:
        for child, _ in self._living:
            child.send(signal.SIGKILL)
            await child.killed()

    def said(self) -> dict[str, Said]:
        """Return by run what was acknowledged."""
        said: dict[str, Said] = collections.defaultdict(Said)
        for child in self.all:
            for run_id, attempt, turn, kind, id_, more in map(json.loads, child.lines):
                said[run_id].acts[attempt, turn].append((kind, id_, more))
        return said


async def test_runs_whose_workers_are_killed_end_once_with_all_that_was_acknowledged(server, root):
    workers = Workers(server, root)
    async with FileStore(root, durability="process") as store, asyncio.TaskGroup() as stays:
        guests = [Guest(store, str(number)) for number in range(8)]
        for guest in guests:
            stays.create_task(guest.stay())
        for number in range(ROUNDS):
            workers.start(number)
            if number >= 3:
                await workers.end_one()
        workers.start(0)  # one that is not doomed, and works on whatever becomes of the others
        for guest in guests:
            guest.is_leaving = True
    await workers.end_all()

    runs = [run for guest in guests for run in guest.runs]
    said = workers.said()
    for run in runs:
        check_run(root, run, said[run.id])
    for thread in root.glob("thread_*"):
        check_files(thread)
    assert any(attempt > 1 for run in runs for attempt, _ in said[run.id].acts), "handlers were called again"
    await check_nothing_stays(root)
