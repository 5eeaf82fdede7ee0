"""Shapes of the requests. A value that the store keeps as JSON is checked and kept as the client sent it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from attrs import frozen

from threadloom.errors import InvalidMetadataError
from threadloom.models import check_metadata
from threadloom.web._reading import AsSent, Check, Json, TextOr, Typed

__all__ = [
    "AssistantChanges",
    "AssistantRequest",
    "MessageRequest",
    "MetadataRequest",
    "RunRequest",
    "SubmitRequest",
    "ThreadAndRunRequest",
    "ThreadRequest",
    "ToolOutputRequest",
]


def _at_most(most: int, what: str = "characters") -> Check:
    return lambda value: None if len(value) <= most else f"it has {len(value)} {what}, but the limit is {most}"


def _between(low: float, high: float = math.inf) -> Check:
    allowed = f"{low} or more" if high == math.inf else f"from {low} to {high}"
    return lambda number: None if low <= number <= high else f"expected {allowed}, not {number}"


def _not_empty(value: Any) -> str | None:
    return None if value else "it must not be empty"


def _url(text: str) -> str | None:
    return None if urlsplit(text).scheme else "expected a URL"


def _within_limits(metadata: Any) -> str | None:
    try:
        check_metadata(metadata)
    except InvalidMetadataError as error:
        return str(error).rstrip(".")
    return None


Name = Annotated[str, _at_most(256)]
Description = Annotated[str, _at_most(512)]
Instructions = Annotated[str, _at_most(256_000)]
Temperature = Annotated[float, _between(0, 2)]
TopP = Annotated[float, _between(0, 1)]
Tokens = Annotated[int, _between(1)]
Metadata = Annotated[Json, _within_limits]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


# Values that are kept as the client sent them


@frozen
class _Function:
    name: Annotated[str, _not_empty]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


@frozen
class _FunctionTool:
    function: _Function


@frozen
class _RankingOptions:
    score_threshold: Annotated[float, _between(0, 1)]
    ranker: Literal["auto", "default_2024_08_21"] | None = None


@frozen
class _FileSearch:
    max_num_results: Annotated[int, _between(1, 50)] | None = None
    ranking_options: _RankingOptions | None = None


@frozen
class _FileSearchTool:
    file_search: _FileSearch | None = None


@frozen
class _Plain:
    """An object of which only the type matters."""


@frozen
class _JsonSchema:
    name: str
    description: str | None = None
    schema: Json | None = None
    strict: bool | None = None


@frozen
class _JsonSchemaFormat:
    json_schema: _JsonSchema


@frozen
class _NamedFunction:
    name: str


@frozen
class _NamedTool:
    function: _NamedFunction


@frozen
class _Files:
    file_ids: Annotated[list[str], _at_most(20, "items")] | None = None


@frozen
class _VectorStore:
    file_ids: list[str] | None = None
    chunking_strategy: Json | None = None
    metadata: Metadata | None = None


@frozen
class _VectorStores:
    vector_store_ids: Annotated[list[str], _at_most(1, "items")] | None = None
    vector_stores: Annotated[list[_VectorStore], _at_most(1, "items")] | None = None


@frozen
class _ToolResources:
    code_interpreter: _Files | None = None
    file_search: _VectorStores | None = None


_TOOLS: Final = {"code_interpreter": _Plain, "file_search": _FileSearchTool, "function": _FunctionTool}
_Tool = Annotated[Json, Typed(_TOOLS)]
_AttachmentTool = Annotated[Json, Typed({"code_interpreter": _Plain, "file_search": _Plain})]
_ToolChoice = Annotated[
    Json,
    Typed(
        {"function": _NamedTool, "code_interpreter": _Plain, "file_search": _Plain}, words=("none", "auto", "required")
    ),
]
_Format = Annotated[
    Json, Typed({"text": _Plain, "json_object": _Plain, "json_schema": _JsonSchemaFormat}, words=("auto",))
]


@frozen
class _Attachment:
    file_id: str | None = None
    tools: list[_AttachmentTool] | None = None


@frozen
class _Text:
    text: str


@frozen
class _ImageFile:
    file_id: str
    detail: Literal["auto", "low", "high"] | None = None


@frozen
class _ImageUrl:
    url: Annotated[str, _url]
    detail: Literal["auto", "low", "high"] | None = None


@frozen
class _ImageFilePart:
    image_file: _ImageFile


@frozen
class _ImageUrlPart:
    image_url: _ImageUrl


_Part = Annotated[Json, Typed({"text": _Text, "image_file": _ImageFilePart, "image_url": _ImageUrlPart})]
Content = Annotated[Any, TextOr(Annotated[list[_Part], _not_empty])]

Tools = Annotated[list[Json], AsSent(list[_Tool])]
ToolResources = Annotated[Json, AsSent(_ToolResources)]
ToolChoice = Annotated[Any, AsSent(_ToolChoice)]
ResponseFormat = Annotated[Any, AsSent(_Format)]
Attachments = Annotated[list[Json], AsSent(list[_Attachment])]


# Request bodies


@frozen(kw_only=True)
class AssistantChanges:
    """Changes an assistant. Absent fields stay as they are."""

    model: Annotated[str, _not_empty] | None = None
    name: Name | None = None
    description: Description | None = None
    instructions: Instructions | None = None
    tools: Tools | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None


@frozen(kw_only=True)
class AssistantRequest(AssistantChanges):
    """Creates an assistant."""

    model: Annotated[str, _not_empty]


@frozen(kw_only=True)
class MessageRequest:
    """Adds a message."""

    role: Literal["user", "assistant"]
    content: Content
    attachments: Attachments | None = None
    metadata: Metadata | None = None
    on_busy: Literal["enqueue", "reject", "interrupt", "rollback"] | None = None


@frozen(kw_only=True)
class ThreadRequest:
    """Creates or changes a thread. ``messages`` counts only when it is created."""

    messages: list[MessageRequest] | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None


@frozen(kw_only=True)
class MetadataRequest:
    """Changes the metadata of a message or run."""

    metadata: Metadata | None = None


@frozen(kw_only=True)
class _Truncation:
    type: Literal["auto", "last_messages"]
    last_messages: Annotated[int, _between(1)] | None = None


@frozen(kw_only=True)
class _AnyRun:
    assistant_id: str
    model: Annotated[str, _not_empty] | None = None
    instructions: Instructions | None = None
    tools: Tools | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_prompt_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    truncation_strategy: _Truncation | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    stream: bool | None = None


@frozen(kw_only=True)
class RunRequest(_AnyRun):
    """Creates a run on a thread."""

    additional_instructions: Instructions | None = None
    additional_messages: list[MessageRequest] | None = None
    on_busy: Literal["enqueue", "reject", "interrupt", "rollback"] | None = None


@frozen(kw_only=True)
class ThreadAndRunRequest(_AnyRun):
    """Creates a thread and a run on it."""

    thread: ThreadRequest | None = None


@frozen(kw_only=True)
class ToolOutputRequest:
    """The output of one call."""

    tool_call_id: str
    output: str = ""


@frozen(kw_only=True)
class SubmitRequest:
    """Submits tool outputs."""

    tool_outputs: list[ToolOutputRequest]
    stream: bool | None = None
