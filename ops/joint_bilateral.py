"""Joint bilateral upsampling (Kopf et al., SIGGRAPH 2007): what is near, and alike in the guide, is averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import Axis, Closure, Costs, Inputs, Op, Point
from .carafe import natively
from .core import native
from .core.seeded import normal
from .core.taps import windows
from .core.upsampling import SCALE, UP_AXES, Apply, by_taps, out_pixels, out_size, scale_of, spread, up_costs

#: Standard deviation of the Gaussian over distances, in pixels of the features; the paper's.
SIGMA = 0.5


class JointBilateral(Op):
    """out[n,c,p] = sum_j w_j F[n,c,q_j] / sum_j w_j over the k x k pixels q_j around that of p, those outside left out.

    w_j = exp(-|p - q_j|^2 / (2 SIGMA^2) - |g_p - g_j|^2 / 2), p - q_j in pixels of the features. The guide g,
    (N, guide_channels, H*scale, W*scale), is given; where features have one pixel, it has scale^2, and g_j is their
    mean. The paper takes one of these, and windows of 5 x 5.
    """

    name, title = "joint_bilateral", "Joint bilateral"
    axes = UP_AXES
    extra_axes = (SCALE, Axis("guide_channels", 16, "channels of the guide that is compared"))

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], int]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        guides = _guide_channels(point)
        # outputs that differ from their pixel by |a - b|^2 of about 1
        return Inputs(
            {
                "features": normal((point.batch, point.channels, point.height, point.width), point, generator),
                "guide": normal((point.batch, guides, *out_size(point)), point, generator, guides**-0.5),
            }
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._mean(inputs["features"], inputs["guide"], point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._mean(inputs["features"].abs(), inputs["guide"], point)

    def _mean(self, features: Tensor, guide: Tensor, point: Point) -> Tensor:
        """Tap by tap over the whole output, sums of weights beside sums of terms."""
        scale, k = scale_of(point), point.kernel_size
        means = guide.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).mean((3, 5))
        exists = torch.ones_like(features[:, :1])
        taps = (windows(x, k, 1, 1) for x in (features, means, exists))
        near = torch.arange(scale, dtype=features.dtype, device=features.device)
        near = (near + 0.5) / scale - 0.5
        total, weights = torch.zeros_like(guide[:, :1]), torch.zeros_like(guide[:, :1])
        for j, (read, mean, there) in enumerate(zip(*taps, strict=True)):
            dy, dx = j // k - k // 2, j % k - k // 2
            squares = (near[:, None] - dy).square() + (near - dx).square()
            away = squares.repeat(point.height, point.width) / SIGMA**2
            unlike = (guide - spread(mean, scale)).square().sum(1, keepdim=True)
            weight = (-(away + unlike) / 2).exp() * spread(there, scale)
            total, weights = total + weight * spread(read, scale), weights + weight
        return total / weights

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (bilateral_filters(inputs["guide"], scale_of(point), point.kernel_size),)

    def costs(self, point: Point) -> Costs:
        """No parameters; the comparison of guides is `left_out`."""
        outputs, guides = out_pixels(point), _guide_channels(point)
        return up_costs(
            point,
            params={},
            macs={"dynamic_filter": outputs * point.channels * point.taps},
            left_out={"similarities": outputs * guides * point.taps},
            guide=outputs * guides,
            filters=outputs * point.taps,
        )


def _guide_channels(point: Point) -> int:
    return int(point.extra.get("guide_channels", 16))


def bilateral_filters(guide: Tensor, scale: int, kernel_size: int) -> Tensor:
    """The normalised weights, (N, scale^2 * k*k, H, W) branch by branch, evaluated in float32 at least."""
    wide = guide.to(torch.promote_types(guide.dtype, torch.float32))
    by_branch = F.pixel_unshuffle(wide, scale).unflatten(1, (-1, scale**2))
    means = by_branch.mean(2)
    exists = torch.ones_like(means[:1, :1])
    taps = zip(_away(scale, kernel_size), *(windows(x, kernel_size, 1, 1) for x in (means, exists)), strict=True)
    logits = [
        -((by_branch - mean[:, :, None]).square().sum(1) + away.to(wide)) / 2 + there.log()
        for away, mean, there in taps
    ]
    return torch.stack(logits, 2).softmax(2).flatten(1, 2).to(guide.dtype)


def _away(scale: int, kernel_size: int) -> Iterator[Tensor]:
    """For each tap the squared distance of each branch from it, (scale^2, 1, 1), in standard deviations."""
    places = (torch.arange(scale) + 0.5) / scale - 0.5
    for j in range(kernel_size**2):
        y, x = (part - kernel_size // 2 for part in divmod(j, kernel_size))
        squares = (places[:, None] - y).square() + (places - x).square()
        yield squares.reshape(-1, 1, 1) / SIGMA**2


def _attach(name: str, make: Callable[[Inputs, Point], Apply], library: str = "") -> None:
    def prepare(inputs: Inputs, point: Point) -> Closure:
        apply, features, guide = make(inputs, point), inputs["features"], inputs["guide"]
        return lambda: apply(features, bilateral_filters(guide, scale_of(point), point.kernel_size))

    JointBilateral.impl(name, library=library)(prepare)


_attach("native", natively, library="ddf")
_attach("composite", lambda inputs, point: by_taps(point))
