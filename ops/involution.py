"""Involution (Li et al., CVPR 2021): at each pixel a filter for 16 channels, predicted from the pixel alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point, Skip
from .core import native, native_involution
from .core.closed_forms import applied, held
from .core.networks import involution as layers
from .core.seeded import drawn, normal
from .core.taps import windows
from .ddf import ddf, need_native


class InvolutionOp(Op):
    """The filters H, (N, C/g * k*k, Ho, Wo), applied to the features; they are given."""

    name, title = "involution_op", "Involution Op"

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        n, c, size = point.batch, point.channels, (point.out_height, point.out_width)
        filters = c // gcd(layers.GROUP, c) * point.taps
        return Inputs(
            {
                "features": normal((n, c, point.height, point.width), point, generator),
                "filters": normal((n, filters, *size), point, generator, 1 / point.kernel_size),
            }
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return _sum_terms(inputs["features"], inputs["filters"], point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return _sum_terms(inputs["features"].abs(), inputs["filters"].abs(), point)

    def costs(self, point: Point) -> Costs:
        """As of any filters that are given."""
        c = point.channels
        return applied(point, point.out_pixels * c // gcd(layers.GROUP, c) * point.taps)


def _sum_terms(features: Tensor, filters: Tensor, point: Point) -> Tensor:
    """The filters applied tap by tap, each to the channels of its group."""
    by_group = filters.unflatten(1, (-1, 1, point.taps))
    out: Tensor | None = None
    for j, window in enumerate(windows(features, point.kernel_size, point.stride, point.dilation)):
        tap, read = by_group[:, :, :, j], window.unflatten(1, (by_group.shape[1], -1))
        out = tap * read if out is None else torch.addcmul(out, tap, read)
    return cast(Tensor, out).flatten(1, 2)


class Involution(Op):
    """The layer of RedNet; see `core.networks.involution`."""

    name, title = "involution", "Involution"
    roof = "matmul"

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native_involution.fvcore_handles()

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
        """The filters from the parameters alone, and their application."""
        features, layer = inputs["features"], cast(layers.Involution, inputs.module)
        conv, norm = cast(nn.Conv2d, layer.reduce[0]), cast(nn.BatchNorm2d, layer.reduce[1])
        read = F.avg_pool2d(features, point.stride, ceil_mode=True)
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        hidden = F.batch_norm(F.conv2d(read, conv.weight), mean, variance, norm.weight, norm.bias, eps=norm.eps).relu()
        weight, bias = layer.span.weight, cast(Tensor, layer.span.bias)
        if absolute:
            features, weight, bias = features.abs(), weight.abs(), bias.abs()
        return _sum_terms(features, F.conv2d(hidden, weight, bias), point)

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


Apply = Callable[[Tensor, Tensor], Tensor]
Predict = Callable[[Tensor], Tensor]


def _natively(inputs: Inputs, point: Point) -> Apply:
    """The DDF operator with a channel filter of ones, each group of channels as a sample of its own.

    Raises:
        Skip: if the native operator cannot serve the case.
    """
    need_native(inputs, point)
    n, c, k, group = point.batch, point.channels, point.kernel_size, gcd(layers.GROUP, point.channels)
    samples, size = n * c // group, (point.out_height, point.out_width)
    ones = inputs["features"].new_ones(samples, group, k, k)

    def apply(features: Tensor, filters: Tensor) -> Tensor:
        # as in DDF with several heads, anything but contiguous features is copied
        by_group = features.reshape(samples, group, point.height, point.width)
        of_group = filters.reshape(samples, k * k, *size)
        return ddf(by_group, ones, of_group, k, point.dilation, point.stride).reshape(n, c, *size)

    return apply


def _by_taps(inputs: Inputs, point: Point) -> Apply:
    """As networks have it: tap by tap."""
    settings = point.kernel_size, point.stride, point.dilation
    return lambda features, filters: layers.apply_by_taps(features, filters, *settings)


def _unfolded(inputs: Inputs, point: Point) -> Apply:
    """The form of the paper's algorithm: all that the taps read is unfolded in memory, multiplied and summed."""
    n, k, group = point.batch, point.kernel_size, gcd(layers.GROUP, point.channels)
    groups, size = point.channels // group, (point.out_height, point.out_width)

    def apply(features: Tensor, filters: Tensor) -> Tensor:
        read = F.unfold(features, k, point.dilation, point.padding, point.stride)
        terms = filters.reshape(n, groups, 1, k * k, *size) * read.view(n, groups, group, k * k, *size)
        return terms.sum(3).flatten(1, 2)

    return apply


def _by_layer(inputs: Inputs, point: Point) -> Predict:
    """As networks have it: by two convolutions, BatchNorm and ReLU between them."""
    return cast(layers.Involution, inputs.module).filters


def _predicted_natively(inputs: Inputs, point: Point) -> Predict:
    """In one pass over the pixels, with BatchNorm as a product and a sum.

    As networks have it on CUDA, where there is no such kernel, and where gradients are wanted: the pass keeps nothing
    for the way back, and both ways together would take 12 to 20 % longer.

    Raises:
        Skip: if the native operator cannot serve the case.
    """
    layer, device = cast(layers.Involution, inputs.module), inputs["features"].device.type
    if device == "cuda" or point.backward:
        return layer.filters
    reason = native_involution.missing(device)
    if reason:
        raise Skip(f"native filters of involution: {reason}")
    conv, norm, span = cast(nn.Conv2d, layer.reduce[0]), cast(nn.BatchNorm2d, layer.reduce[1]), layer.span

    def predict(features: Tensor) -> Tensor:
        read = features if layer.stride == 1 else F.avg_pool2d(features, layer.stride, ceil_mode=True)
        scale = norm.weight * torch.rsqrt(cast(Tensor, norm.running_var) + norm.eps)
        shift = torch.addcmul(norm.bias, cast(Tensor, norm.running_mean), scale, value=-1)
        return native_involution.predict(read, conv.weight, scale, shift, span.weight, cast(Tensor, span.bias))

    return predict


def _attach(
    name: str,
    make: Callable[[Inputs, Point], Apply],
    predicted: Callable[[Inputs, Point], Predict],
    library: str = "",
    layer_library: str = "",
) -> None:
    """The impl `name` of the application and of the layer."""

    def alone(inputs: Inputs, point: Point) -> Closure:
        apply, features, filters = make(inputs, point), inputs["features"], inputs["filters"]
        return lambda: apply(features, filters)

    def whole(inputs: Inputs, point: Point) -> Closure:
        apply, predict, features = make(inputs, point), predicted(inputs, point), inputs["features"]
        return lambda: apply(features, predict(features))

    InvolutionOp.impl(name, library=library)(alone)
    Involution.impl(name, library=layer_library)(whole)


_attach("native", _natively, _predicted_natively, "ddf", "ddf,involution")
_attach("composite", _by_taps, _by_layer)
_attach("unfold", _unfolded, _by_layer)
