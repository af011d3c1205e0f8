"""DDF-Up (Zhou et al., CVPR 2021): the application of its filters, `ddf_up_op`, and the whole module, `ddf_up`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import AXES, Axis, Closure, Costs, Inputs, Op, Point, Skip
from .core import native_up
from .core.closed_forms import combinations, held
from .core.seeded import fill_convolution, normal, placed
from .core.upsampling import SCALE, out_pixels, scale_of
from .ddf import (
    DDFUpPack,
    FilterNorm,
    UpOperator,
    by_branch,
    composite,
    ddf,
    ddf_up,
    mid_channels,
    need_native,
    reference,
    standardised,
    up_refusal,
)


class DDFUpOp(Op):
    """The operator alone, the filters of all branches given."""

    name, title = "ddf_up_op", "DDF-Up Op"
    combines = True
    axes = tuple(name for name in AXES if name != "stride")
    extra_axes = (SCALE,)

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], Any]]:
        return native_up.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        n, c, k, size = point.batch, point.channels, point.kernel_size, (point.height, point.width)
        branches = scale_of(point) ** 2
        return Inputs(
            {
                "features": normal((n, c, *size), point, generator),
                "channel_filter": normal((n, branches * c, k, k), point, generator),
                "spatial_filter": normal((n, branches * k * k, *size), point, generator, 1 / k),
            }
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return _reference(**inputs.tensors, point=point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return _reference(**inputs.tensors, point=point, absolute=True)

    def costs(self, point: Point) -> Costs:
        """No parameters; one MAC a tap and output, and for the gradient of each of three factors another.

        floor_bytes: features x and filters f read, output o written; a backward pass reads x, f and the gradient of o,
        and writes those of x and f: 3 (x + f) + 2 o in all.
        """
        features, output = point.pixels * point.channels, out_pixels(point) * point.channels
        filters = point.taps * (out_pixels(point) + scale_of(point) ** 2 * point.batch * point.channels)
        read = features + filters
        return Costs(
            params={},
            macs={"dynamic_filter": (4 if point.backward else 1) * output * point.taps},
            floor_bytes=(3 * read + 2 * output if point.backward else read + output) * point.itemsize,
            memory=held(point, features=features, given_filters=filters, output=output),
            combined=combinations(point, output * point.taps),
        )


def _reference(
    features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, point: Point, absolute: bool
) -> Tensor:
    """The sum over taps, or that of the absolute terms, branch by branch."""
    branches = scale_of(point) ** 2
    channels, spatials = (t.unflatten(1, (branches, -1)).unbind(1) for t in (channel_filter, spatial_filter))
    point = replace(point, stride=1)  # which does not apply
    outs = [reference(features, c, s, point, absolute) for c, s in zip(channels, spatials, strict=True)]
    return F.pixel_shuffle(torch.stack(outs, 2).flatten(1, 2), scale_of(point))


class DDFUp(Op):
    """The whole module, DDFUpPack, with and without a guide."""

    name, title = "ddf_up", "DDF-Up"
    combines = True
    axes = DDFUpOp.axes
    extra_axes = (
        SCALE,
        Axis("guide", "unguided", "what the spatial filters are predicted from", choices=("unguided", "guided")),
        Axis("guide_channels", 16, "channels of the guide"),
        Axis("head", 1, "groups of channels with spatial filters of their own"),
        Axis("se_ratio", 0.2, "width of the channel branch over the channels", minimum=0.001),
    )

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], Any]]:
        return native_up.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        if point.kernel_size == 1:
            raise Skip("FilterNorm needs two taps at least; kernel_size is 1")
        head = _head(point)
        if point.channels % head:
            raise Skip(f"head has to divide the channels; {head} does not divide {point.channels}")
        pack = DDFUpPack(
            point.channels,
            point.kernel_size,
            scale_of(point),
            point.dilation,
            head,
            _se_ratio(point),
            joint_channels=_guide_channels(point),
            kernel_combine=point.combine,
        )
        placed(pack, point, device)
        for part in pack.modules():
            if isinstance(part, nn.Conv2d):
                fill_convolution(part, generator)
            elif isinstance(part, FilterNorm) and isinstance(part.std, Tensor):
                nn.init.normal_(part.std, std=part.scale, generator=generator)
        size = point.height, point.width
        tensors = {"features": normal((point.batch, point.channels, *size), point, generator)}
        if _guided(point):
            tensors["guide"] = normal((point.batch, _guide_channels(point), *size), point, generator)
        return Inputs(tensors, pack)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """The filters by the formulas of the paper, from the parameters alone, and their application."""
        features, pack = inputs["features"], cast(DDFUpPack, inputs.module)
        seen = inputs.tensors.get("guide", features)
        point = replace(point, stride=1)  # which does not apply
        outs = []
        for spatial_branch, channel_branch in zip(pack.spatial_branch, pack.channel_branch, strict=True):
            guide, predict = seen, cast(Any, spatial_branch)
            if not _guided(point):
                blur, predict = predict
                guide = F.conv2d(seen, blur.weight, blur.bias, padding=1, groups=point.channels)
            raw = F.conv2d(guide, predict[0].weight, predict[0].bias).unflatten(1, (-1, point.taps))
            spatial = (standardised(raw, absolute) / point.kernel_size).flatten(1, 2)
            squeeze, excite, norm = (cast(Any, channel_branch)[i] for i in (1, 3, 4))
            hidden = F.linear(features.mean((2, 3)), squeeze.weight.flatten(1), squeeze.bias).relu()
            raw = F.linear(hidden, excite.weight.flatten(1), excite.bias).view(-1, point.channels, point.taps)
            channel = standardised(raw, absolute) * norm.std.view(point.channels, point.taps)
            outs.append(reference(features, channel, spatial, point, absolute))
        return F.pixel_shuffle(torch.stack(outs, 2).flatten(1, 2), scale_of(point))

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        features, pack = inputs["features"], cast(DDFUpPack, inputs.module)
        return pack.filters(features, inputs.tensors.get("guide", features))

    def costs(self, point: Point) -> Costs:
        """scale^2 times the weights of DDF, g k^2 + sigma c^2 (1 + k^2) with g channels to predict from, and without a
        guide those of a depthwise 3x3 convolution.

        floor_bytes: two passes over the features x, as pooling has to end before a filter can be applied; the guide v
        is read once, the filters f are written by the first and read by the second, the parameters p read, the output o
        written: 2 x + v + p + 2 f + o. The backward pass has two as well: the first reads x, f and the gradient of o,
        and writes that of f; the second reads those gradients, f, v and p, and writes the gradients of x, v and p:
        2 x + 2 v + 2 o + 4 f + 2 p.
        """
        c, taps, head, mid = point.channels, point.taps, _head(point), mid_channels(point.channels, _se_ratio(point))
        guided, seen = _guided(point), _guide_channels(point) if _guided(point) else point.channels
        prefix = "" if guided else "1."
        branch = {} if guided else {"spatial_branch.{}.0.weight": c * 9, "spatial_branch.{}.0.bias": c}
        branch |= {
            f"spatial_branch.{{}}.{prefix}0.weight": head * taps * seen,
            f"spatial_branch.{{}}.{prefix}0.bias": head * taps,
            "channel_branch.{}.1.weight": c * mid,
            "channel_branch.{}.1.bias": mid,
            "channel_branch.{}.3.weight": mid * c * taps,
            "channel_branch.{}.3.bias": c * taps,
            "channel_branch.{}.4.std": c * taps,
        }
        branches = scale_of(point) ** 2
        params = {name.format(b): count for b in range(branches) for name, count in branch.items()}
        conv = point.pixels * head * taps * seen + point.batch * mid * c * (1 + taps)
        conv += 0 if guided else point.pixels * c * 9
        features, output = point.pixels * c, out_pixels(point) * c
        guide, parameters = point.pixels * seen if guided else 0, sum(params.values())
        filters = branches * taps * (point.pixels * head + point.batch * c)
        elements = 2 * features + guide + parameters + 2 * filters + output
        if point.backward:
            elements += 2 * features + 2 * guide + 2 * output + 4 * filters + 2 * parameters
        parts = {"features": features, "guide": guide, "parameters": parameters, "filters": filters, "output": output}
        return Costs(
            params=params,
            macs={
                "conv": (3 if point.backward else 1) * branches * conv,
                "dynamic_filter": (4 if point.backward else 1) * output * taps,
            },
            floor_bytes=elements * point.itemsize,
            memory=held(point, **{name: count for name, count in parts.items() if count}),
            combined=combinations(point, output * taps),
        )


def _guided(point: Point) -> bool:
    return point.extra.get("guide", "unguided") == "guided"


def _guide_channels(point: Point) -> int:
    """Of the guide; -1 without one, as DDFUpPack has it."""
    return int(point.extra.get("guide_channels", 16)) if _guided(point) else -1


def _head(point: Point) -> int:
    return int(point.extra.get("head", 1))


def _se_ratio(point: Point) -> float:
    return float(point.extra.get("se_ratio", 0.2))


@DDFUpOp.impl("native", library="ddf_up")
def _(inputs: Inputs, point: Point) -> Closure:
    need_native_up(inputs, point)
    return _closure(ddf_up, inputs, point)


@DDFUpOp.out("native")
def _(inputs: Inputs, point: Point, out: Tensor) -> Closure:
    features, channel_filter, spatial_filter = (inputs[t] for t in ("features", "channel_filter", "spatial_filter"))
    settings = scale_of(point), point.kernel_size, point.dilation, point.combine
    return lambda: ddf_up(features, channel_filter, spatial_filter, *settings, out=out)


def need_native_up(inputs: Inputs, point: Point) -> None:
    """Without it `ddf_up` would take each branch apart.

    Raises:
        Skip: if the native upsampling operator cannot serve the case.
    """
    reason = up_refusal(inputs["features"].device.type, scale_of(point), point.kernel_size)
    if reason:
        raise Skip(f"native upsampling operator: {reason}")


@DDFUpOp.impl("per_branch", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    """The native `ddf` once for each branch, the results stacked and shuffled."""
    need_native(inputs, point)
    return _closure(by_branch(ddf), inputs, point)


@DDFUpOp.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    return _closure(by_branch(composite), inputs, point)


def _closure(operator: UpOperator, inputs: Inputs, point: Point) -> Closure:
    features, channel_filter, spatial_filter = (inputs[t] for t in ("features", "channel_filter", "spatial_filter"))
    settings = scale_of(point), point.kernel_size, point.dilation, point.combine
    return lambda: operator(features, channel_filter, spatial_filter, *settings)


@DDFUp.impl("native", library="ddf_up")
def _(inputs: Inputs, point: Point) -> Closure:
    need_native_up(inputs, point)
    features, guide, pack = inputs["features"], inputs.tensors.get("guide"), cast(DDFUpPack, inputs.module)
    return lambda: pack(features, guide)


@DDFUp.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    features, pack = inputs["features"], cast(DDFUpPack, inputs.module)
    guide, operator = inputs.tensors.get("guide"), by_branch(composite)
    return lambda: pack.compute(features, guide, operator)
