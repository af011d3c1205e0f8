"""The whole program, run as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import HOSTILE, ROOT, Runner

COLUMNS = (
    "suite,op,impl,device,dtype,layout,direction,batch,channels,height,width,kernel_size,stride,dilation,combine,"
    "metric,unit,value,low,high,status,reason"
)
#: Small enough to measure in no time.
SMALL = ("--device", "cpu", "--channels", "4", "--seconds", "0.2", "--processes", "2")
#: Where how often a case is measured does not matter.
ALONE = (*SMALL, "--processes", "1")


def records(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_three_suites_write_what_the_readme_says(runner: Runner, tmp_path: Path) -> None:
    suites = ("latency", "params", "flops")
    done = runner(*SMALL, "--suite", ",".join(suites), "--resolution", "7,9x8", "--output", "out")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    for suite in suites:
        with (tmp_path / "out" / "tables" / f"{suite}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert ",".join(rows[0]).startswith(COLUMNS)
        assert {row["suite"] for row in rows} == {suite}
        assert {row["op"] for row in rows} == {"conv", "dwconv", "dyfilter", "dyfilter_dw", "ddf_op", "ddf"}
        assert {row["status"] for row in rows} <= {"ok", "skipped"}
        assert (tmp_path / "out" / "tables" / f"{suite}.md").stat().st_size
    found = records(tmp_path / "out")
    assert len({str(record["case"]) for record in found}) == len(found)
    latencies = [r for r in found if r["suite"] == "latency" and r["status"] == "ok"]
    for record in latencies:
        names = {metric["name"] for metric in record["metrics"]}  # type: ignore[attr-defined]
        assert names >= {"latency_wall", "latency_cold", "max_error", "macs", "floor_bytes", "page_faults", "roof_copy"}
        assert {block["process"] for block in record["samples"]} == {0, 1}  # type: ignore[attr-defined]
    for name in ("report.md", "run.json", "plots"):
        assert (tmp_path / "out" / name).exists()
    environment = json.loads((tmp_path / "out" / "run.json").read_text())
    assert environment["argv"][0] == "runner.py"
    assert environment["finished"] >= environment["started"]


@pytest.mark.slow
def test_hostile_operators_cost_themselves_alone(runner: Runner, tmp_path: Path) -> None:
    names = "copying,segfault,hang,greedy,wrong,raising,skipping,late_crash,conv"
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    files = ("--op-file", str(HOSTILE), "--op-file", str(broken))
    options = ("--suite", "latency", "--resolution", "7", "--timeout", "10", "--output", "out")
    done = runner(*SMALL, *files, "--op", names, *options)
    assert done.returncode == 4, done.stderr
    found = {str(record["op"]): (record["status"], str(record["reason"])) for record in records(tmp_path / "out")}
    assert {op: status for op, (status, _) in found.items()} == {
        "copying": "ok",
        "conv": "ok",
        "segfault": "crashed",
        "late_crash": "crashed",
        "hang": "timeout",
        "greedy": "oom",
        "wrong": "failed",
        "raising": "failed",
        "skipping": "skipped",
        "broken": "failed",
    }
    assert "SIGSEGV" in found["segfault"][1]
    assert "wrong result" in found["wrong"][1]
    assert "broken.py cannot be read: ModuleNotFoundError" in found["broken"][1]
    report = (tmp_path / "out" / "report.md").read_text()
    assert all(op in report for op in found)


def test_without_a_compiler_native_is_skipped_and_the_rest_is_measured(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    options = ("--suite", "latency", "--op", "ddf_op", "--impl", "native,composite", "--resolution", "7")
    done = runner(*ALONE, *options, "--output", "out")
    assert done.returncode == 0, done.stderr
    found = {str(record["impl"]): (record["status"], str(record["reason"])) for record in records(tmp_path / "out")}
    assert found["composite"] == ("ok", "")
    assert found["native"][0] == "skipped"
    assert "no C++ compiler: CXX=no-such-compiler is not a program" in found["native"][1]
    warnings = json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    assert sum("csrc/ddf cannot be built" in warning for warning in warnings) == 1


#: Resolutions, so many that a run is not over before a test has seen its first records.
MANY = ",".join(map(str, range(5, 25)))


@pytest.mark.slow
def test_a_killed_run_is_resumed_without_loss_or_repetition(runner: Runner, tmp_path: Path) -> None:
    options = (*ALONE, "--suite", "latency", "--op", "conv,dwconv", "--impl", "torch", "--resolution", MANY)
    options = (*options, "--output", "out")
    command = [sys.executable, str(ROOT / "runner.py"), *options]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    stored = tmp_path / "out" / "records.jsonl"
    while running.poll() is None and not (stored.exists() and stored.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = stored.read_bytes().split(b"\n")[:-1]
    assert 3 <= len(before) < 40
    with stored.open("ab") as file:
        file.write(b'{"schema_version": 1, "run": "ou')  # as a kill in the middle of a write leaves it
    done = runner("--resume", "out")
    assert done.returncode == 0, done.stderr
    lines = stored.read_bytes().split(b"\n")[:-1]
    assert lines[: len(before)] == before
    counts = Counter(str(record["case"]) for record in records(tmp_path / "out"))
    assert len(counts) == 40
    assert set(counts.values()) == {1}
    again = runner("--resume", "out")
    assert again.returncode == 0
    assert stored.read_bytes().split(b"\n")[:-1] == lines


def test_ctrl_c_leaves_a_valid_run(runner: Runner, tmp_path: Path) -> None:
    options = (*ALONE, "--suite", "latency", "--op", "conv", "--resolution", MANY, "--output", "out")
    command = [sys.executable, str(ROOT / "runner.py"), *options]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    stored = tmp_path / "out" / "records.jsonl"
    while running.poll() is None and not (stored.exists() and stored.read_bytes().count(b"\n") >= 1):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert runner("report", "out").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--suite latenzy", "--suite: 'latenzy' is not one of all, latency, memory, params, flops, complexity"),
        ("--op conf", "--op: 'conf' is not one of"),
        ("--impl nativ", "--impl: 'nativ' is not one of"),
        ("--dtype float31", "--dtype: 'float31' is not one of float32, float64, float16, bfloat16"),
        ("--preset fast", "--preset: 'fast' is not one of quick, paper, full"),
        ("--resolution 0", "--resolution: '0' is not an integer of at least 1, or two of them like 200x300"),
        ("--resolution big", "--resolution: 'big' is not"),
        ("--resolution 7x", "--resolution: '7x' is not"),
        ("--kernel-size 4", "--kernel-size: '4' is not an odd integer of at least 1"),
        ("--batch -1", "--batch"),
        ("--batch=-1", "--batch: '-1' is not an integer of at least 1"),
        ("--channels 2.5", "--channels: '2.5' is not"),
        ("--processes 0", "--processes: '0' is not"),
        ("--seconds nan", "--seconds: 'nan' is not"),
        ("--timeout soon", "--timeout: 'soon' is not"),
        ("--seed -1", "--seed"),
        ("--device gpu", "--device: 'gpu' is not one of auto, cpu, cuda, cuda:N"),
        ("--device cuda:9", "--device: 'cuda:9'"),
        ("--axis head", "--axis: 'head' is not NAME=LIST"),
        ("--axis hat=1", "--axis: 'hat' is not one of"),
        ("--axis batch=1", "--axis: 'batch' has an option of its own, --batch"),
        ("--op-file nowhere.py", "--op-file: 'nowhere.py' is not a file"),
        ("--output full", "--output: 'full' is not a new or empty folder"),
        ("--resume nowhere", "nowhere"),
        ("--resume corrupt", "corrupt"),
        ("--resume full --suite latency", "--resume: 'full' goes on with its own arguments"),
        ("report nowhere", "nowhere"),
        ("report corrupt", "corrupt"),
        ("report a b", "--output: a folder is needed"),
        ("--no-such-option", "--no-such-option"),
        ("compress", "compress"),
        ("list nothing", "nothing"),
        ("doctor --device gpu", "--device: 'gpu' is not one of auto, cpu, cuda, cuda:N"),
        ("doctor --format xml", "xml"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(runner: Runner, tmp_path: Path, arguments: str, says: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "run.json").write_text("{")
    done = runner(*arguments.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("runner.py")
    assert says in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_loses_nothing(runner: Runner, tmp_path: Path) -> None:
    """A limit of the file's size stands for the disk: half of what the same run needs without it."""
    options = (*ALONE, "--suite", "latency", "--op", "conv", "--resolution", "5,6,7,8,9", "--output")
    assert runner(*options, "whole").returncode == 0
    limit = (tmp_path / "whole" / "records.jsonl").stat().st_size // 2
    code = (
        "import resource, sys, runner\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(runner.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("runner.py: error: ")
    assert "--resume out" in last
    assert 1 <= len(records(tmp_path / "out")) < 5
    assert runner("--resume", "out").returncode == 0
    assert len(records(tmp_path / "out")) == 5


def test_dry_run_measures_nothing_and_forecasts(runner: Runner, tmp_path: Path) -> None:
    done = runner("--dry-run", "--device", "cpu", "--batch", "32", "--resolution", "7,224")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    dense = next(line for line in lines if "latency:dyfilter/" in line and "h224" in line)
    assert "does_not_fit: needs 379" in dense  # 3.8 TB
    assert any("flops:dyfilter/" in line and "does_not_fit" in line for line in lines)
    assert not any("params:" in line and "does_not_fit" in line for line in lines)
    assert "forecast" in lines[-1]
    assert not (tmp_path / "runs").exists()


def test_output_that_nobody_reads_any_more_is_no_traceback() -> None:
    command = [sys.executable, str(ROOT / "runner.py"), "list", "claims"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_list_tells_what_there_is(runner: Runner) -> None:
    ops = runner("list", "ops")
    names = [line.split()[0] for line in ops.stdout.splitlines()]
    assert len(names) == len(set(names)) == 28
    assert set(names) >= {"conv", "dwconv", "ddf_op", "ddf", "dyfilter", "dyfilter_dw", "involution", "resnet18"}
    assert runner("list", "suites").stdout.startswith("latency      time of one call")
    assert "ddf_op       composite" in runner("list", "impls").stdout
    cases = runner("list", "cases", "--suite", "params", "--op", "conv").stdout
    assert cases == "params:conv/torch@cpu:c256k3\n"


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two runs were made, each into runs/."""
    folder = tmp_path_factory.mktemp("two_runs")
    command = [sys.executable, str(ROOT / "runner.py"), *SMALL, "--suite", "params", "--op", "conv"]
    for _ in range(2):
        subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return folder


def made_in(folder: Path) -> list[Path]:
    """The runs of a folder, the oldest first."""
    runs = [path for path in (folder / "runs").iterdir() if not path.is_symlink()]
    return sorted(runs, key=lambda path: path.stat().st_mtime)


def test_a_report_of_two_runs_shows_both(runner: Runner, tmp_path: Path, two_runs: Path) -> None:
    runs = made_in(two_runs)
    assert runner("report", *map(str, runs), "--output", "both").returncode == 0
    with (tmp_path / "both" / "tables" / "params.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file)} == {run.name for run in runs}


def test_runs_latest_is_the_newest(two_runs: Path) -> None:
    latest, runs = two_runs / "runs" / "latest", made_in(two_runs)
    assert len(runs) == 2
    assert latest.resolve() == runs[-1].resolve()
    assert (latest / "report.md").is_file()


def test_help_is_there_for_every_command(runner: Runner) -> None:
    for command in ((), ("list",), ("report",), ("compare",), ("ab",), ("calibrate",), ("doctor",)):
        done = runner(*command, "--help")
        assert done.returncode == 0
        assert "usage: runner.py" in done.stdout
