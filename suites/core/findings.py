"""Whether this machine is fit to measure, as far as its operating system tells.

Each finding is a small function of a `Host`. None changes a setting, and each says `unknown` where nothing can be read.
`run.json` warns of those that cost no time (`at_once`); `suites.core.doctor` adds those that are watched and measured.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import ParamSpec

from suites.core.clocks import SHORTEST_SAMPLE
from suites.core.machine import affinity, parse_list, read

OK, WARNING, PROBLEM, UNKNOWN = "ok", "warning", "problem", "unknown"

#: Each pair: from here on a warning, from here on a problem.
#: Load average per core.
LOAD = (0.5, 1.0)
#: Cores that other programs use now. One on one of two cores makes two-threaded operators tenfold slower.
BUSY = (0.1, 0.5)
#: The part of the CPU's time that went to other virtual machines.
STEAL = (0.01, 0.05)
#: The clock's step, in seconds: a hundredth and a tenth of the shortest sample.
STEP = (0.01 * SHORTEST_SAMPLE, 0.1 * SHORTEST_SAMPLE)
#: Available memory in bytes, negative because less is worse.
SCARCE = (-4 * 2**30, -(2**30))
#: Programs that use less of a core than this are not named.
NAMED = 0.02


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        state: `ok`, `warning`, `problem` or `unknown`.
        measured: what was found, or why nothing was.
        meaning: what it does to a measurement.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    state: str
    measured: str
    meaning: str
    advice: str = ""


Parameters = ParamSpec("Parameters")
#: A state, and what was measured.
Look = tuple[str, str]


def finding(
    name: str, meaning: str, advice: str
) -> Callable[[Callable[Parameters, Look]], Callable[Parameters, Finding]]:
    """Makes a finding of a function that looks; text that it cannot make sense of is `unknown`."""

    def decorate(look: Callable[Parameters, Look]) -> Callable[Parameters, Finding]:
        @functools.wraps(look)
        def found(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Finding:
            try:
                state, measured = look(*args, **kwargs)
            except (ValueError, LookupError) as error:
                state, measured = UNKNOWN, f"not understood: {error}"
            return Finding(name, state, measured, meaning, advice if state in (WARNING, PROBLEM) else "")

        return found

    return decorate


def grade(value: float, limits: tuple[float, float]) -> str:
    """The state of a value that is the worse the larger it is."""
    warning, problem = limits
    return PROBLEM if value >= problem else WARNING if value >= warning else OK


@dataclass(frozen=True)
class Host:
    """Where the operating system tells of itself.

    Args:
        root: the folder that holds `proc` and `sys`.
        cpus: numbers of the processors that this process may run on.
        system: as `sys.platform` names it.
        process: id of this process.
    """

    root: Path = Path("/")
    cpus: tuple[int, ...] = field(default_factory=affinity)
    system: str = sys.platform
    process: int = field(default_factory=os.getpid)

    def read(self, path: str) -> str:
        """The text of a file below the root; empty if it cannot be read."""
        return read(self.root / path)

    def of_each_cpu(self, path: str) -> dict[int, str]:
        """The text that each processor's folder has at `path`; those left out that have none."""
        texts = {cpu: self.read(f"sys/devices/system/cpu/cpu{cpu}/{path}") for cpu in self.cpus}
        return {cpu: text for cpu, text in texts.items() if text}


# At once


def at_once(host: Host) -> list[Finding]:
    """The findings that cost no time."""
    return [look(host) for look in (system, load, governor, boost, quota, siblings, memory, huge_pages)]


def warnings(findings: Iterable[Finding]) -> list[str]:
    """Those that a run is to be warned of, a line each."""
    return [f"{f.name}: {f.measured}; {f.meaning}" for f in findings if f.state in (WARNING, PROBLEM)]


@finding(
    "system",
    "elsewhere than on Linux there is no heap policy, page fault count or memory limit",
    "measure on Linux; here latencies depend on what a process did before",
)
def system(host: Host) -> Look:
    return OK if host.system == "linux" else WARNING, host.system


