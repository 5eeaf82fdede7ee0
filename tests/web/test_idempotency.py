"""Sending a create again under an Idempotency-Key: it is done once, and answered as it was then."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.disk_calls import intercept
from tests.support.faulty_disk import FaultyDisk
from tests.web.fixtures import Answer, Wire, WireTests, path_of, serving
from threadloom import Assistant, FileStore, Thread

KEY = {"Idempotency-Key": "key 1"}
HELLO = {"role": "user", "content": "hello"}
# Every create, with something else that may be sent under the same key.
CREATES: list[Any] = [
    pytest.param("/assistants", {"model": "m"}, {"model": "n"}, id="assistant"),
    pytest.param("/threads", {"messages": [HELLO]}, {}, id="thread"),
    pytest.param("/threads/t/messages", HELLO, {**HELLO, "role": "assistant"}, id="message"),
    pytest.param("/threads/t/runs", {"assistant_id": "a"}, {"assistant_id": "a", "model": "n"}, id="run"),
    pytest.param(
        "/threads/runs",
        {"assistant_id": "a", "thread": {"messages": [HELLO]}},
        {"assistant_id": "a", "thread": {"messages": []}},
        id="thread and run",
    ),
]


class TestSendingAgain(WireTests):
    @pytest.fixture(autouse=True)
    async def things(self, wire: Wire) -> None:
        await wire.store.create_thread(Thread.new(id="t"))
        await wire.store.create_assistant(Assistant.new(id="a", model="m"))

    async def count(self, wire: Wire) -> tuple[int, int, int, int]:
        """Return how many assistants, threads, messages and runs there are."""
        threads = await wire.store.list_threads()
        messages = [message for thread in threads for message in await wire.store.list_messages(thread.id)]
        runs = [run for thread in threads for run in await wire.store.list_runs(thread.id)]
        return len(await wire.store.list_assistants()), len(threads), len(messages), len(runs)

    async def changed(self, wire: Wire, path: str, made: dict[str, Any]) -> None:
        """Change what was made."""
        if path == "/threads/runs":
            path = f"/threads/{made['thread_id']}/runs"
        await wire.good("POST", f"{path}/{made['id']}", {"metadata": {"changed": "yes"}})
        if made["object"] == "thread.run":
            await wire.good("POST", f"{path_of(made)}/cancel", b"")

    @pytest.mark.parametrize(("path", "body", "_other"), CREATES)
    async def test_a_create_is_done_once_and_answered_as_it_was_then(self, wire: Wire, path, body, _other):
        first = await wire.ask("POST", path, body, headers=KEY)
        assert first.status == 200
        counted = await self.count(wire)
        assert (await wire.ask("POST", path, body, headers=KEY)).body == first.body
        await self.changed(wire, path, first.json)
        again = await wire.ask("POST", path, body, headers=KEY)
        assert (again.status, again.body) == (200, first.body)
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert await self.count(wire) == counted

    @pytest.mark.parametrize(("path", "body", "_other"), CREATES)
    async def test_of_many_at_once_one_is_done_and_all_are_told_of_it(self, wire: Wire, path, body, _other):
        before = await self.count(wire)
        answers = await asyncio.gather(*(wire.ask("POST", path, body, headers=KEY) for _ in range(8)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        after = await self.count(wire)
        assert all(new - old <= 1 for old, new in zip(before, after, strict=True))
        assert (await wire.ask("POST", path, body, headers=KEY)).body == answers[0].body

    @pytest.mark.parametrize(("path", "body", "other"), CREATES)
    async def test_another_body_under_the_same_key_is_a_conflict_that_is_not_to_be_tried_again(
        self, wire: Wire, path, body, other
    ):
        await wire.good("POST", path, body, headers=KEY)
        counted = await self.count(wire)
        answer: Answer = await wire.ask("POST", path, other, headers=KEY)
        assert answer.status == 409
        assert answer.headers["x-should-retry"] == "false"
        assert answer.error["type"] == "idempotency_error"
        assert "key 1" not in answer.error["message"]
        assert await self.count(wire) == counted

    async def test_the_same_body_in_other_bytes_is_the_same_request(self, wire: Wire):
        first = await wire.good("POST", "/threads", b'{"metadata":{"a":"1"},"messages":null}', headers=KEY)
        again = await wire.good("POST", "/threads", b'{ "messages" : null, "metadata" : {"a":"1"} }', headers=KEY)
        assert again == first

    async def test_a_request_that_was_refused_has_not_used_its_key(self, wire: Wire):
        busy = await wire.run("t", "a")
        body = {"assistant_id": "a"}
        assert (await wire.ask("POST", "/threads/t/runs", body, headers=KEY)).status == 400
        assert (await wire.ask("POST", "/threads/t/runs", {"assistant_id": "b"}, headers=KEY)).status == 404
        await wire.good("POST", f"{path_of(busy)}/cancel", b"")
        await wire.good("POST", "/threads/t/runs", body, headers=KEY)

    async def test_a_run_that_is_asked_for_again_is_told_while_it_makes_the_thread_busy(self, wire: Wire):
        first = await wire.good("POST", "/threads/t/runs", {"assistant_id": "a"}, headers=KEY)
        assert await wire.good("POST", "/threads/t/runs", {"assistant_id": "a"}, headers=KEY) == first

    async def test_a_key_stands_by_itself_in_each_thread_and_for_each_kind(self, wire: Wire):
        await wire.store.create_thread(Thread.new(id="u"))
        made = [
            (await wire.good("POST", path, body, headers=KEY))["id"]
            for path, body in (
                ("/threads/t/messages", HELLO),
                ("/threads/u/messages", HELLO),
                ("/threads/t/runs", {"assistant_id": "a"}),
                ("/threads/u/runs", {"assistant_id": "a"}),
                ("/assistants", {"model": "m"}),
                ("/threads", {}),
            )
        ]
        assert len(set(made)) == 6
        # A thread alone and a thread with a run are two requests for a thread.
        assert (await wire.ask("POST", "/threads/runs", {"assistant_id": "a"}, headers=KEY)).status == 409

    @pytest.mark.parametrize(("length", "status"), [(1, 200), (255, 200), (256, 400)])
    async def test_a_key_has_1_to_255_characters(self, wire: Wire, length, status):
        for path in ("/threads", "/assistants"):
            answer = await wire.ask("POST", path, {"model": "m"}, headers={"Idempotency-Key": "k" * length})
            assert answer.status == status
            if status == 400:
                expected = "Invalid 'Idempotency-Key': expected 1 to 255 characters, not 256."
                assert (answer.error["message"], answer.error["param"]) == (expected, "Idempotency-Key")

    async def test_an_empty_key_is_refused(self, wire: Wire):
        assert (await wire.ask("POST", "/threads", {}, headers={"Idempotency-Key": ""})).status == 400

    async def test_a_key_of_bytes_that_are_no_text_is_a_key(self, wire: Wire):
        head = b"POST /v1/threads HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n"
        said = [await wire.raw(head + b"Idempotency-Key: \xff%b\r\n\r\n" % key) for key in (b"1", b"1", b"2")]
        bodies = [answer.partition(b"\r\n\r\n")[2] for answer in said]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in said)
        assert bodies[0] == bodies[1] != bodies[2]

    async def test_what_creates_nothing_takes_no_notice_of_a_key(self, wire: Wire):
        for number in ("1", "2"):
            made = await wire.good("POST", "/threads/t", {"metadata": {"n": number}}, headers=KEY)
            assert made["metadata"] == {"n": number}


class TestTwoServers:
    async def test_of_many_at_once_through_two_servers_one_is_done(self, tmp_path: Path):
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(FileStore(tmp_path, durability="process")) for _ in range(2)]
            wires = [await stack.enter_async_context(serving(store)) for store in stores]
            await stores[0].create_thread(Thread.new(id="t"))
            await stores[0].create_assistant(Assistant.new(id="a", model="m"))
            for create in CREATES:
                path, body, _ = create.values
                answers = await asyncio.gather(
                    *(wire.ask("POST", path, body, headers={"Idempotency-Key": create.id}) for wire in wires * 4)
                )
                assert {answer.status for answer in answers} == {200}
                assert len({answer.body for answer in answers}) == 1


class TestAFailingDisk:
    @pytest.mark.parametrize("durability", ["process", "power"])
    async def test_a_thread_and_run_that_were_cut_off_anywhere_go_on_from_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any
    ):
        disk = FaultyDisk()
        intercept(monkeypatch, disk)
        async with FileStore(tmp_path / "store", durability=durability) as store, serving(store) as wire:
            assistant = await wire.assistant()
            body = {"assistant_id": assistant, "thread": {"messages": [HELLO]}}
            disk.mend()
            await wire.good("POST", "/threads/runs", body, headers={"Idempotency-Key": "none"})
            changes = list(disk.changes)
            assert len(changes) > 5
            statuses = set()
            for at in range(len(changes)):
                key = {"Idempotency-Key": f"at {at}"}
                disk.fail_at(at, "full", lasts=True)
                cut_off = await wire.ask("POST", "/threads/runs", body, headers=key)
                disk.mend()
                statuses.add(cut_off.status)
                if cut_off.status != 200:
                    assert cut_off.error["type"] == "server_error"
                    assert str(tmp_path).encode() not in cut_off.body
                again = await wire.ask("POST", "/threads/runs", body, headers=key)
                assert again.status == 200, (at, changes[at])
                assert cut_off.status != 200 or cut_off.body == again.body
                assert (await wire.ask("POST", "/threads/runs", body, headers=key)).body == again.body
                assert len(await store.list_messages(again.json["thread_id"])) == 1
                assert [run.id for run in await store.list_runs(again.json["thread_id"])] == [again.json["id"]]
            assert len(await store.list_threads()) == len(changes) + 1
            assert 500 in statuses
