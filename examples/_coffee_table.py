"""What both forms of the coffee bar show a person, and the directory that they make for it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from _coffee_recording import Dialog, Findings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from threadloom import RunStatus


def progress_bar(dialogs: dict[str, Dialog], console: Console) -> tuple[Progress, TaskID]:
    """Return a bar that is full when all runs are settled."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("runs  {task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console)
    return progress, progress.add_task("", total=number_of_runs(dialogs))


def number_of_runs(dialogs: dict[str, Dialog]) -> int:
    """Return how many runs the conversations come to."""
    return sum(len(dialog.turns) for dialog in dialogs.values())


def show(
    findings: Findings,
    dialogs: dict[str, Dialog],
    console: Console,
    clocked: Iterable[tuple[str, str]] = (),
    definitions: str = "",
) -> None:
    """Print what was found, how long it took to come there, and what of it is different."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("conversations", f"{findings.counts['conversations']} of {len(dialogs)}")
    table.add_row("runs", f"{findings.counts['runs']} of {number_of_runs(dialogs)}")
    for status in RunStatus:
        if findings.counts[status]:
            table.add_row(f"  {status}", str(findings.counts[status]))
    table.add_row("messages", str(findings.counts["messages"]))
    table.add_row("steps", str(findings.counts["steps"]))
    for row in clocked:
        table.add_row(*row)
    table.add_row("differences from the recording", str(len(findings.differences)))
    console.print(table)
    if definitions:
        print(definitions)
    for difference in findings.differences[:10]:
        print(f"DIFFERENT {difference}")
    if len(findings.differences) > 10:
        print(f"... and {len(findings.differences) - 10} more")


def spread(durations_ns: Iterable[int]) -> str:
    """Return the shortest durations that 50 % and 99 % of all do not exceed."""
    ordered = sorted(durations_ns)
    if not ordered:
        return "none"
    p50, p99 = (ordered[math.ceil(len(ordered) * share) - 1] / 1e6 for share in (0.50, 0.99))
    return f"{p50:.1f} / {p99:.1f} ms"


def show_files(root: Path, run_id: str) -> None:
    """Say where the files lie, and how to look at one conversation."""
    print(f"\nThe files are in {root}.")
    for run in islice(root.glob(f"*/runs/{run_id}"), 1):
        thread = run.parent.parent
        print("To look at one conversation:")
        print(f"    ls -R {shlex.quote(str(thread))}")
        print(f"    cat {shlex.quote(str(thread / 'messages.jsonl'))}")
        print(f"    cat {shlex.quote(str(run / 'status.json'))}")
        print(f"    tail -f {shlex.quote(str(run / 'events.jsonl'))}")


def new_directory(parent: Path) -> Path:
    """Make the next of the numbered directories below ``parent``: what earlier runs left is not touched."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / str(number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / str(number)
