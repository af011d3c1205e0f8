"""Roofs: what this device can do at best, measured in the same run and rounds as the cases they are held against.

`copy:BYTES`  a copy that moves as many bytes as a case must (half read, half written)
`matmul`      one square matrix product
`fma`         multiply-adds on registers alone (`csrc/roofs/`); absent where it cannot be built
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from reports import Json
from suites.core.clocks import Call, Clock, warm_up
from suites.core.devices import Device
from suites.core.multiply_add import multiply_add

#: Side of the square matrix product.
SIDE = {"cpu": 1024, "cuda": 8192}
#: The same of the call by which `doctor` judges noise: about a millisecond.
REFERENCE_SIDE = {"cpu": 384, "cuda": 2048}
#: Bytes moved by the copy that forecasts are made from: more than any cache holds.
PROBE_BYTES = 2**28


def roof_clocks(device: Device, dtype_name: str, copies: Sequence[int]) -> tuple[dict[str, Clock], dict[str, float]]:
    """Sets up a clock for each roof; returns clocks and, by the same names, the work of one call in bytes or MACs."""
    dtype = getattr(torch, dtype_name)
    roofs: dict[str, tuple[Call, float]] = {f"copy:{size}": (copy(device, size), size) for size in copies}
    roofs["matmul"] = matmul(device, dtype)
    loop = multiply_add(device.torch, dtype)
    if loop is not None:
        roofs["fma"] = loop
    clocks = {name: device.clocks(call)[device.main_clock]() for name, (call, _) in roofs.items()}
    return clocks, {name: work for name, (_, work) in roofs.items()}


def copy(device: Device, size: int) -> Call:
    """Copies size/2 bytes, so that `size` bytes move."""
    source = torch.ones(max(1, size // 2), dtype=torch.uint8, device=device.torch)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def matmul(device: Device, dtype: torch.dtype, sides: Mapping[str, int] = SIDE) -> tuple[Call, float]:
    """One square matrix product, and its multiply-accumulates."""
    side = sides[device.torch.type]
    a, b = (torch.randn(side, side, device=device.torch).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), float(side**3)


def reference(device: Device) -> Call:
    """A call of fixed work on all of the device: what differs from block to block is the machine."""
    return matmul(device, torch.float32, REFERENCE_SIDE)[0]


def probe(device: Device) -> Json:
    """A quick look at two roofs, for forecasts alone: bytes per second and float32 multiply-accumulates per second."""
    synchronize = torch.cuda.synchronize if device.torch.type == "cuda" else lambda: None
    product, macs = matmul(device, torch.float32)
    return {
        "copy": PROBE_BYTES / warm_up(copy(device, PROBE_BYTES), synchronize, 0.2),
        "matmul": macs / warm_up(product, synchronize, 0.2),
    }
