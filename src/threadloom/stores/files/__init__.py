"""The file store."""

from threadloom.stores.files.file_store import FileStore

__all__ = ["FileStore"]
