"""Watch an answer being streamed, have enough of it, and cancel it: what was said so far is kept.

python examples/cancel.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from threadloom import MemoryStore, Message, MessageDelta, Run, RunContext, RunWorker, Thread


async def sing(ctx: RunContext) -> AsyncIterator[str]:
    """Answer for ever. Each piece that is yielded is an event at once; a cancelled handler may still tidy up."""
    try:
        for bottles in range(99, 0, -1):
            yield f"{bottles} bottles of cold brew on the wall. "
            await asyncio.sleep(0.05)
    finally:
        print(f"\n(The handler of {ctx.run.id} puts its instrument away.)")


async def main() -> None:
    """Follow the run's events, cancel it after the third piece, and look at what is left."""
    async with MemoryStore() as store, RunWorker(store, sing):
        thread = await store.create_thread(Thread.new())
        await store.append_message(thread.id, Message.user(thread.id, "Sing something."))
        run = await store.create_run(thread.id, Run.new(thread.id, model="any"))

        pieces = 0
        async for event in store.events(thread.id, run.id):  # ends when the run does
            if isinstance(event.data, MessageDelta):
                print(event.data.text, end="", flush=True)
                pieces += 1
                if pieces == 3:
                    # Asks, and lets the worker end it. force_update_run_status does not ask.
                    await store.request_cancel(thread.id, run.id)

        run = await store.get_run(thread.id, run.id)
        song = (await store.list_messages(thread.id))[-1]
        print(f"The run is {run.status}. Its message is {song.status} and says: {song.text}")
        for step in await store.list_steps(thread.id, run.id):
            print(f"Its step, a {step.type}, is {step.status}.")


if __name__ == "__main__":
    asyncio.run(main())
