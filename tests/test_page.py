"""The data and the sentences of `report.html` and of `comparison.html`; how they look is `test_page_in_browser.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sample_runs import RUN, environment, latency, record, sample, sample_comparison

from reports import Block, Metric, Record, Run, page
from reports.core import page_data
from reports.core.arrange import Arrangement
from reports.core.claims.judge import judge
from reports.core.headlines import claims_sentence, headlines
from reports.core.records import load_run
from reports.core.verdict_page import as_page

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028&'\""


def run_of(records: Iterable[Record], **changes: Any) -> Run:
    return Run(Path("runs") / RUN, environment() | changes, list(records))


def html_of(*runs: Run) -> str:
    return str(page.serialize(list(runs))["report.html"])


def data_of(html: str) -> dict[str, Any]:
    """What the page carries for its script."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def against(size: int, conv: float, ddf: float) -> list[Record]:
    return [latency("conv", "torch", size, conv), latency("ddf", "native", size, ddf)]


# sentences


def test_headline_tells_where_ddf_is_faster_slower_or_neither() -> None:
    run = run_of([*against(7, 1e-3, 2e-3), *against(14, 1e-3, 1.01e-3), *against(28, 4e-3, 1e-3)])
    (headline,) = headlines(Arrangement([run]))
    (found,) = headline.against
    assert (found.op, found.base) == ("ddf/native", "conv/torch")
    assert [found.where(word) for word in ("slower", "not told apart", "faster")] == [["7×7"], ["14×14"], ["28×28"]]
    assert found.sentence == (
        "ddf/native takes 2.00 times as long as conv/torch at 7×7, 1.01 at 14×14, 0.250 at 28×28: "
        "faster at 28×28; slower at 7×7; not told apart at 14×14."
    )
    assert "ddf/native reaches 86.0 % of the roof that binds." in headline.roofs


def test_the_fastest_impl_of_each_place_is_held_against_the_baseline() -> None:
    records = [*against(7, 1e-3, 2e-4), latency("ddf", "composite", 7, 1e-4)]
    records += [*against(14, 1e-3, 2e-4), latency("ddf", "composite", 14, 5e-4)]
    (headline,) = headlines(Arrangement([run_of(records)]))
    assert headline.against[0].sentence.startswith("ddf (composite, native) takes 0.100 times")


def test_without_a_baseline_there_is_no_headline() -> None:
    assert headlines(Arrangement([run_of([latency("ddf", "native", 7, 1e-3)])])) == []


def test_claims_are_counted_by_verdict() -> None:
    run = run_of([*against(7, 1e-3, 2e-4)])
    held = judge(run)
    tested = sum(judgement.tested for judgement in held)
    assert tested > 0
    assert claims_sentence(held).startswith(f"{tested} of {len(held)} published claims can be tested by this run: ")
    assert claims_sentence(judge(run_of([]))).startswith("None of ")


# the page


def test_markup_in_names_stays_text() -> None:
    made = latency(HOSTILE, HOSTILE, 7, 1e-3)
    made.settings[HOSTILE] = HOSTILE
    failed = record("latency", "conv", "torch", 14, status="failed", reason=HOSTILE)
    html = html_of(run_of([made, failed], run=HOSTILE, warnings=[HOSTILE], device={"name": HOSTILE}))
    assert "<img" not in html
    assert html.count("</script>") == 2
    assert "\u2028" not in re.findall(r"<script.*?</script>", html, re.DOTALL)[0]
    assert data_of(html)["cases"][0]["label"] == f"{HOSTILE}/{HOSTILE}"


