"""What GPUs are known to be: limits by architecture, figures by device, and what follows from them without one here.

Limits: CUDA C++ Programming Guide, technical specifications per compute capability, and `cuda_occupancy.h`, against
which a test holds `Limits.blocks`. Figures: NVIDIA's data sheets and architecture white papers, named in each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEVICES", "LIMITS", "Device", "Limits", "Work", "binding", "device_named", "predict", "total"]

WARP = 32
#: A multiprocessor has four parts, each with a quarter of the registers and a scheduler that issues one instruction of
#: a warp a cycle.
PARTS = 4
REGISTERS, REGISTER_UNIT = 65536, 256
#: Bytes that a multiprocessor's L1 cache and shared memory move a cycle: 32 banks of 4 bytes.
SHARED_BYTES_A_CYCLE = 128


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor of one architecture.

    Args:
        warps, most_blocks: resident at once.
        shared: bytes of shared memory, of which a block takes `reserved` for itself.
        shared_unit: bytes in which it is given out.
        block_shared: bytes that one block can be given, what is reserved left out.
        fp32, fp64: multiply-adds a cycle.
    """

    warps: int
    most_blocks: int
    shared: int
    reserved: int
    shared_unit: int
    block_shared: int
    fp32: int
    fp64: int

    def blocks(self, threads: int, registers: int, shared: int) -> int:
        """Blocks of a kernel that are resident at once on a multiprocessor; 0 if one does not fit.

        Args:
            threads: of a block.
            registers: of a thread.
            shared: bytes of a block, static and dynamic.
        """
        warps = _up(threads, WARP) // WARP
        warp_registers = _up(registers * WARP, REGISTER_UNIT)
        block_shared = _up(shared + self.reserved, self.shared_unit)
        if shared > self.block_shared or warp_registers * _up(warps, PARTS) > REGISTERS:
            return 0
        by_registers = REGISTERS // PARTS // warp_registers * PARTS // warps
        by_shared = self.shared // block_shared if block_shared else self.most_blocks
        return min(self.most_blocks, self.warps // warps, by_registers, by_shared)

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """Resident warps over the most there can be."""
        return self.blocks(threads, registers, shared) * (_up(threads, WARP) // WARP) / self.warps


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


KIB = 1024
#: By compute capability.
LIMITS: Mapping[str, Limits] = {
    "75": Limits(32, 16, 64 * KIB, 0, 256, 64 * KIB, 64, 2),
    "80": Limits(64, 32, 164 * KIB, KIB, 128, 163 * KIB, 64, 32),
    "86": Limits(48, 16, 100 * KIB, KIB, 128, 99 * KIB, 128, 2),
    "89": Limits(48, 24, 100 * KIB, KIB, 128, 99 * KIB, 128, 2),
    "90": Limits(64, 32, 228 * KIB, KIB, 128, 227 * KIB, 128, 64),
    "100": Limits(64, 32, 228 * KIB, KIB, 128, 227 * KIB, 128, 64),
    "120": Limits(48, 24, 100 * KIB, KIB, 128, 99 * KIB, 128, 2),
}


@dataclass(frozen=True)
class Device:
    """A GPU by its public figures.

    Args:
        name: a part of the name that the driver gives it.
        clock: boost clock of the multiprocessors, Hz.
        bandwidth: of device memory, B/s.
        source: where the figures are from.
    """

    name: str
    arch: str
    multiprocessors: int
    clock: float
    bandwidth: float
    source: str

    @property
    def limits(self) -> Limits:
        return LIMITS[self.arch]


#: The first of an architecture stands for it.
DEVICES = (
    Device("RTX 2080 Ti", "75", 68, 1.545e9, 616e9, "Turing white paper, appendix A"),
    Device("Tesla T4", "75", 40, 1.590e9, 320e9, "T4 data sheet"),
    Device("A100-SXM4-80GB", "80", 108, 1.410e9, 2039e9, "A100 data sheet"),
    Device("A100-SXM4-40GB", "80", 108, 1.410e9, 1555e9, "A100 data sheet"),
    Device("RTX 3090", "86", 82, 1.695e9, 936e9, "GA102 white paper, table 9"),
    Device("RTX 4090", "89", 128, 2.520e9, 1008e9, "Ada white paper, appendix A"),
    Device("L4", "89", 58, 2.040e9, 300e9, "L4 data sheet"),
    Device("H100 80GB HBM3", "90", 132, 1.980e9, 3352e9, "H100 data sheet, SXM"),
    Device("H200", "90", 132, 1.980e9, 4800e9, "H200 data sheet, SXM"),
    Device("B200", "100", 148, 1.965e9, 8000e9, "HGX B200 data sheet"),
    Device("RTX 5090", "120", 170, 2.407e9, 1792e9, "RTX Blackwell white paper, appendix A"),
)

#: Seconds that a kernel of a captured graph takes besides its work: 3.4 us a kernel of 2.9 us (NVIDIA, Getting Started
#: with CUDA Graphs).
LAUNCH = 0.5e-6


def device_named(name: str) -> Device | None:
    """The device whose name is part of the driver's, the longest such; None if it is not known."""
    return max((d for d in DEVICES if d.name in name), key=lambda d: len(d.name), default=None)


@dataclass(frozen=True)
class Work:
    """What one launch does.

    Args:
        bytes: moved to and from device memory.
        operations: floating-point multiply-adds, additions or multiplications; one each.
        instructions: of threads, all kinds.
        shared_bytes: by which wavefronts keep the banks of shared memory busy: 128 each.
        itemsize: of what the operations compute in: 4, or 8 for float64.
    """

    bytes: float
    operations: float
    instructions: float
    shared_bytes: float
    itemsize: int = 4

    def times(self, count: float) -> Work:
        """The work of so many."""
        return Work(
            count * self.bytes,
            count * self.operations,
            count * self.instructions,
            count * self.shared_bytes,
            self.itemsize,
        )


def predict(work: Work, device: Device) -> dict[str, float]:
    """Seconds by what bounds them, each alone, as if all else were hidden behind it; `launch` comes on top.

    The sum of `launch` and the longest of the others is the predicted time: no kernel is faster, and one that is much
    slower waits for something that is not counted here (latency of memory, dependent instructions).
    """
    cycles = device.multiprocessors * device.clock
    lanes = device.limits.fp64 if work.itemsize == 8 else device.limits.fp32
    return {
        "memory": work.bytes / device.bandwidth,
        "fp": work.operations / (lanes * cycles),
        "issue": work.instructions / (PARTS * WARP * cycles),
        "shared": work.shared_bytes / (SHARED_BYTES_A_CYCLE * cycles),
        "launch": LAUNCH,
    }


def total(parts: Mapping[str, float]) -> float:
    """The predicted time, of `predict`'s answer."""
    return parts["launch"] + max(seconds for name, seconds in parts.items() if name != "launch")


def binding(parts: Mapping[str, float]) -> str:
    """The longest of the parts: what is to be made shorter."""
    return max(parts, key=lambda name: parts[name])
