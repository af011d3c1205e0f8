"""RedNets (Li et al., CVPR 2021): involution, one filter for each pixel and 16 channels, predicted from the pixel."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..taps import windows
from .resnet import BOTTLENECKS, Site, variant

#: Channels that share a filter, and channels between the two layers that predict it, over the channels.
GROUP, REDUCTION = 16, 4


def apply_by_taps(x: Tensor, filters: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1) -> Tensor:
    """Applies filters (N, C/g * k*k, Ho, Wo) to x (N, C, H, W); sums of half precision are accumulated in float32."""
    by_tap = filters.unflatten(1, (-1, 1, kernel_size**2)).unbind(3)
    accumulator = torch.promote_types(x.dtype, torch.float32)
    out: Tensor | None = None
    for tap, window in zip(by_tap, windows(x, kernel_size, stride, dilation), strict=True):
        read = window.unflatten(1, (tap.shape[1], -1))
        out = tap.to(accumulator) * read if out is None else out.addcmul_(tap, read)
    return cast(Tensor, out).flatten(1, 2).to(x.dtype)


class Involution(nn.Module):
    """out[n,c,y,x] = sum_j H[n, c // g, j, y, x] F[n, c, y*stride + dil*dy_j, x*stride + dil*dx_j], j over k x k taps.

    H = W2 relu(BN(W1 F)) at each pixel, with a bias in W2; with a stride, of the means over stride x stride pixels. g,
    the channels that share a filter, is 16 as in RedNet, or what 16 and the channels have in common.

    Args:
        kernel_size: k, 7 in the paper's bottlenecks.
    """

    def __init__(self, channels: int, kernel_size: int = 7, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.group, mid = math.gcd(GROUP, channels), max(1, channels // REDUCTION)
        self.reduce = nn.Sequential(nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU())
        self.span = nn.Conv2d(mid, kernel_size**2 * (channels // self.group), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, Ho, Wo), Ho = floor((H-1)/stride)+1."""
        return apply_by_taps(x, self.filters(x), self.kernel_size, self.stride, self.dilation)

    def filters(self, x: Tensor) -> Tensor:
        """H, (N, C/g * k*k, Ho, Wo)."""
        return self.span(self.reduce(x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)))

    def macs(self, x: Tensor) -> dict[str, int]:
        """The application of the filters, a product for each tap and output."""
        return {"dynamic_filter": x[:, :, :: self.stride, :: self.stride].numel() * self.kernel_size**2}


def stem(at: Site) -> nn.Module:
    """RedNet's: a strided 3x3 convolution, a 3x3 involution, a 3x3 convolution, with half the channels before it."""
    half = at.out_channels // 2

    def active() -> tuple[nn.Module, nn.Module]:
        return nn.BatchNorm2d(half), nn.ReLU()

    return nn.Sequential(
        *(nn.Conv2d(at.in_channels, half, 3, at.stride, 1, bias=False), *active()),
        *(Involution(half, kernel_size=3), *active()),
        nn.Conv2d(half, at.out_channels, 3, padding=1, bias=False),
    )


variant("involution", BOTTLENECKS, filter=lambda at: Involution(at.in_channels, stride=at.stride), stem=stem)
