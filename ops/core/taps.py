"""What the taps of a filter read."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor


def windows(features: Tensor, kernel_size: int, stride: int, dilation: int) -> Iterator[Tensor]:
    """For each of the k*k taps, row by row, the features that it reads for every output: views (N, C, Ho, Wo).

    Features (N, C, H, W) are padded with `dilation*(k-1)/2` zeros, so that Ho = floor((H-1)/stride)+1.
    """
    height, width = features.shape[2:]
    padding = dilation * (kernel_size - 1) // 2
    padded = F.pad(features, (padding, padding, padding, padding))
    for y in range(0, kernel_size * dilation, dilation):
        for x in range(0, kernel_size * dilation, dilation):
            yield padded[:, :, y : y + height : stride, x : x + width : stride]
