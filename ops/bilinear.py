"""Bilinear upsampling: what learned upsampling is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Closure, Costs, Inputs, Op, Point
from .core.closed_forms import held
from .core.seeded import normal
from .core.upsampling import SCALE, UP_AXES, out_pixels, scale_of


class Bilinear(Op):
    """out(p) is F at (p + 1/2) / scale - 1/2, between the nearest pixels, and constant beyond the border."""

    name, title = "bilinear", "Bilinear"
    axes = tuple(name for name in UP_AXES if name != "kernel_size")
    extra_axes = (SCALE,)

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        return Inputs({"features": normal((point.batch, point.channels, point.height, point.width), point, generator)})

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._interpolate(inputs["features"], scale_of(point))

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._interpolate(inputs["features"].abs(), scale_of(point))

    def _interpolate(self, features: Tensor, scale: int) -> Tensor:
        """As two products with matrices, one along each side."""
        rows, columns = (tents(length, scale).to(features) for length in features.shape[2:])
        return rows @ features @ columns.T

    def costs(self, point: Point) -> Costs:
        """No parameters; four products for each output, `left_out` as interpolation.

        floor_bytes: features x read, output o written; a backward pass reads the gradient of o and writes that of x.
        """
        features, output = point.pixels * point.channels, out_pixels(point) * point.channels
        passes = 2 if point.backward else 1
        return Costs(
            params={},
            macs={},
            floor_bytes=passes * (features + output) * point.itemsize,
            memory=held(point, features=features, output=output),
            left_out={"interpolation": passes * 4 * output},
        )


def tents(length: int, scale: int) -> Tensor:
    """The weight of each pixel at each place along one side, (length * scale, length), in float64."""
    places = (torch.arange(length * scale, dtype=torch.float64) + 0.5) / scale - 0.5
    return (1 - (places.clamp(0, length - 1)[:, None] - torch.arange(length)).abs()).clamp(min=0)


@Bilinear.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    features, scale = inputs["features"], scale_of(point)
    return lambda: F.interpolate(features, scale_factor=scale, mode="bilinear")
