"""Records arranged for reading: which series (op, impl, variant) has which value at which place on the axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import Metric, Record, Run
from .tables import metric_status

#: The axes that make the place of a case. What else tells two cases of one op apart, `combine` for one, is its variant.
PLACE_AXES = (
    *("device", "dtype", "layout", "direction", "threads"),
    *("batch", "channels", "kernel_size", "stride", "dilation", "scale", "resolution"),
)
_IN_WORDS = {
    "threads": "threads {}",
    "batch": "batch {}",
    "channels": "{} channels",
    "kernel_size": "{0}×{0} taps",
    "stride": "stride {}",
    "dilation": "dilation {}",
    "scale": "scale {}",
}
#: Ops in the order of columns; others follow by name.
OPS = ("conv", "dwconv", "dyfilter", "dyfilter_dw", "ddf_op", "ddf")

#: What the others are held against.
BASELINES = ("dwconv", "conv", "bilinear")

#: Values of `PLACE_AXES`, in that order; None where an axis does not apply, (height, width) for the resolution.
Place = tuple[Any, ...]


@dataclass(frozen=True)
class View:
    """A metric that is worth a table of its own.

    Args:
        sentence: how its value is told.
        by_impl: whether impls of one op can differ in it.
        drawn: whether it is plotted.
        over: an op; values are divided by that of its best impl at the same place.
        formula: the metric that tells it by closed form, where nothing was measured.
        each: whether it is drawn against each axis that takes several values, as of points that differ in one axis.
    """

    suite: str
    metric: str
    title: str
    sentence: str = "{}"
    by_impl: bool = True
    drawn: bool = True
    over: str = ""
    formula: str = ""
    each: bool = False

    @property
    def name(self) -> str:
        """Of what it shows: the metric, or `latency_wall_over_dwconv`."""
        return f"{self.metric}_over_{self.over}" if self.over else self.metric


#: The first view of a suite whose metric occurs is its headline. A suite without views has a table for every metric.
VIEWS = (
    View("latency", "latency_device", "Latency, warm, device clock", "takes {}"),
    View("latency", "latency_wall", "Latency, warm, host clock", "takes {}"),
    View("latency", "latency_cold", "Latency, last-level cache flushed before each call", "takes {}"),
    View(
        "latency",
        "latency_device",
        "Latency over depthwise convolution's, device clock",
        "{} times",
        over="dwconv",
    ),
    View("latency", "latency_wall", "Latency over depthwise convolution's, host clock", "{} times", over="dwconv"),
    View("latency", "roof_fraction", "Share of the roof that binds", drawn=False),
    View("params", "params", "Parameters", "has {} parameters", by_impl=False),
    View("flops", "macs", "Multiply-accumulates of one call", "needs {}", by_impl=False),
    View(
        *("memory", "peak_memory", "Runtime memory, beyond inputs and parameters", "takes {}"),
        formula="peak_memory_formula",
    ),
    View("memory", "saved_memory", "Memory kept for backward", "keeps {}"),
    View(
        *("memory", "filter_memory", "Memory of generated filters", "generates filters of {}"),
        formula="filter_memory_formula",
    ),
    *(
        View(suite, *told, each=suite != "neighbours")
        for suite in ("neighbours", "sweep", "upsampling")
        for told in (
            ("latency_device", "Latency, warm, device clock", "takes {}"),
            ("latency_wall", "Latency, warm, host clock", "takes {}"),
        )
    ),
    *(
        view
        for suite in ("neighbours", "sweep", "upsampling")
        for view in (
            View(
                *(suite, "peak_memory", "Runtime memory, beyond inputs and parameters", "takes {}"),
                formula="peak_memory_formula",
                drawn=suite != "sweep",
                each=suite == "upsampling",
            ),
            View(suite, "params", "Parameters", "has {} parameters", by_impl=False, drawn=suite == "neighbours"),
            View(suite, "macs", "Multiply-accumulates of one call", "needs {}", by_impl=False, drawn=False),
        )
    ),
    View("detail", "rmse", "Root of the mean square error of depth", "errs by {}"),
    View("detail", "rmse_edges", "The same next to edges of the depth", "errs by {}", drawn=False),
    View("detail", "params", "Parameters", "has {} parameters", drawn=False),
    View("profile", "roof_fraction", "Share of the roof that binds", "reaches {}", drawn=False),
    View("profile", "operators", "Operators of one call", "runs {} operators", drawn=False),
    View("profile", "operator_bytes", "Bytes that the operators of one call read and write", "moves {}", drawn=False),
    View("profile", "launches", "Kernels of one call", "launches {} kernels", drawn=False),
    View("profile", "energy", "Energy of one call", "takes {}", drawn=False),
    View("complexity", "latency_device_n1c8k3", "The smallest call: one pixel, 8 channels, device clock", drawn=False),
    View("complexity", "latency_wall_n1c8k3", "The smallest call: one pixel, 8 channels, host clock", drawn=False),
)


class Series(NamedTuple):
    """What is compared: a line of a plot, a column of a table. `impl` is empty where all impls share it."""

    op: str
    impl: str
    variant: str = ""

    @property
    def label(self) -> str:
        return " ".join(filter(None, (f"{self.op}/{self.impl}" if self.impl else self.op, self.variant)))

    @property
    def rank(self) -> tuple[int, str, str, str]:
        """Sorts columns."""
        return (OPS.index(self.op) if self.op in OPS else len(OPS), self.op, self.impl, self.variant)


class Entry(NamedTuple):
    """A record with its place among the others."""

    record: Record
    place: Place
    series: Series


class Cell(NamedTuple):
    """A record in a table of one metric.

    Args:
        metric: None if it has no such number, or one that is no result (its case failed later).
        status: why there is no number, in words.
        formula: the number by closed form, where there is no other.
    """

    record: Record
    metric: Metric | None
    status: str
    formula: Metric | None = None


@dataclass
class Pivot:
    """One metric of one suite.

    Args:
        unit: of the metric.
        rows: cells by series by place, in rising order of places.
        columns: all series, in order.
        varying: the axes in which the rows differ.
    """

    metric: str
    unit: str
    rows: dict[Place, dict[Series, Cell]]
    columns: list[Series]
    varying: list[str]

    def value(self, place: Place, series: Series) -> Metric | None:
        """The metric there, or None."""
        cell = self.rows[place].get(series)
        return cell.metric if cell else None


def device_names(runs: list[Run]) -> list[str]:
    """What to call each run's device: its name, and the run where two have the same."""
    names = [
        str(run.environment.get("model") or (run.environment.get("device") or {}).get("name") or "") for run in runs
    ]
    labels = [str(run.environment.get("run") or run.path.name) for run in runs]
    return [
        name if name and names.count(name) == 1 else f"{name} ({label})" if name else label
        for name, label in zip(names, labels, strict=True)
    ]


