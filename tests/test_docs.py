"""What the documentation says, tried."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, Runner

from reports import formats
from reports.core.records import load_run


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


def test_tables_of_roofs_are_those_that_the_suite_makes_of_the_runs() -> None:
    """A table after `<!-- roofs: RUN OP/IMPL ... -->` is the format `roofs` of that run, its rows of these cases."""
    found = re.findall(
        r"<!-- roofs: (\S+) (.+?) -->\n\n(.*?\n)\n", (ROOT / "docs" / "operator.md").read_text(), re.DOTALL
    )
    assert found
    for run, cases, table in found:
        told = str(formats()["roofs"].serialize([load_run(ROOT / run, samples=False)])["roofs.md"]).splitlines()
        wanted = tuple(f"| {start} |" for start in ("case", "---", *cases.split()))
        assert table.splitlines() == [line for line in told if line.startswith(wanted)]


def test_tables_taken_from_a_report_stand_in_it_line_by_line() -> None:
    pages = "\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))
    found = re.findall(r"<!-- from (\S+) -->\n\n(.*?\n)\n", pages, re.DOTALL)
    assert found
    for path, table in found:
        assert f"\n{table}" in (ROOT / path).read_text()
