"""Small records, each a file of indented JSON: read, made, and rewritten without losing what is not ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from threadloom import codec
from threadloom.errors import NotFoundError, SerializationError, StoreBusyError, StoreError, StoreIOError
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._opened import ForeignWriteError, Held
from threadloom.stores.files._writer import Work

__all__ = ["dumped", "read_record", "rewritten", "setting_aside", "starting_over_after_foreign_writes"]

T = TypeVar("T")
R = TypeVar("R")

_MOST_ATTEMPTS = 1_000


def dumped(value: object) -> bytes:
    """Return the file of a record."""
    return codec.dump(codec.to_record(value))


def read_record(disk: Disk, path: str, model: type[T]) -> T:
    """Return the record at ``path``; ``FileNotFoundError`` where there is none, ``SerializationError`` for damage."""
    return codec.decode(disk.read(path), model, path)


def rewritten(held: Held, old: object, new: object) -> bytes:
    """Return the file of the record ``held``, changed from ``old`` to ``new``, with the keys that we do not know."""
    raw = codec.load_exactly(held.data, held.path)
    if not isinstance(raw, dict):
        raise SerializationError(held.path, "it holds no JSON object")
    return codec.dump_exactly(codec.patched(raw, codec.to_record(old), codec.to_record(new)))


def starting_over_after_foreign_writes(path: str, act: Callable[[], Work[R]]) -> Work[R]:
    """Return what ``act`` returns, made anew for as long as a program that does not lock writes in between."""
    for _ in range(_MOST_ATTEMPTS):
        try:
            return (yield from act())
        except ForeignWriteError:
            continue
    raise StoreBusyError(f"Another program keeps rewriting {path}: gave up after {_MOST_ATTEMPTS} attempts.")


@contextmanager
def setting_aside(damaged: list[StoreError], doing: str) -> Iterator[None]:
    """Keep the error that a record raises in ``damaged``, so that it never hides the others (G8)."""
    try:
        yield
    except NotFoundError:
        return  # gone since its name was listed
    except StoreError as error:
        damaged.append(error)
    except OSError as error:
        damaged.append(StoreIOError(doing, error))
