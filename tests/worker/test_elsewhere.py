"""A worker hears of a cancellation that another process made, through this library or past it."""

import asyncio
import json
import sys

import pytest

from threadloom import (
    EventType,
    FileStore,
    LeaseLostError,
    MessageStatus,
    Run,
    RunContext,
    RunStatus,
    RunStepStatus,
    RunWorker,
    Thread,
)

PATIENCE = 20

THROUGH_THE_LIBRARY = """
import asyncio, sys
from threadloom import *

async def main(root, thread_id, run_id):
    async with FileStore(root, durability="process") as store:
        await store.force_update_run_status(thread_id, run_id, RunStatus.CANCELLED)

asyncio.run(main(*sys.argv[1:]))
"""

BY_REQUEST = THROUGH_THE_LIBRARY.replace(
    "force_update_run_status(thread_id, run_id, RunStatus.CANCELLED)", "request_cancel(thread_id, run_id)"
)

PAST_IT = """
import json, os, sys
from pathlib import Path

root, thread_id, run_id = sys.argv[1:]
status = Path(root) / thread_id / "runs" / run_id / "status.json"
record = json.loads(status.read_bytes())
other = status.with_name("other")
other.write_text(json.dumps({key: record[key] for key in ("id", "object", "created_at", "thread_id", "model")}
                            | {"status": "cancelled"}))
os.replace(other, status)
"""


@pytest.fixture
async def store(tmp_path):
    async with FileStore(tmp_path / "store", durability="process") as store:
        yield store


async def elsewhere(store: FileStore, run: Run, script: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(store.root), run.thread_id, run.id)
    assert await process.wait() == 0


@pytest.mark.parametrize("script", [THROUGH_THE_LIBRARY, BY_REQUEST, PAST_IT], ids=["force", "request", "foreign"])
async def test_a_cancellation_by_another_process_reaches_the_handler_and_its_text_is_kept(store, script):
    streamed, heard = asyncio.Event(), asyncio.Event()

    async def answer(ctx: RunContext) -> None:
        async with ctx.message() as message:
            await message.write("half")
            streamed.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.set()
                raise

    thread = await store.create_thread(Thread.new())
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    async with asyncio.timeout(PATIENCE), RunWorker(store, answer):
        await streamed.wait()
        await elsewhere(store, run, script)
        await heard.wait()

    assert (await store.get_run(thread.id, run.id)).status is RunStatus.CANCELLED
    [message] = await store.list_messages(thread.id)
    assert (message.text, message.status) == ("half", MessageStatus.INCOMPLETE)
    assert [step.status for step in await store.list_steps(thread.id, run.id)] == [RunStepStatus.CANCELLED]
    assert [event.type async for event in store.events(thread.id, run.id)][-1] is EventType.RUN_CANCELLED


@pytest.mark.parametrize("script", [THROUGH_THE_LIBRARY, PAST_IT], ids=["force", "foreign"])
async def test_a_handler_that_ignores_it_for_a_while_writes_nothing_more(store, script):
    at_work, heard = asyncio.Event(), asyncio.Event()
    refused = []

    async def answer(ctx: RunContext) -> str:
        at_work.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.set()
        try:
            await ctx.reply("in spite of it")
        except LeaseLostError as error:
            refused.append(error)
        return "and this"

    thread = await store.create_thread(Thread.new())
    run = await store.create_run(thread.id, Run.new(thread.id, model="m"))
    async with asyncio.timeout(PATIENCE), RunWorker(store, answer):
        await at_work.wait()
        await elsewhere(store, run, script)
        await heard.wait()

    assert (await store.get_run(thread.id, run.id)).status is RunStatus.CANCELLED
    assert list(await store.list_messages(thread.id)) == []
    assert len(refused) == 1


async def test_runs_that_a_foreign_program_ends_at_any_moment_end_as_it_says(store):
    """The same as for a force from within, which is raced elsewhere; here nobody holds a lock."""

    async def answer(ctx: RunContext) -> str:
        await ctx.reply("one")
        return "two"

    runs = []
    for _ in range(60):
        thread = await store.create_thread(Thread.new())
        runs.append(await store.create_run(thread.id, Run.new(thread.id, model="m")))
    bare = {"object": "thread.run", "created_at": 1, "model": "m", "status": "cancelled"}

    def end(run: Run) -> None:
        path = store.run_dir(run.thread_id, run.id) / "status.json"
        other = path.with_name("other")
        other.write_text(json.dumps(bare | {"id": run.id, "thread_id": run.thread_id}))
        other.replace(path)

    async with asyncio.timeout(PATIENCE), RunWorker(store, answer, concurrency=16):
        for ticks, run in enumerate(runs):
            for _ in range(ticks % 30):
                await asyncio.sleep(0)
            end(run)
        for run in runs:
            assert [event.type async for event in store.events(run.thread_id, run.id)][-1].startswith("thread.run.")

    for run in runs:
        assert (await store.get_run(run.thread_id, run.id)).status is RunStatus.CANCELLED
        texts = [message.text for message in await store.list_messages(run.thread_id)]
        assert texts in ([], ["one"], ["one", "two"]), "what was written before it stays, and nothing comes twice"
