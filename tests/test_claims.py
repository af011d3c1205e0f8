"""The poster's claims: its figures, the formulas, and every rule on made-up records, at its boundaries."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sample_runs import RUN, environment, record, sample

import runner as command_line
from ops import Point, load
from reports import Metric, Record, Run, markdown
from reports import claims as claims_format
from reports.core.claims import EXCEEDED, NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED, Claim, Finding, evidence
from reports.core.claims.evidence import Evidence
from reports.core.claims.formulas import bounded, evaluate, parse, terms, write
from reports.core.claims.judge import judge, verdict_counts
from reports.core.claims.poster import claims, rows, unclaimed
from reports.core.claims.rules import Figure, Order
from reports.core.claims.table1 import itemised
from reports.core.growth import Growth
from reports.core.records import load_run
from reports.core.summary import terminal_summary
from suites import Declaration, suites
from suites.core.cases import Selection, expand
from suites.core.cases import record as record_of
from suites.core.options import selection_of
from suites.core.worker import declaration

# The poster, transcribed a second time: what the project's data is held against.

TABLE1 = {
    "Conv": ("c^2 k^2", "O(n c^2 k^2)", "-", "poster"),
    "DwConv": ("c k^2", "O(n c k^2)", "-", "assumed for time"),
    "DyFilter": ("c^3 k^2", "O(n c^3 k^2)", "O(n c^2 k^2)", "assumed for time"),
    "DDF": ("c k^2 + sigma c^2 (1 + k^2)", "O(n c k^2 + c^2 k^2)", "O((n + c) k^2)", "poster"),
}
TABLE2 = {
    7: {"conv": "0.21", "dwconv": "0.05", "ddf": "0.93", "ddf_op": "0.12"},
    14: {"conv": "0.40", "dwconv": "0.09", "ddf": "0.96", "ddf_op": "0.15"},
    28: {"conv": "2.31", "dwconv": "0.22", "ddf": "1.29", "ddf_op": "0.48"},
    56: {"conv": "4.09", "dwconv": "0.79", "ddf": "2.60", "ddf_op": "1.80"},
    112: {"conv": "16.04", "dwconv": "3.08", "ddf": "9.07", "ddf_op": "7.30"},
    224: {"conv": "82.57", "dwconv": "11.97", "ddf": "37.11", "ddf_op": "28.62"},
}
TABLE3 = {"base": "77.2 / 93.5", "spatial": "74.4 / 92.0", "channel": "78.7 / 94.2", "spatial-channel": "79.1 / 94.5"}
#: params, macs, top-1, top-1 as the authors ran it again
NETWORKS = {
    4: """
        resnet18 base 11.7 1.8 69.6 -; resnet18 adaptive 11.1 - 70.2 -; resnet18 dynet 16.6 0.6 69.0 -
        resnet18 ddf 7.7 0.4 70.6 -; resnet50 base 25.6 4.1 77.2 -; resnet50 dynet - 1.1 76.3 -
        resnet50 condconv 104.8 4.2 78.6 -; resnet50 dw_condconv 14.5 2.3 78.3 -
        resnet50 dw_weightnet 14.4 2.3 78.0 -; resnet50 ddf 16.8 2.3 79.1 -
    """,
    5: """
        resnet50 base 25.6 4.1 76.0 77.2; resnet50 se 28.1 4.1 77.6 77.8; resnet50 bam 25.9 4.2 76.0 -
        resnet50 cbam 28.1 4.1 77.3 -; resnet50 aa 25.8 4.2 77.7 -; resnet50 resnext_32x4d 25.0 4.3 77.8 78.2
        resnet50 res2net_14w_8s 25.7 4.2 78.0 -; resnet50 ddf 16.8 2.3 79.1 -
        resnet101 base 44.5 7.8 77.6 78.9; resnet101 se 49.3 7.8 78.3 79.3; resnet101 bam 44.9 7.9 77.6 -
        resnet101 cbam 49.3 7.8 78.5 -; resnet101 aa 45.4 8.1 78.7 -; resnet101 ddf 28.1 - 80.5 -
    """,
}
SIZES = tuple(TABLE2)
CPU = environment() | {"selection": {"preset": "quick"}}
CUDA = environment(device="Example GPU") | {"selection": {"preset": "paper"}}


def run_of(records: Iterable[Record], environment: dict[str, Any] = CPU) -> Run:
    return Run(Path("runs") / RUN, environment, list(records))


def timed(op: str, impl: str, size: int, ms: float, spread: float = 0.02, **changes: Any) -> Record:
    """A latency, its bounds a relative `spread` apart from it on each side."""
    seconds = ms * 1e-3
    metric = Metric("latency_wall", "s", seconds, seconds * (1 - spread), seconds * (1 + spread), "less")
    device = changes.pop("device", "cpu")
    made = record("latency", op, impl, size, metrics=[metric], **changes)
    made.device = device
    return made


def exact(suite: str, metric: str, op: str, number: float, size: int | None = 7, **changes: Any) -> Record:
    unit = {"memory": "B", "flops": "MAC", "params": "1"}[suite]
    return record(suite, op, "torch", size, metrics=[Metric(metric, unit, number)], **changes)


def claim_of(id: str) -> Claim:
    (found,) = [claim for claim in claims() if claim.id == id]
    return found


def finding_of(id: str, records: Iterable[Record], environment: dict[str, Any] = CPU) -> Finding:
    return claim_of(id).rule(Evidence(run_of(records, environment)))


def networks(table: int) -> dict[tuple[str, str], list[str]]:
    lines = (line.split() for line in NETWORKS[table].replace("\n", ";").split(";"))
    return {(line[0], line[1]): ["" if cell == "-" else cell for cell in line[2:]] for line in lines if line}


# the figures


def test_table_1_is_the_posters() -> None:
    assert {r["filter"]: (r["params"], r["time"], r["space"], r["source"]) for r in rows(1)} == TABLE1


def test_table_2_is_the_posters() -> None:
    assert {int(r.pop("resolution")): r for r in rows(2)} == TABLE2


def test_table_3_is_the_posters() -> None:
    found = {(r["spatial"], r["channel"]): f"{r['top1']} / {r['top5']}" for r in rows(3)}
    assert found == dict(
        zip([("no", "no"), ("yes", "no"), ("no", "yes"), ("yes", "yes")], TABLE3.values(), strict=True)
    )


@pytest.mark.parametrize(("table", "column"), [(4, "filter"), (5, "variant")])
def test_tables_of_networks_are_the_posters(table: int, column: str) -> None:
    cells = ("params_m", "flops_g", "top1", "top1_rerun")
    assert {(r["backbone"], r[column]): [r.get(cell, "") for cell in cells] for r in rows(table)} == networks(table)


def test_only_one_row_is_not_the_posters() -> None:
    assert [(r["backbone"], r["variant"], r["source"]) for r in rows(5) if r["source"] != "poster"] == [
        ("resnet101", "ddf", "zoo")
    ]


# the list


def test_every_figure_is_a_claim_with_its_figure() -> None:
    """Counted from the transcription, not from the data."""
    published = {claim.id: claim.published for claim in claims()}
    expected = {f"table2-latency-{op}-{size}": ms for size, row in TABLE2.items() for op, ms in row.items()}
    expected |= {f"table3-{name}-accuracy": figures for name, figures in TABLE3.items()}
    for table in NETWORKS:
        for (backbone, variant), figures in networks(table).items():
            for metric, figure in zip(("params", "macs", "top1", "top1_rerun"), figures, strict=True):
                if figure:
                    expected[f"table{table}-{backbone}-{variant}-{metric}"] = figure
    assert {id: published.get(id) for id in expected} == expected
    assert Counter("-".join(id.split("-")[:2]) for id in published if id not in expected) == {
        "table1-params": 4,
        "table1-time": 2 * 4,
        "table1-space": 2 + 2 * 4,
        "table2-order": 2 * 6,
        "table2-ratio": 3 * 6,
        "figure-memory": 3,
        "text-lighter": 2,
        "text-dynamic": 1,
        "text-depthwise": 1,
        "text-fast": 1,
        "text-small": 1,
        "text-improvements": 1,
    }
    assert len(published) == len(claims())


@pytest.mark.parametrize(("over", "under"), [("ddf_op", "dwconv"), ("ddf", "conv"), ("ddf", "ddf_op")])
@pytest.mark.parametrize("size", SIZES)
def test_ratios_are_those_of_the_figures(over: str, under: str, size: int) -> None:
    claim = claim_of(f"table2-ratio-{over}-{under}-{size}")
    assert isinstance(claim.rule, Figure)
    assert claim.rule.published == Fraction(TABLE2[size][over]) / Fraction(TABLE2[size][under])
    assert float(claim.published) == pytest.approx(float(claim.rule.published), rel=5e-3)


@pytest.mark.parametrize(("over", "under", "slower"), [("ddf_op", "dwconv", SIZES), ("ddf", "conv", (7, 14))])
def test_the_poster_concedes_what_is_slower(over: str, under: str, slower: tuple[int, ...]) -> None:
    for size in SIZES:
        claim = claim_of(f"table2-order-{over}-{under}-{size}")
        assert isinstance(claim.rule, Order)
        assert claim.rule.conceded == (size in slower)
        assert ("slower" in claim.statement) == (size in slower)


def test_assumed_cells_carry_no_claim_and_the_zoo_is_named() -> None:
    assert unclaimed() == ["time of DwConv", "time of DyFilter"]
    assert not [claim.id for claim in claims() if claim.id.startswith(("table1-time-dwconv", "table1-time-dyfilter"))]
    assert {claim.id for claim in claims() if "zoo" in claim.source} == {
        "table5-resnet101-ddf-params",
        "table5-resnet101-ddf-top1",
    }


def test_commands_are_understood() -> None:
    for claim in claims():
        if claim.kind == "accuracy":
            assert not claim.command
            continue
        program, script, *arguments = shlex.split(claim.command)
        assert (program, script) == ("python", "runner.py")
        options = command_line.run_parser().parse_args(arguments)
        if {*options.suite} <= set(suites()):
            assert selection_of(options).suites


def test_list_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["list", "claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(claims())
    (line,) = [line for line in lines if line.startswith("table2-latency-ddf_op-7 ")]
    assert "Table 2" in line
    assert line.endswith("--device cuda --preset paper --op ddf_op --impl paper --resolution 7")


# formulas


@pytest.mark.parametrize(
    ("filter", "params"),
    [
        ("Conv", lambda c, k, s: c * c * k * k),
        ("DwConv", lambda c, k, s: c * k * k),
        ("DyFilter", lambda c, k, s: c**3 * k * k),
        ("DDF", lambda c, k, s: c * k * k + s * c * c * (1 + k * k)),
    ],
)
def test_formulas_are_read_as_they_are_meant(filter: str, params: Any) -> None:
    for c, k in ((256, 3), (5, 7)):
        values = {"c": c, "k": k, "sigma": Fraction(1, 5)}
        assert evaluate(parse(TABLE1[filter][0]), values) == params(c, k, Fraction(1, 5))


def test_products_are_multiplied_out() -> None:
    assert evaluate(parse("(n + c)^2 3"), {"n": 2, "c": 5}) == 147
    assert [write(powers) for powers in parse("(n + c) k^2")] == ["n k^2", "c k^2"]
    assert [write(powers) for powers in parse("1 + c n")] == ["1", "n c"]
    assert len(terms("(n + c) k^2 + c")) == 2


@pytest.mark.parametrize("text", ["", "c +", "(c", "c)", "c^", "c^k", "c * k", "+"])
def test_no_formula(text: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        parse(text)


def test_order_of_terms() -> None:
    claimed = parse("n c k^2 + c^2 k^2")
    (lower,), (higher,), (mixed,) = parse("c^2"), parse("c^3"), parse("n c^2")
    assert bounded(lower, claimed)
    assert not bounded(higher, claimed)
    assert not bounded(mixed, claimed)


# Table 1, parameters


def parameters(op: str, channels: int = 256, taps: int = 3, extra: int = 0, **parts: int) -> Record:
    named = {name.replace("__", "."): count for name, count in parts.items()}
    metric = Metric("params", "1", sum(named.values()) + extra)
    return record(
        "params", op, "torch", metrics=[metric], settings={"parts": named}, channels=channels, kernel_size=taps
    )


def test_the_difference_to_the_formula_is_itemised() -> None:
    ddf = parameters("ddf", a__weight=2304 + 13056 + 117504, a__bias=9, b__bias=51, c__bias=2304, d__std=2304)
    assert itemised(ddf, TABLE1["DDF"][0]) == {
        "formula": 133376,
        "by rounding sigma c = 51.2 to 51": -512,
        "biases": 2364,
        "learned std": 2304,
    }
    found = finding_of("table1-params-ddf", [ddf])
    assert (found.verdict, found.ours) == (REPRODUCED, 137532)
    assert found.reason == (
        "137,532 = 133,376 by the formula - 512 by rounding sigma c = 51.2 to 51 + 2,364 biases + 2,304 learned std; "
        "+3.1 %"
    )


@pytest.mark.parametrize(
    ("op", "weights"), [("conv", 256**2 * 9), ("dwconv", 256 * 9), ("dyfilter", 256**3 * 9), ("ddf", 132864)]
)
def test_one_weight_more_or_less_is_not_the_formula(op: str, weights: int) -> None:
    assert finding_of(f"table1-params-{op}", [parameters(op, weight=weights)]).verdict == REPRODUCED
    for wrong in (weights - 1, weights + 1):
        found = finding_of(f"table1-params-{op}", [parameters(op, weight=wrong)])
        assert found.verdict == NOT_REPRODUCED
        assert f"{'-' if wrong < weights else '+'} 1 unexplained" in found.reason
    assert finding_of(f"table1-params-{op}", [parameters(op, weight=weights, extra=7)]).verdict == NOT_REPRODUCED


def test_all_shapes_have_to_hold() -> None:
    good, bad = parameters("conv", weight=256**2 * 9), parameters("conv", channels=8, weight=8 * 8 * 9 + 1)
    assert (
        finding_of("table1-params-conv", [good, parameters("conv", channels=8, weight=8 * 8 * 9)]).verdict == REPRODUCED
    )
    found = finding_of("table1-params-conv", [good, bad])
    assert (found.verdict, found.ours, found.basis) == (NOT_REPRODUCED, 577, "c 8, k 3 and 1 more shapes")


@pytest.mark.parametrize("channels", [1, 4, 5, 10, 16, 30, 64, 256])
@pytest.mark.parametrize(("kernel_size", "se_ratio"), [(3, 0.2), (5, 0.3), (3, 0.1)])
def test_the_modules_closed_forms_leave_nothing_unexplained(channels: int, kernel_size: int, se_ratio: float) -> None:
    op = load(ROOT / "ops" / "ddf.py")["ddf"]
    point = Point(channels=channels, kernel_size=kernel_size, extra={"se_ratio": se_ratio, "head": 1})
    parts = dict(op.costs(point).params)
    made = record(
        "params", "ddf", "native", metrics=[Metric("params", "1", sum(parts.values()))], settings={"parts": parts}
    )
    made.axes = {"channels": channels, "kernel_size": kernel_size, "se_ratio": se_ratio, "head": 1}
    assert "unexplained" not in itemised(made, TABLE1["DDF"][0])


def test_no_parameters_no_verdict() -> None:
    broken = record("params", "conv", "torch", status="crashed", reason="killed")
    found = finding_of("table1-params-conv", [broken])
    assert (found.verdict, found.reason) == (NOT_TESTABLE, "conv: crashed: killed")


# Table 1, growth


def grown(monkeypatch: pytest.MonkeyPatch, id: str, *made: Growth) -> Finding:
    monkeypatch.setattr(evidence, "growths", lambda run: list(made))
    return finding_of(id, [])


def fit(op: str, quantity: str, claimed: str, further: str = "", without: int | None = None) -> Growth:
    """An exact fit of the claimed terms, and of further ones if they do not suffice; one may have no weight."""
    made = Growth(op, "native", "cpu", quantity, "n,c,k", claimed, points=36, suite="complexity", further=further)
    known, more = ([text for text in terms.split(" + ") if text not in ("", "0")] for terms in (claimed, further))
    weights = [0.0 if i == without else 1.5 for i in range(len(known + more))]
    made.coefficients, made.residual = weights[: len(known)], 8.0 if further else 0.0
    made.all_coefficients, made.all_residual = weights, 0.0
    return made


@pytest.mark.parametrize(
    ("id", "quantity", "fitted", "verdict", "told"),
    [
        ("time-conv-macs", "macs", ("n c^2 k^2",), REPRODUCED, "exact"),
        (
            "time-conv-macs",
            "macs",
            ("n c^2 k^2", "n c"),
            REPRODUCED,
            "n c beside the claimed terms, of no higher order",
        ),
        ("time-conv-macs", "macs", ("n c^2 k^2", "n c^3"), NOT_REPRODUCED, "n c^3 too"),
        ("time-conv-macs", "macs", ("n c k^2",), EXCEEDED, "does not grow with n c^2 k^2"),
        ("time-ddf-macs", "macs", ("n c k^2 + c^2 k^2",), REPRODUCED, "exact"),
        ("time-ddf-macs", "macs", ("n c k^2 + c^2 k^2", "c^2"), REPRODUCED, "with c^2 beside"),
        ("time-ddf-macs", "macs", ("n c k^2 + c^2 k^2", "n c^2 + c"), NOT_REPRODUCED, "grows with n c^2 too"),
        ("time-ddf-macs", "macs", ("n c k^2 + c^2 k^2", "", 1), EXCEEDED, "does not grow with c^2 k^2"),
        ("time-ddf-macs", "macs", ("n c k^2 + c^2 k^2", "n c^3 + c^2", 2), REPRODUCED, "with c^2 beside"),
        ("space-dyfilter-filters", "filter_memory", ("n c^2 k^2",), REPRODUCED, "exact"),
        ("space-dyfilter-filters", "filter_memory", ("n c k^2",), EXCEEDED, "n c^2 k^2"),
        ("space-ddf-filters", "filter_memory", ("n k^2 + c k^2",), REPRODUCED, "exact"),
        ("space-ddf-filters", "filter_memory", ("n c k^2",), NOT_REPRODUCED, "n c k^2"),
        ("space-ddf-filters", "filter_memory", ("n k^2 + c k^2", "n c"), NOT_REPRODUCED, "n c"),
        ("space-ddf-filters", "filter_memory", ("0",), EXCEEDED, "n k^2 and c k^2"),
        ("space-ddf-filters", "filter_memory", ("0", "c k^2"), EXCEEDED, "does not grow with n k^2"),
    ],
)
def test_exact_fits(
    monkeypatch: pytest.MonkeyPatch, id: str, quantity: str, fitted: tuple[Any, ...], verdict: str, told: str
) -> None:
    found = grown(monkeypatch, f"table1-{id}", fit(id.split("-")[1], quantity, *fitted))
    assert found.verdict == verdict
    assert told in found.reason


def test_a_fit_with_a_residual_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fit("conv", "macs", "n c^2 k^2")
    made.residual = made.all_residual = 1.0
    found = grown(monkeypatch, "table1-time-conv-macs", made)
    assert (found.verdict, found.reason) == (NOT_REPRODUCED, "n c^2 k^2 does not fit: off by up to 1.00")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.95, 1.05, REPRODUCED),
        (1.11, 1.2, NOT_REPRODUCED),
        (1.09, 1.2, REPRODUCED),
        (0.7, 0.89, EXCEEDED),
        (0.7, 0.91, REPRODUCED),
        (0.76, 1.25, REPRODUCED),
        (0.74, 1.25, NOT_TESTABLE),
        (1.11, 2.0, NOT_REPRODUCED),
    ],
)
@pytest.mark.parametrize("along", ["n", "c", "k"])
@pytest.mark.parametrize(
    ("id", "quantity"),
    [
        ("time-conv-latency", "latency_wall"),
        ("time-ddf-latency", "latency_device"),
        ("space-ddf-peak", "peak_memory"),
        ("space-dyfilter-peak", "peak_memory"),
    ],
)
def test_exponents(
    monkeypatch: pytest.MonkeyPatch, id: str, quantity: str, along: str, low: float, high: float, verdict: str
) -> None:
    made = sloped(id.split("-")[1], "native", quantity, along, slope=1.0, low=low, high=high, expected=1.0)
    found = grown(monkeypatch, f"table1-{id}-{along}", made)
    assert (found.verdict, found.low, found.high) == (verdict, low, high)
    assert "exponent over the same shapes is 1.00" in found.reason
    assert found.undecided == (verdict == NOT_TESTABLE)


def sloped(op: str, impl: str, quantity: str, along: str, **values: Any) -> Growth:
    return Growth(op, impl, "cpu", quantity, along, "", suite="complexity", **values)


def test_an_exponent_needs_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = sloped("conv", "torch", "latency_wall", "n", left_out=["n=49: overhead"])
    found = grown(monkeypatch, "table1-time-conv-latency-n", lone)
    assert (found.verdict, found.reason) == (NOT_TESTABLE, "too few shapes are left to tell an exponent")
    assert found.basis == "conv/torch, 0 shapes, left out n=49: overhead"


def test_growth_is_that_of_the_fastest_impl_and_of_the_device_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"slope": 1.0, "low": 0.9, "high": 1.1, "expected": 1.0}
    made = [sloped("conv", impl, "latency_wall", "n", **bounds) for impl in ("compiled", "aten", "torch")]
    monkeypatch.setattr(evidence, "growths", lambda run: made)
    records = [timed("conv", "compiled", 7, 1), timed("conv", "aten", 7, 3), timed("conv", "torch", 7, 2)]
    assert finding_of("table1-time-conv-latency-n", records).basis.startswith("conv/torch")
    assert finding_of("table1-time-conv-latency-n", []).basis.startswith("conv/aten")
    made.append(sloped("conv", "aten", "latency_device", "n", **bounds | {"slope": 1.05}))
    assert finding_of("table1-time-conv-latency-n", records).ours == 1.05
    for growth in made:
        growth.suite = "latency"
    assert finding_of("table1-time-conv-latency-n", records).ours is None


@pytest.mark.parametrize("op", ["conv", "dwconv"])
def test_a_dash_is_nothing(op: str) -> None:
    none, some = (exact("memory", "filter_memory", op, number) for number in (0, 4))
    assert finding_of(f"table1-space-{op}-filters", [none]).verdict == REPRODUCED
    assert finding_of(f"table1-space-{op}-filters", [none, some]).verdict == NOT_REPRODUCED
    assert finding_of(f"table1-space-{op}-filters", []).verdict == NOT_TESTABLE


# Table 2, orders


def compared(id: str, over: float, under: float, spread: float = 0.02) -> Finding:
    _, _, one, other, size = id.split("-")
    return finding_of(
        id, [timed(one, "native", int(size), over, spread), timed(other, "torch", int(size), under, spread)]
    )


@pytest.mark.parametrize("size", SIZES)
def test_order_of_the_op_and_dwconv(size: int) -> None:
    """Conceded: the published op is slower; ours faster exceeds the claim, and what overlaps is undecided."""
    id = f"table2-order-ddf_op-dwconv-{size}"
    assert compared(id, 1.05, 1.0).verdict == REPRODUCED
    assert compared(id, 0.95, 1.0).verdict == EXCEEDED
    found = compared(id, 1.0, 1.01)
    assert (found.verdict, found.undecided) == (NOT_TESTABLE, True)
    assert found.ours == pytest.approx(1 / 1.01)
    assert found.low == pytest.approx(0.98 / (1.01 * 1.02))
    assert found.high == pytest.approx(1.02 / (1.01 * 0.98))


@pytest.mark.parametrize("size", SIZES)
def test_order_of_the_module_and_conv(size: int) -> None:
    """Slower up to 14, faster from 28 up, where slower is not what was claimed."""
    id = f"table2-order-ddf-conv-{size}"
    slower = size < 28
    assert compared(id, 2.0, 1.0).verdict == (REPRODUCED if slower else NOT_REPRODUCED)
    assert compared(id, 1.0, 2.0).verdict == (EXCEEDED if slower else REPRODUCED)
    assert compared(id, 1.0, 1.0).verdict == NOT_TESTABLE


def test_orders_are_decided_where_the_bounds_part() -> None:
    id = "table2-order-ddf-conv-28"
    assert compared(id, 0.98 * 0.999, 1.02, spread=0.02).verdict == REPRODUCED  # high is 0.999
    assert compared(id, 0.98 * 1.001, 1.02, spread=0.02).verdict == NOT_TESTABLE
    assert compared(id, 1.02 * 1.001, 0.98, spread=0.02).verdict == NOT_REPRODUCED
    assert compared(id, 1.02 * 0.999, 0.98, spread=0.02).verdict == NOT_TESTABLE


def test_a_time_without_bounds_decides_nothing() -> None:
    made = [timed("ddf", "native", 28, 1.0), timed("conv", "torch", 28, 100.0)]
    made[0].metrics = [Metric("latency_wall", "s", 1e-3)]
    assert finding_of("table2-order-ddf-conv-28", made).verdict == NOT_TESTABLE


def test_a_failed_order_tells_the_roofs() -> None:
    made = [timed("ddf", "native", 28, 5.0), timed("conv", "torch", 28, 1.0)]
    for one, fraction in zip(made, (0.05, 0.83), strict=True):
        one.metrics.append(Metric("roof_fraction", "1", fraction))
    found = finding_of("table2-order-ddf-conv-28", made)
    assert found.reason == "ddf/native reaches 5.00 %, conv/torch reaches 83.0 % of the roof that binds it"
    assert found.basis == "ddf/native over conv/torch, batch 1"


def test_an_op_is_judged_by_its_fastest_impl_that_is_not_compiled() -> None:
    made = [timed("dwconv", "torch", 7, 1.0)]
    made += [timed("ddf_op", impl, 7, ms) for impl, ms in (("compiled", 0.1), ("native", 2.0), ("composite", 9.0))]
    found = finding_of("table2-order-ddf_op-dwconv-7", made)
    assert (found.ours, found.basis) == (2.0, "ddf_op/native over dwconv/torch, batch 1")


def test_only_like_shapes_are_compared_and_the_posters_batch_first() -> None:
    made = [timed("dwconv", "torch", 7, 1.0, batch=n) for n in (1, 32, 64)]
    made += [timed("ddf_op", "native", 7, float(n), batch=n) for n in (1, 32, 64)]
    assert finding_of("table2-order-ddf_op-dwconv-7", made).ours == 32
    assert finding_of("table2-order-ddf_op-dwconv-7", made[:1] + made[2:4] + made[5:]).ours == 64
    assert finding_of("table2-order-ddf_op-dwconv-7", made[:2] + made[5:]).verdict == NOT_TESTABLE


@pytest.mark.parametrize(
    "axis",
    [
        {"channels": 64},
        {"kernel_size": 5},
        {"stride": 2},
        {"dilation": 2},
        {"combine": "add"},
        {"dtype": "float16"},
        {"layout": "channels_last"},
        {"direction": "forward_backward"},
        {"head": 2},
        {"se_ratio": 0.5},
        {"tf32": 1},
        {"width": 9},
    ],
)
def test_other_shapes_than_the_posters_are_no_evidence(axis: dict[str, Any]) -> None:
    plain = [timed("dwconv", "torch", 7, 1.0), timed("ddf_op", "native", 7, 2.0)]
    assert finding_of("table2-order-ddf_op-dwconv-7", plain).verdict == REPRODUCED
    other = [timed("dwconv", "torch", 7, 1.0, **axis), timed("ddf_op", "native", 7, 2.0, **axis)]
    assert finding_of("table2-order-ddf_op-dwconv-7", other).verdict == NOT_TESTABLE


def test_what_was_not_measured_says_why() -> None:
    made = [
        timed("conv", "torch", 28, 1.0),
        record("latency", "ddf", "native", 28, status="skipped", reason="too slow"),
    ]
    assert finding_of("table2-order-ddf-conv-28", made).reason == "ddf: skipped: too slow"
    assert finding_of("table2-order-ddf-conv-28", made[:1]).reason == "this run has no latency_wall to tell it from"


# Table 2, ratios and magnitudes


def as_published(op: str, size: int, ms: float, spread: float = 0.001, **changes: Any) -> Record:
    impl = "torch" if op in ("conv", "dwconv") else "paper"
    return timed(op, impl, size, ms, spread, **{"batch": 32, "device": "cuda"} | changes)


@pytest.mark.parametrize("op", ["conv", "dwconv", "ddf", "ddf_op"])
@pytest.mark.parametrize("size", SIZES)
def test_latencies_hold_within_a_factor_of_two(op: str, size: int) -> None:
    ms, id = float(TABLE2[size][op]), f"table2-latency-{op}-{size}"
    for factor, verdict in ((1.0, REPRODUCED), (1.99, REPRODUCED), (1 / 1.99, REPRODUCED)):
        found = finding_of(id, [as_published(op, size, factor * ms)], CUDA)
        assert found.verdict == verdict
        assert found.ours == pytest.approx(factor * ms)
    assert finding_of(id, [as_published(op, size, 2.01 * ms)], CUDA).verdict == NOT_REPRODUCED
    assert finding_of(id, [as_published(op, size, ms / 2.01)], CUDA).verdict == EXCEEDED
    for factor in (1.99, 2.01, 1 / 1.99, 1 / 2.01):
        assert finding_of(id, [as_published(op, size, factor * ms, spread=0.02)], CUDA).undecided


@pytest.mark.parametrize(("over", "under"), [("ddf_op", "dwconv"), ("ddf", "conv"), ("ddf", "ddf_op")])
@pytest.mark.parametrize("size", SIZES)
def test_ratios_hold_within_a_factor_of_one_and_a_half(over: str, under: str, size: int) -> None:
    published = float(TABLE2[size][over]) / float(TABLE2[size][under])

    def found(factor: float) -> Finding:
        made = [as_published(over, size, factor * published), as_published(under, size, 1.0)]
        return finding_of(f"table2-ratio-{over}-{under}-{size}", made, CUDA)

    assert [found(factor).verdict for factor in (1.0, 1.49, 1 / 1.49)] == [REPRODUCED] * 3
    assert found(1.51).verdict == NOT_REPRODUCED
    assert found(1 / 1.51).verdict == EXCEEDED


@pytest.mark.parametrize(
    ("changes", "environment"),
    [({"device": "cpu"}, CUDA), ({"batch": 8}, CUDA), ({}, CPU), ({}, environment()), ({"dtype": "float16"}, CUDA)],
)
def test_figures_need_cuda_the_preset_paper_and_its_batch(changes: dict[str, Any], environment: dict[str, Any]) -> None:
    made = [as_published("ddf_op", 7, 0.12, **changes), as_published("dwconv", 7, 0.05, **changes)]
    for id in ("table2-latency-ddf_op-7", "table2-ratio-ddf_op-dwconv-7"):
        found = finding_of(id, made, environment)
        assert (found.verdict, found.undecided) == (NOT_TESTABLE, False)
        assert "only the published kernels" in found.reason
        assert (found.ours is None) == ("dtype" in changes)


def test_figures_need_the_published_kernels_and_show_ours_beside() -> None:
    made = [timed("ddf_op", "native", 7, 0.12, batch=32, device="cuda"), as_published("dwconv", 7, 0.05)]
    found = finding_of("table2-latency-ddf_op-7", made, CUDA)
    assert (found.verdict, found.basis) == (NOT_TESTABLE, "ddf_op/native, batch 32")
    assert found.ours == pytest.approx(0.12)
    assert finding_of("table2-latency-dwconv-7", made, CUDA).verdict == REPRODUCED
    found = finding_of("table2-ratio-ddf_op-dwconv-7", made, CUDA)
    assert (found.verdict, found.ours) == (NOT_TESTABLE, pytest.approx(2.4))


def test_a_run_under_the_preset_paper_can_tell_every_figure() -> None:
    """The cases that it plans on CUDA, each with a latency, leave no figure of Table 2 untestable."""
    ops = load(ROOT / "ops" / "ddf.py") | load(ROOT / "ops" / "convolution.py")
    declared = {name: Declaration.from_json(declaration(op, "ops.py")) for name, op in ops.items()}
    chosen = Selection(
        suites=["latency"],
        device="cuda:0",
        preset="paper",
        ops=["conv", "dwconv", "ddf_op", "ddf"],
        impls=["torch", "paper"],
        axes={},
        processes=1,
        seconds=1.0,
        forced=False,
        timeout=60.0,
        seed=0,
    )
    made = []
    for case in expand(chosen, [suites()["latency"]], declared, cores=4):
        ms = float(TABLE2[case.point.height][case.op])
        metric = Metric("latency_wall", "s", ms * 1e-3, ms * 0.999e-3, ms * 1.001e-3, "less")
        made.append(record_of(case, RUN, "ok", metrics=[metric]))
    found = {claim.id: claim.rule(Evidence(run_of(made, CUDA))) for claim in claims()}
    figures = {id: f for id, f in found.items() if id.startswith(("table2-latency-", "table2-ratio-"))}
    assert len(figures) >= 6 * 4
    assert {f.verdict for f in figures.values()} == {REPRODUCED}, figures


# memory and text


@pytest.mark.parametrize(("over", "under"), [("dyfilter_dw", "dyfilter"), ("ddf", "dyfilter_dw")])
def test_order_of_the_memory_figure(over: str, under: str) -> None:
    def found(*numbers: tuple[float, float]) -> Finding:
        pairs = zip(SIZES, numbers, strict=False)
        made = [
            exact("memory", "peak_memory", op, number, size)
            for size, both in pairs
            for op, number in zip((over, under), both, strict=True)
        ]
        return finding_of(f"figure-memory-{over}-{under}", made)

    assert found((10, 11), (1, 3)).verdict == REPRODUCED
    assert found((10, 11), (1, 3)).ours == pytest.approx(10 / 11)
    assert found((10, 10)).verdict == NOT_REPRODUCED
    assert found((10, 11), (4, 3), (1, 9)).verdict == NOT_REPRODUCED
    assert "the worst of 7, 14, 28: 14" in found((10, 11), (4, 3), (1, 9)).basis
    assert found().verdict == NOT_TESTABLE


@pytest.mark.parametrize(("id", "under"), [("figure-memory-ddf-dwconv", "dwconv"), ("text-small-memory", "conv")])
def test_about_the_same_memory_is_less_than_twice(id: str, under: str) -> None:
    for number, verdict in ((199, REPRODUCED), (200, NOT_REPRODUCED), (50, REPRODUCED)):
        made = [exact("memory", "peak_memory", "ddf", number), exact("memory", "peak_memory", under, 100)]
        assert finding_of(id, made).verdict == verdict


@pytest.mark.parametrize("status", ["does_not_fit", "skipped"])
def test_the_closed_form_stands_for_memory_that_was_not_measured(status: str) -> None:
    made = [exact("memory", "peak_memory", "dyfilter_dw", 10)]
    made += [exact("memory", "peak_memory_formula", "dyfilter", 99, status=status, reason="needs 118 GB")]
    found = finding_of("figure-memory-dyfilter_dw-dyfilter", made)
    assert (found.verdict, found.ours) == (REPRODUCED, pytest.approx(10 / 99))
    assert found.basis == "dyfilter_dw/torch over dyfilter by closed form, batch 1"
    made[1].status = "failed"
    assert finding_of("figure-memory-dyfilter_dw-dyfilter", made).reason == "dyfilter: failed: needs 118 GB"
    made[1].status = "ok"
    assert finding_of("figure-memory-dyfilter_dw-dyfilter", made).verdict == NOT_TESTABLE


def test_memory_is_judged_by_the_fastest_impl() -> None:
    made = [exact("memory", "peak_memory", "dyfilter_dw", 10), exact("memory", "peak_memory", "ddf", 5)]
    made.append(record("memory", "ddf", "native", 7, metrics=[Metric("peak_memory", "B", 20)]))
    assert finding_of("figure-memory-ddf-dyfilter_dw", made).verdict == REPRODUCED
    made += [timed("ddf", "native", 7, 1.0), timed("ddf", "torch", 7, 2.0)]
    assert finding_of("figure-memory-ddf-dyfilter_dw", made).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("id", "suite", "metric", "over", "under"),
    [
        ("text-lighter-params", "params", "params", "ddf", "conv"),
        ("text-lighter-macs", "flops", "macs", "ddf", "conv"),
        ("text-dynamic-macs", "flops", "macs", "conv", "dyfilter"),
        ("text-depthwise-macs", "flops", "macs", "dwconv", "conv"),
    ],
)
def test_text_on_counts(id: str, suite: str, metric: str, over: str, under: str) -> None:
    def found(a: float, b: float) -> Finding:
        size = None if suite == "params" else 7
        return finding_of(id, [exact(suite, metric, op, n, size) for op, n in ((over, a), (under, b))])

    assert found(9, 10).verdict == REPRODUCED
    assert found(10, 10).verdict == NOT_REPRODUCED
    assert found(9, 10).basis.startswith(f"{over} over {under}")


def test_fast_is_held_against_the_dynamic_filter_at_every_resolution() -> None:
    made = [timed("ddf", "native", size, 1.0) for size in (7, 14)]
    made += [timed("dyfilter_dw", "composite", size, 2.0) for size in (7, 14)]
    assert finding_of("text-fast", made).verdict == REPRODUCED
    made.append(timed("ddf", "native", 28, 5.0))
    assert finding_of("text-fast", made).verdict == REPRODUCED
    assert finding_of("text-fast", [*made, timed("dyfilter_dw", "composite", 28, 5.0)]).undecided
    assert finding_of("text-fast", [*made, timed("dyfilter_dw", "composite", 28, 2.0)]).verdict == NOT_REPRODUCED


# networks


def network(backbone: str, variant: str, params: float, macs: float, **axes: Any) -> Record:
    metrics = [Metric("params", "1", params), Metric("macs", "MAC", macs)]
    made = record("networks", backbone, "torch", metrics=metrics)
    made.axes = {"variant": variant, "batch": 1, **axes}
    return made


@pytest.mark.parametrize("table", [4, 5])
def test_networks_agree_to_half_the_last_printed_digit(table: int) -> None:
    for (backbone, variant), figures in networks(table).items():
        for metric, figure, unit in (("params", figures[0], 10**6), ("macs", figures[1], 10**9)):
            if not figure:
                continue
            published, half, id = (
                int(Fraction(figure) * unit),
                unit // 20,
                f"table{table}-{backbone}-{variant}-{metric}",
            )
            for number, verdict in (
                (published + half, REPRODUCED),
                (published - half, REPRODUCED),
                (published + half + 1, NOT_REPRODUCED),
                (published - half - 1, NOT_REPRODUCED),
            ):
                assert finding_of(id, [network(backbone, variant, number, number)]).verdict == verdict, (id, number)


def test_the_plainest_definition_that_agrees_is_used_and_named() -> None:
    id = "table4-resnet50-condconv-macs"  # 4.2

    def found(macs: float, mixing: float, normalisation: float) -> Finding:
        made = network("resnet50", "condconv", 0, macs)
        made.metrics += [
            Metric("macs_with_mixing", "MAC", mixing),
            Metric("macs_with_normalisation", "MAC", normalisation),
        ]
        return finding_of(id, [made])

    plain = found(4.2e9, 4.2e9, 4.2e9)
    assert (plain.verdict, plain.ours, plain.reason) == (REPRODUCED, 4.2, "")
    mixed = found(4.1e9, 4.18e9, 4.2e9)
    assert (mixed.verdict, mixed.ours) == (REPRODUCED, 4.18)
    assert mixed.basis.startswith("with the mixing of filters, ")
    reason = "not by the plain count: convolutions, linear layers and applied dynamic filters give 4.100"
    assert mixed.reason == reason
    none = found(4.1e9, 4.1e9, 4.12e9)
    assert (none.verdict, none.ours) == (NOT_REPRODUCED, 4.1)
    assert none.reason.endswith("; with BatchNorm, as thop counts it: 4.120")


def test_readings_are_told_and_decide_nothing() -> None:
    other = network("resnet50", "res2net_26w_4s", 25.7e6, 0)
    own = network("resnet50", "res2net_14w_8s", 25.1e6, 0)
    found = finding_of("table5-resnet50-res2net_14w_8s-params", [own, other])
    assert found.verdict == NOT_REPRODUCED
    assert found.reason.endswith("; res2net_26w_4s has 25.700")
    own.metrics[0] = Metric("params", "1", 25.7e6)
    assert finding_of("table5-resnet50-res2net_14w_8s-params", [own, other]).reason == ""
    found = finding_of("table4-resnet18-ddf-params", [network("resnet18", "ddf_separable", 7.7e6, 0)])
    assert (found.verdict, found.ours, found.undecided) == (NOT_TESTABLE, None, True)  # it has a row of its own
    assert found.reason == "no definition is published that gives this network; ddf_separable has 7.700"


def test_macs_of_a_network_are_those_of_one_sample_at_224() -> None:
    id = "table5-resnet50-ddf-macs"
    assert finding_of(id, [network("resnet50", "ddf", 0, 8 * 2_300_000_000, batch=8)]).verdict == REPRODUCED
    assert finding_of(id, [network("resnet50", "ddf", 0, 2_300_000_000, height=112, width=112)]).verdict == NOT_TESTABLE
    assert finding_of(id, [network("resnet50", "base", 0, 2_300_000_000)]).verdict == NOT_TESTABLE
    assert finding_of(id, [network("resnet101", "ddf", 0, 2_300_000_000)]).verdict == NOT_TESTABLE


def test_accuracy_is_cited() -> None:
    found = {judged.claim.id: judged.finding for judged in judge(sample()) if judged.claim.kind == "accuracy"}
    assert len(found) == 4 + 10 + 14 + 5 + 1
    assert {finding.verdict for finding in found.values()} == {NOT_TESTABLE}
    assert all("cited" in finding.reason for finding in found.values())


# what is told


def test_claims_csv() -> None:
    (text,) = claims_format.serialize([sample()]).values()
    found = list(csv.DictReader(io.StringIO(str(text))))
    header = "claim,source,statement,published,unit,ours,low,high,verdict,reason,device,command"
    assert str(text).splitlines()[0] == header
    assert [row["claim"] for row in found] == [claim.id for claim in claims()]
    assert {row["device"] for row in found} == {"Example CPU"}
    (row,) = [row for row in found if row["claim"] == "table2-latency-dwconv-28"]
    assert (row["published"], row["unit"], float(row["ours"])) == ("0.22", "ms", pytest.approx(0.32))
    (row,) = [row for row in found if row["claim"] == "table2-order-ddf_op-dwconv-28"]
    assert (row["verdict"], row["reason"]) == ("reproduced", "ddf_op/native over dwconv/torch, batch 1")


def test_report_tells_the_counts_first_and_every_verdict() -> None:
    text = str(markdown.serialize([sample()])["report.md"])
    counted = verdict_counts(judge(sample()))
    assert text.index(f"**Claims of the poster**: {counted}.") < text.index("## Environment") < text.index("## Claims")
    section = text[text.index("## Claims") : text.index("## latency")]
    assert (
        "| DDF Op is slower than DwConv at 28×28 (0.48 against 0.22 ms) | 2.18 | 1.10 (1.04 to 1.17) | reproduced |"
        in section
    )
    assert "No claim is made of the time of DwConv and the time of DyFilter" in section
    assert f"claims of the poster: {counted}\n" in terminal_summary(sample())


def test_report_of_the_same_run_twice() -> None:
    text = str(markdown.serialize([sample(), sample()])["report.md"])
    assert text.count("**Claims of the poster**") == 2


def test_the_committed_runs_explain_every_parameter() -> None:
    published = [load_run(path.parent, samples=False) for path in (ROOT / "reports" / "published").glob("*/*/run.json")]
    counted = [run for run in published if "params" in run.suites()]
    assert counted
    for run in counted:
        found = {judged.claim.id: judged.finding for judged in judge(run)}
        for op in ("conv", "dwconv", "dyfilter", "ddf"):
            assert found[f"table1-params-{op}"].verdict == REPRODUCED
