"""The multiply-add roof: the loops of `csrc/roofs`, built on first use."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

from ops.core.build import BuildError, build
from suites.core.machine import places

Call = Callable[[], Any]

#: Steps of one call: a few milliseconds.
STEPS = {"cpu": 500_000, "cuda": 2_000}


@cache
def library() -> ctypes.CDLL | None:
    """The built loops, or None where there is no compiler; the roof is then left out."""
    try:
        return ctypes.CDLL(str(build("roofs").path))
    except (BuildError, OSError):
        return None


def multiply_add(device: torch.device, dtype: torch.dtype) -> tuple[Call, float] | None:
    """A call that does multiply-adds on all of the device, and how many; None where it cannot be built.

    Half precision is held against the float32 loop, in which the operators accumulate.
    """
    loops = library()
    size = 8 if dtype == torch.float64 else 4
    if loops is None:
        return None
    return on_cpu(loops, size) if device.type == "cpu" else on_cuda(loops, size, device)


def on_cpu(loops: ctypes.CDLL, size: int) -> tuple[Call, float]:
    """A loop for each of torch's threads, on the core of its own that such a thread is bound to.

    ctypes releases the interpreter lock.
    """
    loop = loops.roofs_multiply_add_cpu
    loop.argtypes, loop.restype = [ctypes.c_int, ctypes.c_int64], ctypes.c_int64
    threads = torch.get_num_threads()
    where = queue.SimpleQueue[set[int]]()
    for place in places(threads):
        where.put(place)
    pool = ThreadPoolExecutor(threads, initializer=_take_a_place, initargs=(where,))
    steps = [STEPS["cpu"]] * threads

    def call() -> list[int]:
        return list(pool.map(lambda n: loop(size, n), steps))

    return call, float(sum(call()))


def _take_a_place(where: queue.SimpleQueue[set[int]]) -> None:
    with contextlib.suppress(queue.Empty):  # which is empty where no thread is bound
        os.sched_setaffinity(0, where.get_nowait())


def on_cuda(loops: ctypes.CDLL, size: int, device: torch.device) -> tuple[Call, float] | None:
    """One launch that fills the device."""
    launch = getattr(loops, "roofs_multiply_add_cuda", None)
    if launch is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    launch.argtypes = [ctypes.c_int, number, ctypes.c_int, pointer, pointer, ctypes.POINTER(number)]
    sink = torch.zeros(1, dtype=torch.float64, device=device)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    macs = number()

    def call() -> torch.Tensor:
        stream = torch.cuda.current_stream(device).cuda_stream
        code = launch(size, STEPS["cuda"], multiprocessors, sink.data_ptr(), stream, ctypes.byref(macs))
        if code:
            raise RuntimeError(f"CUDA error {code} in the multiply-add loop")
        return sink

    call()
    return call, float(macs.value)
