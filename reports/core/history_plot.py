"""A history drawn: a panel for each series, the metric over commits, changes marked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .history import History, Series
from .markup import plain
from .units import common_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Panels of a figure: those with changes first.
MOST_PANELS = 24
COLUMNS = 2
_LONGEST = 70
_LINE, _CHANGE, _GREY = "#0072B2", "#D55E00", "#555555"
_STYLE: Any = {
    "svg.hashsalt": "ddfbench",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(history: History, kind: str) -> bytes:
    """The figure as `svg` or `png`; two drawings of the same history are equal byte for byte."""
    import matplotlib
    from matplotlib.figure import Figure

    chosen = history.most_moved(MOST_PANELS)
    columns = min(COLUMNS, max(1, len(chosen)))
    rows = max(1, -(-len(chosen) // columns))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.5 * columns, 2.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, series in zip(panels, chosen, strict=False):
            _panel(axes, series)
        for axes in list(panels)[len(chosen) :]:
            axes.set_axis_off()
        left_out = len(history.series) - len(chosen)
        if left_out:
            figure.supxlabel(f"{left_out} more series without a change are not drawn", color=_GREY)
        return _rendered(figure, kind)


def _panel(axes: Axes, series: Series) -> None:
    scale = common_scale(series.metric, series.unit, [point.value for point in series.points])
    places = list(range(len(series.points)))
    values = [point.value / scale.factor for point in series.points]
    below = [(p.value - p.low) / scale.factor if p.low is not None else 0.0 for p in series.points]
    above = [(p.high - p.value) / scale.factor if p.high is not None else 0.0 for p in series.points]
    spread = [[max(0.0, x) for x in side] for side in (below, above)]
    axes.errorbar(places, values, yerr=spread, fmt="o-", color=_LINE, markersize=3, linewidth=1, elinewidth=0.7)
    for change in series.changes:
        axes.axvline(change.at - 0.5, color=_CHANGE, linestyle="--", linewidth=1)
        moved = "changed" if change.ratio is None else f"{100 * (change.ratio - 1):+.1f} %"
        text = f" {moved} at {series.after(change).label}"
        axes.text(change.at - 0.5, 1.0, text, color=_CHANGE, size=8, va="bottom", transform=axes.get_xaxis_transform())
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{series.metric}{f', {scale.unit}' if scale.unit else ''}", size=8)
    axes.set_title(f"{_cut(plain(series.device))}\n{_cut(plain(series.case))}", size=8, loc="left", pad=14)
    shown = _ticks(places)
    axes.set_xticks(shown, [series.points[at].commit[:7] for at in shown], rotation=30, ha="right", size=7)


def _ticks(places: Sequence[int]) -> list[int]:
    """At most a dozen."""
    return list(places[:: max(1, -(-len(places) // 12))])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _rendered(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "svg":
        figure.savefig(buffer, format=kind, metadata={"Date": None, "Creator": None})
    else:
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Software": None})
    return buffer.getvalue()
