"""What FileStore does with files that are torn, damaged, missing or refused (G8)."""

import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest

from threadloom import (
    FileStore,
    Message,
    MessageNotFoundError,
    Run,
    RunNotFoundError,
    RunStatus,
    RunStep,
    SerializationError,
    Thread,
    ThreadNotFoundError,
)

pytestmark = pytest.mark.usefixtures("tmp_path")


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


@pytest.fixture
async def thread(store):
    return await store.create_thread(Thread.new())


async def say(store, thread, *texts):
    return [await store.append_message(thread.id, Message.user(thread.id, text)) for text in texts]


def texts(page):
    return [message.text for message in page]


def log_of(store, thread):
    return store.thread_dir(thread.id) / "messages.jsonl"


def damaged_files(store):
    return sorted((store.root / ".threadloom" / "damaged").iterdir())


async def test_a_last_line_without_its_newline_is_not_read_and_is_completed_by_the_next_append(store, thread):
    await say(store, thread, "one")
    line = json.dumps({"id": "msg_external", "created_at": 1, "thread_id": thread.id, "role": "user", "content": []})
    with log_of(store, thread).open("a") as log:
        log.write(line)

    assert texts(await store.list_messages(thread.id)) == ["one"]
    await say(store, thread, "two")

    assert [m.id for m in await store.list_messages(thread.id)][1] == "msg_external"
    assert texts(await store.list_messages(thread.id)) == ["one", "", "two"]
    assert damaged_files(store) == []


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param('{"id": "msg_torn", "content": [{"text": "caf\u00e9'.encode()[:-1], id="inside a UTF-8 character"),
        pytest.param(b'{"id": "msg_torn", "cont', id="inside a key"),
        pytest.param(b"\0" * 4096, id="NULs"),
        pytest.param(b'{"id": "msg_torn"}' + b"\0" * 100, id="NULs after an object"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b"17", id="JSON, but no object"),
    ],
)
async def test_a_torn_tail_is_ignored_by_readers_and_moved_aside_by_the_next_append(store, thread, tail):
    await say(store, thread, "one")
    with log_of(store, thread).open("ab") as log:
        log.write(tail)

    page = await store.list_messages(thread.id)
    assert texts(page) == ["one"]
    assert page.damaged == ()
    await say(store, thread, "two", "three")

    page = await store.list_messages(thread.id)
    assert texts(page) == ["one", "two", "three"]
    assert page.damaged == ()
    assert [path.read_bytes() for path in damaged_files(store)] == [tail]


async def test_two_torn_tails_at_the_same_place_are_both_kept(store, thread):
    for tail in (b"first", b"second"):
        with log_of(store, thread).open("ab") as log:
            log.write(tail)
        await say(store, thread, "x")
        log_of(store, thread).unlink()

    assert sorted(path.read_bytes() for path in damaged_files(store)) == [b"first", b"second"]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(
    "line", [b"garbage", b"\0" * 50, b"[1, 2]", b'{"id": "msg_x"}', b'{"id": 7, "created_at": "x"}', b"\xff\xfe"]
)
async def test_a_damaged_line_in_the_middle_is_reported_and_hides_no_other(store, thread, line, order):
    await say(store, thread, "one")
    offset = log_of(store, thread).stat().st_size
    with log_of(store, thread).open("ab") as log:
        log.write(line + b"\n")
    await say(store, thread, "two")

    page = await store.list_messages(thread.id, order=order)

    assert sorted(texts(page)) == ["one", "two"]
    [error] = page.damaged
    assert isinstance(error, SerializationError)
    assert error.where == str(log_of(store, thread))
    assert error.offset == offset
    assert str(log_of(store, thread)) in str(error)
    assert line in log_of(store, thread).read_bytes(), "damage is never repaired by guessing"


async def test_blank_lines_are_no_damage(store, thread):
    await say(store, thread, "one")
    with log_of(store, thread).open("ab") as log:
        log.write(b"\n  \n")
    await say(store, thread, "two")

    page = await store.list_messages(thread.id)
    assert texts(page) == ["one", "two"]
    assert page.damaged == ()


async def test_a_damaged_message_is_not_reported_as_missing(store, thread):
    await say(store, thread, "one")
    with log_of(store, thread).open("ab") as log:
        log.write(b'{"id":"msg_broken","role":\n')

    with pytest.raises(SerializationError, match=r"messages\.jsonl"):
        await store.get_message(thread.id, "msg_broken")
    with pytest.raises(MessageNotFoundError):
        await store.get_message(thread.id, "msg_other")


