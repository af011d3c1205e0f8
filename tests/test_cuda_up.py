"""The upsampling operator on CUDA, run on the CPU: values and gradients against float64 loops, plain and under
sanitizers, every line, and races."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_cuda_on_cpu import KIND, Layout, assert_every_line_ran, kernels_by_file, lines_under_sanitizers, misaligned
from test_native import DTYPES, LAYOUTS, Gradients, channels_last, contiguous
from test_native_up import Up, UpCase
from torch import Tensor

from suites.core import emulation
from suites.core.emulation.operator_kernels import UpKernels

pytestmark = pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))


class OnCpu(UpCase):
    """A case that the CUDA kernels compute, on the CPU, into outputs full of nan."""

    kernels: UpKernels

    def forward(self) -> Tensor:
        features, channel, spatial, out = self.tensors
        out = torch.full_like(out, torch.nan)
        self.kernels.upsample(features, channel, spatial, out, dilation=self.up.dilation, combine=self.up.combine)
        return out

    def backward(self, wanted: tuple[bool, bool, bool] = (True, True, True)) -> Gradients:
        gradients = tuple(torch.full_like(t, torch.nan) for t in self.tensors[:3])
        asked = tuple(g if w else None for g, w in zip(gradients, wanted, strict=True))
        features, channel, spatial, grad = self.tensors
        options = {"dilation": self.up.dilation, "combine": self.up.combine}
        self.kernels.upsample_backward(grad, features, channel, spatial, asked, **options)
        return gradients


def on(kernels: UpKernels) -> type[OnCpu]:
    return type("OnThisCpu", (OnCpu,), {"kernels": kernels})


@pytest.fixture(scope="module")
def cuda_on_cpu() -> type[OnCpu]:
    if not KIND:
        pytest.skip("run under sanitizers, by a test of its own; here by DDF_EMULATED=plain")
    return on(UpKernels(KIND))


@pytest.mark.parametrize("layout", [*LAYOUTS, misaligned])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("up", [Up(), Up(3, 2, "add"), Up(4, k=5), Up(1, k=1), Up(2, 3, "add", 5)])
def test_outputs_and_gradients(cuda_on_cpu: type[OnCpu], up: Up, dtype: torch.dtype, layout: Layout) -> None:
    case = cuda_on_cpu((2, 5, 3, 6), up, dtype, (layout,) * 4)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("shape", [(1, 33, 7, 8), (1, 5, 3, 65), (1, 70, 1, 1), (2, 1, 40, 1)])
def test_tails(cuda_on_cpu: type[OnCpu], shape: tuple[int, int, int, int], layout: Layout) -> None:
    case = cuda_on_cpu(shape, Up(), torch.float32, (layout,) * 4)
    case.check_forward()
    if shape[0] * shape[1] < 33:
        case.check_backward()


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("other", [channels_last, misaligned])
def test_layouts_that_differ(cuda_on_cpu: type[OnCpu], other: Layout, which: int) -> None:
    """Of features, channel filter, spatial filter and output, one is laid out in another way."""
    layouts = tuple(other if i == which else contiguous for i in range(4))
    case = cuda_on_cpu((1, 4, 4, 6), Up(), torch.float32, layouts)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("special", [(torch.nan,), (torch.inf, -torch.inf)])
def test_what_is_not_finite_is_passed_on(cuda_on_cpu: type[OnCpu], special: tuple[float, ...]) -> None:
    case = cuda_on_cpu((1, 3, 5, 6), Up(), torch.float32, special=special)
    case.check_forward()
    case.check_backward()


def test_same_bits_in_every_order(cuda_on_cpu: type[OnCpu]) -> None:
    case = cuda_on_cpu((2, 5, 6, 7), Up(combine="add"), torch.float32)
    results = []
    for seed in range(5):
        case.kernels.seed(seed)
        results.append((case.forward(), *case.backward()))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_gradients_that_are_not_wanted_are_left_alone(cuda_on_cpu: type[OnCpu]) -> None:
    case = cuda_on_cpu((1, 3, 5, 6), Up(), torch.float32)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        assert [not g.isnan().any() for g in case.backward(wanted)] == list(wanted)


@pytest.mark.slow
def test_values_under_sanitizers_with_every_line(tmp_path: Path) -> None:
    folder = emulation.CSRC / "ddf_up"
    assert_every_line_ran(lines_under_sanitizers(__file__, tmp_path, folder), kernels_by_file(folder))


@pytest.fixture(scope="module")
def checked() -> tuple[type[OnCpu], emulation.Checked]:
    kernels = UpKernels("checked")
    return on(kernels), emulation.Checked(kernels.path)


def look(case: OnCpu, checker: emulation.Checked) -> bool:
    """Runs the kernels of a case under the checker; whether every element of every result was written."""
    features, channel, spatial, grad = case.tensors
    gradients = tuple(torch.full_like(t, torch.nan) for t in (features, channel, spatial))
    out = torch.full_like(grad, torch.nan)
    names = ("features", "channel", "spatial", "grad", "out", "grad_features", "grad_channel", "grad_spatial")
    options = {"dilation": case.up.dilation, "combine": case.up.combine}
    with checker.watch(dict(zip(names, (*case.tensors, out, *gradients), strict=True))):
        case.kernels.upsample(features, channel, spatial, out, **options)
        case.kernels.upsample_backward(grad, features, channel, spatial, gradients, **options)
    return not any(t.isnan().any() for t in (out, *gradients))


@pytest.mark.parametrize("layout", [contiguous, channels_last, misaligned])
@pytest.mark.parametrize("dtype", DTYPES)
def test_checker_finds_no_race(
    checked: tuple[type[OnCpu], emulation.Checked], dtype: torch.dtype, layout: Layout
) -> None:
    cuda_on_cpu, checker = checked
    for up in (Up(), Up(3, 2, "add", 5)):
        assert look(cuda_on_cpu((1, 5, 5, 6), up, dtype, (layout,) * 4), checker)
        assert not checker.races()


def test_checker_finds_the_race_of_the_sum_without_its_barriers(
    checked: tuple[type[OnCpu], emulation.Checked],
) -> None:
    cuda_on_cpu, checker = checked
    case = cuda_on_cpu((1, 2, 12, 12), Up(), torch.float32)
    with case.kernels.without_barriers(block=True):
        look(case, checker)
    assert {race.memory for race in checker.races()} == {"shared"}


def test_checker_sees_outputs_written_once(checked: tuple[type[OnCpu], emulation.Checked]) -> None:
    """Every sector of the output is written by whole requests, and by one block."""
    cuda_on_cpu, checker = checked
    assert look(cuda_on_cpu((1, 4, 8, 32), Up(), torch.float32), checker)
    (out,) = (t for t in checker.traffic() if t.direction == "write" and t.buffer == "out")
    assert out.requested == out.least == out.fetched == out.touched == 4 * 16 * 64 * 4 // 32
