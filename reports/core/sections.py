"""Parts of a report as plain sentences and rows of text, for any format."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from .. import Metric, Record, Run
from .arrange import PLACE_AXES, Entry, place_text
from .claims import Claim
from .claims.judge import Judgement
from .tables import metric_status
from .units import quantity, with_bounds

#: Entries of run.json that are bytes.
_BYTES = ("memory", "cache", "l2_cache", "L1", "L1d", "L1i", "L2", "L3")
#: Characters of one entry of run.json, which has all.
_LONGEST = 160
_TOLD = ("started", "finished", "device", "machine", "software", "project", "settings")

COUNTERS = ("op", "counter", "kind", "difference", "at most at", "reason")
LACKING = ("suite", "op/impl", "where", "metric", "status", "reason")


class Untested(NamedTuple):
    """Claims that a run cannot test for the same reason.

    Args:
        kinds: how many of each source and kind, in words.
    """

    claims: int
    reason: str
    kinds: str


def caption(entries: list[Entry]) -> list[str]:
    """What all cases of a suite have in common: axes, and settings as far as they take few values; in sentences."""
    places = {entry.place for entry in entries}
    common = [axis for i, axis in enumerate(PLACE_AXES) if len({place[i] for place in places}) == 1]
    text = place_text(entries[0].place, common)
    parts = [f"All cases: {text}."] if text else []
    taken = _settings(entry.record for entry in entries)
    parts += [f"Settings: {taken}."] if taken else []
    if any(metric.unit == "MAC" for entry in entries for metric in entry.record.metrics):
        parts.append("One MAC is one multiply-accumulate; many papers call it a FLOP.")
    return parts


def environment(runs: list[Run]) -> list[list[str]]:
    """What `run.json` says: what it is about, then a cell a run."""
    rows = [[key, *(plain(run.environment.get(key)) for run in runs)] for key in _TOLD]
    return [row for row in rows if any(row[1:])]


def warnings(run: Run) -> list[str]:
    return [str(warning) for warning in run.environment.get("warnings") or []]


def lacking(entries: Iterable[Entry]) -> list[list[str]]:
    """Cases and single metrics that gave no number, with reasons, under `LACKING`; those alike share a row."""
    found: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        record = entry.record
        without = [("all", record.status, record.reason)] if record.status != "ok" else []
        without += [(m.name, *metric_status(record, m)) for m in record.metrics if m.status not in (None, "ok")]
        for metric, status, reason in without:
            found.setdefault((record.suite, metric, status.replace("_", " "), reason), []).append(entry)
    return [
        [
            suite,
            _several(e.series.label for e in alike),
            _several(place_text(e.place) for e in alike),
            metric,
            status,
            reason,
        ]
        for (suite, metric, status, reason), alike in found.items()
    ]


def differences(entries: Iterable[Entry]) -> list[list[str]]:
    """Where two counters disagree and why, under `COUNTERS`, each kind once with the largest count."""
    largest: dict[tuple[str, ...], tuple[float, Entry]] = {}
    for entry in entries:
        for item in entry.record.settings.get("differences") or []:
            key = (entry.series.op, *(str(item.get(name, "")) for name in ("counter", "kind", "reason")))
            macs = item.get("macs") or 0
            if key not in largest or abs(macs) > abs(largest[key][0]):
                largest[key] = (macs, entry)
    return [
        [op, counter, kind, quantity("macs", "MAC", macs), place_text(entry.place, ["resolution"]), reason]
        for (op, counter, kind, reason), (macs, entry) in largest.items()
    ]


def untested(judged: Iterable[Judgement]) -> list[Untested]:
    """How many claims of each kind have the same reason."""
    found: dict[str, Counter[str]] = {}
    for claim, finding in judged:
        found.setdefault(finding.reason, Counter())[f"{claim.source}, {claim.kind}"] += 1
    return [
        Untested(sum(kinds.values()), reason, "; ".join(f"{kind} ({count})" for kind, count in kinds.items()))
        for reason, kinds in found.items()
    ]


def published(claim: Claim) -> str:
    """The published figure with its unit."""
    return _in_unit(claim, claim.published)


def ours(judgement: Judgement) -> str:
    """Our value of a claim with its bounds, in the claim's unit; empty where there is none."""
    claim, finding = judgement
    return _in_unit(claim, with_bounds(Metric(claim.kind, "", finding.ours, finding.low, finding.high)))


def run_name(run: Run) -> str:
    return str(run.environment.get("run") or run.path.name)


def run_command(run: Run) -> str:
    """The command that takes such a run."""
    return shlex.join(["python", *map(str, run.environment.get("argv") or ["runner.py"])])


def plain(value: Any, key: str = "") -> str:
    """A value of `run.json` in words."""
    if isinstance(value, dict):
        inner = ((name, plain(item, name)) for name, item in value.items())
        return ", ".join(
            f"{name} ({text})" if isinstance(value[name], dict) else f"{name} {text}" for name, text in inner if text
        )
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    if value is None or isinstance(value, bool):
        return "" if value is None else "yes" if value else "no"
    text = quantity(key, "B", value) if key in _BYTES and isinstance(value, int) else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _in_unit(claim: Claim, text: str) -> str:
    unit = "" if claim.unit == "1" else claim.unit
    return f"{text} {unit}".rstrip() if text else ""


def _settings(records: Iterable[Record]) -> str:
    """`threads 2; fits_cache yes (12), no (4)`; what stopped the sampling is counted by process."""
    seen: dict[str, Counter[Any]] = {}
    for record in records:
        for key, value in record.settings.items():
            if isinstance(value, str | int | float):
                seen.setdefault(key, Counter())[value] += 1
            elif key == "stopped" and isinstance(value, dict):
                for metric, reasons in value.items():
                    seen.setdefault(f"{metric} stopped by", Counter()).update(map(str, reasons))
    told = []
    for key, values in seen.items():
        if len(values) == 1:
            told.append(f"{key} {plain(next(iter(values)))}")
        elif len(values) <= 4:
            ordered = sorted((plain(value), count) for value, count in values.items())
            told.append(f"{key} " + ", ".join(f"{value} ({count})" for value, count in ordered))
    return "; ".join(told)


def _several(texts: Iterable[str]) -> str:
    """The different ones; of many the first three and their number."""
    different = list(dict.fromkeys(texts))
    if len(different) <= 4:
        return "; ".join(different)
    return f"{'; '.join(different[:3])}; and {len(different) - 3} more"
