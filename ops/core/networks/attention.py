"""Attention modules: what a network looks at is weighted by gates computed from it, the filters stay as they are.

They stand between the last BatchNorm of a block and the addition, those of BAM behind a stage. All biases are as in the
authors' published code.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .resnet import Site, variant

#: Width of a bottleneck of fully connected or 1x1 layers, as a part of the channels; the same in SE, BAM, CBAM and GE.
REDUCTION = 16


def perceptron(channels: int) -> nn.Sequential:
    """(N, C) -> (N, C): two fully connected layers with biases and C/16 units between them."""
    mid = channels // REDUCTION
    return nn.Sequential(nn.Linear(channels, mid), nn.ReLU(), nn.Linear(mid, channels))


class SqueezeExcite(nn.Module):
    """Hu et al., CVPR 2018: x * sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, at: Site) -> None:
        super().__init__()
        self.excite = perceptron(at.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(x.mean((2, 3))))[:, :, None, None]


class GatherExcite(nn.Module):
    """Hu et al., NeurIPS 2018, with global extent: x * sigmoid(excite(gather(x))).

    GE-theta gathers by one depthwise convolution as large as the feature map, followed by a BatchNorm; GE-theta- by
    the mean; GE-theta+ adds the layers of SE to GE-theta, with a ReLU before them. All four stages have it.

    Args:
        learned: whether to gather by convolution.
        excite: whether to add the layers of SE.
    """

    def __init__(self, at: Site, learned: bool = True, excite: bool = False) -> None:
        super().__init__()
        self.gather: nn.Module = nn.AdaptiveAvgPool2d(1)
        if learned:
            channels, size = at.in_channels, (at.height, at.width)
            self.gather = nn.Sequential(
                nn.Conv2d(channels, channels, size, groups=channels, bias=False), nn.BatchNorm2d(channels)
            )
        self.excite = nn.Sequential(nn.ReLU(), *perceptron(at.in_channels)) if excite else None

    def forward(self, x: Tensor) -> Tensor:
        gathered = self.gather(x).flatten(1)
        if self.excite is not None:
            gathered = self.excite(gathered)
        return x * torch.sigmoid(gathered)[:, :, None, None]


class CBAM(nn.Module):
    """Woo et al., ECCV 2018: SE with mean and maximum through the same layers, then a gate of the pixels.

    The gate of the pixels is a 7x7 convolution of the maximum and the mean over the channels, without bias, with
    BatchNorm.
    """

    def __init__(self, at: Site) -> None:
        super().__init__()
        self.channels = perceptron(at.in_channels)
        self.pixels = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.channels(x.mean((2, 3))) + self.channels(x.amax((2, 3)))
        x = x * torch.sigmoid(gate)[:, :, None, None]
        return x * torch.sigmoid(self.pixels(torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)))


class BAM(nn.Module):
    """Park et al., BMVC 2018: x * (1 + sigmoid(channels(x) * pixels(x))), reduction 16, dilation 4.

    The paper adds the two branches; the authors' code, which trained the published networks, multiplies them, as here.
    Parameters and products are the same. Every layer but the last of a branch has a BatchNorm; a training step so needs
    two images.
    """

    def __init__(self, at: Site, dilation: int = 4) -> None:
        super().__init__()
        channels, mid = at.in_channels, at.in_channels // REDUCTION

        def dilated() -> list[nn.Module]:
            conv = nn.Conv2d(mid, mid, 3, padding=dilation, dilation=dilation)
            return [conv, nn.BatchNorm2d(mid), nn.ReLU()]

        first, _, last = perceptron(channels)
        self.channels = nn.Sequential(first, nn.BatchNorm1d(mid), nn.ReLU(), last)
        self.pixels = nn.Sequential(
            *(nn.Conv2d(channels, mid, 1), nn.BatchNorm2d(mid), nn.ReLU()),
            *dilated(),
            *dilated(),
            nn.Conv2d(mid, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.channels(x.mean((2, 3)))[:, :, None, None] * self.pixels(x)
        return x * (1 + torch.sigmoid(gate))


variant("se", attention=SqueezeExcite)
variant("cbam", attention=CBAM)
variant("bam", after_stage=lambda at: BAM(at) if at.stage < 4 else None)
variant("ge", attention=GatherExcite)
variant("ge_minus", attention=partial(GatherExcite, learned=False))
variant("ge_plus", attention=partial(GatherExcite, excite=True))
