"""Devices side by side: `devices.md` and `devices.csv`, where several runs are rendered together.

A row is a case in one metric, a column a device; a factor is a device's value over that of the first. The metrics are
those worth a picture: latencies, memory and counts.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import Metric, Record, Run
from .core.arrange import Arrangement, View, device_names, divided
from .core.markup import escape, table
from .core.tables import metric_status
from .core.units import with_bounds

NAME = "devices"
ORDER = 15

_MOST_ROWS = 200
_TITLE = """\
# Devices side by side

After a value stand its 95 % bounds; a factor is the device's value over that of the first device, with the bounds of
both at their worst. Each device was measured by itself.
"""


@dataclass(frozen=True)
class Cell:
    """What one device has of a case: a metric, or why there is none."""

    metric: Metric | None
    status: str
    factor: Metric | None = None


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    if len(runs) < 2:
        return {}
    arranged, devices = Arrangement(runs), device_names(runs)
    views = [view for suite in arranged.suites for view in arranged.views(suite) if view.drawn and not view.over]
    found = [(view, rows) for view in views if (rows := _rows(runs, view))]
    return {"devices.md": _markdown(devices, found), "devices.csv": _csv(devices, found)}


def _rows(runs: Sequence[Run], view: View) -> dict[str, list[Cell]]:
    """The cases that several devices have, by their id without the kind of device."""
    records: dict[str, dict[int, Record]] = {}
    for number, run in enumerate(runs):
        for record in run.records:
            if record.suite == view.suite:
                records.setdefault(re.sub("@[a-z]+", "", record.case, count=1), {})[number] = record
    rows = {}
    for case, own in records.items():
        cells = [_cell(own.get(number), view.metric) for number in range(len(runs))]
        if len(own) > 1 and any(cell.metric for cell in cells):
            rows[case] = [_held(cell, cells[0]) for cell in cells]
    return rows


def _cell(record: Record | None, name: str) -> Cell:
    if record is None:
        return Cell(None, "")
    metric = record.metric(name)
    status = metric_status(record, metric)[0] if metric else record.status
    return Cell(metric if status == "ok" and metric and metric.value is not None else None, status)


def _held(cell: Cell, base: Cell) -> Cell:
    """The cell with its factor over the base."""
    if not (cell.metric and base.metric and base.metric.value):
        return cell
    return Cell(cell.metric, cell.status, divided(cell.metric, base.metric))


def _markdown(devices: list[str], found: list[tuple[View, dict[str, list[Cell]]]]) -> str:
    parts = [_TITLE]
    header = ["case", devices[0], *(part for name in devices[1:] for part in (name, "factor"))]
    for view, rows in found:
        body = [[case.partition(":")[2], *_texts(cells)] for case, cells in list(rows.items())[:_MOST_ROWS]]
        parts += [f"## {escape(view.title)}\n", table(header, body, numbers=len(header) - 1)]
        if len(rows) > _MOST_ROWS:
            parts.append(f"and {len(rows) - _MOST_ROWS} more rows, see [devices.csv](devices.csv)\n")
    return "\n".join(parts)


def _texts(cells: list[Cell]) -> Iterator[str]:
    for number, cell in enumerate(cells):
        yield with_bounds(cell.metric) if cell.metric else cell.status.replace("_", " ")
        if number:
            yield with_bounds(cell.factor) if cell.factor else ""


def _csv(devices: list[str], found: list[tuple[View, dict[str, list[Cell]]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("case", "metric", "device", "unit", "value", "low", "high", "status", "factor")
    writer.writerow([*columns, "factor_low", "factor_high"])
    for view, rows in found:
        for case, cells in rows.items():
            for device, cell in zip(devices, cells, strict=True):
                value, factor = ([m.value, m.low, m.high] if m else [None] * 3 for m in (cell.metric, cell.factor))
                unit = cell.metric.unit if cell.metric else ""
                writer.writerow([case, view.metric, device, unit, *value, cell.status, *factor])
    return text.getvalue()
