"""Makes the writes of an act once more, where they are not made: what a crash has cut off, or a power cut has taken.

Each write is made only where what it replaces still stands, so that no later one is undone, and going through twice
changes nothing. Whoever calls this holds the lock of the thread, or knows that nobody else is at it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from threadloom import codec
from threadloom.stores.files import _log as log
from threadloom.stores.files._dead import Told
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._opened import ForeignWriteError, Held, LogFile, digest
from threadloom.stores.files._writes import Append, Make, Put, Unchanged, Write

__all__ = ["Again", "decisive", "is_torn_form", "retractions"]


class Again:
    """Makes acts once more in the files below one root."""

    def __init__(self, layout: Layout, disk: Disk) -> None:
        self._layout = layout
        self._disk = disk

    def carry_out(self, act: Told, older: dict[str, set[str]], *, is_torn: bool) -> None:
        """Make the writes of an act that are not made, or, where it came to nothing, take back what it appended.

        ``older`` are the contents of records that are known to be older than what this act puts in their place.
        ``is_torn`` says that after a power cut files may hold a part of what was written.
        """
        makes_thread = any(
            isinstance(write, Make) and os.path.dirname(write.path) == self._layout.root for write in act.writes
        )
        if not makes_thread and not self._disk.exists(self._layout.thread(act.thread_id)):
            return
        if act.is_retracted or not self._stands(act, is_torn=is_torn):
            self._take_back(act, is_torn=is_torn)
            return
        for write in act.writes:
            match write:
                case Make(path, files):
                    self._make(path, files)
                case Put():
                    self._put(write, older, is_torn=is_torn)
                case Append():
                    self._append(write)

    def _stands(self, act: Told, *, is_torn: bool) -> bool:
        """Return whether an act is to be, or was, made: no foreign program has replaced a record before it.

        The first record that it puts in place is the point of no return: where one of several is there, so are all
        going to be, and what a foreign program wrote into another counts as written afterwards, and stays.
        """
        if act.is_done:
            return True
        records = decisive(act, self._layout)
        found = [self._digest_at(record.path) for record in records]
        if all(seen in {None, record.old} for seen, record in zip(found, records, strict=True)):
            return not self._is_anothers(act) and (is_torn or not self._has_lost_its_place(act))
        # What comes after the records is there only if they were.
        return any(self._is_made(write, is_torn=is_torn) for write in act.writes)

    def _is_made(self, write: Write, *, is_torn: bool) -> bool:
        match write:
            case Append(path) if not path.endswith("/messages.jsonl"):
                return self._is_there(write)
            case Put(path, data, old) if digest(data) != old:
                found = self._disk.read(path) if self._disk.exists(path) else None
                return found is not None and (found == data or (is_torn and is_torn_form(found, data)))
            case Make(path):
                return self._disk.exists(path)
        return False

    def _is_anothers(self, act: Told) -> bool:
        """Return whether a thread that an act was to make is another's: a key is put in place before its thread."""
        return isinstance(act.writes[0], Put) and any(
            os.path.dirname(path) == self._layout.root and self._disk.exists(path) for path in act.made
        )

    def _has_lost_its_place(self, act: Told) -> bool:
        """Return whether the messages that a run was to be made with cannot lie where it is going to look for them.

        A foreign program appended first. Nobody was told of the act, unless it is a power cut that has taken it.
        """
        return any(not self._disk.exists(path) for path in act.made) and any(
            isinstance(write, Append) and write.path.endswith("/messages.jsonl") and self._is_anothers_place(write)
            for write in act.writes
        )

    def _is_anothers_place(self, append: Append) -> bool:
        try:
            with LogFile(append.path) as file:
                return not is_torn_form(file.read_at(append.offset, len(append.data)), append.data)
        except FileNotFoundError:
            return False

    def _digest_at(self, path: str) -> str | None:
        try:
            return digest(self._disk.read(path))
        except FileNotFoundError:
            return None

    def _take_back(self, act: Told, *, is_torn: bool) -> None:
        for write in act.writes:
            if isinstance(write, Append) and write.path.endswith("/messages.jsonl"):
                place: int | None = write.offset
                if act.is_retracted:
                    self._append(write)  # for its place is told of as retracted, and must not be another's
                else:
                    place = self._place_of(write, is_torn=is_torn)
                if place is None:
                    continue
                edits = self._layout.edits(act.thread_id)
                lines = retractions(place, write.data)
                if not self._disk.exists(edits) or lines not in self._disk.read(edits):
                    log.append_lines(self._disk, edits, lines, self._layout.damaged)

    def _make(self, path: str, files: dict[str, bytes]) -> None:
        self._disk.make_directories(os.path.dirname(path))
        with suppress(FileExistsError):
            self._disk.create_directory(path, files)
            return
        for name, data in files.items():
            found = self._disk.read(f"{path}/{name}") if self._disk.exists(f"{path}/{name}") else b""
            if found != data and is_torn_form(found, data):
                self._disk.replace(f"{path}/{name}", data)
            elif name.endswith(".jsonl") and is_torn_form(found[: len(data)], data):
                # A log, that had grown since, and of which the rest was kept.
                self._disk.write_at(f"{path}/{name}", 0, data)

    def _put(self, put: Put, older: dict[str, set[str]], *, is_torn: bool) -> None:
        try:
            held = Held.read(put.path)
        except FileNotFoundError:
            self._disk.make_directories(os.path.dirname(put.path))
            self._disk.make_file(put.path, put.data)
        else:
            with held, suppress(ForeignWriteError):
                if held.data != put.data and self._is_older(held.data, put, older, is_torn=is_torn):
                    self._disk.rewrite(held, put.data).clear()
        known = older.setdefault(put.path, set())
        known.add(digest(put.data))
        if put.old is not None:
            known.add(put.old)

    @staticmethod
    def _is_older(found: bytes, put: Put, older: dict[str, set[str]], *, is_torn: bool) -> bool:
        seen = digest(found)
        return seen == put.old or seen in older.get(put.path, ()) or (is_torn and is_torn_form(found, put.data))

    def _append(self, append: Append) -> None:
        path, offset, data = append.path, append.offset, append.data
        self._disk.make_directories(os.path.dirname(path))
        with LogFile(path, writable=True) as file:
            gap = offset - file.size
            found = file.read_at(offset, len(data))
            after = b"" if found == data else file.read_at(offset, file.size - offset)
        if found == data:
            return
        if gap > 0:
            # What stood here was never synced, and nobody was told that it was. Its place stays: others are known.
            self._disk.write_at(path, offset - gap, b" " * (gap - 1) + b"\n")
        if is_torn_form(found, data):
            self._disk.write_at(path, offset, data)
        elif data not in after:
            log.append_lines(self._disk, path, data, self._layout.damaged)  # behind what a foreign program appended

    def _place_of(self, append: Append, *, is_torn: bool) -> int | None:
        """Return where lines lie, or none; after a power cut the same ones further on may be those of a later act."""
        if is_torn:
            return append.offset if self._is_there(append) else None
        try:
            with LogFile(append.path) as file:
                found = file.read_at(append.offset, file.size - append.offset).find(append.data)
        except FileNotFoundError:
            return None
        return None if found < 0 else append.offset + found

    def _is_there(self, append: Append) -> bool:
        try:
            with LogFile(append.path) as file:
                return file.read_at(append.offset, len(append.data)) == append.data
        except FileNotFoundError:
            return False


def decisive(act: Told, layout: Layout) -> list[Put | Unchanged]:
    """Return what an act does with the records by which it stands or falls."""
    return [write for write in act.writes if isinstance(write, Put | Unchanged) and not layout.is_of_step(write.path)]


def retractions(offset: int, lines: bytes) -> bytes:
    """Return the edits that take back messages, by their places: others may have the same ids."""
    edits: list[bytes] = []
    for line in lines.splitlines(keepends=True):
        edits.append(codec.dump_line({"object": "thread.message.retracted", "offset": offset}))
        offset += len(line)
    return b"".join(edits)


def is_torn_form(found: bytes, data: bytes) -> bool:
    """Return whether ``found`` is what a power cut can leave of ``data``: a part of it, with holes."""
    return len(found) <= len(data) and all(
        byte in {0, whole} for byte, whole in zip(found, data[: len(found)], strict=True)
    )
