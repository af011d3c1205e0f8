"""How well medians repeat: odd against even rounds of one run, and one run against another.

`python -m reports.core.repeatability RUN [RUN]` prints the shares for recorded runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .. import Record
from .records import RunError, load_run

#: Medians that differ by no more than this, relative to the smaller, agree.
WITHIN = 0.10


class Agreement(NamedTuple):
    """`agreeing` of `total` pairs of medians agree within 10 %; `ratios` are the larger over the smaller, by case."""

    agreeing: int
    total: int
    ratios: dict[str, float]


def odd_and_even(records: Iterable[Record], metric: str) -> Agreement:
    """Medians of the odd rounds against those of the even ones, all processes together."""
    pairs = {}
    for record in records:
        halves: tuple[list[float], list[float]] = ([], [])
        for block in record.samples:
            if block.metric == metric:
                halves[block.round % 2].extend(block.values)
        if all(halves):
            pairs[record.case] = (median(halves[0]), median(halves[1]))
    return agreement(pairs)


def between_runs(first: Iterable[Record], second: Iterable[Record], metric: str) -> Agreement:
    """Values of one run against those of another, case by case."""
    values = [{r.case: m.value for r in run if (m := r.metric(metric)) and m.value} for run in (first, second)]
    return agreement({case: (values[0][case], values[1][case]) for case in values[0].keys() & values[1].keys()})


def agreement(pairs: dict[str, tuple[float, float]]) -> Agreement:
    """Counts the pairs of positive values that agree."""
    ratios = {case: max(pair) / min(pair) for case, pair in sorted(pairs.items())}
    return Agreement(sum(ratio <= 1 + WITHIN for ratio in ratios.values()), len(ratios), ratios)


def main(arguments: list[str]) -> int:
    try:
        runs = [load_run(Path(path)) for path in arguments]
    except RunError as error:
        print(f"repeatability: error: {error}", file=sys.stderr)
        return 2
    if not 1 <= len(runs) <= 2:
        print("usage: python -m reports.core.repeatability RUN [RUN]", file=sys.stderr)
        return 2
    for metric in dict.fromkeys(block.metric for record in runs[0].records for block in record.samples):
        found = [(f"odd and even rounds of {run.path}", odd_and_even(run.records, metric)) for run in runs]
        if len(runs) == 2:
            found.append(("the two runs", between_runs(runs[0].records, runs[1].records, metric)))
        for what, agreed in found:
            worst = max(agreed.ratios, key=lambda case: agreed.ratios[case], default="")
            print(f"{metric}: {what}: {agreed.agreeing} of {agreed.total} cases agree within {WITHIN:.0%}")
            if worst:
                print(f"  widest: {agreed.ratios[worst]:.3f}  {worst}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
