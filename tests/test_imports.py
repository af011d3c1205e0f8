"""Which part may import which: the rules of the layout, read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

#: First names that each part must not import.
FORBIDDEN = {
    "ops": {"suites", "reports", "runner"},
    "reports": {"torch", "ops", "suites", "runner"},
    "suites": {"runner"},
}


def imported(file: Path) -> set[str]:
    """First names of all absolute imports of a file, those inside functions included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_run_one_way(part: str) -> None:
    files = list((ROOT / part).rglob("*.py"))
    assert files
    wrong = {str(f.relative_to(ROOT)): imported(f) & FORBIDDEN[part] for f in files if imported(f) & FORBIDDEN[part]}
    assert not wrong


def test_ops_imports_itself_relatively() -> None:
    """So that a wheel can offer it under another name."""
    assert not [f.name for f in (ROOT / "ops").rglob("*.py") if "ops" in imported(f)]


def test_no_module_shadows_the_standard_library() -> None:
    parts = [ROOT / "ops", ROOT / "suites", ROOT / "reports"]
    stems = {f.stem for part in parts for f in part.rglob("*.py")} - {"__init__"}
    # `platform`-like names are reached only with a package in front, but read wrongly all the same
    assert not stems & set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("reports", ["torch", "pandas", "matplotlib"]),
        ("ops", ["torch"]),
        ("suites", ["torch", "pandas", "matplotlib"]),
        ("runner", ["torch", "pandas", "matplotlib", "numpy", "rich"]),
        ("suites.core.schedule", ["torch", "pandas"]),
        ("suites.core.plan", ["torch"]),
    ],
)
def test_import_is_light(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_runner_lists_suites_without_torch() -> None:
    code = "import sys, runner; runner.suites(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
