"""The servers that some peers need, on sockets in directories of the benchmark's own, and gone when it is.

They come from Debian's packages. Should the benchmark be killed, the kernel ends them with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwnam
from typing import Literal

PATIENCE_S = 30.0

Durability = Literal["power", "process"]


class MissingError(Exception):
    """A server that is not installed."""


@dataclass(frozen=True)
class PostgreSQL:
    """A server of PostgreSQL, in which each turn gets a database of its own."""

    bin: Path
    sockets: Path

    def fresh(self, durability: Durability) -> str:
        """Make a database, in which a commit waits for the disk or does not, and return its URL."""
        name = f"bench_{time.monotonic_ns()}"
        self.tell(f"CREATE DATABASE {name}", f"ALTER DATABASE {name} SET synchronous_commit = {commits(durability)}")
        return f"postgresql://bench@/{name}?host={self.sockets}"

    def tell(self, *statements: str) -> None:
        """Carry out statements."""
        told = [part for statement in statements for part in ("-c", statement)]
        url = f"postgresql://bench@/postgres?host={self.sockets}"
        run([str(self.bin / "psql"), "--quiet", "--no-psqlrc", *told, url])


@dataclass(frozen=True)
class Redis:
    """A server of Redis, which each turn finds empty."""

    cli: str
    socket: Path

    def fresh(self, durability: Durability) -> str:
        """Empty it, have its log synced at each command or each second, and return its URL."""
        self.tell("FLUSHALL")
        self.tell("CONFIG", "SET", "appendfsync", syncs(durability))
        return f"unix://{self.socket}"

    def tell(self, *command: str) -> None:
        """Carry out a command."""
        run([self.cli, "-e", "-s", str(self.socket), *command])


def commits(durability: Durability) -> str:
    """Return PostgreSQL's ``synchronous_commit``."""
    return "on" if durability == "power" else "off"


def syncs(durability: Durability) -> str:
    """Return Redis's ``appendfsync``."""
    return "always" if durability == "power" else "everysec"


@contextmanager
def postgresql(directory: Path) -> Iterator[PostgreSQL]:
    """Run PostgreSQL with its files in a new directory below ``directory``; ``MissingError`` where there is none."""
    binaries = newest_postgresql()
    # It refuses to be run by root.
    user = "postgres" if os.geteuid() == 0 else None
    with own_directory(directory, user) as files, own_directory(None, user) as sockets:
        data = files / "data"
        initialize = [str(binaries / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust", "--no-sync"]
        run([*as_user(user), *initialize, "--encoding=UTF8", "--locale=C"])
        listen = ["-k", str(sockets), "-c", "listen_addresses="]
        server = PostgreSQL(binaries, sockets)
        command = [str(binaries / "postgres"), "-D", str(data), *listen]
        with running(command, sockets / "log", user, signal.SIGINT, lambda: server.tell("SELECT 1")):
            yield server


@contextmanager
def redis(directory: Path) -> Iterator[Redis]:
    """Run Redis with its files in a new directory below ``directory``; ``MissingError`` where there is none."""
    binary, cli = shutil.which("redis-server"), shutil.which("redis-cli")
    if binary is None or cli is None:
        raise MissingError("Redis is not installed (on Debian: apt-get install redis-server)")
    with own_directory(directory, None) as files, own_directory(None, None) as sockets:
        server = Redis(cli, sockets / "socket")
        listen = ["--port", "0", "--unixsocket", str(server.socket)]
        keep = ["--dir", str(files), "--appendonly", "yes", "--save", ""]
        with running([binary, *listen, *keep], sockets / "log", None, signal.SIGTERM, lambda: server.tell("PING")):
            yield server


def newest_postgresql() -> Path:
    """Return where the programs of PostgreSQL are, which Debian keeps out of the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda file: float(file.parts[-3]))
    found = shutil.which("postgres")
    if not places and found is None:
        raise MissingError("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    return places[-1].parent if places else Path(str(found)).resolve().parent


@contextmanager
def own_directory(within: Path | None, user: str | None) -> Iterator[Path]:
    """Yield a new directory that belongs to ``user``; the sockets' is a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(dir=within, prefix="bench-") as name:
        if user is not None:
            entry = getpwnam(user)
            os.chown(name, entry.pw_uid, entry.pw_gid)
        yield Path(name)


@contextmanager
def running(
    command: Sequence[str], log: Path, user: str | None, stop: signal.Signals, ask: Callable[[], None]
) -> Iterator[None]:
    """Run a server from its first answer on; at the end tell it to stop, and wait until it has."""
    with log.open("wb") as output:
        process = subprocess.Popen([*as_user(user), *command], stdout=output, stderr=output)
    try:
        wait_for(ask, process, log)
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def as_user(user: str | None) -> list[str]:
    """Return what starts a program as another user, and ends it with this process."""
    change = [] if user is None else [f"--reuid={user}", f"--regid={user}", "--init-groups"]
    return ["setpriv", *change, "--pdeathsig=INT", "--"]


def wait_for(ask: Callable[[], None], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            ask()
        except subprocess.CalledProcessError as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"A server did not start:\n{log.read_text()}") from error
            time.sleep(0.05)
        else:
            return


def run(command: Sequence[str]) -> None:
    """Run a program to its end, without what it has to say."""
    subprocess.run(command, check=True, capture_output=True, cwd="/")
