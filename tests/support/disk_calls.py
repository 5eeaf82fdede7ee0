"""Lead the system calls of the file store through a test's hands: to record them, refuse them, or cut them short.

The real call is made all the same. A call that changes files and is not known here is refused, so that no change goes
unseen. Memory that is mapped (``stamps.py``) is left out: nothing in it needs to survive.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from attrs import field, frozen

SYNCS = frozenset({"fsync", "fdatasync", "syncfs"})
WRITES = frozenset({"write", "pwrite"})
CHANGES = (
    SYNCS
    | WRITES
    | {
        *("ftruncate", "mkdir", "posix_fallocate", "rename", "renameat2", "replace", "rmdir", "unlink"),
    }
)
TRACKED = CHANGES | {"open", "close"}
REFUSED = frozenset(
    {
        *("copy_file_range", "fdopen", "link", "makedirs", "mkfifo", "mknod", "pwritev", "remove"),
        *("removedirs", "renames", "sendfile", "splice", "symlink", "sync", "truncate", "writev"),
    }
)
HOUSE = "threadloom.stores.files"
_OPENAT2 = 437
_LIBC = frozenset({"renameat2", "syncfs", "syscall"})
_open_how = struct.Struct("QQQ")


@frozen
class Call:
    """One call of the system, made when it is called. ``options`` are arguments that no test looks at."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(factory=dict)

    def __call__(self) -> Any:
        return self.function(*self.args, **self.options)

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
        if name == "open":
            return self._open
        if name not in TRACKED:
            return function
        return lambda *args, **named: self._through(Call(name, partial(function, **named) if named else function, args))

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> Any:
        where = path if dir_fd is None else _below(dir_fd, path)
        return self._through(Call("open", _open_below, (where, flags), {"name": path, "mode": mode, "dir_fd": dir_fd}))


def _open_below(_: str, flags: int, *, name: str, mode: int, dir_fd: int | None) -> int:
    return os.open(name, flags, mode, dir_fd=dir_fd)


def _below(directory: int, path: str) -> str:
    return os.path.normpath(f"{Path(f'/proc/self/fd/{directory}').readlink()}/{path}")


def _of_the_c_library(through: Through, function: Any) -> Callable[..., int]:
    """Return what stands for a function of the C library, which reports an error in its own way."""

    def real(*args: Any) -> int:
        result = int(function(*args))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def openat2(args: tuple[Any, ...]) -> Call:
        number, root, path, how, _ = args
        assert number == _OPENAT2, f"system call {number} is not known to tests/support/disk_calls.py"
        flags = _open_how.unpack(how)[0]
        return Call("open", lambda *_: real(*args), (_below(root, os.fsdecode(path)), flags))

    def called(*args: Any) -> int:
        call = openat2(args) if function.__name__ == "syscall" else Call(function.__name__, real, args)
        try:
            return int(through(call))
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
            elif isinstance(value, pointer) and getattr(value, "__name__", "") in _LIBC:
                monkeypatch.setattr(module, name, _of_the_c_library(through, value))
