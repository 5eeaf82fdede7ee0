"""What happens on a recorded disk: writes of every kind, by one store and by two, and what was promised when."""

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import define, field, frozen

from tests.files.recorded_disk import RecordedDisk
from threadloom import (
    Assistant,
    Checkpoint,
    Claim,
    FileStore,
    FunctionCall,
    IdempotencyKey,
    Message,
    MessageDelta,
    RequiredAction,
    Run,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWrite,
    StepDelta,
    Thread,
    ThreadNotFoundError,
    ToolCall,
    ToolOutput,
)
from threadloom.events import EventType
from threadloom.testing._stage import PATIENCE, ThreadPicture, announced, thread_picture, until

DELTAS = {EventType.MESSAGE_DELTA, EventType.STEP_DELTA}
ASSISTANTS = "assistants, which are no thread"
Durability = Literal["power", "process"]


@frozen
class Seen:
    """All that is there of a thread, or of the assistants, with the keys under which it was created."""

    thread: ThreadPicture | None = None
    assistants: tuple[Assistant, ...] = ()
    keys: tuple[tuple[str, str, str], ...] = ()


async def shown(store: FileStore, place: str) -> Seen | None:
    """Return all that is there of a thread, or none where there is nothing; of the assistants, for ``ASSISTANTS``."""
    thread = None
    assistants: tuple[Assistant, ...] = ()
    if place == ASSISTANTS:
        page = await store.list_assistants()
        assert not page.damaged
        assistants = page.items
    else:
        with suppress(ThreadNotFoundError):
            thread = await thread_picture(store, place)
    # Past the store, which by now has made whole what a crash has left.
    seen = Seen(thread, assistants, tuple(sorted(keys_of(store.root, place))))
    return None if seen == Seen() else seen


