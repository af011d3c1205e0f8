"""The CUDA backward kernels, each by its name: on the CPU under emulation, and on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Runner
from ddf_by_taps import Settings
from test_cuda_forward import BATCH, CHANNELS, DTYPES, INVALID, MULTIPROCESSORS, NOT_SUPPORTED, Layout
from test_cuda_on_cpu import (
    OnCpu,
    assert_every_line_ran,
    checked,
    cuda_on_cpu,
    kernels_by_file,
    lines_under_sanitizers,
)
from test_native import Case, channels_last, contiguous, cropped, sliced
from torch import Tensor

from ops.core.kernels import backward_kernels, kernels
from suites.core import emulation

__all__ = ["checked", "cuda_on_cpu"]

#: Shapes (N, C, H, W) by kernel: less than a tile, several, chunks of channels, tails of each.
SHAPES = {
    "strips": [(2, 9, 7, 7), (1, 3, 30, 33), (1, 2, 9, 100), (2, 40, 5, 8), (1, 2, 1, 1)],
    "walk": [(2, 8, 7, 7), (1, 260, 6, 9), (1, 12, 30, 70), (3, 4, 1, 1)],
}
LAYOUTS: dict[str, Layout] = {"strips": contiguous, "walk": channels_last, "apart": contiguous}


def named(name: str, base: type[Case]) -> type[Any]:
    """Cases that the kernels of that name differentiate; on a GPU those that the table means for the layout."""
    return type("Named", (base,), {"backward_kernel": name})


def layouts(name: str) -> tuple[Layout, ...]:
    return (LAYOUTS[name],) * 4


#: Element types, kernel sizes and combinations that both kernels serve.
SERVED = [
    *((dtype, k, "mul") for dtype in DTYPES for k in (3, 5, 7) if k == 3 or dtype != torch.float64),
    *((dtype, 3, "add") for dtype in DTYPES),
]


@pytest.mark.parametrize(("dtype", "k", "combine"), SERVED)
@pytest.mark.parametrize("name", SHAPES)
def test_gradients(cuda_on_cpu: type[OnCpu], name: str, dtype: torch.dtype, k: int, combine: str) -> None:
    for shape in SHAPES[name]:
        named(name, cuda_on_cpu)(shape, k, Settings(1, 1, combine), dtype, layouts(name)).check_backward()


@pytest.mark.gpu
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_on_a_gpu(name: str, k: int, dtype: torch.dtype, combine: str) -> None:
    for shape in SHAPES[name]:
        case = Case(shape, k, Settings(1, 1, combine), dtype, layouts(name), device="cuda")
        case.check_backward()
        assert all(torch.equal(a, b) for a, b in zip(case.backward(), case.backward(), strict=True))


@pytest.mark.parametrize("multiprocessors", [2, 40])
@pytest.mark.parametrize("name", SHAPES)
def test_sums_of_several_blocks(cuda_on_cpu: type[OnCpu], name: str, multiprocessors: int) -> None:
    """Where there are more multiprocessors than samples, tiles and chunks of channels leave parts."""
    shape = (1, 40, 12, 9) if name == "strips" else (1, 264, 12, 9)
    cuda_on_cpu.kernels.pretend(90, multiprocessors)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            named(name, cuda_on_cpu)(shape, 3, Settings(), dtype, layouts(name)).check_backward()
    finally:
        cuda_on_cpu.kernels.pretend(90)


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_not_finite_stays_where_it_belongs(cuda_on_cpu: type[OnCpu], name: str, combine: str) -> None:
    """Infinite and nan features do not meet the padding; any other input meets its zeros as it does in the general
    kernels."""
    kind = named(name, cuda_on_cpu)
    for special in ((torch.nan,), (torch.inf, -torch.inf)):
        kind((1, 4, 5, 6), 3, Settings(1, 1, combine), torch.float32, layouts(name), special=special).check_backward()
    for which in range(4):
        results = []
        for kernel in (name, "apart"):
            case = named(kernel, cuda_on_cpu)((1, 4, 5, 6), 3, Settings(1, 1, combine), torch.float32, layouts(name))
            case.tensors[which][0, 0, 0, 0], case.tensors[which][0, 0, 1, 1] = torch.inf, -torch.inf
            results.append(case.backward())
        assert not all(g.isfinite().all() for g in results[0])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_same_bits_in_every_order(cuda_on_cpu: type[OnCpu], name: str) -> None:
    case = named(name, cuda_on_cpu)(SHAPES[name][0], 3, Settings(), torch.float32, layouts(name))
    results = []
    for seed in range(4):
        case.kernels.seed(seed)
        results.append(case.backward())
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_that_are_not_wanted_are_left_alone(cuda_on_cpu: type[OnCpu], name: str) -> None:
    case = named(name, cuda_on_cpu)(SHAPES[name][0], 3, Settings(), torch.float32, layouts(name))
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        assert [not g.isnan().any() for g in case.backward(wanted)] == list(wanted)


def test_tensors_that_are_not_contiguous_or_aligned(cuda_on_cpu: type[OnCpu]) -> None:
    """A kernel takes them as they are, or leaves them to the general ones."""
    shifted = lambda t: t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)  # noqa: E731
    for layout in (sliced, cropped, shifted):
        for base in (contiguous, channels_last):
            for dtype in (torch.float32, torch.bfloat16):
                for mixed in ((layout, base, base, base), (base, base, layout, layout)):
                    cuda_on_cpu((2, 8, 7, 7), 3, Settings(), dtype, mixed).check_backward()


@pytest.mark.parametrize("name", SHAPES)
def test_gradcheck(cuda_on_cpu: type[OnCpu], name: str) -> None:
    """Against differences of the output, in float64."""
    kernels = cuda_on_cpu.kernels

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
            ctx.save_for_backward(features, channel, spatial)
            out = torch.full_like(features, torch.nan)
            kernels.forward(features, channel, spatial, out, entry="cuda_forward_by", kernel="")
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
            gradients = tuple(torch.full_like(t, torch.nan) for t in ctx.saved_tensors)
            grad = LAYOUTS[name](grads[0])
            kernels.backward(grad, *ctx.saved_tensors, gradients, kernel=name)  # type: ignore[misc]
            return gradients

    case = cuda_on_cpu((1, 2, 3, 4), 3, Settings(), torch.float64, layouts(name))
    inputs = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in case.tensors[:3]]
    assert torch.autograd.gradcheck(Function.apply, inputs)


def test_a_named_kernel_runs_or_refuses(cuda_on_cpu: type[OnCpu]) -> None:
    def error(
        name: str, shape: tuple[int, ...], k: int = 3, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> int:
        layout = LAYOUTS.get(name, contiguous)
        case = cuda_on_cpu(shape, k, Settings(**settings), dtype, (layout,) * 4)
        params = case.kernels.params(*case.tensors, **case.options)
        gradients = [torch.full_like(t, torch.nan) for t in case.tensors[:3]]
        view = type(params.features).of
        params.grad_features, params.grad_channel, params.grad_spatial = map(view, gradients)
        work = case.kernels.work_for(params, name)
        status = case.kernels.status("cuda_backward_by", params, name)
        del work  # which the call needs
        return status

    assert error("strips", (1, 4, 8, 8)) == error("walk", (1, 4, 8, 8)) == error("apart", (1, 4, 8, 8), k=9) == 0
    for name in SHAPES:
        assert error(name, (1, 4, 8, 8), stride=2) == NOT_SUPPORTED
        assert error(name, (1, 4, 8, 8), dilation=2) == NOT_SUPPORTED
        assert error(name, (1, 4, 8, 8), k=9) == NOT_SUPPORTED
        assert error(name, (1, 4, 8, 8), k=5, dtype=torch.float64) == NOT_SUPPORTED
        assert error(name, (1, 4, 8, 8), k=5, combine="add") == NOT_SUPPORTED
    assert error("strips", (1, 1, 2, 520)) == NOT_SUPPORTED  # more columns than threads
    assert error("walk", (1, 6, 8, 8)) == NOT_SUPPORTED  # no whole vectors
    assert error("no_such_kernel", (1, 2, 8, 8)) == INVALID


def test_the_table_is_listed_and_ends_with_the_general_kernels(runner: Runner) -> None:
    rows = backward_kernels()
    assert {row.name for row in rows} == {*SHAPES, "apart"}
    assert (rows[-1].name, rows[-1].layout) == ("apart", "any")
    lines = runner("list", "impls", "--op", "ddf_op").stdout.splitlines()
    start = lines.index("ddf_op       native") + 1 + len(kernels())
    assert [line.split()[:2] for line in lines[start:][: len(rows)]] == [["backward", row.name] for row in rows]


# ------------------------------------------------------------------------------------------------- sanitizers, checker


@pytest.mark.slow
def test_values_under_sanitizers_with_every_line_of_the_backward_kernels(tmp_path: Path) -> None:
    lines = lines_under_sanitizers(__file__, tmp_path)
    names = {"strips.cuh", "walk.cuh", "backward.cu"}
    assert names <= set(kernels_by_file(emulation.CSRC / "ddf" / "cuda"))
    assert_every_line_ran(lines, names)


def look(case: OnCpu, checker: emulation.Checked, name: str, traffic_alone: bool = False) -> None:
    """Differentiates a case by the kernels of that name under the checker, and checks what comes out."""
    features, channel, spatial, grad = case.tensors
    gradients = tuple(torch.full_like(t, torch.nan) for t in (features, channel, spatial))
    buffers = ("features", "channel", "spatial", "grad", "grad_features", "grad_channel", "grad_spatial")
    with checker.watch(dict(zip(buffers, (*case.tensors, *gradients), strict=True)), traffic_alone):
        case.kernels.backward(grad, features, channel, spatial, gradients, **case.options, kernel=name)
    case.backward = lambda wanted=(): gradients  # type: ignore[method-assign,assignment,misc]
    case.check_backward()


@pytest.mark.parametrize(
    ("dtype", "k"), [(torch.float32, 3), (torch.bfloat16, 5), (torch.float16, 7), (torch.float64, 3)]
)
@pytest.mark.parametrize("name", SHAPES)
def test_checker_finds_no_race(
    checked: tuple[type[OnCpu], emulation.Checked], name: str, dtype: torch.dtype, k: int
) -> None:
    kind, checker = checked
    for i, shape in enumerate(SHAPES[name][:3]):
        look(kind(shape, k, Settings(1, 1, "add" if i == 1 and k == 3 else "mul"), dtype, layouts(name)), checker, name)
        assert not checker.races()


@pytest.mark.parametrize("name", SHAPES)
def test_checker_finds_the_race_of_every_kernel_without_its_barriers(
    checked: tuple[type[OnCpu], emulation.Checked], name: str
) -> None:
    kind, checker = checked
    case = kind(SHAPES[name][0], 3, Settings(), torch.float32, layouts(name))
    with case.kernels.without_barriers(block=True), pytest.raises(AssertionError):
        look(case, checker, name)
    assert {race.kernel for race in checker.races() if race.memory == "shared"} == {f"{name}_kernel<float, 3, false>"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [7, 14, 28, 56])
def test_checker_counts_the_traffic_at_the_multiprocessors(
    checked: tuple[type[OnCpu], emulation.Checked], name: str, dtype: torch.dtype, size: int
) -> None:
    """What blocks fetch, each its own, over what has to move, in whole sectors: of at most seven blocks of a sample."""
    kind, checker = checked
    fetched = traffic(kind, checker, LAYOUTS[name], dtype, size)
    assert fetched["features"] <= 1.05, fetched
    assert fetched["grad"] <= 1.5, fetched
    assert fetched["grad_features"] <= 1.05, fetched


def traffic(
    kind: type[OnCpu], checker: emulation.Checked, layout: Layout, dtype: torch.dtype, size: int
) -> dict[str, float]:
    """By buffer, bytes that blocks fetch or write over those of the features whose gradient they write."""
    one, filters = (layout(torch.zeros(1, c, size, size, dtype=dtype)) for c in (CHANNELS, 9))
    grad_features, grad, grad_filters = (
        torch.full_like(one, torch.nan),
        one.clone(),
        torch.full_like(filters, torch.nan),
    )
    channel = torch.zeros(BATCH, CHANNELS, 3, 3, dtype=dtype)
    grad_channel = torch.full_like(channel, torch.nan)
    features, spatial, grads, by_features, by_spatial = (
        t.expand(BATCH, -1, -1, -1)
        for t in (one, filters, grad, grad_features, grad_filters)  # one sample for all
    )
    kind.kernels.pretend(90, MULTIPROCESSORS)
    try:
        params = kind.kernels.params(features, channel, spatial, grads, 1, 1, "mul")
        view = type(params.features).of
        params.grad_features, params.grad_channel, params.grad_spatial = map(
            view, (by_features, grad_channel, by_spatial)
        )
        work = kind.kernels.work_for(params, "")
        buffers = {"features": one, "grad": grad, "spatial": filters, "channel": channel, "work": work}
        buffers |= {"grad_features": grad_features, "grad_channel": grad_channel, "grad_spatial": grad_filters}
        with kind.kernels.some_blocks(BATCH, 7), checker.watch(buffers, traffic_alone=True):
            kind.kernels.call("cuda_backward_by", params, "")
    finally:
        kind.kernels.pretend(90)
    written = int((~grad_features.isnan()).sum()) * grad_features.element_size()
    found = {t.buffer: 0.0 for t in checker.traffic()}
    for t in checker.traffic():
        if not t.kernel.startswith("sum_parts"):
            found[t.buffer] += t.fetched * 32 / written
    return found
