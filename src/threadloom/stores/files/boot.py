"""What a store checks before it opens a tree: the format of the files, and whether the machine has restarted since."""

from __future__ import annotations

from typing import Final

from threadloom.errors import SerializationError, StoreError
from threadloom.stores.files import layout
from threadloom.stores.files.disk import Disk

__all__ = ["FORMAT", "boot_id", "check_format", "store_boot", "stored_boot"]

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
FORMAT: Final = b"2\n"
_UNRELEASED_FORMAT: Final = b"1"


def boot_id() -> str:
    """Return an id that changes whenever the machine restarts, '' if the system has none."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def stored_boot(disk: Disk) -> str:
    """Return the boot that ``store_boot`` recorded last, '' if there is none or the record is damaged."""
    try:
        return disk.read(layout.BOOT).decode(errors="replace").strip()
    except (FileNotFoundError, SerializationError):
        return ""


def store_boot(disk: Disk, boot: str) -> None:
    """Record that the index is complete for this boot. The record need not be synced: it is void after a restart."""
    disk.replace(layout.BOOT, f"{boot}\n".encode())


def check_format(disk: Disk) -> None:
    """Raise ``StoreError`` unless the tree has the format that this version reads; a new tree is marked with it."""
    try:
        found = disk.read(layout.FORMAT)
    except FileNotFoundError:
        found = b""
    if found == FORMAT:
        return
    where = disk.where(layout.FORMAT)
    if found.strip() == _UNRELEASED_FORMAT:
        raise StoreError(
            f"{where} says format 1, which only an unreleased version of threadloom wrote. "
            "This version reads format 2 and cannot convert the tree: open another directory."
        )
    if not FORMAT.startswith(found.rstrip(b"\0")):
        raise StoreError(f"{where} holds {found[:20]!r}, but this version of threadloom expects {FORMAT!r} there.")
    # A power failure may leave the file empty, torn or full of zeros, because it is not synced.
    disk.make_directories(layout.TMP)
    disk.replace(layout.FORMAT, FORMAT)