def keys_of(root: Path, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield what the files of keys say, where it counts: key, fingerprint and the id of what was created."""
    own = root / ".threadloom" / "keys"
    found = own.glob("assistants/*") if place == ASSISTANTS else own.glob("threads/*/*")
    for path in (*found, *(root / place).glob("keys/*")):
        record = json.loads(path.read_bytes())
        created = record["created"]
        is_of_place = created["object"] != "thread" or created["id"] == place
        if is_of_place and not (record.get("is_pending") and not _was_made(root, created)):
            yield record["key"], record["fingerprint"], created["id"]


def _was_made(root: Path, created: dict[str, Any]) -> bool:
    """Return whether what a key names is there: the key is written first, and its process may have died in between."""
    match created["object"]:
        case "assistant":
            path = root / ".threadloom" / "assistants" / f"{created['id']}.json"
        case "thread":
            path = root / created["id"] / "meta.json"
        case "thread.run":
            path = root / created["thread_id"] / "runs" / created["id"]
        case _:
            path = root / created["thread_id"] / "messages.jsonl"
            return path.exists() and f'"{created["id"]}"' in path.read_text()
    return path.exists()


def without_deltas(seen: Seen | None) -> Seen | None:
    """Return what of a thread must outlive a power cut: the pieces of a message that is not yet whole need not."""
    if seen is None or seen.thread is None:
        return seen
    events = tuple(tuple(event for event in events if event.type not in DELTAS) for events in seen.thread.events)
    return attrs.evolve(seen, thread=attrs.evolve(seen.thread, events=events))


def difference(seen: Any, expected: Any, where: str = "") -> str:
    """Return the first place in which two pictures differ, and what is there."""
    if attrs.has(type(seen)) and type(seen) is type(expected):
        for name in attrs.fields_dict(type(seen)):
            one, other = getattr(seen, name), getattr(expected, name)
            if one != other:
                return difference(one, other, f"{where}.{name}")
    if isinstance(seen, tuple) and isinstance(expected, tuple) and len(seen) == len(expected):
        for place, (one, other) in enumerate(zip(seen, expected, strict=True)):
            if one != other:
                return difference(one, other, f"{where}[{place}]")
    if isinstance(seen, tuple) and isinstance(expected, tuple):
        kinds = [[getattr(item, "type", type(item).__name__) for item in items] for items in (seen, expected)]
        return f"{where} has {len(seen)}, not {len(expected)}: {kinds[0]}, not {kinds[1]}"
    return f"{where} is {str(seen)[:200]}, not {str(expected)[:200]}"


async def works(store: FileStore, seed: int, new_id: str = "new") -> None:
    """Use what is there: a thread that was in the story, and one that is new."""
    new = await store.create_thread(a_thread(new_id))
    ids = sorted({*await store.list_thread_ids()} - {new.id})
    for thread_id in [new.id, *([ids[seed % len(ids)]] if ids else [])]:
        await store.append_message(thread_id, Message.user(thread_id, "weiter ☕"))
        for run in await store.list_runs(thread_id):
            if not run.status.is_terminal:
                await store.force_update_run_status(thread_id, run.id, RunStatus.CANCELLED)
        run = await store.create_run(thread_id, Run.new(thread_id, model="any"))
        while (claim := await store.try_claim_run("worker")) is not None:
            reply = Message.assistant(claim.run.thread_id, "ja", run_id=claim.run.id)
            step = RunStep.message_creation(thread_id=claim.run.thread_id, run_id=claim.run.id, message_id=reply.id)
            await store.write_run(claim.lease, RunWrite(items=(step, reply), status=RunStatus.COMPLETED))
        assert (await store.get_run(thread_id, run.id)).status is RunStatus.COMPLETED


@contextmanager
def directory_in_memory() -> Iterator[Path]:
    """Yield a directory that no disk slows down: thousands of trees are made in it."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own below it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        yield Path(directory)


@frozen
class Version:
    """A thread as one write made it: how much was recorded when it began and when it returned."""

    begun: int
    acknowledged: int
    picture: Seen | None


@define
class Story:
    """The versions of each thread, in their order."""

    disk: RecordedDisk
    versions: dict[str, list[Version]] = field(factory=dict)

    async def tell(self, store: FileStore, thread_id: str, write: Awaitable[Any]) -> Any:
        """Await a write to a thread and note what it came to; return what it returned."""
        result, version = await self._told(write)
        self._note(thread_id, attrs.evolve(version, picture=await shown(store, thread_id)))
        return result

    async def tell_together(self, store: FileStore, writes: dict[str, Awaitable[Any]]) -> None:
        """Await writes to several threads that are made at the same time."""
        for thread_id, (_, version) in zip(
            writes, await asyncio.gather(*(self._told(write) for write in writes.values())), strict=True
        ):
            self._note(thread_id, attrs.evolve(version, picture=await shown(store, thread_id)))

    async def _told(self, write: Awaitable[Any]) -> tuple[Any, Version]:
        begun = len(self.disk.effects)
        result = await write
        return result, Version(begun, len(self.disk.effects), None)

    def _note(self, thread_id: str, version: Version) -> None:
        self.versions.setdefault(thread_id, [Version(0, 0, None)]).append(version)

    def allowed(self, thread_id: str, recorded: int) -> list[Seen | None]:
        """Return what may be seen of a thread when the end came after so much was recorded."""
        versions = self.versions.get(thread_id, [Version(0, 0, None)])
        last = max(index for index, version in enumerate(versions) if version.acknowledged <= recorded)
        later = [version.picture for version in versions[last + 1 :] if version.begun < recorded]
        return [versions[last].picture, *later]

    @property
    def acknowledgements(self) -> list[int]:
        """How much was recorded when each write returned."""
        return sorted({version.acknowledged for versions in self.versions.values() for version in versions})


def a_thread(name: str) -> Thread:
    return Thread.new(id=name, metadata={"drink": "café ☕"})


def an_assistant(name: str) -> Assistant:
    return Assistant.new(id=name, model="any", instructions="Sei nett ☕")


def a_key(value: str) -> IdempotencyKey:
    return IdempotencyKey(value, "asked for")


def a_run(thread_id: str, **changes: Any) -> Run:
    return attrs.evolve(Run.new(thread_id, model="any"), **changes)


async def taken(store: FileStore) -> Claim:
    async with asyncio.timeout(PATIENCE):
        return await store.claim_run("worker")


async def finished(store: FileStore) -> None:
    """Wait until the store has finished by itself what the disk has cut off behind a commit."""
    backend: Any = store._backend
    await until(lambda: not backend._transactions.unfinished)


async def one_store(story: Story, store: Callable[[], FileStore]) -> None:
    """Do everything that a store can do, and close and open it in the middle."""
    async with store() as first:
        await _a_run_that_is_answered(story, first)
        await _messages_that_change(story, first)
    async with store() as second:
        await _a_run_that_calls_tools(story, second)
        await _runs_that_are_stopped(story, second)
        await _assistants(story, second)
        await _created_under_keys(story, second)
        await _runs_that_make_way(story, second)
        await _many_at_once(story, second)
        await _a_thread_that_is_made_again(story, second)


async def _a_run_that_is_answered(story: Story, store: FileStore) -> None:
    await story.tell(store, "t1", store.create_thread(a_thread("t1")))
    await story.tell(store, "t1", store.append_message("t1", Message.user("t1", "Grüße ☕")))
    run = await story.tell(store, "t1", store.create_run("t1", a_run("t1")))
    claim = await story.tell(store, "t1", taken(store))
    reply = Message.assistant("t1", "Grüße ☕ zurück", run_id=run.id)
    step = RunStep.message_creation(thread_id="t1", run_id=run.id, message_id=reply.id)
    begun = RunWrite(items=(step, announced(reply), Checkpoint("kept", {"a": [1, "ü"]})))
    await story.tell(store, "t1", store.write_run(claim.lease, begun))
    for piece in ("Grüße ", "☕", " zurück"):
        await story.tell(store, "t1", store.write_run(claim.lease, RunWrite(items=(MessageDelta(reply.id, piece),))))
    done = attrs.evolve(await store.get_step("t1", run.id, step.id), status=RunStepStatus.COMPLETED)
    ended = RunWrite(items=(reply, done), status=RunStatus.COMPLETED)
    await story.tell(store, "t1", store.write_run(claim.lease, ended))


async def _messages_that_change(story: Story, store: FileStore) -> None:
    one, other = [Message.user("t1", text) for text in ("eins", "zwei")]
    await story.tell(store, "t1", store.append_message("t1", one))
    await story.tell(store, "t1", store.append_message("t1", other))
    await story.tell(store, "t1", store.update_message("t1", one.id, metadata={"mood": "ö"}))
    await story.tell(store, "t1", store.update_message("t1", one.id, metadata={"mood": "ü"}))
    await story.tell(store, "t1", store.delete_message("t1", other.id))
    await story.tell(store, "t1", store.update_thread("t1", metadata={"drink": "tea"}))
    await story.tell(store, "t1", store.update_thread("t1", metadata={"drink": "café ☕"}))


async def _a_run_that_calls_tools(story: Story, store: FileStore) -> None:
    await story.tell(store, "t2", store.create_thread(a_thread("t2")))
    run = await story.tell(store, "t2", store.create_run("t2", a_run("t2")))
    await story.tell(store, "t2", store.update_run("t2", run.id, metadata={"table": "7"}))
    claim = await story.tell(store, "t2", taken(store))
    call = ToolCall(id="call_a", function=FunctionCall(name="brew", arguments="☕"))
    step = RunStep.tool_calls(thread_id="t2", run_id=run.id, calls=(call,))
    waits = RunWrite(
        items=(step, StepDelta(step.id, 0, call)),
        status=RunStatus.REQUIRES_ACTION,
        required_action=RequiredAction((call,)),
    )
    await story.tell(store, "t2", store.write_run(claim.lease, waits))
    await story.tell(store, "t2", store.submit_tool_outputs("t2", run.id, [ToolOutput("call_a", "heiß")]))
    claim = await story.tell(store, "t2", taken(store))
    await story.tell(store, "t2", store.request_cancel("t2", run.id))
    await story.tell(store, "t2", store.write_run(claim.lease, RunWrite(status=RunStatus.CANCELLED)))


async def _runs_that_are_stopped(story: Story, store: FileStore) -> None:
    run = await story.tell(store, "t2", store.create_run("t2", a_run("t2")))
    claim = await story.tell(store, "t2", taken(store))
    reply = announced(Message.assistant("t2", "", run_id=run.id))
    step = RunStep.message_creation(thread_id="t2", run_id=run.id, message_id=reply.id)
    items = (step, reply, MessageDelta(reply.id, "half a "))
    await story.tell(store, "t2", store.write_run(claim.lease, RunWrite(items=items)))
    await story.tell(store, "t2", store.force_update_run_status("t2", run.id, RunStatus.CANCELLED))
    await story.tell(store, "t2", store.force_update_run_status("t2", run.id, RunStatus.QUEUED))
    failed = store.update_run_status("t2", run.id, RunStatus.FAILED, RunError("server_error", "out of ☕"))
    await story.tell(store, "t2", failed)
    by_hand = await story.tell(store, "t2", store.create_run("t2", a_run("t2", status=RunStatus.IN_PROGRESS)))
    made = RunStep.tool_calls(thread_id="t2", run_id=by_hand.id)
    await story.tell(store, "t2", store.append_step("t2", by_hand.id, made))
    ended = store.update_step_status("t2", by_hand.id, made.id, RunStepStatus.COMPLETED)
    await story.tell(store, "t2", ended)
    message = Message.assistant("t2", "of a run", run_id=by_hand.id)
    await story.tell(store, "t2", store.append_message("t2", message))
    await story.tell(store, "t2", store.request_cancel("t2", by_hand.id))


async def _assistants(story: Story, store: FileStore) -> None:
    await story.tell(store, ASSISTANTS, store.create_assistant(an_assistant("one")))
    await story.tell(store, ASSISTANTS, store.create_assistant(an_assistant("two"), key=a_key("Schlüssel 🔑")))
    for name in ("Ä", "Ö", "Ä"):
        change = partial(attrs.evolve, name=name)
        await story.tell(store, ASSISTANTS, store.update_assistant("one", change))
    await story.tell(store, ASSISTANTS, store.delete_assistant("one"))
    await story.tell(store, ASSISTANTS, store.create_assistant(an_assistant("one")))


async def _created_under_keys(story: Story, store: FileStore) -> None:
    first = [Message.user("t4", text) for text in ("gleich ☕", "dabei")]
    await story.tell(store, "t4", store.create_thread(a_thread("t4"), messages=first, key=a_key("Schlüssel 🔑")))
    message = Message.user("t4", "unter einem Schlüssel")
    await story.tell(store, "t4", store.append_message("t4", message, key=a_key("Schlüssel 🔑")))
    run = a_run("t4", id="run_first", status=RunStatus.IN_PROGRESS)
    await story.tell(store, "t4", store.create_run("t4", run, messages=first, key=a_key("Schlüssel 🔑")))
    reply = Message.assistant("t4", "auch so", run_id=run.id)
    await story.tell(store, "t4", store.append_message("t4", reply, key=a_key("zweiter")))
    await story.tell(store, "t4", store.update_run_status("t4", run.id, RunStatus.COMPLETED))


async def _runs_that_make_way(story: Story, store: FileStore) -> None:
    for on_busy in ("interrupt", "rollback"):
        await story.tell(store, "t4", store.create_run("t4", a_run("t4")))
        claim = await story.tell(store, "t4", taken(store))
        reply = Message.assistant("t4", f"vor dem {on_busy}", run_id=claim.run.id)
        begun = announced(Message.assistant("t4", "", run_id=claim.run.id))
        step = RunStep.message_creation(thread_id="t4", run_id=claim.run.id, message_id=begun.id)
        items = (reply, step, begun, MessageDelta(begun.id, "angefa"))
        await story.tell(store, "t4", store.write_run(claim.lease, RunWrite(items=items)))
        by_hand = await story.tell(store, "t4", store.create_run("t4", a_run("t4", status=RunStatus.IN_PROGRESS)))
        await story.tell(
            store, "t4", store.append_step("t4", by_hand.id, RunStep.tool_calls(thread_id="t4", run_id=by_hand.id))
        )
        await story.tell(store, "t4", store.create_run("t4", a_run("t4", status=RunStatus.REQUIRES_ACTION)))
        more = [Message.user("t4", "lieber dies")]
        wanted = store.create_run("t4", a_run("t4"), on_busy=on_busy, messages=more, key=a_key(on_busy))
        wanted_run = await story.tell(store, "t4", wanted)
        await story.tell(store, "t4", store.write_run(claim.lease, RunWrite(status=RunStatus.CANCELLED)))
        await story.tell(store, "t4", store.force_update_run_status("t4", wanted_run.id, RunStatus.CANCELLED))


async def _many_at_once(story: Story, store: FileStore) -> None:
    run = a_run("t2")
    await story.tell_together(
        store,
        {
            "t1": store.append_message("t1", Message.user("t1", "zugleich")),
            "t2": store.create_run("t2", run),
            "t3": store.create_thread(a_thread("t3")),
        },
    )
    await story.tell_together(
        store,
        {
            "t1": store.create_run("t1", a_run("t1", status=RunStatus.REQUIRES_ACTION)),
            "t2": store.force_update_run_status("t2", run.id, RunStatus.CANCELLED),
            "t3": store.append_message("t3", Message.user("t3", "auch")),
        },
    )


async def _a_thread_that_is_made_again(story: Story, store: FileStore) -> None:
    await story.tell(store, "t3", store.create_run("t3", a_run("t3", id="run_again")))
    await story.tell(store, "t3", store.delete_thread("t3", force=True))
    await story.tell(store, "t3", store.create_thread(a_thread("t3")))
    await story.tell(store, "t3", store.append_message("t3", Message.user("t3", "von vorn")))
    await story.tell(store, "t3", store.create_run("t3", a_run("t3", id="run_again")))
    claim = await story.tell(store, "t3", taken(store))
    await story.tell(store, "t3", store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED)))
    await story.tell(store, "t2", store.delete_thread("t2"))


