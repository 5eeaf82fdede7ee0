"""Every writing method of a store, and a state in which each of them has much to write."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from tests.files.crash_stories import ASSISTANTS, Durability, a_key, a_run, a_thread, an_assistant, taken
from threadloom import (
    Assistant,
    Checkpoint,
    FileStore,
    FunctionCall,
    Lease,
    Message,
    MessageDelta,
    RequiredAction,
    RunError,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWrite,
    StepDelta,
    Thread,
    ThreadStore,
    ToolCall,
    ToolOutput,
    Usage,
)
from threadloom.store import OnBusy
from threadloom.testing import ManualClock
from threadloom.testing._stage import announced

CALL = ToolCall(id="call_a", function=FunctionCall(name="brew", arguments="☕"))


@frozen
class Scene:
    """What is there, and what comes to it: always the same, so that the states of two stores can be compared."""

    lease: Lease
    message: Message
    step: RunStep
    reply: Message
    by_hand_step: RunStep
    thread: Thread = field(factory=lambda: a_thread("t5"))
    user: Message = field(factory=lambda: Message.user("t1", "neu ☕"))
    assistant: Message = field(factory=lambda: Message.assistant("t1", "von Hand", run_id="by_hand"))
    calls: RunStep = field(factory=lambda: RunStep.tool_calls(thread_id="t1", run_id="by_hand", calls=(CALL,)))
    other: Assistant = field(factory=lambda: an_assistant("other"))
    first: list[Message] = field(factory=lambda: [Message.user("t5", "zuerst ☕")])
    more: RunStep = field(factory=lambda: RunStep.tool_calls(thread_id="t1", run_id="at_work", calls=(CALL,)))

    @property
    def reply_and_more(self) -> tuple[Any, ...]:
        done = attrs.evolve(self.step, status=RunStepStatus.COMPLETED)
        return (MessageDelta(self.reply.id, "und "), self.reply, done, self.more, Checkpoint("kept", "ü"))


async def set_the_scene(root: Path, durability: Durability) -> Scene:
    """Make a store with runs in every stage of their life."""
    async with FileStore(root, durability=durability, clock=ManualClock()) as store:
        await _a_run_that_waits(store)
        await _a_run_that_others_ended(store)
        await store.create_thread(a_thread("t1"))
        message = await store.append_message("t1", Message.user("t1", "Grüße"))
        await store.create_run("t1", a_run("t1", id="at_work"))
        claim = await taken(store)
        reply = Message.assistant("t1", "halb und ganz ☕", run_id="at_work")
        step = RunStep.message_creation(thread_id="t1", run_id="at_work", message_id=reply.id)
        await store.write_run(claim.lease, RunWrite(items=(step, announced(reply), MessageDelta(reply.id, "halb "))))
        await store.create_run("t1", a_run("t1", id="by_hand", status=RunStatus.IN_PROGRESS))
        made = await store.append_step("t1", "by_hand", RunStep.tool_calls(thread_id="t1", run_id="by_hand"))
        await store.append_message("t1", Message.assistant("t1", "bis hierher", run_id="by_hand"))
        await store.create_assistant(an_assistant("kept"), key=a_key("schon da"))
        await store.create_thread(a_thread("t6"))
        await store.create_thread(a_thread("t3"))
        await store.create_run("t3", a_run("t3", id="queued"))
        kept = await store.get_step("t1", "at_work", step.id)
    return Scene(claim.lease, message, kept, reply, made)


async def _a_run_that_waits(store: FileStore) -> None:
    await store.create_thread(a_thread("t2"))
    await store.create_run("t2", a_run("t2", id="waiting"))
    claim = await taken(store)
    calls = RunStep.tool_calls(thread_id="t2", run_id="waiting", calls=(CALL,))
    items = (calls, StepDelta(calls.id, 0, CALL))
    asks = RunWrite(items=items, status=RunStatus.REQUIRES_ACTION, required_action=RequiredAction((CALL,)))
    await store.write_run(claim.lease, asks)


async def _a_run_that_others_ended(store: FileStore) -> None:
    """A program that knows nothing of steps and events has cancelled it in the middle of a message."""
    await store.create_thread(a_thread("t4"))
    await store.create_run("t4", a_run("t4", id="ended"))
    claim = await taken(store)
    reply = announced(Message.assistant("t4", "", run_id="ended"))
    step = RunStep.message_creation(thread_id="t4", run_id="ended", message_id=reply.id)
    await store.write_run(claim.lease, RunWrite(items=(step, reply, MessageDelta(reply.id, "abgebro"))))
    status = store.run_dir("t4", "ended") / "status.json"
    record = json.loads(status.read_bytes())
    record["status"] = "cancelled"
    status.write_text(json.dumps(record))


Act = Callable[[ThreadStore, Scene], Awaitable[Any]]


@frozen
class Method:
    """One way to write, and the thread that it writes to.

    ``also`` are other ends that a failure may come to; ``may_do_nothing`` is for what answers that there is nothing.
    """

    thread_id: str
    call: Act
    also: tuple[Act, ...] = ()
    may_do_nothing: bool = False


async def _claim(store: ThreadStore, scene: Scene) -> Any:
    return await store.try_claim_run("worker")


async def _claim_and_put_back(store: ThreadStore, scene: Scene) -> Any:
    claim = await store.try_claim_run("worker")
    assert claim is not None
    await store.write_run(claim.lease, RunWrite(status=RunStatus.QUEUED))


def _make_way(store: ThreadStore, scene: Scene, on_busy: OnBusy) -> Awaitable[Any]:
    run = a_run("t1", id="new", created_at=7)
    return store.create_run("t1", run, on_busy=on_busy, messages=[scene.user], key=a_key("Schlüssel"))


METHODS = {
    "create_thread": Method("t5", lambda store, scene: store.create_thread(scene.thread)),
    "update_thread": Method("t1", lambda store, scene: store.update_thread("t1", metadata={"drink": "Tee"})),
    "delete_thread": Method("t1", lambda store, scene: store.delete_thread("t1", force=True)),
    "append_message": Method("t1", lambda store, scene: store.append_message("t1", scene.user)),
    "append_message_of_a_run": Method("t1", lambda store, scene: store.append_message("t1", scene.assistant)),
    "update_message": Method(
        "t1", lambda store, scene: store.update_message("t1", scene.message.id, metadata={"mood": "ü"})
    ),
    "delete_message": Method("t1", lambda store, scene: store.delete_message("t1", scene.message.id)),
    "create_run": Method("t1", lambda store, scene: store.create_run("t1", a_run("t1", id="new", created_at=7))),
    "create_first_run": Method("t6", lambda store, scene: store.create_run("t6", a_run("t6", id="new", created_at=7))),
    "create_run_that_interrupts": Method("t1", lambda store, scene: _make_way(store, scene, "interrupt")),
    "create_run_that_rolls_back": Method("t1", lambda store, scene: _make_way(store, scene, "rollback")),
    "create_thread_with_key": Method(
        "t5", lambda store, scene: store.create_thread(scene.thread, messages=scene.first, key=a_key("Schlüssel"))
    ),
    "append_message_with_key": Method(
        "t1", lambda store, scene: store.append_message("t1", scene.user, key=a_key("Schlüssel"))
    ),
    "append_message_of_a_run_with_key": Method(
        "t1", lambda store, scene: store.append_message("t1", scene.assistant, key=a_key("Schlüssel"))
    ),
    "create_assistant": Method(ASSISTANTS, lambda store, scene: store.create_assistant(scene.other)),
    "create_assistant_with_key": Method(
        ASSISTANTS, lambda store, scene: store.create_assistant(scene.other, key=a_key("Schlüssel"))
    ),
    "update_assistant": Method(
        ASSISTANTS, lambda store, scene: store.update_assistant("kept", lambda old: attrs.evolve(old, name="ü"))
    ),
    "delete_assistant": Method(ASSISTANTS, lambda store, scene: store.delete_assistant("kept")),
    "update_run": Method("t1", lambda store, scene: store.update_run("t1", "at_work", metadata={"table": "7"})),
    "update_run_status": Method(
        "t1", lambda store, scene: store.update_run_status("t1", "by_hand", RunStatus.FAILED, RunError("a", "ü"))
    ),
    "force_update_run_status": Method(
        "t1", lambda store, scene: store.force_update_run_status("t1", "at_work", RunStatus.CANCELLED)
    ),
    "force_to_queued": Method(
        "t1", lambda store, scene: store.force_update_run_status("t1", "at_work", RunStatus.QUEUED)
    ),
    "request_cancel": Method("t1", lambda store, scene: store.request_cancel("t1", "at_work")),
    "request_cancel_by_hand": Method("t1", lambda store, scene: store.request_cancel("t1", "by_hand")),
    "submit_tool_outputs": Method(
        "t2", lambda store, scene: store.submit_tool_outputs("t2", "waiting", [ToolOutput("call_a", "heiß")])
    ),
    "append_step": Method("t1", lambda store, scene: store.append_step("t1", "by_hand", scene.calls)),
    "update_step_status": Method(
        "t1",
        lambda store, scene: store.update_step_status("t1", "by_hand", scene.by_hand_step.id, RunStepStatus.COMPLETED),
    ),
    "claim": Method("t3", _claim, also=(_claim_and_put_back,), may_do_nothing=True),
    "write_run_delta": Method(
        "t1", lambda store, scene: store.write_run(scene.lease, RunWrite(items=(MessageDelta(scene.reply.id, "und "),)))
    ),
    "write_run": Method("t1", lambda store, scene: store.write_run(scene.lease, RunWrite(items=scene.reply_and_more))),
    "write_run_and_end": Method(
        "t1",
        lambda store, scene: store.write_run(
            scene.lease,
            RunWrite(items=scene.reply_and_more, usage=Usage(3, 4, 7), status=RunStatus.COMPLETED),
        ),
    ),
    "finalize_run": Method("t4", lambda store, scene: store.finalize_run("t4", "ended")),
}
