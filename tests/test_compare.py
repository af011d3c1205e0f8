"""Comparing two runs, through the command line as a user would and on made-up runs whose truth is known."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Runner
from sample_runs import COMPARISON_FILES, GOLDEN, environment, record, sample_comparison

from reports import Block, Metric, Record, Run
from reports.core.compare import _logs, compare
from reports.core.records import RunDirectory, RunError, load_run
from reports.core.verdict_tables import as_csv, as_json, terminal
from reports.core.verdicts import CHANGED, Comparison, Verdict

PUBLISHED = ROOT / "reports" / "published" / "intel-xeon-2.50ghz-2-cores" / "quick"
CASES = 12
#: The case that the tests change.
ONE = 5

Change = Callable[[list[Record]], object]


def made(processes: int, seed: int = 0, cases: int = CASES) -> list[Record]:
    """Latencies with a noise of 1 to 3 % between processes, some of them disturbed, and counts."""
    generator = np.random.default_rng(seed)
    records = []
    for case in range(cases):
        samples = []
        for metric, seconds in (("latency_wall", 1e-3 * (1 + case)), ("latency_cold", 2e-3 * (1 + case))):
            for process in range(processes):
                level = np.exp(0.01 * (1 + case % 3) * generator.standard_normal())
                level *= 1 + 0.3 * (generator.random() < 0.05)
                values = seconds * level * np.exp(0.02 * generator.standard_t(3, 20))
                samples.append(Block(metric, process, 0, 1.0, 1, [float(v) for v in values]))
        metrics = [Metric("max_error", "1", 1e-7 * generator.random(), better="less"), Metric("macs", "MAC", 9.0)]
        metrics += [Metric("page_faults", "1", generator.random(), 0.0, 1.0, "less")]
        settings = {"threads": 2, "malloc": "steady"}
        records.append(
            record("latency", "conv", "torch", 7 + case, metrics=metrics, samples=samples, settings=settings)
        )
    for case in range(3):
        counts = [Metric("params", "1", 100.0 + case, better="less"), Metric("params_formula", "1", 7, better="less")]
        records.append(record("params", "conv", "torch", channels=64 << case, metrics=counts))
    return records


def write(path: Path, records: list[Record], **changes: Any) -> Path:
    RunDirectory.create(path, environment() | {"warnings": []} | changes)
    lines = [json.dumps(r.to_json()) + "\n" for r in records]
    (path / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


def times(factor: float) -> Change:
    """All samples of one case times a factor."""

    def change(records: list[Record]) -> None:
        for block in records[ONE].samples:
            block.values = [factor * value for value in block.values]

    return change


@pytest.fixture
def told(runner: Runner, tmp_path: Path) -> Callable[..., tuple[int, dict[tuple[str, str], dict[str, str]], str]]:
    """Compares made-up runs by the command line: exit code, rows of the CSV by case and metric, terminal."""

    def tell(
        change: Change, *options: str, processes: int = 9, new: dict[str, Any] | None = None
    ) -> tuple[int, dict[tuple[str, str], dict[str, str]], str]:
        write(tmp_path / "base", made(processes))
        records = made(processes)
        change(records)
        write(tmp_path / "new", records, **(new or {}))
        done = runner("compare", "base", "new", "--output", "out", *options)
        assert "Traceback" not in done.stderr, done.stderr
        with (tmp_path / "out" / "comparison.csv").open() as file:
            rows = {(row["case"], row["metric"]): row for row in csv.DictReader(file)}
        return done.returncode, rows, done.stdout

    return tell


def name_of(case: int) -> str:
    return made(1)[case].case


def by_verdict(rows: dict[tuple[str, str], dict[str, str]]) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    for key, row in rows.items():
        found.setdefault(row["verdict"], set()).add(key)
    return found


# What must hold


def test_a_run_of_nine_processes_is_the_same_as_itself(runner: Runner, tmp_path: Path) -> None:
    write(tmp_path / "base", made(9))
    done = runner("compare", "base", "base", "--strict", "--output", "out")
    assert done.returncode == 0, done.stdout
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * CASES + 6
    assert {row["verdict"] for row in rows} == {"same"}
    assert done.stdout.startswith(f"No regression: {3 * CASES + 6} same.\n")


@pytest.mark.parametrize(
    ("factor", "verdict", "code"), [(1.5, "slower", 1), (1 / 1.5, "faster", 0), (1.02, "same", 0), (1.0, "same", 0)]
)
def test_a_factor_on_one_case_is_told_of_exactly_that_case(told: Any, factor: float, verdict: str, code: int) -> None:
    returned, rows, stdout = told(times(factor))
    timed = {(name_of(ONE), "latency_wall"), (name_of(ONE), "latency_cold")}
    found = by_verdict(rows)
    assert returned == code
    assert found[verdict] >= timed
    if verdict != "same":
        assert set(found) == {verdict, "same"}
        assert found[verdict] == timed
        assert stdout.startswith("Regression" if code else "No regression")
    for key in timed:
        assert float(rows[key]["ratio"]) == pytest.approx(factor, rel=1e-9)
        assert float(rows[key]["low"]) < factor < float(rows[key]["high"])


def test_a_missing_case_is_exit_4(told: Any) -> None:
    code, rows, stdout = told(lambda records: records.pop(ONE))
    assert code == 4
    assert by_verdict(rows)["missing"] == {(name_of(ONE), "")}
    assert stdout.startswith("Cases are missing or failed: 1 missing")


@pytest.mark.parametrize("options", [(), ("--strict",)])
def test_three_processes_are_ambiguous_and_told_how_many_would_do(told: Any, options: tuple[str, ...]) -> None:
    code, rows, stdout = told(times(1.5), *options, processes=3)
    assert code == (3 if options else 0)
    timed = {key for key in rows if key[1].startswith("latency")}
    assert by_verdict(rows)["ambiguous"] == timed
    assert {rows[key]["needed"] for key in timed} == {"4"}
    assert {rows[key]["detectable"] for key in timed} == {""}
    assert "4 processes on each side (--processes) make a verdict possible" in stdout
    assert stdout.count("3 processes cannot decide it, 4 can") == len(timed)


def test_the_published_run_of_three_processes_is_ambiguous_against_itself(runner: Runner) -> None:
    assert runner("compare", str(PUBLISHED), str(PUBLISHED)).returncode == 0
    strict = runner("compare", str(PUBLISHED), str(PUBLISHED), "--strict")
    assert strict.returncode == 3
    assert "60 ambiguous, 192 same" in strict.stdout.splitlines()[0]
    counts = runner("compare", str(PUBLISHED), str(PUBLISHED), "--strict", "--metric", "params,macs")
    assert counts.returncode == 0


def test_every_row_tells_the_smallest_effect_that_could_have_been_shown(told: Any) -> None:
    _, rows, stdout = told(times(1.5), "--all")
    for (_, metric), row in rows.items():
        if metric.startswith("latency"):
            assert 0.03 <= float(row["detectable"]) < 0.5
    lines = stdout.splitlines()
    header = next(line for line in lines if line.startswith("verdict"))
    column = slice(header.index("detectable") - 2, header.index("detectable") + len("detectable"))
    shown = [line for line in lines[lines.index(header) + 1 :] if line.startswith(("same", "slower"))]
    assert len(shown) == len(rows)
    assert all(line[column].strip().endswith(("%", "any")) for line in shown)


def test_two_separate_runs_of_the_same_program_are_the_same(tmp_path: Path) -> None:
    """Twenty pairs of runs with heavy tails and disturbed processes: at 5 %, more than four alarms are rare."""
    sides = [[Run(tmp_path, environment(), made(5, 2 * i + j)) for j in (0, 1)] for i in range(20)]
    alarms = sum(bool(compare(base, new, floor=0.0).of("slower", "faster")) for base, new in sides)
    assert alarms <= 4


def resampled(published: Run, seed: int) -> Run:
    """Nine processes with the noise of a real run: each has blocks drawn from one of that run's, every case apart."""
    generator = np.random.default_rng(seed)
    records = []
    for taken in published.records:
        samples = []
        for metric in dict.fromkeys(block.metric for block in taken.samples):
            for process in range(9):
                like = generator.integers(3)
                blocks = [b for b in taken.samples if (b.metric, b.process) == (metric, like)]
                drawn = [blocks[i] for i in generator.integers(len(blocks), size=len(blocks))]
                samples += [replace(block, process=process, round=i) for i, block in enumerate(drawn)]
        records.append(replace(taken, samples=samples))
    return replace(published, records=records)


