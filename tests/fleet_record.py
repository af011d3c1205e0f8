"""What a run of 10,000 cases costs: of a suite that does nothing, on three nodes of a Ray cluster on loopback.

    python tests/fleet_record.py [CASES] [--workers] [--local]

Every case is one that needs more memory than there is, by formula: its node settles it without a worker, so that what
takes time is the run itself: planning, Ray, and a record on disk for each case before the next one of its device. With
`--workers` each is begun in a worker of its own, as every case is that is measured; with `--local` there is no Ray.
Prints when a tenth, half and all of the records were on disk, what processor time the driver had spent by then and the
memory that it held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from suites.core import sources  # noqa: E402 (found from where the script lies)

NOOP = '''\
"""No-op: nothing is measured."""

from suites import Begun, Suite


class Noop(Suite):
    name = "noop"
    help = "nothing"
    axes = ("batch", "channels", "height", "width")
    default = False
    per_impl = False

    def begin(self, bench):
        return Begun()
'''
NODES = 3


def held(pid: int, field: str) -> int:
    """Bytes of memory that a process holds (`VmRSS`), or has held at most (`VmHWM`)."""
    told = Path(f"/proc/{pid}/status").read_text()
    return int(told.partition(f"{field}:")[2].split()[0]) * 1024


def processor_seconds(pid: int) -> float:
    """Processor time of a process by now, its children's left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def take(tree: Path, cases: int, batch: int, executor: Sequence[str]) -> dict[str, object]:
    """Runs the cases, looking at the driver all the while."""
    options = ("--suite", "noop", "--op", "dwconv", "--device", "cpu", "--batch", str(batch), "--resolution", "7")
    channels = ",".join(map(str, range(1, cases + 1)))
    command = [sys.executable, "runner.py", *options, "--channels", channels, "--output", "out", *executor]
    began = time.monotonic()
    driver = subprocess.Popen(command, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records, peak, marks = Recorded(tree / "out" / "records.jsonl"), 0, {}
    open_marks = [cases // 10, cases // 2, cases]
    while driver.poll() is None:
        with suppress(OSError, ValueError, IndexError):  # it has just ended
            peak = held(driver.pid, "VmHWM")
            while open_marks and records.count() >= open_marks[0]:
                marks[open_marks.pop(0)] = {
                    "seconds": round(time.monotonic() - began, 1),
                    "driver_processor_seconds": round(processor_seconds(driver.pid), 1),
                    "driver_memory": held(driver.pid, "VmRSS"),
                    "driver_peak_memory": peak,
                }
        time.sleep(0.1)
    return {
        "records": records.count(),
        "exit": driver.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "driver_peak_memory": peak,
        "after_records": marks,
    }


class Recorded:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._lines = path, 0, 0

    def count(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                more = file.read()
            self._read += len(more)
            self._lines += more.count(b"\n")
        return self._lines


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """The address of the nodes, for as long as they are needed."""
    # With the last, whatever the system, a machine's address is 127.0.0.1.
    loopback = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    os.environ |= {**loopback, "RAY_TMPDIR": str(folder)}
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 0, "object_store_memory": 80_000_000, "resources": {"exclusive_cores": 2}}
    running = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(NODES - 1):
            running.add_node(**node)
        yield running.address
    finally:
        running.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a run of a suite that does nothing costs.")
    parser.add_argument("cases", type=int, nargs="?", default=10_000)
    parser.add_argument("--workers", action="store_true", help="begin each case in a worker of its own")
    parser.add_argument("--local", action="store_true", help="without Ray")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ddf-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        tree = folder / "tree"
        sources.pack(ROOT, [], tree)
        shutil.copy(ROOT / "runner.py", tree)
        (tree / "suites" / "noop.py").write_text(NOOP)
        where = () if options.local else ("--executor", "ray", "--ray-address", stack.enter_context(cluster(folder)))
        print(json.dumps(take(tree, options.cases, 1 if options.workers else 10**9, where), indent=2))


if __name__ == "__main__":
    main()
