"""The command ``threadloom``: checks a store, and serves one over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from threadloom.cli._check import check
from threadloom.validation import OnBusy

__all__ = ["main"]

_MOST_PORT = 65_535

# What `add_parser` returns has no public name.
Commands = Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: Arguments of the command. None, the default, for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="threadloom", description="Check a store of threads, messages and runs, or serve it over HTTP."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_check(commands)
    _add_serve(commands)
    asked = vars(parser.parse_args(arguments))
    return _check(**asked) if asked.pop("command") == "check" else _serve(**asked)


def _add_check(commands: Commands) -> None:
    command = commands.add_parser(
        "check",
        help="read a whole FileStore and report its problems",
        description="Read a whole FileStore and report its problems, one per line. Others may use it meanwhile.",
        epilog="Exit status: 0 if no problem is left, 1 if problems are left, 2 if there is no store.",
    )
    command.add_argument("root", metavar="ROOT", type=Path, help="the directory of the store")
    command.add_argument(
        "--fix",
        action="store_true",
        help="repair what can be repaired without guessing; damage is moved to ROOT/.threadloom/damaged, never deleted",
    )


def _check(*, root: Path, fix: bool) -> int:
    try:
        return asyncio.run(check(root, fix=fix))
    except KeyboardInterrupt:
        print("Stopped. Repairs made so far are kept.", file=sys.stderr)
        return 130


def _add_serve(commands: Commands) -> None:
    command = commands.add_parser(
        "serve",
        help="serve the Assistants API from a FileStore, and execute its runs",
        description="Serve the Assistants API under /v1 from a FileStore, and execute its runs with a handler. "
        "Old code only needs a new base_url.",
        epilog="Clients need a key if the environment variable THREADLOOM_API_KEYS (keys separated by commas) or "
        "--api-keys-file contains any. Without keys, the server accepts only programs on this machine. "
        "Exit status: 0 if SIGINT or SIGTERM stopped it, 2 if it cannot start.",
    )
    command.add_argument("root", metavar="ROOT", type=Path, help="the directory of the store; created if it is missing")
    command.add_argument(
        "--handler",
        default="echo",
        metavar="NAME",
        help="the handler: package.module:function, or openai-chat to forward to the chat-completions server in "
        "OPENAI_BASE_URL with the key in OPENAI_API_KEY, or echo (the default) to repeat the user's message",
    )
    command.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    command.add_argument(
        "--port", type=_port, default=8000, help="the port to listen on (default: %(default)s); 0 for any free port"
    )
    command.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="execute the runs in N worker processes instead of the server process",
    )
    command.add_argument(
        "--concurrency",
        type=_count,
        default=8,
        metavar="C",
        help="runs at a time in each process that executes runs (default: %(default)s)",
    )
    command.add_argument(
        "--durability",
        choices=["power", "process"],
        default="power",
        help="what a write survives: a power failure, or only a crash of the process, which is faster "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--on-busy",
        choices=get_args(OnBusy),
        default="reject",
        help="what to do with a new run if its thread has an active one (default: %(default)s)",
    )
    command.add_argument(
        "--api-keys-file",
        type=Path,
        metavar="FILE",
        help="file with the keys of clients, one per line; keys are never passed on the command line",
    )


def _serve(**options: Any) -> int:
    try:
        from threadloom.cli._serve import ServeOptions, serve  # noqa: PLC0415 - part of an extra, and slow to import
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        print("threadloom: serve needs aiohttp: pip install 'threadloom[cli]'", file=sys.stderr)
        return 2
    return serve(ServeOptions(**options))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to {_MOST_PORT}")
    return int(text)
