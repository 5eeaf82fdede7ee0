"""Pages of records whose ids have an order of their own, and the request for any page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs
from attrs import frozen

from threadloom.errors import StoreError
from threadloom.pages import Page, page_of_ids
from threadloom.stores.files._records import setting_aside

__all__ = ["PageRequest", "page_of_records"]

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
    """Return the page of the records that are wanted, in the order of their ids; no more are read than need be.

    A damaged one takes no place on the page: who reads a page of damage only has no cursor to go on from.
    """
    chosen = page_of_ids(ids, **attrs.asdict(attrs.evolve(request, limit=None))).items
    found: list[T] = []
    damaged: list[StoreError] = []
    for id_ in reversed(chosen) if request.is_from_the_end else chosen:
        is_full = request.limit is not None and len(found) >= request.limit
        read_now: list[T] = []
        with setting_aside(damaged, f"read {id_!r}"):
            read_now += filter(wanted, [read(id_)])
        if is_full and read_now:
            return _page(found, damaged, request, has_more=True)
        found += read_now
    return _page(found, damaged, request, has_more=False)


def _page(found: list[T], damaged: list[StoreError], request: PageRequest, *, has_more: bool) -> Page[T]:
    if request.is_from_the_end:
        found.reverse()
    return Page(found, has_more, damaged=tuple(damaged))
