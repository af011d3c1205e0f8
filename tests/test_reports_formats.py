"""Tables, plots, reports and the terminal's summary, rendered from made-up records."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import ROOT
from sample_runs import GOLDEN, GOLDEN_FILES, RUN, environment, latency, record, sample

from reports import Metric, Record, Run, claims, formats, markdown, plots, tables_csv, usual_formats
from reports.core.arrange import VIEWS, Arrangement, Series
from reports.core.markup import code, escape, table
from reports.core.pictures import MOST_PICTURES, Picture, pictures
from reports.core.summary import answers, terminal_summary
from reports.core.tables import COLUMNS, frame
from reports.core.units import quantity, round_quantity, with_bounds
from reports.plots import _apart, _spread

HOSTILE = "my|op<b>*[x](y)`_z_$"


def run_of(records: Iterable[Record], **changes: Any) -> Run:
    return Run(Path("runs") / RUN, environment() | changes, list(records))


def render(*runs: Run) -> dict[str, str | bytes]:
    return {
        path: content for output in usual_formats().values() for path, content in output.serialize(list(runs)).items()
    }


def text_of(name: str, *runs: Run) -> str:
    found = {path: text for made in (claims, markdown, tables_csv) for path, text in made.serialize(list(runs)).items()}
    return str(found[name])


def drawn(*runs: Run) -> dict[str, Picture]:
    return {picture.path: picture for picture in pictures(Arrangement(list(runs)))[0]}


def rows_of(name: str, *runs: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text_of(name, *runs))))


# discovery


def test_formats_are_found_in_their_order() -> None:
    assert list(usual_formats()) == ["csv", "claims", "devices", "cheapest", "plots", "detail", "markdown", "html"]
    on_request = ["github", "junit", "github-action-benchmark", "bencher", "parquet", "roofs"]
    assert list(formats()) == [*usual_formats(), *on_request]


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_golden_files(name: str) -> None:
    """If a change is meant, `python tests/sample_runs.py` writes them anew; look at the difference."""
    assert text_of(name, sample()) == (GOLDEN / name).read_text(encoding="utf-8")


def test_rendering_leaves_torch_out() -> None:
    program = (
        "import sys; from sample_runs import sample; from reports import formats; "
        "[output.serialize([sample()]) for output in formats().values()]; print('torch' in sys.modules)"
    )
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", program], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# CSV


def test_csv_begins_with_the_agreed_columns_then_further_axes() -> None:
    run = run_of([latency("ddf", "torch", 7, 1e-3, se_ratio=0.2, head=2), latency("conv", "torch", 7, 1e-3)])
    header = text_of("tables/latency.csv", run).splitlines()[0]
    assert header == ",".join(COLUMNS) + ",head,se_ratio,case,run"
    agreed = (
        "suite,op,impl,device,dtype,layout,direction,batch,channels,height,width,kernel_size,stride,dilation,combine,"
    )
    assert header.startswith(agreed + "metric,unit,value,low,high,status,reason,")
    first, *_, last = rows_of("tables/latency.csv", run)
    assert (first["head"], first["se_ratio"], first["combine"]) == ("2", "0.2", "mul")
    assert (last["head"], last["se_ratio"], last["combine"]) == ("", "", "")


def test_csv_counts_and_axes_are_exact_integers() -> None:
    big = 3_776_000_000_001
    counted = [Metric("macs", "MAC", float(big)), Metric("params", "1", 137532), Metric("peak_memory", "B", 4096.0)]
    (macs, params, memory) = rows_of(
        "tables/flops.csv", run_of([record("flops", "conv", "torch", 56, metrics=counted)])
    )
    assert (macs["value"], params["value"], memory["value"]) == (str(big), "137532", "4096")
    assert (macs["height"], macs["batch"], macs["low"]) == ("56", "1", "")


def test_csv_floats_lose_nothing() -> None:
    value = 0.1 + 0.2
    (row,) = rows_of("tables/x.csv", run_of([record("x", "conv", "torch", metrics=[Metric("t", "s", value)])]))
    assert float(row["value"]) == value


def test_csv_says_why_there_is_no_number() -> None:
    rows = rows_of("tables/latency.csv", sample())
    (crashed,) = [row for row in rows if row["status"] == "crashed"]
    assert (crashed["metric"], crashed["value"], crashed["reason"]) == ("", "", "killed by SIGSEGV")
    counted = rows_of("tables/flops.csv", sample())
    assert {(r["status"], r["reason"], r["value"]) for r in counted if r["metric"] == "macs_fvcore"} == {
        ("skipped", "fvcore is not installed", "")
    }
    assert {r["status"] for r in counted if r["metric"] == "macs"} == {"ok"}


def test_frame_holds_what_the_csv_holds() -> None:
    records = [made for made in sample().records if made.suite == "latency"]
    assert frame(records).to_csv(index=False) == text_of("tables/latency.csv", sample())
    assert isinstance(frame(records)["height"][0], int)


def test_suite_nobody_knows_gets_tables_of_all_its_metrics() -> None:
    made = record("sorcery", "conv", "torch", 7, metrics=[Metric("mana", "J", 12.5), Metric("spells", "1", 3)])
    files = render(run_of([made]))
    assert "| case | mana (J) | spells |" in str(files["tables/sorcery.md"])
    assert "| conv/torch | ok | 12.5 J | 3 |" in str(files["tables/sorcery.md"])
    assert rows_of("tables/sorcery.csv", run_of([made]))[0]["value"] == "12.5"
    assert not [path for path in files if path.startswith("plots/")]


# plots


def test_hot_cold_and_device_latency_have_a_picture_each() -> None:
    run = sample()
    run.records[0].metrics.append(Metric("latency_device", "s", 1e-3, 9e-4, 2e-3, "less"))
    clocks = ["latency_device", "latency_wall", "latency_cold", "latency_wall_over_dwconv"]
    names = [*(f"latency-{clock}" for clock in clocks), "flops-macs"]
    assert sorted(drawn(run)) == sorted(f"plots/{name}" for name in names)
    files = plots.serialize([run])
    assert sorted(files) == sorted(f"plots/{name}.{kind}" for name in names for kind in ("svg", "png"))


def test_latency_is_drawn_against_resolution() -> None:
    picture = drawn(sample())["plots/latency-latency_wall"]
    assert (picture.x_axis, picture.ticks) == ("resolution", {7.0: "7", 14.0: "14", 28.0: "28"})
    assert list(picture.lines) == [
        Series("conv", "torch"),
        Series("dwconv", "torch"),
        Series("dyfilter", "torch"),
        Series("ddf_op", "composite"),
        Series("ddf_op", "native"),
    ]
    points = picture.lines[Series("dwconv", "torch")]
    assert [(x, metric.value) for x, metric in points] == [(7.0, 2e-5), (14.0, 8e-5), (28.0, 32e-5)]
    assert picture.missing == [
        "dyfilter/torch at 14 (skipped)",
        "dyfilter/torch at 28 (does not fit)",
        "ddf_op/native at 7 (crashed)",
    ]
    for part in ("Example CPU", "batch 1", "256 channels", "float32"):
        assert part in picture.where


def test_oblong_resolution_stands_at_the_side_of_an_equal_square() -> None:
    oblong = latency("conv", "torch", 7, 1e-3)
    oblong.axes = {**oblong.axes, "height": 200, "width": 50}
    ticks = drawn(run_of([latency("conv", "torch", 7, 1e-3), oblong]))["plots/latency-latency_wall"].ticks
    assert ticks == {7.0: "7", 100.0: "200×50"}


def test_other_axes_are_drawn_against_where_the_resolution_stays() -> None:
    run = run_of(latency("conv", "torch", 7, 1e-3, channels=channels) for channels in (64, 128))
    picture = drawn(run)["plots/latency-latency_wall"]
    assert (picture.x_axis, picture.ticks) == ("channels", {64.0: "64", 128.0: "128"})


def test_counts_have_one_series_an_op_whatever_its_impls() -> None:
    made = [
        record("params", op, impl, metrics=[Metric("params", "1", 2560)])
        for op, impl in (("conv", "torch"), ("ddf", "native"), ("ddf", "composite"))
    ]
    picture = drawn(run_of(made))["plots/params-params"]
    assert (picture.x_axis, [series.label for series in picture.lines]) == (None, ["conv", "ddf"])


def test_what_a_log_axis_cannot_show_is_said() -> None:
    made = [record("params", op, "torch", metrics=[Metric("params", "1", n)]) for op, n in (("ddf_op", 0), ("conv", 9))]
    assert drawn(run_of(made))["plots/params-params"].missing == ["ddf_op (is 0)"]


def test_variants_of_an_op_are_told_apart() -> None:
    made = [latency("ddf", "torch", size, 1e-3, combine=combine) for size in (7, 14) for combine in ("mul", "add")]
    lines = drawn(run_of(made))["plots/latency-latency_wall"].lines
    assert [series.label for series in lines] == ["ddf/torch add", "ddf/torch mul"]


def test_pictures_are_limited_and_the_report_says_so() -> None:
    made = [
        latency("conv", "torch", size, 1e-3, batch=batch)
        for batch in range(1, 9)
        for size in ((7, 14) if batch > 1 else (7, 14, 28))
    ]
    run = run_of([*made, *sample().records])
    found, left_out = pictures(Arrangement([run]))
    assert len(found) == MOST_PICTURES
    assert left_out == 2 * 8 + 2 - MOST_PICTURES
    first = {picture.metric: picture for picture in reversed(found)}
    assert set(first) == {"latency_wall", "latency_cold", "latency_wall_over_dwconv", "macs"}
    assert "batch 1," in first["latency_wall"].where
    assert f"{left_out} more combinations of axes are not drawn" in text_of("report.md", run)


def test_plots_are_the_same_byte_for_byte() -> None:
    assert plots.serialize([sample()]) == plots.serialize([sample()])


def test_plots_are_images_without_a_date() -> None:
    for path, content in plots.serialize([sample()]).items():
        assert isinstance(content, bytes)
        if path.endswith(".png"):
            assert content.startswith(b"\x89PNG")
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")
            assert b"<dc:date>" not in content


def test_an_op_has_one_colour_in_all_plots() -> None:
    """Also where other ops are absent, and for ops that no table names."""
    made = [latency(op, "torch", size, 1e-3) for op in ("conv", "alpha", "zeta") for size in (7, 14)]
    counted = [record("params", "zeta", "torch", metrics=[Metric("params", "1", 5)])]
    files = plots.serialize([run_of([*made, *counted])])
    conv, zeta = b"#0072b2", b"#882255"
    for path, ops in {"plots/latency-latency_wall.svg": {conv, zeta}, "plots/params-params.svg": {zeta}}.items():
        content = files[path]
        assert isinstance(content, bytes)
        assert {color for color in (conv, zeta) if color in content} == ops


def test_names_are_drawn_as_they_are() -> None:
    """A name with dollar signs is no formula, which would fail to parse."""
    made = [latency(op, "torch", size, 1e-3) for op in (r"$\frac$", "_hidden", HOSTILE) for size in (7, 14)]
    plots.serialize([run_of(made)])


def test_labels_are_moved_apart_no_further_than_needed() -> None:
    assert _spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert _spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert _spread([0.0, 0.0, 0.5], 0.2) == pytest.approx([0.0, 0.2, 0.5])
    assert _spread([1.0, 1.0, 1.0], 0.2) == pytest.approx([0.6, 0.8, 1.0])
    crowded = _spread([i / 20 for i in range(20)], 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in pairwise(crowded))


def test_ticks_too_near_to_another_have_no_label() -> None:
    assert _apart({224.0: "224", 245.0: "200×300", 7.0: "7"}, 0.2) == {7.0: "7", 224.0: "224"}


def test_latency_over_the_best_depthwise_convolution_of_its_place() -> None:
    run = run_of([*sample().records, latency("dwconv", "native", 28, 1e-3)])
    picture = drawn(run)["plots/latency-latency_wall_over_dwconv"]
    (_, last) = picture.lines[Series("ddf_op", "native")]
    assert (last[0], last[1].value) == (28.0, pytest.approx(2.2 / 2))
    assert last[1].low == pytest.approx(2.2 * 0.98 / (2 * 1.04))
    assert [metric.value for _, metric in picture.lines[Series("dwconv", "torch")]] == [1, 1, 1]
    assert picture.lines[Series("dwconv", "native")][0][1].value == pytest.approx(1e-3 / 32e-5)


def test_without_a_depthwise_convolution_nothing_is_relative_to_it() -> None:
    run = run_of(latency("conv", "torch", size, 1e-3) for size in (7, 14))
    assert "plots/latency-latency_wall_over_dwconv" not in drawn(run)


def test_what_was_not_measured_is_drawn_hollow_by_its_closed_form() -> None:
    def taken(op: str, size: int, name: str, value: float, **changes: Any) -> Record:
        return record("memory", op, "torch", size, metrics=[Metric(name, "B", value)], **changes)

    absent = {"status": "does_not_fit", "reason": "needs 118 GB"}
    made = [
        taken("dyfilter", 7, "peak_memory", 1e6),
        taken("dyfilter", 14, "peak_memory_formula", 4e6, **absent),
        taken("ddf", 14, "peak_memory_formula", 5e6, status="skipped"),
        taken("conv", 14, "peak_memory", 2e6),
    ]
    picture = drawn(run_of(made))["plots/memory-peak_memory"]
    points = {s.label: [(x, m.value) for x, m in found] for s, found in picture.by_formula.items()}
    assert points == {"dyfilter/torch": [(14.0, 4e6)], "ddf/torch": [(14.0, 5e6)]}
    assert [s.label for s in picture.lines] == ["conv/torch", "dyfilter/torch"]
    assert "dyfilter/torch at 14 (does not fit, hollow by closed form)" in picture.missing
    assert render(run_of(made))


# markdown


def cells(line: str) -> list[str]:
    """The cells of a table's row, as GitHub splits it."""
    return re.split(r"(?<!\\)\|", line.strip())[1:-1]


