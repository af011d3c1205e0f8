"""The operators that upsample: right results in both directions, closed forms, and that wrong ones are found."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import loops_upsampling
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Runner
from test_check import made
from test_memory import gradients
from test_ops import OPS, ROUNDING, ROUNDINGS, build, error

from ops import Point, Skip
from reports import Record
from suites import suites

#: File, op and impl.
IMPLS = [
    ("bilinear", "bilinear", "torch"),
    ("up_convolution", "transposed_conv", "torch"),
    ("up_convolution", "subpixel_conv", "torch"),
    ("carafe", "carafe_op", "native"),
    ("carafe", "carafe_op", "composite"),
    ("carafe", "carafe", "native"),
    ("carafe", "carafe", "composite"),
    ("dysample", "dysample", "torch"),
    ("pac", "pac_up", "composite"),
    ("joint_bilateral", "joint_bilateral", "native"),
    ("joint_bilateral", "joint_bilateral", "composite"),
]
#: The ops of IMPLS. DDF-Up's are held to `tests/test_upsampling_ddf.py`.
RIVALS = list(dict.fromkeys(op for _, op, _ in IMPLS))
POINTS = [
    Point(batch=2, channels=6, height=4, width=5),
    Point(channels=1, height=1, width=1, extra={"scale": 2}),
    Point(batch=2, channels=3, height=3, width=2, kernel_size=5, extra={"scale": 3}),
    Point(channels=4, height=2, width=3, kernel_size=1, extra={"scale": 4}),
    Point(channels=4, height=3, width=3, extra={"scale": 1}),
]


# -------------------------------------------------------------------------------------------------------- right results


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("point", POINTS)
def test_the_reference_is_the_definition(name: str, point: Point) -> None:
    inputs = build(OPS[name], replace(point, dtype="float64"))
    with torch.no_grad():
        value, magnitude = OPS[name].apply(inputs, point).numpy(), OPS[name].magnitude(inputs, point).numpy()
    found = loops_upsampling.expected(name, inputs, point)
    assert value.shape == found.shape
    assert np.all(np.abs(value - found) <= 1e-13 * magnitude)
    assert np.all(np.abs(value) <= magnitude * (1 + 1e-13))


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_hard_edges(file: str, op: str, impl: str, layout: str) -> None:
    for point in (replace(p, layout=layout) for p in POINTS):
        inputs = build(OPS[op], point)
        with torch.no_grad():
            result = OPS[op].impls[impl].prepare(inputs, point)()
        assert result.shape[2] == point.height * int(point.extra.get("scale", 2))
        assert error(OPS[op], inputs, point, result) <= ROUNDINGS["float32"]


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_right_results_pass(file: str, op: str, impl: str, direction: str) -> None:
    for dtype in ("float32", "bfloat16"):
        bench = made(file, op, impl, dtype=dtype, direction=direction, channels=32, extra={"scale": 4})
        if (op, dtype, direction) == ("dysample", "bfloat16", "forward_backward"):
            with pytest.raises(Skip, match="gradients in half precision"):
                bench.max_error()
            continue
        assert bench.max_error() <= bench.tolerance


@pytest.mark.parametrize("name", ["carafe_op", "carafe", "joint_bilateral"])
def test_native_is_exact_to_rounding(name: str) -> None:
    """The same filters, applied: what differs is a few roundings of a sum."""
    point = Point(batch=2, channels=32, height=14, width=14, kernel_size=5)
    inputs = build(OPS[name], point)
    with torch.no_grad():
        native, composite = (OPS[name].impls[impl].prepare(inputs, point)() for impl in ("native", "composite"))
        magnitude = OPS[name].magnitude(inputs.double(), point)
    assert float(((native - composite).double().abs() / magnitude).max()) <= 8 * ROUNDING["float32"]


@pytest.mark.parametrize("name", RIVALS)
def test_what_takes_another_scale_is_found(name: str) -> None:
    """The outputs of scale 2, each spread over four: the right size, and nearly the right content."""
    point = Point(channels=16, height=6, width=6, extra={"scale": 4})
    inputs = build(OPS[name], point)
    half = replace(point, extra={"scale": 2})
    other = build(OPS[name], half)
    other.tensors["features"] = inputs["features"]
    result = F.interpolate(OPS[name].apply(other.double(), half).detach(), scale_factor=2.0)
    assert error(OPS[name], inputs, point, result) > 4 * ROUNDINGS["float32"]


# ------------------------------------------------------------------------------------------------------- closed forms

COST_POINTS = [
    Point(batch=2, channels=6, height=7, width=9),
    Point(batch=3, channels=4, height=3, width=5, kernel_size=5, dtype="float16", extra={"scale": 3}),
    Point(channels=70, height=2, width=2, kernel_size=1, extra={"scale": 2}),
]


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("point", COST_POINTS)
def test_params_are_those_of_the_module(name: str, point: Point) -> None:
    module = build(OPS[name], point).module
    parameters = {} if module is None else {key: p.numel() for key, p in module.named_parameters()}
    assert OPS[name].costs(point).params == parameters


@pytest.mark.parametrize(
    ("name", "params", "macs", "left_out"),
    [
        ("bilinear", 0, 0, 4 * 4 * 256),
        ("transposed_conv", 256 * 256 * 16 + 256, 256 * 256 * 16, 0),
        ("subpixel_conv", 256 * 1024 * 9 + 1024, 256 * 1024 * 9, 0),
        ("carafe_op", 0, 4 * 256 * 9, 0),
        ("carafe", 256 * 64 + 64 + 64 * 36 + 36, 256 * 64 + 64 * 36 + 4 * 256 * 9, 0),
        ("dysample", 256 * 32 + 32, 256 * 32, 4 * 4 * 256),
        ("pac_up", 256 * 256 * 25 + 256, 256 * 256 * 25, 16 * 25),
        ("joint_bilateral", 0, 4 * 256 * 9, 4 * 16 * 9),
    ],
)
def test_counts_at_256_channels_are_those_worked_out_by_hand(name: str, params: int, macs: int, left_out: int) -> None:
    """Multiply-accumulates of a pixel of the features, upsampled by 2."""
    point = Point(batch=2, height=7, width=5)
    costs = OPS[name].costs(point)
    assert sum(costs.params.values()) == params
    assert sum(costs.macs.values()) == 2 * 35 * macs
    assert sum(costs.left_out.values()) == 2 * 35 * left_out
    backward = OPS[name].costs(replace(point, direction="forward_backward"))
    assert sum(backward.macs.values()) == 3 * 2 * 35 * macs
    assert sum(backward.left_out.values()) == (2 if name == "bilinear" else 3) * 2 * 35 * left_out


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
@pytest.mark.parametrize("scale", [2, 3])
def test_counters_and_closed_form_agree_or_say_why(file: str, op: str, impl: str, scale: int) -> None:
    begun = suites()["flops"].begin(made(file, op, impl, extra={"scale": scale}))
    assert begun.failure == ""
    found = {metric.name: metric.value for metric in begun.metrics}
    for counter in ("macs_fvcore", "macs_torch"):
        explained = sum(d["macs"] for d in begun.settings["differences"] if d["counter"] == counter)
        assert found[counter] == found["macs"] + explained


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("point", COST_POINTS)
def test_memory_and_floor_are_the_bytes_of_real_tensors(name: str, point: Point) -> None:
    op, inputs = OPS[name], build(OPS[name], point)
    costs = op.costs(point)
    size = {key: t.numel() * t.element_size() for key, t in inputs.leaves().items()}
    output = op.apply(inputs.double(), point).numel() * point.itemsize
    expected = {
        "features": size["features"],
        "guide": size.get("guide", 0),
        "given_filters": size.get("filters", 0),
        "parameters": sum(size.values()) - sum(size[key] for key in inputs.tensors),
        "filters": sum(f.untyped_storage().nbytes() for f in op.filters(inputs, point)),
        "output": output,
    }
    assert costs.memory == {key: value for key, value in expected.items() if value}
    assert costs.floor_bytes == sum(size.values()) + output
    both = op.costs(replace(point, direction="forward_backward"))
    assert both.memory == {**costs.memory, "gradients": sum(costs.memory.values())}
    unread = {"bilinear": size["features"], "transposed_conv": size.get("bias", 0), "pac_up": size.get("bias", 0)}
    unread["subpixel_conv"] = size.get("0.bias", 0)
    assert both.floor_bytes == costs.floor_bytes + 2 * sum(size.values()) - unread.get(name, 0) + output


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_filter_memory_is_what_the_closed_form_says(file: str, op: str, impl: str) -> None:
    with gradients("forward"):
        bench = made(file, op, impl, channels=16, height=7, width=6)
        begun = suites()["memory"].begin(bench)
    assert begun.failure == ""
    found = {metric.name: metric.value for metric in begun.metrics}
    assert found["filter_memory"] == bench.costs.memory.get("filters", 0)


# --------------------------------------------------------------------------------------------------------- the suite


def test_the_suite_tells_the_price_at_each_scale(runner: Runner, tmp_path: Path) -> None:
    ops = ("--suite", "upsampling", "--op", "bilinear,carafe,joint_bilateral,carafe_op", "--impl", "torch,composite")
    small = ("--channels", "4", "--batch", "1", "--resolution", "5", "--axis", "scale=2,4")
    done = runner(*ops, *small, "--device", "cpu", "--seconds", "0.1", "--processes", "1", "--output", "out")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    records = [Record.from_json(json.loads(line)) for line in lines]
    assert {(r.op, r.axes["scale"]) for r in records} == set(product(ops[3].split(","), (2, 4)))
    for r in records:
        assert r.status == "ok"
        found = {metric.name for metric in r.metrics}
        assert {"latency_wall", "peak_memory", "filter_memory", "params", "macs", "max_error"} <= found
    filters = {r.op: r.settings["filter"] for r in records}
    assert filters == {
        "bilinear": "learned",
        "carafe": "predicted",
        "joint_bilateral": "predicted",
        "carafe_op": "given",
    }
    rows = list(csv.DictReader((tmp_path / "out" / "cheapest.csv").read_text().splitlines()))
    assert {
        (row["scale"], row["criterion"], row["baseline"]) for row in rows if row["criterion"] != "parameters"
    } == set(product("24", ("latency", "memory"), ("bilinear",)))
    assert all(r.axes.keys().isdisjoint(("kernel_size", "stride", "dilation")) for r in records)  # which some lack
    drawn = {path.stem for path in (tmp_path / "out" / "plots").glob("*.svg")}
    assert {"upsampling-latency_wall-along_scale", "upsampling-peak_memory-along_scale"} <= drawn