@pytest.mark.parametrize("seed", range(2))
def test_the_noise_of_a_real_run_is_no_change_and_a_change_is_one(seed: int) -> None:
    published = load_run(PUBLISHED)
    base, new = resampled(published, seed), resampled(published, seed + 100)
    assert {v.verdict for v in compare(base, new).verdicts} == {"same"}
    changed = next(record for record in new.records if "ddf_op/native" in record.case and "h56" in record.case)
    for block in changed.samples:
        block.values = [1.5 * value for value in block.values]
    assert {v.case for v in compare(base, new).of("slower")} == {changed.case}


@pytest.mark.parametrize(
    ("factor", "floor", "verdict"),
    [
        (1.02, 0.03, "same"),
        (1.04, 0.03, "slower"),
        (1.02, 0.01, "slower"),
        (1 / 1.02, 0.03, "same"),
        (0.9, 0.2, "same"),
    ],
)
def test_what_is_below_the_floor_is_not_called_a_change(factor: float, floor: float, verdict: str) -> None:
    """Without noise every effect is significant."""
    sides = []
    for scale in (1.0, factor):
        samples = [Block("latency_wall", process, 0, 1.0, 1, [1e-3 * scale]) for process in range(5)]
        sides.append(run(record("latency", "conv", "torch", 7, samples=samples)))
    (found,) = compare(*sides, floor=floor).verdicts
    assert (found.verdict, found.detectable) == (verdict, pytest.approx(floor))


