"""The tidy table: one metric a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .. import Metric, Record

if TYPE_CHECKING:
    import pandas

#: The columns every table begins with.
COLUMNS = [
    *("suite", "op", "impl", "device", "dtype", "layout", "direction"),
    *("batch", "channels", "height", "width", "kernel_size", "stride", "dilation", "combine"),
    *("metric", "unit", "value", "low", "high", "status", "reason"),
]
_METRIC = COLUMNS.index("metric")
_LAST = ["case", "run"]
_COUNTS = ("1", "B", "MAC")
_NO_METRIC = Metric("", "", None)


def rows(records: Iterable[Record]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: one row per metric, in SI base units and counts; a record without any has one row.

    The columns are `COLUMNS`, then every further axis that occurs in alphabetical order, then the case and the run.
    What does not apply is None, and integers are integers.
    """
    records = list(records)
    plain = {name for record in records for name, value in record.axes.items() if isinstance(value, int | float | str)}
    columns = [*COLUMNS, *sorted(plain - {*COLUMNS, *_LAST}), *_LAST]
    return columns, [row for record in records for row in _rows(record, columns)]


def frame(records: Iterable[Record]) -> pandas.DataFrame:
    """`rows` as a data frame of plain Python values."""
    import pandas

    columns, content = rows(records)
    return pandas.DataFrame(content, columns=columns, dtype=object)


def metric_status(record: Record, metric: Metric) -> tuple[str, str]:
    """Status and reason of one metric: its own, or else the record's."""
    return (metric.status, metric.reason or "") if metric.status else (record.status, metric.reason or record.reason)


def _rows(record: Record, columns: list[str]) -> Iterator[list[Any]]:
    own = {
        "suite": record.suite,
        "op": record.op,
        "impl": record.impl,
        "device": record.device,
        "case": record.case,
        "run": record.run,
    }
    cells = {**record.axes, **own}
    before = [cells.get(column) for column in columns[:_METRIC]]
    after = [cells.get(column) for column in columns[len(COLUMNS) :]]
    for metric in record.metrics or (_NO_METRIC,):
        numbers = [metric.value, metric.low, metric.high]
        if metric.unit in _COUNTS:
            numbers = [int(n) if isinstance(n, float) and n.is_integer() else n for n in numbers]
        yield [*before, metric.name, metric.unit, *numbers, *metric_status(record, metric), *after]
