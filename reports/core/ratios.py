"""One metric over another."""

from __future__ import annotations

from .. import Metric


def divided(metric: Metric, base: Metric) -> Metric:
    """The ratio of two values; the bounds of both are taken at their worst, so its own are wide rather than narrow.

    Both have a value, and the base's is not 0; the ratio has bounds where both have them.
    """
    assert metric.value is not None
    assert base.value is not None
    low = high = None
    if metric.low is not None and metric.high is not None and base.low and base.high:
        low, high = metric.low / base.high, metric.high / base.low
    return Metric("ratio", "1", metric.value / base.value, low, high)
