"""Converts our objects to those of the API: every key that its description requires, with null for missing values.

An external writer may have stored values that clients cannot read. Words that the API does not know become the nearest
word that it knows (``docs/wire.md``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from threadloom.models import (
    Assistant,
    Content,
    ImageFileContent,
    ImageUrlContent,
    IncompleteDetails,
    Message,
    MessageCreation,
    MessageStatus,
    RefusalContent,
    RequiredAction,
    Run,
    RunError,
    RunStep,
    RunStepType,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    TruncationStrategy,
    UnknownObject,
    Usage,
)
from threadloom.pages import Page

__all__ = ["Json", "deleted", "page_to_wire", "to_wire"]

Json = dict[str, Any]

_RUN_ERRORS = frozenset({"server_error", "rate_limit_exceeded", "invalid_prompt"})
_STEP_ERRORS = frozenset({"server_error", "rate_limit_exceeded"})
_RUN_REASONS = frozenset({"max_completion_tokens", "max_prompt_tokens"})
_MESSAGE_REASONS = frozenset({"content_filter", "max_tokens", "run_cancelled", "run_expired", "run_failed"})


@singledispatch
def to_wire(value: Any) -> Json:
    """Return the JSON object of an assistant, thread, message, run or step."""
    raise TypeError(f"{type(value).__name__} has no form on the wire")


@to_wire.register
def _(assistant: Assistant) -> Json:
    wire = {
        "id": assistant.id,
        "object": "assistant",
        "created_at": assistant.created_at,
        "name": assistant.name,
        "description": assistant.description,
        "model": assistant.model,
        "instructions": assistant.instructions,
        "tools": list(assistant.tools),
        "tool_resources": assistant.tool_resources,
        "metadata": _metadata(assistant.metadata),
        "temperature": assistant.temperature,
        "top_p": assistant.top_p,
        "response_format": assistant.response_format or "auto",
    }
    return wire | _given(reasoning_effort=assistant.reasoning_effort)


@to_wire.register
def _(thread: Thread) -> Json:
    return {
        "id": thread.id,
        "object": "thread",
        "created_at": thread.created_at,
        "tool_resources": thread.tool_resources,
        "metadata": _metadata(thread.metadata),
    }


@to_wire.register
def _(message: Message) -> Json:
    completed_at = message.completed_at
    if completed_at is None and message.status is MessageStatus.COMPLETED:
        completed_at = message.created_at
    return {
        "id": message.id,
        "object": "thread.message",
        "created_at": message.created_at,
        "thread_id": message.thread_id,
        "status": message.status,
        "incomplete_details": _reason(message.incomplete_details, _MESSAGE_REASONS, "max_tokens"),
        "completed_at": completed_at,
        "incomplete_at": message.incomplete_at,
        "role": message.role,
        "content": [_content(block) for block in message.content],
        "assistant_id": message.assistant_id,
        "run_id": message.run_id,
        "attachments": list(message.attachments),
        "metadata": _metadata(message.metadata),
    }


@to_wire.register
def _(run: Run) -> Json:
    has_ended = run.status.is_terminal
    wire = {
        "id": run.id,
        "object": "thread.run",
        "created_at": run.created_at,
        "thread_id": run.thread_id,
        "assistant_id": run.assistant_id,
        "status": run.status,
        "required_action": _required_action(run.required_action),
        "last_error": _error(run.last_error, _RUN_ERRORS),
        "expires_at": None if has_ended else run.expires_at,
        "started_at": run.started_at,
        "cancelled_at": run.cancelled_at,
        "failed_at": run.failed_at,
        "completed_at": run.completed_at,
        "incomplete_details": _reason(run.incomplete_details, _RUN_REASONS, "max_completion_tokens"),
        "model": run.model,
        "instructions": run.instructions,
        "tools": list(run.tools),
        "metadata": _metadata(run.metadata),
        "usage": _usage(run.usage) if has_ended else None,
        "temperature": run.temperature,
        "top_p": run.top_p,
        "max_prompt_tokens": run.max_prompt_tokens,
        "max_completion_tokens": run.max_completion_tokens,
        "truncation_strategy": _truncation(run.truncation_strategy or TruncationStrategy()),
        "tool_choice": run.tool_choice or "auto",
        "parallel_tool_calls": run.parallel_tool_calls,
        "response_format": run.response_format or "auto",
    }
    return wire | _given(reasoning_effort=run.reasoning_effort, tool_resources=run.tool_resources)


@to_wire.register
def _(step: RunStep) -> Json:
    return {
        "id": step.id,
        "object": "thread.run.step",
        "created_at": step.created_at,
        "assistant_id": step.assistant_id,
        "thread_id": step.thread_id,
        "run_id": step.run_id,
        "type": step.type,
        "status": step.status,
        "step_details": _details(step),
        "last_error": _error(step.last_error, _STEP_ERRORS),
        "expired_at": step.expired_at,
        "cancelled_at": step.cancelled_at,
        "failed_at": step.failed_at,
        "completed_at": step.completed_at,
        "metadata": _metadata(step.metadata),
        "usage": _usage(step.usage),
    }


def page_to_wire(page: Page[Any]) -> Json:
    """Return the JSON object of a page."""
    data = [to_wire(item) for item in page]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


def deleted(id_: str, kind: str) -> Json:
    """Return the JSON object that confirms a deletion. ``kind`` is the kind of the object."""
    return {"id": id_, "object": f"{kind}.deleted", "deleted": True}


def _content(block: Content) -> Json:
    match block:
        case TextContent():
            return {"type": "text", "text": {"value": block.text, "annotations": list(block.annotations)}}
        case ImageFileContent():
            return {"type": "image_file", "image_file": {"file_id": block.file_id} | _given(detail=block.detail)}
        case ImageUrlContent():
            return {"type": "image_url", "image_url": {"url": block.url} | _given(detail=block.detail)}
        case RefusalContent():
            return {"type": "refusal", "refusal": block.refusal}
        case UnknownObject():
            return dict(block.data)


def _details(step: RunStep) -> Json:
    match step.step_details:
        case ToolCalls(calls):
            return {"type": "tool_calls", "tool_calls": [_tool_call(call) for call in calls]}
        case MessageCreation(message_id):
            return {"type": "message_creation", "message_creation": {"message_id": message_id}}
    if step.type is RunStepType.TOOL_CALLS:
        return {"type": "tool_calls", "tool_calls": []}
    return {"type": "message_creation", "message_creation": {"message_id": ""}}


def _tool_call(call: ToolCall | UnknownObject) -> Json:
    if isinstance(call, UnknownObject):
        return dict(call.data)
    function = call.function
    told = {"name": function.name, "arguments": function.arguments, "output": function.output}
    return {"id": call.id, "type": "function", "function": told}


def _required_action(action: RequiredAction | None) -> Json | None:
    if action is None:
        return None
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in action.tool_calls
    ]
    return {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}}


def _metadata(metadata: Any) -> dict[str, str]:
    """Return metadata that clients can read: external writers may have stored any JSON."""
    if not isinstance(metadata, Mapping):
        return {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def _error(error: RunError | None, codes: frozenset[str]) -> Json | None:
    if error is None:
        return None
    return {"code": error.code if error.code in codes else "server_error", "message": error.message}


def _reason(details: IncompleteDetails | None, reasons: frozenset[str], nearest: str) -> Json | None:
    if details is None:
        return None
    return {"reason": details.reason if details.reason in reasons else nearest}


def _usage(usage: Usage | None) -> Json | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _truncation(strategy: TruncationStrategy) -> Json:
    return {"type": strategy.type, "last_messages": strategy.last_messages}


def _given(**values: Any) -> Json:
    return {key: value for key, value in values.items() if value is not None}
