"""``python -m threadloom``, as the program that it is."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.check_fixtures import DONE, MESSAGES, append, files_in, full_store

STEP = f"{DONE}/steps/step_a.json"


def run(*arguments, cwd=None, **options):
    """Return what the command ended with, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "threadloom", *map(str, arguments)],
        env=os.environ | {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error", "COLUMNS": "100"} | options,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    return done.returncode, done.stdout, done.stderr


def run_on_a_terminal(*arguments, **options):
    """Return what the command ended with, and what a person sees."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "threadloom", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"} | options
    with subprocess.Popen(command, env=environment, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        seen = b""
        try:
            while piece := os.read(terminal, 1 << 16):
                seen += piece
        except OSError:  # how a terminal says that nobody is there any more
            pass
        finally:
            os.close(terminal)
    return process.returncode, seen.decode()


@pytest.fixture
async def root(tmp_path):
    async with full_store(tmp_path / "store") as store:
        return store.root


def test_a_sound_store_is_clean(root):
    assert run("check", root) == (0, "No problems in 2 threads.\n", "")
    assert run("check", "store", cwd=root.parent) == (0, "No problems in 2 threads.\n", "")


def test_every_problem_is_said_with_its_path_and_changed_only_by_a_fix(root):
    (root / STEP).unlink()
    append(root / MESSAGES, b'{"id": "to')
    before = files_in(root)
    step = f"{root}/{STEP}: The run's log tells of this step, which is not here. A fix "
    tail = f"{root}/{MESSAGES}: Byte {before[MESSAGES].rindex(b'{')}: The last line has no end. A fix moves it to"

    status, said, errors = run("check", root)

    assert (status, errors) == (1, "")
    *problems, closing = said.splitlines()
    second, first = problems
    assert first.startswith(step)
    assert first.endswith("[missing_record]")
    assert second.startswith(tail)
    assert closing == "2 problems in 2 threads: 0 fixed, 2 left."
    assert files_in(root) == before

    status, said, errors = run("check", root, "--fix")

    assert (status, errors) == (0, "")
    assert [line.rsplit(" ", 1)[1] for line in said.splitlines()[:-1]] == ["[fixed]", "[fixed]"]
    assert said.endswith("\n2 problems in 2 threads: 2 fixed, 0 left.\n")
    assert run("check", root) == (0, "No problems in 2 threads.\n", "")


def test_what_no_fix_can_mend_is_left(root):
    shutil.rmtree(root / DONE / "steps")
    (root / DONE / "steps").write_bytes(b"")
    status, said, _ = run("check", root, "--fix")
    assert status == 1
    assert said.splitlines()[-1] == "1 problem in 2 threads: 0 fixed, 1 left."


def test_a_directory_that_is_no_store_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "cat.jpg").write_bytes(b"meow")
    for root in (tmp_path / "photographs", tmp_path / "nowhere", tmp_path / "cat.jpg"):
        for fix in ((), ("--fix",)):
            status, said, errors = run("check", root, *fix)
            assert (status, said) == (2, "")
            assert errors == f"threadloom: {root} is not a store: it contains no .threadloom directory.\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cat.jpg", "photographs"]


def test_a_store_of_another_format_is_refused(root):
    (root / ".threadloom" / "format").write_bytes(b"7\n")
    status, said, errors = run("check", root, "--fix")
    assert (status, said) == (1, "")
    assert "holds b'7\\n', but this version of threadloom expects b'2\\n' there" in errors


@pytest.mark.parametrize("arguments", [(), ("check",), ("mend", "."), ("check", ".", "--mend")])
def test_a_command_line_that_says_nothing_is_explained(arguments):
    status, said, errors = run(*arguments)
    assert (status, said) == (2, "")
    assert errors.startswith("usage: threadloom")


def test_a_bar_is_shown_on_a_terminal(root):
    append(root / MESSAGES, b"{")
    status, seen = run_on_a_terminal("check", root)
    assert status == 1
    assert "threads" in seen
    assert "100%" in seen
    assert "1 problem in 2 threads: 0 fixed, 1 left." in seen


def test_without_rich_everything_is_said_but_the_bar(root, tmp_path):
    (tmp_path / "without" / "rich").mkdir(parents=True)
    (tmp_path / "without" / "rich" / "__init__.py").write_text("raise ImportError")
    status, seen = run_on_a_terminal("check", root, PYTHONPATH=str(tmp_path / "without"))
    assert status == 0
    assert seen.splitlines() == ["For a progress bar: pip install 'threadloom[cli]'", "No problems in 2 threads."]


def test_the_command_is_installed(root):
    command = Path(sys.executable).with_name("threadloom")
    done = subprocess.run([command, "check", root], capture_output=True, text=True, check=True)
    assert done.stdout == "No problems in 2 threads.\n"
