"""Upsampling: DDF-Up beside the operators that one would take instead, by all that they cost, with a guide and without.

The metrics are those of `neighbours`; a resolution is that of the features, an output is `scale` times as large. 64
channels, as networks have where they upsample, by 2 at each resolution; at 7 x 7 also by 4 and 8. Filters that have a
size of their own choice take 3 x 3 taps: the axes of their shape, which most of these ops lack, would keep apart what
is compared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from suites.neighbours import _Priced


class Upsampling(_Priced):
    name = "upsampling"
    order = 80
    help = "DDF-Up beside bilinear, transposed and sub-pixel convolution, CARAFE, DySample, PAC, joint bilateral"
    ops = (
        *("bilinear", "transposed_conv", "subpixel_conv", "carafe_op", "carafe", "dysample", "ddf_up_op", "ddf_up"),
        *("pac_up", "joint_bilateral"),
    )
    axes = tuple(name for name in _Priced.axes if name not in ("kernel_size", "stride", "dilation"))
    own_values: ClassVar = {"channels": (64,), "guide": None}

    def variations(self, preset: str) -> Sequence[Mapping[str, Any]]:
        return ({}, *({"scale": scale, "size": (7, 7)} for scale in (4, 8)))
