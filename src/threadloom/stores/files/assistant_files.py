"""Assistants: a record each in ``.threadloom/assistants/``, changed under the lock of that directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import attrs
from attrs import frozen

from threadloom import codec
from threadloom.backend import AssistantView
from threadloom.ids import is_id
from threadloom.models import Assistant
from threadloom.pages import Page, PageRequest, page_of_ids
from threadloom.records import AssistantChange, Created
from threadloom.stores.files import layout
from threadloom.stores.files.commit import key_writes
from threadloom.stores.files.disk import Disk, ExternalWriteError, Placed
from threadloom.stores.files.journal import Journal, Write, checksum
from threadloom.stores.files.keys import KeyFile, read_key, write_key
from threadloom.stores.files.thread_files import LockedElsewhereError, lock_directory

__all__ = ["list_assistant_ids", "read_assistant", "transact_assistant"]

T = TypeVar("T")


@frozen
class _View(AssistantView):
    assistant: Assistant | None
    key: Created | None

    def created(self, key: str) -> Created | None:
        """Return the assistant that was created under the key."""
        return self.key if self.key is not None and self.key.key == key else None


def read_assistant(disk: Disk, assistant_id: str) -> Assistant | None:
    """Return an assistant, None where there is none."""
    path = layout.assistant(assistant_id)
    try:
        return codec.decode(disk.read(path), Assistant, disk.where(path))
    except FileNotFoundError:
        return None


def list_assistant_ids(disk: Disk, page: PageRequest) -> Page[str]:
    """Return a page of the ids of assistants."""
    names = (name.removesuffix(".json") for name in disk.names(layout.ASSISTANTS) if name.endswith(".json"))
    return page_of_ids(filter(is_id, names), **attrs.asdict(page))


def transact_assistant(
    disk: Disk,
    journal: Journal | None,
    assistant_id: str,
    decide: Callable[[AssistantView], AssistantChange[T]],
    key: str | None,
) -> T:
    """Change an assistant; ``LockedElsewhereError`` where another process has the lock."""
    fd = disk.open_directory(layout.ASSISTANTS)
    try:
        if not lock_directory(fd):
            raise LockedElsewhereError
        while True:
            try:
                return _transact(disk, journal, assistant_id, decide, key)
            except ExternalWriteError:
                continue  # another program has replaced the record meanwhile: decide again on what it wrote
    finally:
        os.close(fd)


def _transact(
    disk: Disk,
    journal: Journal | None,
    assistant_id: str,
    decide: Callable[[AssistantView], AssistantChange[T]],
    key: str | None,
) -> T:
    path = layout.assistant(assistant_id)
    placed, data = _read(disk, path)
    try:
        old = None if placed is None else codec.decode(data, Assistant, disk.where(path))
        change = decide(_View(old, None if key is None else _created(disk, key)))
        if change.is_deleted:
            writes = [Write("delete", path, checksum(data), b"")]
        elif change.assistant is not None:
            writes = [Write("put", path, checksum(data), _file_of(change.assistant, old, data, path))]
        else:
            return change.result
        keys: list[Write] = []
        if change.created is not None:
            key_path = layout.assistant_key(layout.key_digest(change.created.key))
            keys = key_writes(disk, key_path, *(KeyFile(change.created, is_sure=is_sure) for is_sure in (False, True)))
        moment = 0 if journal is None else journal.write([*writes, *keys], sync=True)
        try:
            if keys:
                disk.replace(keys[0].path, keys[0].data)
            if change.is_deleted:
                disk.remove(path)
            else:
                _put(disk, path, writes[0].data, placed)
        except BaseException:
            if journal is not None:
                journal.void(moment, [*writes, *keys], instead=keys[:1])
            raise
        if keys:
            # Where that fails it counts as long as the assistant is there, and becomes sure when it is asked for.
            with suppress(OSError):
                disk.replace(keys[1].path, keys[1].data)
        return change.result
    finally:
        if placed is not None:
            placed.close()


def _read(disk: Disk, path: str) -> tuple[Placed | None, bytes]:
    try:
        return disk.read_placed(path)
    except FileNotFoundError:
        return None, b""


def _created(disk: Disk, key: str) -> Created | None:
    """Return the assistant that was created under a key, if it was really made: its process may have died before."""
    path = layout.assistant_key(layout.key_digest(key))
    file = read_key(disk, path, key, Assistant)
    if file is None or file.is_sure:
        return None if file is None else file.created
    if not disk.exists(layout.assistant(file.created.value.id)):
        return None
    write_key(disk, path, attrs.evolve(file, is_sure=True))
    return file.created


def _file_of(assistant: Assistant, old: Assistant | None, data: bytes, path: str) -> bytes:
    """Return the file of an assistant, with what another program wrote into the one that it replaces."""
    new = codec.to_record(assistant)
    if old is None:
        return codec.dump(new)
    return codec.dump_exactly(codec.patched(codec.load_exactly(data, path), codec.to_record(old), new))


def _put(disk: Disk, path: str, data: bytes, placed: Placed | None) -> None:
    if placed is None:
        disk.create(path, data)
        return
    temporary, ours = disk.write_temporary(data)
    try:
        disk.exchange(temporary, ours, path, placed)
    except BaseException:
        disk.discard(temporary)
        raise
    finally:
        ours.close()
