"""What the children of ``test_kills.py`` do until they are killed, and those of its neighbour, frozen.

Each act that returned is acknowledged.

``writing`` and ``state_of`` also run in the test, on a memory store, which says what must be there after each act.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any

import attrs
from pytest import MonkeyPatch  # noqa: PT013 - to patch without a test

from tests.files.fork_server import serve
from tests.support.disk_calls import Call, intercept
from threadloom import (
    Assistant,
    FileStore,
    FunctionCall,
    IdempotencyKey,
    Lease,
    LeaseLostError,
    Message,
    MessageDelta,
    MessageStatus,
    Run,
    RunContext,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWorker,
    RunWrite,
    Thread,
    ThreadNotFoundError,
    ThreadStore,
)
from threadloom.testing._stage import every_event

SHARED = "thread_shared"
ATTEMPTS = 1_000  # no run is given up here, however often its worker is killed

# Short ones, and some that take the kernel more than one page: a write of those can be cut by a kill.
_LENGTHS = (3, 40, 200, 1_500) * 4 + (30_000, 120_000)


def text_of(name: str) -> str:
    """Return the text that goes by a name, always the same."""
    chance = random.Random(name)
    letters = "".join(chance.choices('abc é\n\u2028"\\\U0001f600', k=50))
    return f"{name} " + letters * (chance.choice(_LENGTHS) // 50 + 1)


# Acts by hand


def _message(thread_id: str, name: str, run_id: str | None = None) -> Message:
    text = text_of(name)
    made = Message.assistant(thread_id, text, run_id=run_id) if run_id else Message.user(thread_id, text)
    return attrs.evolve(made, id=f"msg_{name}")


def _run(thread_id: str, name: str) -> Run:
    return attrs.evolve(Run.new(thread_id, model="m"), id=f"run_{name}")


def _key(name: str) -> IdempotencyKey:
    return IdempotencyKey(f"key ☕ {name}", "asked for")


def _step(run: Run, name: str) -> RunStep:
    call = FunctionCall(name="f", arguments=text_of(name)[:500])
    return attrs.evolve(RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id, calls=[call]), id=f"step_{name}")


async def writing(store: ThreadStore, writer: str) -> AsyncIterator[None]:
    """Do one act after the other, and yield after each: always the same ones for the same writer."""
    own = f"thread_{writer}"
    await store.create_thread(attrs.evolve(Thread.new(), id=own))
    yield
    for number in itertools.count():
        name = f"{writer}_{number}"
        await store.append_message(SHARED, _message(SHARED, f"{name}_a"))
        yield
        await store.append_message(own, _message(own, f"{name}_b"))
        yield
        run = await store.create_run(own, _run(own, name))
        yield
        await store.update_run_status(own, run.id, RunStatus.IN_PROGRESS)
        yield
        await store.append_step(own, run.id, _step(run, f"{name}_a"))
        yield
        await store.update_step_status(own, run.id, f"step_{name}_a", RunStepStatus.COMPLETED)
        yield
        await store.append_message(own, _message(own, f"{name}_c", run.id))
        yield
        await store.update_run(own, run.id, metadata={"at": name})
        yield
        await store.append_step(own, run.id, _step(run, f"{name}_b"))
        yield
        if number % 2:
            await store.force_update_run_status(own, run.id, RunStatus.CANCELLED)
        else:
            await store.update_run_status(own, run.id, RunStatus.COMPLETED)
        yield
        await store.update_message(own, f"msg_{name}_b", metadata={"edited": name})
        yield
        await store.update_thread(own, metadata={"at": name})
        yield
        async for _ in _with_assistants(store, name, keeps=number % 2 == 0):
            yield
        async for _ in _making_way(store, own, name):
            yield
        side = f"thread_{writer}_side"
        first = [_message(side, f"{name}_first")]
        await store.create_thread(attrs.evolve(Thread.new(), id=side), messages=first, key=_key(name))
        yield
        await store.append_message(side, _message(side, f"{name}_d"))
        yield
        await store.create_run(side, attrs.evolve(_run(side, f"{name}_side"), status=RunStatus.IN_PROGRESS))
        yield
        await store.delete_thread(side, force=True)
        yield


async def _with_assistants(store: ThreadStore, name: str, *, keeps: bool) -> AsyncIterator[None]:
    assistant = attrs.evolve(Assistant.new(model="m"), id=f"asst_{name}")
    await store.create_assistant(assistant, key=_key(name))
    yield
    await store.update_assistant(assistant.id, lambda old: attrs.evolve(old, name=name))
    yield
    if not keeps:
        await store.delete_assistant(assistant.id)
        yield


async def _making_way(store: ThreadStore, own: str, name: str) -> AsyncIterator[None]:
    await store.append_message(own, _message(own, f"{name}_k"), key=_key(name))
    yield
    for on_busy in ("interrupt", "rollback"):
        for made in ("e", "f"):
            await store.create_run(own, _run(own, f"{name}_{on_busy}_{made}"))
            yield
        message = _message(own, f"{name}_{on_busy}_g", f"run_{name}_{on_busy}_e")
        await store.append_message(own, message)
        yield
        wanted = _run(own, f"{name}_{on_busy}_k")
        more = [_message(own, f"{name}_{on_busy}_h")]
        await store.create_run(own, wanted, on_busy=on_busy, messages=more, key=_key(f"{name} {on_busy}"))
        yield
        await store.update_run_status(own, wanted.id, RunStatus.COMPLETED)
        yield


async def state_of(store: ThreadStore, writer: str) -> dict[str, object]:
    """Return all that is there of what a writer wrote, but for the moments and numbers that each store chooses."""
    state: dict[str, object] = {
        SHARED: [
            (message.id, message.text)
            for message in _whole(await store.list_messages(SHARED))
            if message.id.startswith(f"msg_{writer}_")
        ]
    }
    state["assistants"] = [
        (assistant.id, assistant.name)
        for assistant in _whole(await store.list_assistants())
        if assistant.id.startswith(f"asst_{writer}_")
    ]
    return state | await _state_of_threads(store, (f"thread_{writer}", f"thread_{writer}_side"))


async def _state_of_threads(store: ThreadStore, thread_ids: Iterable[str]) -> dict[str, object]:
    state: dict[str, object] = {}
    for thread_id in thread_ids:
        try:
            thread = await store.get_thread(thread_id)
        except ThreadNotFoundError:
            continue
        messages = _whole(await store.list_messages(thread_id))
        state[thread_id] = (
            thread.metadata,
            [(m.id, m.role, m.status, m.run_id, m.metadata, m.text) for m in messages],
            [await _run_state(store, run) for run in _whole(await store.list_runs(thread_id))],
        )
    return state


async def _run_state(store: ThreadStore, run: Run) -> object:
    steps = _whole(await store.list_steps(run.thread_id, run.id))
    events = await every_event(store, run)
    return (
        (run.id, run.status, run.metadata, run.last_error),
        [(step.id, step.status, step.type) for step in steps],
        [(str(event.type), getattr(event.data, "id", None)) for event in events],
    )


def _whole(page: Any) -> Iterable[Any]:
    assert page.damaged == ()
    return page  # type: ignore[no-any-return]


class Doom:
    """Kills its own process at any of the calls and returns of functions that the store's threads go through."""

    def __init__(self, acts: int, calls: int) -> None:
        self._acts = acts
        self._calls = calls
        threading.setprofile(self._pass)

    def pass_act(self) -> None:
        self._acts -= 1

    def _pass(self, *_: object) -> None:
        if self._acts <= 0:
            self._calls -= 1
            if self._calls < 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def create(said: int, _: int, root: str, durability: Any, calls: int | None, key: str) -> None:
    """Create one of each kind under a key, and acknowledge each id, until this process kills itself."""
    async with FileStore(root, durability=durability) as store:
        if calls is not None:
            Doom(0, calls)
        async for item in creating(store, key):
            os.write(said, f"{item.id}\n".encode())


