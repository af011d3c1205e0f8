"""The C++ and CUDA sources: they compile without a warning, for every architecture; the CUDA kernels are run on the
CPU; the CPU kernels are run under sanitizers and with the vectors of lesser machines."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ddf_by_taps import Settings
from test_native import FAR_LAYOUTS, Case, channels_last, contiguous, cropped, sliced, transposed
from torch import Tensor

from ops.core import build

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
def test_no_warnings(op: str, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("CXXFLAGS", "-Werror")
    build.build(op, arches=(), cache=tmp_path, progress=lambda line: None)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda p: p.name)
def test_every_cuda_source_compiles_by_itself_for_every_architecture(source: Path, tmp_path: Path) -> None:
    arches = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in build.ALL_ARCHES]
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Icsrc", "--threads=0", "-Werror=all-warnings"]
    run([str(NVCC), *flags, *arches, "-c", str(source), "-o", str(tmp_path / "object.o")])


@needs_nvcc
@pytest.mark.slow
def test_a_library_with_cuda_kernels_loads_beside_this_torch(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from ops.core import build;"
        "library = build.build('ddf', arches=('90',), cache=Path(sys.argv[1]));"
        "torch.ops.load_library(str(library.path));"
        "ones = torch.ones(1, 2, 3, 3);"
        "print(torch.ops.ddf.forward(ones, ones, torch.ones(1, 9, 3, 3), 1, 1, 'mul')[0, 0, 1, 1].item())"
    )
    assert run([sys.executable, "-c", code, str(tmp_path)]) == "9.0\n"


# ----------------------------------------------------------------------------------------- CUDA kernels, run on the CPU


class View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 4)]

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        return cls(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.stride()))


class Params(ctypes.Structure):
    """As in csrc/ddf/ddf.h."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("combine", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("kernel_size", "stride", "dilation")),
        *((name, View) for name in ("features", "channel", "spatial", "out")),
        *((name, View) for name in ("grad_features", "grad_channel", "grad_spatial")),
    ]


class OnCpu(Case):
    """A case that the CUDA kernels compute, on the CPU."""

    library: ctypes.CDLL

    def params(self, out: Tensor) -> Params:
        features, channel, spatial, _ = self.tensors
        p = Params()
        p.dtype = (torch.float32, torch.float64, torch.float16, torch.bfloat16).index(features.dtype)
        p.combine = ("mul", "add").index(self.settings.combine)
        p.batch, p.channels, p.height, p.width = features.shape
        p.out_height, p.out_width = out.shape[2:]
        p.kernel_size, p.stride, p.dilation = channel.shape[2], self.settings.stride, self.settings.dilation
        p.features, p.channel, p.spatial, p.out = map(View.of, (features, channel, spatial, out))
        return p

    def forward(self) -> Tensor:
        out = torch.full_like(self.tensors[3], torch.nan)
        assert self.library.forward(ctypes.byref(self.params(out)), 0, None) == 0
        return out

    def backward(self, wanted: tuple[bool, bool, bool] = (True, True, True)) -> tuple[Tensor, ...]:
        gradients = tuple(torch.full_like(t, torch.nan) for t in self.tensors[:3])
        p = self.params(self.tensors[3])
        p.grad_features, p.grad_channel, p.grad_spatial = map(View.of, gradients)
        assert self.library.backward(ctypes.byref(p), 0, None) == 0
        return gradients


