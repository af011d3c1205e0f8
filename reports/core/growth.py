"""How costs grow with the number of pixels, of channels and with the kernel size, from records alone.

Exact counts (multiply-accumulates, bytes of generated filters) of many shapes are fitted by exact rational least
squares to the claimed terms: the residual is 0 or it is not. Where the claimed terms alone leave one, one or two
further terms are looked for that bring it to 0.

What is measured (latency, peak memory) has a slope: that of the straight line through its points in logarithms. The
bounds of the points, bootstrapped over processes and blocks, are put together in quadrature, since points err
independently. It is held against the slope of the closed form over the same points. Points whose call takes less than
`OVERHEAD` times the smallest call of the same op and impl are mostly overhead and are left out, each by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple

from .. import Metric, Record, Run

#: The claimed terms by quantity and op: Table 1 of the poster; for `dyfilter_dw`, which it does not have, those of its
#: prediction by a 1x1 convolution and of its filters. n is pixels, `0` that there are none.
CLAIMED: Mapping[str, Mapping[str, str]] = {
    "macs": {
        "conv": "n c^2 k^2",
        "dwconv": "n c k^2",
        "dyfilter": "n c^3 k^2",
        "dyfilter_dw": "n c^2 k^2",
        "ddf_op": "n c k^2",
        "ddf": "n c k^2 + c^2 k^2",
    },
    "filter_memory": {
        "conv": "0",
        "dwconv": "0",
        "dyfilter": "n c^2 k^2",
        "dyfilter_dw": "n c k^2",
        "ddf_op": "0",
        "ddf": "n k^2 + c k^2",
    },
}
#: A call below so many times the smallest call of its op is mostly overhead.
OVERHEAD = 4.0
VARIABLES = ("n", "c", "k")

Term = tuple[int, int, int]


@dataclass
class Growth:
    """How one quantity of an op grows along one variable, or in all of them.

    Args:
        quantity: a metric: `macs`, `filter_memory`, `peak_memory`, `latency_wall`, ...
        along: `n` (pixels of one sample), `c` (channels), `k` (kernel size), or `n,c,k` for an exact fit in all.
        terms: the claimed terms, such as `n c k^2 + c^2 k^2`, of latency those of its multiply-accumulates; empty where
            nothing is claimed.
        coefficients: of an exact fit, one a term.
        residual: of an exact fit: the largest difference of a point, in the quantity's unit; 0 if it is exact.
        slope, low, high: of a measured quantity: d log(quantity) / d log(along) with 95 % bounds.
        expected: the closed form's slope over the same points.
        points: how many it rests on.
        left_out: points that were left out, each with why.
        suite, where: which records it comes from, and what its points have in common, in words.
        further: of an exact fit, terms beside the claimed ones that make it exact; empty if none are needed, or found.
        all_coefficients, all_residual: of the fit with the claimed, then the further terms.
        values: of a measured quantity, its points as (along, value).
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
    where: str = ""
    further: str = ""
    all_coefficients: list[float] = field(default_factory=list)
    all_residual: float | None = None
    values: list[tuple[float, float]] = field(default_factory=list)

    @property
    def within_claim(self) -> bool:
        """Whether an exact fit has no residual, and no further term of higher order than all claimed ones."""
        claimed = parsed(self.terms)
        small = (any(all(a <= b for a, b in zip(t, c, strict=True)) for c in claimed) for t in parsed(self.further))
        return self.all_residual == 0 and all(small)


def growths(run: Run) -> list[Growth]:
    """All that the records of a run tell of growth: exact fits first, then slopes."""
    records = [record for record in run.records if record.status == "ok"]
    smallest = {(r.op, r.impl): found for r in records if (found := _smallest(r))}
    fits: list[Growth] = []
    slopes: list[Growth] = []
    for record in records:
        if record.suite == "complexity":
            fits += _fits(record)
            slopes += _cross_slopes(record)
    for series in _along_n(records).values():
        slopes += _series_slopes(series, smallest)
    return [*fits, *slopes]


# exact fits


def _fits(record: Record) -> Iterator[Growth]:
    counted = record.settings.get("counted") or {}
    points = list(zip(*(counted.get(v, ()) for v in VARIABLES), strict=True))
    for quantity, by_op in CLAIMED.items():
        if points and record.op in by_op and quantity in counted:
            terms = by_op[record.op]
            claimed, further, full = fit(tuple(points), tuple(counted[quantity]), terms)
            yield Growth(
                record.op,
                record.impl,
                record.device,
                quantity,
                ",".join(VARIABLES),
                terms,
                [float(c) for c in claimed.coefficients],
                float(claimed.residual),
                points=len(points),
                suite=record.suite,
                where=_where(record, "batch 1"),
                further=further,
                all_coefficients=[float(c) for c in full.coefficients],
                all_residual=float(full.residual),
            )


