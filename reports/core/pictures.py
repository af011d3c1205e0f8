"""Which pictures a run has and what each shows; the drawing itself is `plots.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from .. import Metric, Record, Run
from .arrange import OPS, PLACE_AXES, Arrangement, Pivot, Place, Series, View, axis_text, place_text
from .growth import Growth, growths

#: Drawing takes a good part of a second each, so beyond one of each view no run has more; tables have the rest.
MOST_PICTURES = 5
#: Of the picture of slopes, without suffix.
GROWTH_PATH = "plots/complexity-growth"
#: The same of the rows of the suite `detail`, by scale.
DETAIL_PATH = "plots/detail-scale{}"
#: What a metric is drawn against: the first of these that takes several values, else bars.
_X_AXES = ("resolution", "channels", "kernel_size", "batch", "threads")
#: The same of a view that is drawn against each.
_EACH = (*_X_AXES, "stride", "dilation", "scale")
_INDEX = {axis: i for i, axis in enumerate(PLACE_AXES)}


@dataclass
class Picture:
    """One plot.

    Args:
        path: relative to the run's directory, without suffix.
        where: what all its points have in common.
        x_axis: the axis it is drawn against, None for bars.
        ticks: where that axis has points, and what they are called.
        lines: by series, the points (x, metric) in rising order; a bar has its only point at 0.
        missing: series that have fewer points, and why, in words.
        by_formula: points of the closed form, where nothing was measured.
        records: whose each point of `lines` is.
    """

    suite: str
    path: str
    title: str
    where: str
    metric: str
    unit: str
    x_axis: str | None
    ticks: dict[float, str]
    lines: dict[Series, list[tuple[float, Metric]]]
    missing: list[str]
    by_formula: dict[Series, list[tuple[float, Metric]]]
    records: dict[Series, list[Record]]

    @property
    def series(self) -> list[Series]:
        """Of all its points, measured or by formula, in order."""
        return sorted({*self.lines, *self.by_formula}, key=lambda s: s.rank)

    def ends(self, series: Series) -> tuple[float, Metric]:
        """Its last point."""
        return max([*self.lines.get(series, []), *self.by_formula.get(series, [])], key=lambda point: point[0])

    @property
    def points(self) -> int:
        return sum(map(len, self.lines.values()))


def drawn_growths(runs: list[Run]) -> list[Growth]:
    """The slopes that the picture of a single run shows: those of the suite `complexity`, ops in order."""
    found = [g for run in runs for g in growths(run) if g.suite == "complexity" and g.residual is None]
    return sorted(found, key=lambda g: OPS.index(g.op) if g.op in OPS else len(OPS)) if len(runs) == 1 else []


def pictures(arranged: Arrangement) -> tuple[list[Picture], int]:
    """The pictures of some runs, and how many more there would be.

    Each view has its fullest one, of each axis if it is drawn against each; there are second ones only up to
    `MOST_PICTURES` in all.
    """
    by_axis = [
        found
        for suite in arranged.suites
        for view in arranged.views(suite)
        if view.drawn
        for found in _by_axis(arranged, view)
    ]
    found = [numbered for pictures in by_axis for numbered in enumerate(pictures)]
    ordered = [picture for _, picture in sorted(found, key=lambda f: f[0])]
    drawn = max(MOST_PICTURES, sum(place == 0 for place, _ in found))
    return ordered[:drawn], len(ordered[drawn:])


def panels(arranged: Arrangement, view: View) -> list[Picture]:
    """All pictures of a view, the fullest first; of one that is drawn against each axis, one for each."""
    return [picture for pictures in _by_axis(arranged, view) for picture in pictures]


def _by_axis(arranged: Arrangement, view: View) -> list[list[Picture]]:
    """The pictures of a view by what they are drawn against, the fullest first."""
    table, found = arranged.pivot(view), []
    for x_axis in _x_axes(view, table):
        drawn = sorted(_panels(arranged.runs, view, table, x_axis), key=lambda picture: -picture.points)
        # most points of the others have but one value of this axis
        found.append([picture for picture in drawn if len(picture.ticks) > 1][:1] if view.each else drawn)
    return found


def _x_axes(view: View, table: Pivot) -> list[str | None]:
    """What it is drawn against: the first axis of several values, or each; None for bars."""
    valued = _valued(table)
    several = [axis for axis in _EACH if len({place[_INDEX[axis]] for place in valued} - {None}) > 1]
    if view.each and several:
        return list(several)
    return [next((axis for axis in several if axis in _X_AXES), None)]


def _valued(table: Pivot) -> list[Place]:
    return [place for place in table.rows if any(table.value(place, series) for series in table.columns)]


def _panels(runs: list[Run], view: View, table: Pivot, x_axis: str | None) -> list[Picture]:
    """One picture for each combination of the axes that it is not drawn against."""
    valued = _valued(table)
    groups: dict[Place, list[Place]] = {}
    for place in table.rows:
        groups.setdefault(_without(place, x_axis), []).append(place)
    varying = [axis for axis, i in _INDEX.items() if axis != x_axis and len({place[i] for place in valued}) > 1]
    device = str((runs[0].environment.get("device") or {}).get("name") or "") if len(runs) == 1 else ""
    found = []
    for common, group in groups.items():
        lines, ticks, records = _lines(table, group, x_axis, _drawable)
        by_formula, more, _ = _lines(table, group, x_axis, _formula) if x_axis else ({}, {}, {})
        found.append(
            Picture(
                suite=view.suite,
                path="plots/"
                + "-".join([view.suite, view.name, *_along(view, x_axis), *(_slug(axis, common) for axis in varying)]),
                title=view.title,
                where=", ".join(filter(None, (device, place_text(common)))),
                metric=view.name,
                unit=table.unit,
                x_axis=x_axis,
                ticks=dict(sorted((ticks | more).items())),
                lines=lines,
                missing=_missing(table, group, x_axis),
                by_formula=by_formula,
                records=records,
            )
        )
    return [picture for picture in found if picture.points]


def _along(view: View, x_axis: str | None) -> list[str]:
    """What tells a picture from those of the same view against other axes."""
    return [f"along_{x_axis}"] if view.each and x_axis else []


def _lines(
    table: Pivot,
    group: list[Place],
    x_axis: str | None,
    point: Callable[[Pivot, Place, Series], Metric | None],
) -> tuple[dict[Series, list[tuple[float, Metric]]], dict[float, str], dict[Series, list[Record]]]:
    """Points by series, what their places are called, and whose they are."""
    lines: dict[Series, list[tuple[float, Metric]]] = {}
    ticks: dict[float, str] = {}
    records: dict[Series, list[Record]] = {}
    for series in table.columns:
        for place in group:
            metric = point(table, place, series)
            if metric and (x_axis is None or place[_INDEX[x_axis]] is not None):
                x, label = _tick(place, x_axis)
                lines.setdefault(series, []).append((x, metric))
                records.setdefault(series, []).append(table.rows[place][series].record)
                ticks[x] = label
    return lines, ticks, records


def _drawable(table: Pivot, place: Place, series: Series) -> Metric | None:
    """The metric there, if a logarithmic axis can show it."""
    metric = table.value(place, series)
    return metric if metric and (metric.value or 0) > 0 else None


def _formula(table: Pivot, place: Place, series: Series) -> Metric | None:
    """The closed form there, likewise, where nothing was measured."""
    cell = table.rows[place].get(series)
    return cell.formula if cell and cell.formula and (cell.formula.value or 0) > 0 else None


def _missing(table: Pivot, group: list[Place], x_axis: str | None) -> list[str]:
    """Cases of this picture that gave no number to draw, by series and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for series in table.columns:
        for place in group:
            cell = table.rows[place].get(series)
            if cell is None or _drawable(table, place, series):
                continue
            why = "is 0" if table.value(place, series) else cell.status
            why += ", hollow by closed form" if why and _formula(table, place, series) else ""
            if why:
                where = found.setdefault((series.label, why), [])
                where += filter(None, [_tick(place, x_axis)[1]])
    return [f"{label}{' at ' + ', '.join(where) if where else ''} ({why})" for (label, why), where in found.items()]


def _tick(place: Place, x_axis: str | None) -> tuple[float, str]:
    """Where a place stands on the x axis, and what that is called: 56, or 200×300 at the side of an equal square."""
    value = place[_INDEX[x_axis]] if x_axis else None
    if isinstance(value, tuple):
        height, width = value
        return math.sqrt(height * width), str(height) if height == width else f"{height}×{width}"
    return (0.0, "") if value is None else (float(value), str(value))


def _without(place: Place, axis: str | None) -> Place:
    return tuple(None if i == _INDEX.get(axis or "") else value for i, value in enumerate(place))


def _slug(axis: str, place: Place) -> str:
    """A value of an axis as a part of a file name: `batch32`, `float16`."""
    value = axis_text(axis, place[_INDEX[axis]])
    return re.sub(r"[^A-Za-z0-9.]+", "_", f"{axis}{value}" if value[:1].isdigit() else value or f"no_{axis}").strip("_")
