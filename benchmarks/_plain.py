"""The script by plain system calls, 68 a run: in Python in one thread, in C, and as aiofiles' documentation has it.

All leave the same tree. They know no locks, no events, no queue and no journal; a record is replaced by a rename of a
whole file, so that it is never half written. ``synced`` makes each operation outlive a power cut before the next one
begins: an ``fsync`` of each file that is written, and of each directory in which a name has changed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiofiles
import aiofiles.os
import orjson
from _rounds import Turn
from _script import ASKED, CREATION, REPLIED, RUN, SCRIPT, STEPS, THREAD, TOOLS, Record, check, dump, dump_line

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_END = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_SOURCE = Path(__file__).with_name("_plain.c")


def batches(runs: int, at_once: int) -> Iterator[range]:
    """Yield the numbers of runs, so many at once."""
    for first in range(0, runs, at_once):
        yield range(first, min(first + at_once, runs))


def in_one_thread(root: Path, runs: int, at_once: int, *, synced: bool) -> Turn:
    """Take one operation of each run that is at work, in turn, until all have ended."""
    latencies = []
    begun = time.perf_counter()
    for batch in batches(runs, at_once):
        batch_begun = time.perf_counter()
        at_work = [_one_run(f"{root}/thread_{number}", synced=synced) for number in batch]
        for _ in SCRIPT:
            for run in at_work:
                next(run)
        latencies += [time.perf_counter() - batch_begun] * len(batch)
    each = (time.perf_counter() - begun) / runs
    check_tree("os calls", root, runs)
    return Turn(each, latencies)


def in_threads(root: Path, runs: int, at_once: int, *, synced: bool) -> Turn:
    """Do as many runs at once, each in a thread of its own."""

    def one(number: int) -> float:
        begun = time.perf_counter()
        for _ in _one_run(f"{root}/thread_{number}", synced=synced):
            pass
        return time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        latencies = list(threads.map(one, range(runs)))
    each = (time.perf_counter() - begun) / runs
    check_tree("os calls in threads", root, runs)
    return Turn(each, latencies)


def _one_run(thread: str, *, synced: bool) -> Generator[None, None, None]:
    run = f"{thread}/runs/run"
    path_of = {"run": f"{run}/status.json"} | {step: f"{run}/steps/{step}.json" for step in STEPS}
    for kind, which, record in SCRIPT:
        match kind:
            case "create":
                _make_directory(thread, synced=synced)
                _replace(f"{thread}/meta.json", THREAD, synced=synced)
                _make_directory(f"{thread}/runs", synced=synced)
                _make_directory(run, synced=synced)
                _replace(path_of[which], record, synced=synced)
                _make_directory(f"{run}/steps", synced=synced)
            case "append":
                _append(f"{thread}/messages.jsonl", record, synced=synced, is_new=which == "user")
            case "put":
                _replace(path_of[which], record, synced=synced)
            case "change":
                _replace(path_of[which], _read(path_of[which]) | record, synced=synced)
        yield


def _read(path: str) -> Record:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    data = os.read(file, 1 << 16)
    os.close(file)
    record: Record = orjson.loads(data)
    return record


def _replace(path: str, record: Record, *, synced: bool) -> None:
    file = os.open(f"{path}.tmp", _NEW, 0o666)
    os.write(file, dump(record))
    if synced:
        os.fsync(file)
    os.close(file)
    os.rename(f"{path}.tmp", path)
    if synced:
        _sync_names(path)


def _append(path: str, record: Record, *, synced: bool, is_new: bool) -> None:
    file = os.open(path, _END, 0o666)
    os.write(file, dump_line(record))
    if synced:
        os.fdatasync(file)
    os.close(file)
    if synced and is_new:
        _sync_names(path)


def _make_directory(path: str, *, synced: bool) -> None:
    os.mkdir(path)
    if synced:
        _sync_names(path)


def _sync_names(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(directory)
    os.close(directory)


def compiled(directory: Path) -> Path:
    """Compile the C program, with the records in it as they are to be written; return where it lies."""
    if shutil.which("cc") is None:
        raise SystemExit(
            "The benchmark compiles a C program, and there is no cc. On Debian or Ubuntu: apt-get install gcc"
        )
    texts = {
        "THREAD": dump(THREAD),
        "ASKED": dump_line(ASKED),
        "REPLIED": dump_line(REPLIED),
        "TOOLS": dump(TOOLS),
        "TOOLS_COMPLETED": dump(TOOLS | {"status": "completed"}),
        "CREATION": dump(CREATION),
        "CREATION_COMPLETED": dump(CREATION | {"status": "completed"}),
        **{
            f"RUN_{status.upper()}": dump(RUN | {"status": status})
            for status in ("queued", "in_progress", "requires_action", "completed")
        },
    }
    header = directory / "records.h"
    # Between quotes, C reads what JSON's escapes say, and UTF-8 as it is.
    lines = [f"#define {name} {json.dumps(text.decode(), ensure_ascii=False)}\n" for name, text in texts.items()]
    header.write_text("".join(lines), encoding="utf-8")
    program = directory / "plain"
    subprocess.run(["cc", "-O2", "-Wall", "-include", str(header), "-o", str(program), str(_SOURCE)], check=True)
    return program


def in_c(program: Path, root: Path, runs: int, at_once: int, *, synced: bool) -> Turn:
    """Let the C program do as ``in_one_thread`` does; it measures itself, so that its start is not counted."""
    command = [str(program), str(root), str(runs), str(at_once), str(int(synced))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    took, *latencies = map(float, output.split())
    check_tree("C", root, runs)
    return Turn(took / runs, latencies)


def with_aiofiles(root: Path, runs: int, at_once: int) -> Turn:
    """Use ``aiofiles.open`` and ``aiofiles.os`` as their documentation does, one await for each call."""
    begun = time.perf_counter()
    latencies = asyncio.run(in_tasks(lambda number: _one_aiofiles_run(root / f"thread_{number}"), runs, at_once))
    each = (time.perf_counter() - begun) / runs
    check_tree("aiofiles", root, runs)
    return Turn(each, latencies)


async def in_tasks(one: Callable[[int], Awaitable[None]], runs: int, at_once: int) -> list[float]:
    """Await ``one(number)`` for each run, so many at once; return how long each took."""
    numbers = iter(range(runs))
    latencies: list[float] = []

    async def work() -> None:
        for number in numbers:
            begun = time.perf_counter()
            await one(number)
            latencies.append(time.perf_counter() - begun)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(work())
    return latencies


async def _one_aiofiles_run(thread: Path) -> None:
    run = thread / "runs/run"
    path_of = {"run": run / "status.json"} | {step: run / f"steps/{step}.json" for step in STEPS}
    for kind, which, record in SCRIPT:
        match kind:
            case "create":
                await aiofiles.os.mkdir(thread)
                await _aio_replace(thread / "meta.json", THREAD)
                await aiofiles.os.mkdir(thread / "runs")
                await aiofiles.os.mkdir(run)
                await _aio_replace(path_of[which], record)
                await aiofiles.os.mkdir(run / "steps")
            case "append":
                async with aiofiles.open(thread / "messages.jsonl", "ab") as log:
                    await log.write(dump_line(record))
            case "put":
                await _aio_replace(path_of[which], record)
            case "change":
                async with aiofiles.open(path_of[which], "rb") as file:
                    old = orjson.loads(await file.read())
                await _aio_replace(path_of[which], old | record)


async def _aio_replace(path: Path, record: Record) -> None:
    temporary = path.with_suffix(".tmp")
    async with aiofiles.open(temporary, "wb") as file:
        await file.write(dump(record))
    await aiofiles.os.rename(temporary, path)


def check_tree(name: str, root: Path, runs: int) -> None:
    """Raise unless ``runs`` whole runs lie there."""
    for number in range(runs):
        thread = root / f"thread_{number}"
        run = thread / "runs/run"
        records = {step: orjson.loads((run / f"steps/{step}.json").read_bytes()) for step in STEPS}
        records["run"] = orjson.loads((run / "status.json").read_bytes())
        messages = [orjson.loads(line) for line in (thread / "messages.jsonl").read_bytes().splitlines()]
        check(name, orjson.loads((thread / "meta.json").read_bytes()), messages, records)
