"""CUDA kernels compiled for architectures of which no GPU need be here: their cubins, and what ptxas says of them.

Each source is compiled once for each architecture, with ninja, and kept by content: of the source, of every header in
csrc, of the flags and the compiler.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ops.core import build
from ops.core.build import BuildError
from suites.core import emulation
from suites.core.hot_list import HotKernel
from suites.core.sass import Code, read_cubin

__all__ = ["CSRC", "BuildError", "Compiled", "Properties", "by_kernel", "compile_sources", "nvcc_version"]

ROOT, CSRC = emulation.ROOT, emulation.CSRC

FLAGS = ("-cubin", "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror=all-warnings", "-Xptxas=-v")


@dataclass(frozen=True)
class Properties:
    """What ptxas says of one kernel: registers of a thread, barriers of a block, and bytes of a thread (stack, spills)
    or a block (shared, the static part)."""

    registers: int
    barriers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True)
class Compiled:
    """One source, for one architecture.

    Args:
        folder: holds `kernels.cubin`, and ptxas's words in `ptxas.txt`.
    """

    source: Path
    arch: str
    folder: Path

    @property
    def cubin(self) -> bytes:
        return (self.folder / "kernels.cubin").read_bytes()

    @cached_property
    def properties(self) -> dict[str, Properties]:
        """By mangled name of the kernel."""
        return parse_ptxas((self.folder / "ptxas.txt").read_text())


def compile_sources(
    sources: Sequence[Path],
    arches: Sequence[str],
    *,
    csrc: Path = CSRC,
    cache: Path | None = None,
    flags: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
) -> list[Compiled]:
    """Every source for every architecture, compiled unless it is there already, in that order.

    Args:
        arches: compute capabilities, as `90`.
        csrc: where headers are looked for.
        cache: the directory of builds; by default `.build` in the checkout.
        flags: of nvcc, after FLAGS.
        progress: called with a line at each step.

    Raises:
        BuildError: if nvcc or ninja is missing, or the compiler fails or warns; the text is the compiler's.
    """
    cache = cache or ROOT / ".build"
    compiler = [str(find_nvcc()), "-ccbin", str(build.find_cxx()), *FLAGS, *flags, "-I", str(csrc)]
    common = _digest(csrc, compiler)
    made = [Compiled(source, arch, cache / _name(source, arch, common)) for source in sources for arch in arches]
    if not all(one.folder.is_dir() for one in made):
        cache.mkdir(parents=True, exist_ok=True)
        with build.locked(cache / "compiled.lock", progress):
            _compile([one for one in made if not one.folder.is_dir()], compiler, cache, progress)
    return made


def by_kernel(compiled: Compiled, kernels: Iterable[HotKernel]) -> dict[str, tuple[Properties, Code]]:
    """What ptxas says of each kernel of the hot list, and its code, by its name.

    Raises:
        BuildError: if one of them is not in the cubin, or more than once.
    """
    codes, properties = read_cubin(compiled.cubin, int(compiled.arch)), compiled.properties
    functions = dict(zip(properties, emulation.demangled(properties), strict=True))
    found = {}
    for kernel in kernels:
        matching = [name for name, function in functions.items() if kernel.is_called(function)]
        if len(matching) != 1:
            raise BuildError(f"{compiled.source.name}: {len(matching)} kernels are {kernel.name}, one was expected")
        found[kernel.name] = properties[matching[0]], codes[matching[0]]
    return found


def find_nvcc() -> Path:
    """The CUDA compiler.

    Raises:
        BuildError: if there is none.
    """
    found = build.find_nvcc()
    if found is None:
        raise BuildError("no CUDA compiler: nvcc is neither in CUDA_HOME, nor on the PATH, nor in /usr/local/cuda")
    return found


def nvcc_version() -> str:
    """As 13.0.88, the version of ptxas too, which makes the instructions; raises as `find_nvcc`."""
    said = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bV([\d.]+)", said)
    if found is None:
        raise BuildError(f"nvcc does not tell its version: {said[-200:]!r}")
    return found[1]


def parse_ptxas(text: str) -> dict[str, Properties]:
    """What `ptxas -v` prints, by mangled name of the kernel; functions that are not inlined are left out."""
    found: dict[str, Properties] = {}
    for part in text.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        own = part[part.index(f"Function properties for {name}") :]
        stack, stores, loads = _numbers(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", own)
        (registers,) = _numbers(r"Used (\d+) registers", own)
        barriers, shared = (
            sum(map(int, re.findall(word, own))) for word in (r"used (\d+) barriers", r"(\d+) bytes smem")
        )
        found[name] = Properties(registers, barriers, stack, stores, loads, shared)
    return found


def _numbers(pattern: str, text: str) -> tuple[int, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise BuildError(f"ptxas does not say {pattern!r}, but {' '.join(text.split())[:200]!r}")
    return tuple(map(int, match.groups()))


def _digest(csrc: Path, compiler: Iterable[str]) -> bytes:
    """Of all that goes into every compilation: flags, the compiler, headers."""
    nvcc = Path(next(iter(compiler))).resolve().stat()
    digest = hashlib.sha256("\0".join([*compiler, str(nvcc.st_size), str(nvcc.st_mtime_ns)]).encode())
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in (".h", ".cuh", ".def")):
        digest.update(f"\0{path.relative_to(csrc)}\0".encode() + path.read_bytes())
    return digest.digest()


def _name(source: Path, arch: str, common: bytes) -> str:
    digest = hashlib.sha256(common + source.read_bytes()).hexdigest()[:16]
    return f"compiled-{source.stem}-sm_{arch}-{digest}"


def _compile(missing: list[Compiled], compiler: list[str], cache: Path, say: Callable[[str], None]) -> None:
    """Compiles each in a folder that takes its place when it is complete, so that an interrupted build keeps what is
    done and leaves nothing half-done."""
    work = Path(tempfile.mkdtemp(prefix="compiled.partial-", dir=cache))
    try:
        steps = []
        for one in missing:
            name = one.folder.name
            (work / name).mkdir()
            command = shlex.join([*compiler, f"-arch=sm_{one.arch}", "-o", f"{name}/kernels.cubin", str(one.source)])
            said, done = f"{name}/ptxas.txt", f"{name}.done"
            run = f"{{ {command} > {said} 2>&1 && mv {name} .. && touch {done}; }} || {{ cat {said}; exit 1; }}"
            steps.append(build.Step(done, (str(one.source),), run, f"{one.source.name} for sm_{one.arch}"))
        (work / "build.ninja").write_text(build.ninja_file(steps))
        build.run_ninja(work, say)
    finally:
        shutil.rmtree(work, ignore_errors=True)
