"""What the ops share that upsample: the axis `scale`, sizes, and the layout of filters that are applied by branch.

Height and width of a point are those of the features; outputs have `scale` times as many rows and columns. The
scale^2 outputs of a pixel are its branches, row by row: branch b is the output (b // scale, b % scale) of its pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import AXES, Axis, Costs, Point
from .closed_forms import held
from .taps import windows

SCALE = Axis("scale", 2, "outputs along one side of a pixel")
#: Which of the shared axes an op has that upsamples: there is no stride, and the rivals of DDF-Up have no dilation.
UP_AXES = tuple(name for name in AXES if name not in ("stride", "dilation"))


def scale_of(point: Point) -> int:
    return int(point.extra.get("scale", SCALE.default))


def out_size(point: Point) -> tuple[int, int]:
    """Rows and columns of the output."""
    return point.height * scale_of(point), point.width * scale_of(point)


def out_pixels(point: Point) -> int:
    """Output pixels of the whole batch."""
    return point.pixels * scale_of(point) ** 2


def reference_by_branch(features: Tensor, filters: Tensor, point: Point) -> Tensor:
    """Filters (N, scale^2 * k*k, H, W), branch by branch, spread over the output and applied tap by tap."""
    scale = scale_of(point)
    by_tap = filters.unflatten(1, (scale**2, point.taps)).transpose(1, 2)  # branches innermost, as shuffling has them
    out = torch.zeros((), dtype=features.dtype, device=features.device)
    for j, read in enumerate(windows(features, point.kernel_size, 1, 1)):
        out = out + F.pixel_shuffle(by_tap[:, j], scale) * spread(read, scale)
    return out


def spread(x: Tensor, scale: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H*scale, W*scale), each pixel over its outputs."""
    return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


Apply = Callable[[Tensor, Tensor], Tensor]


def by_taps(point: Point) -> Apply:
    """What applies filters by branch to features in plain PyTorch, tap by tap, as the fairer baseline does."""
    scale = scale_of(point)

    def apply(features: Tensor, filters: Tensor) -> Tensor:
        by_tap = filters.unflatten(1, (1, scale**2, point.taps)).unbind(3)
        accumulator = torch.promote_types(features.dtype, torch.float32)
        out = features.new_zeros((), dtype=accumulator)
        for tap, read in zip(by_tap, windows(features, point.kernel_size, 1, 1), strict=True):
            out = tap.to(accumulator) * read[:, :, None] if out.dim() == 0 else out.addcmul_(tap, read[:, :, None])
        return F.pixel_shuffle(out.to(features.dtype).flatten(1, 2), scale)

    return apply


def up_costs(
    point: Point,
    *,
    params: Mapping[str, int],
    macs: Mapping[str, int],
    left_out: Mapping[str, int] | None = None,
    guide: int = 0,
    given_filters: int = 0,
    filters: int = 0,
    biases: int = 0,
) -> Costs:
    """The costs of an op that reads each input and parameter once.

    floor_bytes: features x, what else is given g and parameters p read, output o written; a backward pass reads these
    and the gradient of o, and writes those of x, g and p: 3 (x + g + p) + 2 o in all, the `biases` b read only once.

    Args:
        macs, left_out: of a forward pass; a backward pass has a product more for the gradient of each factor.
        guide, given_filters, filters: elements.
        biases: parameters of which no gradient depends.
    """
    products = 3 if point.backward else 1
    parameters, features = sum(params.values()), point.pixels * point.channels
    output = out_pixels(point) * point.channels
    read = features + guide + given_filters + parameters
    parts = {
        "features": features,
        "guide": guide,
        "given_filters": given_filters,
        "parameters": parameters,
        "filters": filters,
        "output": output,
    }
    return Costs(
        params=params,
        macs={kind: products * count for kind, count in macs.items()},
        floor_bytes=(3 * read - biases + 2 * output if point.backward else read + output) * point.itemsize,
        memory=held(point, **{name: count for name, count in parts.items() if count}),
        left_out={kind: products * count for kind, count in (left_out or {}).items()},
    )
