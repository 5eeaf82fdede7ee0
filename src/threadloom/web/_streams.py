"""The event streams of a server. Each is written as fast as its reader reads, and ends when the server stops."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta

from aiohttp import web

from threadloom.clock import Clock
from threadloom.tasks import until_done
from threadloom.web._errors import WireError, as_wire_error, error_body
from threadloom.web._frames import KEEP_ALIVE, error_frame

__all__ = ["Streams"]

_logger = logging.getLogger("threadloom")

_SERVER_ERROR = 500
_UNSENT_BYTES = 64 * 1024
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # otherwise nginx holds frames back until its buffer is full
}


class Streams:
    """All streams of one server.

    A stream waits with its next frame until the reader has room for it. A slow reader therefore costs only the write
    buffers of its connection, about 64 KiB here and in the kernel. A reader that disconnects ends only its own stream:
    at once if the server runs with ``handler_cancellation``, otherwise with the next frame or comment.

    Args:
        clock: Clock of the store.

        keep_alive: Time without a frame after which the stream sends a comment.

        stall: Time that a reader may leave bytes unread. Then the connection is aborted, at most one ``keep_alive``
            later.

        most_streams: Maximum number of open streams.
    """

    def __init__(self, clock: Clock, *, keep_alive: timedelta, stall: timedelta, most_streams: int) -> None:
        self._clock = clock
        self._keep_alive = keep_alive
        self._stall = stall
        self._most_streams = most_streams
        self._taken = 0
        self._is_closed = False
        # For each stream, the future that asks it to end, and the one that says it has ended.
        self._open: dict[asyncio.Future[None], asyncio.Future[None]] = {}

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserve one stream. Do this before creating a run, so that a refused request changes nothing."""
        if self._is_closed:
            raise stopping_error()
        if self._taken >= self._most_streams:
            text = f"The server has reached its limit of {self._most_streams} open streams. Try again later."
            raise WireError(429, text, type="requests", code="rate_limit_exceeded")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def send(self, request: web.Request, frames: AsyncGenerator[bytes, None]) -> web.StreamResponse:
        """Answer a request with ``frames``, each sent as soon as it is there, and close the generator afterwards.

        If the generator raises or the server stops, a last frame tells the reader. Neither affects the run.
        """
        response = web.StreamResponse(headers=_HEADERS)
        loop = asyncio.get_running_loop()
        stopping, ended = loop.create_future(), loop.create_future()
        if self._is_closed:
            stopping.set_result(None)
        self._open[stopping] = ended
        try:
            async with aclosing(frames):
                with suppress(_ReaderLeftError, ConnectionError):
                    _bound_unsent(request)
                    await response.prepare(request)
                    await self._serve(_Stream(request, response, self._clock), frames, stopping)
        finally:
            del self._open[stopping]
            ended.set_result(None)
        return response

    async def close(self) -> None:
        """End all streams, and return when they have ended."""
        self._is_closed = True
        for stopping in self._open:
            if not stopping.done():
                stopping.set_result(None)
        await until_done(*self._open.values())

    async def _serve(
        self, stream: _Stream, frames: AsyncGenerator[bytes, None], stopping: asyncio.Future[None]
    ) -> None:
        pump = asyncio.create_task(stream.pump(frames))
        watch = asyncio.create_task(stream.watch(self._keep_alive, self._stall))
        try:
            await asyncio.wait((pump, watch, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pump.cancel()
            watch.cancel()
            await until_done(pump, watch)
        for task in (pump, watch):
            if not task.cancelled():
                task.result()
        if pump.cancelled() and stopping.done():
            await stream.cut_off()


def _bound_unsent(request: web.Request) -> None:
    """Limit how much the kernel buffers: otherwise it takes megabytes that the reader has not read."""
    transport = request.transport
    socket_ = None if transport is None else transport.get_extra_info("socket")
    if socket_ is not None and socket_.family in {socket.AF_INET, socket.AF_INET6}:
        socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


class _ReaderLeftError(Exception):
    """The reader disconnected."""


class _Stream:
    """One stream: a pump that waits for the reader, and a watch that never does."""

    def __init__(self, request: web.Request, response: web.StreamResponse, clock: Clock) -> None:
        self._request = request
        self._response = response
        self._clock = clock
        self._written_at_ns = clock.time_ns()
        self._has_ended = False

    async def pump(self, frames: AsyncGenerator[bytes, None]) -> None:
        """Write each frame when the reader has room for it, then the end of the answer."""
        try:
            async for frame in frames:
                await self._write(frame)
                await asyncio.sleep(0)  # lets other tasks run while this stream catches up
        except _ReaderLeftError:
            raise
        except Exception as error:  # noqa: BLE001 - the status line has been sent, so no error answer is possible
            await self._tell(as_wire_error(error, self._request), error)
        await self._end()

    async def watch(self, keep_alive: timedelta, stall: timedelta) -> None:
        """Send comments during silence, and return when the reader has left or is aborted for reading nothing."""
        delay, stuck, taken = min(keep_alive, stall), timedelta(), -1
        while True:
            await self._clock.sleep(delay)
            transport = self._request.transport
            if transport is None:
                return
            lying = transport.get_write_buffer_size()
            taken_before, taken = taken, self._request.writer.output_size - lying
            stuck = stuck + delay if lying and taken == taken_before else timedelta()
            if stuck >= stall or transport.is_closing():
                transport.abort()
                return
            silent = timedelta(microseconds=(self._clock.time_ns() - self._written_at_ns) // 1000)
            if silent >= keep_alive and not lying and not self._has_ended:
                await self._write(KEEP_ALIVE)
            left = keep_alive - silent
            delay = min(left if timedelta() < left < keep_alive else keep_alive, stall)

    async def cut_off(self) -> None:
        """End the answer because the server stops."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()  # the reader may never read the buffered bytes
            return
        await self._tell(stopping_error())
        await self._end()

    async def _tell(self, told: WireError, error: Exception | None = None) -> None:
        if error is not None and told.status >= _SERVER_ERROR:
            ids = {"request_id": self._response.headers.get("x-request-id")}
            _logger.warning("The event stream of request %s broke off", ids["request_id"], exc_info=error, extra=ids)
        await self._write(error_frame(error_body(told)))

    async def _write(self, data: bytes) -> None:
        try:
            await self._response.write(data)
            self._written_at_ns = self._clock.time_ns()
            await self._request.writer.drain()
        except ConnectionError as error:
            raise _ReaderLeftError from error

    async def _end(self) -> None:
        self._has_ended = True
        try:
            await self._response.write_eof()
        except ConnectionError as error:
            raise _ReaderLeftError from error


def stopping_error() -> WireError:
    """Return the error for a server that stops."""
    text = "The server is stopping. Runs continue when it is back: resume the stream after the last event id."
    return WireError(503, text, type="server_error")
