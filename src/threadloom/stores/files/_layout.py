"""Where everything lies (format 1, ``docs/format.md``): the one place that knows the names."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Layout"]


class Layout:
    """The paths of a store below ``root``. Ids are checked before they come here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own = root / ".threadloom"
        self.format = self.own / "format"
        self.boot = self.own / "boot"
        self.swept = self.own / "swept"
        self.queue = self.own / "queue"
        self.turns = self.own / "turns"
        self.lives = self.own / "lives"
        self.journals = self.own / "journals"
        self.temporary = self.own / "tmp"
        self.trash = self.own / "trash"
        self.damaged = self.own / "damaged"
        self.assistants = self.own / "assistants"
        self.assistant_keys = self.own / "keys" / "assistants"
        self.thread_keys = self.own / "keys" / "threads"

    @property
    def own_directories(self) -> tuple[Path, ...]:
        """The directories that a store needs before anything else."""
        return (
            self.queue,
            self.turns,
            self.lives,
            self.journals,
            self.temporary,
            self.trash,
            self.damaged,
            self.assistants,
            self.assistant_keys,
            self.thread_keys,
        )

    def place(self, directory: Path) -> str:
        """Return the name by which a directory with a lock of its own is known, as a thread's is known by its id."""
        return str(directory.relative_to(self.root))

    def thread(self, thread_id: str) -> Path:
        """Return where a thread lies, or any other ``place`` that has a lock."""
        return self.root / thread_id

    def meta(self, thread_id: str) -> Path:
        return self.root / thread_id / "meta.json"

    def messages(self, thread_id: str) -> Path:
        return self.root / thread_id / "messages.jsonl"

    def edits(self, thread_id: str) -> Path:
        return self.root / thread_id / "edits.jsonl"

    def runs(self, thread_id: str) -> Path:
        return self.root / thread_id / "runs"

    def run(self, thread_id: str, run_id: str) -> Path:
        return self.root / thread_id / "runs" / run_id

    def status(self, thread_id: str, run_id: str) -> Path:
        return self.run(thread_id, run_id) / "status.json"

    def status_in(self, runs: str, run_id: str) -> str:
        """Return ``status`` as plain text, for who goes past a hundred thousand of them."""
        return f"{runs}/{run_id}/status.json"

    def events(self, thread_id: str, run_id: str) -> Path:
        return self.run(thread_id, run_id) / "events.jsonl"

    def steps(self, thread_id: str, run_id: str) -> Path:
        return self.run(thread_id, run_id) / "steps"

    def step(self, thread_id: str, run_id: str, step_id: str) -> Path:
        return self.run(thread_id, run_id) / "steps" / f"{step_id}.json"

    def key(self, thread_id: str, kind: str, digest: str) -> Path:
        return self.root / thread_id / "keys" / f"{kind}-{digest}.json"

    def keys(self, thread_id: str) -> Path:
        return self.root / thread_id / "keys"

    def assistant(self, assistant_id: str) -> Path:
        return self.assistants / f"{assistant_id}.json"

    def assistant_key(self, digest: str) -> Path:
        return self.assistant_keys / f"{digest}.json"

    def thread_key(self, digest: str) -> Path:
        return self.thread_keys / digest[:2] / f"{digest}.json"

    def marker(self, thread_id: str) -> Path:
        return self.queue / thread_id

    def turn(self, thread_id: str) -> Path:
        return self.turns / f"{thread_id}.json"
