"""CUDA kernels run on the CPU: checked, and their memory traffic counted, without a GPU.

`cuda_on_cpu.h` lets the C++ compiler compile .cu files as they are; `checker.cpp` looks at each of their accesses. Both
say what they do and what they cannot see.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.core import build

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    *("CSRC", "KINDS", "Checked", "EmulationError", "Launch", "Race", "Site", "Traffic"),
    *("compile_kernels", "demangled", "kept", "missing", "short"),
]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
HEADER, CHECKER = HERE / "cuda_on_cpu.h", HERE / "checker.cpp"

#: Of undefined behaviour, what the address sanitizer finds too once memory is touched, or what kernels have none of;
#: their checks are half of what the compiler takes for all.
UNCHECKED = "object-size,null,nonnull-attribute,returns-nonnull-attribute,vptr,pointer-overflow"

#: Of -O1, passes that follow the checker's calls: they take time, and make no access more or less.
COARSE = ("-fno-forward-propagate", "-fno-cprop-registers", "-fno-move-loop-invariants", "-fno-tree-coalesce-vars")

#: Ways to build kernels. plain: as they are. address: the address and undefined-behaviour sanitizers, which end the
#: process, and lines counted for gcov; the process needs libasan loaded first. checked: with `checker.cpp`.
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("-O1",),
    "address": (
        "-Og",
        "-fsanitize=address,undefined",
        f"-fno-sanitize={UNCHECKED}",
        "-fno-sanitize-recover=all",
        "--coverage",
    ),
    "checked": ("-O1", *COARSE, "-fsanitize=thread"),
}

#: Device code reads memory as other types than it was written as.
FLAGS = ("-std=c++17", "-g1", "-fPIC", "-w", "-fno-strict-aliasing")
CHECKER_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-w", "-fvisibility=hidden")


class EmulationError(RuntimeError):
    """Kernels cannot be built or run on the CPU; the text says why."""


# ------------------------------------------------------------------------------------------------------------- building


def missing() -> str | None:
    """What this machine lacks to run CUDA kernels on its CPU, or None."""
    if shutil.which("g++") is None:
        return "no g++"
    return None if build.find_nvcc() else "no nvcc, and with it no CUDA headers"


def compile_kernels(sources: Sequence[Path], kind: str, csrc: Path = CSRC, cache: Path | None = None) -> Path:
    """The library of these .cu files for the CPU, built unless one of the same content is there.

    Args:
        sources: files below `csrc` or anywhere else.
        kind: one of KINDS.
        csrc: where headers are looked for.
        cache: the directory of builds; by default `.build` in the checkout.

    Raises:
        EmulationError: if something is missing or the compiler fails; the text is the compiler's.
    """
    lacking = missing()
    if lacking:
        raise EmulationError(lacking)
    cache = cache or ROOT / ".build"
    cache.mkdir(parents=True, exist_ok=True)
    checker = kept(cache, "checker", [CHECKER, HEADER], _compile_checker) if kind == "checked" else None
    headers = sorted(path for path in csrc.rglob("*") if path.is_file() and path.suffix not in (".cpp", ".cu"))

    def make(work: Path) -> None:
        _compile(sources, kind, csrc, checker, work)

    return kept(cache, kind, [*sources, *headers, HEADER, *([CHECKER] if checker else [])], make) / "library.so"


def kept(cache: Path, name: str, inputs: Sequence[Path], make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, named after the content of all inputs, made unless it is there."""
    digest = hashlib.sha256(repr((name, KINDS, FLAGS, CHECKER_FLAGS)).encode())
    for path in (*inputs, Path(__file__)):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    for compiler in (shutil.which("g++"), build.find_nvcc()):  # CUDA's headers come with nvcc
        real = Path(str(compiler)).resolve()
        digest.update(f"\0{real} {real.stat().st_size} {real.stat().st_mtime_ns}".encode())
    target = cache / f"emulated-{name}-{digest.hexdigest()[:16]}"
    with (cache / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            work = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=cache))
            try:
                make(work)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


