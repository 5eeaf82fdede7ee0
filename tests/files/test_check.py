"""A check finds each problem and says where, and a fix repairs it and touches nothing else."""

from typing import Any

import pytest

from tests.files.check_damage import DAMAGE, GONE_AFTERWARDS
from tests.support.check_fixtures import THREAD, files_in, found, full_store, make_run
from threadloom import CheckReport, MemoryStore, Thread
from threadloom.testing import ManualClock


@pytest.fixture
async def store(tmp_path):
    async with full_store(tmp_path / "store") as store:
        yield store


async def test_nothing_is_wrong_with_a_store_that_nobody_damaged(store):
    assert await store.check() == CheckReport((), 2)
    assert await store.check(fix=True) == CheckReport((), 2)


@pytest.mark.parametrize(("damage", "touched"), [pytest.param(*pair, id=pair[0].__name__) for pair in DAMAGE.items()])
async def test_a_problem_is_found_with_its_path_and_fixed_and_nothing_else_is_changed(store, damage, touched):
    wrong = damage(store.root)
    before = files_in(store.root)

    report = await store.check()

    assert found(report) == wrong
    assert not report.is_clean
    assert not any(problem.is_fixed for problem in report.problems)
    assert files_in(store.root) == before, "a check alone changes nothing"

    report = await store.check(fix=True)

    assert [problem for problem in wrong if problem not in found(report)] == []
    assert report.is_clean, report.problems
    assert all(problem.is_fixed for problem in report.problems)
    assert await store.check() == CheckReport((), report.thread_count - (damage in GONE_AFTERWARDS))
    after = files_in(store.root)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert {path for path in changed if not path.startswith(tuple(touched))} == set()


async def test_a_memory_store_says_what_cannot_be():
    async with MemoryStore(clock=ManualClock()) as store:
        await store.create_thread(Thread.new(id=THREAD))
        await make_run(store, THREAD, "run_done")
        assert (await store.check()) == CheckReport((), 1)

        backend: Any = store._backend
        state = backend._threads[THREAD]
        run = state.runs["run_done"]
        run.events.append(run.events[0])
        run.steps.clear()
        report = await store.check(fix=True)
        assert [problem.kind for problem in report.problems] == ["unordered_events", "missing_record"]
        assert {problem.where for problem in report.problems} == {f"{THREAD}/run_done"}
        assert report.left == report.problems
