"""Conformance: steps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    InvalidInputError,
    InvalidMetadataError,
    RunNotFoundError,
    RunStepAlreadyExistsError,
    RunStepNotFoundError,
)
from threadloom.models import (
    FunctionCall,
    MessageCreation,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunStepType,
    StepDetails,
    ToolCall,
    ToolCalls,
    UnknownObject,
    Usage,
)
from threadloom.records import RunWrite
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import (
    NOT_TEXT,
    Stage,
    every_event,
    names,
    new_claim,
    new_run,
    new_step,
    picture,
    scribble,
)
from threadloom.testing._threads import BAD_METADATA

__all__ = ["StepConformance"]

ERROR = RunError("server_error", "Something broke.")
CALL = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments='{"cups": 2}'))
ANSWERED = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments='{"cups": 2}', output="done"))
MOMENTS = {
    RunStepStatus.COMPLETED: "completed_at",
    RunStepStatus.FAILED: "failed_at",
    RunStepStatus.CANCELLED: "cancelled_at",
    RunStepStatus.EXPIRED: "expired_at",
}
DETAILS: dict[str, StepDetails | None] = {
    "none": None,
    "message": MessageCreation("msg_1"),
    "no_calls": ToolCalls(()),
    "calls": ToolCalls((CALL, ANSWERED)),
    "unknown_call": ToolCalls((UnknownObject({"id": "call_2", "type": "code_interpreter", "code_interpreter": {}}),)),
    "unknown": UnknownObject({"type": "thinking", "thinking": {"text": "hm"}}),
}


class StepConformance(Stage):
    """What a store does with steps."""

    async def test_appending_a_step_returns_it_as_written(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id, calls=[CALL], assistant_id="asst_1")
        written = await store.append_step(run.thread_id, run.id, step)
        assert attrs.evolve(written, sequence=None) == step
        async for view in self.views(store):
            assert await view.get_step(run.thread_id, run.id, step.id) == written
            assert list(await view.list_steps(run.thread_id, run.id)) == [written]

    async def test_a_run_without_steps_lists_none(self, store: ThreadStore) -> None:
        run = await new_run(store)
        async for view in self.views(store):
            assert list(await view.list_steps(run.thread_id, run.id)) == []

    @pytest.mark.parametrize("details", DETAILS.values(), ids=DETAILS)
    async def test_every_kind_of_details_comes_back(self, store: ThreadStore, details: StepDetails | None) -> None:
        run = await new_run(store)
        step = await new_step(store, run, step_details=details)
        async for view in self.views(store):
            assert (await view.get_step(run.thread_id, run.id, step.id)).step_details == details

    async def test_every_field_of_a_step_comes_back(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = RunStep(
            id="s",
            created_at=1,
            run_id=run.id,
            thread_id=run.thread_id,
            type=RunStepType.MESSAGE_CREATION,
            status=RunStepStatus.FAILED,
            step_details=MessageCreation("msg_1"),
            assistant_id="asst_1",
            last_error=RunError("rate_limit_exceeded", "Slow\ndown."),
            expired_at=2,
            cancelled_at=3,
            failed_at=4,
            completed_at=5,
            metadata={"k": "v"},
            usage=Usage(1, 2, 3),
        )
        await store.append_step(run.thread_id, run.id, step)
        async for view in self.views(store):
            assert attrs.evolve(await view.get_step(run.thread_id, run.id, "s"), sequence=None) == step

    async def test_a_step_is_not_appended_to_a_run_that_does_not_exist(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = RunStep.tool_calls(thread_id=run.thread_id, run_id="run_unheard_of")
        with pytest.raises(RunNotFoundError):
            await store.append_step(run.thread_id, "run_unheard_of", step)
        async for view in self.views(store):
            assert [run.id for run in await view.list_runs(run.thread_id)] == [run.id]

    async def test_a_step_of_another_run_is_not_appended(self, store: ThreadStore) -> None:
        run = await new_run(store)
        other = await new_run(store)
        before = await picture(store)
        for thread_id, run_id in ((other.thread_id, run.id), (run.thread_id, other.id)):
            with pytest.raises(InvalidInputError):
                await store.append_step(run.thread_id, run.id, RunStep.tool_calls(thread_id=thread_id, run_id=run_id))
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_appending_a_step_on_a_taken_id_overwrites_nothing(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = await new_step(store, run)
        before = await picture(store)
        with pytest.raises(RunStepAlreadyExistsError) as caught:
            await store.append_step(run.thread_id, run.id, attrs.evolve(step, assistant_id="another"))
        assert (caught.value.run_id, caught.value.step_id) == (run.id, step.id)
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_a_missing_step_raises_its_error(self, store: ThreadStore) -> None:
        run = await new_run(store)
        other = await new_run(store)
        step = await new_step(store, other)
        async for view in self.views(store):
            for step_id in ("step_unheard_of", step.id):
                with pytest.raises(RunStepNotFoundError) as caught:
                    await view.get_step(run.thread_id, run.id, step_id)
                assert (caught.value.run_id, caught.value.step_id) == (run.id, step_id)

    @pytest.mark.parametrize(
        "changes",
        [
            {"assistant_id": NOT_TEXT},
            {"step_details": ToolCalls((attrs.evolve(CALL, function=FunctionCall(name=NOT_TEXT, arguments="")),))},
            {"step_details": UnknownObject({"type": "thinking", "not json": object()})},
            {"metadata": {"surrogate": NOT_TEXT}},
        ],
        ids=["text", "tool_call", "details", "metadata"],
    )
    async def test_g1_a_step_that_is_no_json_leaves_nothing(self, store: ThreadStore, changes: Any) -> None:
        run = await new_run(store)
        before = await picture(store)
        with pytest.raises(InvalidInputError):
            await new_step(store, run, id="bad", **changes)
        async for view in self.views(store):
            assert await picture(view) == before
        async with self.fresh(store) as again:
            await new_step(again, run, id="bad")

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_a_step_with_bad_metadata_is_not_appended(self, store: ThreadStore, metadata: Any) -> None:
        run = await new_run(store)
        with pytest.raises(InvalidMetadataError):
            await new_step(store, run, metadata=metadata)
        async for view in self.views(store):
            assert list(await view.list_steps(run.thread_id, run.id)) == []

    async def test_g4_steps_keep_their_order_within_one_second_and_when_the_clock_runs_backwards(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        claim = await new_claim(store)
        ids = [f"step_{9 - n}" for n in range(9)]
        for n, step_id in enumerate(ids):
            step = RunStep.tool_calls(thread_id=claim.run.thread_id, run_id=claim.run.id)
            step = attrs.evolve(step, id=step_id, created_at=clock.time_ns() // 1_000_000_000)
            if n % 2:
                await store.append_step(step.thread_id, step.run_id, step)
            else:
                await store.write_run(claim.lease, RunWrite(items=(step,)))
            if n % 3 == 2:
                clock.step_wall_clock(timedelta(hours=-1))
        async for view in self.views(store):
            steps = await view.list_steps(claim.run.thread_id, claim.run.id)
            assert [step.id for step in steps] == ids
            steps = await view.list_steps(claim.run.thread_id, claim.run.id, order="desc")
            assert [step.id for step in steps] == ids[::-1]

    @pytest.mark.parametrize("status", MOMENTS)
    async def test_ending_a_step_sets_the_moment(
        self, store: ThreadStore, clock: ManualClock, status: RunStepStatus
    ) -> None:
        run = await new_run(store)
        step = await new_step(store, run)
        clock.advance(timedelta(seconds=5))
        written = await store.update_step_status(run.thread_id, run.id, step.id, status)
        now = clock.time_ns() // 1_000_000_000
        moment: dict[str, Any] = {MOMENTS[status]: now}
        assert written == attrs.evolve(step, status=status, **moment)
        async for view in self.views(store):
            assert await view.get_step(run.thread_id, run.id, step.id) == written
            assert names(await every_event(view, run))[-1] == f"run.step.{status}"

    async def test_a_step_is_completed_with_what_it_did(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = await new_step(store, run, step_details=ToolCalls((CALL,)))
        details = ToolCalls((ANSWERED,))
        written = await store.update_step_status(
            run.thread_id, run.id, step.id, RunStepStatus.COMPLETED, details=details
        )
        async for view in self.views(store):
            kept = await view.get_step(run.thread_id, run.id, step.id)
            assert kept == written
            assert (kept.step_details, kept.status, kept.last_error) == (details, RunStepStatus.COMPLETED, None)

    async def test_a_step_is_failed_with_what_went_wrong_and_keeps_its_details(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = await new_step(store, run, step_details=ToolCalls((CALL,)))
        await store.update_step_status(run.thread_id, run.id, step.id, RunStepStatus.FAILED, error=ERROR)
        async for view in self.views(store):
            kept = await view.get_step(run.thread_id, run.id, step.id)
            assert (kept.step_details, kept.status, kept.last_error) == (
                ToolCalls((CALL,)),
                RunStepStatus.FAILED,
                ERROR,
            )

    async def test_a_step_that_is_given_neither_details_nor_error_keeps_both(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = await new_step(store, run, step_details=ToolCalls((CALL,)))
        await store.update_step_status(run.thread_id, run.id, step.id, RunStepStatus.IN_PROGRESS, error=ERROR)
        await store.update_step_status(run.thread_id, run.id, step.id, RunStepStatus.CANCELLED)
        async for view in self.views(store):
            kept = await view.get_step(run.thread_id, run.id, step.id)
            assert (kept.step_details, kept.last_error) == (ToolCalls((CALL,)), ERROR)

    async def test_a_step_keeps_its_place_when_it_changes(self, store: ThreadStore) -> None:
        run = await new_run(store)
        steps = [await new_step(store, run) for _ in range(3)]
        await store.update_step_status(run.thread_id, run.id, steps[0].id, RunStepStatus.COMPLETED)
        async for view in self.views(store):
            assert [step.id for step in await view.list_steps(run.thread_id, run.id)] == [step.id for step in steps]

    async def test_g1_an_ending_that_is_no_json_changes_nothing(self, store: ThreadStore) -> None:
        run = await new_run(store)
        step = await new_step(store, run)
        before = await picture(store)
        with pytest.raises(InvalidInputError):
            await store.update_step_status(
                run.thread_id, run.id, step.id, RunStepStatus.FAILED, error=RunError("server_error", NOT_TEXT)
            )
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_history_takes_steps(self, store: ThreadStore) -> None:
        run = await new_run(store, status=RunStatus.COMPLETED)
        step = await new_step(store, run, status=RunStepStatus.COMPLETED, completed_at=3)
        async for view in self.views(store):
            assert list(await view.list_steps(run.thread_id, run.id)) == [step]
            assert await view.get_run(run.thread_id, run.id) == run

    async def test_a_step_handed_in_or_out_is_not_the_one_that_is_kept(self, store: ThreadStore) -> None:
        run = await new_run(store)
        metadata = {"as": "written"}
        handed_out = [step := await new_step(store, run, metadata=metadata)]
        handed_out += [
            await store.get_step(run.thread_id, run.id, step.id),
            (await store.list_steps(run.thread_id, run.id))[0],
            await store.update_step_status(run.thread_id, run.id, step.id, RunStepStatus.COMPLETED),
        ]
        metadata["changed"] = "in"
        for out in handed_out:
            scribble(out.metadata)
        async for view in self.views(store):
            assert (await view.get_step(run.thread_id, run.id, step.id)).metadata == {"as": "written"}
