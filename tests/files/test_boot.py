"""A tree is opened only if its format is the one expected, and a boot is told from earlier ones."""

import pytest

from threadloom import StoreError
from threadloom.stores.files import boot, layout
from threadloom.stores.files.boot import boot_id, check_format, store_boot, stored_boot
from threadloom.stores.files.disk import Disk


@pytest.fixture
def disk(tmp_path):
    disk = Disk(str(tmp_path), "ours")
    yield disk
    disk.close()


@pytest.mark.parametrize("left_by_power_failure", [None, b"", b"\0\0"])
def test_a_new_tree_is_marked_with_the_format(disk, tmp_path, left_by_power_failure):
    if left_by_power_failure is not None:
        (tmp_path / ".threadloom").mkdir()
        (tmp_path / layout.FORMAT).write_bytes(left_by_power_failure)
    for _ in range(2):
        check_format(disk)
        assert (tmp_path / layout.FORMAT).read_bytes() == b"2\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1\n", "only an unreleased version of threadloom wrote"),
        (b"3\n", r"holds b'3\\n', but this version of threadloom expects b'2\\n'"),
        (b"x" * 1000, "holds b'xxxxxxxxxxxxxxxxxxxx',"),
    ],
)
def test_any_other_format_is_refused_and_nothing_is_written(disk, tmp_path, content, expected):
    (tmp_path / ".threadloom").mkdir()
    (tmp_path / layout.FORMAT).write_bytes(content)
    with pytest.raises(StoreError, match=expected) as raised:
        check_format(disk)
    assert str(tmp_path / layout.FORMAT) in str(raised.value)
    assert [path.name for path in (tmp_path / ".threadloom").iterdir()] == ["format"]
    assert (tmp_path / layout.FORMAT).read_bytes() == content


def test_a_boot_is_stored_and_a_damaged_record_counts_as_none(disk, tmp_path):
    check_format(disk)
    assert stored_boot(disk) == ""
    store_boot(disk, boot_id())
    assert stored_boot(disk) == boot_id()
    (tmp_path / layout.BOOT).write_bytes(b"\xff\n")
    assert stored_boot(disk) not in {"", boot_id()}
    (tmp_path / layout.BOOT).unlink()
    (tmp_path / layout.BOOT).symlink_to(tmp_path)
    assert stored_boot(disk) == ""


def test_a_system_without_boot_ids_has_none(monkeypatch, tmp_path):
    monkeypatch.setattr(boot, "_BOOT_ID", str(tmp_path / "missing"))
    assert boot_id() == ""
