"""What keeps a command from starting."""

from __future__ import annotations

__all__ = ["CannotStartError"]


class CannotStartError(Exception):
    """One sentence for the one who typed the command: what was wrong, and what would be right."""
