"""What Nsight Compute says of one call, where it is on the PATH: bytes that device memory moved, and how near its peak.

`ncu` runs a process of its own, `python -m suites.core.ncu`, which makes the case ready, warms up, and lets one call be
profiled. The counters need rights that a driver may deny; then there are no such metrics, and the settings say why.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

from reports import Json, Metric
from suites import Case

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
THROUGHPUT = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
TIME = "gpu__time_duration.sum"
#: Of ncu's units, what one is.
UNITS = {
    **{f"{prefix}byte": 1000.0**i for i, prefix in enumerate(("", "K", "M", "G"))},
    "nsecond": 1e-9,
    "usecond": 1e-6,
    "msecond": 1e-3,
    "second": 1.0,
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "%": 0.01,
}
#: Seconds that ncu may take; it replays each kernel several times.
TIMEOUT = 100


def dram(case: Case, seed: int) -> tuple[list[Metric], Json]:
    """Metrics of one call of the case, and settings; nothing without ncu."""
    if shutil.which("ncu") is None:
        return [], {}
    command = ["ncu", "--csv", "--profile-from-start", "off", "--metrics", ",".join((READ, WRITTEN, THROUGHPUT, TIME))]
    command += [sys.executable, "-m", "suites.core.ncu", json.dumps({"case": case.to_json(), "seed": seed})]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return [], {"ncu": f"took longer than {TIMEOUT} s"}
    metrics = parse(done.stdout)
    if not metrics:
        words = [line for line in (done.stdout + done.stderr).splitlines() if "==ERROR==" in line]
        return [], {"ncu": " ".join(words[:1]) or f"gave nothing, exit code {done.returncode}"}
    return metrics, {}


def parse(text: str) -> list[Metric]:
    """Sums over the kernels of a call; the throughput is their mean, weighed by time. Empty if there is no kernel."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    kernels: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(lines):
        number = float(row["Metric Value"].replace(",", "")) * UNITS[row["Metric Unit"]]
        kernels.setdefault(row["ID"], {})[row["Metric Name"]] = number
    seconds = sum(kernel[TIME] for kernel in kernels.values())
    if not seconds:
        return []
    moved = sum(kernel[READ] + kernel[WRITTEN] for kernel in kernels.values())
    peak = sum(kernel[THROUGHPUT] * kernel[TIME] for kernel in kernels.values()) / seconds
    # not exact: what else is in the caches differs from run to run
    return [
        Metric("dram_bytes", "B", moved, moved, moved, better="less"),
        Metric("dram_throughput_fraction", "1", peak, peak, peak),
    ]


def main(text: str) -> None:
    """Makes the case ready and lets one call be profiled."""
    import torch

    from suites.core.bench import Bench
    from suites.core.worker import prepare_process

    request = json.loads(text)
    case = Case.from_json(request["case"])
    prepare_process(case.process, case.kind)
    torch.set_grad_enabled(case.point.backward)
    call = Bench(case, request["seed"], check=False).call
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1])
