"""Made-up runs for the tests of the reports.

`python tests/sample_runs.py` writes the golden files anew; `python tests/sample_runs.py DIR` writes 10,000 records,
which `time python runner.py report DIR` then renders.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from reports import Block, Metric, Record, Run  # noqa: E402
from reports.core.verdict_tables import as_csv, as_json, markdown  # noqa: E402
from reports.core.verdicts import Comparison, Verdict  # noqa: E402

RUN = "20260102-030405-ab12"
COMPARISON_FILES = {"comparison.md": markdown, "comparison.csv": as_csv, "comparison.json": as_json}
GOLDEN_FILES = ("report.md", "claims.csv", "tables/latency.md", "tables/latency.csv", "tables/flops.csv")


def environment(run: str = RUN, device: str = "Example CPU") -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run": run,
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:06:05+00:00",
        "argv": ["runner.py", "--suite", "latency,flops", "--output", "my runs"],
        "device": {"kind": "cpu", "name": device},
        "machine": {"cores": 2, "memory": 25_000_000_000, "caches": {"L2": 2_097_152}, "governor": None},
        "software": {"python": "3.11.7", "torch": "2.13.0"},
        "project": {"version": "0.1.0", "revision": "abc123", "dirty": False},
        "warnings": ["load average 3.0 on 2 cores"],
    }


def record(suite: str, op: str, impl: str, size: int | None = None, run: str = RUN, **changes: Any) -> Record:
    """A record without metrics; `changes` are axes, or fields where a record has one of that name."""
    axes: dict[str, Any] = {"channels": 256, "kernel_size": 3}
    if size:
        axes |= {"dtype": "float32", "layout": "nchw", "direction": "forward", "batch": 1}
        axes |= {"height": size, "width": size, "stride": 1, "dilation": 1}
    own = {key: changes.pop(key) for key in ("status", "reason", "metrics", "samples", "settings") if key in changes}
    axes |= changes
    if op.startswith("ddf"):
        axes.setdefault("combine", "mul")
    case = f"{suite}:{op}/{impl}@cpu:" + ":".join(map(str, axes.values()))
    return Record(run, case, 1, suite, op, impl, "cpu", axes, **{"status": "ok", **own})


def latency(op: str, impl: str, size: int, seconds: float, **changes: Any) -> Record:
    """A case of the suite `latency`, its bounds 2 % below and 4 % above."""

    def timed(name: str, value: float) -> Metric:
        return Metric(name, "s", value, value * 0.98, value * 1.04, "less")

    return record(
        "latency",
        op,
        impl,
        size,
        metrics=[
            timed("latency_wall", seconds),
            timed("latency_cold", 1.5 * seconds),
            Metric("max_error", "1", 2.5e-7, better="less"),
            Metric("macs", "MAC", 256 * 9.0 * size * size),
            Metric("roof_fraction", "1", 0.86, better="more"),
        ],
        samples=[Block("latency_wall", process, 0, 1.5, 3, [seconds, 1.01 * seconds]) for process in range(3)],
        settings={"threads": 2, "roof": "copy", "stopped": {"latency_wall": ["tight", "ceiling"]}, "unheard_of": [1]},
        **changes,
    )


def sample() -> Run:
    """Two suites, with a case that crashed, one skipped, one that does not fit, and an uninstalled counter."""
    records = []
    for size, scale in ((7, 1.0), (14, 4.0), (28, 16.0)):
        records += [
            latency("conv", "torch", size, 1e-3 * scale),
            latency("dwconv", "torch", size, 2e-5 * scale),
            latency("ddf_op", "composite", size, 6e-5 * scale),
            latency("ddf_op", "native", size, 2.2e-5 * scale),
        ]
    records += [
        latency("dyfilter", "torch", 7, 0.2),
        record("latency", "dyfilter", "torch", 14, status="skipped", reason="forecast 4 s a call | ask with --seconds"),
        record("latency", "dyfilter", "torch", 28, status="does_not_fit", reason="needs 118 GB, 25 GB are free"),
    ]
    records[3] = record("latency", "ddf_op", "native", 7, status="crashed", reason="killed by SIGSEGV")
    for op, macs in (("conv", 115_605_504), ("dwconv", 451_584), ("ddf_op", 451_584)):
        counted = [Metric("macs", "MAC", macs), Metric("macs_formula", "MAC", macs)]
        counted.append(Metric("macs_fvcore", "MAC", None, status="skipped", reason="fvcore is not installed"))
        note = {"counter": "macs_torch", "kind": "mul", "macs": 451_584, "reason": "elementwise"}
        differences = [note] if op == "ddf_op" else []
        records.append(record("flops", op, "torch", 14, metrics=counted, settings={"differences": differences}))
    return Run(Path("runs") / RUN, environment(), records)


def sample_comparison() -> Comparison:
    """One of each verdict, an op whose name is markup, and numbers of every size."""
    case = "latency:{}/native@cpu:float32:nchw:forward:n1c256h56w56k3s1d1"
    timed = {"unit": "s", "processes": 9}
    verdicts = [
        Verdict(
            case.format("conv"),
            "latency_wall",
            verdict="same",
            base=0.01,
            new=0.0101,
            ratio=1.01,
            low=0.98,
            high=1.04,
            p=0.71,
            detectable=0.042,
            **timed,
        ),
        Verdict(
            case.format("ddf_op"),
            "latency_wall",
            verdict="slower",
            base=8e-4,
            new=1.2e-3,
            ratio=1.5,
            low=1.46,
            high=1.53,
            p=4.1e-5,
            detectable=0.03,
            worse=True,
            **timed,
        ),
        Verdict(
            case.format("ddf_op"),
            "latency_cold",
            verdict="faster",
            base=2e-3,
            new=2e-4,
            ratio=0.1,
            low=0.09,
            high=0.11,
            p=4.1e-5,
            detectable=0.055,
            **timed,
        ),
        Verdict(
            case.format("my|op<b>*"),
            "latency_wall",
            "s",
            "ambiguous",
            3e-6,
            9e-6,
            3.0,
            p=0.1,
            processes=3,
            needed=4,
            reason="3 processes cannot decide it, 4 can",
        ),
        Verdict(
            case.format("dwconv"),
            "latency_wall",
            verdict="ambiguous",
            base=1e-3,
            new=1.1e-3,
            ratio=1.1,
            low=1.05,
            high=1.12,
            p=0.01,
            detectable=0.04,
            placebo=True,
            reason="a placebo moved",
            **timed,
        ),
        Verdict(
            "params:ddf/native@cpu:c256k3", "params", "1", "changed", 137532.0, 137600.0, 137600 / 137532, worse=True
        ),
        Verdict("memory:ddf/native@cpu:c256k3", "peak_memory", "B", "changed", 4096.0, 2048.0, 0.5),
        Verdict("flops:ddf/native@cpu:c256k3", "macs", "MAC", "same", 451584.0, 451584.0, 1.0),
        Verdict(case.format("dyfilter"), "", "", "missing", reason="timeout in NEW: no answer for\n120 s"),
        Verdict(case.format("ddf"), "", "", "not_comparable", reason="threads 2 in BASE, 4 in NEW"),
    ]
    return Comparison("compare", "runs/a", "runs/b", verdicts, notes=["Runs taken apart carry drift."])


def write_golden() -> None:
    """Writes the golden files from what is rendered now."""
    from reports import claims, markdown, tables_csv

    for name, render in COMPARISON_FILES.items():
        (GOLDEN / name).write_text(render(sample_comparison()), encoding="utf-8")
    files = {**tables_csv.serialize([sample()]), **claims.serialize([sample()]), **markdown.serialize([sample()])}
    for name in GOLDEN_FILES:
        (GOLDEN / name).parent.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(str(files[name]), encoding="utf-8")


def write_large(path: Path) -> None:
    """Writes a run of 10,000 records with 180 samples each, to see how long rendering takes."""
    from reports.core.records import RunDirectory

    RunDirectory.create(path, environment())
    with (path / "records.jsonl").open("w", encoding="utf-8") as file:
        for i in range(10_000):
            op, size = ("conv", "dwconv", "ddf_op", "ddf", "dyfilter")[i % 5], 7 * 2 ** (i // 5 % 5)
            made = latency(op, "torch", size, 1e-6 * size**2 * (1 + i % 5), batch=1 + i // 25)
            for block in made.samples:
                block.values = [block.values[0] * (1 + j / 1e6) for j in range(60)]
            file.write(json.dumps(made.to_json()) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_large(Path(sys.argv[1]))
    else:
        write_golden()
