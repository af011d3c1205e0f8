"""One call of each hot kernel under emulation: how it is launched, and the memory that it moves, without a GPU.

A kernel is called at a shape of a few tiles, so that what a tile adds at its edges is seen, once for each architecture:
launchers choose by it. Counts are exact, and kept by the content of all that they come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ops.core.build import BuildError
from suites.core import emulation
from suites.core.hot_list import SOURCE, HotKernel

if TYPE_CHECKING:
    from suites.core.emulation.operator_kernels import Kernels

__all__ = ["CALLS", "Call", "Counts", "counted", "emulate"]


@dataclass(frozen=True)
class Call:
    """How a family of kernels is called.

    Args:
        shape: of the features: N, C, H, W.
        kernel: its name in the table of forward kernels, or of backward ones.
    """

    shape: tuple[int, int, int, int]
    kernel: str
    channels_last: bool = False
    backward: bool = False


#: By family of the hot list. The arguments of a kernel are its element type, kernel size, and stride, 1 if it has none.
CALLS = {
    "rows": Call((1, 16, 32, 56), "rows"),
    "channels": Call((1, 64, 16, 16), "channels", channels_last=True),
    "planes": Call((1, 64, 14, 14), "planes"),
    "strips": Call((1, 16, 32, 56), "strips", backward=True),
    "walk": Call((1, 128, 16, 16), "walk", channels_last=True, backward=True),
}


@dataclass(frozen=True)
class Counts:
    """What one call came to.

    Args:
        blocks, threads, shared: of the launch: blocks of the grid, threads and bytes of shared memory of a block.
        outputs: elements of the result, or on the way back of its gradient.
        sectors: of 32 bytes, that the requests of all warps asked for.
        least_sectors: what they would have asked for with their bytes side by side.
        bytes: of the sectors that each block touched, summed over blocks.
        floor: bytes of all tensors, each once.
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
    """By kernel and architecture, what one call comes to; of the kernels whose family's call is known.

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
        found = {
            kernel.name: {arch: asdict(emulate(kernel, arch, operator)) for arch in arches}
            for kernel in kernels
            if kernel.family in CALLS
        }
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
    import torch

    call = CALLS[kernel.family]
    size, stride = (*kernel.numbers, 1)[:2]
    (n, c, h, w), dtype = call.shape, getattr(torch, kernel.dtype)
    out_size = (h - 1) // stride + 1, (w - 1) // stride + 1
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    shapes = {
        "features": call.shape,
        "channel": (n, c, size, size),
        "spatial": (n, size * size, *out_size),
        "out": (n, c, *out_size),
    }
    if call.backward:
        shapes |= {f"grad_{name}": shapes[name] for name in ("features", "channel", "spatial")}
    buffers = {name: torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout) for name, shape in shapes.items()}
    checker = emulation.Checked(kernels.path)
    kernels.seed(0)
    kernels.pretend(int(arch))
    features, channel, spatial, out, *gradients = buffers.values()
    with checker.watch(buffers):
        if call.backward:
            kernels.backward(out, features, channel, spatial, gradients, kernel=call.kernel)
        else:
            kernels.forward(features, channel, spatial, out, stride=stride, entry="cuda_forward_by", kernel=call.kernel)
    launches = [launch for launch in checker.launches() if not launch.kernel.startswith("sum_parts_kernel")]
    if len(launches) != 1 or not kernel.is_called(launches[0].kernel):
        raise emulation.EmulationError(f"{kernel.name} was meant, {[launch.kernel for launch in launches]} ran")
    traffic, shared = checker.traffic(), checker.shared()[launches[0].kernel]
    return Counts(
        blocks=launches[0].blocks,
        threads=launches[0].threads,
        shared=launches[0].shared,
        outputs=out.numel(),
        sectors=sum(t.requested for t in traffic),
        least_sectors=sum(t.least for t in traffic),
        bytes=32 * sum(t.fetched for t in traffic),
        floor=sum(tensor.numel() * tensor.element_size() for tensor in buffers.values()),
        wavefronts=shared["wavefronts"],
        least_wavefronts=shared["least_wavefronts"],
    )
