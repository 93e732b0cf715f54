"""Changes that leave searches their share of the process: of its CPUs, and of Python's lock.

What a native thread does meanwhile is in sdk/cpp/src/pacing.hpp.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

LATELY_S = 1.0
# Some 0.3 ms of the loops that use it: a search that waits for the lock has it by then, instead of after the 5 ms for
# which a thread may keep it.
STRIDE = 12
PAUSE_S = 20e-6

_last_search = float("-inf")  # of the whole process, as the lock is


def note_search() -> None:
    """A search begins."""
    global _last_search
    _last_search = time.monotonic()


def searched_lately() -> bool:
    """Whether one began within the last `LATELY_S`."""
    return time.monotonic() - _last_search < LATELY_S


def paced(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, with a pause after every few of them while there are searches.

    A pause of 0 is not enough: this thread would have the lock again before another is awake.
    """
    for count, item in enumerate(items, 1):
        yield item
        if count % STRIDE == 0 and searched_lately():
            time.sleep(PAUSE_S)
