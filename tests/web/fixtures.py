"""What the tests of the wire share: a server on loopback, and a client that sends what it is told, byte for byte.

Every answer is held against OpenAI's description of the API, and against the types of its Python client.
"""

from __future__ import annotations

import asyncio
import functools
import io
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai.types.beta
import openai.types.beta.threads
import openai.types.beta.threads.runs
import orjson
import pytest
import yaml
from aiohttp import ClientSession, CookieJar, web
from attrs import frozen
from multidict import CIMultiDictProxy
from yarl import URL

from tests.support.worker_fixtures import STORES
from threadloom import MemoryStore, Run, ThreadStore
from threadloom.testing import ManualClock
from threadloom.web import create_app
from threadloom.worker import Handler, RunWorker

__all__ = ["PATIENCE", "Answer", "MemoryWireTests", "Wire", "WireTests", "path_of", "serving"]

PATIENCE = 10  # seconds of the test's own; nothing here takes that long unless it is broken
_DESCRIPTION = Path(__file__).parent / "data" / "assistants_openapi.yaml"
_TYPES: Mapping[str, Any] = {
    "assistant": openai.types.beta.Assistant,
    "assistant.deleted": openai.types.beta.AssistantDeleted,
    "thread": openai.types.beta.Thread,
    "thread.deleted": openai.types.beta.ThreadDeleted,
    "thread.message": openai.types.beta.threads.Message,
    "thread.message.deleted": openai.types.beta.threads.MessageDeleted,
    "thread.run": openai.types.beta.threads.Run,
    "thread.run.step": openai.types.beta.threads.runs.RunStep,
}


@functools.cache
def _description() -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    description: dict[str, Any] = yaml.load(_DESCRIPTION.read_bytes(), Loader=loader)  # noqa: S506 - safe, and in C
    return description


@functools.cache
def _schema(name: str) -> jsonschema_rs.Draft202012Validator:
    reference = {"$ref": f"#/components/schemas/{name}", "components": _description()["components"]}
    return jsonschema_rs.Draft202012Validator(reference)


@functools.cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    # "/threads/runs" before "/threads/{thread_id}", which it fits too.
    ordered = sorted(_description()["paths"].items(), key=lambda item: item[0].count("{"))
    return [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), operations) for path, operations in ordered]


def _schema_of(method: str, path: str) -> str | None:
    """Return the name of the schema of a good answer, or none where the description has no such operation."""
    for pattern, operations in _paths():
        if pattern.fullmatch(path) and method.lower() in operations:
            answer = operations[method.lower()]["responses"]["200"]["content"]["application/json"]
            return str(answer["schema"]["$ref"]).rsplit("/", 1)[1]
    return None


def _check_object(value: dict[str, Any]) -> None:
    if value["object"] == "list":
        for item in value["data"]:
            _check_object(item)
    else:
        _TYPES[value["object"]].model_validate(value)


