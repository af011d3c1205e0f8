"""The poster's claims, held against the records of a run. This module is the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evidence import Evidence

REPRODUCED, EXCEEDED, NOT_REPRODUCED, NOT_TESTABLE = "reproduced", "exceeded", "not_reproduced", "not_testable"
VERDICTS = (REPRODUCED, EXCEEDED, NOT_REPRODUCED, NOT_TESTABLE)


@dataclass(frozen=True)
class Finding:
    """What the records of a run say of a claim.

    Args:
        verdict: `exceeded` is better than published: cheaper than the figure, or not slower where the poster says it
            is slower.
        ours: our value, in the unit of the claim; None where there is none, or no single one.
        low, high: its 95 % bounds, where it is an estimate.
        basis: what it rests on: impls, batch, shapes.
        reason: why, where the verdict alone does not say it.
        undecided: it was tested, but the bounds lie on both sides, or nobody says what is to be counted; the verdict is
            `not_testable`.
    """

    verdict: str
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    basis: str = ""
    reason: str = ""
    undecided: bool = False


#: Holds one kind of claim against the records.
Rule = Callable[["Evidence"], Finding]


@dataclass(frozen=True)
class Claim:
    """A published figure, ordering or growth.

    Args:
        id: unique and stable.
        source: where it is published: `Table 2`, `text`, ...
        kind: claims of one source and kind are alike: `latency`, `order`, `params`, ...
        published: the figure as printed, or what was computed from printed figures.
        unit: of the published value and ours: `ms`, `M` (million parameters), `GMAC`, `1`; empty for what is no number.
        command: the command that tests it.
    """

    id: str
    source: str
    kind: str
    statement: str
    published: str
    unit: str
    rule: Rule
    command: str
