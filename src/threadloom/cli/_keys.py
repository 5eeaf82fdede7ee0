"""The keys of a server's clients, which never stand on a command line, where anyone on the machine can read them."""

from __future__ import annotations

import os
from pathlib import Path

from threadloom.cli._errors import CannotStartError

__all__ = ["HOW_TO_SET_KEYS", "KEYS_VARIABLE", "read_keys"]

KEYS_VARIABLE = "THREADLOOM_API_KEYS"
HOW_TO_SET_KEYS = f"set {KEYS_VARIABLE} to keys with commas between them, or --api-keys-file to a file with one a line"


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys from the environment and from ``file``, or raise ``CannotStartError``."""
    keys = os.environ.get(KEYS_VARIABLE, "").split(",")
    if file is not None:
        try:
            in_file = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise CannotStartError(f"--api-keys-file {file} cannot be read: {reason}.") from None
        if not any(line.strip() for line in in_file):
            raise CannotStartError(f"--api-keys-file {file} has no key in it: write one a line.")
        keys += in_file
    found = tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))
    if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
        raise CannotStartError(
            "A key may have no spaces in it, and nothing but printable ASCII: no client could send it."
        )
    return found
