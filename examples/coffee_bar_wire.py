"""Play the conversations of ``coffee_bar.py`` through HTTP, with OpenAI's client, and see that not a word is lost.

A process of its own serves a ``FileStore`` and has the worker; this one knows nothing but its port. Each line of the
recording becomes a thread, each user's turn in it a message and a run. The recorded tool calls are asked for by
``requires_action`` and carried out here: one at a time, as most of them quote what the one before has brought. Half of
the runs are streamed, half are polled. One run in ten is cancelled: a streamed one at once, somewhere in the answer or
at its end, a polled one while it waits for a tool. Then all that the server tells (threads, messages, runs, steps, and
each run's events) is compared with the recording, and the store is checked. Any difference ends the program with exit
status 1.

What is expected is written in ``coffee_bar.py``. Here, a run that was complete before its cancellation came stays so.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from _coffee_recording import CANCEL_AFTER, Dialog, Findings, Turn, compare, read_dialogs, words
from _coffee_server import Transcripts, as_words, serve, served
from _coffee_table import new_directory, progress_bar, show, show_files, spread
from openai import AsyncAssistantEventHandler, AsyncOpenAI, BadRequestError
from openai.types.beta import AssistantStreamEvent
from openai.types.beta.threads import Run
from openai.types.beta.threads.run_submit_tool_outputs_params import ToolOutput
from rich.console import Console

from threadloom import FileStore

HERE = Path(__file__).parent
TOO_LATE = "Cannot cancel run with status 'completed'."
DEFINITIONS = """\
runs per second: all runs, over the time from the first guest to the last, with --durability as given.
first word: of each streamed run, from before the request whose stream brings it (the one that creates the run, or hands
in the last output) until OpenAI's event handler is called with it, in this process.
percentiles: the shortest duration that 50 % (99 %) do not exceed."""

# OpenAI has switched off its own server for these calls, and says so at each of them.
warnings.filterwarnings("ignore", "deprecated$|The Assistants API is deprecated", DeprecationWarning)


@dataclass
class Clockings:
    """What was done, and how long it took."""

    counts: Counter[str] = field(default_factory=Counter)
    first_words: list[int] = field(default_factory=list)  # in nanoseconds
    differences: list[str] = field(default_factory=list)  # between what was heard and what was kept
    run_id: str = "*"
    seconds: float = 0.0


# The guests


@dataclass
class Visit:
    """One turn of a user, and the run that answers it."""

    client: AsyncOpenAI
    clockings: Clockings
    turn: Turn
    thread_id: str
    assistant_id: str
    metadata: dict[str, str]
    leaves_after: int | None  # so many words where it is streamed, else so many tools
    has_left: bool = False
    heard: list[str] = field(default_factory=list)
    asked_ns: int = 0

    async def poll(self) -> Run:
        """Have the run, and ask again and again how it goes on."""
        runs = self.client.beta.threads.runs
        run = await runs.create_and_poll(
            thread_id=self.thread_id, assistant_id=self.assistant_id, metadata=self.metadata
        )
        answered = 0
        while run.status == "requires_action":
            if answered == self.leaves_after:
                await self.leave(run)
                return await runs.poll(run.id, thread_id=run.thread_id)
            outputs = self.use_tools(run, answered)
            answered += len(outputs)
            run = await runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs)
        return run

    async def stream(self) -> Run:
        """Have the run, and listen."""
        runs = self.client.beta.threads.runs
        self.asked_ns = time.monotonic_ns()
        async with runs.stream(
            thread_id=self.thread_id, assistant_id=self.assistant_id, metadata=self.metadata, event_handler=Ears(self)
        ) as ears:
            run = await ears.get_final_run()
        answered = 0
        while run.status == "requires_action" and not self.has_left:
            outputs = self.use_tools(run, answered)
            answered += len(outputs)
            self.asked_ns = time.monotonic_ns()
            async with runs.submit_tool_outputs_stream(
                run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs, event_handler=Ears(self)
            ) as ears:
                run = await ears.get_final_run()
        if self.has_left:  # while it asked for a tool, perhaps: then the stream has ended with that
            return await runs.poll(run.id, thread_id=run.thread_id)
        return run

    def use_tools(self, run: Run, answered: int) -> list[ToolOutput]:
        """Return what came of the calls that the run waits for: what it did in the recording."""
        calls = run.required_action.submit_tool_outputs.tool_calls if run.required_action else []
        self.clockings.counts["tools"] += len(calls)
        recorded = self.turn.calls[answered : answered + len(calls)]
        return [
            ToolOutput(tool_call_id=call.id, output=known.output or "")
            for call, known in zip(calls, recorded, strict=True)
        ]

    async def leave(self, run: Run) -> None:
        """Cancel the run, and write down in it that this was in time."""
        self.has_left = True
        runs = self.client.beta.threads.runs
        try:
            await runs.cancel(run.id, thread_id=run.thread_id)
        except BadRequestError as error:
            if TOO_LATE not in error.message:
                raise
            self.clockings.counts["too late"] += 1
        else:
            metadata = self.metadata | {CANCEL_AFTER: str(len(self.heard))}
            await runs.update(run.id, thread_id=run.thread_id, metadata=metadata)


class Ears(AsyncAssistantEventHandler):
    """Listens to one stream of a run's events."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.visit = visit

    async def on_event(self, event: AssistantStreamEvent) -> None:
        """Take in a word, and leave after the last one that the guest stays for."""
        visit = self.visit
        if event.event == "thread.message.delta":
            if not visit.heard:
                visit.clockings.first_words.append(time.monotonic_ns() - visit.asked_ns)
            visit.heard += as_words(event.data)
        if self.current_run is not None and len(visit.heard) == visit.leaves_after and not visit.has_left:
            await visit.leave(self.current_run)


