"""The handler ``openai-chat``, called by a worker, against a server that speaks chat completions over loopback."""

import asyncio

import pytest

from tests.cli.chat_server import Refusal, call, chat_server, end, text, usage
from tests.support.worker_fixtures import PATIENCE
from threadloom import MemoryStore, Message, MessageStatus, Run, RunStatus, RunWorker, Thread, ToolOutput
from threadloom.cli._chat import chat
from threadloom.cli._errors import CannotStartError

KEY = "sk-very-secret"
WEATHER = {"type": "function", "function": {"name": "weather", "description": None, "parameters": {"type": "object"}}}


@pytest.fixture
async def server():
    async with chat_server() as server:
        yield server


class Desk:
    """A store with a worker that forwards to the server."""

    def __init__(self, store, server):
        self.store = store
        self.server = server

    async def ask(self, *answers, **options):
        """Return a new run as it is when the server has given the answers."""
        return await self.ended(await self.begin(*answers, **options))

    async def begin(self, *answers, said="hello", **options):
        self.server.answers = list(answers)
        thread = await self.store.create_thread(Thread.new())
        await self.store.append_message(thread.id, Message.user(thread.id, said))
        return await self.store.create_run(thread.id, Run.new(thread.id, **{"model": "m", **options}))

    async def ended(self, run):
        return await self.store.wait_for_run(run.thread_id, run.id, timeout=PATIENCE)

    async def submit(self, run, *answers, outputs=("sunny",)):
        self.server.answers = list(answers)
        calls = run.required_action.tool_calls
        given = [ToolOutput(call.id, output) for call, output in zip(calls, outputs, strict=True)]
        return await self.ended(await self.store.submit_tool_outputs(run.thread_id, run.id, given))

    async def answers(self, run):
        return list(await self.store.list_messages(run.thread_id, run_id=run.id))

    async def events(self, run):
        events = [event async for event in self.store.events(run.thread_id, run.id)]
        return [event.data.text for event in events if event.type == "thread.message.delta"]


@pytest.fixture
async def desk(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with MemoryStore() as store, chat() as handler, RunWorker(store, handler):
        yield Desk(store, server)


def called(run):
    return [(call.function.name, call.function.arguments) for call in run.required_action.tool_calls]


# Answers


async def test_an_answer_is_streamed_into_one_message(desk, server):
    run = await desk.ask([*text("Hel", "lo"), usage(7, 2)], instructions="Be kind.")

    assert run.status is RunStatus.COMPLETED
    assert [message.text for message in await desk.answers(run)] == ["Hello"]
    assert await desk.events(run) == ["Hel", "lo"]
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (7, 2)
    assert server.keys == [f"Bearer {KEY}"]


async def test_a_plain_run_asks_for_nothing_that_a_small_server_might_not_know(desk, server):
    await desk.ask(text("Hello"), instructions="Be kind.", tool_choice="auto", response_format="auto")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert server.asked == [{"model": "m", "messages": messages, **options}]


async def test_what_the_run_sets_is_passed_on(desk, server):
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}
    await desk.ask(
        text("Hello"),
        tools=[WEATHER, {"type": "file_search"}],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0.0,
        top_p=0.5,
        response_format=schema,
        reasoning_effort="low",
        max_completion_tokens=9,
    )
    asked = server.asked[0]
    assert asked["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", False)
    assert (asked["temperature"], asked["top_p"], asked["response_format"]) == (0.0, 0.5, schema)
    assert (asked["reasoning_effort"], asked["max_completion_tokens"]) == ("low", 9)


async def test_a_run_without_functions_passes_on_nothing_about_tools(desk, server):
    await desk.ask(text("Hi"), tools=[{"type": "file_search"}], tool_choice="required", parallel_tool_calls=False)
    assert server.asked[0].keys() == {"model", "messages", "stream", "stream_options"}


async def test_an_answer_without_a_word_leaves_no_message(desk):
    run = await desk.ask(text())
    assert run.status is RunStatus.COMPLETED
    assert await desk.answers(run) == []


