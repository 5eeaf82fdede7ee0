"""Pages of records whose ids have an order of their own, and the request for any page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs
from attrs import frozen

from threadloom.errors import StoreError
from threadloom.pages import Page, page_of_ids
from threadloom.stores.files._records import setting_aside

__all__ = ["PageRequest", "filled_page", "page_of_records"]

T = TypeVar("T")


@frozen(kw_only=True)
class PageRequest:
    """How a list is narrowed."""

    limit: int | None
    order: str
    after: str | None
    before: str | None

    @property
    def is_from_the_end(self) -> bool:
        """Whether the page holds the items nearest before a cursor, so that they are found from there backward."""
        return self.limit is not None and self.before is not None and self.after is None

    @property
    def options(self) -> dict[str, Any]:
        """The request as the keywords of ``page_of``."""
        return attrs.asdict(self)


def page_of_records(
    ids: Iterable[str], request: PageRequest, read: Callable[[str], T], wanted: Callable[[T], bool]
) -> Page[T]:
    """Return the page of the records that are wanted, in the order of their ids; no more are read than need be."""
    chosen = page_of_ids(ids, **attrs.evolve(request, limit=None).options)
    return filled_page(chosen, request, read, [], wanted)


def filled_page(
    chosen: Page[str],
    request: PageRequest,
    read: Callable[[str], T],
    damaged: list[StoreError],
    wanted: Callable[[T], bool] = lambda _: True,
) -> Page[T]:
    """Return the page of what is wanted of the ``chosen``, which are what the cursors leave, in the order asked for.

    A damaged one takes no place on the page: who reads a page of damage only has no cursor to go on from.
    """
    found: list[T] = []
    has_more = False
    for id_ in reversed(chosen) if request.is_from_the_end else chosen:
        read_now: list[T] = []
        with setting_aside(damaged, f"read {id_!r}"):
            read_now += filter(wanted, [read(id_)])
        has_more = bool(read_now) and request.limit is not None and len(found) >= request.limit
        if has_more:
            break
        found += read_now
    if request.is_from_the_end:
        found.reverse()
    return Page(found, has_more, damaged=tuple(damaged))
