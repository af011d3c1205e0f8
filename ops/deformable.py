"""The core of deformable convolution v4 (Xiong et al., CVPR 2024): a weighted sum of samples at given places."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Closure, Costs, Inputs, Op, Point
from .core.closed_forms import applied
from .core.optional import library
from .core.seeded import normal

#: Channels that share offsets and weights, as in the paper's networks.
GROUP = 16


class Dcnv4(Op):
    """out[n,c,y,x] = sum_j m[n, c//g, j, y, x] F(n, c, (y, x)*stride + dil*d_j + o[n, c//g, j, :, y, x]), j over taps.

    F between pixels is interpolated bilinearly, and 0 outside. m is not normalised, which sets v4 apart from v3. g, the
    channels that share places and weights, is 16, or what 16 and the channels have in common. Offsets o,
    (N, C/g * k*k * 2, Ho, Wo), rows before columns, and weights m, (N, C/g * k*k, Ho, Wo), are given.
    """

    name, title = "dcnv4", "DCNv4 core"

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        n, c, size = point.batch, point.channels, (point.out_height, point.out_width)
        taps = c // gcd(GROUP, c) * point.taps
        return Inputs(
            {
                "features": normal((n, c, point.height, point.width), point, generator),
                "offsets": normal((n, 2 * taps, *size), point, generator),
                "weights": normal((n, taps, *size), point, generator, 1 / point.kernel_size),
            }
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs["features"], inputs["offsets"], inputs["weights"], point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs["features"].abs(), inputs["offsets"], inputs["weights"].abs(), point)

    def _sum_terms(self, features: Tensor, offsets: Tensor, weights: Tensor, point: Point) -> Tensor:
        """Interpolated by tents, 1 - |distance|, over an image with a border of zeros; at a whole place the derivative
        is that towards higher ones.
        """
        group = gcd(GROUP, point.channels)
        images = F.pad(features.reshape(-1, group, point.height, point.width), (1, 1, 1, 1)).permute(0, 2, 3, 1)
        by_tap = offsets.reshape(len(images), point.taps, 2, point.out_height, point.out_width)
        of_tap = weights.reshape(len(images), point.taps, point.out_height, point.out_width)
        image = torch.arange(len(images), device=features.device)[:, None, None]
        out = torch.zeros((), dtype=features.dtype, device=features.device)
        for j, (rows, columns) in enumerate(_places(point, features.device)):
            for below, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
                y, x = by_tap[:, j, 0].detach().floor() + below, by_tap[:, j, 1].detach().floor() + right
                down, across = by_tap[:, j, 0] - y, by_tap[:, j, 1] - x
                tents = (1 + down if below else 1 - down) * (1 + across if right else 1 - across)
                at_y = (y.long() + rows).clamp(-1, point.height) + 1
                at_x = (x.long() + columns).clamp(-1, point.width) + 1
                out = out + (of_tap[:, j] * tents)[..., None] * images[image, at_y, at_x]
        return out.permute(0, 3, 1, 2).reshape(point.batch, point.channels, *of_tap.shape[2:])

    def costs(self, point: Point) -> Costs:
        """As of any filters that are given, offsets among them; the interpolation of what it reads is `left_out`."""
        c = point.channels
        products = (3 if point.backward else 1) * point.out_pixels * c * point.taps
        given = 3 * point.out_pixels * c // gcd(GROUP, c) * point.taps
        return applied(point, given, left_out={"interpolation": 4 * products})


def _places(point: Point, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """For each tap the rows (Ho, 1) and columns (Wo) that it reads without an offset; integers."""
    rows = torch.arange(point.out_height, device=device)[:, None] * point.stride
    columns = torch.arange(point.out_width, device=device) * point.stride
    for j in range(point.taps):
        y, x = divmod(j, point.kernel_size)
        yield rows + point.dilation * y - point.padding, columns + point.dilation * x - point.padding


@Dcnv4.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    """Tap by tap and corner by corner of the four pixels around each place, which are gathered."""
    features, offsets, weights = inputs["features"], inputs["offsets"], inputs["weights"]
    h, w, taps, size = point.height, point.width, point.taps, (point.out_height, point.out_width)
    group = gcd(GROUP, point.channels)
    images = point.batch * point.channels // group
    accumulator = torch.promote_types(features.dtype, torch.float32)

    def corners(start: Tensor, part: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices along one side and their weights, 0 outside."""
        for index, weight in ((start, 1 - part), (start + 1, part)):
            yield index.clamp(0, length - 1), weight * ((index >= 0) & (index < length))

    def dcnv4() -> Tensor:
        flat = features.reshape(images, group, h * w).to(accumulator)
        by_tap = offsets.reshape(images, taps, 2, *size).to(accumulator)
        weight_of = weights.reshape(images, taps, *size).to(accumulator)
        whole = by_tap.detach().floor()
        parts, starts = by_tap - whole, whole.long()
        out = features.new_zeros(images, group, size[0] * size[1], dtype=accumulator)
        for j, (rows, columns) in enumerate(_places(point, features.device)):
            for y, in_y in corners(starts[:, j, 0] + rows, parts[:, j, 0], h):
                for x, in_x in corners(starts[:, j, 1] + columns, parts[:, j, 1], w):
                    index = (y * w + x).view(images, 1, -1).expand(-1, group, -1)
                    out.addcmul_((weight_of[:, j] * in_y * in_x).view(images, 1, -1), flat.gather(2, index))
        return out.to(features.dtype).view(point.batch, point.channels, *size)

    return dcnv4


@Dcnv4.impl("torchvision")
def _(inputs: Inputs, point: Point) -> Closure:
    """As deformable convolution v2, depthwise with weights of 1."""
    deform_conv2d = library("torchvision.ops").deform_conv2d
    features, offsets, weights = inputs["features"], inputs["offsets"], inputs["weights"]
    ones = features.new_ones(point.channels, 1, point.kernel_size, point.kernel_size)
    settings = None, point.stride, point.padding, point.dilation
    return lambda: cast(Tensor, deform_conv2d(features, offsets, ones, *settings, mask=weights))


@Dcnv4.impl("mmcv")
def _(inputs: Inputs, point: Point) -> Closure:
    """As deformable convolution v2, depthwise with weights of 1."""
    deform_conv2d = library("mmcv.ops").modulated_deform_conv2d
    features, offsets, weights = inputs["features"], inputs["offsets"], inputs["weights"]
    c = point.channels
    ones = features.new_ones(c, 1, point.kernel_size, point.kernel_size)
    settings = None, point.stride, point.padding, point.dilation, c, c // gcd(GROUP, c)
    return lambda: cast(Tensor, deform_conv2d(features, offsets, weights, ones, *settings))