def resolution(record: Record) -> tuple[int, int] | None:
    """Height and width, where both apply."""
    height, width = record.axes.get("height"), record.axes.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


class Arrangement:
    """All records of some runs, with their places and series, by suite; tables made of them are kept."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.suites = {suite: _entries(runs, suite) for suite in dict.fromkeys(s for run in runs for s in run.suites())}
        self._pivots: dict[View, Pivot] = {}

    def views(self, suite: str) -> list[View]:
        """The views of a suite for which there are records."""
        present = {m.name: None for entry in self.suites[suite] for m in entry.record.metrics if m.value is not None}
        known = [view for view in VIEWS if view.suite == suite]
        if known:
            return [view for view in known if view.metric in present]
        return [View(suite, metric, metric, drawn=False) for metric in present]

    def pivot(self, view: View) -> Pivot:
        """The table of one metric; where the impls of an op cannot differ in it, each op is one series."""
        if view not in self._pivots:
            self._pivots[view] = _pivot(self.suites[view.suite], view)
        return self._pivots[view]


def _entries(runs: list[Run], suite: str) -> list[Entry]:
    several = len(runs) > 1
    found = [
        (record, f"{record.device}: {name}" if several else record.device)
        for run, name in zip(runs, device_names(runs), strict=True)
        for record in run.records
        if record.suite == suite
    ]
    variants = _variant_axes(record for record, _ in found)
    return [
        Entry(record, _place(record, device), Series(record.op, record.impl, _variant(record, variants[record.op])))
        for record, device in found
    ]


def _pivot(entries: list[Entry], view: View) -> Pivot:
    rows: dict[Place, dict[Series, Cell]] = {}
    unit = ""
    for record, place, own in entries:
        series = own if view.by_impl else own._replace(impl="")
        metric = record.metric(view.metric)
        row = rows.setdefault(place, {})
        cell = _cell(record, metric, view.formula)
        if series not in row or cell.metric:
            row[series] = cell
        unit = metric.unit if metric else unit
    rows = {place: rows[place] for place in sorted(rows, key=_sortable) if _belongs(rows[place])}
    columns = sorted({series for row in rows.values() for series in row}, key=lambda s: s.rank)
    varying = [axis for i, axis in enumerate(PLACE_AXES) if len({place[i] for place in rows}) > 1]
    if view.over:
        rows, unit = {place: _relative(row, view) for place, row in rows.items()}, ""
    return Pivot(view.name, unit, rows, columns, varying)


def _belongs(row: dict[Series, Cell]) -> bool:
    """Whether the metric means anything there: a case has it, or none came far enough to tell."""
    return any(cell.metric for cell in row.values()) or all(cell.status for cell in row.values())


def _relative(row: dict[Series, Cell], view: View) -> dict[Series, Cell]:
    """A row divided by the best cell of the view's baseline, without numbers if there is none."""
    bases = [cell.metric for series, cell in row.items() if series.op == view.over and cell.metric]
    base = min(bases, key=number, default=None)
    if base is None or not number(base):
        return {series: cell._replace(metric=None) for series, cell in row.items()}
    return {
        series: cell._replace(metric=cell.metric and divided(cell.metric, base, view.name))
        for series, cell in row.items()
    }


