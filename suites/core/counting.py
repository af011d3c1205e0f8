"""Multiply-accumulates of one call, counted operator by operator as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def count_macs(call: Callable[[], Any]) -> int:
    """Runs the call and counts: products by torch's counter, and elementwise products that are summed up.

    torch counts a multiply-accumulate as two flops, and leaves elementwise operators out. Of these, `addcmul_` is a
    multiply-accumulate an element, and `mul` is one where later ones are summed into its result: a filter applied tap
    by tap. Other products scale, as a normalisation does, and are not counted.
    """
    counter, summed = FlopCounterMode(display=False), Summed()
    with counter, summed:
        call()
    return int(counter.get_total_flops()) // 2 + summed.macs


class Summed(TorchDispatchMode):
    """Counts elementwise products that are summed in place."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0
        #: Elements of products that nothing was summed into so far, by their storage, which is held so that no other
        #: takes its address.
        self._products: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if name is torch.ops.aten.mul:
            storage = result.untyped_storage()
            self._products[storage.data_ptr()] = storage
        elif name is torch.ops.aten.addcmul_:
            first = self._products.pop(result.untyped_storage().data_ptr(), None)
            self.macs += result.numel() * (1 if first is None else 2)
        return result
