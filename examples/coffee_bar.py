"""Play recorded conversations at a coffee bar, cancel some of the answers, and see that not a word is lost.

Every line of the recording (``data/``) becomes a thread, every user's turn in it a message and a run. A worker takes
the runs; its handler plays the assistant: the recorded tool calls become ``tool_calls`` steps, the recorded answer is
streamed word by word. Meanwhile a second process, which shares nothing with this one but the files, force-cancels one
run in ten: at once, somewhere in the answer, or at its end. Then all that lies on disk is compared with the recording.
Any difference ends the program with exit status 1.

With ``--kill-every 2`` the worker has a process of its own, which is sent SIGKILL every two seconds, in the middle of
its runs, and started again: what is compared with the recording is the same. So that there is time to die, it pauses
between words.

What is expected on disk, whatever the recording looks like:

* The assistant speaks first: messages of the thread that belong to no run.
* A user's turn: a message, also if it is empty, and a run. All that comes before the next user's turn is that run's.
* Its tool calls: a ``tool_calls`` step each, in their order, arguments and outputs as recorded, be they JSON or not.
* The assistant's turns after it: each a message of its own, also if it is empty, and a ``message_creation`` step.
* No such turn (the user speaks twice, or has the last word): the run is ``completed`` without a message.
* A run to be cancelled: ``cancelled``, with the first of these steps and messages. Only the last step may be
  ``cancelled`` too; its message is ``incomplete`` and has what was streamed, at least what the other process had seen.
* No turns at all: an empty thread.
* A run whose worker was killed: all of the above, and beside it ``failed`` steps, one at the most for each attempt that
  was lost. What had been streamed of a message then is in the run's events, and nowhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from _coffee_process import another, given
from _coffee_recording import CANCEL_AFTER, Dialog, Findings, Turn, compare, read_dialogs, words
from _coffee_table import new_directory, progress_bar, show, show_files, spread
from _coffee_worker import Assistant, killed_every, work
from rich.console import Console

from threadloom import (
    FileStore,
    Message,
    MessageDelta,
    Run,
    RunNotFoundError,
    RunStatus,
    RunWorker,
    Thread,
    ThreadStore,
)

HERE = Path(__file__).parent
PATIENCE = timedelta(minutes=1)
DEFINITIONS = """\
runs per second: all runs, over the time from the first guest to the worker's stop, with --durability as given.
queued to started: from before create_run is called to the handler's first line, so with the write of the run.
cancel to stopped: from before the other process calls force_update_run_status to the moment in which the handler hears
of it, so with the write of the status; only of runs that were cancelled at work.
cancelled at its end: the handler had ended, or was killed, before it could hear of it.
percentiles: the shortest duration that 50 % (99 %) do not exceed."""


# The bar
PAUSE = 0.001  # seconds between two words: a model takes longer, and a cancellation has to find something to cancel


@dataclass
class Clockings:
    """When things happened, by run, in nanoseconds of ``time.monotonic_ns``.

    On Linux that clock is one for the whole machine, so that what another process read from it can be compared.
    """

    created: dict[str, int] = field(default_factory=dict)  # just before create_run was called
    started: dict[str, int] = field(default_factory=dict)  # the first line of the handler
    cancelled: dict[str, int] = field(default_factory=dict)  # in the other process, just before it forced the status
    stopped: dict[str, int] = field(default_factory=dict)  # the handler heard of it
    seconds: float = 0.0
    kills: int | None = None  # of the worker's process, where it has one

    def note(self, what: str, run_id: str, moment: int) -> None:
        """Take in what a handler says; what it said of a run before an attempt was done again stands."""
        getattr(self, what).setdefault(run_id, moment)


@dataclass(frozen=True)
class CoffeeBar:
    """The guests' side of the counter: ``converse`` plays the user. The other is in ``_coffee_worker``."""

    store: ThreadStore
    clockings: Clockings
    orders: asyncio.StreamWriter  # to the process that cancels
    seed: str

    async def converse(self, dialog: Dialog) -> AsyncIterator[Run]:
        """Say what the user said, turn by turn, and yield each run when it is settled."""
        thread = await self.store.create_thread(Thread.new(metadata={"dialog": dialog.id}))
        for text in dialog.opening:
            await self.store.append_message(thread.id, Message.assistant(thread.id, text))
        for number, turn in enumerate(dialog.turns):
            await self.store.append_message(thread.id, Message.user(thread.id, turn.text))
            metadata = {"dialog": dialog.id, "turn": str(number)} | self.draw(dialog.id, number, turn)
            run = Run.new(thread.id, model="recording", metadata=metadata)
            if CANCEL_AFTER in metadata:
                self.orders.write(f"{thread.id} {run.id} {metadata[CANCEL_AFTER]}\n".encode())
                await self.orders.drain()
            self.clockings.created[run.id] = time.monotonic_ns()
            await self.store.create_run(thread.id, run)
            yield await self.store.wait_for_run(thread.id, run.id, timeout=PATIENCE)

    def draw(self, dialog_id: str, number: int, turn: Turn) -> dict[str, str]:
        """Choose one turn in ten, and when to cancel it: with one seed always the same."""
        chance = random.Random(f"{self.seed} {dialog_id} {number}")
        if chance.random() >= 0.1:
            return {}
        end = len(words(*turn.answers))
        return {CANCEL_AFTER: str(chance.choice([0, chance.randint(0, end), end]))}


