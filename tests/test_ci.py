"""The recipes of CI: the workflows are sound, the page has them as they are, and they tell red from green."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT
from sample_runs import environment

from reports import Block, Record
from reports.core.history import look
from reports.core.history_index import Filter, Index
from reports.core.pairs import CONFIRMING
from reports.core.records import RunDirectory

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_page_has_the_files_as_they_are() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    shown = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    on_disk = [*WORKFLOWS, *(ROOT / ".ci").iterdir()]
    assert shown == {str(file.relative_to(ROOT)): file.read_text() for file in on_disk}


def test_workflows_pass_actionlint() -> None:
    program = shutil.which("actionlint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no actionlint")
    done = subprocess.run([program, *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_workflows_have_least_rights_and_call_the_scripts() -> None:
    assert {file.stem for file in WORKFLOWS} == {"tests", "resources", "regressions", "gpu"}
    for file in WORKFLOWS:
        text = file.read_text()
        assert "permissions:\n  contents: read\n" in text
        assert re.search(r"run: (\.ci/|make )", text)
        assert "${{ github.event" not in "".join(re.findall(r"run: .*", text)), "others' text in a shell command"


def recorded(path: Path, factor: float, again: float | None = None) -> Path:
    """A run of `ab` in which the new side takes `factor` times as long, and `again` in a second measurement."""
    told = {"base": "c0", "new": "c1", "placebos": [], "left_out": {}, "only": {}, "looks": 1, "level": 0.05}
    directory = RunDirectory.create(path, environment("ab") | {"ab": told | {"floor": 0.03}})
    draw = random.Random(0)
    stages = [(0, factor)] + ([(CONFIRMING, again)] if again is not None else [])
    for first, slower in stages:
        for pair in range(first, first + 8):
            for side in ("base", "new"):
                seconds = 1e-3 * (slower if side == "new" else 1) * math.exp(draw.gauss(0, 0.005))
                blocks = [Block("latency_wall", pair, 0, 0.0, 1, [seconds] * 5)]
                case = f"latency:ddf_op/native@cpu:n1:pair={pair}:side={side}"
                axes = {"pair": pair, "side": side}
                directory.append(
                    Record("ab", case, 1, "latency", "ddf_op", "native", "cpu", axes, "ok", samples=blocks)
                )
    return path


LIVE = ROOT / "reports" / "published" / "amd-epyc-2-cores" / "history"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the live record: 30 commits, of which number 20 is slow, and two runs of `ab`."""
    return unpacked(LIVE, tmp_path_factory.mktemp("live"))


def unpacked(record: Path, folder: Path) -> Path:
    with tarfile.open(record / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "runs"


def test_the_history_of_the_live_record_finds_the_planted_commit(live: Path) -> None:
    finds_the_planted_commit(live)


def test_so_does_that_of_the_first_record(tmp_path: Path) -> None:
    finds_the_planted_commit(unpacked(LIVE / "first", tmp_path))


def finds_the_planted_commit(runs: Path) -> None:
    with Index.open(runs / "history.sqlite", create=True) as index:
        for run in sorted(runs.glob("c*")):
            index.add(run)
        history = look("", index.series(Filter()))
    ((series, change),) = history.changes
    assert len(series.points) == 30
    assert series.after(change).subject == "Commit 20, planted"
    assert change.ratio == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize(("run", "code"), [("ab-c20", 1), ("ab-c21", 0)])
def test_the_recipe_on_the_live_record(live: Path, run: str, code: int) -> None:
    command = [str(ROOT / ".ci" / "regressions"), "--recorded", str(live / run)]
    paths = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    assert subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, check=False).returncode == code


@pytest.mark.parametrize(
    ("factor", "again", "code", "told"),
    [(1.5, 1.5, 1, "Regression"), (1.0, None, 0, "No regression"), (1.5, 1.0, 0, "not when measured again")],
)
def test_the_recipe_is_red_for_a_slow_down_and_green_after_it(
    tmp_path: Path, factor: float, again: float | None, code: int, told: str
) -> None:
    run, summary = recorded(tmp_path / "run", factor, again), tmp_path / "summary.md"
    paths = {"PYTHON": sys.executable, "GITHUB_STEP_SUMMARY": str(summary), "PATH": "/usr/bin:/bin"}
    command = [str(ROOT / ".ci" / "regressions"), "--recorded", str(run)]
    done = subprocess.run(command, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert told in summary.read_text()
    assert (run / "junit.xml").exists()
    assert ("<failure" in (run / "junit.xml").read_text()) == (code == 1)
