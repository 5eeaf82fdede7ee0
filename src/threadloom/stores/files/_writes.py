"""What one act writes, as values: they go into the journal before any file is touched, and from there once more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from attrs import define, field, frozen

from threadloom.errors import StoreBusyError
from threadloom.stores.files import _log as log
from threadloom.stores.files._disk import Disk, ForeignWriteError, Held, digest
from threadloom.stores.files._lock import locked

__all__ = ["Append", "Make", "NotUndoneError", "Put", "Unchanged", "Write", "carry_out", "from_json", "to_json"]

_MOST_ATTEMPTS = 1_000


class NotUndoneError(Exception):
    """A write has failed in the middle of an act (``reason``), and what came before could not be taken back either."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


@frozen
class Make:
    """A directory that is not there yet, with files in it. Its lock is held until ``held``, if any, is closed."""

    path: str
    files: dict[str, bytes]
    held: ExitStack | None = field(default=None, eq=False, repr=False)


@frozen
class Put:
    """A record: new where ``old`` is none, else in the place of what has that digest.

    ``held`` is what was read of it. ``merged`` says what to write instead where a foreign program has come between;
    without it the act starts over.
    """

    path: str
    data: bytes
    old: str | None = None
    held: Held | None = field(default=None, eq=False, repr=False)
    merged: Callable[[Held], bytes] | None = field(default=None, eq=False, repr=False)

    @classmethod
    def over(cls, held: Held, data: bytes) -> Put:
        """Return the replacement of a record that was read."""
        return cls(held.path, data, digest(held.data), held)


@frozen
class Append:
    """Whole lines for the end of a log, which is at ``offset`` now.

    Where it ``is_exact``, something else in the act counts on the place, and the act starts over if it is another.
    """

    path: str
    offset: int
    data: bytes
    is_exact: bool = field(default=False, eq=False)

    @property
    def end(self) -> int:
        """Where the log is going to end."""
        return self.offset + len(self.data)


@frozen
class Unchanged:
    """Nothing to write: a record that must be what it was when it was read, or the act starts over."""

    path: str
    old: str
    held: Held | None = field(default=None, eq=False, repr=False)

    @classmethod
    def of(cls, held: Held) -> Unchanged:
        """Return the condition that a record stays what was read."""
        return cls(held.path, digest(held.data), held)


Write = Make | Put | Append | Unchanged


def carry_out(
    disk: Disk, damaged: str, writes: Sequence[Write], *, taken_back: Callable[[], object] = lambda: None
) -> None:
    """Write all of them in their order, or, where one fails, none: what came before it is taken back.

    ``taken_back`` is called where that was anything at all.
    ``ForeignWriteError`` where a foreign program has replaced a record. Lines that were appended by then stay, and are
    named in it: who reads and writes without a lock may have gone on from there. ``NotUndoneError`` where another part
    of it stands.
    """
    with ExitStack() as after:
        progress = _Progress(disk, after)
        try:
            _check_untouched(writes)
            for write in writes:
                try:
                    _carry_out(write, damaged, progress)
                except OSError as error:
                    error.filename = error.filename or write.path
                    raise
                progress.has_changed_names |= isinstance(write, Make | Put)
        except ForeignWriteError as error:
            error.appended = tuple(progress.appended)
            progress.keeps_lines = True
            try:
                progress.undo.close()  # the records that came before the one that was replaced
            except OSError as failure:
                raise NotUndoneError(failure) from failure
            if progress.has_changed_names:
                taken_back()
            raise
        except BaseException as error:
            try:
                progress.undo.close()
            except OSError:
                raise NotUndoneError(error) from error
            if progress.has_changed_names or progress.appended:
                taken_back()
            raise


def _check_untouched(writes: Sequence[Write]) -> None:
    """Look at all records that decide before the first is replaced, where there are several: none is to be undone."""
    deciding = [write.held for write in writes if isinstance(write, Put) and write.held is not None]
    for held in deciding if len(deciding) > 1 else ():
        held.check_untouched()


