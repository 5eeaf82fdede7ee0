"""Who may ask, and for what: keys, tenants, ids that are none, limits."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.web.fixtures import Answer, MemoryWireTests, Wire, path_of, serving
from threadloom import Assistant, InvalidInputError, MemoryStore, Run, RunStep, Thread, ThreadStore
from threadloom.testing._stage import picture
from threadloom.web import Limits, create_app

HELLO = {"role": "user", "content": "hello"}
NO_IDS = [
    "..%2F..%2Fx",
    "%2e%2e",
    "%2E",
    "%00",
    "a%00b",
    "%ff",
    "a%0Ab",
    "a%0A",
    "-a",
    "_a",
    ".a",
    "a.b",
    "%20a",
    "a%20",
    "a" * 129,
    "%C3%A9",
    "%D9%A3",
    "%F0%9F%98%80",
    "a%2Fb",
    "a;b",
    "a%25b",
    "~",
]
# Every operation that names something: method, path, and what it is asked with.
NAMED: list[tuple[str, str, Any]] = [
    ("GET", "/assistants/{assistant_id}", None),
    ("POST", "/assistants/{assistant_id}", {"name": "x"}),
    ("DELETE", "/assistants/{assistant_id}", None),
    ("GET", "/threads/{thread_id}", None),
    ("POST", "/threads/{thread_id}", {"metadata": {"x": "y"}}),
    ("GET", "/threads/{thread_id}/messages", None),
    ("POST", "/threads/{thread_id}/messages", {**HELLO, "on_busy": "enqueue"}),
    ("GET", "/threads/{thread_id}/messages/{message_id}", None),
    ("POST", "/threads/{thread_id}/messages/{message_id}", {"metadata": {"x": "y"}}),
    ("DELETE", "/threads/{thread_id}/messages/{message_id}", None),
    ("GET", "/threads/{thread_id}/runs", None),
    ("POST", "/threads/{thread_id}/runs", {"assistant_id": "own"}),
    ("GET", "/threads/{thread_id}/runs/{run_id}", None),
    ("POST", "/threads/{thread_id}/runs/{run_id}", {"metadata": {"x": "y"}}),
    ("POST", "/threads/{thread_id}/runs/{run_id}/cancel", b""),
    (
        "POST",
        "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
        {"tool_outputs": [{"tool_call_id": "c", "output": "x"}]},
    ),
    ("GET", "/threads/{thread_id}/runs/{run_id}/steps", None),
    ("GET", "/threads/{thread_id}/runs/{run_id}/steps/{step_id}", None),
    ("GET", "/threads/{thread_id}/runs/{run_id}/events", None),
    ("DELETE", "/threads/{thread_id}", None),
]
LISTS = ["/assistants", "/threads", "/threads/t/messages", "/threads/t/runs", "/threads/t/runs/r/steps"]


class TestKeys(MemoryWireTests):
    @pytest.fixture
    async def wire(self, store: ThreadStore) -> AsyncIterator[Wire]:
        async with serving(store, api_keys=["sk-one", "sk-two"]) as wire:
            yield wire

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": "Bearer sk-one"},
            {"Authorization": "Bearer sk-two"},
            {"Authorization": "bearer sk-one"},
            {"Authorization": "BEARER   sk-one"},
            {"api-key": "sk-one"},
            {"Api-Key": "sk-two"},
            {"Authorization": "Basic eDp5", "api-key": "sk-one"},
        ],
    )
    async def test_a_key_that_is_known_lets_in(self, wire: Wire, headers):
        await wire.good("POST", "/threads", {}, headers=headers)

    @pytest.mark.parametrize(
        ("headers", "said"),
        [
            ({}, "You didn't provide an API key."),
            ({"Authorization": "Bearer"}, "You didn't provide an API key."),
            ({"Authorization": "Bearer "}, "You didn't provide an API key."),
            ({"api-key": ""}, "You didn't provide an API key."),
            ({"Authorization": "sk-one"}, "You didn't provide an API key."),
            ({"Authorization": "Basic sk-one"}, "You didn't provide an API key."),
            ({"Authorization": "Bearer sk-three"}, "Incorrect API key provided."),
            ({"Authorization": "Bearer sk-on"}, "Incorrect API key provided."),
            ({"Authorization": "Bearer sk-one x"}, "Incorrect API key provided."),
            ({"Authorization": "Bearer sk-one, sk-two"}, "Incorrect API key provided."),
            ({"Authorization": "Bearer SK-ONE"}, "Incorrect API key provided."),
            ({"Authorization": "Bearer sk-onë"}, "Incorrect API key provided."),
            ({"Authorization": "Bearer wrong", "api-key": "sk-one"}, "Incorrect API key provided."),
        ],
    )
    async def test_no_key_or_another_one_is_refused_wherever_it_is_sent(self, wire: Wire, headers, said):
        for method, path in (("POST", "/threads"), ("GET", "/threads/%00"), ("GET", "/nothing"), ("PUT", "/threads")):
            answer = await wire.ask(method, path, b"{" if method == "POST" else None, headers=headers)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert (answer.error["message"], answer.error["code"]) == (said, "invalid_api_key")

    async def test_bytes_that_are_no_text_are_no_key(self, wire: Wire):
        asked = b"GET /v1/threads HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\r\n\r\n"
        assert (await wire.raw(asked)).startswith(b"HTTP/1.1 401 ")

    @pytest.mark.parametrize("keys", ["sk-one", [], [""], ["sk-one", ""], [" "]])
    def test_keys_that_would_let_in_anybody_are_refused(self, keys):
        with pytest.raises(InvalidInputError, match="api_keys"):
            create_app(MemoryStore(), api_keys=keys)

    def test_keys_and_a_function_do_not_go_together(self):
        with pytest.raises(InvalidInputError, match="not both"):
            create_app(MemoryStore(), api_keys=["k"], authenticate=lambda _: "t")

    async def test_a_key_may_come_from_a_file_with_its_newline(self, store: ThreadStore):
        async with serving(store, api_keys=["sk-one\n"]) as wire:
            await wire.good("POST", "/threads", {}, headers={"Authorization": "Bearer sk-one"})


class TestTenants(MemoryWireTests):
    @pytest.fixture(params=["sync", "async"])
    async def wire(self, store: ThreadStore, request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
        def tenant_of(request: web.Request) -> str | None:
            return request.headers.get("X-Tenant")

        async def later(request: web.Request) -> str | None:
            return tenant_of(request)

        authenticate = tenant_of if request.param == "sync" else later
        async with serving(store, authenticate=authenticate) as wire:
            yield wire

    async def things_of(self, wire: Wire, tenant: str) -> dict[str, str]:
        """Return the ids of one object of each kind, which are the tenant's."""
        mine = {"headers": {"X-Tenant": tenant}}
        assistant = (await wire.good("POST", "/assistants", {"model": "m"}, **mine))["id"]
        body = {"assistant_id": assistant, "thread": {"messages": [HELLO]}}
        run = await wire.good("POST", "/threads/runs", body, **mine)
        thread = run["thread_id"]
        (message,) = (await wire.good("GET", f"/threads/{thread}/messages", **mine))["data"]
        step = RunStep.message_creation(thread_id=thread, run_id=run["id"])
        await wire.store.append_step(thread, run["id"], step)
        return {
            "assistant_id": assistant,
            "thread_id": thread,
            "message_id": message["id"],
            "run_id": run["id"],
            "step_id": step.id,
        }

    async def test_who_is_nobody_is_refused(self, wire: Wire):
        assert (await wire.error("POST", "/threads", {}))[0] == 401
        assert (await wire.error("GET", "/nothing"))[0] == 401

    async def test_what_is_anothers_is_answered_as_what_is_not_there(self, wire: Wire):
        ids = await self.things_of(wire, "a")
        own = await self.things_of(wire, "b")
        none = {name: f"{id_.partition('_')[0]}_none" for name, id_ in ids.items()}
        before = await picture(wire.store)
        for method, path, body in NAMED:
            if isinstance(body, dict) and "assistant_id" in body:
                body = {"assistant_id": own["assistant_id"]}  # noqa: PLW2901

            async def told(those: dict[str, str], method=method, path=path, body=body) -> Answer:
                return await wire.ask(method, path.format(**those), body, headers={"X-Tenant": "b"})

            anothers, missing = await told(ids), await told(none)
            assert anothers.status == missing.status == 404, path
            for name, id_ in none.items():
                assert ids[name] not in missing.body.decode()
                missing = Answer(
                    missing.status, missing.headers, missing.body.replace(id_.encode(), ids[name].encode())
                )
            assert anothers.body == missing.body
        assert await picture(wire.store) == before

    async def test_what_is_in_anothers_thread_is_not_found_through_ones_own(self, wire: Wire):
        theirs, own = await self.things_of(wire, "a"), await self.things_of(wire, "b")
        for method, path, body in NAMED:
            if "{thread_id}" in path and path.count("{") > 1:
                mixed = theirs | {"thread_id": own["thread_id"]}
                status, _ = await wire.error(method, path.format(**mixed), body, headers={"X-Tenant": "b"})
                assert status == 404

    async def test_an_assistant_of_another_is_not_there_for_a_run(self, wire: Wire):
        theirs, own = await self.things_of(wire, "a"), await self.things_of(wire, "b")
        body = {"assistant_id": theirs["assistant_id"], "on_busy": "enqueue"}
        for path in (f"/threads/{own['thread_id']}/runs", "/threads/runs"):
            status, error = await wire.error("POST", path, body, headers={"X-Tenant": "b"})
            assert (status, error["message"]) == (404, f"No assistant found with id '{theirs['assistant_id']}'.")

    async def test_lists_hold_ones_own_also_with_anothers_ids_as_cursors(self, wire: Wire):
        made = [(tenant, await self.things_of(wire, tenant)) for tenant in ("a", "b", "a", "b")]
        for kind, path in (("thread_id", "/threads"), ("assistant_id", "/assistants")):
            own = [ids[kind] for tenant, ids in made if tenant == "b"]
            for query in ("order=asc", f"order=asc&after={made[0][1][kind]}", "order=asc&limit=2"):
                page = await wire.good("GET", path, query=query, headers={"X-Tenant": "b"})
                assert ([item["id"] for item in page["data"]], page["has_more"]) == (own, False)
        theirs, own_thread = made[0][1], made[1][1]["thread_id"]
        for kind in ("messages", "runs"):
            query = f"after={theirs['message_id' if kind == 'messages' else 'run_id']}"
            status, _ = await wire.error("GET", f"/threads/{own_thread}/{kind}", query=query, headers={"X-Tenant": "b"})
            assert status == 400
        page = await wire.good(
            "GET", f"/threads/{own_thread}/messages", query=f"run_id={theirs['run_id']}", headers={"X-Tenant": "b"}
        )
        assert page["data"] == []

    async def test_a_key_for_sending_again_is_ones_own(self, wire: Wire):
        made = [
            await wire.good("POST", path, body, headers={"X-Tenant": tenant, "Idempotency-Key": "k"})
            for path, body in (("/threads", {}), ("/assistants", {"model": "m"}))
            for tenant in ("a", "b", "a")
        ]
        assert [made[0]["id"], made[3]["id"]] == [made[2]["id"], made[5]["id"]]
        assert made[0]["id"] != made[1]["id"]
        assert made[3]["id"] != made[4]["id"]

    async def test_what_is_nobodys_is_not_there_for_a_tenant(self, wire: Wire):
        thread = await wire.store.create_thread(Thread.new())
        assistant = await wire.store.create_assistant(Assistant.new(model="m"))
        await wire.store.create_run(thread.id, Run.new(thread.id, model="m"))
        for path in (f"/threads/{thread.id}", f"/threads/{thread.id}/runs", f"/assistants/{assistant.id}"):
            assert (await wire.error("GET", path, headers={"X-Tenant": "a"}))[0] == 404
        for path in ("/threads", "/assistants"):
            assert (await wire.good("GET", path, headers={"X-Tenant": "a"}))["data"] == []

    @pytest.mark.parametrize("tenant", [False, True, 0, 7, b"a", ["a"]])
    async def test_a_function_that_returns_no_name_lets_nobody_in(self, store: ThreadStore, tenant):
        async with serving(store, authenticate=lambda _: tenant) as wire:
            assert (await wire.error("POST", "/threads", {}))[0] == 500
            assert list(await store.list_threads()) == []

    async def test_a_function_may_refuse_with_a_status_of_its_own(self, store: ThreadStore):
        def authenticate(request: web.Request) -> str:
            raise web.HTTPForbidden

        async with serving(store, authenticate=authenticate) as wire:
            status, error = await wire.error("POST", "/threads", {})
            assert (status, error["message"]) == (403, "Forbidden.")


