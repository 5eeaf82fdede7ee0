"""The journal of one store: what an act is going to write, put down before any of its files is touched.

An act that is in the journal whole is carried out whole, by this process or, after its death, by another (``_redo``).
With ``power`` the journal is synced before the files are written, once for all acts that wait together, and the files
are not: what was written while the journal grew is made durable in one go when it is full, and then it is removed.

A line is the checksum of a JSON object, and the object: an act; or ``done``, the number up to which all acts are in the
files; ``aborted``, an act that came to nothing; ``retracted``, one whose messages were taken back; ``redone``, one that
another process has carried out; ``syncing`` and ``synced``, between which all that was done by then became durable.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import orjson
from attrs import define, field

from threadloom.stores.files._disk import Disk
from threadloom.stores.files._opened import naming
from threadloom.stores.files._owner import disown, opened, own, this_process
from threadloom.stores.files._writes import Write, to_json

__all__ = ["LEFT", "Act", "Journal", "JournalError", "add_entries", "make_durable", "parsed_entry"]

Entry = dict[str, Any]

LEFT: Final = "-left"
"""How the name of a journal ends whose process lives, and has given it up."""

_FULL_BYTES: Final = 8 << 20
_FULL_BYTES_UNSYNCED: Final = 1 << 20
_MOST_ATTEMPTS: Final = 10


class JournalError(OSError):
    """The journal could not be written or synced: what waited for it was not made."""


@define(eq=False)
class Act:
    """What one operation writes in a thread, all or nothing. It has a number once it is in a journal.

    Where its messages are taken back, they lie at ``retracted_at``: others may lie where it was to put them.
    """

    thread_id: str
    writes: tuple[Write, ...]
    number: int = 0
    file: JournalFile | None = field(default=None, repr=False)
    retracted_at: int | None = None


@define(eq=False)
class JournalFile:
    """One file of lines, as its store sees it."""

    path: str
    fd: int
    header_bytes: int
    last_number: int = 0
    done: int = 0
    open_acts: dict[int, Act] = field(factory=dict)
    closed: list[int] = field(factory=list)
    is_torn: bool = False
    end: int = 0

    @property
    def size(self) -> int:
        """How many bytes it has: other processes add lines too, of threads that they delete."""
        return os.fstat(self.fd).st_size

    def append(self, data: bytes) -> None:
        """Add whole lines in one write, or raise, and what was added counts for nothing."""
        before = self.size
        # Also where others have added lines: the last may be torn.
        if self.is_torn or before != self.end:
            data = b"\n" + data
        self.is_torn = True
        written = os.write(self.fd, data)
        self.is_torn = False
        self.end = before + written
        if written != len(data):
            self.is_torn = True
            with suppress(OSError):
                if self.size == before + written:
                    os.ftruncate(self.fd, before)
                    self.is_torn = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)


class Journal:
    """The journal that a store writes, and those before it whose files are not durable yet (``retiring``)."""

    def __init__(self, directory: str, root: str, disk: Disk, name: str, *, boot: str, power: bool) -> None:
        self._directory = directory
        self._root = root
        self._disk = disk
        self._name = name
        self._boot = boot
        self._power = power
        self._count = 0
        self._file: JournalFile | None = None
        self._lines: list[bytes] = []
        self._marks: list[bytes] = []
        self._noted: list[Act] = []
        self._wants_sync = False
        self._is_retiring_due = False
        self.retiring: list[JournalFile] = []

    def make_durable(self) -> None:
        """Let all that is in the files outlive a power cut as it is, whatever the journals say."""
        make_durable(self._disk, self._directory, self._boot)

    @property
    def power(self) -> bool:
        """Whether what was flushed outlives a power cut."""
        return self._power

    def begin(self) -> JournalFile:
        """Make the journal's file, unless it is there: locked before it can be seen, durable before it counts."""
        if self._file is not None:
            return self._file
        for attempts_left in reversed(range(_MOST_ATTEMPTS)):
            path = f"{self._directory}/{self._name}-{self._count}"
            self._count += 1
            try:
                self._file = self._made(path)
                break
            except OSError as error:
                self._disk.discard(path)
                # Before it was locked, another store that opens may have taken it for one of the dead.
                if not (isinstance(error, FileNotFoundError) and attempts_left):
                    raise JournalError(error.errno, error.strerror, path) from error
        assert self._file is not None  # noqa: S101 - it was made, or the error raised
        return self._file

    def _made(self, path: str) -> JournalFile:
        durability = "power" if self._power else "process"
        header = _dumped({"journal": 1, "boot": self._boot, "durability": durability, "process": this_process()})
        temporary = self._disk.temporary_path()
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            own(fd)
            file = JournalFile(path, fd, len(header))
            file.append(header)
            if self._power:
                os.fdatasync(fd)
            os.rename(temporary, path)
            if self._power:
                self._disk.sync(self._directory)
        except BaseException:
            disown(fd)
            self._disk.discard(temporary)
            raise
        return file

    # Acts

    def note(self, act: Act, *, sync: bool = True) -> None:
        """Put an act down; it counts once ``flush`` has returned. ``sync`` asks for it to outlive a power cut then."""
        file = act.file = self._file or self.begin()
        act.number = file.last_number + 1
        writes = [to_json(write, self._root) for write in act.writes]
        entry = {"act": act.number, "at": time.monotonic_ns(), "thread": act.thread_id, "writes": writes}
        self._lines.append(_dumped(entry))
        file.last_number = act.number
        file.open_acts[act.number] = act
        self._noted.append(act)
        self._wants_sync = self._wants_sync or sync

    def close_act(self, act: Act, mark: str | None = None) -> None:
        """Say that an act is in the files or, by ``mark``, what else became of it."""
        assert act.file is not None  # noqa: S101 - it was noted
        act.file.open_acts.pop(act.number, None)
        act.file.closed.append(act.number)
        if mark is not None and act.file is self._file:  # one that could not be synced is not written to
            self._marks.append(_dumped({mark: act.number}))

    def retract(self, act: Act) -> None:
        """Say that the messages of an act, which a foreign program has forbidden, are to be taken back."""
        self._marks.append(_dumped({"retracted": act.number, "at": act.retracted_at}))
        self._wants_sync = True

    def flush(self) -> None:
        """Write down what was noted and marked, and sync it where that was asked for.

        ``JournalError`` where it fails: the acts that were noted since the last time come to nothing, and none of their
        files was touched. A journal that could not be synced is not written to again.
        """
        file = self._file
        if file is None:
            return
        noted, self._noted = self._noted, []
        lines, self._lines = self._lines, []
        wants_sync, self._wants_sync = self._wants_sync and self._power, False
        done = min(file.open_acts, default=file.last_number + 1) - 1
        said = [_dumped({"done": done})] if done > file.done else []
        # One that stands half done, as a disk that fails may leave it, must not make all that came later seem so.
        said += [_dumped({"redone": number}) for number in file.closed if number > done]
        if not (said or self._marks or lines):
            return
        is_written = False
        try:
            file.append(b"".join((*said, *self._marks, *lines)))
            self._marks.clear()
            file.done = done
            file.closed.clear()
            is_written = True
            if wants_sync:
                os.fdatasync(file.fd)
        except OSError as error:
            for act in noted:
                file.open_acts.pop(act.number, None)
            if is_written:  # and not synced
                with suppress(OSError):
                    file.append(b"".join(_dumped({"aborted": act.number}) for act in noted))
                self._rotate()
            raise JournalError(error.errno, error.strerror, file.path) from error

    # Files

    def end_batch(self) -> bool:
        """Write down what is done; return whether it is time to ``retire`` journals."""
        with suppress(OSError):  # told again with the next act
            self.flush()
        file = self._file
        if file is not None and not file.open_acts:
            if self._power and file.size > _FULL_BYTES:
                self._rotate()
            elif not self._power and file.size > _FULL_BYTES_UNSYNCED:
                os.ftruncate(file.fd, file.header_bytes)
        is_due, self._is_retiring_due = self._is_retiring_due, False
        return is_due

    def _rotate(self) -> None:
        if self._file is not None:
            self.retiring.append(self._file)
            self._file = None
            self._is_retiring_due = True

    def retire(self) -> None:
        """Make durable what is in the files, and remove the journals that have told of it. For any thread."""
        retiring = [file for file in self.retiring if not file.open_acts]
        if not retiring:
            return
        leaving = {os.path.basename(file.path): self._boot for file in retiring}
        make_durable(self._disk, self._directory, self._boot, leaving=leaving)
        for file in retiring:
            self._remove(file)
        # The names must not come back: they would tell of what was overtaken since.
        self._disk.sync(self._directory)

    def _remove(self, file: JournalFile) -> None:
        self._disk.remove(file.path)
        self.retiring.remove(file)
        disown(file.fd)

    def end(self) -> None:
        """Give the journal up. Where it is still needed it stays, as that of a process that is dead."""
        file, self._file = self._file, None
        if file is not None:
            self.retiring.append(file)
            with suppress(OSError):
                if file.open_acts or (self._power and file.size > file.header_bytes):
                    self.retire()
                else:
                    self._remove(file)
        for left in self.retiring:
            with suppress(OSError):
                os.rename(left.path, f"{left.path}{LEFT}")
            disown(left.fd)
        self.retiring.clear()


