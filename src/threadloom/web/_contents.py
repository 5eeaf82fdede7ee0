"""Converts messages and tools of a request to our objects, and checks them against the limits of the server."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
from aiohttp import web

from threadloom.models import (
    Content,
    ImageFileContent,
    ImageUrlContent,
    Message,
    TextContent,
)
from threadloom.web._calls import settings_of
from threadloom.web._errors import WireError
from threadloom.web._requests import MessageRequest

__all__ = ["check_tools", "message_of", "messages_of"]


def check_tools(request: web.Request, tools: Sequence[Any] | None) -> None:
    """Raise if there are more tools than the server allows."""
    most = settings_of(request).limits.tools
    if tools is not None and len(tools) > most:
        raise WireError(400, f"Invalid 'tools': {len(tools)} tools, but the limit is {most}.", param="tools")


def messages_of(
    request: web.Request, thread_id: str, asked: Iterable[MessageRequest] | None, param: str
) -> list[Message]:
    """Return the messages of a request that may contain several."""
    given = list(asked or ())
    most = settings_of(request).limits.messages_per_request
    if len(given) > most:
        raise WireError(400, f"Invalid '{param}': {len(given)} messages, but the limit is {most}.", param=param)
    return [message_of(request, thread_id, message, f"{param}[{place}].") for place, message in enumerate(given)]


def message_of(request: web.Request, thread_id: str, asked: MessageRequest, prefix: str = "") -> Message:
    """Return a message. ``prefix`` is the place of its object in the body, for error messages."""
    content = [TextContent(asked.content)] if isinstance(asked.content, str) else [_block(p) for p in asked.content]
    most = settings_of(request).limits.message_characters
    characters = sum(len(block.text) for block in content if isinstance(block, TextContent))
    if characters > most:
        text = f"Invalid '{prefix}content': it has {characters} characters, but the limit is {most}."
        raise WireError(400, text, param=f"{prefix}content")
    make = Message.user if asked.role == "user" else Message.assistant
    message = make(thread_id, content, metadata=asked.metadata)
    return message if asked.attachments is None else attrs.evolve(message, attachments=tuple(asked.attachments))


def _block(part: dict[str, Any]) -> Content:
    match part:
        case {"type": "text", "text": text}:
            return TextContent(text)
        case {"type": "image_file", "image_file": {"file_id": file_id} as picture}:
            return ImageFileContent(file_id, picture.get("detail"))
        case {"type": "image_url", "image_url": {"url": url} as picture}:
            return ImageUrlContent(url, picture.get("detail"))
    raise AssertionError(part)  # the shape of the request excludes it
