"""Checkpoints: results that a handler computes once per run."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Any

from attrs import define, field

from threadloom import codec
from threadloom.errors import InvalidInputError
from threadloom.events import Checkpoint
from threadloom.store import Claim, ThreadStore
from threadloom.worker._writer import RunWriter

__all__ = ["Checkpoints"]


@define
class _Turnstile:
    """Lets one task at a time compute the result of one checkpoint."""

    lock: asyncio.Lock = field(factory=asyncio.Lock)
    inside: asyncio.Task[Any] | None = None


class Checkpoints:
    """Results that the handler of a run has kept, as JSON text, so that no caller can change the result of another."""

    def __init__(self, store: ThreadStore, claim: Claim, writer: RunWriter) -> None:
        self._store = store
        self._run = claim.run
        self._writer = writer
        self._kept: dict[str, bytes] = {}
        self._turnstiles: dict[str, _Turnstile] = {}
        # A run that no worker has claimed before has no checkpoints, so there is nothing to read.
        self._is_read = not claim.has_past
        self._reading = asyncio.Lock()

    async def result_of(self, name: str, function: Callable[[], Any]) -> Any:
        """Return the kept result of ``name``, or call ``function``, keep its result and return it."""
        self._writer.check()
        if not isinstance(name, str):
            raise InvalidInputError(f"The name of a checkpoint must be a str, not {type(name).__name__}.")
        if not callable(function):
            raise InvalidInputError(f"A checkpoint needs a function without arguments, not {function!r}.")
        turnstile = self._turnstiles.setdefault(name, _Turnstile())
        if turnstile.inside is asyncio.current_task():
            raise InvalidInputError(f"The function of checkpoint {name!r} asks for the same checkpoint.")
        async with turnstile.lock:
            turnstile.inside = asyncio.current_task()
            try:
                await self._read()
                if name not in self._kept:
                    await self._find_out(name, function)
            finally:
                turnstile.inside = None
        return codec.load(self._kept[name], "a checkpoint")

    async def _find_out(self, name: str, function: Callable[[], Any]) -> None:
        result = function()
        if inspect.isawaitable(result):
            result = await result
        try:
            _check_json(name, result)
            text = codec.dump_line(result)
        except RecursionError:
            raise InvalidInputError(
                f"The result of checkpoint {name!r} is nested too deeply or contains itself."
            ) from None
        checkpoint = Checkpoint(name, codec.load(text, "a checkpoint"))
        await self._writer.keep(checkpoint, lambda: self._kept.__setitem__(name, text))

    async def _read(self) -> None:
        async with self._reading:
            if not self._is_read:
                kept = await self._store.get_checkpoints(self._run.thread_id, self._run.id)
                self._kept = {name: codec.dump_line(result) for name, result in kept.items()} | self._kept
                self._is_read = True


def _check_json(name: str, value: object) -> None:
    """Raise for a value that JSON cannot represent: it would come back different, or not at all."""
    match value:
        case None | bool() | int() | str():
            pass
        case float() if math.isfinite(value):
            pass
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise InvalidInputError(
                        f"The result of checkpoint {name!r} is not JSON: the key {key!r} is not a str."
                    )
                _check_json(name, item)
        case list() | tuple():
            for item in value:
                _check_json(name, item)
        case _:
            raise InvalidInputError(
                f"The result of checkpoint {name!r} is not JSON: it contains {type(value).__name__} {value!r:.60}."
            )
