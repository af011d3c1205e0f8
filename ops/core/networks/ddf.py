"""DDF-ResNets (Zhou et al., CVPR 2021): DDF modules for the 3x3 convolutions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...ddf import DDFPack, FilterNorm, composite, ddf
from .resnet import BOTTLENECKS, Site, variant


class DDF(DDFPack):
    """The DDF module, with what a network has to know of it."""

    def __init__(self, at: Site, combine: str = "mul", se_ratio: float = 0.2) -> None:
        super().__init__(at.in_channels, at.kernel_size, at.stride, se_ratio=se_ratio, kernel_combine=combine)
        self.operator = ddf
        self.plain_operator = composite

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, self.operator)

    def macs(self, x: Tensor) -> dict[str, int]:
        """The application of the filters, a product for each tap and output."""
        return {"dynamic_filter": x[:, :, :: self.stride, :: self.stride].numel() * self.kernel_size**2}

    def draw(self, generator: torch.Generator) -> None:
        """The learned spread of the channel filters."""
        norm = cast(FilterNorm, self.channel_branch[-1])
        nn.init.normal_(cast(Tensor, norm.std), std=norm.scale, generator=generator)


def separable(at: Site) -> nn.Module:
    """A 3x3 convolution as DDF, BatchNorm, ReLU and a 1x1 convolution, which may change the number of channels.

    No DDF-ResNet18 is published. Of the definitions tried this one alone has the parameters and products of the
    poster's, with half the channels in the channel branch instead of a fifth (`docs/networks.md`).
    """
    channels = at.in_channels
    mix = nn.Conv2d(channels, at.out_channels, 1, bias=False)
    return nn.Sequential(DDF(at, se_ratio=0.5), nn.BatchNorm2d(channels), nn.ReLU(), mix)


variant("ddf", BOTTLENECKS, filter=DDF)
variant("ddf_add", BOTTLENECKS, filter=lambda at: DDF(at, "add"))
variant("ddf_separable", ("resnet18",), filter=separable)
