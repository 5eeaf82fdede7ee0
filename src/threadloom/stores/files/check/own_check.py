"""Looks at ``.threadloom``: the format, assistants, keys, queue entries of vanished threads, and left-overs."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Final

from attrs import evolve

from threadloom import codec
from threadloom.check_report import ProblemKind
from threadloom.errors import SerializationError
from threadloom.ids import is_id
from threadloom.models import Assistant, Message, Run, Thread
from threadloom.stores.files import layout, process_lock
from threadloom.stores.files.boot import FORMAT
from threadloom.stores.files.check.finding import Finding, Look, Repair, Stage
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.liveness import owners_of_temporaries
from threadloom.stores.files.queue_entry import forget
from threadloom.stores.files.thread_files import LockedElsewhereError, lock_directory

__all__ = ["check_keys", "look_at_own"]

_MODELS: Final[dict[object, type]] = {
    "assistant": Assistant,
    "thread": Thread,
    "thread.message": Message,
    "thread.run": Run,
}
_KEY_REMEDY: Final = "moves it to .threadloom/damaged; then something may be created again under its key"


def look_at_own(disk: Disk, is_dead: Callable[[str], bool]) -> list[Finding]:
    """Return the problems. What another process is just doing may be among them: only those that stay count."""
    look = Look(disk)
    _look_at_assistants(look)
    found = [_under_lock(disk, finding) for finding in look.found]
    look = Look(disk)
    _look_at_format(disk, look)
    _look_at_vanished(disk, look)
    _look_at_left_overs(disk, look, is_dead)
    return found + look.found


def _look_at_format(disk: Disk, look: Look) -> None:
    data = look.read(layout.FORMAT)
    if data is None and not look.found:
        repair = Repair(Stage.DAMAGE, "writes it", lambda _: disk.replace(layout.FORMAT, FORMAT))
        look.add(ProblemKind.STRANGE_FORMAT, layout.FORMAT, "It is not there", repair)
    elif data is not None and data != FORMAT:
        wrong = f"It says {data[:20]!r}, and this version of threadloom expects {FORMAT!r}"
        look.add(ProblemKind.STRANGE_FORMAT, layout.FORMAT, wrong)


def _look_at_assistants(look: Look) -> None:
    for name in look.names(layout.ASSISTANTS):
        id_ = name.removesuffix(".json")
        if id_ != name and is_id(id_):
            look.record(f"{layout.ASSISTANTS}/{name}", Assistant, lambda found: found.id == id_)  # noqa: B023 - called at once
    threads = f"{layout.OWN}/keys/threads"
    for directory in (f"{layout.OWN}/keys/assistants", *(f"{threads}/{name}" for name in look.directories(threads))):
        for _ in check_keys(look, directory):
            pass


def _under_lock(disk: Disk, finding: Finding) -> Finding:
    """Let damage be moved away under its writers' lock: that of assistants, or of a directory of keys."""
    if finding.repair is None:
        return finding
    directory = os.path.dirname(finding.path)
    lock = layout.ASSISTANTS if directory == f"{layout.OWN}/keys/assistants" else directory
    move_away = finding.repair.do

    def repair(repairs: object) -> None:
        fd = disk.open_directory(lock)
        try:
            if not lock_directory(fd):
                raise LockedElsewhereError
            move_away(repairs)
        finally:
            os.close(fd)

    return evolve(finding, repair=evolve(finding.repair, do=repair))


def _look_at_vanished(disk: Disk, look: Look) -> None:
    """Look for queue entries of threads that are gone."""
    names = {name: f"{directory}/{name}" for directory in (layout.IDLE, layout.QUEUE) for name in look.names(directory)}
    for name, path in sorted(names.items()):
        if is_id(name) and not disk.exists(name):
            repair = Repair(Stage.INDEX, "removes it", partial(_forget, disk, name))
            look.add(ProblemKind.WRONG_INDEX, path, "Its thread is gone", repair)


def _look_at_left_overs(disk: Disk, look: Look, is_dead: Callable[[str], bool]) -> None:
    """Look for what dead processes have left; names that no store has made are passed over."""
    for store_id, paths in sorted(owners_of_temporaries(disk).items()):
        if not is_id(store_id) or not is_dead(store_id):
            continue
        for path in sorted(paths):
            with suppress(FileNotFoundError):
                if process_lock.examine(disk.where(path), 0).holder is None:
                    repair = Repair(Stage.DAMAGE, "removes it", partial(_remove, disk, path))
                    look.add(ProblemKind.LEFT_OVER, path, "Its process died while it wrote or deleted this", repair)


def _forget(disk: Disk, thread_id: str, _: object) -> None:
    if not disk.exists(thread_id):
        forget(disk, thread_id)


def _remove(disk: Disk, path: str, _: object) -> None:
    disk.remove_tree(path)


def check_keys(look: Look, directory: str) -> Generator[None, None, None]:
    """Look at the idempotency keys in a directory: each says which key it is of, and what was created under it."""
    for name in look.names(directory):
        yield from look.pause()
        if not name.endswith(".json"):
            continue
        digest = name.removesuffix(".json").rpartition("-")[2]
        count = len(look.found)
        look.record(f"{directory}/{name}", _key, lambda key: layout.key_digest(key) == digest)  # noqa: B023 - called at once
        look.found[count:] = [
            finding if finding.repair is None else evolve(finding, repair=evolve(finding.repair, remedy=_KEY_REMEDY))
            for finding in look.found[count:]
        ]


def _key(data: bytes, where: str) -> str:
    match codec.load(data, where):
        case {"key": str(key), "fingerprint": str(), "created": {"object": str(kind), **created}} if kind in _MODELS:
            codec.from_record(created, _MODELS[kind], where)
            return key
    raise SerializationError(where, "it is no record of an idempotency key")
