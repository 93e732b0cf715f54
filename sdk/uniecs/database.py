"""The SQLite file under a store: connections, transactions, and SQLite's errors in the words of uniecs.

Write-ahead logging: any number of readers, each with a connection of its own, go on while one writes. Who may write is
not decided here (writer_lock.py).

No connection lives through a fork, they are closed before it: closed by the child at its end, one would take the log of
other processes with it; and SQLite in the child would count locks as held that are its parent's alone.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from uniecs.errors import IndexFileError, InputError

Durability: TypeAlias = Literal["full", "batch"]

PAGE_BYTES = 8192
CHECKPOINT_PAGES = 8192  # 64 MB of write-ahead log are copied into the file at once
LOG_LIMIT_BYTES = 256 << 20  # beyond this the writer waits a moment for readers, to start the log anew
WRITER_CACHE_KB = 65536
READER_CACHE_KB = 16384
IDLE_READERS = 32
BUSY_SECONDS = 10.0
FORK_SECONDS = 1.0  # a fork waits so long for what other threads read or write
LOOK_SECONDS = 0.0005

_open: weakref.WeakSet[Database] = weakref.WeakSet()
_told_fork = False
_forking = False  # no connection is given out


class Database:
    """One SQLite file; safe to share between threads, not between processes: opened before a fork, it refuses."""

    def __init__(self, path: Path, durability: Durability) -> None:
        """The existing file `path`; a commit is flushed to the disk at once ("full"), or with later ones ("batch")."""
        check_durability(durability)
        self.path = path
        self._synchronous = "FULL" if durability == "full" else "NORMAL"
        self._process = os.getpid()
        self._closed = False
        self._idle: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._in_use: set[object] = set()  # a mark for each connection that is not idle
        self._thread = threading.local()
        self._frozen: object = None
        _close_before_forks(self)

    @property
    def log_path(self) -> Path:
        """The write-ahead log, which exists while somebody has the file open, or did when he crashed."""
        return self.path.with_name(f"{self.path.name}-wal")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with: this thread's snapshot, or else the state of the last commit at each query."""
        with self.errors():
            pinned: sqlite3.Connection | None = getattr(self._thread, "pinned", None)
            if pinned is not None:
                self.check_usable()
                yield pinned
                return
            mark = self._begin_use()
            try:
                connection = self._borrow()
                try:
                    yield connection
                except BaseException:
                    connection.close()  # a query that was cut short would hold its old state
                    raise
                self._give_back(connection)
            finally:
                self._in_use.discard(mark)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within the block all that this thread reads is of one and the same state; blocks may be nested."""
        if getattr(self._thread, "pinned", None) is not None:
            yield
            return
        with self.reading() as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()  # the state is fixed by the first read
            self._thread.pinned = connection
            try:
                yield
            finally:
                self._thread.pinned = None
            connection.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: committed when the block ends, undone if it raises. One thread at a time may be in it."""
        with self._writer_connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # Some errors make SQLite roll back by itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if self.log_bytes() > LOG_LIMIT_BYTES:
                with suppress(sqlite3.Error):  # the change is made: what went wrong here shows at the next one
                    self._checkpoint(connection, patience_ms=20)

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file and empty it, as far as readers allow; for the writer only."""
        with self._writer_connection() as connection:
            self._checkpoint(connection, patience_ms=2000)

    @contextmanager
    def _writer_connection(self) -> Iterator[sqlite3.Connection]:
        self.check_usable()
        with self.errors():
            mark = self._begin_use()
            try:
                self._writer = self._writer or self._connect_writer()
                yield self._writer
            finally:
                self._in_use.discard(mark)

    def _begin_use(self) -> object:
        """A fork waits until what is returned is no longer in `_in_use`, this for the end of a fork."""
        mark = object()
        self._in_use.add(mark)
        while _forking:
            self._in_use.discard(mark)
            time.sleep(LOOK_SECONDS)
            self._in_use.add(mark)
        return mark

    @staticmethod
    def _checkpoint(connection: sqlite3.Connection, patience_ms: int) -> None:
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")

    def log_bytes(self) -> int:
        """Size of the write-ahead log; 0 if there is none."""
        try:
            return self.log_path.stat().st_size
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        self._closed = True
        if self._process != os.getpid():
            return  # what is still open is the parent's
        with self.errors():
            self._close_idle()

    def _close_idle(self) -> None:
        """Close what is not in use."""
        idle, self._idle = self._idle, []
        writer, self._writer = self._writer, None
        for connection in [*idle, writer] if writer else idle:
            connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_writer"):
            self.close()

    def check_usable(self) -> None:
        """Raise `InputError` if closed, `IndexFileError` in a process forked after opening."""
        if self._closed:
            raise InputError(f"{self.path.parent} is closed; open the index again")
        if self._process != os.getpid():
            raise IndexFileError(
                f"{self.path.parent} was opened before this process was forked from process {self._process}: "
                "open the index after the fork, in each process"
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns the errors of sqlite3 into `IndexFileError`, or `InputError` for a value that SQLite cannot take."""
        try:
            yield
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        except UnicodeDecodeError as error:  # SQLite's own words on a damaged table
            raise IndexFileError(
                f"{self.path} is damaged ({error}); restore the index from a copy, or build it again"
            ) from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise InputError(f"a value cannot be stored or looked up: {error}") from error

    def _borrow(self) -> sqlite3.Connection:
        self.check_usable()
        if self._frozen is not None and self._frozen != self._signature():
            # Somebody with more rights than this process has written meanwhile.
            self._frozen = None
            while self._idle:
                self._idle.pop().close()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect_reader()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if self._closed or len(self._idle) >= IDLE_READERS:
            connection.close()
        else:
            self._idle.append(connection)

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect("mode=rw")
        for pragma in (
            f"synchronous = {self._synchronous}",
            "fullfsync = ON",  # a true flush on macOS; nothing elsewhere
            f"cache_size = -{WRITER_CACHE_KB}",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            "secure_delete = OFF",
            "journal_mode = WAL",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        try:
            connection = self._connect("mode=rw")
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            connection = self._connect_frozen()
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KB}")
        return connection

    def _connect_frozen(self) -> sqlite3.Connection:
        """A folder in which not even the log's index can be made: read without locks, until the files change."""
        signature = self._signature()
        if not self.log_bytes():
            connection = self._connect("mode=ro&immutable=1")
        else:
            connection = self._connect("mode=ro&vfs=unix-none", "PRAGMA locking_mode = EXCLUSIVE")
        self._frozen = signature
        return connection

    def _connect(self, options: str, *pragmas: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{options}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            for pragma in pragmas:
                connection.execute(pragma).fetchall()
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _signature(self) -> object:
        """Changes when somebody writes the file or its log."""
        found: list[tuple[int, int] | None] = []
        for path in (self.path, self.log_path):
            try:
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size))
            except OSError:
                found.append(None)
        return found


