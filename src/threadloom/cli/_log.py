"""Logging of a long-running command: one line per record, with its ids, on standard error."""

from __future__ import annotations

import logging

__all__ = ["log_to_stderr"]

_OWN = logging.makeLogRecord({}).__dict__.keys() | {"asctime", "message", "taskName"}


class _WithIds(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in logging
        """Append the attributes of the record, such as the ids of a run."""
        own = (f" {name}={value}" for name, value in record.__dict__.items() if name not in _OWN)
        return super().formatMessage(record) + "".join(own)


def log_to_stderr() -> None:
    """Log warnings and errors to standard error from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithIds("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
