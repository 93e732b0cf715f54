"""One thread budget for all that a process embeds: engines run on it, photos are decoded on what they leave."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """CPUs that this process may use: by its affinity and, on Linux, the quota of its cgroup (v2); at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup, or "max": no quota
        return cpus


class ThreadBudget:
    """`threads` CPU threads for engines and for the decoding of photos, in any number of calls at once.

    A run never waits, so that no query does. Decoding waits for what the runs leave; one thread is always left to it,
    so that the next batch gets ready while this one runs.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._running = 0
        self._decoding = 0
        self._changed = threading.Condition()

    @contextmanager
    def run(self, threads: int) -> Iterator[None]:
        """While an engine computes on `threads` CPU threads."""
        with self._changed:
            self._running += threads
        try:
            yield
        finally:
            with self._changed:
                self._running -= threads
                self._changed.notify_all()

    @contextmanager
    def decode(self) -> Iterator[None]:
        """While one thread decodes a photo; waits until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._decoding < max(1, self.threads - self._running))
            self._decoding += 1
        try:
            yield
        finally:
            with self._changed:
                self._decoding -= 1
                self._changed.notify_all()


@functools.cache
def process_budget() -> ThreadBudget:
    """The budget of all encoders that were loaded without `threads`: every CPU that the process may use."""
    return ThreadBudget(usable_cpus())
