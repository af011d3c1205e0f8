"""Filters that each sample has for itself: `dw_weightnet`, `condconv` and `odconv`, with the layers of the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Axis, Closure, Costs, Inputs, Op, Point
from .core import native
from .core.closed_forms import held
from .core.networks import conditional as layers
from .core.seeded import drawn, normal
from .ddf import ddf, need_native


class _Conditional(Op):
    """A filter is predicted from the mean of the features (N, C, H, W) and applied to all of their pixels."""

    def layer(self, point: Point) -> layers.Conditional:
        raise NotImplementedError

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        layer = drawn(lambda: self.layer(point), point, device, generator)
        return Inputs(
            {"features": normal((point.batch, point.channels, point.height, point.width), point, generator)}, layer
        )

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (cast(layers.Conditional, inputs.module).filters(inputs["features"]),)

    def params(self, point: Point) -> dict[str, int]:
        """`Costs.params`."""
        raise NotImplementedError

    def predicting(self, point: Point) -> dict[str, int]:
        """Multiply-accumulates of one sample that predict its filter, by kind."""
        raise NotImplementedError

    def mixed(self, point: Point) -> int:
        """Learned filters that are mixed for each sample."""
        return 0

    def filter_size(self, point: Point) -> int:
        """Elements of the filter of a sample."""
        return point.channels**2 * point.taps

    def costs(self, point: Point) -> Costs:
        """The parameters of the paper; products with the filter of a sample are those of a convolution.

        floor_bytes: two passes over the features x, as pooling has to end before the filter is known; parameters p
        read, output o written: 2 x + p + o. The backward pass has two as well, as the gradient of the filter has to be
        complete before it reaches x through the pooling: the first reads x and the gradient of o, the second that
        gradient and p, and writes the gradients of x and p: 2 x + 2 o + 2 p. The filters could stay on chip.
        """
        products = 3 if point.backward else 1
        features, output = point.pixels * point.channels, point.out_pixels * point.channels
        params, size = self.params(point), self.filter_size(point)
        parameters = sum(params.values())
        elements = 2 * features + parameters + output
        if point.backward:
            elements += 2 * (features + parameters + output)
        predicting = self.predicting(point)
        applying = {"conv": point.out_pixels * size}
        macs = {kind: point.batch * predicting.get(kind, 0) + applying.get(kind, 0) for kind in ("conv", "linear")}
        return Costs(
            params=params,
            macs={kind: products * count for kind, count in macs.items()},
            floor_bytes=elements * point.itemsize,
            memory=held(point, features=features, parameters=parameters, filters=point.batch * size, output=output),
            left_out={"mixing": products * point.batch * self.mixed(point) * size} if self.mixed(point) else {},
        )


def _each_sample(features: Tensor, filters: Tensor, point: Point, groups: int = 1) -> Tensor:
    """A convolution for each sample with its filter, (N, C, C/groups, k, k)."""
    settings = None, point.stride, point.padding, point.dilation, groups
    return torch.cat([F.conv2d(x[None], w, *settings) for x, w in zip(features, filters, strict=True)])


class DwWeightNet(_Conditional):
    """The per-sample depthwise convolution of WeightNet (Ma et al., ECCV 2020)."""

    name, title = "dw_weightnet", "DwWeightNet"

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native.fvcore_handles()

    def layer(self, point: Point) -> layers.Conditional:
        return layers.DwWeightNet(point.channels, point.channels, point.kernel_size, point.stride, point.dilation)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        features, layer = inputs["features"], cast(layers.DwWeightNet, inputs.module)
        squeezed = features.mean((2, 3)) @ layer.squeeze.weight.T + layer.squeeze.bias
        activation = (squeezed @ layer.expand.weight.T + layer.expand.bias).sigmoid()
        weight = layer.generate.weight.view(1, point.channels, 1, point.kernel_size, point.kernel_size)
        if absolute:
            features, weight = features.abs(), weight.abs()
        filters = activation[:, :, None, None, None] * weight
        return _each_sample(features, filters, point, point.channels)

    def filter_size(self, point: Point) -> int:
        return point.channels * point.taps

    def params(self, point: Point) -> dict[str, int]:
        c, squeezed = point.channels, max(16, point.channels // 16)
        return {
            "squeeze.weight": c * squeezed,
            "squeeze.bias": squeezed,
            "expand.weight": squeezed * c,
            "expand.bias": c,
            "generate.weight": c * point.taps,
        }

    def predicting(self, point: Point) -> dict[str, int]:
        c, squeezed = point.channels, max(16, point.channels // 16)
        return {"linear": 2 * c * squeezed, "conv": c * point.taps}


class CondConv(_Conditional):
    """Conditionally parameterized convolution (Yang et al., NeurIPS 2019): experts, mixed for each sample."""

    name, title = "condconv", "CondConv"
    roof = "matmul"
    extra_axes = (Axis("experts", 8, "learned filters that CondConv mixes"),)

    def layer(self, point: Point) -> layers.Conditional:
        c = point.channels
        return layers.CondConv(c, c, point.kernel_size, point.stride, point.dilation, experts=self.mixed(point))

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        features, layer = inputs["features"], cast(layers.CondConv, inputs.module)
        routing = (features.mean((2, 3)) @ layer.routing.weight.T + layer.routing.bias).sigmoid()
        weight = layer.weight.abs() if absolute else layer.weight
        filters = torch.einsum("ne,eoikl->noikl", routing, weight)
        return _each_sample(features.abs() if absolute else features, filters, point)

    def mixed(self, point: Point) -> int:
        return int(point.extra.get("experts", 8))

    def params(self, point: Point) -> dict[str, int]:
        experts = self.mixed(point)
        return {
            "weight": experts * self.filter_size(point),
            "routing.weight": experts * point.channels,
            "routing.bias": experts,
        }

    def predicting(self, point: Point) -> dict[str, int]:
        return {"linear": self.mixed(point) * point.channels}


class ODConv(_Conditional):
    """Omni-dimensional dynamic convolution (Li et al., ICLR 2022): attentions over kernels, channels and taps."""

    name, title = "odconv", "ODConv"
    roof = "matmul"
    extra_axes = (Axis("kernels", 4, "learned filters that ODConv mixes"),)

    def layer(self, point: Point) -> layers.Conditional:
        c = point.channels
        return layers.ODConv(c, c, point.kernel_size, point.stride, point.dilation, kernels=self._kernels(point))

    @torch.no_grad()
    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        inputs = super().build(point, device, generator)
        cast(layers.ODConv, inputs.module).weight.mul_(16)  # the mean of four kernels and three sigmoids halve it each
        return inputs

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """All attentions in the filter, as the paper writes it."""
        features, layer = inputs["features"], cast(layers.ODConv, inputs.module)
        n, c, k = point.batch, point.channels, point.kernel_size
        norm = layer.norm
        squeezed = features.mean((2, 3)) @ layer.squeeze.weight.T
        scale = norm.weight / (cast(Tensor, norm.running_var) + norm.eps).sqrt()
        hidden = ((squeezed - cast(Tensor, norm.running_mean)) * scale + norm.bias).relu()
        weight = layer.weight.abs() if absolute else layer.weight
        if absolute:
            features = features.abs()
        kernels = features.new_ones(n, 1)
        if layer.over_kernels is not None:
            kernels = layer.over_kernels(hidden).softmax(1)
        filters = torch.einsum("nm,moikl->noikl", kernels, weight)
        filters = filters * layer.over_inputs(hidden).sigmoid().view(n, 1, c, 1, 1)
        if layer.over_outputs is not None:
            filters = filters * layer.over_outputs(hidden).sigmoid().view(n, c, 1, 1, 1)
        if layer.over_taps is not None:
            filters = filters * layer.over_taps(hidden).sigmoid().view(n, 1, 1, k, k)
        return _each_sample(features, filters, point)

    def _kernels(self, point: Point) -> int:
        return int(point.extra.get("kernels", 4))

    def mixed(self, point: Point) -> int:
        return self._kernels(point) if self._kernels(point) > 1 else 0

    def _attentions(self, point: Point) -> dict[str, int]:
        """Outputs of the layers that predict attentions."""
        found = {"over_inputs": point.channels}
        found |= {"over_outputs": point.channels} if point.channels > 1 else {}  # one channel is depthwise
        found |= {"over_taps": point.taps} if point.taps > 1 else {}
        return found | ({"over_kernels": self._kernels(point)} if self._kernels(point) > 1 else {})

    def params(self, point: Point) -> dict[str, int]:
        hidden = max(16, point.channels // 16)
        return {
            "weight": self._kernels(point) * self.filter_size(point),
            "squeeze.weight": point.channels * hidden,
            "norm.weight": hidden,
            "norm.bias": hidden,
            **{f"{name}.weight": hidden * size for name, size in self._attentions(point).items()},
            **{f"{name}.bias": size for name, size in self._attentions(point).items()},
        }

    def predicting(self, point: Point) -> dict[str, int]:
        hidden = max(16, point.channels // 16)
        return {"linear": hidden * (point.channels + sum(self._attentions(point).values()))}


@DwWeightNet.impl("native", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    """The DDF operator with a spatial filter of ones."""
    need_native(inputs, point)
    features, layer = inputs["features"], cast(layers.DwWeightNet, inputs.module)
    k = point.kernel_size
    ones = features.new_ones(1).expand(point.batch, k * k, point.out_height, point.out_width)
    if features.is_cuda:  # its kernels read the filter; those of a CPU see that it is one number
        ones = ones.contiguous()
    return lambda: ddf(features, layer.filters(features).squeeze(2), ones, k, point.dilation, point.stride)


@DwWeightNet.impl("torch")
@CondConv.impl("torch")
@ODConv.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    """Applied by a grouped convolution, all samples as one, as the authors do."""
    features, layer = inputs["features"], cast(layers.Conditional, inputs.module)
    return lambda: layer(features)