def test_hostile_names_stay_text() -> None:
    run = run_of([latency(HOSTILE, "torch", size, 1e-3) for size in (7, 14)] + sample().records)
    run.records[0].reason = "a | b\nc"
    run.records[0].status = "failed"
    run.records[0].metrics = []
    for path, content in markdown.serialize([run]).items():
        text = str(content)
        assert "<b>" not in text, path
        blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        assert blocks
        for block in blocks:
            assert len({len(cells(line)) for line in block.splitlines()}) == 1, block
    assert r"a \| b c" in text_of("report.md", run)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("ddf_op/native", "ddf_op/native"),
        ("_x_ a_ _b", r"\_x\_ a\_ \_b"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("a|b\n c", r"a\|b c"),
        ("[a](b) *c* `d` ~e~ $f$", r"\[a\](b) \*c\* \`d\` \~e\~ \$f\$"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_code_cannot_be_ended_from_inside() -> None:
    assert code("a```b") == "````\na```b\n````\n"
    assert table(["a", "b"], [["1", "x|y"]], numbers=1) == "| a | b |\n| --- | ---: |\n| 1 | x\\|y |\n"


def test_links_of_the_report_lead_somewhere() -> None:
    files = render(sample())
    targets = re.findall(r"\]\(([^)]+)\)", str(files["report.md"]))
    assert len(targets) == 13
    assert set(targets) <= set(files)


def test_report_begins_with_the_answer() -> None:
    title, first, second = [line for line in text_of("report.md", sample()).splitlines() if line][:3]
    assert title == f"# ddfbench: {RUN}"
    assert first.startswith(
        "**Latency, warm, host clock** (Example CPU, cpu, float32, nchw, forward, batch 1, 256 channels"
    )
    assert second.startswith("- **dwconv/torch** takes 320 µs (314 to 333), 0.0200 (0.0188 to 0.0212) times conv/torch")


def test_report_of_several_runs_shows_devices_side_by_side() -> None:
    other = sample()
    other.environment = environment("other", "Example GPU")
    text = text_of("report.md", sample(), other)
    assert "| device | resolution | unit |" in text
    assert "| cpu: Example CPU | 7×7 |" in text
    assert "| cpu: Example GPU | 28×28 |" in text
    assert text.count("**Latency, warm, host clock**") == 2
    assert [path for path in drawn(sample(), other) if "latency_wall-" in path] == [
        "plots/latency-latency_wall-cpu_Example_CPU",
        "plots/latency-latency_wall-cpu_Example_GPU",
    ]


def test_runs_on_the_same_device_are_told_apart() -> None:
    other = sample()
    other.environment = environment("other")
    text = text_of("report.md", sample(), other)
    assert f"cpu: Example CPU ({RUN})" in text
    assert "cpu: Example CPU (other)" in text


@pytest.mark.parametrize("records", [[], sample().records[3:4], [record("latency", "conv", "torch", status="oom")]])
def test_a_run_without_numbers_is_still_reported(records: list[Record]) -> None:
    """Nothing recorded, or nothing that went well, and a run.json that says next to nothing."""
    bare = Run(Path("runs/bare"), {"schema_version": 1}, records)
    files = render(bare)
    assert "# ddfbench: bare" in str(files["report.md"])
    assert ("## Failed" in str(files["report.md"])) == bool(records)
    assert not [path for path in files if path.startswith("plots/")]
    assert terminal_summary(bare)


def test_a_case_that_failed_after_it_was_timed_shows_no_time() -> None:
    run = sample()
    run.records[2].status, run.records[2].reason = "crashed", "killed by SIGSEGV"
    assert Series("ddf_op", "composite") in drawn(run)["plots/latency-latency_wall"].lines
    assert len(drawn(run)["plots/latency-latency_wall"].lines[Series("ddf_op", "composite")]) == 2
    assert (
        "| 7×7 | ms | 1.00 (0.980 to 1.04) | 0.0200 (0.0196 to 0.0208) | 200 (196 to 208) | crashed | crashed |"
        in text_of("report.md", run)
    )


def test_unknown_settings_and_statuses_break_nothing() -> None:
    run = sample()
    run.records[0].settings = {"stopped": "early", "x": None, "differences": None, "roof": 3}
    run.records[1].status = "bewitched"
    assert "1 bewitched" in terminal_summary(run)
    render(run)


def test_long_tables_are_cut_and_say_so() -> None:
    many = run_of(latency("conv", "torch", size, 1e-3) for size in range(1, 1101))
    assert "and 1060 more rows" in text_of("report.md", many)
    assert "and 100 more rows" in text_of("tables/latency.md", many)
    assert len(rows_of("tables/latency.csv", many)) == 1100 * 5


# the answer


def test_answer_takes_the_largest_resolution_that_compares() -> None:
    """At 56 there is a baseline alone, so 28 is told; each op by its fastest impl."""
    run = run_of([*sample().records, latency("dwconv", "torch", 56, 1e-3)])
    (answer, _) = answers(Arrangement([run]))
    assert "28×28" in answer.where
    assert [cost.series.label for cost in answer.costs] == ["dwconv/torch", "ddf_op/native", "conv/torch"]
    assert [(series.label, made.status) for series, made in answer.absent] == [("dyfilter/torch", "does_not_fit")]


def test_ratios_take_both_bounds_at_their_worst() -> None:
    (answer, _) = answers(Arrangement([sample()]))
    ratio = answer.costs[1].ratios["dwconv/torch"]
    assert ratio.value == pytest.approx(2.2 / 2)
    assert ratio.low == pytest.approx(2.2 * 0.98 / (2 * 1.04))
    assert ratio.high == pytest.approx(2.2 * 1.04 / (2 * 0.98))


def test_device_clock_is_the_headline_where_there_is_one() -> None:
    run = sample()
    for made in run.records[:3]:
        made.metrics.append(Metric("latency_device", "s", 1e-3, 9e-4, 2e-3, "less"))
    assert answers(Arrangement([run]))[0].view.metric == "latency_device"


def test_terminal_summary_tells_answers_then_failures_then_counts() -> None:
    text = terminal_summary(sample())
    assert re.search(
        r"^  ddf_op/native +352 µs \(345 to 366\) +1\.10 +0\.0220 +86\.0 % of the copy roof$", text, re.MULTILINE
    )
    assert "dyfilter/torch  does not fit: needs 118 GB, 25 GB are free" in text
    assert re.search(r"Failed: 1\n  latency:ddf_op/native@.*  crashed: killed by SIGSEGV\n", text)
    assert text.endswith("18 cases: 15 ok, 1 skipped, 1 does not fit, 1 crashed")


def test_a_suite_without_views_is_one_table_in_the_report_and_on_the_terminal() -> None:
    """Ops in order of appearance, names of metrics a word a line, one unit a column."""
    counted = {"resnet18": (11_689_512, 1.81e9), "resnet101": (44_549_160, 7.8e9)}
    run = run_of(
        record(
            "networks",
            op,
            "torch",
            224,
            variant=variant,
            metrics=[Metric("params", "1", n), Metric("macs_x", "MAC", m)],
        )
        for op, (n, m) in counted.items()
        for variant in ("base", "se")
    )
    text = terminal_summary(run)
    lines = text.splitlines()
    assert lines[0].startswith("networks (cpu, ")
    assert [line.split() for line in lines[1:4]] == [["macs"], ["x"], ["case", "params", "GMAC"]]
    assert [line.split()[:2] for line in lines[4:8]] == [[op, variant] for op in counted for variant in ("base", "se")]
    assert lines[4].endswith("  11,689,512  1.81")
    assert lines[7].endswith("  44,549,160  7.80")
    files = formats()["markdown"].serialize([run])
    for path in ("report.md", "tables/networks.md"):
        page = str(files[path])
        assert "| case | params | macs_x (GMAC) |" in page
        assert page.index("| resnet18 se | 11,689,512 | 1.81 |") < page.index("| resnet101 base | 44,549,160 | 7.80 |")


def test_terminal_summary_names_no_more_failures_than_fit() -> None:
    made = [record("latency", "conv", "torch", size, status="failed", reason="wrong") for size in range(1, 31)]
    text = terminal_summary(run_of(made))
    assert text.count("failed: wrong") == 20
    assert "and 10 more" in text


def test_views_name_their_unit_once() -> None:
    assert len({(view.suite, view.name) for view in VIEWS}) == len(VIEWS)
    assert {view.sentence.format("x") != view.sentence for view in VIEWS} == {True}


# units


@pytest.mark.parametrize(
    ("metric", "unit", "value", "shown"),
    [
        ("latency_wall", "s", 1.234e-3, "1.23 ms"),
        ("latency_wall", "s", 0.999e-3, "999 µs"),
        ("latency_wall", "s", 2.0, "2.00 s"),
        ("latency_wall", "s", 0.0, "0 ns"),
        ("macs", "MAC", 1_849_688_064, "1.85 GMAC"),
        ("peak_memory", "B", 1e6, "1.00 MB"),
        ("peak_memory", "B", 512, "512 B"),
        ("roof_copy", "B/s", 4.8e12, "4.80 TB/s"),
        ("roof_arithmetic", "MAC/s", 4.1e10, "41.0 GMAC/s"),
        ("params", "1", 150_994_944, "150,994,944"),
        ("page_faults", "1", 0.0, "0"),
        ("max_error", "1", 2.5e-7, "2.50e-07"),
        ("roof_fraction", "1", 1.064, "106 %"),
        ("power", "W", 312.4, "312 W"),
        ("nonsense", "1", float("nan"), "nan"),
    ],
)
def test_quantity(metric: str, unit: str, value: float, shown: str) -> None:
    assert quantity(metric, unit, value) == shown


def test_bounds_share_the_unit_of_the_value() -> None:
    assert with_bounds(Metric("latency_wall", "s", 1.1e-3, 0.9e-3, 1.3e-3)) == "1.10 ms (0.900 to 1.30)"
    assert with_bounds(Metric("latency_wall", "s", None)) == ""


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [("s", 1e-5, "10 µs"), ("s", 1e-3, "1 ms"), ("s", 0.2, "200 ms"), ("1", 1e7, "10,000,000"), ("MAC", 5e9, "5 GMAC")],
)
def test_round_quantity(unit: str, value: float, shown: str) -> None:
    assert round_quantity("metric", unit, value) == shown


def test_places_where_a_metric_means_nothing_have_no_row() -> None:
    """Memory kept for backward, of forward passes; where all cases were skipped there is a row that says so."""
    kept = Metric("saved_memory", "B", 1024, better="less")
    records = [
        record("memory", "conv", "torch", 7, metrics=[Metric("peak_memory", "B", 2048)]),
        record("memory", "dyfilter", "torch", 7, status="skipped", reason="too long"),
        record("memory", "conv", "torch", 7, metrics=[kept], direction="forward_backward"),
        record("memory", "conv", "torch", 14, status="skipped", reason="no", direction="forward_backward"),
    ]
    text = text_of("tables/memory.md", Run(Path("runs/x"), environment(), records))
    section = text.partition("## Memory kept for backward")[2].partition("## All metrics")[0]
    assert [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][2:] == [
        "7×7",
        "14×14",
    ]


def test_both_roofs_are_told_with_the_operations_of_the_op() -> None:
    """18 operations an output of `ddf_op`, 9 of a depthwise convolution; no row for what has no roofs."""
    known = {"latency_wall": 1e-3, "floor_bytes": 2e6, "roof_copy": 4e9, "roof_arithmetic": 3e10}
    metrics = [Metric(name, "1", value) for name, value in known.items()]
    cases = [
        record("latency", op, "torch", 56, metrics=[*metrics, Metric("operations", "1", operations)])
        for op, operations in (("ddf_op", 18e6), ("dwconv", 9e6))
    ]
    every = [*metrics, Metric("operations", "1", 9e6)]
    backward = record("latency", "conv", "torch", 56, metrics=every, direction="forward_backward")
    run = Run(Path("runs/one"), environment(), [*cases, backward, record("latency", "conv", "torch", 7)])
    rows = str(formats()["roofs"].serialize([run])["roofs.md"]).splitlines()[4:]
    assert rows == [
        "| ddf_op/torch | nchw | 3 | 56×56 | 1.00 ms | 50.0 % | 60.0 % |",
        "| dwconv/torch | nchw | 3 | 56×56 | 1.00 ms | 50.0 % | 30.0 % |",
    ]
    assert formats()["roofs"].serialize([Run(Path("runs/none"), environment(), [])]) == {}
