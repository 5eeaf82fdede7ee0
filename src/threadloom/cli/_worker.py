"""A worker process of ``threadloom serve``, which ends with its server: ``python -m threadloom.cli._worker``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Final, Literal, cast

from threadloom.cli._errors import CannotStartError
from threadloom.cli._handlers import handler_named
from threadloom.cli._log import log_to_stderr
from threadloom.errors import StoreError
from threadloom.stores.files import FileStore
from threadloom.worker import Handler, RunWorker

__all__ = ["STOP_PATIENCE", "Durability", "main"]

Durability = Literal["power", "process"]

_GRACE: Final = timedelta(seconds=10)
STOP_PATIENCE: Final = _GRACE + timedelta(seconds=5)
"""How long a process may take to stop before it is killed. A handler may ignore its cancellation."""


def main(arguments: Sequence[str]) -> int:
    """Run a worker until SIGTERM, or until the server is gone."""
    server, root, handler, durability, concurrency = arguments
    threading.Thread(target=_end_with, args=(int(server),), daemon=True).start()
    log_to_stderr()
    try:
        asyncio.run(_work(root, handler_named(handler), cast("Durability", durability), int(concurrency)))
    except (CannotStartError, StoreError) as error:
        print(f"threadloom: a worker process cannot start: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a second signal while it was stopping
        return 0
    return 0


async def _work(
    root: str, opening: AbstractAsyncContextManager[Handler], durability: Durability, concurrency: int
) -> None:
    async with opening as handler, FileStore(root, durability=durability) as store:
        await RunWorker(store, handler, concurrency=concurrency, grace=_GRACE).run_until_stopped()


def _end_with(server: int) -> None:
    """Wait in a thread, which no handler can block, until the server is gone.

    Then stop in order, or exit after a delay.
    """
    os.read(server, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_PATIENCE.total_seconds())
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
