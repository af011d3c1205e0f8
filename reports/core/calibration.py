"""What comparisons on a machine have shown when the truth was known: how often they alarm falsely, and what they find.

`calibrate` compares the present operators with themselves, as they are or slowed by a known delay, and adds what came
of it to a ledger, one JSON object a line. Verdicts quote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from .. import SCHEMA_VERSION, Json
from .records import RunError
from .verdicts import FASTER, SLOWER, Comparison

#: The ledger, beside the runs.
LEDGER = "calibration.jsonl"
#: The power that "found" stands for.
POWER = 0.95


@dataclass
class Trial:
    """One comparison whose truth is known.

    Args:
        kind: `ab` (pairs in one run) or `compare` (two separate runs).
        device, threads: what it was taken on.
        delay: the part by which the new side's calls were slowed; 0 for a program against itself.
        level, floor: of the comparison.
        verdicts, ratios, detectable: by case and metric, `case metric`.
        processes: pairs (`ab`) or processes of each run (`compare`).
        seconds: that it took.
    """

    kind: str
    device: str
    threads: int
    delay: float
    level: float
    floor: float
    verdicts: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    detectable: dict[str, float | None] = field(default_factory=dict)
    processes: int = 0
    seconds: float = 0.0
    time: str = ""
    revision: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def alarm(self) -> bool:
        """Whether any case was called faster or slower."""
        return any(word in (FASTER, SLOWER) for word in self.verdicts.values())

    def take(self, comparison: Comparison) -> None:
        """Keeps what a comparison said of its timed cases."""
        for v in comparison.verdicts:
            if v.ratio is not None:
                name = f"{v.case} {v.metric}"
                self.verdicts[name], self.ratios[name], self.detectable[name] = v.verdict, v.ratio, v.detectable
                self.processes = max(self.processes, v.processes or 0)


def append(path: Path, trial: Trial) -> None:
    """Adds a trial to the ledger.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial), separators=(",", ":")) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path) -> list[Trial]:
    """The trials of a ledger; none if there is no such file, and a half-written last line is left out.

    Raises:
        RunError: if a line is corrupt or written by a newer version.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_trial(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1) if line]


def _trial(line: str, place: str) -> Trial:
    try:
        content: Json = json.loads(line)
        if content["schema_version"] > SCHEMA_VERSION:
            raise RunError(f"{place} was written by a newer version (schema {content['schema_version']})")
        return Trial(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place} is corrupt: {error}") from error


def on_device(trials: Iterable[Trial], device: str, threads: object) -> list[Trial]:
    """The trials taken on such a device with so many threads."""
    return [trial for trial in trials if (trial.device, trial.threads) == (device, threads)]


@dataclass(frozen=True)
class Count:
    """So many of so many, with an exact 95 % interval (Clopper and Pearson 1934)."""

    found: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        k, n = self.found, self.total
        low = 0.0 if k == 0 else _root(lambda p: _tail(k, n, p) - 0.025)
        high = 1.0 if k == n else _root(lambda p: 0.025 - (1 - _tail(k + 1, n, p)))
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.found} of {self.total} ({100 * low:.3g} to {100 * high:.3g} %)"


def _tail(k: int, n: int, p: float) -> float:
    """The probability of at least k successes of n."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


def _root(rising: Callable[[float], float]) -> float:
    """Where a function that rises from below zero to above it between 0 and 1 is zero."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


@dataclass
class Power:
    """What was found of one delay, by case: verdicts of `slower`."""

    delay: float
    by_case: dict[str, Count]

    @property
    def all(self) -> Count:
        counts = self.by_case.values()
        return Count(sum(c.found for c in counts), sum(c.total for c in counts))


def alarms(trials: Iterable[Trial], kind: str) -> Count:
    """False alarms: comparisons of a program with itself in which any case was called faster or slower."""
    same = [trial for trial in trials if trial.kind == kind and trial.delay == 0]
    return Count(sum(trial.alarm for trial in same), len(same))


def powers(trials: Iterable[Trial], kind: str) -> list[Power]:
    """What was found, by delay in rising order."""
    by_delay: dict[float, dict[str, list[bool]]] = {}
    for trial in trials:
        if trial.kind == kind and trial.delay:
            cases = by_delay.setdefault(trial.delay, {})
            for case, word in trial.verdicts.items():
                cases.setdefault(case, []).append(word == SLOWER)
    return [
        Power(delay, {case: Count(sum(found), len(found)) for case, found in sorted(cases.items())})
        for delay, cases in sorted(by_delay.items())
    ]


def smallest_found(found: Sequence[Power], case: str) -> float | None:
    """The smallest delay from which on the case was found in at least 95 % of the trials; None if there is none."""
    smallest = None
    for power in reversed(found):
        count = power.by_case.get(case)
        if count is None or count.found < POWER * count.total:
            break
        smallest = power.delay
    return smallest


def drift(trials: Iterable[Trial]) -> tuple[float, float, int] | None:
    """How far medians of separate runs of one program lay apart: median, largest, number of pairs; None without any."""
    apart = [
        abs(ratio - 1) if ratio > 1 else abs(1 / ratio - 1)
        for trial in trials
        if trial.kind == "compare" and trial.delay == 0
        for ratio in trial.ratios.values()
    ]
    return (median(apart), max(apart), len(apart)) if apart else None


def quoted(trials: list[Trial], kind: str) -> list[str]:
    """What to say under a verdict of that kind, from the trials of this device."""
    count = alarms(trials, kind)
    if not count.total:
        return [f"This machine was not calibrated for `{kind}`: `python runner.py calibrate` says what it can detect."]
    lines = [f"Calibrated here: false alarms in {count} comparisons of a program with itself."]
    for power in powers(trials, kind):
        lines.append(f"A real delay of {100 * power.delay:g} % was found in {power.all} cases.")
    apart = drift(trials)
    if kind == "compare" and apart:
        lines.append(
            f"Medians of separate runs of one program lay {100 * apart[0]:.2g} % apart in the middle and "
            f"{100 * apart[1]:.2g} % at most, in {apart[2]} pairs; no statistic removes that drift."
        )
    return lines


def outcome(trial: Trial) -> str:
    """A trial in a line."""
    what = f"slowed by {100 * trial.delay:g} %" if trial.delay else "the same"
    told = ", ".join(f"{100 * (ratio - 1):+.1f} % {trial.verdicts[case]}" for case, ratio in trial.ratios.items())
    return f"{trial.kind}, {what}: {told} ({trial.processes} processes, {trial.seconds:.0f} s)"


def table(trials: list[Trial]) -> str:
    """What the trials of one device have shown, as plain text."""
    lines = []
    for kind in dict.fromkeys(trial.kind for trial in trials):
        lines += [f"{kind}:", *(f"  {line}" for line in quoted(trials, kind))]
        found = powers(trials, kind)
        for case in sorted({case for power in found for case in power.by_case}):
            smallest = smallest_found(found, case)
            told = "none of the delays tried" if smallest is None else f"{100 * smallest:g} %"
            counts = ", ".join(f"{100 * p.delay:g} %: {p.by_case[case]}" for p in found if case in p.by_case)
            lines.append(f"  {case}: found in {100 * POWER:g} % of trials from {told} on ({counts})")
    return "\n".join(lines)
