"""Another process of ``coffee_bar.py``: started, listened to, and brought to its end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

BAR = Path(__file__).with_name("coffee_bar.py")


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
        BAR,
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
