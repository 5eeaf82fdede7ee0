"""A server that the command has started, and a client of it that knows nothing but HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from attrs import define

PATIENCE_SECONDS = 60
SETTLED = {"requires_action", "completed", "failed", "incomplete", "expired", "cancelled"}


@define
class Served:
    """The server's process, what it says, and what it answers."""

    process: Process
    http: aiohttp.ClientSession
    first_line: str

    async def line(self) -> str:
        """Return the next line that the server, or one of its workers, has said; empty at the end of all."""
        return await _line(self.process)

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Return the status of an answer, and its JSON."""
        async with self.http.request(method, f"/v1{path}", **options) as response:
            return response.status, await response.json()

    async def make(self, path: str, **body: Any) -> Any:
        status, made = await self.ask("POST", path, json=body)
        assert status == 200, made
        return made

    async def run(self, said: str = "hello") -> dict[str, Any]:
        """Return a new run behind what a user said."""
        assistant = await self.make("/assistants", model="m")
        thread = await self.make("/threads")
        await self.make(f"/threads/{thread['id']}/messages", role="user", content=said)
        run: dict[str, Any] = await self.make(f"/threads/{thread['id']}/runs", assistant_id=assistant["id"])
        return run

    async def ended(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return the run once it has been settled."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while run["status"] not in SETTLED:
                _, run = await self.ask("GET", f"/threads/{run['thread_id']}/runs/{run['id']}")
        return run

    async def answer(self, run: dict[str, Any]) -> str:
        """Return what the run has answered, once it is completed."""
        run = await self.ended(run)
        assert run["status"] == "completed", run
        _, page = await self.ask("GET", f"/threads/{run['thread_id']}/messages")
        text: str = page["data"][0]["content"][0]["text"]["value"]
        return text

    async def workers(self, count: int) -> list[psutil.Process]:
        """Return the worker processes, once there are so many."""
        server = psutil.Process(self.process.pid)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(children := server.children()) < count:  # noqa: ASYNC110 - the system does not tell
                await asyncio.sleep(0)
        return children

    async def end(self) -> tuple[int, str]:
        """Return what the server has ended with, and what it and its workers said of trouble."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            # Those who have inherited them hold them open.
            _, errors = await self.process.communicate()
            return await self.process.wait(), errors.decode()


async def gone(processes: list[psutil.Process]) -> None:
    """Return when none of the processes lives; one that nobody has asked how it ended does not."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def served(root: Path, *arguments: object, cwd: Path | None = None, **environment: str) -> AsyncIterator[Served]:
    """Start a server at a port that is free, and yield it once it says where it listens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "THREADLOOM_"))}
    command = [sys.executable, "-m", "threadloom", "serve", root, "--port", 0, "--durability", "process", *arguments]
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env=kept | {"PYTHONWARNINGS": "error"} | environment,
        stdout=PIPE,
        stderr=PIPE,
        cwd=cwd,
    )
    try:
        line = await _line(process)
        address = re.search(r"http://127\.0\.0\.1:[1-9]\d*(?=/v1 )", line)
        if address is None:
            raise AssertionError(line, (await process.communicate())[1])
        async with aiohttp.ClientSession(address[0]) as http:
            yield Served(process, http, line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await process.stdout.readline()).decode().rstrip("\n")
