"""What one call allocates: every allocation and release of torch's allocators, in order.

The profiler's memory events are sent by the allocators themselves, so that they hold what operators allocate inside
(copies in another layout, workspaces of oneDNN), to the byte that was asked for, and do not vary from call to call. A
dispatch mode would see results alone, and the resident size of the process would depend on its past. What a library
takes by `malloc` past torch's allocators is not seen: the tile that each thread of the native kernels keeps (less than
1 MB), packing buffers of MKL.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch.autograd.profiler import profile


@dataclass(frozen=True)
class Allocations:
    """What one call allocated, in bytes.

    Args:
        peak: most that was held at once, beyond what was held before.
        kept: still held when the call has returned, by its result for one.
        sizes: of each allocation.
        further: metrics that only some devices have.
    """

    peak: int
    kept: int
    sizes: tuple[int, ...]
    further: Mapping[str, int] = field(default_factory=dict)

    def holding(self, wanted: list[int], rounding: int = 0) -> list[int]:
        """Those of the wanted sizes that were allocated, each allocation standing for one.

        Args:
            rounding: bytes by which an allocation may be larger than what was asked for.
        """
        left, found = sorted(self.sizes), []
        for size in sorted(wanted):
            match = next((i for i, have in enumerate(left) if size <= have <= size + rounding), None)
            if match is not None:
                del left[match]
                found.append(size)
        return found


def trace(call: Callable[[], Any], device: str = "cpu") -> Allocations:
    """Runs the call once and follows its allocations on that kind of device.

    Its result is held until after the last event, so what the call returns is `kept`.
    """
    with no_collection(), profile(profile_memory=True) as profiler:  # torch.profiler would import the compiler
        result = call()
    del result
    changes = [
        event.nbytes()
        for event in profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type().name.lower() == device
    ]
    held = list(accumulate(changes, initial=0))
    return Allocations(max(held), held[-1], tuple(size for size in changes if size > 0))


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage is not collected meanwhile, which would release at an arbitrary moment what the call has left."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
