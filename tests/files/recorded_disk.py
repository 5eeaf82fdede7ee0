"""A disk that writes down what is done to it, and shows what it may hold after a crash at any point of that.

After a power cut there is all that was synced, and of the rest what chance would have it: changes of names up to some
point of their order, as file systems with a journal keep them, and each write of data whole, torn, or not at all.
"""

import fcntl
import os
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from tests.support.disk_calls import Call

EXCHANGE = 2  # the flag of renameat2
ROOT = 0  # the node of the directory that is recorded


@frozen
class Make:
    """A new entry, for a file or directory that was made."""

    parent: int
    name: str
    node: int
    is_directory: bool


@frozen
class Move:
    """An entry moved to another place, over what was there."""

    parent: int
    name: str
    new_parent: int
    new_name: str


@frozen
class Exchange:
    """Two entries in each other's place."""

    parent: int
    name: str
    new_parent: int
    new_name: str


@frozen
class Remove:
    """An entry taken away."""

    parent: int
    name: str


@frozen
class Write:
    """Bytes written into a file."""

    node: int
    offset: int
    data: bytes = field(repr=lambda data: f"{data[:60]!r} ({len(data)})")


@frozen
class Cut:
    """A file given another size."""

    node: int
    size: int


@frozen
class Sync:
    """All that was done to a file or directory made durable; to everything where there is no node."""

    node: int | None


@frozen
class FailedSync:
    """A sync that failed: the system forgets what it could not write, and no later sync makes up for it."""

    node: int | None


Names = Make | Move | Exchange | Remove
Effect = Names | Write | Cut | Sync | FailedSync


