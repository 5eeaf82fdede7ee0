"""How tests run the examples, what they play, and what they change in what was played."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
RECORDING = EXAMPLES / "data" / "coffee_dialogs.jsonl"

# In development mode asyncio also tells of each step of its loop that took long, which is the machine's affair.
SLOW_STEP = re.compile(r"Executing <.* took \d+\.\d+ seconds\n")


def run_example(name: str, *arguments: object, status: int = 0, cwd: Path | None = None) -> str:
    """Return what an example prints; any warning, in any of its processes, is an error that it would print."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        env=os.environ | {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=100,
        cwd=cwd,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert SLOW_STEP.sub("", done.stderr) == "" or status == 2, done.stderr
    return done.stdout + (done.stderr if status == 2 else "")


def write_dialogs(path: Path, dialogs: dict[str, list[dict[str, object]]]) -> Path:
    lines = (json.dumps({"id": id_, "vertical": "Coffee", "turns": turns}) for id_, turns in dialogs.items())
    path.write_text("\n\n".join(lines), encoding="utf-8")  # with empty lines, and none at the end
    return path


def user(text: str, *calls: tuple[str, str, str]) -> dict[str, object]:
    named = [dict(zip(("name", "arguments", "output"), call, strict=True)) for call in calls]
    return {"role": "user", "text": text} | ({"calls": named} if named else {})


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "text": text}


AWKWARD = {
    "no-turns": [],
    "only-the-assistant": [assistant("Hello?"), assistant("")],
    "the-assistant-first": [assistant("What can I get you?"), user("Tea."), assistant("We have none.")],
    "the-user-twice": [user("One mocha.", ("menu", "{}", "[]")), user("No, two."), assistant("Two mochas, then.")],
    "the-assistant-twice": [user("Hello."), assistant("Good morning."), assistant("What will it be?")],
    "the-last-word": [user("Tea."), assistant("Sorry?"), user("What milk?", ("show", "a", "b"), ("show", "c", "d"))],
    "nothing-said": [user(""), assistant(""), user("", ("menu", "", "")), assistant(""), assistant("Well?")],
    "space": [user(" \n"), assistant(" two  spaces\r\n and\ta tab\n"), user("\t"), assistant("   ")],
    "not-ascii": [user("café \u2028 \U0001f600\x00\x85"), assistant("\x0bé \u2029à la\u00a0carte \U0001f600 \x1f.")],
    "not-json": [user("Go.", ("a b/../c", '{"x": ""y""}', "{\n"), ("", "null", "[")), assistant("Gone.")],
    "long": [user("x" * 70_000), assistant("y" * 70_000 + " z" * 40)],
}


def first_dialogs(number: int, path: Path) -> Path:
    """Write the first so many of the recorded conversations."""
    path.write_bytes(b"".join(RECORDING.read_bytes().splitlines(keepends=True)[:number]))
    return path


def rows_of(said: str) -> dict[str, str]:
    """Return what the table says."""
    return dict(re.findall(r"^│ +(.+?) +│ +(.+?) +│$", said, re.MULTILINE))


# Each changes one thing in what was played, and returns what a difference must name.


def thread_of(played: Path, pattern: str) -> Path:
    """Return the first file of the tree, in the order of its path, at ``pattern``."""
    return min(played.glob(pattern))


def change_a_byte_of_a_message(played: Path) -> str:
    path = thread_of(played, "thread_*/messages.jsonl")
    data = bytearray(path.read_bytes())
    data[data.index(b'"value":"') + 9] ^= 1
    path.write_bytes(data)
    return f"{path.parent.name}: user's turn 1"


def damage_a_line_of_a_message(played: Path) -> str:
    path = thread_of(played, "thread_*/messages.jsonl")
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    return str(path)


def lose_the_last_message(played: Path) -> str:
    path = thread_of(played, "thread_*/messages.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    return path.parent.name


def say_one_thing_more(played: Path) -> str:
    path = thread_of(played, "thread_*/messages.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1].replace(b"msg_", b"msg_2")]))
    return path.parent.name


def delete_a_step(played: Path) -> str:
    path = thread_of(played, "thread_*/runs/*/steps/*.json")
    path.unlink()
    return f"{path.parents[1].name}: step"


def change_the_output_of_a_call(played: Path) -> str:
    path = next(p for p in sorted(played.glob("thread_*/runs/*/steps/*.json")) if '"output"' in p.read_text())
    path.write_text(path.read_text().replace('"output": "', '"output": " '))
    return f"{path.parents[1].name}: step"


def revive_a_run(played: Path) -> str:
    path = next(p for p in sorted(played.glob("thread_*/runs/*/status.json")) if "cancel_after" in p.read_text())
    path.write_text(path.read_text().replace('"status": "cancelled"', '"status": "in_progress"'))
    return f"{path.parent.name}: run 1"


def say_more_than_was_streamed(played: Path) -> str:
    path = next(p for p in sorted(played.glob("thread_*/messages.jsonl")) if "run_cancelled" in p.read_text())
    lines = path.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if "run_cancelled" in line)
    lines[number] = re.sub(r'"value":"([^"]*)"', r'"value":"\1!"', lines[number])
    path.write_text("".join(lines))
    return path.parent.name


def lose_the_moment_of_a_run(played: Path) -> str:
    path = next(p for p in sorted(played.glob("thread_*/runs/*/status.json")) if '"completed"' in p.read_text())
    path.write_text(re.sub(r',\s*"completed_at": \d+', "", path.read_text()))
    return f"{path.parent.name}: run 1"


def damage_a_thread(played: Path) -> str:
    path = thread_of(played, "thread_*/meta.json")
    path.write_bytes(b"")
    return str(path)
