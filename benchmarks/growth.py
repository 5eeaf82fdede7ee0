"""How cost grows with what is kept: the same calls on trees of 1,000, 10,000 and 100,000 threads, messages and runs.

Each tree has so many idle threads, one thread with as many messages, and one with as many finished runs
(``_trees.py``). The trees take turns, each turn with a store that was opened for it, so that a ratio is one of
neighbours. What is done once for each tree has a table of its own, without ratios of rounds: the first opening, which
has to make the index, and the memory of a fresh process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from _rounds import CONSOLE, Ratio, Turn, arguments, in_turn, places, quantile, write_json
from _script import WorkNotDoneError
from _trees import Tree
from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from threadloom import FileStore, MemoryStore, Run, RunStatus, RunWrite, Thread

PAGE = 20
LONG_PAGE = 100
SAMPLES = 20
OPENINGS = 5
BACKLOG = 200
SECONDS = 0.25  # for each row of a turn, or one sample where that takes longer
FLAT = 1.5
NEWEST_PAGE_MS = 300
IDLE_MEMORY_MB = 50
IMPORT_MS = 150
NEWEST = "threads: newest page"
BY_CURSORS = "messages: all by cursors, each"

Latencies = dict[str, list[float]]


@dataclass
class Visit:
    """One turn at one tree: each row is done several times, and what came of it is looked at."""

    tree: Tree
    store: FileStore
    taken: Latencies = field(default_factory=dict)

    async def do(self, row: str, call: Callable[[], Awaitable[Any]], *, sees: Any, parts: int = 1) -> None:
        """Call as often as there is time for; ``sees`` is what it has to return, ``parts`` what it is divided by."""
        taken = self.taken.setdefault(row, [])
        end = time.perf_counter() + SECONDS
        for _ in range(SAMPLES):
            begun = time.perf_counter()
            found = await call()
            taken.append((time.perf_counter() - begun) / parts)
            if found != sees:
                raise WorkNotDoneError(f"{row}: {str(found)[:200]} instead of {str(sees)[:200]}")
            if time.perf_counter() > end:
                break

    async def all(self) -> Latencies:
        """Do all rows."""
        await self.work_in(self.tree.runs_in, "many runs")
        await self.work_in(self.tree.thread_id(self.tree.count // 2), "idle threads")
        await self.threads()
        await self.messages()
        await self.runs()
        return self.taken

    async def threads(self) -> None:
        """List threads."""
        tree, store = self.tree, self.store
        ids = [tree.thread_id(number) for number in range(tree.count)]
        middle = tree.count // 4
        await self.do("a thread", partial(_id_of, store.get_thread, ids[middle]), sees=ids[middle])
        everything = sorted([*ids, tree.messages_in, tree.runs_in])
        page = partial(_ids_of, store.list_threads, limit=PAGE)
        await self.do(NEWEST, partial(page, order="desc"), sees=ids[: -PAGE - 1 : -1])
        await self.do("threads: oldest page", page, sees=ids[:PAGE])
        after = partial(page, after=ids[middle - 1])
        await self.do("threads: page after a cursor", after, sees=ids[middle : middle + PAGE])
        await self.do("threads: all ids, each", partial(_thread_ids, store), sees=everything, parts=tree.count)

    async def messages(self) -> None:
        """List the messages of one thread."""
        tree, store = self.tree, self.store
        ids = [tree.message_id(number) for number in range(tree.count)]
        page = partial(_ids_of, store.list_messages, tree.messages_in, limit=PAGE)
        await self.do("messages: last page", partial(page, order="desc"), sees=ids[: -PAGE - 1 : -1])
        await self.do("messages: first page", page, sees=ids[:PAGE])
        one = partial(_id_of, store.get_message, tree.messages_in)
        await self.do("the last message", partial(one, ids[-1]), sees=ids[-1])
        await self.do("the first message, by its id", partial(one, ids[0]), sees=ids[0])
        by_cursors = partial(_by_cursors, store, tree.messages_in)
        await self.do(BY_CURSORS, by_cursors, sees=ids, parts=tree.count)

    async def runs(self) -> None:
        """List the runs of one thread."""
        tree, store = self.tree, self.store
        ids = [*(tree.run_id(number) for number in range(tree.count)), *tree.made]
        await self.do("a run", partial(_id_of, store.get_run, tree.runs_in, ids[-1]), sees=ids[-1])
        await self.do("steps of a run", partial(_ids_of, store.list_steps, tree.runs_in, ids[0]), sees=[])
        page = partial(_ids_of, store.list_runs, tree.runs_in, limit=PAGE)
        await self.do("runs of one: newest page", partial(page, order="desc"), sees=ids[: -PAGE - 1 : -1])
        await self.do("runs of one: oldest page", page, sees=ids[:PAGE])

    async def work_in(self, thread_id: str, where: str) -> None:
        """Queue a run in a thread, take it, and bring it to its end by hand."""
        store = self.store
        for _ in range(SAMPLES):
            run = Run.new(thread_id, model="any")
            with self.timed(f"create a run, {where}"):
                await store.create_run(thread_id, run)
            with self.timed(f"take queued work, {where}"):
                claim = await store.try_claim_run("growth")
            with self.timed(f"update a run, {where}"):
                ended = await store.update_run_status(thread_id, run.id, RunStatus.COMPLETED)
            if claim is None or (claim.run.id, ended.status) != (run.id, RunStatus.COMPLETED):
                raise WorkNotDoneError(f"{where}: {claim} was taken, and not {run.id}")
            if thread_id == self.tree.runs_in:
                self.tree.made.append(run.id)

    @contextmanager
    def timed(self, row: str) -> Iterator[None]:
        """Time what is done within."""
        begun = time.perf_counter()
        yield
        self.taken.setdefault(row, []).append(time.perf_counter() - begun)


async def _id_of(get: Callable[..., Awaitable[Any]], *ids: str) -> str:
    found: str = (await get(*ids)).id
    return found


async def _ids_of(list_them: Callable[..., Awaitable[Iterable[Any]]], *args: str, **options: Any) -> list[str]:
    return [item.id for item in await list_them(*args, **options)]


async def _thread_ids(store: FileStore) -> list[str]:
    return list(await store.list_thread_ids())


async def _by_cursors(store: FileStore, thread_id: str) -> list[str]:
    found: list[str] = []
    page = await store.list_messages(thread_id, limit=LONG_PAGE)
    found += (message.id for message in page)
    while page.has_more:
        page = await store.list_messages(thread_id, limit=LONG_PAGE, after=found[-1])
        found += (message.id for message in page)
    return found


def turn(_: Path, tree: Tree) -> Latencies:
    """Open a store on a tree, and do all rows."""
    return asyncio.run(_turn(tree))


async def _turn(tree: Tree) -> Latencies:
    opened: list[float] = []
    for _ in range(OPENINGS):
        begun = time.perf_counter()
        async with FileStore(tree.root, durability="process"):
            opened.append(time.perf_counter() - begun)
    async with FileStore(tree.root, durability="process") as store:
        return {"open the store": opened} | await Visit(tree, store).all()


async def first_opening(tree: Tree) -> dict[str, float]:
    """Open the store where there is no index, and work while it is made; return the seconds."""
    begun = time.perf_counter()

    def since() -> float:
        return time.perf_counter() - begun

    took: dict[str, float] = {}
    async with FileStore(tree.root, durability="process") as store:
        took["until it is open"] = since()
        await store.create_run(tree.thread_id(1), run := Run.new(tree.thread_id(1), model="any"))
        claim = await store.claim_run("growth")
        took["until a run queued then was taken"] = since()
        await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        if claim.run.id != run.id:
            raise WorkNotDoneError(f"{claim.run.id} was taken, and not {run.id}")
        again = time.perf_counter()
        await store.create_run(tree.runs_in, run := Run.new(tree.runs_in, model="any"))
        tree.made.append(run.id)
        took["a run queued among many runs, meanwhile"] = time.perf_counter() - again
        await store.update_run_status(tree.runs_in, run.id, RunStatus.COMPLETED)
        # Nothing is to be taken, and that is said once the index is there.
        if await store.try_claim_run("growth") is not None:
            raise WorkNotDoneError("There was a run to take.")
        took["until the index is made"] = since()
        await tree.check(store)
    return took


async def backlog(tree: Tree) -> dict[str, float]:
    """Take runs where so many are queued; return the seconds."""
    tree.queue()
    taken: list[float] = []
    async with FileStore(tree.root, durability="process") as store:
        for number in range(BACKLOG + 1):
            begun = time.perf_counter()
            claim = await store.claim_run("growth")
            taken.append(time.perf_counter() - begun)
            if claim.run.id != tree.queued_id(number):
                raise WorkNotDoneError(f"{claim.run.id} was taken, and not {tree.queued_id(number)}")
            await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    return {"the first that is taken after opening": taken[0], "each of the next": statistics.median(taken[1:])}


async def memory(tree: Tree) -> dict[str, float]:
    """Return by how many bytes this process has grown by an idle store."""
    grown: dict[str, float] = {}
    before = _resident()

    def note(when: str) -> None:
        gc.collect()
        grown[when] = _resident() - before

    async with FileStore(tree.root, durability="process") as store:
        if await store.try_claim_run("growth") is not None:
            raise WorkNotDoneError("There was a run to take.")
        note("opened, and asked for work")
        await store.list_threads(limit=PAGE, order="desc")
        note("after the newest page of threads")
        await store.list_thread_ids()
        note("after all ids of threads")
        await store.list_runs(tree.runs_in, limit=PAGE, order="desc")
        note("after the newest page of the runs of one thread")
    return grown


async def memory_without_files(count: int) -> dict[str, float]:
    """Return by how many bytes this process has grown by so many idle threads in a ``MemoryStore``."""
    before = _resident()
    async with MemoryStore() as store:
        for _ in range(count):
            await store.create_thread(Thread.new())
        gc.collect()
        return {"MemoryStore, the threads alone": _resident() - before}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_beside(tree: Tree) -> dict[str, float]:
    """Return the megabytes that fresh processes have grown by."""
    grown: dict[str, float] = {}
    for root in (str(tree.root), ""):
        command = [sys.executable, __file__, "--memory-of", root, str(tree.count)]
        grown |= json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {when: size / 1e6 for when, size in grown.items()}


def import_times(count: int) -> list[float]:
    """Return the seconds that ``import threadloom`` takes in fresh interpreters, which find its bytecode."""
    about = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    code = "import time; begun = time.perf_counter(); import threadloom; print(time.perf_counter() - begun)"
    command = [sys.executable, "-c", code]
    times = [
        float(subprocess.run(command, check=True, capture_output=True, env=about).stdout) for _ in range(count + 1)
    ]
    return times[1:]  # the first one may have had to compile it


def flat_rows() -> frozenset[str]:
    """Return the rows that are to cost the same, however much is kept."""
    work = ("create a run", "take queued work", "update a run")
    return frozenset(
        {"open the store", "a thread", "messages: last page", "messages: first page", BY_CURSORS, "the last message"}
        | {"a run", "steps of a run"}
        | {f"{what}, {where}" for what in work for where in ("many runs", "idle threads")}
    )


def show(title: str, counts: Sequence[int], taken: Mapping[int, Sequence[Latencies]]) -> dict[str, Any]:
    """Print the table of what took turns, and return it."""
    table = RichTable(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    few, many = counts[0], counts[-1]
    table.add_column("ms")
    for heading in (*(f"{count:,}" for count in counts), f"p99 of {many:,}", f"{many:,} : {few:,}", "to reach"):
        table.add_column(heading, justify="right")
    rows = []
    for name in taken[many][0]:
        turns = {
            count: [Turn(statistics.median(turn[name]), turn[name]) for turn in turns] for count, turns in taken.items()
        }
        seconds = {count: [latency for turn in turns[count] for latency in turn.latencies] for count in counts}
        ratio = Ratio.of(turns[few], turns[many])
        figures = {
            str(count): {"p50": statistics.median(of), "p99": quantile(of, 0.99), "counted": len(of)}
            for count, of in seconds.items()
        }
        met = ""
        if name in flat_rows():
            met = f"flat {'✓' if ratio.median <= FLAT else '✗'}"
        elif name == NEWEST:
            met = f"{NEWEST_PAGE_MS} ms {'✓' if statistics.median(seconds[many]) * 1e3 < NEWEST_PAGE_MS else '✗'}"
        medians = [_ms(statistics.median(seconds[count])) for count in counts]
        table.add_row(escape(name), *medians, _ms(quantile(seconds[many], 0.99)), str(ratio), met)
        rows.append({"name": name, "figures": figures, "ratio": vars(ratio), "to_reach": met})
    CONSOLE.print(table)
    return {"title": title, "rows": rows}


def show_once(
    title: str, counts: Sequence[int], found: Mapping[int, Mapping[str, float]], to_reach: Mapping[str, float]
) -> dict[str, Any]:
    """Print the table of what was measured once a tree, and return it."""
    table = RichTable(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in (*(f"{count:,}" for count in counts), "to reach"):
        table.add_column(heading, justify="right")
    rows = []
    for name in found[counts[-1]]:
        values = [found[count][name] for count in counts]
        most = to_reach.get(name)
        met = "" if most is None else f"{most:g} {'✓' if values[-1] < most else '✗'}"
        table.add_row(escape(name), *(f"{value:.4g}" for value in values), met)
        rows.append({"name": name, "figures": dict(zip(map(str, counts), values, strict=True)), "to_reach": met})
    CONSOLE.print(table)
    return {"title": title, "rows": rows}


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def main() -> None:
    """Run the benchmark, or be the process of which the memory is looked at."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--on-disk", action="store_true", help="on the disk too, which takes some minutes")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        root, count = options.memory_of
        grown = memory(Tree(Path(root), int(count))) if root else memory_without_files(int(count))
        print(json.dumps(asyncio.run(grown)))
        return
    counts = (1_000, 10_000) if options.quick else (1_000, 10_000, 100_000)
    rounds = 1 if options.quick else options.rounds
    tables: list[dict[str, Any]] = []
    with places(options.directory) as found:
        for place in found if options.on_disk else found[:1]:
            trees = {count: Tree(Path(tempfile.mkdtemp(dir=place.directory)), count) for count in counts}
            for tree in trees.values():
                tree.build()
            opened = {count: asyncio.run(first_opening(tree)) for count, tree in trees.items()}
            mega = {count: memory_beside(tree) for count, tree in trees.items()}
            taken = in_turn({str(count): partial(turn, tree=tree) for count, tree in trees.items()}, place, rounds)
            ahead = f"so many threads, messages and runs, {place.name}"
            queued = {count: asyncio.run(backlog(tree)) for count, tree in trees.items()}
            by_count = {int(count): turns for count, turns in taken.items()}
            tables += [
                show(f"The same with {ahead}", counts, by_count),
                show_once(f"The first opening, without an index: seconds with {ahead}", counts, opened, {}),
                show_once(f"A run is queued in each thread: seconds with {ahead}", counts, queued, {}),
                show_once(
                    f"Memory of a store: MB with {ahead}",
                    counts,
                    mega,
                    dict.fromkeys(mega[counts[-1]], IDLE_MEMORY_MB),
                ),
            ]
            for tree in trees.values():
                subprocess.run(["rm", "-rf", "--", tree.root], check=True)  # faster by half than shutil
    times = import_times(5 if options.quick else 15)
    median, least, most = (f"{of(times) * 1e3:.0f}" for of in (statistics.median, min, max))
    met = "✓" if statistics.median(times) * 1e3 < IMPORT_MS else "✗"
    CONSOLE.print(f"`import threadloom` takes {median} ms ({least} to {most}); to reach: {IMPORT_MS} {met}")
    if options.json is not None:
        write_json(options.json, "growth", [*tables, {"title": "import threadloom", "seconds": times}], [])


if __name__ == "__main__":
    main()
