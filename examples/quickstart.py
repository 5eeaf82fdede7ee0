"""Have a conversation: a thread, messages, and a worker whose handler answers them.

    python examples/quickstart.py [DIRECTORY]

All of it is kept in plain files. Name a directory, run it twice, and the second time it goes on where it was.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from datetime import timedelta

from threadloom import FileStore, Message, Run, RunContext, RunWorker, Thread


async def answer(ctx: RunContext) -> str:
    """Answer the last message. What is returned becomes the assistant's; a model would be called here."""
    messages = await ctx.list_messages()
    number = sum(message.role == "user" for message in messages)
    return f"You said: {messages[-1].text} That was message {number} of yours."


async def main(root: str) -> None:
    """Say two things and print the whole conversation."""
    async with FileStore(root) as store, RunWorker(store, answer, concurrency=8):
        threads = await store.list_threads(limit=1)
        thread = threads[0] if threads else await store.create_thread(Thread.new(metadata={"about": "coffee"}))
        for text in ("A flat white, please.", "With oat milk."):
            await store.append_message(thread.id, Message.user(thread.id, text))
            run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
            run = await store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=30))
            print(f"{run.id} is {run.status}")
        for message in await store.list_messages(thread.id):
            print(f"{message.role:>9}: {message.text}")
        print(f"Kept in {store.thread_dir(thread.id)}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="quickstart-")))
