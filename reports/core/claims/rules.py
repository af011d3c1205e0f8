"""The rules for counts, latencies and orders, one for each kind of claim; docs/claims.md tells them in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from ... import Metric, Record
from ..arrange import divided
from ..units import digits
from . import EXCEEDED, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Finding
from .evidence import Evidence, Value

#: Ratios of Table 2 agree within this factor: they depend on the device less than times do.
RATIO_FACTOR = 1.5
#: Latencies agree within this factor: the poster's GPU is not named.
LATENCY_FACTOR = 2.0
#: Where two costs are said to be about the same, one is at most this many times the other.
ABOUT = 2.0

_NEEDS_PUBLISHED = (
    "only the published kernels (impl paper, beside torch's convolutions) on CUDA under the preset paper can tell"
)


@dataclass(frozen=True)
class Order:
    """One op takes less of a metric than another, or, where the poster concedes it, more.

    It is decided where the bounds of the ratio lie on one side of the limit; over several resolutions, where they do at
    each that was measured. The ratio shown is the one that speaks most against the claim.

    Args:
        over, under: the ratio is the metric of `over` divided by that of `under`.
        sizes: resolutions; None for a metric that has none.
        conceded: the poster says that the ratio is above the limit, to the disadvantage of `over`; below is `exceeded`.
    """

    metric: str
    over: str
    under: str
    sizes: tuple[int | None, ...]
    conceded: bool = False
    limit: float = 1.0

    def __call__(self, evidence: Evidence) -> Finding:
        pairs = {size: evidence.pair(self.metric, self.over, self.under, size) for size in self.sizes}
        found = {size: pair for size, pair in pairs.items() if pair and pair[1].number > 0}
        if not found:
            return Finding(NOT_TESTABLE, reason=evidence.why_absent(self.metric, (self.over, self.under), self.sizes))
        ratios = {size: divided(over.metric, under.metric) for size, (over, under) in found.items()}
        against = {size: self._against(ratio, found[size][0]) for size, ratio in ratios.items()}
        worst = max(ratios, key=lambda size: (against[size], self._sign * (ratios[size].value or 0.0)))
        over, under = found[worst]
        basis = [f"{over.label} over {under.label}", *_where(over.record)]
        basis += [f"the worst of {', '.join(map(str, found))}: {worst}"] if len(found) > 1 else []
        if against[worst] > 0:
            return _found(EXCEEDED if self.conceded else NOT_REPRODUCED, ratios[worst], basis, _roofs(over, under))
        if against[worst] < 0:
            return _found(REPRODUCED, ratios[worst], basis)
        return _found(NOT_TESTABLE, ratios[worst], basis, "undecided: the intervals overlap", undecided=True)

    @property
    def _sign(self) -> int:
        """1 where a ratio above the limit speaks against the claim, -1 where one below does."""
        return -1 if self.conceded else 1

    def _against(self, ratio: Metric, over: Value) -> int:
        """1 if the ratio speaks against the claim, -1 if for it, 0 if it is undecided."""
        low, high = _bounds(ratio, over)
        return self._sign * (1 if low >= self.limit else -1 if high < self.limit else 0)


@dataclass(frozen=True)
class Figure:
    """A latency of Table 2, or the ratio of two, within a factor: the bounds lie within, below or above as a whole.

    Args:
        published: in the unit of the claim.
        unit: of the claim, in seconds for a latency.
        size: resolution.
        under: the op that `over` is divided by, if any.
        factor: see `LATENCY_FACTOR`, `RATIO_FACTOR`.
    """

    published: Fraction
    unit: float
    factor: float
    size: int
    over: str
    under: str = ""

    def __call__(self, evidence: Evidence) -> Finding:
        ops = [op for op in (self.over, self.under) if op]
        published = [value for op in ops if (value := evidence.as_published(op, self.size))]
        if len(published) == len(ops):
            ours, basis = self._ours(published)
            verdict, reason = self._held(_bounds(ours, published[0]))
            return _found(verdict, ours, basis, reason, undecided=verdict == NOT_TESTABLE)
        values: Sequence[Value] = evidence.pair("latency_wall", self.over, self.under, self.size) or ()
        if not self.under:
            values = list(filter(None, [evidence.value("latency_wall", self.over, self.size)]))
        if values:
            ours, basis = self._ours(values)
            return _found(NOT_TESTABLE, ours, basis, _NEEDS_PUBLISHED)
        return Finding(NOT_TESTABLE, reason=_NEEDS_PUBLISHED)

    def _ours(self, values: Sequence[Value]) -> tuple[Metric, list[str]]:
        """Our figure in the claim's unit, and what it rests on."""
        over = values[0].metric
        basis = [" over ".join(value.label for value in values), *_where(values[0].record)]
        return divided(over, values[1].metric) if len(values) > 1 else _scaled(over, self.unit), basis

    def _held(self, bounds: tuple[float, float]) -> tuple[str, str]:
        """The verdict, and a reason where it is not `reproduced`."""
        low, high = bounds
        least, most = float(self.published) / self.factor, float(self.published) * self.factor
        if least <= low and high <= most:
            return REPRODUCED, ""
        if high < least:
            return EXCEEDED, f"less than the published over {self.factor:g}; the poster does not name its GPU"
        if low > most:
            return NOT_REPRODUCED, f"more than {self.factor:g} times the published; the poster does not name its GPU"
        return NOT_TESTABLE, f"undecided: the interval reaches over a factor of {self.factor:g}"


