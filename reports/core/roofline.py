"""The roofline: how fast each case does its multiply-adds, over how many it has for each byte that must move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .. import Metric, Record
from .arrange import PLACE_AXES, Arrangement, Place, Series, axis_text, number, place_text

SUITE, PATH = "profile", "plots/profile-roofline"
#: Clocks, the first one that a record has.
CLOCKS = ("latency_device", "latency_wall")
#: Axes that make a plot of their own.
APART = PLACE_AXES[:5]
#: Roofs that differ by less are drawn as one.
ALIKE = 1.1


@dataclass(frozen=True)
class Point:
    """One case.

    Args:
        intensity: multiply-accumulates for each byte of the floor.
        rate: multiply-accumulates a second.
        label: its resolution.
    """

    series: Series
    intensity: float
    rate: float
    label: str


@dataclass
class Roofline:
    """One plot.

    Args:
        path: relative to the run, without suffix.
        copies: bytes a second of the fastest and of the slowest copy that was measured (of small and of large sizes).
        ceilings: multiply-accumulates a second, by what does them.
        points: in the order of series.
    """

    path: str
    where: str
    copies: list[float]
    ceilings: dict[str, float]
    points: list[Point]


def rooflines(arranged: Arrangement) -> list[Roofline]:
    """A plot for each device, dtype, layout and direction of the suite `profile`."""
    by_place: dict[Place, list[tuple[Record, Point]]] = {}
    for record, place, series in arranged.suites.get(SUITE, []):
        height, width = record.axes.get("height"), record.axes.get("width")
        point = _point(record, series, axis_text("resolution", (height, width)) if height else "")
        if point is not None:
            by_place.setdefault(place[: len(APART)], []).append((record, point))
    found = []
    for i, (place, cases) in enumerate(by_place.items()):
        copies, ceilings = (ends((r for r, _ in cases), name) for name in ("roof_copy", "roof_arithmetic"))
        named = {"arithmetic": ceilings[-1]} if ceilings else {}
        if ceilings and ceilings[-1] > ALIKE * ceilings[0]:
            named = {"multiply-adds": ceilings[0], "matrix product": ceilings[-1]}
        path = PATH if i == 0 else f"{PATH}-{i + 1}"
        points = sorted((point for _, point in cases), key=lambda point: point.series.rank)
        where = place_text((*place, *(None,) * (len(PLACE_AXES) - len(APART))))
        found.append(Roofline(path, where, copies, named, points))
    return found


def _point(record: Record, series: Series, label: str) -> Point | None:
    found = intensity(record)
    return Point(series, found[0], number(found[1]), label) if found else None


def intensity(record: Record) -> tuple[float, Metric] | None:
    """Multiply-accumulates for each byte of the floor, and a second with bounds; None where either does not apply."""
    clock = next((m for name in CLOCKS if (m := record.metric(name)) and m.value), None)
    macs, floor = record.metric("macs"), record.metric("floor_bytes")
    if record.status != "ok" or clock is None or macs is None or floor is None or not macs.value or not floor.value:
        return None
    low, high = (macs.value / bound if bound else None for bound in (clock.high, clock.low))
    return macs.value / floor.value, Metric("macs_per_second", "MAC/s", macs.value / number(clock), low, high)


def ends(records: Iterable[Record], name: str) -> list[float]:
    """The least and the largest value of a roof, or one where they are alike; none where it was not measured."""
    values = sorted(m.value for record in records if (m := record.metric(name)) and m.value)
    if not values:
        return []
    return [values[-1]] if values[-1] <= ALIKE * values[0] else [values[0], values[-1]]