async def test_a_damaged_edit_is_reported(store, thread):
    [message] = await say(store, thread, "one")
    await store.update_message(thread.id, message.id, metadata={"a": "b"})
    with (store.thread_dir(thread.id) / "edits.jsonl").open("ab") as log:
        log.write(b"garbage\n")

    page = await store.list_messages(thread.id)
    assert page[0].metadata == {"a": "b"}
    assert [Path(error.where).name for error in page.damaged] == ["edits.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b'{"id": "thr', b"[]", b'"text"', b'{"id": 7}'])
async def test_a_damaged_thread_is_an_error_that_names_the_file_and_hides_no_other(store, thread, content):
    other = await store.create_thread(Thread.new())
    meta = store.thread_dir(thread.id) / "meta.json"
    meta.write_bytes(content)

    with pytest.raises(SerializationError) as caught:
        await store.get_thread(thread.id)
    assert caught.value.where == str(meta)
    with pytest.raises(SerializationError):
        await store.update_thread(thread.id, metadata={})
    page = await store.list_threads()
    assert [thread.id for thread in page] == [other.id]
    assert [error.where for error in page.damaged] == [str(meta)]
    assert meta.read_bytes() == content


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_damaged_thread_takes_no_place_on_a_page_which_would_leave_its_reader_no_cursor(store, order):
    ids = [(await store.create_thread(Thread.new())).id for _ in range(5)]
    for id_ in ids[1:3]:
        (store.thread_dir(id_) / "meta.json").write_bytes(b"{")
    found, after = [], None
    for more in (True, True, False):
        page = await store.list_threads(limit=1, order=order, after=after)
        assert page.has_more is more
        after = page[0].id
        found.append(after)
    left = [id_ for id_ in ids if id_ not in ids[1:3]]
    assert found == (left if order == "asc" else left[::-1])


async def test_a_directory_with_data_and_no_meta_is_damage_and_not_a_missing_thread(store):
    directory = store.root / "thread_bare"
    directory.mkdir()
    (directory / "messages.jsonl").write_text("")

    for call in (
        store.get_thread("thread_bare"),
        store.list_messages("thread_bare"),
        store.append_message("thread_bare", Message.user("thread_bare", "x")),
        store.create_run("thread_bare", Run.new("thread_bare", model="m")),
        store.get_run("thread_bare", "run_x"),
        store.update_thread("thread_bare", metadata={}),
        store.create_thread(Thread.new(id="thread_bare")),
    ):
        with pytest.raises(SerializationError, match=r"meta\.json"):
            await call
    assert [path.name for path in directory.iterdir()] == ["messages.jsonl"]
    assert len((await store.list_threads()).damaged) == 1


async def test_an_empty_directory_holds_no_thread_and_may_become_one(store):
    (store.root / "thread_bare").mkdir()
    (store.root / "lost+found").mkdir()

    for call in (
        store.get_thread("thread_bare"),
        store.append_message("thread_bare", Message.user("thread_bare", "x")),
        store.delete_thread("thread_bare", force=True),
        store.get_run("thread_bare", "run_x"),
    ):
        with pytest.raises(ThreadNotFoundError):
            await call
    assert list(await store.list_thread_ids()) == []
    assert (await store.list_threads()).damaged == ()
    assert (await store.check()).problems == ()
    thread = await store.create_thread(Thread.new(id="thread_bare"), messages=[Message.user("thread_bare", "one")])
    assert texts(await store.list_messages(thread.id)) == ["one"]


@pytest.mark.parametrize("content", [b"", b"\0" * 20, b"{", b'{"id": "run_x", "status": "sleeping"}'])
async def test_a_damaged_status_is_an_error_that_names_the_file_and_hides_no_other(store, thread, content):
    damaged = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    good = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    status = store.run_dir(thread.id, damaged.id) / "status.json"
    status.write_bytes(content)

    for call in (
        store.get_run(thread.id, damaged.id),
        store.update_run_status(thread.id, damaged.id, RunStatus.COMPLETED),
        store.force_update_run_status(thread.id, damaged.id, RunStatus.CANCELLED),
        store.request_cancel(thread.id, damaged.id),
        store.list_steps(thread.id, damaged.id),
        store.append_step(thread.id, damaged.id, RunStep.tool_calls(thread_id=thread.id, run_id=damaged.id)),
    ):
        with pytest.raises(SerializationError, match=r"status\.json"):
            await call
    page = await store.list_runs(thread.id)
    assert [run.id for run in page] == [good.id]
    assert [error.where for error in page.damaged] == [str(status)]
    assert status.read_bytes() == content


async def test_a_run_directory_without_status_is_damage(store, thread):
    (store.run_dir(thread.id, "run_bare")).mkdir(parents=True)
    (store.run_dir(thread.id, "run_bare") / "events.jsonl").write_text("")
    (store.run_dir(thread.id, "run_none")).mkdir()  # empty: it holds nothing

    with pytest.raises(SerializationError, match=r"status\.json"):
        await store.get_run(thread.id, "run_bare")
    with pytest.raises(RunNotFoundError):
        await store.get_run(thread.id, "run_none")
    assert len((await store.list_runs(thread.id)).damaged) == 1


async def test_a_damaged_run_does_not_hold_up_the_queue(store, thread):
    damaged = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    good = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    (store.run_dir(thread.id, damaged.id) / "status.json").write_bytes(b"")

    claim = await store.try_claim_run("worker")

    assert claim.run.id == good.id
    assert len((await store.list_runs(thread.id)).damaged) == 1


async def test_a_damaged_step_is_reported_and_hides_no_other(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    steps = [
        await store.append_step(thread.id, run.id, RunStep.tool_calls(thread_id=thread.id, run_id=run.id))
        for _ in range(2)
    ]
    path = store.steps_dir(thread.id, run.id) / f"{steps[0].id}.json"
    path.write_bytes(b"{")

    page = await store.list_steps(thread.id, run.id)
    assert [step.id for step in page] == [steps[1].id]
    assert [error.where for error in page.damaged] == [str(path)]
    with pytest.raises(SerializationError):
        await store.get_step(thread.id, run.id, steps[0].id)


async def test_a_torn_event_log_goes_on_after_its_last_whole_line(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    events = store.run_dir(thread.id, run.id) / "events.jsonl"
    with events.open("ab") as log:
        log.write(b'{"number": 3, "ev')

    async with FileStore(store.root, durability="process") as other:  # this one knows of no process that died
        await other.update_run_status(thread.id, run.id, RunStatus.COMPLETED)

    seen = [(event.number, str(event.type)) async for event in store.events(thread.id, run.id)]
    assert seen == [(1, "thread.run.created"), (2, "thread.run.queued"), (3, "thread.run.completed")]


async def test_strange_names_in_the_tree_are_no_objects(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    await store.append_step(thread.id, run.id, RunStep.tool_calls(thread_id=thread.id, run_id=run.id))
    (store.root / "a file").write_text("x")
    (store.root / "lost+found").mkdir()
    (store.root / "thread_file").write_text("x")
    (store.root / ".hidden").mkdir()
    (store.steps_dir(thread.id, run.id) / ".tmpA1b2").write_text("x")
    (store.steps_dir(thread.id, run.id) / "notes.txt").write_text("x")
    (store.run_dir(thread.id, run.id).parent / ".tmpA1b2").write_text("x")

    assert list(await store.list_thread_ids()) == [thread.id]
    assert (await store.list_threads()).damaged == ()
    assert len(await store.list_runs(thread.id)) == 1
    assert len(await store.list_steps(thread.id, run.id)) == 1


LOOK_WITHOUT_RIGHTS = """
import asyncio, os, sys
from datetime import timedelta
from threadloom import FileStore, Message, StoreIOError

async def main(root, thread_id, run_id, name):
    async with FileStore(root, durability="process") as store:
        thread = store.thread_dir(thread_id)
        os.chmod(thread / name, 0)
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)  # root passes every permission
        calls = {
            "meta.json": lambda: store.get_thread(thread_id),
            "messages.jsonl": lambda: store.list_messages(thread_id),
            f"runs/{run_id}/status.json": lambda: store.get_run(thread_id, run_id),
            ".": lambda: store.append_message(thread_id, Message.user(thread_id, "x")),
            "runs": lambda: store.get_run(thread_id, run_id),
        }
        try:
            await calls[name]()
        except StoreIOError as error:
            assert isinstance(error.__cause__, PermissionError), error
            print("refused", error)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["meta.json", "messages.jsonl", "runs/{run}/status.json", ".", "runs"])
async def test_what_may_not_be_read_is_an_io_error_and_never_not_found(name):
    # Not below pytest's own directory, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        async with FileStore(Path(directory) / "store", durability="process") as store:
            for part in [store.root, *store.root.rglob("*")]:
                part.chmod(0o777)
            thread = await store.create_thread(Thread.new())
            await say(store, thread, "one")
            run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
        arguments = [str(store.root), thread.id, run.id, name.format(run=run.id)]
        looked = subprocess.run(
            [sys.executable, "-c", LOOK_WITHOUT_RIGHTS, *arguments], capture_output=True, text=True, check=False
        )
        for path in [
            store.thread_dir(thread.id),
            store.run_dir(thread.id, run.id).parent,
            store.run_dir(thread.id, run.id),
        ]:
            path.chmod(0o700)

    assert looked.stdout.startswith("refused"), looked.stderr
    assert "Permission denied" in looked.stdout
    assert thread.id in looked.stdout


async def test_a_thread_that_was_never_there_is_not_found(store):
    with pytest.raises(ThreadNotFoundError):
        await store.get_thread("thread_none")
    with pytest.raises(ThreadNotFoundError):
        await store.append_message("thread_none", Message.user("thread_none", "x"))
    assert list(await store.list_thread_ids()) == []


async def test_an_event_whose_step_has_no_id_never_becomes_a_path(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    step = RunStep.tool_calls(thread_id=thread.id, run_id=run.id)
    await store.append_step(thread.id, run.id, step)
    events = store.run_dir(thread.id, run.id) / "events.jsonl"
    events.write_text(events.read_text().replace(step.id, "../../../../../escaped"))

    await store.force_update_run_status(thread.id, run.id, RunStatus.CANCELLED)

    assert list(store.root.parent.rglob("escaped*")) == []
    assert [step.status for step in await store.list_steps(thread.id, run.id)] == ["cancelled"]


def old_journal(root, *writes):
    """Leave a journal as one of an earlier start of the machine."""
    head = [["lines", path, 0, len(data)] for path, data in writes]
    body = json.dumps([1, head]).encode() + b"\n" + b"".join(data for _, data in writes)
    path = root / ".threadloom" / "journals" / "store_0123456789abcdef-0"
    first = b'{"boot":"earlier","settled_ns":0,"replayed":[]}'
    path.write_bytes(b"%b\n%08x %d\n%b" % (first, zlib.crc32(body), len(body), body))
    return path


async def test_what_a_journal_says_of_places_outside_is_skipped_and_hides_no_other(tmp_path, caplog):
    root = tmp_path / "store"
    async with FileStore(root) as store:
        thread = await store.create_thread(Thread.new())
    places = ("../escaped", "/escaped", f"{thread.id}/../../escaped", f"{thread.id}/edits.jsonl")
    path = old_journal(root, *[(place, b"{}\n") for place in places])

    async with FileStore(root) as store:
        assert [file.read_text() for file in store.thread_dir(thread.id).glob("edits.jsonl")] == ["{}\n"]
    assert not path.exists()
    assert list(tmp_path.rglob("escaped")) == []
    assert not Path("/escaped").exists()
    assert len([record for record in caplog.records if "escaped" in record.getMessage()]) == 3


async def test_a_file_among_the_journals_that_is_none_stays(tmp_path):
    async with FileStore(tmp_path / "store") as store:
        await store.create_thread(Thread.new())
    stray = store.root / ".threadloom" / "journals" / "notes"
    stray.write_text("mine")

    async with FileStore(store.root):
        assert stray.read_text() == "mine"
    assert stray.read_text() == "mine"


async def test_a_damaged_line_at_the_end_of_a_runs_log_is_kept_when_somebody_writes_behind_it(store, thread):
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    log = store.run_dir(thread.id, run.id) / "events.jsonl"
    with log.open("ab") as file:
        file.write(b"what somebody wrote by mistake\n")
    async with FileStore(store.root, clock=store.clock) as other:
        await other.force_update_run_status(thread.id, run.id, RunStatus.CANCELLED)
    kept = [file.read_bytes() for file in (store.root / ".threadloom" / "damaged").rglob("events.jsonl-*")]
    assert kept == [b"what somebody wrote by mistake\n"]
    assert b"mistake" not in log.read_bytes()
