"""A run's ``events.jsonl``: its transactions, one behind the other, and the only truth about the run.

A transaction is one ``write`` of whole lines. Each line but its last says ``"more": true``, so that a torn transaction
can be told from a whole one; it never happened. A line is an event, as its readers see it. The last line of a
transaction that changes more than the events say also has ``commit``:

* ``lease``: the lease afterwards or null, where the run of the transaction's last event is its record;
* ``record``: the run's record with its lease, where no event says it;
* ``steps``: steps that no event says;
* ``append``: the messages among the events that belong to the thread, and where in ``messages.jsonl``;
* ``messages``: messages that were appended with a new run, before it;
* ``edits``: messages that the new run's creation deleted;
* ``stops``: what the new run's creation wrote into the logs of other runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from attrs import field, frozen

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.events import Checkpoint, MessageDelta, RunEvent, StepDelta
from threadloom.ids import is_id
from threadloom.models import Message, MessageStatus, Run, RunStep
from threadloom.records import MessageEdit, RunChange, RunRecord
from threadloom.stores.files.disk import read_at

__all__ = ["Append", "Entry", "Stop", "encode", "entry_of", "event_of", "is_begun", "read_entries"]

_logger = logging.getLogger("threadloom")

_BLOCK_BYTES: Final = 1 << 18


@frozen
class Append:
    """Messages that a transaction appends to ``messages.jsonl``, from the offset and the place where they belong."""

    offset: int
    place: int
    messages: tuple[Message, ...]


@frozen
class Stop:
    """Lines that the creation of another run appends to a run's log, from the offset where they belong."""

    offset: int
    lines: bytes


@frozen(kw_only=True)
class Entry:
    """One transaction of a run's log, and where in the log it is.

    events: what its readers see.
    record: the run's record afterwards, None where it did not change.
    steps: the steps that it wrote, each as it is afterwards.
    append: the messages that it appended.
    edits: the edits of messages that it made.
    stops: what it wrote into the logs of other runs.
    """

    start: int
    end: int
    events: tuple[RunEvent, ...] = ()
    record: RunRecord | None = None
    steps: tuple[RunStep, ...] = ()
    append: Append | None = None
    edits: tuple[MessageEdit, ...] = ()
    stops: Mapping[str, Stop] = field(factory=dict)

    @property
    def is_projected(self) -> bool:
        """Whether nothing outside the log has to agree with it: it says deltas and checkpoints only."""
        return (
            self.record is None
            and not (self.steps or self.append or self.edits or self.stops)
            and all(isinstance(event.data, MessageDelta | StepDelta | Checkpoint) for event in self.events)
        )


def encode(
    change: RunChange,
    record: dict[str, Any] | None,
    *,
    append: Append | None = None,
    edits: Sequence[MessageEdit] = (),
    stops: Mapping[str, Stop] | None = None,
) -> bytes:
    """Return the lines of a transaction: ``change``, and what else it does.

    record: the run's record with its lease, as JSON; None where it did not change.
    """
    lines, told = _event_lines(change, record)
    commit: dict[str, Any] = {}
    if record is not None:
        if told.get(change.record.run.id) is not change.record.run:
            commit["record"] = record
        else:
            commit["lease"] = record.get("lease")
    steps = [codec.to_record(step) for step in change.steps if told.get(step.id) is not step]
    if steps:
        commit["steps"] = steps
    if append is not None:
        commit["append"] = [append.offset, append.place, *(message.id for message in append.messages)]
        others = [codec.to_record(message) for message in append.messages if message.id not in told]
        if others:
            commit["messages"] = others
    if edits:
        commit["edits"] = [{"message_id": edit.message_id, "metadata": edit.metadata} for edit in edits]
    if stops:
        commit["stops"] = {run_id: [stop.offset, stop.lines.decode()] for run_id, stop in stops.items()}
    if commit:
        lines[-1]["commit"] = commit
    return b"".join([codec.dump_line(line) for line in lines])


def _event_lines(change: RunChange, record: dict[str, Any] | None) -> tuple[list[dict[str, Any]], dict[str, object]]:
    """Return the lines of the events, at least one, and of what they tell last, by its id."""
    lines: list[dict[str, Any]] = []
    told: dict[str, object] = {}
    encoded: dict[int, Any] = {}  # by identity: a new step is in two events
    for event in change.events:
        data = event.data
        if data is change.record.run and record is not None:
            as_json: Any = {key: value for key, value in record.items() if key != "lease"}
        else:
            as_json = encoded.get(id(data))
            if as_json is None:
                as_json = encoded[id(data)] = codec.to_record(data)
        if not isinstance(data, Checkpoint):
            told[data.id] = data
        lines.append(
            {"number": event.number, "event": event.type, "created_at": event.created_at, "data": as_json, "more": True}
        )
    if lines:
        del lines[-1]["more"]
    return lines or [{}], told


