"""The CUDA forward kernels, each by its name: on the CPU under emulation, and on a GPU where there is one."""

from __future__ import annotations

import ctypes

import pytest
import torch
from ddf_by_taps import Settings
from test_csrc import OnCpu, cuda_on_cpu
from test_native import Case, channels_last, contiguous
from torch import Tensor

__all__ = ["cuda_on_cpu"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NOT_SUPPORTED = 801


def by(name: str, on_cpu: type[OnCpu], capability: int = 90) -> type[OnCpu]:
    """Cases that the kernel of that name computes."""

    class By(on_cpu):  # type: ignore[misc,valid-type]
        def forward(self) -> Tensor:
            out = torch.full_like(self.tensors[3], torch.nan)
            self.library.cuda_on_cpu_capability(capability)
            error = self.library.forward_by(name.encode(), ctypes.byref(self.params(out)), 0, None)
            assert error != NOT_SUPPORTED, f"{name} refuses {self.description}"
            assert error == 0
            return out

    return By


#: (N, C, H, W) and stride, for planes by rows.
ROWS = [
    ((2, 9, 5, 8), 1),  # less than a tile
    ((1, 3, 56, 56), 1),
    ((1, 2, 30, 224), 1),  # several tiles down
    ((1, 2, 9, 608), 1),  # several tiles across
    ((1, 5, 15, 16), 2),
    ((1, 2, 40, 120), 2),
    ((1, 2, 4, 1200), 2),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("name", ["rows", "rows_bulk"])
def test_rows(cuda_on_cpu: type[OnCpu], name: str, k: int, dtype: torch.dtype) -> None:
    for i, (shape, stride) in enumerate(ROWS):
        combine = "add" if i % 2 else "mul"
        by(name, cuda_on_cpu)(shape, k, Settings(stride, 1, combine), dtype).check_forward()
