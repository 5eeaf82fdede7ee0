"""Assistants, threads and messages over the wire: what is answered, what a request may leave out, what it changes."""

from typing import Any

import pytest

from tests.web.fixtures import Wire, WireTests

FUNCTION = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"default": None}}}},
}
TOOL_RESOURCES = {"code_interpreter": {"file_ids": ["file_1"]}, "file_search": {"vector_store_ids": ["vs_1"]}}
UNKNOWN = {"model": "m", "role": "user", "content": "x", "of_a_newer_sdk": {"deep": [1]}, "messages": []}


def without(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name not in {"id", "created_at", *names}}


class TestAssistants(WireTests):
    async def test_an_assistant_has_every_key_and_null_where_nothing_was_given(self, wire: Wire):
        made = await wire.good("POST", "/assistants", {"model": "gpt-4o"})
        assert made["id"].startswith("asst_")
        assert isinstance(made["created_at"], int)
        assert without(made) == {
            "object": "assistant",
            "name": None,
            "description": None,
            "model": "gpt-4o",
            "instructions": None,
            "tools": [],
            "tool_resources": None,
            "metadata": {},
            "temperature": None,
            "top_p": None,
            "response_format": "auto",
        }
        assert await wire.good("GET", f"/assistants/{made['id']}") == made

    async def test_an_assistant_keeps_all_that_it_is_given(self, wire: Wire):
        given = {
            "name": "Bob",
            "description": "d",
            "model": "m",
            "instructions": "Be brief.",
            "tools": [
                FUNCTION,
                {"type": "code_interpreter"},
                {"type": "file_search", "file_search": {"max_num_results": 3, "of_a_newer_sdk": 1}},
            ],
            "tool_resources": TOOL_RESOURCES,
            "metadata": {"a": "b"},
            "temperature": 0.5,
            "top_p": 1,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"a": None}}},
            "reasoning_effort": "low",
        }
        made = await wire.good("POST", "/assistants", given)
        assert without(made, "object") == given

    async def test_a_null_within_what_is_kept_counts_as_absent_but_not_in_a_schema(self, wire: Wire):
        tool = {"type": "function", "function": {**FUNCTION["function"], "description": None}}  # type: ignore[dict-item]
        made = await wire.good(
            "POST",
            "/assistants",
            {"model": "m", "tools": [tool], "tool_resources": {"code_interpreter": None, "file_search": None}},
        )
        assert made["tools"] == [FUNCTION]
        assert made["tool_resources"] == {}

    @pytest.mark.parametrize("body", [None, b"", b" \n", {}])
    async def test_an_update_without_anything_changes_nothing(self, wire: Wire, body):
        made = await wire.good("POST", "/assistants", {"model": "m", "name": "Bob", "metadata": {"a": "b"}})
        assert await wire.good("POST", f"/assistants/{made['id']}", body) == made

    async def test_an_update_changes_what_it_names_and_a_null_clears(self, wire: Wire):
        given = {
            "model": "m",
            "name": "Bob",
            "instructions": "i",
            "tools": [FUNCTION],
            "tool_resources": TOOL_RESOURCES,
            "metadata": {"a": "b"},
            "temperature": 1,
            "response_format": {"type": "text"},
            "reasoning_effort": "high",
        }
        made = await wire.good("POST", "/assistants", given)
        path = f"/assistants/{made['id']}"
        assert await wire.good("POST", path, {"name": "Eve", "metadata": {"c": "d"}}) == {
            **made,
            "name": "Eve",
            "metadata": {"c": "d"},
        }
        cleared = await wire.good("POST", path, dict.fromkeys(given))
        empty = await wire.good("POST", "/assistants", {"model": "m"})
        assert without(cleared) == without(empty)
        assert await wire.good("GET", path) == cleared

    async def test_a_deleted_assistant_is_gone(self, wire: Wire):
        assistant = await wire.assistant()
        assert await wire.good("DELETE", f"/assistants/{assistant}") == {
            "id": assistant,
            "object": "assistant.deleted",
            "deleted": True,
        }
        for method in ("GET", "POST", "DELETE"):
            status, error = await wire.error(method, f"/assistants/{assistant}", {} if method == "POST" else None)
            assert (status, error["message"]) == (404, f"No assistant found with id '{assistant}'.")