@pytest.fixture(scope="module")
def cuda_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> type[OnCpu]:
    """The kernels compiled by the C++ compiler, with the CUDA headers and a header that stands for the GPU."""
    if NVCC is None:
        pytest.skip("no nvcc, and with it no CUDA headers")
    said = subprocess.run(
        [NVCC, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    ).stderr.splitlines()
    includes = next(line for line in said if "INCLUDES=" in line).partition("=")[2].replace('"', "").split()
    library = tmp_path_factory.mktemp("cuda_on_cpu") / "library.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", *includes, "-Icsrc", "-x", "c++"]
    sources = map(str, sorted((CSRC / "ddf").rglob("*.cu")))
    run(["g++", *flags, "-include", "suites/core/emulation/cuda_on_cpu.h", *sources, "-o", str(library)])
    loaded = ctypes.CDLL(str(library))
    loaded.forward = loaded._ZN3ddf12cuda_forwardERKNS_6ParamsEiPv
    loaded.forward_by = loaded._ZN3ddf15cuda_forward_byEPKcRKNS_6ParamsEiPv
    loaded.paper = loaded._ZN3ddf18cuda_paper_forwardERKNS_6ParamsEiPv
    loaded.backward = loaded._ZN3ddf13cuda_backwardERKNS_6ParamsEiPv
    return type("OnThisCpu", (OnCpu,), {"library": loaded})


@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced, cropped, transposed])
@pytest.mark.parametrize(
    ("dtype", "combine"),
    [
        (torch.float32, "mul"),
        (torch.float32, "add"),
        (torch.float64, "mul"),
        (torch.float16, "add"),
        (torch.bfloat16, "mul"),
    ],
)
@pytest.mark.parametrize(("k", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 3, 4), (5, 2, 2)])
def test_cuda_kernels_on_the_cpu(
    cuda_on_cpu: type[OnCpu],
    k: int,
    stride: int,
    dilation: int,
    dtype: torch.dtype,
    combine: str,
    layout: Callable[[Tensor], Tensor],
) -> None:
    case = cuda_on_cpu((2, 9, 5, 6), k, Settings(stride, dilation, combine), dtype, (layout,) * 4)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("layouts", FAR_LAYOUTS)
def test_cuda_kernels_reach_beyond_32_bits(
    cuda_on_cpu: type[OnCpu], layouts: tuple[Callable[[Tensor], Tensor], ...]
) -> None:
    case = cuda_on_cpu((2, 2, 5, 6), 3, Settings(), torch.float16, layouts)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("special", [(torch.nan,), (torch.inf, -torch.inf)])
def test_cuda_kernels_pass_on_what_is_not_finite(cuda_on_cpu: type[OnCpu], special: tuple[float, ...]) -> None:
    case = cuda_on_cpu((1, 3, 5, 6), 3, Settings(), torch.float32, special=special)
    case.check_forward()
    case.check_backward()


# ------------------------------------------------------------------------------------- CPU kernels, built in other ways

FILES = ("tests/test_native.py", "tests/test_searches.py")
VALUES = "output_matches or gradients_match or edges or every_kernel or 16_bit or padding or empty or asked or threads"


def run_values(**environment: str) -> None:
    """Runs the tests of the operator's values in a process of their own, against a library built with other flags."""
    # nothing captured: a sanitizer ends the process at once, and its words would go with it
    options = ["-q", "-x", "--capture=no", "-p", "no:cacheprovider"]
    run(
        [sys.executable, "-m", "pytest", *options, *FILES, "-m", "not gpu and not slow", "-k", VALUES],
        DDF_EXAMPLES="100",
        **environment,
    )


@pytest.mark.slow
def test_narrower_vectors() -> None:
    run_values(CXXFLAGS="-DDDF_WIDEST_VECTOR=256")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [128, 512])
def test_address_and_undefined_behaviour_sanitizers(bits: int) -> None:
    library = run(["g++", "-print-file-name=libasan.so"]).strip()
    if not Path(library).is_absolute():
        pytest.skip("no address sanitizer for g++")
    run_values(
        # -O1 -g1: as the sanitizers' manual advises, and half the time of -O2 -g to compile
        CXXFLAGS=f"-DDDF_WIDEST_VECTOR={bits} -fsanitize=address,undefined -fno-sanitize-recover=all -O1 -g1",
        LD_PRELOAD=library,
        ASAN_OPTIONS="detect_leaks=0",
    )
