"""Two runs against each other: a verdict for each metric of each case."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import FAILURES, RESULTS, Block, Metric, Record, Run
from .causes import cause
from .records import RunError
from .significance import Finding, Floats, needed, unpaired
from .verdicts import (
    AMBIGUOUS,
    CHANGED,
    FASTER,
    FLOOR,
    LEVEL,
    MISSING,
    NOT_COMPARABLE,
    SAME,
    SLOWER,
    Comparison,
    Verdict,
)

#: What both runs must share, in `run.json`'s device, and in the axes or settings of a record.
DEVICE = ("name", "driver")
SETTINGS = ("threads", "malloc", "tf32")
#: What may differ, since it may be what is compared, but is told: in `run.json`'s software and machine.
SOFTWARE = ("python", "torch", "cuda", "triton", "compiler")
MACHINE = ("kernel", "governor")

#: Units of exact metrics.
COUNTS = ("1", "B", "MAC")
#: Counts that are not exact: rounding errors, and what else the process or its neighbours hold.
NOT_EXACT = ("max_error", "process_memory")

AB = (
    "Runs taken apart carry drift (clocks, neighbours, heat) that no statistic removes: "
    "`python runner.py ab REV` measures two revisions interleaved."
)


class Timed(NamedTuple):
    """A timed metric that both runs have: medians in seconds, by process."""

    case: str
    metric: str
    base: dict[int, float]
    new: dict[int, float]


def compare(
    base: Run,
    new: Run,
    floor: float = FLOOR,
    level: float = LEVEL,
    metrics: Collection[str] | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares two runs.

    Args:
        floor: the smallest effect that is called one, relative.
        level: of the family-wise error over all timed metrics.
        metrics: names to compare, or None for all.
        notes: what else to tell, such as the drift that was measured between runs.

    Raises:
        RunError: if there is nothing to compare, or no such metric.
    """
    _check(base, new, metrics)
    old = {record.case: record for record in base.records}
    fresh = {record.case: record for record in new.records}
    refusal = _differences(DEVICE, base.environment.get("device"), new.environment.get("device"))
    timed: list[Timed] = []
    verdicts: list[Verdict] = []
    for case, before in old.items():
        after = fresh.get(case)
        reason = _absence(before, after)
        if reason:
            verdicts.append(Verdict(case, "", "", MISSING, reason=reason))
        elif after is not None and before.status in RESULTS:
            reason = _incomparable(before, after, refusal)
            if reason:
                verdicts.append(Verdict(case, "", "", NOT_COMPARABLE, reason=reason))
                continue
            timed += _timed(before, after, metrics)
            verdicts += _lost(before, after, metrics)
            verdicts += _exact(before, after, metrics)
    only_new = [record for case, record in fresh.items() if case not in old]
    verdicts += [
        Verdict(r.case, "", "", MISSING, reason=f"only in NEW, {r.status}: {r.reason}")
        for r in only_new
        if r.status in FAILURES
    ]
    told = [*_notes(base, new, old, only_new), *notes, AB]
    judgements = judge_unpaired(timed, floor, level)
    for verdict in judgements:
        if verdict.verdict == SLOWER:
            verdict.reason = cause(old[verdict.case], fresh[verdict.case], floor)
    verdicts = judgements + verdicts
    if not verdicts:
        raise RunError(f"nothing to compare: no case has a result in both {base.path} and {new.path}")
    return Comparison("compare", str(base.path), str(new.path), verdicts, level, floor, told)


def judge_unpaired(timed: Sequence[Timed], floor: float, level: float) -> list[Verdict]:
    """Verdicts on the timed metrics, held together against one family-wise level."""
    findings = unpaired(_logs([t.base for t in timed]), _logs([t.new for t in timed]), level)
    return [
        judged(
            Verdict(t.case, t.metric, "s", AMBIGUOUS, _middle(t.base), _middle(t.new)),
            finding,
            floor,
            level,
            needed(level, paired=False),
        )
        for t, finding in zip(timed, findings, strict=True)
    ]


def judged(verdict: Verdict, finding: Finding, floor: float, level: float, needed: int) -> Verdict:
    """A verdict on a timed metric by what was found of it: shared by `compare` and `ab`.

    Args:
        verdict: what else is known of it; its field `verdict` is set anew.
        needed: processes or pairs that make a verdict possible at all.
    """
    detectable = max(math.log1p(floor), finding.detectable)
    word, reason = SAME, ""
    if not finding.enough:
        word, reason = AMBIGUOUS, f"{finding.processes} processes cannot decide it, {needed} can"
    elif finding.p <= level and abs(finding.effect) >= math.log1p(floor):
        word = SLOWER if finding.effect > 0 else FASTER
    return replace(
        verdict,
        verdict=word,
        ratio=_ratio(finding.effect),
        low=_ratio(finding.low),
        high=_ratio(finding.high),
        p=finding.p,
        detectable=math.expm1(detectable) if math.isfinite(detectable) else None,
        processes=finding.processes,
        needed=None if finding.enough else needed,
        worse=word == SLOWER,
        reason=reason,
    )


# What enters


def _timed(before: Record, after: Record, metrics: Collection[str] | None) -> Iterator[Timed]:
    for name in _sampled(before):
        base, new = medians(before.samples, name), medians(after.samples, name)
        if base and new and _wanted(name, metrics):
            yield Timed(before.case, name, base, new)