# Exact metrics


def exactly(value: float, better: str | None) -> Verdict:
    """The verdict on one exact metric that was 100."""
    sides = [
        run(record("memory", "conv", "torch", metrics=[Metric("peak_memory", "B", v, better=better)]))
        for v in (100.0, value)
    ]
    (verdict,) = compare(*sides).verdicts
    return verdict


def run(*records: Record, **changes: Any) -> Run:
    return Run(Path("runs/made"), environment() | {"warnings": []} | changes, list(records))


@pytest.mark.parametrize(
    ("value", "better", "verdict", "worse"),
    [
        (100.0, "less", "same", False),
        (101.0, "less", CHANGED, True),
        (99.0, "less", CHANGED, False),
        (99.0, "more", CHANGED, True),
        (101.0, None, CHANGED, False),
    ],
)
def test_counts_are_compared_exactly(value: float, better: str | None, verdict: str, worse: bool) -> None:
    found = exactly(value, better)
    assert (found.verdict, found.worse, found.p, found.detectable) == (verdict, worse, None, None)
    assert Comparison("compare", "a", "b", [found]).exit_code() == int(worse)


def test_a_count_for_the_worse_is_exit_1(told: Any) -> None:
    def change(records: list[Record]) -> None:
        records[-1].metrics[0].value = 103.0
        records[-2].metrics[0].value = 100.0

    code, rows, stdout = told(change)
    assert code == 1
    assert {(row["new"], row["worse"]) for row in rows.values() if row["verdict"] == CHANGED} == {
        ("103.0", "True"),
        ("100.0", "False"),
    }
    assert stdout.startswith("Regression: 2 changed")


@pytest.mark.parametrize(
    "metric",
    [
        Metric("max_error", "1", 1e-7, better="less"),
        Metric("process_memory", "B", 1e7, better="less"),
        Metric("page_faults", "1", 0.5, 0.0, 2.0, "less"),
        Metric("temperature", "degC", 50.0, 40.0, 60.0),
        Metric("roof_copy", "B/s", 1e9),
        Metric("roof_fraction", "1", 0.8, 0.7, 0.9, "more"),
    ],
)
def test_readings_and_estimates_are_not_compared(metric: Metric) -> None:
    count = Metric("params", "1", 7.0)
    other = Metric(**{**vars(metric), "value": 2 * (metric.value or 0)})
    sides = [run(record("latency", "conv", "torch", 7, metrics=[m, count])) for m in (metric, other)]
    assert [v.metric for v in compare(*sides).verdicts] == ["params"]


def test_a_count_that_new_does_not_have_is_not_comparable() -> None:
    absent = Metric("params", "1", None, status="skipped", reason="fvcore is not installed")
    sides = [run(record("flops", "conv", "torch", 7, metrics=[m])) for m in (Metric("params", "1", 7.0), absent)]
    (verdict,) = compare(*sides).verdicts
    assert (verdict.verdict, verdict.reason) == ("not_comparable", "has no value in NEW: fvcore is not installed")


