"""DySample (Liu et al., ICCV 2023): each output reads the features at a place that is predicted from its pixel."""

from __future__ import annotations

from math import gcd
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Axis, Closure, Costs, Inputs, Op, Point, Skip
from .core.seeded import drawn, memory_format_of, normal
from .core.upsampling import SCALE, UP_AXES, out_pixels, out_size, scale_of, up_costs

#: What predicted offsets are multiplied with, in pixels of the features: the paper's static scope.
SCOPE = 0.25


class DySample(nn.Module):
    """Offsets predicted at the features' resolution ("linear, then pixel shuffle"), and bilinear sampling.

    Args:
        groups: of channels, each with places of its own.
    """

    def __init__(self, channels: int, scale: int = 2, groups: int = 4) -> None:
        super().__init__()
        self.scale, self.groups = scale, groups
        self.offset = nn.Conv2d(channels, 2 * groups * scale**2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H*scale, W*scale)."""
        n, c, h, w = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        offsets = F.pixel_shuffle(self.offset(x).to(wide), self.scale).unflatten(1, (self.groups, 2)).flatten(0, 1)
        rows, columns = (places(length, self.scale).to(offsets) for length in (h, w))
        grid = torch.stack(
            [
                (2 * (columns + SCOPE * offsets[:, 1]) + 1) / w - 1,
                (2 * (rows[:, None] + SCOPE * offsets[:, 0]) + 1) / h - 1,
            ],
            3,
        )
        images = x.reshape(n * self.groups, c // self.groups, h, w).to(wide)
        out = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return out.to(x.dtype).view(n, c, h * self.scale, w * self.scale)


def places(length: int, scale: int) -> Tensor:
    """Where outputs read without an offset, along one side: as bilinear upsampling does, in pixels of the features."""
    return (torch.arange(length * scale, dtype=torch.float64) + 0.5) / scale - 0.5


class DySampleOp(Op):
    """out[n,c,p] = F(n, c, (p + 1/2) / scale - 1/2 + o[n, g, p] / 4), g the group of c; interpolated bilinearly.

    o is a 1x1 convolution of the features, (N, groups * 2 * scale^2, H, W), rows before columns, then branches. Beyond
    the border F is constant. Where a place is whole, the derivative jumps.
    """

    name, title = "dysample", "DySample"
    axes = tuple(name for name in UP_AXES if name != "kernel_size")
    extra_axes = (SCALE, Axis("groups", 4, "groups of channels with places of their own, or what these have in common"))

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        module = drawn(lambda: DySample(point.channels, scale_of(point), _groups(point)), point, device, generator)
        return Inputs(
            {"features": normal((point.batch, point.channels, point.height, point.width), point, generator)}, module
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        rows, columns = self._places(inputs, point, absolute=False)
        return self._interpolate(inputs["features"], rows, columns, None, point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        """Of a weight 1 - (row - r) the terms are 1, r, and those of the row, which is known to a rounding of them."""
        rows, columns = self._places(inputs, point, absolute=False)
        row_terms, column_terms = self._places(inputs, point, absolute=True)
        terms = 1 + row_terms + column_terms
        return self._interpolate(inputs["features"].abs(), rows, columns, terms, point)

    def _places(self, inputs: Inputs, point: Point, absolute: bool) -> tuple[Tensor, Tensor]:
        """Rows and columns, (N, groups, H*scale, W*scale), none beyond the border; or their absolute terms."""
        conv, scale = cast(DySample, inputs.module).offset, scale_of(point)
        parts = inputs["features"], conv.weight.flatten(1), cast(Tensor, conv.bias)[:, None, None]
        features, weight, bias = (part.abs() for part in parts) if absolute else parts
        raw = (torch.einsum("oi,nihw->nohw", weight, features) + bias).unflatten(1, (-1, 2, scale, scale))
        offsets = raw.permute(2, 0, 1, 5, 3, 6, 4).flatten(5, 6).flatten(3, 4) * SCOPE
        rows, columns = (places(length, scale).to(offsets) for length in (point.height, point.width))
        if absolute:
            return rows.abs()[:, None] + offsets[0], columns.abs() + offsets[1]
        return (
            (rows[:, None] + offsets[0]).clamp(0, point.height - 1),
            (columns + offsets[1]).clamp(0, point.width - 1),
        )

    def _interpolate(
        self, features: Tensor, rows: Tensor, columns: Tensor, weights: Tensor | None, point: Point
    ) -> Tensor:
        """The four pixels around each place, gathered and weighed by how near they are, or all four by `weights`."""
        n, groups = rows.shape[:2]
        flat = features.reshape(n, groups, -1, point.height * point.width)
        above, left = rows.detach().floor(), columns.detach().floor()
        out = torch.zeros((), dtype=features.dtype, device=features.device)
        for below, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            y, x = (above + below).clamp(max=point.height - 1), (left + right).clamp(max=point.width - 1)
            down, across = rows - above, columns - left
            tents = (down if below else 1 - down) * (across if right else 1 - across)
            index = (y * point.width + x).long().flatten(2)[:, :, None].expand(-1, -1, flat.shape[2], -1)
            out = out + (tents if weights is None else weights).flatten(2)[:, :, None] * flat.gather(3, index)
        return out.reshape(n, point.channels, *out_size(point))

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        """The offsets, which stand for filters."""
        return (cast(DySample, inputs.module).offset(inputs["features"]),)

    def costs(self, point: Point) -> Costs:
        """2 g scale^2 c weights, g groups, and biases; interpolation, four products for each output, is `left_out`."""
        offsets = 2 * _groups(point) * scale_of(point) ** 2
        weight = offsets * point.channels
        return up_costs(
            point,
            params={"offset.weight": weight, "offset.bias": offsets},
            macs={"conv": point.pixels * weight},
            left_out={"interpolation": 4 * out_pixels(point) * point.channels},
            filters=point.pixels * offsets,
        )


def _groups(point: Point) -> int:
    return gcd(int(point.extra.get("groups", 4)), point.channels)


@DySampleOp.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    if point.backward and point.itemsize < 4:
        raise Skip("gradients in half precision: a place rounded past a whole one has another derivative")
    features, module, layout = inputs["features"], cast(DySample, inputs.module), memory_format_of(point)
    return lambda: module(features).contiguous(memory_format=layout)
