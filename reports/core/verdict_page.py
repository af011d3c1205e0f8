"""A comparison as a page: the answer, each ratio with its bounds, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from .. import Json
from .figures import look, rounded
from .markup import short_names
from .palette import Style
from .verdict_tables import HEADER, LEGEND, answer, cells, ordered
from .verdicts import AMBIGUOUS, FASTER, SAME, SLOWER, Comparison, Verdict
from .web import Answer, Section, page

#: Rows of one panel; the table has all.
_MOST = 60
_LOOKS = {
    SLOWER: ("#D55E00", Style("s", "-")),
    FASTER: ("#0072B2", Style("D", "-")),
    AMBIGUOUS: ("#E69F00", Style("^", "-")),
    SAME: ("#777777", Style("o", "-")),
}


def as_page(comparison: Comparison) -> str:
    """`comparison.html`."""
    verdicts = ordered(comparison.verdicts)
    names = short_names(verdict.case for verdict in verdicts)
    title = f"{comparison.command}: {comparison.new} against {comparison.base}"
    figure = {"title": "New over base, with 95 % bounds of each case alone", "panels": list(_panels(verdicts, names))}
    sections = [
        Section("Ratios", figures=[figure] if figure["panels"] else []),
        Section("Verdicts", tables=[("", _table(verdicts))]),
        Section("How to read this", points=[("", line) for line in [*comparison.notes, *LEGEND]]),
    ]
    said = [Answer(f"{comparison.new} against {comparison.base}", answer(comparison))]
    return page(title, said, [section for section in sections if section.title != "Ratios" or section.figures])


def _panels(verdicts: Sequence[Verdict], names: dict[str, str]) -> Iterable[Json]:
    """One a timed metric: a row for each case, what moved most first."""
    timed = sorted((v for v in verdicts if v.ratio is not None and v.p is not None), key=lambda v: v.metric)
    for metric, found in groupby(timed, key=lambda v: v.metric):
        rows = list(found)
        shown = rows[:_MOST]
        series = [
            {
                **look(word, color, style),
                "points": [
                    [rounded(v.ratio), row, rounded(v.low), rounded(v.high), None]
                    for row, v in enumerate(shown)
                    if v.verdict == word
                ],
                "hollow": [],
            }
            for word, (color, style) in _LOOKS.items()
        ]
        yield {
            "where": metric,
            "x": {"label": f"{metric}: new over base", "metric": "", "unit": "1", "log": 10, "reference": 1},
            "y": {"rows": [names[v.case] for v in shown]},
            "bounds": "x",
            "series": [each for each in series if each["points"]],
            "notes": [f"{len(rows) - _MOST} more are in the table"] if len(rows) > _MOST else [],
        }


def _table(verdicts: Iterable[Verdict]) -> Json:
    """The columns of the other formats; numbers sort by what they are."""
    keys = {"base": "base", "new": "new", "change": "ratio", "detectable": "detectable", "p": "p"}
    columns = [{"name": name, "facet": name in ("verdict", "metric"), "wide": name == "why"} for name in HEADER]
    rows = []
    for verdict in verdicts:
        row: list[object] = [None]
        for name, text in zip(HEADER, cells(verdict), strict=True):
            key = getattr(verdict, keys[name]) if name in keys else None
            row.append(text if key is None or not text else {"text": text, "key": rounded(key)})
        rows.append(row)
    return {"columns": columns, "rows": rows}
