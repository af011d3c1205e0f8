"""Builds the library of an op from its sources in csrc, with ninja, on first use.

A build lands in a directory named after the content of everything that goes into it: sources, flags, compilers, torch.
It appears there by one rename when it is complete, so that a build that was killed leaves nothing to be mistaken for
one. `python -m ops.core.build OP ...` builds ahead of time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from .includes import files_of

__all__ = [
    *("ALL_ARCHES", "BuildError", "Library", "Step", "build", "cuda_arches"),
    *("find_cxx", "find_nvcc", "instruction_sets", "locked", "ninja_file", "run_ninja"),
]

#: What `DDF_CUDA_ARCHES=all` stands for: compute capabilities from Turing to Blackwell.
ALL_ARCHES = ("75", "80", "86", "89", "90", "100", "120")

#: The oldest torch whose stable interface the bindings may use, as the headers want it: a byte each of 2.11.
TARGET_VERSION = "0x020b000000000000"

CXX_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden")  # warnings are looked for by a test
NVCC_FLAGS = ("-std=c++17", "-O3", "--threads=0", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden")

#: Files named *_simd.cpp are compiled once for each: their table of functions is called kernels_<name>, and the library
#: picks one when it runs. A build serves any machine of its family, and nothing has to ask what this one is. The other
#: files are told which there are, as HAS_KERNELS_<name>; `baseline` always is.
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "baseline": ("-O1",),  # rarely run, and a third of the time to compile
        "avx2": ("-mavx2", "-mfma"),
        "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"),
    },
}


#: The folder of the cache that holds object files.
OBJECTS = "objects"


class BuildError(RuntimeError):
    """The library cannot be built; the text says what is missing or what the compiler said first."""


@dataclass(frozen=True)
class Library:
    """A built library.

    Args:
        path: the shared object.
        arches: the compute capabilities of its CUDA kernels; empty where it has none.
    """

    path: Path
    arches: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One command of a build.

    Args:
        target: the file it makes.
        inputs: files that have to be there first.
        run: the command, for a shell.
        what: what is said when it is done.
    """

    target: str
    inputs: tuple[str, ...]
    run: str
    what: str


