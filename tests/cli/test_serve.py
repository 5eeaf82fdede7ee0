"""``python -m threadloom serve``, as the program that it is, over loopback."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.cli.chat_server import chat_server, text
from tests.cli.served import gone, served
from tests.cli.test_cli import run as run_command
from threadloom import FileStore, RunStatus

HANDLERS = """
import asyncio, os, time

async def deaf(ctx):
    print("at work", flush=True)
    while True:
        time.sleep(1)

async def who(ctx):
    return f"{os.getpid()} {os.environ.get('THREADLOOM_API_KEYS')}"

async def stuck(ctx):
    print("at work", flush=True)
    await asyncio.Event().wait()

async def stuck_once(ctx):
    if ctx.attempt > 1:
        return f"attempt {ctx.attempt}"
    print(os.getpid(), flush=True)
    await asyncio.Event().wait()

def blind():
    pass

async def needs_two(ctx, more):
    pass

number = 7
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def place(tmp_path):
    """Return a directory with modules of handlers, in which a server is to be started."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "desk.py").write_text(HANDLERS)
    (tmp_path / "place" / "broken.py").write_text("open('/nowhere')\n")
    return tmp_path / "place"


async def status_of(root, run):
    async with FileStore(root, durability="process") as store:
        return (await store.get_run(run["thread_id"], run["id"])).status


# What it serves


async def test_a_newcomer_is_given_an_echo(root):
    async with served(root) as server:
        assert server.first_line.startswith(f"Serving {root} at http://")
        assert "Handler: echo, which repeats the user's message" in server.first_line
        assert (await server.line()).startswith("Anyone on this machine can use it.")
        assert await server.answer(await server.run("good morning")) == "You said: good morning"


@pytest.mark.parametrize("workers", [(), ("--workers", 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order_and_no_process_is_left(root, place, workers, number):
    async with served(root, "--handler", "desk:who", *workers, cwd=place) as server:
        processes = await server.workers(2 if workers else 0)
        pid = int((await server.answer(await server.run())).split()[0])
        assert pid in ([process.pid for process in processes] if workers else [server.process.pid])
        server.process.send_signal(number)
        assert await server.end() == (0, "")
        assert not [process for process in processes if process.is_running()]


@pytest.mark.parametrize("workers", [(), ("--workers", 1)])
async def test_a_second_signal_puts_runs_at_work_back_at_once(root, place, workers):
    async with served(root, "--handler", "desk:stuck", *workers, cwd=place) as server:
        await server.line()
        run = await server.run()
        assert await server.line() == "at work"
        server.process.terminate()
        assert (await server.line()).startswith("Stopping.")
        server.process.terminate()
        assert await server.end() == (0, "")
    assert await status_of(root, run) is RunStatus.QUEUED


async def test_openai_chat_answers_with_what_another_server_says(root):
    async with chat_server() as chat:
        chat.answers = [text("Good ", "day")]
        async with served(root, "--handler", "openai-chat", OPENAI_BASE_URL=chat.url) as server:
            assert await server.answer(await server.run("hello")) == "Good day"
            server.process.terminate()
            assert await server.end() == (0, "")
    assert chat.asked[0]["messages"] == [{"role": "user", "content": "hello"}]


# Worker processes


async def test_workers_die_with_a_server_that_is_killed(root, place):
    async with served(root, "--handler", "desk:who", "--workers", 2, cwd=place) as server:
        processes = await server.workers(2)
        await server.answer(await server.run())
        server.process.kill()
        assert await server.end() == (-signal.SIGKILL, "")
        await gone(processes)


async def test_a_worker_that_is_killed_is_replaced_and_its_run_is_finished(root, place):
    async with served(root, "--handler", "desk:stuck_once", "--workers", 1, cwd=place) as server:
        await server.line()
        run = await server.run()
        psutil.Process(int(await server.line())).kill()
        assert await server.answer(run) == "attempt 2"
        server.process.terminate()
        status, errors = await server.end()
        assert status == 0
        assert "A worker process ended with exit status -9" in errors
        assert "exit_status=-9" in errors


async def test_a_worker_that_hears_nothing_is_killed_in_the_end(root, place):
    async with served(root, "--handler", "desk:deaf", "--workers", 1, cwd=place) as server:
        await server.line()
        await server.run()
        assert await server.line() == "at work"
        (worker,) = await server.workers(1)
        server.process.terminate()
        assert (await server.line()).startswith("Stopping.")
        server.process.terminate()
        assert await server.end() == (0, "")
        assert not worker.is_running()


async def test_workers_are_not_told_the_keys(root, place):
    async with served(root, "--handler", "desk:who", "--workers", 1, cwd=place, THREADLOOM_API_KEYS="sesame") as server:
        server.http.headers["Authorization"] = "Bearer sesame"
        assert (await server.answer(await server.run())).endswith(" None")


# Who may use it


async def test_with_keys_only_those_who_have_one_are_served(root, tmp_path):
    (tmp_path / "keys").write_text("open\n\n  up  \n")
    async with served(root, "--api-keys-file", tmp_path / "keys", THREADLOOM_API_KEYS="sesame, now") as server:
        for key, status in {"sesame": 200, "now": 200, "open": 200, "up": 200, "": 401, "sesame, now": 401}.items():
            assert (await server.ask("GET", "/threads", headers={"Authorization": f"Bearer {key}"}))[0] == status
        server.process.terminate()
        assert (await server.line()).startswith("Stopping."), "and nothing was said of anyone on this machine"


async def test_without_keys_a_page_of_the_web_cannot_use_it_by_way_of_a_browser(root):
    async with served(root) as server:
        for headers in {"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}, {"Host": "["}:
            status, answer = await server.ask("GET", "/threads", headers=headers)
            assert (status, answer["error"]["type"]) == (403, "invalid_request_error")
        for headers in {"Origin": "http://localhost:3000"}, {"Host": "localhost:1"}, {"Host": "[::1]:1"}:
            assert (await server.ask("GET", "/threads", headers=headers))[0] == 200


async def test_without_keys_it_is_not_to_be_reached_from_elsewhere(root):
    status, said, errors = run_command("serve", root, "--host", "0.0.0.0", THREADLOOM_API_KEYS=" , ")  # noqa: S104
    assert (status, said) == (2, "")
    assert errors.startswith("threadloom: Other machines can reach --host 0.0.0.0")
    assert "THREADLOOM_API_KEYS" in errors


# What keeps it from starting


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--handler", "nowhere:f"], "--handler 'nowhere:f' cannot be imported: ModuleNotFoundError: No module named"),
        (["--handler", "broken:f"], "--handler 'broken:f' cannot be imported: FileNotFoundError: [Errno 2]"),
        (["--handler", "desk:nobody"], "--handler 'desk:nobody' does not exist: the module desk has no nobody."),
        (
            ["--handler", "desk:number"],
            "--handler 'desk:number' is not a handler: it must be an async function that takes a RunContext, not int",
        ),
        (
            ["--handler", "desk:blind"],
            "--handler 'desk:blind' is not a handler: The handler must take a single RunContext",
        ),
        (
            ["--handler", "desk:needs_two"],
            "--handler 'desk:needs_two' is not a handler: The handler must take a single",
        ),
        (["--handler", "desk"], "--handler 'desk' is not a handler: use package.module:function, openai-chat or"),
        (["--handler", "openai-chat"], "The handler openai-chat needs a server: set OPENAI_BASE_URL"),
        (["--host", "192.0.2.1"], "Other machines can reach --host 192.0.2.1"),
        (["--host", ""], "--host '' is unknown"),
        (["--api-keys-file", "nowhere"], "--api-keys-file nowhere cannot be read: No such file or directory."),
        (["--api-keys-file", "/dev/null"], "--api-keys-file /dev/null contains no keys"),
        (["--api-keys-file", "desk.py"], "A key must be printable ASCII without spaces"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_one_line(root, place, arguments, sentence):
    status, said, errors = run_command(
        "serve", root, *arguments, cwd=place, OPENAI_BASE_URL="", OPENAI_API_KEY="", THREADLOOM_API_KEYS=""
    )
    assert (status, said) == (2, "")
    assert errors.startswith(f"threadloom: {sentence}")
    assert errors.count("\n") == 1
    assert not root.exists()


def test_a_port_that_is_taken_is_said_in_one_line(root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said, errors = run_command("serve", root, "--port", port, PYTHONDEVMODE="")
    assert (status, said) == (2, "")
    assert errors == (
        f"threadloom: Cannot listen at 127.0.0.1, port {port}: Address already in use. "
        "Use another --port, 0 for any free port, or another --host.\n"
    )


@pytest.mark.parametrize("path", ["cat.jpg", "cat.jpg/store"])
def test_what_is_no_directory_is_refused_and_left_as_it_is(tmp_path, path):
    (tmp_path / "cat.jpg").write_bytes(b"meow")
    sentence = f"threadloom: {tmp_path}/cat.jpg is not a directory: use a directory of a store, or a new one.\n"
    assert run_command("serve", tmp_path / path) == (2, "", sentence)
    assert (tmp_path / "cat.jpg").read_bytes() == b"meow"


def test_a_store_that_cannot_be_opened_is_said_in_one_line(root):
    (root / ".threadloom").mkdir(parents=True)
    (root / ".threadloom" / "format").write_bytes(b"7\n")
    status, said, errors = run_command("serve", root, "--port", 0, PYTHONDEVMODE="")
    assert (status, said) == (2, "")
    assert "holds b'7\\n', but this version of threadloom expects b'2\\n' there" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("--port", "65536"), ("--workers", "0"), ("--concurrency", "x"), ("--on-busy", "")]
)
def test_an_option_that_says_nothing_is_explained(root, arguments):
    status, said, errors = run_command("serve", root, *arguments)
    assert (status, said) == (2, "")
    assert f"threadloom serve: error: argument {arguments[0]}: " in errors


@pytest.mark.parametrize(("missing", "arguments"), [("aiohttp", []), ("openai", ["--handler", "openai-chat"])])
def test_without_the_extra_it_says_what_to_install(root, tmp_path, missing, arguments):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / f"{missing}.py").write_text(f"raise ModuleNotFoundError('gone', name='{missing}')")
    status, said, errors = run_command("serve", root, *arguments, PYTHONPATH=str(tmp_path / "without"))
    assert (status, said) == (2, "")
    assert errors.endswith(f" needs {missing}: pip install 'threadloom[cli]'\n")
    assert errors.count("\n") == 1


def test_a_check_needs_no_extra(tmp_path):
    for name in ("aiohttp", "openai", "rich"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    status, _, errors = run_command("check", tmp_path, PYTHONPATH=str(tmp_path))
    assert (status, errors) == (2, f"threadloom: {tmp_path} is not a store: it contains no .threadloom directory.\n")


def test_the_installed_command_finds_handlers_where_it_is_called(root, place):
    command = [Path(sys.executable).with_name("threadloom"), "serve", root, "--handler", "desk:number"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("threadloom: --handler 'desk:number' is not a handler")


def test_both_commands_are_shown():
    status, said, _ = run_command("--help")
    assert status == 0
    assert "check" in said
    assert "serve" in said
