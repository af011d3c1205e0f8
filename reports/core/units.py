"""Numbers for people. Records and CSV hold SI base units and counts; only what is meant for eyes is scaled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .. import Metric

_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_PREFIXED = ("B", "B/s", "MAC", "MAC/s", "Hz")


class Scale(NamedTuple):
    """A unit to show a number in: `number / factor` of `unit`."""

    factor: float
    unit: str


def scale(metric: str, unit: str, value: float) -> Scale:
    """The unit in which a value of this size reads best; 1 MB is 1e6 B, and a `*_fraction` is shown in percent."""
    if metric.endswith("_fraction"):
        return Scale(0.01, "%")
    size = abs(value)
    if unit == "s":
        return next((Scale(f, name) for f, name in _SECONDS if size >= f), Scale(1e-9, "ns"))
    if unit in _PREFIXED:
        return next((Scale(f, prefix + unit) for f, prefix in _THOUSANDS if size >= f), Scale(1.0, unit))
    return Scale(1.0, "" if unit == "1" else unit)


def common_scale(metric: str, unit: str, values: Sequence[float]) -> Scale:
    """One unit for values that stand side by side: that of the one in the middle."""
    return scale(metric, unit, sorted(values, key=abs)[len(values) // 2] if values else 0.0)


def digits(number: float) -> str:
    """Three significant digits; whole numbers in full, with thousands separated."""
    size = abs(number)
    if not math.isfinite(number):
        return str(number)
    if abs(number - round(number)) <= 1e-9 * size < 1e3:
        return f"{round(number):,}"
    if size >= 1e9 or size < 1e-3:
        return f"{number:.2e}"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(size)))}f}"


def quantity(metric: str, unit: str, value: float) -> str:
    """A number with its unit: `1.23 ms`, `137,532`, `86 %`."""
    factor, shown = scale(metric, unit, value)
    return f"{digits(value / factor)} {shown}".rstrip()


def bounds(low: float | None, high: float | None, factor: float = 1.0) -> str:
    """`(1.20 to 1.26)`, or nothing where there is no interval."""
    return "" if low is None or high is None else f"({digits(low / factor)} to {digits(high / factor)})"


def with_bounds(metric: Metric) -> str:
    """A metric's value with its unit and bounds: `1.23 ms (1.20 to 1.26)`; empty without a value."""
    if metric.value is None:
        return ""
    factor, shown = scale(metric.name, metric.unit, metric.value)
    return " ".join(filter(None, (digits(metric.value / factor), shown, bounds(metric.low, metric.high, factor))))
