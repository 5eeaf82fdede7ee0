"""Conformance: pages, which are the same whatever is listed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from attrs import frozen

from threadloom.errors import InvalidCursorError, InvalidInputError
from threadloom.models import Assistant, Message, Run, RunStep, Thread
from threadloom.pages import Page
from threadloom.store import ThreadStore
from threadloom.testing._stage import Stage, new_run, new_thread

__all__ = ["CursorConformance", "PageConformance"]

NAMES = ("a", "b", "c", "d", "e")
NOT_LIMITS = [0, -1, 1.5, "1", True]
NOT_ORDERS = ["", "ASC", "newest", None, 1]


@frozen
class Listing:
    """One of the lists of a store: how it is read, and how something is added to its end."""

    read: Callable[..., Awaitable[Page[Any]]]
    add: Callable[[ThreadStore, str], Awaitable[object]]

    async def ids(self, store: ThreadStore, **options: Any) -> list[str]:
        """Return the ids on a page."""
        return [item if isinstance(item, str) else item.id for item in await self.read(store, **options)]


def listing_of_threads(*, ids_only: bool) -> Callable[[ThreadStore], Awaitable[Listing]]:
    """Return what makes the listing of threads, or of their ids."""

    async def make(_: ThreadStore) -> Listing:
        async def read(store: ThreadStore, **options: Any) -> Page[Any]:
            return await (store.list_thread_ids(**options) if ids_only else store.list_threads(**options))

        return Listing(read, lambda store, name: store.create_thread(Thread.new(id=name)))

    return make


async def listing_of_assistants(_: ThreadStore) -> Listing:
    """Return the listing of assistants."""
    return Listing(
        lambda store, **options: store.list_assistants(**options),
        lambda store, name: store.create_assistant(Assistant.new(model="any", id=name)),
    )


async def listing_of_a_tenants_threads(_: ThreadStore) -> Listing:
    """Return the listing of threads of one tenant, among those of others."""

    async def add(store: ThreadStore, name: str) -> None:
        for tenant, id_ in (("acme", name), ("other", f"{name}-other"), ("", f"{name}-empty"), (None, f"{name}-none")):
            await store.create_thread(Thread.new(id=id_, tenant=tenant))

    return Listing(lambda store, **options: store.list_threads(tenant="acme", **options), add)


async def listing_of_a_tenants_assistants(_: ThreadStore) -> Listing:
    """Return the listing of assistants of one tenant, among those of others."""

    async def add(store: ThreadStore, name: str) -> None:
        for tenant, id_ in (("acme", name), ("other", f"{name}-other"), ("", f"{name}-empty"), (None, f"{name}-none")):
            await store.create_assistant(Assistant.new(model="any", id=id_, tenant=tenant))

    return Listing(lambda store, **options: store.list_assistants(tenant="acme", **options), add)


async def listing_of_messages(store: ThreadStore) -> Listing:
    """Return the listing of messages of a thread."""
    thread_id = (await new_thread(store)).id
    return Listing(
        lambda store, **options: store.list_messages(thread_id, **options),
        lambda store, name: store.append_message(thread_id, attrs.evolve(Message.user(thread_id, name), id=name)),
    )


async def listing_of_runs(store: ThreadStore) -> Listing:
    """Return the listing of runs of a thread."""
    thread_id = (await new_thread(store)).id
    return Listing(
        lambda store, **options: store.list_runs(thread_id, **options),
        lambda store, name: store.create_run(thread_id, attrs.evolve(Run.new(thread_id, model="any"), id=name)),
    )


async def listing_of_steps(store: ThreadStore) -> Listing:
    """Return the listing of steps of a run."""
    run = await new_run(store)
    step = RunStep.tool_calls(thread_id=run.thread_id, run_id=run.id)
    return Listing(
        lambda store, **options: store.list_steps(run.thread_id, run.id, **options),
        lambda store, name: store.append_step(run.thread_id, run.id, attrs.evolve(step, id=name)),
    )


LISTINGS: dict[str, Callable[[ThreadStore], Awaitable[Listing]]] = {
    "thread_ids": listing_of_threads(ids_only=True),
    "threads": listing_of_threads(ids_only=False),
    "threads of a tenant": listing_of_a_tenants_threads,
    "assistants": listing_of_assistants,
    "assistants of a tenant": listing_of_a_tenants_assistants,
    "messages": listing_of_messages,
    "runs": listing_of_runs,
    "steps": listing_of_steps,
}

# What is asked of the list a b c d e; what is answered; whether there is more.
PAGES: list[tuple[dict[str, Any], str, bool]] = [
    ({}, "abcde", False),
    ({"order": "desc"}, "edcba", False),
    ({"limit": 2}, "ab", True),
    ({"limit": 5}, "abcde", False),
    ({"limit": 6}, "abcde", False),
    ({"limit": 2, "order": "desc"}, "ed", True),
    ({"after": "b"}, "cde", False),
    ({"after": "b", "limit": 2}, "cd", True),
    ({"after": "b", "limit": 3}, "cde", False),
    ({"after": "e"}, "", False),
    ({"after": "d", "order": "desc"}, "cba", False),
    ({"after": "d", "order": "desc", "limit": 2}, "cb", True),
    ({"after": "a", "order": "desc"}, "", False),
    ({"before": "d"}, "abc", False),
    ({"before": "d", "limit": 2}, "bc", True),
    ({"before": "d", "limit": 3}, "abc", False),
    ({"before": "a"}, "", False),
    ({"before": "b", "order": "desc"}, "edc", False),
    ({"before": "b", "order": "desc", "limit": 2}, "dc", True),
    ({"before": "e", "order": "desc"}, "", False),
    ({"after": "a", "before": "e"}, "bcd", False),
    ({"after": "a", "before": "e", "limit": 2}, "bc", True),
    ({"after": "a", "before": "e", "limit": 3}, "bcd", False),
    ({"after": "e", "before": "a", "order": "desc"}, "dcb", False),
    ({"after": "e", "before": "a", "order": "desc", "limit": 1}, "d", True),
    ({"after": "d", "before": "b"}, "", False),
    ({"after": "c", "before": "c"}, "", False),
]


ListingOf = Callable[[ThreadStore], Awaitable[Listing]]
for_every_list = pytest.mark.parametrize("listing_of", LISTINGS.values(), ids=LISTINGS)


class PageConformance(Stage):
    """What every list of a store does with ``limit``, ``order``, ``after`` and ``before``."""

    @for_every_list
    async def test_a_page_is_what_was_asked_for(self, store: ThreadStore, listing_of: ListingOf) -> None:
        listing = await listing_of(store)
        for name in NAMES:
            await listing.add(store, name)
        async for view in self.views(store):
            for options, expected, has_more in PAGES:
                page = await listing.read(view, **options)
                assert (options, "".join(await listing.ids(view, **options))) == (options, expected)
                assert (options, page.has_more, page.damaged) == (options, has_more, ())

    @for_every_list
    async def test_page_after_page_shows_all_once_in_both_orders(
        self, store: ThreadStore, listing_of: ListingOf
    ) -> None:
        listing = await listing_of(store)
        for name in NAMES:
            await listing.add(store, name)
        async for view in self.views(store):
            for order, expected in (("asc", "abcde"), ("desc", "edcba")):
                seen: list[str] = []
                has_more = True
                while has_more:
                    options = {"after": seen[-1]} if seen else {}
                    page = await listing.read(view, limit=2, order=order, **options)
                    seen += await listing.ids(view, limit=2, order=order, **options)
                    has_more = page.has_more
                assert "".join(seen) == expected

    @for_every_list
    async def test_g4_a_cursor_stays_good_while_others_add(self, store: ThreadStore, listing_of: ListingOf) -> None:
        listing = await listing_of(store)
        for name in ("a", "b"):
            await listing.add(store, name)
        assert await listing.ids(store, after="b") == []
        for name in ("c", "d"):
            await listing.add(store, name)
        async for view in self.views(store):
            assert await listing.ids(view, after="b") == ["c", "d"]
            assert await listing.ids(view, after="c", order="desc") == ["b", "a"]

    @for_every_list
    async def test_an_empty_list_is_an_empty_page_however_it_is_asked_for(
        self, store: ThreadStore, listing_of: ListingOf
    ) -> None:
        listing = await listing_of(store)
        async for view in self.views(store):
            for options in ({}, {"limit": 1}, {"order": "desc"}, {"limit": 7, "order": "desc"}):
                page = await listing.read(view, **options)
                assert (len(page), page.has_more, page.damaged) == (0, False, ())

    @for_every_list
    async def test_what_is_no_limit_and_no_order_is_refused(self, store: ThreadStore, listing_of: ListingOf) -> None:
        listing = await listing_of(store)
        await listing.add(store, "a")
        async for view in self.views(store):
            for limit in NOT_LIMITS:
                with pytest.raises(InvalidInputError):
                    await listing.read(view, limit=limit)
            for order in NOT_ORDERS:
                with pytest.raises(InvalidInputError):
                    await listing.read(view, order=order)


class CursorConformance(Stage):
    """What a cursor may name, which is not the same in every list."""

    @pytest.mark.parametrize("name", ["messages", "runs", "steps"])
    async def test_a_cursor_that_names_nothing_in_the_list_is_refused(self, store: ThreadStore, name: str) -> None:
        listing = await LISTINGS[name](store)
        elsewhere = await LISTINGS[name](store)
        await listing.add(store, "a")
        await elsewhere.add(store, "b")
        async for view in self.views(store):
            for options in ({"after": "b"}, {"before": "b"}, {"after": "a", "before": "b"}, {"after": "b", "limit": 1}):
                with pytest.raises(InvalidCursorError) as caught:
                    await listing.read(view, **options)
                assert caught.value.cursor == "b"

    async def test_any_id_is_a_cursor_among_threads(self, store: ThreadStore) -> None:
        for name in ("a", "c"):
            await store.create_thread(Thread.new(id=name))
        async for view in self.views(store):
            assert list(await view.list_thread_ids(after="b")) == ["c"]
            assert list(await view.list_thread_ids(before="b")) == ["a"]
            assert list(await view.list_thread_ids(after="b", order="desc")) == ["a"]
            assert [thread.id for thread in await view.list_threads(after="B", before="b")] == ["a"]

    async def test_any_id_is_a_cursor_among_assistants_also_a_deleted_one(self, store: ThreadStore) -> None:
        for name in NAMES:
            await store.create_assistant(Assistant.new(model="any", id=name, tenant="acme"))
        await store.delete_assistant("c")
        async for view in self.views(store):
            for options in ({}, {"tenant": "acme"}):
                listing = await listing_of_assistants(view)
                assert await listing.ids(view, after="c", **options) == ["d", "e"]
                assert await listing.ids(view, after="c", order="desc", **options) == ["b", "a"]
                assert await listing.ids(view, after="A", before="bb", **options) == ["a", "b"]

    async def test_what_is_anothers_serves_a_tenant_as_a_cursor_and_is_not_shown(self, store: ThreadStore) -> None:
        for name, tenant in (("a", "acme"), ("b", "other"), ("c", "acme"), ("d", None), ("e", "other")):
            await store.create_thread(Thread.new(id=name, tenant=tenant))
        async for view in self.views(store):
            assert [thread.id for thread in await view.list_threads()] == ["a", "b", "c", "d", "e"]
            assert [thread.id for thread in await view.list_threads(tenant="other")] == ["b", "e"]
            page = await view.list_threads(tenant="acme", after="b", limit=1)
            assert ([thread.id for thread in page], page.has_more) == (["c"], False)
            assert list(await view.list_threads(tenant="unheard of")) == []

    async def test_g4_a_deleted_thread_still_serves_as_a_cursor(self, store: ThreadStore) -> None:
        for name in NAMES:
            await store.create_thread(Thread.new(id=name))
        await store.delete_thread("c")
        async for view in self.views(store):
            assert list(await view.list_thread_ids(after="c")) == ["d", "e"]
            assert [thread.id for thread in await view.list_threads(before="c")] == ["a", "b"]
            assert list(await view.list_thread_ids(after="c", order="desc")) == ["b", "a"]
