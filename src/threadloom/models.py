"""The objects in a store: assistants, threads, messages, runs and steps, with the fields of the Assistants API.

All classes are frozen; use ``attrs.evolve`` to make a changed copy. Times (``*_at``) are whole seconds since 1970, as
in OpenAI's API. A store returns a new object each time, so changing it affects neither the store nor other callers.
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
    """Status of a run. ``docs/lifecycle.md`` describes each status and who may set it."""

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
        """Whether a run with this status has ended. It stays ended unless someone forces another status."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.INCOMPLETE, RunStatus.EXPIRED, RunStatus.CANCELLED}
)


class RunStepStatus(StrEnum):
    """Status of a step. Every status except ``in_progress`` is final."""

    IN_PROGRESS = "in_progress"
    CANCELLED = "cancelled"
    FAILED = "failed"
    COMPLETED = "completed"
    EXPIRED = "expired"


class MessageStatus(StrEnum):
    """Status of a message. A message in a thread is ``completed`` or ``incomplete``."""

    IN_PROGRESS = "in_progress"
    INCOMPLETE = "incomplete"
    COMPLETED = "completed"


class MessageRole(StrEnum):
    """Author of a message."""

    USER = "user"
    ASSISTANT = "assistant"


class RunStepType(StrEnum):
    """Kind of a step."""

    MESSAGE_CREATION = "message_creation"
    TOOL_CALLS = "tool_calls"


@frozen
class UnknownObject:
    """A JSON object of a type that threadloom does not know. It is stored and returned unchanged.

    Attributes:
        data: The whole object.
    """

    data: Mapping[str, Any]


@frozen
class TextContent:
    """A text block.

    Attributes:
        text: The text.

        annotations: Annotations of the text as JSON objects, stored and returned unchanged.
    """

    text: str
    annotations: tuple[Mapping[str, Any], ...] = ()


@frozen
class ImageFileContent:
    """An image block that refers to an uploaded file.

    Attributes:
        file_id: Id of the file.

        detail: Resolution hint for the model, such as ``"low"``. None if unset.
    """

    file_id: str
    detail: str | None = None


@frozen
class ImageUrlContent:
    """An image block that refers to a URL.

    Attributes:
        url: Address of the image.

        detail: Resolution hint for the model, such as ``"low"``. None if unset.
    """

    url: str
    detail: str | None = None


@frozen
class RefusalContent:
    """A model's refusal to answer.

    Attributes:
        refusal: The text of the refusal.
    """

    refusal: str


Content = TextContent | ImageFileContent | ImageUrlContent | RefusalContent | UnknownObject


@frozen
class IncompleteDetails:
    """Why a message or run is ``incomplete``.

    Attributes:
        reason: OpenAI's name for the reason, such as ``"max_completion_tokens"``.
    """

    reason: str


@frozen
class RunError:
    """The error of a failed run or step. Anyone who reads the run may see it.

    Attributes:
        code: OpenAI's code for the error. Most errors are ``"server_error"``.

        message: What went wrong.
    """

    code: str
    message: str


@frozen
class Usage:
    """Numbers of tokens. Use ``+`` to add two of them.

    Attributes:
        prompt_tokens: Tokens that the model read. Default 0.

        completion_tokens: Tokens that the model wrote. Default 0.

        total_tokens: Sum of both. Default 0.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        """Return the sum of each number."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
        )


@frozen(kw_only=True)
class FunctionCall:
    """The function of a tool call.

    Attributes:
        name: Name of the function.

        arguments: Arguments, usually as JSON. threadloom never parses them.

        output: Result of the call. None until it is known.
    """

    name: str
    arguments: str
    output: str | None = None


@frozen(kw_only=True)
class ToolCall:
    """One call of a function tool.

    Attributes:
        id: Id of the call, unique within its step.

        function: The function, its arguments, and its output.

        type: Type of the tool. Default ``"function"``.
    """

    id: str
    function: FunctionCall
    type: str = "function"

    @classmethod
    def new(cls, function: FunctionCall) -> Self:
        """Return a call of ``function`` with a new id."""
        return cls(id=new_call_id(), function=function)


@frozen
class RequiredAction:
    """What a run in ``requires_action`` waits for.

    Attributes:
        tool_calls: The calls whose outputs the client must submit, all of them.
    """

    tool_calls: tuple[ToolCall, ...]


@frozen
class ToolOutput:
    """The output of one tool call.

    Attributes:
        tool_call_id: Id of the call.

        output: The output, any text. threadloom never parses it.
    """

    tool_call_id: str
    output: str


@frozen
class MessageCreation:
    """Details of a step that writes a message.

    Attributes:
        message_id: Id of the message.
    """

    message_id: str


@frozen
class ToolCalls:
    """Details of a step that calls tools.

    Attributes:
        tool_calls: The calls, in their order.
    """

    tool_calls: tuple[ToolCall | UnknownObject, ...]


