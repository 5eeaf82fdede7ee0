"""The worker of ``coffee_bar.py``: its handler, and the process in which it is killed again and again."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from _coffee_process import another
from _coffee_recording import Dialog, words

from threadloom import FileStore, FunctionCall, LeaseLostError, RunContext, RunWorker

Note = Callable[[str, str, int], None]
"""Takes in that the handler of a run, named by its id, was ``started`` or ``stopped``, and when."""

READY = "ready"  # the first thing that the process says
PAUSES_PER_LIFE = 100  # of one handler, between words: no message is too long to be said by one that is killed
MOST_ATTEMPTS = 1_000  # at a run: no number of kills is a reason to give it up


@dataclass(frozen=True)
class Assistant:
    """Says and does what the assistant did in the recording."""

    dialogs: dict[str, Dialog]
    note: Note
    pause: float = 0.0

    async def answer(self, ctx: RunContext) -> None:
        """Handle a run. A handler need not catch its cancellation: here it is only clocked, and goes on."""
        self.note("started", ctx.run.id, time.monotonic_ns())
        try:
            await self.play(ctx)
        except (asyncio.CancelledError, LeaseLostError):  # the task is cancelled or, if that is sooner, a write refused
            self.note("stopped", ctx.run.id, time.monotonic_ns())
            raise

    async def play(self, ctx: RunContext) -> None:
        """Do what the assistant did. It is the same in every attempt: what an earlier one completed is kept."""
        turn = self.dialogs[ctx.run.metadata["dialog"]].turns[int(ctx.run.metadata["turn"])]
        heard = await ctx.list_messages(limit=1, order="desc")
        if heard[0].text != turn.text:
            ctx.fail("server_error", "The user said something else in the recording.")
        await self.use_tools(ctx, turn.calls)
        for answer in turn.answers:
            async with ctx.message() as message:
                for word in words(answer):
                    await message.write(word)
                    if self.pause:
                        await asyncio.sleep(self.pause)

    async def use_tools(self, ctx: RunContext, calls: tuple[FunctionCall, ...]) -> None:
        """Carry out what was called for; here that is to know what came of it."""
        for call in calls:
            async with ctx.step([FunctionCall(name=call.name, arguments=call.arguments)]) as step:
                step.set_output(step.calls[0], call.output or "")


async def work(options: argparse.Namespace, dialogs: dict[str, Dialog]) -> None:
    """Be the worker's process, with a store of its own, until the input ends, or it is killed."""

    def tell(*what: object) -> None:
        print(*what, flush=True)

    assistant = Assistant(dialogs, tell, options.kill_every / PAUSES_PER_LIFE)
    store = FileStore(options.work_in, durability=options.durability, max_attempts=MOST_ATTEMPTS)
    async with store, RunWorker(store, assistant.answer, concurrency=options.concurrency):
        tell(READY)
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def killed_every(seconds: float, arguments: list[str], note: Note) -> AsyncIterator[list[int]]:
    """Keep a worker going in a process of its own: kill it so long after it was ready, and start the next.

    Yield the list of those that were killed, by their process ids.
    """
    killed: list[int] = []
    is_over = asyncio.Event()

    def hear(said: list[str]) -> None:
        if said != [READY]:
            what, run_id, moment = said
            note(what, run_id, int(moment))

    async def keep_going() -> None:
        while not is_over.is_set():
            async with another(arguments, hear) as worker:
                await worker.is_heard.wait()
                try:
                    async with asyncio.timeout(seconds):
                        await is_over.wait()
                except TimeoutError:
                    worker.kill()
                    killed.append(worker.process.pid)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_going())
        try:
            yield killed
        finally:
            is_over.set()