@dataclass(frozen=True)
class CoffeeBar:
    """What the guests know: where to ask, and whom."""

    client: AsyncOpenAI
    assistant_id: str
    clockings: Clockings
    seed: str

    async def converse(self, dialog: Dialog) -> AsyncIterator[Run]:
        """Say what the user said, turn by turn, and yield each run when it is settled."""
        threads = self.client.beta.threads
        thread = await threads.create(metadata={"dialog": dialog.id})
        for text in dialog.opening:
            await threads.messages.create(thread.id, role="assistant", content=text)
        for number, turn in enumerate(dialog.turns):
            await threads.messages.create(thread.id, role="user", content=turn.text)
            is_streamed, leaves_after = self.draw(dialog.id, number, turn)
            visit = Visit(
                client=self.client,
                clockings=self.clockings,
                turn=turn,
                thread_id=thread.id,
                assistant_id=self.assistant_id,
                metadata={"dialog": dialog.id, "turn": str(number)},
                leaves_after=leaves_after,
            )
            if is_streamed:
                run = await visit.stream()
                kept = [text async for text in self.texts(run)]
                if visit.heard != words(*kept):
                    self.clockings.differences.append(f"{run.id}\n    heard: {visit.heard}\n    kept:  {kept}")
            else:
                run = await visit.poll()
            self.clockings.counts["streamed" if is_streamed else "polled"] += 1
            self.clockings.run_id = run.id
            yield run

    async def texts(self, run: Run) -> AsyncIterator[str]:
        """Yield what was kept of the answers of a run."""
        async for message in self.client.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc"):
            for block in message.content:
                if block.type == "text":
                    yield block.text.value

    def draw(self, dialog_id: str, number: int, turn: Turn) -> tuple[bool, int | None]:
        """Choose which half the run is in, one turn in ten, and when it is cancelled: with one seed always the same."""
        chance = random.Random(f"{self.seed} {dialog_id} {number}")
        is_streamed = chance.random() < 0.5
        if chance.random() >= 0.1:
            return is_streamed, None
        end = len(words(*turn.answers))
        if is_streamed:
            return is_streamed, chance.choice([0, chance.randint(0, end), end])
        return is_streamed, chance.randrange(len(turn.calls)) if turn.calls else None


