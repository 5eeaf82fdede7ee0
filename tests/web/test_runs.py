"""Runs over the wire: what they take of their assistant, what the handler is given, how they are polled and end."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.web.fixtures import Wire, WireTests, path_of
from threadloom import FunctionCall, Run, RunStatus, RunWrite, Usage
from threadloom.models import IncompleteDetails
from threadloom.testing import ManualClock
from threadloom.worker import RunWorker

TOOL = {"type": "function", "function": {"name": "add"}}
ASSISTANT = {
    "model": "of the assistant",
    "instructions": "Be brief.",
    "tools": [TOOL],
    "tool_resources": {"code_interpreter": {"file_ids": ["file_1"]}},
    "temperature": 0.5,
    "top_p": 0.25,
    "response_format": {"type": "text"},
    "reasoning_effort": "low",
    "metadata": {"a": "b"},
}


def text_of(message: dict[str, Any]) -> str:
    return str(message["content"][0]["text"]["value"])


class TestMaking(WireTests):
    async def test_a_run_has_every_key_and_null_where_nothing_was_given(self, wire: Wire):
        thread, assistant = await wire.thread(), await wire.assistant()
        run = await wire.good("POST", f"/threads/{thread}/runs", {"assistant_id": assistant})
        assert run.pop("id").startswith("run_")
        assert isinstance(run.pop("created_at"), int)
        assert run == {
            "object": "thread.run",
            "thread_id": thread,
            "assistant_id": assistant,
            "status": "queued",
            "required_action": None,
            "last_error": None,
            "expires_at": None,
            "started_at": None,
            "cancelled_at": None,
            "failed_at": None,
            "completed_at": None,
            "incomplete_details": None,
            "model": "m",
            "instructions": "",
            "tools": [],
            "metadata": {},
            "usage": None,
            "temperature": None,
            "top_p": None,
            "max_prompt_tokens": None,
            "max_completion_tokens": None,
            "truncation_strategy": {"type": "auto", "last_messages": None},
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "response_format": "auto",
        }

    async def test_a_run_takes_from_its_assistant_what_it_is_not_given(self, wire: Wire):
        assistant = await wire.assistant(**ASSISTANT)
        run = await wire.run(assistant=assistant, **dict.fromkeys(ASSISTANT))
        assert run["metadata"] == {}
        assert {name: run[name] for name in ASSISTANT if name != "metadata"} | {"metadata": {"a": "b"}} == ASSISTANT
        assert await wire.good("GET", path_of(run)) == run

    async def test_what_a_run_is_given_goes_before_its_assistants(self, wire: Wire):
        given: dict[str, Any] = {
            "model": "of the run",
            "instructions": "",
            "tools": [],
            "tool_resources": {},
            "temperature": 0,
            "top_p": 1,
            "response_format": "auto",
            "reasoning_effort": "high",
            "metadata": {"c": "d"},
            "max_prompt_tokens": 1_000,
            "max_completion_tokens": 2_000,
            "truncation_strategy": {"type": "last_messages", "last_messages": 2},
            "tool_choice": {"type": "function", "function": {"name": "add"}},
            "parallel_tool_calls": False,
        }
        run = await wire.run(assistant=await wire.assistant(**ASSISTANT), **given)
        assert {name: run[name] for name in given} == given

    async def test_additional_instructions_come_after_the_others(self, wire: Wire):
        strict = await wire.assistant(instructions="Be brief.")
        more = {"additional_instructions": "Be kind."}
        assert (await wire.run(assistant=strict, **more))["instructions"] == "Be brief.\n\nBe kind."
        assert (await wire.run(assistant=strict, instructions="x", **more))["instructions"] == "x\n\nBe kind."
        assert (await wire.run(**more))["instructions"] == "Be kind."

    async def test_a_run_keeps_what_it_took_when_its_assistant_changes_or_goes(self, wire: Wire):
        assistant = await wire.assistant(instructions="old")
        run = await wire.run(assistant=assistant)
        await wire.good("POST", f"/assistants/{assistant}", {"instructions": "new"})
        await wire.good("DELETE", f"/assistants/{assistant}")
        assert await wire.good("GET", path_of(run)) == run

    @pytest.mark.parametrize("assistant", ["asst_none", "", "../../x", "a" * 129])
    async def test_an_unknown_assistant_is_not_found_and_nothing_is_made(self, wire: Wire, assistant):
        thread = await wire.thread()
        body = {"assistant_id": assistant}
        for path in (f"/threads/{thread}/runs", "/threads/runs"):
            status, error = await wire.error("POST", path, body)
            assert (status, error["message"]) == (404, f"No assistant found with id '{assistant}'.")
        assert [item["id"] for item in (await wire.good("GET", "/threads"))["data"]] == [thread]

    async def test_a_thread_and_its_run_are_made_together(self, wire: Wire):
        assistant = await wire.assistant(instructions="Be brief.")
        thread = {
            "messages": [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
            "metadata": {"a": "b"},
            "tool_resources": {"code_interpreter": {"file_ids": []}},
        }
        body = {"assistant_id": assistant, "thread": thread, "metadata": {"c": "d"}, "stream": False}
        run = await wire.good("POST", "/threads/runs", body)
        assert (run["instructions"], run["metadata"], run["status"]) == ("Be brief.", {"c": "d"}, "queued")
        kept = await wire.good("GET", f"/threads/{run['thread_id']}")
        assert (kept["metadata"], kept["tool_resources"]) == (thread["metadata"], thread["tool_resources"])
        page = await wire.good("GET", f"/threads/{run['thread_id']}/messages", query="order=asc")
        assert [text_of(message) for message in page["data"]] == ["one", "two"]

    @pytest.mark.parametrize("thread", [None, {}, {"messages": None}])
    async def test_a_run_may_be_made_with_an_empty_thread(self, wire: Wire, thread):
        run = await wire.good("POST", "/threads/runs", {"assistant_id": await wire.assistant(), "thread": thread})
        assert (await wire.good("GET", f"/threads/{run['thread_id']}/messages"))["data"] == []

    async def test_last_messages_must_say_how_many(self, wire: Wire):
        body = {"assistant_id": await wire.assistant(), "truncation_strategy": {"type": "last_messages"}}
        status, error = await wire.error("POST", "/threads/runs", body)
        assert (status, error["param"]) == (400, "truncation_strategy.last_messages")
        assert (await wire.good("GET", "/threads"))["data"] == []

    async def test_metadata_is_changed_where_it_is_named(self, wire: Wire):
        run = await wire.run(metadata={"a": "b"})
        assert await wire.good("POST", path_of(run), {}) == run
        assert await wire.good("POST", path_of(run), {"model": "x", "metadata": {"c": "d"}}) == {
            **run,
            "metadata": {"c": "d"},
        }
        assert await wire.good("POST", path_of(run), {"metadata": None}) == {**run, "metadata": {}}


class TestWork(WireTests):
    async def seen_by(self, wire: Wire, run: dict[str, Any]) -> list[str]:
        """Let a handler do the run, and return what it was given of the thread."""
        seen: list[str] = []

        async def answer(ctx):
            seen.extend([message.text for message in await ctx.list_messages()])
            return "done"

        assert (await wire.done_by(answer, run))["status"] == "completed"
        return seen

    async def test_additional_messages_stand_before_the_run_in_their_order(self, wire: Wire):
        thread = await wire.thread("first")
        more = [{"role": "user", "content": "second"}, {"role": "assistant", "content": "third"}]
        run = await wire.run(thread, additional_messages=more)
        assert await self.seen_by(wire, run) == ["first", "second", "third"]
        page = await wire.good("GET", f"/threads/{thread}/messages", query="order=asc")
        assert [(m["role"], text_of(m)) for m in page["data"][1:3]] == [("user", "second"), ("assistant", "third")]

    @pytest.mark.parametrize(
        ("strategy", "seen"),
        [
            (None, ["1", "2", "3"]),
            ({"type": "auto"}, ["1", "2", "3"]),
            ({"type": "auto", "last_messages": 1}, ["1", "2", "3"]),
            ({"type": "last_messages", "last_messages": 2}, ["2", "3"]),
            ({"type": "last_messages", "last_messages": 9}, ["1", "2", "3"]),
        ],
    )
    async def test_the_truncation_strategy_says_what_the_handler_is_given(self, wire: Wire, strategy, seen):
        run = await wire.run(await wire.thread("1", "2", "3"), truncation_strategy=strategy)
        assert await self.seen_by(wire, run) == seen

    async def test_a_run_and_its_message_and_step_tell_of_each_other(self, wire: Wire):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=3, completion_tokens=4)
            return "hi"

        run = await wire.run()
        ended = await wire.done_by(answer, run)
        assert (ended["status"], ended["last_error"], ended["incomplete_details"]) == ("completed", None, None)
        assert ended["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert ended["started_at"] <= ended["completed_at"]
        (message,) = (await wire.good("GET", f"/threads/{run['thread_id']}/messages", query=f"run_id={run['id']}"))[
            "data"
        ]
        assert (text_of(message), message["role"], message["assistant_id"]) == ("hi", "assistant", run["assistant_id"])
        (step,) = (await wire.good("GET", f"{path_of(run)}/steps"))["data"]
        assert step["step_details"] == {
            "type": "message_creation",
            "message_creation": {"message_id": message["id"]},
        }
        assert (step["type"], step["status"], step["assistant_id"]) == (
            "message_creation",
            "completed",
            run["assistant_id"],
        )

    async def test_a_failed_run_says_why_in_words_that_may_be_shown(self, wire: Wire):
        async def answer(ctx):
            ctx.fail("rate_limit_exceeded", "Too fast.")

        ended = await wire.done_by(answer, await wire.run())
        assert (ended["status"], ended["last_error"]) == (
            "failed",
            {"code": "rate_limit_exceeded", "message": "Too fast."},
        )
        assert ended["failed_at"] is not None

    async def test_an_incomplete_run_says_which_limit_ended_it(self, wire: Wire):
        async def answer(ctx):
            ctx.incomplete("max_completion_tokens")

        ended = await wire.done_by(answer, await wire.run())
        assert (ended["status"], ended["incomplete_details"]) == ("incomplete", {"reason": "max_completion_tokens"})

    @pytest.mark.parametrize("limit", ["max_prompt_tokens", "max_completion_tokens"])
    async def test_a_run_that_goes_beyond_its_tokens_ends_incomplete(self, wire: Wire, limit):
        async def answer(ctx):
            ctx.add_usage(prompt_tokens=11, completion_tokens=11)
            return "too much"

        ended = await wire.done_by(answer, await wire.run(None, None, **{limit: 10}))
        assert (ended["status"], ended["incomplete_details"]) == ("incomplete", {"reason": limit})
        assert (ended["usage"]["total_tokens"], ended[limit]) == (22, 10)

    async def test_usage_is_told_when_the_run_has_ended(self, wire: Wire):
        run = await wire.run()
        claim = await wire.store.claim_run("w")
        await wire.store.write_run(claim.lease, RunWrite(usage=Usage(1, 2, 3)))
        assert (await wire.good("GET", path_of(run)))["usage"] is None
        ends = RunWrite(status=RunStatus.INCOMPLETE, incomplete_details=IncompleteDetails("max_prompt_tokens"))
        await wire.store.write_run(claim.lease, ends)
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        assert (await wire.good("GET", path_of(run)))["usage"] == usage


class TestTime(WireTests):
    async def test_a_run_expires_ten_minutes_after_it_was_first_taken_and_says_so_while_it_lives(
        self, wire: Wire, clock: ManualClock
    ):
        run = await wire.run()
        assert run["expires_at"] is None
        clock.advance(timedelta(hours=1))
        claim = await wire.store.claim_run("w")
        taken = await wire.good("GET", path_of(run))
        assert taken["expires_at"] == taken["started_at"] + 600 == clock.time_ns() // 1_000_000_000 + 600
        await wire.store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
        assert (await wire.good("GET", path_of(run)))["expires_at"] is None

    async def test_a_client_polls_a_young_run_often_and_an_old_one_once_a_second(self, wire: Wire, clock: ManualClock):
        run = await wire.run()
        clock.advance(timedelta(seconds=run["created_at"]) - timedelta(microseconds=clock.time_ns() // 1_000))
        told = []
        for _ in range(13):
            told.append((await wire.ask("GET", path_of(run))).headers["openai-poll-after-ms"])
            clock.advance(timedelta(seconds=1))
        assert told == ["100", "100", *[str(tenths * 100) for tenths in range(2, 11)], "1000", "1000"]


class TestTools(WireTests):
    async def waiting(self, wire: Wire) -> tuple[dict[str, Any], list[str]]:
        """Return a run that waits for two outputs, and the ids of the calls."""

        async def answer(ctx):
            if ctx.tool_calls:
                return " ".join(call.function.output for call in ctx.tool_calls)
            return await ctx.call_tools([FunctionCall(name="add", arguments=text) for text in ("{}", "no json")])

        run = await wire.done_by(answer, await wire.run(tools=[TOOL]))
        assert run["status"] == "requires_action"
        action = run["required_action"]
        assert action["type"] == "submit_tool_outputs"
        calls = action["submit_tool_outputs"]["tool_calls"]
        assert [(call["type"], call["function"]) for call in calls] == [
            ("function", {"name": "add", "arguments": "{}"}),
            ("function", {"name": "add", "arguments": "no json"}),
        ]
        return run, [call["id"] for call in calls]

    async def test_the_outputs_of_all_calls_let_the_run_go_on(self, wire: Wire):
        run, ids = await self.waiting(wire)
        outputs = [{"tool_call_id": id_, "output": id_[-3:]} for id_ in reversed(ids)]
        path = f"{path_of(run)}/submit_tool_outputs"
        queued = await wire.good("POST", path, {"tool_outputs": outputs, "stream": False})
        assert (queued["status"], queued["required_action"]) == ("queued", None)

        async def answer(ctx):
            return " ".join(call.function.output for call in ctx.tool_calls)

        ended = await wire.done_by(answer, run)
        assert ended["status"] == "completed"
        page = await wire.good("GET", f"/threads/{run['thread_id']}/messages")
        assert text_of(page["data"][0]) == " ".join(id_[-3:] for id_ in ids)
        steps = (await wire.good("GET", f"{path_of(run)}/steps", query="order=asc"))["data"]
        calls = steps[0]["step_details"]["tool_calls"]
        assert [(call["id"], call["function"]["output"]) for call in calls] == [(id_, id_[-3:]) for id_ in ids]

    async def test_a_missing_an_unknown_and_a_doubled_output_are_refused_and_the_run_waits(self, wire: Wire):
        run, ids = await self.waiting(wire)
        path = f"{path_of(run)}/submit_tool_outputs"
        for given in ([], ids[:1], [ids[0], "call_none"], [*ids, ids[0]], [*ids, "call_none"]):
            outputs = [{"tool_call_id": id_, "output": "1"} for id_ in given]
            said = await wire.refused("POST", path, {"tool_outputs": outputs})
            assert said == f"Expected tool outputs for call_ids {ids}, got {given}."
        assert await wire.good("GET", path_of(run)) == run

    async def test_a_run_that_waits_for_none_refuses_outputs(self, wire: Wire):
        run = await wire.run()
        body = {"tool_outputs": [{"tool_call_id": "call_1", "output": "1"}]}
        path = f"{path_of(run)}/submit_tool_outputs"
        for status in (RunStatus.QUEUED, RunStatus.IN_PROGRESS, RunStatus.EXPIRED):
            await wire.store.force_update_run_status(run["thread_id"], run["id"], status)
            assert await wire.refused("POST", path, body) == f'Runs in status "{status}" do not accept tool outputs.'

    async def test_an_output_that_is_null_or_absent_is_empty(self, wire: Wire):
        run, ids = await self.waiting(wire)
        outputs = [{"tool_call_id": ids[0]}, {"tool_call_id": ids[1], "output": None}]
        await wire.good("POST", f"{path_of(run)}/submit_tool_outputs", {"tool_outputs": outputs})
        (step,) = (await wire.good("GET", f"{path_of(run)}/steps"))["data"]
        assert [call["function"]["output"] for call in step["step_details"]["tool_calls"]] == ["", ""]


class TestCancelling(WireTests):
    @pytest.mark.parametrize("body", [b"", b"{}", None, b"no json"])
    async def test_a_run_that_nobody_works_on_is_cancelled_at_once_whatever_the_body(self, wire: Wire, body):
        run = await wire.run()
        cancelled = await wire.good("POST", f"{path_of(run)}/cancel", body)
        assert (cancelled["status"], cancelled["expires_at"]) == ("cancelled", None)
        assert cancelled["cancelled_at"] is not None

    async def test_a_run_that_was_asked_to_stop_may_be_asked_again(self, wire: Wire):
        run = await wire.run()
        await wire.store.claim_run("w")
        cancelling = await wire.good("POST", f"{path_of(run)}/cancel", b"")
        assert cancelling["status"] == "cancelling"
        assert await wire.good("POST", f"{path_of(run)}/cancel", b"") == cancelling

    async def test_a_run_at_work_stops_and_what_it_said_is_kept(self, wire: Wire):
        is_at_work = asyncio.Event()

        async def answer(ctx):
            async with ctx.message() as message:
                await message.write("half")
                is_at_work.set()
                await asyncio.Event().wait()

        run = await wire.run()
        async with RunWorker(wire.store, answer):
            await is_at_work.wait()
            assert (await wire.good("POST", f"{path_of(run)}/cancel", b""))["status"] == "cancelling"
            assert (await wire.ended(run))["status"] == "cancelled"
        (message,) = (await wire.good("GET", f"/threads/{run['thread_id']}/messages", query="limit=1"))["data"]
        assert (text_of(message), message["status"]) == ("half", "incomplete")
        assert message["incomplete_details"] == {"reason": "run_cancelled"}

    @pytest.mark.parametrize("status", [status for status in RunStatus if status.is_terminal])
    async def test_a_run_that_has_ended_cannot_be_cancelled(self, wire: Wire, status):
        thread = await wire.thread()
        old = await wire.store.create_run(thread, Run.new(thread, model="m", status=status))
        said = await wire.refused("POST", f"/threads/{thread}/runs/{old.id}/cancel", b"")
        assert said == f"Cannot cancel run with status '{status}'."
        assert (await wire.kept({"thread_id": thread, "id": old.id})).status is status

    async def test_a_run_that_is_not_there_cannot_be_cancelled(self, wire: Wire):
        thread = await wire.thread()
        status, error = await wire.error("POST", f"/threads/{thread}/runs/run_none/cancel", b"")
        assert (status, error["message"]) == (404, "No run found with id 'run_none'.")
