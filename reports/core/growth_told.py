"""Growth in tables: rows of text for any format."""

from __future__ import annotations

from collections.abc import Iterable

from .growth import Growth, parsed
from .units import digits

FIT_HEADER = ("op", "quantity", "claimed", "fit", "residual", "exact with", "residual", "shapes")
SLOPE_HEADER = ("op/impl", "quantity", "along", "at", "slope", "closed form", "points", "left out")


def fit_rows(growths: Iterable[Growth]) -> list[list[str]]:
    """Exact fits: `n c^2 k^2` with what it leaves, and with the further terms that make it exact."""
    return [
        [
            growth.op,
            growth.quantity,
            growth.terms,
            fitted(growth.coefficients, growth.terms),
            _residual(growth.residual),
            fitted(growth.all_coefficients, " + ".join(filter(None, (growth.terms, growth.further))))
            if growth.further
            else "",
            _residual(growth.all_residual) if growth.further else "",
            str(growth.points),
        ]
        for growth in growths
        if growth.residual is not None
    ]


def slope_rows(growths: Iterable[Growth]) -> list[list[str]]:
    """Measured slopes, `1.02 (0.98 to 1.05)`, beside the closed form's."""
    return [
        [
            f"{growth.op}/{growth.impl}",
            growth.quantity,
            growth.along,
            growth.where,
            _slope(growth),
            "" if growth.expected is None else _exponent(growth.expected),
            str(growth.points),
            "; ".join(growth.left_out),
        ]
        for growth in growths
        if growth.residual is None
    ]


def fitted(coefficients: Iterable[float], terms: str) -> str:
    """`2 n c k^2 + 0.2 c^2 k^2`."""
    written = terms.split(" + ") if parsed(terms) else []
    told = (f"{c:g} {term}" if c != 1 else term for c, term in zip(coefficients, written, strict=True))
    return " + ".join(told) or "0"


def _slope(growth: Growth) -> str:
    if growth.slope is None:
        return "too few points"
    if growth.low is None or growth.high is None or growth.low == growth.high:
        return _exponent(growth.slope)
    return f"{_exponent(growth.slope)} ({_exponent(growth.low)} to {_exponent(growth.high)})"


def _exponent(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _residual(value: float | None) -> str:
    return "" if value is None else digits(value)