def read_entries(fd: int, start: int, stop: int, where: str) -> tuple[list[Entry], int]:
    """Return the whole transactions between two offsets, and the offset behind the last of them.

    A line that is damaged is skipped, and the log warns of it: ``check`` reports it.
    """
    entries: list[Entry] = []
    lines: list[tuple[int, dict[str, Any]]] = []
    begin = end = start
    rest = b""
    for offset in range(start, stop, _BLOCK_BYTES):
        block = rest + read_at(fd, offset, min(_BLOCK_BYTES, stop - offset))
        *whole, rest = block.split(b"\n")
        for line in whole:
            place, end = end, end + len(line) + 1
            record = _parsed(line, where, place)
            if record is None:
                continue
            lines.append((place, record))
            if not record.get("more"):
                entries.append(entry_of(lines, begin, end, where))
                lines = []
                begin = end
    return entries, begin


def is_begun(line: bytes) -> bool:
    """Return whether a line is blank, or one of a transaction that goes on behind it."""
    try:
        return not line.strip(b"\0 ") or bool(orjson.loads(line).get("more"))
    except (orjson.JSONDecodeError, AttributeError):
        return False


def _parsed(line: bytes, where: str, offset: int) -> dict[str, Any] | None:
    # A power cut may leave a hole of NULs, where deltas were; the line behind it is whole.
    line = line.rpartition(b"\0")[2]
    if not line.strip():
        return None
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        _logger.warning("Skipped a damaged line at byte %s of %s", offset, where)
        return None
    return record


def entry_of(lines: Sequence[tuple[int, dict[str, Any]]], start: int, end: int, where: str) -> Entry:
    """Return the transaction that these lines hold; an event that is damaged is skipped."""
    events: list[RunEvent] = []
    commit: dict[str, Any] = {}
    for offset, record in lines:
        try:
            if "event" in record:
                events.append(event_of(record, where, offset))
        except SerializationError as error:
            _logger.warning("Skipped a damaged event in %s", where, exc_info=error)
        commit = record.get("commit") or commit
    try:
        return _entry(events, commit, start, end, where)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SerializationError(where, f"this commit cannot be read ({error!r})", offset=lines[-1][0]) from None


def _entry(events: list[RunEvent], commit: dict[str, Any], start: int, end: int, where: str) -> Entry:
    steps = {event.data.id: event.data for event in events if isinstance(event.data, RunStep)}
    for record in commit.get("steps", ()):
        step = codec.from_record(record, RunStep, where, offset=start)
        steps[step.id] = step
    return Entry(
        start=start,
        end=end,
        events=tuple(events),
        record=_record(events, commit, where, start),
        steps=tuple(steps.values()),
        append=_append(events, commit, where, start),
        edits=tuple(MessageEdit(edit["message_id"], edit["metadata"]) for edit in commit.get("edits", ())),
        stops={run_id: Stop(at, text.encode()) for run_id, (at, text) in commit.get("stops", {}).items()},
    )


def event_of(record: dict[str, Any], where: str, offset: int) -> RunEvent:
    """Return the event of a line, or raise ``SerializationError``."""
    event = codec.from_record(record, RunEvent, where, offset=offset)
    # A step's id becomes the name of its file.
    if not isinstance(event.data, Checkpoint) and not is_id(event.data.id):
        raise SerializationError(where, f"{event.data.id!r} is no id", offset=offset)
    return event


def _record(events: Sequence[RunEvent], commit: dict[str, Any], where: str, offset: int) -> RunRecord | None:
    if "record" in commit:
        return codec.from_record(commit["record"], RunRecord, where, offset=offset)
    run = next((event.data for event in reversed(events) if isinstance(event.data, Run)), None)
    if run is None:
        return None
    lease = commit.get("lease")
    if lease is None:
        return RunRecord(run)
    return codec.from_record({**codec.to_record(run), "lease": lease}, RunRecord, where, offset=offset)


def _append(events: Sequence[RunEvent], commit: dict[str, Any], where: str, offset: int) -> Append | None:
    if "append" not in commit:
        return None
    at, place, *ids = commit["append"]
    found = {
        event.data.id: event.data
        for event in events
        if isinstance(event.data, Message) and event.data.status is not MessageStatus.IN_PROGRESS
    }
    for record in commit.get("messages", ()):
        message = codec.from_record(record, Message, where, offset=offset)
        found[message.id] = message
    return Append(at, place, tuple(found[id_] for id_ in ids if id_ in found))
