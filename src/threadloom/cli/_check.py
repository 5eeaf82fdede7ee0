"""``threadloom check``: checks a store and prints the problems."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from threadloom.check_report import CheckReport
from threadloom.errors import StoreError
from threadloom.stores.files import FileStore

__all__ = ["check"]

_CLEAN, _PROBLEMS_LEFT, _NO_STORE = range(3)


async def check(root: Path, *, fix: bool) -> int:
    """Check a store, print its problems, and return the exit status.

    Args:
        root: Directory of the store.

        fix: Whether to repair problems.
    """
    # Check before opening, which would turn any directory into a store.
    if not (root / ".threadloom").is_dir():
        print(f"threadloom: {root} is not a store: it contains no .threadloom directory.", file=sys.stderr)
        return _NO_STORE
    try:
        async with FileStore(root) as store:
            with _progress() as progress:
                report = await store.check(fix=fix, progress=progress)
    except StoreError as error:
        print(f"threadloom: {error}", file=sys.stderr)
        return _PROBLEMS_LEFT
    for problem in report.problems:
        state = "fixed" if problem.is_fixed else problem.kind
        print(f"{root / problem.where}: {problem.description} [{state}]")
    print(_closing_line(report))
    return _CLEAN if report.is_clean else _PROBLEMS_LEFT


def _closing_line(report: CheckReport) -> str:
    threads = _counted(report.thread_count, "thread")
    if not report.problems:
        return f"No problems in {threads}."
    fixed = len(report.problems) - len(report.left)
    return f"{_counted(len(report.problems), 'problem')} in {threads}: {fixed} fixed, {len(report.left)} left."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object] | None]:
    """Yield a function that reports progress on a terminal, or None if there is no terminal or no rich."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - part of an extra, and slow to import
        from rich.progress import Progress  # noqa: PLC0415 - the same
    except ImportError:
        print("For a progress bar: pip install 'threadloom[cli]'", file=sys.stderr)
        yield None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("threads", total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield tell
