"""Which of many cases differ, without alarms beyond a stated rate however many cases there are.

A hypothesis is one metric of one case; what enters is one number per process, the log of its median, since samples of
one process are not independent of one another. Under the hypothesis that nothing changed, the labels of the processes
(`unpaired`) or the signs of the differences (`paired`) are arbitrary, so every relabelling is as likely as the one that
was observed. Labels are permuted for all hypotheses at once, which keeps the correlation between cases, and each
hypothesis is held against the largest statistic of all that are still undecided: the step-down procedure of Westfall
and Young (Resampling-Based Multiple Testing, 1993, algorithm 4.1; Romano and Wolf, JASA 100, 2005). The rate of runs
with any false alarm is then at most the stated level, whatever the distribution of the noise.

The statistic only decides the power, which `docs/comparing.md` has in numbers. It is a t statistic, twice steadied,
both times without regard to the labels that the test permutes:

- The pooled variance of a hypothesis is averaged with the median variance of the others under the same labels, which
  counts as `PRIOR` degrees of freedom (after G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004). Of 60 cases, some
  are separated perfectly by chance under some labels, and their tiny variance would set the bar for all others.
- The few most extreme processes are drawn in to their neighbours (`_drawn_in`), so that one disturbed process does not
  hide what the others agree on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
#: Statistics by labels, values and the variance of the others, if known already, which is returned too.
Statistic = Callable[[Floats, Floats, Floats | None], tuple[Floats, Floats]]

#: Relabellings are enumerated up to this number; beyond it, so many are drawn.
MOST_EXACT, DRAWN = 25_000, 20_000
#: Numbers held at once; with thousands of hypotheses fewer labels are used, but never fewer than 10,000.
MOST_NUMBERS, FEWEST_DRAWN = 20_000_000, 10_000
#: Labels that are looked at to tell what would have been detected.
MOST_LOOKED_AT = 1000
#: Degrees of freedom that the variance of the other hypotheses is worth to each of them.
PRIOR = 2
#: Coverage of the interval of one hypothesis.
COVERAGE = 0.95
#: Statistics that differ by rounding alone are equal.
_ROUNDING = 1 - 1e-9
#: Below any spread of logs that a clock can show: where there is no spread at all, nothing is divided by zero.
_TINY = 1e-12
#: The largest effect looked for (a hundredfold), and how finely, on the log scale.
_LARGEST, _FINE = math.log(100), 1e-4


class Finding(NamedTuple):
    """What is found of one hypothesis; effects are differences of logs, new against base.

    Args:
        p: family-wise: the level at which it would just be called significant. 1 where nothing can be said.
        effect: the median of the differences of all pairs of processes, one of each side (Hodges and Lehmann); for
            paired differences that of their pairwise means. NaN without values.
        low, high: 95 % bounds of the effect, of this hypothesis alone, by inverting the rank-sum or the signed-rank
            test, so they hold whatever the noise; infinite where there are too few processes for any.
        detectable: the smallest effect, up or down, that would have been significant here, given the noise that was
            seen; infinite where none would.
        enough: whether there are enough processes for any effect to be significant.
        processes: how many it rests on: those of the side that has fewer, or the pairs.
    """

    p: float
    effect: float
    low: float
    high: float
    detectable: float
    enough: bool
    processes: int


def unpaired(base: Floats, new: Floats, level: float, seed: int = 0) -> list[Finding]:
    """Compares independent processes.

    Args:
        base, new: logs of medians, processes x hypotheses; NaN where a process has no value.
        level: of the family-wise error.
        seed: of the permutations, where there are too many to take them all.

    Raises:
        ValueError: if the sides do not have the same hypotheses.
    """
    if base.shape[1] != new.shape[1]:
        raise ValueError(f"{base.shape[1]} hypotheses against {new.shape[1]}")
    counts = np.sum(~np.isnan(base), axis=0), np.sum(~np.isnan(new), axis=0)
    effects = [_shift(base[:, h], new[:, h]) for h in range(base.shape[1])]
    share = min(len(base), len(new)) / max(1, len(base) + len(new))

    values = _centred(np.concatenate([base, new]))
    is_new = np.arange(len(values))[:, None] >= len(base)

    def changed(by: Floats) -> Floats:
        return _drawn_in(values + is_new * by, share)

    labels = _splits(len(base), len(base) + len(new), base.shape[1], seed)
    attainable = np.array([attainable_unpaired(int(m), int(n)) for m, n in zip(*counts, strict=True)])
    return _findings(_between, changed, labels, attainable, effects, np.minimum(*counts), level)


def paired(differences: Floats, level: float, seed: int = 0) -> list[Finding]:
    """Compares pairs of processes: under the hypothesis, a difference is as likely up as down.

    Args:
        differences: logs of ratios, new over base, pairs x hypotheses; NaN where a pair has no value.
        level, seed: as for `unpaired`.
    """
    counts = np.sum(~np.isnan(differences), axis=0)
    effects = [_centre(differences[:, h]) for h in range(differences.shape[1])]

    def changed(by: Floats) -> Floats:
        return np.sign(differences + by) * _drawn_in(np.abs(differences + by), 0.5, upper_only=True)

    labels = _flips(len(differences), differences.shape[1], seed)
    attainable = np.array([attainable_paired(int(n)) for n in counts])
    return _findings(_from_zero, changed, labels, attainable, effects, counts, level)


def needed(level: float, paired: bool) -> int:
    """How many processes on each side, or pairs, make a verdict possible at all: 4 and 6 at a level of 5 %."""
    n = 1
    while (attainable_paired(n) if paired else attainable_unpaired(n, n)) > level:
        n += 1
    return n


def attainable_unpaired(base: int, new: int) -> float:
    """The smallest p that so many processes can reach; with equal sides, the mirror image of the labels is as far."""
    return min(1.0, (2 if base == new else 1) / math.comb(base + new, base))


def attainable_paired(pairs: int) -> float:
    """The smallest p that so many pairs can reach."""
    return min(1.0, 2.0 ** (1 - pairs))


# The test


def _findings(
    statistic: Statistic,
    changed: Callable[[Floats], Floats],
    labels: Floats,
    attainable: Floats,
    effects: list[tuple[float, float, float]],
    counts: NDArray[np.int64],
    level: float,
) -> list[Finding]:
    """Step-down over the hypotheses.

    Args:
        changed: the values with something added to every effect.
        labels: the observed ones first.
    """
    if not effects:
        return []
    values = changed(np.zeros(len(effects)))
    chunk = max(1, 2_000_000 // len(effects))
    parts = [statistic(labels[i : i + chunk], values, None)[0] for i in range(0, len(labels), chunk)]
    found = np.concatenate(parts)
    p = step_down(found)
    # A part of the labels tells nearly as well where the bar lies; the observed ones stay the first.
    some = slice(None, None, math.ceil(len(labels) / MOST_LOOKED_AT))
    rivals = _rivals(found[some], p > level)
    common = statistic(labels[some], values, None)[1]
    allowed = (math.floor(level * len(labels)) - 1) / max(1, len(labels) - 1)

    def significant(effect: Floats) -> Bools:
        own, _ = statistic(labels[some], changed(effect - middles), common)
        as_far = np.maximum(own[1:], rivals[1:]) >= own[0] * _ROUNDING
        enough: Bools = (attainable <= level) & (as_far.sum(axis=0) <= allowed * len(as_far))
        return enough

    middles = np.nan_to_num(np.array([effect for effect, _, _ in effects]))
    detectable = _smallest(significant, np.where(middles < 0, -1.0, 1.0))
    return [
        Finding(
            max(float(p[h]), float(attainable[h])),
            *effects[h],
            float(detectable[h]),
            bool(attainable[h] <= level),
            int(counts[h]),
        )
        for h in range(len(effects))
    ]


def step_down(found: Floats) -> Floats:
    """Adjusted p values.

    Args:
        found: statistics, labels x hypotheses, the observed ones first.
    """
    order = np.argsort(-found[0], kind="stable")
    # Column i holds, for each of the labels, the largest statistic of the hypotheses from the i-th on.
    largest = np.maximum.accumulate(found[:, order[::-1]], axis=1)[:, ::-1]
    p = np.empty(found.shape[1])
    p[order] = np.maximum.accumulate(np.mean(largest >= found[0, order] * _ROUNDING, axis=0))
    return p


def _rivals(found: Floats, undecided: Bools) -> Floats:
    """The largest statistic of the other undecided hypotheses, labels x hypotheses; 0 where there is no other."""
    held = np.where(undecided, found, 0.0)
    rows, largest = np.arange(len(held)), np.argmax(held, axis=1)
    first = held[rows, largest]
    held[rows, largest] = 0.0
    second = held.max(axis=1)
    is_largest = largest[:, None] == np.arange(found.shape[1])
    rivals: Floats = np.where(is_largest, second[:, None], first[:, None])
    return rivals


def _smallest(significant: Callable[[Floats], Bools], sign: Floats) -> Floats:
    """The smallest effects in the directions given that are significant, by bisection; infinite where none is."""
    low, high = np.zeros_like(sign), np.full_like(sign, _LARGEST)
    possible = significant(sign * high)
    while np.max(high - low) > _FINE:
        middle = (low + high) / 2
        reached = significant(sign * middle)
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.where(possible, high, np.inf)


def _between(labels: Floats, values: Floats, prior: Floats | None) -> tuple[Floats, Floats]:
    """Statistics for the labels (1: base, 0: new), labels x hypotheses, and the variances they were steadied with."""
    present = (~np.isnan(values)).astype(float)
    x = np.nan_to_num(values)
    total, squares = present.sum(axis=0), (x**2).sum(axis=0)
    m = labels @ present
    n = total - m
    with np.errstate(divide="ignore", invalid="ignore"):
        base = labels @ x
        new = x.sum(axis=0) - base
        difference = np.abs(new / n - base / m)
        residual = np.maximum(squares - base**2 / m - new**2 / n, 0.0)
        return _steadied(difference, residual, total - 2, 1 / m + 1 / n, prior)


def _from_zero(signs: Floats, values: Floats, prior: Floats | None) -> tuple[Floats, Floats]:
    """Statistics for the signs, labels x hypotheses, and the variances they were steadied with."""
    n = np.sum(~np.isnan(values), axis=0)
    x = np.nan_to_num(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.abs(signs @ x) / n
        residual = np.maximum((x**2).sum(axis=0) - n * mean**2, 0.0)
        return _steadied(mean, residual, n - 1, 1 / n, prior)


def _steadied(
    difference: Floats, residual: Floats, freedom: Floats, factor: Floats, prior: Floats | None
) -> tuple[Floats, Floats]:
    """|difference| over its standard error, steadied by the median variance of the others unless `prior` is given."""
    defined = np.isfinite(difference) & np.isfinite(residual) & (freedom > 0)
    variance = np.where(defined, residual / freedom, np.nan)
    if prior is None:
        prior = _median_of_others(variance, defined.sum(axis=1, keepdims=True))
    steady = np.where(np.isnan(prior), variance, prior)
    scale = np.sqrt((freedom * variance + PRIOR * steady) / (freedom + PRIOR) * factor) + _TINY
    return np.where(defined, difference / scale, 0.0), prior


def _median_of_others(variance: Floats, defined: NDArray[np.int64]) -> Floats:
    """The (lower) median of each row without the value itself; NaN where there is no other."""
    ordered = np.sort(variance, axis=1)  # NaN last
    middle = np.maximum(defined - 2, 0) // 2
    lower = np.take_along_axis(ordered, middle, axis=1)
    upper = np.take_along_axis(ordered, np.minimum(middle + 1, ordered.shape[1] - 1), axis=1)
    return np.where(defined > 1, np.where(variance <= lower, upper, lower), np.nan)


# What the labels leave alone


def _centred(values: Floats) -> Floats:
    """Values about one in their middle, so that rounding does not grow with their size."""
    if not len(values):
        return values
    middle = np.maximum(np.sum(~np.isnan(values), axis=0) - 1, 0) // 2
    centre: Floats = np.sort(values, axis=0)[middle, np.arange(values.shape[1])]  # NaN last
    return values - centre


def _drawn_in(values: Floats, share: float, upper_only: bool = False) -> Floats:
    """The most extreme values of each hypothesis set to the next ones: none of 4 a side, one of 5, two of 9.

    Fewer than the smaller side has, so that a whole side, however far away, is never drawn in to the other.

    Args:
        share: the smaller side's share of the values; of pairs, which are compared by their size, one half.
    """
    if not len(values):
        return values
    present = np.sum(~np.isnan(values), axis=0)
    beyond = np.maximum((present * share).astype(int) - 1, 0) // 4
    ordered = np.sort(values, axis=0)  # NaN last
    columns = np.arange(values.shape[1])
    high = ordered[np.maximum(present - 1 - beyond, 0), columns]
    low = ordered[np.zeros_like(beyond) if upper_only else beyond, columns]
    drawn_in: Floats = np.clip(values, low, high)
    return drawn_in


def _splits(base: int, processes: int, hypotheses: int, seed: int) -> Floats:
    """Labels (1: base, 0: new) x processes, the observed ones first: all of them, or a random sample.

    With equal sides only half are taken, since the mirror images have the same statistics.
    """
    mirrored = 0 < 2 * base == processes
    number = math.comb(processes, base) // (2 if mirrored else 1)
    labels: Floats
    if number <= _most(hypotheses):
        if mirrored:
            chosen = [(0, *rest) for rest in combinations(range(1, processes), base - 1)]
        else:
            chosen = list(combinations(range(processes), base))
        rows = np.array(chosen, dtype=np.int64).reshape(len(chosen), base)
    else:
        generator = np.random.default_rng(seed)
        rows = np.argsort(generator.random((_drawn(hypotheses), processes)), axis=1)[:, :base]
        rows[0] = np.arange(base)
    labels = np.zeros((len(rows), processes))
    np.put_along_axis(labels, rows, 1.0, axis=1)
    return labels


def _flips(pairs: int, hypotheses: int, seed: int) -> Floats:
    """Signs x pairs, all positive first; the first keeps its sign, since mirror images have the same statistics."""
    if 2 ** (pairs - 1) <= _most(hypotheses):
        bits = np.arange(2 ** max(pairs - 1, 0))[:, None] >> np.arange(max(pairs - 1, 0)) & 1
    else:
        bits = np.random.default_rng(seed).integers(2, size=(_drawn(hypotheses), pairs - 1))
        bits[0] = 0
    return np.concatenate([np.ones((len(bits), min(pairs, 1))), 1.0 - 2.0 * bits], axis=1)


def _most(hypotheses: int) -> int:
    return min(MOST_EXACT, _drawn(hypotheses) * MOST_EXACT // DRAWN)


def _drawn(hypotheses: int) -> int:
    return min(DRAWN, max(FEWEST_DRAWN, MOST_NUMBERS // max(hypotheses, 1)))


# One hypothesis alone: effect and interval


def _shift(base: Floats, new: Floats) -> tuple[float, float, float]:
    """The effect between two sides, with its bounds."""
    base, new = base[~np.isnan(base)], new[~np.isnan(new)]
    differences = np.sort(np.subtract.outer(new, base), axis=None)
    return _middle_and_bounds(differences, rank_sums(base.size, new.size))


def _centre(differences: Floats) -> tuple[float, float, float]:
    """The effect of pairs, with its bounds."""
    differences = differences[~np.isnan(differences)]
    i, j = np.triu_indices(differences.size)
    return _middle_and_bounds(np.sort((differences[i] + differences[j]) / 2), signed_ranks(differences.size))


def _middle_and_bounds(ordered: Floats, chances: Floats) -> tuple[float, float, float]:
    """Median and bounds of ordered differences, `chances` telling how many of them lie below the truth."""
    if not ordered.size:
        return math.nan, -math.inf, math.inf
    outside = int(np.sum(np.cumsum(chances) <= (1 - COVERAGE) / 2))
    middle = float(ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2
    return (middle, float(ordered[outside - 1]), float(ordered[-outside])) if outside else (middle, -math.inf, math.inf)


@lru_cache(maxsize=64)
def rank_sums(m: int, n: int) -> Floats:
    """Chances of the Mann-Whitney statistic 0, 1, ... of m against n values without ties."""
    # Ways to choose k of the ranks 0 .. m+n-1 with a given sum, for k up to m.
    ways = np.zeros((m + 1, m * (m + n) + 1))
    ways[0, 0] = 1.0
    for rank in range(m + n):
        for k in range(min(m, rank + 1), 0, -1):
            ways[k, rank:] += ways[k - 1, : ways.shape[1] - rank]
    least = m * (m - 1) // 2
    found = ways[m, least : least + m * n + 1]
    return np.asarray(found / found.sum())


@lru_cache(maxsize=64)
def signed_ranks(n: int) -> Floats:
    """Chances of the Wilcoxon signed-rank statistic 0, 1, ... of n differences without ties."""
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, n + 1):
        ways[rank:] += ways[:-rank].copy()
    return np.asarray(ways / ways.sum())
