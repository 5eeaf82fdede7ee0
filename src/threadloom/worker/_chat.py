"""A conversation in the form that chat-completions servers take."""

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
    """Return instructions, messages and what the run did by ``steps``, in the order in which a model has to see it.

    What the run itself has written comes last, in the order of its steps: each message, and each step's calls as one
    message of the assistant, followed by one for each output.
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
            # Every call needs its answer there, also one whose tool had nothing to say.
            done += [{"role": "tool", "tool_call_id": call.id, "content": call.function.output or ""} for call in calls]
        elif isinstance(step.step_details, MessageCreation):
            message = own.pop(step.step_details.message_id, None)
            if message is not None:
                done.append(_chat_message(message))
    system: Chat = [{"role": "system", "content": run.instructions}] if run.instructions else []
    # Of the run's own, these have no completed step: added by hand, or cut off in the middle.
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
            # Chat completions have no such part. A server of one's own may; it must not be left out without a word.
            return {"type": "image_file", "image_file": _picture("file_id", block.file_id, block.detail)}
        case RefusalContent(refusal=refusal):
            return {"type": "refusal", "refusal": refusal}
        case _:
            return dict(block.data)


def _picture(key: str, value: str, detail: str | None) -> dict[str, str]:
    return {key: value} if detail is None else {key: value, "detail": detail}
