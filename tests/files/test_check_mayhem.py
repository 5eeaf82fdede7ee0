"""Chance makes mayhem of a store; a fix ends it, and what was not damaged is what it was."""

import random
import shutil

import pytest

from tests.support.check_fixtures import OWN, fill, make_run
from threadloom import FileStore, Message, Run, Thread
from threadloom.testing import ManualClock

SEEDS = [*range(11), 1085]
BLOWS = 6


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return where a store lies that is only ever copied."""
    return tmp_path_factory.mktemp("tree") / "store"


@pytest.fixture
async def root(tree, tmp_path):
    if not tree.exists():
        async with FileStore(tree, durability="process", clock=ManualClock()) as store:
            await store.create_thread(Thread.new(id="thread_c"))
            await make_run(store, "thread_c", "run_first")
            await make_run(store, "thread_c", "run_second")
            await fill(store, "thread_a")
            await fill(store, "thread_b")
    return shutil.copytree(tree, tmp_path / "store")


def pieces_of(root):
    """Return every record, by its path, and every line of a log, by its path and where it begins."""
    pieces: dict[tuple[str, int | None], bytes] = {}
    for path in sorted(root.glob("thread_*/**/*")):
        name = str(path.relative_to(root))
        if path.suffix == ".json":
            pieces[name, None] = path.read_bytes()
        elif path.suffix == ".jsonl":
            offset = 0
            for line in path.read_bytes().splitlines(keepends=True):
                pieces[name, offset] = line
                offset += len(line)
    return pieces


class Mayhem:
    """Strikes at files by chance, and knows what was not hit."""

    def __init__(self, root, seed):
        self.root = root
        self.chance = random.Random(seed)
        self.unhurt = pieces_of(root)
        self.all = set(self.unhurt)

    def strike(self):
        paths = sorted(path for path in self.root.glob("thread_*/**/*") if path.is_file())
        paths += sorted((self.root / OWN / "queue").iterdir())
        path, other = self.chance.choices(paths, k=2)
        blows = [self.delete, self.truncate, self.flip, self.flip, self.flip, self.move, self.move_directory]
        self.chance.choice(blows)(path, other)

    def delete(self, path, _):
        path.unlink()
        self.hurt(path)

    def truncate(self, path, _):
        size = self.chance.randrange(path.stat().st_size) if path.stat().st_size else 0
        with path.open("r+b") as file:
            file.truncate(size)
        self.hurt(path, start=size)

    def flip(self, path, _):
        data = bytearray(path.read_bytes())
        if data:
            place = self.chance.randrange(len(data))
            data[place] ^= 1 << self.chance.randrange(8)
            path.write_bytes(data)
            self.hurt(path, start=place, stop=place + 1)

    def move(self, path, target):
        path.replace(target)
        self.hurt(path)
        self.hurt(target)

    def move_directory(self, path, target):
        directory, beside = path.parent, target.parent / f"moved_{self.chance.randrange(1000)}"
        if OWN not in beside.parts and directory.name != "queue" and not beside.is_relative_to(directory):
            directory.rename(beside)
            self.hurt(directory)

    def hurt(self, path, start=0, stop=None):
        name = str(path.relative_to(self.root))
        for piece, data in list(self.unhurt.items()):
            begin = piece[1] or 0
            is_in_it = piece[0] == name or piece[0].startswith(f"{name}/")
            # The byte before a line is its newline: without it, the line is no more by itself.
            if is_in_it and begin + len(data) > start and (stop is None or begin - (begin > 0) < stop):
                del self.unhurt[piece]

    def projections(self):
        """Return the records of runs in which something was hurt: they follow the logs."""
        hurt = {_run_of(name) for name, _ in self.all - self.unhurt.keys()} - {None}
        return {(name, offset) for name, offset in self.unhurt if name.endswith(".json") and _run_of(name) in hurt}


def _run_of(name):
    thread_id, is_run, rest = name.partition("/runs/")
    return (thread_id, rest.split("/")[0]) if is_run else None


def is_kept(root, piece, data):
    """Return whether a piece lies where it lay, or in a directory that was moved aside whole."""
    name, offset = piece
    begin = offset or 0
    places = [(root / name, begin), *((path, begin) for path in (root / OWN / "damaged").glob(f"*/{name}"))]
    if name.endswith("events.jsonl"):
        # The end of a log that has lost its last line is kept aside by itself.
        aside = (root / OWN / "damaged").glob(f"*/{name}-*")
        places += [(path, begin - int(path.name.rpartition("-")[2])) for path in aside]
    return any(
        place.is_file() and start >= 0 and place.read_bytes()[start : start + len(data)] == data
        for place, start in places
    )


@pytest.mark.parametrize("seed", SEEDS)
async def test_after_mayhem_a_fix_leaves_a_clean_store_and_touches_nothing_that_was_unhurt(root, seed):
    mayhem = Mayhem(root, seed)
    for _ in range(BLOWS):
        mayhem.strike()

    async with FileStore(root, durability="process", clock=ManualClock()) as store:
        fixed = await store.check(fix=True)
        assert fixed.is_clean, fixed.left
        again = await store.check()
        assert again.problems == ()

        touched = {piece for piece, data in mayhem.unhurt.items() if not is_kept(root, piece, data)}
        touched -= mayhem.projections()
        assert touched == set()

        for thread in await store.list_threads():
            await store.append_message(thread.id, Message.user(thread.id, "still here"))
            run = await store.create_run(thread.id, Run.new(thread.id, model="any"))
            assert (await store.list_messages(thread.id))[-1].text == "still here"
            assert (await store.list_runs(thread.id))[-1] == run
        assert (await store.list_threads()).damaged == ()
        assert (await store.check()).problems == ()
