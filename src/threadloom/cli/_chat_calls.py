"""Assembles tool calls from the pieces that chat-completions servers stream."""

from __future__ import annotations

import json
from collections.abc import Collection

from attrs import define

from threadloom.models import FunctionCall, ToolCall

__all__ = ["CallPieces"]


@define
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class CallPieces:
    """The calls of one answer, in the order in which they started.

    A piece continues the call with the same index. Some servers differ from OpenAI's: they send every call complete,
    with index 0 or no index, with or without an id. For these, a different id, or a name after complete arguments,
    starts the next call.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}

    def __bool__(self) -> bool:
        """Return whether there is a call."""
        return bool(self._calls)

    def add(self, index: int | None, id_: str | None, name: str | None, arguments: object) -> None:
        """Take in a piece."""
        at = index or 0
        call = self._at.get(at)
        if call is None or _begins_another(call, id_, name):
            call = self._at[at] = _Call()
            self._calls.append(call)
        call.id = call.id or id_ or ""
        if name and name != call.name:
            call.name += name
        if arguments is not None:
            call.arguments += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def calls(self, taken: Collection[str]) -> list[ToolCall | FunctionCall]:
        """Return the calls. A call whose id is missing, duplicated or in ``taken`` gets a new id."""
        seen = set(taken)
        made: list[ToolCall | FunctionCall] = []
        for call in self._calls:
            # Clients parse the arguments, and some servers send none for a function without parameters.
            function = FunctionCall(name=call.name, arguments=call.arguments or "{}")
            made.append(ToolCall(id=call.id, function=function) if call.id and call.id not in seen else function)
            seen.add(call.id)
        return made


def _begins_another(call: _Call, id_: str | None, name: str | None) -> bool:
    if id_ and call.id:
        return id_ != call.id
    return bool(name and call.name) and _is_whole(call.arguments)


def _is_whole(arguments: str) -> bool:
    try:
        json.loads(arguments)
    except ValueError:
        return False
    return True
