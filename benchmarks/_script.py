"""The work that all ways of ``store.py`` do: one run from its thread's creation to its end, in eleven operations.

Operations are of four kinds: ``create`` a thread and a run in it; ``append`` a message; ``put`` a new step; and
``change`` a record, which is read, decoded, changed, encoded and written whole. The records are those of threadloom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import orjson

from threadloom import Message, Run, RunStep, Thread
from threadloom.codec import to_record

Record = dict[str, Any]
Operation = tuple[Literal["create", "append", "put", "change"], str, Record]

QUESTION: Final = "What is the weather like?"
REPLY: Final = "It is 19 °C."

_thread = Thread.new()
_run = Run.new(_thread.id, model="any")
_reply = Message.assistant(_thread.id, REPLY, run_id=_run.id)
THREAD: Final[Record] = to_record(_thread)
RUN: Final[Record] = to_record(_run)
ASKED: Final[Record] = to_record(Message.user(_thread.id, QUESTION))
REPLIED: Final[Record] = to_record(_reply)
TOOLS: Final[Record] = to_record(RunStep.tool_calls(thread_id=_thread.id, run_id=_run.id))
CREATION: Final[Record] = to_record(
    RunStep.message_creation(thread_id=_thread.id, run_id=_run.id, message_id=_reply.id)
)

SCRIPT: Final[tuple[Operation, ...]] = (
    ("create", "run", RUN),
    ("append", "user", ASKED),
    ("change", "run", {"status": "in_progress"}),
    ("put", "tools", TOOLS),
    ("change", "run", {"status": "requires_action"}),
    ("change", "run", {"status": "in_progress"}),
    ("change", "tools", {"status": "completed"}),
    ("put", "message", CREATION),
    ("append", "assistant", REPLIED),
    ("change", "message", {"status": "completed"}),
    ("change", "run", {"status": "completed"}),
)
STEPS: Final = ("tools", "message")


class WorkNotDoneError(Exception):
    """What lies there at the end is not what a way was to write."""


def dump(record: Mapping[str, Any]) -> bytes:
    """Encode a record as threadloom has it in its files."""
    return orjson.dumps(record, option=orjson.OPT_INDENT_2)


def dump_line(record: Mapping[str, Any]) -> bytes:
    """Encode a line of a log."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def check(name: str, thread: Record, messages: Iterable[Record], records: Mapping[str, Record]) -> None:
    """Raise unless one run's records are what the script leaves: of the thread, its messages, the run and its steps."""
    left: dict[str, Record] = {}
    for kind, which, record in SCRIPT:
        if kind != "append":
            left[which] = left.get(which, {}) | record
    if thread != THREAD or list(messages) != [ASKED, REPLIED] or dict(records) != left:
        raise WorkNotDoneError(f"{name} has left {thread}, {messages}, {records}")
