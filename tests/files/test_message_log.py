"""The messages of one thread on disk: places, pages, edits, and what a crash or another program leaves behind."""

import os
from pathlib import Path

import attrs
import orjson
import pytest

from threadloom.errors import InvalidCursorError, SerializationError
from threadloom.models import Message
from threadloom.pages import Page, PageRequest
from threadloom.records import MessageEdit
from threadloom.stores.files import layout, log_lines, message_log
from threadloom.stores.files.disk import Disk
from threadloom.stores.files.message_log import CursorCache, MessageLog

THREAD = "thread_1"


@pytest.fixture
def disk(tmp_path):
    (tmp_path / THREAD).mkdir()
    for name in layout.OWN_DIRECTORIES:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    disk = Disk(str(tmp_path), "owner")
    yield disk
    disk.close()


@pytest.fixture
def log(disk):
    log = MessageLog(disk, THREAD)
    yield log
    log.close()


def path(disk: Disk, name: str = "messages.jsonl") -> Path:
    return Path(disk.root, THREAD, name)


def message(number: int, text: str = "hello", run_id: str | None = None) -> Message:
    return attrs.evolve(Message.user(THREAD, text), id=f"msg_{number}", run_id=run_id)


def append(log: MessageLog, *messages: Message) -> None:
    log.refresh()
    log.append(log.lines_for(messages), len(messages))


def append_externally(disk: Disk, *numbers: int, run_id: str | None = None) -> None:
    """Append as a program does that knows nothing of places, with the spaces that Python's json puts in."""
    with path(disk).open("a") as file:
        for number in numbers:
            line = message_log.message_lines([message(number, run_id=run_id)], 0)
            record = orjson.loads(line)
            del record["sequence"]
            file.write(orjson.dumps(record).decode().replace('":', '": ') + "\n")


def edit(disk: Disk, *edits: MessageEdit) -> None:
    with path(disk, "edits.jsonl").open("ab") as file:
        file.writelines(map(message_log.edit_line, edits))


def places(disk: Disk, *, order: str = "asc") -> dict[str, int]:
    """Return the place of every message, as a listing computes them."""
    seen: list[int] = []

    def sees(place: int, _run_id: str | None) -> bool:
        seen.append(place)
        return True

    page = message_log.page(disk, THREAD, PageRequest(order=order), run_id=None, sees=sees, cursors=CursorCache())
    return dict(zip([item.id for item in page], seen, strict=True))


def listed(disk: Disk, cursors: CursorCache | None = None, **request) -> Page[Message]:
    return message_log.page(
        disk, THREAD, PageRequest(**request), run_id=None, sees=None, cursors=cursors or CursorCache()
    )


def ids(page) -> list[str]:
    return [item.id for item in page]


# Places


def test_places_count_from_zero_and_are_written_on_the_lines(disk, log):
    append(log, message(0), message(1))
    append(log, message(2))
    assert [orjson.loads(line)["sequence"] for line in path(disk).read_bytes().splitlines()] == [0, 1, 2]
    assert log.count == 3
    assert log.end == path(disk).stat().st_size


def test_external_lines_have_places_between_numbered_ones(disk, log):
    append(log, message(0), message(1))
    append_externally(disk, 2, 3)
    append(log, message(4))
    append_externally(disk, 5)
    expected = {f"msg_{number}": number for number in range(6)}
    assert places(disk) == expected
    assert places(disk, order="desc") == expected
    log.refresh()
    assert log.count == 6


def test_places_agree_both_ways_where_a_line_was_removed_by_hand(disk, log):
    append(log, message(0))
    append_externally(disk, 1)
    append(log, message(2), message(3))
    kept = path(disk).read_bytes().splitlines(keepends=True)
    path(disk).write_bytes(b"".join([*kept[:2], *kept[3:]]))
    assert places(disk) == places(disk, order="desc") == {"msg_0": 0, "msg_1": 1, "msg_3": 3}


def test_seed_files_count_from_their_beginning(disk, log):
    append_externally(disk, *range(500))
    assert places(disk, order="desc")["msg_499"] == 499
    assert places(disk) == places(disk, order="desc")
    append(log, message(500))
    assert places(disk)["msg_500"] == 500


