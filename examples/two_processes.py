"""Ask in one process, answer in another: both open a store on the same directory, and nothing else is between them.

python examples/two_processes.py
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from datetime import timedelta

from threadloom import FileStore, Message, Run, RunContext, RunWorker, Thread


async def answer(ctx: RunContext) -> str:
    """Answer, in whichever process the worker is."""
    messages = await ctx.list_messages()
    return f"Process {os.getpid()} has read: {messages[-1].text}"


async def work(root: str) -> None:
    """Be the process that answers, until it is sent SIGTERM: then what is at work is brought to its end."""
    async with FileStore(root) as store:
        await RunWorker(store, answer, concurrency=4).run_until_stopped()


async def ask(root: str, question: str) -> str:
    """Be one of those who ask: any number may, in any process, also before there is a worker."""
    async with FileStore(root) as store:
        thread = await store.create_thread(Thread.new())
        await store.append_message(thread.id, Message.user(thread.id, question))
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
        await store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=30))
        return (await store.list_messages(thread.id, order="desc", limit=1))[0].text


async def main(root: str) -> None:
    """Start the other process, ask three things at once, and let it go."""
    worker = await asyncio.create_subprocess_exec(sys.executable, __file__, root)
    try:
        questions = (f"question {number} of process {os.getpid()}" for number in (1, 2, 3))
        for text in await asyncio.gather(*(ask(root, question) for question in questions)):
            print(text)
    finally:
        worker.terminate()
        print(f"The worker has ended with status {await worker.wait()}.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(main(directory))