def _close_before_forks(database: Database) -> None:
    global _told_fork
    _open.add(database)
    if not _told_fork and hasattr(os, "register_at_fork"):
        _told_fork = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)


def _before_fork() -> None:
    global _forking
    _forking = True
    end = time.monotonic() + FORK_SECONDS
    for database in list(_open):
        while database._in_use and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        if not database._in_use:
            with suppress(sqlite3.Error):
                database._close_idle()


def _after_fork() -> None:
    global _forking
    _forking = False


def _in_child() -> None:
    _open.clear()  # they refuse to work here
    _after_fork()


def check_durability(durability: str) -> None:
    """Raise `InputError` for an unknown one."""
    if durability not in get_args(Durability):
        raise InputError(f"durability is {durability!r}; expected {' or '.join(map(repr, get_args(Durability)))}")


def create_database(path: Path, schema: str, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Make a database in write-ahead mode with the tables of `schema`, and `fill` it; `path` must not exist."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rwc", uri=True, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.executescript(f"BEGIN; {schema}")
        fill(connection)
        connection.execute("COMMIT")
    finally:
        connection.close()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns `OSError` and the errors of sqlite3 into `IndexFileError`, for making and removing files at `path`."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    except OSError as error:
        raise IndexFileError(f"{path} cannot be written: {error}") from error


def remove_database(path: Path) -> None:
    """Remove a database file, its log and the log's index, as far as they exist."""
    for suffix in ("-shm", "-wal", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def _translated(error: sqlite3.Error, path: Path) -> IndexFileError | InputError:
    code = getattr(error, "sqlite_errorcode", 0)
    restore = "restore the index from a copy, or build it again"
    match code & 0xFF:
        case sqlite3.SQLITE_TOOBIG:
            return InputError(f"a product is too large for the index ({error}); expected less than 1 GB")
        case sqlite3.SQLITE_FULL:
            return IndexFileError(
                f"{path} cannot grow: the disk is full; this change was not made, what was there before is unharmed"
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return IndexFileError(
                f"{path} cannot be written ({error}); check the permissions of the file and its folder"
            )
        case sqlite3.SQLITE_CANTOPEN:
            return IndexFileError(f"{path} cannot be opened ({error}); check that it exists, and the permissions")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return IndexFileError(f"{path} is held by another process ({error}); try again when that has ended")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return IndexFileError(f"{path} is damaged ({error}); {restore}")
        case sqlite3.SQLITE_IOERR:
            return IndexFileError(
                f"{path} cannot be read or written ({error}, {getattr(error, 'sqlite_errorname', '')}); check the disk"
            )
    return IndexFileError(f"{path} does not hold what it should ({error}); {restore}")
