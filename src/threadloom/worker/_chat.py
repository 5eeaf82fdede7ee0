"""Converts a conversation to the messages of a chat-completions request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from threadloom.models import (
    Content,
    ImageFileContent,
    ImageUrlContent,
    Message,
    MessageCreation,
    RefusalContent,
    Run,
    RunStep,
    TextContent,
)
from threadloom.worker._past import tool_calls_of

__all__ = ["chat_messages"]

Chat = list[dict[str, Any]]


def chat_messages(run: Run, messages: Sequence[Message], steps: Iterable[RunStep]) -> Chat:
    """Return instructions, messages and completed steps in the order in which a model must see them.

    The run's own work comes last, in the order of its steps. A message stays a message. The calls of a step become one
    message of the assistant, followed by one message per output.
    """
    own = {message.id: message for message in messages if message.run_id == run.id}
    done: Chat = []
    for step in steps:
        calls = tool_calls_of(step)
        if calls:
            done.append(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": call.id,
                            "type": call.type,
                            "function": {"name": call.function.name, "arguments": call.function.arguments},
                        }
                        for call in calls
                    ],
                }
            )
            # Chat completions require an answer to every call, even if a tool returned nothing.
            done += [{"role": "tool", "tool_call_id": call.id, "content": call.function.output or ""} for call in calls]
        elif isinstance(step.step_details, MessageCreation):
            message = own.pop(step.step_details.message_id, None)
            if message is not None:
                done.append(_chat_message(message))
    system: Chat = [{"role": "system", "content": run.instructions}] if run.instructions else []
    # Messages of the run without a completed step were added by hand, or are incomplete.
    before = [_chat_message(message) for message in messages if message.run_id != run.id or message.id in own]
    return [*system, *before, *done]


def _chat_message(message: Message) -> dict[str, Any]:
    if all(isinstance(block, TextContent) for block in message.content):
        return {"role": message.role.value, "content": message.text}
    return {"role": message.role.value, "content": [_part(block) for block in message.content]}


def _part(block: Content) -> dict[str, Any]:
    match block:
        case TextContent(text=text):
            return {"type": "text", "text": text}
        case ImageUrlContent():
            return {"type": "image_url", "image_url": _picture("url", block.url, block.detail)}
        case ImageFileContent():
            # Chat completions have no such part. Some servers do, and dropping it silently would hide the image.
            return {"type": "image_file", "image_file": _picture("file_id", block.file_id, block.detail)}
        case RefusalContent(refusal=refusal):
            return {"type": "refusal", "refusal": refusal}
        case _:
            return dict(block.data)


def _picture(key: str, value: str, detail: str | None) -> dict[str, str]:
    return {key: value} if detail is None else {key: value, "detail": detail}