StepDetails = MessageCreation | ToolCalls | UnknownObject


@frozen(kw_only=True)
class TruncationStrategy:
    """Which messages of the thread the handler of a run gets.

    Attributes:
        type: ``"auto"``, the default, or ``"last_messages"``.

        last_messages: Get only this many of the newest messages. None, the default, for all of them.
    """

    type: str = "auto"
    last_messages: int | None = None


@frozen(kw_only=True)
class Assistant:
    """Default settings of runs: a model, instructions and tools.

    A run copies the settings when it is created over HTTP. Later changes of the assistant do not affect it.

    Attributes:
        id: Id of the assistant.

        created_at: When the assistant was created.

        model: Name of the model, any text.

        name: Name for its owner. None by default.

        description: Description for its owner. None by default.

        instructions: System prompt for the handler. None by default.

        tools: Tools for the handler, as JSON objects. Empty by default.

        tool_resources: Resources of the tools, stored and returned unchanged. None by default.

        metadata: Up to 16 pairs for its owner. Empty by default.

        temperature: Sampling temperature for the handler. None by default.

        top_p: Nucleus sampling parameter for the handler. None by default.

        response_format: Format of the answer, for the handler. None by default.

        reasoning_effort: Reasoning effort for the handler. None by default.

        tenant: Tenant of the server that owns the assistant. None, the default, if there are no tenants.
    """

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
        """Return an assistant that is created now.

        Each argument sets the field of the same name.

        Args:
            id: Id of the assistant. None, the default, for a new one. Pass one to keep an id that old code uses.
        """
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
    """A conversation.

    Attributes:
        id: Id of the thread.

        created_at: When the thread was created.

        metadata: Up to 16 pairs for its owner. Empty by default.

        tool_resources: Resources of tools, stored and returned unchanged. None by default.

        tenant: Tenant of the server that owns the thread. None, the default, if there are no tenants.
    """

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
        """Return a thread that is created now.

        Each argument sets the field of the same name.

        Args:
            id: Id of the thread. None, the default, for a new one.
        """
        return cls(
            id=new_thread_id() if id is None else id,
            created_at=_now(),
            metadata=check_metadata(metadata),
            tool_resources=tool_resources,
            tenant=tenant,
        )


@frozen(kw_only=True)
class Message:
    """A message in a thread.

    Attributes:
        id: Id of the message.

        created_at: When the message was created.

        thread_id: Id of its thread.

        role: Author of the message.

        content: Blocks of text and images.

        status: ``completed``, the default, or ``incomplete``. ``in_progress`` only in the events of a run.

        assistant_id: Id of the assistant whose run wrote the message. None by default.

        run_id: Id of the run that wrote the message. None, the default, for a message that was added by hand.

        attachments: Attached files as JSON objects, stored and returned unchanged. Empty by default.

        metadata: Up to 16 pairs for its owner. Empty by default.

        completed_at: When the message was completed. None by default.

        incomplete_at: When the message ended as ``incomplete``. None by default.

        incomplete_details: Why the message is ``incomplete``. None by default.
    """

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
        """Return a message of a user that is created now.

        Args:
            thread_id: Id of the thread.

            content: A text, or blocks of content.

            metadata: Up to 16 pairs. None for no metadata.

            attachments: Attached files as JSON objects.
        """
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
        """Return a message of an assistant that is created now.

        Args:
            thread_id: Id of the thread.

            content: A text, or blocks of content.

            run_id: Id of the run that wrote the message. None if no run did.

            assistant_id: Id of the assistant. None if there is none.

            metadata: Up to 16 pairs. None for no metadata.
        """
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
        """The text blocks, joined without a separator. Empty if there are none."""
        return "".join(block.text for block in self.content if isinstance(block, TextContent))