async def creating(store: ThreadStore, value: str) -> AsyncIterator[Any]:
    """Create one of each kind under one key, with new ids, and yield each."""
    key = IdempotencyKey(value, "asked for")
    yield await store.create_assistant(Assistant.new(model="m", name=value), key=key)
    yield await store.create_thread(Thread.new(metadata={"key": value}), key=key)
    yield await store.append_message(SHARED, Message.user(SHARED, value), key=key)
    yield await store.create_run(SHARED, Run.new(SHARED, model="m", metadata={"key": value}), key=key)


async def write(said: int, _: int, root: str, durability: Any, doom: tuple[int, int] | None, *writers: str) -> None:
    """Let each writer write in a task of its own, until this process is killed or, with a ``doom``, kills itself."""
    end = Doom(*doom) if doom else None

    async def go_on(writer: str) -> None:
        async for _ in writing(store, writer):
            os.write(said, f"{writer}\n".encode())
            if end:
                end.pass_act()

    async with FileStore(root, durability=durability) as store, asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(go_on(writer))


# Acts under a lease


def words_of(run: Run) -> list[str]:
    """Return the words that a run's handler streams."""
    return [f"{run.id}:{number} " for number in range(int(run.metadata["words"]))]


def texts_of(run: Run) -> list[str]:
    """Return the texts of the messages that a run's handler writes, in their order."""
    return ["".join(words_of(run)), text_of(f"reply to {run.id}"), text_of(f"end of {run.id}")]


