"""What a run on a Ray cluster costs its driver: 10,000 cases of a suite that does nothing, on three nodes on loopback.

    python tests/fleet_record.py [CASES]

Every case is one that needs more memory than there is, by formula: its node settles it without a worker, so that what
takes time is the run itself: planning, Ray, and a record on disk for each case before the next one of its device.
Prints the seconds, the processor time of the driver, and its memory as records come in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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


def take(tree: Path, address: str, cases: int) -> dict[str, object]:
    """Runs the cases, looking at the driver all the while."""
    options = ("--suite", "noop", "--op", "dwconv", "--device", "cpu", "--batch", str(10**9), "--resolution", "7")
    channels = ",".join(map(str, range(1, cases + 1)))
    command = [sys.executable, "runner.py", *options, "--channels", channels, "--output", "out"]
    began = time.monotonic()
    driver = subprocess.Popen(
        [*command, "--executor", "ray", "--ray-address", address],
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


def main(arguments: list[str]) -> int:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="ddf-"))
    plain = {"num_cpus": 0, "object_store_memory": 80_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={**plain, "include_dashboard": False, "temp_dir": str(folder / "ray")}
    )
    try:
        for _ in range(NODES):
            cluster.add_node(**plain, resources={"exclusive_cores": 2})
        tree = folder / "tree"
        sources.pack(ROOT, [], tree)
        shutil.copy(ROOT / "runner.py", tree)
        (tree / "suites" / "noop.py").write_text(NOOP)
        print(json.dumps(take(tree, cluster.address, int(arguments[0]) if arguments else 10_000), indent=2))
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
