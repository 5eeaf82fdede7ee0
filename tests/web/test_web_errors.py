"""Every error as the wire tells it: status, body, headers, and nothing of the inside."""

import inspect
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from tests.web.fixtures import MemoryWireTests, Wire, path_of, serving
from threadloom import Thread, ThreadStore, errors
from threadloom.stores.memory import MemoryStore
from threadloom.web._errors import as_wire_error

CLOSED = "The server is temporarily unavailable. Try again."
FAULT = "The server had an error while processing your request. Its log has details under the x-request-id."
USED = "This Idempotency-Key was already used for a different request. Use a new key."
OURS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.ThreadloomError)]

# An error of each kind, and the status, code, type and message that are told of it.
TOLD: list[tuple[errors.ThreadloomError, int, str, str]] = [
    (errors.InvalidInputError("That is wrong."), 400, "invalid_request_error", "That is wrong."),
    (errors.InvalidIdError("../x"), 400, "invalid_request_error", str(errors.InvalidIdError("../x"))),
    (errors.InvalidMetadataError("Too much."), 400, "invalid_request_error", "Too much."),
    (
        errors.InvalidCursorError("c", "runs of the thread"),
        400,
        "invalid_request_error",
        "'c' is not a valid cursor: it is not among the runs of the thread.",
    ),
    (errors.AssistantNotFoundError("a"), 404, "invalid_request_error", "No assistant found with id 'a'."),
    (errors.ThreadNotFoundError("t"), 404, "invalid_request_error", "No thread found with id 't'."),
    (errors.MessageNotFoundError("t", "m"), 404, "invalid_request_error", "No message found with id 'm'."),
    (errors.RunNotFoundError("t", "r"), 404, "invalid_request_error", "No run found with id 'r'."),
    (errors.RunStepNotFoundError("r", "s"), 404, "invalid_request_error", "No run step found with id 's'."),
    (errors.AssistantAlreadyExistsError("a"), 409, "invalid_request_error", "Assistant 'a' already exists."),
    (errors.ThreadAlreadyExistsError("t"), 409, "invalid_request_error", "Thread 't' already exists."),
    (
        errors.RunAlreadyExistsError("t", "r"),
        409,
        "invalid_request_error",
        "Run 'r' already exists in thread 't'.",
    ),
    (
        errors.RunStepAlreadyExistsError("r", "s"),
        409,
        "invalid_request_error",
        "Step 's' already exists in run 'r'.",
    ),
    (errors.ActiveRunError("t", "r"), 400, "invalid_request_error", "Thread t already has an active run r."),
    (
        errors.RunInTerminalStateError("r", "failed"),
        400,
        "invalid_request_error",
        "Run r is already failed.",
    ),
    (
        errors.InvalidTransitionError("r", "cancelling", "failed", "cancelled"),
        400,
        "invalid_request_error",
        "Run 'r' is cancelling and cannot become failed; it can only become cancelled.",
    ),
    (
        errors.ToolOutputsRefusedError("r", "expired"),
        400,
        "invalid_request_error",
        'Runs in status "expired" do not accept tool outputs.',
    ),
    (errors.IdempotencyKeyReusedError("k"), 409, "idempotency_error", USED),
    (errors.LeaseLostError("r", "w"), 409, "invalid_request_error", "Worker 'w' no longer holds the lease on run 'r'."),
    (errors.SerializationError("/secret", "it is torn"), 500, "server_error", FAULT),
    (errors.StoreIOError("write", OSError(5, "I/O error", "/secret")), 500, "server_error", FAULT),
    (errors.StoreBusyError("/secret is held."), 503, "server_error", CLOSED),
    (errors.StoreClosedError(), 503, "server_error", CLOSED),
]


def test_the_table_has_every_error_that_is_raised():
    roots = {errors.ThreadloomError, errors.NotFoundError, errors.ConflictError, errors.StoreError}
    assert {type(error) for error, *_ in TOLD} == set(OURS) - roots