@frozen
class Answer:
    """An answer as it came."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Return the error that the answer tells of."""
        _schema("ErrorResponse").validate(self.json)
        assert self.headers["Content-Type"] == "application/json"
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class Wire:
    """A server, and a client of it."""

    def __init__(self, store: ThreadStore, session: ClientSession, origin: URL) -> None:
        self.store = store
        self.origin = origin
        self._session = session

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: str = "",
    ) -> Answer:
        """Send a request: ``path`` and ``query`` as they are, a body of bytes too, any other as JSON."""
        given = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = orjson.dumps(body)
        if body is not None:
            given.setdefault("Content-Type", "application/json")
        if body is not None and len(body) > 2**20:
            body = io.BytesIO(body)  # as aiohttp asks
        url = URL(f"{self.origin}v1{path}{'?' if query else ''}{query}", encoded=True)
        async with (
            asyncio.timeout(PATIENCE),
            self._session.request(method, url, data=body, headers=given, allow_redirects=False) as response,
        ):
            answer = Answer(response.status, response.headers, await response.read())
        assert answer.headers["x-request-id"].startswith("req_")
        if answer.status == 200 and method != "HEAD" and answer.headers["Content-Type"] == "application/json":
            schema = _schema_of(method, path)
            if schema is not None:
                _schema(schema).validate(answer.json)
            _check_object(answer.json)
        return answer

    async def good(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send a request, and return the JSON of its answer, which is no error."""
        answer = await self.ask(method, path, body, **options)
        assert answer.status == 200, answer.body
        return answer.json

    async def error(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """Send a request, and return the status and the error of its answer."""
        answer = await self.ask(method, path, body, **options)
        return answer.status, answer.error

    async def refused(self, method: str, path: str, body: Any = None, **options: Any) -> str:
        """Send a request that is answered 400 for what it says, and return the message."""
        status, error = await self.error(method, path, body, **options)
        assert (status, error["type"], error["code"]) == (400, "invalid_request_error", None), error
        return str(error["message"])

    async def raw(self, data: bytes, *, ends: bool = False) -> bytes:
        """Send bytes over a connection of their own, and return all that comes until the server closes it."""
        reader, writer = await self.connect()
        writer.write(data)
        if ends:
            writer.write_eof()
        try:
            async with asyncio.timeout(PATIENCE):
                return await reader.read()
        finally:
            await _close(writer)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self.origin.host is not None
        return await asyncio.open_connection(self.origin.host, self.origin.port)

    # Short words for what every test needs first

    async def assistant(self, **fields: Any) -> str:
        return str((await self.good("POST", "/assistants", {"model": "m", **fields}))["id"])

    async def thread(self, *texts: str) -> str:
        messages = [{"role": "user", "content": text} for text in texts]
        return str((await self.good("POST", "/threads", {"messages": messages}))["id"])

    async def run(self, thread: str | None = None, assistant: str | None = None, **fields: Any) -> dict[str, Any]:
        thread = thread or await self.thread("hello")
        assistant = assistant or await self.assistant()
        run: dict[str, Any] = await self.good("POST", f"/threads/{thread}/runs", {"assistant_id": assistant, **fields})
        return run

    async def ended(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Return the run as it is once nobody works on it."""
        async with asyncio.timeout(PATIENCE):
            await self.store.wait_for_run(run["thread_id"], run["id"])
        now: dict[str, Any] = await self.good("GET", path_of(run))
        return now

    async def done_by(self, handler: Handler, run: Mapping[str, Any]) -> dict[str, Any]:
        """Let a worker bring a run to its end, and return it as it is then."""
        async with RunWorker(self.store, handler):
            return await self.ended(run)

    async def kept(self, run: Mapping[str, Any]) -> Run:
        return await self.store.get_run(run["thread_id"], run["id"])


def path_of(run: Mapping[str, Any]) -> str:
    return f"/threads/{run['thread_id']}/runs/{run['id']}"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def serving(store: ThreadStore, *, app: web.Application | None = None, **options: Any) -> AsyncIterator[Wire]:
    """Serve a store under ``/v1`` of an application, with a client beside it."""
    app = app or web.Application()
    app.add_subapp("/v1", create_app(store, **options))
    # By default aiohttp waits ten seconds more for a body that was answered before it had come.
    runner = web.AppRunner(app, shutdown_timeout=PATIENCE, lingering_time=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        (address,) = runner.addresses
        async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
            yield Wire(store, session, URL(f"http://127.0.0.1:{address[1]}/"))
    finally:
        await runner.cleanup()


class WireTests:
    """Gives every test a server that anybody may ask, on each store."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        # Objects are made by the wall clock; from a whole second on, so that their age is known.
        return ManualClock(int(time.time()) * 1_000_000_000)

    @pytest.fixture(params=STORES)
    async def store(self, request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[ThreadStore]:
        async with request.param(clock) as store:
            yield store

    @pytest.fixture
    async def wire(self, store: ThreadStore) -> AsyncIterator[Wire]:
        async with serving(store) as wire:
            yield wire


class MemoryWireTests(WireTests):
    """The same on one store, for what is the same on all, or is done behind the store's back."""

    @pytest.fixture
    async def store(self, clock: ManualClock) -> AsyncIterator[ThreadStore]:
        async with MemoryStore(clock=clock) as store:
            yield store
