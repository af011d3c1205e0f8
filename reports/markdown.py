"""Markdown: `report.md`, the answer first, and `tables/<suite>.md`, all of a suite scaled for reading."""

from __future__ import annotations

from collections.abc import Iterable

from . import FAILURES, Run
from .core.arrange import (
    PLACE_AXES,
    Arrangement,
    Entry,
    Pivot,
    Place,
    Series,
    axis_text,
    device_names,
)
from .core.cheapest import choices, recommendation
from .core.claims.judge import Judgement, judge, verdict_counts
from .core.claims.poster import unclaimed
from .core.growth import growths
from .core.growth_told import FIT_HEADER, SLOPE_HEADER, fit_rows, slope_rows
from .core.markup import code, escape, table
from .core.operators import OPERATORS, operator_rows
from .core.overview import overview, served
from .core.pictures import DETAIL_PATH, GROWTH_PATH, Picture, drawn_growths, pictures
from .core.roofline import SUITE, rooflines
from .core.sections import (
    COUNTERS,
    LACKING,
    caption,
    differences,
    environment,
    lacking,
    ours,
    published,
    run_command,
    run_name,
    untested,
    warnings,
)
from .core.summary import answers, counts, sentences
from .core.units import Scale, bounds, common_scale, shown, with_bounds

NAME = "markdown"
ORDER = 30

#: Rows of one table in the report and in `tables/`; the CSV has all.
_MOST_ROWS = 40
_MOST_DETAILS = 1000
_FITS = """\
Counted as the op runs and fitted in rational numbers: n pixels of one sample, c channels, k taps along a side; memory
in bytes. The residual is the largest difference of a shape; 0 is exact.
"""
_SLOPES = """\
d log(quantity) / d log(n, c or k) with 95 % bounds, beside the slope of the closed form over the same points: of the
multiply-accumulates for latency, of generated filters and output for memory. A call of less than 4 times the smallest
call of its op is mostly overhead and left out.
"""
_CHEAPEST = """\
By latency, memory beyond inputs and parameters, and parameters. Filters that cannot be told apart, as their bounds
overlap or their counts are equal, are named together, the cheapest first, whose price is told. Operators whose filters
are given, as of ddf_op, do not pay for predicting them and have no part. [cheapest.csv](cheapest.csv) has the same.
"""
_INDEX = {axis: i for i, axis in enumerate(PLACE_AXES)}


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    arranged = Arrangement(runs)
    captions = {suite: [f"{escape(said)}\n" for said in caption(entries)] for suite, entries in arranged.suites.items()}
    files: dict[str, str | bytes] = {"report.md": _report(arranged, captions)}
    for suite in arranged.suites:
        files[f"tables/{suite}.md"] = "\n".join([f"# {escape(suite)}\n", *captions[suite], *_tables(arranged, suite)])
    return files


def _report(arranged: Arrangement, captions: dict[str, list[str]]) -> str:
    runs = arranged.runs
    drawn, left_out = pictures(arranged)
    everything = [entry for entries in arranged.suites.values() for entry in entries]
    parts = [f"# {escape('ddfbench: ' + ', '.join(map(run_name, runs)))}\n"]
    judged = [(device, judge(run)) for run, device in zip(runs, device_names(runs), strict=True)]
    for run, (device, held) in zip(runs, judged, strict=True):
        parts += _answers(run, device, arranged if len(runs) == 1 else Arrangement([run]))
        parts.append(f"**Claims of the poster**: {verdict_counts(held)}.\n")
    parts += _environment(runs)
    parts += _claims(judged)
    for suite in arranged.suites:
        parts += [f"## {escape(suite)}\n", *captions[suite]]
        parts += _section(arranged, suite, [picture for picture in drawn if picture.suite == suite])
    if left_out:
        parts.append(f"{left_out} more combinations of axes are not drawn; their values are in the tables.\n")
    parts += _without_numbers("Failed", (e for e in everything if e.record.status in FAILURES))
    parts += _without_numbers("Not measured", (e for e in everything if e.record.status not in FAILURES))
    parts += ["## How to reproduce\n", *(code(run_command(run)) for run in runs)]
    return "\n".join(parts)


