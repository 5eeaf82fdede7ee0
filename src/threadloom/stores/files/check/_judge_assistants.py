"""Judges what lies in no thread and is data: assistants, and the keys under which they and threads were created."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import attrs

from threadloom.models import Assistant
from threadloom.stores.files._lock import Lock
from threadloom.stores.files.check._judge_keys import judge_keys
from threadloom.stores.files.check._look import Finding, Reader, Tools
from threadloom.stores.files.check._mend import Mend

__all__ = ["found_of_assistants"]


def found_of_assistants(tools: Tools) -> Iterator[Finding]:
    """Yield what is wrong. It is mended under the lock of its directory."""
    layout, disk = tools.layout, tools.disk
    reader = Reader(tools)
    for name in sorted(disk.names(layout.assistants)):
        if name.endswith(".json"):
            assistant_id = name.removesuffix(".json")
            path = f"{layout.assistants}/{name}"
            reader.record(path, Assistant, lambda assistant: assistant.id == assistant_id)  # noqa: B023 - called at once
    shards = [f"{layout.thread_keys}/{name}" for name in disk.subdirectories(layout.thread_keys)]
    for directory in (layout.assistant_keys, *sorted(shards)):
        for _ in judge_keys(reader, tools, directory):
            pass
    for finding in reader.found:
        assert finding.mend is not None  # noqa: S101 - damage is set aside
        # The keys of assistants go by the lock of these.
        of_assistants = os.path.dirname(finding.path) in {layout.assistants, layout.assistant_keys}
        place = layout.assistants if of_assistants else os.path.dirname(finding.path)
        yield attrs.evolve(finding, mend=attrs.evolve(finding.mend, do=partial(_locked, place, finding.mend)))


def _locked(place: str, mend: Mend) -> None:
    with Lock(place):
        mend.do()
