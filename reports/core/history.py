"""The vocabulary of a history: what a metric was at each commit, and where it moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .. import SCHEMA_VERSION, Json
from .change_points import Found, change_points, steps
from .verdicts import FLOOR, LEVEL


@dataclass
class Point:
    """A commit in a series: the median of its runs.

    Args:
        dirty: whether the tree had uncommitted changes; such a state is a point of its own.
        subject: the first line of the commit's message.
        committed: seconds since 1970.
        runs: their folders.
        surroundings: software and machine of the last of them.
    """

    revision: str
    dirty: bool
    subject: str
    committed: int
    value: float
    low: float | None
    high: float | None
    runs: list[str]
    surroundings: Json = field(default_factory=dict)

    @property
    def commit(self) -> str:
        """The commit's hash, short, whatever a file may call one; `?` where there is none."""
        return "".join(filter(str.isalnum, self.revision))[:10] or "?"

    @property
    def label(self) -> str:
        """The commit, and whether the tree was one."""
        return f"{self.commit}{' (dirty)' if self.dirty else ''}"


@dataclass
class Change:
    """Where a series moved.

    Args:
        at: place of the first point after it.
        ratio: of the median after it to that before it, as far as the neighbouring changes.
        p: of the permutation test, among all series that were looked at; None for exact metrics.
        reason: what else differs between the runs before and after it: software, kernel.
    """

    at: int
    ratio: float | None
    p: float | None
    reason: str = ""


@dataclass
class Series:
    """One metric of one case on one device, over commits.

    Args:
        kind: of device, `cpu` or `cuda`.
        settings: threads, malloc and what else must be the same for two numbers to be compared.
        exact: whether any difference counts.
    """

    device: str
    kind: str
    case: str
    version: str
    settings: Json
    suite: str
    op: str
    impl: str
    metric: str
    unit: str
    exact: bool
    points: list[Point] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def before(self, change: Change) -> Point:
        """The last point before a change."""
        return self.points[change.at - 1]

    def after(self, change: Change) -> Point:
        """The first point after a change."""
        return self.points[change.at]


@dataclass
class History:
    """Series, and the changes in them.

    Args:
        index: the file they are from.
        level: of the error over all series: so often one that did not move is said to have.
        floor: the smallest effect that is called one, relative.
    """

    index: str
    series: list[Series]
    level: float = LEVEL
    floor: float = FLOOR

    @property
    def changes(self) -> list[tuple[Series, Change]]:
        """All of them, the latest first, of one commit the largest first."""
        found = [(series, change) for series in self.series for change in series.changes]
        return sorted(found, key=lambda f: (-f[0].after(f[1]).committed, -abs((f[1].ratio or 2) - 1), f[0].case))

    def most_moved(self, count: int) -> list[Series]:
        """So many series, those with changes first."""
        return sorted(self.series, key=lambda series: not series.changes)[:count]

    def to_json(self) -> Json:
        """One JSON object."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def look(index: str, series: list[Series], level: float = LEVEL, floor: float = FLOOR) -> History:
    """Finds the changes of series; each test is held to its part of the level (Bonferroni)."""
    history = History(index, series, level, floor)
    tested = [s for s in series if not s.exact]
    for one in series:
        values = [point.value for point in one.points]
        found = _stepped(values) if one.exact else change_points(values, floor, level / len(tested))
        one.changes = [_change(one, f, len(tested)) for f in found]
    return history


def _stepped(values: Sequence[float]) -> list[Found]:
    """Every difference of numbers without noise."""
    edges = [0, *steps(values), len(values)]
    return [Found(at, values[at] / values[at - 1] if values[at - 1] else 0.0, 0.0) for at in edges[1:-1]]


def _change(series: Series, found: Found, tests: int) -> Change:
    before, after = series.points[found.at - 1].surroundings, series.points[found.at].surroundings
    differing = [
        f"{key} {before.get(key)}, then {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]
    p = None if series.exact else min(1.0, found.p * tests)
    return Change(found.at, found.ratio or None, p, "; ".join(differing))
