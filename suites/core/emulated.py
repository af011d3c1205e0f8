"""One call of each hot kernel under emulation: how it is launched, and the memory that it moves, without a GPU.

A kernel is called at a shape of a few tiles, so that what a tile adds at its edges is seen, once for each architecture:
launchers choose by it. Where a call takes several kernels, as the fused module's do, the others run but do not count.
Counts are exact, and kept by the content of all that they come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ops.core.build import BuildError
from suites.core import emulation
from suites.core.hot_list import SOURCE, HotKernel

if TYPE_CHECKING:
    from torch import Tensor

    from suites.core.emulation.operator_kernels import Kernels

__all__ = ["CALLS", "Call", "Counts", "counted", "emulate"]


@dataclass(frozen=True)
class Call:
    """How a family of kernels is called.

    Args:
        shape: of the features: N, C, H, W.
        kernel: its name in the table of forward kernels, or of backward ones; empty for a kernel of the fused module.
    """

    shape: tuple[int, int, int, int]
    kernel: str = ""
    channels_last: bool = False
    backward: bool = False


#: By family of the hot list. The arguments of a kernel are its element type, kernel size, and stride, 1 if it has none.
CALLS = {
    "rows": Call((1, 16, 32, 56), "rows"),
    "channels": Call((1, 64, 16, 16), "channels", channels_last=True),
    "planes": Call((1, 64, 14, 14), "planes"),
    "strips": Call((1, 16, 32, 56), "strips", backward=True),
    "walk": Call((1, 128, 16, 16), "walk", channels_last=True, backward=True),
    "predict": Call((1, 64, 16, 32)),
    "features": Call((1, 64, 16, 32), backward=True),
}
#: Hidden channels of the module that is called.
HIDDEN = 13


@dataclass(frozen=True)
class Counts:
    """What one call came to.

    Args:
        blocks, threads, shared: of the launch: blocks of the grid, threads and bytes of shared memory of a block.
        outputs: elements of the operator's result, or on the way back of its gradient.
        sectors: of 32 bytes, that the requests of all warps asked for.
        least_sectors: what they would have asked for with their bytes side by side.
        bytes: of the sectors that each block touched, summed over blocks.
        floor: bytes of all tensors that it touches, each once; of scratch memory, of the sectors that it touches.
        wavefronts, least_wavefronts: of shared memory; what is beyond the least are bank conflicts.
    """

    blocks: int
    threads: int
    shared: int
    outputs: int
    sectors: int
    least_sectors: int
    bytes: int
    floor: int
    wavefronts: int
    least_wavefronts: int


def counted(kernels: Sequence[HotKernel], arches: Sequence[str]) -> dict[str, dict[str, Counts]]:
    """By kernel and architecture, what one call comes to.

    Raises:
        BuildError: if the emulation cannot be built.
    """
    from suites.core.emulation.operator_kernels import SOURCES, Kernels

    try:
        library = emulation.compile_kernels(SOURCES, "checked")
    except emulation.EmulationError as error:
        raise BuildError(str(error)) from None

    def make(work: Path) -> None:
        operator = Kernels("checked", library)
        found = {kernel.name: {arch: asdict(emulate(kernel, arch, operator)) for arch in arches} for kernel in kernels}
        (work / "counts.json").write_text(json.dumps(found))

    folder = emulation.kept(emulation.ROOT / ".build", "counts", [library, SOURCE, Path(__file__)], make)
    told = json.loads((folder / "counts.json").read_text())
    return {name: {arch: Counts(**counts) for arch, counts in found.items()} for name, found in told.items()}


def emulate(kernel: HotKernel, arch: str, kernels: Kernels) -> Counts:
    """Calls a hot kernel as a GPU of that architecture would.

    Args:
        kernels: the operator's, built `checked`.

    Raises:
        KeyError: if no call of its family is known.
        EmulationError: if the call fails, or another kernel runs than is meant.
    """
    checker = emulation.Checked(kernels.path)
    kernels.seed(0)
    kernels.pretend(int(arch))
    call = CALLS[kernel.family]
    buffers, run = (_operator if call.kernel else _module)(call, kernel, kernels)
    with checker.watch(buffers):
        run()
    launches = [launch for launch in checker.launches() if kernel.is_called(launch.kernel)]
    if len(launches) != 1:
        raise emulation.EmulationError(f"{kernel.name} was meant, {[each.kernel for each in checker.launches()]} ran")
    (launch,) = launches
    traffic = [t for t in checker.traffic() if t.kernel == launch.kernel]
    shared = checker.shared()[launch.kernel]
    return Counts(
        blocks=launch.blocks,
        threads=launch.threads,
        shared=launch.shared,
        outputs=buffers["out"].numel(),
        sectors=sum(t.requested for t in traffic),
        least_sectors=sum(t.least for t in traffic),
        bytes=32 * sum(t.fetched for t in traffic),
        floor=sum(buffers[name].nbytes for name in {t.buffer for t in traffic} - {"work"})
        + 32 * sum(t.touched for t in traffic if t.buffer == "work"),
        wavefronts=shared["wavefronts"],
        least_wavefronts=shared["least_wavefronts"],
    )


def _operator(call: Call, kernel: HotKernel, kernels: Kernels) -> tuple[dict[str, Tensor], Callable[[], object]]:
    """The tensors of a call of the operator by the kernel of that name, and the call."""
    size, stride = (*kernel.numbers, 1)[:2]
    n, c, h, w = call.shape
    out_size = (h - 1) // stride + 1, (w - 1) // stride + 1
    shapes = {
        "features": call.shape,
        "channel": (n, c, size, size),
        "spatial": (n, size * size, *out_size),
        "out": (n, c, *out_size),
    }
    gradients = [f"grad_{name}" for name in ("features", "channel", "spatial") if call.backward]
    shapes |= {name: shapes[name.removeprefix("grad_")] for name in gradients}
    buffers = {name: _zeros(shape, call, kernel) for name, shape in shapes.items()}
    features, channel, spatial, out = (buffers[name] for name in ("features", "channel", "spatial", "out"))

    def run() -> None:
        if call.backward:
            found = [buffers[name] for name in gradients]
            kernels.backward(out, features, channel, spatial, found, kernel=call.kernel)
        else:
            kernels.forward(features, channel, spatial, out, stride=stride, entry="cuda_forward_by", kernel=call.kernel)

    return buffers, run


def _module(call: Call, kernel: HotKernel, kernels: Kernels) -> tuple[dict[str, Tensor], Callable[[], object]]:
    """The tensors of a call of the fused module, and the call."""
    size, c = kernel.numbers[0], call.shape[1]
    taps = size * size
    shapes = {
        "spatial_weight": (taps, c, 1, 1),
        "spatial_bias": (taps,),
        "squeeze_weight": (HIDDEN, c, 1, 1),
        "squeeze_bias": (HIDDEN,),
        "excite_weight": (c * taps, HIDDEN, 1, 1),
        "excite_bias": (c * taps,),
        "channel_std": (c * taps,),
    }
    buffers = {name: _zeros(shape, call, kernel) for name, shape in shapes.items()}
    parameters = list(buffers.values())
    buffers |= {name: _zeros(call.shape, call, kernel) for name in ("features", "out")}
    if call.backward:
        buffers |= {f"grad_{name}": _zeros(tuple(buffers[name].shape), call, kernel) for name in ("features", *shapes)}
    gradients = [buffers[f"grad_{name}"] for name in ("features", *shapes) if call.backward]
    arguments = buffers["features"], parameters, buffers["out"], 1.0, size, 1, 1, 1, "mul", gradients
    params, rooms = kernels.module_params(*arguments)
    return {**buffers, **rooms}, lambda: kernels.call_module(params)


def _zeros(shape: tuple[int, ...], call: Call, kernel: HotKernel) -> Tensor:
    import torch

    tensor = torch.zeros(shape, dtype=getattr(torch, kernel.dtype))
    return tensor.contiguous(memory_format=torch.channels_last) if call.channels_last else tensor
