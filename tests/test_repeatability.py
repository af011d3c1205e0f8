"""Shares of medians that repeat."""

from __future__ import annotations

from reports import Block, Metric, Record
from reports.core.repeatability import between_runs, odd_and_even


def record(case: str, *rounds: list[float], value: float = 1.0) -> Record:
    samples = [Block("latency_wall", 0, number, 0.0, 1, values) for number, values in enumerate(rounds)]
    metrics = [Metric("latency_wall", "s", value)]
    return Record("run", case, 1, "latency", "conv", "torch", "cpu", {}, "ok", metrics=metrics, samples=samples)


def test_odd_and_even_rounds_are_held_against_each_other() -> None:
    steady = record("steady", [1.0, 1.0], [1.09, 1.09], [1.0], [1.09])
    drifting = record("drifting", [1.0], [1.2], [1.0], [1.2])
    single = record("single", [1.0])
    found = odd_and_even([steady, drifting, single], "latency_wall")
    assert (found.agreeing, found.total) == (1, 2)
    assert found.ratios["drifting"] == 1.2


def test_two_runs_are_compared_case_by_case() -> None:
    first = [record("a", value=1.0), record("b", value=1.0), record("only here")]
    second = [record("a", value=0.92), record("b", value=1.5)]
    found = between_runs(first, second, "latency_wall")
    assert (found.agreeing, found.total) == (1, 2)
    assert between_runs(first, second, "latency_cold").total == 0
