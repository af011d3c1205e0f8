"""Attention-augmented convolution (Bello et al., ICCV 2019): some of the channels of a 3x3 convolution by attention.

The settings are those of the paper's ResNets: eight heads, keys of 0.2 and values of 0.1 of the outputs, in the last
three stages; in the first of these the attention runs at half the resolution. Keys have at least 20 channels a head:
the paper says so of its Wide-ResNet, and only so do its ResNets get their number of parameters (`docs/networks.md`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import BOTTLENECKS, Site, convolution, variant

HEADS = 8
#: Channels of keys and values over those of the output.
KEYS, VALUES = 0.2, 0.1
LEAST_KEYS = 20


def per_head(channels: float) -> int:
    """Channels of a head, at least one."""
    return max(1, round(channels / HEADS))


class AttentionAugmented(nn.Module):
    """Concat(Conv(x), MHA(x)), (N, C, H, W) -> (N, C', Ho, Wo), with relative positions.

    For a head with queries q, keys k and values v, each by a 1x1 convolution with the stride, pixel i gets
    sum_j softmax_j((q_i k_j + q_i r^h_{y_j - y_i} + q_i r^w_{x_j - x_i}) / sqrt(d)) v_j, d the channels of a key; the
    heads are mixed by a 1x1 convolution. The embeddings r are shared by the heads. No layer has a bias, as BatchNorm
    follows.

    Args:
        pooled: whether the attention reads means over 3x3 pixels with stride 2, its result being interpolated.
    """

    def __init__(self, at: Site, pooled: bool = False) -> None:
        super().__init__()
        self.key = max(LEAST_KEYS, per_head(KEYS * at.out_channels))
        self.value = per_head(VALUES * at.out_channels)
        self.pool = nn.AvgPool2d(3, 2, 1) if pooled else None
        height, width = at.after().height, at.after().width
        if pooled:
            height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        values = HEADS * self.value
        self.conv = nn.Conv2d(at.in_channels, at.out_channels - values, 3, at.stride, 1, bias=False)
        self.predict = nn.Conv2d(at.in_channels, 2 * HEADS * self.key + values, 1, at.stride, bias=False)
        self.mix = nn.Conv2d(values, values, 1, bias=False)
        self.rows = nn.Parameter(torch.randn(2 * height - 1, self.key) * self.key**-0.5)
        self.columns = nn.Parameter(torch.randn(2 * width - 1, self.key) * self.key**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.conv(x)
        attended = self.attend(x if self.pool is None else self.pool(x))
        if self.pool is not None:
            attended = F.interpolate(attended, convolved.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([convolved, attended], 1)

    def attend(self, x: Tensor) -> Tensor:
        """MHA(x), (N, C, H, W) -> (N, HEADS * value, Ho, Wo)."""
        predicted = self.predict(x).unflatten(1, (HEADS, -1))
        height, width = predicted.shape[3:]
        q, k, v = predicted.flatten(3).split([self.key, self.key, self.value], 2)
        q = (q * self.key**-0.5).transpose(2, 3)
        by_place = q.unflatten(2, (height, width))
        # products, not einsum, whose cost fvcore rounds
        rows = by_place @ relative(self.rows, height).transpose(1, 2)
        columns = (by_place.transpose(2, 3) @ relative(self.columns, width).transpose(1, 2)).transpose(2, 3)
        positions = (rows[..., None] + columns[..., None, :]).flatten(4).flatten(2, 3)
        weights = torch.softmax(q @ k + positions, 3)
        return self.mix((weights @ v.transpose(2, 3)).transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)))

    def macs(self, x: Tensor) -> dict[str, int]:
        """The products of attention: queries with keys, and with the embeddings of each row and column; with values."""
        places, strides = (x.shape[2], x.shape[3]), (2 if self.pool is not None else 1, self.predict.stride[0])
        for stride in strides:
            places = ((places[0] - 1) // stride + 1, (places[1] - 1) // stride + 1)
        pixels = places[0] * places[1]
        products = pixels * (self.key + self.value) + (places[0] + places[1]) * self.key
        return {"attention_products": len(x) * HEADS * pixels * products}

    def draw(self, generator: torch.Generator) -> None:
        """The embeddings."""
        for embeddings in (self.rows, self.columns):
            embeddings.normal_(0, self.key**-0.5, generator=generator)


def relative(embeddings: Tensor, size: int) -> Tensor:
    """(2 size - 1, d) -> (size, size, d): for places i and j the embedding of j - i."""
    places = torch.arange(size, device=embeddings.device)
    return embeddings[places - places[:, None] + size - 1]


def augmented(at: Site) -> nn.Module:
    return convolution(at) if at.stage == 1 else AttentionAugmented(at, pooled=at.stage == 2)


variant("aa", BOTTLENECKS, filter=augmented)
