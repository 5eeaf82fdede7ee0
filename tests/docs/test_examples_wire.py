"""The examples that speak over HTTP do what they say, as the programs that they are."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.example_runs import (
    AWKWARD,
    EXAMPLES,
    change_a_byte_of_a_message,
    change_the_output_of_a_call,
    delete_a_step,
    first_dialogs,
    revive_a_run,
    rows_of,
    run_example,
    write_dialogs,
)

# With this seed, of the runs of the first 12 conversations four are cancelled while they wait for a tool, one at once,
# two in the middle of the answer, and two at its end, perhaps too late.
SEED = "--seed=8757"


def test_the_demo_plays_the_recording_through_http_and_finds_what_was_changed_of_it(tmp_path):
    data = first_dialogs(12, tmp_path / "twelve.jsonl")
    said = run_example("coffee_bar_wire.py", f"--data={data}", "--root=a place/coffee-data", SEED, cwd=tmp_path)
    rows = rows_of(said)
    assert rows["conversations"] == "12 of 12"
    assert rows["runs"] == "21 of 21"
    cancelled, too_late = int(rows["cancelled"]), int(rows["cancellations that came too late"])
    assert cancelled + int(rows["completed"]) == 21
    assert cancelled + too_late == 9
    assert rows["streamed / polled"] == "11 / 10"
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

    played = tmp_path / "a place" / "coffee-data" / "1"
    changes = (change_a_byte_of_a_message, delete_a_step, change_the_output_of_a_call, revive_a_run)
    named = [change(played) for change in changes]
    said = run_example("coffee_bar_wire.py", f"--data={data}", f"--check-only={played}", status=1)
    for where in named:
        assert re.search(rf"^DIFFERENT .*{re.escape(where)}", said, re.MULTILINE)


def test_every_shape_of_a_conversation_passes_through_http(tmp_path):
    data = write_dialogs(tmp_path / "awkward.jsonl", AWKWARD)
    rows = rows_of(run_example("coffee_bar_wire.py", f"--data={data}", f"--root={tmp_path}"))
    assert rows["conversations"] == "11 of 11"
    assert rows["differences from the recording"] == "0"


def test_the_demo_through_http_refuses_what_it_cannot_do(tmp_path):
    assert "--limit must be at least 0" in run_example("coffee_bar_wire.py", "--limit=-1", status=2)
    assert "was not made" in run_example("coffee_bar_wire.py", f"--check-only={tmp_path}", status=2)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_demo_through_http_leaves_nothing_behind_when_it_is_stopped(tmp_path, sent, status):
    command = [sys.executable, str(EXAMPLES / "coffee_bar_wire.py"), f"--root={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as demo:
        while not list(tmp_path.glob("1/*/runs/*/events.jsonl")):
            time.sleep(0.01)
            assert demo.poll() is None
        os.killpg(demo.pid, sent)
        _, complaints = demo.communicate(timeout=30)  # to the end of stderr, which the server has too
    assert demo.returncode == status
    assert complaints == b""


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


def threads_at(url: str) -> object:
    with urllib.request.urlopen(f"{url}/count") as answer:  # noqa: S310 - it is http, on this machine
        return json.load(answer)


def test_the_server_answers_its_client_and_goes_on_with_what_lies_in_its_directory(tmp_path):
    with serving(tmp_path) as url:
        said = run_example("client.py", f"{url}/v1")
        assert threads_at(url) == {"threads": 1}
    answer = "One latte: 3.40. One mocha: 3.90. Anything else?"
    assert said.splitlines() == [
        "(asked for the price of one latte)",
        "(asked for the price of one mocha)",
        answer,
        "The run is completed.",
        "     user: How much are a latte and a mocha?",
        f"assistant: {answer}",
    ]
    with serving(tmp_path) as url:
        assert threads_at(url) == {"threads": 1}
