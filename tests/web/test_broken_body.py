"""A client that leaves in the middle of its request is no fault of the server's."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web

from threadloom import MemoryStore
from threadloom.web import create_app


class Answered(logging.Handler):
    """Hears of the first answer."""

    def __init__(self):
        super().__init__()
        self.status = asyncio.get_running_loop().create_future()

    def emit(self, record):
        if record.msg == "Request %s was answered with status %s":
            self.status.set_result(record.status)


@pytest.mark.parametrize(
    "head", ["Content-Length: 20\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n5\r\n{", "Content-Length: 20\r\n\r\n"]
)
async def test_a_client_that_leaves_in_its_request_has_made_nothing_and_is_no_server_error(caplog, head):
    caplog.set_level(logging.INFO, "threadloom")
    store = MemoryStore()
    runner = web.AppRunner(create_app(store))
    await runner.setup()
    answered = Answered()
    logging.getLogger("threadloom").addHandler(answered)
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(f"POST /threads HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n{head}".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(10):
            assert await answered.status == 400
        assert list(await store.list_threads()) == []
    finally:
        logging.getLogger("threadloom").removeHandler(answered)
        await runner.cleanup()
    assert "Request %s failed" not in [record.msg for record in caplog.records]
