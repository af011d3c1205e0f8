"""Pixel-adaptive convolution (Su et al., CVPR 2019): each tap is weighed by how alike its pixel and the centre are."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Axis, Closure, Costs, Inputs, Op, Point
from .core.closed_forms import held
from .core.seeded import drawn, normal
from .core.taps import windows
from .core.upsampling import SCALE, UP_AXES, out_pixels, out_size, scale_of, up_costs


class Pac(Op):
    """out[n,o,p] = sum_{i,j} K(g[n,p], g[n,q_j]) W[o,i,j] F[n,i,q_j] + b[o], i over channels, j over taps.

    Tap j reads q_j = p*stride + dil*d_j; the g of p is that of the pixel p*stride.
    K(a, b) = exp(-|a - b|^2 / 2) compares the guide g, (N, guide_channels, H, W), which is given: an image, or what a
    network makes of one.
    """

    name, title = "pac", "PAC"
    roof = "matmul"
    extra_axes = (Axis("guide_channels", 16, "channels of the guide that PAC compares"),)

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        c, guides = point.channels, _guide_channels(point)
        conv = drawn(lambda: nn.Conv2d(c, c, point.kernel_size), point, device, generator)
        size = point.height, point.width
        features = normal((point.batch, c, *size), point, generator)
        # pixels that differ by |a - b|^2 of about 1, or else K is all 0 or 1
        return Inputs(
            {
                "features": features,
                "guide": normal((point.batch, guides, *size), point, generator, (2 * guides) ** -0.5),
            },
            conv,
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(nn.Conv2d, inputs.module)
        return self._sum_terms(inputs["features"], inputs["guide"], conv.weight, cast(Tensor, conv.bias), point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(nn.Conv2d, inputs.module)
        weight, bias = conv.weight.abs(), cast(Tensor, conv.bias).abs()
        return self._sum_terms(inputs["features"].abs(), inputs["guide"], weight, bias, point)

    def _sum_terms(self, features: Tensor, guide: Tensor, weight: Tensor, bias: Tensor, point: Point) -> Tensor:
        """Tap by tap, |a - b|^2 as |a|^2 - 2ab + |b|^2."""
        settings = point.kernel_size, point.stride, point.dilation
        centre = guide[:, :, :: point.stride, :: point.stride]
        out = bias[:, None, None]
        taps = weight.flatten(2).unbind(2)
        for tap, read, other in zip(taps, windows(features, *settings), windows(guide, *settings), strict=True):
            distance = (centre.square() - 2 * centre * other + other.square()).sum(1, keepdim=True)
            out = out + torch.einsum("oi,nihw->nohw", tap, (-distance / 2).exp() * read)
        return out

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (_kernel(inputs["guide"], point.kernel_size, point.stride, point.dilation),)

    def costs(self, point: Point) -> Costs:
        """c^2 k^2 weights and c biases, as a convolution.

        floor_bytes: features x, guide g and parameters p read, output o written; a backward pass reads these and the
        gradient of o, and writes those of x, g and p: 3 (x + g + p) + 2 o in all, the bias b read once only. K could
        stay on chip.
        """
        c, taps, products = point.channels, point.taps, 3 if point.backward else 1
        guides = _guide_channels(point)
        params = {"weight": c * c * taps, "bias": c}
        features, guide, output = point.pixels * c, point.pixels * guides, point.out_pixels * c
        read = features + guide + sum(params.values())
        return Costs(
            params=params,
            macs={"dynamic_filter": products * point.out_pixels * c * c * taps},
            floor_bytes=(3 * read - c + 2 * output if point.backward else read + output) * point.itemsize,
            memory=held(
                point,
                features=features,
                guide=guide,
                parameters=sum(params.values()),
                filters=point.out_pixels * taps,
                output=output,
            ),
            left_out={"similarities": products * point.out_pixels * guides * taps},
        )


def _guide_channels(point: Point) -> int:
    return int(point.extra.get("guide_channels", 16))


def _kernel(guide: Tensor, kernel_size: int, stride: int, dilation: int = 1) -> Tensor:
    """K, (N, k*k, Ho, Wo), evaluated in float32 at least."""
    wide = guide.to(torch.promote_types(guide.dtype, torch.float32))
    centre = wide[:, :, ::stride, ::stride]
    others = windows(wide, kernel_size, stride, dilation)
    return torch.stack([(other - centre).square().sum(1).mul(-0.5).exp() for other in others], 1).to(guide.dtype)


@Pac.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    """All that the taps read unfolded in memory and weighed by K, then a matrix product."""
    features, guide, conv = inputs["features"], inputs["guide"], cast(nn.Conv2d, inputs.module)
    n, c, k = point.batch, point.channels, point.kernel_size

    def pac() -> Tensor:
        read = F.unfold(features, k, point.dilation, point.padding, point.stride).unflatten(1, (c, k * k))
        weighed = (read * _kernel(guide, k, point.stride, point.dilation).view(n, 1, k * k, -1)).flatten(1, 2)
        out = torch.bmm(conv.weight.reshape(1, c, -1).expand(n, -1, -1), weighed)
        return (out + cast(Tensor, conv.bias).view(c, 1)).view(n, c, point.out_height, point.out_width)

    return pac


# ---------------------------------------------------------------------------------------------------- transposed, joint


class PacTransposed(nn.ConvTranspose2d):
    """The parameters of transposed PAC: 2 * scale + 1 taps along a side, the paper's 5 at its scale, 2."""

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__(in_channels, out_channels, 2 * scale + 1, scale, scale, scale - 1)

    def draw(self, generator: torch.Generator) -> None:
        """Inputs of unit variance give outputs of about that."""
        self.weight.normal_(0, (2 * self.in_channels) ** -0.5, generator=generator)
        cast(Tensor, self.bias).normal_(0, 0.1, generator=generator)

    def macs(self, x: Tensor) -> dict[str, int]:
        """Each tap of each pixel once."""
        return {"dynamic_filter": x[0, 0].numel() * self.weight.numel()}

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:  # type: ignore[override]
        """(N, C, H, W) and the guide (N, G, H*scale, W*scale) -> (N, out_channels, H*scale, W*scale).

        What each pixel adds to the outputs around it, a matrix product, weighed by K and summed where they overlap.
        """
        n, _, h, w = x.shape
        scale, size = self.stride[0], self.kernel_size[0]
        kernel = _kernel(guide, size, scale)
        taps = self.weight.flatten(1).T.expand(n, -1, -1)
        terms = torch.bmm(taps, x.flatten(2)).view(n, -1, size**2, h, w)
        weighed = (terms * kernel[:, None]).flatten(1, 2).flatten(2)
        out = F.fold(weighed, (h * scale, w * scale), size, padding=scale, stride=scale)
        return out + cast(Tensor, self.bias)[:, None, None]


