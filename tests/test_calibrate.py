"""Trials whose truth is known: what is asked for, and the whole command."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import Runner
from test_cases import selection

from suites.core.calibrate import IMPLS, LIMIT, OPS, Request
from suites.core.cases import UsageError


def options(**changes: object) -> argparse.Namespace:
    plain = {
        "delay": "0,1,5",
        "kind": None,
        "limit": None,
        "trials": "4",
        "processes": None,
        "floor": None,
        "level": None,
        "metric": None,
        "strict": False,
        "all": False,
        "format": None,
        "output": None,
    }
    return argparse.Namespace(**(plain | changes))


def test_every_delay_and_kind_has_its_trials_in_random_order() -> None:
    request = Request.of(options(), selection())
    schedule = request.schedule()
    assert Counter(schedule) == {("ab", 0.0): 4, ("ab", 0.01): 4, ("ab", 0.05): 4, ("compare", 0.0): 4}
    assert schedule != sorted(schedule)
    assert Request.of(options(kind=["compare"]), selection()).schedule() == [("compare", 0.0)] * 4


def test_the_operator_and_its_baseline_are_measured_unless_others_are_named() -> None:
    request = Request.of(options(), selection())
    assert (request.selection.ops, request.selection.impls, request.comparison.limit) == (OPS, IMPLS, LIMIT)
    named = Request.of(options(), selection(ops=["conv"], axes={"size": [[7, 7]]}))
    assert (named.selection.ops, named.selection.impls, named.selection.axes) == (["conv"], None, {"size": [[7, 7]]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"delay": "x"}, "--delay: 'x'"), ({"kind": ["aa"]}, "--kind: 'aa'"), ({"trials": "0"}, "--trials: '0'")],
)
def test_bad_input_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Request.of(options(**changes), selection())


def test_trials_add_up_in_the_ledger_and_are_quoted(runner: Runner, tmp_path: Path) -> None:
    small = ("--op", "dwconv", "--resolution", "7", "--channels", "4", "--device", "cpu", "--processes", "1")
    for count in (1, 2):
        done = runner("calibrate", *small, "--kind", "ab", "--delay", "0,200")
        assert done.returncode == 0, done.stderr
        ledger = (tmp_path / "runs" / "calibration.jsonl").read_text().splitlines()
        assert Counter(json.loads(line)["delay"] for line in ledger) == {0.0: count, 2.0: count}
    assert "0 of 2" in done.stdout
    slowed = [json.loads(line)["ratios"] for line in ledger if json.loads(line)["delay"]]
    assert all(len(ratios) == 1 for ratios in slowed)
    case = next(iter(slowed[0]))
    assert case.startswith("latency:dwconv/torch@cpu")
    # one pair decides nothing
    assert {word for line in ledger for word in json.loads(line)["verdicts"].values()} == {"ambiguous"}