def test_blank_damaged_and_deleted_lines_have_places(disk, log):
    append(log, message(0))
    with path(disk).open("ab") as file:
        file.write(b'\n  \n{"sequence": oops}\n')
    append(log, message(4))
    edit(disk, MessageEdit("msg_0", None))
    assert places(disk) == {"msg_4": 4}
    assert log.count == 5


@pytest.mark.parametrize("number", ["true", "-1", '"3"', "1.5", "null"])
def test_a_sequence_that_is_no_number_is_ignored(disk, log, number):
    append(log, message(0))
    with path(disk).open("a") as file:
        file.write(f'{{"id": "x", "sequence": {number}}}\n')
    log.refresh()
    assert log.count == 2


def test_a_sequence_in_metadata_or_text_is_not_a_place(disk, log):
    path(disk).write_text('{"metadata": {"sequence": 7}, "text": "\\"sequence\\": 9"}\n')
    log.refresh()
    assert log.count == 1


def test_the_place_behind_a_numbered_line_is_found_from_the_end(disk, log, monkeypatch):
    append(log, *(message(number, "x" * 1000) for number in range(500)))
    read: list[int] = []

    def read_at(fd: int, offset: int, length: int) -> bytes:
        read.append(length)
        return os.pread(fd, length, offset)

    monkeypatch.setattr(log_lines, "read_at", read_at)
    other = MessageLog(disk, THREAD)
    other.refresh()
    other.close()
    assert other.count == 500
    assert sum(read) < 20_000


# Refreshing


def test_refresh_asks_the_system_once_while_nobody_else_wrote(disk, log, monkeypatch):
    append(log, message(0))
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*args, **options):
            calls.append(name)
            return real(*args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "fstat", "pread", "open"):
        watch(name)
    log.refresh()
    assert calls == ["stat"]


def test_a_missing_log_is_empty_and_made_by_the_first_append(disk, log):
    log.refresh()
    assert (log.end, log.count) == (0, 0)
    assert not path(disk).exists()
    append(log, message(0))
    assert ids(listed(disk)) == ["msg_0"]


def test_refresh_follows_a_log_that_was_replaced_or_removed(disk, log):
    append(log, message(0), message(1))
    replaced = path(disk).with_name("new")
    replaced.write_bytes(message_log.message_lines([message(7)], 0))
    replaced.rename(path(disk))
    append(log, message(8))
    assert places(disk) == {"msg_7": 0, "msg_8": 1}
    path(disk).unlink()
    log.refresh()
    assert (log.end, log.count) == (0, 0)
    append(log, message(9))
    assert places(disk) == {"msg_9": 0}


def test_a_torn_last_line_is_ignored_by_readers_and_moved_aside_by_the_writer(disk, log):
    append(log, message(0))
    with path(disk).open("ab") as file:
        file.write(b'{"id": "msg_torn", "obj')
    assert ids(listed(disk)) == ["msg_0"]
    assert message_log.find(disk, THREAD, "msg_torn") is None
    append(log, message(1))
    assert places(disk) == {"msg_0": 0, "msg_1": 1}
    (aside,) = Path(disk.root, layout.DAMAGED).iterdir()
    assert aside.name.startswith(f"{THREAD}-messages.jsonl-")
    assert aside.read_bytes() == b'{"id": "msg_torn", "obj'


def test_a_whole_last_line_without_its_newline_is_kept(disk, log):
    append_externally(disk, 0, 1)
    os.truncate(path(disk), path(disk).stat().st_size - 1)
    assert ids(listed(disk)) == ["msg_0"]
    append(log, message(2))
    assert places(disk) == {"msg_0": 0, "msg_1": 1, "msg_2": 2}
    assert not list(Path(disk.root, layout.DAMAGED).iterdir())


def test_a_torn_line_longer_than_a_block_is_moved_aside_whole(disk, log):
    torn = b"[" + b"x" * 200_000
    path(disk).write_bytes(torn)
    log.refresh()
    assert (log.end, log.count) == (0, 0)
    (aside,) = Path(disk.root, layout.DAMAGED).iterdir()
    assert aside.read_bytes() == torn