def make_durable(disk: Disk, directory: str, boot: str, *, leaving: Mapping[str, str] | None = None) -> None:
    """Make durable what is in the files, and say so in the journals, but for those that are going to be removed.

    What an act has put there may look as it did before an earlier act, of another journal: that one must not be made
    once more after its successor's journal is gone. So each journal is told before, and one that it came to pass. It
    counts for those of this start of the machine, ``boot``: what others tell of may not be in the files yet. Those of
    earlier ones that were gone through are named in ``leaving``, by the start that they are of.
    """
    leaving = leaving or {}
    mark = secrets.token_hex(8)
    names = disk.names(directory)
    for name in names:
        with suppress(FileNotFoundError):
            add_entries(f"{directory}/{name}", [{"syncing": mark, "boot": leaving.get(name, boot)}], sync=False)
    disk.sync_all()
    for name in names:
        if name not in leaving:
            with suppress(FileNotFoundError):
                add_entries(f"{directory}/{name}", [{"synced": mark}], sync=True)


def add_entries(path: str, entries: list[Entry], *, sync: bool) -> None:
    """Add lines to a journal, whosever it is."""
    data = b"\n" + b"".join(_dumped(entry) for entry in entries)  # the last line there may be torn
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd, naming(path):
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if sync:
            os.fdatasync(fd)


def parsed_entry(line: bytes) -> Entry:
    """Return what a line of a journal says, or raise ``ValueError`` where it is torn or damaged."""
    checksum, _, text = line.partition(b" ")
    if int(checksum, 16) != zlib.crc32(text):
        raise ValueError("its checksum is that of another line")
    entry: Entry = orjson.loads(text)
    return entry


def _dumped(entry: Entry) -> bytes:
    text = orjson.dumps(entry)
    return b"%08x %s\n" % (zlib.crc32(text), text)
