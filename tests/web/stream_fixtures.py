"""What the tests of streams share: a server over loopback, and a reader that sees every byte."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from threadloom import ThreadStore
from threadloom.web import create_app

PATIENCE = 10  # seconds, of the test's own; nothing here takes that long unless it is broken


class Server:
    """A server on a port of its own, which may be stopped before the test ends."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        self._readers: list[Reader] = []
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    @property
    def bytes_lying(self) -> int:
        """How much of what the server has written lies in its own memory."""
        assert self._runner.server is not None
        connections = self._runner.server.connections
        return sum(open_.transport.get_write_buffer_size() for open_ in connections if open_.transport is not None)

    async def stop(self) -> None:
        await self._runner.cleanup()

    def leave_all(self) -> None:
        for reader in self._readers:
            reader.leave()

    async def get(self, path: str, *, is_read: bool = True) -> Reader:
        """Ask for ``path`` by HTTP/1.0, so that what follows the headers is the frames and nothing else.

        One that is not read at once has buffers that take in little.
        """
        client = socket.socket()
        client.setblocking(False)
        if not is_read:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=1024)
        writer.write(f"GET /v1{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        stream = Reader(reader, writer)
        self._readers.append(stream)
        if is_read:
            stream.head = (await stream.until(b"\r\n\r\n")).decode()
        return stream


@asynccontextmanager
async def served(store: ThreadStore, *, handler_cancellation: bool = False, **options: Any) -> AsyncIterator[Server]:
    """Serve the store as ``create_app`` does with the options."""
    app = web.Application()
    app.add_subapp("/v1", create_app(store, **options))
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server = Server(runner)
    try:
        yield server
    finally:
        await server.stop()
        server.leave_all()


class Reader:
    """The client's end of one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = ""
        self._reader = reader
        self._writer = writer
        self._ahead = b""

    async def until(self, mark: bytes) -> bytes:
        """Read up to ``mark``, and return it too."""
        async with asyncio.timeout(PATIENCE):
            while (end := self._ahead.find(mark)) < 0:
                data = await self._reader.read(65536)
                assert data, f"the stream ended before {mark!r}: {self._ahead!r}"
                self._ahead += data
        end += len(mark)
        found, self._ahead = self._ahead[:end], self._ahead[end:]
        return found

    async def rest(self) -> bytes:
        """Read to the end, and close the connection."""
        async with asyncio.timeout(PATIENCE):
            rest = self._ahead + await self._reader.read()
        self.leave()
        return rest

    def leave(self) -> None:
        """Close the connection, whatever is still to come."""
        self._writer.transport.abort()


def names(frames: bytes) -> list[str]:
    """Return the names of the events, without ``thread.``."""
    return [name.removeprefix("thread.") for name in re.findall(r"^event: (\S+)$", frames.decode(), re.MULTILINE)]


def numbers(frames: bytes) -> list[int]:
    """Return the numbers that the frames carry."""
    return [int(number) for number in re.findall(r"^id: (\d+)$", frames.decode(), re.MULTILINE)]