#: What papers call FLOPs, the metrics of the suite networks: the first that agrees is the definition used.
DEFINITIONS = {
    "params": {"params": "parameters"},
    "macs": {
        "macs": "convolutions, linear layers and applied dynamic filters",
        "macs_with_attention": "with the products of attention",
        "macs_with_mixing": "with the mixing of filters",
        "macs_with_normalisation": "with BatchNorm, as thop counts it",
    },
}


@dataclass(frozen=True)
class Count:
    """A number of parameters or MACs of a network, to half the last printed digit; a smaller one is not better.

    MACs agree by the plainest definition that does; it is named, and what the plain count is.

    Args:
        published: as printed, in the unit of the claim.
        unit: of the claim.
        readings: variants that a network without a published definition could be, or that a label might mean. Their
            counts are told where the network's own do not agree, and decide nothing.
    """

    metric: str
    backbone: str
    variant: str
    published: Decimal
    unit: int
    readings: tuple[str, ...] = ()

    def __call__(self, evidence: Evidence) -> Finding:
        found = self._found(evidence, self.variant)
        told = self._told(evidence)
        if found is None:
            missing = "this run has no such network, from the suite networks"
            undefined = "no definition is published that gives this network"
            return Finding(NOT_TESTABLE, reason=f"{undefined}; {told}" if told else missing, undecided=bool(told))
        definitions = DEFINITIONS[self.metric]
        values = {name: self._value(found, name) for name in definitions}
        plain = values[self.metric]
        if plain is None:
            return Finding(NOT_TESTABLE, reason="this run has no such network, from the suite networks")
        for name, value in values.items():
            if value is not None and abs(value - self.published) <= self._half:
                basis = f"{definitions[name]}, {found.case}"
                by_plain = f"not by the plain count: {definitions[self.metric]} give {plain:.3f}"
                reason = "" if name == self.metric else by_plain
                return Finding(REPRODUCED, float(value), basis=basis, reason=reason)
        others = [f"{definitions[name]}: {value:.3f}" for name, value in values.items() if value not in (None, plain)]
        reason = f"differs by {plain - self.published:+f}, half the last printed digit is {self._half}"
        reason = "; ".join(filter(None, (reason, *others, told)))
        return Finding(NOT_REPRODUCED, float(plain), basis=f"{definitions[self.metric]}, {found.case}", reason=reason)

    @property
    def _half(self) -> Decimal:
        return Decimal(1).scaleb(int(self.published.as_tuple().exponent)) / 2

    def _told(self, evidence: Evidence) -> str:
        """`res2net_26w_4s has 25.699`, for each reading that the run has."""
        found = {name: self._found(evidence, name) for name in self.readings}
        values = {name: self._value(record, self.metric) for name, record in found.items() if record}
        return ", ".join(f"{name} has {value:.3f}" for name, value in values.items() if value is not None)

    def _found(self, evidence: Evidence, variant: str) -> Record | None:
        """The record of that variant, at the size the poster's figures are for."""
        return next((r for r in evidence.records("networks", self.backbone) if _is(r, variant)), None)

    def _value(self, record: Record, name: str) -> Decimal | None:
        """A metric of the record for one sample, in the unit of the claim."""
        metric = record.metric(name)
        if metric is None or metric.value is None:
            return None
        samples = int(record.axes.get("batch", 1)) if self.metric == "macs" else 1
        return Decimal(int(metric.value)) / self.unit / samples


def _is(record: Record, variant: str) -> bool:
    size = (record.axes.get("height", 224), record.axes.get("width", 224))
    return record.axes.get("variant") == variant and size == (224, 224)


@dataclass(frozen=True)
class Nothing:
    """A dash in Table 1: the op generates no filters, so that all its records have 0."""

    metric: str
    suite: str
    op: str

    def __call__(self, evidence: Evidence) -> Finding:
        metrics = [m for record in evidence.records(self.suite, self.op) if (m := record.metric(self.metric))]
        values = [metric.value for metric in metrics if metric.value is not None]
        if not values:
            return Finding(NOT_TESTABLE, reason=evidence.why_absent(self.metric, [self.op], []))
        return Finding(NOT_REPRODUCED if any(values) else REPRODUCED, max(values), basis=f"{len(values)} shapes")


@dataclass(frozen=True)
class Cited:
    """A figure that is cited and never measured here."""

    reason: str

    def __call__(self, evidence: Evidence) -> Finding:
        return Finding(NOT_TESTABLE, reason=self.reason)


def _found(verdict: str, ours: Metric, basis: Sequence[str], reason: str = "", undecided: bool = False) -> Finding:
    return Finding(verdict, ours.value, ours.low, ours.high, ", ".join(basis), reason, undecided)


def _bounds(ratio: Metric, over: Value) -> tuple[float, float]:
    """Low and high: exact counts are their own bounds, and a time without bounds decides nothing."""
    if ratio.low is not None and ratio.high is not None:
        return ratio.low, ratio.high
    if over.metric.unit == "s" or ratio.value is None:
        return 0.0, float("inf")
    return ratio.value, ratio.value


def _scaled(metric: Metric, unit: float) -> Metric:
    value, low, high = (None if n is None else n / unit for n in (metric.value, metric.low, metric.high))
    return Metric(metric.name, metric.unit, value, low, high)


def _where(record: Record) -> list[str]:
    """`batch 1`."""
    return [f"batch {record.axes['batch']}"] if "batch" in record.axes else []


def _roofs(over: Value, under: Value) -> str:
    """How much of its roof each reaches: what the data has to say of why."""
    told = []
    for value in (over, under):
        fraction = value.record.metric("roof_fraction")
        if fraction and fraction.value is not None and value.metric.unit == "s":
            told.append(f"{value.label} reaches {digits(100 * fraction.value)} %")
    return f"{', '.join(told)} of the roof that binds it" if told else ""
