"""The vocabulary of comparing: what a comparison says of each case, and of all together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .. import Json

#: What can be said of one metric of one case. `changed` is for exact metrics, which have no noise.
FASTER, SLOWER, SAME, CHANGED = "faster", "slower", "same", "changed"
AMBIGUOUS, MISSING, NOT_COMPARABLE = "ambiguous", "missing", "not_comparable"
VERDICTS = (SLOWER, CHANGED, MISSING, AMBIGUOUS, NOT_COMPARABLE, FASTER, SAME)

#: The family-wise error rate of a comparison, and the smallest effect that is called one.
LEVEL = 0.05
FLOOR = 0.03


@dataclass
class Verdict:
    """What is said of one metric of one case.

    Args:
        base, new: its values, in `unit`; None where there is none.
        ratio, low, high: new over base with 95 % bounds (of this case alone), where it is an estimate.
        p: the family-wise p value, over all cases of the comparison; None for exact metrics.
        detectable: the smallest effect that this comparison could have shown for this case, relative (0.03 for 3 %);
            None where no effect could have been shown, or the metric is exact.
        processes: replicates (`compare`) or pairs of them (`ab`) that the verdict rests on.
        needed: so many would decide it, where there are not enough.
        worse: whether a change is for the worse, so that it counts as a regression.
        placebo: whether both sides run the same program, so that it must not move.
        reason: why, where the verdict alone does not say it.
    """

    case: str
    metric: str
    unit: str
    verdict: str
    base: float | None = None
    new: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None
    processes: int | None = None
    needed: int | None = None
    worse: bool = False
    placebo: bool = False
    reason: str = ""

    def to_json(self) -> Json:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass
class Comparison:
    """What two sides are compared to.

    Args:
        command: `compare` or `ab`.
        base, new: what to call the sides: a run, a revision.
        verdicts: one for each metric of each case.
        level: the family-wise error rate.
        floor: the smallest effect that is called one, relative.
        notes: what to know beside the table: drift between separate runs, how often this machine alarms falsely.
    """

    command: str
    base: str
    new: str
    verdicts: list[Verdict] = field(default_factory=list)
    level: float = LEVEL
    floor: float = FLOOR
    notes: list[str] = field(default_factory=list)

    def of(self, *verdicts: str) -> list[Verdict]:
        """The verdicts that are one of these."""
        return [v for v in self.verdicts if v.verdict in verdicts]
