"""What the file store asks of the system, led through a test's hands: it may be written down, refused, or cut short.

The real call is made all the same. Whatever of the system's calls changes files and is not known here is refused, so
that no change goes by unseen.
"""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from attrs import frozen

SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})
WRITES = frozenset({"write", "pwrite"})
CHANGES = SYNCS | WRITES | {"ftruncate", "mkdir", "rename", "renameat2", "replace", "rmdir", "unlink"}
TRACKED = CHANGES | {"open", "close"}
REFUSED = frozenset(
    {
        *("copy_file_range", "fdopen", "link", "makedirs", "mkfifo", "mknod", "posix_fallocate", "pwritev", "remove"),
        *("removedirs", "renames", "sendfile", "splice", "symlink", "sync", "truncate", "writev"),
    }
)
HOUSE = "threadloom.stores.files"


@frozen
class Call:
    """One call of the system, made when it is called."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]

    def __call__(self) -> Any:
        return self.function(*self.args)

    @property
    def is_change(self) -> bool:
        """Whether it changes files, or makes durable what was changed."""
        return self.name in CHANGES or (self.name == "open" and bool(self.args[1] & (os.O_CREAT | os.O_TRUNC)))


Through = Callable[[Call], Any]
"""Makes a call or does not, and returns what it returned."""


class _System:
    """Stands for the module ``os``."""

    def __init__(self, through: Through) -> None:
        self._through = through

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name in REFUSED:
            raise AssertionError(f"os.{name} changes files, and tests/support/disk_calls.py does not know it")
        if name not in TRACKED:
            return function
        return lambda *args: self._through(Call(name, function, args))


class _Shell:
    """Stands for the module ``shutil``: the one thing of it that is used, in calls that can be seen."""

    def __init__(self, system: _System) -> None:
        self._system = system

    def rmtree(self, path: Any, ignore_errors: bool = False) -> None:
        try:
            with os.scandir(path) as entries:
                found = list(entries)
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    self.rmtree(entry.path)
                else:
                    self._system.unlink(entry.path)
            self._system.rmdir(path)
        except OSError:
            if not ignore_errors:
                raise


def _foreign(through: Through, function: Any) -> Callable[..., int]:
    """Return what stands for a function of the C library, which tells of an error in its own way."""

    def called(*args: Any) -> int:
        try:
            return int(through(Call(function.__name__, function, args)))
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1

    return called


def intercept(monkeypatch: Any, through: Through) -> None:
    """Lead every call of the system that the file store makes through ``through``, until the patch is undone."""
    system = _System(through)
    pointer = type(ctypes.CDLL(None).close).__mro__[1]  # the class that all functions of ctypes have
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith(HOUSE):
            continue
        for name, value in list(vars(module).items()):
            if value is os:
                monkeypatch.setattr(module, name, system)
            elif value is shutil:
                monkeypatch.setattr(module, name, _Shell(system))
            elif isinstance(value, pointer):
                monkeypatch.setattr(module, name, _foreign(through, value))
