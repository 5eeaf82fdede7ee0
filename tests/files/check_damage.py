"""Ways to damage the store of ``check_fixtures``: each does it, and returns the kinds and paths to be found."""

import json
import shutil

from tests.support.check_fixtures import (
    DONE,
    EDITS,
    EVENTS,
    MESSAGES,
    OTHER,
    OWN,
    TEMPORARY,
    THREAD,
    append,
    change,
    key_path,
    lines_of,
    spoil,
    without_last_line,
)
from threadloom import codec
from threadloom.records import RunRecord
from threadloom.stores.files.status_record import Summary, encode


def a_torn_message(root):
    append(root / MESSAGES, '{"id": "msg_torn", "content": "é'.encode()[:-1])
    return [("torn_log", MESSAGES)]


def a_torn_edit(root):
    append(root / EDITS, b'{"object"')
    return [("torn_log", EDITS)]


def a_torn_event(root):
    append(root / EVENTS, b"{")
    return [("torn_log", EVENTS)]


def a_missing_newline(root):
    (root / MESSAGES).write_bytes((root / MESSAGES).read_bytes()[:-1])
    return [("torn_log", MESSAGES)]


def a_damaged_message(root):
    spoil(root / MESSAGES, 2)
    return [("damaged_line", MESSAGES)]


def two_damaged_messages(root):
    spoil(root / MESSAGES, 2)
    spoil(root / MESSAGES, 3)
    return [("damaged_line", MESSAGES)] * 2


def a_damaged_message_of_a_run(root):
    [number] = [number for number, line in enumerate(lines_of(root / MESSAGES)) if b"msg_of_run_done" in line]
    spoil(root / MESSAGES, number)
    return [("damaged_line", MESSAGES)]


def a_damaged_edit(root):
    spoil(root / EDITS, 0)
    return [("damaged_line", EDITS)]


def an_unknown_edit(root):
    append(root / EDITS, b'{"object":"thread.message.sung"}\n')
    return [("damaged_line", EDITS)]


def a_damaged_event(root):
    spoil(root / EVENTS, 3)
    return [("damaged_line", EVENTS)]


def a_damaged_thread(root):
    (root / THREAD / "meta.json").write_bytes(b'{"id": 7}')
    return [("damaged_record", f"{THREAD}/meta.json")]


def a_missing_thread_record(root):
    (root / THREAD / "meta.json").unlink()
    return [("missing_record", f"{THREAD}/meta.json")]


def a_damaged_run(root):
    (root / DONE / "status.json").write_bytes(b"\0" * 40)
    return [("damaged_record", f"{DONE}/status.json")]


def a_missing_run_record(root):
    (root / DONE / "status.json").unlink()
    return [("missing_record", f"{DONE}/status.json")]


def a_damaged_run_with_a_damaged_end(root):
    (root / DONE / "status.json").write_bytes(b"")
    spoil(root / EVENTS, -1)
    return [("damaged_record", f"{DONE}/status.json")]


def a_run_without_anything_but_steps(root):
    (root / DONE / "status.json").unlink()
    (root / EVENTS).unlink()
    return [("missing_record", f"{DONE}/status.json")]


def a_damaged_step(root):
    (root / DONE / "steps" / "step_a.json").write_bytes(b"[]")
    return [("damaged_record", f"{DONE}/steps/step_a.json")]


def a_missing_step(root):
    (root / DONE / "steps" / "step_a.json").unlink()
    return [("missing_record", f"{DONE}/steps/step_a.json")]


def a_step_of_another_run(root):
    shutil.copy(root / DONE / "steps" / "step_a.json", root / THREAD / "runs" / "run_waiting" / "steps")
    return [("misplaced", f"{THREAD}/runs/run_waiting/steps/step_a.json")]


def a_run_of_another_thread(root):
    (root / OTHER / "runs" / "run_done").rename(root / THREAD / "runs" / "run_moved")
    return [("misplaced", f"{THREAD}/runs/run_moved/status.json")]


def a_thread_under_another_name(root):
    (root / OTHER).rename(root / "thread_c")
    return [("misplaced", "thread_c/meta.json"), ("wrong_index", f"{OWN}/queue/{OTHER}")]


def a_message_of_another_thread(root):
    append(root / MESSAGES, lines_of(root / OTHER / "messages.jsonl")[0])
    return [("misplaced", MESSAGES)]


def an_event_of_another_run(root):
    lines = lines_of(root / OTHER / "runs" / "run_done" / "events.jsonl")
    append(root / EVENTS, lines[-1].replace(b'"number":', b'"number":9'))
    return [("misplaced", EVENTS)]


def the_events_of_another_run(root):
    shutil.copy(root / OTHER / "runs" / "run_done" / "events.jsonl", root / EVENTS)
    return [("misplaced", EVENTS)]


def a_missing_message(root):
    lines = lines_of(root / MESSAGES)
    (root / MESSAGES).write_bytes(b"".join(line for line in lines if b"msg_of_run_done" not in line))
    return [("missing_message", MESSAGES)]


