"""CUDA devices: clocks on the device's own time, and NVML readings round each block.

Nothing here changes a device's settings.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from reports import Json
from suites.core.allocations import Allocations, no_collection, trace
from suites.core.clocks import Call, Clock, Samples, WallClock, warm_up

#: Seconds of calls in one captured graph, so that launching it costs little beside it.
GRAPH_SECONDS = 500e-6
MOST_CALLS = 200
MOST_SAMPLES = 1000
#: Calls that the device's own time of one call is taken from, and the length of a sleep that its clock is read from.
TYPICAL_CALLS, SLEEP_CYCLES = 50, 1_000_000
#: Seconds of calls over which energy is read.
ENERGY_SECONDS = 1.0
#: Streaming through this many times the last-level cache empties it.
FLUSH_FACTOR = 3


class Cuda:
    """One CUDA device, see `suites.core.devices.Device`."""

    main_clock = "latency_device"
    #: A block of the allocator with less than 1 MiB to spare is not split.
    rounding = 2**20

    def __init__(self, name: str):
        if not torch.cuda.is_available():
            raise ValueError(f"{name!r}: torch {torch.__version__} sees no CUDA device")
        self.torch = torch.device(name)
        index = self.torch.index or 0
        if index >= torch.cuda.device_count():
            raise ValueError(f"{name!r}: there are {torch.cuda.device_count()} CUDA devices, counted from cuda:0")
        torch.cuda.set_device(index)
        self._properties = torch.cuda.get_device_properties(index)
        self.cache = int(getattr(self._properties, "L2_cache_size", 0)) or 64 * 2**20
        self._monitor = Monitor(str(self._properties.uuid))
        self._notes: Json = {}

    def describe(self) -> Json:
        p = self._properties
        return {
            "kind": "cuda",
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "memory": p.total_memory,
            "cache": self.cache,
            "multiprocessors": p.multi_processor_count,
            **self._monitor.describe(),
        }

    def free_memory(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch)[0])

    def others(self) -> Mapping[str, int] | None:
        torch.zeros(1, device=self.torch)  # from now on the driver counts this process too
        compute, graphics = map(self._monitor.processes, ("Compute", "Graphics"))
        return {"compute": compute - 1, "graphics": graphics or 0} if compute else None

    def clocks(self, call: Call) -> Mapping[str, Callable[[], Clock]]:
        return {
            "latency_wall": lambda: self._watched(WallClock(call, torch.cuda.synchronize)),
            "latency_device": lambda: self._watched(DeviceClock(self._graph(call))),
            "latency_cold": lambda: self._watched(ColdDeviceClock(self._graph(call, 1), self._flush())),
        }

    def slowed(self, call: Call, part: float) -> Call:
        cycle = device_seconds(lambda: torch.cuda._sleep(SLEEP_CYCLES)) / SLEEP_CYCLES
        cycles = round(part * device_seconds(call) / cycle)

        def slowed() -> Any:
            result = call()
            torch.cuda._sleep(cycles)
            return result

        return slowed

    def allocations(self, call: Call) -> Allocations:
        """Peak and rest by the allocator's own count, which rounds up to 512 B, its sizes by the profiler.

        `reserved_memory` is what the allocator takes from the device for the call, with its cache emptied before;
        `process_memory` is by how much NVML sees the device's used memory grow, libraries and fragments included.
        """
        call()  # library handles, and workspaces for cuDNN to choose its algorithm
        torch.cuda.synchronize()
        with no_collection():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
            used = self._monitor.used_memory()
            result = call()
            torch.cuda.synchronize()
            kept = torch.cuda.memory_allocated() - before
            further = {"reserved_memory": torch.cuda.max_memory_reserved() - reserved}
            after = self._monitor.used_memory()
        if used is not None and after is not None:
            further["process_memory"] = after - used
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return Allocations(peak, kept, trace(call, "cuda").sizes, further)

    def energy(self, call: Call) -> float | None:
        """NVML's counter over many calls; it moves every 20 to 100 ms."""
        warm_up(call, torch.cuda.synchronize, 0.05)
        before, start, calls = self._monitor.read().get("energy"), time.perf_counter(), 0
        while time.perf_counter() - start < ENERGY_SECONDS:
            for _ in range(TYPICAL_CALLS):
                call()
            torch.cuda.synchronize()
            calls += TYPICAL_CALLS
        after = self._monitor.read().get("energy")
        return None if before is None or after is None else float(after - before) / calls

    def settings(self) -> Json:
        return {
            "threads": torch.get_num_threads(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "tf32": torch.backends.cudnn.allow_tf32,
            **self._notes,
        }

    def _flush(self) -> Call:
        buffer = torch.empty(FLUSH_FACTOR * self.cache, dtype=torch.uint8, device=self.torch)
        return buffer.zero_

    def _watched(self, clock: Clock) -> Clock:
        return Watched(clock, self._monitor)

    def _graph(self, call: Call, calls: int = 0) -> Repeated:
        """`call` as a captured graph; as plain launches where it cannot be captured, which the settings then say."""
        typical = warm_up(call, torch.cuda.synchronize, 0.05)
        calls = calls or min(MOST_CALLS, max(1, round(GRAPH_SECONDS / typical)))
        try:
            return Repeated(capture(call, calls), calls)
        except RuntimeError as error:
            torch.cuda.synchronize()
            self._notes["device_clock"] = "events round plain launches: no graph capture, " + str(error).split("\n")[0]
            return Repeated(lambda: [call() for _ in range(calls)], calls)


class Repeated:
    """Something that enqueues `calls` calls."""

    def __init__(self, enqueue: Call, calls: int):
        self.enqueue, self.calls = enqueue, calls


def capture(call: Call, calls: int) -> Call:
    """Captures so many calls in one CUDA graph and returns what replays it.

    Raises:
        RuntimeError: if something in the call cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch asks: caches and workspaces are set up outside the capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    replay: Call = graph.replay
    return replay


def event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def device_seconds(call: Call) -> float:
    """The device's own time of one call: events round many of them, launched one after the other."""
    warm_up(call, torch.cuda.synchronize, 0.05)
    begin, end = event(), event()
    begin.record()
    for _ in range(TYPICAL_CALLS):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / TYPICAL_CALLS


class DeviceClock:
    """Events between replays that follow one another without a gap: the device's own time, launches hidden."""

    def __init__(self, repeated: Repeated):
        self._repeated = repeated
        self._typical = warm_up(repeated.enqueue, torch.cuda.synchronize, 0.05)

    def block(self, seconds: float) -> Samples:
        repeated = self._repeated
        count = min(MOST_SAMPLES, max(1, round(seconds / self._typical)))
        marks = [event() for _ in range(count + 1)]
        repeated.enqueue()  # keeps the device busy while the first mark and replay are enqueued
        marks[0].record()
        for mark in marks[1:]:
            repeated.enqueue()
            mark.record()
        torch.cuda.synchronize()
        return Samples(repeated.calls, [a.elapsed_time(b) / 1e3 / repeated.calls for a, b in pairwise(marks)])


class ColdDeviceClock:
    """Events round one call, the last-level cache flushed before; the flush hides the launch."""

    def __init__(self, repeated: Repeated, flush: Call):
        self._repeated, self._flush = repeated, flush
        self._typical = warm_up(self._once, torch.cuda.synchronize, 0.05)

    def _once(self) -> None:
        self._flush()
        self._repeated.enqueue()

    def block(self, seconds: float) -> Samples:
        count = min(MOST_SAMPLES, max(1, round(seconds / self._typical)))
        pairs = [(event(), event()) for _ in range(count)]
        for begin, end in pairs:
            self._flush()
            begin.record()
            self._repeated.enqueue()
            end.record()
        torch.cuda.synchronize()
        return Samples(1, [begin.elapsed_time(end) / 1e3 for begin, end in pairs])


class Watched:
    """A clock whose blocks carry NVML readings."""

    def __init__(self, clock: Clock, monitor: Monitor):
        self._clock, self._monitor = clock, monitor

    def block(self, seconds: float) -> Samples:
        before, start = self._monitor.read(), time.perf_counter()
        samples = self._clock.block(seconds)
        elapsed, after = time.perf_counter() - start, self._monitor.read()
        samples.readings |= {key: value for key, value in after.items() if key != "energy"}
        samples.readings["throttled"] = sorted({*before.get("throttled", []), *after.get("throttled", [])})
        if "energy" in before and "energy" in after:
            samples.readings["mean_power"] = (after["energy"] - before["energy"]) / elapsed
        return samples


class Monitor:
    """NVML's view of one device; what the driver does not tell is left out."""

    #: Reasons that slow the clocks down, as opposed to idling or being set so by the owner.
    SLOWING = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")

    def __init__(self, uuid: str):
        import pynvml

        self._nvml: Any = pynvml
        self._handle: Any = None
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")

    def _ask(self, function: str, *arguments: Any) -> Any:
        if self._handle is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):
            return None

    def describe(self) -> Json:
        """Driver and limits."""
        driver = self._nvml.nvmlSystemGetDriverVersion() if self._handle is not None else None
        return {
            "driver": driver,
            "max_sm_clock": hertz(self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_SM)),
            "max_memory_clock": hertz(self._ask("nvmlDeviceGetMaxClockInfo", self._nvml.NVML_CLOCK_MEM)),
            "power_limit": thousandth(self._ask("nvmlDeviceGetEnforcedPowerLimit")),
        }

    def used_memory(self) -> int | None:
        """Bytes of the device's memory in use, by whatever process."""
        info = self._ask("nvmlDeviceGetMemoryInfo")
        return None if info is None else int(info.used)

    def processes(self, kind: str) -> int | None:
        """Processes that have a context of that kind, Compute or Graphics; None where the driver does not tell.

        Counted, not compared by id: in a container the driver may give ids that mean nothing there.
        """
        found = self._ask(f"nvmlDeviceGet{kind}RunningProcesses")
        return None if found is None else len({process.pid for process in found})

    def read(self) -> Json:
        """Clocks in Hz, temperature in Celsius, power in W, energy since boot in J, and what slows the clocks."""
        mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        names = {name: getattr(self._nvml, f"nvmlClocksThrottleReason{name}", 0) for name in self.SLOWING}
        found = {
            "sm_clock": hertz(self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM)),
            "memory_clock": hertz(self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_MEM)),
            "temperature": self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            "power": thousandth(self._ask("nvmlDeviceGetPowerUsage")),
            "energy": thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption")),
            "throttled": [name for name, bit in names.items() if mask & bit],
        }
        return {key: value for key, value in found.items() if value is not None}


def hertz(megahertz: int | None) -> int | None:
    return None if megahertz is None else megahertz * 10**6


def thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000
