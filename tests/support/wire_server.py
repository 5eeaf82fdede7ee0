"""The server that tests with clients talk to: in the test, or as `python -m tests.support.wire_server [DIRECTORY]`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from aiohttp import web

from tests.support.wire_handler import answer
from threadloom import FileStore, MemoryStore, ThreadStore
from threadloom.testing import ManualClock
from threadloom.web import create_app


@asynccontextmanager
async def serving(store: ThreadStore) -> AsyncIterator[str]:
    """Serve the store, and give the URL for clients; theirs is `POST /later`, which lets runs at work expire."""

    async def later(_: web.Request) -> web.Response:
        assert isinstance(store.clock, ManualClock)
        store.clock.advance(timedelta(minutes=11))
        return web.json_response({})

    wire = create_app(store, handler=answer)
    wire.router.add_post("/later", later)
    app = web.Application()
    app.add_subapp("/v1", wire)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [(host, port)] = runner.addresses
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


async def main(*directory: str) -> None:
    async with serving(FileStore(*directory) if directory else MemoryStore()) as url:
        print(url, flush=True)  # noqa: T201 - to the test
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
