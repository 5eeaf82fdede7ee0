"""Models to records and back, and to the JSON of the files (format 1, ``docs/format.md``); the keys are in ``hooks``.

A record is the JSON object that lies in a file. It has the seed's key names and leaves out what is absent. Reading is
strict about types, where cattrs by default would turn ``7`` into ``"7"`` without a word, and lenient about keys: a null
counts as absent, and ``patched`` keeps what we do not know when a record is rewritten.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson

from threadloom.errors import InvalidInputError, SerializationError

__all__ = [
    "Record",
    "decode",
    "dump",
    "dump_exactly",
    "dump_line",
    "from_record",
    "load",
    "load_exactly",
    "patched",
    "to_record",
]

Record = dict[str, Any]
_LONG_NUMBER = re.compile(rb"\d{19}")  # what orjson would make a float of, or nearly
T = TypeVar("T")


def to_record(value: object) -> Record:
    """Return the record of a model, a ``RunRecord`` or a ``RunEvent``."""
    return cast("Record", _unstructure_hook(type(value))(value))


def from_record(record: object, model: type[T], path: Path | str, *, offset: int | None = None) -> T:
    """Return the ``model`` that a record holds; ``SerializationError`` names ``path`` and what is wrong."""
    try:
        return cast("T", _structure_hook(model)(record, model))
    except Exception:  # noqa: BLE001 - whatever a damaged record makes cattrs raise, it is damage
        raise SerializationError(path, _reason(record, model), offset=offset) from None


def decode(data: bytes, model: type[T], path: Path | str, *, offset: int | None = None) -> T:
    """Return the ``model`` that JSON text holds, or raise ``SerializationError``."""
    return from_record(load(data, path, offset=offset), model, path, offset=offset)


def load(data: bytes, path: Path | str, *, offset: int | None = None) -> Any:
    """Return what JSON text says, or raise ``SerializationError``."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = f"not JSON ({error})" if data.strip() else "it is empty"
        raise SerializationError(path, reason, offset=offset) from None


def load_exactly(data: bytes, path: Path | str) -> Any:
    """Return what JSON text says, with whole numbers of any size, which are another program's and are written again."""
    return json.loads(data) if _LONG_NUMBER.search(data) else load(data, path)


def dump(record: Record) -> bytes:
    """Return a small record as indented JSON, for a person to read, with a newline at its end."""
    return _dumped(record, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def dump_exactly(record: Record) -> bytes:
    """Return what ``dump`` does, also with whole numbers that orjson refuses: they were read, not handed in."""
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
    """Return ``raw``, the record as it lies in the file, with what differs from ``old`` to ``new`` changed in it.

    What is not among our keys, or was written in a form of its own, is kept as it is.
    """
    changed = {key: value for key, value in new.items() if key not in raw or old.get(key) != value}
    kept = {key: value for key, value in raw.items() if key in new or key not in old}
    return kept | changed


def _dumped(record: Record, option: int) -> bytes:
    try:
        return orjson.dumps(record, option=option)
    except orjson.JSONEncodeError as error:
        message = f"This cannot be kept as JSON: {error}."
        raise InvalidInputError(message) from None


def _reason(record: object, model: type) -> str:
    from threadloom import hooks  # noqa: PLC0415 - see there

    try:
        hooks.converter(detailed=True).structure(record, model)
    except Exception as error:  # noqa: BLE001 - see from_record
        return hooks.said(error)
    return "it cannot be read"


def _find_structure_hook(model: Any) -> Callable[[Any, Any], Any]:
    from threadloom import hooks  # noqa: PLC0415 - see there

    return hooks.converter().get_structure_hook(model)


def _find_unstructure_hook(model: Any) -> Callable[[Any], Any]:
    from threadloom import hooks  # noqa: PLC0415 - see there

    return hooks.converter().get_unstructure_hook(model)


# Asked for once a class: the converter looks for its hook at each call.
_structure_hook: Callable[[Any], Callable[[Any, Any], Any]] = functools.cache(_find_structure_hook)
_unstructure_hook: Callable[[Any], Callable[[Any], Any]] = functools.cache(_find_unstructure_hook)
