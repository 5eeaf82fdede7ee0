"""What a fix makes of each problem."""

import shutil
from pathlib import Path

import attrs
import pytest

from tests.files.check_damage import (
    a_damaged_message_of_a_run,
    a_damaged_run,
    a_damaged_run_with_a_damaged_end,
    a_damaged_step,
    a_damaged_thread,
    a_missing_message,
    a_missing_step,
    a_run_that_another_program_ended,
    lost_events,
    two_damaged_messages,
)
from tests.support.check_fixtures import (
    DONE,
    EVENTS,
    MESSAGES,
    OTHER,
    OWN,
    TEMPORARY,
    THREAD,
    append,
    aside,
    at,
    files_in,
    found,
    full_store,
    lines_of,
    spoil,
)
from threadloom import (
    CheckReport,
    FileStore,
    Problem,
    ProblemKind,
    Run,
    RunStatus,
    RunStep,
    RunStepStatus,
    RunWrite,
    Thread,
)
from threadloom.testing import ManualClock

STATUS = f"{DONE}/status.json"


@pytest.fixture
async def store(tmp_path):
    async with full_store(tmp_path / "store") as store:
        yield store


async def test_a_torn_end_is_set_aside_and_a_whole_line_gets_its_newline(store):
    log = store.root / MESSAGES
    before = log.read_bytes()
    append(log, b'{"id": "msg_torn"')
    await store.check(fix=True)
    assert log.read_bytes() == before
    assert aside(store) == {f"{MESSAGES}-{len(before)}": b'{"id": "msg_torn"'}

    log.write_bytes(before[:-1])
    await store.check(fix=True)
    assert log.read_bytes() == before


async def test_damaged_lines_are_kept_aside_and_blanked_so_that_nothing_moves(store):
    log = store.root / MESSAGES
    shown = await store.list_messages(THREAD)
    before = lines_of(log)
    two_damaged_messages(store.root)
    damaged = lines_of(log)
    await store.check(fix=True)
    assert lines_of(log) == [*before[:2], *(b" " * (len(line) - 1) + b"\n" for line in before[2:4]), *before[4:]]
    places = [len(b"".join(before[:number])) for number in (2, 3)]
    assert aside(store) == {f"{MESSAGES}-{place}": damaged[number] for number, place in enumerate(places, 2)}
    assert list(await store.list_messages(THREAD)) == [m for m in shown if m.id not in {"msg_2", "msg_3"}]


async def test_a_damaged_message_of_a_run_is_written_again_where_it_was(store):
    before = (store.root / MESSAGES).read_bytes()
    a_damaged_message_of_a_run(store.root)
    damaged = (store.root / MESSAGES).read_bytes()
    await store.check(fix=True)
    assert (store.root / MESSAGES).read_bytes() == before
    assert all(line in damaged for line in aside(store).values())


async def test_a_message_that_only_the_events_of_its_run_have_is_appended_again(store):
    message = await store.get_message(THREAD, "msg_of_run_done")
    a_missing_message(store.root)
    await store.check(fix=True)
    assert (await store.list_messages(THREAD))[-1] == message


async def test_a_damaged_run_is_made_anew_from_its_events(store):
    run = await store.get_run(THREAD, "run_done")
    a_damaged_run(store.root)
    await store.check(fix=True)
    assert await store.get_run(THREAD, "run_done") == run
    assert aside(store) == {f"{DONE}/status.json": b"\0" * 40}


async def test_a_damaged_run_whose_last_event_is_damaged_too_is_moved_aside_whole(store):
    steps = {name: (store.root / DONE / "steps" / name).read_bytes() for name in ("step_a.json", "step_b.json")}
    a_damaged_run_with_a_damaged_end(store.root)
    events = (store.root / EVENTS).read_bytes()
    await store.check(fix=True)
    kept = {f"{DONE}/steps/{name}": data for name, data in steps.items()}
    assert aside(store) == {f"{DONE}/status.json": b"", EVENTS: events} | kept
    assert [run.id for run in await store.list_runs(THREAD)] == ["run_waiting", "run_hand"]
    assert "msg_of_run_done" in {message.id for message in await store.list_messages(THREAD)}


