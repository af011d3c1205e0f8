"""What a page knows of each case, as plain data: tables of cases, and the samples by process."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from .. import Json, Metric, Record
from .arrange import PLACE_AXES, Arrangement, Entry, axis_text, place_text
from .claims.judge import Judgement
from .figures import rounded
from .sections import ours, plain, published
from .summary import roof

#: Samples in one page, beyond which those of each process are thinned, evenly by rank. The records have all.
MOST_SAMPLES = 200_000
#: Seconds in the unit of samples in a page, microseconds, and the significant digits they are told with.
_SAMPLE_UNIT = 1e-6
_SAMPLE_DIGITS = 4
#: Characters of one setting of a case.
_LONGEST = 300


class Cases:
    """The cases of a page, each with an index by which figures and tables speak of it."""

    def __init__(self, arranged: Arrangement) -> None:
        entries = [entry for found in arranged.suites.values() for entry in found]
        self._index = {id(entry.record): i for i, entry in enumerate(entries)}
        kept = _kept_per_process([entry.record for entry in entries])
        self.content = [_case(entry, kept) for entry in entries]

    def index(self, record: Record) -> int | None:
        return self._index.get(id(record))


def case_table(entries: Sequence[Entry], cases: Cases) -> Json:
    """Every case of a suite: its place, its status and all its metrics."""
    varying = [i for i in range(len(PLACE_AXES)) if len({entry.place[i] for entry in entries}) > 1]
    metrics = {m.name: m.unit for entry in entries for m in entry.record.metrics}
    rows = []
    for entry in entries:
        record, found = entry.record, {metric.name: metric for metric in entry.record.metrics}
        where = [_axis_cell(PLACE_AXES[i], entry.place[i]) for i in varying]
        numbers = [metric_cell(found.get(name)) for name in metrics]
        rows.append([cases.index(record), entry.series.label, *where, record.status.replace("_", " "), *numbers])
    columns = [{"name": "case"}, *({"name": PLACE_AXES[i]} for i in varying), {"name": "status", "facet": True}]
    columns += [{"name": name, "unit": unit, "number": True} for name, unit in metrics.items()]
    return {"columns": columns, "rows": rows}


def claims_table(devices: Sequence[str], judged: Sequence[Sequence[Judgement]]) -> Json:
    """Every claim of the poster with what each run says of it, and the command that tests it."""
    columns: list[Json] = [{"name": "claim"}, {"name": "source", "facet": True}, {"name": "published"}]
    for device in devices:
        of = f", {device}" if len(devices) > 1 else ""
        columns += [{"name": f"ours{of}"}, {"name": f"verdict{of}", "facet": True}, {"name": f"why{of}", "wide": True}]
    columns.append({"name": "command", "code": True})
    rows = []
    for held in zip(*judged, strict=True):
        claim = held[0].claim
        row = [None, claim.statement, claim.source, published(claim)]
        for judgement in held:
            row += [ours(judgement), judgement.finding.verdict.replace("_", " "), judgement.why]
        rows.append([*row, claim.command or "(cited, never measured)"])
    return {"columns": columns, "rows": rows}


def word_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Json:
    """A table of words alone."""
    return {"columns": [{"name": name} for name in header], "rows": [[None, *row] for row in rows]}


def _case(entry: Entry, kept: int | None) -> Json:
    record = entry.record
    return {
        "id": record.case,
        "label": entry.series.label,
        "where": place_text(entry.place),
        "status": record.status.replace("_", " "),
        "reason": record.reason,
        "roof": roof(record),
        "settings": {key: _short(text) for key, value in record.settings.items() if (text := plain(value))},
        "samples": _samples(record, kept),
    }


def _samples(record: Record, kept: int | None) -> Json:
    """By metric, for each process: its number, how many samples it has, their median, and they themselves in order."""
    found: dict[str, dict[int, list[float]]] = {}
    for block in record.samples:
        values = [value for value in block.values if value is not None and math.isfinite(value)]
        if values:
            found.setdefault(block.metric, {}).setdefault(block.process, []).extend(values)
    return {
        metric: [
            [process, len(values), _in_page(median(values)), [_in_page(value) for value in _thinned(values, kept)]]
            for process, values in sorted(processes.items())
        ]
        for metric, processes in found.items()
    }


def _kept_per_process(records: Iterable[Record]) -> int | None:
    """How many samples of a process and metric the page has room for; None if for all."""
    total, lists = 0, set()
    for record in records:
        for block in record.samples:
            total += len(block.values)
            lists.add((id(record), block.metric, block.process))
    return None if total <= MOST_SAMPLES else max(1, MOST_SAMPLES // len(lists))


def _thinned(values: list[float], kept: int | None) -> list[float]:
    """All, or so many of them, evenly by rank."""
    if kept is None or len(values) <= kept:
        return values
    ordered = sorted(values)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * kept)] for i in range(kept)]


def _in_page(seconds: float) -> float | int:
    value = float(f"{seconds / _SAMPLE_UNIT:.{_SAMPLE_DIGITS}g}")
    return int(value) if value == int(value) else value


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _axis_cell(axis: str, value: object) -> str | int | float:
    """Numbers as such, so that they sort as such."""
    if isinstance(value, int | float):
        return value
    return axis_text(axis, value)


def metric_cell(metric: Metric | None) -> Json | list[float | int | None] | str | None:
    """Value, low and high, as far as there are; or why there is no value."""
    if metric is None:
        return None
    if metric.value is None or metric.status not in (None, "ok"):
        return f"{(metric.status or '').replace('_', ' ')}: {metric.reason or ''}".strip(": ")
    if metric.low is None or metric.high is None:
        return [rounded(metric.value)]
    return [rounded(metric.value), rounded(metric.low), rounded(metric.high)]
