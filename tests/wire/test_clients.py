"""OpenAI's official client for Python, in three of its ages, sync and async, sees one and the same wire."""

from __future__ import annotations

import time

import pytest

from tests.support.wire_server import serving
from tests.wire.expectation import KILLED, SEEN
from tests.wire.official_clients import MAJORS
from tests.wire.programs import python_flows, rest, said, server
from threadloom import FileStore, MemoryStore
from threadloom.testing import ManualClock


def clock() -> ManualClock:
    return ManualClock(time.time_ns())  # from now on, as runs have been made by others


# Each version and flavour has its turn on files, below.
@pytest.mark.parametrize(("major", "flavour"), [("3", "sync"), ("3", "async"), ("2", "async"), ("1", "sync")])
async def test_an_official_client_sees_a_memory_store_through_the_wire(major, flavour):
    async with serving(MemoryStore(clock=clock())) as url, python_flows(major, flavour, url) as client:
        assert await rest(client) == SEEN


@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("major", MAJORS)
async def test_a_stream_whose_server_was_killed_goes_on_at_the_next_one_on_its_files(major, flavour, tmp_path):
    async with server(tmp_path) as (doomed, its_url), python_flows(major, flavour, its_url, "doomed") as client:
        await said(client, "standing")
        doomed.kill()
        await doomed.wait()
        async with serving(FileStore(tmp_path, clock=clock())) as url:
            client.stdin.write(f"{url}\n".encode())
            assert await said(client, "killed") == KILLED
            assert await rest(client) == SEEN
