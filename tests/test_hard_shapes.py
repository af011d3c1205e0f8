"""The operator where kernels break: wide filters, far taps, one channel, one pixel, strides that leave a rest.

On the CPU, and by the CUDA kernels run on it, plain and under sanitizers. The authors' kernels overrun shared memory at
k = 15, and their fast path divides by zero at dilation 8.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ddf_by_taps import Settings
from test_cuda_on_cpu import OnCpu, cuda_on_cpu, general, lines_under_sanitizers
from test_native import Case, channels_last, contiguous

from ops.core import native
from suites.core import emulation

__all__ = ["cuda_on_cpu"]

#: Shape (N, C, H, W), k and settings.
HARD = [
    ((1, 1, 1, 1), 15, Settings(dilation=8)),
    ((2, 1, 1, 1), 3, Settings(stride=3)),
    ((1, 2, 9, 7), 15, Settings()),
    ((2, 1, 13, 11), 15, Settings(stride=3, dilation=2, combine="add")),
    ((1, 3, 17, 19), 9, Settings(dilation=8)),
    ((1, 2, 33, 35), 3, Settings(dilation=8)),
    ((1, 33, 5, 4), 13, Settings(dilation=4)),
    ((1, 5, 7, 13), 5, Settings(stride=3, combine="add")),
    ((1, 1, 40, 1), 7, Settings(stride=3)),
    ((1, 8, 1, 41), 11, Settings(stride=2, dilation=3)),
]


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    native.load()


def check(kind: type[Case], shape: tuple[int, int, int, int], k: int, settings: Settings) -> None:
    """Values and gradients, in both layouts, in float32 and in half precision."""
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (contiguous, channels_last):
            case = kind(shape, k, settings, dtype, (layout,) * 4)
            case.check_forward()
            case.check_backward()


@pytest.mark.parametrize(("shape", "k", "settings"), HARD)
def test_on_the_cpu(shape: tuple[int, int, int, int], k: int, settings: Settings) -> None:
    check(Case, shape, k, settings)


@pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))
@pytest.mark.parametrize(("shape", "k", "settings"), HARD)
def test_the_cuda_kernels(
    cuda_on_cpu: type[OnCpu], shape: tuple[int, int, int, int], k: int, settings: Settings
) -> None:
    check(cuda_on_cpu, shape, k, settings)
    general(cuda_on_cpu)(shape, k, settings, torch.float32).check_forward()


@pytest.mark.slow
@pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))
def test_both_under_sanitizers(tmp_path: Path) -> None:
    lines_under_sanitizers(__file__, tmp_path)
