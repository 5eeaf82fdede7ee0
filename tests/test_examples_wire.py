"""The examples that speak over HTTP do what they say, as the programs that they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.example_runs import (
    AWKWARD,
    EXAMPLES,
    change_a_byte_of_a_message,
    change_the_output_of_a_call,
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

# With this seed, of the runs of the first 12 conversations SOME are cancelled while they speak.
SEED = "--seed=1"


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the first twelve of the recorded conversations."""
    return first_dialogs(12, tmp_path_factory.mktemp("data") / "twelve.jsonl")


@pytest.fixture(scope="module")
def original(twelve: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what the demo has made of them."""
    root = tmp_path_factory.mktemp("original")
    run_example("coffee_bar_wire.py", f"--data={twelve}", f"--root={root}", SEED)
    return root / "1"


@pytest.fixture
def played(original: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "played"))


def test_the_demo_plays_the_recording_through_http(tmp_path):
    options = ("--root=a place/coffee-data", "--limit=12", "--concurrency=3", SEED)
    said = run_example("coffee_bar_wire.py", *options, cwd=tmp_path)
    rows = rows_of(said)
    assert rows["conversations"] == "12 of 12"
    assert rows["runs"] == "21 of 21"
    assert int(rows["cancelled"]) + int(rows["completed"]) == 21
    streamed, polled = map(int, rows["streamed / polled"].split(" / "))
    assert streamed + polled == 21
    assert min(streamed, polled) >= 7
    assert int(rows["tools carried out by the client"]) >= 30
    assert float(rows["runs per second"]) > 0
    p50, p99 = map(float, rows["first word, p50 / p99"].removesuffix(" ms").split(" / "))
    assert 0 < p50 <= p99
    assert rows["differences from the recording"] == "0"
    commands = re.findall(r"^    (\w+ .+)$", said, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["ls", "cat", "cat", "tail"]
    for command in commands[:3]:
        shown = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)  # noqa: S602
        assert shown.stdout


def test_every_shape_of_a_conversation_passes_through_http(tmp_path):
    copies = {f"{name}-{number}": turns for number in range(4) for name, turns in AWKWARD.items()}
    data = write_dialogs(tmp_path / "awkward.jsonl", copies)
    rows = rows_of(run_example("coffee_bar_wire.py", f"--data={data}", f"--root={tmp_path}"))
    assert rows["conversations"] == "44 of 44"
    assert rows["differences from the recording"] == "0"


def test_an_empty_recording_is_played_through_http(tmp_path):
    assert "0 of 0" in run_example("coffee_bar_wire.py", "--limit=0", f"--root={tmp_path}")


def test_the_demo_through_http_refuses_what_it_cannot_do(tmp_path):
    assert "--limit must be at least 0" in run_example("coffee_bar_wire.py", "--limit=-1", status=2)
    assert "was not made" in run_example("coffee_bar_wire.py", f"--check-only={tmp_path}", status=2)
    data = tmp_path / "data.jsonl"
    data.write_text("{")
    said = run_example("coffee_bar_wire.py", f"--data={data}", f"--root={tmp_path / 'root'}", status=2)
    assert f"{data}, line 1" in said
    assert not (tmp_path / "root").exists()


def check(played: Path, twelve: Path, status: int) -> str:
    return run_example("coffee_bar_wire.py", f"--data={twelve}", f"--check-only={played}", status=status)


def test_the_comparison_through_http_finds_nothing_where_nothing_was_changed(played, twelve):
    assert "DIFFERENT" not in check(played, twelve, 0)


@pytest.mark.parametrize(
    "change",
    [
        change_a_byte_of_a_message,
        lose_the_last_message,
        say_one_thing_more,
        delete_a_step,
        change_the_output_of_a_call,
        revive_a_run,
        say_more_than_was_streamed,
        lose_the_moment_of_a_run,
    ],
)
def test_the_comparison_through_http_finds_what_was_changed(played, twelve, change):
    where = change(played)
    said = check(played, twelve, 1)
    assert re.search(rf"^DIFFERENT .*{re.escape(where)}", said, re.MULTILINE)


@pytest.mark.parametrize(("sent", "status", "complaint"), [(signal.SIGINT, 130, b""), (signal.SIGKILL, -9, b"")])
def test_the_demo_through_http_leaves_nothing_behind_when_it_is_stopped(tmp_path, sent, status, complaint):
    command = [sys.executable, str(EXAMPLES / "coffee_bar_wire.py"), f"--root={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as demo:
        while not list(tmp_path.glob("1/*/runs/*/events.jsonl")):
            time.sleep(0.01)
            assert demo.poll() is None
        os.killpg(demo.pid, sent)
        _, complaints = demo.communicate(timeout=30)  # to the end of stderr, which the server has too
    assert demo.returncode == status
    assert complaints == complaint


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Run the server of the examples, and yield where it is; it must end at SIGINT with nothing to complain of."""
    command = [sys.executable, "-u", str(EXAMPLES / "server.py"), "0", str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stdout
        try:
            said = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert said
            yield said[0]
            server.send_signal(signal.SIGINT)
            _, complaints = server.communicate(timeout=30)
            assert (server.returncode, complaints) == (0, "")
        finally:
            server.kill()


def test_the_server_answers_its_client_and_has_routes_of_its_own(tmp_path):
    with serving(tmp_path) as url:
        said = run_example("client.py", f"{url}/v1")
        with urllib.request.urlopen(f"{url}/count") as answer:  # noqa: S310 - it is http, on this machine
            assert json.load(answer) == {"threads": 1}
    told = "One latte: 3.40. One mocha: 3.90. Anything else?"
    assert said.splitlines() == [
        "(asked for the price of one latte)",
        "(asked for the price of one mocha)",
        told,
        "The run is completed.",
        "     user: How much are a latte and a mocha?",
        f"assistant: {told}",
    ]


def test_the_server_goes_on_with_what_lies_in_its_directory(tmp_path):
    for number in (1, 2):
        with serving(tmp_path) as url:
            run_example("client.py", f"{url}/v1")
            with urllib.request.urlopen(f"{url}/count") as answer:  # noqa: S310 - it is http, on this machine
                assert json.load(answer) == {"threads": number}