def _tables(arranged: Arrangement, suite: str) -> list[str]:
    """A table per view, or the overview, then every metric of every case."""
    parts = [_overview(arranged.suites[suite])] if served(suite) else []
    for view in arranged.views(suite) if not parts else []:
        parts += [f"## {escape(view.title)}\n", _pivot_table(arranged.pivot(view), _MOST_DETAILS)]
    return [*parts, "## All metrics\n", _details(arranged.suites[suite])]


def _answers(run: Run, device: str, arranged: Arrangement) -> list[str]:
    """What one run found, computed from its records."""
    parts = []
    for answer in answers(arranged):
        where = ", ".join(filter(None, (device, answer.where)))
        parts.append(f"**{escape(answer.view.title)}** ({escape(where)}):\n")
        parts.append("".join(f"- **{escape(name)}** {escape(told)}\n" for name, told in sentences(answer)))
    if parts:
        parts.append("In brackets stand 95 % bounds; those of a ratio take the bounds of both values at their worst.\n")
    return [*parts, f"{len(run.records)} cases: {counts(run)}.\n" if run.records else "No case was recorded.\n"]


def _claims(judged: list[tuple[str, list[Judgement]]]) -> list[str]:
    """The poster's claims by device: what was tested one by one, the others by what keeps them from it."""
    parts = ["## Claims\n"]
    for device, held in judged:
        parts.append(f"{escape(device)}: {verdict_counts(held)}, of {len(held)} claims of the poster.\n")
        tested = [judgement for judgement in held if judgement.tested]
        for source in dict.fromkeys(judgement.claim.source for judgement in tested):
            rows = [_held(judgement) for judgement in tested if judgement.claim.source == source]
            title = escape(source[0].upper() + source[1:])
            parts += [f"### {title}\n", table(["claim", "published", "ours", "verdict", "why"], rows)]
        parts += _untested([judgement for judgement in held if not judgement.tested])
    parts.append(
        "Of an order the ratio is shown. [claims.csv](claims.csv) has every claim with our value and the command that "
        f"tests it, docs/claims.md the rules. No claim is made of the {' and the '.join(unclaimed())}: these cells are "
        "not the poster's own.\n"
    )
    return parts


def _held(judgement: Judgement) -> list[str]:
    claim, verdict = judgement.claim, judgement.finding.verdict.replace("_", " ")
    return [claim.statement, published(claim), ours(judgement), verdict, judgement.why]


def _untested(held: list[Judgement]) -> list[str]:
    """How many claims of each kind have the same reason."""
    rows = list(untested(held))
    return ["### Not testable by this run\n", table(["claims", "why", "of"], rows)] if rows else []


def _environment(runs: list[Run]) -> list[str]:
    """What `run.json` says, a column a run, and its warnings."""
    said = [f"- Warning: {escape(warning)}\n" for run in runs for warning in warnings(run)]
    return ["## Environment\n", *said, table(["", *map(run_name, runs)], environment(runs))]


def _section(arranged: Arrangement, suite: str, drawn: list[Picture]) -> list[str]:
    """The tables and pictures of a suite in the report."""
    parts = [_overview(arranged.suites[suite])] if served(suite) else []
    for view in arranged.views(suite) if not parts else []:
        parts += [f"### {escape(view.title)}\n", _pivot_table(arranged.pivot(view), _MOST_ROWS)]
        for picture in drawn:
            if picture.metric == view.name:
                alt = escape(f"{picture.title}: {picture.where}")
                parts.append(f"[![{alt}]({picture.path}.png)]({picture.path}.svg)\n")
    parts += _recommendation(arranged, suite)
    scales = {e.record.axes["scale"] for e in arranged.suites[suite] if "pictures" in e.record.settings}
    for drawing in map(DETAIL_PATH.format, sorted(scales)):
        parts.append(f"[![guide, low resolution, each method, truth]({drawing}.png)]({drawing}.svg)\n")
    if suite == "complexity":
        parts += _growth(arranged.runs)
    if suite == SUITE:
        parts += _profile(arranged)
    parts += _differences(arranged.suites[suite])
    parts.append(f"All metrics: [tables/{suite}.md](tables/{suite}.md), [tables/{suite}.csv](tables/{suite}.csv).\n")
    return parts


def _recommendation(arranged: Arrangement, suite: str) -> list[str]:
    """The cheapest filter of each shape."""
    chosen = choices(arranged, suite)
    if not chosen:
        return []
    header, rows = recommendation(chosen)
    return ["### The cheapest filter that is predicted from its input\n", _CHEAPEST, table(header, rows)]