class TestIds(MemoryWireTests):
    @pytest.mark.parametrize("id_", NO_IDS)
    async def test_what_is_no_id_is_refused_before_anything_is_looked_at(self, wire: Wire, id_):
        await wire.store.close()  # so that a look would be another error
        names = ("assistant_id", "thread_id", "message_id", "run_id", "step_id")
        for method, path, body in NAMED:
            for name in names:
                if f"{{{name}}}" in path:
                    url = path.format(**dict.fromkeys(names, "a") | {name: id_})
                    answer = await wire.ask(method, url, body)
                    assert (answer.status, answer.error["param"]) == (400, name), url
                    assert answer.error["message"].startswith(f"Invalid '{name}': ")

    @pytest.mark.parametrize("id_", [*NO_IDS, ""])
    async def test_what_is_no_id_is_no_cursor(self, wire: Wire, id_):
        await wire.store.close()
        for path in LISTS:
            for way in ("after", "before"):
                answer = await wire.ask("GET", path, query=f"{way}={id_.replace(';', '%3B')}")
                assert (answer.status, answer.error["param"]) == (400, way)
        answer = await wire.ask("GET", "/threads/t/messages", query=f"run_id={id_.replace(';', '%3B')}")
        assert (answer.status, answer.error["param"]) == (400, "run_id")

    @pytest.mark.parametrize("dots", ["/../threads", "/threads/../threads", "/./threads", "/threads/.."])
    async def test_dots_in_a_path_lead_nowhere_else(self, wire: Wire, dots):
        said = await wire.raw(b"GET /v1%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % dots.encode())
        assert said.split()[1] in {b"400", b"404"}

    @pytest.mark.parametrize("id_", ["a", "A-b_c", "0", "a" * 128, "asst_abc123", "thread-1"])
    async def test_an_id_may_have_any_prefix(self, wire: Wire, id_):
        await wire.store.create_assistant(Assistant.new(model="m", id=id_))
        await wire.store.create_thread(Thread.new(id=id_))
        run = await wire.run(id_, id_)
        assert run == await wire.good("GET", path_of(run))


class TestLimits(MemoryWireTests):
    @pytest.fixture
    async def wire(self, store: ThreadStore) -> AsyncIterator[Wire]:
        limits = Limits(body_bytes=2_000, messages_per_request=3, message_characters=10, tools=2)
        async with serving(store, limits=limits) as wire:
            yield wire

    async def test_a_body_is_not_larger_than_its_limit(self, wire: Wire):
        filled = b'{"metadata":{}}'.ljust(2_000)
        await wire.good("POST", "/threads", filled)
        status, error = await wire.error("POST", "/threads", filled + b" ")
        assert (status, error["message"]) == (413, "The request body is larger than 2000 bytes.")
        assert len((await wire.good("GET", "/threads"))["data"]) == 1

    async def test_a_body_that_does_not_say_its_length_is_counted(self, wire: Wire):
        head = b"POST /v1/threads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        chunk = b"%x\r\n%s\r\n" % (1_000, b" " * 1_000)
        good = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\n\r\n"
        assert (await wire.raw(good)).startswith(b"HTTP/1.1 200 ")
        reader, writer = await wire.connect()
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3)  # no end, and none is waited for
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()

    async def test_a_packed_body_is_counted_as_it_is_unpacked(self, wire: Wire):
        import zlib  # noqa: PLC0415 - for this one

        packed = zlib.compress(b" " * 1_000_000)
        assert len(packed) < 2_000
        status, _ = await wire.error("POST", "/threads", packed, headers={"Content-Encoding": "deflate"})
        assert status == 413

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/threads", {"messages": [HELLO] * 4}, "messages"),
            ("/threads/runs", {"assistant_id": "a", "thread": {"messages": [HELLO] * 4}}, "thread.messages"),
            ("/threads/t/runs", {"assistant_id": "a", "additional_messages": [HELLO] * 4}, "additional_messages"),
        ],
    )
    async def test_a_request_brings_a_few_messages(self, wire: Wire, path, body, param):
        await self.things(wire)
        status, error = await wire.error("POST", path, body)
        assert (status, error["param"]) == (400, param)
        assert error["message"] == f"Invalid '{param}': 4 messages, but the limit is 3."

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/threads/t/messages", {"role": "user", "content": "x" * 11}, "content"),
            (
                "/threads/t/messages",
                {"role": "user", "content": [{"type": "text", "text": "x" * 6}, {"type": "text", "text": "é" * 5}]},
                "content",
            ),
            ("/threads", {"messages": [HELLO, {"role": "user", "content": "x" * 11}]}, "messages[1].content"),
        ],
    )
    async def test_a_message_has_its_length(self, wire: Wire, path, body, param):
        await self.things(wire)
        status, error = await wire.error("POST", path, body)
        assert (status, error["param"]) == (400, param)
        assert error["message"] == f"Invalid '{param}': it has 11 characters, but the limit is 10."

    @pytest.mark.parametrize("path", ["/assistants", "/assistants/a", "/threads/t/runs", "/threads/runs"])
    async def test_there_are_as_few_tools_as_the_server_takes(self, wire: Wire, path):
        await self.things(wire)
        body = {"model": "m", "assistant_id": "a", "tools": [{"type": "code_interpreter"}] * 3}
        status, error = await wire.error("POST", path, body)
        assert (status, error["param"]) == (400, "tools")
        assert error["message"] == "Invalid 'tools': 3 tools, but the limit is 2."
        assert (await wire.good("GET", "/threads/t/runs"))["data"] == []

    async def things(self, wire: Wire) -> None:
        await wire.store.create_assistant(Assistant.new(model="m", id="a"))
        await wire.store.create_thread(Thread.new(id="t"))

    @pytest.mark.parametrize("limit", ["body_bytes", "messages_per_request", "message_characters", "tools", "streams"])
    def test_a_limit_is_at_least_one(self, limit):
        with pytest.raises(ValueError, match=limit):
            Limits(**{limit: 0})  # type: ignore[arg-type]
