"""A disk that fails: at one change, or at every change from one on, until it is mended."""

import errno
import os
from typing import Any, Literal

from attrs import evolve

from tests.support.disk_calls import SYNCS, WRITES, Call, Through

Fault = Literal["full", "broken", "short", "torn"]


# A "short" write says how much it wrote; a "torn" one has written a part, and says that it has failed.


def faults_of(name: str) -> tuple[Fault, ...]:
    """Return what can go wrong at a call, so that what the system really does is tried and no more."""
    if name in WRITES:
        return ("full", "short")
    return ("broken",) if name in SYNCS else ("full", "broken")


class FaultyDisk:
    """Makes every call, but those that are to fail; counts the changes since it was last told what to do."""

    def __init__(self, through: Through = lambda call: call()) -> None:
        self.changes: list[str] = []
        self._through = through
        self._at: int | None = None
        self._fault: Fault = "full"
        self._lasts = False
        self.only: frozenset[str] | None = None

    def fail_at(self, at: int, fault: Fault, *, lasts: bool = False, only: frozenset[str] | None = None) -> None:
        """Let the change number ``at`` from now, the first being 0, fail; and all after it if that ``lasts``.

        A disk that is ``full`` for good still removes and cuts. ``only`` leaves all other calls alone, and uncounted.
        """
        self.mend()
        self._at, self._fault, self._lasts, self.only = at, fault, lasts, only

    def mend(self) -> None:
        """Let nothing fail any more, and count from here."""
        self._at, self.only, self.changes = None, None, []

    def __call__(self, call: Call) -> Any:
        if not call.is_change or (self.only is not None and call.name not in self.only):
            return self._through(call)
        number = len(self.changes)
        self.changes.append(call.name)
        if self._at is None or number < self._at or (number > self._at and not self._lasts):
            return self._through(call)
        if self._fault in {"short", "torn"} and call.name not in WRITES:
            return self._through(call)
        if self._fault in {"short", "torn"}:
            fd, data, *rest = call.args
            written = self._through(evolve(call, args=(fd, data[: max(1, len(data) // 2)], *rest)))
            if self._fault == "short":
                return written
            raise _error(errno.ENOSPC, call)
        if self._fault == "full":
            if self._lasts and call.name in {"unlink", "rmdir", "ftruncate", *SYNCS}:
                return self._through(call)
            raise _error(errno.ENOSPC, call)
        if call.name in SYNCS:
            failed = getattr(self._through, "sync_failed", None)
            if failed is not None:
                failed(call)
        raise _error(errno.EIO, call)


def _error(number: int, call: Call) -> OSError:
    """Return the error as the system raises it: it names a path where the call was given one."""
    path = call.args[0]
    if call.name == "renameat2" or isinstance(path, int):
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), os.fspath(path))
