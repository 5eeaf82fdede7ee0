"""A store in plain files."""

from threadloom.stores.files._store import FileStore

__all__ = ["FileStore"]
