"""Where things lie below the root, as relative paths. ``docs/format.md`` describes what is in them."""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = [
    "ASSISTANTS",
    "BOOT",
    "DAMAGED",
    "FORMAT",
    "IDLE",
    "JOURNALS",
    "OWN",
    "OWN_DIRECTORIES",
    "QUEUE",
    "STAMPS",
    "STORES",
    "TMP",
    "TRASH",
    "assistant",
    "assistant_key",
    "edits",
    "events",
    "idle_entry",
    "key",
    "key_digest",
    "messages",
    "meta",
    "queue_entry",
    "run",
    "runs",
    "status",
    "step",
    "steps",
    "thread_key",
    "thread_key_directory",
]

OWN: Final = ".threadloom"
ASSISTANTS: Final = f"{OWN}/assistants"
DAMAGED: Final = f"{OWN}/damaged"
IDLE: Final = f"{OWN}/idle"
JOURNALS: Final = f"{OWN}/journals"
QUEUE: Final = f"{OWN}/queue"
STAMPS: Final = f"{OWN}/stamps"
STORES: Final = f"{OWN}/stores"
TMP: Final = f"{OWN}/tmp"  # noqa: S108 - below the root
TRASH: Final = f"{OWN}/trash"
BOOT: Final = f"{OWN}/boot"
FORMAT: Final = f"{OWN}/format"
OWN_DIRECTORIES: Final = (
    ASSISTANTS, DAMAGED, JOURNALS, f"{OWN}/keys/assistants", f"{OWN}/keys/threads", IDLE, QUEUE, STORES, TMP, TRASH,
)  # fmt: skip


def meta(thread_id: str) -> str:
    return f"{thread_id}/meta.json"


def messages(thread_id: str) -> str:
    return f"{thread_id}/messages.jsonl"


def edits(thread_id: str) -> str:
    return f"{thread_id}/edits.jsonl"


def runs(thread_id: str) -> str:
    return f"{thread_id}/runs"


def run(thread_id: str, run_id: str) -> str:
    return f"{thread_id}/runs/{run_id}"


def status(thread_id: str, run_id: str) -> str:
    return f"{thread_id}/runs/{run_id}/status.json"


def events(thread_id: str, run_id: str) -> str:
    return f"{thread_id}/runs/{run_id}/events.jsonl"


def steps(thread_id: str, run_id: str) -> str:
    return f"{thread_id}/runs/{run_id}/steps"


def step(thread_id: str, run_id: str, step_id: str) -> str:
    return f"{thread_id}/runs/{run_id}/steps/{step_id}.json"


def queue_entry(thread_id: str) -> str:
    return f"{QUEUE}/{thread_id}"


def idle_entry(thread_id: str) -> str:
    return f"{IDLE}/{thread_id}"


def assistant(assistant_id: str) -> str:
    return f"{ASSISTANTS}/{assistant_id}.json"


def key_digest(value: str) -> str:
    """Return the name by which an idempotency key is kept, which may be any text."""
    return hashlib.blake2b(value.encode(), digest_size=16).hexdigest()


def key(thread_id: str, kind: str, value: str) -> str:
    return f"{thread_id}/keys/{kind}-{key_digest(value)}.json"


def thread_key_directory(digest: str) -> str:
    return f"{OWN}/keys/threads/{digest[:2]}"


def thread_key(digest: str) -> str:
    return f"{thread_key_directory(digest)}/{digest}.json"


def assistant_key(digest: str) -> str:
    return f"{OWN}/keys/assistants/{digest}.json"
