"""CARAFE (Wang et al., ICCV 2019): each output has a filter of its own, for all channels, predicted from its pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point
from .core import native
from .core.seeded import drawn, normal
from .core.upsampling import SCALE, UP_AXES, Apply, by_taps, out_pixels, reference_by_branch, scale_of, up_costs
from .ddf import composite, ddf, need_native

#: Channels that filters are predicted from, at most.
COMPRESSED = 64


class Carafe(nn.Module):
    """Kernel prediction and reassembly.

    The channels are compressed to 64, or kept where they are fewer; a convolution with two taps less along a side than
    the filters have, but at least one, predicts these, and a softmax over the taps normalises them.

    Args:
        kernel_size: k, 5 in the paper's networks.
    """

    def __init__(self, channels: int, kernel_size: int = 5, scale: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.scale = kernel_size, scale
        mid, size = min(COMPRESSED, channels), encoder_size(kernel_size)
        self.compress = nn.Conv2d(channels, mid, 1)
        self.encode = nn.Conv2d(mid, scale**2 * kernel_size**2, size, padding=size // 2)
        self.operator, self.plain_operator = ddf, composite

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H*scale, W*scale)."""
        return reassemble(x, self.filters(x), self.kernel_size, self.scale, self.operator)

    def macs(self, x: Tensor) -> dict[str, int]:
        """The application of the filters, a product for each tap and output."""
        return {"dynamic_filter": self.scale**2 * x.numel() * self.kernel_size**2}

    def filters(self, x: Tensor) -> Tensor:
        """(N, scale^2 * k*k, H, W), branch by branch."""
        raw = self.encode(self.compress(x)).unflatten(1, (-1, self.kernel_size**2))
        return raw.softmax(2).flatten(1, 2)


def encoder_size(kernel_size: int) -> int:
    """Taps along a side of what predicts filters of that size: two less, as the paper has it."""
    return max(1, kernel_size - 2)


def reassemble(
    features: Tensor, filters: Tensor, kernel_size: int, scale: int, operator: Callable[..., Tensor]
) -> Tensor:
    """Applies filters by branch with the DDF operator, its channel filter all ones: a call for each branch.

    Args:
        filters: (N, scale^2 * k*k, H, W).
        operator: called as `ddf` is.
    """
    n, c = features.shape[:2]
    ones = features.new_ones(n, c, kernel_size, kernel_size)
    outs = [operator(features, ones, branch, kernel_size) for branch in filters.chunk(scale**2, 1)]
    return F.pixel_shuffle(torch.stack(outs, 2).flatten(1, 2), scale)


class CarafeOp(Op):
    """The reassembly alone, out[n, c, branch b of p] = sum_j S[n, b*k*k + j, p] F[n, c, p + d_j]; S is given."""

    name, title = "carafe_op", "CARAFE Op"
    axes = UP_AXES
    extra_axes = (SCALE,)

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        n, size = point.batch, (point.height, point.width)
        filters = scale_of(point) ** 2 * point.taps
        return Inputs(
            {
                "features": normal((n, point.channels, *size), point, generator),
                "filters": normal((n, filters, *size), point, generator, 1 / point.kernel_size),
            }
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return reference_by_branch(inputs["features"], inputs["filters"], point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return reference_by_branch(inputs["features"].abs(), inputs["filters"].abs(), point)

    def costs(self, point: Point) -> Costs:
        outputs = out_pixels(point)
        macs = {"dynamic_filter": outputs * point.channels * point.taps}
        return up_costs(point, params={}, macs=macs, given_filters=outputs * point.taps)


class CarafeModule(Op):
    """The whole module, which predicts its filters."""

    name, title = "carafe", "CARAFE"
    roof = "matmul"
    axes = UP_AXES
    extra_axes = (SCALE,)

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        sizes = point.channels, point.kernel_size, scale_of(point)
        module = drawn(lambda: Carafe(*sizes), point, device, generator)
        return Inputs(
            {"features": normal((point.batch, point.channels, point.height, point.width), point, generator)}, module
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return reference_by_branch(inputs["features"], self._predicted(inputs, point, absolute=False), point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return reference_by_branch(inputs["features"].abs(), self._predicted(inputs, point, absolute=True), point)

    def _predicted(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """The filters, which are positive, from the parameters alone; or what roundings are relative to.

        A rounding of what the softmax is taken of, x, changes the filter exp(x) / sum by x roundings.
        """
        parameters = inputs.leaves()
        compressed = torch.einsum("oi,nihw->nohw", parameters["compress.weight"].flatten(1), inputs["features"])
        compressed = compressed + parameters["compress.bias"][:, None, None]
        encode = parameters["encode.weight"], parameters["encode.bias"]
        raw = F.conv2d(compressed, *encode, padding=encode[0].shape[2] // 2)
        by_tap = raw.unflatten(1, (-1, point.taps))
        filters = by_tap.exp() / by_tap.exp().sum(2, keepdim=True)
        return (filters * (1 + by_tap.abs()) if absolute else filters).flatten(1, 2)

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (cast(Carafe, inputs.module).filters(inputs["features"]),)

    def costs(self, point: Point) -> Costs:
        """c m + m e^2 scale^2 k^2 weights, m compressed channels and e x e taps of what predicts, and biases."""
        c, mid, outputs = point.channels, min(COMPRESSED, point.channels), out_pixels(point)
        size = scale_of(point) ** 2 * point.taps
        weights = c * mid, mid * encoder_size(point.kernel_size) ** 2 * size
        return up_costs(
            point,
            params={
                "compress.weight": weights[0],
                "compress.bias": mid,
                "encode.weight": weights[1],
                "encode.bias": size,
            },
            macs={"conv": point.pixels * sum(weights), "dynamic_filter": outputs * c * point.taps},
            filters=outputs * point.taps,
        )


def natively(inputs: Inputs, point: Point) -> Apply:
    """What applies filters by branch with the native DDF operator.

    Raises:
        Skip: if it cannot serve the case.
    """
    need_native(inputs, point)
    return lambda features, filters: reassemble(features, filters, point.kernel_size, scale_of(point), ddf)


def _attach(name: str, make: Callable[[Inputs, Point], Apply], library: str = "") -> None:
    """The impl `name` of the application and of the module."""

    def alone(inputs: Inputs, point: Point) -> Closure:
        apply, features, filters = make(inputs, point), inputs["features"], inputs["filters"]
        return lambda: apply(features, filters)

    def whole(inputs: Inputs, point: Point) -> Closure:
        apply, features, module = make(inputs, point), inputs["features"], cast(Carafe, inputs.module)
        return lambda: apply(features, module.filters(features))

    CarafeOp.impl(name, library=library)(alone)
    CarafeModule.impl(name, library=library)(whole)


_attach("native", natively, library="ddf")
_attach("composite", lambda inputs, point: by_taps(point))
