"""Whole conversations over the wire, request by request, as they lie in ``tests/golden/wire``.

So the wire stands also where no official client is left that could tell. A change that is meant is written down by
running these tests with ``THREADLOOM_WRITE_GOLDEN=1``; what has changed is then seen in the difference.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.web.fixtures import Answer, MemoryWireTests, Wire
from threadloom import FunctionCall, ThreadStore
from threadloom.worker import RunContext, RunWorker

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
WRITES = bool(os.environ.get("THREADLOOM_WRITE_GOLDEN"))
SAID_OF_ANSWERS = ("Content-Type", "openai-poll-after-ms", "x-should-retry", "retry-after", "Allow")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
_ID = re.compile(r"\b(asst|thread|msg|run|step|call)_[0-9a-f]{32}\b")
_MOMENT = re.compile(r'("\w+_at": ?)\d+')

Json = Any
Story = Callable[["Told"], Awaitable[None]]


async def answer(ctx: RunContext) -> str | None:
    """Do as the last message says."""
    if ctx.tool_calls:
        return " and ".join(str(call.function.output) for call in ctx.tool_calls)
    match (await ctx.list_messages())[-1].text:
        case "fail":
            ctx.fail("rate_limit_exceeded", "Too fast.")
        case "stop short":
            async with ctx.message() as message:
                await message.write("half a wo")
            ctx.incomplete("max_completion_tokens")
        case "wait":
            await asyncio.Event().wait()
        case "add":
            await ctx.call_tools([FunctionCall(name="add", arguments=text) for text in ('{"a":1}', '{"a":2}')])
        case text:
            ctx.add_usage(prompt_tokens=2, completion_tokens=3)
            async with ctx.message() as message:
                await message.write("You said: ")
                await message.write(text)
    return None


class Told:
    """Asks a server, and writes down what was asked and answered, with names for ids and moments."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.store = wire.store
        self.exchanges: list[Json] = []
        self._names: dict[str, str] = {}

    async def ask(self, method: str, path: str, body: Json = None, *, query: str = "", **headers: str) -> Json:
        """Return the JSON that is answered, or the frames of a stream."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answered = await self.wire.ask(method, path, body, query=query, headers=sent)
        told = _frames(answered) if "event-stream" in answered.headers["Content-Type"] else answered.json
        request = {"method": method, "path": f"{path}{'?' if query else ''}{query}", "headers": sent}
        if body is not None:
            request["body"] = body.decode() if isinstance(body, bytes) else body
        said = {name: answered.headers[name] for name in SAID_OF_ANSWERS if name in answered.headers}
        self.exchanges.append(
            {"request": request, "answer": {"status": answered.status, "headers": said, "body": told}}
        )
        return told

    async def ended(self, run: Json) -> Json:
        """Wait without a word until nobody works on the run, and ask for it then."""
        await self.wire.ended(run)
        return await self.ask("GET", f"/threads/{run['thread_id']}/runs/{run['id']}")

    def transcript(self) -> str:
        text = json.dumps(self.exchanges, indent=1, ensure_ascii=False) + "\n"
        return _MOMENT.sub(r'\1"<moment>"', _ID.sub(lambda found: self._name(found[0], found[1]), text))

    def _name(self, id_: str, kind: str) -> str:
        if id_ not in self._names:
            count = sum(name.startswith(f"<{kind}_") for name in self._names.values())
            self._names[id_] = f"<{kind}_{count + 1}>"
        return self._names[id_]


def _frames(answered: Answer) -> list[Json]:
    """Return the frames of a stream, each with its fields; data that is JSON is told as such."""
    frames = []
    for block in answered.body.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        frame: dict[str, Json] = dict(line.split(": ", 1) for line in block.split("\n"))
        if frame["data"] != "[DONE]":
            frame["data"] = orjson.loads(frame["data"])
        frames.append(frame)
    return frames


@asynccontextmanager
async def at_work(store: ThreadStore) -> AsyncIterator[None]:
    async with RunWorker(store, answer):
        yield


async def begun(told: Told, text: str, **fields: Json) -> Json:
    """Return a run on a thread of its own, in which the message is said."""
    assistant = await told.ask("POST", "/assistants", {"model": "m", "instructions": "Be brief.", "tools": [TOOL]})
    thread = {"messages": [{"role": "user", "content": text}]}
    return await told.ask("POST", "/threads/runs", {"assistant_id": assistant["id"], "thread": thread, **fields})


async def a_conversation(told: Told) -> None:
    assistant = await told.ask("POST", "/assistants", {"model": "m", "name": "Bob", "instructions": "Be brief."})
    thread = await told.ask("POST", "/threads", {})
    path = f"/threads/{thread['id']}"
    for text in ("hello", "bye"):
        await told.ask("POST", f"{path}/messages", {"role": "user", "content": text})
        run = await told.ask("POST", f"{path}/runs", {"assistant_id": assistant["id"], "stream": False})
        async with at_work(told.store):
            await told.ended(run)
    await told.ask("GET", f"{path}/messages", query="order=asc")
    await told.ask("GET", f"{path}/runs/{run['id']}/steps")
    await told.ask("DELETE", path)
    await told.ask("DELETE", f"/assistants/{assistant['id']}")


async def two_tools(told: Told) -> None:
    run = await begun(told, "add")
    path = f"/threads/{run['thread_id']}/runs/{run['id']}"
    async with at_work(told.store):
        waiting = await told.ended(run)
        calls = waiting["required_action"]["submit_tool_outputs"]["tool_calls"]
        outputs = [{"tool_call_id": call["id"], "output": str(place)} for place, call in enumerate(calls)]
        await told.ask("POST", f"{path}/submit_tool_outputs", {"tool_outputs": outputs[:1]})
    # No worker is there when they come in, so that the run is seen as it waits for one.
    await told.ask("POST", f"{path}/submit_tool_outputs", {"tool_outputs": outputs})
    async with at_work(told.store):
        await told.ended(run)
    await told.ask("GET", f"{path}/steps", query="order=asc")
    await told.ask("POST", f"{path}/submit_tool_outputs", {"tool_outputs": outputs})


async def cancelling(told: Told) -> None:
    run = await begun(told, "hello")
    path = f"/threads/{run['thread_id']}/runs/{run['id']}"
    await told.ask("POST", f"{path}/cancel", b"")
    await told.ask("POST", f"{path}/cancel", b"")


async def a_failure(told: Told) -> None:
    run = await begun(told, "fail")
    async with at_work(told.store):
        await told.ended(run)


async def stopping_short(told: Told) -> None:
    run = await begun(told, "stop short")
    async with at_work(told.store):
        await told.ended(run)
    await told.ask("GET", f"/threads/{run['thread_id']}/messages", query=f"run_id={run['id']}")


async def pages(told: Told) -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(3)]
    thread = await told.ask("POST", "/threads", {"messages": messages})
    path = f"/threads/{thread['id']}/messages"
    first = await told.ask("GET", path, query="limit=2")
    await told.ask("GET", path, query=f"limit=2&after={first['last_id']}")
    await told.ask("GET", path, query=f"limit=2&before={first['last_id']}")
    await told.ask("GET", path, query=f"after={first['last_id']}&before={first['last_id']}")
    await told.ask("GET", "/threads", query="order=asc")


async def mistakes(told: Told) -> None:
    run = await begun(told, "hello")
    path = f"/threads/{run['thread_id']}"
    for method, wrong, body in (
        ("GET", "/nothing", None),
        ("PUT", "/threads", None),
        ("GET", "/threads/thread_none", None),
        ("GET", "/threads/..%2Fx", None),
        ("POST", "/assistants", {}),
        ("POST", "/assistants", b"{"),
        ("POST", "/assistants", b"[]"),
        ("POST", "/threads", {"metadata": {"a": 1}}),
        ("POST", "/threads/runs", {"assistant_id": "asst_none"}),
        ("POST", f"{path}/messages", {"role": "user", "content": "x"}),
        ("POST", f"{path}/runs", {"assistant_id": run["assistant_id"]}),
    ):
        await told.ask(method, wrong, body)
    await told.ask("GET", f"{path}/messages", query="limit=101")
    await told.ask("GET", f"{path}/messages", query="after=msg_none")
    await told.ask("POST", "/threads", b"{}", Content_Type="text/plain")


async def sending_again(told: Told) -> None:
    for body in ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}, {}):
        await told.ask("POST", "/threads", body, Idempotency_Key="key 1")


async def a_stream(told: Told) -> None:
    async with at_work(told.store):
        frames = await begun(told, "hello", stream=True)
    run = next(frame["data"] for frame in frames if frame["event"] == "thread.run.completed")
    path = f"/threads/{run['thread_id']}/runs/{run['id']}/events"
    await told.ask("GET", path, query=f"after={frames[-4]['id']}")
    await told.ask("GET", path, Last_Event_ID=frames[-3]["id"])


async def a_stream_with_tools(told: Told) -> None:
    async with at_work(told.store):
        frames = await begun(told, "add", stream=True)
        run = frames[-2]["data"]
        calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        outputs = [{"tool_call_id": call["id"], "output": call["function"]["arguments"]} for call in calls]
        path = f"/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs"
        await told.ask("POST", path, {"tool_outputs": outputs, "stream": True})


async def a_stream_of_a_failure(told: Told) -> None:
    async with at_work(told.store):
        await begun(told, "fail", stream=True)


STORIES: list[Story] = [
    a_conversation,
    two_tools,
    cancelling,
    a_failure,
    stopping_short,
    pages,
    mistakes,
    sending_again,
    a_stream,
    a_stream_with_tools,
    a_stream_of_a_failure,
]


class TestGolden(MemoryWireTests):
    @pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
    async def test_what_is_asked_and_answered_is_as_it_was_written_down(self, wire: Wire, story: Story):
        told = Told(wire)
        await story(told)
        file = GOLDEN / f"{story.__name__}.json"
        if WRITES:
            GOLDEN.mkdir(exist_ok=True)
            file.write_text(told.transcript(), encoding="utf-8")
        assert told.transcript() == file.read_text(encoding="utf-8")

    def test_every_transcript_has_its_story(self):
        assert {file.stem for file in GOLDEN.iterdir()} == {story.__name__ for story in STORIES}