@pytest.mark.parametrize(("error", "status", "kind", "message"), TOLD, ids=lambda value: type(value).__name__)
def test_an_error_has_its_status_and_words(error, status, kind, message):
    told = as_wire_error(error, make_mocked_request("POST", "/threads"))
    assert (told.status, told.type, told.message, told.code) == (status, kind, message, None)
    assert told.param == ("metadata" if isinstance(error, errors.InvalidMetadataError) else None)


@pytest.mark.parametrize("error", [error for error, status, *_ in TOLD if status in {409, 500}], ids=str)
def test_official_clients_are_told_not_to_send_again_what_may_have_been_done(error):
    for method in ("POST", "DELETE"):
        told = as_wire_error(error, make_mocked_request(method, "/threads"))
        assert told.headers == {"x-should-retry": "false"}


@pytest.mark.parametrize("error", [error for error, status, *_ in TOLD if status == 500], ids=str)
def test_a_read_that_failed_may_be_tried_again(error):
    assert as_wire_error(error, make_mocked_request("GET", "/threads")).headers == {}


@pytest.mark.parametrize("error", [error for error, status, *_ in TOLD if status == 503], ids=str)
def test_where_nothing_was_done_the_client_may_try_again(error):
    assert as_wire_error(error, make_mocked_request("POST", "/threads")).headers == {"retry-after": "1"}