async def play(
    client: AsyncOpenAI, dialogs: dict[str, Dialog], options: argparse.Namespace, console: Console
) -> Clockings:
    """Play all conversations, so many at a time."""
    clockings = Clockings()
    statuses: Counter[str] = Counter()
    seats = asyncio.Semaphore(options.concurrency)
    progress, task = progress_bar(dialogs, console)
    assistant = await client.beta.assistants.create(model="recording", name="The one behind the counter")
    bar = CoffeeBar(client, assistant.id, clockings, options.seed)

    async def converse(dialog: Dialog) -> None:
        async with seats:
            async for run in bar.converse(dialog):
                statuses[run.status] += 1
                shown = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
                progress.update(task, advance=1, description=shown)

    start = time.monotonic()
    with progress:
        async with asyncio.TaskGroup() as guests:
            for dialog in dialogs.values():
                guests.create_task(converse(dialog))
    clockings.seconds = time.monotonic() - start
    return clockings


# The whole


async def open_bar(
    root: Path, dialogs: dict[str, Dialog], options: argparse.Namespace, console: Console
) -> tuple[Clockings | None, Findings]:
    """Play, compare what the server tells, stop it, and check what it has left on disk."""
    async with served(options, root) as client:
        clockings = None if options.check_only else await play(client, dialogs, options, console)
        findings = await compare(Transcripts(client), str(root), dialogs)
    if clockings is not None:
        findings.differences += clockings.differences
    async with FileStore(root) as store:
        report = await store.check()
    findings.differences += (f"{problem.where}: {problem.description}" for problem in report.left)
    return clockings, findings


def clocked(clockings: Clockings) -> list[tuple[str, str]]:
    """Return the rows that say what was done, and how long it took."""
    counts = clockings.counts
    number = counts["streamed"] + counts["polled"]
    return [
        ("streamed / polled", f"{counts['streamed']} / {counts['polled']}"),
        ("tools carried out by the client", str(counts["tools"])),
        ("cancellations that came too late", str(counts["too late"])),
        ("runs per second", f"{number / clockings.seconds:.1f}"),
        ("first word, p50 / p99", spread(clockings.first_words)),
    ]


def options_given() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="Play recorded conversations through HTTP, and lose not a word.")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "coffee_dialogs.jsonl", help="the recording")
    parser.add_argument("--limit", type=int, metavar="N", help="play the first N conversations only")
    parser.add_argument("--root", type=Path, default=Path("coffee-data"), help="make numbered directories in here")
    parser.add_argument("--concurrency", type=int, default=16, help="conversations at a time")
    durability = "what a finished write outlives: a power cut (the default) or, a little faster, the server"
    parser.add_argument("--durability", choices=("power", "process"), default="power", help=durability)
    parser.add_argument("--seed", default="1", help="chooses what is streamed and what is cancelled, and when")
    parser.add_argument("--check-only", type=Path, metavar="DIR", help="compare what an earlier run has made")
    parser.add_argument("--serve-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.limit is not None and options.limit < 0:
        parser.error("--limit must be at least 0")
    if options.concurrency < 1:
        parser.error("--concurrency must be at least 1")
    if options.check_only and not (options.check_only / ".threadloom").is_dir():
        parser.error(f"{options.check_only} was not made by an earlier run")
    return options


def main() -> int:
    """Play and compare; return the exit status."""
    options = options_given()
    if options.serve_in:
        asyncio.run(serve(options, read_dialogs(options.data)))
        return 0
    try:
        dialogs = dict(islice(read_dialogs(options.data).items(), options.limit))
        root = options.check_only or new_directory(options.root)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    clockings, findings = asyncio.run(open_bar(root, dialogs, options, console))
    if clockings is None:
        show(findings, dialogs, console)
    else:
        show(findings, dialogs, console, clocked(clockings), DEFINITIONS)
        show_files(root, clockings.run_id)
    return 1 if findings.differences else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