# Cases without a result, and what cannot be compared


@pytest.mark.parametrize("status", ["failed", "crashed", "oom", "timeout", "skipped", "does_not_fit"])
def test_a_case_that_has_lost_its_result_is_missing(told: Any, status: str) -> None:
    def change(records: list[Record]) -> None:
        lost = records[ONE]
        lost.status, lost.reason, lost.samples, lost.metrics = status, "so it is", [], []

    code, rows, _ = told(change)
    assert code == 4
    assert rows[name_of(ONE), ""]["reason"] == f"{status} in NEW: so it is"


def test_a_regression_comes_before_a_missing_case(told: Any) -> None:
    def change(records: list[Record]) -> None:
        times(1.5)(records)
        records.pop(0)

    assert told(change)[0] == 1


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("skipped", "skipped", None),
        ("skipped", "ok", None),
        ("does_not_fit", None, None),
        ("crashed", "ok", None),
        ("crashed", "crashed", "missing"),
        (None, "crashed", "missing"),
        (None, "ok", None),
    ],
)
def test_what_statuses_come_to(before: str | None, after: str | None, verdict: str | None) -> None:
    def side(status: str | None) -> Run:
        count = record("params", "conv", "torch", metrics=[Metric("params", "1", 7.0)])
        return run(count, *([record("latency", "ddf", "torch", 7, status=status)] if status else []))

    found = compare(side(before), side(after))
    assert [v.verdict for v in found.verdicts] == ["same", *([verdict] if verdict else [])]
    about = [note for note in found.notes if "latency:ddf" in note]
    assert len(about) == (before is None or (before == "crashed"))


def test_a_clock_that_new_does_not_have_is_missing() -> None:
    base, new = made(5), made(5)
    new[ONE].samples = [block for block in new[ONE].samples if block.metric == "latency_wall"]
    (lost,) = compare(run(*base), run(*new)).of("missing")
    assert (lost.case, lost.metric, lost.reason) == (name_of(ONE), "latency_cold", "not in NEW")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ({"kind": "cpu", "name": "Other CPU"}, "name Example CPU in BASE, Other CPU in NEW"),
        ({"kind": "cpu", "name": "Example CPU", "driver": "999"}, "driver None in BASE, 999 in NEW"),
    ],
)
def test_another_device_is_not_comparable(told: Any, device: dict[str, str], says: str) -> None:
    code, rows, stdout = told(times(1.5), "--strict", new={"device": device})
    assert code == 3
    assert {row["verdict"] for row in rows.values()} == {"not_comparable"}
    assert all(says in row["reason"] for row in rows.values())
    assert stdout.startswith("Nothing was decided")


@pytest.mark.parametrize(("setting", "value"), [("threads", 4), ("malloc", "default"), ("tf32", 1)])
def test_another_setting_is_not_comparable(setting: str, value: object) -> None:
    base, new = made(5), made(5)
    new[ONE].settings[setting] = value
    (verdict,) = compare(run(*base), run(*new)).of("not_comparable")
    assert verdict.case == name_of(ONE)
    assert f"{setting} " in verdict.reason


def test_another_version_of_a_case_is_not_comparable() -> None:
    base, new = made(5), made(5)
    new[ONE].case_version = 2
    (verdict,) = compare(run(*base), run(*new)).of("not_comparable")
    assert verdict.reason == "another version of the case: 1 in BASE, 2 in NEW"


def test_other_software_is_told_and_compared() -> None:
    other = run(*made(5), software={"python": "3.11.7", "torch": "9.9"})
    found = compare(run(*made(5)), other)
    assert not found.of("not_comparable")
    assert any("torch 2.13.0 in BASE, 9.9 in NEW" in note for note in found.notes)


def test_notes_end_with_the_way_out_of_drift() -> None:
    found = compare(run(*made(5)), run(*made(5)), notes=["medians of separate runs differ by 7 %"])
    assert found.notes[-2] == "medians of separate runs differ by 7 %"
    assert "runner.py ab REV" in found.notes[-1]


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(RunError, match="nothing to compare"):
        compare(run(record("params", "conv", "torch", status="crashed")), run(record("params", "conv", "torch")))


