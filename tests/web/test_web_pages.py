"""Lists over the wire: pages both ways, cursors, filters, limits."""

from typing import Any

import pytest

from tests.web.fixtures import Wire, WireTests, path_of
from threadloom import FunctionCall, Run, RunStatus, RunStep, RunWrite, ToolCall

LISTINGS = ["/assistants", "/threads", "messages", "runs", "steps"]
UNKNOWN = "msg_none"


async def listing_of(wire: Wire, kind: str, count: int) -> tuple[str, list[str]]:
    """Return the path of a list of ``count`` things, and their ids, oldest first."""
    if kind == "/assistants":
        return kind, [await wire.assistant() for _ in range(count)]
    if kind == "/threads":
        return kind, [await wire.thread() for _ in range(count)]
    thread = await wire.thread()
    if kind == "messages":
        said = [{"role": "user", "content": str(number)} for number in range(count)]
        made = [(await wire.good("POST", f"/threads/{thread}/messages", message))["id"] for message in said]
        return f"/threads/{thread}/messages", made
    if kind == "runs":
        runs = [await wire.run(thread, on_busy="enqueue") for _ in range(count)]
        return f"/threads/{thread}/runs", [run["id"] for run in runs]
    run = await wire.run(thread)
    calls = [ToolCall.new(FunctionCall(name="f", arguments="{}"))]
    steps = [RunStep.tool_calls(thread_id=thread, run_id=run["id"], calls=calls) for _ in range(count)]
    for step in steps:
        await wire.store.append_step(thread, run["id"], step)
    return f"{path_of(run)}/steps", [step.id for step in steps]


def page(ids: list[str], *, has_more: bool) -> dict[str, Any]:
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": ids, "first_id": first, "last_id": last, "has_more": has_more}


