"""A Hypothesis machine that does the same to two stores and compares what they answer, after every step."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

from threadloom.errors import ActiveRunError, ThreadloomError
from threadloom.events import Checkpoint, MessageDelta, RunEvent
from threadloom.models import (
    Assistant,
    FunctionCall,
    IncompleteDetails,
    Message,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
    ToolOutput,
    Usage,
)
from threadloom.pages import Page
from threadloom.records import Lease, RunWrite
from threadloom.store import Claim, ThreadStore
from threadloom.testing._clock import ManualClock
from threadloom.testing._stage import announced, check_is_clean, every_event
from threadloom.validation import KEEP, IdempotencyKey

__all__ = ["StoreMachine", "store_machine"]

MakeStore = Callable[[ManualClock, Path], ThreadStore]
RunIds = tuple[str, str]
Leases = tuple[Lease, Lease]
_SECOND = 1_000_000_000


def increment(metadata: dict[str, Any]) -> Mapping[str, str]:
    """Count one more."""
    return metadata | {"count": str(int(metadata.get("count", "0")) + 1)}


def fail(_: dict[str, Any]) -> Mapping[str, str]:
    """Make nothing of the metadata."""
    raise ZeroDivisionError


some_text = st.text(max_size=4)
some_texts = st.lists(some_text, max_size=2)
some_metadata = st.dictionaries(some_text, some_text, max_size=2)
some_change = st.one_of(some_metadata, st.none(), st.sampled_from([increment, fail]))
some_error = st.none() | st.builds(RunError, st.just("server_error"), some_text)
some_limit = st.none() | st.integers(1, 3)
some_order = st.sampled_from(["asc", "desc"])
any_status = st.sampled_from(RunStatus)
any_step_status = st.sampled_from(RunStepStatus)
some_key = st.one_of(
    st.none(), st.none(), st.builds(IdempotencyKey, st.sampled_from(["k", "K"]), st.sampled_from(["1", "2"]))
)
some_tenant = st.sampled_from([None, None, "acme", "other"])
some_resources = st.one_of(st.just(KEEP), st.none(), st.dictionaries(some_text, some_metadata, max_size=1))
some_tokens = st.none() | st.builds(lambda tokens: Usage(tokens, 0, tokens), st.integers(0, 5))


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and an oracle with the same operations, the same ids and one clock.

    Left out of the comparison is what a store may choose for itself: the tokens and ``liveness_id`` of leases.
    """

    make_store: ClassVar[MakeStore]
    make_oracle: ClassVar[MakeStore]

    assistants: Bundle[str] = Bundle("assistants")
    threads: Bundle[str] = Bundle("threads")
    messages: Bundle[tuple[str, str]] = Bundle("messages")
    runs: Bundle[RunIds] = Bundle("runs")
    steps: Bundle[tuple[str, str, str]] = Bundle("steps")
    leases: Bundle[Leases] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._clock = ManualClock()
        self._set_back = timedelta()
        self._opened_at = 0
        self._place = tempfile.TemporaryDirectory(prefix="threadloom-machine-")
        root = Path(self._place.name)
        self._stores = (type(self).make_store(self._clock, root), type(self).make_oracle(self._clock, root))
        self._names = 0
        self._leases: list[Leases] = []
        self._open_messages: dict[RunIds, Message] = {}
        self._is_sound = True
        for store in self._stores:
            self._runner.run(store.__aenter__())

    def teardown(self) -> None:
        """Compare all that there is, and clean up."""
        try:
            if self._is_sound:
                self.reopen()
                for store in self._stores:
                    self._runner.run(check_is_clean(store))
        finally:
            for store in self._stores:
                self._runner.run(store.close())
            self._runner.close()
            self._place.cleanup()

    # Assistants

    @rule(target=assistants, name=st.sampled_from(["asst_a", "asst_b"]), tenant=some_tenant, key=some_key)
    def create_assistant(self, name: str, tenant: str | None, key: IdempotencyKey | None) -> str:
        """Create an assistant, perhaps on a taken id, or under a key that was used."""
        assistant = attrs.evolve(Assistant.new(model="any", id=name, tenant=tenant), created_at=self._now())
        self._do(lambda store: store.create_assistant(assistant, key=key))
        return name

    @rule(assistant_id=assistants, text=some_text)
    def update_assistant(self, assistant_id: str, text: str) -> None:
        """Change an assistant."""
        self._do(lambda store: store.update_assistant(assistant_id, lambda old: attrs.evolve(old, name=text)))

    @rule(assistant_id=assistants)
    def delete_assistant(self, assistant_id: str) -> None:
        """Read an assistant, and delete it."""
        self._do(lambda store: store.get_assistant(assistant_id))
        self._do(lambda store: store.delete_assistant(assistant_id))

    # Threads

    @initialize(target=threads)
    def begin(self) -> Any:
        """Have a thread from the start."""
        return self.create_thread("thread_a", {}, None, [], None)

    @rule(
        target=threads,
        name=st.sampled_from(["thread_a", "thread_b", "thread_c"]),
        metadata=some_metadata,
        tenant=some_tenant,
        texts=some_texts,
        key=some_key,
    )
    def create_thread(
        self, name: str, metadata: dict[str, str], tenant: str | None, texts: list[str], key: IdempotencyKey | None
    ) -> str:
        """Create a thread, perhaps on a taken id, or under a key that was used."""
        thread = attrs.evolve(Thread.new(id=name, metadata=metadata, tenant=tenant), created_at=self._now())
        given = [self._message(name, text) for text in texts]
        self._do(lambda store: store.create_thread(thread, messages=given, key=key))
        return name

    @rule(thread_id=threads, change=st.just(KEEP) | some_change, resources=some_resources)
    def update_thread(self, thread_id: str, change: Any, resources: Any) -> None:
        """Change a thread's metadata and what its tools have."""
        self._do(lambda store: store.update_thread(thread_id, metadata=change, tool_resources=resources))

    @rule(thread_id=threads, force=st.booleans())
    def delete_thread(self, thread_id: str, *, force: bool) -> None:
        """Delete a thread, by force or not."""
        self._do(lambda store: store.delete_thread(thread_id, force=force))

    # Messages

    @rule(
        target=messages,
        thread_id=threads,
        text=some_text,
        on_busy=st.sampled_from(["enqueue", "reject"]),
        key=some_key,
    )
    def append_message(self, thread_id: str, text: str, on_busy: Any, key: IdempotencyKey | None) -> tuple[str, str]:
        """Append a user's message, unless the thread is busy, or the key was used."""
        message = self._message(thread_id, text)
        self._do(lambda store: store.append_message(thread_id, message, on_busy=on_busy, key=key))
        return thread_id, message.id

    @rule(target=messages, run=runs, text=some_text)
    def append_reply(self, run: RunIds, text: str) -> tuple[str, str]:
        """Append a message of a run by hand."""
        message = Message.assistant(run[0], text, run_id=run[1])
        message = attrs.evolve(message, id=self._name("msg"), created_at=self._now())
        self._do(lambda store: store.append_message(run[0], message))
        return run[0], message.id

    @rule(message=messages, change=some_change)
    def update_message(self, message: tuple[str, str], change: Any) -> None:
        """Change a message's metadata."""
        self._do(lambda store: store.update_message(*message, metadata=change))

    @rule(message=messages)
    def delete_message(self, message: tuple[str, str]) -> None:
        """Delete a message."""
        self._do(lambda store: store.delete_message(*message))

    @rule(message=messages)
    def get_message(self, message: tuple[str, str]) -> None:
        """Read a message."""
        self._do(lambda store: store.get_message(*message))

    # Runs

    @rule(
        target=runs,
        thread_id=threads,
        name=st.sampled_from(["run_a", "run_b", "run_c"]),
        status=st.just(RunStatus.QUEUED) | any_status,
        on_busy=st.sampled_from(["enqueue", "enqueue", "reject", "interrupt", "rollback"]),
        expires_in=st.none() | st.integers(0, 30),
        expires_after=st.none() | st.integers(1, 30),
        texts=some_texts,
        key=some_key,
    )
    def create_run(
        self,
        thread_id: str,
        name: str,
        status: RunStatus,
        *,
        on_busy: Any,
        expires_in: int | None,
        expires_after: int | None,
        texts: list[str],
        key: IdempotencyKey | None,
    ) -> RunIds:
        """Create a run, perhaps on a taken id, perhaps as history, perhaps in the place of others."""
        run = attrs.evolve(
            Run.new(thread_id, model="any", status=status),
            id=name,
            created_at=self._now(),
            expires_at=None if expires_in is None else self._now() + expires_in,
            expires_after_seconds=expires_after,
        )
        given = [self._message(thread_id, text) for text in texts]
        self._do(lambda store: store.create_run(thread_id, run, on_busy=on_busy, messages=given, key=key))
        return thread_id, name

    @rule(run=runs, change=some_change)
    def update_run(self, run: RunIds, change: Any) -> None:
        """Change a run's metadata."""
        self._do(lambda store: store.update_run(*run, metadata=change))

    @rule(run=runs, status=any_status, error=some_error)
    def update_run_status(self, run: RunIds, status: RunStatus, error: RunError | None) -> None:
        """Bring a run to a status by hand."""
        self._do(lambda store: store.update_run_status(*run, status, error))

    @rule(run=runs, status=st.just(RunStatus.QUEUED) | any_status, error=some_error)
    def force_update_run_status(self, run: RunIds, status: RunStatus, error: RunError | None) -> None:
        """Force a status on a run."""
        self._do(lambda store: store.force_update_run_status(*run, status, error))

    @rule(run=runs)
    def request_cancel(self, run: RunIds) -> None:
        """Ask a run to stop."""
        self._do(lambda store: store.request_cancel(*run))

    @rule(run=runs, ids=st.just(["call_1"]) | st.lists(st.sampled_from(["call_1", "call_2"]), max_size=2))
    def submit_tool_outputs(self, run: RunIds, ids: list[str]) -> None:
        """Hand in outputs, perhaps of other calls than are waited for."""
        self._do(lambda store: store.submit_tool_outputs(*run, [ToolOutput(id_, id_) for id_ in ids]))

    @rule(run=runs)
    def finalize_run(self, run: RunIds) -> None:
        """Finalize a run, which changes nothing."""
        self._do(lambda store: store.finalize_run(*run))

    @rule(run=runs)
    def read_run(self, run: RunIds) -> None:
        """Read a run and what belongs to it."""
        self._do(lambda store: store.get_run(*run))
        self._do(lambda store: store.list_messages(run[0], run_id=run[1]))
        self._do(lambda store: store.list_messages(run[0], seen_by=run[1]))
        self._do(lambda store: _events(store, *run))
        self._do(lambda store: store.get_checkpoints(*run))

    # Steps

    @rule(target=steps, run=runs, name=st.sampled_from(["step_a", "step_b"]), status=any_step_status)
    def append_step(self, run: RunIds, name: str, status: RunStepStatus) -> tuple[str, str, str]:
        """Append a step by hand, perhaps on a taken id."""
        step = attrs.evolve(self._step(run, name), status=status)
        self._do(lambda store: store.append_step(*run, step))
        return (*run, name)

    @rule(step=steps, status=any_step_status, output=st.none() | some_text, error=some_error)
    def update_step_status(
        self, step: tuple[str, str, str], status: RunStepStatus, output: str | None, error: RunError | None
    ) -> None:
        """Bring a step to a status by hand."""
        call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="", output=output))
        details = None if output is None else ToolCalls((call,))
        self._do(lambda store: store.update_step_status(*step, status, details=details, error=error))

    @rule(step=steps)
    def get_step(self, step: tuple[str, str, str]) -> None:
        """Read a step."""
        self._do(lambda store: store.get_step(*step))

    # The queue

    @rule(target=leases, adopt=st.booleans())
    def claim_run(self, *, adopt: bool) -> Any:
        """Claim a run, if there is one."""
        mine, other = self._do(lambda store: store.try_claim_run("worker_1", adopt=adopt))
        if not isinstance(mine, Claim) or not isinstance(other, Claim):
            return multiple()
        self._leases.append((mine.lease, other.lease))
        return self._leases[-1]

    @rule(target=leases, limit=st.integers(1, 3), adopt=st.booleans())
    def claim_runs(self, limit: int, *, adopt: bool) -> Any:
        """Claim several runs together."""
        mine, other = self._do(lambda store: store.try_claim_runs("worker_2", limit, adopt=adopt))
        sides = zip(cast("list[Claim]", mine), cast("list[Claim]", other), strict=True)
        made = [(one.lease, another.lease) for one, another in sides]
        self._leases += made
        return multiple(*made)

    @rule(lease=leases)
    def check_lease(self, lease: Leases) -> None:
        """Ask whether a lease is live."""
        self._do_leased(lease, lambda store, mine: store.check_lease(mine))

    @rule(target=steps, lease=leases, name=st.sampled_from(["step_a", "step_b", "step_c"]), status=any_step_status)
    def write_step(self, lease: Leases, name: str, status: RunStepStatus) -> tuple[str, str, str]:
        """Write a step under a lease, new or changed."""
        step = attrs.evolve(self._step(_run_of(lease), name), status=status)
        self._do_leased(lease, lambda store, mine: store.write_run(mine, RunWrite(items=(step,))))
        return (*_run_of(lease), name)

    @rule(target=messages, lease=leases, pieces=st.lists(some_text, max_size=3))
    def begin_message(self, lease: Leases, pieces: list[str]) -> tuple[str, str]:
        """Begin to stream a message."""
        run = _run_of(lease)
        message = attrs.evolve(
            Message.assistant(run[0], "", run_id=run[1]), id=self._name("msg"), created_at=self._now()
        )
        self._open_messages[run] = message
        deltas = tuple(MessageDelta(message.id, piece) for piece in pieces)
        work = RunWrite(items=(announced(message), *deltas))
        self._do_leased(lease, lambda store, mine: store.write_run(mine, work))
        return run[0], message.id

    @rule(lease=leases, text=some_text)
    def stream(self, lease: Leases, text: str) -> None:
        """Stream a piece, into a message that is open or not."""
        message = self._open_messages.get(_run_of(lease))
        delta = MessageDelta("msg_none" if message is None else message.id, text)
        self._do_leased(lease, lambda store, mine: store.write_run(mine, RunWrite(items=(delta,))))

    @rule(lease=leases, text=some_text)
    def end_message(self, lease: Leases, text: str) -> None:
        """End a streamed message."""
        message = self._open_messages.pop(_run_of(lease), None)
        items = () if message is None else (attrs.evolve(message, content=(TextContent(text),)),)
        self._do_leased(lease, lambda store, mine: store.write_run(mine, RunWrite(items=items)))

    @rule(lease=leases, name=some_text, result=st.none() | some_metadata, spent=some_tokens)
    def keep_checkpoint(self, lease: Leases, name: str, result: Any, spent: Usage | None) -> None:
        """Keep a result for a run."""
        work = RunWrite(items=(Checkpoint(name, result),), spent=spent)
        self._do_leased(lease, lambda store, mine: store.write_run(mine, work))

    @rule(lease=leases)
    def call_tool(self, lease: Leases) -> None:
        """Give a lease back, and wait for the output of a tool."""
        call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments=""))
        step = attrs.evolve(self._step(_run_of(lease), self._name("step")), step_details=ToolCalls((call,)))
        work = RunWrite(items=(step,), status=RunStatus.REQUIRES_ACTION, required_action=RequiredAction((call,)))
        self._do_leased(lease, lambda store, mine: store.write_run(mine, work))

    @rule(
        lease=leases,
        status=st.just(RunStatus.COMPLETED) | any_status,
        error=some_error,
        retry_in=st.none() | st.integers(0, 10),
        attempt_failed=st.booleans(),
        usage=some_tokens,
        spent=some_tokens,
    )
    def write_status(
        self,
        lease: Leases,
        status: RunStatus,
        error: RunError | None,
        retry_in: int | None,
        *,
        usage: Usage | None,
        spent: Usage | None,
        attempt_failed: bool,
    ) -> None:
        """Give a lease back."""
        work = RunWrite(
            status=status,
            error=error,
            usage=usage,
            spent=spent,
            retry_at=None if retry_in is None else self._now() + retry_in,
            attempt_failed=attempt_failed,
            incomplete_details=IncompleteDetails("max_prompt_tokens") if status is RunStatus.INCOMPLETE else None,
        )
        self._do_leased(lease, lambda store, mine: store.write_run(mine, work))

    @rule(lease=consumes(leases))
    def complete(self, lease: Leases) -> None:
        """Complete a run, and forget its lease."""
        self._do_leased(lease, lambda store, mine: store.write_run(mine, RunWrite(status=RunStatus.COMPLETED)))

    # Pages

    @rule(tenant=some_tenant, limit=some_limit, order=some_order, after=st.none() | threads, before=st.none() | threads)
    def list_threads(self, tenant: str | None, **page: Any) -> None:
        """List threads and their ids."""
        self._do(lambda store: store.list_threads(tenant=tenant, **page))
        self._do(lambda store: store.list_thread_ids(**page))

    @rule(tenant=some_tenant, limit=some_limit, order=some_order, after=st.none() | assistants)
    def list_assistants(self, **page: Any) -> None:
        """List assistants."""
        self._do(lambda store: store.list_assistants(**page))

    @rule(
        thread_id=threads,
        limit=some_limit,
        order=some_order,
        after=st.none() | messages,
        before=st.none() | messages,
    )
    def list_messages(
        self, thread_id: str, after: tuple[str, str] | None, before: tuple[str, str] | None, **page: Any
    ) -> None:
        """List messages, with cursors of this thread and of others."""
        page |= {"after": after and after[1], "before": before and before[1]}
        self._do(lambda store: store.list_messages(thread_id, **page))

    @rule(thread_id=threads, limit=some_limit, order=some_order, after=st.none() | runs, before=st.none() | runs)
    def list_runs(self, thread_id: str, after: RunIds | None, before: RunIds | None, **page: Any) -> None:
        """List runs, with cursors of this thread and of others."""
        page |= {"after": after and after[1], "before": before and before[1]}
        self._do(lambda store: store.list_runs(thread_id, **page))

    @rule(run=runs, limit=some_limit, order=some_order, after=st.none() | steps, before=st.none() | steps)
    def list_steps(
        self, run: RunIds, after: tuple[str, str, str] | None, before: tuple[str, str, str] | None, **page: Any
    ) -> None:
        """List steps, with cursors of this run and of others."""
        page |= {"after": after and after[2], "before": before and before[2]}
        self._do(lambda store: store.list_steps(*run, **page))

    # Time, and what outlives it

    @rule(seconds=st.integers(1, 20))
    def advance(self, seconds: int) -> None:
        """Let time go by."""
        self._clock.advance(timedelta(seconds=seconds))

    @rule(seconds=st.integers(1, 20))
    def set_clock_back(self, seconds: int) -> None:
        """Set the clock back, but not to before the store was opened again, which knows no more than the clock."""
        seconds = max(0, min(seconds, self._now() - self._opened_at))
        self._clock.step_wall_clock(timedelta(seconds=-seconds))
        self._set_back += timedelta(seconds=seconds)

    @rule()
    def reopen(self) -> None:
        """Close the store under test, open it again, and compare all that there is.

        Its leases are given back before: those of a store that is closed are taken back at some later moment. The clock
        is set right: which of two runs in different threads was made first, a store knows by it, once it was closed.
        """
        self._clock.step_wall_clock(self._set_back + timedelta(seconds=1))
        self._set_back = timedelta()
        self._opened_at = self._now() + 1
        for leases in self._leases:
            for status in (RunStatus.QUEUED, RunStatus.CANCELLED):
                work = RunWrite(status=status)
                self._do_leased(leases, lambda store, lease, work=work: store.write_run(lease, work))  # type: ignore[misc]
        self._leases.clear()
        self._runner.run(self._stores[0].close())
        root = Path(self._place.name)
        self._stores = (type(self).make_store(self._clock, root), self._stores[1])
        self._runner.run(self._stores[0].__aenter__())
        self._do(lambda store: store.list_assistants())
        threads, _ = self._do(lambda store: store.list_thread_ids())
        for thread_id in cast("Page[str]", threads):
            self._compare_thread(thread_id)

    def _compare_thread(self, thread_id: str) -> None:
        self._do(lambda store: store.get_thread(thread_id))
        self._do(lambda store: store.list_messages(thread_id))
        runs, _ = self._do(lambda store: store.list_runs(thread_id))
        for run in cast("Page[Run]", runs):
            self._compare_run(run)

    def _compare_run(self, run: Run) -> None:
        self._do(lambda store: store.list_steps(run.thread_id, run.id))
        self._do(lambda store: _events(store, run.thread_id, run.id))

    # How it is done

    def _now(self) -> int:
        return self._clock.time_ns() // _SECOND

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}_{self._names}"

    def _message(self, thread_id: str, text: str) -> Message:
        return attrs.evolve(Message.user(thread_id, text), id=self._name("msg"), created_at=self._now())

    def _step(self, run: RunIds, name: str) -> RunStep:
        step = RunStep.tool_calls(thread_id=run[0], run_id=run[1])
        return attrs.evolve(step, id=name, created_at=self._now())

    def _do(self, operation: Callable[[ThreadStore], Awaitable[object]]) -> tuple[object, object]:
        return self._compare([partial(operation, store) for store in self._stores])

    def _do_leased(self, leases: Leases, operation: Callable[[ThreadStore, Lease], Awaitable[object]]) -> None:
        sides = zip(self._stores, leases, strict=True)
        self._compare([partial(operation, store, lease) for store, lease in sides])

    def _compare(self, sides: list[Callable[[], Awaitable[object]]]) -> tuple[object, object]:
        self._is_sound = False
        self._clock.advance(timedelta(milliseconds=1))
        mine, other = (self._runner.run(_outcome(side)) for side in sides)
        assert _comparable(mine) == _comparable(other)
        self._is_sound = True
        return mine, other


