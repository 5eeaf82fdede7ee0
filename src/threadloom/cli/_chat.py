"""The handler ``openai-chat``: forwards a run to a chat-completions server. The client executes its tools."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

import openai
from attrs import define, field
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from threadloom.cli._chat_calls import CallPieces
from threadloom.cli._chat_request import chat_request
from threadloom.cli._errors import CannotStartError
from threadloom.worker import Handler, MessageWriter, RunContext

__all__ = ["chat"]

logger = logging.getLogger("threadloom")

_URL, _KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
_MOST_CHARACTERS = 500  # of an error message of a server
_TELLING = {400, 404, 413, 422}  # statuses whose message is about the request, not about keys or internals
_REFUSING = {400, 413, 422}
_PROMPT_CODES = {
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "exceed_context_size_error",
    "invalid_prompt",
    "string_above_max_length",
}


def chat() -> AbstractAsyncContextManager[Handler]:
    """Return a context manager that opens the handler for the configured server, or raise ``CannotStartError``."""
    url = os.environ.get(_URL, "")
    if not url and not os.environ.get(_KEY):
        raise CannotStartError(
            f"The handler openai-chat needs a server: set {_URL} to the address of a chat-completions server, "
            f"such as http://localhost:11434/v1, or {_KEY} to use OpenAI's server, or both."
        )
    if url and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname):
        raise CannotStartError(f"{_URL} must be an address such as http://localhost:11434/v1.")
    return _opened()


@asynccontextmanager
async def _opened() -> AsyncIterator[Handler]:
    async with await asyncio.to_thread(_client) as client:
        yield Chat(client)


def _client() -> openai.AsyncOpenAI:
    """Return a client that is ready to use: it loads certificates and modules now, because this blocks."""
    # The client requires a key even for a server that does not.
    client = openai.AsyncOpenAI(api_key=os.environ.get(_KEY) or "none")
    _ = client.chat.completions
    return client


@define
class _Answer:
    """The answer of the server so far, except for its text, which is already in the message.

    Attributes:
        calls: Pieces of the tool calls.

        usage: Tokens used. None until the server sends them.

        finish_reason: Why the answer ended. None until it has.
    """

    calls: CallPieces = field(factory=CallPieces)
    usage: CompletionUsage | None = None
    finish_reason: str | None = None


class Chat:
    """Forwards one turn of a run to the server and streams the answer back. It is a handler."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self._counts_tokens = True

    async def __call__(self, ctx: RunContext) -> None:
        """Stream the answer into a message, and ask the client to execute tool calls."""
        request = chat_request(ctx.run, await ctx.chat_messages())
        if request.get("max_completion_tokens", 1) < 1:
            ctx.incomplete("max_completion_tokens")
        try:
            answer = await self._ask(ctx, request)
        except openai.APIError as error:
            self._fail(ctx, error)
        if answer.calls:
            await ctx.call_tools(answer.calls.calls(taken={call.id for call in ctx.tool_calls}))

    async def _ask(self, ctx: RunContext, request: dict[str, Any]) -> _Answer:
        answer = _Answer()
        async with AsyncExitStack() as stack:
            stream = await stack.enter_async_context(await self._stream(request))
            message: MessageWriter | None = None
            async for chunk in stream:
                text = _take(answer, chunk)
                if text and message is None:
                    message = await stack.enter_async_context(ctx.message())
                if text and message is not None:
                    await message.write(text)
            if answer.usage is not None:
                ctx.add_usage(
                    prompt_tokens=answer.usage.prompt_tokens or 0,
                    completion_tokens=answer.usage.completion_tokens or 0,
                )
            # Inside the message block, so the message stays open and ends as the run does.
            match answer.finish_reason:
                case "length":
                    ctx.incomplete("max_completion_tokens")
                case "content_filter":
                    ctx.fail("server_error", "The content filter of the chat completions server cut off the answer.")
                case None:
                    ctx.fail("server_error", "The chat completions server did not finish its answer.")
        return answer

    async def _stream(self, request: dict[str, Any]) -> openai.AsyncStream[ChatCompletionChunk]:
        if self._counts_tokens:
            try:
                return await self._create(request | {"stream_options": {"include_usage": True}})
            except openai.APIStatusError as error:
                if error.status_code not in _REFUSING or "stream_options" not in str(error):
                    raise
            self._counts_tokens = False  # an older server, which cannot count tokens
        return await self._create(request)

    async def _create(self, request: dict[str, Any]) -> openai.AsyncStream[ChatCompletionChunk]:
        stream: openai.AsyncStream[ChatCompletionChunk] = await self._client.chat.completions.create(
            stream=True, **request
        )
        return stream

    def _fail(self, ctx: RunContext, error: openai.APIError) -> NoReturn:
        said = self._without_secrets(error.message)
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        ids = {"thread_id": ctx.run.thread_id, "run_id": ctx.run.id}
        logger.warning(
            "The chat server failed in run %s of thread %s",
            ctx.run.id,
            ctx.run.thread_id,
            extra={**ids, "status": status, "reason": said},
        )
        server = "The chat completions server"
        if isinstance(error, openai.APIConnectionError):
            late = isinstance(error, openai.APITimeoutError)
            ctx.fail("server_error", f"{server} did not answer in time." if late else f"{server} could not be reached.")
        if status is None:
            ctx.fail("server_error", f"{server} did not finish its answer.")
        words = f": {said}" if status in _TELLING else "."
        code = "server_error"
        if isinstance(error, openai.RateLimitError):
            code = "rate_limit_exceeded"
        elif status in _REFUSING and _is_of_the_prompt(error):
            code = "invalid_prompt"
        ctx.fail(code, f"{server} answered {status}{words}")

    def _without_secrets(self, text: str) -> str:
        """Return a text without the secrets in it: servers repeat what a client sent them."""
        url = self._client.base_url
        for secret in (str(url), str(url).rstrip("/"), url.password, self._client.api_key):
            if secret:
                text = text.replace(secret, "...")
        return text[:_MOST_CHARACTERS]


def _take(answer: _Answer, chunk: ChatCompletionChunk) -> str:
    """Take in a chunk, and return its text. Servers omit many fields that the types declare."""
    answer.usage = chunk.usage or answer.usage
    if not chunk.choices:
        return ""
    choice = chunk.choices[0]
    answer.finish_reason = choice.finish_reason or answer.finish_reason
    delta: Any = choice.delta
    if delta is None:
        return ""
    for piece in delta.tool_calls or ():
        function = piece.function
        name, arguments = (function.name, function.arguments) if function else (None, None)
        answer.calls.add(piece.index, piece.id, name, arguments)
    return str(delta.content or delta.refusal or "")


def _is_of_the_prompt(error: openai.APIError) -> bool:
    if {error.code, error.type} & _PROMPT_CODES or str(error.param or "").startswith("messages"):
        return True
    words = error.message.lower()
    return "context" in words and any(word in words for word in ("length", "size", "window"))
