"""The check of a store: every thread, then what is no thread, and what a fix makes of it.

A thread is looked at without its lock first, a piece at a time, so that others go on. Only where something seems to be
wrong is it looked at once more under its lock, in the writing thread, and mended there. What is no thread has no lock:
it is wrong only if it was so before the threads were looked at, and still is afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from threadloom.errors import NotFoundError, SerializationError, StoreBusyError, StoreClosedError, StoreError
from threadloom.report import CheckReport, Problem, ProblemKind
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._life import Peers
from threadloom.stores.files._lock import Lock
from threadloom.stores.files._parts import FORMAT, Parts
from threadloom.stores.files._writer import Work, as_work
from threadloom.stores.files.check._judge import ThreadJudge
from threadloom.stores.files.check._look import Finding, Pause, Tools
from threadloom.stores.files.check._mend import Mender
from threadloom.stores.files.check._own import Own

__all__ = ["Check"]

_MOST_ROUNDS: Final = 20  # each mends one stage; more are needed only where others damage the files meanwhile


class Check:
    """One check of a store that is open."""

    def __init__(
        self, layout: Layout, parts: Parts, *, max_attempts: int, now_ns: Callable[[], int], fix: bool
    ) -> None:
        self._layout = layout
        self._parts = parts
        self._fix = fix
        self._mender = Mender(layout, parts.disk, parts.runs, max_attempts=max_attempts, now_ns=now_ns)
        # Only the dead are gone here: to call a living one hung takes more than one look.
        is_gone = Peers(layout.lives, 0).is_gone
        self._tools = Tools(layout, parts.disk, parts.runs.turns, self._mender, is_gone)
        self._own = Own(self._tools, parts.redo, FORMAT)
        self.changed: list[tuple[str, list[str]]] = []
        """The threads in which something was mended, each with its runs."""

    async def run(self, progress: Callable[[int, int], object] | None) -> CheckReport:
        """Look at everything."""
        problems: list[Problem] = []
        thread_ids = await self._parts.reader.run(self._begin)
        for done, thread_id in enumerate(thread_ids):
            if progress is not None:
                progress(done, len(thread_ids))
            problems += await self._check_thread(thread_id)
        for finding in await self._parts.reader.run(self._own.found):
            problems.append(await self._mend_own(finding))
        if progress is not None:
            progress(len(thread_ids), len(thread_ids))
        return CheckReport(tuple(problems), len(thread_ids))

    async def _check_thread(self, thread_id: str) -> list[Problem]:
        judge = self._judge(thread_id)
        look = judge.look()
        try:
            while await self._parts.reader.run(_goes_on, look):
                pass
            if not judge.found:
                return []
            return await self._parts.writer.run(self._judge_locked, thread_id, key=thread_id)
        except (NotFoundError, FileNotFoundError):
            return []  # deleted since the threads were listed
        except (StoreBusyError, OSError) as error:
            return [self._not_checked(self._layout.thread(thread_id), error)]
        finally:
            # By the thread that reads, for the look may have a file open; nobody has to wait for it.
            with suppress(StoreClosedError):
                self._parts.reader.start(look.close)

    async def _mend_own(self, finding: Finding) -> Problem:
        if not self._fix or finding.mend is None:
            return self._problem(finding)
        try:
            await self._parts.writer.run(finding.mend.do)
        except (StoreBusyError, OSError) as error:
            return self._not_checked(finding.path, error)
        return self._problem(finding, is_fixed=True)

    # In the store's threads

    def _begin(self) -> list[str]:
        self._own.begin()
        return sorted(self._parts.threads.ids())

    def _judge(self, thread_id: str) -> ThreadJudge:
        return ThreadJudge(self._tools, thread_id)

    def _judge_locked(self, thread_id: str) -> Work[list[Problem]]:
        """Judge a thread under its lock, and mend one stage after the other, each by what the last one has left."""
        fixed: list[Problem] = []
        refused: dict[str, Exception] = {}
        with self._locked(thread_id):
            for _ in range(_MOST_ROUNDS):
                judge = self._judge(thread_id)
                for _ in judge.look():
                    pass
                mended = (yield from self._mend(judge.found, refused)) if self._fix else []
                fixed += [self._problem(finding, is_fixed=True) for finding in mended]
                if not mended:
                    break
                if not self._parts.disk.exists(self._layout.thread(thread_id)):
                    self._parts.runs.turns.forget(thread_id)
                    return fixed  # all of it was moved aside
        if fixed:
            self._parts.committer.make_durable()
            run_ids = self._parts.disk.subdirectories(self._layout.runs(thread_id))
            self.changed.append((thread_id, run_ids))
        return fixed + [self._problem(finding, error=refused.get(finding.path)) for finding in judge.found]

    @contextmanager
    def _locked(self, thread_id: str) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(self._parts.threads.locked(thread_id))
            except SerializationError:  # there is no record in it, which is for us to judge
                stack.enter_context(Lock(self._layout.thread(thread_id)))
            yield

    def _mend(self, found: list[Finding], refused: dict[str, Exception]) -> Work[list[Finding]]:
        """Mend what comes first of what is found; return what was mended, and note what did not let itself be."""
        stage = min((finding.mend.stage for finding in found if finding.mend is not None), default=None)
        now = [finding for finding in found if finding.mend is not None and finding.mend.stage is stage]
        mended: list[Finding] = []
        if now:
            # What is mended must not be found other than a journal has it, and be taken for lost.
            self._parts.committer.make_durable()
        for path in {finding.path: None for finding in now}:
            group = [finding for finding in now if finding.path == path]
            mends = [finding.mend for finding in group if finding.mend is not None]
            try:
                self._mender.blank(mend.span for mend in mends if mend.span is not None)
                for mend in mends:
                    if mend.span is None:
                        yield from as_work(mend.do)
            except (StoreError, OSError) as error:
                refused[path] = error
                continue
            mended += group
        return mended

    # What is said of it

    def _problem(self, finding: Finding, *, is_fixed: bool = False, error: Exception | None = None) -> Problem:
        remedy = "it has to be looked at"
        if error is not None:
            remedy = f"it could not be mended: {error}"
        elif finding.mend is not None:
            remedy = f"{'the' if is_fixed else 'a'} fix {finding.mend.remedy}"
        return Problem(finding.kind, self._relative(finding.path), f"{finding.wrong}; {remedy}", is_fixed)

    def _not_checked(self, path: str, error: Exception) -> Problem:
        if isinstance(error, OSError) and error.filename is not None:
            path = str(error.filename)
        wrong = error.strerror if isinstance(error, OSError) and error.strerror else str(error).rstrip(".")
        return Problem(ProblemKind.NOT_CHECKED, self._relative(path), f"{wrong}; it has to be looked at")

    def _relative(self, path: str) -> str:
        return path.removeprefix(f"{self._layout.root}/")


def _goes_on(look: Pause) -> bool:
    return next(look, _OVER) is not _OVER


_OVER: Final = object()