def lost_messages(root):
    (root / MESSAGES).unlink()
    return [("missing_message", MESSAGES)]


def lost_events(root):
    (root / EVENTS).unlink()
    return [("lost_events", EVENTS)]


def a_lost_end_of_the_events(root):
    path = root / THREAD / "runs" / "run_waiting" / "events.jsonl"
    path.write_bytes(b"".join(lines_of(path)[:3]))
    return [("lost_events", f"{THREAD}/runs/run_waiting/events.jsonl")]


def an_event_out_of_order(root):
    lines = lines_of(root / EVENTS)
    (root / EVENTS).write_bytes(b"".join([*lines[:3], lines[1], *lines[3:]]))
    return [("unordered_events", EVENTS), ("stale_record", f"{DONE}/status.json")]


def a_run_that_another_program_ended(root):
    change(root / THREAD / "runs" / "run_waiting" / "status.json", status="cancelled", required_action=None)
    return [("unfinalized_run", f"{THREAD}/runs/run_waiting/status.json")]


def a_lost_last_event(root):
    without_last_line(root / EVENTS)
    return [("lost_events", EVENTS)]


def a_dead_lease(root):
    lease = {"worker_id": "worker_9", "token": "t", "attempt": 1, "liveness_id": "store_over"}
    change(root / THREAD / "runs" / "run_hand" / "status.json", lease=lease)
    return [("dead_lease", f"{THREAD}/runs/run_hand/status.json")]


def a_missing_queue_entry(root):
    (root / OWN / "queue" / THREAD).unlink()
    return [("wrong_index", f"{OWN}/queue/{THREAD}")]


def a_torn_queue_entry(root):
    (root / OWN / "queue" / THREAD).write_bytes(b'{"boot":')
    return [("wrong_index", f"{OWN}/queue/{THREAD}")]


def a_queue_entry_without_a_run(root):
    path = root / OWN / "queue" / THREAD
    entry = json.loads(path.read_bytes())
    path.write_text(json.dumps(entry | {"active": entry["active"][:1]}))
    return [("wrong_index", f"{OWN}/queue/{THREAD}")]


def a_thread_that_is_gone(root):
    shutil.rmtree(root / OTHER)
    return [("wrong_index", f"{OWN}/queue/{OTHER}")]


def a_run_that_another_program_changed(root):
    change(root / THREAD / "runs" / "run_waiting" / "status.json", metadata={"seen": "yes"})
    return [("stale_record", f"{THREAD}/runs/run_waiting/status.json")]


def a_status_that_lags_behind(root):
    run = root / THREAD / "runs" / "run_waiting"
    older = lines_of(run / "events.jsonl")[:3]
    line = json.loads(older[2])
    record = codec.from_record(line["data"] | line["commit"], RunRecord, "a test")
    (run / "status.json").write_bytes(encode(codec.to_record(record), Summary(sum(map(len, older)), line["number"])))
    return [("stale_record", f"{THREAD}/runs/run_waiting/status.json")]


def a_step_that_lags_behind(root):
    change(root / DONE / "steps" / "step_a.json", status="in_progress", completed_at=None)
    return [("stale_record", f"{DONE}/steps/step_a.json")]


def a_commit_that_cannot_be_read(root):
    lines = lines_of(root / EVENTS)
    lines[2] = lines[2].replace(b'"commit":{', b'"commit":[{').replace(b"}}}", b"}}]}")
    (root / EVENTS).write_bytes(b"".join(lines))
    return [("damaged_line", EVENTS), ("stale_record", f"{DONE}/status.json")]


def a_torn_transaction(root):
    line = lines_of(root / EVENTS)[3].replace(b'"number":1', b'"number":9')
    append(root / EVENTS, line)
    return [("torn_log", EVENTS)]


def what_was_being_written(root):
    (root / TEMPORARY / "store_gone-17").write_bytes(b"half a rec")
    (root / TEMPORARY / "store_gone-18").mkdir()
    (root / TEMPORARY / "store_gone-18" / "meta.json").write_bytes(b"{")
    return [("left_over", f"{TEMPORARY}/{name}") for name in ("store_gone-17", "store_gone-18")]


def what_was_being_deleted(root):
    shutil.copytree(root / OTHER, root / OWN / "trash" / "store_gone-0123")
    return [("left_over", f"{OWN}/trash/store_gone-0123")]


def a_directory_that_is_no_thread(root):
    (root / "photographs").mkdir()
    (root / "photographs" / "cat.jpg").write_bytes(b"meow")
    return [("missing_record", "photographs/meta.json")]


def a_missing_format(root):
    (root / OWN / "format").unlink()
    return [("strange_format", f"{OWN}/format")]


def a_damaged_assistant(root):
    (root / OWN / "assistants" / "asst_a.json").write_bytes(b'{"id": "asst_a"}')
    return [("damaged_record", f"{OWN}/assistants/asst_a.json")]


