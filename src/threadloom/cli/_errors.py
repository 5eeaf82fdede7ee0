"""The error that prevents a command from starting."""

from __future__ import annotations

__all__ = ["CannotStartError"]


class CannotStartError(Exception):
    """A command cannot start. The message names the problem and what to do, in one sentence."""
