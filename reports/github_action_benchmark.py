"""What github-action-benchmark reads, `github-action-benchmark.json`: its tool `customSmallerIsBetter`.

A metric of which more is better goes to `github-action-benchmark-bigger.json`, for `customBiggerIsBetter`, since the
action takes one of the two per file. Metrics of which neither is better are left out.
"""

from __future__ import annotations

from . import Json, Run
from .core.exported import as_json, measured, moved
from .core.verdicts import Comparison

NAME = "github-action-benchmark"
ORDER = 51
ON_REQUEST = True
FILES = {"less": "github-action-benchmark.json", "more": "github-action-benchmark-bigger.json"}


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    entries: dict[str, list[Json]] = {"less": [], "more": []}
    for case, metric in measured(runs):
        if metric.better in entries:
            own = {"name": f"{case} {metric.name}", "unit": metric.unit, "value": metric.value}
            entries[metric.better].append(own | _range(metric.low, metric.high))
    return {FILES[better]: as_json(some) for better, some in entries.items() if some or better == "less"}


def serialize_comparison(comparison: Comparison) -> dict[str, str | bytes]:
    """The ratio of each timed metric to the base's."""
    entries = [
        {
            "name": f"{verdict.case} {verdict.metric}",
            "unit": "times base",
            "value": verdict.ratio,
            **_range(verdict.low, verdict.high),
            "extra": f"{verdict.verdict}\n{comparison.new} against {comparison.base}",
        }
        for verdict in moved(comparison)
    ]
    return {FILES["less"]: as_json(entries)}


def _range(low: float | None, high: float | None) -> Json:
    return {} if low is None or high is None else {"range": f"{low:.4g} to {high:.4g}"}