def an_assistant_under_another_name(root):
    assistants = root / OWN / "assistants"
    (assistants / "asst_a.json").rename(assistants / "asst_c.json")
    return [("misplaced", f"{OWN}/assistants/asst_c.json")]


def damaged_keys(root):
    paths = [key_path(root, key) for key in ("asst_a", f"key of {OTHER}")]
    paths.insert(0, next((root / THREAD / "keys").iterdir()))
    change(paths[0], created={"object": "song"})
    for path in paths[1:]:
        path.write_bytes(b"\0" * 40)
    return [("damaged_record", str(path.relative_to(root))) for path in paths]


def keys_under_the_names_of_others(root):
    one, other = key_path(root, "asst_a"), key_path(root, "asst_b")
    one.rename(other)
    return [("misplaced", str(other.relative_to(root)))]


# What is done, and the files that a fix may change or make in the rest of the tree.
DAMAGE = {
    a_torn_message: {MESSAGES},
    a_torn_edit: {EDITS},
    a_torn_event: {EVENTS},
    a_missing_newline: {MESSAGES},
    a_damaged_message: {MESSAGES},
    two_damaged_messages: {MESSAGES},
    a_damaged_message_of_a_run: {MESSAGES},
    a_damaged_edit: {EDITS},
    an_unknown_edit: {EDITS},
    a_damaged_event: {EVENTS},
    a_damaged_thread: {f"{THREAD}/meta.json"},
    a_missing_thread_record: {f"{THREAD}/meta.json"},
    a_damaged_run: {f"{DONE}/status.json"},
    a_missing_run_record: {f"{DONE}/status.json"},
    a_damaged_run_with_a_damaged_end: {f"{DONE}/"},
    a_run_without_anything_but_steps: {f"{DONE}/"},
    a_damaged_step: {f"{DONE}/steps/step_a.json"},
    a_missing_step: {f"{DONE}/steps/step_a.json"},
    a_step_of_another_run: {f"{THREAD}/runs/run_waiting/steps/step_a.json"},
    a_run_of_another_thread: {f"{THREAD}/runs/run_moved/"},
    a_thread_under_another_name: {"thread_c/", f"{OWN}/queue/{OTHER}", f"{OWN}/idle/{OTHER}"},
    a_message_of_another_thread: {MESSAGES},
    an_event_of_another_run: {EVENTS},
    the_events_of_another_run: {EVENTS, f"{DONE}/status.json"},
    a_missing_message: {MESSAGES},
    lost_messages: {MESSAGES, EDITS},
    lost_events: {EVENTS, f"{DONE}/status.json"},
    a_lost_end_of_the_events: {f"{THREAD}/runs/run_waiting/events.jsonl", f"{THREAD}/runs/run_waiting/status.json"},
    an_event_out_of_order: {EVENTS, f"{DONE}/status.json"},
    a_run_that_another_program_ended: {
        f"{THREAD}/runs/run_waiting/status.json",
        f"{THREAD}/runs/run_waiting/events.jsonl",
        f"{THREAD}/runs/run_waiting/steps/step_call.json",
        f"{OWN}/queue/{THREAD}",
    },
    a_lost_last_event: {EVENTS, f"{DONE}/status.json"},
    a_dead_lease: {f"{THREAD}/runs/run_hand/status.json", f"{THREAD}/runs/run_hand/events.jsonl"},
    a_missing_queue_entry: {f"{OWN}/queue/{THREAD}"},
    a_torn_queue_entry: {f"{OWN}/queue/{THREAD}"},
    a_queue_entry_without_a_run: {f"{OWN}/queue/{THREAD}"},
    a_thread_that_is_gone: {f"{OWN}/queue/{OTHER}", f"{OWN}/idle/{OTHER}"},
    a_run_that_another_program_changed: {
        f"{THREAD}/runs/run_waiting/events.jsonl",
        f"{THREAD}/runs/run_waiting/status.json",
    },
    a_status_that_lags_behind: {f"{THREAD}/runs/run_waiting/status.json"},
    a_step_that_lags_behind: {f"{DONE}/steps/step_a.json"},
    a_commit_that_cannot_be_read: {EVENTS, f"{DONE}/status.json"},
    a_torn_transaction: {EVENTS},
    what_was_being_written: {f"{TEMPORARY}/"},
    what_was_being_deleted: {f"{OWN}/trash/"},
    a_directory_that_is_no_thread: {"photographs/"},
    a_missing_format: {f"{OWN}/format"},
    a_damaged_assistant: {f"{OWN}/assistants/asst_a.json"},
    an_assistant_under_another_name: {f"{OWN}/assistants/asst_c.json"},
    damaged_keys: {f"{THREAD}/keys/", f"{OWN}/keys/"},
    keys_under_the_names_of_others: {f"{OWN}/keys/assistants/"},
}


# Those in which a thread is moved aside.
GONE_AFTERWARDS = {a_thread_under_another_name, a_directory_that_is_no_thread}
