"""The lock file of an index folder, or of one of vectors: one writer at a time, over all processes and within one.

The lock is the operating system's on the open file, so it ends with its process, however that ends. The file's text
(process id and host) only serves the message that a second writer gets; the file itself stays.
"""

from __future__ import annotations

import os
import socket
import sys
import weakref
from contextlib import suppress
from pathlib import Path

from uniecs.errors import IndexFileError

LOCK_FILE = "writer.lock"

_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()
_told_fork = False


class WriterLock:
    """The right to write in `folder`; not held until `acquire`. Not to be shared by threads unguarded."""

    def __init__(self, folder: Path) -> None:
        """The lock of `folder`, which need not exist yet."""
        self._path = folder / LOCK_FILE
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, or do nothing if held; raises `IndexFileError` naming the process that has it."""
        if self.held:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise IndexFileError(f"{self._path.parent} cannot be written: {error}") from error
        try:
            _lock(descriptor)
        except BlockingIOError as error:
            owner = os.read(descriptor, 1024).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise IndexFileError(
                f"{self._path.parent} is being written by {owner}; one writer at a time: "
                "close the index there, or let the run end, first"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise IndexFileError(f"{self._path} cannot be locked ({error}); put it on another disk") from error
        self._descriptor = descriptor
        _close_in_children(self)
        # On a full disk the text may be missing; the lock holds all the same.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Give the lock back, if held."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            _held.discard(self)
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def _close_in_children(lock: WriterLock) -> None:
    """A forked process shares the open file, and with it the lock: it would keep it after its parent's death."""
    global _told_fork
    _held.add(lock)
    if not _told_fork and hasattr(os, "register_at_fork"):
        _told_fork = True
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for lock in list(_held):
        if lock._descriptor is not None:
            os.close(lock._descriptor)
            lock._descriptor = None


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        """Lock one byte far beyond the text, which stays readable; raises `BlockingIOError` if it is locked."""
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        """Lock the file; raises `BlockingIOError` if it is locked."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