async def test_a_server_that_cannot_count_tokens_is_asked_without_and_not_asked_again(desk, server):
    unknown = Refusal(400, "Unrecognized request argument supplied: stream_options")
    run = await desk.ask(unknown, text("Hello"))
    assert run.status is RunStatus.COMPLETED
    assert run.usage is None
    await desk.ask(text("Hello"))
    assert ["stream_options" in asked for asked in server.asked] == [True, False, False]


# Tools


async def test_calls_in_fragments_go_to_the_client_and_its_outputs_come_back_to_the_server(desk, server):
    run = await desk.ask(
        [
            *text("Let me ", "see.", finish=None),
            call(0, "call_a", "weather", ""),
            call(0, arguments='{"city":'),
            call(1, "call_b", "weather", '{"city": "Rome"}'),
            call(0, arguments=' "Paris"}'),
            end("tool_calls"),
            usage(10, 5),
        ],
        tools=[WEATHER],
        tool_choice="required",
    )
    assert run.status is RunStatus.REQUIRES_ACTION
    assert called(run) == [("weather", '{"city": "Paris"}'), ("weather", '{"city": "Rome"}')]

    run = await desk.submit(run, [*text("Fine."), usage(20, 3)], outputs=["sunny", "rain"])

    assert run.status is RunStatus.COMPLETED
    assert [message.text for message in await desk.answers(run)] == ["Let me see.", "Fine."]
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (30, 8)
    assert "tool_choice" not in server.asked[1], "the model has called, as it had to, and may now speak"
    assert server.asked[1]["messages"] == [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
                {"id": "call_b", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_b", "content": "rain"},
    ]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([call(0, "x", "f", "{}"), call(0, "y", "g", "{}")], id="every call under index 0"),
        pytest.param([call(None, "x", "f", "{}"), call(None, "y", "g", "{}")], id="no index"),
        pytest.param([call(0, None, "f", "{}"), call(0, None, "g", "{}")], id="no id and one index"),
        pytest.param([call(0, None, "f", "{}"), call(1, None, "g", "{}")], id="no id"),
        pytest.param([call(0, "x", "f"), call(1, "x", "g")], id="one id for both, and no arguments"),
        pytest.param([call(0, "x", "f", {}), call(1, "y", "g", {})], id="arguments that are no text"),
        pytest.param([call(0, "x", "f", "{"), call(0, "x", "f", "}"), call(1, "y", "g", "{}")], id="repeated names"),
    ],
)
async def test_servers_that_stream_calls_in_their_own_way_are_understood(desk, pieces):
    run = await desk.ask([*pieces, end()], tools=[WEATHER])
    assert run.status is RunStatus.REQUIRES_ACTION
    assert called(run) == [("f", "{}"), ("g", "{}")]
    assert len({call.id for call in run.required_action.tool_calls} - {""}) == 2


async def test_an_id_that_comes_again_in_a_later_turn_is_replaced(desk):
    run = await desk.ask([call(0, "call_0", "f", "{}"), end("tool_calls")], tools=[WEATHER])
    run = await desk.submit(run, [call(0, "call_0", "g", "{}"), end("tool_calls")])
    assert called(run) == [("g", "{}")]
    assert run.required_action.tool_calls[0].id != "call_0"


# Ends before the end


async def test_an_answer_that_is_too_long_is_kept_as_far_as_it_went(desk):
    run = await desk.ask([*text("Once upon", finish="length"), usage(7, 9)], max_completion_tokens=9)
    assert (run.status, run.incomplete_details.reason) == (RunStatus.INCOMPLETE, "max_completion_tokens")
    (message,) = await desk.answers(run)
    assert (message.text, message.status) == ("Once upon", MessageStatus.INCOMPLETE)
    assert run.usage.completion_tokens == 9


