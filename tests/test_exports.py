"""The formats that other programs read, against the schema or the reader of each; of runs and of comparisons."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Runner
from sample_runs import environment, latency, record, sample, sample_comparison

from reports import Metric, Record, Run, comparison_formats, formats
from reports.core.records import RunDirectory
from reports.core.verdicts import Comparison, Verdict

jsonschema = pytest.importorskip("jsonschema")
etree = pytest.importorskip("lxml.etree")

#: What Jenkins, GitLab and the reporters for GitHub agree on; there is no standard.
JUNIT = ROOT / "tests" / "schemas" / "junit.xsd"
#: As bencher.dev/bmf.json has it, and the limits of its reference.
BENCHER = {
    "type": "object",
    "propertyNames": {"minLength": 1, "maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "propertyNames": {"minLength": 1, "maxLength": 64},
        "additionalProperties": {
            "type": "object",
            "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
}
#: The action's README: an array of name, unit, value, and optional range and extra.
ACTION = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "unit": {"type": "string"},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
    },
}
HOSTILE = "my|op<b>&\"']]>`**_x_ @team\x00\x1b[31m"


def hostile_run() -> Run:
    """Every status, and names that are markup in each format."""
    records: list[Record] = [latency(HOSTILE, "native", 56, 1e-3), latency("conv", "torch", 7, 2e-3)]
    for status in ("skipped", "does_not_fit", "oom", "timeout", "crashed", "failed"):
        records.append(record("latency", HOSTILE, status, 7, status=status, reason=f"{HOSTILE} {status}"))
    odd = [Metric("count", "1", 3), Metric("none", "s", None, better="less"), Metric("inf", "s", float("inf"))]
    records.append(record("flops", "conv", "torch", 7, metrics=odd))
    return Run(Path("runs") / "hostile", environment(device=HOSTILE), records)


def hostile_comparison() -> Comparison:
    made = sample_comparison()
    timed = {"unit": "s", "base": 1e-3, "new": 2e-3, "ratio": 2.0, "p": 1e-4}
    made.verdicts.append(Verdict(HOSTILE, "latency_wall", verdict="slower", worse=True, reason=HOSTILE, **timed))
    made.base = HOSTILE
    return made


def exported(name: str) -> list[dict[str, str | bytes]]:
    """The files of the format `name`: of a run, of two side by side, of nothing, and of two comparisons."""
    runs = [[sample()], [hostile_run()], [sample(), hostile_run()], [Run(Path("runs/none"), environment(), [])]]
    comparisons = [sample_comparison(), hostile_comparison(), Comparison("ab", "a", "b")]
    told = [comparison_formats()[name].serialize_comparison(comparison) for comparison in comparisons]
    return [*(formats()[name].serialize(some) for some in runs), *told]


def test_the_exports_are_written_on_request_alone() -> None:
    on_request = {name for name, output in formats().items() if getattr(output, "ON_REQUEST", False)}
    assert on_request == {"junit", "github", "github-action-benchmark", "bencher", "parquet", "roofs"}
    assert on_request - {"roofs"} <= comparison_formats().keys()


# JUnit


def junit(files: dict[str, str | bytes]) -> Any:
    return etree.fromstring(str(files["junit.xml"]).encode())


def test_junit_is_what_its_readers_expect() -> None:
    schema = etree.XMLSchema(etree.parse(JUNIT))
    for files in exported("junit"):
        schema.assertValid(junit(files))
    with pytest.raises(etree.DocumentInvalid):
        schema.assertValid(etree.fromstring("<testsuites><testcase name='a'/></testsuites>"))


def test_junit_tells_failures_from_errors_and_skips() -> None:
    suite = junit(formats()["junit"].serialize([hostile_run()])).find("testsuite")
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8",
        "failures": "1",
        "errors": "3",
        "skipped": "2",
    }
    assert suite.find("testcase").get("name").startswith("latency:my|op<b>&\"']]>`**_x_ @team\ufffd\ufffd[31m/native")
    told = junit(comparison_formats()["junit"].serialize_comparison(sample_comparison()))
    failed = {
        (case.get("name").split("/")[0], case.find("failure").get("type"))
        for case in told.iter("testcase")
        if case.find("failure") is not None
    }
    assert failed == {("latency:ddf_op", "slower"), ("params:ddf", "changed")}
    assert "slower, +50.0 % (+46.0 % to +53.0 %)" in {mark.get("message") for mark in told.iter("failure")}
    assert told.find("testsuite").get("errors") == "1"


# github-action-benchmark and Bencher


def test_the_action_can_read_it() -> None:
    for files in exported("github-action-benchmark"):
        assert files
        for text in files.values():
            jsonschema.validate(json.loads(str(text)), ACTION)


def test_the_action_is_given_smaller_is_better_and_bigger_apart() -> None:
    files = formats()["github-action-benchmark"].serialize([sample()])
    smaller, bigger = (json.loads(str(files[f"github-action-benchmark{word}.json"])) for word in ("", "-bigger"))
    assert {entry["name"].split()[-1] for entry in bigger} == {"roof_fraction"}
    assert {entry["name"].split()[-1] for entry in smaller} == {"latency_wall", "latency_cold", "max_error"}
    case = sample().records[0].case
    assert smaller[0] == {"name": f"{case} latency_wall", "unit": "s", "value": 1e-3, "range": "0.00098 to 0.00104"}
    told = comparison_formats()["github-action-benchmark"].serialize_comparison(sample_comparison())
    ratios = json.loads(str(told["github-action-benchmark.json"]))
    assert [entry["value"] for entry in ratios] == [1.01, 1.5, 0.1, 3.0, 1.1]


def test_bencher_can_read_it() -> None:
    for files in exported("bencher"):
        jsonschema.validate(json.loads(str(files["bencher.json"])), BENCHER)
    case = sample().records[0].case
    found = json.loads(str(formats()["bencher"].serialize([sample()])["bencher.json"]))[case]
    assert found["latency_wall"] == {"value": 1e-3, "lower_value": 0.98 * 1e-3, "upper_value": 1.04 * 1e-3}
    side_by_side = json.loads(str(formats()["bencher"].serialize([sample(), hostile_run()])["bencher.json"]))
    assert f"Example CPU: {case}" in side_by_side, "two devices do not overwrite one another"


# Parquet


def test_parquet_has_the_table_with_its_types() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    for files in exported("parquet"):
        (content,) = files.values()
        assert isinstance(content, bytes)
        table = parquet.read_table(pyarrow.BufferReader(content))
        assert json.loads(table.schema.metadata[b"ddfbench"])
    table = parquet.read_table(pyarrow.BufferReader(formats()["parquet"].serialize([sample()])["records.parquet"]))
    assert [str(table.schema.field(name).type) for name in ("op", "height", "value", "low")] == [
        *("string", "int64", "double", "double")
    ]
    first = table.to_pylist()[0]
    assert (first["op"], first["height"], first["metric"], first["value"]) == ("conv", 7, "latency_wall", 1e-3)
    assert table.num_rows == len(str(formats()["csv"].serialize([sample()])["tables/latency.csv"]).splitlines()) + 9 - 1
    told = comparison_formats()["parquet"].serialize_comparison(hostile_comparison())["comparison.parquet"]
    assert parquet.read_table(pyarrow.BufferReader(told)).to_pylist()[-1]["case"] == HOSTILE


def test_without_pyarrow_one_line_says_what_to_do(runner: Runner, tmp_path: Path) -> None:
    run = written(tmp_path / "a")
    (tmp_path / "pyarrow.py").write_text("raise ImportError\n")
    done = runner("report", str(run), "--format", "parquet", environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "pip install pyarrow" in done.stderr
    assert "Traceback" not in done.stderr


# GitHub


def test_a_page_for_github_is_short_enough_and_closed() -> None:
    for files in exported("github"):
        page(files)
    long = sample_comparison()
    long.verdicts = [v for v in long.verdicts for _ in range(2000)]
    many = hostile_run()
    many.records = many.records * 2000
    for files in (
        comparison_formats()["github"].serialize_comparison(long),
        formats()["github"].serialize([many]),
    ):
        assert page(files).endswith("\nWhat does not fit here is in the run's other files.\n")


def page(files: dict[str, str | bytes]) -> str:
    text = str(files["github.md"])
    assert len(text) < 65_536
    assert text.count("<details>") == text.count("</details>")
    return text


def test_markup_on_the_page_stays_text() -> None:
    for text in (
        page(formats()["github"].serialize([hostile_run()])),
        page(comparison_formats()["github"].serialize_comparison(hostile_comparison())),
    ):
        outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
        assert "<b>" not in outside
        assert "@team" not in outside
        assert "\x1b" not in text
        rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
        tables = "\n".join(rows).split("| --- |")
        assert len(tables) > 1


def test_the_page_says_the_answer_first() -> None:
    text = page(comparison_formats()["github"].serialize_comparison(sample_comparison()))
    assert text.startswith("## ddfbench compare: Regression: 1 slower, 2 changed")
    assert "| slower | `latency:ddf_op/native@cpu:" in text


# the commands


def written(path: Path) -> Path:
    directory = RunDirectory.create(path, environment())
    for item in sample().records:
        directory.append(item)
    return path


def test_report_and_compare_write_what_is_asked_for(runner: Runner, tmp_path: Path) -> None:
    run = written(tmp_path / "a")
    done = runner("report", str(run), "--format", "junit,bencher", "--output", "told")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "told").iterdir()) == ["bencher.json", "junit.xml"]
    runner("compare", str(run), str(run), "--format", "github,csv", "--output", "compared")
    assert sorted(path.name for path in (tmp_path / "compared").iterdir()) == ["comparison.csv", "github.md"]
    done = runner("compare", str(run), str(run), "--format", "plots", "--output", "compared")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--format: 'plots' is not one of terminal, markdown, csv, json, html, github, junit" in done.stderr
