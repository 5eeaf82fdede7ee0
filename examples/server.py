"""An aiohttp application that has its own routes and, below /v1, the Assistants API. ``client.py`` talks to it.

python examples/server.py [PORT] [DIRECTORY]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncIterator

from aiohttp import web

from threadloom import FileStore, FunctionCall, RunContext
from threadloom.web import create_app

DRINKS = ("espresso", "latte", "mocha", "tea")


async def answer(ctx: RunContext) -> AsyncIterator[str]:
    """Ask the client for prices, and tell them piece by piece. A model would be called here."""
    messages = await ctx.list_messages()
    wanted = [drink for drink in DRINKS if drink in messages[-1].text]
    if wanted and not ctx.tool_calls:
        # The run waits for the client here; when the outputs are in, the handler is called anew.
        await ctx.call_tools(FunctionCall(name="get_price", arguments=json.dumps({"drink": d})) for d in wanted)
    for call in ctx.tool_calls:
        yield f"One {json.loads(call.function.arguments)['drink']}: "
        yield f"{call.function.output}. "
    yield "Anything else?"


def make_app(directory: str) -> web.Application:
    """Return the whole application."""
    store = FileStore(directory)

    async def count_threads(_: web.Request) -> web.Response:
        return web.json_response({"threads": len(await store.list_threads())})

    app = web.Application()
    app.add_routes([web.get("/count", count_threads)])
    app.add_subapp("/v1", create_app(store, handler=answer))  # opens the store, and has a worker in it
    return app


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    directory = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="server-")
    web.run_app(make_app(directory), host="127.0.0.1", port=port)