def _profile(arranged: Arrangement) -> list[str]:
    """The rooflines, and the operators that take longest."""
    parts = [f"[![roofline: {escape(each.where)}]({each.path}.png)]({each.path}.svg)\n" for each in rooflines(arranged)]
    rows = operator_rows(arranged.suites[SUITE])
    if rows:
        parts += ["### Operators that take longest, at the largest resolution\n", table(OPERATORS, rows)]
    return parts


def _growth(runs: list[Run]) -> list[str]:
    """Exact fits, slopes and their picture, run by run."""
    parts = []
    for run, device in zip(runs, device_names(runs), strict=True):
        found = growths(run)
        fits, slopes = fit_rows(found), slope_rows(found)
        of = f", {escape(device)}" if len(runs) > 1 else ""
        if fits:
            parts += [f"### Exact counts fitted to the claimed terms{of}\n", _FITS, table(FIT_HEADER, fits)]
        if slopes:
            parts += [f"### Slopes in logarithms{of}\n", _SLOPES, table(SLOPE_HEADER, slopes)]
    if drawn_growths(runs):
        parts.append(f"[![measured and claimed slopes]({GROWTH_PATH}.png)]({GROWTH_PATH}.svg)\n")
    return parts


def _pivot_table(content: Pivot, most_rows: int) -> str:
    """A row a place, a column a series; numbers of one row share a unit."""
    scales = {place: _row_scale(content, place) for place in list(content.rows)[:most_rows]}
    units = any(scale.unit for scale in scales.values())
    header = [*content.varying, *(["unit"] if units else []), *(series.label for series in content.columns)]
    rows = []
    for place, scale in scales.items():
        where = [axis_text(axis, place[_INDEX[axis]]) for axis in content.varying]
        unit = [scale.unit] if units else []
        rows.append([*where, *unit, *(_cell(content, place, series, scale) for series in content.columns)])
    left_out = len(content.rows) - len(rows)
    return table(header, rows, numbers=len(content.columns)) + _more(left_out)


def _overview(entries: list[Entry]) -> str:
    content = overview(entries)
    header = [f"{name} ({unit})" if unit else name for name, unit in content.header]
    return table(header, content.rows, numbers=len(header) - content.words)


def _row_scale(content: Pivot, place: Place) -> Scale:
    found = [content.value(place, series) for series in content.columns]
    return common_scale(content.metric, content.unit, [m.value for m in found if m and m.value is not None])


def _cell(content: Pivot, place: Place, series: Series, scale: Scale) -> str:
    """A number with its bounds, or why there is none."""
    metric = content.value(place, series)
    if metric and metric.value is not None:
        return f"{shown(metric.value, scale)} {bounds(metric, scale)}".rstrip()
    cell = content.rows[place].get(series)
    return cell.status if cell else ""


def _details(entries: list[Entry]) -> str:
    """Every case with every metric."""
    places = [entry.place for entry in entries]
    varying = [axis for axis in PLACE_AXES if len({place[_INDEX[axis]] for place in places}) > 1]
    names = list(dict.fromkeys(metric.name for entry in entries for metric in entry.record.metrics))
    rows = []
    for entry in entries[:_MOST_DETAILS]:
        record, told = entry.record, {metric.name: with_bounds(metric) for metric in entry.record.metrics}
        where = [axis_text(axis, entry.place[_INDEX[axis]]) for axis in varying]
        reason = "" if record.status == "ok" else ": ".join(filter(None, (record.status, record.reason)))
        rows.append([entry.series.label, *where, reason or "ok", *(told.get(name, "") for name in names)])
    return table(["case", *varying, "status", *names], rows, numbers=len(names)) + _more(len(entries) - _MOST_DETAILS)


def _differences(entries: list[Entry]) -> list[str]:
    """Where two counters disagree and why."""
    rows = differences(entries)
    return ["### Differences between the counters\n", table(COUNTERS, rows)] if rows else []


def _without_numbers(title: str, entries: Iterable[Entry]) -> list[str]:
    """Cases and single metrics that gave no number, with reasons."""
    rows = lacking(entries)
    return [f"## {title}\n", table(LACKING, rows[:_MOST_ROWS]) + _more(len(rows) - _MOST_ROWS)] if rows else []


def _more(left_out: int) -> str:
    return f"\nand {left_out} more rows, see the files in tables/\n" if left_out > 0 else ""
