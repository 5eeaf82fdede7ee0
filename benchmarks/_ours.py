"""The script of ``_script.py`` through a ``FileStore``, by hand, each operation by the method that a user would call.

To create a thread and a run in it are two calls here, where the other ways count one operation. The store is opened
before the time begins, and closed within it, for then what is left is synced.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Literal

from _plain import in_tasks
from _rounds import Turn
from _script import QUESTION, REPLY, WorkNotDoneError

from threadloom import FileStore, Message, Run, RunStatus, RunStep, RunStepStatus, Thread

Durability = Literal["power", "process"]


def with_store(root: Path, runs: int, at_once: int, durability: Durability) -> Turn:
    """Drive ``runs`` runs by hand, so many at once."""
    return asyncio.run(_with_store(root, runs, at_once, durability))


async def _with_store(root: Path, runs: int, at_once: int, durability: Durability) -> Turn:
    async with FileStore(root, durability=durability) as store:
        begun = time.perf_counter()
        latencies = await in_tasks(lambda _: one_run(store), runs, at_once)
    each = (time.perf_counter() - begun) / runs
    async with FileStore(root, durability=durability) as store:
        thread_ids = list(await store.list_thread_ids())
        if len(thread_ids) != runs:
            raise WorkNotDoneError(f"{len(thread_ids)} threads instead of {runs}")
        for thread_id in thread_ids:
            await _check_run(store, thread_id)
    return Turn(each, latencies)


async def one_run(store: FileStore) -> None:
    """Bring one run from its thread's creation to its end."""
    thread = await store.create_thread(Thread.new())
    run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
    at = (thread.id, run.id)
    await store.append_message(thread.id, Message.user(thread.id, QUESTION))
    await store.update_run_status(*at, RunStatus.IN_PROGRESS)
    tools = await store.append_step(*at, RunStep.tool_calls(thread_id=thread.id, run_id=run.id))
    await store.update_run_status(*at, RunStatus.REQUIRES_ACTION)
    await store.update_run_status(*at, RunStatus.IN_PROGRESS)
    await store.update_step_status(*at, tools.id, RunStepStatus.COMPLETED)
    reply = Message.assistant(thread.id, REPLY, run_id=run.id)
    creation = RunStep.message_creation(thread_id=thread.id, run_id=run.id, message_id=reply.id)
    await store.append_step(*at, creation)
    await store.append_message(thread.id, reply)
    await store.update_step_status(*at, creation.id, RunStepStatus.COMPLETED)
    await store.update_run_status(*at, RunStatus.COMPLETED)


async def _check_run(store: FileStore, thread_id: str) -> None:
    texts = [message.text for message in await store.list_messages(thread_id)]
    (run,) = await store.list_runs(thread_id)
    steps = [step.status for step in await store.list_steps(thread_id, run.id)]
    if texts != [QUESTION, REPLY] or run.status is not RunStatus.COMPLETED or steps != [RunStepStatus.COMPLETED] * 2:
        raise WorkNotDoneError(f"threadloom has left {texts}, {run.status}, {steps}")
