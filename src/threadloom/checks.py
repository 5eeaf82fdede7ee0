"""What is checked of objects that are handed in, before a store looks at anything it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import Enum, StrEnum
from typing import Any, Final, Literal, TypeVar, get_args

import attrs
from attrs import frozen

from threadloom.errors import IdempotencyKeyReusedError, InvalidInputError
from threadloom.ids import check_id
from threadloom.lifecycle import Lease
from threadloom.models import Assistant, Message, MessageStatus, Run, RunStep, Thread, ToolOutput, check_metadata

__all__ = [
    "KEEP",
    "MOST_KEY_CHARACTERS",
    "IdempotencyKey",
    "Keep",
    "MessageOnBusy",
    "MetadataChange",
    "OnBusy",
    "as_status",
    "changed_thread",
    "check_assistant",
    "check_changed_assistant",
    "check_key",
    "check_lease",
    "check_message",
    "check_messages",
    "check_on_busy",
    "check_run",
    "check_same_request",
    "check_step",
    "check_thread",
    "check_tool_outputs",
    "new_metadata",
]

MOST_KEY_CHARACTERS = 255
_LONGEST = timedelta.max // timedelta(seconds=1)

S = TypeVar("S", bound=StrEnum)

MetadataChange = Mapping[str, str] | None | Callable[[dict[str, Any]], Mapping[str, str]]
"""New metadata that replaces the old, none to clear it, or a plain function from the old to the new.

The function runs under the lock, so that no other change comes between its reading and its writing. It must be quick
and must not await; a store may run it in another thread.
"""

OnBusy = Literal["enqueue", "reject", "interrupt", "rollback"]
"""What ``create_run`` does where the thread has active runs.

``enqueue`` stands in line behind them; ``reject`` raises ``ActiveRunError``; ``interrupt`` asks all of them to stop;
``rollback`` does the same and removes the messages that they have written, and keeps none that they write from then on.
"""

MessageOnBusy = Literal["enqueue", "reject"]
"""What ``append_message`` does where the thread has an active run: append all the same, or raise ``ActiveRunError``."""


class Keep(Enum):
    """Says that something is not to be changed, where none is a value too."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


@frozen
class IdempotencyKey:
    """Lets a create be sent again without being done again.

    ``value`` is any text of 1 to 255 characters that the caller has chosen for this one thing; it stands by itself
    among the threads, among the assistants, and among the messages and among the runs of each thread. ``fingerprint``
    tells what was asked for from anything else that might be sent under the same key, such as a hash of the request.
    """

    value: str
    fingerprint: str


def check_assistant(assistant: Assistant) -> None:
    """Raise unless ``assistant`` may be kept."""
    check_id(assistant.id)
    check_metadata(assistant.metadata)
    for name in ("temperature", "top_p", "tools", "tool_resources", "response_format"):
        _check_json(f"The assistant's {name}", getattr(assistant, name))


def check_changed_assistant(assistant_id: str, changed: Assistant) -> None:
    """Raise unless ``changed`` is an assistant that may stand in the place of the one with that id."""
    if not isinstance(changed, Assistant) or changed.id != assistant_id:
        text = f"A change of assistant {assistant_id!r} must make an Assistant with the same id, not {changed!r}."
        raise InvalidInputError(text)
    check_assistant(changed)


def check_thread(thread: Thread) -> None:
    """Raise unless ``thread`` may be kept."""
    check_id(thread.id)
    check_metadata(thread.metadata)
    _check_json("The thread's tool_resources", thread.tool_resources)


def check_message(thread_id: str, message: Message) -> None:
    """Raise unless ``message`` may be appended to the thread: it is whole, and says that it is in this thread."""
    check_id(thread_id, message.id)
    if message.run_id is not None:
        check_id(message.run_id)
    _check_same("message", "thread_id", message.thread_id, thread_id)
    if message.status is MessageStatus.IN_PROGRESS:
        text = f"Message {message.id!r} is in_progress; only whole ones, completed or incomplete, are appended."
        raise InvalidInputError(text)
    check_metadata(message.metadata)
    _check_json("The message's attachments", message.attachments)


