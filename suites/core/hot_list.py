"""The hot list: the kernels that what matters runs with, `hot_kernels.cu`.

It is read as text, so that the runner knows its cases without a compiler: `HOT_ROWS(float, 3, 1)` is the kernel
`rows_kernel<float, 3, 1, ...>`, called `rows_float_3_1`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["SOURCE", "HotKernel", "hot_kernels"]

SOURCE = Path(__file__).resolve().parent / "hot_kernels.cu"

#: Element types by what C++ calls them.
DTYPES = {"float": "float32", "double": "float64", "__half": "float16", "__nv_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class HotKernel:
    """One line of the list.

    Args:
        family: `rows`, of rows_kernel.
        arguments: the template's first ones, as they are written.
    """

    family: str
    arguments: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        return "_".join([self.family, *(DTYPES.get(argument, argument) for argument in self.arguments)])

    @property
    def dtype(self) -> str:
        return DTYPES[self.arguments[0]]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The arguments that are whole numbers: kernel size, stride."""
        return tuple(int(argument) for argument in self.arguments if argument.isdigit())

    def is_called(self, function: str) -> bool:
        """Whether `rows_kernel<float, 3, 1, false>` is this kernel."""
        return function.startswith(f"{self.family}_kernel<{', '.join(self.arguments)}") and (
            function[len(f"{self.family}_kernel<{', '.join(self.arguments)}")] in ",>"
        )


def hot_kernels(source: Path = SOURCE) -> tuple[HotKernel, ...]:
    """The list, in its order."""
    lines = re.findall(r"^HOT_(\w+)\((.*)\)$", source.read_text(), re.MULTILINE)
    return tuple(HotKernel(family.lower(), tuple(re.split(r",\s*", arguments))) for family, arguments in lines)
