"""Profile: what a call does, operator by operator, and where it stands below the measured roofs.

Metrics: the result check and the main clock as in `latency`, sampled for a shorter time, with `roof_copy`,
`roof_arithmetic` and `roof_fraction`; `operators`, calls of torch's operators in one call; `operator_time`, what they
take together under the profiler; `operator_bytes`, of all tensors that they read and write, which over `floor_bytes`
says what temporaries cost. On CUDA `launches`, `kernel_time`, `energy` of one call by NVML; `dram_bytes` and
`dram_throughput_fraction` where ncu is; and of a call that is one kernel of the hot list, on a device whose figures are
known, `predicted_time` as in the suite `resources`, with what bounds it in `settings.predicted`.

`settings.operators` and, on CUDA, `settings.kernels` have a row each. The run keeps a trace of each case for Perfetto,
`settings.trace`; `plots/profile-roofline` shows all cases below the roofs of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ops import Point, Skip
from reports import Json, Metric
from suites import Begun
from suites.core.gpus import LIMITS, device_named
from suites.latency import Latency
from suites.resources import KERNELS, compiled_hot_list, predict_time

if TYPE_CHECKING:
    from suites.core.bench import Bench


class Profile(Latency):
    name = "profile"
    order = 80
    help = "operators and kernels of a call with times and bytes, a trace for Perfetto, the roofline, energy on a GPU"
    default = False
    ceiling = 0.15
    preload = ("suites.core.profiling",)

    def begin(self, bench: Bench) -> Begun:
        if bench.op.impls[bench.case.impl].slow_start:
            raise Skip("the profiler does not see into a compiled graph")
        begun = super().begin(bench)
        begun.clocks = {name: clock for name, clock in begun.clocks.items() if name == bench.device.main_clock}
        if bench.check and not begun.failure:
            metrics, settings = profile_call(bench)
            begun.metrics += metrics
            begun.settings |= settings
        return begun


def profile_call(bench: Bench) -> tuple[list[Metric], Json]:
    """Metrics and settings of one call; see the top of this file."""
    from suites.core import ncu
    from suites.core.profiling import profiled, trace_name

    settings: Json = {}
    trace = None
    if bench.folder:
        settings["trace"] = trace_name(bench.case.id)
        trace = Path(bench.folder) / settings["trace"]
    found = profiled(bench.call, bench.case.kind, trace)
    settings["operators"] = found.operators
    metrics = [
        Metric("operators", "1", sum(row["calls"] for row in found.operators)),
        Metric("operator_bytes", "B", sum(row["bytes"] for row in found.operators)),
        Metric("operator_time", "s", sum(row["time"] for row in found.operators), better="less"),
    ]
    if bench.case.kind == "cuda":
        settings["kernels"] = found.kernels
        metrics.append(Metric("launches", "1", round(sum(row["calls"] for row in found.kernels))))
        metrics.append(Metric("kernel_time", "s", sum(row["time"] for row in found.kernels), better="less"))
        functions = [row["name"] for row in found.kernels]
        predicted, settings["predicted"] = predict_call(functions, bench.case.point, bench.device.describe()["name"])
        more, told = ncu.dram(bench.case, bench.seed)
        metrics += [*predicted, *more]
        settings |= told
    energy = bench.device.energy(bench.call)
    if energy is not None:
        metrics.append(Metric("energy", "J", energy, better="less"))
    return metrics, settings


def predict_call(functions: list[str], point: Point, name: str) -> tuple[list[Metric], Json]:
    """The predicted time of a call that is one kernel, and its parts; or why there is none.

    Args:
        functions: the kernels, demangled, as `void ddf::rows_kernel<float, 3, 1, false>(...)`.
        name: of the device.
    """
    from suites.core import compiled, emulated, emulation

    device = device_named(name)
    if device is None:
        return [], {"reason": f"the figures of {name} are not known"}
    called = [emulation.short(function) for function in functions]
    kernel = next((k for k in KERNELS.values() if len(called) == 1 and k.is_called(called[0])), None)
    if kernel is None:
        return [], {"reason": "the call is not one kernel of the hot list"}
    try:
        _, code = compiled_hot_list([device.arch])[device.arch][kernel.name]
        counts = emulated.counted(list(KERNELS.values()), list(LIMITS))[kernel.name][device.arch]
    except compiled.BuildError as error:
        return [], {"reason": str(error)}
    seconds, parts = predict_time(kernel, code, counts, point.out_pixels * point.channels, device)
    return [Metric("predicted_time", "s", seconds)], parts
