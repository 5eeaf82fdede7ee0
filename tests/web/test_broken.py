"""Slow and broken clients: what they leave behind is nothing."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.disk_calls import Call, intercept
from tests.support.worker_fixtures import until
from tests.web.fixtures import PATIENCE, MemoryWireTests, Wire, serving
from tests.web.stream_fixtures import served
from threadloom import Assistant, FileStore, RunStatus, ThreadStore
from threadloom.web import Limits

BODY = b'{"metadata": {"a": "b"}}'
POST = b"POST /v1/threads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)


@asynccontextmanager
async def nothing_left(wire: Wire) -> AsyncIterator[None]:
    """Fail unless all tasks and descriptors that come into being meanwhile are gone soon after."""
    await wire.good("GET", "/threads")  # so that the client's own connection is there before
    tasks, descriptors = len(asyncio.all_tasks()), psutil.Process().num_fds()
    yield
    async with asyncio.timeout(PATIENCE):
        while len(asyncio.all_tasks()) > tasks or psutil.Process().num_fds() > descriptors:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def drop(wire: Wire, data: bytes, *, rudely: bool = False) -> None:
    """Send bytes over a connection of their own, and leave without reading."""
    _, writer = await wire.connect()
    writer.write(data)
    await writer.drain()
    if rudely:
        writer.transport.abort()
    writer.close()


class TestBrokenClients(MemoryWireTests):
    async def test_half_a_body_and_then_silence_is_a_408(self, store: ThreadStore):
        limits = Limits(body_timeout=timedelta(milliseconds=1))
        async with serving(store, limits=limits) as wire:
            async with nothing_left(wire):
                reader, writer = await wire.connect()
                writer.write(POST[:-5])
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 408 ")
                    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                    error = json.loads(await reader.readexactly(length))["error"]
                assert error["message"] == "The request body did not arrive in time."
                writer.close()
                await writer.wait_closed()
            assert list(await store.list_threads()) == []

    async def test_a_request_dropped_at_any_byte_is_done_whole_or_not_at_all(self, wire: Wire, caplog):
        async with nothing_left(wire):
            for end in range(1, len(POST) + 1):
                await drop(wire, POST[:end], rudely=end % 2 == 0)
        made = await wire.store.list_threads()
        assert len(made) <= 1
        assert all(thread.metadata == {"a": "b"} for thread in made)
        # A client that leaves is no fault of the server.
        assert not [record for record in caplog.records if record.name == "threadloom" and record.levelname == "ERROR"]

    @pytest.mark.parametrize(
        "broken",
        [
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx",
            b"Content-Encoding: deflate\r\nContent-Length: 4\r\n\r\nabcd",
            b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
            b"Content-Length: -1\r\n\r\n",
            b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        ],
    )
    async def test_a_body_that_cannot_be_unpacked_is_a_400(self, wire: Wire, broken, caplog):
        head = b"POST /v1/threads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        async with nothing_left(wire):
            reader, writer = await wire.connect()
            writer.write(head + broken)
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
            assert line.split()[1] == b"400"
            writer.close()
        assert list(await wire.store.list_threads()) == []
        assert not [record for record in caplog.records if record.msg == "Request %s failed"]

    async def test_a_thousand_connections_opened_and_dropped_leave_nothing(self, wire: Wire):
        async with nothing_left(wire):
            for start in range(0, 1_000, 100):
                kinds = [b"", b"GET", POST[:100], POST[:-1], POST]
                drops = [drop(wire, kinds[n % 5], rudely=n % 2 == 0) for n in range(start, start + 100)]
                await asyncio.gather(*drops)
        assert len(await wire.store.list_threads()) <= 200

    async def test_a_run_whose_client_has_left_is_kept_or_was_never_made(self, wire: Wire):
        thread, assistant = await wire.thread(), await wire.assistant()
        body = json.dumps({"assistant_id": assistant, "on_busy": "enqueue"}).encode()
        head = f"POST /v1/threads/{thread}/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        asked = head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        async with nothing_left(wire):
            for end in range(len(asked) - 20, len(asked) + 1):
                await drop(wire, asked[:end], rudely=True)
        runs = await wire.store.list_runs(thread)
        assert len(runs) <= 1
        assert {run.status for run in runs} <= {RunStatus.QUEUED}

    async def test_requests_sent_at_once_are_answered_in_their_order(self, wire: Wire):
        thread = await wire.thread()

        def message(text: str, *, last: bool = False) -> bytes:
            body = json.dumps({"role": "user", "content": text}).encode()
            head = f"POST /v1/threads/{thread}/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            ends = b"Connection: close\r\n" if last else b""
            return head.encode() + ends + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)

        texts = [str(number) for number in range(10)]
        async with nothing_left(wire):
            said = await wire.raw(b"".join(message(text, last=text == "9") for text in texts))
        assert said.count(b"HTTP/1.1 200 ") == 10
        found = [said.index(b'"value":"%s"' % text.encode()) for text in texts]
        assert found == sorted(found)
        page = await wire.good("GET", f"/threads/{thread}/messages", query="order=asc")
        assert [item["content"][0]["text"]["value"] for item in page["data"]] == texts

    async def test_a_body_that_nobody_reads_does_not_become_the_next_request(self, wire: Wire):
        thread = await wire.thread()
        smuggled = f"DELETE /v1/threads/{thread} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        asked = (
            b"POST /v1/threads/t/runs/r/cancel HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        )
        said = await wire.raw(asked % len(smuggled) + smuggled)
        assert said.count(b"HTTP/1.1 ") == 1
        await wire.good("GET", f"/threads/{thread}")


class Held:
    """A disk that holds up the first change that is of a thread, until it is let go on."""

    def __init__(self) -> None:
        self.has_come = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, call: Call) -> Any:
        if call.is_change and "thread_" in str(call.args):
            self.has_come.set()
            self.may_go_on.wait(PATIENCE)
        return call()


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_leaves_as_its_thread_is_made_leaves_no_thread_without_its_run(
    tmp_path: Path, monkeypatch, stream
):
    disk = Held()
    intercept(monkeypatch, disk)
    body = json.dumps({"assistant_id": "a", "stream": stream}).encode()
    head = f"POST /v1/threads/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    async with FileStore(tmp_path / "store", durability="process") as store:
        await store.create_assistant(Assistant.new(model="m", id="a"))
        async with served(store, handler_cancellation=True) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{head}\r\n\r\n".encode() + body)
            await until(disk.has_come.is_set)
            writer.transport.abort()
            await until(lambda: any(task.cancelling() for task in asyncio.all_tasks()))
            left = [task for task in asyncio.all_tasks() if task.cancelling()]
            disk.may_go_on.set()
            await asyncio.wait(left)
        (thread,) = await store.list_threads()
        assert len(await store.list_runs(thread.id)) == 1
