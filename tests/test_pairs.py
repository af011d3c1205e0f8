"""What paired measurements say, on made-up ones whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports import Block, Record, Run
from reports.core.pairs import BASE, CONFIRMING, LOOKS, NEW, case_of, decided, judge, log_ratios
from reports.core.significance import needed
from reports.core.verdicts import AMBIGUOUS, FASTER, FLOOR, LEVEL, MISSING, NOT_COMPARABLE, SAME, SLOWER

CASES = ("a", "b", "placebo")
#: Seconds at a time, by case and side: what the made-up clock shows.
Truth = Callable[[str, str, float], float]


def record(case: str, pair: int, side: str, blocks: list[Block], status: str = "ok", reason: str = "") -> Record:
    axes = {"pair": pair, "side": side}
    name = f"{case}:pair={pair}:side={side}"
    return Record("run", name, 1, "latency", "op", "impl", "cpu", axes, status, reason, samples=blocks)


def measured(truth: Truth, pairs: int = 8, quartets: int = 3, cases: tuple[str, ...] = CASES) -> list[Record]:
    """Quartets in order base new new base, a block a second."""
    found = []
    now = 0.0
    for pair in range(pairs):
        for case in cases:
            blocks: dict[str, list[Block]] = {BASE: [], NEW: []}
            for quartet in range(quartets):
                for side in (BASE, NEW, NEW, BASE):
                    values = [truth(case, side, now)] * 5
                    blocks[side].append(Block("latency_wall", pair, quartet, now, 1, values))
                    now += 1.0
            found += [record(case, pair, side, blocks[side]) for side in (BASE, NEW)]
    return found


def run(records: list[Record], **told: Any) -> Run:
    plain = {"base": "old", "new": "young", "placebos": ["placebo"], "left_out": {}, "only": {}}
    plain |= {"looks": 1, "level": LEVEL, "floor": FLOOR}
    return Run(Path(), {"ab": plain | told}, records)


def noisy(slower: dict[str, float], spread: float = 0.005, seed: int = 1) -> Truth:
    draw = random.Random(seed)

    def truth(case: str, side: str, now: float) -> float:
        factor = slower.get(case, 1.0) if side == NEW else 1.0
        return 1e-3 * factor * math.exp(spread * draw.gauss(0, 1))

    return truth


def words(found: Run) -> dict[str, str]:
    return {v.case: v.verdict for v in judge(found).verdicts}


def test_a_slow_down_is_found_in_its_case_alone() -> None:
    found = judge(run(measured(noisy({"a": 1.05}))))
    assert {v.case: v.verdict for v in found.verdicts} == {"a": SLOWER, "b": SAME, "placebo": SAME}
    slow = next(v for v in found.verdicts if v.case == "a")
    assert slow.ratio == pytest.approx(1.05, rel=0.01)
    assert slow.low is not None
    assert slow.high is not None
    assert slow.low < 1.05 < slow.high
    assert (slow.worse, slow.processes) == (True, 8)
    assert slow.detectable is not None
    assert 0.03 <= slow.detectable < 0.05
    assert (found.base, found.new, found.exit_code()) == ("old", "young", 1)


def test_a_speed_up_is_no_regression() -> None:
    found = judge(run(measured(noisy({"b": 1 / 1.05}))))
    assert {v.case: v.verdict for v in found.verdicts} == {"a": SAME, "b": FASTER, "placebo": SAME}
    assert found.exit_code() == 0


def test_what_is_below_the_floor_is_the_same_however_sure() -> None:
    records = measured(noisy({"a": 1.02}, spread=0.001))
    assert words(run(records))["a"] == SAME
    assert words(run(records, floor=0.01))["a"] == SLOWER


def test_a_steady_drift_moves_base_and_new_alike() -> None:
    """The machine slows by a percent a second, over pairs of 36 seconds: fresh pairs start from where it is by then."""
    drifting = measured(lambda case, side, now: 1e-3 * 1.01**now)
    for ratios in log_ratios(drifting).values():
        assert list(ratios.values()) == pytest.approx([0.0] * 8, abs=0.011)  # one block of one second
    assert judge(run(drifting)).of(SLOWER, FASTER) == []


def test_one_disturbed_quartet_does_not_decide_its_pair() -> None:
    def truth(case: str, side: str, now: float) -> float:
        return 1e-3 * (50.0 if side == NEW and now % 12 < 4 else 1.0)

    for ratios in log_ratios(measured(truth)).values():
        assert list(ratios.values()) == pytest.approx([0.0] * 8)


def test_disturbed_blocks_count_only_where_there_are_no_others() -> None:
    """Every block of the new side lost its cores, and was taken again."""
    records = measured(noisy({}, spread=0.0))
    for made in records:
        if made.axes["side"] == NEW:
            again = [replace(b, values=[9.0] * 50, disturbed=True) for b in made.samples]
            made.samples += again
    assert all(abs(x) < 1e-9 for ratios in log_ratios(records).values() for x in ratios.values())
    for made in records:
        made.samples = [block for block in made.samples if made.axes["side"] == BASE or block.disturbed]
    assert all(x == pytest.approx(math.log(9e3)) for ratios in log_ratios(records).values() for x in ratios.values())


def test_a_process_that_is_slow_for_good_moves_nothing() -> None:
    """Its pages lie badly; the side's other processes do not."""
    records = measured(noisy({}, spread=0.0))
    for made in records:
        if made.axes["side"] == NEW:
            made.samples += [replace(b, process=100 + b.process, values=[1.3e-3] * 5) for b in made.samples]
    assert all(abs(x) < 1e-9 for ratios in log_ratios(records).values() for x in ratios.values())
    for made in records:
        if made.axes["side"] == NEW:
            for block in made.samples:
                block.values[:] = [1.1 * value for value in block.values]
    assert all(x == pytest.approx(math.log(1.1)) for ratios in log_ratios(records).values() for x in ratios.values())