@dataclass(frozen=True)
class Recipe:
    """Everything that goes into a build.

    Args:
        sources: what is compiled, relative to csrc.
        cxx, nvcc: compilers by path; nvcc is None where no CUDA kernels are built.
        cxx_flags: of every C++ file, the user's last.
        instruction_sets: those of INSTRUCTION_SETS to compile for.
    """

    op: str
    csrc: Path
    sources: tuple[Path, ...]
    cxx: Path
    nvcc: Path | None
    arches: tuple[str, ...]
    cxx_flags: tuple[str, ...]
    instruction_sets: dict[str, tuple[str, ...]]

    @property
    def key(self) -> str:
        """Names the directory of the build."""
        commands = [word for _, _, command in self.commands() for word in command]
        return f"{self.op}-{self._digest([self.op, *commands, *self.link()], self.nvcc)}"

    def object_key(self, name: str, command: list[str]) -> str:
        """Names an object file in the cache, where builds that differ in others share it."""
        return f"{self._digest([name, *command], self.nvcc if name.endswith('.cu.o') else None)}.o"

    def _digest(self, words: Iterable[str], nvcc: Path | None) -> str:
        """Of these words, and of what goes into every step."""
        compilers = [fact for c in (self.cxx, nvcc) if c for fact in _identity(c)]
        parts = [torch.__version__, platform.machine(), *compilers, *words, *self.contents]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The names and digests of all files that may be compiled or included."""
        files = ((p.relative_to(self.csrc), p.read_bytes()) for p in files_of(self.csrc, self.op))
        return tuple(f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in files)

    def commands(self) -> Iterator[tuple[str, Path, list[str]]]:
        """For each object file: its name, its source, and the command that makes it, less `-c source -o object`."""
        include = ["-isystem", str(Path(torch.__file__).parent / "include")]
        cxx = [str(self.cxx), *self.cxx_flags, "-I", str(self.csrc)]
        for source in self.sources:
            if source.suffix == ".cu":
                arches = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.arches]
                newest = max(self.arches, key=int)
                arches.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
                yield (
                    f"{source.stem}.cu.o",
                    source,
                    [str(self.nvcc), "-ccbin", str(self.cxx), *NVCC_FLAGS, *arches, "-I", str(self.csrc)],
                )
            elif source.stem.endswith("_simd"):
                for name, flags in self.instruction_sets.items():
                    yield f"{source.stem}.{name}.o", source, [*cxx, *flags, f"-DKERNELS=kernels_{name}"]
            else:
                has = [f"-DHAS_KERNELS_{name}" for name in self.instruction_sets]
                has += ["-DDDF_CUDA"] if self.nvcc else []
                yield f"{source.stem}.o", source, [*cxx, *include, f"-DTORCH_TARGET_VERSION={TARGET_VERSION}", *has]

    def link(self) -> list[str]:
        """The command that links the objects, less these and `-o library`."""
        libraries = ["-L", str(Path(torch.__file__).parent / "lib"), "-ltorch_cpu", "-ldl"]
        if self.nvcc is None:
            return [str(self.cxx), "-shared", *self.cxx_flags, *libraries]
        # The CUDA runtime is linked in and kept hidden: it then is the one the kernels were compiled for, and the
        # library loads beside a torch without CUDA.
        runtime = ["-cudart=static", "-Xlinker=--exclude-libs=ALL"]
        return [str(self.nvcc), "-ccbin", str(self.cxx), "-shared", *runtime, *libraries]


def build(
    op: str = "ddf",
    *,
    arches: tuple[str, ...] | None = None,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Library:
    """Returns the library of `op`, built if it is not there yet.

    The environment's CXX, CXXFLAGS and CUDA_HOME are honoured, and are part of what names a build.

    Args:
        arches: compute capabilities to compile CUDA kernels for; None leaves the choice to `cuda_arches`.
        cache: the directory of builds; by default `.build` in the checkout, `~/.cache/ddf_ops` for the package.
        progress: called with a line at each step of a build, as `[2/4] ddf_cpu.cpp`; by default they go to stderr.

    Raises:
        BuildError: if a compiler or ninja is missing, or the compiler fails.
    """
    recipe = _recipe(op, cuda_arches() if arches is None else arches)
    cache = cache or _default_cache(recipe.csrc)
    target = cache / recipe.key
    library = Library(target / f"lib{op}.so", recipe.arches)
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        say = progress or _Stderr()
        with locked(cache / f"{recipe.key}.lock", say):
            if not target.is_dir():
                _build(recipe, target, say)
    return library


def cuda_arches() -> tuple[str, ...]:
    """Compute capabilities to build for: those of the present GPUs, or as DDF_CUDA_ARCHES says.

    DDF_CUDA_ARCHES is `all`, `none` or a comma list such as `80,90`. Without it there are none where torch has no CUDA,
    there is no GPU, or nvcc is missing.

    Raises:
        BuildError: if DDF_CUDA_ARCHES is none of these.
    """
    asked = os.environ.get("DDF_CUDA_ARCHES", "")
    if asked == "all":
        return ALL_ARCHES
    if asked == "none":
        return ()
    if asked:
        arches = tuple(asked.split(","))
        if not all(a.isdigit() for a in arches):
            raise BuildError(f"DDF_CUDA_ARCHES: expected all, none or a list such as 80,90, got {asked!r}")
        return arches
    if torch.version.cuda is None or not torch.cuda.is_available() or find_nvcc() is None:
        return ()
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}{minor}" for major, minor in sorted(found))


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The instruction sets to build CPU kernels for, each with its flags: all of this machine's family, or `baseline`
    and those that DDF_INSTRUCTION_SETS lists.

    Raises:
        BuildError: if DDF_INSTRUCTION_SETS names another.
    """
    known = INSTRUCTION_SETS.get(platform.machine(), {"baseline": ()})
    asked = os.environ.get("DDF_INSTRUCTION_SETS")
    if not asked:
        return known
    names = asked.split(",")
    if not known.keys() >= {*names}:
        raise BuildError(f"DDF_INSTRUCTION_SETS: expected a list of {', '.join(known)}, got {asked!r}")
    return {name: flags for name, flags in known.items() if name in ("baseline", *names)}


def find_nvcc() -> Path | None:
    """The CUDA compiler: of CUDA_HOME, on the PATH, or where the toolkit is usually installed."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else []
    for place in (*places, "nvcc", "/usr/local/cuda/bin/nvcc"):
        found = shutil.which(place)
        if found:
            return Path(found)
    return None


def _recipe(op: str, arches: tuple[str, ...]) -> Recipe:
    csrc = _csrc()
    nvcc = find_nvcc() if arches else None
    if arches and nvcc is None:
        raise BuildError("no CUDA compiler: nvcc is neither in CUDA_HOME, nor on the PATH, nor in /usr/local/cuda")
    suffixes = (".cpp", ".cu") if nvcc else (".cpp",)
    sources = tuple(sorted(p for p in (csrc / op).rglob("*") if p.suffix in suffixes))
    flags = (*CXX_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")))
    return Recipe(op, csrc, sources, find_cxx(), nvcc, arches, flags, instruction_sets())


def _csrc() -> Path:
    """The sources: inside the installed package, beside `ops` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "csrc"
    return inside if inside.is_dir() else package.parent / "csrc"


def _default_cache(csrc: Path) -> Path:
    checkout = csrc.parent
    if (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        return checkout / ".build"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddf_ops"


def find_cxx() -> Path:
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "c++", "clang++"]:
        found = shutil.which(name)
        if found:
            return Path(found)
    what = f"CXX={asked} is not a program" if asked else "none of g++, c++, clang++ is on the PATH"
    raise BuildError(f"no C++ compiler: {what}")


