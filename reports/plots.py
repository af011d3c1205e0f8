"""Plots: `plots/<suite>-<metric>*.svg` and `.png`, one for each picture that `core.pictures` names.

An op has one colour in all plots (Okabe and Ito's, which the colour-blind tell apart), an impl one marker and line.
Two renderings of the same records are equal byte for byte.
"""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from . import Metric, Run
from .core.arrange import BASELINES, Arrangement, Series, number
from .core.growth import VARIABLES, Growth
from .core.palette import Style, impl_styles, op_colors
from .core.pictures import GROWTH_PATH, Picture, drawn_growths, pictures
from .core.roofline import Roofline, rooflines
from .core.units import quantity, round_quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "plots"
ORDER = 20

_X_LABELS = {
    "resolution": "resolution: height = width, pixels",
    "kernel_size": "taps along one side of the filter",
    "scale": "scale: outputs along one side of a pixel",
}
_GREY = "#555555"
_STYLE: Any = {
    "svg.hashsalt": "ddfbench",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # TrueType, embedded: what publishers ask for
}


class Layout(NamedTuple):
    """What pictures are made for.

    Args:
        width, inside: inches of the whole, and of the height inside the axes.
        scale: of all texts, markers and margins.
        titled: whether the picture says what it shows; in a paper its caption does.
        kinds: of files.
    """

    width: float
    inside: float
    scale: float
    titled: bool
    kinds: tuple[str, ...]
    dpi: int


_SCREEN = Layout(8.6, 3.4, 1.0, True, ("svg", "png"), 110)
#: One column of a two-column page, 85 mm.
_COLUMN = Layout(3.35, 1.9, 0.72, False, ("svg", "png", "pdf"), 300)


class _Paper:
    """The same plots for a paper; the pictures of growth and of the roofline span two columns."""

    NAME = NAME
    ORDER = ORDER

    def serialize(self, runs: list[Run]) -> dict[str, str | bytes]:
        return _serialize(runs, _COLUMN)


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    return _serialize(runs, _SCREEN)


def _serialize(runs: list[Run], layout: Layout) -> dict[str, str | bytes]:
    import matplotlib

    drawn, _ = pictures(Arrangement(runs))
    colors, styles = op_colors(runs), impl_styles(runs)
    files: dict[str, str | bytes] = {}
    with matplotlib.rc_context(_STYLE):
        for picture in drawn:
            figure = _draw(picture, colors, styles, layout)
            files |= {f"{picture.path}.{kind}": _render(figure, kind, layout.dpi) for kind in layout.kinds}
        for roofline in rooflines(Arrangement(runs)):
            figure = _draw_roofline(roofline, colors, styles, layout)
            files |= {f"{roofline.path}.{kind}": _render(figure, kind, layout.dpi) for kind in layout.kinds}
        slopes = drawn_growths(runs)
        if slopes:
            figure = _draw_growths(slopes, colors, layout)
            files |= {f"{GROWTH_PATH}.{kind}": _render(figure, kind, layout.dpi) for kind in layout.kinds}
    return files


def _draw_roofline(roofline: Roofline, colors: dict[str, str], styles: dict[str, Style], layout: Layout) -> Figure:
    """Both axes logarithmic: roofs as lines, a point for each case, those of one series joined from small to large."""
    from matplotlib.figure import Figure

    series = list(dict.fromkeys(point.series for point in roofline.points))
    scale, above = layout.scale, 1.0 if layout.titled else 0.35
    width, height = 8.6, max(4.8, 0.19 * len(series) + 1.4) - 1.0 + above
    figure = Figure(figsize=(width * scale, height * scale))
    axes = figure.add_axes((1.1 / width, 0.6 / height, 1 - 3.4 / width, 1 - (0.6 + above) / height))
    if layout.titled:
        figure.text(0.12 / width, 1 - 0.12 / height, "Roofline", weight="bold", size=12, va="top")
        note = "roofs measured in the same run: copies of the sizes that the cases move, and arithmetic"
        figure.text(0.12 / width, 1 - 0.38 / height, f"{roofline.where}; {note}", size=9, color=_GREY, va="top")
    upwards = "multiply-accumulates a second"
    figure.text(0.12 / width, 1 - (above - 0.28) / height, upwards, size=10 * scale, va="top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    xs, ys = [p.intensity for p in roofline.points], [p.rate for p in roofline.points]
    low, high = min(xs) / 3, max(xs) * 3
    top = max([*roofline.ceilings.values(), *ys])
    bottom = min([*ys, *(copy * low for copy in roofline.copies)])
    axes.set_xlim(low, high)
    axes.set_ylim(bottom / 2, top * 2.5)
    _draw_roofs(axes, roofline, (low, high), top, scale)
    for one in series:
        marker, line = styles[one.impl]
        some = [point for point in roofline.points if point.series == one]
        axes.plot(
            [p.intensity for p in some],
            [p.rate for p in some],
            line,
            marker=marker,
            color=colors[one.op],
            linewidth=0.8,
            markersize=5 * scale,
            label=_short(one.label),
        )
    corner = (1 - 2.2 / width, 1 - (above - 0.3) / height)
    figure.legend(loc="upper left", bbox_to_anchor=corner, fontsize=8 * scale, frameon=False)
    for axis, (least, most), unit in ((axes.xaxis, axes.get_xlim(), "1"), (axes.yaxis, axes.get_ylim(), "MAC/s")):
        decades = range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)
        axis.set_ticks([10.0**n for n in decades], labels=[round_quantity("", unit, 10.0**n) for n in decades])
        axis.minorticks_off()
    axes.tick_params(labelsize=10 * scale)
    axes.set_xlabel("multiply-accumulates for each byte that must move", size=10 * scale)
    axes.grid(True, color="#DDDDDD", linewidth=0.7)
    return figure


