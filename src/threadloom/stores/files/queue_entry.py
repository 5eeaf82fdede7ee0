"""Which runs of a thread are active, in a file of its own: an index beside the runs, which are the truth.

``.threadloom/queue/<thread_id>`` is there while the thread has active runs; then it moves to ``.threadloom/idle/``, so
that a worker which starts reads the names of busy threads only. It names every active run, and may name runs that are
terminal, or were never made: each is looked at before it counts. It is written in place and never synced, so it says in
which boot of the machine it was written, and counts in no other.
"""

from __future__ import annotations

import os
from typing import Final

import orjson
from attrs import define, field

from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk, naming

__all__ = ["Turn", "announce", "forget", "move_to_idle", "read_first_sequence", "read_turn", "write_turn"]

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@define
class Turn:
    """The active runs of a thread in their order, as (sequence, run id), and the highest sequence that was given."""

    last_sequence: int = 0
    active: list[tuple[int, str]] = field(factory=list)

    def name(self, sequence: int, run_id: str) -> None:
        """Name a run at its place, unless it is named."""
        if all(other_id != run_id for _, other_id in self.active):
            self.active.insert(sum(1 for other, _ in self.active if other <= sequence), (sequence, run_id))
        self.last_sequence = max(self.last_sequence, sequence)


def read_turn(disk: Disk, thread_id: str, boot: str) -> Turn | None:
    """Return what the index says of a thread, None where it says nothing that counts."""
    for path, is_active in ((layout.queue_entry(thread_id), True), (layout.idle_entry(thread_id), False)):
        try:
            record = orjson.loads(disk.read(path))
            if record["boot"] != boot or not boot:
                return None
            active = [(int(sequence), str(run_id)) for sequence, run_id in record["active"]] if is_active else []
            return Turn(int(record["sequence"]), active)
        except FileNotFoundError:
            continue
        except (OSError, KeyError, TypeError, ValueError):
            return None  # torn, as a crash may leave it
    return None


def read_first_sequence(disk: Disk, thread_id: str) -> int | None:
    """Return the sequence of the first active run that the index names, in any boot; None where it has no entry."""
    try:
        return int(orjson.loads(disk.read(layout.queue_entry(thread_id)))["active"][0][0])
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001 - torn, or no entry of ours: the thread itself is looked at
        return 0


def write_turn(disk: Disk, thread_id: str, turn: Turn, boot: str) -> int:
    """Write the entry of a thread with active runs; return a descriptor, whose closing notifies other processes."""
    path = layout.queue_entry(thread_id)
    fd, _ = disk.open(path, _WRITE)
    try:
        record = {"boot": boot, "sequence": turn.last_sequence, "active": turn.active}
        with naming(disk.where(path)):
            os.write(fd, orjson.dumps(record))
    except BaseException:
        os.close(fd)
        raise
    return fd


def announce(disk: Disk, thread_id: str) -> int:
    """Return a descriptor of a thread's entry, whose closing lets the workers of other processes look at the thread."""
    return disk.open(layout.queue_entry(thread_id), os.O_WRONLY | os.O_CREAT)[0]


def move_to_idle(disk: Disk, thread_id: str) -> None:
    """Note that a thread has no active run any more."""
    try:
        os.rename(disk.where(layout.queue_entry(thread_id)), disk.where(layout.idle_entry(thread_id)))
    except FileNotFoundError:
        return


def forget(disk: Disk, thread_id: str) -> None:
    """Remove what the index says of a thread that was deleted."""
    disk.remove(layout.queue_entry(thread_id))
    disk.remove(layout.idle_entry(thread_id))
