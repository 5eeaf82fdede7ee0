"""Checks of what callers hand to a store, before it looks at anything it keeps.

What passes is the store's own: a copy of every mapping, so that a caller may change its objects afterwards.
"""

from __future__ import annotations

import functools
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from enum import Enum, StrEnum
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from threadloom.copies import detached, evolved
from threadloom.errors import IdempotencyKeyReusedError, InvalidInputError, InvalidMetadataError
from threadloom.events import Checkpoint
from threadloom.ids import check_id
from threadloom.models import (
    Assistant,
    Message,
    MessageStatus,
    Run,
    RunError,
    RunStep,
    StepDetails,
    Thread,
    ToolOutput,
    check_metadata,
)
from threadloom.pages import Order, PageRequest, check_page
from threadloom.records import Lease, RunItem, RunWrite

__all__ = [
    "KEEP",
    "MOST_KEY_CHARACTERS",
    "IdempotencyKey",
    "Keep",
    "MessageOnBusy",
    "MetadataChange",
    "OnBusy",
    "as_status",
    "changed_assistant",
    "changed_thread",
    "check_key",
    "check_lease",
    "check_on_busy",
    "check_same_request",
    "new_metadata",
    "owned_assistant",
    "owned_details",
    "owned_error",
    "owned_message",
    "owned_messages",
    "owned_run",
    "owned_step",
    "owned_thread",
    "owned_work",
    "page_request",
    "seconds_of",
    "tool_outputs",
]

MOST_KEY_CHARACTERS = 255
_LONGEST = timedelta.max // timedelta(seconds=1)
_DEEPEST = 200  # levels of a JSON value; more would be refused when it is written

S = TypeVar("S", bound=StrEnum)
M = TypeVar("M")

MetadataChange = Mapping[str, str] | None | Callable[[dict[str, Any]], Mapping[str, str]]
"""New metadata that replaces the old, None to clear it, or a plain function from the old to the new.

The function runs inside the transaction, so no other change comes between its reading and its writing. It must be
quick, must not await, and may be called more than once and in another OS thread.
"""

OnBusy = Literal["enqueue", "reject", "interrupt", "rollback"]
"""What ``create_run`` does where the thread has active runs.

``enqueue`` lets the new run wait behind them. ``reject`` raises ``ActiveRunError``. ``interrupt`` asks all of them to
stop. ``rollback`` does the same, removes the messages that they wrote, and keeps none that they still write.
"""

MessageOnBusy = Literal["enqueue", "reject"]
"""What ``append_message`` does where the thread has an active run: append all the same, or raise ``ActiveRunError``."""


class Keep(Enum):
    """Says that a value stays as it is, where None is a value of its own."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


@frozen
class IdempotencyKey:
    """Lets a create be sent again without being done again.

    value: any text of 1 to 255 characters, chosen by the caller for this one object. Keys of assistants, of threads,
        and of the messages and the runs of each thread are independent of each other.
    fingerprint: tells what was asked for from anything else under the same key, such as a hash of the request.
    """

    value: str
    fingerprint: str


# Models


def owned_assistant(assistant: Assistant) -> Assistant:
    """Return the store's own copy of an assistant, or raise unless it can be kept."""
    _check_kind(assistant, Assistant)
    check_id(assistant.id)
    check_metadata(assistant.metadata)
    return _owned(assistant)


def changed_assistant(assistant_id: str, changed: Assistant) -> Assistant:
    """Return the store's own copy of the assistant that a caller's function returned, or raise."""
    if not isinstance(changed, Assistant) or changed.id != assistant_id:
        raise InvalidInputError(
            f"A change of assistant {assistant_id!r} must return an Assistant with the same id, not {changed!r}."
        )
    return owned_assistant(changed)


def owned_thread(thread: Thread) -> Thread:
    """Return the store's own copy of a thread, or raise unless it can be kept."""
    _check_kind(thread, Thread)
    check_id(thread.id)
    check_metadata(thread.metadata)
    return _owned(thread)


