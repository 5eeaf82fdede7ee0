"""The objects that a store keeps: assistants, threads, messages, runs and steps, with the fields of the Assistants API.

All are frozen; ``attrs.evolve`` makes a changed copy. Moments are whole seconds since 1970, as OpenAI sends them.
What a store hands out is a fresh object each time: nothing that is done to it reaches the store or another caller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Self

from attrs import field, frozen

from threadloom.errors import InvalidMetadataError
from threadloom.ids import new_assistant_id, new_call_id, new_message_id, new_run_id, new_step_id, new_thread_id

__all__ = [
    "Assistant",
    "Content",
    "FunctionCall",
    "ImageFileContent",
    "ImageUrlContent",
    "IncompleteDetails",
    "Message",
    "MessageCreation",
    "MessageRole",
    "MessageStatus",
    "RefusalContent",
    "RequiredAction",
    "Run",
    "RunError",
    "RunStatus",
    "RunStep",
    "RunStepStatus",
    "RunStepType",
    "StepDetails",
    "TextContent",
    "Thread",
    "ToolCall",
    "ToolCalls",
    "ToolOutput",
    "TruncationStrategy",
    "UnknownObject",
    "Usage",
    "check_metadata",
]

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 512


class RunStatus(StrEnum):
    """Where a run is in its life (``docs/lifecycle.md``)."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    REQUIRES_ACTION = "requires_action"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FAILED = "failed"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Whether a run with this status is settled, and stays so unless somebody forces it."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.INCOMPLETE, RunStatus.EXPIRED, RunStatus.CANCELLED}
)


class RunStepStatus(StrEnum):
    """Where a step is in its life; all but ``in_progress`` are final."""

    IN_PROGRESS = "in_progress"
    CANCELLED = "cancelled"
    FAILED = "failed"
    COMPLETED = "completed"
    EXPIRED = "expired"


class MessageStatus(StrEnum):
    """Whether a message is whole."""

    IN_PROGRESS = "in_progress"
    INCOMPLETE = "incomplete"
    COMPLETED = "completed"


class MessageRole(StrEnum):
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"


class RunStepType(StrEnum):
    """What a step did."""

    MESSAGE_CREATION = "message_creation"
    TOOL_CALLS = "tool_calls"


@frozen
class UnknownObject:
    """A typed JSON object of a kind that threadloom does not know: kept and echoed as it came."""

    data: Mapping[str, Any]


@frozen
class TextContent:
    """A block of text."""

    text: str
    annotations: tuple[Mapping[str, Any], ...] = ()


@frozen
class ImageFileContent:
    """A picture among the uploaded files, by id."""

    file_id: str
    detail: str | None = None


@frozen
class ImageUrlContent:
    """A picture somewhere on the web."""

    url: str
    detail: str | None = None


@frozen
class RefusalContent:
    """A model's refusal to answer."""

    refusal: str


Content = TextContent | ImageFileContent | ImageUrlContent | RefusalContent | UnknownObject


@frozen
class IncompleteDetails:
    """Why a message or a run ended before it was whole, as one of OpenAI's words."""

    reason: str


@frozen
class RunError:
    """What went wrong, in words that may be shown to anyone. OpenAI's code for most things is ``server_error``."""

    code: str
    message: str


