"""What a run of 10,000 cases costs: of a suite that does nothing, on three nodes of a Ray cluster on loopback.

    python tests/fleet_record.py [CASES] [--workers] [--local]

Every case is one that needs more memory than there is, by formula: its node settles it without a worker, so that what
takes time is the run itself: planning, Ray, and a record on disk for each case before the next one of its device. With
`--workers` each is begun in a worker of its own, as every case is that is measured; with `--local` there is no Ray.
Prints the seconds, the processor time of the driver, and its memory as records come in.
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
from contextlib import ExitStack, contextmanager
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


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def driver_seconds(pid: int) -> float:
    """Processor time of a process by now, its children's left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def take(tree: Path, cases: int, batch: int, executor: Sequence[str]) -> dict[str, object]:
    """Runs the cases, looking at the driver all the while."""
    options = ("--suite", "noop", "--op", "dwconv", "--device", "cpu", "--batch", str(batch), "--resolution", "7")
    channels = ",".join(map(str, range(1, cases + 1)))
    command = [sys.executable, "runner.py", *options, "--channels", channels, "--output", "out"]
    began = time.monotonic()
    driver = subprocess.Popen(
        [*command, *executor],
        cwd=tree,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    records, seen, memory, measured, processor = tree / "out" / "records.jsonl", 0, {}, 0.0, 0.0
    while driver.poll() is None:
        time.sleep(0.2)
        if records.exists():
            with records.open("rb") as file:
                seen = sum(1 for _ in file)
            if seen < cases:
                measured = time.monotonic() - began
                memory[10 * seen // cases], processor = resident(driver.pid), driver_seconds(driver.pid)
    return {
        "cases": seen,
        "exit": driver.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "seconds_to_the_last_record": round(measured, 1),
        "driver_processor_seconds": round(processor, 1),
        "driver_memory_by_tenth": {f"{10 * tenth} %": size for tenth, size in memory.items()},
    }


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """The address of the nodes, for as long as they are needed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    plain = {"num_cpus": 0, "object_store_memory": 80_000_000}
    head = {**plain, "include_dashboard": False, "temp_dir": str(folder / "ray")}
    running = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(NODES):
            running.add_node(**plain, resources={"exclusive_cores": 2})
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
