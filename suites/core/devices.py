"""Devices: what a clock, a roof and an environment need of a CPU or a GPU, behind one interface.

A worker opens its device; the runner never does. CUDA's part is `suites.core.cuda`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import torch

from reports import Json
from suites.core.allocations import Allocations, trace
from suites.core.clocks import Call, Clock, ColdClock, WallClock, typical_seconds
from suites.core.machine import available_memory, cpu_name, last_level_cache


class Device(Protocol):
    """One device, opened by a worker.

    Args:
        torch: as torch names it.
        main_clock: the metric whose latency is held against the roofs.
        rounding: bytes by which its allocator may exceed what it is asked for.
    """

    torch: torch.device
    main_clock: str
    rounding: int

    @property
    def cache(self) -> int:
        """Bytes of the last-level cache."""

    def describe(self) -> Json:
        """Name and properties, for `run.json`."""

    def free_memory(self) -> int:
        """Bytes that can be allocated."""

    def others(self) -> Mapping[str, int] | None:
        """How many other processes use it, to compute and for graphics; None where nobody tells."""

    def clocks(self, call: Call) -> Mapping[str, Callable[[], Clock]]:
        """The clocks of this device by metric, each set up (and warmed up) when called."""

    def slowed(self, call: Call, part: float) -> Call:
        """`call` followed by a delay on the device, of that part of the call's own time."""

    def allocations(self, call: Call) -> Allocations:
        """Tells what each call allocates, what a first one sets up for good left out."""

    def energy(self, call: Call) -> float | None:
        """Joules of one call, by the device's own counter; None where it has none."""

    def settings(self) -> Json:
        """How this process measures, for the record."""


class Cpu:
    """The host's processor, all threads that torch was given."""

    main_clock = "latency_wall"
    rounding = 0

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    @cached_property
    def cache(self) -> int:
        return last_level_cache()

    def describe(self) -> Json:
        return {
            "kind": "cpu",
            "name": cpu_name(),
            "cache": self.cache,
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    def free_memory(self) -> int:
        return available_memory()

    def others(self) -> None:
        return None  # the operating system tells how busy they are, see `suites.core.findings`

    def clocks(self, call: Call) -> Mapping[str, Callable[[], Clock]]:
        return {
            "latency_wall": lambda: WallClock(call, lambda: None),
            "latency_cold": lambda: ColdClock(call, self._flush()),
        }

    def slowed(self, call: Call, part: float) -> Call:
        delay = part * typical_seconds(call)

        def slowed() -> Any:
            result = call()
            end = time.perf_counter() + delay
            while time.perf_counter() < end:
                pass
            return result

        return slowed

    def allocations(self, call: Call) -> Allocations:
        return trace(call)  # the first call allocates no more than any other: tests hold it

    def energy(self, call: Call) -> None:
        return None

    def settings(self) -> Json:
        return {"threads": torch.get_num_threads()}

    def _flush(self) -> Call:
        # Twice the cache, read and written, leaves nothing of what was there.
        buffer = torch.zeros(2 * self.cache // 4)
        return lambda: buffer.add_(1.0)


def open_device(name: str) -> Device:
    """The device that torch calls `name`.

    Raises:
        ValueError: if there is none; the text says which there are.
    """
    if name == "cpu":
        return Cpu()
    from suites.core.cuda import Cuda

    return Cuda(name)


def best_device() -> str:
    """What `--device auto` stands for: the first CUDA device if there is one, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"
