"""Whether this machine is fit to measure: everything that can be read, watched or measured in some ten seconds.

What the operating system tells is in `suites.core.findings`; here is what workers find out about the device, the
libraries and the noise of a reference call, and how all of it is told. No setting is changed.
"""

from __future__ import annotations

import json
import shutil
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict

from ops import AxisValue
from reports import SCHEMA_VERSION, Json
from suites import PROCESS_AXES
from suites.core.cases import UsageError
from suites.core.environment import packages
from suites.core.findings import (
    OK,
    PROBLEM,
    UNKNOWN,
    WARNING,
    Finding,
    Host,
    Look,
    at_once,
    finding,
    grade,
    timer,
    watched,
)
from suites.core.machine import cores, describe_compiler
from suites.core.plan import ANSWER_TIMEOUT
from suites.core.processes import Server, Worker, WorkerLost
from suites.core.schedule import BLOCK_SECONDS
from suites.core.session import Session

#: Seconds for which other programs and steal time are watched.
WATCH_SECONDS = 1.0
#: Readings of the clock that its step is taken from.
READINGS = 10_000
#: Fresh processes of the reference call, and blocks in each.
PROCESSES, BLOCKS = 3, 8
#: Spread of medians, (largest - smallest) / median: from here on a warning, from here on a problem.
SPREAD = (0.05, 0.20)
#: Involuntary context switches in a block, likewise. A core that is shared costs one every few milliseconds.
SWITCHES = (2.0, 8.0)
#: Columns of the text.
WIDTH = 110
#: The oldest torch that the native operator serves.
OLDEST_TORCH = (2, 11)

EPILOG = """\
Each finding is ok, a warning (measure, but know of it), a problem (do not measure) or unknown (cannot be read here).
Nothing is changed. Libraries that are not built yet are built, which takes longer than the rest.

exit codes: 0 no problem; 2 usage error; 3 warnings, only under --strict; 4 a problem
"""

#: Blocks of the reference call, as workers answer them, by process.
Blocks = Sequence[Sequence[Json]]


def examine(device: str, say: Callable[[str], None]) -> list[Finding]:
    """Looks at everything.

    Args:
        device: auto, or as torch names it.
        say: called with each step of a build.

    Raises:
        UsageError: if there is no such device.
    """
    host = Host()
    found = [*at_once(host), *watched(host, WATCH_SECONDS)]
    found.append(timer(host, [time.perf_counter() for _ in range(READINGS)]))
    found += [compiler(describe_compiler()), optional_packages(packages(), shutil.which("ninja"))]
    with Session(()) as session:
        session.replicate(PROCESSES)
        try:
            found += in_workers(session.servers, device, say)
        except WorkerLost as lost:
            found.append(workers(lost))
    return found


def in_workers(servers: Sequence[Server], device: str, say: Callable[[str], None]) -> list[Finding]:
    """What takes torch to find out.

    Raises:
        UsageError: if there is no such device.
        WorkerLost: if a worker dies or cannot do what it is asked.
    """
    process: dict[str, AxisValue] = {name: axis.default for name, axis in PROCESS_AXES.items()} | {"threads": cores()}
    with closing(servers[0].fork()) as worker:
        opened = worker.ask({"do": "device", "device": device, "process": process}, ANSWER_TIMEOUT)
        if opened["status"] != "ok":
            raise UsageError(f"--device: {opened['reason'].partition(': ')[2] or opened['reason']}")
        not_built = ask(worker, {"do": "build", "libraries": ["ddf", "roofs"]}, say)["failed"]
        seen = ask(worker, {"do": "examine", "device": opened["name"]})
    blocks = reference_blocks(servers, {"do": "reference", "device": opened["name"], "process": process})
    found = [
        torch_version(opened["software"]["torch"]),
        native_operator(seen["native"]),
        roofs(not_built, seen["roofs"]),
        within(blocks),
        between(blocks),
        switches(blocks),
    ]
    if opened["device"]["kind"] == "cuda":
        found += [driver(opened["device"]["driver"]), neighbours(seen["others"]), throttling(blocks)]
    return found


def ask(worker: Worker, request: Json, say: Callable[[str], None] | None = None) -> Json:
    """The answer of a worker that does what it is asked.

    Raises:
        WorkerLost: if it does not.
    """
    answer = worker.ask(request, ANSWER_TIMEOUT, say)
    if answer["status"] != "ok":
        raise WorkerLost(answer["status"], answer["reason"])
    return answer


def reference_blocks(servers: Sequence[Server], request: Json) -> Blocks:
    """Blocks of the reference call in a process of each server, one block at a time, process after process."""
    with ExitStack() as stack:
        processes = [stack.enter_context(closing(server.fork())) for server in servers]
        for worker in processes:
            ask(worker, request)
        block = {"do": "block", "clock": "reference", "seconds": BLOCK_SECONDS}
        rounds = [[ask(worker, block) for worker in processes] for _ in range(BLOCKS)]
    return list(zip(*rounds, strict=True))


# Findings


@finding(
    "workers", "what cannot be asked cannot be measured", "see the reason; `runner.py --dry-run` goes the same way"
)
def workers(lost: WorkerLost) -> Look:
    return PROBLEM, f"{lost.status}: {lost.reason}"


@finding(
    "compiler",
    "without one the native operator and the multiply-add roof are left out",
    "install g++, or name one by CXX",
)
def compiler(version: str | None) -> Look:
    return (OK, version) if version else (PROBLEM, "none is found")


