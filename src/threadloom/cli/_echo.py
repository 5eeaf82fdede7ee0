"""The default handler of a server, so that a first try needs no handler."""

from __future__ import annotations

from collections.abc import AsyncIterator

from threadloom.models import MessageRole
from threadloom.pages import Order
from threadloom.worker import RunContext

__all__ = ["echo"]


async def echo(ctx: RunContext) -> AsyncIterator[str]:
    """Repeat the last message of the user, word by word."""
    messages = await ctx.list_messages(order=Order.DESC)
    said = next((message.text for message in messages if message.role is MessageRole.USER), "")
    yield "You said:"
    for word in said.split(" "):
        yield f" {word}"
