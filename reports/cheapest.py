"""The recommendation: `cheapest.csv`, the cheapest filter of each shape by latency, memory and parameters.

Of runs that have a suite which tells where filters come from, as `neighbours` and `sweep` do; see `core.cheapest`.
"""

from __future__ import annotations

import csv
import io

from . import Run
from .core.arrange import PLACE_AXES, Arrangement, axis_text
from .core.cheapest import choices

NAME = "cheapest"
ORDER = 16

#: A row for each filter that is cheapest or cannot be told from it; `value`, `low` and `high` are the cheapest's.
COLUMNS = (
    *("suite", *PLACE_AXES, "criterion", "op", "impl", "variant"),
    *("metric", "unit", "value", "low", "high", "baseline", "times_baseline"),
)


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    arranged = Arrangement(runs)
    found = [choice for suite in arranged.suites for choice in choices(arranged, suite)]
    if not found:
        return {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for choice in found:
        where = [axis_text(axis, value) for axis, value in zip(PLACE_AXES, choice.place, strict=True)]
        metric, (ratio, baseline) = choice.metric, choice.over or (None, "")
        price = metric.name, metric.unit, metric.value, metric.low, metric.high, baseline, ratio and ratio.value
        for series in choice.series:
            writer.writerow([choice.suite, *where, choice.criterion, *series, *price])
    return {"cheapest.csv": text.getvalue()}