def _draw_roofs(axes: Axes, roofline: Roofline, ends: tuple[float, float], top: float, scale: float) -> None:
    """Arithmetic as level lines, the highest named above it and others below; copies as slopes up to it.

    Args:
        ends: of the axis along.
        top: where slopes end.
    """
    highest = max(roofline.ceilings.values(), default=0.0)
    for name, ceiling in roofline.ceilings.items():
        axes.axhline(ceiling, color="black", linewidth=1.2)
        place, side = (ceiling * 1.08, "bottom") if ceiling == highest else (ceiling / 1.08, "top")
        text = f"{name} {quantity('', 'MAC/s', ceiling)}"
        axes.text(0.5, place, text, size=8 * scale, ha="center", va=side, transform=axes.get_yaxis_transform())
    low, high = ends
    for copy in roofline.copies:
        end = min(high, top / copy)
        axes.plot([low, end], [low * copy, end * copy], "--", color="black", linewidth=1)
        axes.annotate(
            f"copy {quantity('', 'B/s', copy)}",
            (low * 1.15, low * 1.15 * copy),
            xytext=(0, 5 * scale),
            textcoords="offset points",
            size=8 * scale,
            rotation=math.degrees(math.atan2(*_slope(axes))),
            rotation_mode="anchor",
        )


def _slope(axes: Axes) -> tuple[float, float]:
    """Rise and run, in inches, of a line that is proportional in logarithms."""
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_window_extent()
    return box.height / math.log(y1 / y0), box.width / math.log(x1 / x0)


def _draw_growths(slopes: list[Growth], colors: dict[str, str], layout: Layout) -> Figure:
    """A panel for each quantity and variable, a row for each op: the measured slope and the closed form's."""
    from matplotlib.figure import Figure

    quantities, ops = list(dict.fromkeys(g.quantity for g in slopes)), list(dict.fromkeys(g.op for g in slopes))
    inside = 0.27 * len(ops) + 0.2
    scale, above = layout.scale, 1.05 if layout.titled else 0.4
    height, width = above - 0.3 + (inside + 0.75) * len(quantities), 8.6
    figure = Figure(figsize=(width * scale, height * scale))
    if layout.titled:
        heading = "Growth: measured and claimed exponents"
        figure.text(0.12 / width, 1 - 0.12 / height, heading, weight="bold", size=12, va="top")
        legend = "filled: slope in logarithms with 95 % bounds; hollow diamond: closed form over the same points"
        figure.text(0.12 / width, 1 - 0.38 / height, legend, size=9, color=_GREY, va="top")
    for row, metric in enumerate(quantities):
        for column, along in enumerate(VARIABLES):
            bottom = height - above - inside - row * (inside + 0.75)
            axes = figure.add_axes(((1.1 + 2.5 * column) / width, bottom / height, 2.3 / width, inside / height))
            panel = [g for g in slopes if (g.quantity, g.along) == (metric, along)]
            _draw_slopes(axes, panel, ops, colors, scale)
            axes.set_title(f"{metric} along {along}", size=9.5 * scale, loc="left")
            axes.set_yticks(range(len(ops)), labels=ops if column == 0 else [""] * len(ops))
    return figure