class TestPages(WireTests):
    async def ask(self, wire: Wire, path: str, query: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = await wire.good("GET", path, query=query)
        return answer | {"data": [item["id"] for item in answer["data"]]}

    @pytest.mark.parametrize("kind", LISTINGS)
    async def test_an_empty_list_has_no_ids(self, wire: Wire, kind):
        path, _ = await listing_of(wire, kind, 0)
        assert await self.ask(wire, path) == page([], has_more=False)

    @pytest.mark.parametrize("kind", LISTINGS)
    async def test_twenty_come_the_newest_first_unless_the_request_says_otherwise(self, wire: Wire, kind):
        path, ids = await listing_of(wire, kind, 21)
        newest = ids[::-1]
        assert await self.ask(wire, path) == page(newest[:20], has_more=True)
        assert await self.ask(wire, path, "limit=1") == page(newest[:1], has_more=True)
        assert await self.ask(wire, path, "limit=21") == page(newest, has_more=False)
        assert await self.ask(wire, path, "limit=100&order=asc") == page(ids, has_more=False)

    @pytest.mark.parametrize("kind", LISTINGS)
    async def test_a_page_goes_on_after_a_cursor_and_back_before_one(self, wire: Wire, kind):
        path, ids = await listing_of(wire, kind, 5)
        newest = ids[::-1]
        assert await self.ask(wire, path, f"after={newest[1]}&limit=2") == page(newest[2:4], has_more=True)
        assert await self.ask(wire, path, f"after={newest[3]}&limit=2") == page(newest[4:], has_more=False)
        assert await self.ask(wire, path, f"after={newest[4]}") == page([], has_more=False)
        # Those nearest before the cursor, still in the order that was asked for.
        assert await self.ask(wire, path, f"before={newest[3]}&limit=2") == page(newest[1:3], has_more=True)
        assert await self.ask(wire, path, f"before={newest[1]}&limit=2") == page(newest[:1], has_more=False)
        assert await self.ask(wire, path, f"before={newest[0]}") == page([], has_more=False)
        assert await self.ask(wire, path, f"order=asc&after={ids[0]}&limit=2") == page(ids[1:3], has_more=True)
        assert await self.ask(wire, path, f"order=asc&before={ids[4]}&limit=2") == page(ids[2:4], has_more=True)
        between = f"after={newest[0]}&before={newest[4]}"
        assert await self.ask(wire, path, between) == page(newest[1:4], has_more=False)

    @pytest.mark.parametrize("limit", ["0", "101", "abc", "-1", "1.0", "", "%C2%B2", "1" * 5000])
    async def test_a_limit_is_from_1_to_100(self, wire: Wire, limit):
        said = await wire.refused("GET", "/threads", query=f"limit={limit}")
        assert said.startswith("Invalid 'limit': expected an integer from 1 to 100, not '")

    async def test_the_order_is_asc_or_desc(self, wire: Wire):
        status, error = await wire.error("GET", "/threads", query="order=random")
        assert (status, error["param"]) == (400, "order")
        assert error["message"] == "Invalid 'order': expected 'asc' or 'desc', not 'random'."

    @pytest.mark.parametrize("kind", ["messages", "runs", "steps"])
    @pytest.mark.parametrize("way", ["after", "before"])
    async def test_an_unknown_cursor_within_a_thread_is_refused(self, wire: Wire, kind, way):
        path, _ = await listing_of(wire, kind, 1)
        assert UNKNOWN in await wire.refused("GET", path, query=f"{way}={UNKNOWN}")

    @pytest.mark.parametrize("kind", ["/assistants", "/threads"])
    async def test_who_deletes_while_paging_goes_on(self, wire: Wire, kind):
        path, ids = await listing_of(wire, kind, 4)
        seen = []
        cursor = ""
        while True:
            answer = await self.ask(wire, path, f"limit=1{cursor}")
            seen += answer["data"]
            for id_ in answer["data"]:
                await wire.good("DELETE", f"{path}/{id_}")
            if not answer["has_more"]:
                break
            cursor = f"&after={answer['last_id']}"
        assert seen == ids[::-1]

    async def test_a_deleted_message_is_still_a_cursor(self, wire: Wire):
        path, ids = await listing_of(wire, "messages", 3)
        await wire.good("DELETE", f"{path}/{ids[1]}")
        assert await self.ask(wire, path, f"after={ids[1]}") == page([ids[0]], has_more=False)
        assert await self.ask(wire, path, f"before={ids[1]}") == page([ids[2]], has_more=False)

    async def test_messages_are_narrowed_to_those_of_a_run(self, wire: Wire):
        thread = await wire.thread("hello")
        runs = [await wire.run(thread, on_busy="enqueue") for _ in range(2)]

        async def answer(ctx):
            await ctx.reply("one")
            return "two"

        for run in runs:
            await wire.done_by(answer, run)
        path = f"/threads/{thread}/messages"
        for run in runs:
            found = (await wire.good("GET", path, query=f"run_id={run['id']}&order=asc"))["data"]
            assert [(m["run_id"], m["content"][0]["text"]["value"]) for m in found] == [
                (run["id"], "one"),
                (run["id"], "two"),
            ]
        assert await self.ask(wire, path, "run_id=run_none") == page([], has_more=False)
        assert (await self.ask(wire, path, f"run_id={runs[0]['id']}&limit=1"))["has_more"]

    async def test_lists_hold_only_what_is_in_their_thread_and_run(self, wire: Wire):
        for kind in ("messages", "runs", "steps"):
            paths = [(await listing_of(wire, kind, 2)) for _ in range(2)]
            for path, ids in paths:
                assert (await self.ask(wire, path))["data"] == ids[::-1]

    async def test_a_run_that_was_brought_in_is_listed(self, wire: Wire):
        thread = await wire.thread()
        old = await wire.store.create_run(thread, Run.new(thread, model="m", status=RunStatus.COMPLETED))
        assert (await self.ask(wire, f"/threads/{thread}/runs"))["data"] == [old.id]

    async def test_a_step_is_read_by_its_id(self, wire: Wire):
        run = await wire.run()
        claim = await wire.store.claim_run("w")
        calls = [ToolCall(id="call_1", function=FunctionCall(name="f", arguments="{}"))]
        step = RunStep.tool_calls(thread_id=run["thread_id"], run_id=run["id"], calls=calls, assistant_id="asst_1")
        await wire.store.write_run(claim.lease, RunWrite(items=(step,)))
        path = f"{path_of(run)}/steps"
        got = await wire.good("GET", f"{path}/{step.id}")
        assert (await wire.good("GET", path))["data"] == [got]
        assert got == {
            "id": step.id,
            "object": "thread.run.step",
            "created_at": step.created_at,
            "assistant_id": "asst_1",
            "thread_id": run["thread_id"],
            "run_id": run["id"],
            "type": "tool_calls",
            "status": "in_progress",
            "step_details": {
                "type": "tool_calls",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}", "output": None},
                    }
                ],
            },
            "last_error": None,
            "expired_at": None,
            "cancelled_at": None,
            "failed_at": None,
            "completed_at": None,
            "metadata": {},
            "usage": None,
        }
        status, error = await wire.error("GET", f"{path}/step_none")
        assert (status, error["message"]) == (404, "No run step found with id 'step_none'.")
