"""Sweep: what each axis does to the price of a filter, one axis at a time around 28 x 28, 256 channels and 3 x 3 taps.

Kernel size, channels, batch, stride, dilation, type, layout, resolution, and of the DDF module heads and width of the
channel branch; sizes that are no square, and the authors' further shape, 2 x 256 x 200 x 300. The metrics are those of
`neighbours`, of one impl of each op, the first that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from suites.neighbours import _Priced

#: Further values of each axis, besides the centre's.
VALUES: Mapping[str, tuple[Any, ...]] = {
    "kernel_size": (5, 7, 9, 11, 13, 15),
    "channels": (1, 16, 64, 128, 512, 1024),
    "batch": (1, 2, 4, 16, 64),
    "size": ((7, 7), (14, 14), (56, 56), (112, 112), (224, 224), (20, 40), (33, 47)),
    "stride": (2, 3),
    "dilation": (2, 4, 8),
    "head": (2, 4, 8),
    "se_ratio": (0.1, 0.5, 1.0),
    "dtype": ("float64", "float16", "bfloat16"),
    "layout": ("channels_last",),
}
#: The same in the preset `quick`.
FEW: Mapping[str, tuple[Any, ...]] = {
    "kernel_size": (7, 15),
    "channels": (64, 512),
    "batch": (4,),
    "size": ((20, 40),),
    "stride": (3,),
    "dilation": (2,),
    "head": (4,),
    "se_ratio": (0.5,),
    "dtype": ("bfloat16",),
    "layout": ("channels_last",),
}
AUTHORS = {"batch": 2, "size": (200, 300)}


class Sweep(_Priced):
    name = "sweep"
    order = 75
    help = "kernel size, channels, batch, head, stride, dilation, type, layout, resolution: one axis at a time"
    ops = ("dwconv", "ddf_op", "ddf", "involution", "dw_weightnet", "local_attention")
    per_impl = False
    own_values: ClassVar = {
        "size": ((28, 28),),
        "dtype": ("float32",),
        "layout": ("nchw",),
        "direction": ("forward",),
    }

    def variations(self, preset: str) -> Sequence[Mapping[str, Any]]:
        values = FEW if preset == "quick" else VALUES
        return ({}, *({axis: value} for axis, several in values.items() for value in several), AUTHORS)