@functools.cache
def _cuda_headers() -> tuple[str, ...]:
    """Options that put CUDA's headers on the path, as nvcc puts them."""
    command = [str(build.find_nvcc()), "--dryrun", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    line = next((line for line in said if "INCLUDES=" in line), "")
    return tuple(option.replace("-I", "-isystem", 1) for option in line.partition("=")[2].replace('"', "").split())


def _compile_checker(work: Path) -> None:
    _run(["g++", *CHECKER_FLAGS, *_cuda_headers(), "-c", str(CHECKER), "-o", str(work / "checker.o")])


def _compile(sources: Sequence[Path], kind: str, csrc: Path, checker: Path | None, work: Path) -> None:
    flags = [*FLAGS, *KINDS[kind], *_cuda_headers(), "-x", "c++", "-include", str(HEADER)]
    objects = [checker / "checker.o"] if checker else []
    commands = []
    for i, source in enumerate(sources):
        folder = csrc
        if checker:
            folder = work / f"csrc-{i}"
            source = _unrolled(csrc, source, folder)
        objects.append(work / f"{i}-{source.stem}.o")
        commands.append(["g++", *flags, "-I", str(folder), "-c", str(source), "-o", str(objects[-1])])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(_run, commands))
    # The checker's functions stand in for the thread sanitizer's, whose library is not linked.
    linked = [flag for flag in KINDS[kind] if flag != "-fsanitize=thread"]
    _run(["g++", "-shared", *linked, *map(str, objects), "-o", str(work / "library.so")])


def _unrolled(csrc: Path, source: Path, to: Path) -> Path:
    """Copies the sources, with `#pragma unroll` in g++'s words, line for line: each access of an unrolled loop then has
    a place in the code of its own, as on the GPU, and by it the accesses of lanes are matched. Returns the copy of
    `source`."""
    shutil.copytree(csrc, to)
    copy = to / (source.relative_to(csrc) if source.is_relative_to(csrc) else source.name)
    shutil.copy(source, copy)
    for path in (*to.rglob("*.cu"), *to.rglob("*.cuh")):
        path.write_text(re.sub(r"#pragma unroll\b(?! *\d)", "#pragma GCC unroll 128", path.read_text()))
    return copy


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise EmulationError(f"the compiler failed:\n{chr(10).join(words[:12])}")
    return done.stdout


# ------------------------------------------------------------------------------------------------------------- checking


@dataclass(frozen=True)
class Race:
    """Accesses that nothing orders.

    Args:
        kernel: its name, with template arguments.
        between: `warp`, `block` or `blocks`: threads of one warp, of one block, of several.
        memory: `shared`, or the name of a buffer.
        places: file:line of both, ordered.
        count: how often, in steps of two bytes.
    """

    kernel: str
    between: str
    memory: str
    places: tuple[str, str]
    count: int


@dataclass(frozen=True)
class Site:
    """One access in the code, with what all warps asked there.

    Args:
        units: sectors of 32 bytes in global memory, wavefronts in shared memory.
        least: of these, what the same bytes take when they lie side by side.
    """

    kernel: str
    place: str
    memory: str
    direction: str
    requests: int
    units: int
    least: int


@dataclass(frozen=True)
class Traffic:
    """One direction of one buffer, in one kernel; sectors are 32 bytes.

    Args:
        requested: sectors that all requests of warps asked for together.
        least: what these requests would ask for with their bytes side by side.
        fetched: sectors that each block touched, summed over blocks.
        touched: sectors that any block touched.
    """

    kernel: str
    buffer: str
    direction: str
    requests: int
    requested: int
    least: int
    fetched: int
    touched: int


@dataclass(frozen=True)
class Launch:
    """One launch: blocks of the grid, threads and bytes of shared memory of a block."""

    kernel: str
    blocks: int
    threads: int
    shared: int


