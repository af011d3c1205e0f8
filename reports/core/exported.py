"""What the formats for other services take from runs and comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import Metric, Run
from .arrange import device_names
from .tables import metric_status
from .verdicts import Comparison, Verdict


def measured(runs: list[Run]) -> Iterator[tuple[str, Metric]]:
    """Cases and their metrics that have a value; with several runs, the device stands before the case."""
    several = len(runs) > 1
    for run, device in zip(runs, device_names(runs), strict=True):
        for record in run.records:
            for metric in record.metrics:
                if _finite(metric.value) and metric_status(record, metric)[0] == "ok":
                    low, high = (x if _finite(x) else None for x in (metric.low, metric.high))
                    case = f"{device}: {record.case}" if several else record.case
                    yield case, replace(metric, low=low, high=high)


def moved(comparison: Comparison) -> Iterator[Verdict]:
    """The verdicts on timed metrics."""
    return (v for v in comparison.verdicts if v.p is not None and _finite(v.ratio) and _finite(v.new))


def as_json(content: Any) -> str:
    """Strict JSON, to be read by anyone."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
