"""What `make` does on machines that have less than a development machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

#: What a machine with a GPU may lack: it has torch, pytest, and what the program itself needs.
LACKING = ("hypothesis", "fvcore", "xdist", "mypy", "ruff")


def test_gpu_tests_are_collected_without_what_only_other_tests_need() -> None:
    code = (
        "import sys, pytest\n"
        f"sys.modules |= dict.fromkeys({LACKING!r})\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', '-p', 'no:cacheprovider']))\n"
    )
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/test_native.py::test_cuda_graph_capture" in done.stdout
    assert "tests/test_ops.py::test_impl_gives_the_reference" in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_gpu_builds_tests_measures_and_packs() -> None:
    command = ["make", "-n", "gpu", "SYSTEM=1", f"PYTHON={sys.executable}", "PRESET=quick", "ARGS=--op ddf_op"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    built = "-m ops.core.build ddf ddf_up involution roofs"
    steps = (built, "-m pytest -m gpu", "--preset quick", "--op ddf_op", "tar -czf")
    places = [done.stdout.index(step) for step in steps]
    assert places == sorted(places)
    assert "pip" not in done.stdout