def test_the_page_asks_nobody_for_anything() -> None:
    html = html_of(sample())
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)|@import|url\(|fetch\(|XMLHttp""", html)


def test_every_case_is_in_a_table_with_all_its_metrics_and_in_the_plots() -> None:
    run = sample()
    data = data_of(html_of(run))
    rows = [row for table in data["tables"] for row in table["rows"] if row[0] is not None]
    assert sorted(row[0] for row in rows) == list(range(len(run.records)))
    assert {case["id"] for case in data["cases"]} == {made.case for made in run.records}
    table = next(table for table in data["tables"] if table["columns"][-1]["name"] == "roof_fraction")
    names = [column["name"] for column in table["columns"]]
    row = next(row for row in table["rows"] if data["cases"][row[0]]["id"] == run.records[1].case)
    assert row[1 + names.index("latency_wall")] == [2e-05, 1.96e-05, 2.08e-05]
    points = [point for series in data["figures"][0]["panels"][0]["series"] for point in series["points"]]
    ids = [data["cases"][point[4]]["id"] for point in points]
    assert sorted(ids) == sorted(m.case for m in run.records if m.suite == "latency" and m.status == "ok")
    for point, case in zip(points, ids, strict=True):
        made = next(made for made in run.records if made.case == case)
        assert (point[0], point[1]) == (made.axes["height"], made.metrics[0].value)


def test_what_has_no_number_says_why() -> None:
    html = html_of(sample())
    data = data_of(html)
    assert "<h2>Failed</h2>" in html
    assert "<h2>Not measured</h2>" in html
    words = {cell for table in data["tables"] for row in table["rows"] for cell in row if isinstance(cell, str)}
    assert {"killed by SIGSEGV", "needs 118 GB, 25 GB are free", "skipped: fvcore is not installed"} <= words
    assert "does not fit" in words


def test_claims_come_with_the_command_that_tests_each() -> None:
    data = data_of(html_of(sample()))
    (table,) = [table for table in data["tables"] if table["columns"][-1]["name"] == "command"]
    held = judge(sample())
    assert [row[1] for row in table["rows"]] == [judgement.claim.statement for judgement in held]
    assert all(row[-1] for row in table["rows"])
    assert [column["name"] for column in table["columns"] if column.get("facet")] == ["source", "verdict"]


def test_samples_are_told_by_process() -> None:
    made = latency("conv", "torch", 7, 1e-3)
    made.samples = [Block("latency_wall", p, r, 0.0, 1, [1e-3 * (1 + p), 2e-3]) for r in range(2) for p in (1, 0)]
    (case,) = data_of(html_of(run_of([made])))["cases"]
    assert case["samples"] == {
        "latency_wall": [[0, 4, 1500, [1000, 2000, 1000, 2000]], [1, 4, 2000, [2000, 2000, 2000, 2000]]]
    }


def test_beyond_the_room_of_a_page_samples_are_thinned_evenly_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_data, "MOST_SAMPLES", 4)
    made = latency("conv", "torch", 7, 1e-3)
    made.samples = [Block("latency_wall", p, 0, 0.0, 1, [1e-6 * (9 - i) for i in range(9)]) for p in range(2)]
    (case,) = data_of(html_of(run_of([made])))["cases"]
    assert case["samples"]["latency_wall"] == [[p, 9, 5, [3, 7]] for p in range(2)]


def test_the_roofline_has_each_case_under_its_roofs() -> None:
    made = latency("conv", "torch", 7, 1e-3)
    made.metrics += [Metric("floor_bytes", "B", 2e5), Metric("roof_copy", "B/s", 1e10, 9e9, 2e10)]
    made.metrics.append(Metric("roof_arithmetic", "MAC/s", 1e11, 9e10, 2e11))
    data = data_of(html_of(run_of([made])))
    (figure,) = [figure for figure in data["figures"] if figure["title"] == "Roofline"]
    *roofs, cases = figure["panels"][0]["series"]
    macs = 256 * 9 * 49
    ((intensity, rate, low, high, case),) = cases["points"]
    assert (intensity, rate, case) == (pytest.approx(macs / 2e5, 1e-6), macs / 1e-3, 0)
    assert low < rate < high
    assert [roof["label"] for roof in roofs] == ["copy roof, 10.0 GB/s", "arithmetic roof, 100 GMAC/s"]


@pytest.mark.parametrize("records", [[], [record("latency", "conv", "torch", 7, status="timeout", reason="slow")]])
def test_a_run_without_numbers_has_a_page(records: list[Record]) -> None:
    assert data_of(html_of(run_of(records)))["figures"] == []


def test_several_runs_stand_side_by_side_absolute_and_in_percent_of_their_own_roofs() -> None:
    first, second = sample(), sample()
    second.environment = environment("another", "Other CPU")
    for made in second.records:
        for metric in made.metrics:
            if metric.name == "latency_wall" and metric.value and metric.low and metric.high:
                metric.value, metric.low, metric.high = 2 * metric.value, 2 * metric.low, 2 * metric.high
            if metric.name == "roof_fraction":
                metric.value = 0.43
    html = html_of(first, second)
    data = data_of(html)
    titles = re.findall(r"<h2>(Side by side[^<]*)</h2>", html)
    assert titles[:2] == [
        "Side by side: latency, warm, host clock",
        "Side by side: share of each device&#39;s own roof",
    ]
    absolute, shares = data["tables"][:2]
    assert [column["name"] for column in absolute["columns"][-2:]] == ["cpu: Example CPU", "cpu: Other CPU"]
    conv = next(row for row in absolute["rows"] if row[1:3] == ["conv/torch", "7×7"])
    assert [cell[0] for cell in conv[-2:]] == [1e-3, 2e-3]
    conv = next(row for row in shares["rows"] if row[1:3] == ["conv/torch", "7×7"])
    assert [cell[0] for cell in conv[-2:]] == [0.86, 0.43]
    lines = data["figures"][0]["panels"][0]["series"]
    assert [line["label"] for line in lines] == ["cpu: Example CPU", "cpu: Other CPU"]
    assert len({line["color"] for line in lines}) == 1, "one op, one colour"


def test_published_runs_have_pages_of_moderate_size() -> None:
    runs = [load_run(path.parent) for path in (ROOT / "reports" / "published").glob("*/quick/run.json")]
    assert runs
    assert len(html_of(*runs)) < 2_500_000


# comparisons


def test_a_comparison_has_each_verdict_and_keeps_names_as_text() -> None:
    comparison = sample_comparison()
    html = as_page(comparison)
    assert "<b>" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    data = data_of(html)
    (table,) = data["tables"]
    assert len(table["rows"]) == len(comparison.verdicts)
    names = [column["name"] for column in table["columns"]]
    first = dict(zip(names, table["rows"][0][1:], strict=True))
    assert (first["verdict"], first["change"]) == ("slower", {"text": "+50.0 %", "key": 1.5})
    panel = data["figures"][0]["panels"][-1]
    assert panel["where"] == "latency_wall"
    slower = next(series for series in panel["series"] if series["label"] == "slower")
    assert slower["points"] == [[1.5, 0, 1.46, 1.53, None]]
