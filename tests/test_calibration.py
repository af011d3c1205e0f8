"""The ledger of trials, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from reports.core import calibration
from reports.core.calibration import Count, Trial, alarms, drift, on_device, powers, quoted, smallest_found
from reports.core.records import RunError
from reports.core.verdicts import FASTER, SAME, SLOWER, Comparison, Verdict


def trial(delay: float = 0.0, kind: str = "ab", device: str = "a CPU", **verdicts: str) -> Trial:
    ratios = {case: 1.1 if word == SLOWER else 1.0 for case, word in verdicts.items()}
    return Trial(kind, device, 2, delay, 0.05, 0.03, verdicts, ratios, dict.fromkeys(verdicts, 0.04), 8, 20.0)


@pytest.mark.parametrize(
    ("found", "total", "low", "high"),
    # R: binom.test(found, total)$conf.int
    [(0, 30, 0.0, 0.1157033), (30, 30, 0.8842967, 1.0), (3, 10, 0.06673951, 0.6524529), (29, 30, 0.8278305, 0.9991564)],
)
def test_intervals_of_counts_are_exact(found: int, total: int, low: float, high: float) -> None:
    assert Count(found, total).interval == pytest.approx((low, high), rel=1e-5)


def test_the_bounds_are_where_the_tails_are_a_fortieth() -> None:
    low, high = Count(7, 20).interval
    above = sum(math.comb(20, i) * low**i * (1 - low) ** (20 - i) for i in range(7, 21))
    below = sum(math.comb(20, i) * high**i * (1 - high) ** (20 - i) for i in range(8))
    assert (above, below) == pytest.approx((0.025, 0.025))


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    ledger = tmp_path / "runs" / "calibration.jsonl"
    assert calibration.load(ledger) == []
    kept = [trial(0.05, one=SLOWER), trial(one=SAME)]
    for some in kept:
        calibration.append(ledger, some)
    assert calibration.load(ledger) == kept
    with ledger.open("a") as file:
        file.write('{"kind": "ab", "dev')  # a kill in the middle of a write
    assert calibration.load(ledger) == kept


@pytest.mark.parametrize(("line", "said"), [("{}", "line 1 is corrupt"), ('{"schema_version": 99}', "newer version")])
def test_a_ledger_that_cannot_be_read_is_named(tmp_path: Path, line: str, said: str) -> None:
    ledger = tmp_path / "calibration.jsonl"
    ledger.write_text(line + "\n")
    with pytest.raises(RunError, match=said):
        calibration.load(ledger)


def test_a_trial_takes_the_timed_verdicts() -> None:
    timed = Verdict(
        "case", "latency_wall", "s", SLOWER, 1.0, 1.1, 1.1, 1.05, 1.15, p=0.01, detectable=0.04, processes=8
    )
    told = Comparison("ab", "a", "b", [timed, Verdict("other", "", "", "missing")])
    found = trial(0.1)
    found.processes = 0
    found.take(told)
    name = "case latency_wall"
    assert (found.verdicts, found.ratios, found.detectable, found.processes) == (
        {name: SLOWER},
        {name: 1.1},
        {name: 0.04},
        8,
    )


def test_any_movement_of_a_program_against_itself_is_a_false_alarm() -> None:
    trials = [trial(one=SAME, two=SAME), trial(one=FASTER, two=SAME), trial(one=SAME, two=SLOWER)]
    trials += [trial(0.05, one=SLOWER), trial(kind="compare", one=SLOWER)]
    assert alarms(trials, "ab") == Count(2, 3)
    assert alarms(trials, "compare") == Count(1, 1)


def test_power_is_counted_by_delay_and_case() -> None:
    trials = [trial(0.05, one=SLOWER, two=SAME)] * 3 + [trial(0.05, one=FASTER, two=SLOWER), trial(0.01, one=SAME)]
    small, large = powers(trials, "ab")
    assert (small.delay, small.by_case) == (0.01, {"one": Count(0, 1)})
    assert (large.delay, large.by_case) == (0.05, {"one": Count(3, 4), "two": Count(1, 4)})
    assert large.all == Count(4, 8)


def test_the_smallest_effect_found_is_that_from_which_on_all_are() -> None:
    trials = [trial(0.02, one=SLOWER)] * 20 + [trial(0.05, one=SLOWER)] * 19 + [trial(0.05, one=SAME)]
    trials += [trial(0.1, one=SLOWER)] * 20
    assert smallest_found(powers(trials, "ab"), "one") == 0.02
    one_more = [*trials, trial(0.05, one=SAME)]  # 19 of 21 is less than 95 %
    assert smallest_found(powers(one_more, "ab"), "one") == 0.1
    assert smallest_found(powers([*trials, *[trial(0.1, one=SAME)] * 20], "ab"), "one") is None
    assert smallest_found(powers(trials, "ab"), "another") is None


def test_drift_is_that_of_separate_runs_of_one_program() -> None:
    assert drift([trial(one=SAME)]) is None
    apart = [trial(kind="compare", one=SAME), trial(kind="compare", one=SAME), trial(0.05, one=SLOWER)]
    apart[0].ratios, apart[1].ratios = {"one": 1.04, "two": 1 / 1.1}, {"one": 1.02}
    assert drift(apart) == pytest.approx((0.04, 0.1, 3))


def test_what_is_quoted_is_of_this_device_and_names_counts_and_intervals() -> None:
    trials = [trial(one=SAME)] * 30 + [trial(0.05, one=SLOWER)] * 10 + [trial(device="another", one=SLOWER)]
    lines = quoted(on_device(trials, "a CPU", 2), "ab")
    assert "0 of 30 (0 to 11.6 %)" in lines[0]
    assert "5 %" in lines[1]
    assert "10 of 10 (69.2 to 100 %)" in lines[1]
    assert "calibrate" in quoted(on_device(trials, "a CPU", 4), "ab")[0]
    assert "not calibrated" in quoted(trials, "compare")[0]


def test_the_table_names_the_smallest_effect_of_each_case() -> None:
    told = calibration.table([trial(0.05, one=SLOWER), trial(0.01, one=SAME), trial(one=SAME)])
    assert "one: found in 95 % of trials from 5 % on (1 %: 0 of 1 (0 to 97.5 %), 5 %: 1 of 1 (2.5 to 100 %))" in told