def test_what_others_add_to_half_of_the_samples_moves_nothing() -> None:
    records = measured(noisy({}, spread=0.0))
    for made in records:
        for block in made.samples if made.axes["side"] == NEW else []:
            block.values[:2] = [9.0, 9.0]
    assert all(abs(x) < 1e-9 for ratios in log_ratios(records).values() for x in ratios.values())


def test_a_placebo_that_moves_makes_all_movement_doubtful() -> None:
    found = judge(run(measured(noisy({"a": 1.2, "placebo": 1.1}))))
    assert {v.case: v.verdict for v in found.verdicts} == {"a": AMBIGUOUS, "b": SAME, "placebo": AMBIGUOUS}
    assert "placebo" in next(v.reason for v in found.verdicts if v.case == "a")
    assert (found.exit_code(), found.exit_code(strict=True)) == (0, 3)
    assert [v.case for v in found.verdicts if v.placebo] == ["placebo"]


def test_too_few_pairs_decide_nothing_and_say_how_many_would() -> None:
    found = judge(run(measured(noisy({"a": 2.0}), pairs=needed(LEVEL, paired=True) - 1)))
    assert {v.verdict for v in found.verdicts} == {AMBIGUOUS}
    assert {v.needed for v in found.verdicts} == {6}
    assert {v.verdict for v in judge(run(measured(noisy({"a": 2.0}), pairs=6))).of(SLOWER)} == {SLOWER}


def test_looks_share_the_error_rate() -> None:
    """Six pairs reach p = 1/32, which is enough for one look at 5 % and not for one of four."""
    records = measured(noisy({"a": 2.0}), pairs=6)
    assert words(run(records))["a"] == SLOWER
    found = next(v for v in judge(run(records, looks=4)).verdicts if v.case == "a")
    assert (found.verdict, found.needed) == (AMBIGUOUS, 8)
    eight = next(v for v in judge(run(measured(noisy({"a": 2.0})), looks=4)).verdicts if v.case == "a")
    assert eight.verdict == SLOWER
    assert eight.p == pytest.approx(4 * 2 / 2**8)


