"""The check of a file store: every thread is compared with the logs of its runs, then ``.threadloom`` is looked at.

A thread is first looked at without its lock, in slices, so that others go on. Only what seems to be wrong is looked at
again under the lock, and repaired there. ``.threadloom`` has no lock: a problem counts if it is there before and after.
"""

# ruff: noqa: SLF001 - a part of the backend, in a package of its own

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from threadloom.check_report import CheckReport, Problem, ProblemKind
from threadloom.errors import StoreBusyError, StoreError, StoreIOError
from threadloom.stores.files.check.finding import Finding, Look
from threadloom.stores.files.check.own_check import look_at_own
from threadloom.stores.files.check.repairs import Repairs
from threadloom.stores.files.check.thread_check import ThreadCheck
from threadloom.stores.files.views import LockedView

if TYPE_CHECKING:
    from threadloom.stores.files.file_backend import FileBackend

__all__ = ["check_store"]

_MOST_ROUNDS: Final = 20  # each repairs one stage; more are needed only where others damage the files meanwhile
_OVER: Final = object()


async def check_store(backend: FileBackend, *, fix: bool, progress: Callable[[int, int], object]) -> CheckReport:
    """Look at everything; with ``fix`` repair what can be repaired without guessing."""
    return await _Check(backend, fix=fix).run(progress)


class _Check:
    def __init__(self, backend: FileBackend, *, fix: bool) -> None:
        self._backend = backend
        self._fix = fix
        self._disk = backend._disk
        self._transactions = backend._transactions
        self._is_dead = backend._peers.is_dead
        self._has_repaired = False

    async def run(self, progress: Callable[[int, int], object]) -> CheckReport:
        own = partial(look_at_own, self._disk, self._is_dead)
        before = {finding.path for finding in await self._read(own)}
        thread_ids, problems = await self._read(self._list_threads)
        for done, thread_id in enumerate(thread_ids):
            progress(done, len(thread_ids))
            problems += await self._check_thread(thread_id)
        for finding in await self._read(own):
            if finding.path in before:
                problems.append(await self._repair_own(finding))
        if self._has_repaired:
            await self._write(self._disk.sync_all)
            self._backend._queue.look_at_all()
            self._backend._notifier.notify_all()
        progress(len(thread_ids), len(thread_ids))
        return CheckReport(tuple(problems), len(thread_ids))

    async def _read(self, function: Callable[[], Any]) -> Any:
        return await self._backend._read("check the store", function)

    async def _write(self, function: Callable[[], Any], key: str | None = None) -> Any:
        return await self._backend._write("check the store", function, key=key)

    def _list_threads(self) -> tuple[list[str], list[Problem]]:
        look = Look(self._disk)
        thread_ids = [thread_id for thread_id in look.directories(".") if not self._backend._is_empty(thread_id)]
        return thread_ids, [finding.problem() for finding in look.found]

    # Threads

    def _thread_check(self, thread_id: str) -> ThreadCheck:
        return ThreadCheck(self._disk, self._is_dead, self._backend._boot, thread_id)

    async def _check_thread(self, thread_id: str) -> list[Problem]:
        check = self._thread_check(thread_id)
        slices = check.look()
        try:
            while await self._read(partial(_goes_on, slices)):
                pass
            return await self._check_locked(thread_id) if check.found else []
        except (StoreBusyError, StoreIOError) as error:
            reason = f"{str(error).rstrip('.')}. Somebody has to look at it."
            return [Problem(ProblemKind.NOT_CHECKED, thread_id, reason)]

    async def _check_locked(self, thread_id: str) -> list[Problem]:
        """Look again under the lock, and repair one stage after the other, each by what the last one has left."""
        repaired: list[Finding] = []
        refused: dict[Finding, Exception] = {}
        work = partial(self._transactions.with_thread, thread_id, partial(self._round, repaired, refused))
        left: list[Finding] | None = []
        for _ in range(_MOST_ROUNDS):
            count = len(repaired) + len(refused)
            left = await self._write(work, key=thread_id)
            if left is None or len(repaired) + len(refused) == count:
                break
        left = left or []  # None where all of the thread was moved away, or it was deleted
        fixed = [finding.problem(is_fixed=True) for finding in repaired if finding not in left]
        return fixed + [finding.problem(error=refused.get(finding)) for finding in left]

    def _round(self, repaired: list[Finding], refused: dict[Finding, Exception], view: LockedView) -> list[Finding]:
        """Return the problems of a thread, and repair the first of them, with ``fix``."""
        check = self._thread_check(view.thread_id)
        for _ in check.look():
            pass
        # What was repaired and is found again is left.
        todo = [(item, item.repair) for item in check.found if item not in repaired and item not in refused]
        stage = min((repair.stage for _, repair in todo if repair is not None), default=None)
        if not self._fix or stage is None:
            return check.found
        self._transactions.empty_journal()  # a replay after a power failure must not undo what is repaired
        view.files.begin_write()
        self._has_repaired = True
        repairs = Repairs(self._disk, self._transactions, view, self._backend._max_attempts)
        for item, repair in todo:
            if repair is None or repair.stage is not stage:
                continue
            try:
                repair.do(repairs)
            except (StoreError, OSError) as error:
                refused[item] = error
            else:
                repaired.append(item)
        return check.found

    # What is no thread

    async def _repair_own(self, finding: Finding) -> Problem:
        if not self._fix or finding.repair is None:
            return finding.problem()
        self._has_repaired = True
        try:
            await self._write(partial(finding.repair.do, None))
        except StoreError as error:
            return finding.problem(error=error)
        return finding.problem(is_fixed=True)


def _goes_on(slices: Generator[None, None, None]) -> bool:
    return next(slices, _OVER) is not _OVER
