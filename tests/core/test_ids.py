"""What is an id, and that those made here sort by the time they were made."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threadloom import ids
from threadloom.errors import InvalidIdError

MAKERS = {
    "thread": ids.new_thread_id,
    "msg": ids.new_message_id,
    "run": ids.new_run_id,
    "step": ids.new_step_id,
    "call": ids.new_call_id,
}
NOT_IDS = [
    *(
        "",
        ".",
        "..",
        ".hidden",
        "-",
        "-rf",
        "_a",
        "a/b",
        "a\\b",
        "/etc",
        "a b",
        " a",
        "a ",
        "a\n",
        "\na",
        "a\0",
        "a.b",
        "a:b",
    ),
    *("ä", "aä", "٣", "a\u0301", "a" * 129, "~", "a*"),
    *(None, 1, 1.5, True, b"a", ["a"], NotImplemented),
]


@pytest.mark.parametrize(("prefix", "new"), MAKERS.items())
def test_an_id_made_here_is_a_prefix_and_a_time_ordered_uuid_in_hex(prefix, new):
    made = new()
    assert re.fullmatch(rf"{prefix}_[0-9a-f]{{12}}7[0-9a-f]{{3}}[89ab][0-9a-f]{{15}}", made)
    assert ids.is_id(made)


def test_ids_made_one_after_the_other_sort_in_that_order():
    made = [ids.new_thread_id() for _ in range(10_000)]
    assert made == sorted(made)


def test_no_id_is_made_twice():
    assert len({ids.new_message_id() for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("value", ["a", "A", "0", "a-b_c", "thread_1", "z" * 128, "0-_"])
def test_any_prefix_is_accepted(value):
    assert ids.is_id(value)
    ids.check_id(value)


@pytest.mark.parametrize("value", NOT_IDS, ids=repr)
def test_what_is_not_an_id_is_refused(value):
    assert not ids.is_id(value)
    with pytest.raises(InvalidIdError) as caught:
        ids.check_id("good", value, "good")
    assert caught.value.value is value


@given(st.text(max_size=200))
def test_what_is_an_id_is_a_plain_name_of_a_file(value):
    if ids.is_id(value):
        assert value.isascii()
        assert 1 <= len(value.encode()) <= 128
        assert not set(value) & set("/\\.\0\n ")
        assert value[0].isalnum()


def test_all_of_several_are_checked_and_none_is_fine():
    ids.check_id()
    with pytest.raises(InvalidIdError):
        ids.check_id("a", "b", "c/d")
