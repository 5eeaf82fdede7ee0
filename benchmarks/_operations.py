"""Every operation of the store alone, one at a time and 64 at once, each on a thread of its own.

The operations are taken in the order of a run's life, so that each finds what it needs; what lies between two of them
is not timed. Lists ask for the newest 20. ``check`` is missing, for it reads the whole store, and so is opening.
"""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from _ours import Durability
from _rounds import CONSOLE, Place, Ratio, Turn, in_turn, quantile
from _script import QUESTION, REPLY, WorkNotDoneError
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from threadloom import (
    Assistant,
    Claim,
    FileStore,
    FunctionCall,
    Message,
    RequiredAction,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWrite,
    Thread,
    ThreadStore,
    ToolCall,
    ToolOutput,
)

ALONE = 32
AT_ONCE = 64
WEATHER = ToolCall.new(FunctionCall(name="weather", arguments='{"city": "Berlin"}'))


class _Scene:
    """The operations, in the order in which they are measured; ``i`` is the number of the thread they work on.

    What begins with ``then_`` lies between two of them.
    """

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._assistants: dict[int, Assistant] = {}
        self._threads: dict[int, Thread] = {}
        self._messages: dict[int, Message] = {}
        self._runs: dict[int, Run] = {}
        self._steps: dict[int, RunStep] = {}
        self._claims: dict[int, Claim] = {}

    def _run(self, i: int) -> tuple[str, str]:
        return self._threads[i].id, self._runs[i].id

    async def create_assistant(self, i: int) -> None:
        self._assistants[i] = await self._store.create_assistant(Assistant.new(model="any"))

    async def get_assistant(self, i: int) -> None:
        await self._store.get_assistant(self._assistants[i].id)

    async def list_assistants(self, _: int) -> None:
        await self._store.list_assistants(limit=20, order="desc")

    async def update_assistant(self, i: int) -> None:
        await self._store.update_assistant(self._assistants[i].id, lambda old: attrs.evolve(old, name="any"))

    async def delete_assistant(self, i: int) -> None:
        await self._store.delete_assistant(self._assistants[i].id)

    async def create_thread(self, i: int) -> None:
        self._threads[i] = await self._store.create_thread(Thread.new())

    async def get_thread(self, i: int) -> None:
        await self._store.get_thread(self._threads[i].id)

    async def list_thread_ids(self, _: int) -> None:
        await self._store.list_thread_ids(limit=20, order="desc")

    async def list_threads(self, _: int) -> None:
        await self._store.list_threads(limit=20, order="desc")

    async def update_thread(self, i: int) -> None:
        await self._store.update_thread(self._threads[i].id, metadata={"liked": "yes"})

    async def append_message(self, i: int) -> None:
        thread_id = self._threads[i].id
        self._messages[i] = await self._store.append_message(thread_id, Message.user(thread_id, QUESTION))

    async def get_message(self, i: int) -> None:
        await self._store.get_message(self._threads[i].id, self._messages[i].id)

    async def list_messages(self, i: int) -> None:
        await self._store.list_messages(self._threads[i].id, limit=20, order="desc")

    async def update_message(self, i: int) -> None:
        await self._store.update_message(self._threads[i].id, self._messages[i].id, metadata={"liked": "yes"})

    async def delete_message(self, i: int) -> None:
        await self._store.delete_message(self._threads[i].id, self._messages[i].id)

    async def create_run(self, i: int) -> None:
        thread_id = self._threads[i].id
        self._runs[i] = await self._store.create_run(thread_id, Run.new(thread_id, model="any"))

    async def get_run(self, i: int) -> None:
        await self._store.get_run(*self._run(i))

    async def list_runs(self, i: int) -> None:
        await self._store.list_runs(self._threads[i].id, limit=20, order="desc")

    async def update_run(self, i: int) -> None:
        await self._store.update_run(*self._run(i), metadata={"liked": "yes"})

    async def update_run_status(self, i: int) -> None:
        await self._store.update_run_status(*self._run(i), RunStatus.IN_PROGRESS)

    async def append_step(self, i: int) -> None:
        thread_id, run_id = self._run(i)
        step = RunStep.tool_calls(thread_id=thread_id, run_id=run_id, calls=[WEATHER])
        self._steps[i] = await self._store.append_step(thread_id, run_id, step)

    async def get_step(self, i: int) -> None:
        await self._store.get_step(*self._run(i), self._steps[i].id)

    async def list_steps(self, i: int) -> None:
        await self._store.list_steps(*self._run(i), limit=20, order="desc")

    async def update_step_status(self, i: int) -> None:
        await self._store.update_step_status(*self._run(i), self._steps[i].id, RunStepStatus.COMPLETED)

    async def force_update_run_status(self, i: int) -> None:
        await self._store.force_update_run_status(*self._run(i), RunStatus.COMPLETED)

    async def finalize_run(self, i: int) -> None:
        await self._store.finalize_run(*self._run(i))

    async def wait_for_run(self, i: int) -> None:
        if (await self._store.wait_for_run(*self._run(i))).status is not RunStatus.COMPLETED:
            raise WorkNotDoneError(f"{self._runs[i]} is not completed")

    async def events(self, i: int) -> None:
        if not [event async for event in self._store.events(*self._run(i))]:
            raise WorkNotDoneError(f"{self._runs[i]} has no events")

    async def get_checkpoints(self, i: int) -> None:
        await self._store.get_checkpoints(*self._run(i))

    async def then_queue_another(self, i: int) -> None:
        await self.create_run(i)

    async def try_claim_run(self, i: int) -> None:
        claim = await self._store.try_claim_run("bench")
        if claim is None:
            raise WorkNotDoneError("there was no run to take")
        self._claims[i] = claim

    async def check_lease(self, i: int) -> None:
        await self._store.check_lease(self._claims[i].lease)

    async def write_run(self, i: int) -> None:
        lease = self._claims[i].lease
        message = Message.assistant(lease.thread_id, REPLY, run_id=lease.run_id)
        await self._store.write_run(lease, RunWrite(items=(message,)))

    async def then_require_action(self, i: int) -> None:
        work = RunWrite(status=RunStatus.REQUIRES_ACTION, required_action=RequiredAction((WEATHER,)))
        await self._store.write_run(self._claims[i].lease, work)

    async def submit_tool_outputs(self, i: int) -> None:
        await self._store.submit_tool_outputs(*self._run(i), [ToolOutput(WEATHER.id, "19 °C")])

    async def claim_run(self, i: int) -> None:
        self._claims[i] = await self._store.claim_run("bench")

    async def request_cancel(self, i: int) -> None:
        await self._store.request_cancel(*self._run(i))

    async def wait_for_stop(self, i: int) -> None:
        await self._store.wait_for_stop(self._claims[i].lease)

    async def then_check(self, i: int) -> None:
        (message,) = await self._store.list_messages(self._threads[i].id)
        runs = [run.status for run in await self._store.list_runs(self._threads[i].id)]
        if message.text != REPLY or runs != [RunStatus.COMPLETED, RunStatus.CANCELLING]:
            raise WorkNotDoneError(f"{message}, {runs} is what was left")

    async def delete_thread(self, i: int) -> None:
        await self._store.delete_thread(self._threads[i].id, force=True)