def divided(metric: Metric, base: Metric, name: str = "ratio") -> Metric:
    """A metric as a multiple of another; the bounds of both are taken at their worst."""
    if metric is base:
        return Metric(name, "", 1.0)
    low = high = None
    if metric.low is not None and metric.high is not None and base.low and base.high:
        low, high = metric.low / base.high, metric.high / base.low
    return Metric(name, "", number(metric) / number(base), low, high)


def number(metric: Metric) -> float:
    """The value of a metric of which it is known that there is one."""
    assert metric.value is not None
    return metric.value


def _cell(record: Record, metric: Metric | None, formula: str) -> Cell:
    status = record.status if metric is None else metric_status(record, metric)[0]
    if status != "ok":
        return Cell(record, None, status.replace("_", " "), record.metric(formula))
    return Cell(record, metric if metric and metric.value is not None else None, "")


def axis_text(axis: str, value: Any) -> str:
    """A value of an axis, short: `56×56`, `float32`."""
    return "" if value is None else "{}×{}".format(*value) if axis == "resolution" else str(value)


def place_text(place: Place, axes: Iterable[str] = PLACE_AXES) -> str:
    """A place in words; a stride or dilation of 1 goes without saying."""
    wanted = set(axes)
    return ", ".join(
        _IN_WORDS.get(axis, "{}").format(axis_text(axis, value))
        for axis, value in zip(PLACE_AXES, place, strict=True)
        if axis in wanted and value is not None and not (axis in ("stride", "dilation") and value == 1)
    )


def _place(record: Record, device: str) -> Place:
    known = {"device": device, "resolution": resolution(record)}
    return tuple(known[axis] if axis in known else record.axes.get(axis) for axis in PLACE_AXES)


def _variant_axes(records: Iterable[Record]) -> Mapping[str, list[str]]:
    """By op, the axes outside `PLACE_AXES` that take several values."""
    values: dict[str, dict[str, set[Any]]] = {}
    for record in records:
        by_axis = values.setdefault(record.op, {})
        for axis, value in record.axes.items():
            if axis not in PLACE_AXES and axis not in ("height", "width") and isinstance(value, int | float | str):
                by_axis.setdefault(axis, set()).add(value)
    return {op: sorted(axis for axis, seen in axes.items() if len(seen) > 1) for op, axes in values.items()}


def _variant(record: Record, axes: list[str]) -> str:
    values = ((axis, record.axes.get(axis)) for axis in axes)
    return " ".join(v if isinstance(v, str) else f"{axis}={v}" for axis, v in values if v is not None)


def _sortable(place: Place) -> tuple[Any, ...]:
    """Numbers and resolutions by size, then text, then nothing."""
    return tuple(map(_sort_key, place))


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, tuple):
        return (0, value[0] * value[1], "")
    return (2, 0, "") if value is None else (1, 0, value) if isinstance(value, str) else (0, value, "")
