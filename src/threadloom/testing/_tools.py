"""Conformance: a run that waits for the outputs of tools, and what a handler has kept for its run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom.errors import InvalidInputError, LeaseLostError, ToolOutputsRefusedError
from threadloom.events import Checkpoint, EventType, StepDelta
from threadloom.models import (
    FunctionCall,
    RequiredAction,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    ToolCall,
    ToolCalls,
    ToolOutput,
)
from threadloom.records import RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._queue import claimed
from threadloom.testing._stage import (
    NOT_TEXT,
    PATIENCE,
    TEXTS,
    Stage,
    every_event,
    names,
    new_claim,
    new_run,
    new_thread,
    picture,
    still_waiting,
    working_run,
)

__all__ = ["ToolConformance"]

CALLS = tuple(
    ToolCall(id=id_, function=FunctionCall(name="brew", arguments="no { json")) for id_ in ("call_a", "call_b")
)
OUTPUTS = (ToolOutput("call_a", "hot"), ToolOutput("call_b", "cold"))

# Outputs that are not what the two calls wait for.
WRONG_OUTPUTS = {
    "none": [],
    "one_missing": ["call_a"],
    "one_unknown": ["call_a", "call_b", "call_c"],
    "one_instead": ["call_a", "call_c"],
    "one_twice": ["call_a", "call_b", "call_a"],
    "one_twice_for_another": ["call_a", "call_a"],
}
NOT_OUTPUTS: dict[str, Any] = {
    "mapping": {"call_a": "hot", "call_b": "cold"},
    "text": "hot",
    "nothing": None,
    "pairs": [("call_a", "hot"), ("call_b", "cold")],
    "number": [ToolOutput("call_a", 7), OUTPUTS[1]],  # type: ignore[arg-type]
    "no_id": [ToolOutput(None, "hot"), OUTPUTS[1]],  # type: ignore[arg-type]
    "not_unicode": [ToolOutput("call_a", NOT_TEXT), OUTPUTS[1]],
}


async def waiting_run(store: ThreadStore, thread_id: str | None = None, **options: Any) -> tuple[Claim, RunStep]:
    """Create a run, claim it, and let it call two tools; return the claim as it was, and the step."""
    claim = await new_claim(store, thread_id, **options)
    step = RunStep.tool_calls(thread_id=claim.run.thread_id, run_id=claim.run.id, calls=CALLS)
    deltas = tuple(StepDelta(step.id, index, call) for index, call in enumerate(CALLS))
    await store.write_run(
        claim.lease,
        RunWrite(items=(step, *deltas), status=RunStatus.REQUIRES_ACTION, required_action=RequiredAction(CALLS)),
    )
    return claim, await store.get_step(step.thread_id, step.run_id, step.id)


class ToolConformance(Stage):
    """What ``submit_tool_outputs`` does, and checkpoints."""

    async def test_g1_outputs_complete_their_step_and_queue_the_run_in_one_act(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        claim, step = await waiting_run(store)
        clock.advance(timedelta(seconds=5))
        now = clock.time_ns() // 1_000_000_000
        waiting = await store.get_run(step.thread_id, step.run_id)
        run = await store.submit_tool_outputs(step.thread_id, step.run_id, reversed(OUTPUTS))
        assert run == attrs.evolve(waiting, status=RunStatus.QUEUED, required_action=None, turn=1)
        answered = tuple(
            attrs.evolve(call, function=attrs.evolve(call.function, output=output.output))
            for call, output in zip(CALLS, OUTPUTS, strict=True)
        )
        done = attrs.evolve(step, status=RunStepStatus.COMPLETED, completed_at=now, step_details=ToolCalls(answered))
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
            assert list(await view.list_steps(run.thread_id, run.id)) == [done]
            events = await every_event(view, run)
            assert names(events)[3:] == [
                *("run.step.created", "run.step.in_progress", "run.step.delta", "run.step.delta"),
                *("run.requires_action", "run.step.completed", "run.queued"),
            ]
            assert (events[-2].data, events[-1].data) == (done, run)
            with pytest.raises(LeaseLostError):
                await view.check_lease(claim.lease)

    @pytest.mark.parametrize("wrong", WRONG_OUTPUTS.values(), ids=WRONG_OUTPUTS)
    async def test_g1_outputs_that_are_not_what_is_waited_for_change_nothing(
        self, store: ThreadStore, wrong: list[str]
    ) -> None:
        _, step = await waiting_run(store)
        before = await picture(store)
        with pytest.raises(InvalidInputError) as caught:
            await store.submit_tool_outputs(step.thread_id, step.run_id, [ToolOutput(id_, "") for id_ in wrong])
        assert str(caught.value) == f"Expected tool outputs for call_ids ['call_a', 'call_b'], got {wrong}."
        async for view in self.views(store):
            assert await picture(view) == before
        async with self.fresh(store) as again:
            run = await again.submit_tool_outputs(step.thread_id, step.run_id, OUTPUTS)
            assert run.status is RunStatus.QUEUED

    @pytest.mark.parametrize("outputs", NOT_OUTPUTS.values(), ids=NOT_OUTPUTS)
    async def test_g1_what_is_no_output_changes_nothing(self, store: ThreadStore, outputs: Any) -> None:
        _, step = await waiting_run(store)
        before = await picture(store)
        with pytest.raises(InvalidInputError):
            await store.submit_tool_outputs(step.thread_id, step.run_id, outputs)
        async for view in self.views(store):
            assert await picture(view) == before

    @pytest.mark.parametrize("status", sorted(set(RunStatus) - {RunStatus.REQUIRES_ACTION}))
    async def test_a_run_that_does_not_wait_takes_no_outputs(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store)
        await store.force_update_run_status(run.thread_id, run.id, status)
        before = await picture(store)
        for outputs in (OUTPUTS, ()):
            with pytest.raises(ToolOutputsRefusedError) as caught:
                await store.submit_tool_outputs(run.thread_id, run.id, outputs)
            assert str(caught.value) == f'Runs in status "{status}" do not accept tool outputs.'
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_g6_outputs_are_taken_once(self, store: ThreadStore) -> None:
        _, step = await waiting_run(store)
        async with self.beside(store) as other:
            answers = await asyncio.gather(
                *[
                    one.submit_tool_outputs(step.thread_id, step.run_id, OUTPUTS)
                    for one in (store, other, store, other)
                ],
                return_exceptions=True,
            )
        assert [type(answer) for answer in answers].count(Run) == 1
        assert [type(answer) for answer in answers].count(ToolOutputsRefusedError) == 3
        async for view in self.views(store):
            assert (await view.get_run(step.thread_id, step.run_id)).turn == 1

    async def test_outputs_count_no_attempt_and_the_run_is_claimed_with_its_past(self, store: ThreadStore) -> None:
        claim, step = await waiting_run(store)
        assert not claim.has_past
        run = await store.submit_tool_outputs(step.thread_id, step.run_id, OUTPUTS)
        async with self.fresh(store) as again:
            taken = await again.claim_run("worker_2")
            assert (taken.run.id, taken.lease.attempt, taken.has_past) == (run.id, 1, True)
            assert taken.run.started_at == claim.run.started_at
            steps = await again.list_steps(step.thread_id, step.run_id)
            assert [kept.status for kept in steps] == [RunStepStatus.COMPLETED]

    async def test_a_run_that_waits_for_outputs_keeps_the_turn_of_its_thread(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        _, step = await waiting_run(store, thread.id)
        behind = await new_run(store, thread.id)
        assert await claimed(store) is None
        await store.submit_tool_outputs(step.thread_id, step.run_id, OUTPUTS)
        async with self.fresh(store) as again:
            assert await claimed(again) == step.run_id
            assert await claimed(again) is None
            assert (await again.get_run(thread.id, behind.id)).status is RunStatus.QUEUED

    async def test_g3_a_worker_that_waits_hears_of_outputs(self, store: ThreadStore) -> None:
        _, step = await waiting_run(store)
        async with asyncio.timeout(PATIENCE), self.beside(store) as other:
            taking = asyncio.create_task(other.claim_run("worker_2"))
            await still_waiting(taking)
            await store.submit_tool_outputs(step.thread_id, step.run_id, OUTPUTS)
            assert (await taking).run.id == step.run_id

    @pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
    async def test_any_text_is_an_output(self, store: ThreadStore, text: str) -> None:
        _, step = await waiting_run(store)
        outputs = (ToolOutput("call_a", text), ToolOutput("call_b", ""))
        await store.submit_tool_outputs(step.thread_id, step.run_id, outputs)
        async for view in self.views(store):
            details = (await view.get_step(step.thread_id, step.run_id, step.id)).step_details
            assert isinstance(details, ToolCalls)
            assert [call.function.output for call in details.tool_calls if isinstance(call, ToolCall)] == [text, ""]

    @pytest.mark.parametrize(
        ("way", "run_status", "step_status"),
        [
            ("cancel", RunStatus.CANCELLED, RunStepStatus.CANCELLED),
            ("force", RunStatus.EXPIRED, RunStepStatus.EXPIRED),
            ("force", RunStatus.FAILED, RunStepStatus.FAILED),
            ("by_hand", RunStatus.EXPIRED, RunStepStatus.EXPIRED),
            ("by_hand", RunStatus.CANCELLED, RunStepStatus.CANCELLED),
        ],
    )
    async def test_a_run_that_ends_while_it_waits_closes_the_step_that_waits(
        self, store: ThreadStore, way: str, run_status: RunStatus, step_status: RunStepStatus
    ) -> None:
        _, step = await waiting_run(store)
        thread_id, run_id = step.thread_id, step.run_id
        ways: dict[str, Callable[[], Awaitable[Run]]] = {
            "cancel": lambda: store.request_cancel(thread_id, run_id),
            "force": lambda: store.force_update_run_status(thread_id, run_id, run_status),
            "by_hand": lambda: store.update_run_status(thread_id, run_id, run_status),
        }
        run = await ways[way]()
        assert (run.status, run.required_action) == (run_status, None)
        async for view in self.views(store):
            kept = await view.get_step(thread_id, run_id, step.id)
            assert (kept.status, kept.step_details) == (step_status, step.step_details)
            assert names(await every_event(view, run))[-2:] == [f"run.step.{step_status}", f"run.{run_status}"]

    async def test_a_run_that_is_queued_by_hand_instead_of_by_outputs_begins_its_turn_again(
        self, store: ThreadStore
    ) -> None:
        _, step = await waiting_run(store)
        await store.update_run_status(step.thread_id, step.run_id, RunStatus.QUEUED)
        claim = await store.claim_run("worker_2")
        async for view in self.views(store):
            kept = await view.get_step(step.thread_id, step.run_id, step.id)
            assert kept.status is RunStepStatus.CANCELLED
            assert (claim.run.turn, claim.has_past) == (0, True)

    async def test_a_run_that_is_forced_to_queued_has_no_past(self, store: ThreadStore) -> None:
        _, step = await waiting_run(store)
        await store.submit_tool_outputs(step.thread_id, step.run_id, OUTPUTS)
        await store.force_update_run_status(step.thread_id, step.run_id, RunStatus.QUEUED)
        async with self.fresh(store) as again:
            claim = await again.claim_run("worker_2")
            assert (claim.run.turn, claim.run.attempt, claim.has_past) == (0, 1, False)
            await again.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED))
            assert (await again.claim_run("worker_2")).has_past

    async def test_outputs_of_calls_that_lie_in_no_step_are_kept_in_one(self, store: ThreadStore) -> None:
        claim = await new_claim(store)
        thread_id, run_id = claim.run.thread_id, claim.run.id
        work = RunWrite(status=RunStatus.REQUIRES_ACTION, required_action=RequiredAction(CALLS))
        await store.write_run(claim.lease, work)
        await store.submit_tool_outputs(thread_id, run_id, OUTPUTS)
        async for view in self.views(store):
            (step,) = await view.list_steps(thread_id, run_id)
            assert step.status is RunStepStatus.COMPLETED
            assert isinstance(step.step_details, ToolCalls)
            assert [call.function.output for call in step.step_details.tool_calls if isinstance(call, ToolCall)] == [
                *("hot", "cold")
            ]

    # Checkpoints

    async def test_g2_a_checkpoint_is_kept_and_no_reader_of_the_events_is_told(self, store: ThreadStore) -> None:
        work = await working_run(store, "half ")
        result: dict[str, Any] = {"text": "äö\u2028", "list": [1, 2.5, None, True, {"x": []}]}
        await store.write_run(work.lease, RunWrite(items=(Checkpoint("plan", result), Checkpoint("", None))))
        async for view in self.views(store):
            assert await view.get_checkpoints(work.run.thread_id, work.run.id) == {"plan": result, "": None}
        async with self.fresh(store) as again:
            run = await again.write_run(work.lease, RunWrite(status=RunStatus.COMPLETED))
            raw = await every_event(again, run)
            assert [event.type for event in raw].count(EventType.CHECKPOINT) == 2
            shown = [event async for event in again.events(run.thread_id, run.id)]
            assert shown == [event for event in raw if event.type is not EventType.CHECKPOINT]

    async def test_g5_a_checkpoint_without_the_lease_is_not_kept(self, store: ThreadStore) -> None:
        work = await working_run(store)
        await store.update_run_status(work.run.thread_id, work.run.id, RunStatus.IN_PROGRESS)
        with pytest.raises(LeaseLostError):
            await store.write_run(work.lease, RunWrite(items=(Checkpoint("late", 1),)))
        async for view in self.views(store):
            assert await view.get_checkpoints(work.run.thread_id, work.run.id) == {}

    async def test_a_checkpoint_handed_out_is_not_the_one_that_is_kept(self, store: ThreadStore) -> None:
        work = await working_run(store)
        given: dict[str, Any] = {"list": [1]}
        await store.write_run(work.lease, RunWrite(items=(Checkpoint("plan", given),)))
        given["list"].append(2)
        (await store.get_checkpoints(work.run.thread_id, work.run.id))["plan"]["list"].append(3)
        async for view in self.views(store):
            assert await view.get_checkpoints(work.run.thread_id, work.run.id) == {"plan": {"list": [1]}}

    @pytest.mark.parametrize("checkpoint", [Checkpoint(7, 1), Checkpoint("set", {1}), Checkpoint("text", NOT_TEXT)])  # type: ignore[arg-type]
    async def test_g1_a_checkpoint_that_cannot_be_kept_changes_nothing(
        self, store: ThreadStore, checkpoint: Checkpoint
    ) -> None:
        work = await working_run(store)
        before = await picture(store)
        with pytest.raises(InvalidInputError):
            await store.write_run(work.lease, RunWrite(items=(checkpoint,), status=RunStatus.COMPLETED))
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_a_run_that_is_forced_to_queued_begins_without_its_checkpoints(self, store: ThreadStore) -> None:
        work = await working_run(store)
        await store.write_run(work.lease, RunWrite(items=(Checkpoint("plan", 1),)))
        await store.force_update_run_status(work.run.thread_id, work.run.id, RunStatus.QUEUED)
        claim = await store.claim_run("worker_2")
        await store.write_run(claim.lease, RunWrite(items=(Checkpoint("other", 2),)))
        async for view in self.views(store):
            assert await view.get_checkpoints(work.run.thread_id, work.run.id) == {"other": 2}