async def work(said: int, _: int, root: str, durability: Any, doom: tuple[int, int] | None) -> None:
    """Work on runs, and acknowledge what handlers wrote: run, attempt, turn, kind, id, and what more."""
    end = Doom(*doom) if doom else None

    async def handle(ctx: RunContext) -> str:
        run = ctx.run

        def acknowledge(kind: str, id_: str, more: object = None) -> None:
            os.write(said, (json.dumps([run.id, ctx.attempt, run.turn, kind, id_, more]) + "\n").encode())
            if end:
                end.pass_act()

        def draw() -> str:
            drawn.append(secrets.token_hex(8))
            return drawn[0]

        drawn: list[str] = []
        result = await ctx.checkpoint("drawn", draw)
        acknowledge("checkpoint" if drawn else "kept", "drawn", result)
        if run.turn == 0:
            async with ctx.step([FunctionCall(name="look_up", arguments=run.id)]) as step:
                acknowledge("kept" if step.is_kept else "step opened", step.id)
                step.set_output(step.calls[0], f"found {run.id}")
            acknowledge("kept" if step.is_kept else "step", step.id)
            async with ctx.message() as message:
                acknowledge("kept" if message.is_kept else "message opened", message.id)
                for word in words_of(run):
                    await message.write(word)
                    acknowledge("kept" if message.is_kept else "word", message.id, word)
            acknowledge("kept" if message.is_kept else "message", message.id)
            await ctx.call_tools([FunctionCall(name="ask", arguments=run.id)])
        [ask] = [call.function for call in ctx.tool_calls if call.function.name == "ask"]
        reply = await ctx.reply(texts_of(run)[1] if ask.output == f"told {run.id}" else "no output")
        acknowledge("reply", reply.id)
        return texts_of(run)[2]

    store = FileStore(root, durability=durability, max_attempts=ATTEMPTS)
    async with store, RunWorker(store, handle, concurrency=3):
        await asyncio.Event().wait()


# A story of every kind of transaction, cut off before a change of the files

STORY = "thread_story"
STORY_THREADS = (STORY, "thread_keyed")