async def _outcome(side: Callable[[], Awaitable[object]]) -> object:
    try:
        return await side()
    except (ThreadloomError, ZeroDivisionError) as error:
        return error


async def _events(store: ThreadStore, thread_id: str, run_id: str) -> list[RunEvent]:
    return await every_event(store, await store.get_run(thread_id, run_id))


def _run_of(leases: Leases) -> RunIds:
    return leases[0].thread_id, leases[0].run_id


def _comparable(value: object) -> object:
    compared = value
    match value:
        case ActiveRunError(run_id=run_id):
            compared = ActiveRunError, run_id
        case Exception():
            compared = type(value)
        case Page():
            compared = [_comparable(item) for item in value], value.has_more, value.damaged
        case list():
            compared = [_comparable(item) for item in value]
        case RunEvent():
            compared = value.number, value.type, value.created_at, _comparable(value.data)
        case Claim():
            compared = _comparable(value.run), attrs.evolve(value.lease, token="", liveness_id=""), value.has_past
    return compared


def store_machine(make_store: MakeStore, *, oracle: MakeStore) -> type[StoreMachine]:
    """Return a machine that sets the store that ``make_store`` makes against the one that ``oracle`` makes.

    Each is called with the clock and a directory that is made for each example, and returns a store that is not open.
    ``make_store`` is called again with the same two when the store is opened anew, and then has to return one on the
    same data.

        TestMyStore = store_machine(lambda clock, root: MyStore(root, clock=clock), oracle=...).TestCase
    """
    return cast(
        "type[StoreMachine]",
        type(
            "StoreMachine",
            (StoreMachine,),
            {"make_store": staticmethod(make_store), "make_oracle": staticmethod(oracle)},
        ),
    )
