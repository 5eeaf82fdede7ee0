"""What it costs that a write outlives a power cut: the journal against one sync for every file that is written.

Every way does the same work: a run from its thread's creation to its end, eleven operations, so many at once. They take
turns in one process and on one directory, and the ratios are those of neighbours, so that a machine whose speed drifts
does not matter. ``synced files`` are plain system calls from as many threads as there are runs at once, with an fsync
of every file and of every directory in which a name has changed; it knows no locks, no events and no queue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from threadloom import FileStore, Message, Run, RunStatus, RunStep, RunStepStatus, Thread

OPERATIONS = 11


async def one_run(store: FileStore) -> None:
    """Bring one run from its thread's creation to its end."""
    thread = await store.create_thread(Thread.new())
    await store.append_message(thread.id, Message.user(thread.id, "What is the weather like?"))
    run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
    await store.update_run_status(thread.id, run.id, RunStatus.IN_PROGRESS)
    tools = await store.append_step(thread.id, run.id, RunStep.tool_calls(thread_id=thread.id, run_id=run.id))
    await store.update_step_status(thread.id, run.id, tools.id, RunStepStatus.COMPLETED)
    reply = Message.assistant(thread.id, "It is 19 °C.", run_id=run.id)
    step = RunStep.message_creation(thread_id=thread.id, run_id=run.id, message_id=reply.id)
    await store.append_step(thread.id, run.id, step)
    await store.append_message(thread.id, reply)
    await store.update_step_status(thread.id, run.id, step.id, RunStepStatus.COMPLETED)
    await store.update_run_status(thread.id, run.id, RunStatus.COMPLETED)
    assert [message.text for message in await store.list_messages(thread.id)][1:] == ["It is 19 °C."]  # noqa: S101


async def with_store(root: Path, durability: Literal["power", "process"], runs: int, at_once: int) -> float:
    """Return the seconds that ``runs`` take, the closing of the store, which syncs what is left, included."""
    begun = time.perf_counter()
    async with FileStore(root, durability=durability) as store:
        left = iter(range(runs))

        async def work() -> None:
            for _ in left:
                await one_run(store)

        await asyncio.gather(*[work() for _ in range(at_once)])
    return time.perf_counter() - begun


def with_synced_files(root: Path, runs: int, at_once: int) -> float:
    """Return the seconds that ``runs`` take with plain calls and a sync for every file and directory."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        for _ in threads.map(partial(one_synced_run, root), range(runs)):
            pass
    return time.perf_counter() - begun


def one_synced_run(root: Path, number: int) -> None:
    """Write the files of a run as ``one_run`` leaves them, in as many operations."""
    thread = root / f"thread_{number}"
    run = thread / "runs" / "run"
    make_directory(thread)
    replace(thread / "meta.json", {"id": thread.name})
    append(thread / "messages.jsonl", {"role": "user", "content": "What is the weather like?"})
    make_directory(thread / "runs")
    make_directory(run)
    replace(run / "status.json", {"status": "queued"})
    replace(run / "status.json", {"status": "in_progress"})
    make_directory(run / "steps")
    for step in ("tools", "message"):
        replace(run / "steps" / f"{step}.json", {"status": "in_progress"})
        if step == "message":
            append(thread / "messages.jsonl", {"role": "assistant", "content": "It is 19 °C."})
        replace(run / "steps" / f"{step}.json", {"status": "completed"})
    replace(run / "status.json", {"status": "completed"})


def make_directory(path: Path) -> None:
    """Make a directory that outlives a power cut."""
    path.mkdir()
    sync(path.parent)


def replace(path: Path, record: dict[str, str]) -> None:
    """Replace a record by one that outlives a power cut."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2))
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def append(path: Path, record: dict[str, str]) -> None:
    """Append a line that outlives a power cut."""
    is_new = not path.exists()
    with path.open("a") as file:
        file.write(f"{json.dumps(record)}\n")
        file.flush()
        os.fdatasync(file.fileno())
    if is_new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Make durable what a file holds, or which names a directory has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def measure(directory: Path, runs: int, at_once: int, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds a run takes, in each way and round; the ways take turns."""
    ways: dict[str, Callable[[Path], float]] = {
        "power": lambda root: asyncio.run(with_store(root, "power", runs, at_once)),
        "process": lambda root: asyncio.run(with_store(root, "process", runs, at_once)),
        "synced files": lambda root: with_synced_files(root, runs, at_once),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    # Removed at the end only: ext4 makes new files slowly for seconds after others were deleted.
    with tempfile.TemporaryDirectory(dir=directory) as place:
        for round_number in range(rounds + 1):
            for way, seconds in ways.items():
                root = Path(tempfile.mkdtemp(dir=place))
                microseconds = seconds(root) / runs * 1e6
                if round_number:  # the first warms up
                    taken[way].append(microseconds)
    return taken


def main() -> None:
    """Print, for one and for many at once, what a run costs in each way, and the ratios of speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where to write (default: here)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{OPERATIONS} operations a run; microseconds a run, median of {options.rounds} rounds in turn")
    for at_once, runs in ((1, 30), (64, 512)):
        taken = measure(options.directory, runs, at_once, options.rounds)
        medians = {way: statistics.median(all_taken) for way, all_taken in taken.items()}
        print(f"{at_once:3} at once:", ", ".join(f"{way} {median:.0f}" for way, median in medians.items()))
        for other in ("synced files", "process"):
            ratios = sorted(theirs / ours for theirs, ours in zip(taken[other], taken["power"], strict=True))
            print(
                f"    power is {statistics.median(ratios):.2f} times as fast as {other}"
                f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()
