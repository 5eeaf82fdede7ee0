"""Idempotency keys: what was created under a key is kept as it was then.

A key's file is written before what it names, so that nobody can find the one made without the other. It counts only if
what it names was really made: its process may have died in between.
"""

from __future__ import annotations

from typing import Any, TypeVar

from attrs import frozen

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.models import Assistant, Message, Run, Thread
from threadloom.records import Created
from threadloom.stores.files.disk import Disk

__all__ = ["KeyFile", "read_key", "write_key"]

T = TypeVar("T", Assistant, Thread, Message, Run)


@frozen
class KeyFile:
    """A key's file.

    created: the key and what was created under it.
    is_sure: whether it is known that the object was made.
    offset: for a message, where in ``messages.jsonl`` it was to begin.
    """

    created: Created
    is_sure: bool
    offset: int = 0

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object of the file."""
        record: dict[str, Any] = {
            "key": self.created.key,
            "fingerprint": self.created.fingerprint,
            "created": codec.to_record(self.created.value),
        }
        if not self.is_sure:
            record["is_pending"] = True
        if self.offset:
            record["offset"] = self.offset
        return record


def read_key(disk: Disk, path: str, value: str, model: type[T]) -> KeyFile | None:
    """Return what is kept under a key, None where nothing is."""
    try:
        data = disk.read(path)
    except FileNotFoundError:
        return None
    where = disk.where(path)
    record = codec.load(data, where)
    match record:
        case {"key": str(key), "fingerprint": str(fingerprint), "created": dict(created)}:
            pass
        case _:
            raise SerializationError(where, "it is no record of an idempotency key")
    if key != value:
        raise SerializationError(where, f"it is the record of another key, {key!r}")
    is_sure = not record.get("is_pending", False)
    return KeyFile(
        Created(key, fingerprint, codec.from_record(created, model, where)), is_sure, record.get("offset", 0)
    )


def write_key(disk: Disk, path: str, file: KeyFile) -> None:
    """Keep a key."""
    disk.replace(path, codec.dump(file.to_record()))
