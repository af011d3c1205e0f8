"""The operator on CUDA, run on the CPU: values and gradients against float64 loops, plain and under sanitizers, by the
kernels that the table chooses; every line, races, and bytes against the floor of the general ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from ddf_by_taps import Settings
from test_native import DTYPES, FAR_LAYOUTS, LAYOUTS, Case, Gradients, channels_last, contiguous
from torch import Tensor

from suites.core import emulation
from suites.core.emulation.operator_kernels import Kernels

pytestmark = pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))


def sanitizer() -> str:
    """The path of g++'s address sanitizer, or ""."""
    if emulation.missing():
        return ""
    command = ["g++", "-print-file-name=libasan.so"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return said if Path(said).is_absolute() else ""


#: How the kernels are built whose values are tested. The tests of the sanitizers run all others with "address", so that
#: these are not run, and the kernels not built, a second time without.
KIND = os.environ.get("DDF_EMULATED", "" if sanitizer() else "plain")

Layout = Callable[[Tensor], Tensor]


class OnCpu(Case):
    """A case that the CUDA kernels compute, on the CPU, into outputs full of nan."""

    kernels: Kernels
    backward_kernel = ""  # by its name in backward.def, "" for the table's choice

    @property
    def options(self) -> dict[str, Any]:
        s = self.settings
        return {"stride": s.stride, "dilation": s.dilation, "combine": s.combine}

    def status(self, out: Tensor, entry: str, kernel: str | None = None) -> int:
        """The error of a forward pass into `out`, by a function of csrc/ddf/ddf.h."""
        return self.kernels.status(entry, self.kernels.params(*self.tensors[:3], out, **self.options), kernel)

    def forward(self) -> Tensor:
        return self.by("")

    def by(self, kernel: str) -> Tensor:
        """The output by the kernel of that name, "" for the table's choice."""
        features, channel, spatial, out = self.tensors
        out = torch.full_like(out, torch.nan)
        self.kernels.forward(features, channel, spatial, out, **self.options, entry="cuda_forward_by", kernel=kernel)
        return out

    def backward(self, wanted: tuple[bool, bool, bool] = (True, True, True)) -> Gradients:
        gradients = tuple(torch.full_like(t, torch.nan) for t in self.tensors[:3])
        asked = tuple(g if w else None for g, w in zip(gradients, wanted, strict=True))
        features, channel, spatial, grad = self.tensors
        self.kernels.backward(grad, features, channel, spatial, asked, **self.options, kernel=self.backward_kernel)
        return gradients


def on(kernels: Kernels) -> type[OnCpu]:
    return type("OnThisCpu", (OnCpu,), {"kernels": kernels})


def general(kind: type[OnCpu]) -> type[OnCpu]:
    """Cases whose results are the general kernels', whatever the tables mean for them."""
    return type("General", (kind,), {"forward": lambda self: self.by("general"), "backward_kernel": "apart"})


@pytest.fixture(scope="module")
def cuda_on_cpu() -> type[OnCpu]:
    if not KIND:
        pytest.skip("run under sanitizers, by a test of its own; here by DDF_EMULATED=plain")
    return on(Kernels(KIND))


def misaligned(t: Tensor) -> Tensor:
    """Contiguous, but beginning at an odd element of its memory, in the middle of nan."""
    room = t.new_full((t.numel() + 9,), torch.nan)
    return room[3:-6].view(t.shape).copy_(t)


def padded_rows(t: Tensor) -> Tensor:
    """Rows that begin at whole 16 bytes, and end before."""
    n, c, h, w = t.shape
    return t.new_full((n, c, h, w // 8 * 8 + 8), torch.nan)[..., :w].copy_(t)


# -------------------------------------------------------------------------------------------------------------- values


EVERY_LAYOUT = (*LAYOUTS, misaligned, padded_rows)


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 5, 7, 9])
def test_outputs(cuda_on_cpu: type[OnCpu], k: int, dtype: torch.dtype, layout: Layout) -> None:
    for settings in (Settings(), Settings(2), Settings(1, 2, "add"), Settings(3, 4), Settings(2, 1, "add")):
        cuda_on_cpu((2, 9, 5, 6), k, settings, dtype, (layout,) * 4).check_forward()


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(cuda_on_cpu: type[OnCpu], dtype: torch.dtype, layout: Layout) -> None:
    for k, settings in ((1, Settings()), (3, Settings(2)), (3, Settings(1, 2, "add")), (5, Settings(3, 1, "add"))):
        for kind in (cuda_on_cpu, general(cuda_on_cpu)):
            kind((1, 3, 5, 6), k, settings, dtype, (layout,) * 4).check_backward()


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 8, 14, 14),
        (3, 4, 7, 7),
        (1, 33, 7, 8),  # a warp of channels and one more
        (1, 5, 3, 65),  # rows that end one pixel after two warps
        (1, 2, 33, 40),
        (1, 70, 1, 1),
        (2, 1, 40, 1),
        (1, 3, 17, 63),
    ],
)
def test_tails(cuda_on_cpu: type[OnCpu], shape: tuple[int, int, int, int], dtype: torch.dtype, layout: Layout) -> None:
    for settings in (Settings(), Settings(stride=2, combine="add")):
        for kind in (cuda_on_cpu, general(cuda_on_cpu)):
            kind(shape, 3, settings, dtype, (layout,) * 4).check_forward()


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(1, 2, 16, 17), (1, 1, 40, 1), (1, 33, 1, 3)])
def test_tails_of_gradients(cuda_on_cpu: type[OnCpu], shape: tuple[int, int, int, int], layout: Layout) -> None:
    for settings in (Settings(), Settings(stride=2, combine="add")):
        for kind in (cuda_on_cpu, general(cuda_on_cpu)):
            kind(shape, 3, settings, torch.float32, (layout,) * 4).check_backward()


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("other", [channels_last, misaligned])
def test_layouts_that_differ(cuda_on_cpu: type[OnCpu], other: Layout, which: int) -> None:
    """Of features, channel filter, spatial filter and output, one is laid out in another way."""
    layouts = tuple(other if i == which else contiguous for i in range(4))
    case = cuda_on_cpu((1, 8, 8, 16), 3, Settings(), torch.float32, layouts)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("special", [(torch.nan,), (torch.inf, -torch.inf)])
