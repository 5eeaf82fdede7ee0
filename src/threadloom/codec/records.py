"""Models to records and back. The keys of records are in ``converter``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from threadloom.codec.json import Record, load
from threadloom.errors import SerializationError

__all__ = ["decode", "from_record", "to_record"]

T = TypeVar("T")


def to_record(value: object) -> Record:
    """Return the record of a model, a ``RunRecord`` or a ``RunEvent``."""
    return cast("Record", _unstructure_hook(type(value))(value))


def from_record(record: object, model: type[T], where: str, *, offset: int | None = None) -> T:
    """Return the ``model`` that a record holds, or raise ``SerializationError``, which names ``where`` and why."""
    try:
        return cast("T", _structure_hook(model)(record, model))
    except Exception:  # noqa: BLE001 - whatever a damaged record makes cattrs raise, it is damage
        raise SerializationError(where, _reason(record, model), offset=offset) from None


def decode(data: bytes, model: type[T], where: str, *, offset: int | None = None) -> T:
    """Return the ``model`` that a JSON text holds, or raise ``SerializationError``."""
    return from_record(load(data, where, offset=offset), model, where, offset=offset)


def _reason(record: object, model: type) -> str:
    from threadloom.codec import converter  # noqa: PLC0415 - see there

    try:
        converter.converter(detailed=True).structure(record, model)
    except Exception as error:  # noqa: BLE001 - see from_record
        return converter.said(error)
    return "it cannot be read"


def _find_structure_hook(model: Any) -> Callable[[Any, Any], Any]:
    from threadloom.codec import converter  # noqa: PLC0415 - see there

    return converter.converter().get_structure_hook(model)


def _find_unstructure_hook(model: Any) -> Callable[[Any], Any]:
    from threadloom.codec import converter  # noqa: PLC0415 - see there

    return converter.converter().get_unstructure_hook(model)


# Looked up once for each class: the converter searches for its hook at each call.
_structure_hook: Callable[[Any], Callable[[Any, Any], Any]] = functools.cache(_find_structure_hook)
_unstructure_hook: Callable[[Any], Callable[[Any], Any]] = functools.cache(_find_unstructure_hook)
