"""Bencher Metric Format, `bencher.json`: what `bencher run --adapter json --file bencher.json` reads.

A benchmark is a case, a measure is a metric, in SI base units and counts; https://bencher.dev/bmf.json has the schema.
"""

from __future__ import annotations

from . import Json, Run
from .core.exported import as_json, measured, moved
from .core.verdicts import Comparison

NAME = "bencher"
ORDER = 52
ON_REQUEST = True
FILE = "bencher.json"

#: Characters that Bencher allows in a benchmark's name and in a measure's.
_LONGEST_NAME, _LONGEST_MEASURE = 1024, 64


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    found: dict[str, Json] = {}
    for case, metric in measured(runs):
        _put(found, case, metric.name, metric.value, metric.low, metric.high)
    return {FILE: as_json(found)}


def serialize_comparison(comparison: Comparison) -> dict[str, str | bytes]:
    """The time of the new side, and its ratio to the base as `<metric>_ratio`."""
    found: dict[str, Json] = {}
    for verdict in moved(comparison):
        _put(found, verdict.case, verdict.metric, verdict.new)
        _put(found, verdict.case, f"{verdict.metric}_ratio", verdict.ratio, verdict.low, verdict.high)
    return {FILE: as_json(found)}


def _put(
    found: dict[str, Json],
    case: str,
    measure: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    numbers = {"value": value, "lower_value": low, "upper_value": high}
    known = {name: number for name, number in numbers.items() if number is not None}
    if "value" in known:
        found.setdefault(case[:_LONGEST_NAME], {})[measure[:_LONGEST_MEASURE]] = known
