"""Tidy CSV: `tables/<suite>.csv`, one metric a row, in SI base units; see `core.tables`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from . import Record, Run
from .core.tables import rows

NAME = "csv"
ORDER = 10


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    records = [record for run in runs for record in run.records]
    suites = dict.fromkeys(record.suite for record in records)
    return {f"tables/{suite}.csv": _csv(r for r in records if r.suite == suite) for suite in suites}


def _csv(records: Iterable[Record]) -> str:
    columns, content = rows(records)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(content)
    return text.getvalue()
