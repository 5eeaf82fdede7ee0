"""Judges what is no thread: what lies in ``.threadloom``, and belongs to no lock."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from threadloom.ids import is_id
from threadloom.report import ProblemKind
from threadloom.stores.files._lock import Lock, LockedElsewhereError
from threadloom.stores.files._redo import Redo
from threadloom.stores.files.check._judge_assistants import found_of_assistants
from threadloom.stores.files.check._look import Finding, Tools
from threadloom.stores.files.check._mend import Mend, Stage

__all__ = ["Own"]

_TEMPORARY: Final = re.compile(r"([0-9a-f]+)-[0-9]+")


class Own:
    """Looks twice, before and after the threads: what was there at one of them only was somebody's at that moment."""

    def __init__(self, tools: Tools, redo: Redo, form: bytes) -> None:
        self._tools = tools
        self._layout = tools.layout
        self._disk = tools.disk
        self._turns = tools.turns
        self._format = form
        self._redo = redo
        self._first: set[str] = set()

    def begin(self) -> None:
        """Look for the first time."""
        self._first = {finding.path for finding in self._look()}

    def found(self) -> list[Finding]:
        """Look for the second time, and return what is wrong."""
        return [finding for finding in self._look() if finding.path in self._first]

    def _look(self) -> list[Finding]:
        return [
            *self._judge_format(),
            *found_of_assistants(self._tools),
            *self._strays(),
            *self._temporaries(),
            *self._trash(),
            *self._journals(),
        ]

    def _judge_format(self) -> list[Finding]:
        path = self._layout.format
        if not self._disk.exists(path):
            mend = Mend(Stage.DAMAGE, "makes it", partial(self._disk.make_file, path, self._format))
            return [Finding(ProblemKind.STRANGE_FORMAT, path, "it is not there", mend)]
        found = self._disk.read(path)
        if found == self._format:
            return []
        wrong = f"it names format {found[:20]!r}, and not {self._format!r}"
        return [Finding(ProblemKind.STRANGE_FORMAT, path, wrong, None)]

    def _strays(self) -> list[Finding]:
        """Return the places in the queue of threads that are gone."""
        paths = {name: f"{self._layout.queue}/{name}" for name in self._disk.names(self._layout.queue)}
        for name in self._disk.names(self._layout.turns):
            if name.endswith(".json"):
                paths.setdefault(name.removesuffix(".json"), f"{self._layout.turns}/{name}")
        return [
            Finding(
                ProblemKind.WRONG_INDEX,
                path,
                "its thread is gone",
                Mend(Stage.INDEX, "removes it", partial(self._turns.forget, name)),
            )
            for name, path in sorted(paths.items())
            if not (is_id(name) and self._disk.exists(self._layout.thread(name)))
        ]

    def _temporaries(self) -> list[Finding]:
        found: list[Finding] = []
        names = sorted(self._disk.names(self._layout.temporary))
        living = self._redo.living()  # after the names: who was writing then, and lives, is among them
        for name in names:
            path = f"{self._layout.temporary}/{name}"
            ours = _TEMPORARY.fullmatch(name)  # names that are not ours are not judged
            if ours is not None and ours[1] not in living and self._disk.exists(path):
                mend = Mend(Stage.DAMAGE, "removes it", partial(self._disk.remove_tree, path))
                found.append(Finding(ProblemKind.LEFT_OVER, path, "who was writing it is gone", mend))
        return found

    def _trash(self) -> list[Finding]:
        found: list[Finding] = []
        for name in sorted(self._disk.subdirectories(self._layout.trash)):
            path = f"{self._layout.trash}/{name}"
            try:
                with Lock(path):
                    mend = Mend(Stage.DAMAGE, "goes on with deleting it", partial(self._empty, path))
                    wrong = "the thread was deleted, and not all of it is gone"
                    found.append(Finding(ProblemKind.LEFT_OVER, path, wrong, mend))
            except (LockedElsewhereError, FileNotFoundError):
                continue  # somebody is at it
        return found

    def _empty(self, path: str) -> None:
        with Lock(path):
            self._disk.remove_tree(path)

    def _journals(self) -> list[Finding]:
        """Return the journals of the dead that could not be carried out so far."""
        wrong = "its process is gone, and not all that it tells of is in the files"
        mend = Mend(Stage.DAMAGE, "carries it out", self._redo.everywhere)
        return [Finding(ProblemKind.DEAD_JOURNAL, path, wrong, mend) for path in self._redo.dead()]
