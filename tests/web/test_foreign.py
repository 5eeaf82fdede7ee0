"""Records of other programs over the wire: what has no place in the API's words is told by the nearest that has."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.fixtures import MemoryWireTests, Wire, serving
from threadloom import FileStore, Message, Run, RunStep, Thread
from threadloom.codec import from_record
from threadloom.records import Change, RunChange, RunRecord

THREAD = {"id": "t-1", "object": "thread", "created_at": 1_700_000_000, "metadata": {}}
MESSAGE = {
    "id": "m-1",
    "object": "thread.message",
    "created_at": 1_700_000_001,
    "thread_id": "t-1",
    "role": "assistant",
    "content": [{"type": "text", "text": {"value": "hi"}}],
    "run_id": "r-1",
}
RUN = {
    "id": "r-1",
    "object": "thread.run",
    "created_at": 1_700_000_002,
    "thread_id": "t-1",
    "status": "failed",
    "last_error": {"code": "worker_dead", "message": "gone"},
}
STEP = {
    "id": "s-1",
    "object": "thread.run.step",
    "run_id": "r-1",
    "thread_id": "t-1",
    "step_type": "message_creation",
    "status": "completed",
    "created_at": 1_700_000_003,
    "completed_at": 1_700_000_004,
    "step_details": {"message_id": "m-1"},
}
ODD_METADATA = {"restart": True, "count": 7, "none": None, "deep": {"a": [1]}, "plain": "text"}
TOLD_METADATA = {"restart": "true", "count": "7", "none": "null", "deep": '{"a": [1]}', "plain": "text"}


class TestForeign(MemoryWireTests):
    async def keep(
        self,
        wire: Wire,
        *,
        thread: dict[str, Any] | None = None,
        message: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        step: dict[str, Any] | None = None,
    ) -> None:
        """Put records into the store as another program would: past everything that is checked."""
        made = RunChange(
            RunRecord(from_record(RUN | (run or {}), Run, "run")),
            steps=(from_record(STEP | (step or {}), RunStep, "step"),),
            is_new=True,
        )
        change = Change(
            result=None,
            thread=from_record(THREAD | (thread or {}), Thread, "thread"),
            messages=(from_record(MESSAGE | (message or {}), Message, "message"),),
            runs=(made,),
        )
        await wire.store._backend.transact("t-1", lambda _: change)

    async def test_a_run_of_the_seed_has_all_that_a_client_requires(self, wire: Wire):
        await self.keep(wire)
        run = await wire.good("GET", "/threads/t-1/runs/r-1")
        assert (run["assistant_id"], run["instructions"], run["tools"], run["model"]) == ("", "", [], "")
        assert (run["parallel_tool_calls"], run["tool_choice"], run["response_format"]) == (True, "auto", "auto")
        assert run["truncation_strategy"] == {"type": "auto", "last_messages": None}
        assert (run["metadata"], run["status"]) == ({}, "failed")
        assert run["last_error"] == {"code": "server_error", "message": "gone"}

    async def test_a_message_of_the_seed_was_completed_when_it_was_created(self, wire: Wire):
        await self.keep(wire)
        message = await wire.good("GET", "/threads/t-1/messages/m-1")
        assert (message["status"], message["completed_at"], message["attachments"]) == ("completed", 1_700_000_001, [])
        assert message["content"] == [{"type": "text", "text": {"value": "hi", "annotations": []}}]

    async def test_a_step_of_the_seed_has_a_type_and_typed_details(self, wire: Wire):
        await self.keep(wire)
        step = await wire.good("GET", "/threads/t-1/runs/r-1/steps/s-1")
        assert (step["type"], step["assistant_id"], step["metadata"]) == ("message_creation", "", {})
        assert step["step_details"] == {"type": "message_creation", "message_creation": {"message_id": "m-1"}}

    @pytest.mark.parametrize(
        ("step", "details"),
        [
            ({"step_details": None}, {"type": "message_creation", "message_creation": {"message_id": ""}}),
            ({"step_details": {"type": "message_creation"}}, None),
            ({"step_details": {"type": "web_search"}}, None),
            ({"step_details": {"x": 1}, "step_type": "tool_calls"}, {"type": "tool_calls", "tool_calls": []}),
            ({"step_details": {"type": "tool_calls"}, "step_type": "tool_calls"}, None),
        ],
    )
    async def test_details_that_a_client_cannot_read_are_told_as_empty_ones(self, wire: Wire, step, details):
        await self.keep(wire, step=step)
        told = (await wire.good("GET", "/threads/t-1/runs/r-1/steps/s-1"))["step_details"]
        assert details is None or told == details

    async def test_a_steps_error_of_the_seed_is_its_last_error(self, wire: Wire):
        await self.keep(wire, step={"status": "failed", "error": "broken", "failed_at": 1_700_000_005})
        (step,) = (await wire.good("GET", "/threads/t-1/runs/r-1/steps"))["data"]
        assert step["last_error"] == {"code": "server_error", "message": "broken"}

    @pytest.mark.parametrize("code", ["server_error", "rate_limit_exceeded", "invalid_prompt", "worker_dead", ""])
    async def test_a_code_outside_the_apis_words_is_a_server_error(self, wire: Wire, code):
        error = {"code": code, "message": "m"}
        await self.keep(wire, run={"last_error": error}, step={"status": "failed", "last_error": error})
        run = await wire.good("GET", "/threads/t-1/runs/r-1")
        known = {"server_error", "rate_limit_exceeded", "invalid_prompt"}
        assert run["last_error"]["code"] == (code if code in known else "server_error")
        step = await wire.good("GET", "/threads/t-1/runs/r-1/steps/s-1")
        assert step["last_error"]["code"] == (code if code == "rate_limit_exceeded" else "server_error")

    async def test_metadata_of_any_json_is_told_as_strings(self, wire: Wire):
        odd = {"metadata": ODD_METADATA}
        await self.keep(wire, thread=odd, message=odd, run=odd, step=odd)
        for path in ("", "/messages/m-1", "/runs/r-1", "/runs/r-1/steps/s-1"):
            assert (await wire.good("GET", f"/threads/t-1{path}"))["metadata"] == TOLD_METADATA

    @pytest.mark.parametrize("metadata", [None, [1], "text", 5])
    async def test_metadata_that_is_no_object_is_empty(self, wire: Wire, metadata):
        odd = {"metadata": metadata}
        await self.keep(wire, thread=odd, message=odd, run=odd, step=odd)
        for path in ("", "/messages/m-1", "/runs/r-1", "/runs/r-1/steps/s-1"):
            assert (await wire.good("GET", f"/threads/t-1{path}"))["metadata"] == {}

    async def test_an_unknown_reason_is_told_by_the_nearest(self, wire: Wire):
        reason = {"status": "incomplete", "incomplete_details": {"reason": "bored"}}
        await self.keep(wire, run=reason, message=reason)
        run = await wire.good("GET", "/threads/t-1/runs/r-1")
        assert run["incomplete_details"] == {"reason": "max_completion_tokens"}
        message = await wire.good("GET", "/threads/t-1/messages/m-1")
        assert (message["incomplete_details"], message["completed_at"]) == ({"reason": "max_tokens"}, None)

    @pytest.mark.parametrize("content", [[], [{"type": "refusal", "refusal": "no"}], [{"type": "text", "text": "x"}]])
    async def test_content_in_its_other_forms_is_readable(self, wire: Wire, content):
        await self.keep(wire, message={"content": content})
        await wire.good("GET", "/threads/t-1/messages/m-1")


class TestTheSeedsTree:
    """The golden tree of another program, in a directory."""

    @pytest.fixture
    async def wire(self, tmp_path: Path) -> AsyncIterator[Wire]:
        shutil.copytree(Path(__file__).parents[1] / "golden" / "seed", tmp_path / "seed")
        async with FileStore(tmp_path / "seed") as store, serving(store) as wire:
            yield wire

    async def test_all_that_is_in_it_can_be_read_by_a_client(self, wire: Wire):
        # What each answer must be is seen by ``wire``.
        seen = 0
        for thread in (await wire.good("GET", "/threads", query="limit=100"))["data"]:
            path = f"/threads/{thread['id']}"
            assert await wire.good("GET", path) == thread
            for message in (await wire.good("GET", f"{path}/messages"))["data"]:
                assert await wire.good("GET", f"{path}/messages/{message['id']}") == message
                seen += 1
            for run in (await wire.good("GET", f"{path}/runs"))["data"]:
                assert await wire.good("GET", f"{path}/runs/{run['id']}") == run
                for step in (await wire.good("GET", f"{path}/runs/{run['id']}/steps"))["data"]:
                    assert await wire.good("GET", f"{path}/runs/{run['id']}/steps/{step['id']}") == step
                    seen += 1
        assert seen > 3

    async def test_one_damaged_record_hides_no_other_and_tells_no_path(self, wire: Wire, tmp_path: Path, caplog):
        thread, other = await wire.thread(), await wire.thread()
        (tmp_path / "seed" / thread / "meta.json").write_bytes(b"{")
        page = await wire.good("GET", "/threads", query="limit=100")
        ids = [item["id"] for item in page["data"]]
        assert other in ids
        assert thread not in ids
        assert "Skipped a damaged record in the answer to request" in caplog.text
        answer = await wire.ask("GET", f"/threads/{thread}")
        assert answer.status == 500
        assert b"meta.json" not in answer.body
        assert str(tmp_path).encode() not in answer.body
