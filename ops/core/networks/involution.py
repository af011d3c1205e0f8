"""RedNets (Li et al., CVPR 2021): involution, one filter for each pixel and 16 channels, predicted from the pixel."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..taps import windows
from .resnet import BOTTLENECKS, Site, variant

#: Channels that share a filter, and channels between the two layers that predict it, over the channels.
GROUP, REDUCTION = 16, 4


class Involution(nn.Module):
    """out[n,c,y,x] = sum_j H[n, c // 16, j, y, x] x[n, c, y*stride + dy_j, x*stride + dx_j], over k x k taps j.

    H = W2 relu(BN(W1 x)) at each pixel, with a bias in W2; with a stride, of the means over stride x stride pixels.

    Args:
        kernel_size: k, 7 in the paper's bottlenecks.
    """

    def __init__(self, at: Site, kernel_size: int = 7) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, at.stride
        channels, mid = at.in_channels, at.in_channels // REDUCTION
        self.reduce = nn.Sequential(nn.Conv2d(channels, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU())
        self.span = nn.Conv2d(mid, kernel_size**2 * (channels // GROUP), 1)

    def forward(self, x: Tensor) -> Tensor:
        read = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        filters = self.span(self.reduce(read)).unflatten(1, (-1, 1, self.kernel_size**2))
        out: Tensor | None = None
        for j, window in enumerate(windows(x, self.kernel_size, self.stride, 1)):
            term = filters[:, :, :, j] * window.unflatten(1, (-1, GROUP))
            out = term if out is None else out + term
        return cast(Tensor, out).flatten(1, 2)

    def macs(self, x: Tensor) -> dict[str, int]:
        """The application of the filters, a product for each tap and output."""
        return {"dynamic_filter": x[:, :, :: self.stride, :: self.stride].numel() * self.kernel_size**2}


def stem(at: Site) -> nn.Module:
    """RedNet's: a strided 3x3 convolution, a 3x3 involution, a 3x3 convolution, with half the channels before it."""
    half = at.out_channels // 2
    inner = at.conv("conv1", half, 3, at.stride).after()

    def active() -> tuple[nn.Module, nn.Module]:
        return nn.BatchNorm2d(half), nn.ReLU()

    return nn.Sequential(
        *(nn.Conv2d(at.in_channels, half, 3, at.stride, 1, bias=False), *active()),
        *(Involution(inner, kernel_size=3), *active()),
        nn.Conv2d(half, at.out_channels, 3, padding=1, bias=False),
    )


variant("involution", BOTTLENECKS, filter=Involution, stem=stem)
