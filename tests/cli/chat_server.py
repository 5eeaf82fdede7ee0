"""A small server that speaks chat completions, as the peer of the handler ``openai-chat``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from attrs import field, frozen


def text(*pieces: str, finish: str | None = "stop") -> list[dict[str, Any]]:
    """Return the chunks of an answer in so many pieces."""
    return [
        _chunk({"role": "assistant", "content": ""}),
        *(_chunk({"content": piece}) for piece in pieces),
        end(finish),
    ]


def call(index: int | None, id_: str | None = None, name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    """Return a chunk with a piece of a call; what is none is not there, as servers leave it out."""
    function = {"name": name, "arguments": arguments}
    piece = {"index": index, "id": id_, "type": id_ and "function", "function": _there(function)}
    return _chunk({"tool_calls": [_there(piece)]})


def end(finish: str | None = "stop") -> dict[str, Any]:
    return _chunk({}, finish)


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """Return the chunk that comes last where the client asked for it."""
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return _chunk(None) | {"choices": [], "usage": tokens}


@frozen
class Refusal:
    """An error in OpenAI's form."""

    status: int
    message: str
    words: dict[str, str] = field(factory=dict)

    def response(self) -> web.Response:
        error = {"message": self.message, "type": None, "param": None, "code": None, **self.words}
        # The client tries again, and need not wait for it.
        return web.json_response({"error": error}, status=self.status, headers={"retry-after-ms": "1"})


def _chunk(delta: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def _there(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


class ChatServer:
    """Gives the answers that it was told to give, one a request, the last again and again, and keeps what it was asked.

    An answer is a refusal, or chunks to stream. Among them, an event is waited for, and an exception breaks the
    connection there.
    """

    def __init__(self) -> None:
        self.answers: list[Refusal | Iterable[dict[str, Any] | asyncio.Event | Exception]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Refusal):
            return answer.response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in answer:
            if isinstance(chunk, asyncio.Event):
                await chunk.wait()
                continue
            if isinstance(chunk, Exception):
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(b"data: %s\n\n" % json.dumps(chunk).encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def chat_server() -> AsyncIterator[ChatServer]:
    server = ChatServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server._complete)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
