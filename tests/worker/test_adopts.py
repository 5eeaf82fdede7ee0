"""A worker that adopts takes over runs that somebody drives by hand; any other leaves them alone."""

from tests.support.worker_fixtures import Stage, WorkerTests
from threadloom import FunctionCall, RunStatus, RunStep, RunStepStatus, ToolCall, ToolCalls
from threadloom.worker import RunContext


class TestAdopting(WorkerTests):
    async def test_it_takes_a_run_over_from_the_hand_that_began_it_and_then_those_behind_it(self, stage: Stage):
        by_hand = await stage.ask("first")
        behind = await stage.ask("second", thread=await stage.store.get_thread(by_hand.thread_id))
        await stage.store.update_run_status(by_hand.thread_id, by_hand.id, RunStatus.IN_PROGRESS)

        async def answer(ctx: RunContext) -> str:
            return f"attempt {ctx.attempt}"

        async with stage.worker(answer, adopt=True):
            await stage.ended(behind)
        assert (await stage.run(by_hand)).status is RunStatus.COMPLETED
        assert await stage.texts(by_hand) == ["first", "second", "attempt 1", "attempt 1"]

    async def test_without_it_a_run_that_is_driven_by_hand_keeps_its_threads_turn(self, stage: Stage):
        by_hand = await stage.ask()
        behind = await stage.ask(thread=await stage.store.get_thread(by_hand.thread_id))
        await stage.store.update_run_status(by_hand.thread_id, by_hand.id, RunStatus.IN_PROGRESS)

        async def answer(ctx: RunContext) -> str:
            return ctx.run.id

        async with stage.worker(answer):
            await stage.ended(await stage.ask())
            assert (await stage.run(by_hand)).status is RunStatus.IN_PROGRESS
            assert (await stage.run(behind)).status is RunStatus.QUEUED
            await stage.store.update_run_status(by_hand.thread_id, by_hand.id, RunStatus.COMPLETED)
            await stage.ended(behind)
        assert await stage.answers(by_hand) == []

    async def test_two_workers_of_one_store_may_differ_in_it(self, stage: Stage):
        by_hand = await stage.ask()
        await stage.store.update_run_status(by_hand.thread_id, by_hand.id, RunStatus.IN_PROGRESS)

        async def answer(ctx: RunContext) -> str:
            return "done"

        async with stage.worker(answer):
            await stage.ended(await stage.ask())  # by now it has seen the other run, and passed it over
            async with stage.worker(answer, adopt=True):
                await stage.ended(by_hand)

    async def test_its_handler_finds_what_the_hand_had_done(self, stage: Stage):
        by_hand = await stage.ask()
        await stage.store.update_run_status(by_hand.thread_id, by_hand.id, RunStatus.IN_PROGRESS)
        call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="{}", output="hot"))
        done, left = (RunStep.tool_calls(thread_id=by_hand.thread_id, run_id=by_hand.id) for _ in range(2))
        for step in (done, left):
            await stage.store.append_step(by_hand.thread_id, by_hand.id, step)
        await stage.store.update_step_status(
            by_hand.thread_id, by_hand.id, done.id, RunStepStatus.COMPLETED, details=ToolCalls((call,))
        )
        found: list[ToolCall] = []

        async def answer(ctx: RunContext) -> None:
            found.extend(ctx.tool_calls)

        async with stage.worker(answer, adopt=True):
            await stage.ended(by_hand)
        assert found == [call]
        statuses = {step.id: step.status for step in await stage.steps(by_hand)}
        assert statuses == {done.id: RunStepStatus.COMPLETED, left.id: RunStepStatus.CANCELLED}
