"""Growth from made-up records whose exponents are known."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from sample_runs import latency, record
from test_reports_formats import drawn, render, run_of, text_of

from reports import Metric, Record, Run
from reports.core.growth import OVERHEAD, Growth, Sample, fit, growths, parsed, slope
from reports.core.growth_told import fit_rows, fitted, slope_rows
from reports.core.pictures import GROWTH_PATH

POINTS = tuple(product((6, 16, 35), (5, 10, 15), (3, 5)))


def counts(terms: dict[str, float]) -> tuple[int, ...]:
    def at(point: tuple[int, int, int]) -> int:
        value = sum(
            weight * math.prod(x**power for x, power in zip(point, parsed(term)[0], strict=True))
            for term, weight in terms.items()
        )
        return round(value)

    return tuple(map(at, POINTS))


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ("n c k^2 + c^2", [(1, 1, 2), (0, 2, 0)]),
        ("c^3", [(0, 3, 0)]),
        ("n + 1", [(1, 0, 0), (0, 0, 0)]),
        ("0", []),
        ("", []),
    ],
)
def test_terms_are_exponents(terms: str, found: list[tuple[int, int, int]]) -> None:
    assert parsed(terms) == found


def test_a_fit_without_residual_needs_nothing_more() -> None:
    alone, further, full = fit(POINTS, counts({"n c k^2": 2, "c^2 k^2": 1}), "n c k^2 + c^2 k^2")
    assert (alone, further) == (full, "")
    assert ([float(c) for c in alone.coefficients], alone.residual) == ([2, 1], 0)


def test_one_in_a_thousand_million_is_a_residual() -> None:
    values = list(counts({"n c^3 k^2": 10**9}))
    values[-1] += 1
    alone, _, full = fit(POINTS, tuple(values), "n c^3 k^2")
    assert 0 < alone.residual <= 1
    assert full.residual > 0


@pytest.mark.parametrize("missing", [{"c^2": 1}, {"n c": 3, "c^3 k": 2}])
def test_the_fewest_further_terms_are_found(missing: dict[str, float]) -> None:
    alone, further, full = fit(POINTS, counts({"n c k^2": 2, **missing}), "n c k^2")
    assert alone.residual > 0
    assert (set(further.split(" + ")), full.residual) == (set(missing), 0)
    assert [float(c) for c in full.coefficients] == [2, *(missing[term] for term in further.split(" + "))]


def test_three_further_terms_are_too_many() -> None:
    alone, further, full = fit(POINTS, counts({"n c k^2": 2, "c": 1, "n": 1, "k^2": 5}), "n c k^2")
    assert (further, full) == ("", alone)
    assert alone.residual > 0


@pytest.mark.parametrize(
    ("terms", "further", "within"),
    [("n c k^2", "n c", True), ("n c k^2 + c^2 k^2", "c^2", True), ("n c k^2", "c^2", False), ("n k^2", "n c", False)],
)
def test_a_further_term_may_not_outgrow_the_claim(terms: str, further: str, within: bool) -> None:
    assert Growth("", "", "", "", "", terms, further=further, all_residual=0.0).within_claim == within
    assert not Growth("", "", "", "", "", terms, further=further, all_residual=1.0).within_claim


# slopes


def samples(exponent: float, width: float = 0.0) -> list[Sample]:
    def at(x: float) -> Sample:
        value = 1e-3 * x**exponent
        return Sample(x, f"n={x:g}", value, value * math.exp(-width), value * math.exp(width), 9.0 * x)

    return [at(x) for x in (49.0, 196.0, 784.0)]


@pytest.mark.parametrize("exponent", [1.0, 0.0, 2.5])
def test_a_known_slope_comes_out(exponent: float) -> None:
    found = slope(samples(exponent))
    assert (found.slope, found.low, found.high) == pytest.approx((exponent, exponent, exponent))
    assert found.expected == pytest.approx(1.0)
    assert found.points == 3


def test_bounds_of_points_are_put_together_in_quadrature() -> None:
    found = slope(samples(1.0, width=0.1))
    # the weights of three points at equal distances are -1, 0 and 1 over twice the distance
    half = math.hypot(0.1, 0.1) / (2 * math.log(4))
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half))


def test_uneven_bounds_stay_on_their_side() -> None:
    first, middle, last = samples(1.0)
    found = slope([first, middle, last._replace(high=last.value * 2)])
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(1 + math.log(2) / (2 * math.log(4)))


def test_calls_that_are_mostly_overhead_are_left_out_by_name() -> None:
    smallest = samples(1.0)[1].value / OVERHEAD
    found = slope(samples(1.0), smallest)
    assert found.points == 2
    assert found.left_out == ["n=49: 1.00 times the smallest call"]
    alone = slope(samples(1.0), 4 * smallest)
    assert (alone.slope, alone.points, len(alone.left_out)) == (None, 1, 2)


def complexity(op: str = "ddf_op", exponents: tuple[float, float, float] = (1.0, 1.0, 1.5), **changes: Any) -> Record:
    """A record of the suite whose latency grows with these exponents of n, c and k."""
    middle = {"n": 3136, "c": 64, "k": 3}
    others = {"n": (784, 12544), "c": (32, 128), "k": (5, 7)}
    points = [middle, *({**middle, v: x} for v, values in others.items() for x in values)]
    metrics = [Metric("latency_wall_n1c8k3", "s", 1e-5)]
    timed = []
    for p in points:
        value = 1e-9 * p["n"] ** exponents[0] * p["c"] ** exponents[1] * p["k"] ** exponents[2]
        metrics.append(Metric(f"latency_wall_n{p['n']}c{p['c']}k{p['k']}", "s", value, 0.99 * value, 1.01 * value))
        size = 4 * p["n"] * p["c"]
        macs = p["n"] * p["c"] * p["k"] ** 2
        timed.append({**p, "metric": metrics[-1].name, "macs": macs, "peak_memory": size, "peak_memory_formula": size})
    shapes = {name: [p[i] for p in POINTS] for i, name in enumerate("nck")}
    counted = {**shapes, "macs": list(counts({"n c k^2": 1})), "filter_memory": [0] * len(POINTS)}
    settings = {
        "clock": "latency_wall",
        "smallest": "latency_wall_n1c8k3",
        "middle": middle,
        "timed": timed,
        "counted": counted,
    }
    return record("complexity", op, "native", metrics=metrics, settings=settings, **changes)


def test_slopes_of_the_cross() -> None:
    found = {(g.quantity, g.along): g for g in growths(run_of([complexity()]))}
    assert set(found) == {
        ("macs", "n,c,k"),
        ("filter_memory", "n,c,k"),
        *product(("latency_wall", "peak_memory"), "nck"),
    }
    assert [found["latency_wall", v].slope for v in "nck"] == pytest.approx([1.0, 1.0, 1.5])
    assert [found["latency_wall", v].expected for v in "nck"] == pytest.approx([1.0, 1.0, 2.0])
    assert [found["peak_memory", v].slope for v in "nck"] == pytest.approx([1.0, 1.0, 0.0])
    assert found["latency_wall", "c"].where == "n=3136, k=3"
    assert found["macs", "n,c,k"].residual == found["filter_memory", "n,c,k"].residual == 0


def test_latency_along_n_leaves_out_by_the_smallest_call_of_the_same_impl() -> None:
    made = [latency("ddf_op", impl, size, 5e-7 * size**2) for impl in ("native", "composite") for size in (7, 14, 28)]
    found = {g.impl: g for g in growths(run_of([complexity(), *made])) if g.suite == "latency"}
    assert found["native"].left_out == ["n=49: 2.45 times the smallest call"]
    assert found["composite"].left_out == []
    assert (found["native"].slope, found["native"].expected) == pytest.approx((1.0, 1.0))


def test_memory_along_n_by_direction() -> None:
    def taken(size: int, direction: str, power: float) -> Record:
        metrics = [Metric("peak_memory", "B", size ** (2 * power)), Metric("peak_memory_formula", "B", size**2)]
        return record("memory", "ddf", "native", size, metrics=metrics, direction=direction)

    made = [taken(size, d, p) for d, p in (("forward", 1.0), ("forward_backward", 1.25)) for size in (7, 14, 28)]
    found = [(g.where.rpartition(", ")[2], g.slope) for g in growths(run_of(made))]
    assert found == [("forward", pytest.approx(1.0)), ("forward_backward", pytest.approx(1.25))]


def test_cases_without_a_result_tell_nothing() -> None:
    assert growths(run_of([complexity(status="failed")])) == []
    bare = complexity()
    bare.settings = {}
    assert growths(run_of([bare])) == []


# told


def test_growth_is_told_in_the_report() -> None:
    run = run_of([complexity()])
    text = text_of("report.md", run)
    assert "| ddf_op | macs | n c k^2 | n c k^2 | 0 |" in text
    assert "| ddf_op/native | latency_wall | k | n=3136, c=64 | 1.50 (1." in text
    assert f"({GROWTH_PATH}.png)" in text
    files = render(run)
    assert {f"{GROWTH_PATH}.png", f"{GROWTH_PATH}.svg"} <= set(files)
    assert f"{GROWTH_PATH}.png" not in str(render(run, run)["report.md"])
    assert not [path for path in drawn(run) if "complexity" in path]


def test_fits_are_written_as_sums() -> None:
    assert fitted([2.0, 0.2], "n c k^2 + c^2 k^2") == "2 n c k^2 + 0.2 c^2 k^2"
    assert fitted([1.0], "n c k^2") == "n c k^2"
    assert fitted([], "0") == "0"


def test_too_few_points_are_said() -> None:
    run = run_of([complexity(exponents=(-1.0, -1.0, -1.0))])
    rows = [row for row in slope_rows(growths(run)) if row[1] == "latency_wall"]
    assert {row[4] for row in rows} == {"too few points"}
    assert len(fit_rows(growths(run))) == 2
    assert b"too few points above overhead" not in plain_text(run_of([complexity()]))
    assert b"too few points above overhead" in plain_text(run)


def plain_text(run: Run) -> bytes:
    """The picture of growth with its texts as comments, as matplotlib writes them."""
    content = render(run)[f"{GROWTH_PATH}.svg"]
    assert isinstance(content, bytes)
    return content