@finding("load", "other programs take cores and caches from the measured one", "end them, or wait until they are done")
def load(host: Host) -> Look:
    text = host.read("proc/loadavg")
    if not text:
        return UNKNOWN, "no load average to be read"
    average, cores = float(text.split()[0]), len(host.cpus)
    return grade(average / cores, LOAD), f"average {average:.1f} on {cores} cores"


@finding(
    "governor",
    "other governors than performance move the clock with the load, so that speed depends on what ran before",
    "as root: cpupower frequency-set --governor performance",
)
def governor(host: Host) -> Look:
    found = set(host.of_each_cpu("cpufreq/scaling_governor").values())
    if not found:
        return UNKNOWN, "no frequency scaling to be read, as in virtual machines"
    return OK if found == {"performance"} else WARNING, ", ".join(sorted(found))


@finding(
    "boost",
    "a boosted clock falls with heat and with the number of busy cores",
    "for steadier numbers, as root: echo 0 > /sys/devices/system/cpu/cpufreq/boost (or 1 > .../intel_pstate/no_turbo)",
)
def boost(host: Host) -> Look:
    for path, off in (("cpufreq/boost", "0"), ("intel_pstate/no_turbo", "1")):
        text = host.read(f"sys/devices/system/cpu/{path}")
        if text:
            return (OK, "off") if text == off else (WARNING, "on")
    return UNKNOWN, "no boost setting to be read"


@finding(
    "quota",
    "beyond its quota a control group stands still for the rest of each period, tens of milliseconds at a time",
    "lift the quota, or measure with no more --threads than it allows",
)
def quota(host: Host) -> Look:
    allowed = quotas(host)
    if not allowed:
        return UNKNOWN, "no control group to be read"
    if min(allowed) == float("inf"):
        return OK, "no bound on CPU time"
    state = PROBLEM if min(allowed) < len(host.cpus) else OK
    return state, f"CPU time of {min(allowed):g} cores, {len(host.cpus)} are visible"


