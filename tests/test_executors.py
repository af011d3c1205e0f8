"""Where a run measures: the options, a folder for each model, and no trace of Ray where nobody asked for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from sample_runs import environment

import runner
from reports import Metric, Record, Run, devices
from reports.core import models
from reports.core.records import RunError, load_run
from suites.core import sources
from suites.core.options import selection_of

FLAT = ("--suite", "params", "--op", "dwconv", "--device", "cpu", "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--executor", "slurm"), "--executor: 'slurm' is not one of local, ray"),
        (("--ray-address", "host:6379"), "--ray-address: only with --executor ray"),
        (("--accelerator", "H100"), "--accelerator: only with --executor ray"),
        (("--executor", "ray", "--device", "cuda:1"), "--device: 'cuda:1' with --executor ray is auto, cpu or cuda"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"runner.py: error: {says}")


def test_without_ray_the_option_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert runner.main([*FLAT, "--executor", "ray"]) == 2
    assert "pip install 'ray>=" in capsys.readouterr().err


def test_a_local_run_imports_nothing_of_ray() -> None:
    code = f"import sys, runner; runner.main({FLAT!r}); print([m for m in sys.modules if m.partition('.')[0] == 'ray'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_one_model_is_a_run_like_any_other(tmp_path: Path) -> None:
    made = models.create(tmp_path / "run", {"run": "run"}, {"H100": {"model": "H100"}})
    assert made["H100"].path == tmp_path / "run"
    assert list(models.reopen(tmp_path / "run")) == ["H100"]
    assert [run.path for run in models.load(tmp_path / "run")] == [tmp_path / "run"]


def test_each_of_several_models_has_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    parts = {name: {"model": name} for name in ("NVIDIA H100, X", "NVIDIA H100 (X)")}
    made = models.create(path, {"run": "run"}, parts)
    assert [directory.path.name for directory in made.values()] == ["nvidia-h100-x", "nvidia-h100-x.2"]
    assert not (path / "records.jsonl").exists()
    assert [run.environment["run"] for run in models.load(path)] == ["run/nvidia-h100-x", "run/nvidia-h100-x.2"]
    assert list(models.reopen(path)) == list(parts)
    with pytest.raises(RunError, match=r"several devices: name one of .*nvidia-h100-x, .*nvidia-h100-x\.2"):
        load_run(path)


class OneModel:
    """An executor that has devices of the model alpha alone, and finds nothing left to measure there."""

    def __init__(self, *_: object) -> None:
        pass

    def plan(self, say: object) -> dict[str, SimpleNamespace]:
        nothing = {"broken_records": lambda run: [], "total_forecast": lambda cases: 0.0}
        return {"alpha": SimpleNamespace(cases=[], **nothing)}

    def devices(self, model: str) -> int:
        return 1

    def nodes(self, model: str) -> dict[str, object]:
        return {}

    def keep_files(self, folder: Path) -> None:
        pass

    def measure(self, work: object, following: object) -> list[object]:
        return []

    def __enter__(self) -> OneModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("part", "code"), [({}, 4), ({"finished": "2026-01-01T00:00:00+00:00"}, 0)])
def test_what_is_open_of_a_model_that_is_gone_is_missing(
    part: dict[str, str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("suites.core.executors.executor", OneModel)
    selection = selection_of(runner.run_parser().parse_args(["--suite", "params", "--device", "cpu"])).to_json()
    head = environment() | {"run": "run", "selection": selection, "argv": ["runner.py"]}
    del head["finished"]
    models.create(tmp_path / "run", head, {"alpha": {"model": "alpha"}, "beta": {"model": "beta", **part}})
    assert runner.main(["--resume", str(tmp_path / "run")]) == code
    assert "beta: there is no such device now" in capsys.readouterr().err


def test_sources_travel_whole_and_are_known_by_their_content(tmp_path: Path) -> None:
    op_file = tmp_path / "mine.py"
    op_file.write_text("x = 1\n")
    packed = tmp_path / "packed"
    assert sources.pack(ROOT, [str(op_file)], packed) == ["op_files/0/mine.py"]
    assert sources.revision(packed) == sources.revision(ROOT)
    assert not list(packed.rglob("published"))
    (packed / "ops" / "ddf.py").write_text("changed")
    assert sources.revision(packed) != sources.revision(ROOT)


def test_devices_stand_side_by_side_by_case() -> None:
    """A case is the same on a CPU and a GPU; one that only one device has is in no comparison."""

    def run(model: str, kind: str, *cases: tuple[str, float | None]) -> Run:
        records = [
            Record(
                *("r", f"latency:{case}/torch@{kind}:float32", 1, "latency", case, "torch", kind, {}),
                "oom" if value is None else "ok",
                metrics=[] if value is None else [Metric("latency_wall", "s", value, value / 2, value * 2)],
            )
            for case, value in cases
        ]
        return Run(Path(model), {"model": model}, records)

    runs = [run("old", "cpu", ("conv", 4.0), ("ddf_op", 1.0)), run("new", "cuda", ("conv", 1.0), ("ddf_op", None))]
    runs[0].records += run("old", "cpu", ("ddf", 1.0)).records
    files = devices.serialize(runs)
    rows = [line.split(",") for line in str(files["devices.csv"]).splitlines()]
    told = dict(zip(rows[0], rows[2], strict=True))
    assert (told["case"], told["device"], told["value"], told["unit"]) == (
        "latency:conv/torch:float32",
        "new",
        "1.0",
        "s",
    )
    assert (told["factor"], told["factor_low"], told["factor_high"]) == ("0.25", "0.0625", "1.0")
    assert [(row[0], row[2], row[7]) for row in rows[3:]] == [
        ("latency:ddf_op/torch:float32", "old", "ok"),
        ("latency:ddf_op/torch:float32", "new", "oom"),
    ]
    assert "| ddf_op/torch:float32 | 1.00 s (0.500 to 2.00) | oom |  |" in str(files["devices.md"])
    assert devices.serialize(runs[:1]) == {}
