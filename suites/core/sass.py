"""Machine code of CUDA kernels, read from a cubin: which instructions a kernel is made of, and its loop.

A cubin is an ELF file with a section `.text.<kernel>` of instructions of 16 bytes each, from sm_70 on. The lowest 9
bits of an instruction name the operation; bits 73 to 75 give the width of a memory access; a branch has the distance to
its target from bit 34 on, from sm_90 on with 8 further low bits at bit 16. So Mesa's compiler writes them
(src/nouveau/compiler/nak, sm70_encode.rs), and nvdisasm reads them: a test holds this reading against its.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "OPERATIONS", "Code", "read_cubin"]

BYTES = 16

#: Operations that are told apart, by kind; all others (integers, addresses, predicates, moves, barriers) are `other`.
KINDS = {
    "fp": {
        "FMUL": 0x020, "FADD": 0x021, "FFMA": 0x023, "DMUL": 0x028, "DADD": 0x029, "DFMA": 0x02B,
        "HADD2": 0x030, "HFMA2": 0x031, "HMUL2": 0x032,
    },
    "global": {"LD": 0x180, "LDG": 0x181, "ST": 0x185, "STG": 0x186},
    "shared": {"LDS": 0x184, "STS": 0x188},
    "local": {"LDL": 0x183, "STL": 0x187},
    "async": {"LDGSTS": 0x1AE},
    "branch": {"BRA": 0x147},
}  # fmt: skip
OPERATIONS = {name: number for kind in KINDS.values() for name, number in kind.items()}
MULTIPLY_ADDS = ("FFMA", "DFMA")
#: Kinds whose instructions have a width, and bytes by its field.
ACCESSES = ("global", "shared", "local", "async")
WIDTHS = np.array([1, 1, 2, 2, 4, 8, 16, 16])


@dataclass(frozen=True)
class Code:
    """The instructions of one kernel.

    Args:
        data: as they are in the cubin.
    """

    arch: int
    data: bytes

    @cached_property
    def _words(self) -> NDArray[np.uint64]:
        """Low and high half of each instruction."""
        return np.frombuffer(self.data, np.uint64).reshape(-1, 2)

    @cached_property
    def operations(self) -> NDArray[np.int64]:
        """The number of each instruction's operation."""
        return (self._words[:, 0] & np.uint64(0x1FF)).astype(np.int64)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """Bytes of each access by one thread, 0 for what is none."""
        field = (self._words[:, 1] >> np.uint64(9)).astype(np.int64) & 7
        if self.arch >= 100:  # two bits for the three widths of an asynchronous copy
            field = np.where(self._are(KINDS["async"].values()), field // 2 + 4, field)
        return np.where(self._are(OPERATIONS[name] for kind in ACCESSES for name in KINDS[kind]), WIDTHS[field], 0)

    def __len__(self) -> int:
        return len(self.operations)

    @property
    def checksum(self) -> int:
        return zlib.crc32(self.data)

    def count(self, kind: str) -> int:
        """Instructions of a kind."""
        return int(self._are(KINDS[kind].values()).sum())

    @cached_property
    def targets(self) -> dict[int, int]:
        """By place of each branch, the place of its target."""
        found = {}
        for place in np.flatnonzero(self._are([OPERATIONS["BRA"]])):
            low, high = (int(half) for half in self._words[place])
            distance = (low >> 34) | (high & 0x3FFFF) << 30
            distance -= (distance >> 47) << 48
            if self.arch >= 90:
                distance = distance << 8 | (low >> 16 & 0xFF)
            found[int(place)] = int(place) + 1 + distance * 4 // BYTES
        return found

    @cached_property
    def loop(self) -> slice:
        """The loop with the most multiply-adds, of several the innermost; everything where there is no loop."""
        adds = self._are(OPERATIONS[name] for name in MULTIPLY_ADDS).cumsum()
        loops = [slice(target, place + 1) for place, target in self.targets.items() if 0 <= target <= place]
        loops = [loop for loop in loops if loop.stop - loop.start > 1] or [slice(0, len(self))]
        return max(loops, key=lambda loop: (adds[loop.stop - 1] - adds[loop.start], loop.start - loop.stop))

    def inside_loop(self) -> Code:
        """The instructions of the loop alone."""
        return Code(self.arch, self.data[self.loop.start * BYTES : self.loop.stop * BYTES])

    @property
    def multiply_adds(self) -> int:
        return int(self._are(OPERATIONS[name] for name in MULTIPLY_ADDS).sum())

    def _are(self, numbers: Iterable[int]) -> NDArray[np.bool_]:
        return np.isin(self.operations, list(numbers))


def read_cubin(cubin: bytes, arch: int) -> dict[str, Code]:
    """The kernels of a cubin by mangled name.

    Raises:
        ValueError: if it is not a 64-bit ELF file.
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a cubin: no 64-bit ELF file")
    start, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    sections = [struct.unpack_from("<IIQQQQ", cubin, start + i * size) for i in range(count)]
    strings = sections[names][4]
    found = {}
    for name, _, _, _, offset, length in sections:
        label = cubin[strings + name : cubin.index(b"\0", strings + name)].decode()
        if label.startswith(".text."):
            found[label.removeprefix(".text.")] = Code(arch, cubin[offset : offset + length])
    return found