def _draw_slopes(axes: Axes, panel: list[Growth], ops: list[str], colors: dict[str, str], scale: float) -> None:
    for growth in panel:
        row, slope = ops.index(growth.op), growth.slope
        if slope is None:
            axes.text(-0.4, row, "too few points above overhead", size=7.5 * scale, color=_GREY, va="center")
            continue
        low = slope if growth.low is None else growth.low
        high = slope if growth.high is None else growth.high
        errors = [[slope - low], [high - slope]]
        drawn: dict[str, Any] = {"color": colors[growth.op], "capsize": 3 * scale, "markersize": 5 * scale}
        axes.errorbar([slope], [row], xerr=errors, fmt="o", **drawn)
        if growth.expected is not None:
            axes.plot(
                [growth.expected], [row], "D", color="black", markerfacecolor="none", markersize=7 * scale, zorder=3
            )
    axes.set_ylim(len(ops) - 0.5, -0.5)
    axes.set_xlim(-0.5, 3.5)
    axes.set_xticks(range(4))
    axes.tick_params(labelsize=10 * scale)
    axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.7)


def _draw(picture: Picture, colors: dict[str, str], styles: dict[str, Style], layout: Layout) -> Figure:
    """One figure; sizes are in inches, so that text keeps its size whatever the number of lines."""
    from matplotlib.figure import Figure

    notes = textwrap.wrap("No point: " + "; ".join(picture.missing) + ".", 140) if picture.missing else []
    notes = [*notes[:3], "and more, see the tables"] if len(notes) > 4 else notes
    notes = notes if layout.titled else []
    labels = [_short(series.label) for series in picture.series]
    scale, width = layout.scale, layout.width
    beside = scale * (0.075 * max(map(len, labels)) + 0.3)
    left, right = (0.9 * scale, beside) if picture.x_axis else (beside, 1.5 * scale)
    below, above = scale * (0.62 + 0.15 * len(notes)), scale * (0.75 if layout.titled else 0.25)
    row = scale * (0.19 if picture.x_axis else 0.32)
    inside = max(layout.inside, row * len(labels)) if picture.x_axis else row * len(labels) + 0.1
    height = below + inside + above
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, below / height, 1 - (left + right) / width, inside / height))
    axes.tick_params(labelsize=10 * scale)
    axes.xaxis.label.set_fontsize(10 * scale)
    if layout.titled:
        figure.text(0.12 / width, 1 - 0.12 / height, picture.title, weight="bold", size=12, va="top")
        figure.text(0.12 / width, 1 - 0.38 / height, picture.where, size=9, color=_GREY, va="top")
        figure.text(0.12 / width, 0.06 / height, "\n".join(notes), size=7.5, color=_GREY, va="bottom")
    if picture.x_axis:
        _draw_lines(axes, picture, colors, styles, scale, gap=0.165 * scale / inside)
    else:
        _draw_bars(axes, picture, colors, scale)
    return figure


def _draw_lines(
    axes: Axes, picture: Picture, colors: dict[str, str], styles: dict[str, Style], scale: float, gap: float
) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for series in picture.series:
        points = picture.lines.get(series, [])
        marker, line = styles[series.impl]
        xs, ys = [x for x, _ in points], [number(metric) for _, metric in points]
        # Baselines lie as a broad line below the others, so that both are seen where they agree.
        width, size, order = (3.5, 8.0, 2.0) if series.op in BASELINES else (1.5, 5.0, 2.1)
        width, size = width * scale, size * scale
        axes.plot(xs, ys, line, color=colors[series.op], marker=marker, linewidth=width, markersize=size, zorder=order)
        _draw_formula(axes, picture, series, colors[series.op], marker)
        if any(metric.low is not None for _, metric in points):
            axes.errorbar(
                xs, ys, yerr=_errors(points), fmt="none", ecolor=colors[series.op], capsize=3 * scale, elinewidth=scale
            )
    low, high = min(picture.ticks), max(picture.ticks)
    margin = max((high / low) ** 0.03, 1.05)
    axes.set_xlim(low / margin, high * margin)
    ticks = _apart(picture.ticks, 0.045 * math.log(high / low))
    axes.set_xticks(list(ticks), labels=list(ticks.values()))
    axes.xaxis.minorticks_off()
    oblong = [label for label in picture.ticks.values() if "×" in label]
    note = f"; {', '.join(oblong)} at the side of an equal square" if oblong else ""
    axes.set_xlabel(_X_LABELS.get(picture.x_axis or "", picture.x_axis or "") + note)
    _label_values(axes, picture, "y", scale)
    _label_lines(axes, picture, colors, scale, gap)


def _draw_formula(axes: Axes, picture: Picture, series: Series, color: str, marker: str) -> None:
    """Hollow points by closed form, dotted to the last one that was measured."""
    found = picture.by_formula.get(series, [])
    if found:
        before = [(x, metric) for x, metric in picture.lines.get(series, []) if x < found[0][0]][-1:]
        dotted = [*before, *found]
        axes.plot([x for x, _ in dotted], [number(metric) for _, metric in dotted], ":", color=color, linewidth=1.2)
        xs, ys = [x for x, _ in found], [number(metric) for _, metric in found]
        axes.plot(
            xs, ys, linestyle="none", color=color, marker=marker, markersize=6, markerfacecolor="white", zorder=2.2
        )