class PacUp(Op):
    """out[n, o, p] = sum_{i, j} K(g[n, p], g[n, q_j * scale]) W[i, o, j] F[n, i, q_j] + b[o]: transposed PAC.

    j runs over the pixels q of which p - q*scale is at most `scale` along each side, and W has an entry for each such
    difference. The guide g, (N, guide_channels, H*scale, W*scale), has the resolution of the output.
    """

    name, title = "pac_up", "PAC transposed"
    roof = "matmul"
    axes = tuple(name for name in UP_AXES if name != "kernel_size")
    extra_axes = (SCALE, *Pac.extra_axes)

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        c, guides = point.channels, _guide_channels(point)
        conv = drawn(lambda: PacTransposed(c, c, scale_of(point)), point, device, generator)
        features = normal((point.batch, c, point.height, point.width), point, generator)
        guide = normal((point.batch, guides, *out_size(point)), point, generator, (2 * guides) ** -0.5)
        return Inputs({"features": features, "guide": guide}, conv)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(PacTransposed, inputs.module)
        return self._sum_terms(inputs["features"], inputs["guide"], conv.weight, cast(Tensor, conv.bias), point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(PacTransposed, inputs.module)
        weight, bias = conv.weight.abs(), cast(Tensor, conv.bias).abs()
        return self._sum_terms(inputs["features"].abs(), inputs["guide"], weight, bias, point)

    def _sum_terms(self, features: Tensor, guide: Tensor, weight: Tensor, bias: Tensor, point: Point) -> Tensor:
        """The convolution with zeros between the features, tap by tap, |a - b|^2 as |a|^2 - 2ab + |b|^2."""
        scale, (height, width) = scale_of(point), out_size(point)
        wide = torch.zeros(*features.shape[:2], height, width, dtype=features.dtype, device=features.device)
        wide[:, :, ::scale, ::scale] = features
        wide, other = (F.pad(x, (scale,) * 4) for x in (wide, guide))
        out = bias[:, None, None]
        for tap in range((2 * scale + 1) ** 2):
            dy, dx = divmod(tap, 2 * scale + 1)
            y, x = 2 * scale - dy, 2 * scale - dx  # the tap from q to p = q*scale + d reads, from p, at -d
            g = other[:, :, y : y + height, x : x + width]
            distance = (guide.square() - 2 * guide * g + g.square()).sum(1, keepdim=True)
            read = (-distance / 2).exp() * wide[:, :, y : y + height, x : x + width]
            out = out + torch.einsum("io,nihw->nohw", weight[:, :, dy, dx], read)
        return out

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        return (_kernel(inputs["guide"], 2 * scale_of(point) + 1, scale_of(point)),)

    def costs(self, point: Point) -> Costs:
        """c^2 (2 scale + 1)^2 weights and c biases, as a transposed convolution; the comparison is `left_out`."""
        c, taps, guides = point.channels, (2 * scale_of(point) + 1) ** 2, _guide_channels(point)
        return up_costs(
            point,
            params={"weight": c * c * taps, "bias": c},
            macs={"dynamic_filter": point.pixels * c * c * taps},
            left_out={"similarities": point.pixels * guides * taps},
            guide=out_pixels(point) * guides,
            filters=point.pixels * taps,
            biases=c,
        )


@PacUp.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    features, guide, conv = inputs["features"], inputs["guide"], cast(PacTransposed, inputs.module)
    return lambda: conv(features, guide)
