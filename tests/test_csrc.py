"""The C++ and CUDA sources: they compile without a warning, for every architecture; the CPU kernels are
run under sanitizers and with the vectors of lesser machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ops.core import build
from suites.core.compiled import compile_sources

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CUDA_SOURCES = sorted(CSRC.rglob("*.cu"))
NVCC = build.find_nvcc()

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc")


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------------ compilers


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("op", sorted(p.name for p in CSRC.iterdir()))
def test_no_warnings(op: str, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` has all tests use the library that this builds."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("CXXFLAGS", "-Wall -Wextra -Werror")
    build.build(op, arches=(), progress=lambda line: None)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda p: p.name)
def test_every_cuda_source_compiles_by_itself_for_every_architecture(source: Path) -> None:
    """And without a warning. Its host code is compiled with the library, by a test below, for which the device code is
    optimised in full, as it is in the hot list for all of these; here less, in half the time."""
    made = compile_sources([source], build.ALL_ARCHES, flags=["-Xcicc=-O1"])
    assert [one.arch for one in made] == [*build.ALL_ARCHES]


@needs_nvcc
@pytest.mark.parametrize(("arches", "newest"), [("75,80", 80), ("75,90", 90)])
def test_a_later_gpu_gets_no_kernels_beyond_the_code_that_it_runs(arches: str, newest: int, tmp_path: Path) -> None:
    """It compiles the newest code when that is loaded; what later GPUs alone have is missing from it."""
    source = tmp_path / "newest.cu"
    source.write_text(f'#include "ddf/cuda/table.h"\nstatic_assert(ddf::newest_arch() == {newest});\n')
    generated = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in arches.split(",")]
    options = ["-std=c++17", "--expt-relaxed-constexpr", f"-I{CSRC}", *generated, "-c", "-o", os.devnull]
    run([str(NVCC), *options, str(source)])


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize(("op", "entry", "branches"), [("ddf", "forward", 1), ("ddf_up", "up_forward", 4)])
def test_a_library_with_cuda_kernels_loads_beside_this_torch(op: str, entry: str, branches: int) -> None:
    code = (
        "import torch; from ops.core import build;"
        f"library = build.build('{op}', arches=('90',));"
        "torch.ops.load_library(str(library.path));"
        f"ones = torch.ones(1, 2, 3, 3), torch.ones(1, 2 * {branches}, 3, 3), torch.ones(1, 9 * {branches}, 3, 3);"
        f"step = round({branches} ** 0.5);"
        f"print(torch.ops.ddf.{entry}(*ones, step, 1, 'mul')[0, 0, step, step].item())"
    )
    command = [sys.executable, "-c", code]
    # one set of CPU kernels is enough to load
    environment = {"DDF_INSTRUCTION_SETS": "baseline", "NVCC_APPEND_FLAGS": "-Werror=all-warnings"}
    assert run(command, **environment) == "9.0\n"


# ------------------------------------------------------------------------------------- CPU kernels, built in other ways

FILES = [f"tests/test_{name}.py" for name in ("native", "native_fused", "native_involution", "native_up", "searches")]
VALUES = (
    "output_matches or gradients_match or edges or every_kernel or 16_bit or padding or empty or asked or threads"
    " or without_spread or one_number"
)


def run_values(**environment: str) -> None:
    """Runs the tests of the operator's values in a process of their own, against a library built with other flags."""
    # nothing captured: a sanitizer ends the process at once, and its words would go with it
    options = ["-q", "-x", "--capture=no", "-p", "no:cacheprovider"]
    run(
        [sys.executable, "-m", "pytest", *options, *FILES, "-m", "not gpu and not slow", "-k", VALUES],
        DDF_EXAMPLES="100",
        **environment,
    )


def run_under_sanitizers(instruction_set: str) -> None:
    library = run(["g++", "-print-file-name=libasan.so"]).strip()
    if not Path(library).is_absolute():
        pytest.skip("no address sanitizer for g++")
    run_values(
        DDF_INSTRUCTION_SETS=instruction_set,
        # -O1 -g1: as the sanitizers' manual advises, and half the time of -O2 -g to compile
        CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g1",
        LD_PRELOAD=library,
        ASAN_OPTIONS="detect_leaks=0",
    )


# Another test between these two: where two processes share the tests, the second then begins when the first has
# compiled what both need.


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers_of_the_baseline() -> None:
    run_under_sanitizers("baseline")


@pytest.mark.slow
def test_narrower_vectors() -> None:
    run_values(DDF_INSTRUCTION_SETS="avx2")


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers_of_avx512() -> None:
    run_under_sanitizers("avx512")