class TestErrors(MemoryWireTests):
    @pytest.fixture
    async def broken(self, wire: Wire, monkeypatch) -> tuple[Wire, str]:
        """Return a server with a thread whose record is damaged."""
        thread = await wire.thread()

        async def damaged(thread_id: str, **changes: Any) -> Thread:
            raise errors.SerializationError(thread_id, "secret")

        monkeypatch.setattr(wire.store, "get_thread", damaged)
        monkeypatch.setattr(wire.store, "update_thread", damaged)
        return wire, f"/threads/{thread}"

    async def test_a_fault_of_the_server_tells_nothing_of_the_inside(self, broken: tuple[Wire, str], caplog):
        wire, path = broken
        caplog.set_level(logging.INFO, "threadloom")
        for method, retry in (("GET", None), ("POST", "false")):
            caplog.clear()
            answer = await wire.ask(method, path, {"metadata": {}} if method == "POST" else None)
            assert answer.status == 500
            assert answer.error == {"message": FAULT, "type": "server_error", "param": None, "code": None}
            assert answer.headers.get("x-should-retry") == retry
            failed, answered = caplog.records
            id_ = answer.headers["x-request-id"]
            assert failed.message == f"Request {id_} failed"
            assert answered.message == f"Request {id_} was answered with status 500"
            assert failed.exc_info is not None
            assert failed.exc_info[0] is errors.SerializationError
            told: list[Any] = [(record.request_id, record.method, record.path) for record in (failed, answered)]
            assert told == [(answer.headers["x-request-id"], method, f"/v1{path}")] * 2
            assert answered.status == 500

    async def test_a_closed_store_is_a_503_that_may_be_tried_again(self, wire: Wire):
        await wire.store.close()
        answer = await wire.ask("POST", "/threads", {})
        assert (answer.status, answer.error["type"], answer.error["message"]) == (503, "server_error", CLOSED)
        assert answer.headers["retry-after"] == "1"

    async def test_a_bug_is_a_500_too(self, store: ThreadStore):
        def authenticate(request: web.Request) -> str:
            raise RuntimeError("secret")

        async with serving(store, authenticate=authenticate) as wire:
            answer = await wire.ask("POST", "/threads", {})
            assert (answer.status, answer.error["message"]) == (500, FAULT)
            assert b"secret" not in answer.body

    @pytest.mark.parametrize("path", ["/", "", "/nothing", "/threads/", "/threads//messages", "/threads/a/b", "/files"])
    async def test_an_unknown_url_is_named(self, wire: Wire, path):
        for method in ("GET", "POST", "DELETE", "PATCH"):
            status, error = await wire.error(method, path)
            assert (status, error["code"], error["type"]) == (404, "unknown_url", "invalid_request_error")
            assert error["message"] == f"Unknown request URL: {method} /v1{path}."

    async def test_a_method_that_is_not_there_is_told_with_those_that_are(self, wire: Wire):
        answer = await wire.ask("PUT", "/threads/thread_1")
        assert (answer.status, answer.error["code"]) == (405, "method_not_supported")
        assert answer.headers["Allow"] == "DELETE, GET, HEAD, POST"
        assert answer.error["message"] == "PUT is not allowed for /v1/threads/thread_1; use DELETE, GET, HEAD, POST."

    async def test_head_is_get_without_the_body(self, wire: Wire):
        thread = await wire.thread()
        got, head = [await wire.ask(method, f"/threads/{thread}") for method in ("GET", "HEAD")]
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(got.body))
        missing = await wire.ask("HEAD", "/threads/thread_none")
        assert (missing.status, missing.body) == (404, b"")

    async def test_every_answer_has_an_id_of_its_own_which_is_in_the_log(self, wire: Wire, caplog):
        caplog.set_level(logging.INFO, "threadloom")
        thread = await wire.thread()
        caplog.clear()
        asked = [("GET", f"/threads/{thread}"), ("GET", "/threads/t"), ("GET", "/nothing"), ("PUT", "/threads")]
        answers = [await wire.ask(method, path) for method, path in asked]
        assert [answer.status for answer in answers] == [200, 404, 404, 405]
        told = [(r.request_id, r.status) for r in caplog.records if "was answered with" in r.message]
        assert told == [(answer.headers["x-request-id"], answer.status) for answer in answers]
        assert len({id_ for id_, _ in told}) == 4

    async def test_bytes_that_are_no_text_are_told_in_other_words(self, wire: Wire):
        asked = [
            b"GET /v1/%FF%FE HTTP/1.1\r\n",
            b"GET /v1/%ED%A0%80 HTTP/1.1\r\n",
            b"GET /v1/threads/%FF HTTP/1.1\r\n",
            b"GET /v1/threads?order=%FF HTTP/1.1\r\n",
        ]
        typed = b"POST /v1/threads HTTP/1.1\r\nContent-Length: 2\r\nContent-Type: a/\xff\r\n"
        for request, body in [*((request, b"") for request in asked), (typed, b"{}")]:
            said = await wire.raw(request + b"Host: x\r\nConnection: close\r\n\r\n" + body)
            status = int(said.split()[1])
            assert status in {400, 404, 415}, said
            assert b"x-request-id: req_" in said
            assert b'{"error":{"message":"' in said

    async def test_what_a_client_sent_is_not_repeated_without_end(self, wire: Wire):
        long = "x" * 100_000
        status, error = await wire.error("POST", "/threads/runs", {"assistant_id": long})
        assert status == 404
        for body in ({"role": long, "content": "x"}, {"role": "user", "content": [{"type": long}]}):
            error = (await wire.error("POST", f"/threads/{await wire.thread()}/messages", body))[1]
            assert len(error["message"]) < 1_100
            assert error["message"].endswith("…")


class TestBesideOthers:
    @pytest.fixture
    async def wire(self) -> AsyncIterator[Wire]:
        @web.middleware
        async def of_somebody_else(request: web.Request, handler: Any) -> web.StreamResponse:
            if "X-Stop" in request.headers:
                return web.Response(status=403, text="stop")
            response: web.StreamResponse = await handler(request)
            return response

        async def hello(request: web.Request) -> web.Response:
            return web.Response(text="hello")

        app = web.Application(middlewares=[of_somebody_else])
        app.router.add_get("/v1/hello", hello)
        async with MemoryStore() as store, serving(store, app=app) as wire:
            yield wire

    async def test_an_answer_of_a_middleware_before_ours_has_an_id_too(self, wire: Wire):
        answer = await wire.ask("GET", "/threads", headers={"X-Stop": "1"})
        assert (answer.status, answer.body) == (403, b"stop")

    async def test_an_expectation_that_cannot_be_met_is_refused(self, wire: Wire):
        said = await wire.raw(b"POST /v1/threads HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nConnection: close\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 417 ")
        assert b"x-request-id: req_" in said