def _find_ninja() -> str:
    found = shutil.which("ninja")
    if found:
        return found
    try:
        import ninja
    except ImportError:
        raise BuildError("ninja is missing: pip install ninja") from None
    return str(Path(ninja.BIN_DIR) / "ninja")


def _identity(compiler: Path) -> tuple[str, ...]:
    """Tells one compiler from another without running it, which would cost more than a warm start may."""
    real = compiler.resolve()
    status = real.stat()
    return str(real), str(status.st_size), str(status.st_mtime_ns)


def _version(compiler: Path) -> str:
    """The compiler's own words."""
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{compiler} does not run: {error}") from None
    return done.stdout.strip().splitlines()[-1 if compiler.stem == "nvcc" else 0]


def _build(recipe: Recipe, target: Path, say: Callable[[str], None]) -> None:
    """Builds in a directory beside `target`, which then takes that name."""
    for left_over in target.parent.glob(f"{target.name}.partial-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        compilers = [c for c in (recipe.cxx, recipe.nvcc) if c]
        facts = {
            "op": recipe.op,
            "torch": torch.__version__,
            "compilers": {str(c): _version(c) for c in compilers},
            "flags": recipe.cxx_flags,
            "arches": recipe.arches,
        }
        (work / "build.json").write_text(json.dumps(facts, indent=2) + "\n")
        (target.parent / OBJECTS).mkdir(exist_ok=True)
        (work / "build.ninja").write_text(_ninja_file(recipe, target.parent / OBJECTS))
        run_ninja(work, say)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _ninja_file(recipe: Recipe, objects: Path) -> str:
    """Each object is taken from that folder, or compiled and left there: a second name of the same file."""
    steps = []
    for name, source, command in recipe.commands():
        kept = shlex.quote(str(objects / recipe.object_key(name, command)))
        compiled = shlex.join([*command, "-c", str(source), "-o", name])
        run = f"ln {kept} {name} 2> /dev/null || {{ {compiled} && {{ ln -f {name} {kept} 2> /dev/null || :; }}; }}"
        what = source.name if name.count(".") == 1 else f"{source.name} ({name.split('.')[1]})"
        steps.append(Step(name, (str(source),), run, what))
    names, link = tuple(step.target for step in steps), recipe.link()
    # libraries follow what needs them
    run = shlex.join([link[0], *names, *link[1:], "-o", f"lib{recipe.op}.so"])
    return ninja_file([*steps, Step(f"lib{recipe.op}.so", names, run, "linking")])


def ninja_file(steps: Iterable[Step]) -> str:
    """What ninja is to read to take these steps."""
    lines = ["rule make", "  command = $run", "  description = $what", ""]
    for step in steps:
        lines.append(f"build {_path(step.target)}: make {' '.join(map(_path, step.inputs))}")
        lines += [f"  run = {_value(step.run)}", f"  what = {_value(step.what)}"]
    return "\n".join([*lines, ""])


def _value(text: str) -> str:
    return text.replace("$", "$$")


def _path(path: str) -> str:
    return _value(path).replace(" ", "$ ").replace(":", "$:")


def run_ninja(work: Path, say: Callable[[str], None]) -> None:
    """Takes the steps of `build.ninja` in that folder.

    Raises:
        BuildError: with the first lines that went wrong.
    """
    said: list[str] = []
    # A session of its own keeps a terminal's interrupt from ninja; the signal below is what ends it with its compilers.
    with subprocess.Popen(
        [_find_ninja(), "-C", str(work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"},
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("["):
                    say(line.rstrip())
                elif not line.startswith("ninja:"):
                    said.append(line.rstrip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        # ninja names the failed file and repeats the command, which is long: the compiler's own words follow it.
        words = [line for line in said if not line.startswith("FAILED:") and str(work) not in line]
        text = "\n".join(words[1:13] if len(words) > 1 else words)
        raise BuildError(f"the compiler failed:\n{text}")


class _Stderr:
    """One line on a terminal, rewritten at each step; plain lines elsewhere."""

    def __call__(self, line: str) -> None:
        if sys.stderr.isatty():
            done, _, total = line[1:].partition("]")[0].partition("/")
            end = "\n" if done == total else ""
            print(f"\r\033[Kddf: {line}", end=end, file=sys.stderr, flush=True)
        else:
            print(f"ddf: {line}", file=sys.stderr, flush=True)


@contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock among processes, which the kernel releases when its holder dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that builds the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(ops: list[str]) -> int:
    """Builds these ops and prints where their libraries are; 1 if one cannot be built."""
    try:
        for op in ops:
            library = build(op)
            print(f"{op}: {library.path}, CUDA architectures: {', '.join(library.arches) or 'none'}")
    except BuildError as error:
        print(f"ddf: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