@frozen
class Usage:
    """Tokens that were used; ``+`` adds them up."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the sums."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
        )


@frozen(kw_only=True)
class FunctionCall:
    """A function to call. ``arguments`` is any string and never parsed; ``output`` is none until there is one."""

    name: str
    arguments: str
    output: str | None = None


@frozen(kw_only=True)
class ToolCall:
    """One call of a tool, which is a function."""

    id: str
    function: FunctionCall
    type: str = "function"

    @classmethod
    def new(cls, function: FunctionCall) -> Self:
        """Return a call of ``function`` under a new id."""
        return cls(id=new_call_id(), function=function)


@frozen
class RequiredAction:
    """What a run in ``requires_action`` waits for: the outputs of these calls, all of them."""

    tool_calls: tuple[ToolCall, ...]


@frozen
class ToolOutput:
    """What came of the call ``tool_call_id``. ``output`` is any string and never parsed."""

    tool_call_id: str
    output: str


@frozen
class MessageCreation:
    """The step wrote a message."""

    message_id: str


@frozen
class ToolCalls:
    """The step called tools."""

    tool_calls: tuple[ToolCall | UnknownObject, ...]


StepDetails = MessageCreation | ToolCalls | UnknownObject


@frozen(kw_only=True)
class TruncationStrategy:
    """Which messages of the thread a run is given: all (``auto``), or the newest ``last_messages``."""

    type: str = "auto"
    last_messages: int | None = None


@frozen(kw_only=True)
class Assistant:
    """What runs are asked of: a model, and how it is to behave. ``tenant`` is whose it is, where a server has many."""

    id: str
    created_at: int
    model: str
    name: str | None = None
    description: str | None = None
    instructions: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_resources: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(factory=dict)
    temperature: float | None = None
    top_p: float | None = None
    response_format: str | Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    tenant: str | None = None

    @classmethod
    def new(
        cls,
        *,
        model: str,
        name: str | None = None,
        description: str | None = None,
        instructions: str | None = None,
        tools: Iterable[Mapping[str, Any]] = (),
        tool_resources: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        response_format: str | Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        tenant: str | None = None,
        id: str | None = None,  # noqa: A002 - the field's name
    ) -> Self:
        """Return an assistant made now, under a new id unless one is given: ids in old code live on."""
        return cls(
            id=new_assistant_id() if id is None else id,
            created_at=_now(),
            model=model,
            name=name,
            description=description,
            instructions=instructions,
            tools=tuple(tools),
            tool_resources=tool_resources,
            metadata=check_metadata(metadata),
            temperature=temperature,
            top_p=top_p,
            response_format=response_format,
            reasoning_effort=reasoning_effort,
            tenant=tenant,
        )


@frozen(kw_only=True)
class Thread:
    """A conversation. ``tenant`` is whose it is, where a server has many."""

    id: str
    created_at: int
    metadata: Mapping[str, Any] = field(factory=dict)
    tool_resources: Mapping[str, Any] | None = None
    tenant: str | None = None

    @classmethod
    def new(
        cls,
        *,
        metadata: Mapping[str, str] | None = None,
        tool_resources: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        id: str | None = None,  # noqa: A002 - the field's name
    ) -> Self:
        """Return a thread made now, under a new id unless one is given."""
        return cls(
            id=new_thread_id() if id is None else id,
            created_at=_now(),
            metadata=check_metadata(metadata),
            tool_resources=tool_resources,
            tenant=tenant,
        )


@frozen(kw_only=True)
class Message:
    """What somebody said in a thread."""

    id: str
    created_at: int
    thread_id: str
    role: MessageRole
    content: tuple[Content, ...]
    status: MessageStatus = MessageStatus.COMPLETED
    assistant_id: str | None = None
    run_id: str | None = None
    attachments: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(factory=dict)
    completed_at: int | None = None
    incomplete_at: int | None = None
    incomplete_details: IncompleteDetails | None = None

    @classmethod
    def user(
        cls,
        thread_id: str,
        content: str | Iterable[Content],
        *,
        metadata: Mapping[str, str] | None = None,
        attachments: Iterable[Mapping[str, Any]] = (),
    ) -> Self:
        """Return a user's message, made now: a text, or blocks of content."""
        return cls._new(thread_id, MessageRole.USER, content, metadata=metadata, attachments=attachments)

    @classmethod
    def assistant(
        cls,
        thread_id: str,
        content: str | Iterable[Content],
        *,
        run_id: str | None = None,
        assistant_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """Return an assistant's message, made now, by the run that is named."""
        return cls._new(
            thread_id,
            MessageRole.ASSISTANT,
            content,
            run_id=run_id,
            assistant_id=assistant_id,
            metadata=metadata,
        )

    @classmethod
    def _new(
        cls,
        thread_id: str,
        role: MessageRole,
        content: str | Iterable[Content],
        *,
        metadata: Mapping[str, str] | None,
        attachments: Iterable[Mapping[str, Any]] = (),
        run_id: str | None = None,
        assistant_id: str | None = None,
    ) -> Self:
        now = _now()
        return cls(
            id=new_message_id(),
            created_at=now,
            thread_id=thread_id,
            role=role,
            content=(TextContent(content),) if isinstance(content, str) else tuple(content),
            assistant_id=assistant_id,
            run_id=run_id,
            attachments=tuple(attachments),
            metadata=check_metadata(metadata),
            completed_at=now,
        )

    @property
    def text(self) -> str:
        """The text blocks, joined by nothing; empty where there are none."""
        return "".join(block.text for block in self.content if isinstance(block, TextContent))


@frozen(kw_only=True)
class Run:
    """Work asked for on a thread.

    ``expires_after_seconds`` sets ``expires_at`` when the run is first taken, unless it is set. It, and all of the
    following, are threadloom's own.

    ``sequence``, ``attempt``, ``turn``, ``retry_at``, ``messages_before``, ``anew_from``, ``spent`` and
    ``is_rolled_back`` are the store's own: the run's place among the runs of its thread (none in a record of another
    program), the attempt it is at, how often it was given tool outputs, the moment before which a run that waits for a
    retry is not taken, how much of the thread was there when the run was created, the number of the event by which it
    was forced to begin anew, if it was, the tokens of attempts that came to nothing, which count towards the run's
    limits and not as its ``usage``, and whether what it writes from now on is not to be kept.
    """

    id: str
    created_at: int
    thread_id: str
    status: RunStatus
    model: str = ""
    assistant_id: str = ""
    instructions: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(factory=dict)
    required_action: RequiredAction | None = None
    last_error: RunError | None = None
    incomplete_details: IncompleteDetails | None = None
    expires_at: int | None = None
    started_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None
    completed_at: int | None = None
    usage: Usage | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    truncation_strategy: TruncationStrategy | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    response_format: str | Mapping[str, Any] | None = None
    reasoning_effort: str | None = None
    tool_resources: Mapping[str, Any] | None = None
    expires_after_seconds: int | None = None
    sequence: int | None = None
    attempt: int = 1
    turn: int = 0
    retry_at: int | None = None
    messages_before: int | None = None
    anew_from: int | None = None
    spent: Usage | None = None
    is_rolled_back: bool = False

    @classmethod
    def new(
        cls,
        thread_id: str,
        *,
        model: str,
        assistant_id: str = "",
        instructions: str = "",
        tools: Iterable[Mapping[str, Any]] = (),
        metadata: Mapping[str, str] | None = None,
        status: RunStatus = RunStatus.QUEUED,
        expires_at: int | None = None,
        expires_after: timedelta | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
        truncation_strategy: TruncationStrategy | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        response_format: str | Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        tool_resources: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a run made now under a new id. A terminal ``status`` is for history that is brought in.

        ``expires_after`` counts from when the run is first taken, so that an outage expires nothing that never started;
        it is kept in whole seconds, rounded up.
        """
        return cls(
            id=new_run_id(),
            created_at=_now(),
            thread_id=thread_id,
            status=status,
            model=model,
            assistant_id=assistant_id,
            instructions=instructions,
            tools=tuple(tools),
            metadata=check_metadata(metadata),
            expires_at=expires_at,
            temperature=temperature,
            top_p=top_p,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            truncation_strategy=truncation_strategy,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            reasoning_effort=reasoning_effort,
            tool_resources=tool_resources,
            expires_after_seconds=None if expires_after is None else math.ceil(expires_after.total_seconds()),
        )


@frozen(kw_only=True)
class RunStep:
    """Something a run did.

    ``sequence`` is its place in the run, given by the store. ``turn`` and ``position`` are its place in the handler,
    given by the worker: how often the run had been given tool outputs, and which of the handler's calls it was, from 1
    up. By them an attempt that is done again knows what was completed before.
    """

    id: str
    created_at: int
    run_id: str
    thread_id: str
    type: RunStepType
    status: RunStepStatus
    step_details: StepDetails | None = None
    assistant_id: str = ""
    last_error: RunError | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None
    failed_at: int | None = None
    completed_at: int | None = None
    metadata: Mapping[str, Any] = field(factory=dict)
    usage: Usage | None = None
    sequence: int | None = None
    turn: int | None = None
    position: int | None = None

    @classmethod
    def message_creation(
        cls, *, thread_id: str, run_id: str, message_id: str | None = None, assistant_id: str = ""
    ) -> Self:
        """Return an open step that writes a message, whose id it may name later."""
        details = None if message_id is None else MessageCreation(message_id)
        return cls._new(RunStepType.MESSAGE_CREATION, thread_id, run_id, assistant_id, details)

    @classmethod
    def tool_calls(
        cls, *, thread_id: str, run_id: str, calls: Iterable[ToolCall | FunctionCall] = (), assistant_id: str = ""
    ) -> Self:
        """Return an open step that calls tools; a ``FunctionCall`` is given an id."""
        made = tuple(ToolCall.new(call) if isinstance(call, FunctionCall) else call for call in calls)
        return cls._new(RunStepType.TOOL_CALLS, thread_id, run_id, assistant_id, ToolCalls(made))

    @classmethod
    def _new(
        cls, kind: RunStepType, thread_id: str, run_id: str, assistant_id: str, details: StepDetails | None
    ) -> Self:
        return cls(
            id=new_step_id(),
            created_at=_now(),
            run_id=run_id,
            thread_id=thread_id,
            type=kind,
            status=RunStepStatus.IN_PROGRESS,
            step_details=details,
            assistant_id=assistant_id,
        )


def check_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of what is handed in as metadata, empty for none, or raise ``InvalidMetadataError``.

    The limits are OpenAI's. What is read from a store is not checked: others may have put any JSON there.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        message = f"Metadata must map strings to strings, not be {type(metadata).__name__}."
        raise InvalidMetadataError(message)
    if len(metadata) > MAX_METADATA_PAIRS:
        message = f"Metadata has {len(metadata)} pairs; at most {MAX_METADATA_PAIRS} are kept."
        raise InvalidMetadataError(message)
    for key, value in metadata.items():
        _check_metadata_text("key", key, key, MAX_METADATA_KEY_CHARACTERS)
        _check_metadata_text("value", key, value, MAX_METADATA_VALUE_CHARACTERS)
    return dict(metadata)


def _check_metadata_text(what: str, key: object, text: object, most: int) -> None:
    if not isinstance(text, str):
        message = f"Metadata {what} at {key!r} must be a string, not {type(text).__name__}."
        raise InvalidMetadataError(message)
    if len(text) > most:
        message = f"Metadata {what} at {key[:most]!r} has {len(text)} characters; at most {most} are kept."  # type: ignore[index]
        raise InvalidMetadataError(message)


def _now() -> int:
    return int(time.time())
