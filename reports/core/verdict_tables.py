"""A comparison told: on the terminal, as markdown, CSV, JSON and a page; the same for `compare` and `ab`."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from .. import comparison_formats
from .markup import escape, table
from .records import RunError, within
from .units import digits, quantity
from .verdicts import AMBIGUOUS, CHANGED, FASTER, SAME, SLOWER, VERDICTS, Comparison, Verdict

#: Rows that say that nothing happened are folded beyond this number.
MOST_SAME = 12
COLUMNS = [f.name for f in fields(Verdict)]
HEADER = ("verdict", "case", "metric", "base", "new", "change", "95 % bounds", "detectable", "p", "why")
WIDTH = 120


def terminal(comparison: Comparison, everything: bool = False) -> str:
    """The answer first, then a row for each metric that needs looking at, then notes.

    Args:
        everything: whether rows that say `same` are listed however many there are.
    """
    same = comparison.of(SAME)
    folded = [] if everything or len(same) <= MOST_SAME else same
    rows = [cells(v) for v in ordered(comparison.verdicts) if v not in folded]
    parts = [*answer(comparison), ""]
    if rows:
        parts += [*_aligned(rows), ""]
    if folded:
        parts += [f"same: {_folded(folded)}; --all lists them", ""]
    parts += [line for note in comparison.notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
    return "\n".join(parts)


def markdown(comparison: Comparison) -> str:
    """The whole comparison as a page."""
    first, *further = answer(comparison)
    parts = [
        f"# {escape(f'{comparison.command}: {comparison.new} against {comparison.base}')}\n",
        f"**{escape(first)}**\n",
    ]
    parts += [f"{escape(sentence)}\n" for sentence in further]
    for title, rows in (
        ("What stands out", [v for v in ordered(comparison.verdicts) if v.verdict != SAME]),
        ("Same", comparison.of(SAME)),
    ):
        if rows:
            parts += [f"## {title}\n", table(HEADER, map(cells, rows))]
    parts += ["## How to read this\n", "".join(f"- {escape(line)}\n" for line in [*LEGEND, *comparison.notes])]
    return "\n".join(parts)


def as_csv(comparison: Comparison) -> str:
    """One metric of one case a row, in SI base units; ratios, bounds and `detectable` as fractions of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(v, name) for name in COLUMNS] for v in comparison.verdicts)
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """What `Comparison.from_json` reads."""
    return json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _as_page(comparison: Comparison) -> str:
    from .verdict_page import as_page  # which needs this module's words

    return as_page(comparison)


#: How a comparison is written to a file, by format.
FILES: dict[str, tuple[str, Callable[[Comparison], str]]] = {
    "markdown": ("comparison.md", markdown),
    "csv": ("comparison.csv", as_csv),
    "json": ("comparison.json", as_json),
    "html": ("comparison.html", _as_page),
}
TERMINAL = "terminal"
FORMATS = (TERMINAL, *FILES)


def known_formats() -> list[str]:
    """All of them: `FORMATS`, and those of `reports/` that tell comparisons too, which are written on request."""
    return [*FORMATS, *comparison_formats()]


def write(comparison: Comparison, formats: Iterable[str], target: Path) -> None:
    """Writes `comparison.md`, `.csv`, `.json` and `.html` into a folder, and other formats' files, those asked for.

    Raises:
        RunError: if they cannot be written.
    """
    contents: dict[str, str | bytes] = {}
    for name in formats:
        if name in FILES:
            file, render = FILES[name]
            contents[file] = render(comparison)
        elif name != TERMINAL:
            contents |= comparison_formats()[name].serialize_comparison(comparison)
    try:
        for file, content in contents.items():
            target.mkdir(parents=True, exist_ok=True)
            within(target, file).write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error


LEGEND = (
    "change: how far the time of new lies from that of base, with the 95 % bounds of this case alone; with few "
    "processes there are none.",
    "p is family-wise: the chance that anything in this table would look so different if nothing had changed.",
    "detectable: the smallest effect that this comparison would have called one, given the noise it met; `any` of "
    "exact metrics, `none` where processes are too few.",
    "same: no significant change, with enough processes to have shown one of the size under `detectable`.",
    "ambiguous: it cannot be decided, and why; where processes are too few, measure again with as many as are named.",
)


