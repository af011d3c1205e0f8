"""The live record of the history: a slow-down of 50 % planted in the C++ source of one of 30 commits of a clone.

`python tests/live_history.py DIR` makes the clone, measures each commit that has no run yet (`--limit S`: for so many
seconds) and adds it to an index; with `--ab` it then holds the planted commit and the one after it against their
parents, by the recipe of CI.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMITS, PLANTED = 30, 20
SOURCE = Path("csrc/ddf/ddf_cpu.cpp")
FORWARD = "  run(params, kernels().near.forward, kernels().general.forward, parallel_for);\n"
SLOW = f"""\
  const auto begin = std::chrono::steady_clock::now();
{FORWARD}\
  const auto end = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() < end + (end - begin) / 2) {{
  }}
"""
MEASURED = (
    "--suite",
    "latency",
    "--op",
    "ddf_op,dwconv",
    "--impl",
    "native,torch",
    "--resolution",
    "56",
    "--seconds",
    "1",
    "--processes",
    "5",
)
NAMED = ("--op", "ddf_op", "--impl", "native", "--resolution", "56", "--processes", "8")


def git(clone: Path, *arguments: str) -> str:
    who = ("-c", "user.name=live", "-c", "user.email=live@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(clone), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make(clone: Path) -> None:
    """A clone with the tags c0 to c29: the planted commit and the next change the C++ source, others the README."""
    git(ROOT, "clone", "--quiet", "--no-local", str(ROOT), str(clone))
    for number in range(COMMITS):
        source, readme = clone / SOURCE, clone / "README.md"
        text = source.read_text()
        if number == PLANTED:
            assert text.count(FORWARD) == 1, "the planted change does not fit the sources"
            source.write_text("#include <chrono>\n" + text.replace(FORWARD, SLOW))
        elif number == PLANTED + 1:
            source.write_text(f"{text}// Commit {number} changes this line alone.\n")
        else:
            readme.write_text(f"{readme.read_text()}\nCommit {number}.\n")
        git(clone, "commit", "--quiet", "--all", "-m", f"Commit {number}{', planted' * (number == PLANTED)}")
        git(clone, "tag", f"c{number}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=float, default=1e9)
    parser.add_argument("--ab", action="store_true")
    options = parser.parse_args()
    folder = options.folder.resolve()
    clone = folder / "clone"
    if not clone.exists():
        make(clone)
    if options.ab:
        for number in (PLANTED, PLANTED + 1):
            git(clone, "checkout", "--quiet", f"c{number}")
            output = folder / f"ab-c{number}"
            command = [str(ROOT / ".ci" / "regressions"), f"c{number - 1}", *NAMED, "--output", str(output)]
            done = subprocess.run(
                command, cwd=clone, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, check=False
            )
            print(f"c{number}: exit code {done.returncode}", flush=True)
        return 0
    began = time.monotonic()
    for number in range(COMMITS):
        run = folder / "runs" / f"c{number:02}"
        if (run / "report.md").exists() or time.monotonic() - began > options.limit:
            continue
        git(clone, "checkout", "--quiet", f"c{number}")
        index = ("--output", str(run), "--track", str(folder / "runs" / "history.sqlite"))
        subprocess.run(
            [sys.executable, "runner.py", *MEASURED, *index], cwd=clone, check=True, stdout=subprocess.DEVNULL
        )
        print(f"c{number}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
