"""The table of a suite that has no views: a row a case, a column a metric."""

from __future__ import annotations

from dataclasses import dataclass

from .arrange import PLACE_AXES, VIEWS, Entry, axis_text
from .units import common_scale, shown


@dataclass
class Overview:
    """Cells in words.

    Args:
        header: pairs of a name and a unit, which may be empty.
        words: how many columns stand before the numbers.
    """

    header: list[tuple[str, str]]
    rows: list[list[str]]
    words: int


def served(suite: str) -> bool:
    """Whether the suite is told by this table."""
    return not any(view.suite == suite for view in VIEWS)


def overview(entries: list[Entry]) -> Overview:
    """The ops in order of appearance; numbers of one column share a unit."""
    found = {metric.name: metric for entry in entries for metric in entry.record.metrics if metric.value is not None}
    scales = {}
    for name, metric in found.items():
        values = [m.value for e in entries if (m := e.record.metric(name)) and m.value is not None]
        scales[name] = common_scale(name, metric.unit, values)
    varying = [i for i in range(len(PLACE_AXES)) if len({entry.place[i] for entry in entries}) > 1]
    ops = list(dict.fromkeys(entry.record.op for entry in entries))
    rows = []
    for record, place, series in sorted(entries, key=lambda entry: ops.index(entry.record.op)):
        where = [axis_text(PLACE_AXES[i], place[i]) for i in varying]
        metrics = {name: record.metric(name) for name in scales}
        cells = [
            shown(metric.value, scales[name]) if metric and metric.value is not None else record.status
            for name, metric in metrics.items()
        ]
        rows.append([series._replace(impl="").label, *where, *cells])
    header = [("case", ""), *((PLACE_AXES[i], "") for i in varying)]
    header += [(name, scale.unit) for name, scale in scales.items()]
    return Overview(header, rows, 1 + len(varying))
