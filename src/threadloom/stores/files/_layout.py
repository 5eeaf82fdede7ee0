"""Where everything lies (format 1, ``docs/format.md``): the one place that knows the names."""

from __future__ import annotations

__all__ = ["Layout"]


class Layout:
    """The paths of a store below ``root``. Ids are checked before they come here."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.own = f"{root}/.threadloom"
        self.format = f"{self.own}/format"
        self.boot = f"{self.own}/boot"
        self.swept = f"{self.own}/swept"
        self.queue = f"{self.own}/queue"
        self.turns = f"{self.own}/turns"
        self.lives = f"{self.own}/lives"
        self.journals = f"{self.own}/journals"
        self.temporary = f"{self.own}/tmp"  # noqa: S108 - of the store's own
        self.trash = f"{self.own}/trash"
        self.damaged = f"{self.own}/damaged"
        self.assistants = f"{self.own}/assistants"
        self.keys = f"{self.own}/keys"
        self.assistant_keys = f"{self.keys}/assistants"
        self.thread_keys = f"{self.keys}/threads"

    @property
    def own_directories(self) -> tuple[str, ...]:
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

    def place(self, directory: str) -> str:
        """Return the name by which a directory with a lock of its own is known, as a thread's is known by its id."""
        return directory[len(self.root) + 1 :]

    def thread(self, thread_id: str) -> str:
        """Return where a thread lies, or any other ``place`` that has a lock."""
        return f"{self.root}/{thread_id}"

    def meta(self, thread_id: str) -> str:
        return f"{self.root}/{thread_id}/meta.json"

    def messages(self, thread_id: str) -> str:
        return f"{self.root}/{thread_id}/messages.jsonl"

    def edits(self, thread_id: str) -> str:
        return f"{self.root}/{thread_id}/edits.jsonl"

    def runs(self, thread_id: str) -> str:
        return f"{self.root}/{thread_id}/runs"

    def run(self, thread_id: str, run_id: str) -> str:
        return f"{self.root}/{thread_id}/runs/{run_id}"

    def status(self, thread_id: str, run_id: str) -> str:
        return f"{self.run(thread_id, run_id)}/status.json"

    def events(self, thread_id: str, run_id: str) -> str:
        return f"{self.run(thread_id, run_id)}/events.jsonl"

    def steps(self, thread_id: str, run_id: str) -> str:
        return f"{self.run(thread_id, run_id)}/steps"

    def step(self, thread_id: str, run_id: str, step_id: str) -> str:
        return f"{self.run(thread_id, run_id)}/steps/{step_id}.json"

    def is_of_step(self, path: str) -> bool:
        """Return whether it is a step's record: by its depth, for a thread or a run may be called ``steps``, too."""
        match self.place(path).split("/"):
            case [_, "runs", _, "steps", _]:
                return True
        return False

    def keys_in(self, thread_id: str) -> str:
        return f"{self.root}/{thread_id}/keys"

    def key(self, thread_id: str, kind: str, digest: str) -> str:
        return f"{self.keys_in(thread_id)}/{kind}-{digest}.json"

    def assistant(self, assistant_id: str) -> str:
        return f"{self.assistants}/{assistant_id}.json"

    def assistant_key(self, digest: str) -> str:
        return f"{self.assistant_keys}/{digest}.json"

    def thread_key(self, digest: str) -> str:
        return f"{self.thread_keys}/{digest[:2]}/{digest}.json"

    def marker(self, thread_id: str) -> str:
        return f"{self.queue}/{thread_id}"

    def turn(self, thread_id: str) -> str:
        return f"{self.turns}/{thread_id}.json"
