"""The result check: what is wrong must not pass, and what is right must."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ops import Point, op_files
from suites import Case
from suites.core import bench as bench_module
from suites.core.bench import TOLERANCE, Bench, max_error, relative_error

FILES = {path.stem: str(path) for path in op_files()}
#: File, op and impl of all that needs no compilation of its own.
IMPLS = [
    ("convolution", "conv", "torch"),
    ("convolution", "dwconv", "torch"),
    ("dynamic_filter", "dyfilter", "composite"),
    ("dynamic_filter", "dyfilter_dw", "composite"),
    ("ddf", "ddf_op", "composite"),
    ("ddf", "ddf", "composite"),
    ("ddf", "ddf_op", "native"),
    ("ddf", "ddf", "native"),
    ("ddf", "ddf", "fused"),
]
PROCESS = {"threads": 2, "malloc": "default", "tf32": 0}


def made(file: str, op: str, impl: str, **axes: object) -> Bench:
    point = Point(**{"channels": 8, "height": 6, "width": 5, "batch": 3, **axes})  # type: ignore[arg-type]
    return Bench(Case("latency", op, impl, 1, "cpu", point, (), PROCESS, {}, FILES[file]), seed=0, check=True)


def ddf_op(**axes: object) -> Bench:
    return made("ddf", "ddf_op", "composite", **axes)


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("file", "op", "impl"),
    IMPLS,
)
def test_right_results_pass(file: str, op: str, impl: str, dtype: str, direction: str) -> None:
    bench = made(file, op, impl, dtype=dtype, direction=direction, stride=2)
    assert bench.max_error() <= bench.tolerance


def test_error_is_the_same_in_chunks_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # the scale of an input's gradient takes in the largest of its chunk, so that direction agrees only roughly
    for direction, tolerance in (("forward", 1e-6), ("forward_backward", 0.5)):
        bench = made("ddf", "ddf", "composite", direction=direction)
        whole = bench.max_error()
        monkeypatch.setattr(bench_module, "CHUNK", 1)
        assert bench.max_error() == pytest.approx(whole, rel=tolerance)
        monkeypatch.undo()


def wrong_by(bench: Bench, name: str, damage: object) -> float:
    results = bench.call()
    names = ["output", *bench.inputs.leaves()]
    named: dict[str, Tensor] = dict(zip(names, results if bench.case.point.backward else [results], strict=False))
    named = {key: value.detach().clone() for key, value in named.items()}
    damage(named[name])  # type: ignore[operator]
    return max_error(bench.op, bench.inputs, bench.case, named, bench.upstream if bench.case.point.backward else None)


@pytest.mark.parametrize("name", ["output", "features", "channel_filter", "spatial_filter"])
def test_one_wrong_element_is_found(name: str) -> None:
    def spoil(tensor: Tensor) -> None:
        tensor.flatten()[tensor.numel() // 2] += 1e-3

    assert wrong_by(ddf_op(direction="forward_backward"), name, spoil) > TOLERANCE["float32"]


def test_one_wrong_parameter_gradient_is_found() -> None:
    def spoil(tensor: Tensor) -> None:
        tensor.flatten()[3] += tensor.abs().max() * 1e-2

    bench = made("ddf", "ddf", "composite", direction="forward_backward")
    assert wrong_by(bench, "channel_branch.3.weight", spoil) > TOLERANCE["float32"]


def test_nan_and_infinity_count_as_infinite_error() -> None:
    for value in (float("nan"), float("inf")):
        assert wrong_by(ddf_op(), "output", lambda tensor, value=value: tensor[0, 0, 0].fill_(value)) == float("inf")


def test_a_nan_that_the_reference_has_too_is_right() -> None:
    one = torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.float64)
    assert relative_error(one, one.clone(), one.abs()) == 0.0


def test_another_shape_is_wrong() -> None:
    bench = ddf_op()
    output = bench.call()
    for other in (output[:, :, :-1], output[:2], output[:, :4]):
        assert max_error(bench.op, bench.inputs, bench.case, {"output": other}, None) == float("inf")


def test_seed_decides_the_inputs() -> None:
    first, second = ddf_op().inputs["features"], ddf_op().inputs["features"]
    other = Bench(replace(ddf_op().case), seed=1, check=True).inputs["features"]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_empty_batch_is_right() -> None:
    bench = ddf_op(batch=0)
    assert bench.max_error() == 0.0


def test_every_op_file_is_present() -> None:
    assert {Path(file).stem for file in FILES.values()} >= {"convolution", "dynamic_filter", "ddf"}


def test_an_output_of_the_callers_is_timed_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(impl: str, **more: Any) -> Bench:
        case = made("ddf", "ddf_op", impl).case
        return Bench(replace(case, process={**PROCESS, "malloc": "steady"}), seed=0, check=True, **more)

    native = bench("native")
    assert native.max_error() <= native.tolerance
    assert "latency_out" in native.clocks()
    assert "latency_out" not in bench("composite").clocks()
    assert bench("native", clocks=["latency_wall"])._out is None  # nothing is made that nobody times
    untouched = replace(native.op.impls["native"], prepare_out=lambda inputs, point, out: out.zero_)
    monkeypatch.setitem(native.op.impls, "native", untouched)
    assert bench("native").max_error() > native.tolerance