class TestThreads(WireTests):
    @pytest.mark.parametrize("body", [None, b"", {}, {"messages": None, "metadata": None, "tool_resources": None}])
    async def test_a_thread_needs_nothing(self, wire: Wire, body):
        made = await wire.good("POST", "/threads", body)
        assert made["id"].startswith("thread_")
        assert without(made) == {"object": "thread", "tool_resources": None, "metadata": {}}
        assert await wire.good("GET", f"/threads/{made['id']}") == made

    async def test_a_thread_keeps_its_first_messages_in_their_order(self, wire: Wire):
        messages = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": [{"type": "text", "text": "two"}], "metadata": {"n": "2"}},
        ]
        body = {"messages": messages, "metadata": {"a": "b"}, "tool_resources": TOOL_RESOURCES}
        made = await wire.good("POST", "/threads", body)
        assert (made["metadata"], made["tool_resources"]) == ({"a": "b"}, TOOL_RESOURCES)
        page = await wire.good("GET", f"/threads/{made['id']}/messages", query="order=asc")
        assert [(m["role"], m["content"][0]["text"]["value"], m["metadata"]) for m in page["data"]] == [
            ("user", "one", {}),
            ("assistant", "two", {"n": "2"}),
        ]

    async def test_an_update_keeps_what_is_absent_and_clears_what_is_null(self, wire: Wire):
        made = await wire.good("POST", "/threads", {"metadata": {"a": "b"}, "tool_resources": TOOL_RESOURCES})
        path = f"/threads/{made['id']}"
        assert await wire.good("POST", path, {}) == made
        assert await wire.good("POST", path, {"metadata": {}}) == {**made, "metadata": {}}
        assert await wire.good("POST", path, {"metadata": {"c": "d"}}) == {**made, "metadata": {"c": "d"}}
        cleared = await wire.good("POST", path, {"metadata": None, "tool_resources": None})
        assert cleared == {**made, "metadata": {}, "tool_resources": None}
        assert await wire.good("GET", path) == cleared

    async def test_a_deleted_thread_is_gone_with_all_that_was_in_it(self, wire: Wire):
        run = await wire.run()
        thread = run["thread_id"]
        deleted = {"id": thread, "object": "thread.deleted", "deleted": True}
        assert await wire.good("DELETE", f"/threads/{thread}") == deleted
        for path in ("", "/messages", "/runs", f"/runs/{run['id']}", f"/runs/{run['id']}/steps"):
            status, error = await wire.error("GET", f"/threads/{thread}{path}")
            assert (status, error["message"]) == (404, f"No thread found with id '{thread}'.")

    async def test_a_thread_may_be_called_runs(self, wire: Wire):
        # POST /threads/runs is an operation of its own; the others are on the thread that has the id.
        status, error = await wire.error("GET", "/threads/runs")
        assert (status, error["message"]) == (404, "No thread found with id 'runs'.")


