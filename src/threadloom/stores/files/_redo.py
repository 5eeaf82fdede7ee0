"""Carries out what a crash has cut off: the acts that lie in the journals of processes that are gone.

After the death of a process the files are as they were written, but its last acts may be half done. Whoever next takes
the lock of a thread carries them out there first. After a power cut anything that was not synced may be lost, so all
acts of all journals are gone through once more when a store is opened, in the order in which they were made.

Each write is made only where what it replaces still stands, so that no later one is undone, and going through twice
changes nothing. Any thread may call what is here; callers that work in a thread of the store's hold its lock.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import define, field

from threadloom import codec
from threadloom.errors import NotFoundError, StoreError
from threadloom.stores.files import _log as log
from threadloom.stores.files._disk import Disk, ForeignWriteError, Held, LogFile, digest
from threadloom.stores.files._journal import Act, add_entries, parsed_entry
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._lock import LockedElsewhereError, locked
from threadloom.stores.files._owner import Key, holder_of, is_our_key, opened, our_key
from threadloom.stores.files._writes import Append, Make, Put, Unchanged, Write, from_json

__all__ = ["Redo", "retractions"]

_logger = logging.getLogger("threadloom")

# A directory's time is that of the kernel's last tick: a name that came within the same tick is seen at the next look.
_TICK_NS: Final = 20_000_000


@define(eq=False)
class _Told:
    """An act that a journal tells of."""

    number: int
    at: int
    thread_id: str
    writes: tuple[Write, ...]
    is_done: bool = False
    is_retracted: bool = False


@define(eq=False)
class _DeadJournal:
    """What the journal of a process that is gone says."""

    path: Path
    size: int = 0
    boot: str = ""
    is_durable: bool = False
    is_damaged: bool = False
    acts: dict[int, _Told] = field(factory=dict)
    redone: set[int] = field(factory=set)
    forgotten: dict[str, int] = field(factory=dict)

    def left(self, thread_id: str | None = None) -> list[_Told]:
        """Return the acts that may be half done after the death of the process, in one thread or all."""
        return [
            act
            for act in self.acts.values()
            if not act.is_done and act.number not in self.redone and thread_id in {None, act.thread_id}
        ]


class Redo:
    """The journals of those who are gone, as one store sees them."""

    def __init__(self, layout: Layout, disk: Disk, boot: str, renew_index: Callable[[str], object]) -> None:
        self._layout = layout
        self._disk = disk
        self._boot = boot
        self._renew_index = renew_index
        self._mutex = threading.RLock()
        self._listed_ns = -1
        # A descriptor of each journal of another process, and what a journal of this one is known by.
        self._peers: dict[str, int | Key] = {}
        self._dead: dict[str, _DeadJournal] = {}
        self._open_acts: dict[str, list[tuple[Act, Callable[[Act], object]]]] = {}

    def close(self) -> None:
        with self._mutex:
            for name in tuple(self._peers):
                self._drop(name)

    # Of processes that were killed

    def in_thread(self, thread_id: str) -> None:
        """Carry out what was left in a thread whose lock is held."""
        with self._mutex:
            for act, close in self._open_acts.pop(thread_id, ()):
                self._carry_out_own(act, close)
            for journal in self._look():
                self._finish(journal, thread_id)

    def everywhere(self) -> None:
        """Carry out what was left in any thread, and remove the journals; what cannot be done now is left for later."""
        with self._mutex:
            self._finish_own()
            try:
                for journal in self._look():
                    self._bury(journal)
            except FileNotFoundError:
                return  # the store is being opened for the first time, or another process was faster
            except OSError as error:
                # Whoever locks the thread in question tries again, and is told.
                _logger.warning("write not finished for a process that is gone", exc_info=error)

    def later(self, act: Act, close: Callable[[Act], object]) -> None:
        """Keep an act of this process that stands half done until its thread is next locked."""
        with self._mutex:
            self._open_acts.setdefault(act.thread_id, []).append((act, close))

    def _finish_own(self) -> None:
        """Finish in the files what this process has half done, so that no reader sees it so; a writer closes it."""
        for thread_id, acts in self._open_acts.items():
            with suppress(LockedElsewhereError, OSError), locked(self._layout.thread(thread_id)):
                for act, _ in acts:
                    self._carry_out(_Told(act.number, 0, act.thread_id, act.writes), {}, is_torn=False)

    def _carry_out_own(self, act: Act, close: Callable[[Act], object]) -> None:
        try:
            self._carry_out(_Told(act.number, 0, act.thread_id, act.writes), {}, is_torn=False)
        except OSError:
            self.later(act, close)
            raise
        close(act)
        self._renew_index(act.thread_id)

    def _bury(self, journal: _DeadJournal) -> None:
        for thread_id in {act.thread_id for act in journal.left()}:
            directory = self._layout.thread(thread_id)
            try:
                # A thread that is not there was deleted, or was about to be made: nobody else has anything to do in it.
                with locked(directory) if self._disk.exists(directory) else nullcontext():
                    self._finish(journal, thread_id)
            except LockedElsewhereError:
                return
        self._remove([journal])

    def _finish(self, journal: _DeadJournal, thread_id: str) -> None:
        left = journal.left(thread_id)
        if not left:
            return
        for act in left:
            self._carry_out(act, {}, is_torn=False)
        with suppress(FileNotFoundError):  # another process has done the same, in other threads the rest
            add_entries(journal.path, [{"redone": act.number} for act in left], sync=False)
        journal.redone.update(act.number for act in left)
        with suppress(StoreError, NotFoundError):
            self._renew_index(thread_id)
        ids = {"thread_id": thread_id, "path": str(journal.path)}
        _logger.warning("write finished for a process that is gone", extra=ids)

    # Of before a power cut

    def after_power_cut(self) -> None:
        """Go through all journals of earlier starts of the machine; ``LockedElsewhereError`` while another does."""
        if not any(self._is_old(name) for name in self._names()):
            return
        with locked(self._layout.journals), self._mutex:
            journals = [self._read(self._layout.journals / name) for name in self._names() if self._is_old(name)]
            acts = _remembered(journals)
            foreign = self._foreign(acts)
            older: dict[Path, set[str]] = {}
            for act in sorted(acts, key=lambda act: act.at):
                record = _decisive(act)
                is_made = act.is_done or record is None or record.path not in foreign
                self._carry_out(attrs.evolve(act, is_done=is_made), older, is_torn=True)
            self._remove(journals)

    def _foreign(self, acts: list[_Told]) -> set[Path]:
        """Return the records in which neither lies what an act has put there, old or new, nor a torn form of it."""
        puts: dict[Path, list[Put]] = {}
        for act in acts:
            for write in act.writes:
                if isinstance(write, Put):
                    puts.setdefault(write.path, []).append(write)
        return {path for path, known in puts.items() if not self._is_known(path, known)}

    def _is_known(self, path: Path, puts: list[Put]) -> bool:
        try:
            found = self._disk.read(path)
        except FileNotFoundError:
            return True
        seen = digest(found)
        return any(seen in {put.old, digest(put.data)} or _is_torn(found, put.data) for put in puts)

    def clear_up(self) -> None:
        """Remove what was being written by those who left no journal, and the rest of threads that were deleted."""
        written = self._disk.names(self._layout.temporary)
        stores = {name.rpartition("-")[0] for name in self._names()}  # looked for later: a journal is written there too
        left = [self._layout.temporary / name for name in written if name.rpartition("-")[0] not in stores]
        trash = [self._layout.trash / name for name in self._disk.names(self._layout.trash)]
        with suppress(OSError):  # whoever is the next to open the store tries again
            for path in (*left, *trash):
                if not self._is_held(path):
                    self._disk.remove_tree(path)

    @staticmethod
    def _is_held(path: Path) -> bool:
        """Return whether somebody who lives is making a file that is locked from its beginning."""
        try:
            if our_key(path) is not None:
                return True
            with opened(path, os.O_RDONLY) as fd:
                return holder_of(fd) is not None
        except FileNotFoundError:
            return False

    def _is_old(self, name: str) -> bool:
        path = self._layout.journals / name
        try:
            if our_key(path) is not None:
                return False
            with path.open("rb") as file:
                if holder_of(file.fileno()) is not None:
                    return False
                header = file.readline()
        except FileNotFoundError:
            return False
        return not self._boot or self._boot.encode() not in header

    # Which journals there are

    def _names(self) -> list[str]:
        return sorted(self._disk.names(self._layout.journals))

    def _look(self) -> list[_DeadJournal]:
        """Return the journals whose process is gone."""
        changed_ns = os.stat(self._layout.journals).st_mtime_ns
        if changed_ns != self._listed_ns:
            self._list()
            self._listed_ns = changed_ns if time.time_ns() - changed_ns > _TICK_NS else -1
        gone = [name for name, peer in self._peers.items() if self._is_gone(peer)]
        return [journal for name in gone if (journal := self._dead_journal(name)) is not None]

    def _list(self) -> None:
        names = set(self._names())
        for name in self._peers.keys() - names:
            self._drop(name)
        for name in names - self._peers.keys():
            path = self._layout.journals / name
            with suppress(FileNotFoundError):
                self._peers[name] = our_key(path) or os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @staticmethod
    def _is_gone(peer: int | Key) -> bool:
        return holder_of(peer) is None if isinstance(peer, int) else not is_our_key(peer)

    def _drop(self, name: str) -> None:
        self._dead.pop(name, None)
        peer = self._peers.pop(name)
        if isinstance(peer, int):
            os.close(peer)

    def _dead_journal(self, name: str) -> _DeadJournal | None:
        path = self._layout.journals / name
        known = self._dead.get(name)
        try:
            if known is None or known.size != self._disk.size(path):  # others say there what they have done
                known = self._dead[name] = self._read(path)
        except FileNotFoundError:  # removed by another process in this moment
            self._listed_ns = -1
            return None
        return known if known.boot == self._boot else None

    def _read(self, path: Path) -> _DeadJournal:
        data = self._disk.read(path)
        journal = _DeadJournal(path, len(data))
        bad: list[bytes] = []
        for line in data.splitlines():
            try:
                self._take_in(journal, parsed_entry(line))
            except (KeyError, TypeError, ValueError):
                bad.append(line)
        # The last line may be cut off, and after a power cut others have holes; nobody was told that they are there.
        journal.is_damaged = any(line and b"\0" not in line and not data.endswith(line) for line in bad)
        return journal

    def _take_in(self, journal: _DeadJournal, entry: dict[str, Any]) -> None:
        match entry:
            case {"journal": 1, "boot": str(boot), "durability": durability}:
                journal.boot, journal.is_durable = boot, durability == "power"
            case {"act": int(number), "at": int(at), "thread": str(thread_id), "writes": list(writes)}:
                told = tuple(from_json(write, self._layout.root) for write in writes)
                journal.acts[number] = _Told(number, at, thread_id, told)
            case {"done": int(number)}:
                for act in journal.acts.values():
                    act.is_done = act.is_done or act.number <= number
            case {"aborted": int(number)}:
                journal.acts.pop(number, None)
            case {"retracted": int(number)} if number in journal.acts:
                journal.acts[number].is_retracted = True
            case {"redone": int(number)}:
                journal.redone.add(number)
            case {"forget": str(thread_id), "at": int(at)}:
                journal.forgotten[thread_id] = at
                journal.acts = {n: act for n, act in journal.acts.items() if act.thread_id != thread_id}
            case {"retracted": int()}:
                pass
            case _:
                raise ValueError("no entry that is known")

    def _remove(self, journals: Iterable[_DeadJournal]) -> None:
        """Remove journals that tell of nothing any more, and what their stores were in the middle of writing."""
        if any(journal.is_durable for journal in journals):
            self._disk.sync_all()
        for journal in journals:
            store = journal.path.name.rpartition("-")[0]
            for name in self._disk.names(self._layout.temporary):
                if name.startswith(f"{store}-"):
                    self._disk.remove_tree(self._layout.temporary / name)
            if journal.is_damaged:
                aside = self._layout.damaged / f"journals-{journal.path.name}-{secrets.token_hex(4)}"
                _logger.warning("journal set aside", extra={"path": str(journal.path)})
                with suppress(FileNotFoundError):
                    self._disk.move(journal.path, aside)
            self._disk.remove(journal.path)
            if journal.path.name in self._peers:
                self._drop(journal.path.name)
        for name in self._disk.names(self._layout.trash):
            self._disk.remove_tree(self._layout.trash / name)
        if any(journal.is_durable for journal in journals):
            self._disk.sync(self._layout.journals)

    # One act

    def _carry_out(self, act: _Told, older: dict[Path, set[str]], *, is_torn: bool) -> None:
        """Make the writes of an act that are not made, or, where it came to nothing, take back what it appended.

        ``older`` are the contents of records that are known to be older than what this act puts in their place.
        ``is_torn`` says that after a power cut files may hold a part of what was written.
        """
        makes_thread = any(isinstance(write, Make) and write.path.parent == self._layout.root for write in act.writes)
        if not makes_thread and not self._disk.exists(self._layout.thread(act.thread_id)):
            return
        if act.is_retracted or not self._stands(act):
            self._take_back(act)
            return
        for write in act.writes:
            match write:
                case Make(path, files):
                    self._make(path, files)
                case Put():
                    self._put(write, older, is_torn=is_torn)
                case Append():
                    self._append(write)

    def _stands(self, act: _Told) -> bool:
        """Return whether an act is to be, or was, made: no foreign program has replaced its record before it."""
        record = None if act.is_done else _decisive(act)
        if record is None:
            return True
        try:
            found = digest(self._disk.read(record.path))
        except FileNotFoundError:
            return True
        if found == record.old or (isinstance(record, Put) and found == digest(record.data)):
            return True
        last = act.writes[-1]  # the events come last: where they are there, so was all the rest
        return isinstance(last, Append) and self._is_there(last)

    def _take_back(self, act: _Told) -> None:
        for write in act.writes:
            if isinstance(write, Append) and write.path.name == "messages.jsonl":
                if act.is_retracted:
                    self._append(write)  # for its place is told of as retracted, and must not be another's
                elif not self._is_there(write):
                    continue
                edits = self._layout.edits(act.thread_id)
                lines = retractions(write.offset, write.data)
                if not self._disk.exists(edits) or lines not in self._disk.read(edits):
                    log.append_lines(self._disk, edits, lines, self._layout.damaged)

    def _make(self, path: Path, files: dict[str, bytes]) -> None:
        self._disk.make_directories(path.parent)
        with suppress(FileExistsError):
            self._disk.create_directory(path, files)
            return
        for name, data in files.items():
            found = self._disk.read(path / name) if self._disk.exists(path / name) else b""
            if _is_torn(found, data):
                self._disk.replace(path / name, data)
            elif path.joinpath(name).suffix == ".jsonl" and _is_torn(found[: len(data)], data):
                self._disk.write_at(path / name, 0, data)  # a log, that had grown since, and of which the rest was kept

    def _put(self, put: Put, older: dict[Path, set[str]], *, is_torn: bool) -> None:
        try:
            held = Held(put.path)
        except FileNotFoundError:
            self._disk.make_directories(put.path.parent)
            self._disk.make_file(put.path, put.data)
        else:
            with held, ExitStack() as after, suppress(ForeignWriteError):
                if held.data != put.data and self._is_older(held.data, put, older, is_torn=is_torn):
                    self._disk.rewrite(held, put.data, ExitStack(), after)
        known = older.setdefault(put.path, set())
        known.add(digest(put.data))
        if put.old is not None:
            known.add(put.old)

    @staticmethod
    def _is_older(found: bytes, put: Put, older: dict[Path, set[str]], *, is_torn: bool) -> bool:
        seen = digest(found)
        return seen == put.old or seen in older.get(put.path, ()) or (is_torn and _is_torn(found, put.data))

    def _append(self, append: Append) -> None:
        path, offset, data = append.path, append.offset, append.data
        self._disk.make_directories(path.parent)
        with LogFile(path, writable=True) as file:
            gap = offset - file.size
            found = file.read_at(offset, len(data))
            after = b"" if found == data else file.read_at(offset, file.size - offset)
        if found == data:
            return
        if gap > 0:
            # What stood here was never synced, and nobody was told that it was. Its place stays: others are known.
            self._disk.write_at(path, offset - gap, b" " * (gap - 1) + b"\n")
        if _is_torn(found, data):
            self._disk.write_at(path, offset, data)
        elif data not in after:
            log.append_lines(self._disk, path, data, self._layout.damaged)  # behind what a foreign program appended

    def _is_there(self, append: Append) -> bool:
        try:
            with LogFile(append.path) as file:
                return file.read_at(append.offset, len(append.data)) == append.data
        except FileNotFoundError:
            return False


def _decisive(act: _Told) -> Put | Unchanged | None:
    """Return what an act does with the record by which it stands or falls."""
    return next(
        (write for write in act.writes if isinstance(write, Put | Unchanged) and write.path.parent.name != "steps"),
        None,
    )


def _remembered(journals: Iterable[_DeadJournal]) -> list[_Told]:
    """Return the acts of all journals, but those in threads that were being deleted when one journal had been told.

    All that they had written was durable then. Had only some of them forgotten, the rest would seem to be the last.
    """
    forgotten: dict[tuple[str, str], int] = {}
    for journal in journals:
        for thread_id, at in journal.forgotten.items():
            key = journal.boot, thread_id
            forgotten[key] = max(at, forgotten.get(key, at))
    return [
        act
        for journal in journals
        for act in journal.acts.values()
        if act.at >= forgotten.get((journal.boot, act.thread_id), act.at)
    ]


def retractions(offset: int, lines: bytes) -> bytes:
    """Return the edits that take back messages, by their places: others may have the same ids."""
    edits: list[bytes] = []
    for line in lines.splitlines(keepends=True):
        edits.append(codec.dump_line({"object": "thread.message.retracted", "offset": offset}))
        offset += len(line)
    return b"".join(edits)


def _is_torn(found: bytes, data: bytes) -> bool:
    """Return whether ``found`` is what a power cut can leave of ``data``: a part of it, with holes."""
    return len(found) <= len(data) and all(
        byte in {0, whole} for byte, whole in zip(found, data[: len(found)], strict=True)
    )
