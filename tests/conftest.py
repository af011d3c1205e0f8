"""What the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

# Before torch is loaded, here and in what tests start: threads that spin while they wait for a sibling, which waits for
# a core, make tests on a busy machine several times slower. Results do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = ROOT / "tests" / "op_files" / "hostile.py"

#: Files with a fixture that takes a minute, which one process makes for all of their tests.
WHOLE = ("tests/test_fleet.py", "tests/test_resources.py")

Runner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a process one test at a time, but files of WHOLE as one. xdist's marks of groups do nothing in pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in WHOLE else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, where several processes share them; `gpu` ones are skipped by name without a CUDA device."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # else the last one to start would keep all others waiting
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """Runs `runner.py` as a user would, from an empty folder, and returns the finished process."""

    def run(
        *arguments: str, timeout: float = 300.0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "runner.py"), *arguments]
        shared = {"cwd": tmp_path, "env": {**os.environ, **(environment or {})}, "timeout": timeout}
        return subprocess.run(command, capture_output=True, text=True, check=False, **shared)

    return run
