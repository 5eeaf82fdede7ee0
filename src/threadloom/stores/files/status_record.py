"""``status.json``: a run's record, and how far it reflects the run's log, so that nobody reads a log from its start."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final

import orjson
from attrs import frozen

from threadloom import codec
from threadloom.errors import SerializationError
from threadloom.models import Run
from threadloom.records import RunRecord

__all__ = ["REFLECTS_NOTHING", "Status", "Summary", "decode", "encode", "restored"]

_LOG_KEY: Final = b',\n  "log": '
_DIGEST_KEY: Final = b',"digest":"'
_END: Final = b"\n}\n"

# How a run is doing, not what was asked for: never restored where another program left it out.
_NOT_RESTORED: Final = frozenset(
    {
        "status",
        "last_error",
        "required_action",
        "incomplete_details",
        "completed_at",
        "failed_at",
        "cancelled_at",
        "retry_at",
    }
)


@frozen
class Summary:
    """How far a record reflects the log of its run.

    bytes: the offset behind the last transaction that is in it.
    number: the number of the last event up to there.
    open_steps: the ids of the steps that were open there.
    message_at: where the transaction begins that announced the message which was open there, None if none was.
    """

    bytes: int
    number: int
    open_steps: tuple[str, ...] = ()
    message_at: int | None = None


REFLECTS_NOTHING: Final = Summary(0, 0)


@frozen
class Status:
    """What ``status.json`` holds.

    record: the run and its lease.
    raw: the JSON object as it lies there, without the summary.
    summary: None where another program wrote the file, whatever it copied into it.
    """

    record: RunRecord
    raw: Mapping[str, Any]
    summary: Summary | None


def encode(record: dict[str, Any], summary: Summary) -> bytes:
    """Return the file of a record, which is given as JSON: ours, or what another program wrote with ours in it."""
    base = codec.dump_exactly(record)
    log: dict[str, Any] = {"bytes": summary.bytes, "number": summary.number}
    if summary.open_steps:
        log["open_steps"] = summary.open_steps
    if summary.message_at is not None:
        log["message_at"] = summary.message_at
    text = orjson.dumps(log)
    return b"%b%b%b%b%08x%b" % (
        base.removesuffix(_END), _LOG_KEY, text[:-1], _DIGEST_KEY, zlib.crc32(base + text), b'"}' + _END,
    )  # fmt: skip


def decode(data: bytes, where: str) -> Status:
    """Return what a file holds, or raise ``SerializationError``."""
    raw = codec.load_exactly(data, where)
    if not isinstance(raw, dict):
        raise SerializationError(where, "it holds no JSON object")
    log = raw.pop("log", None)
    record = codec.from_record(raw, RunRecord, where)
    summary = _summary(data, log)
    if log is not None and summary is None and not _is_summary(log):
        raw["log"] = log  # a key of another program, which happens to be called so
    return Status(record, raw, summary)


def restored(status: Status, known: Run | None, where: str) -> RunRecord:
    """Return the record that another program wrote, with what was asked of the run where the program left it out."""
    if known is None or known.sequence is None or status.record.run.sequence is not None:
        return status.record
    kept = {key: value for key, value in codec.to_record(known).items() if key not in _NOT_RESTORED}
    return codec.from_record({**kept, **status.raw}, RunRecord, where)


def _summary(data: bytes, log: Any) -> Summary | None:
    """Return the summary, None unless the file is as it was written."""
    base, _, rest = data.rpartition(_LOG_KEY)
    text, _, digest = rest.rpartition(_DIGEST_KEY)
    if digest != b'%08x"}%b' % (zlib.crc32(base + _END + text + b"}"), _END):
        return None
    return Summary(log["bytes"], log["number"], tuple(log.get("open_steps", ())), log.get("message_at"))


def _is_summary(log: Any) -> bool:
    return isinstance(log, dict) and log.keys() >= {"bytes", "number", "digest"}