@define
class _Progress:
    """How far an act has come: what takes it back, what is cleared away in the end, and what it has appended."""

    disk: Disk
    after: ExitStack
    undo: ExitStack = field(factory=ExitStack)
    appended: list[tuple[int, bytes]] = field(factory=list)
    keeps_lines: bool = False
    has_changed_names: bool = False

    def cut(self, path: str, start: int, data: bytes) -> None:
        if not self.keeps_lines:
            self.disk.cut(path, start, data)

    def rewrite(self, held: Held, data: bytes) -> None:
        self.disk.rewrite(held, data, self.undo, self.after)


def _carry_out(write: Write, damaged: str, progress: _Progress) -> None:
    disk, undo = progress.disk, progress.undo
    match write:
        case Append(path, offset, data):
            start = log.append_lines(disk, path, data, damaged)
            undo.callback(progress.cut, path, start, data)
            progress.appended.append((start, data))
            if write.is_exact and start != offset:
                raise ForeignWriteError
        case Unchanged(held=Held() as held):
            held.check_untouched()
        case Make(path, files, None):
            disk.make_directories(os.path.dirname(path))
            disk.create_directory(path, files)
            undo.callback(disk.remove_tree, path)
        case Make(path, files, ExitStack() as stack):
            disk.create_directory(path, files, before=lambda made: stack.enter_context(locked(made)))
            undo.callback(disk.remove_tree, path)
        case Put(path, data, merged=None, held=None):
            disk.make_directories(os.path.dirname(path))
            disk.create(path, data)
            undo.callback(disk.remove, path)
        case Put(_, data, held=Held() as held, merged=None):
            progress.rewrite(held, data)
        case Put():
            _put_merged(write, progress)


def _put_merged(put: Put, progress: _Progress) -> None:
    assert put.merged is not None  # noqa: S101 - asked by the caller
    for _ in range(_MOST_ATTEMPTS):
        try:
            held = Held(put.path)
        except FileNotFoundError:
            progress.disk.make_directories(os.path.dirname(put.path))
            try:
                progress.disk.create(put.path, put.data)
            except FileExistsError:
                continue
            progress.undo.callback(progress.disk.remove, put.path)
            return
        with held:
            try:
                progress.rewrite(held, put.data if digest(held.data) == put.old else put.merged(held))
            except ForeignWriteError:
                continue
            return
    raise StoreBusyError(f"Another program keeps rewriting {put.path}: gave up after {_MOST_ATTEMPTS} attempts.")


def to_json(write: Write, root: str) -> dict[str, Any]:
    """Return what the journal says of a write."""
    path = write.path[len(root) + 1 :]
    match write:
        case Make(_, files):
            return {"make": path, "files": {name: data.decode() for name, data in files.items()}}
        case Put(_, data, old):
            return {"put": path, "old": old, "data": data.decode()}
        case Append(_, offset, data):
            return {"append": path, "offset": offset, "data": data.decode()}
        case Unchanged(_, old):
            return {"unchanged": path, "old": old}


def from_json(record: dict[str, Any], root: str) -> Write:
    """Return the write that the journal tells of, or raise ``ValueError`` where it is none of ours."""
    match record:
        case {"make": str(path), "files": dict(files)}:
            return Make(_below(root, path), {name: data.encode() for name, data in files.items()})
        case {"put": str(path), "old": old, "data": str(data)}:
            return Put(_below(root, path), data.encode(), old)
        case {"append": str(path), "offset": int(offset), "data": str(data)}:
            return Append(_below(root, path), offset, data.encode())
        case {"unchanged": str(path), "old": str(old)}:
            return Unchanged(_below(root, path), old)
    raise ValueError(f"no write is known that looks like {sorted(record)}")


def _below(root: str, path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is no place below the root")
    return f"{root}/{path}"
