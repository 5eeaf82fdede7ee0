"""Pages of a list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, TypeVar, overload

from attrs import field, frozen

from threadloom.errors import InvalidCursorError, InvalidInputError, StoreError

__all__ = ["Order", "Page", "PageRequest", "check_page", "page_of", "page_of_ids"]

T = TypeVar("T")


class Order(StrEnum):
    """Order of a list: oldest first (``asc``) or newest first (``desc``)."""

    ASC = "asc"
    DESC = "desc"


def _as_tuple(errors: Iterable[StoreError]) -> tuple[StoreError, ...]:
    return tuple(errors)


@frozen
class Page(Sequence[T]):
    """One page of a list: an immutable sequence of items.

    Attributes:
        items: The items, in the requested order.

        has_more: Whether the list continues beyond the page, in the direction of the request. False by default.

        damaged: One error for each record that could not be read, which names its file (G8). The page leaves these
            records out, and they never hide the others. Empty by default.
    """

    items: tuple[T, ...] = field(converter=tuple)
    has_more: bool = False
    damaged: tuple[StoreError, ...] = field(default=(), converter=_as_tuple, kw_only=True)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        """Return one item, or a tuple of items for a slice."""
        return self.items[index]

    def __len__(self) -> int:
        """Return the number of items on the page."""
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        """Yield the items in the requested order."""
        return iter(self.items)


@frozen
class PageRequest:
    """The part of a list that a caller wants.

    Attributes:
        limit: Maximum number of items. None for all.

        order: ``asc`` for oldest first, ``desc`` for newest first.

        after: Id of the item before the first one, in that order. None for no such bound.

        before: Id of the item after the last one, in that order. None for no such bound.
    """

    limit: int | None = None
    order: str = Order.ASC
    after: str | None = None
    before: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The request as keyword arguments."""
        return {"limit": self.limit, "order": self.order, "after": self.after, "before": self.before}


def check_page(limit: int | None, order: str) -> None:
    """Raise ``InvalidInputError`` unless ``limit`` is None or at least 1 and ``order`` is ``asc`` or ``desc``."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        message = f"limit must be a positive integer, or None for all items, not {limit!r}."
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
    """Return one page of ``items``.

    With ``before`` alone, the page holds the items nearest to it, still in the requested order.

    Args:
        items: All items, oldest first.

        key: Returns the id of an item.

        listing: Name of the list, for the error message.

        wanted: Returns whether an item may be on the page. Other items are valid cursors only. None for all.

        limit: Maximum number of items on the page. None for all.

        order: ``asc`` or ``desc``.

        after: Id of the item before the page, in the requested order. None to start at the beginning.

        before: Id of the item after the page, in the requested order. None to continue to the end.

    Raises:
        InvalidCursorError: If ``after`` or ``before`` is not the id of an item.
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
    """Return one page of ``ids``, sorted. Any id is a valid cursor, even if it is not in the list.

    Args:
        ids: All ids, in any order.

        limit: Maximum number of ids on the page. None for all.

        order: ``asc`` or ``desc``.

        after: Id before the page, in the requested order. None to start at the beginning.

        before: Id after the page, in the requested order. None to continue to the end.
    """
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
