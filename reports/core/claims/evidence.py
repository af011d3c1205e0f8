"""A run's records, indexed once by what claims ask for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

from ... import RESULTS, Metric, Record, Run
from ..arrange import resolution
from ..growth import Growth, growths

#: The suite that a metric is taken from.
SUITES = {
    "latency_wall": "latency",
    "macs": "flops",
    "params": "params",
    "peak_memory": "memory",
    "filter_memory": "memory",
}
#: What stands for a metric where a case was not measured: a closed form, which tells no more than the metric would.
FORMULAS = {"peak_memory_formula": "peak_memory"}
#: How the authors measured (their timing script); an axis that does not apply to an op is absent from its records.
POSTER_AXES = {
    "channels": 256,
    "kernel_size": 3,
    "stride": 1,
    "dilation": 1,
    "combine": "mul",
    "dtype": "float32",
    "layout": "nchw",
    "direction": "forward",
    "head": 1,
    "se_ratio": 0.2,
    "branches": "both",
    "norm": "filter_norm",
    "tf32": 0,
}
POSTER_BATCH = 32
#: What they timed: the modules of torch, and their own kernels.
POSTER_IMPLS = {"conv": "torch", "dwconv": "torch", "ddf_op": "paper", "ddf": "paper"}


class Value(NamedTuple):
    """A metric of a record, which has a value."""

    record: Record
    metric: Metric

    @property
    def number(self) -> float:
        assert self.metric.value is not None
        return self.metric.value

    @property
    def label(self) -> str:
        """The op, with its impl where it matters: parameters and MACs are the op's."""
        if self.metric.name in ("params", "macs"):
            return self.record.op
        if self.metric.name in FORMULAS:
            return f"{self.record.op} by closed form"
        return f"{self.record.op}/{self.record.impl}"


class _Spot(NamedTuple):
    """What two values must share to be compared, beside the axes that are the same for all; in order of preference."""

    at_poster_batch: bool
    batch: int
    threads: int


#: A metric of an op at a resolution (None where it has none).
_Key = tuple[str, str, int | None]


class Evidence:
    """What a run has to say, at the poster's shapes.

    An op is judged by its fastest impl that is not compiled: by latency at the shape in question, and for anything else
    by latency at the largest resolution that was measured. Of several batches the poster's is taken, else the largest.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._values: dict[_Key, dict[_Spot, dict[str, Value]]] = {}
        self._absent: dict[_Key, str] = {}
        self._records: dict[tuple[str, str], list[Record]] = {}
        for record in run.records:
            self._index(record)
        self._fastest = self._fastest_impls()
        self._growths = [g for g in growths(run) if g.suite == "complexity" and g.impl != "compiled"]

    @property
    def preset(self) -> str:
        """The preset that the run was asked for."""
        return str((self.run.environment.get("selection") or {}).get("preset", ""))

    def records(self, suite: str, op: str) -> list[Record]:
        """All that went well, at any shape."""
        return self._records.get((suite, op), [])

    def value(self, metric: str, op: str, size: int | None) -> Value | None:
        """The op's value at a resolution."""
        spots = self._values.get((metric, op, size))
        return self._judged(spots[max(spots)]) if spots else None

    def pair(self, metric: str, one: str, other: str, size: int | None) -> tuple[Value, Value] | None:
        """Two ops' values at one resolution, batch and number of threads."""
        ones, others = (self._values.get((metric, op, size), {}) for op in (one, other))
        common = ones.keys() & others.keys()
        if not common:
            return None
        spot = max(common)
        return self._judged(ones[spot]), self._judged(others[spot])

    def as_published(self, op: str, size: int) -> Value | None:
        """The latency taken as the authors took it: their impl and batch on CUDA, under the preset `paper`."""
        spots = self._values.get(("latency_wall", op, size), {})
        at_batch = max((spot for spot in spots if spot.at_poster_batch), default=None)
        value = spots[at_batch].get(POSTER_IMPLS[op]) if at_batch else None
        return value if value and value.record.device == "cuda" and self.preset == "paper" else None

    def growth(self, op: str, quantities: Sequence[str], along: str) -> Growth | None:
        """How a cost of the op grows, from the suite `complexity`: the first quantity there is, of the fastest impl."""
        found = [g for g in self._growths if g.op == op and g.along == along and g.quantity in quantities]
        best = self._fastest.get(op)
        return min(found, key=lambda g: (quantities.index(g.quantity), g.impl != best), default=None)

    def why_absent(self, metric: str, ops: Iterable[str], sizes: Iterable[int | None]) -> str:
        """Why there is no such number, as far as the run tells: for each op the first reason."""
        first: dict[str, str] = {}
        for op, size in product(ops, sizes):
            if why := self._absent.get((metric, op, size)):
                first.setdefault(op, f"{op}: {why}")
        return "; ".join(first.values()) or f"this run has no {metric} to tell it from"

    def _index(self, record: Record) -> None:
        if record.status == "ok":
            self._records.setdefault((record.suite, record.op), []).append(record)
        size = _size(record)
        if size == 0 or not _as_poster(record):
            return
        spot = _spot(record)
        for metric in record.metrics:
            name = metric.name if record.status == "ok" else FORMULAS.get(metric.name, "")
            if SUITES.get(name) == record.suite and record.status in RESULTS and metric.value is not None:
                by_impl = self._values.setdefault((name, record.op, size), {}).setdefault(spot, {})
                by_impl.setdefault(record.impl, Value(record, metric))
        if record.status != "ok":
            why = ": ".join(filter(None, (record.status.replace("_", " "), record.reason)))
            for name in (name for name, suite in SUITES.items() if suite == record.suite):
                self._absent.setdefault((name, record.op, size), why)

    def _fastest_impls(self) -> dict[str, str]:
        """By op; at the largest resolution with a latency."""
        largest: dict[str, int] = {}
        for metric, op, size in self._values:
            if metric == "latency_wall" and size:
                largest[op] = max(size, largest.get(op, 0))
        found = {}
        for op, size in largest.items():
            spots = self._values["latency_wall", op, size]
            found[op] = _least(spots[max(spots)]).record.impl
        return found

    def _judged(self, by_impl: dict[str, Value]) -> Value:
        first = next(iter(by_impl.values()))
        fastest = by_impl.get(self._fastest.get(first.record.op, ""))
        return fastest if fastest and first.metric.name != "latency_wall" else _least(by_impl)


def _least(by_impl: dict[str, Value]) -> Value:
    """The impl with the least of its metric; a compiled one only where there is no other."""
    return min(by_impl.values(), key=lambda value: (value.record.impl == "compiled", value.number))


def _size(record: Record) -> int | None:
    """The side of a square feature map; None where none applies, 0 for an oblong."""
    both = resolution(record)
    return (both[0] if both[0] == both[1] else 0) if both else None


def _as_poster(record: Record) -> bool:
    """Whether all axes but batch, threads and resolution are the poster's."""
    return all(record.axes.get(axis, value) == value for axis, value in POSTER_AXES.items())


def _spot(record: Record) -> _Spot:
    batch, threads = (_whole(record.axes.get(axis)) for axis in ("batch", "threads"))
    return _Spot(batch == POSTER_BATCH, batch, threads)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
