"""What the flows stand on: OpenAI's official client of any version, sync and async alike, and how they tell of it."""

# ruff: noqa: T201 - the test reads what is printed

from __future__ import annotations

import asyncio
import inspect
import json
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import openai

warnings.simplefilter("ignore", DeprecationWarning)  # all of these calls are, since 1.109

Frame = tuple[str, str, int | None]

_ID = re.compile(r"\b(asst|thread|msg|run|step|call)_[0-9a-f]{32}\b")
_CALLBACKS: dict[str, Callable[..., Any]] = {
    "on_event": lambda event: event.event.removeprefix("thread."),
    "on_run_step_created": lambda step: ["run step created", step.id],
    "on_run_step_delta": lambda _, __: ["run step delta"],
    "on_run_step_done": lambda step: ["run step done", step.id, step.status],
    "on_tool_call_created": lambda call: ["tool call created", call.id],
    "on_tool_call_delta": lambda delta, call: ["tool call delta", delta.function.arguments, call.function.arguments],
    "on_tool_call_done": lambda call: ["tool call done", call.function.name, call.function.arguments],
    "on_message_created": lambda message: ["message created", message.id],
    "on_message_delta": lambda _, message: ["message delta", message.id],
    "on_message_done": lambda message: ["message done", message.id, message.status],
    "on_text_created": lambda _: ["text created"],
    "on_text_delta": lambda delta, text: ["text delta", delta.value, text.value],
    "on_text_done": lambda text: ["text done", text.value],
    "on_end": lambda: ["end"],
    "on_exception": lambda error: ["exception", repr(error)],
    "on_timeout": lambda: ["timeout"],
}


class OfficialClient:
    """A client of either flavour: `await self.of(...)` gets its answer, `self.each(...)` the items of its list."""

    def __init__(self, flavour: str, url: str) -> None:
        self.flavour = flavour
        self.is_async = flavour == "async"
        self.client = self.make_client(url)

    def make_client(self, url: str) -> Any:  # loosely, for what is there depends on the flavour
        make = openai.AsyncOpenAI if self.is_async else openai.OpenAI
        return make(api_key="sk-any", base_url=url, max_retries=0, _strict_response_validation=True)

    async def of(self, answer: Any) -> Any:
        return await answer if inspect.isawaitable(answer) else answer

    async def each(self, items: Any) -> AsyncIterator[Any]:
        if hasattr(items, "__aiter__"):
            async for item in items:
                yield item
        else:
            for item in items:
                yield item

    @asynccontextmanager
    async def within(self, manager: Any) -> AsyncIterator[Any]:
        if self.is_async:
            async with manager as entered:
                yield entered
        else:
            with manager as entered:
                yield entered

    async def at_once(self, calls: Iterable[Callable[[], Any]]) -> list[Any]:
        asked = [call() if self.is_async else asyncio.to_thread(call) for call in calls]
        return await asyncio.gather(*asked, return_exceptions=True)

    async def refused(self, call: Callable[[], Any]) -> list[Any]:
        """Return what is told of the error that the call raises."""
        [error] = await self.at_once([call])
        return told(error)

    def recorder(self, seen: list[Any]) -> Any:
        """Return an event handler that writes down every call of its callbacks."""

        def noting(tell: Callable[..., Any]) -> Callable[..., Any]:
            def note(_: Any, *arguments: Any) -> None:
                seen.append(tell(*arguments))

            async def note_async(_: Any, *arguments: Any) -> None:
                seen.append(tell(*arguments))

            return note_async if self.is_async else note

        base: Any = openai.AsyncAssistantEventHandler if self.is_async else openai.AssistantEventHandler
        return type("Recorder", (base,), {name: noting(tell) for name, tell in _CALLBACKS.items()})()

    # A stream, frame by frame

    def events(self, run: Any, *, after: int | None = None, last: int | None = None, cast_to: Any = object) -> Any:
        kinds: Any = openai.AsyncStream if self.is_async else openai.Stream
        query = "" if after is None else f"?after={after}"
        return self.client.get(
            f"/threads/{run.thread_id}/runs/{run.id}/events{query}",
            cast_to=cast_to,
            stream=True,
            stream_cls=kinds[cast_to],
            options={} if last is None else {"headers": {"Last-Event-ID": str(last)}},
        )

    async def frames(self, stream: Any) -> AsyncIterator[Frame]:
        """Yield the name, the data and the number of each frame."""
        response = (await self.of(stream)).response
        frame: dict[str, str] = {}
        async for line in self.each(response.aiter_lines() if self.is_async else response.iter_lines()):
            if line:
                name, _, value = line.partition(": ")
                frame[name] = value
            elif "event" in frame:
                yield frame["event"], frame["data"], int(frame["id"]) if "id" in frame else None
                frame = {}


def told(error: Any) -> list[Any]:
    """Return what a client is told of an error; a program that expects one falls over an answer that is none."""
    body = error.body
    return [type(error).__name__, error.status_code, error.code, error.param, error.type, body["message"]]


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content if part.type == "text")


def words_of(name: str, data: str) -> list[str]:
    if name == "done":
        return [data]
    body = json.loads(data)
    return [body["id"], *(part["text"]["value"] for part in body.get("delta", {}).get("content", []))]


def say(flow: str, seen: Any) -> None:
    names: dict[str, str] = {}

    def named(match: re.Match[str]) -> str:
        kind = match[1]
        ordinal = 1 + sum(name.startswith(f"{kind}_") for name in names.values())
        return names.setdefault(match[0], f"{kind}_{ordinal}")

    print(_ID.sub(named, json.dumps({"flow": flow, "seen": seen})), flush=True)