def quotas(host: Host) -> list[float]:
    """Cores' worth of time that each control group round this process allows; infinite where it sets no bound."""
    found = []
    for line in host.read("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for folder in (Path(path), *Path(path).parents):
            if controllers == "":  # version 2
                words = host.read(f"sys/fs/cgroup{folder}/cpu.max").split()
            elif "cpu" in controllers.split(","):
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                words = [host.read(f"sys/fs/cgroup/cpu{folder}/{name}") for name in names]
            else:
                continue
            if len(words) == 2 and all(words):
                found.append(float("inf") if words[0] in ("max", "-1") else int(words[0]) / int(words[1]))
    return found


@finding(
    "siblings",
    "two threads on one core share its arithmetic: latency depends on where they happen to run",
    "measure with as many --threads as there are cores, under taskset with one processor of each",
)
def siblings(host: Host) -> Look:
    found = {cpu: parse_list(text) for cpu, text in host.of_each_cpu("topology/thread_siblings_list").items()}
    if not found:
        return UNKNOWN, "no topology to be read"
    cores = len({min(group) for group in found.values()})
    return OK if cores == len(found) else WARNING, f"{len(found)} processors on {cores} cores"


@finding(
    "memory",
    "cases that need more are recorded as does_not_fit, and a machine that swaps measures its disk",
    "end other programs",
)
def memory(host: Host) -> Look:
    for line in host.read("proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            return grade(-available, SCARCE), f"{available / 2**30:.1f} GiB available"
    return UNKNOWN, "no memory information to be read"


@finding(
    "huge pages",
    "with always, whether a buffer gets huge pages, and with it its speed, depends on how fragmented memory is",
    "as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
)
def huge_pages(host: Host) -> Look:
    chosen = host.read("sys/kernel/mm/transparent_hugepage/enabled").partition("[")[2].partition("]")[0]
    if not chosen:
        return UNKNOWN, "no setting to be read"
    return WARNING if chosen == "always" else OK, chosen


# Watched


@dataclass(frozen=True)
class Snapshot:
    """CPU time used so far, in ticks.

    Args:
        cpus: processors of the machine.
        times: of all of them together, by kind.
        processes: of each process by id: its name and ticks.
    """

    cpus: int
    times: Mapping[str, int]
    processes: Mapping[int, tuple[str, int]]


#: The columns of /proc/stat, and those of them in which a program runs here.
KINDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
RUNNING = ("user", "nice", "system", "irq", "softirq")


def snapshot(host: Host) -> Snapshot | None:
    """CPU times now; None where they cannot be read."""
    lines = [line.split() for line in host.read("proc/stat").splitlines() if line.startswith("cpu")]
    if not lines:
        return None
    times = dict(zip(KINDS, map(int, lines[0][1:]), strict=False))
    return Snapshot(max(1, len(lines) - 1), times, process_times(host))


def process_times(host: Host) -> dict[int, tuple[str, int]]:
    """Name and ticks of each process that can be seen."""
    found = {}
    for folder in (host.root / "proc").glob("[0-9]*"):
        head, _, tail = read(folder / "stat").rpartition(")")
        fields = tail.split()
        if len(fields) > 12:  # of proc(5), from the third: utime is the 14th, stime the 15th
            found[int(folder.name)] = (head.partition("(")[2], int(fields[11]) + int(fields[12]))
    return found


def watched(host: Host, seconds: float, sleep: Callable[[float], None] = time.sleep) -> list[Finding]:
    """What goes on in `seconds` in which this program does nothing."""
    before = snapshot(host)
    sleep(seconds)
    after = snapshot(host)
    return [competition(before, after, host.process), steal(before, after)]


def passed(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """Ticks between two snapshots, by kind."""
    return {kind: after.times[kind] - before.times.get(kind, 0) for kind in after.times}


@finding(
    "other programs",
    "a thread that waits for a descheduled sibling waits for whole time slices",
    "end them, or wait until they are done",
)
def competition(before: Snapshot | None, after: Snapshot | None, this: int) -> Look:
    """Cores that programs other than the process `this` used between two snapshots."""
    ticks = passed(before, after) if before and after else {}
    if before is None or after is None or not sum(ticks.values()):
        return UNKNOWN, "no CPU times to be read"
    of_one_cpu = sum(ticks.values()) / after.cpus
    used = {
        process: (program, (now - before.processes.get(process, (program, 0))[1]) / of_one_cpu)
        for process, (program, now) in after.processes.items()
    }
    _, own = used.pop(this, ("", 0.0))
    total = max(0.0, sum(ticks.get(kind, 0) for kind in RUNNING) / of_one_cpu - own)
    loudest = sorted(((cores, program) for program, cores in used.values() if cores >= NAMED), reverse=True)[:3]
    names = "".join(f", {program} {cores:.2f}" for cores, program in loudest)
    return grade(total, BUSY), f"use {total:.2f} of {after.cpus} cores{names}"


@finding(
    "steal",
    "the host gave this virtual machine's time to others, while its clock went on",
    "use a machine of your own, or repeat at another time; ab compares under drift that hits both sides",
)
def steal(before: Snapshot | None, after: Snapshot | None) -> Look:
    ticks = passed(before, after) if before and after else {}
    if "steal" not in ticks or not sum(ticks.values()):
        return UNKNOWN, "no steal time to be read"
    part = ticks["steal"] / sum(ticks.values())
    return grade(part, STEAL), f"{100 * part:.1f} % of CPU time"


@finding(
    "timer",
    f"the clock's step is an error of each sample, which lasts {1e6 * SHORTEST_SAMPLE:g} us at least",
    "choose another clock source, tsc where it is offered (kernel parameter clocksource=)",
)
def timer(host: Host, readings: Sequence[float]) -> Look:
    """From readings of the host clock, in seconds, taken one right after the other."""
    steps = [later - earlier for earlier, later in pairwise(readings) if later > earlier]
    if not steps:
        return UNKNOWN, "the clock stands still"
    source = host.read("sys/devices/system/clocksource/clocksource0/current_clocksource")
    return grade(min(steps), STEP), f"step of {1e6 * min(steps):.3g} us" + (
        f", clock source {source}" if source else ""
    )