class Fit(NamedTuple):
    """Exact least squares: one coefficient a term, and the largest difference of a point."""

    coefficients: tuple[Fraction, ...]
    residual: Fraction


@cache
def fit(points: tuple[Term, ...], values: tuple[int, ...], terms: str) -> tuple[Fit, str, Fit]:
    """Fits counts to the claimed terms, and to those with the fewest further terms that leave no residual.

    Args:
        points: n, c and k of each.
        terms: see `parsed`.

    Returns:
        The fit of the claimed terms, the further terms (empty if none are needed or up to two do not suffice), and the
        fit with them.
    """
    claimed = parsed(terms)
    alone = _solved(points, values, claimed)
    if alone.residual == 0:
        return alone, "", alone
    candidates = [t for t in product((0, 1), (0, 1, 2, 3), (0, 1, 2)) if t not in claimed]
    for count in (1, 2):
        for more in combinations(candidates, count):
            full = _solved(points, values, [*claimed, *more])
            if full.residual == 0:
                return alone, " + ".join(map(_term_text, more)), full
    return alone, "", alone


def parsed(terms: str) -> list[Term]:
    """Exponents of n, c and k of each term: `n c k^2 + c^2` is [(1, 1, 2), (0, 2, 0)], `0` and nothing are []."""
    found = []
    for term in terms.split(" + ") if terms not in ("", "0") else ():
        powers = {variable: power or "1" for variable, _, power in (factor.partition("^") for factor in term.split())}
        found.append((int(powers.get("n", 0)), int(powers.get("c", 0)), int(powers.get("k", 0))))
    return found


def _term_text(term: Term) -> str:
    factors = (v if power == 1 else f"{v}^{power}" for v, power in zip(VARIABLES, term, strict=True) if power)
    return " ".join(factors) or "1"


def _solved(points: Sequence[Term], values: Sequence[int], terms: Sequence[Term]) -> Fit:
    """Least squares by the normal equations, in rational numbers; terms that the others determine have none."""
    rows = [[math.prod(x**power for x, power in zip(p, t, strict=True)) for t in terms] for p in points]
    size = range(len(terms))
    system = [
        [Fraction(sum(row[i] * row[j] for row in rows)) for j in size]
        + [Fraction(sum(row[i] * value for row, value in zip(rows, values, strict=True)))]
        for i in size
    ]
    for i in size:
        pivot = next((row for row in range(i, len(terms)) if system[row][i]), None)
        if pivot is None:
            continue
        system[i], system[pivot] = system[pivot], system[i]
        system[i] = [x / system[i][i] for x in system[i]]
        for other in size:
            if other != i and system[other][i]:
                factor = system[other][i]
                system[other] = [x - factor * y for x, y in zip(system[other], system[i], strict=True)]
    coefficients = tuple(row[-1] for row in system)
    differences = (
        abs(value - sum(c * x for c, x in zip(coefficients, row, strict=True)))
        for row, value in zip(rows, values, strict=True)
    )
    return Fit(coefficients, max(differences, default=Fraction(0)))


# slopes


class Sample(NamedTuple):
    """One point of a slope: where it is, what was measured with its bounds, and the closed form there, if any."""

    x: float
    label: str
    value: float
    low: float
    high: float
    formula: float | None


def slope(samples: Sequence[Sample], smallest: float = 0.0) -> Growth:
    """The slope of some points, the rest of the description left to the caller.

    Args:
        smallest: of the smallest call; points below `OVERHEAD` times as much are left out.
    """
    kept = [sample for sample in samples if sample.value >= OVERHEAD * smallest]
    left_out = [
        f"{sample.label}: {sample.value / smallest:.2f} times the smallest call"
        for sample in samples
        if sample not in kept
    ]
    found = Growth("", "", "", "", "", "", points=len(kept), left_out=left_out)
    found.values = [(sample.x, sample.value) for sample in kept]
    if len({sample.x for sample in kept}) < 2:
        return found
    logs = [math.log(sample.x) for sample in kept]
    mean = sum(logs) / len(logs)
    spread = sum((x - mean) ** 2 for x in logs)
    weights = [(x - mean) / spread for x in logs]
    found.slope = sum(w * math.log(s.value) for w, s in zip(weights, kept, strict=True))
    # a low bound of the slope takes the low bounds of what raises it and the high bounds of what lowers it
    ends = [(s.low, s.high) if w > 0 else (s.high, s.low) for w, s in zip(weights, kept, strict=True)]
    below = (w * math.log(s.value / end[0]) for w, s, end in zip(weights, kept, ends, strict=True))
    above = (w * math.log(end[1] / s.value) for w, s, end in zip(weights, kept, ends, strict=True))
    found.low, found.high = found.slope - math.hypot(*below), found.slope + math.hypot(*above)
    formulas = [sample.formula for sample in kept]
    if all(formulas):
        found.expected = sum(w * math.log(f or 1) for w, f in zip(weights, formulas, strict=True))
    return found


