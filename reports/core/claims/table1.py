"""The rules for Table 1: formulas of parameters, and how costs grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from ... import Record
from ..growth import Growth
from ..units import digits
from . import EXCEEDED, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Finding
from .evidence import Evidence
from .formulas import Monomial, bounded, evaluate, parse, terms, write

#: Exponents agree if the measured one's bounds come this near to the closed form's.
SLOPE_TOLERANCE = 0.1
#: Bounds further apart than this decide nothing.
SLOPE_WIDTH = 0.5


@dataclass(frozen=True)
class Parameters:
    """A formula of Table 1, which counts weights: exact, with sigma c rounded down to whole channels as in the module.

    What the module has beside the weights (biases, the learned standard deviation of the channel filter) is itemised
    and does not count against the claim; any remainder does. All shapes of the run must hold; one is shown.
    """

    op: str
    formula: str

    def __call__(self, evidence: Evidence) -> Finding:
        records = [r for r in evidence.records("params", self.op) if r.metric("params") and _whole(r)]
        if not records:
            return Finding(NOT_TESTABLE, reason=evidence.why_absent("params", [self.op], [None]))
        items = {record.case: itemised(record, self.formula) for record in records}
        wrong = [record for record in records if items[record.case].get("unexplained")]
        at_poster = evidence.value("params", self.op, None)
        shown = wrong[0] if wrong else at_poster.record if at_poster and at_poster.record in records else records[-1]
        told = items[shown.case]
        total = int(sum(told.values()))
        parts = "".join(f" {'-' if n < 0 else '+'} {_number(abs(n))} {name}" for name, n in list(told.items())[1:])
        more = (total / float(told["formula"]) - 1) * 100
        basis = f"c {shown.axes['channels']}, k {shown.axes['kernel_size']}"
        basis += f" and {len(records) - 1} more shapes" if len(records) > 1 else ""
        reason = f"{total:,} = {_number(told['formula'])} by the formula{parts}; {more:+.2g} %" if parts else ""
        return Finding(NOT_REPRODUCED if wrong else REPRODUCED, total, basis=basis, reason=reason)


def _whole(record: Record) -> bool:
    """Whether it is the module that the formula is for, which knows no heads and no ablations."""
    module = {"head": 1, "branches": "both", "norm": "filter_norm"}
    return all(record.axes.get(axis, value) == value for axis, value in module.items())


def itemised(record: Record, formula: str) -> dict[str, Fraction]:
    """The counted parameters of a module as a sum: the formula, then what it leaves out, and what nothing explains.

    Args:
        record: of the suite `params`, with its parts.
        formula: of Table 1, in c, k and sigma.
    """
    c, k = int(record.axes["channels"]), int(record.axes["kernel_size"])
    sigma = float(record.axes.get("se_ratio", 0.2))
    mid = max(1, int(c * sigma))
    exact, rounded = (
        evaluate(parse(formula), {"c": c, "k": k, "sigma": value}) for value in (Fraction(str(sigma)), Fraction(mid, c))
    )
    parts: dict[str, int] = record.settings.get("parts") or {}

    def of_kind(kind: str) -> int:
        return sum(count for name, count in parts.items() if name.rpartition(".")[2] == kind)

    metric = record.metric("params")
    items = {
        "formula": exact,
        f"by rounding sigma c = {c * sigma:g} to {mid}": rounded - exact,
        "biases": Fraction(of_kind("bias")),
        "learned std": Fraction(of_kind("std")),
    }
    items["unexplained"] = Fraction(int(metric.value if metric and metric.value else 0)) - sum(items.values())
    return {name: number for name, number in items.items() if number or name == "formula"}


@dataclass(frozen=True)
class Grows:
    """How a cost grows: an exact count by its terms, a measured one by its exponent.

    An exact fit holds if each of its terms is of no higher order than a claimed one, O(...) being an upper bound; terms
    that the claim leaves out are named. If a leading claimed term does not occur, the cost grows less: `exceeded`.
    An exponent holds if its bounds come within `SLOPE_TOLERANCE` of the closed form's over the same points; below is
    `exceeded`.

    Args:
        quantities: of these, the first that the run has.
        along: `n,c,k` for an exact fit, or one of them.
        claimed: as printed, `O(n c k^2 + c^2 k^2)`.
    """

    quantities: tuple[str, ...]
    op: str
    along: str
    claimed: str

    def __call__(self, evidence: Evidence) -> Finding:
        growth = evidence.growth(self.op, self.quantities, self.along)
        if growth is None:
            return Finding(NOT_TESTABLE, reason=f"this run does not tell how {' or '.join(self.quantities)} grows")
        return _slope(growth) if growth.residual is None else self._exact(growth)

    def _exact(self, growth: Growth) -> Finding:
        basis = f"{growth.op}/{growth.impl}, {growth.points} shapes"
        if growth.all_residual:
            reason = f"{growth.terms} does not fit: off by up to {digits(growth.residual or 0.0)}"
            return Finding(NOT_REPRODUCED, basis=basis, reason=reason)
        claimed, found = parse(self.claimed.removeprefix("O")), _occurring(growth)
        extra = [term for term in found if term not in claimed]
        higher = [term for term in extra if not bounded(term, claimed)]
        if higher:
            reason = f"grows with {_listed(higher)} too, which is of higher order"
            return Finding(NOT_REPRODUCED, basis=basis, reason=reason)
        lacking = [term for term in claimed if not bounded(term, dict.fromkeys(found, Fraction(1)))]
        if lacking:
            return Finding(EXCEEDED, basis=basis, reason=f"does not grow with {_listed(lacking)}")
        reason = f"exact, with {_listed(extra)} beside the claimed terms, of no higher order" if extra else "exact"
        return Finding(REPRODUCED, basis=basis, reason=reason)


def _slope(growth: Growth) -> Finding:
    """A measured exponent held against the closed form's."""
    basis = f"{growth.op}/{growth.impl}, {growth.points} shapes"
    basis += f", left out {'; '.join(growth.left_out)}" if growth.left_out else ""
    slope, low, high, expected = growth.slope, growth.low, growth.high, growth.expected
    if slope is None or low is None or high is None or expected is None:
        return Finding(NOT_TESTABLE, slope, basis=basis, reason="too few shapes are left to tell an exponent")
    reason = f"the closed form's exponent over the same shapes is {expected:.2f}"
    if low > expected + SLOPE_TOLERANCE:
        return Finding(NOT_REPRODUCED, slope, low, high, basis, reason)
    if high < expected - SLOPE_TOLERANCE:
        return Finding(EXCEEDED, slope, low, high, basis, reason)
    if high - low <= SLOPE_WIDTH:
        return Finding(REPRODUCED, slope, low, high, basis, reason)
    reason = f"undecided: the interval is wider than {SLOPE_WIDTH:g}; {reason}"
    return Finding(NOT_TESTABLE, slope, low, high, basis, reason, undecided=True)


def _occurring(growth: Growth) -> list[Monomial]:
    """The terms of an exact fit whose coefficients are not 0."""
    written = [term for text in (growth.terms, growth.further) if text not in ("", "0") for term in terms(text)]
    return [powers for term, weight in zip(written, growth.all_coefficients, strict=True) if weight for powers in term]


def _listed(powers: Sequence[Monomial]) -> str:
    return " and ".join(map(write, powers))


def _number(count: Fraction) -> str:
    return f"{int(count):,}" if count.denominator == 1 else f"{float(count):,.1f}"
