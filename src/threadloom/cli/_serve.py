"""``threadloom serve``: serves a store over HTTP, with a worker in the process or in worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

from aiohttp import web
from attrs import frozen

from threadloom.cli._errors import CannotStartError
from threadloom.cli._handlers import ECHO, handler_named
from threadloom.cli._keys import HOW_TO_SET_KEYS, read_keys
from threadloom.cli._local import check_host_is_local, only_local
from threadloom.cli._log import log_to_stderr
from threadloom.cli._worker import Durability
from threadloom.cli._workers import WorkerOptions, WorkerProcesses
from threadloom.errors import StoreError
from threadloom.store import OnBusy
from threadloom.stores.files import FileStore
from threadloom.tasks import finish
from threadloom.web import create_app
from threadloom.worker import Handler, RunWorker

__all__ = ["ServeOptions", "serve"]

_STOPPED, _CANNOT_START, _INTERRUPTED = 0, 2, 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_ANSWERS_SECONDS = 5


@frozen(kw_only=True)
class ServeOptions:
    """Options of the command line.

    Attributes:
        root: Directory of the store.

        handler: Name of the handler.

        host: Address to listen on.

        port: Port to listen on. 0 for any free port.

        workers: Number of worker processes. None for a worker in the server process.

        concurrency: Maximum number of runs at a time in each process that executes runs.

        durability: What a write survives.

        on_busy: What to do with a new run if its thread has an active one.

        api_keys_file: File with the keys of clients. None if there is none.
    """

    root: Path
    handler: str
    host: str
    port: int
    workers: int | None
    concurrency: int
    durability: Durability
    on_busy: OnBusy
    api_keys_file: Path | None


def serve(options: ServeOptions) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status."""
    log_to_stderr()
    try:
        keys = read_keys(options.api_keys_file)
        if not keys:
            check_host_is_local(options.host)
        _check_root(options.root)
        # Worker processes load the handler too, but an error should stop the command here and now.
        opening = handler_named(options.handler)
        asyncio.run(_serve(options, keys, opening))
    except (CannotStartError, StoreError) as error:
        print(f"threadloom: {error}", file=sys.stderr)
        return _CANNOT_START
    except KeyboardInterrupt:  # before the signal handlers were installed
        return _INTERRUPTED
    return _STOPPED


def _check_root(root: Path) -> None:
    root = root.absolute()
    try:
        there = next(path for path in (root, *root.parents) if path.exists())
    except OSError as error:
        raise CannotStartError(f"{root} cannot be read: {error.strerror}.") from None
    if not there.is_dir():
        raise CannotStartError(f"{there} is not a directory: use a directory of a store, or a new one.")


async def _serve(options: ServeOptions, keys: tuple[str, ...], opening: AbstractAsyncContextManager[Handler]) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(FileStore(options.root, durability=options.durability))
        app = web.Application(middlewares=[] if keys else [only_local])
        app.add_subapp("/v1", create_app(store, api_keys=keys or None, on_busy=options.on_busy))
        # Notice at once when a client disconnects. Its request is then withdrawn, or completes.
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_LAST_ANSWERS_SECONDS, lingering_time=0
        )
        stack.push_async_callback(runner.cleanup)
        address = await _listen(runner, options)
        crew: RunWorker | WorkerProcesses
        if options.workers is None:
            handler = await stack.enter_async_context(opening)
            crew = RunWorker(store, handler, concurrency=options.concurrency)
        else:
            told = WorkerOptions(
                root=options.root,
                handler=options.handler,
                durability=options.durability,
                concurrency=options.concurrency,
            )
            crew = WorkerProcesses(told, options.workers)
        asked = _stop_asked()
        async with crew:
            _say_what_is_served(options, address, is_open=not keys)
            await asked.wait()
            await _stop(crew, runner)


async def _listen(runner: web.AppRunner, options: ServeOptions) -> str:
    """Listen, and return the address for clients."""
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        # asyncio's own message repeats the address and the errno.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise CannotStartError(
            f"Cannot listen at {options.host}, port {options.port}: {reason}. "
            "Use another --port, 0 for any free port, or another --host."
        ) from None
    host, port, *_ = runner.addresses[0]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _stop_asked() -> asyncio.Event:
    asked = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def _stop(crew: RunWorker | WorkerProcesses, runner: web.AppRunner) -> None:
    """Wait for clients and runs to finish.

    A second signal ends the runs at once. A third one gets the default treatment of the system.
    """
    loop = asyncio.get_running_loop()
    closing = asyncio.create_task(crew.close())
    await asyncio.sleep(0)  # lets it start; cancelling it then ends the grace period

    def hurry() -> None:
        closing.cancel()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in _SIGNALS:
        loop.add_signal_handler(number, hurry)
    print("Stopping. Unfinished runs go back to the queue; a second signal requeues them at once.", flush=True)
    await runner.cleanup()
    await finish(closing)
    if not closing.cancelled():
        closing.result()


def _say_what_is_served(options: ServeOptions, address: str, *, is_open: bool) -> None:
    handler = options.handler
    if handler == ECHO:
        handler += ", which repeats the user's message (use --handler to choose another)"
    print(f"Serving {options.root} at {address} (the base_url of clients). Handler: {handler}.", flush=True)
    if is_open:
        print(f"Anyone on this machine can use it. To require keys, {HOW_TO_SET_KEYS}.", flush=True)