async def two_stores(story: Story, store: Callable[[], FileStore]) -> None:
    """Let two stores overtake each other, each with a journal of its own, and retire one journal before the other."""
    async with store() as a:
        async with store() as b:
            await _overtaken_on_a_run(story, a, b)
            await _overtaken_on_records(story, a, b)
            await _overtaken_by_deletion(story, a, b)
            await _overtaken_by_another_run(story, a, b)
            await _overtaken_on_assistants(story, a, b)
        # What B did stands, and its journal is gone; A's is still there, with all that B overtook.
        await story.tell(a, "t1", a.append_message("t1", Message.user("t1", "A allein")))
        async with store() as b:
            await _overtaken_on_records(story, b, a)
            await story.tell(b, "t1", b.delete_thread("t1", force=True))
            await story.tell(a, "t2", a.append_message("t2", Message.user("t2", "B hat gelöscht")))
    async with store() as c:
        await story.tell(c, "t1", c.create_thread(a_thread("t1")))


async def _overtaken_on_a_run(story: Story, a: FileStore, b: FileStore) -> None:
    await story.tell(a, "t1", a.create_thread(a_thread("t1")))
    await story.tell(b, "t1", b.append_message("t1", Message.user("t1", "B sagt ☕")))
    run = await story.tell(a, "t1", a.create_run("t1", a_run("t1")))
    claim = await story.tell(b, "t1", taken(b))
    await story.tell(a, "t1", a.append_message("t1", Message.user("t1", "A sagt Tee")))
    step = RunStep.tool_calls(thread_id="t1", run_id=run.id)
    await story.tell(b, "t1", b.write_run(claim.lease, RunWrite(items=(step,))))
    await story.tell(a, "t1", a.request_cancel("t1", run.id))
    await story.tell(b, "t1", b.write_run(claim.lease, RunWrite(status=RunStatus.CANCELLED)))
    other = await story.tell(b, "t1", b.create_run("t1", a_run("t1")))
    claim = await story.tell(a, "t1", taken(a))
    reply = Message.assistant("t1", "von A", run_id=other.id)
    await story.tell(a, "t1", a.write_run(claim.lease, RunWrite(items=(reply,))))
    await story.tell(b, "t1", b.force_update_run_status("t1", other.id, RunStatus.CANCELLED))


