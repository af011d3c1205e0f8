"""The first sentences of a report: DDF against the baselines at each resolution, and the share of the roofs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .. import Metric, Run
from .arrange import PLACE_AXES, Arrangement, Pivot, Place, Series, View, axis_text, divided, number, place_text
from .claims.judge import Judgement, verdict_counts
from .units import Scale, bounds, digits, quantity

_RESOLUTION = PLACE_AXES.index("resolution")
#: Who is held against whom.
_PAIRS = (("ddf_op", "dwconv"), ("ddf_op", "conv"), ("ddf", "conv"), ("ddf", "dwconv"))
#: Of places that differ in more than the resolution, so many have sentences of their own.
_MOST = 4


@dataclass
class Against:
    """An op held against a baseline at each resolution, both by their fastest impl.

    Args:
        ratios: by resolution in words, the op's latency over the baseline's; bounds take both values at their worst.
    """

    op: str
    base: str
    ratios: dict[str, Metric]

    def where(self, word: str) -> list[str]:
        """The resolutions at which it is `faster`, `slower` or `not told apart`."""
        return [place for place, ratio in self.ratios.items() if _decided(ratio) == word]

    @property
    def sentence(self) -> str:
        """`ddf/native takes 0.202 times as long as conv/torch at 7×7, 1.3 at 14×14: faster at 7×7, slower at 14×14.`"""
        found = {word: self.where(word) for word in ("faster", "slower", "not told apart")}
        (first, ratio), *others = self.ratios.items()
        if others:
            values = [f"{digits(number(ratio))} times as long as {self.base} at {first}"]
            values += [f"{digits(number(each))} at {place}" for place, each in others]
            told = "; ".join(f"{word} {_where(places, self.ratios)}" for word, places in found.items() if places)
        else:
            values = [
                f"{digits(number(ratio))} {bounds(ratio, Scale(1.0, ''))} times as long as {self.base} at {first}"
            ]
            told = _decided(ratio)
        return f"{self.op} takes {', '.join(values)}: {told}."


@dataclass
class Headline:
    """What one run found of latency at places that differ in the resolution alone.

    Args:
        where: what the places have in common, in words.
        against: the comparisons.
        roofs: the share of the binding roof, in sentences.
    """

    view: View
    where: str
    against: list[Against]
    roofs: list[str]


def headlines(arranged: Arrangement) -> list[Headline]:
    """The headlines of one run, the fullest place first; none where no baseline stands beside DDF."""
    view = next((v for v in arranged.views("latency") if v.drawn), None) if "latency" in arranged.suites else None
    if view is None:
        return []
    table = arranged.pivot(view)
    groups: dict[Place, list[Place]] = {}
    for place in table.rows:
        groups.setdefault(_without_resolution(place), []).append(place)
    found = [_headline(view, table, common, places) for common, places in groups.items()]
    found = [headline for headline in found if headline.against]
    return sorted(found, key=lambda h: -sum(len(a.ratios) for a in h.against))[:_MOST]


def claims_sentence(judged: Sequence[Judgement]) -> str:
    """`39 of 164 published claims can be tested by this run: 30 reproduced, 7 exceeded, 2 not reproduced.`"""
    tested = [judgement for judgement in judged if judgement.tested]
    if not tested:
        return f"None of {len(judged)} published claims can be tested by this run."
    counts = [part for part in verdict_counts(tested).split(", ") if not part.startswith("0 ")]
    told = ", ".join("undecided".join(part.rsplit("not testable", 1)) for part in counts)
    return f"{len(tested)} of {len(judged)} published claims can be tested by this run: {told}."


def device_sentence(run: Run, device: str) -> str:
    """What was measured on: `AMD EPYC, torch 2.13.0, python 3.11.7`."""
    software = run.environment.get("software") or {}
    versions = [f"{name} {software[name]}" for name in ("torch", "cuda", "python") if software.get(name)]
    return ", ".join([device, *versions])


def _headline(view: View, table: Pivot, common: Place, places: list[Place]) -> Headline:
    best = {place: _fastest(table, place) for place in places}
    against = []
    for op, base in _PAIRS:
        both = [place for place in places if op in best[place] and base in best[place]]
        ratios = {
            axis_text("resolution", place[_RESOLUTION]) or "this shape": divided(
                best[place][op][1], best[place][base][1]
            )
            for place in both
            if number(best[place][base][1]) > 0
        }
        if ratios:
            names = [_named(best[place][which][0] for place in both) for which in (op, base)]
            against.append(Against(names[0], names[1], ratios))
    return Headline(view, place_text(common), against, _roofs(table, places, best))


def _fastest(table: Pivot, place: Place) -> dict[str, tuple[Series, Metric]]:
    """By op, its fastest impl there."""
    found: dict[str, tuple[Series, Metric]] = {}
    for series in table.columns:
        metric = table.value(place, series)
        if metric and (series.op not in found or number(metric) < number(found[series.op][1])):
            found[series.op] = (series, metric)
    return found


def _roofs(table: Pivot, places: list[Place], best: dict[Place, dict[str, tuple[Series, Metric]]]) -> list[str]:
    sentences = []
    for op in dict.fromkeys(op for pair in _PAIRS for op in pair):
        shares, names = [], []
        for place in places:
            if op in best[place]:
                series = best[place][op][0]
                share = table.rows[place][series].record.metric("roof_fraction")
                if share and share.value is not None:
                    shares.append(share.value)
                    names.append(series)
        if shares:
            lowest, highest = (quantity("roof_fraction", "1", value) for value in (min(shares), max(shares)))
            span = highest if lowest == highest else f"{lowest.removesuffix(' %')} to {highest}"
            sentences.append(f"{_named(names)} reaches {span} of the roof that binds.")
    return sentences


def _decided(ratio: Metric) -> str:
    low, high = (ratio.low, ratio.high) if ratio.low is not None and ratio.high is not None else (None, None)
    if low is None or high is None or low <= 1 <= high:
        return "not told apart"
    return "faster" if high < 1 else "slower"


def _named(series: Iterable[Series]) -> str:
    """`ddf/native`, or `ddf (native, compiled)` where the fastest impl is not the same everywhere."""
    different = sorted(set(series), key=lambda s: s.rank)
    if len(different) == 1:
        return different[0].label
    return f"{different[0].op} ({', '.join(s._replace(op='').label.removeprefix('/') for s in different)})"


def _where(places: Sequence[str], among: Iterable[str]) -> str:
    """`everywhere`, or `at 7×7, 14×14`; of three or more that follow one another, `at 7×7 to 56×56`."""
    order = list(among)
    if len(places) == len(order):
        return "everywhere"
    steps = [order.index(place) for place in places]
    if len(places) > 2 and all(b - a == 1 for a, b in pairwise(steps)):
        return f"at {places[0]} to {places[-1]}"
    return f"at {', '.join(places)}"


def _without_resolution(place: Place) -> Place:
    return tuple(None if i == _RESOLUTION else value for i, value in enumerate(place))
