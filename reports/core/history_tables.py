"""A history told: on the terminal, as markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from .history import Change, History, Point, Series
from .markup import escape, plain, table
from .units import quantity

#: The points of so many series are listed on the terminal; the files have all.
MOST_SERIES = 3
#: Characters of a commit's message.
MOST_SUBJECT = 60

CHANGES = ("change", "case", "metric", "before", "after", "p", "commits", "message", "what else differs")
POINTS = ("commit", "date", "value", "95 % bounds", "message", "runs")
SERIES = ("case", "metric", "commits", "first", "last", "changes")
COLUMNS = (
    *("device", "case", "version", "settings", "metric", "unit", "revision", "dirty", "committed", "value", "low"),
    *("high", "change", "p", "subject", "runs"),
)


def terminal(history: History) -> str:
    """The answer first, then the changes, then each series."""
    parts = [answer(history), ""]
    if history.changes:
        rows = [change_cells(series, change) for series, change in history.changes]
        parts += [*_aligned(CHANGES, rows), ""]
        parts += [f"  git log {commits(series, change)}" for series, change in distinct(history)] + [""]
    for device, several in by_device(history).items():
        parts += [f"{plain(device)}:", *_aligned(SERIES, [series_cells(series) for series in several]), ""]
    if len(history.series) <= MOST_SERIES:
        for series in history.series:
            parts += [plain(title(series)), *_aligned(POINTS, point_cells(series)), ""]
    return "\n".join(parts).rstrip()


def markdown(history: History) -> str:
    """The whole history as a page."""
    parts = ["# History\n", f"**{escape(answer(history))}**\n"]
    if history.changes:
        rows = [change_cells(series, change) for series, change in history.changes]
        parts += ["## Changes\n", table(CHANGES, rows)]
    if history.series:
        parts += ["![the metric over commits](history.svg)\n"]
    for device, several in by_device(history).items():
        parts += [f"## {escape(device)}\n", table(SERIES, [series_cells(series) for series in several])]
        for series in several:
            parts += [f"### {escape(title(series))}\n", table(POINTS, point_cells(series))]
    parts += ["## How to read this\n", "".join(f"- {escape(line)}\n" for line in legend(history))]
    return "\n".join(parts)


def as_csv(history: History) -> str:
    """A point a row, in SI base units; `change` is the ratio where one is at this point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in history.series:
        changes = {change.at: change for change in s.changes}
        settings = json.dumps(s.settings, sort_keys=True)
        for at, p in enumerate(s.points):
            own = (s.device, s.case, s.version, settings, s.metric, s.unit, p.revision, p.dirty, date(p))
            found = changes.get(at)
            moved = (found.ratio, found.p) if found else (None, None)
            writer.writerow([*own, p.value, p.low, p.high, *moved, p.subject, " ".join(p.runs)])
    return text.getvalue()


def as_json(history: History) -> str:
    """What programs read."""
    return json.dumps(history.to_json(), indent=1, ensure_ascii=False) + "\n"


def answer(history: History) -> str:
    """What was found, in a sentence."""
    measured = {(point.revision, point.dirty) for series in history.series for point in series.points}
    found = f"{len(history.changes)} change{'s' * (len(history.changes) != 1)}" if history.changes else "No change"
    count = len(history.series)
    return (
        f"{found} in {count} {'series' if count != 1 else 'metric of one case'} over {len(measured)} "
        f"commit{'s' * (len(measured) != 1)}, {', '.join(map(plain, by_device(history)))}."
    )


def legend(history: History) -> list[str]:
    """What the columns mean."""
    return [
        f"change: the median after it against that before it, as far as the neighbouring changes; effects below "
        f"{100 * history.floor:g} % are not called one. Exact metrics have no noise, and every difference is one.",
        "p: the chance that any of these series would look so if nothing had moved in it, the larger of that by "
        "permutation and that under noise of which half carries over to the next run; at most "
        f"{100 * history.level:g} %.",
        "commits: the last one measured before the change and the first one after it: it came with one of those "
        "between, the latter included.",
        "A metric `..._over_dwconv` is a multiple of depthwise convolution's by torch in the same run, which takes out "
        "what moves all cases of a run alike.",
    ]


def commits(series: Series, change: Change) -> str:
    """The range of commits that a change came with, as git takes it."""
    return f"{series.before(change).commit}..{series.after(change).commit}"


def title(series: Series) -> str:
    """A series in words."""
    settings = ", ".join(f"{key} {value}" for key, value in sorted(series.settings.items()))
    return f"{series.case}, {series.metric}{f' ({settings})' if settings else ''}"


def change_cells(series: Series, change: Change) -> list[str]:
    """A row of the table of changes."""
    before, after = series.before(change), series.after(change)
    return [
        moved(change),
        series.case,
        series.metric,
        quantity(series.metric, series.unit, before.value),
        quantity(series.metric, series.unit, after.value),
        "exact" if change.p is None else f"{change.p:.2g}",
        commits(series, change),
        message(after),
        change.reason,
    ]


def moved(change: Change) -> str:
    """By how much."""
    return "changed" if change.ratio is None else f"{100 * (change.ratio - 1):+.1f} %"


def series_cells(series: Series) -> list[str]:
    """A row of the table of series."""
    first, last = (quantity(series.metric, series.unit, series.points[at].value) for at in (0, -1))
    changes = ", ".join(f"{moved(change)} at {series.after(change).commit}" for change in series.changes)
    return [series.case, series.metric, str(len(series.points)), first, last, changes]


def point_cells(series: Series) -> list[list[str]]:
    """A row of the table of points for each."""
    changes = {change.at: moved(change) for change in series.changes}
    rows = []
    for at, point in enumerate(series.points):
        value, low, high = (
            "" if number is None else quantity(series.metric, series.unit, number)
            for number in (point.value, point.low, point.high)
        )
        mark = f"{changes[at]}: " if at in changes else ""
        bounds = f"{low} to {high}" if low and high else ""
        rows.append([point.label, date(point), value, bounds, mark + message(point), str(len(point.runs))])
    return rows


def message(point: Point) -> str:
    """The commit's, on one line."""
    subject = plain(point.subject)
    return subject if len(subject) <= MOST_SUBJECT else subject[: MOST_SUBJECT - 1] + "…"


def date(point: Point) -> str:
    """The commit's, in UTC."""
    return datetime.fromtimestamp(point.committed, UTC).strftime("%Y-%m-%d %H:%M")


def by_device(history: History) -> dict[str, list[Series]]:
    """The series of each device, by its name."""
    found: dict[str, list[Series]] = {}
    for series in history.series:
        found.setdefault(series.device or "unknown device", []).append(series)
    return found


def distinct(history: History) -> list[tuple[Series, Change]]:
    """A change for each range of commits."""
    return list({commits(*found): found for found in history.changes}.values())


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of plain text, empty ones left out."""
    cells = [[plain(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in cells)]
    lines = [[header[i] for i in kept], *([row[i] for i in kept] for row in cells)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
