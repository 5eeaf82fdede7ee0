"""A store in memory: the reference for what a store does, and the oracle of the tests of the others."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

import attrs
from attrs import define, field

from threadloom import codec, lifecycle
from threadloom.checks import (
    KEEP,
    IdempotencyKey,
    Keep,
    MessageOnBusy,
    MetadataChange,
    OnBusy,
    as_status,
    changed_thread,
    check_assistant,
    check_changed_assistant,
    check_key,
    check_lease,
    check_message,
    check_messages,
    check_on_busy,
    check_run,
    check_same_request,
    check_step,
    check_thread,
    check_tool_outputs,
    new_metadata,
)
from threadloom.clock import Clock
from threadloom.errors import (
    ActiveRunError,
    AssistantAlreadyExistsError,
    AssistantNotFoundError,
    LeaseLostError,
    MessageNotFoundError,
    NotFoundError,
    RunAlreadyExistsError,
    RunNotFoundError,
    RunStepAlreadyExistsError,
    RunStepNotFoundError,
    StoreClosedError,
    ThreadAlreadyExistsError,
    ThreadNotFoundError,
)
from threadloom.events import RunEvent, RunLog
from threadloom.evidence import Evidence
from threadloom.ids import check_id
from threadloom.lifecycle import Change, Lease, RunRecord, RunWrite
from threadloom.models import (
    Assistant,
    Message,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    StepDetails,
    Thread,
    ToolOutput,
)
from threadloom.pages import Order, Page, page_of, page_of_ids
from threadloom.report import CheckReport, Problem, ProblemKind
from threadloom.signals import QUEUE, EventsTopic, Listener, RunTopic, Signals, Topic
from threadloom.store import Claim, ThreadStore

__all__ = ["MemoryStore"]

T = TypeVar("T")


@define
class _Entry:
    """A message's place in its thread; without ``data`` once it is deleted, for then it is a cursor only."""

    place: int
    id: str
    data: bytes | None

    @property
    def message(self) -> Message | None:
        return None if self.data is None else _decoded(self.data, Message)


@define
class _Created:
    """What was created under an idempotency key, as it was then."""

    fingerprint: str
    data: bytes


@define
class _RunState:
    record: bytes
    steps: dict[str, bytes] = field(factory=dict)
    events: list[bytes] = field(factory=list)
    log: RunLog = field(factory=RunLog)

    @property
    def is_active(self) -> bool:
        """Whether the run is not settled: its events say so, and no other program writes here."""
        return not self.log.has_ended


@define
class _ThreadState:
    meta: bytes
    messages: list[_Entry] = field(factory=list)
    runs: dict[str, _RunState] = field(factory=dict)


