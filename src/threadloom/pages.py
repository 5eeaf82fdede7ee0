"""A page: a part of a list, and whether there is more of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TypeVar, overload

from attrs import field, frozen

from threadloom.errors import InvalidCursorError, InvalidInputError, StoreError

__all__ = ["Order", "Page", "check_page", "page_of", "page_of_ids"]

T = TypeVar("T")


class Order(StrEnum):
    """Which end of a list comes first."""

    ASC = "asc"
    DESC = "desc"


def _as_tuple(errors: Iterable[StoreError]) -> tuple[StoreError, ...]:
    return tuple(errors)


@frozen
class Page(Sequence[T]):
    """An immutable sequence of what was asked for.

    ``has_more`` says whether the list goes on beyond the page, in the direction it was asked for. ``damaged`` are the
    records that stand in the way and could not be read, as the errors that name their files (G8): they are left out
    of the items, and they never hide the others.
    """

    items: tuple[T, ...] = field(converter=tuple)
    has_more: bool = False
    damaged: tuple[StoreError, ...] = field(default=(), converter=_as_tuple, kw_only=True)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        """Return an item, or a tuple of them."""
        return self.items[index]

    def __len__(self) -> int:
        """Return how many items are on the page."""
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        """Yield the items in the order that was asked for."""
        return iter(self.items)


def check_page(limit: int | None, order: str) -> None:
    """Raise ``InvalidInputError`` unless ``limit`` is none or at least 1, and ``order`` is asc or desc."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        message = f"limit must be a whole number from 1 up, or None for all, not {limit!r}."
        raise InvalidInputError(message)
    if order not in tuple(Order):
        message = f"order must be 'asc' or 'desc', not {order!r}."
        raise InvalidInputError(message)


def page_of(
    items: Sequence[T],
    key: Callable[[T], str],
    listing: str,
    *,
    wanted: Callable[[T], bool] | None = None,
    limit: int | None = None,
    order: str = Order.ASC,
    after: str | None = None,
    before: str | None = None,
) -> Page[T]:
    """Return the page of ``items``, which stand oldest first and are named by ``key``.

    ``after`` and ``before`` are exclusive and count in the order that was asked for. With ``before`` alone the page
    holds the items nearest before it, still in that order. An unknown one raises ``InvalidCursorError``, which calls
    the list ``listing``. What is not ``wanted`` serves as a cursor only.
    """
    check_page(limit, order)
    ordered = list(items) if order == Order.ASC else list(reversed(items))
    places = {key(item): place for place, item in enumerate(ordered)} if after or before else {}
    start = 0 if after is None else _place(places, after, listing) + 1
    stop = len(ordered) if before is None else _place(places, before, listing)
    return _cut(filter(wanted, ordered[start:stop]) if wanted else ordered[start:stop], limit, after, before)


def page_of_ids(
    ids: Iterable[str],
    *,
    limit: int | None = None,
    order: str = Order.ASC,
    after: str | None = None,
    before: str | None = None,
) -> Page[str]:
    """Return the page of ``ids`` in their own order, in which any id is a cursor, also one that is gone."""
    check_page(limit, order)
    low, high = (after, before) if order == Order.ASC else (before, after)
    chosen = sorted(id_ for id_ in ids if (low is None or id_ > low) and (high is None or id_ < high))
    return _cut(chosen if order == Order.ASC else reversed(chosen), limit, after, before)


def _cut(chosen: Iterable[T], limit: int | None, after: str | None, before: str | None) -> Page[T]:
    items = tuple(chosen)
    if limit is None or len(items) <= limit:
        return Page(items)
    nearest_the_end = before is not None and after is None
    return Page(items[-limit:] if nearest_the_end else items[:limit], has_more=True)


def _place(places: dict[str, int], cursor: str, listing: str) -> int:
    try:
        return places[cursor]
    except KeyError:
        raise InvalidCursorError(cursor, listing) from None
