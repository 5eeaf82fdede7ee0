"""A store in memory: the reference of what a backend does, and the oracle of the tests of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs
from attrs import define, field

from threadloom.backend import AssistantView, Backend, Candidates, EventBatch, ThreadView
from threadloom.candidates import CandidateQueue
from threadloom.check_report import CheckReport, Problem, ProblemKind
from threadloom.clock import Clock, SystemClock
from threadloom.events import RunEvent, RunLog
from threadloom.models import Assistant, Message, Run, RunStep, Thread
from threadloom.notifications import QUEUE, EventsTopic, Listener, Notifier, RunTopic, Topic
from threadloom.pages import Page, PageRequest, page_of, page_of_ids
from threadloom.records import AssistantChange, Change, Created, Lease, RunChange, RunState
from threadloom.rules.queue import standing
from threadloom.rules.thread import get_run
from threadloom.store import ThreadStore

__all__ = ["MemoryBackend", "MemoryStore"]

T = TypeVar("T")


@define
class _Run(RunState):
    """A run with its steps and events. It is changed in place, so views see it as it is."""

    steps: dict[str, RunStep] = field(factory=dict)
    events: list[RunEvent] = field(factory=list)

    @property
    def is_active(self) -> bool:
        return not (self.run.status.is_terminal and self.log.has_ended)


@define
class _Thread:
    """All that is kept under the id of a thread; ``thread`` is None where there is none."""

    thread: Thread | None = None
    messages: list[Message] = field(factory=list)  # deleted ones too, which still serve as cursors
    deleted: set[int] = field(factory=set)  # their places
    runs: dict[str, _Run] = field(factory=dict)  # in their order
    active: dict[str, _Run] = field(factory=dict)  # the same, active ones only
    last_sequence: int = 0
    created: dict[tuple[type, str], Created] = field(factory=dict)

    def place(self, message_id: str) -> int | None:
        """Return the place of the first message with an id that is not deleted."""
        for place, message in enumerate(self.messages):
            if message.id == message_id and place not in self.deleted:
                return place
        return None


class _View(ThreadView):
    """A thread as it is now. Nothing else happens while somebody looks at it, so nothing is copied."""

    thread: Thread | None = None
    active_runs: Sequence[RunState] = ()
    last_sequence: int = 0
    message_count: int = 0

    def __init__(self, thread_id: str, now_ns: int, kept: _Thread, thread_keys: dict[str, Created]) -> None:
        self.thread_id = thread_id
        self.now_ns = now_ns
        self.thread = kept.thread
        self.active_runs = tuple(kept.active.values())
        self.last_sequence = kept.last_sequence
        self.message_count = len(kept.messages)
        self._kept = kept
        self._thread_keys = thread_keys

    def run(self, run_id: str) -> RunState | None:
        return self._kept.runs.get(run_id)

    def step(self, run_id: str, step_id: str) -> RunStep | None:
        run = self._kept.runs.get(run_id)
        return None if run is None else run.steps.get(step_id)

    def message(self, message_id: str) -> Message | None:
        place = self._kept.place(message_id)
        return None if place is None else self._kept.messages[place]

    def messages_written_by(self, run_ids: Collection[str], since: int) -> Iterable[str]:
        left = (self._kept.messages[n] for n in range(since, len(self._kept.messages)) if n not in self._kept.deleted)
        return [message.id for message in left if message.run_id in run_ids]

    def created(self, kind: type[Thread | Message | Run], key: str) -> Created | None:
        return self._thread_keys.get(key) if kind is Thread else self._kept.created.get((kind, key))

    def is_gone(self, lease: Lease) -> bool:
        return False  # its holder is in this process

    def list_runs(self, page: PageRequest) -> Page[Run]:
        runs = [run.run for run in self._kept.runs.values()]
        return page_of(runs, lambda run: run.id, "runs of the thread", **page.options)

    def list_steps(self, run_id: str, page: PageRequest) -> Page[RunStep]:
        steps = tuple(self._kept.runs[run_id].steps.values())
        return page_of(steps, lambda step: step.id, "steps of the run", **page.options)

    def list_messages(self, page: PageRequest, *, run_id: str | None, seen_by: str | None) -> Page[Message]:
        run_ids = list(self._kept.runs)
        before = None if seen_by is None else self._kept.runs[seen_by].run.messages_before
        earlier = set() if seen_by is None else set(run_ids[: run_ids.index(seen_by) + 1])

        def is_wanted(entry: tuple[int, Message]) -> bool:
            place, message = entry
            return (
                place not in self._kept.deleted
                and (run_id is None or message.run_id == run_id)
                and (before is None or place < before or message.run_id in earlier)
            )

        entries = list(enumerate(self._kept.messages))
        found = page_of(entries, lambda entry: entry[1].id, "messages of the thread", wanted=is_wanted, **page.options)
        return Page([message for _, message in found], found.has_more)


class _AssistantView(AssistantView):
    assistant: Assistant | None = None

    def __init__(self, assistant: Assistant | None, keys: dict[str, Created]) -> None:
        self.assistant = assistant
        self._keys = keys

    def created(self, key: str) -> Created | None:
        return self._keys.get(key)


class MemoryBackend(Backend):
    """Keeps the objects it is given. No method awaits before it has finished, so each is atomic as it stands."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._threads: dict[str, _Thread] = {}
        self._thread_keys: dict[str, Created] = {}
        self._assistants: dict[str, Assistant] = {}
        self._assistant_keys: dict[str, Created] = {}
        self._notifier = Notifier()
        self._queue = CandidateQueue()

    async def open(self) -> None:
        self._queue = CandidateQueue()  # whatever the store was in the middle of when it was closed
        for thread_id, kept in self._threads.items():
            self._queue.update(thread_id, standing(tuple(kept.active.values())))

    async def close(self) -> None:
        self._notifier.notify_all()

    async def transact(
        self, thread_id: str, decide: Callable[[ThreadView], Change[T]], *, key: str | None = None, waits: bool = True
    ) -> T:
        kept = self._threads.get(thread_id) or _Thread()
        change = decide(self._view(thread_id, kept))
        has_moved = self._apply(thread_id, kept, change)
        if has_moved or self._queue.is_withheld(thread_id):
            active = () if change.is_deleted else tuple(kept.active.values())
            if self._queue.update(thread_id, standing(active)):
                self._notifier.notify(QUEUE)
        return change.result

    def _apply(self, thread_id: str, kept: _Thread, change: Change[Any]) -> bool:
        """Write a change, which cannot fail; return whether the thread's place in the queue may be another."""
        if change.is_deleted:
            del self._threads[thread_id]
            for run_id in kept.runs:
                self._notifier.notify(RunTopic(thread_id, run_id), EventsTopic(thread_id, run_id))
            return True
        if change.thread is not None:
            kept.thread = change.thread
            self._threads[thread_id] = kept
        for edit in change.edits:
            place = kept.place(edit.message_id)
            assert place is not None  # noqa: S101 - the rules have found it there
            if edit.metadata is None:
                kept.deleted.add(place)
            else:
                kept.messages[place] = attrs.evolve(kept.messages[place], metadata=edit.metadata)
        kept.messages += change.messages
        has_moved = [self._apply_to_run(kept, run_change) for run_change in change.runs]
        created = change.created
        if created is not None and isinstance(created.value, Thread):
            self._thread_keys[created.key] = created
        elif created is not None:
            kept.created[type(created.value), created.key] = created
        return any(has_moved)

    def _apply_to_run(self, kept: _Thread, change: RunChange) -> bool:
        """Write a change of a run; return whether its record is another."""
        record = change.record
        thread_id, run_id = record.run.thread_id, record.run.id
        if change.is_new:
            kept.runs[run_id] = _Run(record, RunLog())
            kept.last_sequence = max(kept.last_sequence, record.run.sequence or 0)
        run = kept.runs[run_id]
        is_changed = change.is_new or record is not run.record
        run.record = record
        run.steps |= {step.id: step for step in change.steps}
        run.events += change.events
        for event in change.events:
            run.log.apply(event)
        kept.messages += change.messages
        if not run.is_active:
            kept.active.pop(run_id, None)
        elif change.is_new:
            kept.active[run_id] = run
        elif run_id not in kept.active:  # it goes back to its place
            kept.active = {id_: other for id_, other in kept.runs.items() if other.is_active}
        if is_changed:
            self._notifier.notify(RunTopic(thread_id, run_id))
        if change.events:
            self._notifier.notify(EventsTopic(thread_id, run_id))
        return is_changed

    async def read(self, thread_id: str, look: Callable[[ThreadView], T]) -> T:
        return look(self._view(thread_id, self._threads.get(thread_id) or _Thread()))

    def _view(self, thread_id: str, kept: _Thread) -> ThreadView:
        return _View(thread_id, self.clock.time_ns(), kept, self._thread_keys)

    async def list_thread_ids(self, page: PageRequest) -> Page[str]:
        return page_of_ids(self._threads, **page.options)

    async def read_events(self, thread_id: str, run_id: str, position: Any = None) -> EventBatch:
        kept = self._threads.get(thread_id) or _Thread()
        get_run(self._view(thread_id, kept), run_id)  # or raise
        events = kept.runs[run_id].events
        return EventBatch(events[position or 0 :], len(events))

    async def transact_assistant(
        self, assistant_id: str, decide: Callable[[AssistantView], AssistantChange[T]], *, key: str | None = None
    ) -> T:
        change = decide(_AssistantView(self._assistants.get(assistant_id), self._assistant_keys))
        if change.is_deleted:
            del self._assistants[assistant_id]
        if change.assistant is not None:
            self._assistants[assistant_id] = change.assistant
        if change.created is not None:
            self._assistant_keys[change.created.key] = change.created
        return change.result

    async def read_assistant(self, assistant_id: str) -> Assistant | None:
        return self._assistants.get(assistant_id)

    async def list_assistant_ids(self, page: PageRequest) -> Page[str]:
        return page_of_ids(self._assistants, **page.options)

    async def candidates(self, limit: int, *, adopt: bool) -> Candidates:
        return self._queue.take(limit, adopt=adopt, now_ns=self.clock.time_ns())

    async def register_worker(self) -> str:
        return ""

    async def abandoned(self) -> Sequence[str]:
        await asyncio.Event().wait()  # workers share this process: while one of them can ask, none is gone
        return ()

    @asynccontextmanager
    async def listen(self, *topics: Topic) -> AsyncIterator[Listener]:
        with self._notifier.listening(*topics) as listener:
            yield listener

    async def check(self, *, fix: bool, progress: Callable[[int, int], object]) -> CheckReport:
        """Look for what a fault of this module would leave; there is nothing to fix."""
        problems: list[Problem] = []
        count = len(self._threads)
        for done, (thread_id, kept) in enumerate(self._threads.items()):
            progress(done, count)
            for run_id, run in kept.runs.items():
                problems += [Problem(kind, f"{thread_id}/{run_id}", text) for kind, text in _problems(run)]
        progress(count, count)
        return CheckReport(tuple(problems), count)


class MemoryStore(ThreadStore):
    """Keeps everything in this process until the process ends: for tests, and for a first look.

    clock: tells the time; the system's by default.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(MemoryBackend(SystemClock() if clock is None else clock))


def _problems(run: _Run) -> Iterator[tuple[ProblemKind, str]]:
    numbers = [event.number for event in run.events]
    if numbers != sorted(set(numbers)):
        yield ProblemKind.UNORDERED_EVENTS, "the numbers of its events do not rise"
    if not {event.data.id for event in run.events if isinstance(event.data, RunStep)} <= run.steps.keys():
        yield ProblemKind.MISSING_RECORD, "its events name a step that is missing"
    if run.run.status.is_terminal and (run.is_active or run.log.open_message is not None):
        yield ProblemKind.UNFINALIZED_RUN, "it is terminal, and its log has not ended"