# Pages


@pytest.mark.parametrize("length", [10, 3_900, 70_000, 200_000])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_go_on_from_their_cursors_both_ways(disk, log, length, order):
    append(log, *(message(number, "x" * (length + number)) for number in range(11)))
    everything = [f"msg_{number}" for number in range(11)]
    if order == "desc":
        everything.reverse()
    cursors = CursorCache()

    found: list[str] = []
    page = listed(disk, cursors, limit=3, order=order)
    while True:
        found += ids(page)
        if not page.has_more:
            break
        page = listed(disk, cursors, limit=3, order=order, after=found[-1])
    assert found == everything

    back = ids(page)
    while True:
        page = listed(disk, CursorCache(), limit=3, order=order, before=back[0])
        back[:0] = ids(page)
        if not page.has_more:
            break
    assert back == everything
    between = listed(disk, order=order, after=everything[1], before=everything[5])
    assert ids(between) == everything[2:5]


def test_a_deleted_message_is_still_a_cursor(disk, log):
    append(log, *map(message, range(4)))
    edit(disk, MessageEdit("msg_1", {"colour": "red"}), MessageEdit("msg_2", {"a": "b"}), MessageEdit("msg_1", None))
    assert ids(listed(disk, after="msg_1")) == ["msg_2", "msg_3"]
    assert ids(listed(disk, before="msg_1")) == ["msg_0"]
    assert message_log.find(disk, THREAD, "msg_1") is None
    edited = message_log.find(disk, THREAD, "msg_2")
    assert edited is not None
    assert edited.metadata == {"a": "b"} == listed(disk, after="msg_1")[0].metadata


def test_an_unknown_cursor_is_refused_also_where_there_is_no_log(disk, log):
    with pytest.raises(InvalidCursorError, match="messages of the thread"):
        listed(disk, before="msg_9")
    assert listed(disk) == Page(())
    append(log, message(0, 'look at "msg_9"'))
    for cursor in ("msg_9", 'a"b', "x\ny", "y" * 200_000):
        with pytest.raises(InvalidCursorError):
            listed(disk, after=cursor)


def test_a_remembered_cursor_of_another_log_is_looked_up_again(disk, log):
    append(log, *map(message, range(4)))
    cursors = CursorCache()
    listed(disk, cursors, limit=2)
    path(disk).unlink()
    append(log, message(9, "longer than the one that was here"), message(1), message(2))
    assert ids(listed(disk, cursors, after="msg_1")) == ["msg_2"]


def test_only_messages_of_a_run_or_those_that_are_seen_are_listed(disk, log):
    append(log, message(0), message(1, run_id="run_1"), message(2), message(3, run_id="run_2"))
    cursors = CursorCache()
    of_run = message_log.page(disk, THREAD, PageRequest(), run_id="run_2", sees=None, cursors=cursors)
    assert ids(of_run) == ["msg_3"]
    seen = message_log.page(
        disk,
        THREAD,
        PageRequest(limit=2, order="desc"),
        run_id=None,
        sees=lambda place, run_id: place < 2 or run_id == "run_2",
        cursors=cursors,
    )
    assert ids(seen) == ["msg_3", "msg_1"]
    assert seen.has_more


# Damage


def test_damaged_lines_are_reported_and_hide_no_other(disk, log):
    append(log, message(0))
    offset = log.end
    with path(disk).open("ab") as file:
        file.write(b'{"id": "msg_1", broken\n[1]\n{"id": "msg_2", "object": "thread.message"}\n')
    append(log, message(4))
    for order in ("asc", "desc"):
        page = listed(disk, order=order)
        assert sorted(ids(page)) == ["msg_0", "msg_4"]
        assert len(page.damaged) == 3
    first = listed(disk).damaged[0]
    assert isinstance(first, SerializationError)
    assert (first.where, first.offset) == (str(path(disk)), offset)
    for damaged in ("msg_1", "msg_2"):
        with pytest.raises(SerializationError):
            message_log.find(disk, THREAD, damaged)