async def test_a_damaged_run_that_a_worker_holds_is_made_anew_with_its_lease(store):
    await store.create_thread(Thread.new(id="thread_c"))
    run = await store.create_run("thread_c", Run.new("thread_c", model="any"))
    claim = await store.try_claim_run("worker_1")
    (store.run_dir("thread_c", run.id) / "status.json").write_bytes(b"{}")

    report = await store.check(fix=True)

    assert [problem.kind for problem in report.problems] == ["damaged_record", "missing_record"]
    assert await store.get_run("thread_c", run.id) == claim.run
    await store.write_run(claim.lease, RunWrite(status=RunStatus.COMPLETED))
    assert (await store.check()).problems == ()


async def test_a_damaged_step_is_made_anew_from_the_events(store):
    step = await store.get_step(THREAD, "run_done", "step_a")
    a_damaged_step(store.root)
    report = await store.check(fix=True)
    assert found(report) == [(kind, f"{DONE}/steps/step_a.json") for kind in ("damaged_record", "missing_record")]
    assert await store.get_step(THREAD, "run_done", "step_a") == step
    assert aside(store) == {f"{DONE}/steps/step_a.json": b"[]"}


async def test_a_step_whose_end_may_have_been_lost_is_not_made_anew(store):
    path = store.steps_dir(THREAD, "run_waiting") / "step_call.json"
    path.unlink()
    spoil(store.run_dir(THREAD, "run_waiting") / "events.jsonl", -1)
    await store.check(fix=True)
    assert not path.exists()


async def test_a_thread_whose_record_is_lost_is_as_old_as_what_is_in_it(store):
    before = await store.get_thread(THREAD)
    messages = await store.list_messages(THREAD)
    a_damaged_thread(store.root)
    await store.check(fix=True)
    thread = await store.get_thread(THREAD)
    assert (thread.created_at, thread.metadata) == (before.created_at, {})
    assert await store.list_messages(THREAD) == messages
    assert aside(store) == {f"{THREAD}/meta.json": b'{"id": 7}'}


async def test_a_run_that_was_ended_elsewhere_is_settled(store):
    a_run_that_another_program_ended(store.root)
    await store.check(fix=True)
    assert (await store.get_step(THREAD, "run_waiting", "step_call")).status is RunStepStatus.CANCELLED
    assert [event.type async for event in store.events(THREAD, "run_waiting")][-1] == "thread.run.cancelled"


async def test_events_that_were_lost_go_on_past_every_number_that_was_given(store):
    step = await store.get_step(THREAD, "run_done", "step_b")
    lost_events(store.root)
    await store.check(fix=True)
    events = [event async for event in store.events(THREAD, "run_done")]
    assert [event.type for event in events] == ["thread.run.step.completed"] * 2 + ["thread.run.completed"]
    assert events[0].number > step.sequence


async def test_steps_and_messages_that_are_whole_are_told_of_again_and_not_written_again(store):
    def records():
        return {path: data for path, data in files_in(store.root).items() if path not in {EVENTS, STATUS}}

    before = records()
    events = lines_of(store.root / EVENTS)
    for length in range(len(events)):
        (store.root / EVENTS).write_bytes(b"".join(events[:length]))
        await store.check(fix=True)
        assert records() == before
        assert (await store.check()).problems == ()


async def test_an_event_that_names_no_id_makes_no_file(store):
    line = lines_of(store.root / EVENTS)[3].replace(b'"step_a"', b'"../../x"')
    append(store.root / EVENTS, line.replace(b'"number":1', b'"number":9').replace(b',"more":true', b""))
    report = await store.check(fix=True)
    assert found(report) == [("damaged_line", EVENTS)]
    assert not (store.root / THREAD / "runs" / "x.json").exists()


