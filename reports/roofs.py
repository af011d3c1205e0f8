"""How near each case of the suite `latency` comes to both roofs of its own rounds: `roofs.md`.

The copy roof takes the time of a copy that moves as many bytes as the case must. The arithmetic roof takes the
operations of a case (`ops.Costs.operations`) at the rate of the measured multiply-adds (or products of matrices).
"""

from __future__ import annotations

from collections.abc import Iterator

from . import Record, Run
from .core.arrange import device_names
from .core.markup import escape, table
from .core.units import quantity

NAME = "roofs"
ORDER = 54
ON_REQUEST = True
FILE = "roofs.md"

HEADER = ("case", "layout", "k", "resolution", "time", "of the copy roof", "of the arithmetic roof")


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    parts = []
    for run, device in zip(runs, device_names(runs), strict=True):
        rows = list(_rows(run.records))
        if rows:
            parts.append(f"## {escape(device)}\n\n{table(HEADER, rows, numbers=3)}")
    return {FILE: "\n".join(parts)} if parts else {}


def _rows(records: list[Record]) -> Iterator[list[str]]:
    """A row for each case that was held against both roofs, forward alone."""
    for record in sorted((r for r in records if r.suite == "latency" and r.status == "ok"), key=_place):
        values = {m.name: m.value for m in record.metrics}
        time = values.get("latency_device") or values.get("latency_wall")
        copy, arithmetic = values.get("roof_copy"), values.get("roof_arithmetic")
        operations = values.get("operations")
        if not (time and copy and arithmetic and operations) or record.axes["direction"] != "forward":
            continue
        moved = (values["floor_bytes"] or 0) / copy
        operated = operations / arithmetic
        yield [
            f"{record.op}/{record.impl}",
            str(record.axes["layout"]),
            str(record.axes.get("kernel_size", "")),
            f"{record.axes['height']}×{record.axes['width']}",
            quantity("latency", "s", time),
            quantity("roof_fraction", "1", moved / time),
            quantity("roof_fraction", "1", operated / time),
        ]


def _place(record: Record) -> tuple[str, str, str, int, int]:
    axes = record.axes
    return record.op, record.impl, str(axes.get("layout")), int(axes.get("kernel_size", 0)), int(axes.get("height", 0))
