"""What `ab` finds, live: comparisons of commits whose difference is known, one after the other, in random order.

`python tests/live_record.py FILE N [OPTION ...]` makes a scratch clone with two commits after the present one:
`nothing` changes a comment in the sources of the native operator, `planted` slows its forward pass by 5 % at 56 x 56
and 112 x 112. Then N times each it runs `ab` of either against the present commit, with the options (`--processes 7`),
and appends what it said to FILE, a JSON object a line.
Without N it sums a FILE up.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from reports.core.calibration import Count  # noqa: E402

KINDS = ("nothing", "planted")
SOURCE = "csrc/ddf/ddf_cpu.cpp"
FORWARD = "  run(params, kernels().near.forward, kernels().general.forward, parallel_for);\n"
PLANTED = f"""\
  const auto begin = std::chrono::steady_clock::now();
{FORWARD}\
  const auto end = std::chrono::steady_clock::now();
  const bool slowed = params.out_height == 56 || params.out_height == 112;
  while (slowed && std::chrono::steady_clock::now() < end + (end - begin) * 5 / 100) {{
  }}
"""
#: What is compared: two cases that the planted commit slows, and the placebo that `ab` adds.
CASES = ("--op", "ddf_op", "--impl", "native", "--resolution", "56,112")


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=live record", "-c", "user.email=live@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def scratch_clone(folder: Path) -> None:
    """A clone with the tags `nothing` and `planted`, each a commit after `base`."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    git(folder, "tag", "base")
    source = folder / SOURCE
    text = source.read_text()
    assert text.count(FORWARD) == 1, "the planted change does not fit the sources"
    for kind, changed in (
        ("nothing", text.replace(FORWARD, f"  // The same as before.\n{FORWARD}")),
        ("planted", "#include <chrono>\n" + text.replace(FORWARD, PLANTED)),
    ):
        git(folder, "checkout", "-q", "base")
        source.write_text(changed)
        git(folder, "commit", "-qam", kind)
        git(folder, "tag", kind)
    git(folder, "checkout", "-q", "base")


def compare(folder: Path, kind: str, *options: str) -> dict[str, Any]:
    """One comparison, and all that it said."""
    with tempfile.TemporaryDirectory() as output:
        began, load = time.monotonic(), os.getloadavg()[0]
        command = ["runner.py", "ab", "base", kind, *CASES, *options]
        done = subprocess.run(
            [sys.executable, *command, "--output", output], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            sys.exit(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
        seconds = round(time.monotonic() - began, 1)
        environment = json.loads((Path(output) / "run.json").read_text())
        said = json.loads((Path(output) / "comparison.json").read_text())
    return {
        "kind": kind,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "load": round(load, 2),
        "exit": done.returncode,
        "command": "python " + " ".join(command),
        "device": environment["device"]["name"],
        "revision": environment["project"]["revision"],
        "verdicts": said["verdicts"],
    }


def summary(lines: list[dict[str, Any]]) -> str:
    """What a record comes to."""
    told = []
    for kind in KINDS:
        some = [line for line in lines if line["kind"] == kind]
        if not some:
            continue
        words = [[v["verdict"] for v in line["verdicts"] if not v.get("placebo")] for line in some]
        moved = sum(any(word in ("slower", "faster") for word in found) for found in words)
        found = sum(all(word == "slower" for word in found) for found in words)
        doubted = sum("a placebo" in v.get("reason", "") for line in some for v in line["verdicts"][:1])
        pairs = sorted(v["processes"] for line in some for v in line["verdicts"][:1])
        seconds = sorted(line["seconds"] for line in some)
        what = f"both slowed cases found in {Count(found, len(some))}" if kind == "planted" else ""
        what = what or f"false alarms in {Count(moved, len(some))}"
        told.append(
            f"{kind}: {what}, {doubted} in doubt for a placebo that moved; {pairs[0]} to {pairs[-1]} pairs, "
            f"{seconds[0]:.0f} to {seconds[-1]:.0f} s (median {seconds[len(seconds) // 2]:.0f})"
        )
    return "\n".join(told)


def main(arguments: list[str]) -> int:
    file = Path(arguments[0])
    count = int(arguments[1]) if len(arguments) > 1 else 0
    options = tuple(arguments[2:]) or ("--processes", "7")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clone"
        if count:
            scratch_clone(folder)
            for kind in KINDS:  # built beforehand
                compare(folder, kind, "--processes", "1")
        for number, kind in enumerate(random.sample(KINDS * count, 2 * count), 1):
            line = compare(folder, kind, *options)
            with file.open("a") as kept:
                kept.write(json.dumps(line, separators=(",", ":")) + "\n")
            words = ", ".join(f"{v['verdict']} {v.get('ratio') or 0:.3f}" for v in line["verdicts"])
            print(f"[{number}/{2 * count}] {kind}: {words} ({line['seconds']} s)", flush=True)
    print(summary([json.loads(line) for line in file.read_text().splitlines()]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
