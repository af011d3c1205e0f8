"""The suite `profile`: operators, bytes, traces, the roofline; what a GPU says, as far as that can be seen here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Runner

from ops import Point
from reports import Metric, Record, Run, plots
from reports.core.arrange import Arrangement
from reports.core.operators import operator_rows
from reports.core.records import load_run
from reports.core.roofline import rooflines
from suites import profiled
from suites.core import instruments, ncu, profiling
from suites.core.gpus import DEVICES

CASE = "profile:ddf_op/composite@cpu:float32:nchw:forward:n1c256h7w7k3s1d1:mul"


def test_a_run(runner: Runner, tmp_path: Path) -> None:
    """Every case has operators, bytes, a roof, and a trace that Perfetto reads; the report has the roofline."""
    options = ("--op", "dwconv,ddf_op", "--impl", "torch,native,composite", "--resolution", "7,14", "--processes", "1")
    done = runner("--suite", "profile", "--device", "cpu", *options, "--seconds", "0.1", "--output", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record.case: record for record in load_run(tmp_path / "run").records}
    assert len(records) == 6
    for record in records.values():
        assert record.status == "ok"
        named = {metric.name: metric.value for metric in record.metrics}
        assert named["operator_bytes"] >= named["floor_bytes"] > 0
        assert named["operators"] == sum(row["calls"] for row in record.settings["operators"])
        assert named["roof_fraction"] > 0
        trace = json.loads((tmp_path / "run" / record.settings["trace"]).read_text())
        seen = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
        for row in record.settings["operators"]:
            assert seen.count(row["name"]) >= profiling.CALLS * row["calls"] > 0
            assert row["time"] > 0
    native = records[CASE.replace("composite", "native")]
    assert [row["name"] for row in native.settings["operators"]] == ["ddf::forward"]
    assert native.metric("operator_bytes") == Metric("operator_bytes", "B", native.metric("floor_bytes").value)  # type: ignore[union-attr]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "profile-roofline.png" in report
    assert "ddf::forward" in report
    assert (tmp_path / "run/plots/profile-roofline.svg").is_file()


def test_bytes_are_those_of_every_tensor_once_read_or_written() -> None:
    a, b = torch.ones(1000), torch.ones(1000)

    def call() -> torch.Tensor:
        product = a * b  # 3 x 4000
        product.add_(a)  # 2 x 4000
        return product.view(10, 100).t()

    found = profiling.profiled(call, "cpu")
    assert {row["name"]: (row["calls"], row["bytes"]) for row in found.operators} == {
        "aten::mul": (1, 12000),
        "aten::add_": (1, 8000),
    }
    assert not found.kernels


def test_an_operator_within_another_counts_once() -> None:
    a = torch.ones(64, 64)
    whole = profiling.profiled(lambda: torch.nn.functional.linear(a, a), "cpu")
    assert [row["name"] for row in whole.operators] == ["aten::mm"]
    assert 0 < whole.operators[0]["time"] < 0.01


def record(op: str, macs: float, floor: float, seconds: float, size: int) -> Record:
    axes = {"dtype": "float32", "layout": "nchw", "direction": "forward", "threads": 2, "height": size, "width": size}
    metrics = [
        *(Metric("macs", "MAC", macs), Metric("floor_bytes", "B", floor), Metric("latency_wall", "s", seconds)),
        *(
            Metric("roof_copy", "B/s", 1e10 * size),
            Metric("roof_arithmetic", "MAC/s", 5e10 if op == "ddf_op" else 1e11),
        ),
    ]
    settings = {"operators": [{"name": f"own::{op}", "calls": 1, "time": seconds, "bytes": floor}], "trace": "t.json"}
    case = f"profile:{op}/native@cpu:{size}"
    return Record("run", case, 1, "profile", op, "native", "cpu", axes, "ok", metrics=metrics, settings=settings)


def test_the_roofline_has_a_point_for_each_case_below_the_roofs_of_the_run() -> None:
    records = [
        record("ddf_op", 9e6, 3e6, 1e-3, 7),
        record("ddf_op", 9e7, 3e7, 1e-2, 14),
        record("conv", 1e9, 1e7, 2e-2, 7),
    ]
    records.append(record("dwconv", 1.0, 1.0, 1.0, 7))
    records[-1].status = "failed"
    run = Run(Path("run"), {}, records)
    (drawn,) = rooflines(Arrangement([run]))
    assert [(p.series.op, p.intensity, p.rate, p.label) for p in drawn.points] == [
        ("conv", 100.0, 5e10, "7×7"),
        ("ddf_op", 3.0, 9e9, "7×7"),
        ("ddf_op", 3.0, 9e9, "14×14"),
    ]
    assert drawn.copies == [7e10, 14e10]
    assert drawn.ceilings == {"multiply-adds": 5e10, "matrix product": 1e11}
    files = plots.serialize([run])
    assert {"plots/profile-roofline.svg", "plots/profile-roofline.png"} <= set(files)
    svg = files["plots/profile-roofline.svg"]
    assert isinstance(svg, bytes)
    assert b"<!-- 10 GMAC/s -->" in svg
    rows = operator_rows(Arrangement([run]).suites["profile"])
    assert [(row[0], row[1], row[2], row[6]) for row in rows] == [
        ("ddf_op/native", "14×14", "own::ddf_op", "2.14 %"),
        ("conv/native", "7×7", "own::conv", "0.714 %"),
    ]


# ----------------------------------------------------------------------------------------------------------------- GPU

NCU = """==PROF== Connected to process 1
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","a","dram__bytes_read.sum","Mbyte","1.5"
"0","a","dram__bytes_write.sum","Kbyte","500"
"0","a","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","80"
"0","a","gpu__time_duration.sum","usecond","30"
"1","b","dram__bytes_read.sum","byte","1,000"
"1","b","dram__bytes_write.sum","byte","0"
"1","b","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","20"
"1","b","gpu__time_duration.sum","nsecond","10,000"
"""


def test_what_ncu_prints_is_understood() -> None:
    moved, peak = ncu.parse(NCU)
    assert (moved.name, moved.unit, moved.value) == ("dram_bytes", "B", 2_001_000)
    assert peak.value == pytest.approx((0.8 * 30 + 0.2 * 10) / 40)
    assert ncu.parse("==ERROR== no rights\n") == []


def test_a_call_that_cannot_be_predicted_says_why() -> None:
    name, rows = DEVICES[0].name, "void ddf::rows_kernel<float, 3, 1, false>(ddf::Params, ddf::RowsPlan)"
    for functions, device, reason in (
        ([rows], "Unheard-of 9000", "figures"),
        ([rows, rows], name, "one kernel"),
        (["void other<float>(int)"], name, "one kernel"),
    ):
        metrics, told = profiled.predict_call(functions, Point(), device)
        assert not metrics
        assert reason in told["reason"]


@pytest.mark.gpu
def test_on_a_gpu(runner: Runner, tmp_path: Path) -> None:
    options = ("--op", "ddf_op", "--impl", "native", "--resolution", "56", "--seconds", "1")
    done = runner("--suite", "profile", "--device", "cuda", *options, "--output", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = load_run(tmp_path / "run").records
    named = {metric.name: metric.value for metric in found.metrics}
    assert named["launches"] == 1
    assert 0 < named["kernel_time"] < 1e-2
    assert found.settings["kernels"][0]["name"].startswith("void ddf::")
    assert named.get("energy", 1.0) > 0
    assert "predicted_time" in named or found.settings["predicted"]["reason"]


# --------------------------------------------------------------------------------------------------- other instruments


def test_other_instruments_time_the_same_closure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets the call itself; those that are not installed are left out; the table has multiples of ours."""
    seen = []

    def instrument(call: instruments.Call, device: str) -> float:
        seen.append(call().shape)
        return 3e-6

    def absent(call: instruments.Call, device: str) -> float:
        raise ImportError

    monkeypatch.setattr(instruments, "OTHERS", {"cpu": {"other": instrument, "absent": absent}})
    monkeypatch.setattr(instruments, "by_ours", lambda call, device: 2e-6)
    monkeypatch.setattr(instruments, "by_pyperf", absent)
    monkeypatch.setattr("suites.core.worker.prepare_process", lambda process, device: False)
    with torch.enable_grad():
        found = instruments.held("ddf_op/composite/7", "cpu")
    assert found == {"latency": 2e-6, "other": 3e-6}
    assert seen == [(1, 256, 7, 7)]
    assert instruments.table({"a": found}).splitlines()[-1] == "| a | 2.0 us | x 1.500 |"


@pytest.mark.gpu
def test_other_instruments_on_a_gpu() -> None:
    found = instruments.held("ddf_op/native/56", "cuda")
    assert all(0 < seconds < 1e-2 for seconds in found.values())