class MemoryStore(ThreadStore):
    """Keeps everything in this process, until the process ends: for tests, and for a first look.

    Its records are kept as bytes, so that what it was handed and what it hands out are never the same object. There
    is no await within a method, so that each is atomic as it stands.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self._assistants: dict[str, bytes] = {}
        self._threads: dict[str, _ThreadState] = {}
        self._created: dict[tuple[type, str, str], _Created] = {}
        self._last_sequence = 0
        self._signals = Signals()
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether the store can be used."""
        return self._is_open

    async def _open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        """Close the store. What it keeps is there when it is opened again."""
        self._is_open = False
        self._signals.ring_all()

    # Assistants

    async def create_assistant(self, assistant: Assistant, *, key: IdempotencyKey | None = None) -> Assistant:
        """Keep a new assistant."""
        check_assistant(assistant)
        check_key(key)
        self._check(assistant.id)
        if (created := self._created_before(Assistant, "", key)) is not None:
            return created
        if assistant.id in self._assistants:
            raise AssistantAlreadyExistsError(assistant.id)
        data = _encoded(assistant)
        kept = self._note_created(Assistant, "", key, data)
        self._assistants[assistant.id] = data
        return kept

    async def get_assistant(self, assistant_id: str) -> Assistant:
        """Return an assistant."""
        self._check(assistant_id)
        if assistant_id not in self._assistants:
            raise AssistantNotFoundError(assistant_id)
        return _decoded(self._assistants[assistant_id], Assistant)

    async def list_assistants(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Assistant]:
        """Return assistants, in the order of their ids."""
        self._check(*_given(after, before))
        kept = {id_: _decoded(data, Assistant) for id_, data in self._assistants.items()}
        ids = [id_ for id_, assistant in kept.items() if tenant in {None, assistant.tenant}]
        page = page_of_ids(ids, limit=limit, order=order, after=after, before=before)
        return Page([kept[id_] for id_ in page], page.has_more)

    async def update_assistant(self, assistant_id: str, change: Callable[[Assistant], Assistant]) -> Assistant:
        """Change an assistant to what ``change`` makes of it."""
        changed = change(await self.get_assistant(assistant_id))
        check_changed_assistant(assistant_id, changed)
        data = _encoded(changed)
        kept = _decoded(data, Assistant)
        self._assistants[assistant_id] = data
        return kept

    async def delete_assistant(self, assistant_id: str) -> None:
        """Remove an assistant."""
        await self.get_assistant(assistant_id)
        del self._assistants[assistant_id]

    # Threads

    async def create_thread(
        self, thread: Thread, *, messages: Iterable[Message] = (), key: IdempotencyKey | None = None
    ) -> Thread:
        """Keep a new thread, with its first messages."""
        check_thread(thread)
        given = check_messages(thread.id, messages)
        check_key(key)
        self._check(thread.id)
        if (created := self._created_before(Thread, "", key)) is not None:
            return created
        if thread.id in self._threads:
            raise ThreadAlreadyExistsError(thread.id)
        state = _ThreadState(_encoded(thread))
        state.messages = _entries(0, given)
        kept = self._note_created(Thread, "", key, state.meta)
        self._threads[thread.id] = state
        return kept

    async def get_thread(self, thread_id: str) -> Thread:
        """Return a thread."""
        return _decoded(self._thread(thread_id).meta, Thread)

    async def list_thread_ids(
        self,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[str]:
        """Return the ids of threads, in their own order."""
        self._check(*_given(after, before))
        return page_of_ids(self._threads, limit=limit, order=order, after=after, before=before)

    async def list_threads(
        self,
        *,
        tenant: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Thread]:
        """Return threads, in the order of their ids."""
        self._check(*_given(after, before))
        kept = {id_: _decoded(state.meta, Thread) for id_, state in self._threads.items()}
        ids = [id_ for id_, thread in kept.items() if tenant in {None, thread.tenant}]
        page = page_of_ids(ids, limit=limit, order=order, after=after, before=before)
        return Page([kept[id_] for id_ in page], page.has_more)

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: MetadataChange | Keep = KEEP,
        tool_resources: Mapping[str, Any] | Keep | None = KEEP,
    ) -> Thread:
        """Change what is given of a thread."""
        state = self._thread(thread_id)
        changed = changed_thread(_decoded(state.meta, Thread), metadata, tool_resources)
        data = _encoded(changed)
        kept = _decoded(data, Thread)
        state.meta = data
        return kept

    async def delete_thread(self, thread_id: str, *, force: bool = False) -> None:
        """Remove a thread with all that is in it."""
        state = self._thread(thread_id)
        active = self._active_run(state)
        if active is not None and not force:
            raise ActiveRunError(thread_id, active.id)
        del self._threads[thread_id]
        self._created = {made: created for made, created in self._created.items() if made[1] != thread_id}
        for run_id in state.runs:
            self._ring_run(thread_id, run_id)

    # Messages

    async def append_message(
        self,
        thread_id: str,
        message: Message,
        *,
        on_busy: MessageOnBusy = "enqueue",
        key: IdempotencyKey | None = None,
    ) -> Message:
        """Add a whole message to the end of a thread."""
        check_message(thread_id, message)
        check_on_busy(on_busy, MessageOnBusy)
        check_key(key)
        state = self._thread(thread_id)
        if (created := self._created_before(Message, thread_id, key)) is not None:
            return created
        active = self._active_run(state)
        if on_busy == "reject" and active is not None:
            raise ActiveRunError(thread_id, active.id)
        run = state.runs.get(message.run_id) if message.run_id is not None else None
        if run is None:
            state.messages += _entries(len(state.messages), [message])
        else:
            record = _decoded(run.record, RunRecord)
            self._commit(state, run, lifecycle.append_message(record, run.log, message, now_ns=self._now()))
        return self._note_created(Message, thread_id, key, _encoded(message))

    async def get_message(self, thread_id: str, message_id: str) -> Message:
        """Return a message."""
        return self._message(thread_id, message_id)[1]

    async def list_messages(
        self,
        thread_id: str,
        *,
        run_id: str | None = None,
        seen_by: str | None = None,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Message]:
        """Return messages of a thread, in the order they were appended."""
        self._check(*_given(run_id, seen_by, after, before))
        state = self._thread(thread_id)
        is_seen = self._sight_of(thread_id, state, seen_by)

        def wanted(entry: _Entry) -> bool:
            message = entry.message
            return (
                message is not None
                and (run_id is None or message.run_id == run_id)
                and is_seen(entry.place, message.run_id)
            )

        page = page_of(
            state.messages,
            lambda entry: entry.id,
            "messages of the thread",
            wanted=wanted,
            limit=limit,
            order=order,
            after=after,
            before=before,
        )
        return Page([entry.message for entry in page if entry.message is not None], page.has_more)

    async def update_message(self, thread_id: str, message_id: str, *, metadata: MetadataChange) -> Message:
        """Change a message's metadata."""
        entry, message = self._message(thread_id, message_id)
        entry.data = _encoded(attrs.evolve(message, metadata=new_metadata(message.metadata, metadata)))
        return _decoded(entry.data, Message)

    async def delete_message(self, thread_id: str, message_id: str) -> None:
        """Remove a message; its place stays, as a cursor."""
        entry, _ = self._message(thread_id, message_id)
        entry.data = None

    # Runs

    async def create_run(
        self,
        thread_id: str,
        run: Run,
        *,
        on_busy: OnBusy = "enqueue",
        messages: Iterable[Message] = (),
        key: IdempotencyKey | None = None,
    ) -> Run:
        """Keep a new run."""
        check_run(thread_id, run)
        check_on_busy(on_busy)
        given = check_messages(thread_id, messages)
        check_key(key)
        state = self._thread(thread_id)
        if (created := self._created_before(Run, thread_id, key)) is not None:
            return created
        if run.id in state.runs:
            raise RunAlreadyExistsError(thread_id, run.id)
        active = [] if run.status.is_terminal else [record.run for record in self._active(state)]
        if on_busy == "reject" and active:
            raise ActiveRunError(thread_id, active[0].id)
        # What cannot be kept as JSON, or not be read again, is found out before anything is changed.
        _decoded(_encoded(run), Run)
        for message in given:
            _decoded(_encoded(message), Message)
        if on_busy in {"interrupt", "rollback"}:
            self._stop(state, active, rolls_back=on_busy == "rollback")
        state.messages += _entries(len(state.messages), given)
        sequence = max(self._now() // 1_000, self._last_sequence + 1)
        change = lifecycle.create(run, sequence=sequence, messages_before=len(state.messages), now_ns=self._now())
        made = _RunState(_encoded(change.record))
        written = self._commit(state, made, change)
        state.runs[run.id] = made
        self._last_sequence = sequence
        return self._note_created(Run, thread_id, key, _encoded(written))

    def _stop(self, state: _ThreadState, active: Iterable[Run], *, rolls_back: bool) -> None:
        """Ask runs to stop, and take back what they have written where that is asked for."""
        begun = {run.id: run.messages_before or 0 for run in active}
        for run in [state.runs[run_id] for run_id in state.runs if run_id in begun]:
            record = _decoded(run.record, RunRecord)
            decide = lifecycle.roll_back if rolls_back else lifecycle.request_cancel
            change = decide(record, run.log, now_ns=self._now())
            if change is not None:
                self._commit(state, run, change)
        if rolls_back:
            for entry in state.messages:
                message = entry.message
                if message is not None and entry.place >= begun.get(message.run_id or "", entry.place + 1):
                    entry.data = None

    async def get_run(self, thread_id: str, run_id: str) -> Run:
        """Return a run."""
        return self._run(thread_id, run_id)[2].run

    async def list_runs(
        self,
        thread_id: str,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[Run]:
        """Return runs of a thread, in the order they were created."""
        self._check(*_given(after, before))
        runs = [_decoded(run.record, RunRecord).run for run in self._thread(thread_id).runs.values()]
        return page_of(runs, _id, "runs of the thread", limit=limit, order=order, after=after, before=before)

    async def update_run(self, thread_id: str, run_id: str, *, metadata: MetadataChange) -> Run:
        """Change a run's metadata; a lease on it stays."""
        _, run, record = self._run(thread_id, run_id)
        changed = attrs.evolve(record.run, metadata=new_metadata(record.run.metadata, metadata))
        run.record = _encoded(attrs.evolve(record, run=changed))
        self._ring_run(thread_id, run_id)
        return _decoded(run.record, RunRecord).run

    async def update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to ``status`` by hand."""
        state, run, record = self._run(thread_id, run_id)
        return self._commit(
            state,
            run,
            lifecycle.update_status(record, run.log, as_status(RunStatus, status), error, now_ns=self._now()),
        )

    async def force_update_run_status(
        self, thread_id: str, run_id: str, status: RunStatus, error: RunError | None = None
    ) -> Run:
        """Bring a run to ``status`` from any other."""
        state, run, record = self._run(thread_id, run_id)
        return self._commit(
            state, run, lifecycle.force_status(record, run.log, as_status(RunStatus, status), error, now_ns=self._now())
        )

    async def request_cancel(self, thread_id: str, run_id: str) -> Run:
        """Ask a run to stop."""
        state, run, record = self._run(thread_id, run_id)
        change = lifecycle.request_cancel(record, run.log, now_ns=self._now())
        return record.run if change is None else self._commit(state, run, change)

    async def submit_tool_outputs(self, thread_id: str, run_id: str, outputs: Iterable[ToolOutput]) -> Run:
        """Give a run the outputs it waits for, and queue it for its next turn."""
        given = check_tool_outputs(outputs)
        state, run, record = self._run(thread_id, run_id)
        return self._commit(state, run, lifecycle.submit_tool_outputs(record, run.log, given, now_ns=self._now()))

    # Steps

    async def append_step(self, thread_id: str, run_id: str, step: RunStep) -> RunStep:
        """Keep a new step of a run."""
        check_step(thread_id, run_id, step)
        state, run, record = self._run(thread_id, run_id)
        if step.id in run.steps:
            raise RunStepAlreadyExistsError(run_id, step.id)
        self._commit(state, run, lifecycle.append_step(record, run.log, step, now_ns=self._now()))
        return _decoded(run.steps[step.id], RunStep)

    async def get_step(self, thread_id: str, run_id: str, step_id: str) -> RunStep:
        """Return a step."""
        self._check(step_id)
        run = self._run(thread_id, run_id)[1]
        if step_id not in run.steps:
            raise RunStepNotFoundError(run_id, step_id)
        return _decoded(run.steps[step_id], RunStep)

    async def list_steps(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int | None = None,
        order: str = Order.ASC,
        after: str | None = None,
        before: str | None = None,
    ) -> Page[RunStep]:
        """Return steps of a run, in the order they were created."""
        self._check(*_given(after, before))
        steps = [_decoded(step, RunStep) for step in self._run(thread_id, run_id)[1].steps.values()]
        return page_of(steps, _id, "steps of the run", limit=limit, order=order, after=after, before=before)

    async def update_step_status(
        self,
        thread_id: str,
        run_id: str,
        step_id: str,
        status: RunStepStatus,
        *,
        details: StepDetails | None = None,
        error: RunError | None = None,
    ) -> RunStep:
        """Bring a step to ``status`` by hand."""
        step = await self.get_step(thread_id, run_id, step_id)
        state, run, record = self._run(thread_id, run_id)
        change = lifecycle.update_step(
            record, run.log, step, as_status(RunStepStatus, status), details=details, error=error, now_ns=self._now()
        )
        self._commit(state, run, change)
        return _decoded(run.steps[step_id], RunStep)

    # Queue

    async def _take(self, worker_id: str, *, adopt: bool) -> tuple[Claim | None, timedelta | None]:
        self._check(worker_id)
        now = self._now()
        waiting: list[RunRecord] = []
        expiries: list[int] = []
        for state in self._threads.values():
            expiries += self._expire(state, now)
            record = lifecycle.next_in_turn(self._active(state), adopt=adopt)
            if record is not None:
                waiting.append(record)
        due = [record.run for record in waiting if lifecycle.is_due(record, now, adopt=adopt)]
        if due:
            first = min(due, key=lambda run: self._waits_since(run.thread_id))
            state, kept, record = self._run(first.thread_id, first.id)
            has_past = lifecycle.has_past(record, kept.log)
            change = lifecycle.claim(record, kept.log, worker_id=worker_id, token=secrets.token_hex(16), now_ns=now)
            written = self._commit(state, kept, change)
            assert change.record.lease is not None  # noqa: S101 - a claim gives one
            return Claim(written, change.record.lease, has_past), None
        moments = [record.run.retry_at for record in waiting if record.run.retry_at is not None] + expiries
        if not moments:
            return None, None
        # Not beyond what a timedelta can say; then one looks again.
        return None, timedelta(microseconds=min(-((now - min(moments) * 1_000_000_000) // 1000), 86_400_000_000))

    def _waits_since(self, thread_id: str) -> int:
        """Return the place of a thread among the others: that of its first active run, whichever is taken."""
        active = self._active_run(self._threads[thread_id])
        return 0 if active is None else active.sequence or 0

    def _expire(self, state: _ThreadState, now_ns: int) -> list[int]:
        """Settle what is past its time and nobody works on; return the moments at which more is going to be."""
        moments: list[int] = []
        for record in self._active(state):
            if lifecycle.is_overdue(record, now_ns):
                kept = state.runs[record.run.id]
                change = lifecycle.force_status(record, kept.log, RunStatus.EXPIRED, None, now_ns=now_ns)
                self._commit(state, kept, change)
            elif record.run.expires_at is not None:
                moments.append(record.run.expires_at)
        return moments

    async def write_run(self, lease: Lease, work: RunWrite) -> Run:
        """Write for a run under its lease."""
        check_lease(lease)
        state, run, record = self._leased(lease)
        return self._commit(state, run, lifecycle.write(record, run.log, lease, work, now_ns=self._now()))

    async def check_lease(self, lease: Lease) -> Run:
        """Return the run, or raise ``LeaseLostError``."""
        return self._leased(lease)[2].run

    async def settle_run(self, thread_id: str, run_id: str) -> Run:
        """Settle what a terminal run left open."""
        state, run, record = self._run(thread_id, run_id)
        change = lifecycle.settle(record, run.log, now_ns=self._now())
        return record.run if change is None else self._commit(state, run, change)

    # Events

    async def _read_events(self, thread_id: str, run_id: str, position: Any) -> tuple[list[RunEvent], Any, bool]:
        events = self._run(thread_id, run_id)[1].events
        start = position or 0
        return [_decoded(event, RunEvent) for event in events[start:]], len(events), True

    @asynccontextmanager
    async def _listen(self, *topics: Topic) -> AsyncIterator[Listener]:
        with self._signals.listening(*topics) as listener:
            yield listener

    # Upkeep

    async def check(self, *, fix: bool = False, progress: Callable[[int, int], object] | None = None) -> CheckReport:
        """Look for what cannot be; nothing mends it, for only a fault of this store can have made it."""
        del fix
        self._check()
        problems: list[Problem] = []
        for done, (thread_id, state) in enumerate(list(self._threads.items())):
            if progress is not None:
                progress(done, len(self._threads))
            for run_id, kept in state.runs.items():
                path = f"{thread_id}/runs/{run_id}"
                problems += [Problem(kind, path, wrong) for kind, wrong in _wrong_in(state, kept)]
        if progress is not None:
            progress(len(self._threads), len(self._threads))
        return CheckReport(tuple(problems), len(self._threads))

    # What is kept

    def _created_before(self, kind: type[T], thread_id: str, key: IdempotencyKey | None) -> T | None:
        """Return what was created under ``key`` before, as it was then."""
        created = None if key is None else self._created.get((kind, thread_id, key.value))
        if key is None or created is None:
            return None
        check_same_request(key, created.fingerprint)
        return _decoded(created.data, kind)

    def _note_created(self, kind: type[T], thread_id: str, key: IdempotencyKey | None, data: bytes) -> T:
        kept = _decoded(data, kind)
        if key is not None:
            self._created[kind, thread_id, key.value] = _Created(key.fingerprint, data)
        return kept

    def _now(self) -> int:
        return self.clock.time_ns()

    def _check(self, *ids: str) -> None:
        if not self._is_open:
            raise StoreClosedError
        check_id(*ids)

    def _thread(self, thread_id: str) -> _ThreadState:
        self._check(thread_id)
        if thread_id not in self._threads:
            raise ThreadNotFoundError(thread_id)
        return self._threads[thread_id]

    def _message(self, thread_id: str, message_id: str) -> tuple[_Entry, Message]:
        self._check(message_id)
        for entry in self._thread(thread_id).messages:
            if entry.id == message_id and entry.message is not None:
                return entry, entry.message
        raise MessageNotFoundError(thread_id, message_id)

    def _run(self, thread_id: str, run_id: str) -> tuple[_ThreadState, _RunState, RunRecord]:
        self._check(run_id)
        state = self._thread(thread_id)
        if run_id not in state.runs:
            raise RunNotFoundError(thread_id, run_id)
        run = state.runs[run_id]
        return state, run, _decoded(run.record, RunRecord)

    def _leased(self, lease: Lease) -> tuple[_ThreadState, _RunState, RunRecord]:
        try:
            state, run, record = self._run(lease.thread_id, lease.run_id)
        except NotFoundError:
            raise LeaseLostError(lease.run_id, lease.worker_id) from None
        if not lifecycle.holds(record, lease):
            raise LeaseLostError(lease.run_id, lease.worker_id)
        return state, run, record

    def _active(self, state: _ThreadState) -> list[RunRecord]:
        return [_decoded(run.record, RunRecord) for run in state.runs.values() if run.is_active]

    def _active_run(self, state: _ThreadState) -> Run | None:
        return next((record.run for record in self._active(state)), None)

    def _sight_of(self, thread_id: str, state: _ThreadState, seen_by: str | None) -> Callable[[int, str | None], bool]:
        if seen_by is None:
            return lambda *_: True
        run = self._run(thread_id, seen_by)[2].run
        until = tuple(state.runs).index(run.id) + 1
        seen_runs = frozenset(tuple(state.runs)[:until])
        before = run.messages_before or 0
        return lambda place, run_id: place < before or run_id in seen_runs

    def _commit(self, state: _ThreadState, run: _RunState, change: Change) -> Run:
        record = _encoded(change.record)
        steps = {step.id: _encoded(step) for step in change.steps}
        messages = _entries(len(state.messages), change.messages)
        events = [_encoded(event) for event in change.events]
        # From here on nothing can fail, so that all of it is kept or none.
        run.record = record
        run.steps |= steps
        state.messages += messages
        run.events += events
        for event in events:
            run.log.apply(_decoded(event, RunEvent))
        self._ring_run(change.record.run.thread_id, change.record.run.id)
        return _decoded(record, RunRecord).run

    def _ring_run(self, thread_id: str, run_id: str) -> None:
        for topic in (RunTopic(thread_id, run_id), EventsTopic(thread_id, run_id), QUEUE):
            self._signals.ring(topic)


def _wrong_in(state: _ThreadState, kept: _RunState) -> Iterator[tuple[ProblemKind, str]]:
    """Yield what is wrong with a run, and a sentence about it."""
    evidence = Evidence()
    number = 0
    for event in (_decoded(data, RunEvent) for data in kept.events):
        evidence.apply(event)
        if event.number <= number:
            yield ProblemKind.UNORDERED_EVENTS, f"the number {event.number} of an event does not rise"
        number = event.number
    for step_id in evidence.steps.keys() - kept.steps.keys():
        yield ProblemKind.MISSING_RECORD, f"the run's events tell of step {step_id!r}, and it is not there"
    for message_id in evidence.messages.keys() - {entry.id for entry in state.messages}:
        yield ProblemKind.MISSING_MESSAGE, f"message {message_id!r} is not there, and the events of its run have it"
    steps = [_decoded(data, RunStep) for data in kept.steps.values()]
    if evidence.is_left_open(_decoded(kept.record, RunRecord).run, kept.log, steps):
        yield ProblemKind.UNSETTLED_RUN, "the run is terminal, and what was open in it is not closed"


def _encoded(value: object) -> bytes:
    # A copy: what orjson returns keeps the 4 KiB and more in which it was written.
    return bytes(memoryview(codec.dump_line(codec.to_record(value))))


def _decoded(data: bytes, model: type[T]) -> T:
    return codec.decode(data, model, "memory")


def _entries(first: int, messages: Iterable[Message]) -> list[_Entry]:
    return [_Entry(place, message.id, _encoded(message)) for place, message in enumerate(messages, first)]


def _given(*ids: str | None) -> list[str]:
    return [id_ for id_ in ids if id_ is not None]


def _id(item: Run | RunStep) -> str:
    return item.id
