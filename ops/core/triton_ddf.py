"""The DDF operator in Triton, as a user would write it instead of CUDA: what the native kernels are held against.

A program computes a tile of channels by output pixels of one sample, so that a spatial tap is loaded once for all its
channels; the compiler picks the vectors, and the first call of a shape the tile. Importing this needs Triton.
"""

# Triton reads the kernel's annotations: those of its arguments are not for mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["INTERPRETED", "apply"]

#: Whether Triton's interpreter runs the kernel, on CPU tensors and without a compiler; its own switch.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"

#: Tiles tried on the first call of a shape: channels, pixels, warps.
TILES = ((1, 256, 4), (4, 128, 4), (8, 128, 4), (8, 256, 8), (16, 64, 4), (32, 32, 4), (64, 16, 4), (64, 32, 8))
#: The tile of the interpreter, which is not timed: with a tail in both directions at most shapes.
INTERPRETED_TILE = 4, 64, 1


def _kernel(
    features,
    channel_filter,
    spatial_filter,
    out,
    channels,
    height,
    width,
    out_width,
    out_pixels,
    f_n,
    f_c,
    f_y,
    f_x,
    o_n,
    o_c,
    o_y,
    o_x,
    kernel_size: tl.constexpr,
    dilation: tl.constexpr,
    stride: tl.constexpr,
    multiply: tl.constexpr,
    accumulator: tl.constexpr,
    tile_channels: tl.constexpr,
    tile_pixels: tl.constexpr,
):
    """Features and out by their strides; filters (N, C, k, k) and (N, k*k, Ho, Wo) contiguous."""
    taps: tl.constexpr = kernel_size * kernel_size
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * tile_channels + tl.arange(0, tile_channels)
    p = tl.program_id(1) * tile_pixels + tl.arange(0, tile_pixels)
    c_in, p_in = c < channels, p < out_pixels
    y, x = p // out_width, p % out_width
    c_long = c.to(tl.int64)
    f_row = features + n * f_n + c_long[:, None] * f_c
    c_row = channel_filter + (n * channels + c_long) * taps
    s_row = spatial_filter + n * taps * out_pixels + p
    total = tl.full((tile_channels, tile_pixels), 0.0, accumulator)
    for j in tl.static_range(taps):
        tap_y = y * stride + (j // kernel_size - kernel_size // 2) * dilation
        tap_x = x * stride + (j % kernel_size - kernel_size // 2) * dilation
        inside = p_in & (tap_y >= 0) & (tap_y < height) & (tap_x >= 0) & (tap_x < width)
        place = f_row + (tap_y.to(tl.int64) * f_y + tap_x.to(tl.int64) * f_x)[None, :]
        read = tl.load(place, c_in[:, None] & inside[None, :], 0.0).to(accumulator)
        of_channel = tl.load(c_row + j, c_in, 0.0).to(accumulator)[:, None]
        of_pixel = tl.load(s_row + tl.full((), j, tl.int64) * out_pixels, p_in, 0.0).to(accumulator)[None, :]
        total += (of_pixel * of_channel if multiply else of_pixel + of_channel) * read
    place = out + n * o_n + c_long[:, None] * o_c + (y.to(tl.int64) * o_y + x.to(tl.int64) * o_x)[None, :]
    tl.store(place, total.to(out.dtype.element_ty), c_in[:, None] & p_in[None, :])


_jit: Any = triton.jit(_kernel)
_tuned: Any = triton.autotune(
    [triton.Config({"tile_channels": c, "tile_pixels": p}, num_warps=warps) for c, p, warps in TILES],
    key=["channels", "height", "width", "kernel_size", "stride", "f_c"],
)(_jit)


def apply(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    kernel_combine: str = "mul",
) -> Tensor:
    """`ops.ddf.ddf`, without gradients; the first call of a shape compiles and tries the tiles.

    Args:
        features: (N, C, H, W), float32, float64, float16 or bfloat16, of any strides, on CUDA, or on the CPU where
            `INTERPRETED`.
        channel_filter: (N, C, k, k).
        spatial_filter: (N, k*k, Ho, Wo).

    Returns:
        (N, C, Ho, Wo), in the layout of the features; summed in float32, or float64 for float64.
    """
    n, c, h, w = features.shape
    size = spatial_filter.shape[2:]
    last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    out = torch.empty((n, c, *size), dtype=features.dtype, device=features.device, memory_format=layout)
    pixels = size.numel()
    tensors = features, channel_filter.contiguous(), spatial_filter.contiguous(), out
    sizes = c, h, w, size[1], pixels, *features.stride(), *out.stride()
    accumulator = tl.float64 if features.dtype == torch.float64 else tl.float32
    settings = kernel_size, dilation, stride, kernel_combine == "mul", accumulator

    def grid(tile: Any) -> tuple[int, int, int]:
        return triton.cdiv(c, tile["tile_channels"]), triton.cdiv(pixels, tile["tile_pixels"]), n

    if INTERPRETED:
        channels, tile_pixels, _ = INTERPRETED_TILE
        _jit[grid](*tensors, *sizes, *settings, tile_channels=channels, tile_pixels=tile_pixels)
    else:
        _tuned[grid](*tensors, *sizes, *settings)
    return out
