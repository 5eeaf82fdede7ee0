"""One turn of the cancellation benchmark, a process of its own: cancels a peer's runs, and prints how long each took.

So many runs are active; one after another is cancelled, at a random moment, and replaced by a new one. Each leaves a
note when it is started and when it is cancelled. A turn ends after some seconds with those that were cancelled so far.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from _peer import CANCELLED, NOTE, NOTES, Canceller
from _peer_turn import until_noted, worker

TURN_S = 2.5


async def turn(peer: Any, active: int, samples: int) -> list[float]:
    """Return the seconds from before the call that cancels a run to the ``CancelledError`` in its handler."""
    notes = Path(NOTES)
    notes.touch()
    asked: dict[int, int] = {}
    async with peer.opened(0) as opened:
        client: Canceller = opened
        await asyncio.gather(*[client.start(number) for number in range(active)])
        with worker(peer) as process:
            await until_noted(notes, active, process)
            alive = list(range(active))
            until = time.monotonic() + TURN_S
            while len(asked) < samples and (time.monotonic() < until or not asked):
                await asyncio.sleep(random.uniform(0.005, 0.02))  # noqa: S311 - out of step with whatever has a step
                number = alive.pop(random.randrange(len(alive)))  # noqa: S311
                asked[number] = time.monotonic_ns()
                await client.cancel(number)
                new = active + len(asked) - 1
                await client.start(new)
                alive.append(new)
                await until_noted(notes, active + 2 * len(asked), process)
    ended = {number: at for number, kind, at in NOTE.iter_unpack(notes.read_bytes()) if kind == CANCELLED}
    if ended.keys() != asked.keys():
        raise SystemExit(f"{len(asked)} runs were cancelled, and {len(ended)} handlers ended")
    return [(ended[number] - begun) / 1e9 for number, begun in asked.items()]


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    print(json.dumps(asyncio.run(turn(importlib.import_module(name), *map(int, sizes)))))
