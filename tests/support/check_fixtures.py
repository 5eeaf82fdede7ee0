"""A store to be damaged: every kind of record, with ids and moments that are the same each time."""

import json
from contextlib import asynccontextmanager
from pathlib import Path

import attrs

from threadloom import (
    Assistant,
    FileStore,
    FunctionCall,
    IdempotencyKey,
    Message,
    RequiredAction,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWrite,
    TextContent,
    Thread,
    ToolCall,
    ToolCalls,
)
from threadloom.testing import ManualClock

THREAD, OTHER = "thread_a", "thread_b"
DONE = f"{THREAD}/runs/run_done"
MESSAGES, EDITS, EVENTS = f"{THREAD}/messages.jsonl", f"{THREAD}/edits.jsonl", f"{DONE}/events.jsonl"
OWN = ".threadloom"
TEMPORARY = f"{OWN}/tmp"  # noqa: S108 - the store's own

NOW = 1_700_000_000


def at(item, id_, moment=NOW):
    return attrs.evolve(item, id=id_, created_at=moment)


async def fill(store, thread_id):
    """Make a thread with messages, some of them edited, and runs: one that is done, and others in its middle."""
    thread = at(Thread.new(metadata={"customer": "0815"}), thread_id)
    await store.create_thread(thread, key=IdempotencyKey(f"key of {thread_id}", "a thread"))
    for number in range(4):
        message = attrs.evolve(Message.user(thread_id, f"word {number} ✓"), completed_at=NOW)
        await store.append_message(thread_id, at(message, f"msg_{number}", NOW + number))
    await store.update_message(thread_id, "msg_0", metadata={"liked": "yes"})
    await store.delete_message(thread_id, "msg_1")
    await make_run(store, thread_id, "run_done")
    for id_ in ("run_waiting", "run_hand"):
        await store.create_run(thread_id, at(Run.new(thread_id, model="any"), id_))
    run = await claim(store, thread_id, "run_waiting")
    call = ToolCall(id="call_1", function=FunctionCall(name="brew", arguments="{}"))
    step = at(RunStep.tool_calls(thread_id=thread_id, run_id="run_waiting"), "step_call")
    step = attrs.evolve(step, step_details=ToolCalls((call,)))
    work = RunWrite(items=(step,), status=RunStatus.REQUIRES_ACTION, required_action=RequiredAction((call,)))
    await store.write_run(run.lease, work)
    await store.force_update_run_status(thread_id, "run_hand", RunStatus.IN_PROGRESS)
    last = at(Message.user(thread_id, "the last word"), "msg_last", NOW + 9)
    await store.append_message(thread_id, last, key=IdempotencyKey("the last", "a message"))


async def make_run(store, thread_id, run_id):
    """Make a run that has come to its end, with two steps and a message."""
    await store.create_run(thread_id, at(Run.new(thread_id, model="any"), run_id))
    run = await claim(store, thread_id, run_id)
    message = Message.assistant(thread_id, "", run_id=run_id)
    message = at(attrs.evolve(message, content=(TextContent("An answer, at some length."),)), f"msg_of_{run_id}")
    message = attrs.evolve(message, completed_at=NOW)
    steps = [at(RunStep.tool_calls(thread_id=thread_id, run_id=run_id), f"step_{name}") for name in "ab"]
    steps = [attrs.evolve(step, status=RunStepStatus.COMPLETED, completed_at=NOW) for step in steps]
    await store.write_run(run.lease, RunWrite(items=(*steps, message), status=RunStatus.COMPLETED))


async def claim(store, thread_id, run_id):
    taken = await store.try_claim_run("worker_1")
    assert (taken.run.thread_id, taken.run.id) == (thread_id, run_id)
    return taken


def files_in(root: Path) -> dict[str, bytes]:
    """Return all files of the threads and of the queue, by their paths from the root on."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.is_relative_to(root / ".threadloom" / "damaged")
        and path.name not in {"stamps", "scanned", "boot"}
        and path.parent.name not in {"stores", "journals"}  # of those who are open, not of the store
    }


def aside(store: FileStore) -> dict[str, bytes]:
    """Return what was set aside, by the places that it had."""
    damaged = store.root / ".threadloom" / "damaged"
    return {
        str(Path(*path.relative_to(damaged).parts[1:])): path.read_bytes()
        for path in damaged.rglob("*")
        if path.is_file()
    }


def key_path(root: Path, key: str) -> Path:
    """Return the file of a key."""
    [path] = [path for path in root.rglob("keys/**/*.json") if json.loads(path.read_bytes())["key"] == key]
    return path


def change(path: Path, **changes: object) -> None:
    """Change keys of a record as another program would."""
    record = json.loads(path.read_bytes()) | changes
    beside = path.with_name("beside")
    beside.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    beside.rename(path)


def spoil(path: Path, number: int, byte: bytes = b"\xff", place: int = 20) -> None:
    """Damage one line of a log."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number][:place] + byte + lines[number][place + 1 :]
    path.write_bytes(b"".join(lines))


def found(report):
    return [(problem.kind.value, problem.where) for problem in report.problems]


def append(path, data):
    with path.open("ab") as log:
        log.write(data)


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def without_last_line(path):
    path.write_bytes(b"".join(lines_of(path)[:-1]))


@asynccontextmanager
async def full_store(root: Path, **options):
    """Yield an open store with two full threads that has taken no run: so nothing but a check takes one back."""
    clock = ManualClock()
    async with FileStore(root, durability="process", clock=clock) as store:
        await fill(store, THREAD)
        await fill(store, OTHER)
        for name in ("asst_a", "asst_b"):
            assistant = at(Assistant.new(model="any"), name)
            await store.create_assistant(assistant, key=IdempotencyKey(name, "an assistant"))
    async with FileStore(root, durability="process", clock=clock, **options) as store:
        yield store