async def _overtaken_on_records(story: Story, a: FileStore, b: FileStore) -> None:
    """The same values again, one over the other: what a record replaces tells nobody when it was written."""
    for store, drink in ((a, "tea"), (b, "coffee"), (a, "tea"), (b, "coffee"), (a, "milk")):
        await story.tell(store, "t1", store.update_thread("t1", metadata={"drink": drink}))
    message = Message.user("t1", "wandelbar")
    await story.tell(b, "t1", b.append_message("t1", message))
    for store, mood in ((a, "ä"), (b, "ö"), (a, "ä")):
        await story.tell(store, "t1", store.update_message("t1", message.id, metadata={"mood": mood}))


async def _overtaken_by_deletion(story: Story, a: FileStore, b: FileStore) -> None:
    await story.tell(b, "t2", b.create_thread(a_thread("t2")))
    await story.tell(a, "t2", a.append_message("t2", Message.user("t2", "bleibt nicht")))
    await story.tell(b, "t2", b.create_run("t2", a_run("t2", id="run_again")))
    await story.tell(a, "t2", a.delete_thread("t2", force=True))
    await story.tell(b, "t2", b.create_thread(a_thread("t2")))
    await story.tell(a, "t2", a.append_message("t2", Message.user("t2", "neu")))
    await story.tell(a, "t2", a.create_run("t2", a_run("t2", id="run_again")))
    claim = await story.tell(b, "t2", taken(b))
    await story.tell(b, "t2", b.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED)))
    await story.tell(b, "t3", b.create_thread(a_thread("t3")))
    await story.tell(a, "t3", a.append_message("t3", Message.user("t3", "bleibt fort")))
    await story.tell(b, "t3", b.delete_thread("t3"))


