"""The command ``threadloom``: looks after a store from a terminal."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from threadloom.cli._check import check

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out what the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="threadloom", description="Looks after a store of threads, messages and runs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
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
    asked = parser.parse_args(arguments)
    try:
        return asyncio.run(check(asked.root, fix=asked.fix))
    except KeyboardInterrupt:
        print("Stopped. What was mended so far stays mended.", file=sys.stderr)
        return 130
