"""Servers and workers: crash, hang and hunger cost one worker, and no worker outlives its runner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest
from conftest import HOSTILE, ROOT

from ops import Point
from suites import Case
from suites.core.processes import Server, ServerLost, WorkerLost

PROCESS = {"threads": 2, "malloc": "steady", "tf32": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        running = Server(["torch", "suites.core.bench", "suites.core.roofs", "fvcore.nn", "no_such_package"], log)
        yield running
        running.close()


def begin(op: str, check: bool = True) -> dict[str, object]:
    point = Point(channels=4, height=7, width=7)
    case = Case("latency", op, "torch", 1, "cpu", point, (), PROCESS, {}, str(HOSTILE))
    return {"do": "begin", "case": case.to_json(), "seed": 0, "check": check}


def test_the_server_has_one_thread(server: Server) -> None:
    """Else forking it would not be safe."""
    assert server.threads == 1


def test_a_worker_answers_and_measures(server: Server) -> None:
    worker = server.fork()
    answer = worker.ask(begin("copying"), 60)
    assert answer["status"] == "ok"
    assert answer["clocks"] == ["latency_wall", "latency_cold"]
    samples = worker.ask({"do": "block", "clock": "latency_wall", "seconds": 0.01}, 60)
    assert all(value > 0 for value in samples["values"])
    assert worker.close() <= 0


@pytest.mark.parametrize(
    ("op", "status", "says"),
    [
        ("segfault", "crashed", "killed by SIGSEGV"),
        ("hang", "timeout", "no answer within 3 s"),
    ],
)
def test_a_worker_that_is_lost_says_how(server: Server, op: str, status: str, says: str) -> None:
    with pytest.raises(WorkerLost) as lost:
        server.fork().ask(begin(op), 3 if op == "hang" else 60)
    assert (lost.value.status, lost.value.reason) == (status, says)


def test_memory_beyond_the_limit_is_oom(server: Server) -> None:
    worker = server.fork(memory_limit=3 * 2**30)
    answer = worker.ask(begin("greedy"), 60)
    worker.close()
    assert answer["status"] == "oom"


@pytest.mark.parametrize(
    ("op", "status", "says"),
    [
        ("wrong", "failed", "wrong result: error 0.01 of the sum of absolute terms, allowed 1e-05"),
        ("raising", "failed", "ValueError: no such thing"),
        ("skipping", "skipped", "not for this shape"),
    ],
)
def test_what_goes_wrong_is_told_apart(server: Server, op: str, status: str, says: str) -> None:
    worker = server.fork()
    answer = worker.ask(begin(op), 60)
    worker.close()
    assert (answer["status"], answer["reason"]) == (status, says)
    assert not answer.get("clocks")


def test_a_closed_worker_does_not_answer(server: Server) -> None:
    worker = server.fork()
    worker.close()
    with pytest.raises(WorkerLost):
        worker.ask({"do": "declare", "file": str(HOSTILE)}, 5)


def test_a_server_that_ends_is_told() -> None:
    with tempfile.TemporaryFile() as log:
        running = Server([], log)
        running.close()
        with pytest.raises((ServerLost, OSError)):
            running.fork()


def descendants(pid: int) -> set[int]:
    """Processes below `pid`."""
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found |= {int(entry)} | descendants(int(entry))
    return found


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_outlives_its_runner() -> None:
    code = (
        "import tempfile\n"
        "from suites.core.processes import Server\n"
        "from test_processes import begin\n"
        "server = Server(['torch'], tempfile.TemporaryFile())\n"
        "worker = server.fork()\n"
        "print('ready', flush=True)\n"
        "worker.ask(begin('hang'), 600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    runner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    below = descendants(runner.pid)
    assert len(below) == 2
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    runner.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in below if alive(pid)]
