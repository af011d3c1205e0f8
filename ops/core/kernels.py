"""The tables of CUDA kernels, csrc/ddf/cuda/kernels.def and backward.def, as the library they are compiled into sees
them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import build

__all__ = ["Kernel", "backward_kernels", "kernels"]

#: What every row with k = 5 and 7 is compiled for at these sizes; as csrc/ddf/cuda/instances.cuh has it.
PARTLY = "k 5 and 7 by mul, not in float64"


@dataclass(frozen=True)
class Kernel:
    """A row: the first that fits a case, and whose kernel can serve it, is taken.

    Args:
        layout: `nchw`, `channels_last` or `any`.
        kernel_sizes, strides: that it serves, as text.
        most_pixels: of a plane that it is meant for; 0: any number.
        least_row_bytes: of a row of features; 0: any number.
        least_arch: compute capability, 90 for 9.0.
    """

    name: str
    layout: str
    kernel_sizes: str
    strides: str
    most_pixels: int
    least_row_bytes: int
    least_arch: int

    def __str__(self) -> str:
        limits = [
            PARTLY if "5" in self.kernel_sizes else "",
            f"planes of at most {self.most_pixels} pixels" if self.most_pixels else "",
            f"rows of at least {self.least_row_bytes} B" if self.least_row_bytes else "",
        ]
        return ", ".join(
            filter(
                None,
                [
                    f"{self.name:16} {self.layout:13} k {self.kernel_sizes:5}  stride {self.strides:3}",
                    f"sm_{self.least_arch} and later",
                    *limits,
                ],
            )
        )


def kernels() -> tuple[Kernel, ...]:
    """The rows of the forward pass, in the order in which they are tried."""
    return _rows("kernels.def")


def backward_kernels() -> tuple[Kernel, ...]:
    """Likewise of the backward pass."""
    return _rows("backward.def")


def _rows(table: str) -> tuple[Kernel, ...]:
    text = (build._csrc() / "ddf" / "cuda" / table).read_text()
    rows = re.findall(r"^KERNEL\((.*)\)$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(",")] for row in rows]
    return tuple(Kernel(*row[:4], *map(int, row[4:])) for row in cells)