def test_the_first_look_has_pairs_enough() -> None:
    assert LOOKS[0] >= needed(LEVEL / len(LOOKS), paired=True)


def test_decided_when_each_case_moved_or_leaves_no_room() -> None:
    assert decided(judge(run(measured(noisy({"a": 1.2})))))
    assert not decided(judge(run(measured(noisy({}, spread=0.2)))))


def test_what_fails_in_the_new_side_is_missing() -> None:
    records = measured(noisy({}))
    records[3] = record("b", 0, NEW, [], "crashed", "killed by SIGSEGV")
    found = judge(run(records))
    lost = next(v for v in found.verdicts if v.case == "b")
    assert (lost.verdict, lost.reason) == (MISSING, "new: crashed: killed by SIGSEGV")
    assert found.exit_code() == 4
    assert len(found.verdicts) == 3


def test_what_fails_in_the_base_cannot_be_compared() -> None:
    records = measured(noisy({}))
    records[2] = record("b", 0, BASE, [], "failed", "wrong result")
    lost = next(v for v in judge(run(records)).verdicts if v.case == "b")
    assert (lost.verdict, lost.reason) == (NOT_COMPARABLE, "base: failed: wrong result")


def test_cases_of_one_side_and_other_versions_are_told() -> None:
    told = {"left_out": {"c": "case_version 1 against 2: another meaning"}, "only": {BASE: ["d"], NEW: ["e"]}}
    found = judge(run(measured(noisy({})), **told))
    assert {v.case: v.verdict for v in found.verdicts if v.case in "cd"} == {"c": NOT_COMPARABLE, "d": MISSING}
    assert any("e" in note for note in found.notes)


def test_a_case_is_named_without_its_pair_and_side() -> None:
    assert case_of(record("latency:a:threads=1", 11, NEW, [])) == "latency:a:threads=1"


def test_alarms_stay_within_the_level_under_heavy_tails_and_lasting_differences() -> None:
    """Nothing changed, but every process is its own, and one in ten is far off."""
    draw = random.Random(7)
    alarms = 0
    for _ in range(100):
        of_process: dict[tuple[str, str, int], float] = {}

        def truth(case: str, side: str, now: float, known: dict[Any, float] = of_process) -> float:
            key = (case, side, int(now // 36))
            if key not in known:
                known[key] = math.exp((0.3 if draw.random() < 0.1 else 0.03) * draw.gauss(0, 1))
            return 1e-3 * known[key] * math.exp(0.002 * draw.gauss(0, 1))

        alarms += bool(judge(run(measured(truth, quartets=3), placebos=[])).of(SLOWER, FASTER))
    assert alarms <= 11  # 5 % expected at most; 12 or more of 100 have a chance of 0.4 % then


def confirmed(first: dict[str, float], second: dict[str, float]) -> dict[str, str]:
    """Verdicts by case of a first measurement, and of a second one of what was slower in it."""
    again = measured(noisy(second, seed=2), cases=(*first, "placebo"))
    late = [record(case_of(r), r.axes["pair"] + CONFIRMING, r.axes["side"], r.samples) for r in again]
    judged = judge(run([*measured(noisy(first)), *late]))
    return {v.case: v.verdict for v in judged.verdicts}


def test_what_is_slower_has_to_be_so_twice() -> None:
    assert confirmed({"a": 1.2}, {"a": 1.2}) == {"a": SLOWER, "b": SAME, "placebo": SAME}
    assert confirmed({"a": 1.2}, {}) == {"a": AMBIGUOUS, "b": SAME, "placebo": SAME}
    assert confirmed({"a": 1.2, "b": 1.2}, {"b": 1.2}) == {"a": AMBIGUOUS, "b": SLOWER, "placebo": SAME}
    assert confirmed({"a": 0.8, "b": 1.2}, {"b": 1.2})["a"] == FASTER, "what is faster is not measured again"
