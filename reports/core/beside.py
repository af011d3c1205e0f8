"""Several runs: devices side by side, absolute and in percent of their own roofs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .. import Json
from .arrange import PLACE_AXES, Arrangement, Cell, Pivot, Place, Series, View, axis_text, place_text
from .figures import Index, along_y, look
from .page_data import metric_cell
from .palette import Style
from .web import Section

_DEVICE, _THREADS = PLACE_AXES.index("device"), PLACE_AXES.index("threads")
_RESOLUTION = PLACE_AXES.index("resolution")
_ROOF = View("latency", "roof_fraction", "Share of each device's own roof")
#: One marker and line a device, in the order of the runs.
_LOOKS = (Style("o", "-"), Style("s", "--"), Style("^", "-."), Style("D", ":"), Style("v", "-"), Style("P", "--"))


class Row(NamedTuple):
    """What is held side by side: a series at a place whatever the device."""

    series: Series
    place: Place


def beside(arranged: Arrangement, colors: Mapping[str, str], index: Index) -> list[Section]:
    """A section of the headline of each suite, and of the share of the roofs."""
    views = [view for suite in arranged.suites for view in list(filter(_drawn, arranged.views(suite)))[:1]]
    if "latency" in arranged.suites and any(view.metric == _ROOF.metric for view in arranged.views("latency")):
        views.insert(1, _ROOF)
    sections = []
    for view in views:
        table = arranged.pivot(view)
        rows, devices = _rows(table)
        if sum(len(cells) > 1 for cells in rows.values()):
            figure = {"title": view.title, "panels": list(_panels(view, table, rows, devices, colors, index))}
            figures = [figure] if figure["panels"] else []
            sections.append(
                Section(
                    f"Side by side: {view.title[0].lower()}{view.title[1:]}",
                    figures=figures,
                    tables=[("", _table(view, table, rows, devices))],
                )
            )
    return sections


def _drawn(view: View) -> bool:
    return view.drawn


def _rows(table: Pivot) -> tuple[dict[Row, dict[str, Cell]], list[str]]:
    """Cells by device for each row, and the devices in order."""
    threads: dict[str, set[object]] = {}
    for place in table.rows:
        threads.setdefault(place[_DEVICE], set()).add(place[_THREADS])
    ignored = {_DEVICE} | ({_THREADS} if all(len(found) == 1 for found in threads.values()) else set())
    rows: dict[Row, dict[str, Cell]] = {}
    for place, cells in table.rows.items():
        common = tuple(None if i in ignored else value for i, value in enumerate(place))
        for series, cell in cells.items():
            rows.setdefault(Row(series, common), {})[place[_DEVICE]] = cell
    return dict(sorted(rows.items(), key=lambda row: row[0].series.rank)), list(threads)


def _table(view: View, table: Pivot, rows: Mapping[Row, Mapping[str, Cell]], devices: list[str]) -> Json:
    varying = [i for i in range(len(PLACE_AXES)) if len({row.place[i] for row in rows}) > 1]
    columns: list[Json] = [{"name": "case"}, *({"name": PLACE_AXES[i]} for i in varying)]
    columns += [{"name": device, "unit": table.unit, "metric": view.metric, "number": True} for device in devices]
    found = []
    for row, cells in rows.items():
        where = [axis_text(PLACE_AXES[i], row.place[i]) for i in varying]
        numbers = [_told(cells.get(device)) for device in devices]
        found.append([None, row.series.label, *where, *numbers])
    return {"columns": columns, "rows": found}


def _told(cell: Cell | None) -> object:
    if cell is None:
        return None
    return metric_cell(cell.metric) if cell.metric else cell.status or None


def _panels(
    view: View,
    table: Pivot,
    rows: Mapping[Row, Mapping[str, Cell]],
    devices: list[str],
    colors: Mapping[str, str],
    index: Index,
) -> Iterator[Json]:
    """A panel a series and place but for its resolution, a line a device."""
    groups: dict[Row, list[Row]] = {}
    for row in rows:
        common = tuple(None if i == _RESOLUTION else value for i, value in enumerate(row.place))
        groups.setdefault(Row(row.series, common), []).append(row)
    for (series, common), members in groups.items():
        lines = []
        ticks: dict[float, str] = {}
        for device, style in zip(devices, _LOOKS * len(devices), strict=False):
            points = []
            for row in members:
                cell, size = rows[row].get(device), row.place[_RESOLUTION]
                if cell and cell.metric and size and (cell.metric.value or 0) > 0:
                    x = (size[0] * size[1]) ** 0.5
                    ticks[x] = str(size[0]) if size[0] == size[1] else axis_text("resolution", size)
                    points.append(along_y(x, cell.metric, index(cell.record)))
            if points:
                lines.append({**look(device, colors[series.op], style), "points": sorted(points), "hollow": []})
        if len(lines) > 1:
            yield {
                "where": ", ".join(filter(None, (series.label, place_text(common)))),
                "x": {
                    "label": "resolution (height = width, pixels)",
                    "log": 2,
                    "ticks": [[x, ticks[x]] for x in sorted(ticks)],
                },
                "y": {"label": view.metric, "metric": view.metric, "unit": table.unit, "log": 10},
                "bounds": "y",
                "series": lines,
                "notes": [],
            }
