"""Numbers for people. Records and CSV hold SI base units and counts; only what is meant for eyes is scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .. import Metric

_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_PREFIXED = ("B", "B/s", "MAC", "MAC/s", "Hz")
_COUNTS = ("1", "B", "MAC")


class Scale(NamedTuple):
    """A unit to show a number in: `number / factor` of `unit`; whole numbers are shown as such only of counts."""

    factor: float
    unit: str
    counts: bool = False


def scale(metric: str, unit: str, value: float) -> Scale:
    """The unit in which a value of this size reads best; 1 MB is 1e6 B, and a `*_fraction` is shown in percent."""
    if metric.endswith("_fraction"):
        return Scale(0.01, "%")
    size = abs(value)
    if unit == "s":
        return next((Scale(factor, name) for factor, name in _SECONDS if size >= factor), Scale(1e-9, "ns"))
    plain = Scale(1.0, "" if unit == "1" else unit, unit in _COUNTS)
    if unit in _PREFIXED:
        return next((Scale(factor, prefix + unit) for factor, prefix in _THOUSANDS if size >= factor), plain)
    return plain


def common_scale(metric: str, unit: str, values: Sequence[float]) -> Scale:
    """One unit for values that stand side by side: that of the one in the middle."""
    return scale(metric, unit, sorted(values, key=abs)[len(values) // 2] if values else 0.0)


def digits(number: float) -> str:
    """Three significant digits, thousands separated."""
    size = abs(number)
    if not math.isfinite(number):
        return str(number)
    if number == 0:
        return "0"
    if size >= 1e9 or size < 1e-4:
        return f"{number:.2e}"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(size)))}f}"


def shown(value: float, scale: Scale) -> str:
    """A value in a unit, without the unit."""
    if scale.counts and math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return digits(value / scale.factor)


def quantity(metric: str, unit: str, value: float) -> str:
    """A number with its unit: `1.23 ms`, `137,532`, `86.0 %`."""
    fitting = scale(metric, unit, value)
    return f"{shown(value, fitting)} {fitting.unit}".rstrip()


def round_quantity(metric: str, unit: str, value: float) -> str:
    """A round number with its unit, as at a tick: `20 µs`."""
    fitting = scale(metric, unit, value * (1 + 1e-9))
    number = value / fitting.factor
    return f"{f'{number:,.0f}' if number > 0.99 else f'{number:g}'} {fitting.unit}".rstrip()


def bounds(metric: Metric, scale: Scale) -> str:
    """`(1.20 to 1.26)`, or nothing where there is no interval."""
    if metric.low is None or metric.high is None:
        return ""
    return f"({shown(metric.low, scale)} to {shown(metric.high, scale)})"


def with_bounds(metric: Metric) -> str:
    """A metric's value with its unit and bounds: `1.23 ms (1.20 to 1.26)`; empty without a value."""
    if metric.value is None:
        return ""
    fitting = scale(metric.name, metric.unit, metric.value)
    return " ".join(filter(None, (shown(metric.value, fitting), fitting.unit, bounds(metric, fitting))))
