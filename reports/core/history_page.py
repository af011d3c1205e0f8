"""A history as a page: where each series moved and with which commits, each series drawn, every point with its run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from .. import Json
from .figures import look, rounded
from .history import Change, History, Point, Series
from .history_tables import (
    CHANGES,
    POINTS,
    SERIES,
    answer,
    by_device,
    change_cells,
    commits,
    date,
    distinct,
    legend,
    message,
    moved,
    point_cells,
    series_cells,
)
from .markup import plain, short_names
from .palette import Style, colors_of, styles_of
from .records import RunError, within
from .web import Answer, Section, page

#: Series that are drawn and listed point by point, those with changes first; the table has all.
MOST_SERIES = 100
#: Changes that are told before everything else.
_MOST_TOLD = 5
_REPORT = "report.html"
_FACETS = ("device", "case", "metric")
_WIDE = ("what else differs", "changes")
#: What a series is called in a page, by `id`.
_Names = dict[int, str]


def as_page(history: History, folder: Path) -> str:
    """`history.html`, for a folder; from there it links to the runs' own reports."""
    links = _Links(Path(history.index).parent, folder)
    names = _names(history.series)
    chosen = history.most_moved(MOST_SERIES)
    sections = []
    if history.changes:
        ranges = [f"git log {commits(*found)}" for found in distinct(history)]
        sections.append(Section("Changes", tables=[("", _changes(history, names, links))], commands=ranges))
    sections.append(Section("Series", figures=_figures(chosen, names), tables=[("", _series(history, names))]))
    sections.append(Section("Points", tables=[("", _points(chosen, names, links))]))
    left_out = len(history.series) - len(chosen)
    if left_out:
        sections[-1].text.append(f"{left_out} more series without a change are in the table of series alone.")
    sections.append(Section("How to read this", points=[("", line) for line in legend(history)]))
    said = [answer(history), *(_sentence(*found, names) for found in history.changes[:_MOST_TOLD])]
    return page("ddfbench: history", [Answer(", ".join(by_device(history)), said)], sections)


class _Links:
    """Addresses of the reports of runs, relative to the page.

    Args:
        runs: the folder of the index; nothing outside it is linked to, whatever the index says.
        page: the folder of the page.
    """

    def __init__(self, runs: Path, page: Path) -> None:
        self._runs, self._page = runs, page
        self._known: dict[str, str | None] = {}

    def of(self, point: Point) -> str | None:
        """The report of the last run of a point that has one."""
        return next(filter(None, map(self._address, reversed(point.runs))), None)

    def _address(self, run: str) -> str | None:
        if run not in self._known:
            try:
                report = within(self._runs, f"{run}/{_REPORT}")
                there = report.is_file()
            except (RunError, OSError, ValueError):
                there = False
            self._known[run] = quote(os.path.relpath(report, self._page)) if there else None
        return self._known[run]


def _names(series: Sequence[Series]) -> _Names:
    """Each series without what all have: cases first, then settings."""
    cases = short_names(dict.fromkeys(s.case for s in series))
    common = set.intersection(*(set(_settings(s)) for s in series)) if len(series) > 1 else set()
    return {id(s): ", ".join([cases[s.case], *(text for text in _settings(s) if text not in common)]) for s in series}


def _settings(series: Series) -> list[str]:
    return [f"{key} {value}" for key, value in sorted(series.settings.items())]


def _sentence(series: Series, change: Change, names: _Names) -> str:
    said = f"{names[id(series)]}: {series.metric} {moved(change)} with {commits(series, change)}"
    return f"{said} ({message(series.after(change))})"


def _figures(chosen: Sequence[Series], names: _Names) -> list[Json]:
    """One a device, with a panel for each series."""
    colors, styles = colors_of(s.op for s in chosen), styles_of(s.impl for s in chosen)
    figures: dict[str, Json] = {}
    for series in chosen:
        panel = _panel(series, f"{names[id(series)]}, {series.metric}", colors[series.op], styles[series.impl])
        device = _device(series)
        figures.setdefault(device, {"title": device, "panels": []})["panels"].append(panel)
    return list(figures.values())


def _panel(series: Series, where: str, color: str, style: Style) -> Json:
    """The metric over commits, which stand at equal distances."""
    told = {change.at: f"{moved(change)} with {commits(series, change)}" for change in series.changes}
    ticks, drawn = [], []
    for at, point in enumerate(series.points):
        ticks.append([at, point.commit[:7], *filter(None, (message(point), date(point), told.get(at)))])
        drawn.append([at, *map(rounded, (point.value, point.low, point.high)), None])
    positive = all(point.value > 0 for point in series.points)
    return {
        "where": where,
        "x": {"label": "commit", "log": 0, "ticks": ticks},
        "y": {"label": series.metric, "metric": series.metric, "unit": series.unit, "log": 10 if positive else 0},
        "bounds": "y",
        "marks": [[change.at - 0.5, moved(change)] for change in series.changes],
        "series": [{**look(f"{series.op}/{series.impl}", color, style), "points": drawn, "hollow": []}],
        "notes": [],
    }


def _changes(history: History, names: _Names, links: _Links) -> Json:
    """Where series moved; the commits before and after lead to the reports of their runs."""
    rows = []
    for series, change in history.changes:
        before, after = series.before(change), series.after(change)
        keys = {"change": change.ratio, "before": before.value, "after": after.value, "p": change.p or 0.0}
        cells = _keyed(CHANGES, change_cells(series, change), keys) | {"case": names[id(series)]}
        ends = {"report before": _commit(before, links), "report after": _commit(after, links)}
        rows.append({"device": _device(series), **cells, **ends})
    return _table(rows)


def _series(history: History, names: _Names) -> Json:
    rows = []
    for series in history.series:
        keys = {"commits": len(series.points), "first": series.points[0].value, "last": series.points[-1].value}
        cells = _keyed(SERIES, series_cells(series), keys) | {"case": names[id(series)]}
        rows.append({"device": _device(series), **cells})
    return _table(rows)


def _points(chosen: Sequence[Series], names: _Names, links: _Links) -> Json:
    """Every point, the latest of each series first."""
    rows = []
    for series in chosen:
        for point, told in reversed(list(zip(series.points, point_cells(series), strict=True))):
            cells = _keyed(POINTS, told, {"value": point.value, "runs": len(point.runs)})
            where = {"device": _device(series), "case": names[id(series)], "metric": series.metric}
            rows.append({**cells, "commit": _commit(point, links), **where})
    return _table(rows)


def _table(rows: Sequence[Mapping[str, object]]) -> Json:
    """Columns that have something, filtered by where there is a choice."""
    kept = [name for name in rows[0] if any(row[name] for row in rows)]
    kept = [name for name in kept if name != "device" or len({row[name] for row in rows}) > 1]
    columns = [{"name": name, "facet": name in _FACETS, "wide": name in _WIDE} for name in kept]
    return {"columns": columns, "rows": [[None, *(row[name] for name in kept)] for row in rows]}


def _keyed(header: Sequence[str], cells: Sequence[str], keys: Mapping[str, float | None]) -> dict[str, object]:
    """Cells by column, of which some are sorted by a number."""
    return {
        name: {"text": text, "key": rounded(keys[name])} if keys.get(name) is not None else text
        for name, text in zip(header, cells, strict=True)
    }


def _commit(point: Point, links: _Links) -> object:
    address = links.of(point)
    return {"text": point.label, "address": address} if address else point.label


def _device(series: Series) -> str:
    return plain(series.device) or "unknown device"
