"""What paired measurements say: `ab` writes them, this module decides, from records alone.

A record of such a run is one side of one case in one pair; it has two further axes, `pair` and `side`. The samples of
the two sides were taken side by side, in a few processes each (see `suites.core.ab`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from .. import FAILURES, Block, Json, Record, Run
from . import significance
from .compare import judged
from .verdicts import AMBIGUOUS, FASTER, MISSING, NOT_COMPARABLE, SLOWER, Comparison, Verdict

PAIR, SIDE = "pair", "side"
BASE, NEW = "base", "new"
#: After so many pairs an undecided comparison is looked at. Each look has an equal part of the error rate (Bonferroni),
#: and even the first has pairs enough to decide at its part.
LOOKS = (8, 12, 16, 20)

#: Of a process's samples: what its time is taken to be.
QUANTILE = 0.05

#: Pairs from this number on are of a second measurement, of the cases that the first one found slower.
CONFIRMING = 1000

Hypothesis = tuple[str, str]


def judge(run: Run) -> Comparison:
    """What a paired run says of every case; see `Verdict`.

    Args:
        run: its environment's `ab` tells the sides' names, the placebos, how many looks were planned, the family-wise
            error rate of all of them together, and the floor.
    """
    told: Json = run.environment["ab"]
    comparison = judge_pairs(told, [record for record in run.records if record.axes[PAIR] < CONFIRMING])
    second = [record for record in run.records if record.axes[PAIR] >= CONFIRMING]
    if second:
        _confirm(comparison, judge_pairs(told, second))
    return comparison


def judge_pairs(told: Json, records: Sequence[Record]) -> Comparison:
    """What the pairs of one measurement say."""
    looks, level, floor = int(told["looks"]), float(told["level"]), float(told["floor"])
    differences = log_ratios(records)
    broken = _broken(records)
    open_cases = [key for key in differences if key[0] not in broken]
    verdicts = _verdicts(open_cases, differences, records, level, floor, looks)
    verdicts += broken.values()
    verdicts += [
        Verdict(case, "", "", NOT_COMPARABLE, reason=reason) for case, reason in told.get("left_out", {}).items()
    ]
    only = told.get("only", {})
    verdicts += [Verdict(case, "", "", MISSING, reason="the base has it") for case in only.get(BASE, [])]
    for verdict in verdicts:
        verdict.placebo = verdict.case in told.get("placebos", [])
    _doubt(verdicts)
    notes = [f"{len(only[NEW])} cases only the new side has: {', '.join(only[NEW][:3])}"] if only.get(NEW) else []
    return Comparison("ab", told[BASE], told[NEW], verdicts, level, floor, notes)


def flagged(comparison: Comparison) -> list[str]:
    """The cases that were found slower."""
    return list(dict.fromkeys(v.case for v in comparison.of(SLOWER)))


def _confirm(first: Comparison, second: Comparison) -> None:
    """What was found slower has to be so again; the second measurement is then what is told of it."""
    again = {(v.case, v.metric): v for v in second.verdicts}
    for place, verdict in enumerate(first.verdicts):
        if verdict.verdict != SLOWER:
            continue
        found = again.get((verdict.case, verdict.metric))
        if found is not None and found.verdict == SLOWER:
            first.verdicts[place] = replace(found, reason="slower in a second measurement too")
        else:
            reason = "slower at first, and not when measured again"
            first.verdicts[place] = replace(verdict, verdict=AMBIGUOUS, worse=False, reason=reason)


def decided(comparison: Comparison) -> bool:
    """Whether more pairs would change nothing: each case moved, or its interval leaves no room for an effect."""
    low, high = 1 / (1 + comparison.floor), 1 + comparison.floor
    timed = [v for v in comparison.verdicts if v.ratio is not None]
    moved = (FASTER, SLOWER)
    return all(v.verdict in moved or (low < (v.low or 0) and (v.high or math.inf) < high) for v in timed)


def log_ratios(records: Iterable[Record]) -> dict[Hypothesis, dict[int, float]]:
    """By case and metric, for each pair the log of new over base.

    A side's time in a pair is that of its fastest process, and a process's time the lowest twentieth of its samples.
    What other programs add to a call is never negative and falls on some calls alone; what badly placed pages add falls
    on all calls of a process and on some processes alone: so these agree from pair to pair much better than medians do
    (docs/comparing.md). A change that spares a twentieth of the calls, or one process in three, is not seen. Blocks
    that something else disturbed as a whole, and which were taken again, count only where a side has no others.
    """
    blocks: dict[Hypothesis, dict[int, dict[str, list[Block]]]] = {}
    for record in records:
        if record.status == "ok":
            for block in record.samples:
                pairs = blocks.setdefault((case_of(record), block.metric), {})
                pairs.setdefault(record.axes[PAIR], {BASE: [], NEW: []})[record.axes[SIDE]].append(block)
    return {
        hypothesis: {
            n: time_of(pair[NEW]) - time_of(pair[BASE]) for n, pair in pairs.items() if pair[NEW] and pair[BASE]
        }
        for hypothesis, pairs in blocks.items()
    }


def case_of(record: Record) -> str:
    """The id of the case that a record is one side of."""
    return record.case.removesuffix(f":{PAIR}={record.axes[PAIR]}:{SIDE}={record.axes[SIDE]}")


def time_of(blocks: list[Block]) -> float:
    """The log of the time of the fastest process, in seconds; see `log_ratios`."""
    samples: dict[int, list[float]] = {}
    for block in [block for block in blocks if not block.disturbed] or blocks:
        samples.setdefault(block.process, []).extend(block.values)
    return math.log(min(float(np.quantile(values, QUANTILE)) for values in samples.values()))


def _verdicts(
    hypotheses: Sequence[Hypothesis],
    differences: dict[Hypothesis, dict[int, float]],
    records: Iterable[Record],
    level: float,
    floor: float,
    looks: int,
) -> list[Verdict]:
    numbers = sorted({number for key in hypotheses for number in differences[key]})
    if not numbers:
        return []
    table = np.array([[differences[key].get(number, math.nan) for key in hypotheses] for number in numbers])
    medians = _medians(records)
    needed = significance.needed(level / looks, paired=True)
    return [
        judged(
            Verdict(*key, "s", AMBIGUOUS, medians[(*key, BASE)], medians[(*key, NEW)]),
            finding._replace(p=min(1.0, finding.p * looks)),
            floor,
            level,
            needed,
        )
        for key, finding in zip(hypotheses, significance.paired(table, level / looks), strict=True)
    ]


def _medians(records: Iterable[Record]) -> dict[tuple[str, str, str], float]:
    """The median of the processes' medians by case, metric and side, in seconds."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        by_metric: dict[str, list[float]] = {}
        for block in record.samples:
            by_metric.setdefault(block.metric, []).extend(block.values)
        for metric, samples in by_metric.items():
            values.setdefault((case_of(record), metric, record.axes[SIDE]), []).append(median(samples))
    return {key: median(found) for key, found in values.items()}


def _broken(records: Iterable[Record]) -> dict[str, Verdict]:
    """Cases that a side did not measure to the end, by id: what failed in the new side is `missing` from it."""
    found: dict[str, Verdict] = {}
    for record in records:
        if record.status == "ok":
            continue
        side, case = record.axes[SIDE], case_of(record)
        word = MISSING if side == NEW and record.status in FAILURES else NOT_COMPARABLE
        if case not in found or word == MISSING:
            found[case] = Verdict(case, "", "", word, reason=f"{side}: {record.status}: {record.reason}")
    return found


def _doubt(verdicts: list[Verdict]) -> None:
    """Where a placebo moved, something other than the change moves cases here: no movement is to be believed."""
    moved = [v for v in verdicts if v.placebo and v.verdict in (FASTER, SLOWER)]
    if not moved:
        return
    reason = f"a placebo, which runs the same program on both sides, moved too: {moved[0].case}"
    for verdict in verdicts:
        if verdict.verdict in (FASTER, SLOWER):
            verdict.verdict, verdict.worse, verdict.reason = AMBIGUOUS, False, reason
