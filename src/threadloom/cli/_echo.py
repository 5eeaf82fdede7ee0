"""The handler of a server that was given none, so that a newcomer sees something at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

from threadloom.models import MessageRole
from threadloom.pages import Order
from threadloom.worker import RunContext

__all__ = ["echo"]


async def echo(ctx: RunContext) -> AsyncIterator[str]:
    """Say again what the user said last, word by word."""
    messages = await ctx.list_messages(order=Order.DESC)
    said = next((message.text for message in messages if message.role is MessageRole.USER), "")
    yield "You said:"
    for word in said.split(" "):
        yield f" {word}"
