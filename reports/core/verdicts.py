"""The vocabulary of comparing: what a comparison says of each case, and of all together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from .. import SCHEMA_VERSION, Json

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
        metric: its name; empty where the case as a whole is meant.
        base, new: its values, in `unit`; None where there is none.
        ratio, low, high: new over base with 95 % bounds (of this case alone), where it is an estimate.
        p: the family-wise p value, over all cases of the comparison; None for exact metrics.
        detectable: the smallest effect that this comparison could have shown for this case, relative (0.03 for 3 %);
            None where no effect could have been shown, or the metric is exact.
        processes: replicates (`compare`) or pairs of them (`ab`) that the verdict rests on.
        needed: so many would decide it, where there are not enough.
        worse: whether it is slower or changed for the worse, so that it counts as a regression.
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
        command: `compare`, `baseline` or `ab`.
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

    def exit_code(self, strict: bool = False) -> int:
        """1 for a regression, else 4 for a missing case, else 0; 3 instead of 0 if strict and not all was decided, or
        something differs from a baseline, which a commit has to acknowledge."""
        if any(v.worse for v in self.of(SLOWER, CHANGED)):
            return 1
        if self.of(MISSING):
            return 4
        unsettled = (AMBIGUOUS, NOT_COMPARABLE, *((CHANGED,) if self.command == "baseline" else ()))
        return 3 if strict and (self.of(*unsettled) or not self.verdicts) else 0

    def to_json(self) -> Json:
        """One JSON object."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "verdicts"}
        return {"schema_version": SCHEMA_VERSION, **plain, "verdicts": [v.to_json() for v in self.verdicts]}

    @classmethod
    def from_json(cls, data: Json) -> Comparison:
        """The inverse of `to_json`; fields that this version does not know are left out.

        Raises:
            KeyError, TypeError: if a field is missing.
        """
        known, of_verdict = ({f.name for f in fields(kind)} for kind in (cls, Verdict))
        verdicts = [Verdict(**{k: v for k, v in item.items() if k in of_verdict}) for item in data["verdicts"]]
        return cls(**{k: v for k, v in data.items() if k in known} | {"verdicts": verdicts})
