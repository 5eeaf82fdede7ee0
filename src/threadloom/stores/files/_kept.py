"""Descriptors of files that are likely to be used again soon, by their paths: as many as the process can spare.

What is kept says nothing by itself: who takes it looks whether it is still what lies at its path.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

__all__ = ["Kept"]


class _Closable(Protocol):
    path: str

    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Kept(Generic[C]):
    """Those that were used last. Whoever takes one has it alone until it is put back. For one thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: OrderedDict[str, C] = OrderedDict()

    def take(self, path: str) -> C | None:
        """Return what is kept for a path, or none."""
        return self._items.pop(path, None)

    def look(self, path: str) -> C:
        """Return what was put back a moment ago, and stays kept."""
        return self._items[path]

    def put(self, item: C) -> None:
        """Keep one, in the place of another for its path, and close the one that was used longest ago if need be."""
        before = self._items.pop(item.path, None)
        if before is not None:
            before.close()
        self._items[item.path] = item
        if len(self._items) > self._most:
            self._items.popitem(last=False)[1].close()

    def drop(self, directory: str) -> None:
        """Close those below a directory: what is deleted there takes up space for as long as it is open."""
        for path in [path for path in self._items if path.startswith(directory)]:
            self._items.pop(path).close()

    def close(self) -> None:
        """Close all."""
        while self._items:
            self._items.popitem()[1].close()
