"""Another process of ``coffee_bar.py`` or ``coffee_bar_wire.py``: started, listened to, and brought to its end."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast


@dataclass(frozen=True)
class Other:
    """A process, the pipe for its orders, and whether it has said anything yet, or ended."""

    process: asyncio.subprocess.Process
    orders: asyncio.StreamWriter
    is_heard: asyncio.Event

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        with suppress(ProcessLookupError):
            self.process.kill()


@asynccontextmanager
async def another(arguments: list[str], hear: Callable[[list[str]], None]) -> AsyncIterator[Other]:
    """Start the program once more; ``hear`` is given the words of each line that it says. It ends with its input."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        sys.argv[0],
        *arguments,
        stdin=pipe,
        stdout=pipe,
        process_group=0,  # Ctrl-C is for the first process
    )
    orders, said = cast("tuple[asyncio.StreamWriter, asyncio.StreamReader]", (process.stdin, process.stdout))
    other = Other(process, orders, asyncio.Event())

    async def listen() -> None:
        async for line in said:
            if line.endswith(b"\n"):  # else it was killed before it had said it
                hear(line.decode().split())
                other.is_heard.set()
        other.is_heard.set()

    listening = asyncio.create_task(listen())
    try:
        yield other
    except BaseException:
        other.kill()
        raise
    finally:
        orders.close()
        await listening
        status = await process.wait()
    if status not in (0, -signal.SIGKILL):
        raise SystemExit("Another process of the coffee bar has failed.")


def given(options: argparse.Namespace, *names: str) -> list[str]:
    """Return those options as another process is given them."""
    values = {name: getattr(options, name) for name in names}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