class Tree:
    """Files and directories in memory."""

    def __init__(self) -> None:
        self.directories: dict[int, dict[str, int]] = {ROOT: {}}
        self.files: dict[int, bytearray] = {}

    def apply(self, effect: Effect) -> None:
        match effect:
            case Make(parent, name, node, is_directory):
                self.directories[parent][name] = node
                if is_directory:
                    self.directories[node] = {}
                else:
                    self.files.setdefault(node, bytearray())
            case Move(parent, name, new_parent, new_name):
                self.directories[new_parent][new_name] = self.directories[parent].pop(name)
            case Exchange(parent, name, new_parent, new_name):
                one, other = self.directories[parent], self.directories[new_parent]
                one[name], other[new_name] = other[new_name], one[name]
            case Remove(parent, name):
                del self.directories[parent][name]
            case Write(node, offset, data):
                file = self.files.setdefault(node, bytearray())
                file.extend(bytes(max(0, offset - len(file))))
                file[offset : offset + len(data)] = data
            case Cut(node, size):
                file = self.files.setdefault(node, bytearray())
                del file[size:]
                file.extend(bytes(size - len(file)))

    def find(self, parts: Iterable[str]) -> int | None:
        node = ROOT
        for part in parts:
            found = self.directories.get(node, {}).get(part)
            if found is None:
                return None
            node = found
        return node

    def contents(self, node: int = ROOT, path: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Yield every path, and what its file holds; a directory comes before what is in it, and holds nothing."""
        for name, child in sorted(self.directories[node].items()):
            where = f"{path}/{name}"
            if child in self.directories:
                yield where, None
                yield from self.contents(child, where)
            else:
                yield where, bytes(self.files[child])

    def put_into(self, directory: Path) -> None:
        """Make real files and directories of it."""
        for path, data in self.contents():
            where = f"{directory}{path}"
            if data is None:
                os.mkdir(where)  # noqa: PTH102 - thousands of them
            else:
                fd = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                os.write(fd, data)
                os.close(fd)


class RecordedDisk:
    """Makes every call, one at a time, and writes down what it did below ``base``."""

    def __init__(self, base: Path) -> None:
        self.effects: list[Effect] = []
        self._base = base
        self._tree = Tree()
        self._nodes: dict[int, int] = {}  # by descriptor
        self._last_node = ROOT
        self._lock = threading.RLock()

    def __call__(self, call: Call) -> Any:
        with self._lock:
            before = self._place_of_write(call)
            try:
                result = call()
            except OSError:
                if call.name in {"fsync", "fdatasync", "syncfs"}:
                    self.sync_failed(call)
                raise
            self._note(call, result, before)
            return result

    def sync_failed(self, call: Call) -> None:
        """Note a sync that was never made, or that failed."""
        with self._lock:
            self._done(FailedSync(None if call.name == "syncfs" else self._node_of(call.args[0])))

    def _place_of_write(self, call: Call) -> int:
        if call.name == "pwrite":
            return int(call.args[2])
        if call.name != "write":
            return 0
        fd = call.args[0]
        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        return os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)

    def _note(self, call: Call, result: Any, before: int) -> None:  # noqa: C901 - one case for each call
        match call.name, *call.args:
            case ["open", path, flags, *_]:
                self._note_open(path, flags, result)
            case ["close", fd]:
                self._nodes.pop(fd, None)
            case ["write" | "pwrite", fd, data, *_]:
                self._done(Write(self._node_of(fd), before, bytes(data[:result])))
            case ["ftruncate", fd, size]:
                self._done(Cut(self._node_of(fd), size))
            case ["posix_fallocate", fd, offset, size]:
                self._done(Cut(self._node_of(fd), max(os.fstat(fd).st_size, offset + size)))
            case ["rename" | "replace", source, target]:
                self._done(Move(*self._entry(source), *self._entry(target)))
            case ["renameat2", _, source, _, target, flag]:
                kind = Exchange if flag == EXCHANGE else Move
                self._done(kind(*self._entry(source), *self._entry(target)))
            case ["mkdir", path, *_]:
                self._last_node += 1
                self._done(Make(*self._entry(path), self._last_node, is_directory=True))
            case ["unlink" | "rmdir", path]:
                self._done(Remove(*self._entry(path)))
            case ["fsync" | "fdatasync", fd]:
                self._done(Sync(self._node_of(fd)))
            case ["syncfs", *_]:
                self._done(Sync(None))
            case unknown:
                raise AssertionError(f"a call that cannot be recorded: {unknown}")

    def _note_open(self, path: Any, flags: int, fd: int) -> None:
        parts = self._parts(path)
        self._nodes.pop(fd, None)
        if parts is None:
            return
        node = self._tree.find(parts)
        if node is None:
            assert flags & os.O_CREAT, f"{path} was made by others"
            self._last_node += 1
            node = self._last_node
            self._done(Make(*self._entry(path), node, is_directory=False))
        elif flags & os.O_TRUNC:
            self._done(Cut(node, 0))
        self._nodes[fd] = node

    def _done(self, effect: Effect) -> None:
        self._tree.apply(effect)
        self.effects.append(effect)

    def _node_of(self, fd: int) -> int:
        return self._nodes[fd]

    def _parts(self, path: Any) -> tuple[str, ...] | None:
        where = Path(os.fsdecode(path))
        return where.relative_to(self._base).parts if where.is_relative_to(self._base) else None

    def _entry(self, path: Any) -> tuple[int, str]:
        parts = self._parts(path)
        assert parts, f"a change outside of what is recorded: {path}"
        parent = self._tree.find(parts[:-1])
        assert parent is not None
        return parent, parts[-1]


@define
class Unsynced:
    """What of some effects a power cut may take: the data of some, and the names from the first that was not synced."""

    data: list[int]
    first_name: int


def unsynced(effects: Sequence[Effect]) -> Unsynced:
    """Return what of ``effects`` was not synced at their end."""
    data: dict[int, int] = {}  # the effect, and the file it was done to
    lost: list[int] = []
    # The effect, and the directories of which one has to be synced for it: no file system makes half a move.
    names: dict[int, set[int]] = {}
    first_name = 0
    for index, effect in enumerate(effects):
        match effect:
            case Write(node) | Cut(node):
                data[index] = node
            case Make(parent) | Remove(parent):
                names[index] = {parent}
            case Move(parent, _, new_parent) | Exchange(parent, _, new_parent):
                names[index] = {parent, new_parent}
            case Sync(None):
                data.clear()
                names.clear()
                first_name = index
            case Sync(node):
                data = {written: file for written, file in data.items() if file != node}
                for changed in [changed for changed, directories in names.items() if node in directories]:
                    del names[changed]
                    first_name = max(first_name, changed + 1)
            case FailedSync(node):
                lost += [written for written, file in data.items() if node in {None, file}]
                data = {written: file for written, file in data.items() if written not in lost}
    return Unsynced(sorted([*data, *lost]), first_name)


class Chance:
    """What a power cut does to the rest: each of its fates is drawn, or is the same for all."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self._random = random.Random(seed)

    def last_name(self, first: int, stop: int) -> int:
        """Return the end of the effects of which the names are kept."""
        match self.kind:
            case "nothing" | "data":
                return first
            case "everything" | "names" | "sizes":
                return stop
        return self._random.choice((first, stop, self._random.randint(first, max(first, stop))))

    def fate(self, effect: Write) -> list[Effect]:
        """Return what comes of an unsynced write."""
        match self.kind:
            case "everything" | "data":
                return [effect]
            case "nothing" | "names":
                return []
            case "sizes":
                return [_hole(effect)]
        dropped: list[Effect] = [_hole(effect)] if self._random.random() < 0.5 else []
        match self._random.choice(("kept", "dropped", "torn")):
            case "kept":
                return [effect]
            case "torn":
                return [*dropped, Write(effect.node, effect.offset, effect.data[: self._tear(effect.data)])]
        return dropped

    def keeps(self) -> bool:
        """Return whether an unsynced change of a size is kept, where its place in the order does not say."""
        return self.kind in {"everything", "data"}

    def _tear(self, data: bytes) -> int:
        inside = [index for index, byte in enumerate(data) if 0x80 <= byte < 0xC0]  # of a character
        if inside and self._random.random() < 0.5:
            return self._random.choice(inside)
        return self._random.randint(0, len(data))


def _hole(effect: Write) -> Effect:
    """Return what is left of a write whose size was kept and whose bytes were not: NULs, where there was nothing."""
    return Write(effect.node, effect.offset + len(effect.data), b"")


KINDS = ("nothing", "everything", "names", "sizes", "data", "chance_1", "chance_2", "chance_3")


def after_power_cut(effects: Sequence[Effect], kind: str) -> Tree:
    """Return what a disk may hold after the power was cut at the end of ``effects``."""
    chance = Chance(kind, seed=len(effects) * len(KINDS) + KINDS.index(kind))
    rest = unsynced(effects)
    unsure = set(rest.data)
    last_name = chance.last_name(rest.first_name, len(effects))
    tree = Tree()
    for index, effect in enumerate(effects):
        if isinstance(effect, Names):
            fates: list[Effect] = [effect] if index < last_name else []
        elif index not in unsure:
            fates = [effect]
        elif isinstance(effect, Write):
            fates = chance.fate(effect)
        else:
            fates = [effect] if index < last_name or chance.keeps() else []
        for fate in fates:
            tree.apply(fate)
    return tree


def after_kill(effects: Sequence[Effect]) -> Tree:
    """Return what the disk holds after the process was killed at the end of ``effects``."""
    tree = Tree()
    for effect in effects:
        tree.apply(effect)
    return tree
