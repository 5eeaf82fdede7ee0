"""Trees of any size for ``growth.py``, written as another program would write them (``docs/format.md``).

Through the store it would take as many minutes as it takes seconds here. What was written is read back through it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
from _script import WorkNotDoneError

from threadloom import FileStore, RunStatus

RUNS_TOGETHER = 10
_BEGUN = 1_700_000_000


@dataclass(frozen=True)
class Tree:
    """So many idle threads, of which every tenth has ten finished runs; one of as many messages, and one of runs."""

    root: Path
    count: int
    made: list[str] = field(default_factory=list)  # runs that the benchmark has put to the many

    def thread_id(self, number: int) -> str:
        """Return the id of an idle thread; they sort by their numbers."""
        return f"thread_{number:032x}"

    @property
    def messages_in(self) -> str:
        """The thread with all the messages; it is neither the newest nor the oldest."""
        return f"thread_{self.count // 2:032x}_messages"

    @property
    def runs_in(self) -> str:
        """The thread with all the runs."""
        return f"thread_{self.count // 2:032x}_runs"

    def message_id(self, number: int) -> str:
        """Return the id of a message."""
        return f"msg_{number:032x}"

    def run_id(self, number: int) -> str:
        """Return the id of a run."""
        return f"run_{number:032x}"

    def build(self) -> None:
        """Write it."""
        for number in range(self.count):
            runs = range(number, number + RUNS_TOGETHER) if number % RUNS_TOGETHER == 0 else ()
            self._build_thread(self.thread_id(number), runs)
        self._build_thread(self.runs_in, range(self.count))
        self._build_thread(self.messages_in, ())
        with (self.root / self.messages_in / "messages.jsonl").open("wb") as log:
            log.writelines(self._messages())

    def _build_thread(self, thread_id: str, runs: range | tuple[()]) -> None:
        directory = f"{self.root}/{thread_id}"
        os.mkdir(directory)
        meta = {"id": thread_id, "object": "thread", "created_at": _BEGUN, "metadata": {"customer": "0815"}}
        _write(f"{directory}/meta.json", meta)
        if runs:
            os.mkdir(f"{directory}/runs")
        for number in runs:
            self._build_run(thread_id, self.run_id(number), "completed", number)

    def _build_run(self, thread_id: str, run_id: str, status: str, number: int) -> None:
        directory = f"{self.root}/{thread_id}/runs/{run_id}"
        os.mkdir(directory)
        record = {
            "id": run_id,
            "object": "thread.run",
            "created_at": _BEGUN,
            "thread_id": thread_id,
            "status": status,
            "model": "any",
            "assistant_id": "",
            "instructions": "Be brief.",
            "metadata": {"customer": "0815"},
            "sequence": _sequence(number),
            "messages_before": 0,
        }
        if status == "completed":
            record |= {"attempt": 1, "started_at": _BEGUN + 1, "completed_at": _BEGUN + 2}
            record |= {"usage": {"prompt_tokens": 812, "completion_tokens": 64, "total_tokens": 876}}
        _write(f"{directory}/status.json", record)

    def queued_id(self, number: int) -> str:
        """Return the id of the run that is queued in a thread."""
        return f"run_{number:032x}_queued"

    def queue(self) -> None:
        """Queue a run in each thread, with what the index says of it."""
        own = f"{self.root}/.threadloom"
        boot = Path(own, "boot").read_text().strip()
        for number in range(self.count):
            thread_id, run_id = self.thread_id(number), self.queued_id(number)
            os.makedirs(f"{self.root}/{thread_id}/runs", exist_ok=True)
            self._build_run(thread_id, run_id, "queued", self.count + number)
            sequence = _sequence(self.count + number)
            Path(own, "turns", f"{thread_id}.json").unlink(missing_ok=True)
            _write(
                f"{own}/turns/{thread_id}.json", {"boot": boot, "sequence": sequence, "active": [[sequence, run_id]]}
            )
            os.close(os.open(f"{own}/queue/{thread_id}", os.O_WRONLY | os.O_CREAT, 0o666))

    def _messages(self) -> Iterator[bytes]:
        for number in range(self.count):
            text = {
                "value": f"Message {number}: " + "it is nineteen degrees, and there is no wind. " * 6,
                "annotations": [],
            }
            message = {
                "id": self.message_id(number),
                "object": "thread.message",
                "created_at": _BEGUN,
                "thread_id": self.messages_in,
                "role": "assistant" if number % 2 else "user",
                "content": [{"type": "text", "text": text}],
                "status": "completed",
                "completed_at": _BEGUN,
            }
            yield orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)

    async def check(self, store: FileStore) -> None:
        """Read it back through the store."""
        threads = await store.list_thread_ids()
        last = await store.list_messages(self.messages_in, order="desc", limit=1)
        found = await store.list_runs(self.thread_id(0), order="desc")
        runs = [run.id for run in found if run.status is RunStatus.COMPLETED]
        is_whole = (
            len(threads) == self.count + 2
            and [message.id for message in last] == [self.message_id(self.count - 1)]
            and runs == [self.run_id(number) for number in reversed(range(RUNS_TOGETHER))]
            and sum(1 for _ in store.run_dir(self.runs_in, "any").parent.iterdir()) == self.count + len(self.made)
        )
        if not is_whole:
            raise WorkNotDoneError(f"The tree of {self.count} is not what was written.")


def _sequence(number: int) -> int:
    return _BEGUN * 1_000_000 + number


def _write(path: str, record: object) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.write(fd, orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    finally:
        os.close(fd)