ORDER = [name for name in vars(_Scene) if not name.startswith("_")]
OPERATIONS = [name for name in ORDER if not name.startswith("then_")]
OF_THE_STORE = {
    name
    for name, method in inspect.getmembers(ThreadStore, inspect.isfunction)
    if not name.startswith("_") and name not in {"close", "check"}
}

Taken = dict[str, tuple[Turn, Turn]]


@dataclass(frozen=True)
class OperationsTable:
    """What each operation took, alone and among many, at each durability."""

    title: str
    taken: dict[Durability, list[Taken]]

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures of each operation, times in seconds."""
        rows = []
        for name in OPERATIONS:
            row: dict[str, Any] = {"name": name}
            for durability, rounds in self.taken.items():
                alone = [latency for taken in rounds for latency in taken[name][0].latencies]
                row[durability] = {
                    "p50": statistics.median(alone),
                    "p99": quantile(alone, 0.99),
                    "each_at_once": statistics.median(taken[name][1].each for taken in rounds),
                }
            at_once = {key: [taken[name][1] for taken in rounds] for key, rounds in self.taken.items()}
            rows.append(row | {"ratio": Ratio.of(at_once["power"], at_once["process"])})
        return rows

    def show(self) -> None:
        """Print the table."""
        table = RichTable(title=escape(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        for durability in self.taken:
            for heading in ("median", "p99", f"{AT_ONCE} at once"):
                table.add_column(f"{durability}\n{heading}", justify="right")
        table.add_column(f"power to process,\nspeed, {AT_ONCE} at once", justify="right")
        for row in self.rows():
            figures = [f"{seconds * 1e6:.0f}" for durability in self.taken for seconds in row[durability].values()]
            table.add_row(row["name"], *figures, str(row["ratio"]))
        CONSOLE.print(table)

    def as_json(self) -> dict[str, Any]:
        """Return the figures for the JSON file."""
        return {"title": self.title, "rows": [row | {"ratio": vars(row["ratio"])} for row in self.rows()]}


def every_operation(place: Place, rounds: int) -> OperationsTable:
    """Measure every operation at both durabilities, in turn."""
    if set(OPERATIONS) != OF_THE_STORE:
        raise WorkNotDoneError(f"not measured, or not there: {OF_THE_STORE.symmetric_difference(OPERATIONS)}")
    ways: dict[Durability, Callable[[Path], Taken]] = {
        "process": lambda root: asyncio.run(_measure(root, "process")),
        "power": lambda root: asyncio.run(_measure(root, "power")),
    }
    return OperationsTable(f"Every operation alone, µs, {place.name}", in_turn(ways, place, rounds))


async def _measure(root: Path, durability: Durability) -> Taken:
    taken: Taken = {}
    async with FileStore(root, durability=durability) as store:
        scene = _Scene(store)
        for name in ORDER:
            operation = getattr(scene, name)
            alone = await _timed([partial(operation, i) for i in range(ALONE)], are_at_once=False)
            many = range(ALONE, ALONE + AT_ONCE)
            at_once = await _timed([partial(operation, i) for i in many], are_at_once=True)
            taken[name] = (alone, at_once)
        if await store.list_thread_ids() or await store.list_assistants():
            raise WorkNotDoneError("something was not deleted")
    return taken


async def _timed(calls: list[Callable[[], Awaitable[None]]], *, are_at_once: bool) -> Turn:
    latencies: list[float] = []

    async def one(call: Callable[[], Awaitable[None]]) -> None:
        begun = time.perf_counter()
        await call()
        latencies.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    if are_at_once:
        async with asyncio.TaskGroup() as tasks:
            for call in calls:
                tasks.create_task(one(call))
    else:
        for call in calls:
            await one(call)
    return Turn((time.perf_counter() - begun) / len(calls), latencies)