class TestRefusedBodies(MemoryWireTests):
    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"{", "The request body is not valid JSON: "),
            (b"{} {}", "The request body is not valid JSON: "),
            (b'{"metadata": {"a": "\\ud800"}}', "The request body is not valid JSON: "),
            (b'{"metadata": {"a": "\xff"}}', "The request body is not valid JSON: "),
            (b'{"temperature": NaN}', "The request body is not valid JSON: "),
            (b'{"temperature": 1e999}', "The request body is not valid JSON: "),
            (b'{"a":' * 2_000, "The request body is not valid JSON: "),
        ],
    )
    async def test_what_is_no_json_is_refused(self, wire: Wire, body, said):
        status, error = await wire.error("POST", "/threads", body)
        assert (status, error["code"], error["param"]) == (400, "invalid_json", None)
        assert error["message"].startswith(said)

    @pytest.mark.parametrize(
        ("body", "named"),
        [(b"[]", "an array"), (b"null", "null"), (b"1", "a number"), (b'"x"', "a string"), (b"true", "a boolean")],
    )
    async def test_a_body_is_an_object(self, wire: Wire, body, named):
        said = await wire.refused("POST", "/threads", body)
        assert said == f"The request body must be a JSON object, not {named}."

    @pytest.mark.parametrize(
        ("path", "body", "param", "said"),
        [
            ("/assistants", {}, "model", "it is required"),
            ("/assistants", {"model": None}, "model", "it is required"),
            ("/assistants", {"model": ""}, "model", "it must not be empty"),
            ("/assistants", {"model": 5}, "model", "expected a string, not a number"),
            ("/assistants", {"model": "m", "temperature": 2.5}, "temperature", "expected from 0 to 2, not 2.5"),
            ("/assistants", {"model": "m", "temperature": True}, "temperature", "expected a number, not a boolean"),
            ("/assistants", {"model": "m", "top_p": -1}, "top_p", "expected from 0 to 1, not -1"),
            ("/assistants", {"model": "m", "name": "x" * 257}, "name", "it has 257 characters, but the limit is 256"),
            ("/assistants", {"model": "m", "tools": {}}, "tools", "expected an array, not an object"),
            (
                "/assistants",
                {"model": "m", "tools": [{"type": "function"}]},
                "tools[0].function",
                "it is required",
            ),
            (
                "/assistants",
                {"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}, {"type": []}]},
                "tools[1]",
                "expected a 'type' of 'code_interpreter', 'file_search', 'function', not []",
            ),
            (
                "/assistants",
                {"model": "m", "response_format": "xml"},
                "response_format",
                "expected one of 'auto', or an object, not 'xml'",
            ),
            (
                "/assistants",
                {"model": "m", "reasoning_effort": "huge"},
                "reasoning_effort",
                "expected one of 'none', 'minimal', 'low', 'medium', 'high', 'xhigh', 'max', not 'huge'",
            ),
            (
                "/threads",
                {"tool_resources": {"code_interpreter": {"file_ids": ["file_x"] * 21}}},
                "tool_resources.code_interpreter.file_ids",
                "it has 21 items, but the limit is 20",
            ),
            (
                "/threads",
                {"tool_resources": {"file_search": {"vector_store_ids": ["vs_x", "vs_y"]}}},
                "tool_resources.file_search.vector_store_ids",
                "it has 2 items, but the limit is 1",
            ),
            ("/threads", {"messages": [{"content": "x"}]}, "messages[0].role", "it is required"),
            (
                "/threads",
                {"messages": [{"role": "system", "content": "x"}]},
                "messages[0].role",
                "expected one of 'user', 'assistant', not 'system'",
            ),
            (
                "/threads",
                {"metadata": {"a": 1}},
                "metadata",
                "Metadata value at 'a' must be a string, not int",
            ),
            (
                "/threads",
                {"metadata": {str(n): "" for n in range(17)}},
                "metadata",
                "Metadata has 17 pairs; the limit is 16",
            ),
            (
                "/threads",
                {"messages": [{"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]}]},
                "messages[0].content[0].text",
                "expected a string, not an object",
            ),
            (
                "/threads/runs",
                {"assistant_id": "a", "thread": {"messages": [{"role": "user", "content": []}]}},
                "thread.messages[0].content",
                "it must not be empty",
            ),
            (
                "/threads/runs",
                {"assistant_id": "a", "max_prompt_tokens": 0},
                "max_prompt_tokens",
                "expected 1 or more, not 0",
            ),
            (
                "/threads/runs",
                {"assistant_id": "a", "max_prompt_tokens": 1.5},
                "max_prompt_tokens",
                "expected an integer, not a number",
            ),
            ("/threads/runs", {"assistant_id": "a", "stream": "yes"}, "stream", "expected a boolean, not a string"),
            (
                "/threads/runs",
                {"assistant_id": "a", "truncation_strategy": {"type": "last_messages", "last_messages": 0}},
                "truncation_strategy.last_messages",
                "expected 1 or more, not 0",
            ),
            ("/threads/runs", {"assistant_id": ["a"]}, "assistant_id", "expected a string, not an array"),
        ],
    )
    async def test_a_wrong_field_is_named_with_what_would_be_right(self, wire: Wire, path, body, param, said):
        status, error = await wire.error("POST", path, body)
        assert (status, error["param"], error["message"]) == (400, param, f"Invalid '{param}': {said}.")
        assert (await wire.good("GET", "/threads"))["data"] == []
        assert (await wire.good("GET", "/assistants"))["data"] == []

    async def test_of_keys_that_come_twice_the_last_counts(self, wire: Wire):
        made = await wire.good("POST", "/threads", b'{"metadata": {"a": "1"}, "metadata": {"b": "2"}}')
        assert made["metadata"] == {"b": "2"}

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
    async def test_a_body_that_is_not_said_to_be_json_is_refused(self, wire: Wire, kind):
        status, error = await wire.error("POST", "/threads", b"{}", headers={"Content-Type": kind})
        assert (status, error["type"]) == (415, "invalid_request_error")
        assert "must be sent as application/json, not " in error["message"]

    async def test_deep_json_is_refused_before_it_can_do_harm(self, wire: Wire):
        def nested(levels: int) -> bytes:
            return b'{"a":' * levels + b"1" + b"}" * levels

        tool = b'{"model":"m","tools":[{"type":"function","function":{"name":"f","parameters":%s}}]}'
        assistant = await wire.good("POST", "/assistants", tool % nested(96))
        for levels in (97, 260, 500, 1_000):
            said = await wire.refused("POST", "/assistants", tool % nested(levels))
            assert said == "The request body has more than 100 levels of arrays and objects."
        assert (await wire.good("GET", "/assistants"))["data"] == [assistant]
        run = await wire.run(assistant=assistant["id"])
        assert (await wire.good("GET", f"/threads/{run['thread_id']}/runs"))["data"] == [run]
        assert (await wire.good("POST", path_of(run), {"metadata": {}}))["tools"] == assistant["tools"]

    async def test_a_list_of_nothing_but_errors_is_refused_at_the_first(self, wire: Wire):
        body = b'{"messages":[' + b",".join([b"1"] * 1_000_000) + b"]}"
        said = await wire.refused("POST", "/threads", body)
        assert said == "Invalid 'messages[0]': expected an object, not a number."