def changed_thread(
    old: Thread, metadata: MetadataChange | Keep, tool_resources: Mapping[str, Any] | Keep | None
) -> Thread:
    """Return a thread with the given values changed, or raise unless it can be kept."""
    changed = old
    if metadata is not KEEP:
        changed = attrs.evolve(changed, metadata=new_metadata(old.metadata, metadata))
    if tool_resources is not KEEP:
        changed = _owned(attrs.evolve(changed, tool_resources=tool_resources))
    return changed


def owned_message(thread_id: str, message: Message) -> Message:
    """Return the store's own copy of a message, or raise unless it can be appended: it is whole, and of this thread."""
    _check_kind(message, Message)
    check_id(thread_id, message.id)
    if message.run_id is not None:
        check_id(message.run_id)
    _check_same("message", "thread_id", message.thread_id, thread_id)
    if message.status is MessageStatus.IN_PROGRESS:
        raise InvalidInputError(
            f"Message {message.id!r} is in_progress; only whole ones, completed or incomplete, are appended."
        )
    check_metadata(message.metadata)
    return _owned(message)


def owned_messages(thread_id: str, messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return copies of messages that are appended together with a new object, and belong to no run."""
    given = tuple(messages)
    for message in given:
        _check_kind(message, Message)
        if message.run_id is not None:
            raise InvalidInputError(
                f"Message {message.id!r} names run {message.run_id!r}: append it with append_message instead."
            )
    return tuple([owned_message(thread_id, message) for message in given])


def owned_run(thread_id: str, run: Run) -> Run:
    """Return the store's own copy of a run, or raise unless it can be kept in the thread."""
    _check_kind(run, Run)
    check_id(thread_id, run.id)
    _check_same("run", "thread_id", run.thread_id, thread_id)
    check_metadata(run.metadata)
    seconds = run.expires_after_seconds
    if seconds is not None and (type(seconds) is not int or not 1 <= seconds <= _LONGEST):
        raise InvalidInputError(
            f"A run expires 1 to {_LONGEST} whole seconds after it is first claimed, not {seconds!r}."
        )
    newest = None if run.truncation_strategy is None else run.truncation_strategy.last_messages
    if newest is not None and (type(newest) is not int or newest < 1):
        raise InvalidInputError(f"A run is given at least 1 of the last messages, a whole number, not {newest!r}.")
    return _owned(run)


def owned_step(thread_id: str, run_id: str, step: RunStep) -> RunStep:
    """Return the store's own copy of a step, or raise unless it can be kept in the run."""
    _check_kind(step, RunStep)
    check_id(thread_id, run_id, step.id)
    _check_same("step", "thread_id", step.thread_id, thread_id)
    _check_same("step", "run_id", step.run_id, run_id)
    check_metadata(step.metadata)
    return _owned(step)


def owned_details(details: StepDetails | None) -> StepDetails | None:
    """Return the store's own copy of the details of a step, or raise unless they can be kept."""
    return None if details is None else _owned_part("A step's details", details, StepDetails)


def owned_error(error: RunError | None) -> RunError | None:
    """Return an error of a run or step, or raise unless it can be kept."""
    return None if error is None else _owned_part("A last_error", error, RunError)


def owned_work(lease: Lease, work: RunWrite) -> RunWrite:
    """Return the store's own copy of what a worker writes, or raise unless all of it belongs to the leased run."""
    _check_kind(work, RunWrite)
    check_lease(lease)
    owned = _owned(work)
    for item in owned.items:
        _check_item(lease, item)
    return owned


def _check_item(lease: Lease, item: RunItem) -> None:
    if isinstance(item, Checkpoint):
        return
    check_id(item.id)
    if not isinstance(item, RunStep | Message):
        return
    if (item.thread_id, item.run_id) != (lease.thread_id, lease.run_id):
        raise InvalidInputError(
            f"{item.id!r} belongs to run {item.run_id!r} of thread {item.thread_id!r}, not to run {lease.run_id!r}."
        )
    check_metadata(item.metadata)


def new_metadata(old: Mapping[str, Any], change: MetadataChange) -> dict[str, str]:
    """Return the metadata that ``change`` makes of ``old``, or raise ``InvalidMetadataError``."""
    metadata = check_metadata(change(detached(dict(old))) if callable(change) else change)
    for pair in metadata.items():
        if not all(map(_is_text, pair)):
            raise InvalidMetadataError(f"Metadata must be text, which {pair!r} is not: it has a lone surrogate.")
    return metadata


# Arguments


def check_lease(lease: Lease) -> None:
    """Raise unless ``lease`` names its run by ids."""
    check_id(lease.thread_id, lease.run_id)


def as_status(kind: type[S], status: str) -> S:
    """Return ``status`` as a member of ``kind``, or raise ``InvalidInputError``, which names the members."""
    try:
        return kind(status)
    except ValueError:
        raise InvalidInputError(f"{status!r} is no status here; it must be one of {', '.join(kind)}.") from None


def check_on_busy(on_busy: str, ways: Any = OnBusy) -> None:
    """Raise unless ``on_busy`` is one of ``ways``."""
    if on_busy not in get_args(ways):
        raise InvalidInputError(f"on_busy must be one of {get_args(ways)}, not {on_busy!r}.")


def check_key(key: IdempotencyKey | None) -> None:
    """Raise unless ``key`` can be used."""
    if key is None:
        return
    if not isinstance(key, IdempotencyKey):
        raise InvalidInputError(f"A key is an IdempotencyKey, not {type(key).__name__}.")
    for name, value in (("value", key.value), ("fingerprint", key.fingerprint)):
        if not isinstance(value, str) or not _is_text(value):
            raise InvalidInputError(f"The {name} of an idempotency key is text, which {value!r} is not.")
    if not 1 <= len(key.value) <= MOST_KEY_CHARACTERS:
        raise InvalidInputError(f"An idempotency key has 1 to {MOST_KEY_CHARACTERS} characters, not {len(key.value)}.")


def check_same_request(key: IdempotencyKey, fingerprint: str) -> None:
    """Raise unless the object that was created under ``key``, with ``fingerprint``, is the one asked for now."""
    if key.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError(key.value)


def tool_outputs(outputs: Iterable[ToolOutput]) -> tuple[ToolOutput, ...]:
    """Return ``outputs``, or raise unless they are a sequence of ``ToolOutput`` made of strings."""
    if isinstance(outputs, str | bytes | Mapping) or not isinstance(outputs, Iterable):
        raise InvalidInputError(f"Tool outputs come as a sequence of ToolOutput, not as {type(outputs).__name__}.")
    given = tuple(outputs)
    for output in given:
        if not isinstance(output, ToolOutput):
            raise InvalidInputError(f"Tool outputs come as a sequence of ToolOutput, which {output!r} is not.")
        if not isinstance(output.tool_call_id, str) or not isinstance(output.output, str):
            raise InvalidInputError(f"A tool_call_id and its output are strings, unlike in {output!r}.")
    return tuple([_owned(output) for output in given])


def page_request(limit: int | None, order: str, after: str | None, before: str | None) -> PageRequest:
    """Return which part of a list is asked for, or raise unless the arguments can be used."""
    check_page(limit, order)
    for cursor in (after, before):
        if cursor is not None:
            check_id(cursor)
    return PageRequest(limit, Order(order), after, before)


def seconds_of(timeout: timedelta | float | None) -> float | None:
    """Return a duration in seconds, None for none."""
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


# What JSON can say

_Check = Callable[[str, Any], Any]
"""From the name of a value and the value to the store's own copy of it; raises ``InvalidInputError``."""


def _owned(model: M) -> M:
    """Return a model whose mappings are copies, or raise for a value that its type or JSON does not allow."""
    changes = {}
    kind: Any = type(model)
    for name, label, default, check in _plan(kind):
        old = getattr(model, name)
        if old is default:
            continue
        new = check(label, old)
        if new is not old:
            changes[name] = new
    return evolved(model, **changes) if changes else model


def _owned_part(label: str, value: M, annotation: Any) -> M:
    owned: M = _check_of(annotation)(label, value)
    return owned


@functools.cache
def _plan(kind: Any) -> tuple[tuple[str, str, Any, _Check], ...]:
    """Return of each field of a model its name, what to call it, a default that needs no check, and its check."""
    hints = get_type_hints(kind)
    owner = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
    return tuple(
        (field.name, f"The {owner}'s {field.name}", field.default, _check_of(hints[field.name]))
        for field in attrs.fields(kind)
    )


@functools.cache
def _check_of(annotation: Any) -> _Check:
    """Return the check of values with this annotation."""
    origin = get_origin(annotation)
    if annotation is Any:
        return _owned_json
    if origin in {Union, types.UnionType}:
        return _check_of_union(get_args(annotation))
    if origin is tuple:
        return _check_of_tuple(_check_of(get_args(annotation)[0]))
    return _check_of_union((annotation,))


def _check_of_union(members: tuple[Any, ...]) -> _Check:
    choices: list[tuple[type | tuple[type, ...], _Check]] = []
    for member in members:
        kind = get_origin(member) or member
        choices += [_CHECKS.get(kind, (kind, _owned_model if attrs.has(kind) else _as_it_is))]
    names = " or ".join(getattr(member, "__name__", str(member)) for member in members)

    def check(label: str, value: Any) -> Any:
        for kind, check_value in choices:
            if isinstance(value, kind) and (type(value) is not bool or kind is bool):
                return check_value(label, value)
        raise InvalidInputError(f"{label} must be {names}, not {value!r:.100}.")

    return check


def _check_of_tuple(check_item: _Check) -> _Check:
    def check(label: str, value: Any) -> Any:
        if not isinstance(value, tuple | list):
            raise InvalidInputError(f"{label} must be a tuple, not {value!r:.100}.")
        items = tuple([check_item(label, item) for item in value])
        is_same = type(value) is tuple and all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else items

    return check


def _as_it_is(_: str, value: Any) -> Any:
    return value


def _owned_model(_: str, value: Any) -> Any:
    return _owned(value)


def _text(label: str, value: str) -> str:
    if not value.isascii() and not _is_text(value):
        raise InvalidInputError(f"{label} is no text: it has a lone surrogate in it.")
    return value if type(value) is str else str.__str__(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(label: str, value: int) -> int:
    if not -(2**63) <= value < 2**64:
        raise InvalidInputError(f"{label} has {value!r} in it, which does not fit into 64 bits.")
    return value


def _number(label: str, value: float) -> float:
    if isinstance(value, int):
        return _whole(label, value)
    if not math.isfinite(value):
        raise InvalidInputError(f"{label} has {value!r} in it, which JSON cannot say.")
    return value


def _owned_json(label: str, value: Any, depth: int = 0) -> Any:
    """Return a copy of a JSON value, with lists for tuples, or raise for what JSON cannot say."""
    if depth > _DEEPEST:
        raise InvalidInputError(f"{label} is nested more than {_DEEPEST} levels deep.")
    match value:
        case None | bool():
            return value
        case str():
            return _text(label, value)
        case int() | float():
            return _number(label, value)
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise InvalidInputError(f"{label} has {key!r} in it as the key of an object, and keys are strings.")
            return {_text(label, key): _owned_json(label, item, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_owned_json(label, item, depth + 1) for item in value]
    raise InvalidInputError(f"{label} cannot be kept as JSON: it has {type(value).__name__} {value!r:.60} in it.")


_CHECKS: Final[dict[Any, tuple[type | tuple[type, ...], _Check]]] = {
    str: (str, _text),
    int: (int, _whole),
    float: ((int, float), _number),
    Mapping: (Mapping, _owned_json),
}


def _check_kind(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidInputError(f"This must be a {kind.__name__}, which {value!r:.100} is not.")


def _check_same(what: str, field: str, has: str, asked: str) -> None:
    if has != asked:
        raise InvalidInputError(f"The {what}'s {field} is {has!r}, but it was handed in for {asked!r}.")
