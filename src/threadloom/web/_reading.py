"""Reads the body of a request strictly, and names the place of an error.

A null counts as absent, and unknown keys are ignored, as clients with newer SDKs expect. A shape is an attrs class
whose fields say what is expected; ``Annotated`` types add checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
import orjson
from attrs import frozen
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from threadloom.web._errors import WireError

__all__ = ["AsSent", "Check", "Json", "TextOr", "Typed", "read"]

T = TypeVar("T")

_MOST_LEVELS = 100

Json = dict[str, Any]
Check = Callable[[Any], str | None]
"""Checks a value of the right type. Returns the problem as the end of a sentence, or None."""


@frozen(eq=False)
class AsSent:
    """Marks a value that is checked against a shape and kept as the client sent it, without nulls.

    Attributes:
        shape: The shape.
    """

    shape: Any


@frozen(eq=False)
class TextOr:
    """Marks a value that is a string, or is checked against a shape and kept as the client sent it.

    Attributes:
        shape: The shape.
    """

    shape: Any


@frozen(eq=False)
class Typed:
    """Marks an object whose ``type`` determines its shape. Some values may also be a single word.

    Attributes:
        shapes: Shape of each type.

        words: Words that are allowed instead of an object. Empty by default.
    """

    shapes: dict[str, type]
    words: tuple[str, ...] = ()


class _WrongError(ValueError):
    """A wrong value. Its text is the end of a sentence that names the place."""


def read(data: bytes, shape: type[T]) -> tuple[T, Json]:
    """Return the body of a request, as ``shape`` and as the client sent it. An empty body is an empty object."""
    try:
        body = orjson.loads(data) if data.strip() else {}
    except orjson.JSONDecodeError as error:
        raise WireError(400, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise WireError(400, f"The request body must be a JSON object, not {_named(body)}.")
    if _is_deep(body):
        raise WireError(400, f"The request body has more than {_MOST_LEVELS} levels of arrays and objects.")
    try:
        return _converter.structure(body, shape), body
    except BaseValidationError as error:
        param, said = _first_wrong(error)
        raise WireError(400, f"Invalid '{param}': {said}.", param=param) from None


def _is_deep(body: Json) -> bool:
    """Return whether the body is nested too deeply.

    The server also sends stored values inside a list, which adds levels.
    """
    level: list[Any] = [body]
    for _ in range(_MOST_LEVELS):
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _first_wrong(error: BaseException) -> tuple[str, str]:
    """Return the place of the first wrong value, and its problem."""
    place = ""
    while isinstance(error, BaseValidationError):
        error = error.exceptions[0]
        for note in getattr(error, "__notes__", ()):
            match note:
                case AttributeValidationNote(name=name):
                    place += f".{name}"
                case IterableValidationNote(index=index):
                    place += f"[{index}]"
    return place.removeprefix("."), "it is required" if isinstance(error, KeyError) else str(error)


def _named(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def _expected(expected: str, value: Any) -> _WrongError:
    return _WrongError(f"expected {expected}, not {_named(value)}")


Hook = Callable[[Any, Any], Any]


def _of_type(expected: str, *accepted: type) -> Hook:
    def structure(value: Any, _: Any) -> Any:
        # bool is an int in Python, but not in JSON.
        if isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool)):
            return value
        raise _expected(expected, value)

    return structure


def _of_list(kind: Any, converter: cattrs.Converter) -> Hook:
    (inner,) = get_args(kind)
    structure = converter.get_structure_hook(inner)

    def of_list(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise _expected("an array", value)
        items: list[Any] = []
        try:
            items.extend(structure(item, inner) for item in value)
        except (ValueError, BaseValidationError) as error:
            # Report only the first error: one error for each of a million items would fill the memory.
            error.add_note(IterableValidationNote("", len(items), inner))
            raise IterableValidationError("", [error], kind) from None
        return items

    return of_list


def _of_class(kind: Any, converter: cattrs.Converter) -> Hook:
    make: Any = make_dict_structure_fn
    structure = make(kind, converter)

    def of_class(value: Any, kind: Any) -> Any:
        if isinstance(value, dict):
            return structure({key: item for key, item in value.items() if item is not None}, kind)
        raise _expected("an object", value)

    return of_class


def _kept_class(kind: Any, converter: cattrs.Converter) -> Hook:
    check = _of_class(kind, converter)

    def kept_class(value: Any, kind: Any) -> Any:
        checked = check(value, kind)
        given = {key: item for key, item in value.items() if item is not None}
        return given | {name: getattr(checked, name) for name in attrs.fields_dict(kind) if name in given}

    return kept_class


def _of_literal(kind: Any, _: cattrs.Converter) -> Hook:
    words = get_args(kind)

    def of_literal(value: Any, _: Any) -> Any:
        if isinstance(value, str) and value in words:
            return value
        raise _WrongError(f"expected one of {', '.join(map(repr, words))}, not {value!r}")

    return of_literal


def _of_annotated(kind: Any, converter: cattrs.Converter) -> Hook:
    inner, mark = get_args(kind)
    match mark:
        case AsSent(shape):
            return lambda value, _: _keeping.structure(value, shape)
        case TextOr(shape):
            return lambda value, _: value if isinstance(value, str) else _keeping.structure(value, shape)
        case Typed():
            return _of_typed(mark, converter)
    structure = converter.get_structure_hook(inner)

    def checked(value: Any, _: Any) -> Any:
        structured = structure(value, inner)
        wrong = mark(structured)
        if wrong is not None:
            raise _WrongError(wrong)
        return structured

    return checked


def _of_typed(typed: Typed, converter: cattrs.Converter) -> Hook:
    def of_typed(value: Any, _: Any) -> Any:
        if isinstance(value, str) and typed.words:
            if value in typed.words:
                return value
            raise _WrongError(f"expected one of {', '.join(map(repr, typed.words))}, or an object, not {value!r}")
        if not isinstance(value, dict):
            raise _expected("an object", value)
        kind = value.get("type")
        if not isinstance(kind, str) or kind not in typed.shapes:
            raise _WrongError(f"expected a 'type' of {', '.join(map(repr, typed.shapes))}, not {kind!r}")
        return converter.structure(value, typed.shapes[kind])

    return of_typed


def _comes_from(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


def _make_converter(of_class: Callable[[Any, cattrs.Converter], Hook]) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    converter.register_structure_hook(str, _of_type("a string", str))
    converter.register_structure_hook(int, _of_type("an integer", int))
    converter.register_structure_hook(float, _of_type("a number", int, float))
    converter.register_structure_hook(bool, _of_type("a boolean", bool))
    converter.register_structure_hook_func(lambda kind: kind == Json, _of_type("an object", dict))
    # Typed as Any: mypy cannot follow how cattrs tells its factories apart.
    register: Any = converter.register_structure_hook_factory
    register(attrs.has, of_class)
    register(_comes_from(list), _of_list)
    register(_comes_from(Literal), _of_literal)
    register(_comes_from(Annotated), _of_annotated)
    return converter


_converter: Final = _make_converter(_of_class)
_keeping: Final = _make_converter(_kept_class)
