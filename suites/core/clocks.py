"""Clocks: each takes blocks of samples of one closure.

Hot and cold are different metrics and never mixed. A block warms up again first, because the runner hands out blocks in
random order and other processes have run in between.
"""

from __future__ import annotations

import contextlib
import glob
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from reports import Json
from suites.core import heap

#: A sample lasts at least this long, in seconds: several calls together where one is shorter. Reading the clock twice
#: takes about 0.1 us; what is longer than that keeps records small.
SHORTEST_SAMPLE = 100e-6
#: Seconds of a block's own warm-up. OpenMP threads of the process that had the last block go on spinning for some
#: milliseconds, on cores that this one wants.
WARM_UP = 0.006
#: Seconds that the first warm-up lasts at least, and at most while calls still fault pages in.
FIRST_WARM_UP, LONGEST_WARM_UP = 0.015, 0.3
#: The heap has settled when so many calls in a row fault in less than so many bytes.
CALM_CALLS, FEW_BYTES = 4, 2**15
#: How many times what a call faults in is given to the heap to spare.
SPARE = 4

Call = Callable[[], Any]


@dataclass
class Samples:
    """What one block gave.

    Args:
        calls: calls in each sample.
        values: seconds per call, one a sample.
        readings: what else was read, over the whole block: `page_faults` per call, involuntary `context_switches` of
            all threads in the block, clocks, power, ...
    """

    calls: int
    values: list[float]
    readings: Json = field(default_factory=dict)


class Clock(Protocol):
    """Takes samples of one closure, in one way."""

    def block(self, seconds: float) -> Samples:
        """Takes samples for about `seconds`, at least one."""


def warm_up(call: Call, synchronize: Call, seconds: float) -> float:
    """Calls for about `seconds`, at least once; returns the seconds of the last call."""
    begin = time.perf_counter()
    while True:
        start = time.perf_counter()
        result = call()
        synchronize()
        end = time.perf_counter()
        del result
        if end - begin >= seconds:
            return end - start


def first_warm_up(call: Call, synchronize: Call) -> float:
    """Warms up until the heap has settled: some calls in a row fault nothing in. Returns the seconds of the last call.

    What calls fault in is given to the heap as spare pages. With malloc's default thresholds it never settles.
    """
    begin, calm = time.perf_counter(), 0
    seconds = warm_up(call, synchronize, FIRST_WARM_UP)
    while calm < CALM_CALLS and time.perf_counter() - begin < LONGEST_WARM_UP:
        before = heap.faulted()
        seconds = warm_up(call, synchronize, 0.0)
        fresh = heap.faulted() - before
        calm = calm + 1 if fresh < FEW_BYTES else 0
        if not calm:
            heap.add_pages(SPARE * fresh)
    return seconds


def typical_seconds(call: Call) -> float:
    """The median of some calls after a first warm-up, by the host clock."""
    first_warm_up(call, lambda: None)
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < FIRST_WARM_UP:
        times.append(warm_up(call, lambda: None, 0.0))
    return statistics.median(times)


def disturbances() -> tuple[int, int, float]:
    """Of all threads of this process so far: minor page faults, involuntary context switches, seconds without a core.

    The last is the time that threads could have run and had to wait for a core (Linux; elsewhere 0).
    """
    usage = resource.getrusage(resource.RUSAGE_SELF)
    waited = 0
    for thread in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            waited += int(Path(thread).read_text().split()[1])
    return usage.ru_minflt, usage.ru_nivcsw, waited / 1e9


class WallClock:
    """The host clock, the device synchronised on both sides of every call; on a CPU simply the host clock.

    This is the method of the authors' timing script. Results are freed outside the clock.
    """

    def __init__(self, call: Call, synchronize: Call):
        self._call, self._synchronize = call, synchronize
        typical = first_warm_up(call, synchronize)
        self._calls = max(1, round(SHORTEST_SAMPLE / typical))

    def block(self, seconds: float) -> Samples:
        call, synchronize, calls = self._call, self._synchronize, self._calls
        if warm_up(call, synchronize, 0.0) < seconds:  # a call that outlasts the block has warmed up enough
            warm_up(call, synchronize, WARM_UP)
        values: list[float] = []
        before = disturbances()
        begin = time.perf_counter()
        while True:
            result = None
            start = time.perf_counter()
            for _ in range(calls):
                result = call()
                synchronize()
            end = time.perf_counter()
            del result
            values.append((end - start) / calls)
            if end - begin >= seconds:
                break
        faults, switches, wait = (after - earlier for after, earlier in zip(disturbances(), before, strict=True))
        readings = {
            "page_faults": faults / (calls * len(values)),
            "context_switches": switches,
            "core_wait": wait / (end - begin) if end > begin else 0.0,
        }
        return Samples(calls, values, readings)


class ColdClock:
    """The host clock, the last-level cache flushed before each call."""

    def __init__(self, call: Call, flush: Call):
        self._call, self._flush = call, flush

    def block(self, seconds: float) -> Samples:
        warm_up(self._call, lambda: None, 0.0)
        values: list[float] = []
        begin = time.perf_counter()
        while True:
            self._flush()
            start = time.perf_counter()
            result = self._call()
            end = time.perf_counter()
            del result
            values.append(end - start)
            if end - begin >= seconds:
                break
        return Samples(1, values)