class TestMessages(WireTests):
    async def test_a_message_has_every_key_and_null_where_nothing_was_given(self, wire: Wire):
        thread = await wire.thread()
        made = await wire.good("POST", f"/threads/{thread}/messages", {"role": "user", "content": "hello"})
        assert made["id"].startswith("msg_")
        assert made["completed_at"] == made["created_at"]
        assert without(made, "completed_at") == {
            "object": "thread.message",
            "thread_id": thread,
            "status": "completed",
            "incomplete_details": None,
            "incomplete_at": None,
            "role": "user",
            "content": [{"type": "text", "text": {"value": "hello", "annotations": []}}],
            "assistant_id": None,
            "run_id": None,
            "attachments": [],
            "metadata": {},
        }
        assert await wire.good("GET", f"/threads/{thread}/messages/{made['id']}") == made

    async def test_a_message_keeps_its_parts_and_attachments(self, wire: Wire):
        thread = await wire.thread()
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": "look:"},
            {"type": "image_file", "image_file": {"file_id": "file_1", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": None}},
        ]
        attachments = [
            {"file_id": "file_2", "tools": [{"type": "file_search"}, {"type": "code_interpreter"}]},
            {"file_id": "file_3"},
        ]
        body = {"role": "assistant", "content": parts, "attachments": attachments, "metadata": {"a": "b"}}
        made = await wire.good("POST", f"/threads/{thread}/messages", body)
        assert made["content"] == [
            {"type": "text", "text": {"value": "look:", "annotations": []}},
            parts[1],
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ]
        assert (made["role"], made["attachments"], made["metadata"]) == ("assistant", attachments, {"a": "b"})

    async def test_an_update_changes_the_metadata_and_nothing_else(self, wire: Wire):
        thread = await wire.thread()
        body = {"role": "user", "content": "hello", "metadata": {"a": "b"}}
        made = await wire.good("POST", f"/threads/{thread}/messages", body)
        path = f"/threads/{thread}/messages/{made['id']}"
        assert await wire.good("POST", path, {"role": "assistant", "content": "other"}) == made
        assert await wire.good("POST", path, {"metadata": {"c": "d"}}) == {**made, "metadata": {"c": "d"}}
        assert await wire.good("POST", path, {"metadata": None}) == {**made, "metadata": {}}

    async def test_a_deleted_message_is_gone_and_the_others_stay(self, wire: Wire):
        thread = await wire.thread("one", "two")
        newest = (await wire.good("GET", f"/threads/{thread}/messages"))["data"][0]
        path = f"/threads/{thread}/messages/{newest['id']}"
        deleted = {"id": newest["id"], "object": "thread.message.deleted", "deleted": True}
        assert await wire.good("DELETE", path) == deleted
        for method in ("GET", "POST", "DELETE"):
            status, error = await wire.error(method, path, {"metadata": {}} if method == "POST" else None)
            assert (status, error["message"]) == (404, f"No message found with id '{newest['id']}'.")
        page = await wire.good("GET", f"/threads/{thread}/messages")
        assert [message["content"][0]["text"]["value"] for message in page["data"]] == ["one"]

    async def test_a_message_for_a_thread_that_is_not_there_is_refused(self, wire: Wire):
        status, error = await wire.error("POST", "/threads/thread_none/messages", {"role": "user", "content": "x"})
        assert (status, error["message"]) == (404, "No thread found with id 'thread_none'.")


class TestLeniency(WireTests):
    async def test_fields_that_are_not_known_are_passed_over(self, wire: Wire):
        thread = await wire.thread()
        for path in ("/assistants", "/threads", f"/threads/{thread}", f"/threads/{thread}/messages"):
            assert "of_a_newer_sdk" not in await wire.good("POST", path, UNKNOWN)

    async def test_what_azure_and_newer_clients_put_into_the_query_is_passed_over(self, wire: Wire):
        query = "api-version=2024-05-01-preview&include%5B%5D=step_details.tool_calls%5B%2A%5D.file_search"
        thread = await wire.thread("hello")
        await wire.good("POST", "/assistants", {"model": "m"}, query=query)
        await wire.good("GET", f"/threads/{thread}/messages", query=query)

    @pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"])
    async def test_a_body_is_json_by_any_of_its_names(self, wire: Wire, kind):
        await wire.good("POST", "/threads", {"metadata": {"a": "b"}}, headers={"Content-Type": kind})

    async def test_every_answer_is_json_and_its_times_are_whole_numbers(self, wire: Wire):
        answer = await wire.ask("POST", "/threads", {})
        assert answer.headers["Content-Type"] == "application/json"
        assert isinstance(answer.json["created_at"], int)