async def test_the_limit_on_tokens_is_of_the_whole_run(desk, server):
    first = [call(0, "a", "f", "{}"), end("tool_calls"), usage(1, 5)]
    run = await desk.ask(first, tools=[WEATHER], max_completion_tokens=9)
    await desk.submit(run, text("Hello"))
    assert [asked["max_completion_tokens"] for asked in server.asked] == [9, 4]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(text("Once", finish="content_filter"), id="content filter"),
        pytest.param(text("Once", finish=None), id="no end"),
        pytest.param([*text("Once", finish=None), ConnectionError()], id="broken connection"),
        pytest.param([*text("Once", finish=None), {"error": {"message": "CUDA is out of memory"}}], id="error within"),
    ],
)
async def test_an_answer_that_is_cut_off_fails_the_run_and_is_kept_as_incomplete(desk, answer):
    run = await desk.ask(answer)
    assert (run.status, run.last_error.code) == (RunStatus.FAILED, "server_error")
    (message,) = await desk.answers(run)
    assert (message.text, message.status) == ("Once", MessageStatus.INCOMPLETE)


async def test_a_run_that_is_cancelled_in_the_middle_keeps_what_it_was_told(desk):
    rest = asyncio.Event()
    run = await desk.begin([*text("Once ", finish=None), rest, *text("upon")])
    async for event in desk.store.events(run.thread_id, run.id):
        if event.type == "thread.message.delta":
            await desk.store.request_cancel(run.thread_id, run.id)
    rest.set()
    assert (await desk.ended(run)).status is RunStatus.CANCELLED
    (message,) = await desk.answers(run)
    assert (message.text, message.status) == ("Once ", MessageStatus.INCOMPLETE)


# Refusals


@pytest.mark.parametrize(
    ("answer", "code", "shown"),
    [
        (Refusal(429, "Slow down"), "rate_limit_exceeded", "The chat completions server answered 429."),
        (Refusal(500, "in /srv/app.py"), "server_error", "The chat completions server answered 500."),
        (Refusal(401, f"Bad key {KEY}"), "server_error", "The chat completions server answered 401."),
        (Refusal(404, "No model m"), "server_error", "answered 404: Error code: 404"),
        (Refusal(400, "Too long", {"code": "context_length_exceeded"}), "invalid_prompt", "Too long"),
        (Refusal(400, "This model's maximum context length is 9 tokens"), "invalid_prompt", "context length"),
        (Refusal(400, "No such role", {"param": "messages[0].role"}), "invalid_prompt", "No such role"),
        (Refusal(400, "temperature is not for this model", {"param": "temperature"}), "server_error", "temperature"),
    ],
)
async def test_a_refusal_fails_the_run_with_a_code_that_clients_know(desk, answer, code, shown):
    run = await desk.ask(answer)
    assert (run.status, run.last_error.code) == (RunStatus.FAILED, code)
    assert shown in run.last_error.message


async def test_no_secret_is_repeated(server, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", "//me:hush@"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with MemoryStore() as store, chat() as handler, RunWorker(store, handler):
        run = await Desk(store, server).ask(Refusal(400, f"{KEY} may not ask hush"))
    assert "may not ask" in run.last_error.message
    assert KEY not in run.last_error.message
    assert "hush" not in run.last_error.message
    assert [record.reason in run.last_error.message for record in caplog.records] == [True]


async def test_a_server_that_is_not_there_fails_the_run_and_its_address_is_not_shown(desk, monkeypatch, server):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hush@127.0.0.1:1/v1")
    async with MemoryStore() as store, chat() as handler, RunWorker(store, handler):
        run = await Desk(store, server).ask()
    assert run.last_error.message == "The chat completions server could not be reached."


async def test_a_server_that_needs_no_key_is_asked_without_one_of_ours(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with MemoryStore() as store, chat() as handler, RunWorker(store, handler):
        run = await Desk(store, server).ask(text("Hello"))
    assert run.status is RunStatus.COMPLETED


@pytest.mark.parametrize("url", [None, "localhost:11434/v1", "http://"])
def test_without_a_server_the_handler_is_refused(monkeypatch, url):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if url is None:
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    else:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(CannotStartError, match=r"OPENAI_BASE_URL.*http://localhost:11434/v1"):
        chat()
