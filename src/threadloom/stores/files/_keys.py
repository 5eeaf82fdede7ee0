"""Idempotency keys: what was created under each, as it was then, so that it is not created again.

A key is any text, so its file goes by a hash. Keys of messages and runs lie in their thread, under its lock, and go
with it. Those of assistants and threads outlive what they made. A thread has no lock before it is there, so its key has
one: that of the directory in which the key's file lies, among some of the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from attrs import frozen

from threadloom import codec
from threadloom.checks import IdempotencyKey, check_same_request
from threadloom.errors import SerializationError
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._redo import Redo
from threadloom.stores.files._writes import Put

__all__ = ["KeptKey", "Keys", "key_digest"]

T = TypeVar("T")


@frozen
class KeptKey:
    """What a key was, and what it stands for, as it lies in its file."""

    key: str
    fingerprint: str
    created: codec.Record

    @classmethod
    def read(cls, data: bytes, path: str) -> KeptKey:
        """Return what a file says, or raise ``SerializationError``."""
        match codec.load(data, path):
            case {"key": str(key), "fingerprint": str(fingerprint), "created": dict(created)}:
                return cls(key, fingerprint, created)
        raise SerializationError(path, "it holds no idempotency key")


class Keys:
    """The keys on disk. Whoever calls this holds the lock of the place where the key lies."""

    def __init__(self, layout: Layout, disk: Disk, redo: Redo) -> None:
        self._layout = layout
        self._disk = disk
        self._redo = redo

    def of_assistant(self, key: IdempotencyKey) -> str:
        return self._layout.assistant_key(key_digest(key.value))

    def of_thread(self, key: IdempotencyKey) -> str:
        return self._layout.thread_key(key_digest(key.value))

    def within(self, thread_id: str, kind: Literal["message", "run"], key: IdempotencyKey | None) -> str | None:
        return None if key is None else self._layout.key(thread_id, kind, key_digest(key.value))

    def place_of_thread(self, key: IdempotencyKey) -> str:
        """Return the place whose lock a thread's creation under ``key`` needs."""
        return self._layout.place(os.path.dirname(self.of_thread(key)))

    @contextmanager
    def locked_for_thread(self, key: IdempotencyKey) -> Iterator[None]:
        """Hold the lock for the creation of a thread, with nothing half done that was to be created with its key."""
        self._disk.make_directories(os.path.dirname(self.of_thread(key)))
        with self._redo.holding(self.place_of_thread(key)):
            yield

    def made_before(self, path: str | None, key: IdempotencyKey | None, model: type[T]) -> T | None:
        """Return what was created under ``key``, as it was then, or none."""
        if path is None or key is None:
            return None
        try:
            kept = KeptKey.read(self._disk.read(path), path)
        except FileNotFoundError:
            return None
        if kept.key != key.value:
            raise SerializationError(path, f"it is the file of another key, {kept.key[:40]!r}")
        created = codec.from_record(kept.created, model, path)
        check_same_request(key, kept.fingerprint)
        return created

    def putting(self, path: str | None, key: IdempotencyKey | None, created: object) -> tuple[Put, ...]:
        """Return what keeps that ``created`` was created under ``key``, nothing where there is none."""
        if path is None or key is None:
            return ()
        record = {"key": key.value, "fingerprint": key.fingerprint, "created": codec.to_record(created)}
        return (Put(path, codec.dump(record)),)


def key_digest(value: str) -> str:
    """Return the hash by which the file of a key is named."""
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
