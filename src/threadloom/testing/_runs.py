"""Conformance: runs, as a caller sees them. What workers do with them is in the chapter of the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any

import attrs
import pytest

from threadloom.errors import (
    ActiveRunError,
    InvalidInputError,
    InvalidMetadataError,
    RunAlreadyExistsError,
    RunNotFoundError,
    ThreadNotFoundError,
)
from threadloom.models import Run, RunStatus, TruncationStrategy
from threadloom.store import ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import (
    LIVE,
    NOT_TEXT,
    TERMINAL,
    Stage,
    new_run,
    new_thread,
    picture,
    scribble,
)
from threadloom.testing._threads import BAD_METADATA, increment

__all__ = ["RunConformance"]


class RunConformance(Stage):
    """What a store does with runs, at the hands of callers."""

    async def test_creating_a_run_returns_it_as_written(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        run = Run.new(thread.id, model="any", metadata={"k": "v"})
        written = await store.create_run(thread.id, run)
        assert attrs.evolve(written, sequence=None, messages_before=None) == run
        async for view in self.views(store):
            assert await view.get_run(thread.id, run.id) == written
            assert list(await view.list_runs(thread.id)) == [written]

    async def test_every_field_of_a_run_comes_back(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        run = Run.new(
            thread.id,
            model="a model",
            assistant_id="asst_1",
            instructions="Be\nkind.",
            tools=[{"type": "function", "function": {"name": "brew", "parameters": {"type": "object"}}}],
            metadata={"k": "v"},
            expires_at=2_000_000_000,
            temperature=0.5,
            top_p=1,
            max_prompt_tokens=100,
            tool_resources={"file_search": {"vector_store_ids": ["a"]}},
            max_completion_tokens=0,
            truncation_strategy=TruncationStrategy(type="last_messages", last_messages=3),
            tool_choice={"type": "function", "function": {"name": "brew"}},
            parallel_tool_calls=False,
            response_format={"type": "json_object"},
            reasoning_effort="low",
        )
        await store.create_run(thread.id, run)
        async for view in self.views(store):
            kept = await view.get_run(thread.id, run.id)
            assert attrs.evolve(kept, sequence=None, messages_before=None) == run

    async def test_a_thread_without_runs_lists_none(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == []

    async def test_a_run_is_not_created_in_a_thread_that_does_not_exist(self, store: ThreadStore) -> None:
        with pytest.raises(ThreadNotFoundError):
            await new_run(store, "thread_unheard_of")
        async for view in self.views(store):
            assert list(await view.list_thread_ids()) == []
            assert await view.try_claim_run("worker_1") is None

    @pytest.mark.parametrize("last_messages", [0, -1, True, 1.5, "1"])
    async def test_a_run_that_no_handler_could_be_given_messages_for_is_refused(
        self, store: ThreadStore, last_messages: Any
    ) -> None:
        thread = await new_thread(store)
        strategy = TruncationStrategy(type="last_messages", last_messages=last_messages)
        with pytest.raises(InvalidInputError, match="last messages"):
            await new_run(store, thread.id, truncation_strategy=strategy)
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == []

    async def test_a_run_of_another_thread_is_not_created(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        other = await new_thread(store)
        with pytest.raises(InvalidInputError):
            await store.create_run(thread.id, Run.new(other.id, model="any"))
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == list(await view.list_runs(other.id)) == []

    async def test_creating_a_run_on_a_taken_id_overwrites_nothing(self, store: ThreadStore) -> None:
        run = await new_run(store)
        before = await picture(store)
        with pytest.raises(RunAlreadyExistsError) as caught:
            await store.create_run(run.thread_id, attrs.evolve(run, model="another"))
        assert (caught.value.thread_id, caught.value.run_id) == (run.thread_id, run.id)
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_the_same_run_id_in_another_thread_is_another_run(self, store: ThreadStore) -> None:
        run = await new_run(store)
        other = await new_thread(store)
        twin = await store.create_run(other.id, attrs.evolve(run, thread_id=other.id, model="another"))
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run
            assert await view.get_run(other.id, run.id) == twin

    @pytest.mark.parametrize(
        "options",
        [
            {"instructions": NOT_TEXT},
            {"tools": [{"not json": NotImplemented}]},
            {"tools": [{"deep": [{"a set": {1}}]}]},
            {"tool_choice": {"bytes": b""}},
            {"response_format": {1: "a number as key"}},
            {"metadata": {"surrogate": NOT_TEXT}},
        ],
        ids=str,
    )
    async def test_g1_a_run_that_is_no_json_leaves_nothing(self, store: ThreadStore, options: Any) -> None:
        thread = await new_thread(store)
        run = Run.new(thread.id, model="any", **options)
        with pytest.raises(InvalidInputError):
            await store.create_run(thread.id, run)
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == []
            with pytest.raises(RunNotFoundError):
                await view.get_run(thread.id, run.id)
            assert await view.try_claim_run("worker_1") is None
        async with self.fresh(store) as again:
            await again.create_run(thread.id, attrs.evolve(Run.new(thread.id, model="any"), id=run.id))

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_a_run_with_bad_metadata_is_not_created(self, store: ThreadStore, metadata: Any) -> None:
        thread = await new_thread(store)
        with pytest.raises(InvalidMetadataError):
            await store.create_run(thread.id, attrs.evolve(Run.new(thread.id, model="any"), metadata=metadata))
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == []

    async def test_g4_runs_keep_their_order_within_one_second_and_when_the_clock_runs_backwards(
        self, store: ThreadStore, clock: ManualClock
    ) -> None:
        thread = await new_thread(store)
        ids = [f"run_{9 - n}" for n in range(9)]
        for n, run_id in enumerate(ids):
            created_at = clock.time_ns() // 1_000_000_000
            run = attrs.evolve(Run.new(thread.id, model="any"), id=run_id, created_at=created_at)
            await store.create_run(thread.id, run)
            if n % 3 == 2:
                clock.step_wall_clock(timedelta(hours=-1))
        async for view in self.views(store):
            runs = await view.list_runs(thread.id)
            assert [run.id for run in runs] == ids
            places = [run.sequence for run in runs if run.sequence is not None]
            assert len(places) == len(ids)
            assert all(earlier < later for earlier, later in pairwise(places))
            assert [run.id for run in await view.list_runs(thread.id, order="desc")] == ids[::-1]

    @pytest.mark.parametrize("status", LIVE)
    async def test_a_busy_thread_rejects_a_run_and_names_the_active_one(
        self, store: ThreadStore, status: RunStatus
    ) -> None:
        active = await new_run(store)
        await store.force_update_run_status(active.thread_id, active.id, status)
        before = await picture(store)
        with pytest.raises(ActiveRunError) as caught:
            await store.create_run(active.thread_id, Run.new(active.thread_id, model="any"), on_busy="reject")
        assert (caught.value.thread_id, caught.value.run_id) == (active.thread_id, active.id)
        async for view in self.views(store):
            assert await picture(view) == before

    async def test_a_busy_thread_lets_any_number_of_runs_wait(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        runs = [await store.create_run(thread.id, Run.new(thread.id, model="any"), on_busy="enqueue") for _ in range(5)]
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == runs
            assert {run.status for run in await view.list_runs(thread.id)} == {RunStatus.QUEUED}

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_history_is_kept_and_not_queued_and_makes_no_thread_busy(
        self, store: ThreadStore, status: RunStatus
    ) -> None:
        history = await new_run(store, status=status)
        assert await store.try_claim_run("worker_1") is None
        run = await store.create_run(history.thread_id, Run.new(history.thread_id, model="any"), on_busy="reject")
        async for view in self.views(store):
            assert list(await view.list_runs(history.thread_id)) == [history, run]
            assert (await view.get_run(history.thread_id, history.id)).status is status

    async def test_history_may_be_brought_into_a_busy_thread(self, store: ThreadStore) -> None:
        active = await new_run(store)
        history = Run.new(active.thread_id, model="any", status=RunStatus.COMPLETED)
        await store.create_run(active.thread_id, history, on_busy="reject")
        async for view in self.views(store):
            assert [run.id for run in await view.list_runs(active.thread_id)] == [active.id, history.id]

    async def test_an_unknown_way_to_be_busy_is_refused(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        with pytest.raises(InvalidInputError):
            await store.create_run(thread.id, Run.new(thread.id, model="any"), on_busy="wait")  # type: ignore[arg-type]
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == []

    async def test_g1_of_20_who_race_to_be_the_only_run_one_wins(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        async with self.beside(store) as other:
            attempts = (
                (store, other)[n % 2].create_run(thread.id, Run.new(thread.id, model=str(n)), on_busy="reject")
                for n in range(20)
            )
            results = await asyncio.gather(*attempts, return_exceptions=True)
        (winner,) = (result for result in results if isinstance(result, Run))
        losers = [result for result in results if isinstance(result, ActiveRunError)]
        assert len(losers) == 19
        assert {loser.run_id for loser in losers} == {winner.id}
        async for view in self.views(store):
            assert list(await view.list_runs(thread.id)) == [winner]

    @pytest.mark.parametrize(
        ("change", "metadata"),
        [
            ({"new": "value"}, {"new": "value"}),
            (None, {}),
            (lambda old: old | {"new": "value"}, {"old": "value", "new": "value"}),
        ],
        ids=["mapping", "none", "function"],
    )
    async def test_updating_a_run_replaces_its_metadata(
        self, store: ThreadStore, change: Any, metadata: dict[str, str]
    ) -> None:
        run = await new_run(store, metadata={"old": "value"})
        written = await store.update_run(run.thread_id, run.id, metadata=change)
        assert written == attrs.evolve(run, metadata=metadata)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == written

    @pytest.mark.parametrize("status", TERMINAL)
    async def test_a_terminal_run_still_takes_metadata(self, store: ThreadStore, status: RunStatus) -> None:
        run = await new_run(store, status=status)
        await store.update_run(run.thread_id, run.id, metadata={"note": "kept"})
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == attrs.evolve(run, metadata={"note": "kept"})

    @pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
    async def test_updating_a_run_with_bad_metadata_changes_nothing(self, store: ThreadStore, metadata: Any) -> None:
        run = await new_run(store, metadata={"old": "value"})
        for change in (metadata, lambda _: metadata):
            with pytest.raises(InvalidMetadataError):
                await store.update_run(run.thread_id, run.id, metadata=change)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run

    async def test_g1_a_run_update_whose_function_raises_changes_nothing(self, store: ThreadStore) -> None:
        run = await new_run(store, metadata={"old": "value"})

        def fail(_: dict[str, Any]) -> Mapping[str, str]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await store.update_run(run.thread_id, run.id, metadata=fail)
        async for view in self.views(store):
            assert await view.get_run(run.thread_id, run.id) == run

    async def test_g1_eight_tasks_that_count_in_a_run_lose_nothing(self, store: ThreadStore) -> None:
        run = await new_run(store)

        async def count(store: ThreadStore) -> None:
            for _ in range(50):
                await store.update_run(run.thread_id, run.id, metadata=increment)

        async with self.beside(store) as other, asyncio.TaskGroup() as tasks:
            for n in range(8):
                tasks.create_task(count((store, other)[n % 2]))
        async for view in self.views(store):
            assert (await view.get_run(run.thread_id, run.id)).metadata == {"count": "400"}

    async def test_a_run_handed_in_or_out_is_not_the_one_that_is_kept(self, store: ThreadStore) -> None:
        thread = await new_thread(store)
        metadata = {"as": "written"}
        tool: dict[str, Any] = {"type": "function", "function": {"name": "brew"}}
        run = attrs.evolve(Run.new(thread.id, model="any", tools=[tool]), metadata=metadata)
        handed_out = [
            await store.create_run(thread.id, run),
            await store.get_run(thread.id, run.id),
            (await store.list_runs(thread.id))[0],
            await store.update_run(thread.id, run.id, metadata=metadata),
            await store.update_run_status(thread.id, run.id, RunStatus.QUEUED),
        ]
        metadata["changed"] = tool["function"]["name"] = "in"
        for out in handed_out:
            scribble(out.metadata)
            out.tools[0]["function"]["name"] = "out"
        async for view in self.views(store):
            kept = await view.get_run(thread.id, run.id)
            assert kept.metadata == {"as": "written"}
            assert kept.tools == ({"type": "function", "function": {"name": "brew"}},)
