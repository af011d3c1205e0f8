"""Bottlenecks whose filter is split in branches: ResNeXt and Res2Net."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .resnet import BOTTLENECKS, Site, convolution, variant


class Hierarchy(nn.Module):
    """The filter of Res2Net (Gao et al., TPAMI 2020): y_i = K_i(x_i + y_{i-1}), the last part passes through.

    x_i are the parts that the channels are split in, K_i a 3x3 convolution without bias, BatchNorm and ReLU. In the
    first block of a stage there is no addition, and the last part is averaged over 3x3 pixels with the stride; so in
    the authors' code, the paper does not say.

    Args:
        scale: how many parts.
    """

    def __init__(self, at: Site, scale: int) -> None:
        super().__init__()
        width = at.in_channels // scale
        part = Site(at.stage, at.block, at.role, width, width, at.height, at.width, at.kernel_size, at.stride)
        self.filters = nn.ModuleList(
            nn.Sequential(convolution(part), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(scale - 1)
        )
        self.adds = at.block > 0
        self.last = nn.Identity() if self.adds else nn.AvgPool2d(3, at.stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        *parts, last = x.chunk(len(self.filters) + 1, 1)
        outs: list[Tensor] = []
        for part, convolve in zip(parts, self.filters, strict=True):
            outs.append(convolve(part + outs[-1] if outs and self.adds else part))
        return torch.cat([*outs, self.last(last)], 1)


def res2net(width: int, scale: int) -> None:
    """Registers the Res2Net of that width of a part, in the first stage, and number of parts."""
    variant(
        f"res2net_{width}w_{scale}s",
        BOTTLENECKS,
        width=lambda planes: planes * width // 64 * scale,
        filter=partial(Hierarchy, scale=scale),
        filter_norm=lambda at: nn.Identity(),  # each part has its own
    )


#: Xie et al., CVPR 2017: 32 groups, in the first stage of 4 channels.
variant("resnext_32x4d", BOTTLENECKS, width=lambda planes: 2 * planes, filter=partial(convolution, groups=32))
res2net(14, 8)
res2net(26, 4)
