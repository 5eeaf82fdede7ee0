"""The command ``threadloom``: looks after a store from a terminal, and serves one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from threadloom.checks import OnBusy
from threadloom.cli._check import check

__all__ = ["main"]

_MOST_PORT = 65_535

# What `add_parser` returns has no public name.
Commands = Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="threadloom", description="Looks after a store of threads, messages and runs, and serves it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_check(commands)
    _add_serve(commands)
    asked = vars(parser.parse_args(arguments))
    return _check(**asked) if asked.pop("command") == "check" else _serve(**asked)


def _add_check(commands: Commands) -> None:
    command = commands.add_parser(
        "check",
        help="read all of a FileStore and say what is wrong",
        description="Reads all of a FileStore and says what is wrong, one problem a line. Others may go on using it.",
        epilog="Exit status: 0 where nothing is wrong any more, 1 where problems are left, 2 where there is no store.",
    )
    command.add_argument("root", metavar="ROOT", type=Path, help="the directory of the store")
    command.add_argument(
        "--fix",
        action="store_true",
        help="mend what can be mended without guessing; damage is moved to ROOT/.threadloom/damaged, never deleted",
    )


def _check(*, root: Path, fix: bool) -> int:
    try:
        return asyncio.run(check(root, fix=fix))
    except KeyboardInterrupt:
        print("Stopped. What was mended so far stays mended.", file=sys.stderr)
        return 130


def _add_serve(commands: Commands) -> None:
    command = commands.add_parser(
        "serve",
        help="serve a FileStore over HTTP, as the Assistants API did, and do its runs",
        description="Serves /v1, as the Assistants API did, from a FileStore, and does its runs with a handler. "
        "Old code needs no more than a new base_url.",
        epilog="Clients need a key where the environment variable THREADLOOM_API_KEYS has any, with commas between "
        "them, or --api-keys-file. Without keys only programs on this machine are served. "
        "Exit status: 0 where it was stopped by SIGINT or SIGTERM, 2 where it cannot start.",
    )
    command.add_argument("root", metavar="ROOT", type=Path, help="the directory of the store; made where it is missing")
    command.add_argument(
        "--handler",
        default="echo",
        metavar="NAME",
        help="what answers: package.module:function, or openai-chat to forward to the chat-completions server that "
        "OPENAI_BASE_URL and OPENAI_API_KEY name, or echo (the default), which says again what it is told",
    )
    command.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    command.add_argument(
        "--port", type=_port, default=8000, help="where to listen (default: %(default)s); 0 for any that is free"
    )
    command.add_argument(
        "--workers", type=_count, metavar="N", help="do the runs in N processes of their own, and not in the server's"
    )
    command.add_argument(
        "--concurrency",
        type=_count,
        default=8,
        metavar="C",
        help="runs at a time, in each process that does any (default: %(default)s)",
    )
    command.add_argument(
        "--durability",
        choices=["power", "process"],
        default="power",
        help="what a write survives: a power cut, or only the death of the process, which is faster "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--on-busy",
        choices=get_args(OnBusy),
        default="reject",
        help="what becomes of a run that is asked for while its thread has another (default: %(default)s)",
    )
    command.add_argument(
        "--api-keys-file", type=Path, metavar="FILE", help="the keys of clients, one a line; never on the command line"
    )


def _serve(**options: Any) -> int:
    try:
        from threadloom.cli._serve import ServeOptions, serve  # noqa: PLC0415 - of an extra, and slow to import
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        print("threadloom: serve needs aiohttp: pip install 'threadloom[cli]'", file=sys.stderr)
        return 2
    return serve(ServeOptions(**options))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to {_MOST_PORT}")
    return int(text)
