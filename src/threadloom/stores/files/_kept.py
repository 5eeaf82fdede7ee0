"""Descriptors of files that are likely to be used again soon, by their paths: as many as the process can spare.

What is kept says nothing by itself: who takes it looks whether it is still what lies at its path.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, Generic, Protocol, TypeVar

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Kept"]

_SPARED: Final = 4  # of all descriptors that the process may have, the part that may be kept, by all its stores
_DEFAULT_LIMIT: Final = 1_024


class _Closable(Protocol):
    path: str

    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)

_in_use: set[Kept[Any]] = set()


def _most_in_process() -> int:
    """Return how many descriptors all stores of the process may keep: others in it need some, too."""
    if resource is None:
        return _DEFAULT_LIMIT // _SPARED
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _DEFAULT_LIMIT if limit == resource.RLIM_INFINITY else limit // _SPARED


class Kept(Generic[C]):
    """Those that were used last. Whoever takes one has it alone until it is put back. For one thread.

    Where the stores of this process keep too many together, whoever puts one back closes older ones of its own.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_in_process = _most_in_process()
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
        _in_use.add(self)
        while len(self._items) > 1 and self._is_too_much():
            self._items.popitem(last=False)[1].close()

    def _is_too_much(self) -> bool:
        # Other threads may add to it meanwhile; to have kept a few more is no harm.
        kept = sum([len(others._items) for others in tuple(_in_use)])  # noqa: SLF001 - of the same class
        return len(self._items) > self._most or kept > self._most_in_process

    def drop(self, directory: str) -> None:
        """Close those below a directory: what is deleted there takes up space for as long as it is open."""
        for path in [path for path in self._items if path.startswith(directory)]:
            self._items.pop(path).close()

    def close(self) -> None:
        """Close all."""
        _in_use.discard(self)
        while self._items:
            self._items.popitem()[1].close()
