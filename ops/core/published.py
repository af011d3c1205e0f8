"""The published CUDA kernels, as csrc/ddf/cuda/paper.cu has them: where they serve, and a call of them.

They are called as theirs are: the output is filled with zeros first, and no gradient is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import native

__all__ = ["apply", "refusal"]

#: Of the array in shared memory, whatever the element type.
SHARED_ELEMENTS = 6144
#: The fast path: tiles of 16 x 16 pixels, four channels at a time, for small kernels on planes that are not too small.
TILE, CHANNELS, LARGEST_KERNEL, LEAST_SIDE = 16, 4, 4, 14
#: Else: pixels of a block.
PIXELS = 32


def apply(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    kernel_combine: str = "mul",
) -> Tensor:
    """`ops.ddf.ddf` by the published kernels; tensors as there, contiguous, on CUDA.

    Raises:
        RuntimeError: where `refusal` has a reason.
    """
    n, c, _, _ = features.shape
    out = features.new_zeros(n, c, *spatial_filter.shape[2:])
    torch.ops.ddf.paper_forward_out(features, channel_filter, spatial_filter, dilation, stride, kernel_combine, out)
    return out


def refusal(features: Tensor, kernel_size: int, dilation: int, stride: int) -> str:
    """Why the published kernels cannot serve; empty where they can."""
    if features.device.type != "cuda":
        return "on CUDA alone"
    if features.requires_grad:
        return "the forward pass alone"
    if features.dtype not in (torch.float32, torch.float64):
        return f"float32 and float64 alone, not {str(features.dtype).removeprefix('torch.')}"
    if not features.is_contiguous():
        return "contiguous NCHW alone"
    needed = shared_elements(features.shape[2], features.shape[3], kernel_size, dilation, stride)
    if needed > SHARED_ELEMENTS:
        return f"{needed} elements overrun the {SHARED_ELEMENTS} of its shared memory"
    return native.missing("cuda")


def shared_elements(height: int, width: int, kernel_size: int, dilation: int, stride: int) -> int:
    """Elements of shared memory that a block needs."""
    taps = kernel_size**2
    if kernel_size <= LARGEST_KERNEL and stride == 1 and min(height, width) >= LEAST_SIDE:
        side = TILE + min(dilation, max(height, width)) * (kernel_size - 1)
        return taps * TILE**2 + CHANNELS * (taps + side**2)
    return PIXELS * taps
