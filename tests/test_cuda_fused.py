"""The fused module's CUDA kernels, under emulation on the CPU against the formulas and the module in plain PyTorch, and
on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_check import made
from test_cuda_on_cpu import (
    OnCpu,
    assert_every_line_ran,
    checked,
    cuda_on_cpu,
    kernels_by_file,
    lines_under_sanitizers,
)
from test_native import LAYOUTS, channels_last, contiguous
from test_native_fused import drawn, gradients, pack_of
from torch import Tensor

from ops.core import native
from ops.ddf import composite
from suites.core import emulation
from suites.core.emulation.operator_kernels import Kernels

__all__ = ["checked", "cuda_on_cpu"]

Layout = Callable[[Tensor], Tensor]
Fused = Callable[..., Tensor]


def fused_by(kernels: Kernels, looks: Callable[[dict[str, Tensor]], Any] | None = None) -> Fused:
    """`native.fused`, forward and back, by the kernels on the CPU, into outputs full of nan.

    Args:
        looks: returns what is entered around a call of the kernels, given the tensors.
    """

    def call(tensors: dict[str, Tensor], *arguments: Any, **named: Any) -> None:
        if looks is None:
            kernels.module(*arguments, **named)
            return
        with looks(tensors):
            kernels.module(*arguments, **named)

    class Emulated(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, features: Tensor, *arguments: Any) -> Tensor:
            parameters, settings = arguments[:7], arguments[7:]
            ctx.settings = settings
            ctx.save_for_backward(features, *parameters)
            out = torch.full_like(features[..., :: settings[3], :: settings[3]], torch.nan)
            call({"features": features, "out": out}, features, parameters, out, *settings)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            features, *parameters = ctx.saved_tensors
            wants = ctx.needs_input_grad[0], *(any(ctx.needs_input_grad[1:8]) for _ in parameters)
            found = [
                torch.full_like(t, torch.nan) if w else None for t, w in zip(ctx.saved_tensors, wants, strict=True)
            ]
            named = {"features": features, "grad": grads[0]}
            named |= {"grad_features": found[0]} if found[0] is not None else {}
            call(named, features, parameters, grads[0], *ctx.settings, gradients=found)
            return *found, *(None for _ in ctx.settings)

    return lambda *arguments: Emulated.apply(*arguments)  # type: ignore[no-any-return]


@pytest.fixture
def emulated(cuda_on_cpu: type[OnCpu], monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    """Has `DDFPack.fused` run the CUDA kernels, on a GPU of two multiprocessors."""
    monkeypatch.setattr(native, "missing", lambda device: "")
    monkeypatch.setattr(native, "fused", fused_by(cuda_on_cpu.kernels))
    yield cuda_on_cpu.kernels
    cuda_on_cpu.kernels.pretend(90)


AXES: list[dict[str, Any]] = [
    {"channels": 37, "height": 9, "width": 11},
    {"channels": 36, "height": 12, "width": 13, "head": 3, "stride": 2},
    {"channels": 34, "height": 5, "width": 40, "head": 2, "dilation": 2, "combine": "add"},
    {"channels": 18, "height": 7, "width": 6, "kernel_size": 7, "stride": 3},
    {"channels": 5, "height": 1, "width": 1, "kernel_size": 5},
    {"channels": 24, "height": 9, "width": 10, "batch": 1, "se_ratio": 1.5, "kernel_size": 5},
]
TYPES = ["float32", "float64", "float16", "bfloat16"]
SERVED = [(axes, t) for axes in AXES for t in TYPES if "kernel_size" not in axes or t != "float64"]


def bench(axes: dict[str, Any], **more: Any) -> Any:
    extra = {name: axes[name] for name in ("head", "se_ratio") if name in axes}
    plain = {name: value for name, value in axes.items() if name not in extra}
    return made("ddf", "ddf", "fused", **plain, extra=extra, **more)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("axes", "dtype"), SERVED, ids=str)
def test_output_matches_and_gradients_match_the_formulas(
    emulated: Kernels, axes: dict[str, Any], dtype: str, layout: str
) -> None:
    for direction in ("forward", "forward_backward"):
        with torch.set_grad_enabled(direction == "forward_backward"):
            case = bench(axes, dtype=dtype, layout=layout, direction=direction)
            assert case.max_error() <= case.tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multiprocessors", [2, 40])
def test_any_strides_and_any_number_of_blocks(emulated: Kernels, layout: Layout, multiprocessors: int) -> None:
    emulated.pretend(90, multiprocessors)
    pack, x = pack_of(18, stride=1 if multiprocessors == 2 else 2, head=2), drawn(2, 18, 9, 15)
    for got, expected in zip(
        gradients(pack, layout(x), pack.fused), gradients(pack, x, lambda t: pack.compute(t, composite)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_filter_without_spread_is_zero_and_has_the_gradients_of_filter_norm(emulated: Kernels) -> None:
    pack, x = pack_of(6), drawn(1, 6, 4, 4)
    with torch.no_grad():
        pack.spatial_branch[0].weight.zero_()
        pack.spatial_branch[0].bias.zero_()
    got, expected = gradients(pack, x, pack.fused), gradients(pack, x, lambda t: pack.compute(t, composite))
    assert not got[0].any()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_same_bits_in_every_order(emulated: Kernels, layout: Layout) -> None:
    pack, x = pack_of(12, torch.float32, head=2), layout(drawn(2, 12, 9, 15, dtype=torch.float32))
    results = []
    for seed in range(3):
        emulated.seed(seed)
        results.append(gradients(pack, x, pack.fused))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradcheck(emulated: Kernels, combine: str) -> None:
    pack = pack_of(2, seed=3, head=2, se_ratio=1.5, kernel_combine=combine)
    x = drawn(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: pack.fused(x), [x, *pack.parameters()])


def test_only_the_gradients_asked_for_are_computed(emulated: Kernels) -> None:
    pack, x = pack_of(6), drawn(2, 6, 5, 7)
    both = gradients(pack, x, pack.fused)
    leaf = x.clone().requires_grad_()
    out = pack.requires_grad_(False).fused(leaf)
    (alone,) = torch.autograd.grad(out, leaf, torch.ones_like(out) + out.detach())
    assert torch.equal(alone, both[1])
    out = pack.requires_grad_(True).fused(x)
    parameters = torch.autograd.grad(out, list(pack.parameters()), torch.ones_like(out) + out.detach())
    assert all(torch.equal(a, b) for a, b in zip(parameters, both[2:], strict=True))


def test_empty_batch(emulated: Kernels) -> None:
    pack, x = pack_of(6), drawn(0, 6, 5, 7)
    parameters = [p.detach() for p in pack.parameters()]
    found = [torch.full_like(t, torch.nan) for t in (x, *parameters)]
    emulated.module(x, parameters[:7], x, 1.0, 3, 1, 1, 1, "mul", gradients=found)
    assert all(not g.any() for g in found)


def test_what_it_is_not_compiled_for_is_refused(emulated: Kernels) -> None:
    """Other kernel sizes, and float64 beyond k = 3."""
    for kernel_size, dtype in ((9, torch.float32), (5, torch.float64), (7, torch.float64)):
        with pytest.raises(emulation.EmulationError, match="refused"):
            pack_of(4, dtype, kernel_size=kernel_size).fused(drawn(1, 4, 5, 6, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("axes", "dtype"), SERVED, ids=str)
def test_on_a_gpu(axes: dict[str, Any], dtype: str, layout: str) -> None:
    extra = {name: axes[name] for name in ("head", "se_ratio") if name in axes}
    settings = {"kernel_size": axes.get("kernel_size", 3), "stride": axes.get("stride", 1), **extra}
    settings |= {"dilation": axes.get("dilation", 1), "kernel_combine": axes.get("combine", "mul")}
    pack = pack_of(axes["channels"], getattr(torch, dtype), **settings)
    x = drawn(2, axes["channels"], axes["height"], axes["width"], dtype=getattr(torch, dtype))
    if layout == "channels_last":
        x = channels_last(x)
    on_cpu = gradients(pack, x, pack.fused)
    pack, x = pack.cuda(), x.cuda()
    on_gpu = gradients(pack, x, pack.fused)
    assert all(torch.equal(a, b) for a, b in zip(on_gpu, gradients(pack, x, pack.fused), strict=True))
    for got, expected in zip(on_gpu, on_cpu, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=16 * torch.finfo(x.dtype).eps * scale)


# ------------------------------------------------------------------------------------------------- sanitizers, checker


@pytest.mark.slow
def test_values_under_sanitizers_with_every_line_of_the_module_kernels(tmp_path: Path) -> None:
    lines = lines_under_sanitizers(__file__, tmp_path)
    names = {"module.cuh", "module_backward.cuh"}
    assert names <= set(kernels_by_file(emulation.CSRC / "ddf" / "cuda"))
    assert_every_line_ran(lines, names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checker_finds_no_race(
    checked: tuple[type[OnCpu], emulation.Checked], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    kind, checker = checked
    monkeypatch.setattr(native, "missing", lambda device: "")
    monkeypatch.setattr(native, "fused", fused_by(kind.kernels, checker.watch))
    for settings in ({"head": 2}, {"kernel_size": 5, "stride": 2}):
        pack, x = pack_of(10, dtype, **settings), drawn(2, 10, 9, 15, dtype=dtype).requires_grad_()
        out = pack.fused(x)
        assert not checker.races()
        out.sum().backward()
        assert not checker.races()


def test_checker_finds_the_race_of_every_kernel_without_its_barriers(
    checked: tuple[type[OnCpu], emulation.Checked], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, checker = checked
    monkeypatch.setattr(native, "missing", lambda device: "")
    monkeypatch.setattr(native, "fused", fused_by(kind.kernels, checker.watch))
    pack, x = pack_of(6, torch.float32), drawn(1, 6, 5, 7, dtype=torch.float32).requires_grad_()
    with kind.kernels.without_barriers(block=True):
        out = pack.fused(x)
        racing = {race.kernel.partition("_kernel")[0] for race in checker.races()}
        assert racing >= {"predict", "excite"}
        out.sum().backward()
    assert {race.kernel.partition("_kernel")[0] for race in checker.races()} >= {"predict", "excite", "hidden"}


@pytest.mark.parametrize("size", [28, 56])
def test_checker_counts_features_read_twice_and_three_launches(
    checked: tuple[type[OnCpu], emulation.Checked], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Of the two kernels that read the features, what blocks fetch, each its own, over what has to move."""
    kind, checker = checked
    monkeypatch.setattr(native, "missing", lambda device: "")
    monkeypatch.setattr(
        native, "fused", fused_by(kind.kernels, lambda tensors: checker.watch(tensors, traffic_alone=True))
    )
    pack, x = pack_of(64, torch.float32), drawn(1, 64, size, size, dtype=torch.float32)
    with torch.no_grad():
        pack.fused(x)
    assert [launch.kernel.partition("_kernel")[0] for launch in checker.launches()][:2] == ["predict", "excite"]
    assert len(checker.launches()) == 3
    over = {(kernel.partition("_kernel")[0], buffer): times for (kernel, buffer), times in checker.over_floor().items()}
    assert over["predict", "features"] <= 1.05
    assert sum(times for (_, buffer), times in over.items() if buffer == "features") <= 2.5
    assert sum(times for (_, buffer), times in over.items() if buffer == "out") <= 1.05
