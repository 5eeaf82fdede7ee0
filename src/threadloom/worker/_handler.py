"""The handler: which functions are valid, and how to call one."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack

from threadloom.errors import InvalidInputError
from threadloom.worker._context import RunContext
from threadloom.worker._parts import MessageWriter

__all__ = ["Handler", "call_handler", "check_handler"]

Handler = Callable[[RunContext], Awaitable[str | None] | AsyncIterable[str]]
"""One turn of a run: ``async def handler(ctx)`` that returns a text or None, or an async generator of pieces of text.

Any callable that returns one of these for a ``RunContext`` is a handler, such as a bound method, a
``functools.partial``, or an object with ``__call__``.
"""


def check_handler(handler: Handler) -> None:
    """Raise ``InvalidInputError`` if ``handler`` cannot be a handler, as far as that is visible before a call."""
    if not callable(handler):
        raise InvalidInputError(f"The handler must be an async function that takes a RunContext, not {handler!r}.")
    if inspect.isgeneratorfunction(handler):
        raise InvalidInputError("The handler is a plain generator function: make it 'async def'.")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidInputError(f"The handler must take a single RunContext: {error}.") from None


async def call_handler(handler: Handler, ctx: RunContext) -> str | MessageWriter | None:
    """Return the text that the handler returned, the still open message that it streamed, or None."""
    result: object = handler(ctx)
    if inspect.isawaitable(result):
        text = await result
        if text is None or isinstance(text, str):
            return text
        raise InvalidInputError(f"The handler returned {type(text).__name__}, but it must return a str or None.")
    if isinstance(result, AsyncIterable):
        return await _stream(result, ctx)
    raise InvalidInputError(
        f"The handler returned {type(result).__name__}, which cannot be awaited: make it 'async def'."
    )


async def _stream(pieces: AsyncIterable[str], ctx: RunContext) -> MessageWriter | None:
    message: MessageWriter | None = None
    async with AsyncExitStack() as stack:
        if hasattr(pieces, "aclose"):
            # A generator suspended at a ``yield`` notices a cancellation only when it is closed.
            stack.push_async_callback(pieces.aclose)
        async for piece in pieces:
            if message is None:
                message = ctx.message()
                if not await message.begin(piece):
                    message = None
            else:
                await message.write(piece)
    return message
