"""Pages, against the plainest way to say what they should be."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadloom.errors import InvalidCursorError, InvalidInputError, SerializationError
from threadloom.pages import Order, Page, check_page, page_of, page_of_ids

names = st.lists(st.sampled_from("abcdefgh"), unique=True)
limits = st.none() | st.integers(1, 9)
orders = st.sampled_from(["asc", "desc"])
cursors = st.none() | st.sampled_from("abcdefgh")


def plain(items, limit, after, before):
    """Return the page of items that stand in the order that was asked for."""
    start = items.index(after) + 1 if after else 0
    stop = items.index(before) if before else len(items)
    chosen = items[start:stop]
    if limit is None or len(chosen) <= limit:
        return chosen, False
    return (chosen[-limit:] if before and not after else chosen[:limit]), True


@given(names, limits, orders, cursors, cursors)
def test_a_page_is_the_plain_one(items, limit, order, after, before):
    wished = items if order == "asc" else items[::-1]
    if {after, before} - {None} <= set(items):
        page = page_of(items, str, "letters", limit=limit, order=order, after=after, before=before)
        assert (list(page), page.has_more) == plain(wished, limit, after, before)
    else:
        with pytest.raises(InvalidCursorError, match="letters"):
            page_of(items, str, "letters", limit=limit, order=order, after=after, before=before)


@given(names, limits, orders, cursors, cursors)
def test_a_page_of_ids_takes_any_id_for_a_cursor(items, limit, order, after, before):
    gone = {after, before} - {None}
    everything = sorted({*items, *gone}, reverse=order == "desc")
    start = everything.index(after) + 1 if after else 0
    stop = everything.index(before) if before else len(everything)
    wished = [item for item in everything[start:stop] if item in items]
    page = page_of_ids(items, limit=limit, order=order, after=after, before=before)
    if limit is None or len(wished) <= limit:
        assert (list(page), page.has_more) == (wished, False)
    else:
        part = wished[-limit:] if before and not after else wished[:limit]
        assert (list(page), page.has_more) == (part, True)


@given(names, limits, orders, cursors)
def test_what_is_not_wanted_serves_as_a_cursor_only(items, limit, order, after):
    def is_wanted(item):
        return item in "aceg"

    if after is None or after in items:
        page = page_of(items, str, "letters", wanted=is_wanted, limit=limit, order=order, after=after)
        wished = items if order == "asc" else items[::-1]
        rest = [item for item in wished[wished.index(after) + 1 if after else 0 :] if is_wanted(item)]
        assert list(page) == (rest if limit is None else rest[:limit])
        assert page.has_more is (limit is not None and len(rest) > limit)


@given(names, st.integers(1, 4), orders)
def test_page_after_page_shows_all_once(items, limit, order):
    seen: list[str] = []
    has_more = True
    while has_more:
        page = page_of(items, str, "letters", limit=limit, order=order, after=seen[-1] if seen else None)
        seen += page
        has_more = page.has_more
    assert seen == (items if order == "asc" else items[::-1])


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", True, False, []])
def test_what_is_no_limit_is_refused(limit):
    with pytest.raises(InvalidInputError, match="limit must be"):
        check_page(limit, "asc")


@pytest.mark.parametrize("order", ["", "ASC", "oldest", None, 1, b"asc"])
def test_what_is_no_order_is_refused(order):
    with pytest.raises(InvalidInputError, match="order must be"):
        check_page(None, order)


@pytest.mark.parametrize("order", ["asc", "desc", Order.ASC, Order.DESC], ids=repr)
def test_an_order_is_a_word_or_its_name(order):
    check_page(None, order)
    check_page(1, order)


def test_a_page_is_an_immutable_sequence():
    page = Page(["a", "b", "c"], has_more=True)
    assert (len(page), list(page), page[0], page[-1], page[1:]) == (3, ["a", "b", "c"], "a", "c", ("b", "c"))
    assert "b" in page
    assert list(reversed(page)) == ["c", "b", "a"]
    assert page.index("c") == 2
    assert page.items == ("a", "b", "c")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        page.has_more = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        page[0] = "z"  # type: ignore[index]


def test_an_empty_page_is_falsy_and_has_no_more():
    page: Page[str] = Page(())
    assert not page
    assert (page.has_more, page.damaged) == (False, ())


def test_a_page_says_what_was_damaged():
    error = SerializationError("a.json", "it is empty")
    page = Page(["a"], damaged=[error])
    assert (list(page), page.damaged) == (["a"], (error,))
    assert page != Page(["a"])
