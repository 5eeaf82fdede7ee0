"""Turns of the peers that run jobs: each in a process of its own, beside the servers that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _servers import Durability, MissingError, PostgreSQL, Redis, postgresql, redis

TURN_S = 150.0

Fresh = Callable[[Durability], str]


@dataclass(frozen=True)
class Peer:
    """A row: the module ``_peers_<name>.py``, the packages it needs, and where it keeps its work."""

    module: str
    server: str = ""
    poll_s: str = ""  # in place of the pause that it makes by itself
    packages: Sequence[str] = ()
    has_power: bool = True
    share: float = 1.0  # of the runs that others get, for one that would take minutes
    is_everywhere: bool = True  # and not in the one table only that has all
    to_reach: float | None = None  # how many times as fast we want to be

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.module}, looks each {float(self.poll_s) * 1000:g} ms" if self.poll_s else self.module


@contextmanager
def servers(directory: Path) -> Iterator[dict[str, Fresh | str]]:
    """Run the servers that there are; yield what makes a fresh store in each, or why there is none."""
    with ExitStack() as stack:
        found: dict[str, Fresh | str] = {}
        starts: dict[str, Callable[[Path], AbstractContextManager[PostgreSQL | Redis]]]
        starts = {"postgresql": postgresql, "redis": redis}
        for name, start in starts.items():
            try:
                found[name] = stack.enter_context(start(directory)).fresh
            except MissingError as error:
                found[name] = str(error)
        yield found


def missing(peer: Peer, fresh: Fresh | str, durability: Durability) -> str:
    """Return why a peer can't be measured; nothing where it can."""
    if durability == "power" and not peer.has_power:
        return "knows no sync"
    if isinstance(fresh, str):
        return fresh
    for package in (peer.module, *peer.packages):
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed"
    return ""


def take_turn(program: str, peer: Peer, sizes: Sequence[int], place: Path, **settings: str) -> Any:
    """Return what one turn of a peer in ``program`` came to; ``RuntimeError`` where it came to nothing."""
    notes = place / "notes"
    here = Path(__file__).parent
    about = {"BENCH_NOTES": str(notes), "BENCH_POLL_S": peer.poll_s, "PYTHONPATH": str(here), **settings}
    turn = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, str(here / program)]
    command = [*turn, f"_peers_{peer.module}", *map(str, sizes)]
    environment = {**os.environ, **about}
    os.sync()
    try:
        done = subprocess.run(
            command, env=environment, cwd=place, capture_output=True, text=True, timeout=TURN_S, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"a turn took more than {TURN_S:g} s") from error
    except subprocess.CalledProcessError as error:
        log = Path(f"{notes}.log")
        said = f"{error.stderr}\n{log.read_text() if log.exists() else ''}"
        raise RuntimeError(f"a turn failed:\n{said[-3000:]}") from error
    return json.loads(done.stdout.splitlines()[-1])


def address(peer: Peer, found: dict[str, Fresh | str], place: Path, durability: Durability) -> str:
    """Return the URL of a fresh store on the peer's server, or the directory of its files."""
    fresh = found.get(peer.server)
    return str(place / "store") if fresh is None or isinstance(fresh, str) else fresh(durability)


def is_installed(package: str) -> bool:
    """Whether a package is here."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