def test_what_is_not_finite_is_passed_on(cuda_on_cpu: type[OnCpu], special: tuple[float, ...], layout: Layout) -> None:
    case = cuda_on_cpu((1, 3, 5, 6), 3, Settings(), torch.float32, (layout,) * 4, special=special)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_same_bits_in_every_order(cuda_on_cpu: type[OnCpu], combine: str) -> None:
    case = cuda_on_cpu((2, 5, 9, 12), 3, Settings(combine=combine), torch.float32)
    results = []
    for seed in range(10):
        case.kernels.seed(seed)
        results.append((case.forward(), *case.backward()))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_gradients_that_are_not_wanted_are_left_alone(cuda_on_cpu: type[OnCpu]) -> None:
    case = cuda_on_cpu((1, 3, 5, 6), 3, Settings(), torch.float32)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        assert [not g.isnan().any() for g in case.backward(wanted)] == list(wanted)


# ------------------------------------------------------------------------------------------------ sanitizers, coverage


def kernels_by_file(folder: Path = emulation.CSRC / "ddf") -> dict[str, set[str]]:
    """Names of the functions that run on the GPU and are launched, of all files below a folder that have some."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.cu*")):
        text = path.read_text()
        heads = re.findall(r"__global__([^{;]*)\{", text)
        assert len(heads) == text.count("__global__")
        for head in heads:
            while "(" in head:  # launch bounds and parameters, the innermost parentheses first
                head = re.sub(r"\([^()]*\)", "", head)
            found.setdefault(path.name, set()).add(head.split()[-1])
    return found


def executed_lines(counts: Path, objects: Path, folder: Path) -> dict[tuple[str, int], int]:
    """How often each line of the kernels below a folder ran, those of what is inlined into them included."""
    kernels = set().union(*kernels_by_file(folder).values())
    names = {f"{len(name)}{name}" for name in kernels}  # as they stand in a mangled name
    lines: dict[tuple[str, int], int] = {}
    for notes in objects.glob("*.gcno"):
        shutil.copy(notes, counts)
        command = ["gcov", "--json-format", "--stdout", notes.stem + ".gcda"]
        told = subprocess.run(command, cwd=counts, capture_output=True, text=True, check=True).stdout
        for file in json.loads(told)["files"]:
            path = Path(file["file"])
            if path.suffix not in (".cu", ".cuh") or path.name == "device.cuh":
                continue
            for line in file["lines"]:
                if any(name in line.get("function_name", "") for name in names):
                    key = (path.name, line["line_number"])
                    lines[key] = lines.get(key, 0) + line["count"]
    return lines


def lines_under_sanitizers(
    file: str, counts: Path, folder: Path = emulation.CSRC / "ddf"
) -> dict[tuple[str, int], int]:
    """Runs the other tests of a file under the address and undefined-behaviour sanitizers; `executed_lines` of them."""
    if not sanitizer():
        pytest.skip("no address sanitizer for g++")
    library = emulation.compile_kernels(sorted(folder.rglob("*.cu")), "address")
    environment = {
        **os.environ,
        "DDF_EMULATED": "address",
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "GCOV_PREFIX": str(counts),
        "GCOV_PREFIX_STRIP": "99",
    }
    # nothing captured: a sanitizer ends the process at once, and its words would go with it
    options = ["-q", "-x", "-n0", "--capture=no", "-p", "no:cacheprovider", "-k", "not sanitizers and not checker"]
    command = [sys.executable, "-m", "pytest", *options, "-m", "not slow and not gpu", file]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return executed_lines(counts, library.parent, folder)


def assert_every_line_ran(lines: dict[tuple[str, int], int], files: Iterable[str]) -> None:
    """Of the kernels of these files."""
    assert {name for name, _ in lines} >= set(files) != set()
    assert not sorted(place for place, count in lines.items() if count == 0 and place[0] in files)


@pytest.mark.slow
def test_values_under_sanitizers_with_every_line_of_the_general_kernels(tmp_path: Path) -> None:
    lines = lines_under_sanitizers(__file__, tmp_path)
    assert_every_line_ran(lines, set(kernels_by_file()) - set(kernels_by_file(emulation.CSRC / "ddf" / "cuda")))


# ------------------------------------------------------------------------------------------------------------- checker


@pytest.fixture(scope="module")
def checked() -> tuple[type[OnCpu], emulation.Checked]:
    kernels = Kernels("checked")
    return on(kernels), emulation.Checked(kernels.path)


@pytest.mark.parametrize("layouts", FAR_LAYOUTS)
def test_checker_of_offsets_beyond_32_bits(
    checked: tuple[type[OnCpu], emulation.Checked], layouts: tuple[Layout, ...]
) -> None:
    """The address sanitizer has no shadow for so much memory."""
    case = checked[0]((2, 2, 5, 6), 3, Settings(), torch.float16, layouts)
    case.check_forward()
    case.check_backward()


def look(case: OnCpu, checker: emulation.Checked) -> None:
    """Runs the general kernels of a case under the checker, and shows that it changes no value."""
    features, channel, spatial, grad = case.tensors
    gradients = tuple(torch.full_like(t, torch.nan) for t in (features, channel, spatial))
    out = torch.full_like(grad, torch.nan)
    names = ("features", "channel", "spatial", "grad", "out", "grad_features", "grad_channel", "grad_spatial")
    with checker.watch(dict(zip(names, (*case.tensors, out, *gradients), strict=True))):
        case.kernels.forward(*case.tensors[:3], out, **case.options, entry="cuda_forward_by", kernel="general")
        case.kernels.backward(grad, features, channel, spatial, gradients, **case.options, kernel="apart")
    assert not any(t.isnan().any() for t in (out, *gradients))


@pytest.mark.parametrize("layout", [contiguous, channels_last, misaligned])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "k", "settings"),
    [
        ((1, 9, 9, 10), 3, Settings()),
        ((2, 3, 9, 10), 3, Settings(stride=2, combine="add")),
        ((1, 2, 14, 14), 5, Settings()),
        ((1, 1, 7, 7), 7, Settings()),
        ((1, 5, 9, 33), 1, Settings()),
    ],
)
def test_checker_finds_no_race(
    checked: tuple[type[OnCpu], emulation.Checked],
    shape: tuple[int, int, int, int],
    k: int,
    settings: Settings,
    dtype: torch.dtype,
    layout: Layout,
) -> None:
    cuda_on_cpu, checker = checked
    look(cuda_on_cpu(shape, k, settings, dtype, (layout,) * 4), checker)
    assert not checker.races()


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_checker_counts_do_not_depend_on_the_order(
    checked: tuple[type[OnCpu], emulation.Checked], layout: Layout
) -> None:
    cuda_on_cpu, checker = checked
    case = cuda_on_cpu((2, 9, 9, 10), 3, Settings(), torch.float32, (layout,) * 4)
    counts = []
    for seed in range(5):
        case.kernels.seed(seed)
        look(case, checker)
        counts.append(([asdict(t) for t in checker.traffic()], checker.shared()))
    assert all(c == counts[0] for c in counts)


def test_checker_sees_outputs_written_once(checked: tuple[type[OnCpu], emulation.Checked]) -> None:
    """Blocks share no sector of the output where rows are whole sectors, and every sector is written."""
    cuda_on_cpu, checker = checked
    look(cuda_on_cpu((1, 16, 16, 32), 3, Settings(), torch.float32), checker)
    written = [t for t in checker.traffic() if t.direction == "write"]
    assert {t.buffer for t in written} == {"out", "grad_features", "grad_channel", "grad_spatial"}
    out = next(t for t in written if t.buffer == "out")
    assert out.requested == out.least == out.fetched == out.touched == 16 * 16 * 32 * 4 // 32


def test_checker_finds_the_race_of_every_kernel_without_its_barriers(
    checked: tuple[type[OnCpu], emulation.Checked],
) -> None:
    """All __syncthreads left out: every kernel that shares memory now races, and gives nan or wrong sums."""
    cuda_on_cpu, checker = checked
    case = cuda_on_cpu((2, 9, 9, 10), 3, Settings(), torch.float32)
    with case.kernels.without_barriers(block=True), pytest.raises(AssertionError):
        look(case, checker)
    sharing = {kernel for kernel, counts in checker.shared().items() if counts["requests"]}
    assert sharing == {race.kernel for race in checker.races() if race.memory == "shared"} != set()
