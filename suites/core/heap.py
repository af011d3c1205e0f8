"""The heap of a worker on a CPU: pages that were touched once stay, so that calls are timed and not page faults.

glibc alone; elsewhere nothing happens, and the reading `page_faults` tells.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: glibc's mallopt parameters, see `man mallopt`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
HUGE = 2**31 - 1
#: The largest threshold that glibc takes, and its default for how many blocks may be mapped.
LARGE, MOST_MAPPED = 32 * 2**20, 65536

_steady: ctypes.CDLL | None = None


def keep_pages() -> None:
    """Keeps freed pages for good: no allocation by mmap, no trimming.

    Otherwise page faults, which depend on what the process did before, are most of what is measured on a CPU.
    """
    global _steady
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, HUGE)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    _steady = libc


def add_pages(size: int) -> None:
    """Touches `size` bytes and frees them to a heap that keeps them; as far as there is memory.

    An aligned allocation (torch's) never fits the gap that one of its size has left, so that without spare pages the
    first dozens of calls come to lie in fresh ones, each at several times its cost, and again whenever a small
    allocation has settled behind a large one.
    """
    if _steady is None:
        return
    block = _steady.malloc(size)
    if block:
        ctypes.memset(block, 1, size)
        _steady.free(block)


@contextmanager
def large_given_back() -> Iterator[None]:
    """Meanwhile blocks of 32 MiB and more are mapped each for itself, and go back to the system when they are freed.

    For what is computed beside the measured calls: in the heap, where no aligned block fits the gap of its like, a few
    temporaries of a big reference would come to take several times their size, for good.
    """
    if _steady is None:
        yield
        return
    _steady.mallopt(M_MMAP_THRESHOLD, LARGE)
    _steady.mallopt(M_MMAP_MAX, MOST_MAPPED)
    try:
        yield
    finally:
        _steady.mallopt(M_MMAP_MAX, 0)


def faulted() -> int:
    """Bytes of fresh pages that this process has been given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * mmap.PAGESIZE
