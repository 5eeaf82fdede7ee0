"""A worker is killed in the middle of a run; another one takes the run up where it was."""

import asyncio
import os
import signal
import sys
import tempfile
from datetime import timedelta

from threadloom import FileStore, FunctionCall, Message, Run, RunContext, RunWorker, Thread


async def look_up(city: str) -> str:
    """Find something out that costs time or money."""
    print(f"  process {os.getpid()} asks for the weather in {city}")
    return f"19 °C in {city}"


async def answer(ctx: RunContext) -> str:
    """Look up, book, and answer; die before the answer the first time."""
    print(f"  process {os.getpid()} begins attempt {ctx.attempt}")
    weather = await ctx.checkpoint("weather", lambda: look_up("Oslo"))
    async with ctx.step([FunctionCall(name="book_table", arguments="{}")]) as step:
        if not step.is_kept:
            print(f"  process {os.getpid()} books a table")
            step.set_output(step.calls[0], "booked")
    if ctx.attempt == 1:
        print(f"  process {os.getpid()} dies", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return f"It is {weather}, and your table is booked."


async def work(root: str) -> None:
    """Be a worker, in a process of its own."""
    async with FileStore(root) as store, RunWorker(store, answer):
        await asyncio.Event().wait()


async def main() -> None:
    """Ask, start two workers, and wait for the answer."""
    with tempfile.TemporaryDirectory() as root:
        async with FileStore(root) as store:
            thread = await store.create_thread(Thread.new())
            await store.append_message(thread.id, Message.user(thread.id, "A table in the sun, please."))
            run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
            workers = [await asyncio.create_subprocess_exec(sys.executable, __file__, root) for _ in range(2)]
            run = await store.wait_for_run(thread.id, run.id, timeout=timedelta(seconds=30))
            [reply] = await store.list_messages(thread.id, run_id=run.id)
            print(f"{run.status}: {reply.text}")
            for worker in workers:
                if worker.returncode is None:
                    worker.kill()
                await worker.wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]) if len(sys.argv) > 1 else main())