@frozen(kw_only=True)
class Run:
    """A request for work on a thread, and its result.

    Attributes:
        id: Id of the run.

        created_at: When the run was created.

        thread_id: Id of its thread.

        status: Status of the run.

        model: Name of the model, any text. Empty by default.

        assistant_id: Id of the assistant. Empty, the default, if there is none.

        instructions: System prompt for the handler. Empty by default.

        tools: Tools for the handler, as JSON objects. Empty by default.

        metadata: Up to 16 pairs for the run's creator. Empty by default.

        required_action: Tool calls whose outputs the run waits for. None unless the status is ``requires_action``.

        last_error: Why the run failed. None by default.

        incomplete_details: Why the run is ``incomplete``. None by default.

        expires_at: When the run expires, by the wall clock. None, the default, for never.

        started_at: When the run first became ``in_progress`` since it was last forced to ``queued``. None before that.

        cancelled_at: When the run was cancelled. None by default.

        failed_at: When the run failed. None by default.

        completed_at: When the run was completed. None by default.

        usage: Tokens used by the attempts that led to the result. None, the default, if nobody counted.

        temperature: Sampling temperature for the handler. None by default.

        top_p: Nucleus sampling parameter for the handler. None by default.

        max_prompt_tokens: Limit on prompt tokens, over all attempts. None, the default, for no limit.

        max_completion_tokens: Limit on completion tokens, over all attempts. None, the default, for no limit.

        truncation_strategy: Which messages the handler gets. None, the default, for all of them.

        tool_choice: Which tool the model must or must not call, for the handler. None by default.

        parallel_tool_calls: Whether the model may call several tools at once, for the handler. True by default.

        response_format: Format of the answer, for the handler. None by default.

        reasoning_effort: Reasoning effort for the handler. None by default.

        tool_resources: Resources of the tools, stored and returned unchanged. None by default.

        expires_after_seconds: Seconds from the first claim after which the run expires, unless ``expires_at`` is set.
            None, the default, for never. This and all fields below are not in OpenAI's API.

        sequence: Place among the runs of the thread, set by the store. None in a record of an external writer.

        attempt: Number of the current attempt, set by the store. 1 for the first.

        turn: Number of times a client submitted tool outputs, set by the store. 0 at first.

        retry_at: When a queued run may be claimed for its next attempt, set by the store. None, the default, for at
            once.

        messages_before: Number of messages ever appended to the thread when the run was created, deleted ones included,
            set by the store. None in a record of an external writer.

        anew_from: Number of the event by which the run was last forced to ``queued``, set by the store. Its handler
            does not see earlier steps and checkpoints. None, the default, if it was not.

        spent: Tokens of attempts without a result, set by the store. They count towards the limits but not as
            ``usage``. None by default.

        is_rolled_back: Whether the run's messages are dropped from now on, set by the store. False by default.
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
        """Return a run that is created now, with a new id.

        Each argument sets the field of the same name, except for ``expires_after``.

        Args:
            status: ``queued``, the default, or a terminal status to import history.

            expires_after: Time from the first claim after which the run expires, rounded up to whole seconds. An outage
                therefore does not expire runs that never started. None, the default, for never.
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
    """One step of a run: a message it wrote, or tools it called.

    Attributes:
        id: Id of the step.

        created_at: When the step was created.

        run_id: Id of its run.

        thread_id: Id of its thread.

        type: Kind of the step.

        status: Status of the step.

        step_details: The message, or the tool calls. None, the default, if not known yet.

        assistant_id: Id of the assistant. Empty, the default, if there is none.

        last_error: Why the step failed. None by default.

        expired_at: When the step expired. None by default.

        cancelled_at: When the step was cancelled. None by default.

        failed_at: When the step failed. None by default.

        completed_at: When the step was completed. None by default.

        metadata: Up to 16 pairs. Empty by default.

        usage: Tokens that the step used. None by default.

        sequence: Place among the steps of the run, set by the store. None by default. This and all fields below are not
            in OpenAI's API.

        turn: ``Run.turn`` at which the handler made the step, set by the worker. None if no worker did. With
            ``position``, it tells a retry which calls an earlier attempt completed.

        position: Number of the handler's call in that turn, starting at 1, set by the worker. None if no worker did.
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
        """Return a new step that writes a message, in progress.

        Args:
            thread_id: Id of the thread.

            run_id: Id of the run.

            message_id: Id of the message. None, the default, if it is not known yet.

            assistant_id: Id of the assistant. Empty, the default, if there is none.
        """
        details = None if message_id is None else MessageCreation(message_id)
        return cls._new(RunStepType.MESSAGE_CREATION, thread_id, run_id, assistant_id, details)

    @classmethod
    def tool_calls(
        cls, *, thread_id: str, run_id: str, calls: Iterable[ToolCall | FunctionCall] = (), assistant_id: str = ""
    ) -> Self:
        """Return a new step that calls tools, in progress.

        Args:
            thread_id: Id of the thread.

            run_id: Id of the run.

            calls: The calls. A ``FunctionCall`` gets a new id.

            assistant_id: Id of the assistant. Empty, the default, if there is none.
        """
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
    """Return a copy of ``metadata``, or raise ``InvalidMetadataError``.

    The limits are those of OpenAI. Metadata in a store is not checked, because external writers may store any JSON.

    Args:
        metadata: New metadata. None for an empty mapping.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        message = f"Metadata must be a mapping of strings to strings, not {type(metadata).__name__}."
        raise InvalidMetadataError(message)
    if len(metadata) > MAX_METADATA_PAIRS:
        message = f"Metadata has {len(metadata)} pairs; the limit is {MAX_METADATA_PAIRS}."
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
        message = f"Metadata {what} at {key[:most]!r} has {len(text)} characters; the limit is {most}."  # type: ignore[index]
        raise InvalidMetadataError(message)


def _now() -> int:
    return int(time.time())
