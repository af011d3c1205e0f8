"""How often a history calls a change where there is none, and how often it finds one, on made-up series.

`python tests/simulate_history.py [SERIES]` prints the tables of `docs/ci.md`; the tests take the same of fewer series.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reports.core.change_points import change_points

Floats = NDArray[np.float64]
LEVEL, FLOOR = 0.05, 0.03
#: Of the noise, what carries over from a commit to the next.
LASTING = (0.0, 0.3, 0.6, 0.8)
COMMITS = (10, 30, 60, 100, 200)
STEPS = (0.05, 0.1, 0.5)


def noise(draw: np.random.Generator, commits: int, lasting: float, scale: float) -> Floats:
    """An autoregressive process of first order, of this standard deviation."""
    fresh = draw.normal(0, scale, commits)
    made = fresh.copy()
    for at in range(1, commits):
        made[at] = lasting * made[at - 1] + np.sqrt(1 - lasting**2) * fresh[at]
    return made


def alarms(series: int, commits: int, lasting: float, scale: float = 0.03) -> float:
    """The part of series without a change in which one is called."""
    draw = np.random.default_rng(0)
    called = [change_points(np.exp(noise(draw, commits, lasting, scale)), FLOOR, LEVEL) for _ in range(series)]
    return sum(map(bool, called)) / series


def found(series: int, commits: int, lasting: float, scale: float, step: float) -> float:
    """The part of series in which a step after two thirds is called where it is, or a commit beside."""
    draw, at = np.random.default_rng(0), 2 * commits // 3
    moved = np.log1p(step) * (np.arange(commits) >= at)
    called = [change_points(np.exp(noise(draw, commits, lasting, scale) + moved), FLOOR, LEVEL) for _ in range(series)]
    return sum(any(abs(change.at - at) <= 1 for change in some) for some in called) / series


def main(series: int) -> None:
    def row(*cells: object) -> None:
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    print(f"\nCalled a change in series without one, noise of 3 %, {series} series each:\n")
    row("carried over", *(f"{commits} commits" for commits in COMMITS))
    row("---", *["---:"] * len(COMMITS))
    for lasting in LASTING:
        row(lasting, *(f"{100 * alarms(series, commits, lasting):.1f} %" for commits in COMMITS))
    print("\nFound, at most a commit beside its place, of steps in 30 commits:\n")
    cells = [(scale, step) for scale in (0.01, 0.03) for step in STEPS]
    row("carried over", *(f"{step:.0%} step, {scale:.0%} noise" for scale, step in cells))
    row("---", *["---:"] * len(cells))
    for lasting in LASTING[:-1]:
        row(lasting, *(f"{100 * found(series, 30, lasting, scale, step):.0f} %" for scale, step in cells))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