class Cut:
    """Kills its own process before the change of files with a certain number, once it was armed."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.changes: int | None = None

    def arm(self) -> None:
        self.changes = 0

    def disarm(self) -> int:
        changes, self.changes = self.changes, None
        return changes or 0

    def __call__(self, call: Call) -> Any:
        if self.changes is not None and call.is_change:
            if self.changes == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.changes += 1
        return call()


async def telling(store: ThreadStore, known: dict[str, Lease]) -> AsyncIterator[None]:
    """Do one transaction of each kind after the other, and yield after each."""
    await store.create_thread(Thread.new(id=STORY))
    yield
    await store.append_message(STORY, _message(STORY, "s_1"))
    yield
    await store.create_run(STORY, _run(STORY, "s_1"), messages=[_message(STORY, "s_2")], key=_key("s_1"))
    yield
    known["lease"] = (await store.claim_run("teller")).lease
    yield
    reply = _message(STORY, "s_3", "run_s_1")
    step = _step(_run(STORY, "s_1"), "s_1")
    begun = attrs.evolve(reply, status=MessageStatus.IN_PROGRESS, content=(), completed_at=None)
    await store.write_run(known["lease"], RunWrite(items=(step, begun)))
    yield
    for word in ("one ", "two "):
        await store.write_run(known["lease"], RunWrite(items=(MessageDelta(reply.id, word),)))
        yield
    done = attrs.evolve(step, status=RunStepStatus.COMPLETED, completed_at=step.created_at)
    await store.write_run(known["lease"], RunWrite(items=(reply, done), status=RunStatus.COMPLETED))
    yield
    await store.update_thread(STORY, metadata={"at": "1"})
    yield
    for on_busy in ("interrupt", "rollback"):
        for number in "ab":
            await store.create_run(STORY, _run(STORY, f"s_{on_busy}_{number}"))
            yield
        await store.append_message(STORY, _message(STORY, f"s_{on_busy}", f"run_s_{on_busy}_a"))
        yield
        more = [_message(STORY, f"s_{on_busy}_more")]
        wanted = _run(STORY, f"s_{on_busy}")
        await store.create_run(STORY, wanted, on_busy=on_busy, messages=more, key=_key(on_busy))
        yield
        await store.request_cancel(STORY, wanted.id)
        yield
    await store.force_update_run_status(STORY, "run_s_1", RunStatus.FAILED)
    yield
    old = attrs.evolve(_run(STORY, "s_old"), status=RunStatus.COMPLETED)
    await store.create_run(STORY, old, messages=[_message(STORY, "s_4")])
    yield
    await store.append_message(STORY, _message(STORY, "s_5", "run_s_old"))
    yield
    await store.update_message(STORY, "msg_s_1", metadata={"edited": "1"})
    yield
    await store.delete_message(STORY, "msg_s_2")
    yield
    first = [_message("thread_keyed", "s_6")]
    await store.create_thread(Thread.new(id="thread_keyed"), messages=first, key=_key("thread"))
    yield
    await store.delete_thread("thread_keyed")
    yield


async def story_of(store: ThreadStore) -> dict[str, object]:
    """Return all that is there of the story."""
    return await _state_of_threads(store, STORY_THREADS)


async def tell(said: int, _: int, root: str, durability: Any, at: int) -> None:
    """Tell the story, acknowledge each transaction, and die before the change number ``at``."""
    cut = Cut(at)
    intercept(MonkeyPatch(), cut)
    async with FileStore(root, durability=durability) as store:
        cut.arm()
        async for _told in telling(store, {}):
            os.write(said, b"done\n")
        told = cut.disarm()
    os.write(said, f"{told}\n".encode())


# One act, held up


class Halt:
    """Holds a thread of the store's up, as often as it enters or leaves a call of the system, once it was armed."""

    def __init__(self, said: int, orders: int, stop_at: int | None) -> None:
        self._said = said
        self._orders = orders
        self._stop_at = stop_at
        self.moments: int | None = None
        threading.setprofile(self._pass)

    def arm(self) -> None:
        self.moments = 0

    def _pass(self, _: object, event: str, function: Any) -> None:
        if self.moments is None or not event.startswith("c_") or function.__module__ not in {"posix", "fcntl"}:
            return
        self.moments += 1
        if self.moments == self._stop_at:
            os.write(self._said, b"held up\n")
            os.read(self._orders, 64)


async def finish(said: int, orders: int, root: str, durability: Any, stop_at: int | None) -> None:
    """Take a run, and finish it with a message and a step in one act, in the middle of which this process stops."""
    halt = Halt(said, orders, stop_at)
    # A claim looks at the threads of the frozen ones too, and soon passes them by.
    async with FileStore(root, durability=durability, lock_timeout=0.05) as store:
        claim = await store.claim_run("frozen")
        run = claim.run
        os.write(said, f"{run.thread_id} {run.id}\n".encode())
        step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id)
        await store.write_run(claim.lease, RunWrite(items=(step,)))
        closed = attrs.evolve(step, status=RunStepStatus.COMPLETED, completed_at=step.created_at)
        reply = Message.assistant(run.thread_id, text_of(run.id), run_id=run.id)
        halt.arm()
        try:
            await store.write_run(claim.lease, RunWrite(items=(closed, reply), status=RunStatus.COMPLETED))
        except LeaseLostError:
            os.write(said, b"lost\n")
        else:
            os.write(said, f"completed {halt.moments}\n".encode())
        os.read(orders, 64)


if __name__ == "__main__":
    serve({"create": create, "write": write, "work": work, "finish": finish, "tell": tell})
