"""What is done to assistants: the synchronous work of each operation.

All of them share one lock, that of the directory in which they lie.
"""

from __future__ import annotations

from collections.abc import Callable

from threadloom import codec
from threadloom.checks import IdempotencyKey, check_changed_assistant
from threadloom.errors import AssistantAlreadyExistsError, AssistantNotFoundError
from threadloom.ids import is_id
from threadloom.models import Assistant
from threadloom.pages import Page
from threadloom.stores.files._commit import Committer
from threadloom.stores.files._disk import Disk
from threadloom.stores.files._keys import Keys
from threadloom.stores.files._layout import Layout
from threadloom.stores.files._pages import PageRequest, page_of_records
from threadloom.stores.files._records import dumped, read_record, rewritten, starting_over_after_foreign_writes
from threadloom.stores.files._redo import Redo
from threadloom.stores.files._writer import Work
from threadloom.stores.files._writes import Put

__all__ = ["Assistants"]


class Assistants:
    """Assistants on disk."""

    def __init__(self, layout: Layout, disk: Disk, committer: Committer, redo: Redo, keys: Keys) -> None:
        self._layout = layout
        self._disk = disk
        self._committer = committer
        self._redo = redo
        self._keys = keys
        self.place = layout.place(layout.assistants)

    def create(self, assistant: Assistant, key: IdempotencyKey | None) -> Work[Assistant]:
        path = self._layout.assistant(assistant.id)
        key_path = None if key is None else self._keys.of_assistant(key)
        with self._redo.holding(self.place):
            created = self._keys.made_before(key_path, key, Assistant)
            if created is not None:
                return created
            if self._disk.exists(path):
                raise AssistantAlreadyExistsError(assistant.id)
            put = Put(path, dumped(assistant))
            kept = codec.decode(put.data, Assistant, path)  # nothing is written that could not be read again
            try:
                yield from self._committer.commit(self.place, put, *self._keys.putting(key_path, key, assistant))
            except FileExistsError:  # by a program that does not lock
                raise AssistantAlreadyExistsError(assistant.id) from None
        return kept

    def get(self, assistant_id: str) -> Assistant:
        try:
            return read_record(self._disk, self._layout.assistant(assistant_id), Assistant)
        except FileNotFoundError:
            raise AssistantNotFoundError(assistant_id) from None

    def ids(self) -> list[str]:
        names = self._disk.names(self._layout.assistants)
        return [name[: -len(".json")] for name in names if name.endswith(".json") and is_id(name[: -len(".json")])]

    def page(self, request: PageRequest, tenant: str | None) -> Page[Assistant]:
        return page_of_records(
            self.ids(), request, self.get, lambda assistant: tenant is None or assistant.tenant == tenant
        )

    def update(self, assistant_id: str, change: Callable[[Assistant], Assistant]) -> Work[Assistant]:
        path = self._layout.assistant(assistant_id)

        def act() -> Work[Assistant]:
            try:
                held = self._disk.hold(path)
            except FileNotFoundError:
                raise AssistantNotFoundError(assistant_id) from None
            with held:
                old = codec.decode(held.data, Assistant, path)
                new = change(old)
                check_changed_assistant(assistant_id, new)
                put = Put.over(held, rewritten(held, old, new))
                kept = codec.decode(put.data, Assistant, path)
                yield from self._committer.commit(self.place, put)
                return kept

        with self._redo.holding(self.place):
            return (yield from starting_over_after_foreign_writes(path, act))

    def delete(self, assistant_id: str) -> None:
        path = self._layout.assistant(assistant_id)
        with self._redo.holding(self.place):
            if not self._disk.exists(path):
                raise AssistantNotFoundError(assistant_id)
            # No journal is to tell of it when it is gone, or another has taken its place.
            self._committer.make_durable()
            self._disk.remove(path)
            if self._committer.power:
                self._disk.sync(self._layout.assistants)