def _draw_bars(axes: Axes, picture: Picture, colors: dict[str, str], scale: float) -> None:
    bars = sorted(((series, points[0]) for series, points in picture.lines.items()), key=lambda b: -number(b[1][1]))
    least = min(number(metric) for _, (_, metric) in bars)
    axes.set_xscale("log")
    for row, (series, point) in enumerate(bars):
        metric = point[1]
        errors = _errors([point]) if metric.low is not None else None
        axes.barh(row, number(metric), height=0.62, color=colors[series.op], xerr=errors, capsize=3)
        text = f"  {quantity(metric.name, metric.unit, number(metric))}"
        axes.text(max(number(metric), metric.high or 0.0), row, text, va="center", size=9 * scale)
    axes.set_yticks(range(len(bars)), labels=[_short(series.label) for series, _ in bars])
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set_xlim(left=10 ** math.floor(math.log10(least) - 0.3))
    _label_values(axes, picture, "x", scale)


def _label_values(axes: Axes, picture: Picture, which: str, scale: float) -> None:
    """Ticks of the metric's axis, each with its unit: 1, 2 and 5 in each decade, or the decades alone where many."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axes.get_ylim() if which == "y" else axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < (3.3 if which == "y" else 1.5) else (1,)
    values = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
    axis.set_ticks(values, labels=[round_quantity(picture.metric, picture.unit, value) for value in values])
    axis.minorticks_off()
    axis.grid(True, color="#DDDDDD", linewidth=0.7)
    if which == "y":
        figure = cast("Figure", axes.get_figure())
        above = axes.get_position().y1 + 0.08 / figure.get_figheight()
        axes.text(0.01, above, picture.metric, transform=figure.transFigure, size=9 * scale)
    else:
        axes.set_xlabel(picture.metric)


def _label_lines(axes: Axes, picture: Picture, colors: dict[str, str], scale: float, gap: float) -> None:
    """Names the lines at their right ends, moved apart, with a thin leader where a line ends early."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [(series, x, number(metric)) for series in picture.series for x, metric in [picture.ends(series)]]
    ends.sort(key=lambda end: end[2])
    at = [(float(x), float(y)) for x, y in to_axes.transform([end[1:] for end in ends])]
    for (series, _, _), (x, y), place in zip(ends, at, _spread([y for _, y in at], gap), strict=True):
        color = colors[series.op]
        axes.plot((x, 1.025), (y, place), ":", color=color, linewidth=0.7, transform=axes.transAxes, clip_on=False)
        axes.text(1.03, place, _short(series.label), color=color, size=9 * scale, va="center", transform=axes.transAxes)


def _spread(wanted: list[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones, which rise, that are at least `gap` apart and between 0 and 1."""
    groups: list[tuple[float, int]] = []
    for i, place in enumerate(wanted):
        groups.append((place - i * gap, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            (a, m), (b, n) = groups[-2:]
            groups[-2:] = [((a * m + b * n) / (m + n), m + n)]
    flat = [min(max(mean, 0.0), 1.0 - (len(wanted) - 1) * gap) for mean, count in groups for _ in range(count)]
    return [mean + i * gap for i, mean in enumerate(flat)]


def _apart(ticks: dict[float, str], distance: float) -> dict[float, str]:
    """The ticks whose labels do not run into one another, plain numbers first; distance is in logarithms."""
    kept: dict[float, str] = {}
    for x, label in sorted(ticks.items(), key=lambda tick: (not tick[1].isdigit(), tick[0])):
        if all(abs(math.log(x / other)) >= distance for other in kept):
            kept[x] = label
    return kept


def _errors(points: list[tuple[float, Metric]]) -> list[list[float]]:
    """Distances to the bounds, none where there are none."""
    below = [number(m) - m.low if m.low is not None and m.low > 0 else 0.0 for _, m in points]
    above = [m.high - number(m) if m.high is not None else 0.0 for _, m in points]
    return [below, above]


def _short(label: str) -> str:
    return label if len(label) <= 32 else label[:31] + "…"


def _render(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    if kind == "png":
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    else:
        undated = {"Date": None} if kind == "svg" else {"CreationDate": None, "Producer": None}
        figure.savefig(buffer, format=kind, metadata={**undated, "Creator": None})
    return buffer.getvalue()


#: `--style paper`.
PAPER = _Paper()
