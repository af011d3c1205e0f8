"""Medians and their bounds on made-up samples whose truth is known."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from reports import Block
from reports.core import intervals
from reports.core.intervals import by_process, interval, relative_half_width

TRUTH = 1.0
TRIALS = 200


def samples(
    generator: np.random.Generator,
    processes: int,
    blocks: int = 10,
    size: int = 15,
    between_processes: float = 0.0,
    between_blocks: float = 0.0,
    heavy: bool = False,
) -> list[list[list[float]]]:
    """Samples with the median 1: their own noise is 5 %, that of blocks and processes a log-normal factor."""
    made = []
    for _ in range(processes):
        of_process = np.exp(between_processes * generator.standard_normal())
        made.append([])
        for _ in range(blocks):
            level = of_process * np.exp(between_blocks * generator.standard_normal())
            noise = generator.standard_t(2, size) if heavy else generator.standard_normal(size)
            made[-1].append(list(level * (1 + 0.05 * noise)))
    return made


def coverage(trials: int = TRIALS, **kind: float) -> float:
    """How often the truth is within the bounds; fewer resamples than usual, to be quick."""
    generator = np.random.default_rng(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 300)
        found = [interval(samples(generator, **kind), seed) for seed in range(trials)]  # type: ignore[arg-type]
    return sum(low <= TRUTH <= high for _, low, high in found) / trials


@pytest.mark.parametrize(
    "kind",
    [
        {"processes": 3},
        {"processes": 3, "heavy": True},
        {"processes": 3, "blocks": 1, "size": 100},
        {"processes": 3, "between_blocks": 0.05},
        {"processes": 5},
    ],
)
def test_three_processes_reach_95_percent_where_they_agree(kind: dict[str, float]) -> None:
    assert coverage(**kind) >= 0.93


@pytest.mark.parametrize("kind", [{}, {"between_blocks": 0.05}, {"blocks": 1, "size": 100}])
def test_one_process_comes_near_90_percent(kind: dict[str, float]) -> None:
    """As the docstring says of ten blocks; the error of 400 trials is 3 %."""
    assert 0.84 <= coverage(trials=400, processes=1, **kind) <= 0.96


@pytest.mark.parametrize(("processes", "most"), [(2, 0.50), (3, 0.75), (5, 1 - 2**-4)])
def test_few_processes_that_differ_cover_no_more_than_their_extremes(processes: int, most: float) -> None:
    """The docstring's honest limit, 1 - 2**(1 - P), within the error of the trials."""
    error = 2.6 * math.sqrt(most * (1 - most) / TRIALS)
    assert abs(coverage(processes=processes, between_processes=0.3) - most) <= error


def test_many_processes_that_differ_come_near_95_percent() -> None:
    assert coverage(processes=9, between_processes=0.3, blocks=4) >= 0.89


def test_correlated_blocks_widen_the_bounds() -> None:
    """The same 300 values, as ten blocks of their own levels or shuffled into one: only blocks tell they are ten."""
    blocks = samples(np.random.default_rng(3), 1, between_blocks=0.1)[0]
    shuffled = list(np.random.default_rng(4).permutation(np.concatenate(blocks)))
    honest, naive = interval([blocks]), interval([[shuffled]])
    assert honest.value == naive.value
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)


def test_value_is_the_median_of_the_medians_of_processes() -> None:
    fast, slow = [[1.0, 1.1, 0.9]], [[5.0] * 1000]
    assert interval([fast, fast, slow]).value == 1.0
    assert interval([fast, slow]).value == 3.0
    assert interval([[[1.0, 2.0], [3.0, 4.0, 100.0]]]).value == 3.0


def test_bounds_enclose_the_value_and_lie_within_the_samples() -> None:
    generator = np.random.default_rng(1)
    for size in (1, 2, 3, 7, 600, 2000):
        values = list(generator.lognormal(size=size))
        value, low, high = interval([[values], [values]])
        assert min(values) <= low <= value <= high <= max(values)


def test_equal_samples_have_no_width() -> None:
    assert interval([[[2.0] * 5] * 4] * 3) == (2.0, 2.0, 2.0)


def test_bounds_scale_with_the_samples() -> None:
    made = samples(np.random.default_rng(2), 3)
    scaled = [[[1e-6 * value for value in block] for block in blocks] for blocks in made]
    assert interval(scaled) == pytest.approx([1e-6 * bound for bound in interval(made)])


def test_a_seed_gives_the_same_bounds() -> None:
    made = samples(np.random.default_rng(5), 3)
    assert interval(made, 1) == interval(made, 1)
    assert interval(made, 1)[1:] != interval(made, 2)[1:]


def test_empty_processes_are_left_out_and_no_sample_is_an_error() -> None:
    made = samples(np.random.default_rng(5), 2)
    assert interval([*made, [[]], []]) == interval(made)
    for nothing in ([], [[]], [[[]]]):
        with pytest.raises(ValueError, match="no samples"):
            interval(nothing)


def test_by_process_sorts_processes_and_rounds_of_one_metric() -> None:
    block = partial(Block, time=0.0, calls=1)
    taken = [
        block(metric="wall", process=1, round=0, values=[4.0]),
        block(metric="wall", process=0, round=1, values=[2.0, 3.0]),
        block(metric="cold", process=0, round=0, values=[9.0]),
        block(metric="wall", process=0, round=0, values=[1.0]),
    ]
    assert by_process(taken, "wall") == [[[1.0], [2.0, 3.0]], [[4.0]]]


def binomial_tail(n: int, most: int) -> float:
    """P(X <= most) of X ~ B(n, 1/2)."""
    return sum(math.comb(n, i) for i in range(most + 1)) / 2**n


@pytest.mark.parametrize("n", [6, 7, 10, 20, 31, 50, 100, 101, 200, 1000])
def test_half_width_is_that_of_the_tightest_order_statistics(n: int) -> None:
    """Of n equally spaced samples the width tells which ranks were taken; their coverage is known exactly."""
    values = np.arange(1.0, n + 1)
    width = relative_half_width(values) * 2 * float(np.median(values))
    rank = round((n + 1 - width) / 2)
    assert 1 - 2 * binomial_tail(n, rank - 1) >= 0.9499
    assert 1 - 2 * binomial_tail(n, rank) < 0.955


def test_half_width_takes_any_order() -> None:
    values = np.arange(1.0, 21)
    shuffled = np.random.default_rng(0).permutation(values)
    assert relative_half_width(list(shuffled)) == relative_half_width(values) == pytest.approx(4.5 / 10.5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 5, [0.0] * 9])
def test_half_width_is_infinite_where_nothing_can_be_said(values: list[float]) -> None:
    assert relative_half_width(values) == math.inf
