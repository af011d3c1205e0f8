"""DDF-ResNets (Zhou et al., CVPR 2021): DDF modules for the 3x3 convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ...ddf import DDFPack, FilterNorm, composite, ddf
from .resnet import BOTTLENECKS, Site, convolution, variant


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


def pointwise(at: Site, se_ratio: float = 0.2) -> nn.Module:
    """A DDF module, which keeps the number of channels, and a 1x1 convolution, which sets it."""
    written = replace(at, out_channels=at.in_channels).after()
    return nn.Sequential(DDF(at, se_ratio=se_ratio), convolution(written.conv(at.role, at.out_channels)))


def where_same(at: Site) -> nn.Module:
    """A DDF module where the number of channels stays, else the plain convolution."""
    return DDF(at) if at.in_channels == at.out_channels else convolution(at)


variant("ddf", BOTTLENECKS, filter=DDF)
variant("ddf_add", BOTTLENECKS, filter=lambda at: DDF(at, "add"))
# what DDF-ResNet18 could be: its paper does not say, and a basic block changes the number of channels
variant("ddf_same", ("resnet18",), filter=where_same)
variant("ddf_pointwise", ("resnet18",), filter=pointwise)
variant("ddf_pointwise_half", ("resnet18",), filter=lambda at: pointwise(at, se_ratio=0.5))
