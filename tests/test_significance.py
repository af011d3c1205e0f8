"""The statistics of comparing, on made-up processes whose truth is known (see `simulate`) and against brute force."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
from simulate import CHANGED, LEVEL, NOISES, covered, false_alarms, found, pairs, quick, two_runs

from reports.core import significance
from reports.core.significance import needed, paired, rank_sums, signed_ranks, unpaired

TRIALS = 100
#: So many false alarms in `TRIALS` are exceeded once in a thousand times by what alarms in 5 % of them.
MOST_ALARMS = 13


def test_the_bound_of_alarms_is_the_binomial_one() -> None:
    tail = [math.comb(TRIALS, k) * LEVEL**k * (1 - LEVEL) ** (TRIALS - k) for k in range(TRIALS + 1)]
    assert sum(tail[MOST_ALARMS + 1 :]) < 1e-3 < sum(tail[MOST_ALARMS:])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sides", [(5, 5), (3, 9)])
def test_comparisons_of_equals_alarm_no_more_often_than_stated(noise: str, sides: tuple[int, int]) -> None:
    """60 cases each: without regard to their number, nearly every comparison would alarm."""
    with quick():
        assert false_alarms(TRIALS, lambda seed: two_runs(NOISES[noise], *sides, 0.0, seed)) <= MOST_ALARMS


@pytest.mark.parametrize("noise", NOISES)
def test_pairs_of_equals_alarm_no_more_often_than_stated(noise: str) -> None:
    with quick():
        assert false_alarms(TRIALS, lambda seed: pairs(NOISES[noise], 7, 0.0, seed)) <= MOST_ALARMS


def test_drawn_labels_alarm_no_more_often_than_stated() -> None:
    with quick(400):
        assert false_alarms(TRIALS, lambda seed: two_runs(NOISES["heavy tails"], 7, 7, 0.0, seed)) <= MOST_ALARMS


def test_changed_cases_do_not_make_the_others_alarm() -> None:
    alarms = 0
    with quick():
        trials = [two_runs(NOISES["normal"], 5, 5, 0.3, seed) for seed in range(TRIALS)]
    for findings in trials:
        assert all(f.p <= LEVEL for f in findings[:CHANGED])
        alarms += any(f.p <= LEVEL for f in findings[CHANGED:])
    assert alarms <= MOST_ALARMS


@pytest.mark.parametrize(
    ("noise", "sides", "effect", "least"),
    [
        ("normal", (4, 4), 0.10, 0.8),
        ("normal", (7, 7), 0.05, 0.8),
        ("heavy tails", (7, 7), 0.10, 0.8),
        ("disturbed processes", (9, 9), 0.10, 0.8),
        ("bimodal processes", (9, 9), 0.10, 0.8),
    ],
)
def test_changes_are_found(noise: str, sides: tuple[int, int], effect: float, least: float) -> None:
    with quick(1000):
        assert found(30, lambda seed: two_runs(NOISES[noise], *sides, effect, seed)) >= least


def test_the_variance_of_the_others_makes_changes_easier_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    with quick():
        steadied = found(40, lambda seed: two_runs(NOISES["normal"], 4, 4, 0.08, seed))
        monkeypatch.setattr(significance, "PRIOR", 0)
        assert found(40, lambda seed: two_runs(NOISES["normal"], 4, 4, 0.08, seed)) < steadied - 0.1


@pytest.mark.parametrize(("noise", "effect"), [("normal", 0.05), ("correlated cases", 0.08), ("heavy tails", 0.08)])
def test_changes_of_pairs_are_found(noise: str, effect: float) -> None:
    with quick():
        assert found(30, lambda seed: pairs(NOISES[noise], 10, effect, seed)) >= 0.8


@pytest.mark.parametrize("noise", ["normal", "heavy tails", "bimodal processes"])
@pytest.mark.parametrize(
    "take", [partial(two_runs, base=4, new=4), partial(two_runs, base=6, new=9), partial(pairs, count=7)]
)
def test_bounds_hold_the_truth(noise: str, take: partial[list[significance.Finding]]) -> None:
    """95 % of 1,800 bounds, which are not quite independent."""
    with quick(200):
        part = covered(30, 0.05, lambda seed: take(NOISES[noise], effect=0.05, seed=seed))
    assert part >= 0.94


@pytest.mark.parametrize("cases", [1, 30])
@pytest.mark.parametrize("sides", [(4, 4), (5, 6)])
@pytest.mark.parametrize("noise", ["normal", "heavy tails"])
def test_detectable_is_the_smallest_effect_that_is_found(noise: str, sides: tuple[int, int], cases: int) -> None:
    """Effects above and below it are put into the very processes that it was told for."""
    above, below = [], []
    for seed in range(20):
        x = 0.02 * NOISES[noise](np.random.default_rng(seed), sum(sides), cases)
        base, new = x[: sides[0]], x[sides[0] :].copy()
        told = unpaired(base, new, LEVEL)[0]
        for factor, shown in ((1.1, above), (0.85, below)):
            new[:, 0] = x[sides[0] :, 0] - told.effect + math.copysign(factor * told.detectable, told.effect)
            shown.append(unpaired(base, new, LEVEL)[0].p <= LEVEL)
    assert np.mean(above) >= 0.95
    assert np.mean(below) <= 0.05


def test_detectable_of_pairs_is_the_smallest_effect_that_is_found() -> None:
    above, below = [], []
    for seed in range(20):
        x = np.random.default_rng(seed).normal(0, 0.02, (8, 20))
        told = paired(x, LEVEL)[0]
        for factor, shown in ((1.1, above), (0.85, below)):
            y = x.copy()
            y[:, 0] += math.copysign(factor * told.detectable, told.effect) - told.effect
            shown.append(paired(y, LEVEL)[0].p <= LEVEL)
    assert np.mean(above) >= 0.95
    assert np.mean(below) <= 0.05


def test_what_is_significant_is_at_least_detectable() -> None:
    for seed in range(10):
        for f in two_runs(NOISES["normal"], 5, 5, 0.06, seed):
            assert (f.p <= LEVEL) == (abs(f.effect) >= f.detectable * (1 - 1e-4))


# Against brute force


@pytest.mark.parametrize("seed", range(5))
def test_one_hypothesis_is_the_permutation_test_of_the_mean(seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 1, 8)
    x[4:] += 1.5
    differences = [abs(x[list(c)].mean() - np.delete(x, c).mean()) for c in combinations(range(8), 4)]
    p = np.mean(np.array(differences) >= differences[0] - 1e-12)
    assert unpaired(x[:4, None], x[4:, None], LEVEL)[0].p == pytest.approx(p)


@pytest.mark.parametrize("seed", range(5))
def test_one_hypothesis_of_pairs_is_the_sign_flip_test_of_the_mean(seed: int) -> None:
    x = np.random.default_rng(seed).normal(0.7, 1, 4)
    means = [abs(np.mean(x * np.array(signs))) for signs in product((1, -1), repeat=4)]
    p = np.mean(np.array(means) >= means[0] - 1e-12)
    assert paired(x[:, None], LEVEL)[0].p == pytest.approx(p)


def test_step_down_holds_a_hypothesis_against_those_that_are_still_undecided() -> None:
    """Worked by hand: the second is held against itself and the third alone, and p never falls."""
    found = np.array([[9.0, 3.0, 1.0], [8.0, 2.0, 0.5], [7.0, 0.0, 2.0], [1.0, 4.0, 0.0]])
    assert list(significance.step_down(found)) == [0.25, 0.5, 0.5]
    assert list(significance.step_down(found[:, [2, 0, 1]])) == [0.5, 0.25, 0.5]
    falling = np.array([[5.0, 1.0], [6.0, 0.0], [6.0, 0.0], [0.0, 0.0]])
    assert list(significance.step_down(falling)) == [0.75, 0.75]


def test_ranks_are_counted_as_by_brute_force() -> None:
    sums = [sum(c) - 3 for c in combinations(range(7), 3)]
    assert rank_sums(3, 4) == pytest.approx(np.bincount(sums) / 35)
    signed = [sum(r for r, up in zip(range(1, 6), signs, strict=True) if up) for signs in product((0, 1), repeat=5)]
    assert signed_ranks(5) == pytest.approx(np.bincount(signed) / 32)


# What few processes can say


@pytest.mark.parametrize(("level", "sides", "both"), [(0.05, 4, 6), (0.01, 5, 8), (0.2, 3, 4), (1.0, 1, 1)])
def test_needed_is_the_fewest_that_reach_the_level(level: float, sides: int, both: int) -> None:
    assert (needed(level, paired=False), needed(level, paired=True)) == (sides, both)


@pytest.mark.parametrize("effect", [0.0, 5.0])
def test_three_processes_decide_nothing_and_four_do(effect: float) -> None:
    x = np.random.default_rng(0).normal(0, 0.01, (8, 20))
    x[4:, 0] += effect
    three, four = unpaired(x[:3], x[5:], LEVEL)[0], unpaired(x[:4], x[4:], LEVEL)[0]
    assert (three.enough, three.processes, three.detectable, three.low) == (False, 3, math.inf, -math.inf)
    assert three.p >= 0.1
    assert (four.enough, four.processes) == (True, 4)
    assert (four.p <= LEVEL) == bool(effect)
    assert four.low <= four.effect <= four.high < math.inf


def test_five_pairs_decide_nothing_and_six_do() -> None:
    x = np.random.default_rng(0).normal(1.0, 0.01, (6, 20))
    five, six = paired(x[:5], LEVEL)[0], paired(x, LEVEL)[0]
    assert (five.enough, five.detectable) == (False, math.inf)
    assert five.p > LEVEL
    assert (six.enough, six.p <= LEVEL) == (True, True)
    assert six.low < six.effect < six.high


def test_a_case_of_few_processes_is_not_decided_by_those_of_others() -> None:
    x = np.random.default_rng(0).normal(0, 0.01, (18, 5))
    x[9:, 0] += 1.0
    x[3:9, 0] = x[12:, 0] = np.nan
    x[:9, 1] = np.nan
    few, none, *others = unpaired(x[:9], x[9:], LEVEL)
    assert (few.enough, few.processes) == (False, 3)
    assert few.p >= 0.1
    assert (none.enough, none.processes, none.p) == (False, 0, 1.0)
    assert math.isnan(none.effect)
    assert all(f.enough and f.processes == 9 for f in others)


# Exactness of what is told


def test_a_factor_is_told_exactly_and_is_the_same_downwards() -> None:
    x = np.random.default_rng(1).normal(0, 0.05, (9, 3))
    y = x.copy()
    y[:, 0] += math.log(1.5)
    up, down = unpaired(x, y, LEVEL), unpaired(y, x, LEVEL)
    assert up[0].effect == pytest.approx(math.log(1.5), abs=1e-12)
    assert down[0].effect == pytest.approx(-up[0].effect, abs=1e-12)
    assert (down[0].p, down[0].low) == pytest.approx((up[0].p, -up[0].high))
    assert [f.effect for f in up[1:]] == pytest.approx([0, 0], abs=1e-12)
    assert all(f.p > 0.9 for f in up[1:])


def test_one_disturbed_process_neither_moves_the_effect_nor_hides_it() -> None:
    x = np.random.default_rng(1).normal(0, 0.01, (18, 40))
    x[9:, 0] += 0.10
    quiet = unpaired(x[:9], x[9:], LEVEL)[0]
    x[4, 0] += 2.0
    disturbed = unpaired(x[:9], x[9:], LEVEL)[0]
    assert disturbed.effect == pytest.approx(quiet.effect, abs=0.01)
    assert disturbed.p <= LEVEL


def test_without_any_noise_equals_are_equal_and_a_change_is_one() -> None:
    x = np.full((18, 4), -7.123456789)
    assert all((f.p, f.effect) == (1.0, 0.0) for f in unpaired(x[:9], x[9:], LEVEL))
    x[9:, 2] += 0.05
    findings = unpaired(x[:9], x[9:], LEVEL)
    assert [f.p <= LEVEL for f in findings] == [False, False, True, False]
    assert [f.p <= LEVEL for f in paired(x[9:] - x[:9], LEVEL)] == [False, False, True, False]


def test_seeds_repeat_and_differ_only_where_labels_are_drawn() -> None:
    x = np.random.default_rng(2).normal(0, 1, (24, 5))
    first, again, other = (unpaired(x[:12], x[12:], LEVEL, seed) for seed in (1, 1, 2))
    assert first == again
    assert [f.p for f in first] != [f.p for f in other]
    assert unpaired(x[:4], x[4:9], LEVEL, 1) == unpaired(x[:4], x[4:9], LEVEL, 2)


def test_the_observed_labels_are_the_first_of_those_drawn() -> None:
    x = np.random.default_rng(2).normal(0, 0.01, (24, 5))
    x[12:, 0] += 1.0
    assert unpaired(x[:12], x[12:], LEVEL)[0].p == 1 / significance.DRAWN
    assert paired(x[12:].repeat(2, axis=0), LEVEL)[0].p == 1 / significance.DRAWN


def test_nothing_to_compare_is_no_finding() -> None:
    assert unpaired(np.zeros((3, 0)), np.zeros((4, 0)), LEVEL) == []
    assert paired(np.zeros((0, 0)), LEVEL) == []
    assert [f.enough for f in unpaired(np.zeros((0, 2)), np.zeros((4, 2)), LEVEL)] == [False, False]
    with pytest.raises(ValueError, match="2 hypotheses against 3"):
        unpaired(np.zeros((4, 2)), np.zeros((4, 3)), LEVEL)
