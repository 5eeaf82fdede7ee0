"""What the store does by itself, above any backend: claims, upkeep, lists, readers whose backend holds events back."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs
import pytest

from threadloom import (
    Assistant,
    Message,
    Run,
    RunStatus,
    RunWrite,
    SerializationError,
    StoreIOError,
    Thread,
    ThreadStore,
)
from threadloom.backend import EventBatch
from threadloom.copies import detached
from threadloom.models import TextContent, UnknownObject
from threadloom.records import RunRecord
from threadloom.stores.memory import MemoryBackend
from threadloom.testing import ManualClock
from threadloom.testing._stage import announced

PATIENCE = 30


class Backend(MemoryBackend):
    """A backend in memory that can be damaged, slow, and have workers that are gone."""

    def __init__(self) -> None:
        super().__init__(ManualClock())
        self.damaged: set[str] = set()
        self.failing: set[str] = set()
        self.gone: set[str] = set()
        self.has_abandoned = asyncio.Event()
        self.is_held_back = False
        self.before_commit: Callable[[], Any] | None = None

    def _check(self, thread_id: str) -> None:
        if thread_id in self.damaged:
            raise SerializationError(thread_id, "it is damaged")
        if thread_id in self.failing:
            raise StoreIOError("read a thread", OSError(5, "Input/output error", thread_id))

    async def transact(self, thread_id, decide, *, key=None, waits=True):
        self._check(thread_id)
        if self.before_commit is not None:
            await self.before_commit()
        return await super().transact(thread_id, decide, key=key, waits=waits)

    async def read(self, thread_id, look):
        self._check(thread_id)
        return await super().read(thread_id, look)

    async def read_assistant(self, assistant_id):
        self._check(assistant_id)
        return await super().read_assistant(assistant_id)

    def _view(self, thread_id, kept):
        view = super()._view(thread_id, kept)
        view.is_gone = lambda lease: lease.worker_id in self.gone  # type: ignore[method-assign]
        return view

    async def abandoned(self):
        await self.has_abandoned.wait()
        self.has_abandoned.clear()
        return list(self._threads)

    async def read_events(self, thread_id, run_id, position=None):
        batch = await super().read_events(thread_id, run_id, position)
        return EventBatch([], position, is_all=False) if self.is_held_back else batch


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
async def store(backend):
    async with ThreadStore(backend, max_attempts=2) as store:
        yield store


async def new_run(store, **options):
    thread = await store.create_thread(Thread.new())
    return await store.create_run(thread.id, Run.new(thread.id, model="any", **options))


async def came_to(store, run, status):
    async with asyncio.timeout(PATIENCE):
        while (now := await store.get_run(run.thread_id, run.id)).status is not status:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return now


@pytest.mark.parametrize("fault", ["damaged", "failing"])
async def test_g8_a_thread_that_cannot_be_claimed_from_holds_up_no_other(store, backend, caplog, fault):
    bad, good = await new_run(store), await new_run(store)
    getattr(backend, fault).add(bad.thread_id)
    claim = await store.try_claim_run("worker_1")
    assert claim.run.id == good.id
    assert await store.try_claim_run("worker_1") is None
    assert bad.thread_id in caplog.text


async def test_g7_a_claim_that_was_committed_for_a_caller_who_is_gone_is_put_back(store, backend):
    run = await new_run(store)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def wait_once():
        backend.before_commit = None
        begun.set()
        await goes_on.wait()

    backend.before_commit = wait_once
    claiming = asyncio.create_task(store.claim_run("worker_1"))
    await begun.wait()
    claiming.cancel()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await claiming
    again = await store.try_claim_run("worker_2")
    assert (again.run.id, again.lease.attempt) == (run.id, 1)


async def test_runs_of_workers_that_are_gone_are_reclaimed_until_they_have_no_attempt_left(store, backend, caplog):
    run = await new_run(store)
    for worker_id in ("worker_1", "worker_2"):
        claim = await store.try_claim_run(worker_id)
        assert claim.run.id == run.id
        backend.gone.add(worker_id)
        backend.has_abandoned.set()
        await came_to(store, run, RunStatus.QUEUED if worker_id == "worker_1" else RunStatus.FAILED)
    assert run.id in caplog.text


@pytest.mark.parametrize(
    ("ask", "expires_at", "becomes"),
    [(True, None, RunStatus.CANCELLED), (False, 1, RunStatus.EXPIRED), (True, 1, RunStatus.CANCELLED)],
)
async def test_a_reclaimed_run_that_was_to_end_anyway_ends(store, backend, ask, expires_at, becomes):
    clock = backend.clock
    run = await new_run(store, expires_at=None if expires_at is None else clock.time_ns() // 1_000_000_000 + expires_at)
    await store.try_claim_run("worker_1")
    if ask:
        await store.request_cancel(run.thread_id, run.id)
    clock.advance(timedelta(minutes=1))
    backend.gone.add("worker_1")
    backend.has_abandoned.set()
    await came_to(store, run, becomes)


async def test_upkeep_that_fails_is_tried_again(store, backend, caplog):
    run = await new_run(store)
    await store.try_claim_run("worker_1")
    backend.gone.add("worker_1")
    backend.failing.add(run.thread_id)
    backend.has_abandoned.set()
    async with asyncio.timeout(PATIENCE):
        while run.thread_id not in caplog.text:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0)
    backend.failing.clear()
    backend.has_abandoned.set()
    await came_to(store, run, RunStatus.QUEUED)


async def test_g8_a_damaged_record_is_reported_in_a_list_and_hides_no_other(store, backend):
    for name in ("a", "b", "c", "d"):
        await store.create_thread(Thread.new(id=name, tenant="acme"))
        await store.create_assistant(Assistant.new(model="any", id=name, tenant="acme"))
    backend.damaged.add("b")
    for listed in (store.list_threads, store.list_assistants):
        for tenant in (None, "acme"):
            page = await listed(tenant=tenant, limit=2)
            assert [item.id for item in page] == ["a", "c"]
            assert page.has_more
            (damage,) = page.damaged
            assert damage.where == "b"
            assert [item.id for item in await listed(tenant=tenant, before="d", limit=2)] == ["a", "c"]


async def test_a_tenants_threads_are_found_among_many_of_others(store):
    for n in range(300):
        await store.create_thread(Thread.new(id=f"thread_{n:03}", tenant="acme" if n % 100 == 50 else "other"))
    page = await store.list_threads(tenant="acme", limit=2)
    assert ([thread.id for thread in page], page.has_more) == (["thread_050", "thread_150"], True)
    page = await store.list_threads(tenant="acme", limit=2, order="desc", before="thread_050")
    assert ([thread.id for thread in page], page.has_more) == (["thread_250", "thread_150"], False)


async def test_a_reader_whose_backend_holds_events_back_lets_the_record_catch_up(store, backend):
    run = await new_run(store)
    await store.request_cancel(run.thread_id, run.id)
    backend.is_held_back = True

    async def catch_up():
        backend.is_held_back = False

    backend.before_commit = catch_up
    async with asyncio.timeout(PATIENCE):
        events = [event async for event in store.events(run.thread_id, run.id)]
    assert events[-1].type == "thread.run.cancelled"


async def test_a_reader_finalizes_a_run_that_an_external_writer_has_ended(store, backend):
    run = await new_run(store)
    claim = await store.try_claim_run("worker_1")
    message = announced(Message.assistant(run.thread_id, "", run_id=run.id))
    await store.write_run(claim.lease, RunWrite(items=(message,)))
    kept = backend._threads[run.thread_id].runs[run.id]
    kept.record = RunRecord(attrs.evolve(claim.run, status=RunStatus.FAILED))
    async with asyncio.timeout(PATIENCE):
        events = [event async for event in store.events(run.thread_id, run.id)]
    assert [event.type for event in events[-2:]] == ["thread.message.incomplete", "thread.run.failed"]


def test_a_detached_model_shares_nothing_that_can_be_changed():
    deep: dict[str, Any] = {"list": [{"a": [1]}]}
    message = Message.user("thread_1", [TextContent("hi", (deep,)), UnknownObject(deep)])
    copy = detached(attrs.evolve(message, attachments=(deep,), metadata=deep))
    assert copy == attrs.evolve(message, attachments=(deep,), metadata=deep)
    deep["list"][0]["a"].append(2)
    text, unknown = copy.content
    assert isinstance(text, TextContent)
    assert isinstance(unknown, UnknownObject)
    for mapping in (text.annotations[0], unknown.data, copy.attachments[0], copy.metadata):
        assert mapping == {"list": [{"a": [1]}]}
    plain = TextContent("hi")
    assert detached(plain) is plain
