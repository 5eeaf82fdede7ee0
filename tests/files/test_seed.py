"""A tree that another program wrote in the seed layout opens, works, and keeps what is not ours."""

import json
import shutil
from pathlib import Path

import attrs
import pytest

from threadloom import (
    FileStore,
    Message,
    MessageCreation,
    Run,
    RunError,
    RunStatus,
    RunStepStatus,
    RunWrite,
)

THREAD = "thread_7f3a"


@pytest.fixture
def root(tmp_path):
    return shutil.copytree(Path(__file__).parents[1] / "golden" / "seed", tmp_path / "store")


@pytest.fixture
async def store(root):
    async with FileStore(root, durability="process") as store:
        yield store


def on_disk(path):
    return json.loads(path.read_bytes())


async def test_everything_in_it_is_read(store):
    assert list(await store.list_thread_ids()) == [THREAD, "thread_empty"]
    thread = await store.get_thread(THREAD)
    assert thread.metadata == {"restart": True, "count": 3}, "metadata is not checked when it is read"
    assert (await store.get_thread("thread_empty")).metadata == {}

    messages = await store.list_messages(THREAD)
    assert [(m.id, m.role, m.text, m.run_id) for m in messages] == [
        ("msg_01", "user", "What is 7 times 6?", None),
        ("msg_02", "assistant", "42 - naturally.", "run_done"),
        ("msg_03", "user", "And 8 times 6?", None),
    ]
    runs = await store.list_runs(THREAD)
    assert [(run.id, run.status) for run in runs] == [("run_done", "failed"), ("run_waiting", "queued")]
    assert runs[0].last_error == RunError("worker_dead", "run worker is not running")
    steps = await store.list_steps(THREAD, "run_done")
    assert [step.id for step in steps] == ["step_a", "step_b"], "the same second: in the order of their ids"
    assert steps[0].last_error == RunError("server_error", "no model was loaded")
    assert steps[1].step_details == MessageCreation("msg_02")
    assert all(page.damaged == () for page in (messages, runs, steps, await store.list_threads()))


async def test_reading_changes_no_file(root, store):
    def snapshot():
        return {path: path.read_bytes() for path in root.glob("thread_*/**/*") if path.is_file()}

    before = snapshot()
    await test_everything_in_it_is_read(store)
    assert snapshot() == before


async def test_a_run_that_the_other_program_queued_is_taken(store):
    claim = await store.try_claim_run("worker")

    assert claim.run.id == "run_waiting"
    assert [m.id for m in await store.list_messages(THREAD, seen_by="run_waiting")] == ["msg_01", "msg_02", "msg_03"]
    reply = Message.assistant(THREAD, "48", run_id="run_waiting")
    await store.write_run(claim.lease, RunWrite(items=(reply,), status=RunStatus.COMPLETED))
    status = on_disk(store.run_dir(THREAD, "run_waiting") / "status.json")
    assert status["status"] == "completed"
    assert status["x_budget"] == {"tokens": 12}


async def test_a_run_that_the_other_program_queued_stands_in_line_before_new_ones(store):
    await store.create_run(THREAD, Run.new(THREAD, model="m"))

    assert (await store.try_claim_run("worker")).run.id == "run_waiting"
    assert [run.id for run in await store.list_runs(THREAD)][:2] == ["run_done", "run_waiting"]


async def test_keys_that_we_do_not_know_survive_when_a_record_is_rewritten(store):
    await store.update_thread(THREAD, metadata={"a": "b"})
    await store.force_update_run_status(THREAD, "run_done", RunStatus.CANCELLED)
    await store.update_step_status(THREAD, "run_done", "step_b", RunStepStatus.COMPLETED)

    meta = on_disk(store.thread_dir(THREAD) / "meta.json")
    assert meta["x_origin"] == {"host": "a", "tags": ["one", 2, None]}
    assert meta["metadata"] == {"a": "b"}
    status = on_disk(store.run_dir(THREAD, "run_done") / "status.json")
    assert status["x_priority"] == 7
    assert status["status"] == "cancelled"
    assert "last_error" not in status
    step = on_disk(store.steps_dir(THREAD, "run_done") / "step_b.json")
    assert step["x_trace"] == "abc"
    assert step["step_details"] == {"message_id": "msg_02", "x_lang": "en"}, "what did not change stays as it was"
    assert step["status"] == "completed"
    assert isinstance(step["completed_at"], int)


async def test_forcing_a_run_settles_the_steps_that_the_other_program_left_open(store):
    await store.force_update_run_status(THREAD, "run_done", RunStatus.CANCELLED)

    steps = await store.list_steps(THREAD, "run_done")
    assert [step.status for step in steps] == ["failed", "cancelled"]


async def test_appends_go_on_in_the_same_log(store):
    message = await store.append_message(THREAD, Message.user(THREAD, "more"))

    lines = (store.thread_dir(THREAD) / "messages.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert '"x_score":0.5' in lines[1]
    record = json.loads(lines[3])
    assert record["id"] == message.id
    assert record["content"] == [{"type": "text", "text": {"value": "more", "annotations": []}}]


async def test_what_we_write_has_the_seed_s_keys(store):
    thread = await store.get_thread("thread_empty")
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    claim = await store.try_claim_run("worker")
    assert claim.run.id == "run_waiting"
    await store.update_run_status(thread.id, run.id, RunStatus.FAILED, RunError("server_error", "no"))

    status = on_disk(store.run_dir(thread.id, run.id) / "status.json")
    wanted = {"id", "object", "created_at", "thread_id", "status", "model", "last_error"}
    assert wanted <= status.keys()
    assert status["last_error"] == {"code": "server_error", "message": "no"}
    assert None not in status.values(), "absent keys are left out"


async def test_what_another_program_drops_of_a_run_is_found_again_in_its_events(store):
    run = Run.new("thread_empty", model="m", instructions="Be brief.", tools=[{"type": "function"}])
    run = await store.create_run("thread_empty", run)
    later = await store.create_run("thread_empty", Run.new("thread_empty", model="m"))
    status = store.run_dir("thread_empty", run.id) / "status.json"
    bare = {key: on_disk(status)[key] for key in ("id", "object", "created_at", "thread_id", "status", "model")}
    replacement = status.with_name("new")
    replacement.write_text(json.dumps(bare))
    replacement.replace(status)

    assert attrs.evolve(await store.get_run("thread_empty", run.id)) == run
    assert [found.id for found in await store.list_runs("thread_empty")] == [run.id, later.id]