def medians(samples: Iterable[Block], metric: str) -> dict[int, float]:
    """The median of each process's samples of one metric, in seconds; a clock that read 0 says nothing."""
    values: dict[int, list[float]] = {}
    for block in samples:
        if block.metric == metric:
            values.setdefault(block.process, []).extend(block.values)
    found = {process: float(np.median(some)) for process, some in sorted(values.items()) if some}
    return {process: median for process, median in found.items() if median > 0}


def _logs(sides: Sequence[dict[int, float]]) -> Floats:
    """Logs of medians, processes x hypotheses."""
    processes = sorted({process for side in sides for process in side})
    return np.array([[math.log(side[p]) if p in side else math.nan for side in sides] for p in processes]).reshape(
        len(processes), len(sides)
    )


def _sampled(record: Record) -> list[str]:
    return list(dict.fromkeys(block.metric for block in record.samples))


def _middle(by_process: dict[int, float]) -> float:
    return float(np.median(list(by_process.values())))


def _ratio(logarithm: float) -> float | None:
    return math.exp(logarithm) if math.isfinite(logarithm) else None


def _wanted(name: str, metrics: Collection[str] | None) -> bool:
    return metrics is None or name in metrics


# What has no noise


def _exact(before: Record, after: Record, metrics: Collection[str] | None) -> Iterator[Verdict]:
    for metric in before.metrics:
        other = after.metric(metric.name)
        if not _wanted(metric.name, metrics) or not is_exact(before, metric) or metric.value is None:
            continue
        if other is None or other.value is None:
            reason = f"has no value in NEW{_because(other)}"
            yield Verdict(before.case, metric.name, metric.unit, NOT_COMPARABLE, metric.value, reason=reason)
            continue
        yield Verdict(
            before.case,
            metric.name,
            metric.unit,
            SAME if metric.value == other.value else CHANGED,
            metric.value,
            other.value,
            other.value / metric.value if metric.value else None,
            worse=_is_worse(metric, other.value),
        )


def is_exact(record: Record, metric: Metric) -> bool:
    """Whether any difference counts: a number of things that was neither sampled nor is an estimate or a reading."""
    sampled = metric.name in _sampled(record) or metric.low is not None
    return metric.unit in COUNTS and not sampled and metric.name not in NOT_EXACT


def _is_worse(metric: Metric, new: float) -> bool:
    """Whether it moved against the direction that is better; where neither is, a change is no regression."""
    assert metric.value is not None
    return (metric.better == "less" and new > metric.value) or (metric.better == "more" and new < metric.value)


def _because(metric: Metric | None) -> str:
    return f": {metric.reason}" if metric is not None and metric.reason else ""


# What cannot be compared


def _absence(before: Record, after: Record | None) -> str:
    """Why a case of BASE has no result in NEW; empty if it has, or has none in BASE either."""
    if after is None:
        return "not in NEW" if before.status == "ok" else ""
    lost = after.status in FAILURES or (before.status == "ok" and after.status != "ok")
    return f"{after.status} in NEW{': ' if after.reason else ''}{after.reason}" if lost else ""


def _incomparable(before: Record, after: Record, refusal: str) -> str:
    if before.case_version != after.case_version:
        return f"another version of the case: {before.case_version} in BASE, {after.case_version} in NEW"
    if any("nvcc" in record.settings for record in (before, after)):  # what it says depends on nothing else
        return _differences(("nvcc",), before.settings, after.settings)
    if refusal:
        return f"another device: {refusal}"
    taken = [{**record.settings, **record.axes} for record in (before, after)]
    return _differences(SETTINGS, *taken)


def _lost(before: Record, after: Record, metrics: Collection[str] | None) -> Iterator[Verdict]:
    """Timed metrics that NEW no longer has."""
    for name in _sampled(before):
        if _wanted(name, metrics) and not medians(after.samples, name):
            yield Verdict(before.case, name, "s", MISSING, _middle(medians(before.samples, name)), reason="not in NEW")


def _differences(keys: Iterable[str], base: Any, new: Any) -> str:
    """`name Xeon in BASE, EPYC in NEW`, for the keys whose values differ."""
    base, new = base or {}, new or {}
    return "; ".join(
        f"{key} {base.get(key)} in BASE, {new.get(key)} in NEW" for key in keys if base.get(key) != new.get(key)
    )


def _check(base: Run, new: Run, metrics: Collection[str] | None) -> None:
    records = [*base.records, *new.records]
    known = {m.name for r in records for m in r.metrics if is_exact(r, m)}
    known |= {name for r in records for name in _sampled(r)}
    for name in metrics or ():
        if name not in known:
            raise RunError(f"--metric: {name!r} is not one of {', '.join(sorted(known))}")


# Notes


def _notes(base: Run, new: Run, old: dict[str, Record], only_new: Sequence[Record]) -> Iterator[str]:
    """What differs between the runs beside the cases."""
    for part, keys in (("software", SOFTWARE), ("machine", MACHINE)):
        differing = _differences(keys, base.environment.get(part), new.environment.get(part))
        if differing:
            yield f"The {part} differs, which may be what is compared: {differing}."
    for name, run in (("BASE", base), ("NEW", new)):
        yield from (f"{name} warned: {warning}." for warning in run.environment.get("warnings") or [])
    if only_new:
        yield f"{len(only_new)} cases are only in NEW: {_some([record.case for record in only_new])}."
    without = [r.case for r in old.values() if r.status in FAILURES and r.case in {n.case for n in new.records}]
    if without:
        yield f"{len(without)} cases have no result in BASE: {_some(without)}."


def _some(cases: Sequence[str], most: int = 3) -> str:
    return ", ".join(cases[:most]) + (f" and {len(cases) - most} more" if len(cases) > most else "")
