"""The answer first: what each op costs, held against the baselines, in sentences and for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .. import FAILURES, STATUSES, Metric, Record, Run
from .arrange import BASELINES, PLACE_AXES, Arrangement, Entry, Pivot, Place, Series, View, divided, number, place_text
from .claims.judge import judge, verdict_counts
from .overview import Overview, overview, served
from .units import Scale, bounds, digits, quantity, with_bounds

_RESOLUTION = PLACE_AXES.index("resolution")
#: Failures named on the terminal; the report names all.
_MOST_NAMED = 20


@dataclass
class Cost:
    """What one op costs at the place of an answer.

    Args:
        ratios: by the label of a baseline, the value divided by the baseline's; the bounds of both are taken at their
            worst, so the ratio's are wide rather than narrow.
    """

    series: Series
    metric: Metric
    record: Record
    ratios: dict[str, Metric]

    @property
    def roof(self) -> str:
        return roof(self.record)


@dataclass
class Answer:
    """The headline of one suite: the fastest impl of each op, at the largest place where ops and baselines compare.

    Args:
        where: the place in words.
        costs: in rising order.
        baselines: labels of what the others are divided by.
        absent: ops that have no number there.
    """

    view: View
    where: str
    costs: list[Cost]
    baselines: list[str]
    absent: list[tuple[Series, Record]]


def answers(arranged: Arrangement) -> list[Answer]:
    """The headlines of one run, one for each suite that has a known view with values."""
    found = []
    for suite in arranged.suites:
        view = next((view for view in arranged.views(suite) if view.drawn), None)
        if view:
            found.append(_answer(view, arranged.pivot(view)))
    return found


def sentences(answer: Answer) -> Iterator[tuple[str, str]]:
    """For each op, its name and what is told of it."""
    for cost in answer.costs:
        told = answer.view.sentence.format(with_bounds(cost.metric))
        ratios = [f"{_ratio(ratio)} times {label}" for label, ratio in cost.ratios.items()]
        yield cost.series.label, ", ".join(filter(None, (told, " and ".join(ratios), cost.roof)))
    for series, record in answer.absent:
        yield series.label, ": ".join(filter(None, (_status(record), record.reason)))


def roof(record: Record) -> str:
    """`86 % of the copy roof`, where it was measured."""
    fraction = record.metric("roof_fraction")
    if fraction is None or fraction.value is None:
        return ""
    kind = record.settings.get("roof")
    name = f"{str(kind).rpartition(':')[2]} " if kind else ""
    return f"{quantity(fraction.name, fraction.unit, fraction.value)} of the {name}roof"


def failures(run: Run) -> list[Record]:
    return [record for record in run.records if record.status in FAILURES]


def counts(run: Run) -> str:
    """`48 ok, 3 skipped, 1 failed`."""
    number = Counter(record.status for record in run.records)
    known = [status for status in STATUSES if status in number]
    return ", ".join(f"{number[s]} {s.replace('_', ' ')}" for s in [*known, *sorted(set(number) - set(known))])


def terminal_summary(run: Run) -> str:
    """Plain text for the end of a run: overviews, answers, what failed, and the number of cases by status."""
    lines = []
    arranged = Arrangement([run])
    for suite in filter(served, arranged.suites):
        lines += [
            f"{suite} ({_common(arranged.suites[suite])})",
            *_overview_table(overview(arranged.suites[suite])),
            "",
        ]
    for answer in answers(arranged):
        head = f"{answer.view.title} ({answer.where})"
        if any(cost.metric.low is not None for cost in answer.costs):
            lines += [head, *_cost_table(answer)]
        else:
            told = (
                f"{c.series.label} {quantity(c.metric.name, c.metric.unit, number(c.metric))}" for c in answer.costs
            )
            lines.append(f"{head}: {', '.join(told)}")
        lines += [
            f"  {series.label}  {_status(record)}: {record.reason}"
            for series, record in answer.absent
            if record.status not in FAILURES
        ]
        lines.append("")
    failed = failures(run)
    if failed:
        lines.append(f"Failed: {len(failed)}")
        lines += [f"  {record.case}  {_status(record)}: {record.reason}" for record in failed[:_MOST_NAMED]]
        lines += [f"  and {len(failed) - _MOST_NAMED} more"] if len(failed) > _MOST_NAMED else []
        lines.append("")
    lines.append(f"claims of the poster: {verdict_counts(judge(run))}")
    lines.append(f"{len(run.records)} cases: {counts(run)}" if run.records else "no case was recorded")
    return "\n".join(lines)


def _answer(view: View, table: Pivot) -> Answer:
    place = _place(table)
    best: dict[tuple[str, str], tuple[Series, Metric]] = {}
    for series in table.columns:
        metric = table.value(place, series)
        key = (series.op, series.variant)
        if metric and (key not in best or number(metric) < number(best[key][1])):
            best[key] = (series, metric)
    of_op = {base: [found for found in best.values() if found[0].op == base] for base in BASELINES}
    bases = [min(found, key=lambda f: number(f[1])) for found in of_op.values() if found]
    costs = [
        Cost(
            series,
            metric,
            table.rows[place][series].record,
            {base.label: divided(metric, under) for base, under in bases if base != series and number(under) > 0},
        )
        for series, metric in sorted(best.values(), key=lambda found: (number(found[1]), found[0].rank))
    ]
    ops = {series.op for series, _ in best.values()}
    absent = [(series, table.rows[place][series].record) for series in table.columns if series in table.rows[place]]
    absent = [(series, record) for series, record in absent if series.op not in ops]
    baselines = [base.label for base, _ in bases if any(base.label in cost.ratios for cost in costs)]
    return Answer(view, place_text(place), costs, baselines, absent)


def _place(table: Pivot) -> Place:
    """The largest resolution with a baseline and another op, among the places that differ in nothing else.

    Of several such groups the one with most values is taken.
    """
    groups: dict[Place, list[Place]] = {}
    for place in table.rows:
        groups.setdefault(place[:_RESOLUTION], []).append(place)
    valued = {place: [s.op for s in table.columns if table.value(place, s)] for place in table.rows}
    group = max(groups.values(), key=lambda places: sum(len(valued[place]) for place in places))

    def comparable(place: Place) -> int:
        """2 with a baseline and another op, 1 with any value, else 0."""
        ops = set(valued[place])
        return 2 if ops & set(BASELINES) and ops - set(BASELINES) else min(1, len(ops))

    most = max(map(comparable, group))
    return [place for place in group if comparable(place) == most][-1]


def _ratio(ratio: Metric) -> str:
    return f"{digits(number(ratio))} {bounds(ratio, Scale(1.0, ''))}".rstrip()


def _status(record: Record) -> str:
    return record.status.replace("_", " ")


def _cost_table(answer: Answer) -> list[str]:
    bases = answer.baselines
    table = [["", "", *(f"x {base}" for base in bases), ""]]
    for cost in answer.costs:
        ratios = [digits(number(cost.ratios[base])) if base in cost.ratios else "" for base in bases]
        table.append([cost.series.label, with_bounds(cost.metric), *ratios, cost.roof])
    widths = _widths(table)
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def _overview_table(content: Overview) -> list[str]:
    """Aligned; names of metrics stand a word below the other, and their units below them."""
    names = [[*name.split("_"), *filter(None, [unit])] for name, unit in content.header]
    height = max(map(len, names))
    table = [*zip(*([""] * (height - len(words)) + words for words in names), strict=True), *content.rows]
    widths, words = _widths(table), content.words
    return [
        "  " + "  ".join([*map(str.ljust, row[:words], widths), *map(str.rjust, row[words:], widths[words:])])
        for row in table
    ]


def _common(entries: list[Entry]) -> str:
    """What all entries have in common: `cpu, batch 1, 224×224`."""
    places = {entry.place for entry in entries}
    common = [axis for i, axis in enumerate(PLACE_AXES) if len({place[i] for place in places}) == 1]
    return place_text(entries[0].place, common)


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]
