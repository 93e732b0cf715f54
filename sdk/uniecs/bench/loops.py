"""Closed and open loops: calls one after another, or at times that were set before and wait for nobody."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uniecs.bench.machine import resident_bytes
from uniecs.bench.samples import Round

Call = Callable[[int], object]


@dataclass(frozen=True)
class Clock:
    """Seconds, and how to wait for some or for an event that ends the loop; tests have one of their own."""

    now: Callable[[], float] = time.perf_counter
    wait: Callable[[threading.Event, float], object] = threading.Event.wait


CLOCK = Clock()
MOST = 4_000
"""Calls of a round."""


def closed_loop(call: Call, seconds: float, *, most: int = MOST, concurrency: int = 1, clock: Clock = CLOCK) -> Round:
    """`concurrency` threads call without a pause for `seconds`, each at least once, all together about `most` times.

    `call` is given the number of the call.
    """
    taken: list[list[float]] = [[] for _ in range(concurrency)]
    end = clock.now() + seconds

    def work(thread: int, stop: threading.Event) -> None:
        number, times = thread, taken[thread]
        while not stop.is_set():
            start = clock.now()
            call(number)
            finished = clock.now()
            times.append(finished - start)
            if finished >= end or len(times) * concurrency >= most:
                return
            number += concurrency

    return _spent(lambda: _together(work, concurrency), lambda: [each for times in taken for each in times], clock)


def poisson(rate: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Arrival times until `seconds` of a Poisson process of `rate` a second, at least one; fixed by the seed."""
    random = np.random.default_rng(seed)
    gaps = random.exponential(1 / rate, max(16, int(2 * rate * seconds) + 64))
    arrivals = np.cumsum(gaps)
    return np.minimum(arrivals[: max(1, int(np.searchsorted(arrivals, seconds)))], seconds)


def open_loop(
    call: Call, arrivals: Sequence[float], workers: int, *, seconds: float = math.inf, clock: Clock = CLOCK
) -> Round:
    """Call once for each arrival (seconds from now, ascending), by `workers` threads, and begin none after `seconds`.

    A sample runs from the moment that was set to the end of the call: it holds what the call waited while all workers
    were busy, which a loop that sends its next call only after an answer leaves out (coordinated omission).
    """
    latencies = [0.0] * len(arrivals)
    done = [False] * len(arrivals)
    numbers = iter(range(len(arrivals)))
    taking = threading.Lock()
    begun = clock.now()

    def work(_: int, stop: threading.Event) -> None:
        while not stop.is_set() and clock.now() < begun + seconds:
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            due = begun + float(arrivals[number])
            if (early := due - clock.now()) > 0 and clock.wait(stop, early):
                return
            call(number)
            latencies[number] = clock.now() - due
            done[number] = True

    spent = _spent(
        lambda: _together(work, workers),
        lambda: [each for each, is_ in zip(latencies, done, strict=True) if is_],
        clock,
    )
    return dataclasses.replace(spent, given_up=len(arrivals) - len(spent.ms))


def _together(work: Callable[[int, threading.Event], None], count: int) -> None:
    """Run `work` on `count` threads, and raise the first error of any; an interrupt waits for the calls under way."""
    stop, errors = threading.Event(), list[BaseException]()
    if count == 1:
        work(0, stop)
        return

    def guarded(thread: int) -> None:
        try:
            work(thread, stop)
        except BaseException as error:  # noqa: BLE001 (raised below, in the thread that waits)
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        stop.set()
        for each in threads:  # what they call is freed next; one may not have started
            if each.ident is not None:
                each.join()
    if errors:
        raise errors[0]


def _spent(run: Callable[[], None], seconds: Callable[[], Sequence[float]], clock: Clock) -> Round:
    cpu, start = time.process_time(), clock.now()
    run()
    wall = clock.now() - start
    return Round(np.array(seconds(), np.float32) * 1e3, wall, time.process_time() - cpu, resident_bytes())
