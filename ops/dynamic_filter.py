"""Dynamic filters, predicted at every pixel by a 1x1 convolution: the dense `dyfilter` and the depthwise `dyfilter_dw`.

They hold every filter in memory, n c^2 k^2 and n c k^2 elements, which is what DDF avoids by decoupling.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point
from .core.closed_forms import held
from .core.seeded import empty_convolution, fill_convolution, normal
from .core.taps import windows


class _DynamicFilter(Op):
    """Filters W are predicted from the features (N, C, H, W) by a 1x1 convolution without bias, and applied to them."""

    roof = "matmul"

    def filter_size(self, point: Point) -> int:
        """Elements of the filter at one output pixel."""
        raise NotImplementedError

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        c, size = point.channels, self.filter_size(point)
        conv = empty_convolution(lambda: nn.Conv2d(c, size, 1, point.stride, bias=False), point, device)
        # a filter sums size / c terms for each output, which is to have unit variance
        fill_convolution(conv, generator, gain=(size / c) ** -0.5)
        return Inputs({"features": normal((point.batch, c, point.height, point.width), point, generator)}, conv)

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (cast(nn.Conv2d, inputs.module)(inputs["features"]),)

    def costs(self, point: Point) -> Costs:
        """c^3 k^2 weights, or c^2 k^2 depthwise (poster, Table 1).

        floor_bytes: features x and weight w read, output o written; a backward pass reads x, w and the gradient of o,
        and writes those of x and w: 3 (x + w) + 2 o in all. The predicted filters are not counted: they could stay on
        chip.
        """
        c, size, products = point.channels, self.filter_size(point), 3 if point.backward else 1
        features, weight, output = point.pixels * c, c * size, point.out_pixels * c
        elements = 3 * (features + weight) + 2 * output if point.backward else features + weight + output
        return Costs(
            params={"weight": weight},
            macs={"conv": products * point.out_pixels * weight, "dynamic_filter": products * point.out_pixels * size},
            floor_bytes=elements * point.itemsize,
            memory=held(point, features=features, parameters=weight, filters=point.out_pixels * size, output=output),
        )


class DyFilter(_DynamicFilter):
    """out[n,o,y,x] = sum_{i,j} W[n,o,i,j,y,x] F[n, i, y*stride + dil*dy_j, x*stride + dil*dx_j], i channels, j taps."""

    name, title = "dyfilter", "DyFilter"

    def filter_size(self, point: Point) -> int:
        return point.channels**2 * point.taps

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """The sum of the terms, or of their absolute values, one output channel at a time to save memory."""
        features = inputs["features"].abs() if absolute else inputs["features"]
        outputs = []
        for weight in cast(nn.Conv2d, inputs.module).weight.chunk(point.channels):
            filters = F.conv2d(features, weight.abs() if absolute else weight, stride=point.stride)
            by_tap = filters.unflatten(1, (point.channels, point.taps)).unbind(2)
            read_by_tap = windows(features, point.kernel_size, point.stride, point.dilation)
            outputs.append(sum((w * f).sum(1) for w, f in zip(by_tap, read_by_tap, strict=True)))
        return torch.stack(cast(list[Tensor], outputs), 1)


class DyFilterDw(_DynamicFilter):
    """out[n,c,y,x] = sum_j W[n,c,j,y,x] F[n, c, y*stride + dil*dy_j, x*stride + dil*dx_j], j over taps."""

    name, title = "dyfilter_dw", "DyFilter-Dw"

    def filter_size(self, point: Point) -> int:
        return point.channels * point.taps

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs["features"], cast(nn.Conv2d, inputs.module).weight, point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs["features"].abs(), cast(nn.Conv2d, inputs.module).weight.abs(), point)

    def _sum_terms(self, features: Tensor, weight: Tensor, point: Point) -> Tensor:
        filters = F.conv2d(features, weight, stride=point.stride).unflatten(1, (point.channels, point.taps))
        out = torch.zeros_like(filters[:, :, 0])
        for j, read in enumerate(windows(features, point.kernel_size, point.stride, point.dilation)):
            out = out + filters[:, :, j] * read
        return out


@DyFilter.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    """The filters of a pixel predicted and applied as rows of matrix products.

    On two cores this takes 0.8 of the time of the convolution followed by a product and a sum (C = 64 and 14 x 14,
    13.6 against 16.3 ms; C = 256 and 7 x 7, 133 against 198 ms), and a third of an einsum's, which copies the filters.
    """
    features, weight = inputs["features"], cast(nn.Conv2d, inputs.module).weight
    k, stride, dilation, c = point.kernel_size, point.stride, point.dilation, point.channels

    def dyfilter() -> Tensor:
        n = features.shape[0]
        pixels = features[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, c)
        filters = F.linear(pixels, weight.flatten(1)).view(-1, c, c * point.taps)
        read = F.unfold(features, k, dilation, point.padding, stride).transpose(1, 2).reshape(-1, c * point.taps, 1)
        return torch.bmm(filters, read).view(n, point.out_height, point.out_width, c).permute(0, 3, 1, 2)

    return dyfilter


@DyFilterDw.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    """The filters predicted by the convolution, then applied tap by tap.

    Tap by tap is the faster baseline where the work is: on two cores at C = 256, against unfold with a product and a
    sum, 1.5 : 1.2 ms at 7 x 7, 3.1 : 3.6 at 14, 10 : 17 at 28, 55 : 51 at 56, 132 : 253 at 112.
    """
    features, conv = inputs["features"], cast(nn.Conv2d, inputs.module)
    accumulator = torch.promote_types(features.dtype, torch.float32)

    def dyfilter_dw() -> Tensor:
        filters = conv(features).unflatten(1, (point.channels, point.taps))
        out: Tensor | None = None
        for j, read in enumerate(windows(features, point.kernel_size, point.stride, point.dilation)):
            tap = filters[:, :, j]
            out = tap.to(accumulator) * read if out is None else out.addcmul_(tap, read)
        return cast(Tensor, out).to(features.dtype)

    return dyfilter_dw