async def _overtaken_by_another_run(story: Story, a: FileStore, b: FileStore) -> None:
    await story.tell(b, "t4", b.create_thread(a_thread("t4"), key=a_key("one")))
    await story.tell(a, "t4", a.create_run("t4", a_run("t4", id="run_one")))
    claim = await story.tell(a, "t4", taken(a))
    await story.tell(b, "t4", b.create_run("t4", a_run("t4", id="run_two"), on_busy="interrupt", key=a_key("two")))
    reply = Message.assistant("t4", "doch noch", run_id="run_one")
    await story.tell(a, "t4", a.write_run(claim.lease, RunWrite(items=(reply,))))
    more = [Message.user("t4", "nein")]
    third = a_run("t4", id="run_three")
    await story.tell(a, "t4", a.create_run("t4", third, on_busy="rollback", messages=more, key=a_key("three")))
    await story.tell(a, "t4", a.write_run(claim.lease, RunWrite(status=RunStatus.CANCELLED)))
    await story.tell(b, "t4", b.create_run("t4", a_run("t4", id="run_four"), on_busy="interrupt"))
    await story.tell(a, "t4", a.delete_thread("t4", force=True))
    await story.tell(b, "t4", b.create_thread(a_thread("t4"), key=a_key("again")))
    await story.tell(a, "t4", a.create_run("t4", a_run("t4", id="run_one"), key=a_key("two")))
    await story.tell(b, "t4", b.force_update_run_status("t4", "run_one", RunStatus.CANCELLED))


async def _overtaken_on_assistants(story: Story, a: FileStore, b: FileStore) -> None:
    await story.tell(a, ASSISTANTS, a.create_assistant(an_assistant("one"), key=a_key("one")))
    for store, name in ((b, "Ä"), (a, "Ö"), (b, "Ä")):
        await story.tell(store, ASSISTANTS, store.update_assistant("one", partial(attrs.evolve, name=name)))
    await story.tell(a, ASSISTANTS, a.delete_assistant("one"))
    await story.tell(b, ASSISTANTS, b.create_assistant(an_assistant("one"), key=a_key("two")))


STORIES = {"one_store": one_store, "two_stores": two_stores}