async def play(root: Path, dialogs: dict[str, Dialog], options: argparse.Namespace, console: Console) -> Clockings:
    """Play all conversations, so many at a time, beside a process that cancels some of their runs."""
    clockings = Clockings()
    statuses: Counter[str] = Counter()
    seats = asyncio.Semaphore(options.concurrency)
    progress, task = progress_bar(dialogs, console)

    async def converse(bar: CoffeeBar, dialog: Dialog) -> None:
        async with seats:
            async for run in bar.converse(dialog):
                statuses[run.status] += 1
                shown = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
                progress.update(task, advance=1, description=shown)

    def note_cancellation(said: list[str]) -> None:
        run_id, moment = said
        clockings.cancelled[run_id] = int(moment)

    store = FileStore(root, durability=options.durability)
    canceller = another([f"--cancel-in={root}", *given(options, "durability", "kill_every")], note_cancellation)
    async with store, canceller as other:
        bar = CoffeeBar(store, clockings, other.orders, options.seed)
        start = time.monotonic()
        with progress:
            async with worker(store, dialogs, clockings, options), asyncio.TaskGroup() as guests:
                for dialog in dialogs.values():
                    guests.create_task(converse(bar, dialog))
        clockings.seconds = time.monotonic() - start
    return clockings


@asynccontextmanager
async def worker(
    store: FileStore, dialogs: dict[str, Dialog], clockings: Clockings, options: argparse.Namespace
) -> AsyncIterator[None]:
    """Have a worker at the counter: in this process, or in one that is killed again and again."""
    if options.kill_every is None:
        async with RunWorker(store, Assistant(dialogs, clockings.note, PAUSE).answer, concurrency=options.concurrency):
            yield
        return
    arguments = given(options, "data", "durability", "concurrency", "kill_every")
    async with killed_every(options.kill_every, [f"--work-in={store.root}", *arguments], clockings.note) as killed:
        yield
    clockings.kills = len(killed)


# The process that cancels


async def cancel_as_ordered(options: argparse.Namespace) -> None:
    """Be the second process, with a store of its own, until there are no more orders."""
    async with FileStore(options.cancel_in, durability=options.durability) as store, asyncio.TaskGroup() as tasks:
        while order := await asyncio.to_thread(sys.stdin.readline):
            thread_id, run_id, count = order.split()
            tasks.create_task(cancel_after(store, thread_id, run_id, int(count)))


