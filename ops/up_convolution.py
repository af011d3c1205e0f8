"""Convolutions that upsample: `transposed_conv`, and `subpixel_conv` (Shi et al., CVPR 2016)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point
from .core.seeded import drawn, normal
from .core.taps import windows
from .core.upsampling import SCALE, UP_AXES, scale_of, up_costs


class Transposed(nn.ConvTranspose2d):
    """The transposed convolution of a scale: k = 2 * scale taps along a side, one less where scale is odd.

    These are the taps that bilinear interpolation needs, as in fully convolutional networks (Long et al., CVPR 2015).
    """

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__(in_channels, out_channels, 2 * scale - scale % 2, scale, scale // 2)

    def draw(self, generator: torch.Generator) -> None:
        """Inputs of unit variance give outputs of about that, of which each sums (k / scale)^2 taps a channel."""
        taps = (self.kernel_size[0] / self.stride[0]) ** 2
        self.weight.normal_(0, (self.in_channels * taps) ** -0.5, generator=generator)
        cast(Tensor, self.bias).normal_(0, 0.1, generator=generator)

    def macs(self, x: Tensor) -> dict[str, int]:
        """Each tap of each pixel once."""
        return {"conv": x[0, 0].numel() * self.weight.numel()}


class TransposedConv(Op):
    """out[n, o, y*scale + dy - scale//2, x*scale + dx - scale//2] += W[i, o, dy, dx] F[n, i, y, x], and a bias."""

    name, title = "transposed_conv", "Transposed conv"
    roof = "matmul"
    axes = tuple(name for name in UP_AXES if name != "kernel_size")
    extra_axes = (SCALE,)

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        c = point.channels
        conv = drawn(lambda: Transposed(c, c, scale_of(point)), point, device, generator)
        return Inputs({"features": normal((point.batch, c, point.height, point.width), point, generator)}, conv)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(Transposed, inputs.module)
        return self._sum_terms(inputs["features"], conv.weight, cast(Tensor, conv.bias), scale_of(point))

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(Transposed, inputs.module)
        weight, bias = conv.weight.abs(), cast(Tensor, conv.bias).abs()
        return self._sum_terms(inputs["features"].abs(), weight, bias, scale_of(point))

    def _sum_terms(self, features: Tensor, weight: Tensor, bias: Tensor, scale: int) -> Tensor:
        """As a convolution, of features with zeros between them, with the taps turned round."""
        n, c, h, w = features.shape
        k = weight.shape[2]
        wide = features.new_zeros(n, c, h, scale, w, scale)
        wide[:, :, :, 0, :, 0] = features
        after = scale // 2
        before = k - 1 - after
        wide = F.pad(wide.reshape(n, c, h * scale, w * scale), (before, after, before, after))
        return F.conv2d(wide, weight.flip(2, 3).transpose(0, 1), bias)

    def costs(self, point: Point) -> Costs:
        """c^2 k^2 weights and c biases; each tap of each pixel once, those cut at the border included."""
        c, scale = point.channels, scale_of(point)
        weight = c * c * (2 * scale - scale % 2) ** 2
        return up_costs(point, params={"weight": weight, "bias": c}, macs={"conv": point.pixels * weight}, biases=c)


@TransposedConv.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    conv, features = cast(Transposed, inputs.module), inputs["features"]
    return lambda: conv(features)


class Subpixel(nn.Sequential):
    """A convolution to scale^2 times the channels, of which each pixel's outputs are made."""

    def __init__(self, in_channels: int, out_channels: int, scale: int, kernel_size: int = 3) -> None:
        conv = nn.Conv2d(in_channels, out_channels * scale**2, kernel_size, padding=kernel_size // 2)
        super().__init__(conv, nn.PixelShuffle(scale))


class SubpixelConv(Op):
    """out[n, o, y*scale + dy, x*scale + dx] = conv(F)[n, o*scale^2 + dy*scale + dx, y, x], k x k taps and a bias."""

    name, title = "subpixel_conv", "Sub-pixel conv"
    roof = "matmul"
    axes = UP_AXES
    extra_axes = (SCALE,)

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        c = point.channels
        layer = drawn(lambda: Subpixel(c, c, scale_of(point), point.kernel_size), point, device, generator)
        return Inputs({"features": normal((point.batch, c, point.height, point.width), point, generator)}, layer)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(nn.Conv2d, cast(Subpixel, inputs.module)[0])
        return self._sum_terms(inputs["features"], conv.weight, cast(Tensor, conv.bias), point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(nn.Conv2d, cast(Subpixel, inputs.module)[0])
        weight, bias = conv.weight.abs(), cast(Tensor, conv.bias).abs()
        return self._sum_terms(inputs["features"].abs(), weight, bias, point)

    def _sum_terms(self, features: Tensor, weight: Tensor, bias: Tensor, point: Point) -> Tensor:
        """Tap by tap, each output's channels laid where they belong."""
        out = bias[:, None, None]
        for tap, read in zip(weight.flatten(2).unbind(2), windows(features, point.kernel_size, 1, 1), strict=True):
            out = out + torch.einsum("oi,nihw->nohw", tap, read)
        scale = scale_of(point)
        by_output = out.unflatten(1, (point.channels, scale, scale)).permute(0, 1, 4, 2, 5, 3)
        return by_output.flatten(4, 5).flatten(2, 3)

    def costs(self, point: Point) -> Costs:
        """scale^2 c^2 k^2 weights and scale^2 c biases."""
        wide = point.channels * scale_of(point) ** 2
        weight = point.channels * wide * point.taps
        return up_costs(
            point, params={"0.weight": weight, "0.bias": wide}, macs={"conv": point.pixels * weight}, biases=wide
        )


@SubpixelConv.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    layer, features = cast(Subpixel, inputs.module), inputs["features"]
    return lambda: layer(features)
