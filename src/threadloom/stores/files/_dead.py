"""The journals of processes that are gone: which there are, and what they say."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, Final, TypeGuard

import attrs
from attrs import define, field

from threadloom.stores.files._disk import Disk
from threadloom.stores.files._journal import LEFT, Act, parsed_entry
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._owner import Key, holder_of, is_our_key, lives, our_key
from threadloom.stores.files._writes import Append, Make, Write, from_json

__all__ = ["DeadJournal", "Journals", "Told"]

# A directory's time is that of the kernel's last tick: a name that came within the same tick is seen at the next look.
_TICK_NS: Final = 20_000_000
_HEADER_BYTES: Final = 512


@define(eq=False)
class Told:
    """An act that a journal tells of."""

    number: int
    at: int
    thread_id: str
    writes: tuple[Write, ...]
    is_done: bool = False
    is_retracted: bool = False

    @classmethod
    def of(cls, act: Act) -> Told:
        """Return what the journal tells of an act of this process."""
        told = cls(act.number, 0, act.thread_id, act.writes)
        if act.retracted_at is not None:
            told.retract(act.retracted_at)
        return told

    def retract(self, place: int | None) -> None:
        """Know that its messages are to be taken back, and where they lie; an older journal does not say."""
        self.is_retracted = True
        if place is not None:
            self.writes = tuple(
                attrs.evolve(write, offset=place) if _appends_messages(write) else write for write in self.writes
            )

    def concerns(self, place: str, root: str) -> bool:
        """Return whether it writes in a thread or another place with a lock: where it was begun, or makes it."""
        return place == self.thread_id or f"{root}/{place}" in self.made

    @property
    def made(self) -> list[str]:
        """The directories that it makes."""
        return [write.path for write in self.writes if isinstance(write, Make)]


@define(eq=False)
class DeadJournal:
    """What the journal of a process that is gone says."""

    path: str
    size: int = 0
    boot: str = ""
    has_header: bool = False
    is_durable: bool = False
    is_damaged: bool = False
    acts: dict[int, Told] = field(factory=dict)
    redone: set[int] = field(factory=set)
    done_before: dict[str, set[int]] = field(factory=dict)
    synced: set[str] = field(factory=set)

    def not_durable(self, synced: set[str]) -> list[Told]:
        """Return the acts that a power cut may have taken from the files. What was ``synced`` any journal may say."""
        durable = {number for mark in synced for number in self.done_before.get(mark, ())}
        return [act for act in self.acts.values() if act.number not in durable]

    def left(self) -> list[Told]:
        """Return the acts that may be half done after the death of the process."""
        return [act for act in self.acts.values() if not act.is_done and act.number not in self.redone]

    def take_in(self, entry: dict[str, Any], root: str) -> None:
        """Take in the next line; ``ValueError`` where it says nothing that is known."""
        match entry:
            case {"journal": 1, "boot": str(boot), "durability": durability}:
                self.boot, self.is_durable, self.has_header = boot, durability == "power", True
            case {"act": int(number), "at": int(at), "thread": str(thread_id), "writes": list(writes)}:
                self.acts[number] = Told(number, at, thread_id, tuple(from_json(write, root) for write in writes))
            case {"syncing": str(mark), "boot": boot}:
                if boot == self.boot:
                    self.done_before[mark] = self.redone | {n for n, act in self.acts.items() if act.is_done}
            case {"synced": str(mark)}:
                self.synced.add(mark)
            case _:
                self._mark(entry)

    def _mark(self, entry: dict[str, Any]) -> None:
        match entry:
            case {"done": int(last)}:
                for act in self.acts.values():
                    act.is_done = act.is_done or act.number <= last
            case {"aborted": int(number)}:
                self.acts.pop(number, None)
            case {"retracted": int(number)}:
                if number in self.acts:
                    self.acts[number].retract(entry.get("at"))
            case {"redone": int(number)}:
                self.redone.add(number)
            case _:
                raise ValueError(f"no entry is known that looks like {sorted(entry)}")


@define(eq=False)
class _Peer:
    """A journal: of another process, with a descriptor of it, or of this one, with what it is known by."""

    fd: int | None
    key: Key | None
    process: str = ""

    @property
    def is_gone(self) -> bool:
        if self.fd is None:
            return self.key is None or not is_our_key(self.key)
        return holder_of(self.fd) is None and not lives(self.process)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)


class Journals:
    """The journals in a directory, as one store sees them: it looks again and again, at little cost."""

    def __init__(self, layout: Layout, disk: Disk, boot: str) -> None:
        self._layout = layout
        self._disk = disk
        self._boot = boot
        self._listed_ns = -1
        self._peers: dict[str, _Peer] = {}
        self._dead: dict[str, DeadJournal] = {}

    def close(self) -> None:
        for name in tuple(self._peers):
            self._drop(name)

    def dead(self) -> list[DeadJournal]:
        """Return the journals of this start of the machine whose process is gone."""
        self._look()
        gone = [name for name, peer in self._peers.items() if peer.is_gone]
        return [journal for name in gone if (journal := self._dead_journal(name)) is not None]

    def again(self, journal: DeadJournal) -> DeadJournal | None:
        """Return what a journal says by now, or none where another process has carried all of it out."""
        return (
            self._dead_journal(os.path.basename(journal.path))
            if os.path.basename(journal.path) in self._peers
            else None
        )

    def living(self) -> set[str]:
        """Return the names of the stores that are open, in this process and others."""
        self._look()
        return {name.partition("-")[0] for name, peer in self._peers.items() if not peer.is_gone}

    def stores(self) -> set[str]:
        """Return the names of the stores that have a journal, open or not."""
        return {name.partition("-")[0] for name in self._names()}

    def old(self) -> list[str]:
        """Return the names of the journals of earlier starts of the machine, or of any where it tells none apart."""
        return [name for name in self._names() if self._is_old(name)]

    def removed(self, name: str) -> None:
        """Know that a journal is gone."""
        if name in self._peers:
            self._drop(name)

    def read(self, name: str) -> DeadJournal:
        """Return what a journal says."""
        path = f"{self._layout.journals}/{name}"
        data = self._disk.read(path)
        journal = DeadJournal(path, len(data))
        bad: list[bytes] = []
        for line in data.splitlines():
            try:
                journal.take_in(parsed_entry(line), self._layout.root)
            except (KeyError, TypeError, ValueError):
                bad.append(line)
        # The last line may be cut off, and after a power cut others have holes; nobody was told that they are there.
        journal.is_damaged = any(line and b"\0" not in line and not data.endswith(line) for line in bad)
        # One without its first line is none of ours, unless nothing of it is there: it was never relied upon then.
        journal.is_damaged = journal.is_damaged or (not journal.has_header and bool(data.strip(b"\0\n")))
        return journal

    def _names(self) -> list[str]:
        return sorted(self._disk.names(self._layout.journals))

    def _look(self) -> None:
        changed_ns = os.stat(self._layout.journals).st_mtime_ns
        if changed_ns != self._listed_ns:
            self._list()
            self._listed_ns = changed_ns if time.time_ns() - changed_ns > _TICK_NS else -1

    def _list(self) -> None:
        names = set(self._names())
        for name in self._peers.keys() - names:
            self._drop(name)
        for name in names - self._peers.keys():
            path = f"{self._layout.journals}/{name}"
            with suppress(FileNotFoundError):
                self._peers[name] = _peer(path)

    def _drop(self, name: str) -> None:
        self._dead.pop(name, None)
        self._peers.pop(name).close()

    def _dead_journal(self, name: str) -> DeadJournal | None:
        path = f"{self._layout.journals}/{name}"
        known = self._dead.get(name)
        try:
            if known is None or known.size != self._disk.size(path):  # others say there what they have done
                known = self._dead[name] = self.read(name)
        except FileNotFoundError:  # removed by another process in this moment
            self._listed_ns = -1
            return None
        return known if known.boot == self._boot else None

    def _is_old(self, name: str) -> bool:
        try:
            peer = _peer(f"{self._layout.journals}/{name}")
        except FileNotFoundError:
            return False
        try:
            header = b"" if peer.fd is None else os.pread(peer.fd, _HEADER_BYTES, 0)
            return peer.is_gone and (not self._boot or self._boot.encode() not in header)
        finally:
            peer.close()


def _appends_messages(write: Write) -> TypeGuard[Append]:
    return isinstance(write, Append) and write.path.endswith("/messages.jsonl")


def _peer(path: str) -> _Peer:
    key = our_key(path)
    if key is not None:
        return _Peer(None, key)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process = parsed_entry(os.pread(fd, _HEADER_BYTES, 0).partition(b"\n")[0])["process"]
    except (KeyError, ValueError):
        process = ""
    except BaseException:
        os.close(fd)
        raise
    return _Peer(fd, None, "" if path.endswith(LEFT) else str(process))
