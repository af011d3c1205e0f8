"""The suite `complexity`: counts of many shapes fit without residual, and what is timed is described."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from test_check import IMPLS, made
from test_memory import gradients

from ops import Op, Point
from reports import Record
from reports.core.growth import CLAIMED, Growth, _fits, parsed
from suites import Begun, Suite, suites
from suites.complexity import COUNTED, MOST_MACS, SMALLEST, counted, cross, name
from suites.core.counting import count_macs

COMPLEXITY = suites()["complexity"]
#: Further terms, beside the claimed ones, of the multiply-accumulates: the filters' application, and the squeeze.
FURTHER = {"dyfilter": "n c^2 k^2", "dyfilter_dw": "n c k^2", "ddf": "c^2"}
COEFFICIENTS = {"dyfilter": [1, 1], "dyfilter_dw": [1, 1], "ddf": [2, 0.2, 0.2]}


@cache
def counts(file: str, op: str, impl: str) -> dict[str, list[int]]:
    with gradients("forward"):
        return counted(made(file, op, impl), COUNTED)


def fits(file: str, op: str, impl: str) -> dict[str, Growth]:
    found = counts(file, op, impl)
    record = Record("", "", 1, "complexity", op, impl, "cpu", {}, "ok", settings={"counted": found})
    return {growth.quantity: growth for growth in _fits(record)}


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_counts_of_many_shapes_fit_without_residual(file: str, op: str, impl: str) -> None:
    found = fits(file, op, impl)
    assert set(found) == {"macs", "filter_memory"}
    for growth in found.values():
        assert growth.points == len(COUNTED) >= 30
        assert growth.all_residual == 0.0
        assert growth.within_claim
    macs, filters = found["macs"], found["filter_memory"]
    assert (macs.further, macs.all_coefficients) == (FURTHER.get(op, ""), COEFFICIENTS.get(op, [1]))
    assert (macs.residual == 0) == (op not in FURTHER)
    assert (filters.residual, filters.further) == (0, "")
    assert filters.coefficients == [4.0] * len(parsed(CLAIMED["filter_memory"][op]))


@pytest.mark.parametrize(("quantity", "op"), [(q, op) for q, by_op in CLAIMED.items() for op in by_op])
def test_other_terms_than_the_claimed_ones_leave_a_residual(
    quantity: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, impl = next((file, impl) for file, name, impl in IMPLS if name == op)
    monkeypatch.setitem(CLAIMED[quantity], op, "n^2 c k^3")
    growth = fits(file, op, impl)[quantity]
    if CLAIMED[quantity][op] != "0" and growth.coefficients != [0]:
        assert growth.residual
        assert growth.further or growth.all_residual


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_counts_are_those_of_the_closed_form(file: str, op: str, impl: str) -> None:
    """Two ways to the same number, of which the suite takes the count."""
    with gradients("forward"):
        for axes in ({}, {"stride": 2}, {"channels": 15, "kernel_size": 5, "batch": 2}):
            bench = made(file, op, impl, **axes)
            assert count_macs(bench.forward) == sum(bench.costs.macs.values())


def test_only_products_that_are_summed_up_are_counted() -> None:
    a, b = torch.ones(3, 4), torch.full((3, 4), 2.0)

    def scaled() -> None:
        (a * b).add_(1.0)

    def summed() -> None:
        (a * b).addcmul_(a, b).addcmul_(a, b)

    assert (count_macs(scaled), count_macs(summed), count_macs(lambda: a @ b.T)) == (0, 36, 36)


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_the_cross_varies_one_thing_at_a_time_and_is_affordable(file: str, op: str, impl: str) -> None:
    bench = made(file, op, impl)
    middle, *rest = cross(bench.op, bench.case.point, "cpu")
    differing = [{v for v in ("n", "c", "k") if shape.axes[v] != middle.axes[v]} for shape in rest]
    assert sorted(map(sorted, differing)) == [["c"], ["c"], ["k"], ["k"], ["n"], ["n"]]
    macs = [sum(bench.op.costs(shape.of(bench.case.point)).macs.values()) for shape in (middle, *rest)]
    assert max(macs) <= MOST_MACS["cpu"]


def begun(suite: Suite, check: bool, monkeypatch: pytest.MonkeyPatch) -> Begun:
    """On shapes that take no time."""
    monkeypatch.setattr("suites.complexity.SIDES", (4,))
    monkeypatch.setattr("suites.complexity.CHANNELS", (8,))
    bench = made("ddf", "ddf", "native")
    bench.check = check
    with gradients("forward"):
        return suite.begin(bench)


def test_what_is_timed_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = begun(COMPLEXITY, True, monkeypatch), begun(COMPLEXITY, False, monkeypatch)
    assert set(first.clocks) == set(later.clocks)
    assert later.settings == {}
    timed = first.settings["timed"]
    assert {*(point["metric"] for point in timed), name("latency_wall", SMALLEST)} == set(first.clocks)
    assert first.settings["smallest"] == "latency_wall_n1c8k3"
    assert first.settings["middle"] == {"n": 16, "c": 8, "k": 3}
    point = next(point for point in timed if (point["n"], point["c"], point["k"]) == (16, 8, 5))
    assert point["macs"] == 2 * 16 * 8 * 25 + 8 * (1 + 25)
    assert point["peak_memory_formula"] == 4 * (25 * (16 + 8) + 16 * 8)


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(type(made("ddf", "ddf", "native").op)):  # type: ignore[misc]
        def magnitude(self, inputs: object, point: Point) -> torch.Tensor:
            magnitude: torch.Tensor = super().magnitude(inputs, point)
            return magnitude * 1e-6

    wrong: Op = Wrong()
    wrong.impls = made("ddf", "ddf", "native").op.impls  # type: ignore[misc]
    monkeypatch.setattr("suites.core.bench.load", lambda file: {"ddf": wrong})
    found = begun(COMPLEXITY, True, monkeypatch)
    assert "wrong result" in found.failure
    assert not found.clocks


def test_a_shape_that_the_op_cannot_serve_is_left_out() -> None:
    with gradients("forward"):
        found = counted(made("ddf", "ddf", "native"), [COUNTED[0], COUNTED[0]._replace(k=1)])
    assert found["k"] == [3]


def test_a_mutated_count_is_seen() -> None:
    found = copy.deepcopy(counts("convolution", "conv", "torch"))
    found["macs"][17] += 1
    record = Record("", "", 1, "complexity", "conv", "torch", "cpu", {}, "ok", settings={"counted": found})
    (macs, _) = _fits(record)
    assert macs.all_residual
    assert not macs.within_claim
    assert replace(macs, all_residual=0.0).within_claim
