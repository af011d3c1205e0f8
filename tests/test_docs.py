"""What the documentation says, tried."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, Runner


def test_the_operator_of_the_docs_can_be_measured(runner: Runner, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding.md").read_text(), re.DOTALL)
    (tmp_path / "double.py").write_text(code)
    options = ("--device", "cpu", "--suite", "latency", "--channels", "4", "--seconds", "0.1", "--processes", "1")
    shapes = ("--op-file", "double.py", "--op", "double,dwconv", "--resolution", "7", "--stride", "1,2")
    done = runner(*options, *shapes, "--output", "out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "tables" / "latency.csv").open() as file:
        status = {(row["op"], row["stride"]): (row["status"], row["reason"]) for row in csv.DictReader(file)}
    assert status["double", "1"] == ("ok", "")
    assert status["double", "2"] == ("skipped", "stride 1 only")


@pytest.mark.slow
def test_first_steps_lead_to_an_operator_of_ones_own(runner: Runner, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "first-steps.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "average.py").write_text(code)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        python, program, *arguments = shlex.split(command)
        assert (python, program) == ("python", "runner.py")
        done = runner(*arguments)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert "average/torch" in (tmp_path / "both" / "report.html").read_text()
    assert (tmp_path / "mine.zip").is_file()


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
