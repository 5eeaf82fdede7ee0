"""Children to be killed: forked within milliseconds by a small process that has imported everything once.

That process has no event loop and no threads, so that its children begin as clean as it is. It ends, and its children
with it, when the test that started it does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

PATIENCE = 60  # of the test's own; nothing here takes that long unless it is broken

Job = Callable[..., Coroutine[Any, Any, None]]


def serve(jobs: dict[str, Job]) -> None:
    """Be the small process: fork a child for each job that is asked for, and bury it when that is asked for."""
    children: set[int] = set()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        while True:
            request, pipes, _, _ = socket.recv_fds(control, 1 << 16, 2)
            if not request:
                break
            name, *arguments = json.loads(request)
            if name == "bury":
                answer = os.waitpid(arguments[0], 0)[1]
                children.remove(arguments[0])
            else:
                answer = os.fork()
                if not answer:
                    control.close()
                    _do(jobs[name](*pipes, *arguments))
                children.add(answer)
                for pipe in pipes:
                    os.close(pipe)
            control.send(json.dumps(answer).encode())
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _do(job: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(job)
    except BaseException:  # noqa: BLE001 - the child must never go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Child:
    """A forked process, the lines that it wrote into its pipe, and a pipe for what it is told."""

    def __init__(self, server: ForkServer, pid: int, pipe: int, orders: int) -> None:
        self.pid = pid
        self.lines: list[str] = []
        self._server = server
        self._pipe = pipe
        self._orders = orders
        self._rest = b""
        self._heard = asyncio.Event()
        self._has_ended = False
        asyncio.get_running_loop().add_reader(pipe, self._read)

    def _read(self) -> None:
        data = os.read(self._pipe, 1 << 16)
        *whole, self._rest = (self._rest + data).split(b"\n")
        self.lines += (line.decode() for line in whole)
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            os.close(self._orders)
            self._has_ended = True
        self._heard.set()

    async def said(self, count: int) -> list[str]:
        """Return the first ``count`` lines once they are there, or all, once the child has ended."""
        async with asyncio.timeout(PATIENCE):
            while len(self.lines) < count and not self._has_ended:
                self._heard.clear()
                await self._heard.wait()
        return self.lines[:count]

    def tell(self, line: str) -> None:
        os.write(self._orders, f"{line}\n".encode())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Return the wait status once the child is dead, all that it wrote is read, and its locks are free."""
        async with asyncio.timeout(PATIENCE):
            while not self._has_ended:
                self._heard.clear()
                await self._heard.wait()
        assert self._rest == b"", "a line of a pipe is written whole or not at all"
        return self._server.ask("bury", self.pid)

    async def killed(self) -> None:
        """Return once the child is dead by SIGKILL, from any sender."""
        assert os.WTERMSIG(await self.ended()) == signal.SIGKILL


class ForkServer:
    """The small process, seen from the test. ``module`` is what it runs, which calls ``serve``."""

    def __init__(self, module: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def ask(self, *request: object, pipes: tuple[int, ...] = ()) -> int:
        socket.send_fds(self._control, [json.dumps(request).encode()], pipes)
        return int(json.loads(self._control.recv(1 << 16)))

    def fork(self, job: str, *arguments: object) -> Child:
        """Start a job; it is handed the pipe for what it says, the pipe for what it is told, then the arguments."""
        (said, its_said), (its_orders, orders) = os.pipe(), os.pipe()
        pid = self.ask(job, *arguments, pipes=(its_said, its_orders))
        os.close(its_said)
        os.close(its_orders)
        return Child(self, pid, said, orders)

    def close(self) -> None:
        self._control.close()
        self._process.wait()
