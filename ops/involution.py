"""Involution (Li et al., CVPR 2021): at each pixel a filter for 16 channels, predicted from the pixel alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point
from .core import native
from .core.closed_forms import held
from .core.networks import involution as layers
from .core.seeded import drawn, normal
from .core.taps import windows
from .ddf import ddf, need_native


class Involution(Op):
    """The layer of RedNet; see `core.networks.involution`."""

    name, title = "involution", "Involution"
    roof = "matmul"

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        sizes = point.channels, point.kernel_size, point.stride, point.dilation
        layer = drawn(lambda: layers.Involution(*sizes), point, device, generator)
        return Inputs(
            {"features": normal((point.batch, point.channels, point.height, point.width), point, generator)}, layer
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """The filters from the parameters alone, spread over the channels of their groups, and applied tap by tap."""
        features, layer = inputs["features"], cast(layers.Involution, inputs.module)
        conv, norm = cast(nn.Conv2d, layer.reduce[0]), cast(nn.BatchNorm2d, layer.reduce[1])
        read = F.avg_pool2d(features, point.stride, ceil_mode=True)
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        hidden = F.batch_norm(F.conv2d(read, conv.weight), mean, variance, norm.weight, norm.bias, eps=norm.eps).relu()
        weight, bias = layer.span.weight, cast(Tensor, layer.span.bias)
        if absolute:
            features, weight, bias = features.abs(), weight.abs(), bias.abs()
        group = gcd(layers.GROUP, point.channels)
        filters = F.conv2d(hidden, weight, bias).unflatten(1, (-1, point.taps)).repeat_interleave(group, 1)
        out = torch.zeros_like(filters[:, :, 0])
        for j, window in enumerate(windows(features, point.kernel_size, point.stride, point.dilation)):
            out = out + filters[:, :, j] * window
        return out

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (cast(layers.Involution, inputs.module).filters(inputs["features"]),)

    def costs(self, point: Point) -> Costs:
        """c^2/4 + c^2 k^2/(4 g) weights, with g = 16 channels that share a filter, biases and BatchNorm.

        floor_bytes: features x and parameters p read, output o written; a backward pass reads x, p and the gradient of
        o, and writes those of x and p: 3 (x + p) + 2 o in all. The filters could stay on chip.
        """
        c, taps, products = point.channels, point.taps, 3 if point.backward else 1
        mid, size = max(1, c // layers.REDUCTION), c // gcd(layers.GROUP, c) * taps
        params = {
            "reduce.0.weight": c * mid,
            "reduce.1.weight": mid,
            "reduce.1.bias": mid,
            "span.weight": mid * size,
            "span.bias": size,
        }
        features, output, parameters = point.pixels * c, point.out_pixels * c, sum(params.values())
        read = features + parameters
        return Costs(
            params=params,
            macs={
                "conv": products * point.out_pixels * mid * (c + size),
                "dynamic_filter": products * output * taps,
            },
            floor_bytes=(3 * read + 2 * output if point.backward else read + output) * point.itemsize,
            memory=held(
                point, features=features, parameters=parameters, filters=point.out_pixels * size, output=output
            ),
        )


@Involution.impl("native", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    """The DDF operator with a channel filter of ones, each group of channels as a sample of its own."""
    need_native(inputs, point)
    features, layer = inputs["features"], cast(layers.Involution, inputs.module)
    n, c, k, group = point.batch, point.channels, point.kernel_size, layer.group
    samples = n * c // group
    ones = features.new_ones(samples, group, k, k)

    def involution() -> Tensor:
        filters = layer.filters(features)
        size = filters.shape[2:]
        # as in DDF with several heads, anything but contiguous features is copied
        by_group = features.reshape(samples, group, point.height, point.width)
        return ddf(by_group, ones, filters.reshape(samples, k * k, *size), k, point.dilation, point.stride).view(
            n, c, *size
        )

    return involution


@Involution.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    """The layer as networks have it: tap by tap."""
    features, layer = inputs["features"], cast(layers.Involution, inputs.module)
    return lambda: layer(features)


@Involution.impl("unfold")
def _(inputs: Inputs, point: Point) -> Closure:
    """The form of the paper's algorithm: all that the taps read is unfolded in memory, multiplied and summed."""
    features, layer = inputs["features"], cast(layers.Involution, inputs.module)
    k, groups = point.kernel_size, point.channels // layer.group

    def involution() -> Tensor:
        filters = layer.filters(features)
        size = filters.shape[2:]
        read = F.unfold(features, k, point.dilation, point.padding, point.stride)
        by_group = read.view(-1, groups, layer.group, k * k, *size)
        return (filters.view(-1, groups, 1, k * k, *size) * by_group).sum(3).flatten(1, 2)

    return involution
