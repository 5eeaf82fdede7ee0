"""``threadloom serve``: the wire over HTTP, with a worker inside or worker processes beside it."""

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
    """What the command line asks for; ``workers`` is none for a worker inside."""

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
    """Serve until told to stop, and return the exit status."""
    log_to_stderr()
    try:
        keys = read_keys(options.api_keys_file)
        if not keys:
            check_host_is_local(options.host)
        _check_root(options.root)
        # Also where worker processes are going to do this for themselves: it is to fail here, and now.
        opening = handler_named(options.handler)
        asyncio.run(_serve(options, keys, opening))
    except (CannotStartError, StoreError) as error:
        print(f"threadloom: {error}", file=sys.stderr)
        return _CANNOT_START
    except KeyboardInterrupt:  # before the signals were heard here
        return _INTERRUPTED
    return _STOPPED


def _check_root(root: Path) -> None:
    root = root.absolute()
    try:
        there = next(path for path in (root, *root.parents) if path.exists())
    except OSError as error:
        raise CannotStartError(f"{root} cannot be looked at: {error.strerror}.") from None
    if not there.is_dir():
        raise CannotStartError(f"{there} is no directory: give one for the store, or the name of a new one.")


async def _serve(options: ServeOptions, keys: tuple[str, ...], opening: AbstractAsyncContextManager[Handler]) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(FileStore(options.root, durability=options.durability))
        app = web.Application(middlewares=[] if keys else [only_local])
        app.add_subapp("/v1", create_app(store, api_keys=keys or None, on_busy=options.on_busy))
        # A client that has gone is heard of at once, and what it had asked for is withdrawn or done whole.
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
    """Listen, and return the address that clients are to be given."""
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        # asyncio's own words repeat the address, and the errno, in the manner of a traceback.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise CannotStartError(
            f"Cannot listen at {options.host}, port {options.port}: {reason}. "
            "Give another --port, 0 for any that is free, or another --host."
        ) from None
    host, port, *_ = runner.addresses[0]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _stop_asked() -> asyncio.Event:
    asked = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def _stop(crew: RunWorker | WorkerProcesses, runner: web.AppRunner) -> None:
    """Let clients and runs come to an end, the runs quickly at a second signal; a third one is the system's."""
    loop = asyncio.get_running_loop()
    closing = asyncio.create_task(crew.close())
    await asyncio.sleep(0)  # it has begun, and to cancel it is to make it quick

    def hurry() -> None:
        closing.cancel()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in _SIGNALS:
        loop.add_signal_handler(number, hurry)
    print("Stopping. Runs that are not done go back to the queue; once more, and they do at once.", flush=True)
    await runner.cleanup()
    await finish(closing)
    if not closing.cancelled():
        closing.result()


def _say_what_is_served(options: ServeOptions, address: str, *, is_open: bool) -> None:
    handler = options.handler
    if handler == ECHO:
        handler += ", which says again what it is told (--handler gives another)"
    print(f"Serving {options.root} at {address} (the base_url of clients). Handler: {handler}.", flush=True)
    if is_open:
        print(f"Anyone on this machine can use it. To allow only some: {HOW_TO_SET_KEYS}.", flush=True)
