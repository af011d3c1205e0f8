"""What the operating system tells of this machine; needs no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from reports import Json


def describe_machine() -> Json:
    """Processor, memory, kernel and load, for `run.json`."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "caches": cpu_caches(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "governor": read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or None,
        "load": os.getloadavg()[0],
    }


def cores() -> int:
    """Processors that this process may run on."""
    return len(affinity())


def affinity() -> tuple[int, ...]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


#: Those of the process as it began: a thread that is bound leaves its one core to every thread and process it starts.
PROCESSORS = affinity()


def threads() -> set[int]:
    """The threads of this process, by the system's numbers; none where it does not tell (Linux does)."""
    return set(map(int, os.listdir("/proc/self/task"))) if sys.platform == "linux" else set()


def bind_threads(threads: Sequence[int]) -> bool:
    """Binds threads of this process to their `places`.

    Returns:
        Whether they are bound.
    """
    where = places(len(threads))
    for thread, place in zip(threads, where, strict=False):
        os.sched_setaffinity(thread, place)
    return bool(where)


def places(count: int) -> list[set[int]]:
    """The core of each of `count` threads, where they are most of the process's cores (Linux); else none.

    Else the scheduler puts two of them on one core whenever something else has just held the other, and takes
    milliseconds to notice: every call then takes twice its time. With cores to spare it has room, and two programs that
    both began with the first core would share it.
    """
    found = _places(PROCESSORS, count)
    bound = sys.platform == "linux" and count > 1 and len(found) / 2 < count <= len(found)
    return found[:count] if bound else []


def _places(processors: Sequence[int], count: int) -> list[set[int]]:
    """What one thread is bound to: a core with all its processors, or one of them where threads are more than cores."""
    cores: dict[str, set[int]] = {}
    for number in processors:
        siblings = read(Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")) or str(number)
        cores.setdefault(siblings, set()).add(number)
    return list(cores.values()) if count <= len(cores) else [{number} for number in processors]


def describe_project(root: Path) -> Json:
    """Git revision of the checkout, whether it has uncommitted changes, and its place in the history; None outside one.

    `committed` is the committer's time in UTC; `ancestors`, the commits that led there, orders those of one second.
    """
    told = _output(["git", "-C", str(root), "log", "-1", "--format=%H%n%ct%n%s"]).split("\n", 2)
    if len(told) < 3:
        return {"revision": None, "dirty": None, "subject": None, "committed": None, "ancestors": None}
    revision, seconds, subject = told
    changes = _output(["git", "-C", str(root), "status", "--porcelain"])
    ancestors = _output(["git", "-C", str(root), "rev-list", "--count", "HEAD"])
    committed = datetime.fromtimestamp(int(seconds), UTC).isoformat(timespec="seconds")
    place = {"subject": subject, "committed": committed, "ancestors": int(ancestors or 0)}
    return {"revision": revision, "dirty": bool(changes), **place}


def describe_compiler() -> str | None:
    """First line of the version of the C++ compiler that the build takes."""
    asked = os.environ.get("CXX")
    found = [name for name in ([asked] if asked else ["g++", "c++", "clang++"]) if shutil.which(name)]
    return _output([found[0], "--version"]).partition("\n")[0] or None if found else None


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout.strip()


def available_memory() -> int:
    """Bytes of host memory that can be had without swapping."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def cpu_name() -> str:
    """The processor's model."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_caches() -> dict[str, int]:
    """Bytes of the first core's data caches, by level: `L1`, `L2`, ..."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if read(index / "type") in ("Data", "Unified"):
            found["L" + read(index / "level")] = parse_size(read(index / "size"))
    return found


def last_level_cache() -> int:
    """Bytes of the largest cache; 32 MiB where the system does not tell."""
    return max(cpu_caches().values(), default=32 * 2**20)


def parse_size(text: str) -> int:
    """Bytes in a size as the kernel prints it, like `36608K`."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def parse_list(text: str) -> set[int]:
    """The numbers of a list as the kernel prints it, like `0-2,8`."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _lines(path: str) -> list[str]:
    return read(Path(path)).splitlines()


def read(path: Path) -> str:
    """The text of a file, stripped; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