async def cancel_after(store: ThreadStore, thread_id: str, run_id: str, count: int) -> None:
    """Wait for the run, follow it until so many words are streamed, and force it."""
    async with asyncio.timeout(PATIENCE.total_seconds()):
        while True:
            try:
                moment = await follow_and_force(store, thread_id, run_id, count)
            except RunNotFoundError:  # the order comes before the run, to have a chance against the worker
                await asyncio.sleep(0.001)
            else:
                break
    print(run_id, moment, flush=True)


async def follow_and_force(store: ThreadStore, thread_id: str, run_id: str, count: int) -> int:
    """Force the run when so many words are streamed; return the moment when its events have come to their end."""
    moment = 0
    async for event in store.events(thread_id, run_id):
        count -= isinstance(event.data, MessageDelta)
        if count <= 0 and not moment:
            moment = time.monotonic_ns()
            await store.force_update_run_status(thread_id, run_id, RunStatus.CANCELLED)
    return moment


# The table


async def look(root: Path, dialogs: dict[str, Dialog]) -> Findings:
    """Compare all that lies on disk with the recording, through a store that is opened for it."""
    async with FileStore(root) as store:
        return await compare(store, str(root), dialogs)


def clocked(clockings: Clockings, findings: Findings) -> Iterator[tuple[str, str]]:
    """Yield the rows that say how long things took, and when the cancellations and kills came."""
    created, started = clockings.created, clockings.started
    cancelled, stopped = clockings.cancelled, clockings.stopped
    early = len(cancelled.keys() - started.keys())
    late = len(cancelled) - early - len(stopped)
    if clockings.kills is not None:
        yield "kills of the worker", str(clockings.kills)
        yield "runs taken over from a killed one", str(findings.counts["taken over"])
    yield "cancelled before its start / at work / at its end", f"{early} / {len(stopped)} / {late}"
    yield "runs per second", f"{len(created) / clockings.seconds:.1f}"
    yield "queued to started, p50 / p99", spread(started[run] - created[run] for run in started)
    yield "cancel to stopped, p50 / p99", spread(stopped[run] - cancelled[run] for run in stopped)


def options_given() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Play recorded conversations, and see that not a word is lost.")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "coffee_dialogs.jsonl", help="the recording")
    parser.add_argument("--root", type=Path, default=Path("coffee-data"), help="make numbered directories in here")
    parser.add_argument("--concurrency", type=int, default=16, help="conversations at a time")
    durability = "what a finished write outlives: a power cut (the default) or, a little faster, this process"
    parser.add_argument("--durability", choices=("power", "process"), default="power", help=durability)
    parser.add_argument("--seed", default="1", help="chooses what is cancelled, and when")
    parser.add_argument("--check-only", type=Path, metavar="DIR", help="compare what an earlier run has made")
    often = "run the worker in a process of its own, kill it so often, and start it again"
    parser.add_argument("--kill-every", type=float, metavar="SECONDS", help=often)
    parser.add_argument("--cancel-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kill_every is not None and not options.kill_every > 0:
        parser.error("--kill-every must be more than 0 seconds")
    if options.kill_every is not None:
        # That others finish what a killed worker was in the middle of writing is what all of this is about.
        logging.getLogger("threadloom").setLevel(logging.ERROR)
    if options.concurrency < 1:
        parser.error("--concurrency must be at least 1")
    if options.check_only and not (options.check_only / ".threadloom").is_dir():
        parser.error(f"{options.check_only} was not made by an earlier run")
    return options


def main() -> int:
    """Play and compare; return the exit status."""
    options = options_given()
    if options.cancel_in:
        asyncio.run(cancel_as_ordered(options))
        return 0
    if options.work_in:
        asyncio.run(work(options, read_dialogs(options.data)))
        return 0
    try:
        dialogs = read_dialogs(options.data)
        root = options.check_only or new_directory(options.root)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    clockings = None if options.check_only else asyncio.run(play(root, dialogs, options, console))
    findings = asyncio.run(look(root, dialogs))
    if clockings is None:
        show(findings, dialogs, console)
    else:
        show(findings, dialogs, console, clocked(clockings, findings), DEFINITIONS)
        show_files(root, next(iter(clockings.stopped or clockings.created), "*"))
    return 1 if findings.differences else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
