"""A thread with an active run: what becomes of the next run and of a new message, as app or request choose."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.web.fixtures import Wire, WireTests, path_of, serving
from threadloom import FileStore, InvalidInputError, MemoryStore, RunStatus, ThreadStore
from threadloom.web import create_app
from threadloom.worker import RunWorker

HELLO = {"role": "user", "content": "hello"}
ACTIVE = [RunStatus.QUEUED, RunStatus.IN_PROGRESS, RunStatus.REQUIRES_ACTION, RunStatus.CANCELLING]


class Choosing(WireTests):
    """Lets a test have a server with each way to go about a busy thread."""

    @pytest.fixture
    async def servers(self, store: ThreadStore) -> AsyncIterator[dict[str, Wire]]:
        async with AsyncExitStack() as stack:
            yield {
                way: await stack.enter_async_context(serving(store, on_busy=way))
                for way in ("reject", "enqueue", "interrupt", "rollback")
            }


class TestReject(WireTests):
    @pytest.mark.parametrize("status", ACTIVE)
    async def test_a_second_run_and_a_message_are_refused_in_the_real_apis_words(self, wire: Wire, status):
        run = await wire.run()
        thread = run["thread_id"]
        await wire.store.force_update_run_status(thread, run["id"], status)
        body = {"assistant_id": run["assistant_id"], "additional_messages": [HELLO]}
        said = await wire.refused("POST", f"/threads/{thread}/runs", body)
        assert said == f"Thread {thread} already has an active run {run['id']}."
        said = await wire.refused("POST", f"/threads/{thread}/messages", HELLO)
        assert said == f"Can't add messages to {thread} while a run {run['id']} is active."
        assert len((await wire.good("GET", f"/threads/{thread}/messages"))["data"]) == 1
        assert len((await wire.good("GET", f"/threads/{thread}/runs"))["data"]) == 1

    @pytest.mark.parametrize("status", [status for status in RunStatus if status.is_terminal])
    async def test_a_run_that_has_ended_locks_nothing(self, wire: Wire, status):
        run = await wire.run()
        await wire.store.force_update_run_status(run["thread_id"], run["id"], status)
        await wire.good("POST", f"/threads/{run['thread_id']}/messages", HELLO)
        await wire.run(run["thread_id"])

    async def test_of_eight_who_race_for_a_thread_one_wins(self, wire: Wire):
        thread, assistant = await wire.thread(), await wire.assistant()
        body = {"assistant_id": assistant, "additional_messages": [HELLO]}
        answers = await asyncio.gather(*(wire.ask("POST", f"/threads/{thread}/runs", body) for _ in range(8)))
        (won,) = (answer.json for answer in answers if answer.status == 200)
        lost = {answer.error["message"] for answer in answers if answer.status == 400}
        assert lost == {f"Thread {thread} already has an active run {won['id']}."}
        assert [run["id"] for run in (await wire.good("GET", f"/threads/{thread}/runs"))["data"]] == [won["id"]]
        assert len((await wire.good("GET", f"/threads/{thread}/messages"))["data"]) == 1

    async def test_of_eight_who_race_through_two_servers_one_wins(self, tmp_path: Path):
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(FileStore(tmp_path, durability="process")) for _ in range(2)]
            wires = [await stack.enter_async_context(serving(store)) for store in stores]
            thread, assistant = await wires[0].thread(), await wires[1].assistant()
            body = {"assistant_id": assistant, "additional_messages": [HELLO]}
            asked = [wire.ask("POST", f"/threads/{thread}/runs", body) for wire in wires for _ in range(4)]
            answers = await asyncio.gather(*asked)
            assert sorted(answer.status for answer in answers) == [200, *[400] * 7]
            for wire in wires:
                assert len((await wire.good("GET", f"/threads/{thread}/runs"))["data"]) == 1
                assert len((await wire.good("GET", f"/threads/{thread}/messages"))["data"]) == 1

    async def test_metadata_and_deletes_are_not_locked(self, wire: Wire):
        run = await wire.run()
        thread = run["thread_id"]
        (message,) = (await wire.good("GET", f"/threads/{thread}/messages"))["data"]
        await wire.good("POST", f"/threads/{thread}/messages/{message['id']}", {"metadata": {"a": "b"}})
        await wire.good("POST", f"/threads/{thread}", {"metadata": {"a": "b"}})
        await wire.good("DELETE", f"/threads/{thread}/messages/{message['id']}")


class TestOtherWays(Choosing):
    async def test_runs_stand_in_line_and_a_message_may_come_meanwhile(self, servers: dict[str, Wire]):
        wire = servers["enqueue"]
        first = await wire.run()
        thread = first["thread_id"]
        await wire.good("POST", f"/threads/{thread}/messages", HELLO)
        second = await wire.run(thread)
        done = []

        async def answer(ctx):
            done.append((ctx.run.id, len(await ctx.list_messages())))
            return "yes"

        async with RunWorker(wire.store, answer):
            for run in (first, second):
                assert (await wire.ended(run))["status"] == "completed"
        # The first does not see what was said after it was made; the second sees all.
        assert done == [(first["id"], 1), (second["id"], 3)]

    @pytest.mark.parametrize(("way", "left"), [("interrupt", ["hello", "half", "new"]), ("rollback", ["hello", "new"])])
    async def test_the_new_run_begins_when_the_old_one_has_stopped(
        self, servers: dict[str, Wire], way: str, left: list[str]
    ):
        wire = servers[way]
        old = await wire.run()
        waiting = await servers["enqueue"].run(old["thread_id"])
        is_at_work = asyncio.Event()

        async def answer(ctx):
            if ctx.run.id != old["id"]:
                return "new"
            async with ctx.message() as message:
                await message.write("half")
                is_at_work.set()
                await asyncio.Event().wait()
            return None

        async with RunWorker(wire.store, answer):
            await is_at_work.wait()
            await wire.good("POST", f"/threads/{old['thread_id']}/messages", {"role": "user", "content": "x"})
            new = await wire.run(old["thread_id"])
            assert (await wire.ended(new))["status"] == "completed"
        for run in (old, waiting):
            assert (await wire.good("GET", path_of(run)))["status"] == "cancelled"
        page = await wire.good("GET", f"/threads/{old['thread_id']}/messages", query="order=asc")
        texts = [message["content"][0]["text"]["value"] for message in page["data"]]
        assert sorted(texts) == sorted([*left, "x"])

    @pytest.mark.parametrize("app", ["reject", "enqueue", "interrupt", "rollback"])
    @pytest.mark.parametrize(("asked", "status"), [("enqueue", "queued"), ("interrupt", "cancelled")])
    async def test_the_requests_choice_goes_before_the_apps(
        self, servers: dict[str, Wire], app: str, asked: str, status: str
    ):
        wire = servers[app]
        old = await wire.run()
        await wire.good("POST", f"/threads/{old['thread_id']}/messages", HELLO | {"on_busy": asked})
        await wire.run(old["thread_id"], on_busy=asked)
        assert (await wire.good("GET", path_of(old)))["status"] == status

    @pytest.mark.parametrize("app", ["enqueue", "interrupt", "rollback"])
    async def test_a_request_may_ask_to_be_refused(self, servers: dict[str, Wire], app: str):
        wire = servers[app]
        old = await wire.run()
        thread = old["thread_id"]
        body: dict[str, Any] = {"assistant_id": old["assistant_id"], "on_busy": "reject"}
        assert "already has an active run" in await wire.refused("POST", f"/threads/{thread}/runs", body)
        said = await wire.refused("POST", f"/threads/{thread}/messages", HELLO | {"on_busy": "reject"})
        assert said.startswith("Can't add messages to")

    @pytest.mark.parametrize("path", ["runs", "messages"])
    async def test_another_way_is_refused(self, servers: dict[str, Wire], path: str):
        wire = servers["reject"]
        body = {"assistant_id": await wire.assistant(), "on_busy": "wait", **HELLO}
        said = await wire.refused("POST", f"/threads/{await wire.thread()}/{path}", body)
        assert "'on_busy'" in said
        assert "'interrupt'" in said

    def test_an_app_knows_the_ways_there_are(self):
        with pytest.raises(InvalidInputError, match="on_busy"):
            create_app(MemoryStore(), on_busy="wait")  # type: ignore[arg-type]


class TestTheAppsWorkerAndStore:
    async def test_an_app_with_a_handler_opens_the_store_and_works_on_its_runs(self):
        async def answer(ctx):
            return "from the app"

        store = MemoryStore()
        async with serving(store, handler=answer) as wire:
            assert store.is_open
            run = await wire.run()
            assert (await wire.ended(run))["status"] == "completed"
        assert not store.is_open

    async def test_an_app_leaves_a_store_open_that_was_open(self):
        async with MemoryStore() as store:
            async with serving(store):
                pass
            assert store.is_open
