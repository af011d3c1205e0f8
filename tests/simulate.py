"""How often verdicts alarm falsely and how often they find a change, on made-up processes whose truth is known.

`python tests/simulate.py [TRIALS]` prints the tables of `docs/comparing.md`; the tests take the same with fewer trials.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reports.core import significance
from reports.core.significance import Finding, paired, unpaired

Floats = NDArray[np.float64]

LEVEL = 0.05
CASES = 60
#: Relative noise of a process's median: of each case, drawn evenly on a log scale, and of the cases that are changed.
LEAST, MOST, TYPICAL = 0.005, 0.05, 0.015
CHANGED = 2

Noise = Callable[[np.random.Generator, int, int], Floats]


def normal(generator: np.random.Generator, processes: int, cases: int) -> Floats:
    return generator.standard_normal((processes, cases))


def heavy(generator: np.random.Generator, processes: int, cases: int) -> Floats:
    """Student's t with 2 degrees of freedom: no finite variance."""
    return 0.6 * generator.standard_t(2, (processes, cases))


def disturbed(generator: np.random.Generator, processes: int, cases: int) -> Floats:
    """One process in eight is slowed by a neighbour, by far more than the noise."""
    hit = generator.random((processes, cases)) < 1 / 8
    return 0.5 * generator.standard_normal((processes, cases)) + hit * generator.exponential(6, (processes, cases))


def bimodal(generator: np.random.Generator, processes: int, cases: int) -> Floats:
    """In every third case a process lands in one of two modes, ten times their width apart."""
    modes = (np.arange(cases) % 3 == 0) * (generator.random((processes, cases)) < 0.5)
    return 0.3 * generator.standard_normal((processes, cases)) + 3 * modes


def correlated(generator: np.random.Generator, processes: int, cases: int) -> Floats:
    """What moves a process moves all cases in it, by twice their own noise."""
    own = generator.standard_normal((processes, cases))
    return 0.7 * own + 1.4 * generator.standard_normal((processes, 1))


def drifting(generator: np.random.Generator, processes: int, cases: int) -> Floats:
    """Every run speeds up or slows down from its first process to its last, all cases alike."""
    ramp = np.linspace(-1, 1, processes)[:, None]
    return 0.7 * generator.standard_normal((processes, cases)) + 2 * generator.standard_normal() * ramp


NOISES: dict[str, Noise] = {
    "normal": normal,
    "heavy tails": heavy,
    "disturbed processes": disturbed,
    "bimodal processes": bimodal,
    "correlated cases": correlated,
    "drift within the run": drifting,
}


def two_runs(noise: Noise, base: int, new: int, effect: float, seed: int, cases: int = CASES) -> list[Finding]:
    """Findings on two runs; the first `CHANGED` cases are changed by `effect`, unless it is 0."""
    generator = np.random.default_rng(seed)
    scales = _scales(generator, cases, effect)
    sides = [scales * noise(generator, n, cases) for n in (base, new)]
    sides[1][:, :CHANGED] += np.log1p(effect)
    return unpaired(sides[0], sides[1], LEVEL, seed)


def pairs(noise: Noise, count: int, effect: float, seed: int, cases: int = CASES) -> list[Finding]:
    """Findings on pairs of processes, which share their drift; otherwise as `two_runs`."""
    generator = np.random.default_rng(seed)
    scales = _scales(generator, cases, effect)
    differences = scales * (noise(generator, count, cases) - noise(generator, count, cases)) / np.sqrt(2)
    differences[:, :CHANGED] += np.log1p(effect)
    return paired(differences, LEVEL, seed)


def false_alarms(trials: int, take: Callable[[int], list[Finding]]) -> int:
    """In how many trials anything at all was called significant."""
    return sum(any(f.p <= LEVEL for f in take(seed)) for seed in range(trials))


def found(trials: int, take: Callable[[int], list[Finding]]) -> float:
    """The part of the changed cases that was called significant."""
    return float(np.mean([[f.p <= LEVEL for f in take(seed)[:CHANGED]] for seed in range(trials)]))