def check_messages(thread_id: str, messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return ``messages``, or raise unless they may be appended together with something else, and are nobody's."""
    given = tuple(messages)
    for message in given:
        if not isinstance(message, Message):
            text = f"Messages come as a sequence of Message, which {message!r} is not."
            raise InvalidInputError(text)
        check_message(thread_id, message)
        if message.run_id is not None:
            text = f"Message {message.id!r} names run {message.run_id!r}: such a one is appended by append_message."
            raise InvalidInputError(text)
    return given


def check_run(thread_id: str, run: Run) -> None:
    """Raise unless ``run`` may be kept in the thread."""
    check_id(thread_id, run.id)
    _check_same("run", "thread_id", run.thread_id, thread_id)
    check_metadata(run.metadata)
    seconds = run.expires_after_seconds
    if seconds is not None and (type(seconds) is not int or not 1 <= seconds <= _LONGEST):
        # Found out at the claim, it would stand in the way of every other run.
        text = f"A run expires 1 to {_LONGEST} whole seconds after it is first taken, not {seconds!r}."
        raise InvalidInputError(text)
    newest = None if run.truncation_strategy is None else run.truncation_strategy.last_messages
    if newest is not None and (type(newest) is not int or newest < 1):
        text = f"A run is given at least 1 of the last messages, in a whole number, not {newest!r}."
        raise InvalidInputError(text)
    for name in ("temperature", "top_p", "tools", "tool_choice", "tool_resources", "response_format"):
        _check_json(f"The run's {name}", getattr(run, name))


def check_step(thread_id: str, run_id: str, step: RunStep) -> None:
    """Raise unless ``step`` may be kept in the run."""
    check_id(thread_id, run_id, step.id)
    _check_same("step", "thread_id", step.thread_id, thread_id)
    _check_same("step", "run_id", step.run_id, run_id)
    check_metadata(step.metadata)


def check_tool_outputs(outputs: Iterable[ToolOutput]) -> tuple[ToolOutput, ...]:
    """Return ``outputs``, or raise unless they are a sequence of ``ToolOutput`` made of strings."""
    if isinstance(outputs, str | bytes | Mapping) or not isinstance(outputs, Iterable):
        text = f"Tool outputs come as a sequence of ToolOutput, not as {type(outputs).__name__}."
        raise InvalidInputError(text)
    given = tuple(outputs)
    for output in given:
        if not isinstance(output, ToolOutput):
            text = f"Tool outputs come as a sequence of ToolOutput, which {output!r} is not."
            raise InvalidInputError(text)
        if not isinstance(output.tool_call_id, str) or not isinstance(output.output, str):
            text = f"A tool_call_id and its output are strings, unlike in {output!r}."
            raise InvalidInputError(text)
    return given


def check_lease(lease: Lease) -> None:
    """Raise unless ``lease`` names its run by ids."""
    check_id(lease.thread_id, lease.run_id)


def as_status(kind: type[S], status: str) -> S:
    """Return ``status`` as a member of ``kind``, or raise ``InvalidInputError``, which names those there are."""
    try:
        return kind(status)
    except ValueError:
        text = f"{status!r} is no status here; it must be one of {', '.join(kind)}."
        raise InvalidInputError(text) from None


def check_on_busy(on_busy: str, ways: Any = OnBusy) -> None:
    """Raise unless ``on_busy`` is one of the ways there are."""
    if on_busy not in get_args(ways):
        text = f"on_busy must be one of {get_args(ways)}, not {on_busy!r}."
        raise InvalidInputError(text)


def check_key(key: IdempotencyKey | None) -> None:
    """Raise unless ``key`` may be used."""
    if key is None:
        return
    if not isinstance(key, IdempotencyKey):
        raise InvalidInputError(f"A key is an IdempotencyKey, not {type(key).__name__}.")
    for name, value in (("value", key.value), ("fingerprint", key.fingerprint)):
        if not isinstance(value, str) or not _is_text(value):
            raise InvalidInputError(f"The {name} of an idempotency key is text, which {value!r} is not.")
    if not 1 <= len(key.value) <= MOST_KEY_CHARACTERS:
        text = f"An idempotency key has 1 to {MOST_KEY_CHARACTERS} characters, not {len(key.value)}."
        raise InvalidInputError(text)


def _is_text(value: str) -> bool:
    """Whether it can be kept: a lone surrogate cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_same_request(key: IdempotencyKey, fingerprint: str) -> None:
    """Raise unless what was created under ``key``, with ``fingerprint``, is what is asked for now."""
    if key.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError(key.value)


def changed_thread(
    old: Thread, metadata: MetadataChange | Keep, tool_resources: Mapping[str, Any] | Keep | None
) -> Thread:
    """Return the thread with what is given of it changed, or raise unless it may be kept."""
    changed = old
    if metadata is not KEEP:
        changed = attrs.evolve(changed, metadata=new_metadata(old.metadata, metadata))
    if tool_resources is not KEEP:
        changed = attrs.evolve(changed, tool_resources=tool_resources)
        _check_json("The thread's tool_resources", tool_resources)
    return changed


def new_metadata(old: Mapping[str, Any], change: MetadataChange) -> dict[str, str]:
    """Return the metadata that ``change`` makes of ``old``, or raise ``InvalidMetadataError``."""
    return check_metadata(change(dict(old)) if callable(change) else change)


def _check_same(what: str, field: str, has: str, asked: str) -> None:
    if has != asked:
        text = f"The {what}'s {field} is {has!r}, but it was handed in for {asked!r}."
        raise InvalidInputError(text)


def _check_json(what: str, value: object) -> None:
    """Raise for what JSON has no word for, or no store can read again: it would be kept as another, and nobody told."""
    match value:
        case float() if not math.isfinite(value):
            text = f"{what} has {value!r} in it, which JSON cannot say."
            raise InvalidInputError(text)
        case int() if not -(2**63) <= value < 2**64:
            text = f"{what} has {value!r} in it, which does not fit into 64 bits."
            raise InvalidInputError(text)
        case Mapping():
            for key, item in value.items():
                if not isinstance(key, str):
                    text = f"{what} has {key!r} in it as the key of an object, and keys are strings."
                    raise InvalidInputError(text)
                _check_json(what, item)
        case list() | tuple():
            for item in value:
                _check_json(what, item)