async def test_a_format_that_is_not_known_is_left_to_be_looked_at(store):
    path = store.root / OWN / "format"
    path.write_bytes(b"7\n")
    report = await store.check(fix=True)
    assert found(report) == [("strange_format", f"{OWN}/format")]
    assert not report.is_clean
    assert report.left == report.problems
    assert path.read_bytes() == b"7\n"


async def test_what_is_done_by_hand_to_a_run_that_has_ended_is_no_problem(store):
    await store.update_step_status(THREAD, "run_done", "step_a", RunStepStatus.IN_PROGRESS)
    await store.append_step(THREAD, "run_done", RunStep.tool_calls(thread_id=THREAD, run_id="run_done"))
    assert (await store.check()).problems == ()


async def test_names_that_are_not_ours_are_no_problem(store):
    for name in (".hidden", "lost+found", f"{THREAD}/.tmp1", f"{DONE}/steps/notes.txt", f"{TEMPORARY}/.nfs1"):
        (store.root / name).mkdir()
    (store.root / OWN / "damaged" / "anything").write_bytes(b"{")
    assert await store.check() == CheckReport((), 2)


async def test_in_a_tree_of_another_program_only_what_it_left_open_is_a_problem(tmp_path):
    seed = shutil.copytree(Path(__file__).parents[1] / "golden" / "seed", tmp_path / "seed")
    before = files_in(seed)
    async with FileStore(seed, durability="process") as store:
        report = await store.check(fix=True)
        run = "thread_7f3a/runs/run_done"
        assert found(report) == [("unfinalized_run", f"{run}/status.json")]
        assert (await store.check()).problems == ()
    changed = {path for path, data in before.items() if files_in(seed)[path] != data}
    assert changed == {f"{run}/status.json", f"{run}/steps/step_b.json"}


async def test_what_cannot_be_read_is_said_and_hides_no_other(store):
    (store.root / DONE / "status.json").unlink()
    (store.root / DONE / "status.json").mkdir()
    spoil(store.root / OTHER / "messages.jsonl", 0)
    report = await store.check(fix=True)
    assert found(report) == [
        ("not_a_file", f"{DONE}/status.json"),
        ("damaged_line", f"{OTHER}/messages.jsonl"),
    ]
    assert [problem.is_fixed for problem in report.problems] == [False, True]


async def test_what_does_not_let_itself_be_mended_is_left_and_says_why(store):
    (store.root / OWN / "damaged").rmdir()
    (store.root / OWN / "damaged").write_bytes(b"in the way")
    two_damaged_messages(store.root)
    before = files_in(store.root)

    report = await store.check(fix=True)

    assert found(report) == [("damaged_line", MESSAGES)] * 2
    assert report.left == report.problems
    assert all("could not be repaired: [Errno" in problem.description for problem in report.problems)
    assert files_in(store.root) == before


async def test_a_sentence_says_what_is_wrong_and_what_a_fix_does(store):
    a_missing_step(store.root)
    path = f"{DONE}/steps/step_a.json"
    text = "The run's log tells of this step, which is not here. A fix writes it again from the run's log."
    [problem] = (await store.check()).problems
    assert problem == Problem(ProblemKind.MISSING_RECORD, path, text)
    [problem] = (await store.check(fix=True)).problems
    assert problem == Problem(ProblemKind.MISSING_RECORD, path, text, is_fixed=True)


async def test_a_run_that_was_created_terminal_is_in_the_index_of_an_idle_thread(store):
    await store.create_thread(Thread.new(id="thread_c"))
    done = at(Run.new("thread_c", model="any"), "run_c")
    await store.create_run("thread_c", attrs.evolve(done, status=RunStatus.COMPLETED))
    assert (await store.check()).problems == ()
    last = await store.create_run("thread_c", attrs.evolve(done, id="run_d", status=RunStatus.COMPLETED))
    async with FileStore(store.root, durability="process", clock=ManualClock()) as other:
        run = await other.create_run("thread_c", Run.new("thread_c", model="any"))
    assert run.sequence > last.sequence
    assert (await store.check()).problems == ()
