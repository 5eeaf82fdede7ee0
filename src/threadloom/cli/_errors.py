"""The error that prevents a command from starting."""

from __future__ import annotations

__all__ = ["CannotStartError"]


class CannotStartError(Exception):
    """A command cannot start. The message says in one sentence what is wrong and what to do."""
