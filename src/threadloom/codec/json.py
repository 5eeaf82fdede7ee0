"""JSON text and the records it holds, as files and log lines have them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from threadloom.errors import InvalidInputError, SerializationError

__all__ = ["MOST_LEVELS", "Record", "dump", "dump_exactly", "dump_line", "load", "load_exactly", "patched"]

Record = dict[str, Any]
MOST_LEVELS: Final = 240
"""How deep a record may be nested. What goes through the public methods has about 200 levels at most. orjson writes
254, so a record that another program has nested to this bound still fits into an event, a few levels deeper."""

_LONG_NUMBER = re.compile(rb"\d{19}")  # what orjson would read as a float, or nearly


def load(data: bytes, where: str, *, offset: int | None = None, levels: int = MOST_LEVELS) -> Any:
    """Return the value of a JSON text, or raise ``SerializationError``, which names ``where`` and ``offset``.

    One that is nested more than ``levels`` deep is damage too.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = f"not JSON ({error})" if data.strip() else "it is empty"
        raise SerializationError(where, reason, offset=offset) from None
    if data.count(b"{") + data.count(b"[") > levels and _is_deep(value, levels):
        raise SerializationError(where, f"it is nested more than {levels} levels deep", offset=offset)
    return value


def load_exactly(data: bytes, where: str) -> Any:
    """Return the value of a JSON text with whole numbers of any size: another program's, to be written back."""
    value = load(data, where)
    return json.loads(data) if _LONG_NUMBER.search(data) else value


def dump(record: Record) -> bytes:
    """Return a small record as indented JSON, for a person to read, with a newline at its end."""
    return _dumped(record, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def dump_exactly(record: Record) -> bytes:
    """Return the same as ``dump``, and accept the whole numbers of any size that ``load_exactly`` returns."""
    try:
        return dump(record)
    except InvalidInputError as refused:
        try:
            return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError):
            raise refused from None


def dump_line(record: Record) -> bytes:
    """Return a record as one line of a log, with its newline."""
    return _dumped(record, orjson.OPT_APPEND_NEWLINE)


def patched(raw: Mapping[str, Any], old: Record, new: Record) -> Record:
    """Return ``raw``, a record as it was read, with the changes from ``old`` to ``new``.

    Keys that are not ours stay as they are, and so do values that another program wrote in its own form.
    """
    changed = {key: value for key, value in new.items() if key not in raw or old.get(key) != value}
    kept = {key: value for key, value in raw.items() if key in new or key not in old}
    return kept | changed


def _is_deep(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for items in children for child in items if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _dumped(record: Record, option: int) -> bytes:
    try:
        return orjson.dumps(record, option=option)
    except orjson.JSONEncodeError as error:
        raise InvalidInputError(f"This cannot be kept as JSON: {error}.") from None
