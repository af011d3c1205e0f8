"""Complexity: how multiply-accumulates, bytes and latency of an op grow with n (pixels), c (channels) and k (taps).

One case an op, which measures many points, since growth is seen between points alone:

- counted, over `COUNTED`, in which n, c and k vary together: multiply-accumulates operator by operator as the op runs
  (never the closed form), and the bytes of its generated filters, as the suite `memory` finds them. They stand in
  `settings.counted` and are fitted exactly.
- timed, over a cross of points that vary one of n, c and k: `<clock>_n<n>c<c>k<k>`. `settings.timed` says which metric
  is which point, with its closed form of multiply-accumulates and its peak memory. The smallest call, of a single
  pixel, tells what any call costs besides its work. Results are checked at the smallest and at the middle point.

The channels and pixels in the middle of the cross are as many as keep its most costly point below a fixed number of
multiply-accumulates, so that growth is seen where work is, and still within seconds. Fits and slopes are drawn from
these records by `reports.core.growth`. Growth with n at the channels of the run is seen in the suite `latency`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ops import Op, Point, Skip
from reports import Json, Metric
from suites import Begun, Suite
from suites.memory import filter_memory, formulas

if TYPE_CHECKING:
    from suites.core.bench import Bench


class Shape(NamedTuple):
    """Height, width, channels and kernel size of one point, batch 1."""

    height: int
    width: int
    c: int
    k: int

    @property
    def axes(self) -> dict[str, int]:
        """As n, c and k, which growth is told in."""
        return {"n": self.height * self.width, "c": self.c, "k": self.k}

    def of(self, point: Point) -> Point:
        return replace(point, height=self.height, width=self.width, channels=self.c, kernel_size=self.k, batch=1)


#: Multiples of 5 channels, of which DDF's channel branch keeps a fifth without rounding.
COUNTED = tuple(
    Shape(height, width, c, k)
    for (height, width), c, k in product(((2, 3), (4, 4), (5, 7)), (5, 10, 15, 20), (3, 5, 7))
)
SMALLEST = Shape(1, 1, 8, 3)
#: What the middle of the cross is chosen from: channels, the most first, and resolutions.
CHANNELS, SIDES = (128, 64, 32, 16, 8), (112, 56)
#: Multiply-accumulates of the most costly point, by kind of device.
MOST_MACS = {"cpu": 1e9, "cuda": 1e11}


class Complexity(Suite):
    name = "complexity"
    order = 50
    help = "growth of multiply-accumulates, bytes and latency with pixels, channels and kernel size"
    axes = ("dtype", "threads", "tf32")
    #: Growth is that of the work, not of its division among cores, which other programs would disturb.
    own_values: ClassVar = {"threads": (1,)}
    per_impl = False
    timed = True
    ceiling = 0.5
    #: The first dispatch mode of a process imports torch._dynamo.
    preload = ("torch.utils.flop_counter", "torch._dynamo")

    def begin(self, bench: Bench) -> Begun:
        if not {"channels", "kernel_size"} <= set(bench.op.axes):
            raise Skip("grows with neither channels nor kernel_size")
        points = cross(bench.op, bench.case.point, bench.case.kind)
        timed = {shape: bench.at(shape.of(bench.case.point)) for shape in (SMALLEST, *points)}
        metrics, settings = [], {}
        if bench.check:
            checked = timed[SMALLEST], timed[points[0]]
            error = max(each.max_error() for each in checked)
            metrics.append(Metric("max_error", "1", error, better="less"))
            if not error <= bench.tolerance:
                return Begun(metrics, failure=f"wrong result: error {error:.3g}, allowed {bench.tolerance:.3g}")
            settings = described(bench, timed, points)
        clock = bench.device.main_clock
        return Begun(
            metrics, {name(clock, s): each.device.clocks(each.call)[clock]() for s, each in timed.items()}, settings
        )


def cross(op: Op, point: Point, kind: str) -> list[Shape]:
    """The middle, then points that differ from it in one of n, c and k."""
    for c, side in product(CHANNELS, SIDES):
        points = [
            Shape(side, side, c, 3),
            *(Shape(other, other, c, 3) for other in (side // 2, 2 * side)),
            *(Shape(side, side, other, 3) for other in (c // 2, 2 * c)),
            *(Shape(side, side, c, k) for k in (5, 7)),
        ]
        if max(sum(op.costs(shape.of(point)).macs.values()) for shape in points) <= MOST_MACS[kind]:
            break
    return points


def described(bench: Bench, timed: dict[Shape, Bench], points: list[Shape]) -> Json:
    """What reports need to know of the points: see the top of this file."""
    clock = bench.device.main_clock
    return {
        "clock": clock,
        "smallest": name(clock, SMALLEST),
        "middle": points[0].axes,
        "timed": [
            {
                **shape.axes,
                "metric": name(clock, shape),
                "macs": sum(timed[shape].costs.macs.values()),
                "peak_memory": timed[shape].device.allocations(timed[shape].call).peak,
                **formulas(timed[shape].case.point, timed[shape].costs),
            }
            for shape in points
        ],
        "counted": counted(bench, COUNTED),
    }


def counted(bench: Bench, shapes: Iterable[Shape]) -> dict[str, list[int]]:
    """Counts by quantity, one a shape; shapes that the op cannot serve are left out."""
    from suites.core.counting import count_macs

    found: dict[str, list[int]] = {name: [] for name in ("n", "c", "k", "macs", "filter_memory")}
    for shape in shapes:
        with suppress(Skip):
            each = bench.at(shape.of(bench.case.point))
            row: dict[str, Any] = {
                **shape.axes,
                "macs": count_macs(each.forward),
                "filter_memory": filter_memory(each, each.device.allocations(each.forward)),
            }
            for key, value in row.items():
                found[key].append(value)
    return found


def name(clock: str, shape: Shape) -> str:
    """Of the metric of a timed point."""
    return f"{clock}_" + "".join(f"{axis}{value}" for axis, value in shape.axes.items())
