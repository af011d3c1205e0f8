"""A recommendation: at each place the filter that is cheapest, by latency, by memory and by parameters.

Filters are compared that an op predicts from its input; those of `BASELINES` are learned and stand beside them as what
the price is divided by. An op whose filters are given, as those of `ddf_op`, does not pay for predicting them, and has
no part. What cannot be told apart, as the bounds overlap or exact values are equal, is named together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .. import Metric
from .arrange import BASELINES, PLACE_AXES, Arrangement, Entry, Place, Series, axis_text, divided, number
from .units import digits, quantity

#: Name in the table, and the metric, or what stands for it where that was not measured.
CRITERIA = {
    "latency": ("latency_device", "latency_wall"),
    "memory": ("peak_memory",),
    "parameters": ("params",),
}


@dataclass
class Choice:
    """The cheapest at one place by one criterion.

    Args:
        series: of the cheapest first, then of those that cannot be told from it.
        over: the price of the cheapest divided by the baseline's, and the baseline, if there is one.
    """

    suite: str
    place: Place
    criterion: str
    series: list[Series]
    metric: Metric
    over: tuple[Metric, str] | None

    @property
    def told(self) -> str:
        """`dw_weightnet/native 0.19 ms, 0.7 times dwconv`."""
        names = " or ".join(series.label for series in self.series)
        price = quantity(self.metric.name, self.metric.unit, number(self.metric))
        ratio = f", {digits(number(self.over[0]))} times {self.over[1]}" if self.over else ""
        return f"{names}: {price}{ratio}"


def choices(arranged: Arrangement, suite: str) -> list[Choice]:
    """By place and criterion, in that order; none for a suite that does not tell where filters come from."""
    places: dict[Place, list[Entry]] = {}
    for entry in arranged.suites[suite]:
        if entry.record.status == "ok" and "filter" in entry.record.settings:
            places.setdefault(entry.place, []).append(entry)
    return [
        choice
        for place, entries in places.items()
        for criterion in CRITERIA
        for choice in _choice(suite, place, criterion, entries)
    ]


def _choice(suite: str, place: Place, criterion: str, entries: list[Entry]) -> Iterator[Choice]:
    """One choice, or none where there are no two filters to choose from."""
    priced = [(entry, metric) for entry in entries if (metric := _price(entry, criterion))]
    rivals = [(e.series, m) for e, m in priced if e.record.settings["filter"] == "predicted"]
    if len({series.op for series, _ in rivals}) < 2:
        return
    rivals.sort(key=lambda rival: number(rival[1]))
    best = rivals[0][1]
    alike = [series for series, metric in rivals if _least(metric) <= _most(best)]
    if criterion == "parameters":  # which the impls of an op share
        alike = list(dict.fromkeys(series._replace(impl="") for series in alike))
    yield Choice(suite, place, criterion, alike, best, _over(best, priced))


def _least(metric: Metric) -> float:
    return number(metric) if metric.low is None else metric.low


def _most(metric: Metric) -> float:
    return number(metric) if metric.high is None else metric.high


def _over(price: Metric, priced: list[tuple[Entry, Metric]]) -> tuple[Metric, str] | None:
    """The price divided by that of the first baseline that has one, at its cheapest."""
    for op in BASELINES:
        prices = [metric for entry, metric in priced if entry.record.op == op and number(metric) > 0]
        if prices:
            return divided(price, min(prices, key=number)), op
    return None


def _price(entry: Entry, criterion: str) -> Metric | None:
    found = (entry.record.metric(name) for name in CRITERIA[criterion])
    return next((metric for metric in found if metric and metric.value is not None), None)


def recommendation(chosen: list[Choice]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a row a place, the axes that vary first."""
    places = list(dict.fromkeys(choice.place for choice in chosen))
    varying = [i for i in range(len(PLACE_AXES)) if len({place[i] for place in places}) > 1]
    told = {(choice.place, choice.criterion): choice.told for choice in chosen}
    rows = [
        [
            *(axis_text(PLACE_AXES[i], place[i]) for i in varying),
            *(told.get((place, criterion), "") for criterion in CRITERIA),
        ]
        for place in places
    ]
    return [*(PLACE_AXES[i] for i in varying), *CRITERIA], rows