def test_a_damaged_line_that_mentions_a_message_does_not_hide_it(disk, log):
    append(log, message(0))
    with path(disk).open("ab") as file:
        file.write(b'{"metadata": {"reply_to": "msg_0"}, broken\n')
    found = message_log.find(disk, THREAD, "msg_0")
    assert found is not None
    assert ids(listed(disk, before="msg_0")) == []


def test_damaged_edits_are_reported_with_the_page(disk, log):
    append(log, message(0))
    path(disk, "edits.jsonl").write_bytes(
        b'no\n{"object": "other"}\n\n{"object": "thread.message.edited", "message_id": "msg_0", "metadata": 3}\n'
    )
    page = listed(disk)
    assert ids(page) == ["msg_0"]
    assert [damage.offset for damage in page.damaged if isinstance(damage, SerializationError)] == [0, 3, 24]


# What runs wrote


def test_what_runs_wrote_is_found_from_a_place_on(disk, log):
    append(log, message(0, run_id="run_1"), message(1), message(2, run_id="run_2"), message(3, run_id="run_1"))
    append_externally(disk, 4, run_id="run_1")
    append(log, message(5, run_id="run_3"), message(6, run_id="run_1"))
    edit(disk, MessageEdit("msg_6", None))
    assert message_log.written_by(disk, THREAD, {"run_1", "run_2"}, 2) == ["msg_2", "msg_3", "msg_4"]
    assert message_log.written_by(disk, THREAD, ["run_1"], 0) == ["msg_0", "msg_3", "msg_4"]
    assert message_log.written_by(disk, THREAD, ["run_1"], 7) == []


def test_a_message_is_on_a_line_from_an_offset_on_only_if_it_begins_there(disk, log):
    append(log, message(0))
    offset = log.end
    append(log, message(1, 'not "msg_0"'), message(2))
    with path(disk).open("ab") as file:
        file.write(message_log.message_lines([message(3)], 3)[:-1])
    size = path(disk).stat().st_size
    fd = os.open(path(disk), os.O_RDONLY)
    try:
        assert message_log.has_line(fd, size, 0, "msg_0")
        assert not message_log.has_line(fd, size, offset, "msg_0")
        assert message_log.has_line(fd, size, offset, "msg_1")
        assert message_log.has_line(fd, size, offset, "msg_2")
        assert not message_log.has_line(fd, size, offset, "msg_3")
        assert not message_log.has_line(fd, size, size + 10, "msg_2")
    finally:
        os.close(fd)


# Lines


@pytest.mark.parametrize("length", [0, 1, 50, 4_095, 4_096, 65_535, 65_536, 150_000])
def test_lines_are_the_same_from_either_end(tmp_path, length):
    expected = [b"first", b"x" * length, b"", b"y" * length, b"last"]
    (tmp_path / "log").write_bytes(b"\n".join([*expected, b"torn" * 2_000]))
    fd = os.open(tmp_path / "log", os.O_RDONLY)
    try:
        end = log_lines.end_of_lines(fd, os.fstat(fd).st_size)
        forward = list(log_lines.lines(fd, 0, end))
        assert [data for _, data in forward] == expected
        assert list(log_lines.lines_backward(fd, 0, end)) == forward[::-1]
        assert list(log_lines.lines_backward(fd, forward[2][0], end)) == forward[:1:-1]
        assert log_lines.count_lines(fd, 0, end) == 5
        assert list(log_lines.lines_with(fd, b"last", end)) == [forward[4]]
        assert list(log_lines.lines_with(fd, b"first", end)) == [forward[0]]
    finally:
        os.close(fd)


def test_a_text_is_found_wherever_it_lies_among_the_blocks(tmp_path):
    for before in (0, 1, 4_090, 4_093, 4_096, 65_530, 69_630, 69_632, 140_000):
        lines = [b"a" * before, b"bb needle " + b"b" * before, b"c" * before + b"needle" + b"c" * 4_092, b"d" * 20]
        (tmp_path / "log").write_bytes(b"".join(line + b"\n" for line in lines))
        fd = os.open(tmp_path / "log", os.O_RDONLY)
        try:
            found = list(log_lines.lines_with(fd, b"needle", os.fstat(fd).st_size))
        finally:
            os.close(fd)
        assert [data for _, data in found] == [lines[2], lines[1]]
