"""Interactive figures as plain data, which `pages/plot.js` draws.

A figure has panels, of which one is shown at a time. A panel has two axes and series of points
`[x, y, low, high, case]`; the bounds lie along the axis that `bounds` names, and `case` is an index into the page's
cases. An axis may have ticks `[x, name, what else is told there, ...]`, and a panel marks `[x, text]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import Json, Metric, Record
from .arrange import BASELINES, Arrangement, Entry, Series, View, number
from .growth import VARIABLES, Growth
from .palette import Style
from .pictures import Picture, panels
from .roofline import ends, intensity
from .units import quantity

#: The index of a record's case in the page, None where it has none.
Index = Callable[[Record], int | None]

_X_LABELS = {"resolution": "resolution (height = width, pixels)", "kernel_size": "taps along one side of the filter"}


def view_figure(
    arranged: Arrangement, view: View, colors: Mapping[str, str], styles: Mapping[str, Style], index: Index
) -> Json:
    """All pictures of a view, a panel each."""
    drawn = [picture_panel(picture, colors, styles, index) for picture in panels(arranged, view)]
    return {"title": view.title, "panels": drawn}


def picture_panel(picture: Picture, colors: Mapping[str, str], styles: Mapping[str, Style], index: Index) -> Json:
    """Lines against an axis, or a row for each series."""
    if picture.x_axis is None:
        return _rows_panel(picture, colors, styles, index)
    label = _X_LABELS.get(picture.x_axis, picture.x_axis)
    drawn = []
    for series in picture.series:
        points, records = picture.lines.get(series, []), picture.records.get(series, [])
        drawn.append(
            {
                **look(series.label, colors[series.op], styles[series.impl], broad=series.op in BASELINES),
                "points": [along_y(x, metric, index(r)) for (x, metric), r in zip(points, records, strict=True)],
                "hollow": [[x, rounded(number(metric))] for x, metric in picture.by_formula.get(series, [])],
            }
        )
    return {
        "where": picture.where,
        "x": {"label": label, "log": 2, "ticks": [[x, text] for x, text in picture.ticks.items()]},
        "y": {"label": picture.metric, "metric": picture.metric, "unit": picture.unit, "log": 10},
        "bounds": "y",
        "series": drawn,
        "notes": picture.missing,
    }


def roofline(entries: Iterable[Entry], colors: Mapping[str, str], styles: Mapping[str, Style], index: Index) -> Json:
    """Multiply-accumulates per second against those per byte that has to move, under the roofs of the same rounds.

    The copy roof is measured with as many bytes as each case moves, so it is not one line: the lowest and the highest
    are drawn, and each case is told its own share.
    """
    by_device: dict[str, list[tuple[Entry, float, Metric]]] = {}
    for entry in entries:
        found = intensity(entry.record)
        if found:
            by_device.setdefault(str(entry.place[0]), []).append((entry, *found))
    return {
        "title": "Roofline",
        "panels": [_roofline_panel(device, found, colors, styles, index) for device, found in by_device.items()],
    }


def growth_figure(growths: Sequence[Growth], colors: Mapping[str, str], styles: Mapping[str, Style]) -> Json:
    """Measured exponents, a panel for each quantity and variable; hollow: the closed form over the same points."""
    drawn = []
    for quantity_, along in dict.fromkeys((g.quantity, g.along) for g in growths if g.along in VARIABLES):
        found = [g for g in growths if (g.quantity, g.along) == (quantity_, along) and g.slope is not None]
        series = [
            {
                **look(f"{g.op}/{g.impl}", colors[g.op], styles[g.impl]),
                "points": [[rounded(g.slope or 0), row, rounded(g.low), rounded(g.high), None]],
                "hollow": [] if g.expected is None else [[rounded(g.expected), row]],
            }
            for row, g in enumerate(found)
        ]
        if series:
            drawn.append(
                {
                    "where": f"{quantity_} along {along}",
                    "x": {"label": f"exponent along {along}", "metric": "", "unit": "1", "log": 0},
                    "y": {"rows": [each["label"] for each in series]},
                    "bounds": "x",
                    "series": series,
                    "notes": ["hollow: closed form over the same points"],
                }
            )
    return {"title": "Growth: measured exponents", "panels": drawn}


def look(label: str, color: str, style: Style, broad: bool = False) -> Json:
    """How a series is drawn; a broad line lies below the others."""
    return {"label": label, "color": color, "marker": style.marker, "line": style.line, "broad": broad}


def rounded(value: float | None) -> float | int | None:
    """Seven significant digits, which no bounds reach; whole numbers as such."""
    if value is None or not math.isfinite(value):
        return None
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.7g}")


def along_y(x: float, metric: Metric, case: int | None) -> list[float | int | None]:
    """A point whose bounds lie along y."""
    return [rounded(x), rounded(metric.value), rounded(metric.low), rounded(metric.high), case]


def _rows_panel(picture: Picture, colors: Mapping[str, str], styles: Mapping[str, Style], index: Index) -> Json:
    found = sorted(
        ((series, points[0][1], picture.records[series][0]) for series, points in picture.lines.items()),
        key=lambda row: number(row[1]),
    )
    return {
        "where": picture.where,
        "x": {"label": picture.metric, "metric": picture.metric, "unit": picture.unit, "log": 10},
        "y": {"rows": [series.label for series, _, _ in found]},
        "bounds": "x",
        "series": [
            {
                **look(series.label, colors[series.op], styles[series.impl]),
                "points": [[rounded(metric.value), row, rounded(metric.low), rounded(metric.high), index(record)]],
                "hollow": [],
            }
            for row, (series, metric, record) in enumerate(found)
        ],
        "notes": picture.missing,
    }


def _roofline_panel(
    device: str,
    found: list[tuple[Entry, float, Metric]],
    colors: Mapping[str, str],
    styles: Mapping[str, Style],
    index: Index,
) -> Json:
    drawn: dict[Series, Json] = {}
    for entry, at, rate in found:
        series = entry.series
        line = drawn.setdefault(
            series,
            {**look(series.label, colors[series.op], styles[series.impl]), "line": "", "points": [], "hollow": []},
        )
        line["points"].append(along_y(at, rate, index(entry.record)))
    spread = [at for _, at, _ in found]
    roofs = _roof_lines([entry.record for entry, _, _ in found], min(spread), max(spread))
    return {
        "where": device,
        "x": {"label": "multiply-accumulates per byte that has to move", "metric": "", "unit": "1", "log": 10},
        "y": {"label": "MAC/s", "metric": "", "unit": "MAC/s", "log": 10},
        "bounds": "y",
        "series": [*roofs, *drawn.values()],
        "notes": [],
    }


def _roof_lines(records: Sequence[Record], least: float, most: float) -> list[Json]:
    """The least and the most of each roof that was measured."""
    lines = []
    for word, rate in _named(ends(records, "roof_copy")):
        points = [[rounded(x), rounded(x * rate), None, None, None] for x in (least, most)]
        lines.append((f"{word}copy roof, {quantity('', 'B/s', rate)}", points))
    for word, rate in _named(ends(records, "roof_arithmetic")):
        points = [[rounded(x), rounded(rate), None, None, None] for x in (least, most)]
        lines.append((f"{word}arithmetic roof, {quantity('', 'MAC/s', rate)}", points))
    return [{**look(name, "#777777", Style("", ":")), "points": points, "hollow": []} for name, points in lines]


def _named(rates: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip(("lowest ", "highest ") if len(rates) > 1 else ("",), rates, strict=False))
