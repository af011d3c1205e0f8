"""Resources: what the compiler and the emulation say of every kernel of the hot list, without a GPU and without noise.

A case is a kernel of the hot list (`--axis entry=rows_float32_3_1`) on an architecture (`--axis arch=90`). Metrics:

- by ptxas: `registers` of a thread; `spill_stores`, `spill_loads`, `stack`, bytes of a thread.
- by the machine code (`suites.core.sass`): `instructions`, of these `fp_`, `global_`, `shared_`, `local_` and
  `async_instructions`; `accesses_128`, of all those that access memory the ones of 128 bits, and `accesses_128_part`;
  `instructions_per_output`, of the loop that has the multiply-adds; `code_checksum`, CRC-32 of the code.
- by the emulation of one call (`suites.core.emulated`): `shared_memory` of a block, `occupancy`; `emulated_sectors`
  that warps ask for, `emulated_bytes` that blocks fetch, `emulated_floor`, the bytes that have to move;
  `bank_conflicts`.
- `predicted_time` at the shapes of the paper, on the device that `settings.predicted` names, with what bounds it.

More spills, more stack, fewer accesses of 128 bits and more emulated bytes are worse; any other difference is told.
`compare` holds a run against the baseline of its nvcc: see docs/resources.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from ops import Axis, Skip
from reports import Json, Metric
from suites import Begun, Suite
from suites.core.gpus import DEVICES, LIMITS, Device, Work, binding, predict, total
from suites.core.hot_list import HotKernel, hot_kernels

if TYPE_CHECKING:
    from suites.core.bench import Bench
    from suites.core.compiled import Properties
    from suites.core.emulated import Counts
    from suites.core.sass import Code

KERNELS = {kernel.name: kernel for kernel in hot_kernels()}

#: Batch and channels for which times are predicted, and sides by family (56 where it says nothing else).
BATCH, CHANNELS, SIDES = 32, 256, {"planes": 14}


class Resources(Suite):
    name = "resources"
    order = 70
    help = "registers, spills, instructions and emulated traffic of the CUDA kernels, exact, without a GPU"
    default = False
    axes = ()
    ops = ("ddf_op",)
    impls = ("native",)
    device = "cpu"
    builds_impls = False
    extra_axes = (
        Axis("entry", next(iter(KERNELS)), "kernel of the hot list", choices=tuple(KERNELS)),
        Axis("arch", next(iter(LIMITS)), "compute capability, 90 for 9.0", choices=tuple(LIMITS)),
    )
    own_values: ClassVar = {"entry": None, "arch": None}
    preload = ("suites.resources", "suites.core.compiled", "suites.core.emulation.operator_kernels")

    def prepare(self, say: Callable[[str], None]) -> None:
        from suites.core import emulated

        compiled_hot_list(list(LIMITS), say)
        say("calls under emulation")
        emulated.counted(list(KERNELS.values()), list(LIMITS))

    def begin(self, bench: Bench) -> Begun:
        from suites.core import compiled, emulated

        entry, arch = (str(bench.case.point.extra[name]) for name in ("entry", "arch"))
        try:
            properties, code = compiled_hot_list([arch])[arch][entry]
            version = compiled.nvcc_version()
            counts = emulated.counted(list(KERNELS.values()), list(LIMITS))[entry][arch]
        except compiled.BuildError as error:
            raise Skip(str(error)) from None
        kernel, device = KERNELS[entry], next(device for device in DEVICES if device.arch == arch)
        predicted, told = predict_time(kernel, code, counts, paper_outputs(kernel), device)
        metrics = [*by_ptxas(properties), *by_code(entry, code), *by_emulation(arch, properties, counts)]
        metrics.append(Metric("predicted_time", "s", predicted))
        launch = {"blocks": counts.blocks, "threads": counts.threads}
        return Begun(metrics, settings={"nvcc": version, "launch": launch, "predicted": told})


def compiled_hot_list(
    arches: list[str], say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, tuple[Properties, Code]]]:
    """By architecture and kernel, what ptxas says and the code; compiled if it is not there.

    Raises:
        BuildError: if it cannot be compiled, or a line of the list matches no kernel.
    """
    from suites.core import compiled, hot_list

    made = compiled.compile_sources([hot_list.SOURCE], arches, progress=say)
    return {one.arch: compiled.by_kernel(one, KERNELS.values()) for one in made}


def by_ptxas(properties: Properties) -> list[Metric]:
    return [
        Metric("registers", "1", properties.registers),
        Metric("spill_stores", "B", properties.spill_stores, better="less"),
        Metric("spill_loads", "B", properties.spill_loads, better="less"),
        Metric("stack", "B", properties.stack, better="less"),
    ]


def by_code(entry: str, code: Code) -> list[Metric]:
    kinds = ("fp", "global", "shared", "local", "async")
    accesses, wide = int((code.widths > 0).sum()), int((code.widths == 16).sum())
    metrics = [
        Metric("instructions", "1", len(code)),
        *(Metric(f"{kind}_instructions", "1", code.count(kind)) for kind in kinds),
        Metric("accesses_128", "1", wide, better="more"),
        Metric("accesses_128_part", "1", round(wide / accesses, 4) if accesses else 0.0),
        Metric("code_checksum", "1", code.checksum),
    ]
    loop = code.inside_loop()
    if loop.multiply_adds:
        an_output = len(loop) * products(entry) / loop.multiply_adds
        metrics.append(Metric("instructions_per_output", "1", round(an_output, 2)))
    return metrics


def by_emulation(arch: str, properties: Properties, counts: Counts) -> list[Metric]:
    occupancy = LIMITS[arch].occupancy(counts.threads, properties.registers, counts.shared)
    return [
        Metric("shared_memory", "B", counts.shared),
        Metric("occupancy", "1", round(occupancy, 4)),
        Metric("emulated_sectors", "1", counts.sectors),
        Metric("emulated_bytes", "B", counts.bytes, better="less"),
        Metric("emulated_floor", "B", counts.floor),
        Metric("bank_conflicts", "1", counts.wavefronts - counts.least_wavefronts),
    ]


def products(entry: str) -> int:
    """Multiply-adds an output: one for each tap, or for each tap of each gradient."""
    gradients = {"strips": 3, "walk": 3, "features": 2}.get(KERNELS[entry].family, 1)
    return gradients * int(KERNELS[entry].numbers[0]) ** 2


def paper_outputs(kernel: HotKernel) -> int:
    """Elements of the result at the shape for which times are predicted."""
    side = (SIDES.get(kernel.family, 56) - 1) // (*kernel.numbers, 1)[1] + 1
    return BATCH * CHANNELS * side**2


def predict_time(kernel: HotKernel, code: Code, counts: Counts, outputs: int, device: Device) -> tuple[float, Json]:
    """Seconds of one launch, and what bounds it: each output costs what it does in the emulated call and the loop."""
    parts = predict(work(kernel.dtype, products(kernel.name), code, counts).times(outputs), device)
    told = {name: float(f"{seconds:.3g}") for name, seconds in parts.items()}
    return float(f"{total(parts):.3g}"), {
        "device": device.name,
        "outputs": outputs,
        "bound_by": binding(parts),
        **told,
    }


def work(dtype: str, products: int, code: Code, counts: Counts) -> Work:
    """What one output costs."""
    loop = code.inside_loop()
    a_product = products / max(1, loop.multiply_adds)
    return Work(
        bytes=counts.bytes / counts.outputs,
        operations=loop.count("fp") * a_product,
        instructions=len(loop) * a_product,
        shared_bytes=128 * counts.wavefronts / counts.outputs,
        itemsize=8 if dtype == "float64" else 4,
    )