def test_processes_are_matched_by_their_number() -> None:
    """A process that one clock has no samples of leaves the others where they are."""
    logs = _logs([{0: 1.0, 1: math.e, 2: 1.0}, {1: math.e, 2: 1.0}])
    assert np.array_equal(logs, [[0.0, math.nan], [1.0, 1.0], [0.0, 0.0]], equal_nan=True)


# The command line


def test_bad_input_is_one_line(runner: Runner, tmp_path: Path) -> None:
    write(tmp_path / "base", made(3))
    (tmp_path / "file").touch()
    for arguments, says in {
        "base nowhere": "no such run: nowhere",
        "base base --floor minus": "--floor: 'minus' is not a number of at least 0",
        "base base --floor=-1": "--floor: '-1' is not a number of at least 0",
        "base base --floor nan": "--floor: 'nan' is not",
        "base base --level 5": "--level: '5' is not a number between 0 and 1",
        "base base --metric latenzy": "--metric: 'latenzy' is not one of latency_cold, latency_wall, macs, params",
        "base base --format pdf": "--format: 'pdf' is not one of terminal, markdown, csv, json",
        "base base --format csv": "--output: a folder is needed for the format csv",
        "base base --output file": "cannot write file",
        "base": "NEW",
    }.items():
        done = runner("compare", *arguments.split())
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done.stderr
        assert done.stderr.startswith("runner.py")
        assert says in done.stderr


def test_formats_are_written_where_they_are_asked_for(runner: Runner, tmp_path: Path) -> None:
    write(tmp_path / "base", made(5))
    only = runner("compare", "base", "base", "--format", "csv,json", "--output", "some")
    assert only.stdout == ""
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["comparison.csv", "comparison.json"]
    both = runner("compare", "base", "base", "--output", "all", "--metric", "params", "--floor", "5", "--level", "0.01")
    assert "false alarms in at most 1 % of comparisons, effects below 5 % not called one" in both.stdout
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "comparison.csv",
        "comparison.html",
        "comparison.json",
        "comparison.md",
    ]
    loaded = Comparison.from_json(json.loads((tmp_path / "all" / "comparison.json").read_text()))
    assert (loaded.level, loaded.floor, {v.metric for v in loaded.verdicts}) == (0.01, 0.05, {"params"})


def test_help_tells_the_exit_codes(runner: Runner) -> None:
    done = runner("compare", "--help")
    assert done.returncode == 0
    assert "exit codes, the first that applies" in done.stdout


# Formats


@pytest.mark.parametrize("name", COMPARISON_FILES)
def test_golden_files(name: str) -> None:
    """If a change is meant, `python tests/sample_runs.py` writes them anew; look at the difference."""
    assert COMPARISON_FILES[name](sample_comparison()) == (GOLDEN / name).read_text(encoding="utf-8")


def test_json_loads_back_and_leaves_out_what_it_does_not_know() -> None:
    data = json.loads(as_json(sample_comparison()))
    data["unheard_of"] = data["verdicts"][0]["unheard_of"] = 1
    assert Comparison.from_json(data) == sample_comparison()


def test_csv_has_a_row_a_verdict_and_loses_nothing() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(sample_comparison()))))
    assert [row["verdict"] for row in rows] == [v.verdict for v in sample_comparison().verdicts]
    assert [float(row["ratio"]) for row in rows if row["ratio"]] == [
        v.ratio for v in sample_comparison().verdicts if v.ratio is not None
    ]


def test_terminal_folds_what_is_the_same() -> None:
    comparison = sample_comparison()
    comparison.verdicts += [
        Verdict(f"case{i}", "latency_wall", "s", "same", 1.0, 1.0, 1.0, p=1.0, detectable=0.05 + 0.01 * i)
        for i in range(20)
    ]
    text = terminal(comparison)
    assert "case3" not in text
    assert "would have been seen" in text
    assert "case3" in terminal(comparison, everything=True)


def test_terminal_tells_the_worst_first() -> None:
    lines = terminal(sample_comparison()).splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("verdict")) + 1 :]
    words = [line.split("  ")[0] for line in table[: table.index("")]]
    order = ["slower", "changed", "missing", "ambiguous", "not comparable", "faster", "same"]
    assert list(dict.fromkeys(word.removesuffix(" (placebo)") for word in words)) == order
