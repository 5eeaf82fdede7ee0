"""The recorded conversations of ``coffee_bar.py``: how they are read, and how what was kept is compared with them."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

from threadloom import (
    FunctionCall,
    Message,
    MessageCreation,
    MessageDelta,
    MessageRole,
    Page,
    Run,
    RunEvent,
    RunStep,
    Thread,
    ToolCall,
    ToolCalls,
)

CANCEL_AFTER = "cancel_after"  # in a run's metadata: at how many streamed words it is to be cancelled
T = TypeVar("T")
Outline = tuple[object, ...]


# Reading


@dataclass(frozen=True)
class Turn:
    """What the user said, and all that the assistant did before the user spoke again."""

    text: str
    calls: tuple[FunctionCall, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Dialog:
    """A recorded conversation. ``opening`` is what the assistant said before the user spoke at all."""

    id: str
    opening: tuple[str, ...]
    turns: tuple[Turn, ...]


def read_dialogs(path: Path) -> dict[str, Dialog]:
    """Return the recorded conversations by id; ``ValueError`` names the line that is not of the form."""
    dialogs: dict[str, Dialog] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                dialog = as_dialog(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}, is no dialog: {type(error).__name__}: {error}") from error
            if dialogs.setdefault(dialog.id, dialog) is not dialog:
                raise ValueError(f"{path}, line {number}: the id {dialog.id!r} comes a second time")
    return dialogs


def as_dialog(record: dict[str, Any]) -> Dialog:
    """Return the conversation that one line of the recording holds."""
    opening, turns = by_turn(record["turns"], lambda turn: MessageRole(turn["role"]))
    return Dialog(
        text_of(record, "id"),
        tuple(text_of(answer, "text") for answer in opening),
        tuple(
            Turn(
                text_of(said, "text"),
                tuple(as_call(call) for call in said.get("calls", ())),
                tuple(text_of(answer, "text") for answer in answers),
            )
            for said, answers in turns
        ),
    )


def as_call(record: dict[str, Any]) -> FunctionCall:
    """Return a recorded call."""
    return FunctionCall(
        name=text_of(record, "name"), arguments=text_of(record, "arguments"), output=text_of(record, "output")
    )


def text_of(record: dict[str, Any], key: str) -> str:
    """Return a text of the recording, which has to be there."""
    text = record[key]
    if not isinstance(text, str):
        raise TypeError(f"{key} is {text!r}")
    text.encode()  # raises for half of a surrogate pair, which JSON can spell and no file can hold
    return text


def by_turn(said: Iterable[T], role: Callable[[T], MessageRole]) -> tuple[list[T], list[tuple[T, list[T]]]]:
    """Return what the assistant said first, then each thing that the user said with the answers to it."""
    opening: list[T] = []
    turns: list[tuple[T, list[T]]] = []
    for item in said:
        if role(item) is MessageRole.USER:
            turns.append((item, []))
        else:
            (turns[-1][1] if turns else opening).append(item)
    return opening, turns


def words(*texts: str) -> list[str]:
    """Return the pieces in which ``texts`` are streamed: words with the space before them, so that none is lost."""
    return [word for text in texts for word in re.findall(r"\s*\S+|\s+", text)]


# Comparing


@dataclass
class Findings:
    """What was kept, counted, and each difference from the recording in words."""

    counts: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def all_of(self, page: Page[T], kind: str, where: str) -> Page[T]:
        """Count what is on a page, and note what of it is damaged."""
        self.counts[kind] += len(page)
        self.differences += (f"{where}: {error}" for error in page.damaged)
        return page

    def compare(self, where: str, found: Iterable[object], wanted: Iterable[object]) -> None:
        """Note the first of ``found`` that is not as it should be."""
        for number, (has, should) in enumerate(zip_longest(found, wanted), 1):
            if has != should:
                self.differences.append(f"{where} {number}\n    found:  {has}\n    wanted: {should}")
                return


class Archive(Protocol):
    """What is compared: a store, or what somebody else tells of one."""

    async def list_threads(self) -> Page[Thread]: ...
    async def list_messages(self, thread_id: str) -> Page[Message]: ...
    async def list_runs(self, thread_id: str) -> Page[Run]: ...
    async def list_steps(self, thread_id: str, run_id: str) -> Page[RunStep]: ...
    def events(self, thread_id: str, run_id: str) -> AsyncIterator[RunEvent]: ...


async def compare(archive: Archive, where: str, dialogs: dict[str, Dialog]) -> Findings:
    """Compare all that is kept with the recording; ``where`` names the whole of it."""
    findings = Findings()
    missing = dict(dialogs)
    seats = asyncio.Semaphore(16)
    looks: list[asyncio.Task[Findings]] = []
    threads = findings.all_of(await archive.list_threads(), "conversations", where)
    async with asyncio.TaskGroup() as tasks:
        for thread in threads:
            dialog = missing.pop(str(thread.metadata.get("dialog")), None)
            if dialog is None:
                findings.differences.append(f"{thread.id}: no dialog of the recording, or one that comes twice")
            else:
                looks.append(tasks.create_task(look_at_thread(archive, thread.id, dialog, seats)))
    for look in looks:
        findings.counts += look.result().counts
        findings.differences += look.result().differences
    findings.differences += (f"{dialog_id}: the dialog has no thread" for dialog_id in missing)
    return findings


async def look_at_thread(archive: Archive, thread_id: str, dialog: Dialog, seats: asyncio.Semaphore) -> Findings:
    """Compare a thread with its dialog, when a seat is free."""
    findings = Findings()
    async with seats:
        try:
            await compare_thread(findings, archive, thread_id, dialog)
        except Exception as error:  # noqa: BLE001 - what cannot be read, for whatever reason, is a difference
            findings.differences.append(f"{thread_id}: {type(error).__name__}: {error}")
    return findings


async def compare_thread(findings: Findings, archive: Archive, thread_id: str, dialog: Dialog) -> None:
    """Compare a thread with its dialog."""
    messages = findings.all_of(await archive.list_messages(thread_id), "messages", thread_id)
    runs = findings.all_of(await archive.list_runs(thread_id), "runs", thread_id)
    opening, turns = by_turn(messages, lambda message: message.role)
    findings.compare(f"{thread_id}: opening", (message.text for message in opening), dialog.opening)
    findings.compare(f"{thread_id}: user's turn", (user.text for user, _ in turns), (t.text for t in dialog.turns))
    findings.compare(f"{thread_id}: number of runs", [len(runs)], [len(dialog.turns)])
    for run, (_, replies), turn in zip(runs, turns, dialog.turns, strict=False):
        where = f"{thread_id}/runs/{run.id}:"
        findings.counts[run.status] += 1
        steps = findings.all_of(await archive.list_steps(thread_id, run.id), "steps", where)
        findings.counts["taken over"] += run.attempt > 1
        failed = [step for step in steps if step.status == "failed"]
        done = [step for step in steps if step not in failed[: run.attempt - 1]]
        streamed, begun = await words_streamed(archive, run, {reply.id for reply in replies})
        findings.compare(f"{where} run", [outline_of_run(run)], [wanted_run(run)])
        findings.compare(f"{where} step", map(outline_of_step, done), wanted_steps(run, turn, replies, done))
        findings.compare(f"{where} message", map(outline_of_message, replies), wanted_messages(run, turn, replies))
        findings.compare(f"{where} events", ["".join(streamed)], ["".join(reply.text for reply in replies)])
        seen = int(run.metadata.get(CANCEL_AFTER, 0))
        number = len(streamed) + sum(len(pieces) for pieces in begun)
        findings.compare(f"{where} words", [number], [max(number, seen)])
        texts = ["".join(pieces) for pieces in begun]
        wanted = [next((a[: len(text)] for a in turn.answers if a.startswith(text)), "an answer") for text in texts]
        findings.compare(f"{where} begun in a lost attempt", texts, wanted[: run.attempt - 1])


async def words_streamed(archive: Archive, run: Run, kept: Container[str]) -> tuple[list[str], list[list[str]]]:
    """Return the words in the events of a run: those of the messages that were kept, and of each other message.

    The run must be settled, for else its events may never end.
    """
    streamed: list[str] = []
    others: dict[str, list[str]] = {}
    if run.status.is_terminal:
        async for event in archive.events(run.thread_id, run.id):
            if isinstance(event.data, MessageDelta):
                message_id = event.data.id
                (streamed if message_id in kept else others.setdefault(message_id, [])).append(event.data.text)
    return streamed, list(others.values())


def outline_of_run(run: Run) -> Outline:
    """Return what is compared of a run: its status, the moments that are set, and its error."""
    moments = [name for name in ("started", "completed", "cancelled", "failed") if getattr(run, f"{name}_at")]
    return (str(run.status), moments, run.last_error)


def wanted_run(run: Run) -> Outline:
    """Return the outline that a run should have: cancelled where that was ordered, maybe before it started."""
    status = "cancelled" if CANCEL_AFTER in run.metadata else "completed"
    return (status, ["started", status] if run.started_at or status == "completed" else [status], None)


def outline_of_message(message: Message) -> Outline:
    """Return what is compared of a message: its status, why that is so, whether its moment is set, run and text."""
    reason = message.incomplete_details and message.incomplete_details.reason
    return (str(message.status), reason, has_moment(message), message.run_id, message.text)


def wanted_messages(run: Run, turn: Turn, replies: Sequence[Message]) -> list[Outline]:
    """Return the outlines that a run's messages should have: of a cancelled one for as many as there are."""
    number = sum(reply.status == "completed" for reply in replies) if CANCEL_AFTER in run.metadata else None
    wanted: list[Outline] = [("completed", None, True, run.id, text) for text in turn.answers[:number]]
    if number is not None and number < min(len(replies), len(turn.answers)):
        begun = turn.answers[number][: len(replies[-1].text)] or "at least a word"
        wanted.append(("incomplete", "run_cancelled", True, run.id, begun))
    return wanted