def answer(comparison: Comparison) -> list[str]:
    """What was found, in sentences."""
    counts = Counter(v.verdict for v in comparison.verdicts)
    told = ", ".join(f"{counts[word]} {word.replace('_', ' ')}" for word in VERDICTS if counts[word])
    parts = [f"{_headline(comparison)}: {told or 'nothing compared'}."]
    if comparison.command == "baseline":
        return [*parts, f"{comparison.new} against {comparison.base}: numbers without noise, any difference is told."]
    parts.append(
        f"{comparison.new} against {comparison.base}: false alarms in at most {100 * comparison.level:g} % of "
        f"comparisons, effects below {100 * comparison.floor:g} % not called one."
    )
    unsure = [v for v in comparison.of(SAME) if v.ratio and abs(v.ratio - 1) >= comparison.floor and v.p is not None]
    if unsure:
        parts.append(
            f"{len(unsure)} of the same lie {100 * comparison.floor:g} % or more apart, which is within their noise; "
            f"more processes would tell."
        )
    lacking = [v.needed for v in comparison.of(AMBIGUOUS) if v.needed is not None]
    if lacking:
        what = "pairs" if comparison.command == "ab" else "processes on each side (--processes)"
        parts.append(
            f"{len(lacking)} rest on too few: {max(lacking)} {what} make a verdict possible, more a sharp one."
        )
    return parts


def _headline(comparison: Comparison) -> str:
    decided = len(comparison.of(SLOWER, CHANGED, FASTER, SAME))
    match comparison.exit_code(strict=True):
        case 1:
            return "Regression"
        case 4:
            return "Cases are missing or failed"
        case 3:
            if comparison.command == "baseline" and comparison.of(CHANGED):
                return "No regression, but the baseline is out of date"
            return "No regression, but not all was decided" if decided else "Nothing was decided"
    return "No regression"


def ordered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """By verdict, the largest change first."""
    return sorted(verdicts, key=lambda v: (VERDICTS.index(v.verdict), -abs((v.ratio or 1) - 1)))


def cells(v: Verdict) -> list[str]:
    """A verdict in words, under `HEADER`."""
    exact = v.p is None
    return [
        v.verdict.replace("_", " ") + (" (placebo)" if v.placebo else ""),
        v.case,
        v.metric,
        *("" if value is None else _value(v, value, exact) for value in (v.base, v.new)),
        _difference(v) if exact else "" if v.ratio is None else _change(v.ratio),
        "" if v.low is None or v.high is None else f"{_change(v.low)} to {_change(v.high)}",
        _detectable(v),
        "" if v.p is None else f"{v.p:.2g}",
        " ".join(v.reason.split()),
    ]


def _value(v: Verdict, value: float, exact: bool) -> str:
    """A measured value scaled; a count in full, since any difference matters."""
    return (
        f"{value:,.0f} {'' if v.unit == '1' else v.unit}".rstrip()
        if exact and value == int(value)
        else quantity(v.metric, v.unit, value)
    )


def _detectable(v: Verdict) -> str:
    if v.p is None:
        return "any" if v.verdict in (SAME, CHANGED) else ""
    return "none" if v.detectable is None else _percent(v.detectable)


def _difference(v: Verdict) -> str:
    """Of counts, in full."""
    if v.base is None or v.new is None or v.base == v.new:
        return ""
    return f"{v.new - v.base:+,.10g}"


def change(v: Verdict) -> str:
    """How far the new value lies from the base's, with its bounds where there are some; empty where there is none."""
    if v.p is None:
        return _difference(v)
    bounds = f" ({_change(v.low)} to {_change(v.high)})" if v.low is not None and v.high is not None else ""
    return "" if v.ratio is None else _change(v.ratio) + bounds


def _change(ratio: float) -> str:
    percent = (ratio - 1) * 100
    return f"{percent:+.1f} %" if abs(percent) < 99.95 else f"x{digits(ratio)}"


def _percent(part: float) -> str:
    return f"{digits(100 * part)} %"


def _folded(verdicts: Sequence[Verdict]) -> str:
    """What the rows that are not shown say together."""
    timed = sorted(v.detectable for v in verdicts if v.detectable is not None)
    exact = sum(v.p is None for v in verdicts)
    told = []
    if timed:
        told.append(
            f"{len(timed)} timed, in each of which a slow-down of {_percent(timed[0])} to {_percent(timed[-1])} "
            f"(half of them at most {_percent(timed[(len(timed) - 1) // 2])}) would have been seen"
        )
    return ", ".join([*told, *([f"{exact} exact"] if exact else [])])


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of plain text: numbers to the right, the long case last but for the reason, empty columns left out."""
    order = [0, 5, 6, 7, 8, 3, 4, 2, 1, 9]
    kept = [i for i in order if any(row[i] for row in rows)]
    lines = [[HEADER[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    right = [i in (3, 4, 5, 7, 8) for i in kept]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    ]
