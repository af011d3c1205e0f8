"""All claims held against one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ... import Run
from . import NOT_TESTABLE, VERDICTS, Claim, Finding
from .evidence import Evidence
from .poster import claims


class Judgement(NamedTuple):
    """A claim with what a run says of it."""

    claim: Claim
    finding: Finding

    @property
    def tested(self) -> bool:
        """Whether the run has the evidence, be it decisive or not."""
        return self.finding.verdict != NOT_TESTABLE or self.finding.undecided

    @property
    def why(self) -> str:
        """What the verdict rests on, and its reason."""
        return "; ".join(filter(None, (self.finding.basis, self.finding.reason)))


def judge(run: Run) -> list[Judgement]:
    """Holds every claim against the records of a run."""
    evidence = Evidence(run)
    return [Judgement(claim, claim.rule(evidence)) for claim in claims()]


def verdict_counts(judged: Iterable[Judgement]) -> str:
    """`12 reproduced, 1 exceeded, 0 not reproduced, 99 not testable`."""
    number = Counter(judgement.finding.verdict for judgement in judged)
    return ", ".join(f"{number[verdict]} {verdict.replace('_', ' ')}" for verdict in VERDICTS)
