"""What one act writes, as values: they go into the journal before any file is touched, and from there once more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from attrs import define, field, frozen

from threadloom.errors import StoreBusyError
from threadloom.stores.files._disk import Disk, Rewrite
from threadloom.stores.files._lock import Lock
from threadloom.stores.files._log import Logs
from threadloom.stores.files._opened import ForeignWriteError, Held

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

    @property
    def is_what_lies_there(self) -> bool:
        """Whether what was put in the place of ``held`` is still there; for as long as that is held."""
        placed = None if self.held is None else self.held.placed
        return placed is not None and placed.is_what_lies_at(self.path)

    @classmethod
    def over(cls, held: Held, data: bytes) -> Put:
        """Return the replacement of a record that was read."""
        return cls(held.path, data, held.digest, held)


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
        return cls(held.path, held.digest, held)


Write = Make | Put | Append | Unchanged


def carry_out(
    disk: Disk, logs: Logs, writes: Sequence[Write], *, taken_back: Callable[[], object] = lambda: None
) -> None:
    """Write all of them in their order, or, where one fails, none: what came before it is taken back.

    ``taken_back`` is called where that was anything at all.
    ``ForeignWriteError`` where a foreign program has replaced a record. Lines that were appended by then stay, and are
    named in it: who reads and writes without a lock may have gone on from there. ``NotUndoneError`` where another part
    of it stands.
    """
    progress = _Progress(disk, logs)
    try:
        _check_untouched(writes)
        for write in writes:
            try:
                _carry_out(write, progress)
            except OSError as error:
                error.filename = error.filename or write.path
                raise
            progress.has_changed_names |= isinstance(write, Make | Put)
    except BaseException as error:
        is_foreign = isinstance(error, ForeignWriteError)
        if isinstance(error, ForeignWriteError):
            error.appended = tuple(progress.appended)
        try:
            progress.take_back(keeps_lines=is_foreign)
        except OSError as failure:
            raise NotUndoneError(failure if is_foreign else error) from failure
        if progress.has_changed_names or (progress.appended and not is_foreign):
            taken_back()
        raise
    finally:
        for rewrite in progress.rewrites:
            rewrite.clear()


def _check_untouched(writes: Sequence[Write]) -> None:
    """Look at all records that decide before the first is replaced, where there are several: none is to be undone."""
    deciding = [write.held for write in writes if isinstance(write, Put) and write.held is not None]
    for held in deciding if len(deciding) > 1 else ():
        held.check_untouched()


@define(eq=False)
class _Progress:
    """How far an act has come: what takes it back, and what it has appended."""

    disk: Disk
    logs: Logs
    undo: list[Callable[[], object]] = field(factory=list)
    undo_lines: list[Callable[[], object]] = field(factory=list)
    rewrites: list[Rewrite] = field(factory=list)
    appended: list[tuple[int, bytes]] = field(factory=list)
    has_changed_names: bool = False

    def append(self, path: str, data: bytes) -> int:
        start = self.logs.append(path, data)
        undo = partial(self.logs.cut, path, start, data)
        self.undo.append(undo)
        self.undo_lines.append(undo)
        self.appended.append((start, data))
        return start

    def rewrite(self, held: Held, data: bytes) -> None:
        rewrite = self.disk.rewrite(held, data)
        self.rewrites.append(rewrite)
        self.undo.append(rewrite.undo)

    def take_back(self, *, keeps_lines: bool) -> None:
        """Undo all of it, last things first, also what comes before something that cannot be undone."""
        failure: OSError | None = None
        for undo in reversed(self.undo):
            if not (keeps_lines and undo in self.undo_lines):
                try:
                    undo()
                except OSError as error:
                    failure = error
        if failure is not None:
            raise failure


def _carry_out(write: Write, progress: _Progress) -> None:
    disk, undo = progress.disk, progress.undo
    match write:
        case Append(path, offset, data):
            start = progress.append(path, data)
            if write.is_exact and start != offset:
                raise ForeignWriteError
        case Unchanged(held=Held() as held):
            held.check_untouched()
        case Make(path, files, None):
            disk.make_directories(os.path.dirname(path))
            disk.create_directory(path, files)
            undo.append(partial(disk.remove_tree, path))
        case Make(path, files, ExitStack() as stack):
            disk.create_directory(path, files, before=lambda made: stack.enter_context(Lock(made)))
            undo.append(partial(disk.remove_tree, path))
        case Put(path, data, merged=None, held=None):
            disk.create(path, data)
            undo.append(partial(disk.remove, path))
        case Put(_, data, held=Held() as held, merged=None):
            progress.rewrite(held, data)
        case Put():
            _put_merged(write, progress)


def _put_merged(put: Put, progress: _Progress) -> None:
    assert put.merged is not None  # noqa: S101 - asked by the caller
    disk, is_new = progress.disk, put.old is None
    for _ in range(_MOST_ATTEMPTS):
        try:
            if is_new:
                disk.create(put.path, put.data)
                progress.undo.append(partial(disk.remove, put.path))
                return
            with disk.hold(put.path) as held:
                progress.rewrite(held, put.data if held.digest == put.old else put.merged(held))
                return
        except FileExistsError:
            is_new = False
        except FileNotFoundError:
            if is_new:
                raise
            is_new = True
        except ForeignWriteError:
            continue
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
