"""The DDF operator and its gradients in float64, tap by tap from the definition, and how far a result may be off.

A tap is added where its pixel exists and left out where it does not: nothing is padded, so that this shares no idea
with the operator's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Half the distance to the next number, relative, and the least number that is not zero.
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LEAST = {torch.float64: 0.0, torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


@dataclass(frozen=True)
class Settings:
    stride: int = 1
    dilation: int = 1
    combine: str = "mul"

    def size(self, features: int) -> int:
        """Outputs along an axis with that many features."""
        return (features - 1) // self.stride + 1


def _reach(size: int, k: int, tap: int, settings: Settings) -> tuple[slice, slice]:
    """The outputs for which a tap along one axis lies inside, and the features it then reads."""
    offset = settings.dilation * (tap - k // 2)
    inside = [o for o in range(settings.size(size)) if 0 <= o * settings.stride + offset < size]
    if not inside:
        return slice(0, 0), slice(0, 0)
    first, last = inside[0], inside[-1]
    read = slice(first * settings.stride + offset, last * settings.stride + offset + 1, settings.stride)
    return slice(first, last + 1), read


def _taps(features: Tensor, k: int, settings: Settings) -> Iterator[tuple[int, int, int, tuple[slice, ...], ...]]:
    """For each tap: its number, row and column, where it is added in the output, and what it reads."""
    height, width = features.shape[2:]
    everything = slice(None)
    for i in range(k):
        out_y, in_y = _reach(height, k, i, settings)
        for j in range(k):
            out_x, in_x = _reach(width, k, j, settings)
            yield i * k + j, i, j, (everything, everything, out_y, out_x), (everything, everything, in_y, in_x)


def forward(features: Tensor, channel: Tensor, spatial: Tensor, settings: Settings) -> Tensor:
    """(N, C, Ho, Wo), of float64 inputs."""
    n, c, h, w = features.shape
    out = features.new_zeros(n, c, settings.size(h), settings.size(w))
    for tap, i, j, to, read in _taps(features, channel.shape[2], settings):
        s, f = spatial[:, tap, None, to[2], to[3]], channel[:, :, i, j, None, None]
        out[to] += (s * f if settings.combine == "mul" else s + f) * features[read]
    return out


def backward(
    grad: Tensor, features: Tensor, channel: Tensor, spatial: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of features, channel filter and spatial filter, of float64 inputs."""
    by_features, by_channel, by_spatial = (torch.zeros_like(t) for t in (features, channel, spatial))
    for tap, i, j, to, read in _taps(features, channel.shape[2], settings):
        s, f = spatial[:, tap, None, to[2], to[3]], channel[:, :, i, j, None, None]
        product = grad[to] * features[read]
        if settings.combine == "mul":
            by_features[read] += s * f * grad[to]
            by_channel[:, :, i, j] += (product * s).sum((2, 3))
            by_spatial[:, tap, to[2], to[3]] += (product * f).sum(1)
        else:
            by_features[read] += (s + f) * grad[to]
            by_channel[:, :, i, j] += product.sum((2, 3))
            by_spatial[:, tap, to[2], to[3]] += product.sum(1)
    return by_features, by_channel, by_spatial


def assert_rounded(got: Tensor, expected: Tensor, magnitude: Tensor, terms: int, what: str) -> None:
    """Holds a result to its bound: each of `terms` products and sums may round once, and the result once more.

    Args:
        expected: in float64.
        magnitude: the sum of the absolute terms of each element, in float64.
    """
    assert got.shape == expected.shape, what
    accumulator = torch.float64 if got.dtype == torch.float64 else torch.float32
    result = got.double()
    finite = magnitude.isfinite()
    bound = (terms + 3) * ROUNDING[accumulator] * magnitude + ROUNDING[got.dtype] * expected.abs()
    bound = bound + LEAST[got.dtype] + terms * LEAST[accumulator]
    error = (result - expected).abs()
    same = (result == expected) | result.isnan() & expected.isnan()
    wrong = torch.where(finite, ~(error <= bound), ~same)  # nan is not within a bound
    assert not wrong.any(), (
        f"{what}: {int(wrong.sum())} of {wrong.numel()} wrong, {error[wrong][:3]} > {bound[wrong][:3]}"
    )


def absolute(*tensors: Tensor) -> list[Tensor]:
    return [t.abs() for t in tensors]
