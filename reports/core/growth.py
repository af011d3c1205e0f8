"""How costs grow with the number of pixels, of channels and with the kernel size, from records alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import Run


@dataclass
class Growth:
    """How one quantity of an op grows along one variable, or in all of them.

    Args:
        quantity: a metric: `macs`, `filter_memory`, `peak_memory`, `latency_wall`, ...
        along: `n` (pixels of one sample), `c` (channels), `k` (kernel size), or `n,c,k` for an exact fit in all.
        terms: the claimed terms, such as `n c k^2 + c^2 k^2`.
        coefficients: of an exact fit, one a term.
        residual: of an exact fit: the largest difference of a point, in the quantity's unit; 0 if it is exact.
        slope, low, high: of a measured quantity: d log(quantity) / d log(along) with 95 % bounds.
        expected: the closed form's slope over the same points.
        points: how many it rests on.
        left_out: points that were left out, each with why.
        suite: which records it comes from.
        further: of an exact fit, terms beside the claimed ones that make it exact; empty if none are needed, or found.
        all_coefficients, all_residual: of the fit with the claimed, then the further terms.
    """

    op: str
    impl: str
    device: str
    quantity: str
    along: str
    terms: str
    coefficients: list[float] = field(default_factory=list)
    residual: float | None = None
    slope: float | None = None
    low: float | None = None
    high: float | None = None
    expected: float | None = None
    points: int = 0
    left_out: list[str] = field(default_factory=list)
    suite: str = ""
    further: str = ""
    all_coefficients: list[float] = field(default_factory=list)
    all_residual: float | None = None


def growths(run: Run) -> list[Growth]:
    """How each op's costs grow, as far as the run tells; nothing yet."""
    return []
