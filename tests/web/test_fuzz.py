"""Any body whatever: it is refused with a 400 that names a place, or kept and answered in the words of the API."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web.fixtures import Wire, serving
from threadloom import Assistant, FunctionCall, MemoryStore, RequiredAction, Run, RunStatus, Thread, ToolCall
from threadloom.web._errors import WireError
from threadloom.web._reading import read
from threadloom.web._requests import (
    AssistantChanges,
    AssistantRequest,
    MessageRequest,
    MetadataRequest,
    RunRequest,
    SubmitRequest,
    ThreadAndRunRequest,
    ThreadRequest,
)

SHAPES = [
    AssistantChanges,
    AssistantRequest,
    MessageRequest,
    MetadataRequest,
    RunRequest,
    SubmitRequest,
    ThreadAndRunRequest,
    ThreadRequest,
]

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.sampled_from(
    [
        *("user", "assistant", "text", "image_url", "function", "file_search", "code_interpreter", "auto", "none"),
        *("required", "json_schema", "json_object", "last_messages", "low", "reject", "https://example.org/x"),
        *("http://[", "", "asst_1"),
    ]
)
# The keys that some shape knows, so that what lies below them is reached.
KEYS = st.sampled_from(
    sorted(
        {
            *("additional_instructions", "additional_messages", "assistant_id", "attachments", "chunking_strategy"),
            *("code_interpreter", "content", "description", "detail", "file_id", "file_ids", "file_search", "function"),
            *("image_file", "image_url", "instructions", "json_schema", "last_messages", "max_completion_tokens"),
            *("max_num_results", "max_prompt_tokens", "messages", "metadata", "model", "name", "on_busy", "output"),
            *("parallel_tool_calls", "parameters", "ranker", "ranking_options", "reasoning_effort", "response_format"),
            *("role", "schema", "score_threshold", "stream", "strict", "temperature", "text", "thread", "tool_call_id"),
            *("tool_choice", "tool_outputs", "tool_resources", "tools", "top_p", "truncation_strategy", "type", "url"),
            *("vector_store_ids", "vector_stores"),
        }
    )
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | TEXTS, inner, max_size=5), max_leaves=20
)
BODIES = st.dictionaries(KEYS | TEXTS, VALUES, max_size=6)

MESSAGE = {"role": "user", "content": [{"type": "text", "text": "x"}], "on_busy": "enqueue"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"a": [None]}}}
RUN = {"assistant_id": "a", "model": "m", "tools": [FUNCTION], "temperature": 1, "on_busy": "interrupt"}
# Operations, each with a body that is good, of which something is replaced.
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/assistants", {"model": "m", "tools": [FUNCTION], "response_format": {"type": "text"}, "metadata": {"a": "b"}}),
    ("/assistants/b", {"model": "m", "tools": [FUNCTION], "tool_resources": {"file_search": {}}, "name": "x"}),
    ("/threads", {"messages": [MESSAGE, MESSAGE], "metadata": {}, "tool_resources": {"code_interpreter": {}}}),
    ("/threads/t", {"metadata": {"a": "b"}, "tool_resources": None}),
    ("/threads/t/messages", MESSAGE | {"attachments": [{"file_id": "f", "tools": [{"type": "file_search"}]}]}),
    ("/threads/t/runs", RUN | {"additional_messages": [MESSAGE], "tool_choice": "auto", "max_prompt_tokens": 5}),
    ("/threads/runs", RUN | {"thread": {"messages": [MESSAGE]}, "truncation_strategy": {"type": "auto"}}),
    ("/threads/w/runs/r/submit_tool_outputs", {"tool_outputs": [{"tool_call_id": "c", "output": "x"}]}),
]


def places(value: Any) -> list[tuple[Any, ...]]:
    """Return the way to everything within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, item in items for way in [(key,), *((key, *rest) for rest in places(item))]]


def replaced(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """Return the value with something else at the end of the way."""
    if not way:
        return new
    copy = value.copy()
    copy[way[0]] = replaced(value[way[0]], way[1:], new)
    return copy


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return a path, and a body that is nearly good."""
    path, body = draw(st.sampled_from(ASKED))
    for _ in range(draw(st.integers(0, 2))):
        body = replaced(body, draw(st.sampled_from(places(body) or [("metadata",)])), draw(VALUES))
    return path, body | draw(st.dictionaries(KEYS, VALUES, max_size=2))


def refused(error: WireError) -> None:
    assert error.status == 400
    assert error.message.endswith(".")
    assert "\n" not in error.message
    assert "Error" not in error.message.split("'")[0]


class TestAnyBody:
    @pytest.mark.parametrize("shape", SHAPES)
    @given(data=st.binary(max_size=200) | BODIES.map(orjson.dumps) | VALUES.map(orjson.dumps))
    def test_a_body_is_read_or_refused_with_a_400(self, shape, data):
        try:
            made, body = read(data, shape)
        except WireError as error:
            refused(error)
        else:
            assert isinstance(made, shape)
            assert isinstance(body, dict)


class TestAnyRequest:
    def test_what_is_accepted_is_answered_in_the_words_of_the_api(self):
        with asyncio.Runner() as runner:
            stack = AsyncExitStack()
            wire = runner.run(self.begin(stack))

            @given(asked())
            def check(request: tuple[str, dict[str, Any]]) -> None:
                path, body = request
                if body.get("stream") is True:
                    del body["stream"]
                runner.run(self.ask(wire, path, body))

            check()
            runner.run(stack.aclose())

    async def begin(self, stack: AsyncExitStack) -> Wire:
        store = await stack.enter_async_context(MemoryStore())
        for id_ in ("a", "b"):
            await store.create_assistant(Assistant.new(id=id_, model="m"))
        for id_ in ("t", "w"):
            await store.create_thread(Thread.new(id=id_))
        return await stack.enter_async_context(serving(store))

    async def ask(self, wire: Wire, path: str, body: dict[str, Any]) -> None:
        """Send a request: its answer, if it is good, is held against the description by ``wire``."""
        if path.startswith("/threads/w"):
            await self.let_wait(wire)
        answer = await wire.ask("POST", path, orjson.dumps(body))
        if answer.status != 200:
            assert answer.status in {400, 404}, answer.body
            assert answer.error["type"] == "invalid_request_error"
            return
        # What was kept can be read again, alone and in a list.
        made = answer.json
        if "runs" in path:
            thread = f"/threads/{made['thread_id']}"
            kept = await wire.good("GET", f"{thread}/runs/{made['id']}")
            assert made in (await wire.good("GET", f"{thread}/runs"))["data"]
            await wire.good("GET", f"{thread}/messages")
        elif "messages" in path:
            kept = await wire.good("GET", f"{path}/{made['id']}")
        else:
            kept = await wire.good("GET", f"/{path.split('/')[1]}/{made['id']}")
        assert kept == made

    async def let_wait(self, wire: Wire) -> None:
        """Let a new run wait for the output of one call."""
        await wire.store.delete_thread("w", force=True)
        await wire.store.create_thread(Thread.new(id="w"))
        action = RequiredAction((ToolCall(id="c", function=FunctionCall(name="f", arguments="")),))
        run = Run.new("w", model="m", status=RunStatus.REQUIRES_ACTION)
        await wire.store.create_run("w", attrs.evolve(run, id="r", required_action=action))
