"""The keys of clients. They are never on the command line, where anyone on the machine could read them."""

from __future__ import annotations

import os
from pathlib import Path

from threadloom.cli._errors import CannotStartError

__all__ = ["HOW_TO_SET_KEYS", "KEYS_VARIABLE", "read_keys"]

KEYS_VARIABLE = "THREADLOOM_API_KEYS"
HOW_TO_SET_KEYS = f"set {KEYS_VARIABLE} to keys separated by commas, or --api-keys-file to a file with one key per line"


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys from the environment and from ``file``, or raise ``CannotStartError``."""
    keys = os.environ.get(KEYS_VARIABLE, "").split(",")
    if file is not None:
        try:
            in_file = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise CannotStartError(f"--api-keys-file {file} cannot be read: {reason}.") from None
        if not any(line.strip() for line in in_file):
            raise CannotStartError(f"--api-keys-file {file} contains no keys: write one key per line.")
        keys += in_file
    found = tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))
    if not all(key.isascii() and key.isprintable() and " " not in key for key in found):
        raise CannotStartError("A key must be printable ASCII without spaces: no client could send another one.")
    return found
