"""The operators of a call, of the suite `profile`: which take the time, and how fast they move their bytes."""

from __future__ import annotations

from .arrange import Entry, axis_text, resolution
from .units import quantity

OPERATORS = ("case", "resolution", "operator", "calls", "time", "bytes", "of the copy roof", "trace")
#: Rows of one case.
MOST = 4


def operator_rows(entries: list[Entry]) -> list[list[str]]:
    """The operators that take longest, of every op and impl at its largest resolution."""
    largest: dict[str, Entry] = {}
    for entry in entries:
        if entry.record.status == "ok" and entry.record.settings.get("operators"):
            before = largest.get(entry.series.label)
            if before is None or _pixels(entry) >= _pixels(before):
                largest[entry.series.label] = entry
    return [row for label, entry in largest.items() for row in _rows(label, entry)]


def _rows(label: str, entry: Entry) -> list[list[str]]:
    copy, trace = entry.record.metric("roof_copy"), entry.record.settings.get("trace", "")
    rows = []
    for i, operator in enumerate(entry.record.settings["operators"][:MOST]):
        seconds, size = operator["time"], operator["bytes"]
        part = size / copy.value / seconds if copy and copy.value and seconds else None
        rows.append(
            [
                label if i == 0 else "",
                axis_text("resolution", resolution(entry.record)) if i == 0 else "",
                operator["name"],
                str(operator["calls"]),
                quantity("time", "s", seconds),
                quantity("bytes", "B", size),
                "" if part is None else quantity("roof_fraction", "1", part),
                str(trace) if i == 0 else "",
            ]
        )
    return rows


def _pixels(entry: Entry) -> int:
    height, width = resolution(entry.record) or (0, 0)
    return height * width
