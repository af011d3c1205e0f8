"""The instrument held against others: the same closures timed by them, `python -m suites.core.instruments`.

On a CPU: torch.utils.benchmark (one process, blocks of calls) and pyperf (fresh processes, if installed). On CUDA:
triton.testing.do_bench (cache flushed before each call) and nvbench (`cuda-bench`, cold), each if installed.
Every instrument gets the closure of the same case with the same inputs, and each says the median of what it saw.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from suites.core.machine import PROCESSORS

ROOT = Path(__file__).resolve().parents[2]
Call = Callable[[], Any]

#: Cases, as op/impl/resolution.
CASES = ("dwconv/torch/7", "dwconv/torch/56", "ddf_op/native/7", "ddf_op/native/56", "conv/torch/28")
#: Seconds that an instrument may sample one case.
SECONDS = 1.0


def closure(case: str, device: str) -> Call:
    """The closure that `latency` times, made ready in this process as a worker's."""
    import torch

    from ops import Point, load, op_files
    from suites.core.devices import open_device
    from suites.core.worker import prepare_process

    name, impl, size = case.split("/")
    prepare_process({"malloc": "steady", "threads": len(PROCESSORS), "tf32": 0}, device)
    torch.set_grad_enabled(False)
    op = next(ops[name] for ops in map(load, op_files()) if name in ops)
    where = open_device(device).torch
    point = Point(height=int(size), width=int(size), extra={axis.name: axis.default for axis in op.extra_axes})
    return op.impls[impl].prepare(op.build(point, where, torch.Generator(where).manual_seed(0)), point)


def by_ours(call: Call, device: str) -> float:
    from suites.core.devices import open_device

    opened = open_device(device)
    return statistics.median(opened.clocks(call)[opened.main_clock]().block(SECONDS).values)


def by_torch(call: Call, device: str) -> float:
    import torch
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=SECONDS).median)


def by_triton(call: Call, device: str) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, rep=int(1000 * SECONDS), return_mode="median")) / 1e3


def by_nvbench(call: Call, device: str) -> float:
    """The median of cold samples on nvbench's own stream."""
    import cuda.bench as nvbench
    import torch

    def benchmark(state: Any) -> None:
        stream = torch.cuda.ExternalStream(state.get_stream().addressof())

        def launch(_: Any) -> None:
            with torch.cuda.stream(stream):
                call()

        state.exec(launch)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nvbench.json"
        nvbench.register(benchmark)
        nvbench.run_all_benchmarks(["nvbench", "--json", str(file), "--timeout", str(10 * SECONDS)])
        told = json.loads(file.read_text())
    summaries = told["benchmarks"][0]["states"][0]["summaries"]
    return next(float(s["data"][0]["value"]) for s in summaries if s["tag"] == "nv/cold/time/gpu/median")


def by_pyperf(case: str, device: str) -> float:
    """The median over fresh processes, each of which makes the closure ready.

    They get all cores that this process began with: it has bound itself to one since, and a process that inherits that
    computes with one thread.
    """
    import pyperf

    setup = f"from suites.core.instruments import closure; call = closure({case!r}, {device!r})"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pyperf.json"
        options = ["--processes", "5", "--values", "5", "--quiet", "--output", str(file), "--setup", setup]
        command = [sys.executable, "-m", "pyperf", "timeit", *options, "call()"]
        unbound = functools.partial(os.sched_setaffinity, 0, PROCESSORS)
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, preexec_fn=unbound)
        return float(pyperf.Benchmark.load(str(file)).median())


#: Other instruments by kind of device; pyperf stands apart, as it makes its own processes.
OTHERS: Mapping[str, Mapping[str, Callable[[Call, str], float]]] = {
    "cpu": {"torch.utils.benchmark": by_torch},
    "cuda": {"triton.testing.do_bench": by_triton, "nvbench": by_nvbench},
}


def held(case: str, device: str) -> dict[str, float]:
    """The median by instrument, in seconds, ours first; those that are not installed are left out."""
    call, kind = closure(case, device), device.partition(":")[0]
    found = {"latency": by_ours(call, device)}
    for name, instrument in OTHERS[kind].items():
        with contextlib.suppress(ImportError):
            found[name] = instrument(call, device)
    if kind == "cpu":
        with contextlib.suppress(ImportError):
            found["pyperf"] = by_pyperf(case, device)
    return found


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row a case, our median, and that of every other instrument as a multiple of it."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| case | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for case, row in rows.items():
        ours = row[names[0]]
        others = (f"x {row[name] / ours:.3f}" if name in row else "" for name in names[1:])
        lines.append(f"| {case} | {ours * 1e6:.1f} us | " + " | ".join(others) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m suites.core.instruments", description="Times cases by several.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("cases", nargs="*", default=CASES, help="op/impl/resolution")
    options = parser.parse_args()
    print(table({case: held(case, options.device) for case in options.cases}))


if __name__ == "__main__":
    main()
