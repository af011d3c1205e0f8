"""Pictures of the suite `detail`: guide, low resolution, each method and the truth in a row, for each scale.

They come from the records, which hold the first test scene in PNGs; `plots/detail-scale8.png` and `.svg`.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from . import Json, Record, Run
from .core.arrange import Arrangement, number
from .core.pictures import DETAIL_PATH
from .core.units import quantity

NAME = "detail"
ORDER = 21

#: Inches of one picture, and of what stands above it.
_SIDE, _ABOVE = 1.3, 0.42
_DPI = 150
#: Pictures in one line of the row, at most.
_MOST = 7


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    shown = [record for run in runs for record in run.records if "pictures" in record.settings]
    scales = sorted({int(record.axes["scale"]) for record in shown})
    files: dict[str, str | bytes] = {}
    for scale in scales:
        files |= _row(runs, scale)
    return files


def _row(runs: list[Run], scale: int) -> dict[str, str | bytes]:
    """The row of one scale, methods in falling order of their error."""
    import matplotlib
    from matplotlib.figure import Figure

    entries = [
        entry
        for entry in Arrangement(runs).suites["detail"]
        if "pictures" in entry.record.settings and entry.record.axes["scale"] == scale
    ]
    entries.sort(key=lambda entry: -_error(entry.record))
    first: Json = entries[0].record.settings["pictures"]
    panels = [("guide", first["guide"]), (f"low resolution, {scale} x", first["low"])]
    for series, record in ((entry.series, entry.record) for entry in entries):
        name = series.variant or f"{series.op} alone"
        panels.append((f"{name}\n{quantity('rmse', 'm', _error(record))}", record.settings["pictures"]["out"]))
    panels.append(("truth", first["truth"]))
    lines = -(-len(panels) // _MOST)
    columns = -(-len(panels) // lines)
    with matplotlib.rc_context({"svg.hashsalt": "ddfbench", "font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure(figsize=(columns * (_SIDE + 0.08), lines * (_SIDE + _ABOVE)))
        for i, (title, picture) in enumerate(panels):
            axes = figure.add_subplot(lines, columns, i + 1)
            axes.imshow(_pixels(picture), interpolation="nearest")
            axes.set_title(title, fontsize=7.5)
            axes.set_axis_off()
        figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.4 / (lines * (_SIDE + _ABOVE)), 0.05, 0.32)
        return {f"{DETAIL_PATH.format(scale)}.{kind}": _render(figure, kind) for kind in ("svg", "png")}


def _error(record: Record) -> float:
    metric = record.metric("rmse")
    return number(metric) if metric else 0.0


def _pixels(picture: str) -> Any:
    """Of a PNG in base64."""
    from matplotlib.image import imread

    return imread(io.BytesIO(base64.b64decode(picture)), format="png")


def _render(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    dated = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=dated)
    return buffer.getvalue()