@finding(
    "packages",
    "without ninja nothing is built, without fvcore its count of multiply-accumulates is left out",
    "pip install what is missing",
)
def optional_packages(versions: Mapping[str, str | None], ninja: str | None) -> Look:
    """From versions by package, and where a ninja program is."""
    found = {"ninja": versions["ninja"] or ninja, "fvcore": versions["fvcore"]}
    measured = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    return PROBLEM if not found["ninja"] else OK if found["fvcore"] else WARNING, measured


@finding(
    "torch",
    "the native operator uses the stable interface of torch {}.{}".format(*OLDEST_TORCH),
    "install a later torch",
)
def torch_version(version: str) -> Look:
    major, minor = (int(part) for part in version.split(".")[:2])
    return OK if (major, minor) >= OLDEST_TORCH else PROBLEM, version


@finding("native operator", "its cases are skipped", "see the reason; docs/operator.md tells what the build needs")
def native_operator(missing: str) -> Look:
    return (PROBLEM, missing) if missing else (OK, "built and loaded")


@finding("roofs", "the arithmetic of depthwise operators has no roof to be held against", "see the reason")
def roofs(not_built: Sequence[str], loaded: bool) -> Look:
    reasons = [reason for reason in not_built if "roofs" in reason]
    return (OK, "built and loaded") if loaded else (WARNING, "".join(reasons) or "built, but cannot be loaded")


def medians(blocks: Sequence[Json]) -> list[float]:
    """Seconds of one call, by block."""
    return [statistics.median(block["values"]) for block in blocks]


def spread(values: Sequence[float]) -> float:
    """Relative to the median."""
    return (max(values) - min(values)) / statistics.median(values)


@finding(
    "noise within a process",
    "medians of blocks of one and the same call, in one process, differ by as much; intervals will be as wide",
    "see load, other programs, steal and governor; a run with fewer --threads than cores is steadier on a busy machine",
)
def within(blocks: Blocks) -> Look:
    worst = max(spread(medians(process)) for process in blocks)
    least = min(value for process in blocks for value in medians(process))
    return grade(
        worst, SPREAD
    ), f"{100 * worst:.1f} % among {len(blocks[0])} blocks of a call of {1e3 * least:.3g} ms at best"


@finding(
    "noise between processes",
    "medians of fresh processes differ by as much; a change smaller than that takes more --processes to be seen",
    "see the noise within a process; if that is small, measure with more --processes",
)
def between(blocks: Blocks) -> Look:
    found = spread([statistics.median(medians(process)) for process in blocks])
    return grade(found, SPREAD), f"{100 * found:.1f} % among {len(blocks)} processes"


@finding(
    "context switches",
    "the kernel takes cores away from the measured threads, whose call then lasts whole time slices longer",
    "end other programs, or measure with fewer --threads than there are cores",
)
def switches(blocks: Blocks) -> Look:
    counts = [block["readings"].get("context_switches") for process in blocks for block in process]
    known = [count for count in counts if count is not None]
    if not known:
        return UNKNOWN, "not counted by this clock"
    typical = statistics.median(known)
    measured = f"{typical:g} in a block of {1e3 * BLOCK_SECONDS:g} ms, {max(known)} at most"
    return grade(typical, SWITCHES), measured


@finding("driver", "its version is not in the records", "install nvidia-ml-py, which asks it")
def driver(version: str | None) -> Look:
    return (OK, version) if version else (UNKNOWN, "the driver does not tell")


@finding("programs on the GPU", "they take its multiprocessors, caches and memory from the measured one", "end them")
def neighbours(others: Mapping[str, int] | None) -> Look:
    """From the number of processes besides ours: those that compute, and those that draw, as a desktop does."""
    if others is None:
        return UNKNOWN, "the driver does not tell, as in some containers"
    state = PROBLEM if others["compute"] else WARNING if others["graphics"] else OK
    return state, f"{others['compute']} besides this one, {others['graphics']} with graphics"


@finding(
    "throttling",
    "the GPU lowers its clocks while it is measured; throttled blocks are repeated, and flagged if they stay so",
    "let it cool, look at its fans and power limit, and at what else draws power",
)
def throttling(blocks: Blocks) -> Look:
    readings = [block["readings"] for process in blocks for block in process]
    if not any("throttled" in reading for reading in readings):
        return UNKNOWN, "the driver does not tell"
    reasons = sorted({reason for reading in readings for reason in reading.get("throttled", [])})
    return PROBLEM if reasons else OK, ", ".join(reasons) or "none in any block"


# How it is told


def count(findings: Sequence[Finding], state: str) -> int:
    return sum(found.state == state for found in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, what it means and what to do below those that are not ok, and the verdict."""
    width = max(len(found.name) for found in findings)
    lines = []
    for found in findings:
        lines.append(f"{found.state:8} {found.name:{width}}  {found.measured}")
        if found.advice:
            lines += indented(found.meaning, "  ") + indented(found.advice, "->")
    return "\n".join([*lines, verdict(findings)])


def indented(text: str, mark: str) -> list[str]:
    """Text in lines below a finding, the first of them marked."""
    return textwrap.wrap(text, WIDTH, initial_indent=f"         {mark} ", subsequent_indent=" " * 12)


def verdict(findings: Sequence[Finding]) -> str:
    problems, warnings = count(findings, PROBLEM), count(findings, WARNING)
    words = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((problems, "problem"), (warnings, "warning")) if n]
    return ("not fit to measure: " if problems else "fit to measure" + (": " if words else "")) + ", ".join(words)


def as_json(findings: Sequence[Finding]) -> str:
    """All findings, whole."""
    fit = not count(findings, PROBLEM)
    found = {"schema_version": SCHEMA_VERSION, "fit": fit, "findings": [asdict(found) for found in findings]}
    return json.dumps(found, indent=2)


FORMATS: Mapping[str, Callable[[Sequence[Finding]], str]] = {"text": as_text, "json": as_json}
