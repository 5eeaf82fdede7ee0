"""What a program does with OpenAI's official client: `python -m tests.wire.flows sync|async URL [doomed]`.

It prints a line of JSON for each flow: what was seen of it, and knows nothing of what is right. Each id stands there as
a kind and a number, in the order in which they come. A `doomed` server is killed when the client says that a stream is
`standing`, and the client is told the URL of the next one, where all goes on. Runs with any version of `openai`, which
the test chooses.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai.types.beta import AssistantStreamEvent

from tests.wire.client import Frame, OfficialClient, say, text_of, told, words_of

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class Flows(OfficialClient):
    """The flows, each told once for both flavours."""

    def __init__(self, flavour: str, url: str) -> None:
        super().__init__(flavour, url)
        self.beta = self.client.beta
        self.threads = self.beta.threads
        self.runs = self.threads.runs
        self.messages = self.threads.messages

    # What most flows begin with

    async def assistant(self) -> str:
        made = await self.of(self.beta.assistants.create(model="any", name="Guide", instructions="Be kind."))
        return str(made.id)

    async def thread(self, asks: str) -> str:
        messages = [{"role": "user", "content": asks}]
        return str((await self.of(self.threads.create(messages=messages))).id)

    async def both(self, asks: str) -> dict[str, str]:
        return {"thread_id": await self.thread(asks), "assistant_id": await self.assistant()}

    async def texts(self, thread_id: str) -> list[Any]:
        messages = self.messages.list(thread_id, order="asc")
        return [[message.role, message.status, text_of(message)] async for message in self.each(messages)]

    async def outcome(self, run: Any) -> dict[str, Any]:
        """Return what is left of a run once nobody is at work on it."""
        run = await self.of(self.runs.retrieve(run.id, thread_id=run.thread_id))
        steps = self.runs.steps.list(run.id, thread_id=run.thread_id, order="asc")
        return {
            "status": run.status,
            "error": run.last_error and [run.last_error.code, run.last_error.message],
            "incomplete": run.incomplete_details and run.incomplete_details.reason,
            "moments": [name for name in sorted(run.model_fields_set) if name.endswith("_at") and getattr(run, name)],
            "steps": [[step.type, step.status] async for step in self.each(steps)],
            "messages": await self.texts(run.thread_id),
        }

    # The flows

    async def assistants(self) -> Any:
        api = self.beta.assistants
        made = await self.of(
            api.create(model="any", name="Guide", instructions="Be kind.", tools=[TOOL], metadata={"a": "b"})
        )
        changed = await self.of(api.update(made.id, name="Sage", description="Old."))
        read = await self.of(api.retrieve(made.id))
        others = [await self.assistant() for _ in range(4)]
        listed = [
            assistant.id async for assistant in self.each(api.list(limit=2)) if assistant.id in {made.id, *others}
        ]
        gone = await self.of(api.delete(made.id))
        return {
            "made": made.model_dump(mode="json", exclude={"created_at"}),
            "changed": [read == changed, read.name, read.description, read.instructions],
            "listed": listed == [*reversed(others), made.id],
            "gone": [gone.object, gone.deleted],
            "then": await self.refused(lambda: api.retrieve(made.id)),
            "run": await self.refused(lambda: self.threads.create_and_run(assistant_id=made.id)),
        }

    async def objects(self) -> Any:
        """Threads and messages, made, read, changed and deleted."""
        parts = [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
        ]
        thread = await self.of(self.threads.create(metadata={"a": "b"}))
        changed = await self.of(self.threads.update(thread.id, metadata={"c": "d"}))
        message = await self.of(self.messages.create(thread.id, role="user", content=parts, metadata={"e": "f"}))
        told_again = await self.of(self.messages.update(message.id, thread_id=thread.id, metadata={"g": "h"}))
        read = await self.of(self.messages.retrieve(message.id, thread_id=thread.id))
        cleared = await self.of(self.threads.update(thread.id, metadata=None))
        gone = await self.of(self.messages.delete(message.id, thread_id=thread.id))
        left = await self.of(self.messages.list(thread.id))
        ended = await self.of(self.threads.delete(thread.id))
        return {
            "thread": thread.model_dump(mode="json", exclude={"created_at"}),
            "metadata": [changed.metadata, told_again.metadata, cleared.metadata],
            "message": message.model_dump(mode="json", exclude={"created_at", "completed_at"}),
            "same": [read == told_again, read.content == message.content],
            "gone": [gone.object, gone.deleted, ended.object, ended.deleted],
            "left": [left.data, left.has_more],
            "then": await self.refused(lambda: self.threads.retrieve(thread.id)),
            "no id": await self.refused(lambda: self.threads.retrieve("thread one")),
        }

    async def poll(self) -> Any:
        asked = await self.both("echo hello")
        run = await self.of(self.runs.create_and_poll(**asked, additional_instructions="Be brief."))
        raw = await self.of(self.runs.with_raw_response.retrieve(run.id, thread_id=run.thread_id))
        at_once = await self.of(
            self.threads.create_and_run_poll(
                assistant_id=asked["assistant_id"],
                thread={"messages": [{"role": "user", "content": "echo again"}]},
                poll_interval_ms=10,
            )
        )
        return {
            "run": run.model_dump(
                mode="json", exclude={"created_at", "started_at", "completed_at", "expires_at"}, exclude_none=True
            ),
            "outcome": await self.outcome(run),
            "again": await self.outcome(at_once),
            "headers": [100 <= int(raw.headers["openai-poll-after-ms"]) <= 1000, raw.headers["x-request-id"][:4]],
            "of the run": [text_of(m) async for m in self.each(self.messages.list(run.thread_id, run_id=run.id))],
        }

    async def stream(self) -> Any:
        seen: list[Any] = []
        asked = await self.both("stream one two three")
        async with self.within(self.runs.stream(**asked, event_handler=self.recorder(seen))) as stream:
            await self.of(stream.until_done())
            run = await self.of(stream.get_final_run())
            messages = await self.of(stream.get_final_messages())
            steps = await self.of(stream.get_final_run_steps())
        async with self.within(self.runs.stream(**await self.both("stream four five"))) as stream:
            texts = [text async for text in self.each(stream.text_deltas)]
        return {
            "order": seen,
            "final": [run.id, run.status, [text_of(message) for message in messages], [step.id for step in steps]],
            "texts": texts,
            "outcome": await self.outcome(run),
        }

    async def stream_of_events(self) -> Any:
        """The same without a helper, and with the thread made by the same request."""
        asked = {"assistant_id": await self.assistant(), "thread": {"messages": [{"role": "user", "content": "look"}]}}
        events = await self.of(self.threads.create_and_run(**asked, stream=True))
        seen = [[event.event, event.data.id] async for event in self.each(events)]
        seen_by_helper: list[Any] = []
        manager = self.threads.create_and_run_stream(**asked, event_handler=self.recorder(seen_by_helper))
        async with self.within(manager) as stream:
            await self.of(stream.until_done())
        return {"events": seen, "order": seen_by_helper}

    async def tools(self) -> Any:
        run = await self.of(self.runs.create_and_poll(**await self.both("tools"), tools=[TOOL], poll_interval_ms=10))
        calls = run.required_action.submit_tool_outputs.tool_calls
        [one, other] = outputs = [{"tool_call_id": call.id, "output": f"{n} degrees"} for n, call in enumerate(calls)]
        of_run = {"run_id": run.id, "thread_id": run.thread_id}

        def refused(*wrong: Any) -> Any:
            return self.refused(lambda: self.runs.submit_tool_outputs(**of_run, tool_outputs=wrong))

        seen = {
            "status": run.status,
            "action": run.required_action.model_dump(mode="json"),
            "one is missing": await refused(one),
            "one is there twice": await refused(one, other, one),
            "one is unknown": await refused(one, {"tool_call_id": "call_no", "output": ""}),
            "message": await self.refused(lambda: self.messages.create(run.thread_id, role="user", content="wait")),
            "run": await self.refused(lambda: self.runs.create(run.thread_id, assistant_id=run.assistant_id)),
        }
        submit = self.runs.submit_tool_outputs_and_poll
        done = await self.of(submit(**of_run, tool_outputs=outputs, poll_interval_ms=10))
        return seen | {"outcome": await self.outcome(done), "too late": await refused(one, other)}

    async def tools_in_a_stream(self) -> Any:
        before: list[Any] = []
        after: list[Any] = []
        asked = await self.both("tools")
        async with self.within(self.runs.stream(**asked, event_handler=self.recorder(before))) as stream:
            await self.of(stream.until_done())
            run = await self.of(stream.get_final_run())
        calls = run.required_action.submit_tool_outputs.tool_calls
        manager = self.runs.submit_tool_outputs_stream(
            run_id=run.id,
            thread_id=run.thread_id,
            tool_outputs=[{"tool_call_id": call.id, "output": f"{n} degrees"} for n, call in enumerate(calls)],
            event_handler=self.recorder(after),
        )
        async with self.within(manager) as stream:
            await self.of(stream.until_done())
        return {"before": before, "after": after, "outcome": await self.outcome(run)}

    async def stopped(self, asks: str, stop: Callable[[Any], Any]) -> dict[str, Any]:
        """Stop a run whose stream has come to its first word, and read on."""
        seen: list[Any] = []
        said = run = None
        async with self.within(self.runs.stream(**await self.both(asks), event_handler=self.recorder(seen))) as stream:
            async for event in self.each(stream):
                run = stream.current_run
                if event.event == "thread.message.delta":
                    said = await self.of(stop(run))
        return {"order": seen, "said": getattr(said, "status", said), "outcome": await self.outcome(run)}

    async def cancel_in_a_stream(self) -> Any:
        return await self.stopped("stand one", lambda run: self.runs.cancel(run.id, thread_id=run.thread_id))

    async def cancel_while_waiting_for_tools(self) -> Any:
        asked = await self.both("tools")
        run = await self.of(self.runs.create_and_poll(**asked, poll_interval_ms=10))
        of_run = {"run_id": run.id, "thread_id": run.thread_id}
        cancelled = await self.of(self.runs.cancel(**of_run))
        output = {"tool_call_id": run.required_action.submit_tool_outputs.tool_calls[0].id, "output": ""}
        return {
            "status": cancelled.status,
            "outcome": await self.outcome(run),
            "again": await self.refused(lambda: self.runs.cancel(**of_run)),
            "outputs": await self.refused(lambda: self.runs.submit_tool_outputs(**of_run, tool_outputs=[output])),
            "next": (await self.of(self.runs.create_and_poll(**asked, poll_interval_ms=10))).status,
        }

    async def expiry(self) -> Any:
        waiting = await self.of(self.runs.create_and_poll(**await self.both("tools"), poll_interval_ms=10))
        seen = await self.stopped("stand one", lambda _: self.client.post("/later", cast_to=object))
        run = await self.of(self.runs.poll(waiting.id, thread_id=waiting.thread_id))
        return seen | {"while it waits": [waiting.status, run.status, await self.outcome(waiting)]}

    async def failure(self) -> Any:
        seen: dict[str, Any] = {}
        for asks in ("fail half", "raise secrets", "incomplete half"):
            asked = await self.both(asks)
            order: list[Any] = []
            async with self.within(self.runs.stream(**asked, event_handler=self.recorder(order))) as stream:
                await self.of(stream.until_done())
                run = await self.of(stream.get_final_run())
            seen[asks] = {"order": order, "outcome": await self.outcome(run)}
        asked = await self.both("echo much")
        limited = await self.of(self.runs.create_and_poll(**asked, max_completion_tokens=1, poll_interval_ms=10))
        return seen | {"limit": {"tokens": limited.usage.completion_tokens, "outcome": await self.outcome(limited)}}

    async def pages(self) -> Any:
        thread = await self.of(self.threads.create())
        made = []
        for number in range(11):
            message = await self.of(self.messages.create(thread.id, role="user", content=str(number)))
            made.append(message.id)

        async def texts(**options: Any) -> str:
            return " ".join([text_of(m) async for m in self.each(self.messages.list(thread.id, **options))])

        async def page(**options: Any) -> list[Any]:
            found = await self.of(self.messages.list(thread.id, **options))
            return [" ".join(map(text_of, found.data)), found.has_more]

        first = await self.of(self.messages.list(thread.id, limit=4))
        return {
            "up": await texts(order="asc", limit=4),
            "down": await texts(order="desc", limit=4),
            "sizes": [len(page.data) async for page in self.each(first.iter_pages())],
            "from the fifth": await texts(order="asc", limit=4, after=made[4]),
            "before the fifth": await page(order="asc", limit=3, before=made[4]),
            "before the fifth, down": await page(order="desc", limit=3, before=made[4]),
            "between": await page(order="asc", after=made[2], before=made[5]),
            "too many": await self.refused(lambda: self.messages.list(thread.id, limit=101)),
            "no such cursor": await self.refused(lambda: self.messages.list(thread.id, after="msg_none")),
        }

    async def race(self) -> Any:
        asked = await self.both("tools")  # which stay active until the last of the eight has come
        answers = await self.at_once([lambda: self.runs.create(**asked)] * 8)
        winners = [answer for answer in answers if not isinstance(answer, Exception)]
        losers = [told(answer) for answer in answers if isinstance(answer, Exception)]
        runs = [run.id async for run in self.each(self.runs.list(asked["thread_id"]))]
        return {"winners": [run.id for run in winners], "runs": runs, "losers": losers}

    async def read_again(self) -> Any:
        """The events of a run that has ended, from its beginning and from the middle."""
        run = await self.of(self.runs.create_and_poll(**await self.both("stream one two"), poll_interval_ms=10))
        frames = [frame async for frame in self.frames(self.events(run))]
        numbers = [number for _, _, number in frames if number is not None]
        middle = numbers[len(numbers) // 2]
        rest = [frame async for frame in self.frames(self.events(run, after=middle))]
        by_header = [frame async for frame in self.frames(self.events(run, last=middle))]
        typed = self.events(run, cast_to=AssistantStreamEvent)
        return {
            "frames": [name for name, _, _ in frames],
            "numbers": numbers == sorted(set(numbers)),
            "rest": rest == by_header == frames[1 + [number for _, _, number in frames].index(middle) :],
            "typed": [event.event async for event in self.each(await self.of(typed))],
        }

    async def meet_a_killed_server(self) -> str:
        """Read a stream whose server is killed in the middle of it, and take it up at the next one. Return its URL."""
        asked = await self.both("survive one two three")
        frames: list[Frame] = []
        url = ""
        is_broken = False
        try:
            async for frame in self.frames(self.runs.create(**asked, stream=True)):
                frames.append(frame)
                if frame[0] == "thread.message.delta" and "two" in frame[1]:
                    say("standing", None)
                    url = sys.stdin.readline().strip()
        except Exception:  # noqa: BLE001 - each version raises another one
            is_broken = True
        [*_, last] = [number for _, _, number in frames if number is not None]
        run_id, before = json.loads(frames[0][1])["id"], len(frames)
        beyond = Flows(self.flavour, url)
        run = await beyond.of(beyond.runs.retrieve(run_id, thread_id=asked["thread_id"]))
        frames += [frame async for frame in beyond.frames(beyond.events(run, last=last))]
        again = [frame async for frame in beyond.frames(beyond.events(run))]
        seen = {
            "broken": is_broken,
            "before": [[name, *words_of(name, data)] for name, data, _ in frames[:before]],
            "after": [[name, *words_of(name, data)] for name, data, _ in frames[before:]],
            "each once": frames == again,
            "outcome": await beyond.outcome(run),
        }
        say("killed", seen)
        return url


FLOWS = [
    Flows.assistants,
    Flows.objects,
    Flows.poll,
    Flows.stream,
    Flows.stream_of_events,
    Flows.tools,
    Flows.tools_in_a_stream,
    Flows.cancel_in_a_stream,
    Flows.cancel_while_waiting_for_tools,
    Flows.expiry,
    Flows.failure,
    Flows.pages,
    Flows.race,
    Flows.read_again,
]


async def main(flavour: str, url: str, fate: str = "") -> None:
    say("version", openai.__version__)
    if fate == "doomed":
        url = await Flows(flavour, url).meet_a_killed_server()
    flows = Flows(flavour, url)
    for flow in FLOWS:
        say(flow.__name__, await flow(flows))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
