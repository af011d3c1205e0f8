"""Neighbourhood attention (Hassani et al., CVPR 2023) with one head: each pixel attends to the k x k nearest ones."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point, Skip
from .core.closed_forms import held
from .core.optional import library
from .core.seeded import drawn, memory_format_of, normal


class NeighbourhoodAttention(nn.Module):
    """The projections: queries at every stride-th pixel, keys and values at all, then the output's."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1, stride)
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)


def neighbours(length: int, kernel_size: int, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Along one side: for every stride-th pixel the k nearest ones that are a multiple of `dilation` away.

    Near a border the window is moved inwards, not cut, so that there are k of them wherever so many exist.

    Returns:
        Their indices (outputs, k), and whether there is such a pixel.
    """
    at = torch.arange(0, length, stride)
    first, rank = at % dilation, at // dilation
    count = (length - 1 - first) // dilation + 1
    start = (rank - kernel_size // 2).clamp(min=0).minimum((count - kernel_size).clamp(min=0))
    wanted = start[:, None] + torch.arange(kernel_size)
    exists = wanted < count[:, None]
    return first[:, None] + dilation * wanted.minimum(count[:, None] - 1), exists


class LocalAttention(Op):
    """out = P (sum_j a[n,j,y,x] V[n, :, neighbour j of (y, x)]), a = softmax_j(Q . K / sqrt(C)), over k x k neighbours.

    Q, K, V and P are 1x1 convolutions with bias. The paper's windows are 7x7; its relative biases, which its authors'
    fused kernels have dropped, are left out.
    """

    name, title = "local_attention", "Local attention"
    roof = "matmul"

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        layer = drawn(lambda: NeighbourhoodAttention(point.channels, point.stride), point, device, generator)
        return Inputs(
            {"features": normal((point.batch, point.channels, point.height, point.width), point, generator)}, layer
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._attend(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._attend(inputs, point, absolute=True)

    def _attend(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """A row of queries at a time attends to whole rows of keys, all but the neighbours masked."""
        features, layer = inputs["features"], cast(NeighbourhoodAttention, inputs.module)
        (key, value), biases = layer.key_value.weight.chunk(2), cast(Tensor, layer.key_value.bias).chunk(2)
        queries, keys = layer.query(features), F.conv2d(features, key, biases[0])
        if absolute:
            values = F.conv2d(features.abs(), value.abs(), biases[1].abs())
        else:
            values = F.conv2d(features, value, biases[1])
        size = point.kernel_size, point.stride, point.dilation
        rows, columns = neighbours(point.height, *size), neighbours(point.width, *size)
        near = torch.zeros(point.out_width, point.width, dtype=torch.bool)
        for x, (index, exists) in enumerate(zip(*columns, strict=True)):
            near[x, index[exists]] = True
        near = near.to(features.device)
        attended = []
        for y, (index, exists) in enumerate(zip(*rows, strict=True)):
            read = index[exists].to(features.device)
            logits = torch.einsum("ncx,ncrw->nxrw", queries[:, :, y], keys[:, :, read]) * point.channels**-0.5
            logits = logits.masked_fill(~near[:, None], -torch.inf)
            weights = logits.flatten(2).softmax(2).view_as(logits)
            attended.append(torch.einsum("nxrw,ncrw->ncx", weights, values[:, :, read]))
        weight, bias = layer.project.weight, cast(Tensor, layer.project.bias)
        return F.conv2d(torch.stack(attended, 2), *((weight.abs(), bias.abs()) if absolute else (weight, bias)))

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        """The attention weights are filters."""
        features = inputs["features"]
        return (features.new_empty(point.batch, point.taps, point.out_height * point.out_width),)

    def costs(self, point: Point) -> Costs:
        """4 c^2 weights and 4 c biases. The attention weights are applied as a dynamic filter is; queries times keys
        are `left_out`, as many again.

        floor_bytes: features x and parameters p read, output o written; a backward pass reads x, p and the gradient of
        o, and writes those of x and p: 3 (x + p) + 2 o in all. All between could stay on chip.
        """
        c, products = point.channels, 3 if point.backward else 1
        params = {
            "query.weight": c * c,
            "query.bias": c,
            "key_value.weight": 2 * c * c,
            "key_value.bias": 2 * c,
            "project.weight": c * c,
            "project.bias": c,
        }
        features, output, parameters = point.pixels * c, point.out_pixels * c, sum(params.values())
        read, applied = features + parameters, products * output * point.taps
        return Costs(
            params=params,
            macs={"conv": products * 2 * c * c * (point.pixels + point.out_pixels), "dynamic_filter": applied},
            floor_bytes=(3 * read + 2 * output if point.backward else read + output) * point.itemsize,
            memory=held(
                point,
                features=features,
                parameters=parameters,
                filters=point.out_pixels * point.taps,
                output=output,
            ),
            left_out={"attention_products": applied},
        )


@LocalAttention.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    """Neighbour by neighbour, pixels as rows of channels: all keys first, then all values."""
    features, layer = inputs["features"], cast(NeighbourhoodAttention, inputs.module)
    size = point.kernel_size, point.stride, point.dilation
    (rows, row_exists), (columns, column_exists) = neighbours(point.height, *size), neighbours(point.width, *size)
    index = (rows[:, None, :, None] * point.width + columns[None, :, None, :]).flatten(0, 1).flatten(1)
    exists = (row_exists[:, None, :, None] & column_exists[None, :, None, :]).flatten(0, 1).flatten(1)
    by_tap = [tap.contiguous() for tap in index.to(features.device).unbind(1)]
    absent = None if exists.all() else ~exists.T.to(features.device)
    accumulator = torch.promote_types(features.dtype, torch.float32)

    def pixels(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).contiguous()

    def attention() -> Tensor:
        queries, (keys, values) = pixels(layer.query(features)), map(pixels, layer.key_value(features).chunk(2, 1))
        logits = torch.stack([(queries * keys.index_select(1, tap)).sum(2) for tap in by_tap], 1)
        logits = logits.to(accumulator) * point.channels**-0.5
        if absent is not None:
            logits = logits.masked_fill(absent, -torch.inf)
        weights = logits.softmax(1).to(features.dtype)
        out: Tensor | None = None
        for weight, tap in zip(weights[..., None].unbind(1), by_tap, strict=True):
            read = values.index_select(1, tap)
            out = weight.to(accumulator) * read if out is None else out.addcmul_(weight, read)
        attended = cast(Tensor, out).to(features.dtype).transpose(1, 2)
        image = attended.unflatten(2, (point.out_height, point.out_width))
        return layer.project(image.contiguous(memory_format=memory_format_of(point)))

    return attention


@LocalAttention.impl("natten")
def _(inputs: Inputs, point: Point) -> Closure:
    """The authors' kernels."""
    attend = library("natten.functional").na2d
    if point.stride != 1:
        raise Skip("natten: stride 1 alone")
    if point.kernel_size == 1 or point.kernel_size * point.dilation > min(point.height, point.width):
        raise Skip("natten: windows of more than one pixel that fit the features alone")
    features, layer = inputs["features"], cast(NeighbourhoodAttention, inputs.module)

    def heads_last(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).unsqueeze(3).contiguous()

    def attention() -> Tensor:
        query, (key, value) = heads_last(layer.query(features)), map(heads_last, layer.key_value(features).chunk(2, 1))
        attended = attend(query, key, value, kernel_size=point.kernel_size, dilation=point.dilation)
        image = attended.squeeze(3).permute(0, 3, 1, 2)
        return cast(Tensor, layer.project(image.contiguous(memory_format=memory_format_of(point))))

    return attention
