"""Judges the files of idempotency keys, wherever they lie: each says which key it is of, and what was created."""

from __future__ import annotations

from typing import Final

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.models import Assistant, Message, Run, Thread
from threadloom.report import ProblemKind
from threadloom.stores.files._keys import KeptKey, key_digest
from threadloom.stores.files.check._look import Pause, Reader, Tools

__all__ = ["judge_keys"]

_MODELS: Final[dict[str, type]] = {
    "assistant": Assistant,
    "thread": Thread,
    "thread.message": Message,
    "thread.run": Run,
}
_REMEDY: Final = "moves it aside: under its key something may then be created again"


def judge_keys(reader: Reader, tools: Tools, directory: str) -> Pause:
    """Look at the keys in a directory."""
    for name in sorted(tools.disk.names(directory)):
        yield from reader.pause()
        if not name.endswith(".json"):
            continue
        path = f"{directory}/{name}"
        try:
            data = tools.disk.read(path)
        except FileNotFoundError:
            continue
        mend = tools.mender.aside(path, data, _REMEDY)
        try:
            kept = KeptKey.read(data, path)
            codec.from_record(kept.created, _model_of(kept, path), path)
        except SerializationError as error:
            reader.add(ProblemKind.DAMAGED_RECORD, path, error.reason, mend)
            continue
        if name.rpartition("-")[2] != f"{key_digest(kept.key)}.json":
            reader.add(ProblemKind.MISPLACED, path, "it is the file of another key", mend)


def _model_of(kept: KeptKey, path: str) -> type:
    model = _MODELS.get(str(kept.created.get("object")))
    if model is None:
        raise SerializationError(path, "it does not say what was created")
    return model