def _cross_slopes(record: Record) -> Iterator[Growth]:
    """Slopes along n, c and k of the points that the suite `complexity` has timed."""
    timed, middle = record.settings.get("timed") or [], record.settings.get("middle") or {}
    clock = str(record.settings.get("clock"))
    for quantity, along in product((clock, "peak_memory"), VARIABLES):
        common = [v for v in VARIABLES if v != along]
        line = sorted((p for p in timed if all(p[v] == middle[v] for v in common)), key=lambda p: float(p[along]))
        samples = []
        for point in line:
            if quantity == clock:
                made = _sample(record.metric(point["metric"]), point[along], f"{along}={point[along]}", point["macs"])
            else:
                value = point.get(quantity) or 0
                made = _sample(
                    Metric("", "", value), point[along], f"{along}={point[along]}", point.get(f"{quantity}_formula")
                )
            samples += [made] if made else []
        if samples:
            where = ", ".join(f"{v}={middle[v]}" for v in common)
            yield _described(
                slope(samples, _smallest(record) if quantity == clock else 0.0), record, quantity, along, where
            )


def _along_n(records: Sequence[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Records of the suites that vary the resolution, those together that differ in nothing else."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.suite in ("latency", "memory") and "height" in record.axes:
            others = sorted((k, str(v)) for k, v in record.axes.items() if k not in ("height", "width"))
            found.setdefault((record.suite, record.op, record.impl, *others), []).append(record)
    return found


def _series_slopes(series: Sequence[Record], smallest: Mapping[tuple[str, str], float]) -> Iterator[Growth]:
    """Slopes along n of one op and impl at one place of all other axes."""
    first = series[0]
    if first.suite == "latency":
        clock = "latency_device" if first.metric("latency_device") else "latency_wall"
        wanted = {clock: ("macs", smallest.get((first.op, first.impl), 0.0))}
    else:
        wanted = {name: (f"{name}_formula", 0.0) for name in ("peak_memory", "filter_memory")}
    axes = first.axes
    said = [f"c={axes.get('channels')}, k={axes.get('kernel_size')}, batch {axes.get('batch')}", axes.get("direction")]
    for quantity, (formula, least) in wanted.items():
        samples = []
        for record in sorted(series, key=lambda r: r.axes["height"] * r.axes["width"]):
            n = record.axes["height"] * record.axes["width"]
            closed = record.metric(formula)
            made = _sample(record.metric(quantity), n, f"n={n}", closed.value if closed else None)
            samples += [made] if made else []
        if len(samples) > 1:
            yield _described(slope(samples, least), first, quantity, "n", ", ".join(map(str, filter(None, said))))


def _sample(metric: Metric | None, x: float, label: str, formula: float | None) -> Sample | None:
    """A point, if it has a value that a logarithm takes."""
    if metric is None or not metric.value or metric.value <= 0:
        return None
    return Sample(x, label, metric.value, metric.low or metric.value, metric.high or metric.value, formula)


def _described(found: Growth, record: Record, quantity: str, along: str, where: str) -> Growth:
    found.op, found.impl, found.device = record.op, record.impl, record.device
    found.quantity, found.along, found.where, found.suite = quantity, along, _where(record, where), record.suite
    claimed = CLAIMED.get(quantity if quantity in CLAIMED else "macs" if quantity.startswith("latency") else "", {})
    found.terms = claimed.get(record.op, "")
    return found


def _where(record: Record, where: str) -> str:
    """With the dtype, unless it goes without saying."""
    dtype = str(record.axes.get("dtype", "float32"))
    return where if dtype == "float32" else f"{where}, {dtype}"


def _smallest(record: Record) -> float:
    """Seconds of the smallest call that the suite `complexity` has timed, 0 if it is not known."""
    metric = record.metric(str(record.settings.get("smallest")))
    return metric.value or 0.0 if metric else 0.0
