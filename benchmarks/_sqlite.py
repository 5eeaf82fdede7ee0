"""The script in SQLite, a row a record: by aiosqlite, and by one thread that has what is pending in one transaction.

Both use the write-ahead log. ``synchronous`` is NORMAL where a write is to outlive the process, and FULL where it is to
outlive a power cut. Each operation has been committed when it returns. The database is made and opened before the time
begins, and closed within it, for then the log is brought into it.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import aiosqlite
import orjson
from _plain import in_tasks
from _rounds import Turn
from _script import SCRIPT, STEPS, THREAD, Operation, Record, check

_SCHEMA = """
CREATE TABLE threads (id TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE messages (number INTEGER PRIMARY KEY, thread_id TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX messages_of_thread ON messages (thread_id, number);
CREATE TABLE records (thread_id TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (thread_id, id));
"""
_ADD_THREAD = "INSERT INTO threads (id, data) VALUES (?, ?)"
_ADD_MESSAGE = "INSERT INTO messages (thread_id, data) VALUES (?, ?)"
_ADD_RECORD = "INSERT INTO records (thread_id, id, data) VALUES (?, ?, ?)"
_GET_RECORD = "SELECT data FROM records WHERE thread_id = ? AND id = ?"
_CHANGE_RECORD = "UPDATE records SET data = ? WHERE thread_id = ? AND id = ?"


def _prepare(root: Path) -> Path:
    database = root / "store.db"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(_SCHEMA)
    connection.close()
    return database


def _level(*, synced: bool) -> str:
    return f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}"


def with_aiosqlite(root: Path, runs: int, at_once: int, *, synced: bool, locked: bool) -> Turn:
    """Share one connection between all tasks, and commit after each operation.

    The connection has one transaction at a time, so that a commit takes along what other tasks have begun; with a lock,
    each operation is a transaction of its own, as it is in the other ways.
    """
    database = _prepare(root)

    async def work() -> Turn:
        lock = asyncio.Lock() if locked else nullcontext()
        async with aiosqlite.connect(database) as connection:
            await connection.execute(_level(synced=synced))
            begun = time.perf_counter()

            async def one(number: int) -> None:
                for operation in SCRIPT:
                    async with lock:
                        await _operate_async(connection, f"thread_{number}", *operation)
                        await connection.commit()

            latencies = await in_tasks(one, runs, at_once)
        return Turn((time.perf_counter() - begun) / runs, latencies)

    turn = asyncio.run(work())
    _check_rows("aiosqlite", database, runs)
    return turn


async def _operate_async(connection: aiosqlite.Connection, thread: str, kind: str, which: str, record: Record) -> None:
    match kind:
        case "create":
            await connection.execute(_ADD_THREAD, (thread, orjson.dumps(THREAD)))
            await connection.execute(_ADD_RECORD, (thread, which, orjson.dumps(record)))
        case "append":
            await connection.execute(_ADD_MESSAGE, (thread, orjson.dumps(record)))
        case "put":
            await connection.execute(_ADD_RECORD, (thread, which, orjson.dumps(record)))
        case "change":
            [(data,)] = await connection.execute_fetchall(_GET_RECORD, (thread, which))
            await connection.execute(_CHANGE_RECORD, (orjson.dumps(orjson.loads(data) | record), thread, which))


def with_grouped_sqlite(root: Path, runs: int, at_once: int, *, synced: bool) -> Turn:
    """Let one thread take all operations that are pending, and commit them together."""
    database = _prepare(root)

    async def work() -> Turn:
        begun = time.perf_counter()
        with _GroupingThread(database, synced=synced) as thread:

            async def one(number: int) -> None:
                for operation in SCRIPT:
                    await thread.do(f"thread_{number}", operation)

            latencies = await in_tasks(one, runs, at_once)
        return Turn((time.perf_counter() - begun) / runs, latencies)

    turn = asyncio.run(work())
    _check_rows("sqlite3", database, runs)
    return turn


_Pending = tuple[str, Operation, "asyncio.Future[None]"]


class _GroupingThread:
    """One thread, which has the connection, and a queue to it."""

    def __init__(self, database: Path, *, synced: bool) -> None:
        self._database = database
        self._synced = synced
        self._loop = asyncio.get_running_loop()
        self._pending: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pending.put(None)
        self._thread.join()

    async def do(self, thread: str, operation: Operation) -> None:
        """Return once the operation is committed."""
        done = self._loop.create_future()
        self._pending.put((thread, operation, done))
        await done

    def _work(self) -> None:
        connection = sqlite3.connect(self._database, isolation_level=None)
        connection.execute(_level(synced=self._synced))
        while group := self._all_pending():
            try:
                connection.execute("BEGIN IMMEDIATE")
                for thread, operation, _ in group:
                    _operate(connection, thread, *operation)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._loop.call_soon_threadsafe(_fail, group, error)
                break
            self._loop.call_soon_threadsafe(_succeed, group)
        connection.close()

    def _all_pending(self) -> list[_Pending]:
        """Wait for an operation, and return all there are; none once it is over."""
        group: list[_Pending] = []
        item = self._pending.get()
        while item is not None:
            group.append(item)
            try:
                item = self._pending.get_nowait()
            except queue.Empty:
                break
        return group


def _succeed(group: list[_Pending]) -> None:
    for _, _, done in group:
        done.set_result(None)


def _fail(group: list[_Pending], error: Exception) -> None:
    for _, _, done in group:
        done.set_exception(error)


def _operate(connection: sqlite3.Connection, thread: str, kind: str, which: str, record: Record) -> None:
    match kind:
        case "create":
            connection.execute(_ADD_THREAD, (thread, orjson.dumps(THREAD)))
            connection.execute(_ADD_RECORD, (thread, which, orjson.dumps(record)))
        case "append":
            connection.execute(_ADD_MESSAGE, (thread, orjson.dumps(record)))
        case "put":
            connection.execute(_ADD_RECORD, (thread, which, orjson.dumps(record)))
        case "change":
            (data,) = connection.execute(_GET_RECORD, (thread, which)).fetchone()
            connection.execute(_CHANGE_RECORD, (orjson.dumps(orjson.loads(data) | record), thread, which))


def _check_rows(name: str, database: Path, runs: int) -> None:
    """Raise unless ``runs`` whole runs are in the database."""
    connection = sqlite3.connect(database)
    for number in range(runs):
        thread = f"thread_{number}"
        (data,) = connection.execute("SELECT data FROM threads WHERE id = ?", (thread,)).fetchone()
        rows = connection.execute("SELECT data FROM messages WHERE thread_id = ? ORDER BY number", (thread,))
        records = {
            which: orjson.loads(connection.execute(_GET_RECORD, (thread, which)).fetchone()[0])
            for which in ("run", *STEPS)
        }
        check(name, orjson.loads(data), [orjson.loads(row[0]) for row in rows], records)
    connection.close()
