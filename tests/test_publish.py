"""Runs handed on: a site, a reproduction package, plots for a paper; and what a terminal shows meanwhile."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, Runner
from rich.console import Console
from sample_runs import environment, sample

from reports import plots
from reports.core import progress
from reports.core.palette import op_colors
from reports.core.pictures import drawn_growths
from reports.core.records import RunDirectory, load_run


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    directory = RunDirectory.create(tmp_path / "first", environment())
    for made in sample().records:
        directory.append(made)
    return tmp_path / "first"


def test_a_site_has_an_index_that_leads_to_every_run(runner: Runner, stored: Path, tmp_path: Path) -> None:
    done = runner("report", "first", "first", "--publish", "site")
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "site" / "index.html").read_text()
    targets = re.findall(r'href="([^"#:]+)"', index)
    assert len(targets) == 3
    assert all((tmp_path / "site" / target).is_file() for target in targets)
    assert "times as long as dwconv/torch" in index


def test_a_package_holds_what_its_manifest_says_and_can_be_reported(
    runner: Runner, stored: Path, tmp_path: Path
) -> None:
    done = runner("report", "first", "--bundle", "out/package.zip")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "out" / "package.zip") as archive:
        archive.extractall(tmp_path / "again")
        names = set(archive.namelist())
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    for path, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "again" / path).read_bytes()).hexdigest() == digest, path
    folder = tmp_path / "again" / manifest["runs"][0]["folder"]
    assert load_run(folder).records == load_run(stored).records, "samples included"
    assert "python runner.py --suite" in (folder / "claims.csv").read_text()
    assert manifest["runs"][0]["command"].startswith("python runner.py")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--bundle", "out.tar"), "--bundle: 'out.tar' does not end in .zip"),
        (("--publish", "site", "--output", "x"), "--output: 'x' means nothing beside --publish and --bundle"),
    ],
)
def test_what_cannot_be_is_one_line(runner: Runner, stored: Path, options: tuple[str, ...], said: str) -> None:
    done = runner("report", "first", *options)
    assert (done.returncode, done.stderr) == (2, f"runner.py: error: {said}\n")


def test_plots_for_a_paper_fit_a_column_and_embed_their_fonts() -> None:
    files = plots.PAPER.serialize([sample()])
    content = files["plots/latency-latency_wall.pdf"]
    assert isinstance(content, bytes)
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
    assert box is not None
    assert float(box.group(1)) == pytest.approx(3.35 * 72, abs=0.1)
    assert b"/FontFile2" in content, "TrueType, embedded"
    assert b"/Type3" not in content


def test_the_picture_of_growth_for_a_paper_spans_two_columns_and_has_no_title() -> None:
    run = load_run(ROOT / "reports" / "published" / "amd-epyc-2-cores" / "quick")
    slopes, colors = drawn_growths([run]), op_colors([run])
    paper, screen = (plots._draw_growths(slopes, colors, layout) for layout in (plots._COLUMN, plots._SCREEN))
    assert paper.get_figwidth() * 25.4 < 180, "the millimetres of a page's text"
    assert (len(paper.texts), len(screen.texts)) == (0, 2)


def test_the_bar_shows_the_case_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=120))
    (made, *_) = sample().records

    class Case:
        id = "latency:conv/torch[bold]"

    with progress.Progress(2, 9.0) as shown:
        assert list(shown.following([[Case(), Case()]])) != []
        shown.done([(made, 3.0)])
    assert "latency:conv/torch[bold] and 1 beside it" in screen.getvalue()
    assert "1/2" in screen.getvalue()


def test_on_a_narrow_terminal_the_bar_keeps_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=80))

    class Case:
        id = "latency:ddf_op/native@cpu:float32:nchw:forward:n1c256h56w56k3s1d1:mul"

    with progress.Progress(140, 300.0) as shown:
        list(shown.following([[Case()] * 7]))
    told = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"0/140 +0% 5m00s left latency:ddf_op/native", told)
