"""The recommendation, and the suites `neighbours` and `sweep` that it is made from."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from conftest import Runner
from sample_runs import environment, record

from reports import Metric, Record, Run, formats
from reports.core.arrange import Arrangement, Series
from reports.core.cheapest import choices
from reports.core.pictures import pictures


def priced(op: str, impl: str, wall: float, memory: int, params: int, filter_: str, **axes: object) -> Record:
    """A case whose latency has bounds 10 % below and above."""
    metrics = [
        Metric("latency_wall", "s", wall, 0.9 * wall, 1.1 * wall, "less"),
        Metric("peak_memory", "B", memory, better="less"),
        Metric("params", "1", params, better="less"),
    ]
    size = axes.pop("size", 28)
    assert isinstance(size, int)
    return record("neighbours", op, impl, size, metrics=metrics, settings={"filter": filter_}, **axes)


def run_of(*records: Record) -> Run:
    return Run(Path("runs/x"), environment(), list(records))


RUN = run_of(
    priced("dwconv", "torch", 1e-4, 1000, 10, "learned"),
    priced("ddf", "native", 4e-4, 1200, 200, "predicted"),
    priced("ddf", "composite", 4.5e-4, 2400, 200, "predicted"),
    priced("involution", "native", 6e-4, 800, 100, "predicted"),
    priced("dcnv4", "composite", 1e-5, 1, 0, "given"),
    priced("ddf", "native", 8e-4, 4800, 200, "predicted", size=56),
    priced("involution", "native", 3e-4, 3200, 200, "predicted", size=56),
)


def test_the_cheapest_predicted_filter_is_told_by_each_criterion() -> None:
    found = {(c.place[-1], c.criterion): c for c in choices(Arrangement([RUN]), "neighbours")}
    assert len(found) == 6
    latency, memory, params = (found[(28, 28), name] for name in ("latency", "memory", "parameters"))
    assert latency.series == [Series("ddf", "native"), Series("ddf", "composite")]  # whose bounds overlap
    assert latency.told == "ddf/native or ddf/composite: 400 µs, 4.00 times dwconv"
    assert memory.told == "involution/native: 800 B, 0.800 times dwconv"
    assert params.series == [Series("involution", "")]
    assert found[(56, 56), "latency"].told == "involution/native: 300 µs"
    assert found[(56, 56), "parameters"].series == [Series("ddf", ""), Series("involution", "")]


def test_one_filter_alone_is_no_choice() -> None:
    run = run_of(*(r for r in RUN.records if r.op != "involution"))
    assert choices(Arrangement([run]), "neighbours") == []
    assert "cheapest.csv" not in formats()["cheapest"].serialize([run])


def test_the_table_and_the_csv_tell_it() -> None:
    text = formats()["cheapest"].serialize([RUN])["cheapest.csv"]
    assert isinstance(text, str)
    rows = list(csv.DictReader(text.splitlines()))
    first = {key: rows[0][key] for key in ("suite", "resolution", "criterion", "op", "impl", "baseline")}
    assert first == {
        "suite": "neighbours",
        "resolution": "28×28",
        "criterion": "latency",
        "op": "ddf",
        "impl": "native",
        "baseline": "dwconv",
    }
    assert float(rows[0]["value"]) == 4e-4
    assert float(rows[0]["times_baseline"]) == 4
    report = formats()["markdown"].serialize([RUN])["report.md"]
    assert isinstance(report, str)
    assert "| 56×56 | involution/native: 300 µs | involution/native: 3.20 kB | ddf or involution: 200 |" in report


def test_a_sweep_is_drawn_against_each_axis_it_varies() -> None:
    points = ({}, {"kernel_size": 7}, {"batch": 4}, {"stride": 2}, {"size": 56})
    made = [
        priced(op, "native", 1e-3 * (1 + i), 1, 1, "predicted", **point)  # type: ignore[arg-type]
        for i, point in enumerate(points)
        for op in ("ddf", "involution")
    ]
    for one in made:
        one.suite = "sweep"
    found, left_out = pictures(Arrangement([run_of(*made)]))
    assert left_out == 0
    against = {p.x_axis: sorted(p.ticks) for p in found if p.metric == "latency_wall"}
    assert against == {"resolution": [28, 56], "kernel_size": [3, 7], "batch": [1, 4], "stride": [1, 2]}
    assert len({p.path for p in found}) == len(found) == 4


def test_both_suites_measure_what_a_filter_costs(runner: Runner, tmp_path: Path) -> None:
    options = (
        "--suite",
        "neighbours,sweep",
        "--op",
        "dwconv,dw_weightnet,involution,dcnv4",
        "--impl",
        "torch,unfold,composite",
    )
    small = ("--channels", "4", "--batch", "1", "--resolution", "5", "--kernel-size", "3", "--dtype", "float32")
    few = (
        "--stride",
        "1",
        "--dilation",
        "1",
        "--layout",
        "nchw",
        "--device",
        "cpu",
        "--seconds",
        "0.1",
        "--processes",
        "1",
    )
    done = runner(*options, *small, *few, "--output", "out")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    records = [Record.from_json(json.loads(line)) for line in lines]
    impls = {suite: {(r.op, r.impl) for r in records if r.suite == suite} for suite in ("neighbours", "sweep")}
    shared = {("dwconv", "torch"), ("dw_weightnet", "torch"), ("involution", "composite"), ("dcnv4", "composite")}
    assert impls == {"neighbours": shared | {("involution", "unfold")}, "sweep": shared}
    filters = {r.op: r.settings["filter"] for r in records}
    assert filters == {"dwconv": "learned", "dw_weightnet": "predicted", "involution": "predicted", "dcnv4": "given"}
    for r in records:
        assert r.status == "ok"
        found = {metric.name for metric in r.metrics}
        assert {"latency_wall", "peak_memory", "filter_memory", "params", "macs", "max_error"} <= found
        assert not found & {"latency_cold", "latency_out"}
    rows = list(csv.DictReader((tmp_path / "out" / "cheapest.csv").read_text().splitlines()))
    assert {(row["suite"], row["criterion"]) for row in rows} == {
        (suite, criterion) for suite in ("neighbours", "sweep") for criterion in ("latency", "memory", "parameters")
    }
