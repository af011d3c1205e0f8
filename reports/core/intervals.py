"""Medians and how far they can be trusted.

Samples of one block are correlated (clocks, cache, neighbours), and processes differ from one another for good (address
layout, page colouring), so neither is treated as so many independent numbers: see `interval`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import Block

Floats = NDArray[np.float64]

RESAMPLES = 1000
#: Blocks of one process beyond this number are joined with their neighbours, and a single block is cut into as many.
UNITS = 32
#: Samples of one process beyond this number are told apart by rank only as finely as this.
CELLS = 512


class Interval(NamedTuple):
    """An estimate with its 95 % bounds."""

    value: float
    low: float
    high: float


def by_process(samples: Iterable[Block], metric: str) -> list[list[list[float]]]:
    """The samples of one metric as `interval` takes them: processes, of blocks in order of rounds, of values."""
    processes: dict[int, list[Block]] = {}
    for block in samples:
        if block.metric == metric:
            processes.setdefault(block.process, []).append(block)
    return [[b.values for b in sorted(processes[p], key=lambda b: b.round)] for p in sorted(processes)]


def interval(processes: Sequence[Sequence[Sequence[float]]], seed: int = 0) -> Interval:
    """The median of the processes' medians, so that each process weighs the same and one odd process does not decide.

    The bounds are the 2.5 % and 97.5 % quantiles of a hierarchical bootstrap: processes are drawn with replacement, and
    in each drawn process its blocks (a single block is cut into consecutive pieces, so that correlated neighbours stay
    together); the same two medians are taken of each draw. With one process only its blocks are drawn, and the bounds
    say nothing of what another process would have shown.

    What few processes cannot give: the bounds never lie outside what the processes have shown, so where processes
    differ by more than their own noise, the true median is inside only as often as inside the extremes of P draws,
    1 - 2**(1 - P): at most 50 % for 2 processes, 75 % for 3, 94 % for 5; 6 are needed for 95 %. Where processes agree
    but for their noise, 3 of them do reach 95 %. Few blocks of one process narrow its part in the same way:
    alone, ten of them reach about 90 %.

    Args:
        processes: processes of blocks of values; empty ones are left out.
        seed: the same samples and seed give the same bounds.

    Raises:
        ValueError: if there is no sample at all.
    """
    generator = np.random.default_rng(seed)
    kept = [[np.asarray(block, float) for block in blocks if len(block)] for blocks in processes]
    kept = [blocks for blocks in kept if blocks]
    if not kept:
        raise ValueError("no samples")
    value = float(np.median([np.median(np.concatenate(blocks)) for blocks in kept]))
    medians = np.stack([_resampled_medians(_units(blocks), generator) for blocks in kept])
    # A process drawn twice enters with two different resamples.
    shape = (RESAMPLES, len(kept))
    drawn = medians[generator.integers(len(kept), size=shape), generator.integers(RESAMPLES, size=shape)]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Interval(value, min(float(low), value), max(float(high), value))


def relative_half_width(values: Sequence[float] | Floats) -> float:
    """Half the width of the 95 % interval of the median, as a share of the median; infinity below 6 samples.

    Distribution-free, from order statistics (W. J. Conover, Practical Nonparametric Statistics, 3.2); the samples of
    one process are taken as independent, so this is a rule when to stop, not the interval that is told.
    """
    x = np.sort(np.asarray(values, float))
    rank = _lower_rank(x.size)
    if rank < 1:
        return math.inf
    median = float(np.median(x))
    return float(x[-rank] - x[rank - 1]) / 2 / median if median > 0 else math.inf


@lru_cache(maxsize=256)
def _lower_rank(n: int) -> int:
    """The largest r such that the r-th smallest and largest of n samples enclose the median in 95 % of cases."""
    if n > 100:
        return math.floor(n / 2 - 0.98 * math.sqrt(n))
    rank, tail = 0, math.comb(n, 0)
    while tail <= 0.025 * 2**n:
        rank += 1
        tail += math.comb(n, rank)
    return rank


def _units(blocks: Sequence[Floats]) -> list[Floats]:
    """What is drawn from one process: its blocks, or consecutive pieces of its only one."""
    if len(blocks) == 1:
        return np.array_split(blocks[0], min(blocks[0].size, UNITS))
    bounds = np.linspace(0, len(blocks), min(len(blocks), UNITS) + 1).astype(int)
    return [np.concatenate(blocks[a:b]) for a, b in pairwise(bounds)]


def _resampled_medians(units: Sequence[Floats], generator: np.random.Generator) -> Floats:
    """Medians of `RESAMPLES` draws of the units with replacement.

    Instead of sorting each draw, counts are added up: how often each unit was drawn, times how many of its samples lie
    in each cell (a range of ranks), tells in which cell half of the draw is passed.
    """
    values = np.concatenate(units)
    n, cells = values.size, min(values.size, CELLS)
    order = np.argsort(values, kind="stable")
    unit = np.repeat(np.arange(len(units)), [u.size for u in units])[order]
    counts = np.zeros((len(units), cells))
    np.add.at(counts, (unit, np.arange(n) * cells // n), 1.0)
    middle_ranks = ((np.arange(cells) + 0.5) * n / cells).astype(int)
    levels = values[order][middle_ranks]
    draws = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), size=RESAMPLES)
    below = np.cumsum(draws @ counts, axis=1)
    half = below[:, -1:] / 2
    lower, upper = np.argmax(below >= half, axis=1), np.argmax(below > half, axis=1)
    return np.asarray((levels[lower] + levels[upper]) / 2)
