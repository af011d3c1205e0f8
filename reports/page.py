"""HTML: `report.html`, one self-contained page for a run, or for several side by side."""

from __future__ import annotations

from . import FAILURES, Run
from .core.arrange import Arrangement, device_names
from .core.beside import beside
from .core.claims.judge import Judgement, judge
from .core.claims.poster import unclaimed
from .core.figures import growth_figure, roofline, view_figure
from .core.growth import growths
from .core.growth_told import FIT_HEADER, SLOPE_HEADER, fit_rows, slope_rows
from .core.headlines import claims_sentence, device_sentence, headlines
from .core.page_data import Cases, case_table, claims_table, word_table
from .core.palette import impl_styles, op_colors
from .core.sections import (
    COUNTERS,
    LACKING,
    caption,
    differences,
    environment,
    lacking,
    run_command,
    run_name,
    warnings,
)
from .core.summary import answers, counts, sentences
from .core.web import Answer, Section, page

NAME = "html"
ORDER = 40

_ROOFLINE = (
    "Each case's multiply-accumulates per second against its multiply-accumulates per byte that has to move. The copy "
    "roof is measured with as many bytes as each case moves, so its lowest and its highest are drawn; a case's own "
    "share is told beside its point. Points above a roof are possible: Winograd needs fewer products, and caches "
    "are faster than the copy."
)
_FITS = (
    "Exact counts, taken as the op runs and fitted in rational numbers: n pixels of one sample, c channels, k taps "
    "along a side; memory in bytes. The residual is the largest difference of a shape; 0 is exact."
)
_SLOPES = (
    "A slope is d log(quantity) / d log(n, c or k) with 95 % bounds, beside that of the closed form over the same "
    "points. A call of less than 4 times the smallest call of its op is mostly overhead and left out."
)
_CLAIMS = (
    "Of an order the ratio is shown. No claim is made of the {}: these cells are not the poster's own. docs/claims.md "
    "has the rules."
)


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    arranged = Arrangement(runs)
    cases = Cases(arranged)
    judged = [judge(run) for run in runs]
    sections = beside(arranged, op_colors(runs), cases.index) if len(runs) > 1 else []
    sections += [_suite(arranged, suite, cases) for suite in arranged.suites]
    sections += [*_roofline(arranged, cases), _claims(runs, judged), *_without_numbers(arranged)]
    facts = environment(runs)
    sections.append(Section("Environment", facts=[["", *map(run_name, runs)], *facts]))
    sections.append(Section("How to reproduce", commands=[run_command(run) for run in runs]))
    found = [_answer(run, device, held) for run, device, held in zip(runs, device_names(runs), judged, strict=True)]
    title = f"ddfbench: {', '.join(map(run_name, runs))}"
    return {"report.html": page(title, found, sections, cases.content)}


def _answer(run: Run, device: str, judged: list[Judgement]) -> Answer:
    """What one run found, in sentences computed from its records."""
    said = []
    for headline in headlines(Arrangement([run])):
        said.append(f"{headline.view.title}, {headline.where}:")
        said += [against.sentence for against in headline.against] + headline.roofs
    said.append(claims_sentence(judged))
    said.append(f"{len(run.records)} cases: {counts(run)}." if run.records else "No case was recorded.")
    return Answer(device_sentence(run, device), said, warnings(run))


def _suite(arranged: Arrangement, suite: str, cases: Cases) -> Section:
    entries, runs = arranged.suites[suite], arranged.runs
    colors, styles = op_colors(runs), impl_styles(runs)
    section = Section(suite, text=caption(entries))
    if len(runs) == 1:
        for answer in answers(arranged):
            if answer.view.suite == suite:
                section.lead = f"{answer.view.title} ({answer.where}):"
                section.points += sentences(answer)
    views = [view for view in arranged.views(suite) if view.drawn]
    figures = [view_figure(arranged, view, colors, styles, cases.index) for view in views]
    section.figures = [figure for figure in figures if figure["panels"]]
    if suite == "complexity":
        _add_growth(section, runs)
    section.tables.append(("All cases", case_table(entries, cases)))
    differing = differences(entries)
    if differing:
        section.tables.append(("Differences between the counters", word_table(COUNTERS, differing)))
    return section


def _add_growth(section: Section, runs: list[Run]) -> None:
    """Exact fits and slopes, run by run."""
    for run, device in zip(runs, device_names(runs), strict=True):
        found = growths(run)
        fits, slopes = fit_rows(found), slope_rows(found)
        of = f", {device}" if len(runs) > 1 else ""
        if fits:
            section.tables.append((f"Exact counts fitted to the claimed terms{of}", word_table(FIT_HEADER, fits)))
        if slopes:
            section.tables.append((f"Slopes in logarithms{of}", word_table(SLOPE_HEADER, slopes)))
            drawn = [growth for growth in found if growth.suite == "complexity" and growth.residual is None]
            figure = growth_figure(drawn, op_colors(runs), impl_styles(runs))
            section.figures += [figure | {"title": figure["title"] + of}] if figure["panels"] else []
    section.text += [_FITS, _SLOPES]


def _roofline(arranged: Arrangement, cases: Cases) -> list[Section]:
    entries = arranged.suites.get("latency", [])
    figure = roofline(entries, op_colors(arranged.runs), impl_styles(arranged.runs), cases.index)
    return [Section("Roofline", text=[_ROOFLINE], figures=[figure])] if figure["panels"] else []


def _claims(runs: list[Run], judged: list[list[Judgement]]) -> Section:
    text = [_CLAIMS.format(" and the ".join(unclaimed()))]
    return Section("Claims", text=text, tables=[("", claims_table(device_names(runs), judged))])


def _without_numbers(arranged: Arrangement) -> list[Section]:
    """What failed, and what was not measured, with reasons."""
    everything = [entry for entries in arranged.suites.values() for entry in entries]
    parts = {
        "Failed": lacking(entry for entry in everything if entry.record.status in FAILURES),
        "Not measured": lacking(entry for entry in everything if entry.record.status not in FAILURES),
    }
    return [Section(title, tables=[("", word_table(LACKING, rows))]) for title, rows in parts.items() if rows]
