"""Where a series of numbers moved: the best fit proposes places, a permutation test confirms each.

What is looked at are logs, so that effects are ratios. The places are those of the piecewise constant series that fits
best, under a penalty per change (B. Jackson and others, IEEE Signal Processing Letters 12, 2005; least squares). The
penalty is low, and lets through more than there is. Each place is then tested between its neighbours: had nothing
happened there, the points could stand in any order, so they are put in many random orders, and the largest difference
of mean ranks over all places is held against that of the order that was seen (after A. N. Pettitt, Applied Statistics
28, 1979). Ranks, so that one disturbed run decides nothing.

Any order is as likely only where runs do not take after the one before. A neighbour on the machine stays for some runs,
and what wanders so is no change. So a step has to stand out of such noise, too: of normal noise with the scale that the
series has from point to point, and of which the part `LASTING` carries over from each point to the next. The p value is
the larger of the two. The weakest place that fails is taken out, until all hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Points on either side of a change, at the least: one alone may be an accident.
FEWEST = 2
#: Orders that are drawn: at least so many, and enough for a p value of a fifth of what is asked for.
ORDERS = 999
MOST_ORDERS = 50_000
#: Of the penalty of a change, in variances of the noise: twice this times log n.
PENALTY = 1.5
#: Orders that are drawn at once.
AT_ONCE = 250
#: Of the noise, what carries over to the next point. Not estimated: 30 points tell it to 0.2 at best, and a step looks
#: like it.
LASTING = 0.5


class Found(NamedTuple):
    """A change: the place of the first point after it, the ratio of the medians of both sides, the p value of one
    series.
    """

    at: int
    ratio: float
    p: float


def change_points(values: Sequence[float], floor: float, level: float) -> list[Found]:
    """Where positive numbers moved by at least `floor`, relative.

    Args:
        level: of the error of each test.
    """
    if len(values) < 2 * FEWEST or min(values) <= 0:
        return []
    logs = np.log(np.asarray(values, dtype=np.float64))
    noise = _noise(logs)
    places = _proposed(logs, max(noise, math.log1p(floor) / 4))
    while places:
        windows = _windows(places, len(logs))
        found = [_tested(logs, left, at, right, floor, noise, level) for left, at, right in windows]
        weakest = max(found, key=lambda f: (f.p, -abs(math.log(f.ratio))))
        if weakest.p <= level:
            return found
        places.remove(weakest.at)
    return []


def steps(values: Sequence[float]) -> list[int]:
    """Places where numbers without noise differ from those before."""
    return [at for at in range(1, len(values)) if values[at] != values[at - 1]]


def _proposed(logs: Floats, noise: float) -> list[int]:
    """The places of the best piecewise constant series, by dynamic programming over where its last piece begins.

    Least squares, and a penalty a piece. The tests hold it against the package ruptures, whose import takes longer
    than all the rest of an answer.
    """
    penalty = 2 * PENALTY * math.log(len(logs)) * noise**2
    sums, squares = (
        np.concatenate(([0.0], np.cumsum(some))) for some in (logs - logs.mean(), (logs - logs.mean()) ** 2)
    )
    best = np.full(len(logs) + 1, np.inf)
    best[0] = -penalty
    begins = np.zeros(len(logs) + 1, dtype=int)
    for end in range(FEWEST, len(logs) + 1):
        starts = np.arange(0, end - FEWEST + 1)
        misfit = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        totals = best[starts] + misfit + penalty
        begins[end] = np.argmin(totals)
        best[end] = totals[begins[end]]
    places: list[int] = []
    end = int(begins[-1])
    while end:
        places.insert(0, end)
        end = int(begins[end])
    return places


def _noise(logs: Floats) -> float:
    """The standard deviation of the noise, by differences of neighbours: few of them hold a change."""
    return float(np.median(np.abs(np.diff(logs)))) * 1.4826 / math.sqrt(2)


def _windows(places: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    edges = [0, *places, length]
    return list(zip(edges, edges[1:], edges[2:], strict=False))


def _tested(logs: Floats, left: int, at: int, right: int, floor: float, noise: float, level: float) -> Found:
    """A place between its neighbours; below the floor it is as good as chance."""
    effect = float(np.median(logs[at:right]) - np.median(logs[left:at]))
    p = 1.0
    if abs(effect) >= math.log1p(floor):
        p = _p_of_lasting(effect, noise, at - left, right - at)
        if p <= level:
            p = max(p, _p_value(tuple(logs[left:right]), level))
    return Found(at, math.exp(effect), p)


def _p_of_lasting(effect: float, noise: float, before: int, after: int) -> float:
    """The chance that medians of so many points differ so at one of as many places, by noise that lasts.

    Args:
        noise: its standard deviation if nothing of it carried over, by differences of neighbours.
    """
    # An autoregressive process of first order: its neighbours differ by less than its deviation, by the root of 1 - r;
    # the mean of its points varies by (1 + r) / (1 - r) times as much as theirs would alone, a median by pi / 2 more.
    of_mean = noise * math.sqrt((1 + LASTING) * (1 / before + 1 / after)) / (1 - LASTING)
    if not of_mean:
        return 0.0
    return min(1.0, (before + after) * math.erfc(abs(effect) / of_mean / math.sqrt(math.pi)))


@lru_cache(maxsize=4096)
def _p_value(values: tuple[float, ...], level: float) -> float:
    """The part of all orders in which some place divides the values as clearly as in this one.

    Where it is certain to lie above the level, it is estimated from the orders that were drawn until then.
    """
    orders = min(MOST_ORDERS, max(ORDERS, math.ceil(5 / level)))
    ranks = _ranks(np.asarray(values))
    seen = _clearest(ranks[None, :])[0] * (1 - 1e-12)
    draw = np.random.default_rng(len(values))
    as_clear = drawn = 0
    while drawn < orders and 1 + as_clear <= level * (1 + orders):
        count = min(orders - drawn, AT_ONCE)
        shuffled = draw.permuted(np.broadcast_to(ranks, (count, len(values))), axis=1)
        as_clear += int(np.count_nonzero(_clearest(shuffled) >= seen))
        drawn += count
    return (1 + as_clear) / (1 + drawn)


def _clearest(ranks: Floats) -> Floats:
    """For each row, the largest standardised sum of centred ranks before a place."""
    length = ranks.shape[1]
    before = np.arange(FEWEST, length - FEWEST + 1)
    sums = np.cumsum(ranks, axis=1)[:, FEWEST - 1 : length - FEWEST]
    return np.asarray(np.max(np.abs(sums) / np.sqrt(before * (length - before) / length), axis=1))


def _ranks(values: Floats) -> Floats:
    """Centred ranks, equal ones where values are equal."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[places]
    return np.asarray(ranks - ranks.mean(), dtype=np.float64)
