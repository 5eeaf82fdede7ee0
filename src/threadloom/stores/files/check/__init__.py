"""The check of a file store: what is wrong with it, and what a fix makes of that."""

from threadloom.stores.files.check._check import Check

__all__ = ["Check"]