def outline_of_step(step: RunStep) -> Outline:
    """Return what is compared of a step: its status, whether its moment is set, and the calls or the message's id."""
    did: object = step.step_details
    if isinstance(did, ToolCalls):
        did = [call.function for call in did.tool_calls if isinstance(call, ToolCall)]
    elif isinstance(did, MessageCreation):
        did = did.message_id
    return (str(step.status), has_moment(step), did)


def wanted_steps(run: Run, turn: Turn, replies: Sequence[Message], steps: Sequence[RunStep]) -> list[Outline]:
    """Return the outlines that a run's steps should have: of a cancelled one for as many as there are."""
    was_cut = CANCEL_AFTER in run.metadata and bool(steps) and steps[-1].status == "cancelled"
    number = len(steps) - was_cut if CANCEL_AFTER in run.metadata else None
    wanted: list[Outline] = [("completed", True, [call]) for call in turn.calls[:number]]
    wanted += [("completed" if reply.status == "completed" else "cancelled", True, reply.id) for reply in replies]
    if was_cut and len(wanted) < len(steps):  # no output was there yet, or no word
        call = turn.calls[len(wanted)] if len(wanted) < len(turn.calls) else None
        begun = [FunctionCall(name=call.name, arguments=call.arguments)] if call else outline_of_step(steps[-1])[-1]
        wanted.append(("cancelled", True, begun))
    return wanted


def has_moment(item: Message | RunStep) -> bool:
    """Return whether it is said when a message or step came to its status."""
    return getattr(item, f"{item.status}_at") is not None