class Checked:
    """What `checker.cpp` saw of the kernels of a library that were run since `watch` began.

    Args:
        library: the path of a build of kind `checked`.
    """

    def __init__(self, library: Path) -> None:
        self.path = library
        self.library = ctypes.CDLL(str(library))
        self.library.checker_report.restype = ctypes.c_char_p
        self._seen: dict[str, list[dict[str, Any]]] = {"launches": [], "races": []}
        self._bytes: dict[str, int] = {}
        self._symbols: dict[int, str] = {}
        self._places: dict[int, str] = {}

    @contextmanager
    def watch(self, buffers: Mapping[str, Tensor], traffic_alone: bool = False) -> Iterator[None]:
        """Looks at accesses to shared memory and to these tensors while the kernels that are called inside run;
        `traffic_alone`: to these tensors alone, and not for races."""
        self.library.checker_reset()
        self.library.checker_traffic_alone(int(traffic_alone))
        for name, tensor in buffers.items():
            if tensor.numel():
                last = sum((s - 1) * d for s, d in zip(tensor.shape, tensor.stride(), strict=True))
                span = (last + 1) * tensor.element_size()
                begin = ctypes.c_void_p(tensor.data_ptr())
                self.library.checker_buffer(name.encode(), begin, ctypes.c_size_t(span))
        self._bytes = {name: tensor.numel() * tensor.element_size() for name, tensor in buffers.items()}
        yield
        self._seen = json.loads(self.library.checker_report())

    def races(self) -> list[Race]:
        """Races, the worst first."""
        counts: Counter[tuple[str, str, str, tuple[str, str]]] = Counter()
        for race in self._seen["races"]:
            first, second = sorted(self._place(site) for site in race["sites"])
            counts[self._kernel(race["kernel"]), race["between"], race["memory"], (first, second)] += race["count"]
        return [Race(*key, count) for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    def launches(self) -> list[Launch]:
        """In the order in which they were made."""
        return [Launch(kernel, t["blocks"], t["threads"], t["shared_bytes"]) for kernel, t in self._launches()]

    def sites(self) -> list[Site]:
        """Every access in the code, by kernel and place."""
        counts: dict[tuple[str, str, str, str], Counter[str]] = {}
        for kernel, launch in self._launches():
            for s in launch["sites"]:
                key = (kernel, self._place(s["site"]), s["memory"], s["direction"])
                counts.setdefault(key, Counter()).update({n: s[n] for n in ("requests", "units", "least")})
        return [Site(*key, c["requests"], c["units"], c["least"]) for key, c in sorted(counts.items())]

    def traffic(self) -> list[Traffic]:
        """Global memory, by kernel, buffer and direction."""
        names = ("requests", "sectors", "least_sectors", "block_sectors", "touched_sectors")
        counts: dict[tuple[str, str, str], Counter[str]] = {}
        for kernel, launch in self._launches():
            for t in launch["traffic"]:
                key = (kernel, t["buffer"], t["direction"])
                counts.setdefault(key, Counter()).update({n: t[n] for n in names})
        return [Traffic(*key, *(c[n] for n in names)) for key, c in sorted(counts.items())]

    def over_floor(self) -> dict[tuple[str, str], float]:
        """By kernel and buffer: the bytes of all sectors that blocks touched, each block its own, over the bytes of the
        buffer, which have to be touched once."""
        told: Counter[tuple[str, str]] = Counter()
        for t in self.traffic():
            told[t.kernel, t.buffer] += t.fetched * 32
        return {key: total / self._bytes[key[1]] for key, total in told.items()}

    def shared(self) -> dict[str, dict[str, int]]:
        """By kernel: requests to shared memory, their wavefronts and least wavefronts, and reads (in steps of two
        bytes) of what nothing had written; bytes of a block's arrays."""
        told: dict[str, Counter[str]] = {}
        for kernel, launch in self._launches():
            told.setdefault(kernel, Counter()).update(launch["shared"])
            told[kernel]["bytes"] = max(told[kernel]["bytes"], launch["shared_bytes"])
        return {kernel: dict(counts) for kernel, counts in sorted(told.items())}

    def _launches(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for launch in self._seen["launches"]:
            yield self._kernel(launch["kernel"]), launch

    def _kernel(self, address: int) -> str:
        """`forward_kernel<float, false>` at an address."""
        if not self._symbols:
            lines = _run(["nm", "-C", "--defined-only", str(self.path)]).splitlines()
            self._symbols = {int(a, 16): short(name) for a, _, name in (line.split(" ", 2) for line in lines)}
        return self._symbols[address]

    def _place(self, address: int) -> str:
        """Where an access stands in the source, `a.cu:9`, or `b.cuh:3 < a.cu:9` for one in an inlined function; helpers
        of the emulation and of device.cuh are left out."""
        if address not in self._places:
            said = _run(["addr2line", "-i", "-e", str(self.path), hex(address)]).splitlines()
            lines = [Path(line.partition(" ")[0]).name for line in said]
            own = [line for line in lines if not line.startswith(("device.cuh:", HEADER.name))]
            self._places[address] = " < ".join(own or lines)
        return self._places[address]


def demangled(names: Iterable[str]) -> list[str]:
    """`forward_kernel<float, false>` for each mangled name of a kernel."""
    return [short(line) for line in _run(["c++filt", *names]).splitlines()]


def short(name: str) -> str:
    """A function's name without its return type, namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::|^void ", "", name)
    return name.rpartition("(")[0] or name
