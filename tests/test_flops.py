"""The MAC counters, and how their differences from the closed form are told."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from test_check import IMPLS, made

from suites import suites
from suites.flops import itemise, kind_of, plain

FLOPS = suites()["flops"]
PRODUCTS = {"mul": 3, "addcmul_": 8}


@pytest.mark.parametrize("name", ["aten::conv2d", "aten.conv2d.default", "conv2d"])
def test_operator_names_are_told_without_namespace(name: str) -> None:
    assert plain(name) == "conv2d"


def test_equal_counts_have_no_difference() -> None:
    assert itemise("macs_torch", {"conv": 10, "linear": 3}, {"convolution": 10, "addmm": 3}, {}, 9) == []


def test_an_unexplained_remainder_has_no_reason() -> None:
    found = itemise("macs_torch", {"conv": 10}, {"convolution": 9}, PRODUCTS, 9)
    assert found == [{"counter": "macs_torch", "kind": "conv", "macs": -1, "reason": ""}]


def test_a_dynamic_filter_counted_in_part_is_unexplained() -> None:
    (found,) = itemise("macs_torch", {"dynamic_filter": 10}, {"bmm": 4}, PRODUCTS, 9)
    assert (found["macs"], found["reason"]) == (-6, "")


def test_what_no_elementwise_operator_explains_is_unexplained() -> None:
    (found,) = itemise("macs_torch", {"dynamic_filter": 10}, {}, {"relu": 100}, 9)
    assert found["reason"] == ""


def test_one_product_of_all_that_was_unfolded_explains_a_dynamic_filter() -> None:
    unseen = {"im2col": 1, "mul": 1, "sum": 1}
    assert "1 x mul" in itemise("macs_torch", {"dynamic_filter": 10}, {}, unseen, 9)[0]["reason"]
    for name in unseen:
        rest = {key: count for key, count in unseen.items() if key != name}
        assert itemise("macs_torch", {"dynamic_filter": 10}, {}, rest, 9)[0]["reason"] == ""


def test_a_convolution_with_filters_of_its_own_may_be_either() -> None:
    found = itemise("macs_torch", {"conv": 10, "linear": 1}, {"addmm": 1, "forward": 10}, {}, 9)
    assert {(d["kind"], d["macs"]) for d in found} == {("conv", -10), ("dynamic_filter", 10)}
    assert all(d["reason"].startswith("a convolution with filters of each sample's own") for d in found)


def test_fewer_products_than_taps_explain_nothing() -> None:
    (found,) = itemise("macs_torch", {"dynamic_filter": 10}, {}, {"mul": 8}, 9)
    assert found["reason"] == ""


def test_known_differences_have_reasons() -> None:
    counted = {"linear": 10, "adaptive_avg_pool2d": 5}
    found = {d["kind"]: d for d in itemise("macs_fvcore", {"conv": 10, "dynamic_filter": 7}, counted, PRODUCTS, 9)}
    assert (found["conv"]["macs"], found["linear"]["macs"]) == (-10, 10)
    assert found["conv"]["reason"] == found["linear"]["reason"] == "a 1x1 convolution done as a matrix product"
    assert found["adaptive_avg_pool2d"]["reason"] == "pooling is not counted"
    assert found["dynamic_filter"]["macs"] == -7
    assert "3 x mul, 8 x addcmul_" in found["dynamic_filter"]["reason"]


def test_batched_products_belong_to_the_dynamic_filter_where_there_is_one() -> None:
    assert kind_of("bmm", {"dynamic_filter": 1}) == "dynamic_filter"
    assert kind_of("bmm", {"linear": 1}) == "linear"


@pytest.mark.parametrize(
    ("file", "op", "impl"),
    IMPLS,
)
@pytest.mark.parametrize("stride", [1, 2])
def test_counters_and_closed_form_agree_or_say_why(file: str, op: str, impl: str, stride: int) -> None:
    begun = FLOPS.begin(made(file, op, impl, stride=stride))
    assert begun.failure == ""
    found = {metric.name: metric.value for metric in begun.metrics}
    assert found["macs"] == found["macs_formula"]
    for counter in ("macs_fvcore", "macs_torch"):
        explained = sum(d["macs"] for d in begun.settings["differences"] if d["counter"] == counter)
        assert found[counter] == found["macs"] + explained
    if op in ("conv", "dwconv") or (op, impl) in (("ddf_op", "native"), ("ddf", "fused")):
        assert begun.settings["differences"] == []


def test_a_wrong_closed_form_fails() -> None:
    bench = made("convolution", "conv", "torch")
    bench.costs = replace(bench.costs, macs={kind: macs + 1 for kind, macs in bench.costs.macs.items()})
    assert "macs_torch: -1 MACs of conv unexplained" in FLOPS.begin(bench).failure


def test_missing_fvcore_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    begun = FLOPS.begin(made("convolution", "conv", "torch"))
    fvcore = next(metric for metric in begun.metrics if metric.name == "macs_fvcore")
    assert (fvcore.value, fvcore.status) == (None, "skipped")
    assert fvcore.reason is not None
    assert "fvcore is not installed" in fvcore.reason
    assert begun.failure == ""


@pytest.mark.parametrize(("op", "expected"), [("conv", 590_080), ("dwconv", 2_560)])
def test_params_are_counted_in_the_module(op: str, expected: int) -> None:
    begun = suites()["params"].begin(made("convolution", op, "torch", channels=256, height=1, width=1))
    assert {metric.name: metric.value for metric in begun.metrics} == {"params": expected, "params_formula": expected}
    assert begun.failure == ""


def test_params_that_differ_from_their_closed_form_fail() -> None:
    bench = made("convolution", "conv", "torch")
    bench.costs = replace(bench.costs, params={"weight": 1})
    assert suites()["params"].begin(bench).failure == "the module has 584 parameters, the closed form gives 1"
