"""The examples do what they say, as the programs that they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.example_runs import (
    AWKWARD,
    EXAMPLES,
    RECORDING,
    change_a_byte_of_a_message,
    change_the_output_of_a_call,
    damage_a_line_of_a_message,
    damage_a_thread,
    delete_a_step,
    first_dialogs,
    lose_the_last_message,
    lose_the_moment_of_a_run,
    revive_a_run,
    rows_of,
    run_example,
    say_more_than_was_streamed,
    say_one_thing_more,
    write_dialogs,
)

# With this seed, of the runs of the first 12 conversations one is cancelled at once, one at its end, four in between.
SEED = "--seed=2750"


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the first twelve of the recorded conversations."""
    return first_dialogs(12, tmp_path_factory.mktemp("data") / "twelve.jsonl")


@pytest.fixture(scope="module")
def original(twelve: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what the demo has made of them."""
    root = tmp_path_factory.mktemp("original")
    run_example("coffee_bar.py", f"--data={twelve}", f"--root={root}", SEED)
    return root / "1"


@pytest.fixture
def played(original: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "played"))


def test_every_example_is_run_here():
    names = {path.name for path in EXAMPLES.glob("*.py") if not path.name.startswith("_")}
    here = {"coffee_bar.py", "quickstart.py", "cancel.py", "two_processes.py", "survive_a_crash.py"}
    assert names == here | {"coffee_bar_wire.py", "server.py", "client.py"}  # these in test_examples_wire.py


def test_the_recording_is_whole():
    dialogs = [json.loads(line) for line in RECORDING.read_bytes().splitlines()]
    turns = [turn for dialog in dialogs for turn in dialog["turns"]]
    assert (len(dialogs), len(turns), sum(len(turn.get("calls", ())) for turn in turns)) == (210, 786, 858)


def test_the_quickstart_goes_on_where_it_was(tmp_path):
    first = run_example("quickstart.py", tmp_path)
    assert re.findall(r"is (\w+)$", first, re.MULTILINE) == ["completed", "completed"]
    assert first.count("user: ") == first.count("assistant: You said: ") == 2
    assert f"Kept in {tmp_path}/thread_" in first
    again = run_example("quickstart.py", tmp_path)
    assert "assistant: You said: With oat milk. That was message 4 of yours." in again


def test_a_cancelled_answer_keeps_what_was_said():
    said = run_example("cancel.py")
    song = "99 bottles of cold brew on the wall. 98 bottles of cold brew on the wall. 97 bottles"
    assert said.startswith(song)
    assert "puts its instrument away" in said
    assert f"The run is cancelled. Its message is incomplete and says: {song}" in said
    assert said.endswith("Its step, a message_creation, is cancelled.\n")


def test_one_process_answers_what_another_asks():
    said = run_example("two_processes.py")
    answers = re.findall(r"Process (\d+) has read: question (\d) of process (\d+)\n", said)
    assert [number for _, number, _ in answers] == ["1", "2", "3"]
    assert all(reader != writer for reader, _, writer in answers)
    assert said.endswith("The worker has ended with status 0.\n")


def test_a_run_survives_the_death_of_its_worker(tmp_path):
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        said = subprocess.run(
            [sys.executable, EXAMPLES / "survive_a_crash.py"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=True,
        ).stdout
    # Not even what is found out and done before the death is done twice.
    assert [said.count(word) for word in ("asks for", "books a table", "dies")] == [1, 1, 1]
    attempts = re.findall(r"process (\d+) begins attempt (\d)", said)
    assert [number for _, number in attempts] == ["1", "2"]
    assert attempts[0][0] != attempts[1][0]
    assert said.endswith("completed: It is 19 °C in Oslo, and your table is booked.\n")
    warning = r"Reclaimed run run_\w+ of thread thread_\w+, which is now queued\n"
    assert re.fullmatch(warning, errors.read_text()), "the one warning, of a library whose log nobody has set up"


def test_the_demo_plays_the_recording_and_says_where_it_lies(twelve, tmp_path):
    said = run_example(
        "coffee_bar.py", f"--data={twelve}", "--root=a place/coffee-data", "--concurrency=3", SEED, cwd=tmp_path
    )
    rows = rows_of(said)
    assert rows["conversations"] == "12 of 12"
    assert rows["runs"] == "21 of 21"
    assert (rows["cancelled"], rows["completed"]) == ("6", "15")
    assert sum(int(part) for part in rows["cancelled before its start / at work / at its end"].split(" / ")) == 6
    assert float(rows["runs per second"]) > 0
    for row in ("queued to started, p50 / p99", "cancel to stopped, p50 / p99"):
        p50, p99 = map(float, rows[row].removesuffix(" ms").split(" / "))
        assert 0 < p50 <= p99
    assert rows["differences from the recording"] == "0"
    commands = re.findall(r"^    (\w+ .+)$", said, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["ls", "cat", "cat", "tail"]
    for command in commands[:3]:
        shown = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)  # noqa: S602
        assert shown.stdout


def test_the_demo_loses_no_word_where_its_worker_is_killed_again_and_again(twelve, tmp_path):
    # One conversation at a time, so that the pauses alone are longer than some of the worker's lives.
    options = ("--kill-every=0.5", "--concurrency=1", SEED)
    said = run_example("coffee_bar.py", f"--data={twelve}", f"--root={tmp_path}", *options)
    rows = rows_of(said)
    assert int(rows["runs taken over from a killed one"]) >= 1, "a kill came in the middle of a run"
    assert int(rows["kills of the worker"]) >= 1
    assert (rows["cancelled"], rows["completed"]) == ("6", "15")
    assert rows["differences from the recording"] == "0"


def test_the_demo_does_not_kill_without_a_pause(tmp_path):
    said = run_example("coffee_bar.py", f"--root={tmp_path}", "--kill-every=0", status=2)
    assert "--kill-every must be more than 0 seconds" in said


def test_the_demo_leaves_alone_what_lies_there(twelve, tmp_path):
    theirs = tmp_path / "2" / "precious.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    for number in ("1", "3"):
        said = run_example("coffee_bar.py", f"--data={twelve}", f"--root={tmp_path}", "--durability=power")
        assert f"The files are in {tmp_path / number}." in said
    assert [path.name for path in theirs.parent.iterdir()] == ["precious.txt"]
    assert theirs.read_text() == "mine"


def test_the_demo_plays_every_shape_of_a_conversation(tmp_path):
    copies = {f"{name}-{number}": turns for number in range(8) for name, turns in AWKWARD.items()}
    data = write_dialogs(tmp_path / "awkward.jsonl", copies)
    said = run_example("coffee_bar.py", f"--data={data}", f"--root={tmp_path}")
    assert re.search(r"conversations +│ +88 of 88 │", said)
    assert re.search(r"cancelled +│ +[1-9]", said)
    assert re.search(r"differences from the recording +│ +0 │", said)


def test_the_demo_plays_an_empty_recording(tmp_path):
    data = write_dialogs(tmp_path / "none.jsonl", {})
    assert "0 of 0" in run_example("coffee_bar.py", f"--data={data}", f"--root={tmp_path}")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "line 2, is no dialog"),
        ('{"id": "b"}', "KeyError: 'turns'"),
        ('{"id": 7, "turns": []}', "id is 7"),
        ('{"id": "b", "turns": [{"role": "barista", "text": "Hello."}]}', "'barista' is not a valid MessageRole"),
        ('{"id": "b", "turns": [{"role": "user"}]}', "KeyError: 'text'"),
        (r'{"id": "b", "turns": [{"role": "user", "text": "\ud83d"}]}', "surrogates not allowed"),
        ('{"id": "b", "turns": [{"role": "user", "text": "", "calls": [{"name": "x"}]}]}', "KeyError: 'arguments'"),
        ('{"id": "a", "turns": []}', "the id 'a' comes a second time"),
    ],
)
def test_the_demo_names_the_line_that_is_no_dialog(tmp_path, line, complaint):
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": "a", "turns": []}\n' + line)
    said = run_example("coffee_bar.py", f"--data={data}", f"--root={tmp_path / 'root'}", status=2)
    assert f"{data}, line 2" in said
    assert complaint in said
    assert not (tmp_path / "root").exists()


def test_the_demo_checks_no_directory_that_it_has_not_made(tmp_path):
    assert "was not made" in run_example("coffee_bar.py", f"--check-only={tmp_path}", status=2)
    assert not list(tmp_path.iterdir())


def check(played: Path, twelve: Path, status: int) -> str:
    return run_example("coffee_bar.py", f"--data={twelve}", f"--check-only={played}", status=status)


def test_the_comparison_finds_nothing_where_nothing_was_changed(played, twelve):
    assert "DIFFERENT" not in check(played, twelve, 0)


@pytest.mark.parametrize(
    "change",
    [
        change_a_byte_of_a_message,
        damage_a_line_of_a_message,
        lose_the_last_message,
        say_one_thing_more,
        delete_a_step,
        change_the_output_of_a_call,
        revive_a_run,
        say_more_than_was_streamed,
        lose_the_moment_of_a_run,
        damage_a_thread,
    ],
)
def test_the_comparison_finds_what_was_changed(played, twelve, change):
    where = change(played)
    said = check(played, twelve, 1)
    assert re.search(rf"^DIFFERENT .*{re.escape(where)}", said, re.MULTILINE)


def test_the_comparison_finds_a_conversation_that_is_missing_and_one_too_many(played, twelve, tmp_path):
    lines = twelve.read_bytes().splitlines(keepends=True)
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join([*lines[1:], RECORDING.read_bytes().splitlines(keepends=True)[12]]))
    said = check(played, other, 1)
    assert said.count("DIFFERENT") == 2
    assert "no dialog of the recording" in said
    assert "the dialog has no thread" in said


@pytest.mark.parametrize("mode", [[], ["--kill-every=0.5"]])
def test_the_demo_ends_at_once_when_it_is_interrupted(tmp_path, mode):
    command = [sys.executable, str(EXAMPLES / "coffee_bar.py"), f"--root={tmp_path}", *mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as demo:
        while not list(tmp_path.glob("1/*/runs/*/events.jsonl")):
            time.sleep(0.01)
            assert demo.poll() is None
        os.killpg(demo.pid, signal.SIGINT)
        _, complaints = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert complaints == b""