def covered(trials: int, effect: float, take: Callable[[int], list[Finding]]) -> float:
    """How often the bounds hold the truth, over all cases."""
    truth = [np.log1p(effect)] * CHANGED
    inside = []
    for seed in range(trials):
        findings = take(seed)
        truths = truth + [0.0] * (len(findings) - CHANGED)
        inside += [f.low <= t <= f.high for f, t in zip(findings, truths, strict=True)]
    return float(np.mean(inside))


@contextmanager
def quick(labels: int = significance.MOST_EXACT) -> Iterator[None]:
    """Relabellings are drawn beyond this number, as valid and faster, and `detectable` is not worked out."""
    changes = dict.fromkeys(("MOST_EXACT", "DRAWN", "FEWEST_DRAWN"), labels)
    changes |= {"_smallest": lambda _, sign: np.full_like(sign, np.inf)}  # type: ignore[dict-item]
    before = {name: getattr(significance, name) for name in changes}
    vars(significance).update(changes)
    try:
        yield
    finally:
        vars(significance).update(before)


def _scales(generator: np.random.Generator, cases: int, effect: float) -> Floats:
    scales = np.exp(generator.uniform(np.log(LEAST), np.log(MOST), cases))
    if effect:
        scales[:CHANGED] = TYPICAL
    return scales


def main(trials: int) -> None:
    designs: dict[str, Callable[[Noise, float, int], list[Finding]]] = {
        f"{m} against {n}": lambda noise, effect, seed, m=m, n=n: two_runs(noise, m, n, effect, seed)
        for m, n in ((4, 4), (5, 5), (7, 7), (9, 9), (3, 9))
    } | {f"{n} pairs": lambda noise, effect, seed, n=n: pairs(noise, n, effect, seed) for n in (6, 8, 12)}

    def row(label: str, cells: list[str]) -> None:
        print(f"| {label} | {' | '.join(cells)} |", flush=True)

    def header(first: str) -> None:
        row(first, list(designs))
        row("---", ["---:"] * len(designs))

    with quick(1000):
        print(f"\nFalse alarms in {trials} comparisons of {CASES} cases at a level of {LEVEL:.0%}:\n")
        header("noise")
        for name, noise in NOISES.items():
            cells = [false_alarms(trials, lambda s, t=take, n=noise: t(n, 0.0, s)) for take in designs.values()]
            row(name, [f"{100 * count / trials:.1f} %" for count in cells])
        for effect in (0.03, 0.05, 0.10):
            print(f"\nFound of {CHANGED} cases in {CASES} that changed by {effect:.0%}, noise {TYPICAL:.1%}:\n")
            header("noise")
            for name, noise in NOISES.items():
                some = max(1, trials // 5)
                cells = [found(some, lambda s, t=take, n=noise, e=effect: t(n, e, s)) for take in designs.values()]
                row(name, [f"{100 * part:.0f} %" for part in cells])
        print("\nTruth within the 95 % bounds of one case:\n")
        header("noise")
        for name, noise in NOISES.items():
            some = max(1, trials // 10)
            cells = [covered(some, 0.05, lambda s, t=take, n=noise: t(n, 0.05, s)) for take in designs.values()]
            row(name, [f"{100 * part:.1f} %" for part in cells])
        print("\nFound at 5 %, mean over the noises, of other statistics:\n")
        header("statistic")
        for label, prior, drawn in (
            ("as it is", significance.PRIOR, True),
            ("nothing drawn in", significance.PRIOR, False),
            ("no common variance", 0, True),
            ("plain t", 0, False),
        ):
            kept = significance.PRIOR, significance._drawn_in
            significance.PRIOR = prior
            if not drawn:
                significance._drawn_in = lambda values, *_, **__: values  # type: ignore[assignment]
            some = max(1, trials // 10)
            cells = [
                float(np.mean([found(some, lambda s, t=take, n=noise: t(n, 0.05, s)) for noise in NOISES.values()]))
                for take in designs.values()
            ]
            significance.PRIOR, significance._drawn_in = kept
            row(label, [f"{100 * part:.0f} %" for part in cells])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
