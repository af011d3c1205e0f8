"""The native operator against float64 loops, and its registration with torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ddf_by_taps import Settings, absolute, assert_rounded, backward, forward
from torch import Tensor

from ops import Point, Skip, load
from ops.core import native
from ops.ddf import ddf, ddf_up

ROOT = Path(__file__).resolve().parents[1]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

Gradients = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    native.load()


# ------------------------------------------------------------------------------------------------------------- inputs


def contiguous(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def channels_last(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.channels_last)


def sliced(t: Tensor) -> Tensor:
    """Inside a larger tensor full of nan, every second column."""
    n, c, h, w = t.shape
    big = t.new_full((n + 1, c + 2, h + 3, 2 * w + 5), torch.nan)
    view = big[1:, 1:-1, 2:-1, 3 : 3 + 2 * w : 2]
    view.copy_(t)
    return view


def cropped(t: Tensor) -> Tensor:
    """Inside a larger channels-last tensor full of nan."""
    n, c, h, w = t.shape
    big = t.new_full((n, c + 3, h + 1, w + 2), torch.nan).to(memory_format=torch.channels_last)
    view = big[:, 2:-1, 1:, 1:-1]
    view.copy_(t)
    return view


def transposed(t: Tensor) -> Tensor:
    """Columns of pixels instead of rows."""
    return t.transpose(2, 3).contiguous().transpose(2, 3)


#: More elements than 32 bits can count.
FAR = 2**31 + 64


def far_samples(t: Tensor) -> Tensor:
    """Samples that are far apart; the memory in between is never touched, and so costs nothing."""
    view = t.new_empty(FAR * (len(t) - 1) + t[0].numel())
    return view.as_strided(t.shape, (FAR, *t[0].contiguous().stride())).copy_(t)


def far_channels(t: Tensor) -> Tensor:
    """Likewise channels."""
    n, c, h, w = t.shape
    view = t.new_empty(FAR * (c - 1) + n * h * w)
    return view.as_strided(t.shape, (h * w, FAR, w, 1)).copy_(t)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [contiguous, channels_last, sliced, cropped, transposed]


class Case:
    """Inputs and settings of the operator."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        k: int,
        settings: Settings,
        dtype: torch.dtype,
        layouts: tuple[Callable[[Tensor], Tensor], ...] = (contiguous,) * 4,
        special: tuple[float, ...] = (),
        device: str = "cpu",
    ) -> None:
        n, c, h, w = shape
        generator = torch.Generator().manual_seed(n + 3 * c + 7 * h + 31 * w + 127 * k)
        out = (settings.size(h), settings.size(w))
        shapes = ((n, c, h, w), (n, c, k, k), (n, k * k, *out), (n, c, *out))
        drawn = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
        for i, value in enumerate(special if drawn[0].numel() else ()):
            place = int(torch.randint(drawn[0].numel(), (), generator=generator))
            drawn[0].view(-1)[place if i else 0] = value
        self.settings = settings
        self.tensors = [layout(t).to(device) for layout, t in zip(layouts, drawn, strict=True)]
        self.wide = [t.double() for t in drawn]
        self.description = f"{shape} k{k} {settings} {dtype} {[f.__name__ for f in layouts]} {special}"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, int, int, str]:
        features, channel, spatial, _ = self.tensors
        return features, channel, spatial, self.settings.dilation, self.settings.stride, self.settings.combine

    def forward(self) -> Tensor:
        return native.apply(*self.arguments)

    def backward(self, wanted: tuple[bool, bool, bool] = (True, True, True)) -> Gradients:
        return torch.ops.ddf.backward(self.tensors[3], *self.arguments, *wanted)

    def check_forward(self) -> None:
        features, channel, spatial, _ = self.wide
        expected = forward(features, channel, spatial, self.settings)
        magnitude = forward(*absolute(features, channel, spatial), self.settings)
        terms = 2 * channel.shape[2] ** 2
        assert_rounded(self.forward().cpu(), expected, magnitude, terms, f"output of {self.description}")

    def check_backward(self) -> None:
        features, channel, spatial, grad = self.wide
        expected = backward(grad, features, channel, spatial, self.settings)
        magnitude = backward(*absolute(grad, features, channel, spatial), self.settings)
        taps = 2 * channel.shape[2] ** 2
        pixels, channels = 2 * grad.shape[2] * grad.shape[3], 2 * grad.shape[1]
        for name, got, right, size, terms in zip(
            ("features", "channel_filter", "spatial_filter"),
            self.backward(),
            expected,
            magnitude,
            (taps, pixels, channels),
            strict=True,
        ):
            assert_rounded(got.cpu(), right, size, terms, f"gradient of {name} of {self.description}")


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize(
    ("shape", "k", "chosen"),
    [
        ((1, 3, 5, 600), 3, Settings()),  # several tiles across
        ((1, 2, 400, 70), 3, Settings(dilation=2)),  # several tiles down
        ((1, 70, 9, 9), 3, Settings(combine="add")),  # several blocks of channels, and a part of one
        ((2, 33, 30, 31), 5, Settings(stride=2)),
        ((1, 2, 2, 3), 41, Settings(combine="add")),  # a kernel larger than the plane
        ((1, 4, 6, 5), 3, Settings(dilation=10**15)),  # all taps but the middle one in the padding
        ((1, 4, 6, 5), 5, Settings(stride=10**15, dilation=2)),  # one output
        ((1, 20, 1, 1), 3, Settings()),
        ((1, 1, 40, 1), 3, Settings(stride=3)),
        ((1, 64, 192, 192), 3, Settings()),  # large enough to be stored past the caches
        ((1, 17, 14, 56), 3, Settings()),  # strips of seven rows, a half vector at the end
        ((1, 17, 13, 12), 7, Settings(combine="add")),
        ((1, 270, 33, 19), 3, Settings()),  # several blocks of channels, parts of several rows
        ((1, 17, 3, 1801), 3, Settings()),  # several segments of a row
        ((1, 16, 5, 21), 3, Settings()),  # seven neighbours, a row left over
        ((1, 16, 4, 12), 7, Settings()),  # S in place, channels last
    ],
)
def test_shapes_at_the_edges_of_the_kernels(
    shape: tuple[int, int, int, int], k: int, chosen: Settings, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    case = Case(shape, k, chosen, torch.float32, (layout,) * 4, device=device)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_every_kernel(
    k: int,
    stride: int,
    dilation: int,
    combine: str,
    layout: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    device: str,
) -> None:
    case = Case((2, 18, 9, 11), k, Settings(stride, dilation, combine), dtype, (layout,) * 4, device=device)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_infinite_filters_meet_the_zeros_of_the_padding(
    combine: str, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    features, channel = torch.ones(1, 20, 3, 3, device=device), torch.ones(1, 20, 3, 3, device=device)
    spatial = torch.ones(1, 9, 3, 3, device=device)
    spatial[0, 0] = torch.inf
    out = native.apply(layout(features), channel, spatial, combine=combine)
    padded = torch.nn.functional.pad(features, (1, 1, 1, 1))[:, :, :3, :3]
    assert torch.equal(out.isnan(), (padded * torch.inf).isnan())
    assert out[0, 0, 1:, 1:].isposinf().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed])
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("number", [0.3, torch.inf])
def test_a_spatial_filter_that_is_one_number(
    number: float, k: int, combine: str, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    """Expanded, where it goes into the channel filter before, or in memory: the same bits."""
    for size in ((7, 7), (9, 40), (30, 5)):
        features = layout(torch.randn(2, 17, *size, generator=torch.manual_seed(k))).to(device)
        channel = torch.randn(2, 17, k, k, generator=torch.manual_seed(k)).to(device)
        expanded = torch.full((1,), number, device=device).expand(2, k * k, *size)
        ours = native.apply(features, channel, expanded, combine=combine)
        in_memory = native.apply(features, channel, expanded.contiguous(), combine=combine)
        assert torch.equal(ours.nan_to_num(7.0), in_memory.nan_to_num(7.0))
        grad = torch.ones_like(ours)
        wanted = True, True, True
        ours, in_memory = (
            torch.ops.ddf.backward(grad, features, channel, spatial, 1, 1, combine, *wanted)
            for spatial in (expanded, expanded.contiguous())
        )
        for a, b in zip(ours, in_memory, strict=True):
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def bits(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit type, as (1, 64, 32, 32)."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(1, 64, 32, 32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, transposed])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0**-10, 3.0, 2.0**14])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_converts_as_torch_does(
    dtype: torch.dtype, factor: float, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    numbers = bits(dtype)
    channel, spatial = torch.ones(1, 64, 1, 1, dtype=dtype), torch.full((1, 1, 32, 32), factor, dtype=dtype)
    out = native.apply(layout(numbers).to(device), channel.to(device), spatial.to(device))
    expected = (numbers.float() * factor).to(dtype)
    assert torch.equal(out.cpu().isnan(), expected.isnan())
    assert torch.equal(out.cpu()[~expected.isnan()], expected[~expected.isnan()])


@pytest.mark.parametrize("device", DEVICES)
def test_the_largest_kernel_reads_the_whole_plane(device: str) -> None:
    features = torch.arange(12.0).view(1, 2, 2, 3).to(device)
    channel, spatial = torch.ones(1, 2, 127, 127, device=device), torch.ones(1, 127**2, 2, 3, device=device)
    expected = features.sum((2, 3), keepdim=True).expand_as(features)
    assert torch.equal(native.apply(features, channel, spatial), expected)


FAR_LAYOUTS = [(far_samples,) * 4, (far_channels, contiguous, contiguous, far_channels)]


@pytest.mark.parametrize("layouts", FAR_LAYOUTS)
def test_offsets_beyond_32_bits_on_the_cpu(layouts: tuple[Callable[[Tensor], Tensor], ...]) -> None:
    case = Case((2, 2, 5, 6), 3, Settings(), torch.float16, layouts)
    case.check_forward()
    case.check_backward()
    out = layouts[3](torch.zeros(2, 2, 5, 6, dtype=torch.float16))
    assert torch.equal(native.apply_out(*case.tensors[:3], out), case.forward())


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device: str) -> None:
    case = Case((0, 5, 6, 7), 3, Settings(), torch.float32, device=device)
    assert case.forward().shape == (0, 5, 6, 7)
    assert [g.shape for g in case.backward()] == [t.shape for t in case.tensors[:3]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_only_the_gradients_asked_for_are_computed(
    stride: int, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    case = Case((2, 20, 6, 7), 3, Settings(stride), torch.float32, (layout,) * 4, device=device)
    everything = case.backward()
    for which in range(3):
        wanted = (which == 0, which == 1, which == 2)
        for i, gradient in enumerate(case.backward(wanted)):
            if i == which:
                assert torch.equal(gradient, everything[i])
            else:
                assert gradient.numel() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last, cropped])
def test_output_has_the_layout_of_the_features(layout: Callable[[Tensor], Tensor], device: str) -> None:
    case = Case((2, 8, 6, 7), 3, Settings(), torch.float32, (layout, contiguous, contiguous, contiguous), device=device)
    order = torch.contiguous_format if layout is contiguous else torch.channels_last
    assert case.forward().is_contiguous(memory_format=order)
    assert case.backward()[0].is_contiguous(memory_format=order)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features_layout", [contiguous, channels_last])
def test_output_into_a_given_tensor(
    features_layout: Callable[[Tensor], Tensor], layout: Callable[[Tensor], Tensor], device: str
) -> None:
    layouts = (features_layout, contiguous, contiguous, contiguous)
    case = Case((2, 20, 6, 7), 3, Settings(), torch.float32, layouts, device=device)
    out = layout(torch.zeros(2, 20, 6, 7)).to(device)
    features, channel, spatial, *rest = case.arguments
    returned = native.apply_out(features, channel, spatial, out, *rest)
    assert returned is out
    torch.testing.assert_close(out, case.forward(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_in_every_run_and_for_any_number_of_threads(
    dtype: torch.dtype, layout: Callable[[Tensor], Tensor], device: str
) -> None:
    case = Case((2, 70, 40, 41), 3, Settings(), dtype, (layout,) * 4, device=device)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append((case.forward(), *case.backward()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("width", [64, 56])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_same_bits_wherever_a_large_output_lies(layout: Callable[[Tensor], Tensor], width: int) -> None:
    """Past the caches or fetched ahead, in either order of the channels' blocks, and as a small output is stored."""
    case = Case((1, 128, 48, width), 3, Settings(), torch.float32, (layout,) * 4)
    features, channel, *rest = case.arguments
    small = [(features[:, c : c + 16], channel[:, c : c + 16]) for c in range(0, 128, 16)]
    room = torch.empty(features.numel() + 2048)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = torch.cat([native.apply(*tensors, *rest) for tensors in small], 1)
        for distance in (0, 4, 64, 512, 4032):  # bytes that addresses end in, the features' taken away
            start = (features.data_ptr() + distance - room.data_ptr()) % 4096 // 4
            out = room.as_strided(features.shape, features.stride(), start)
            native.apply_out(features, channel, rest[0], out, *rest[1:])
            assert torch.equal(out, expected), distance
    finally:
        torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------------------------- errors


def tensors(**changes: Any) -> dict[str, Any]:
    given = {
        "features": torch.ones(2, 4, 5, 6),
        "channel_filter": torch.ones(2, 4, 3, 3),
        "spatial_filter": torch.ones(2, 9, 5, 6),
        "dilation": 1,
        "stride": 1,
        "combine": "mul",
    }
    return {**given, **changes}


BAD = [
    ({"features": torch.ones(4, 5, 6)}, "features", "(4, 5, 6)"),
    ({"features": torch.ones(2, 0, 5, 6)}, "features", "(2, 0, 5, 6)"),
    ({"features": torch.ones(2, 4, 5, 6, dtype=torch.int32)}, "features", "float32"),
    ({"channel_filter": torch.ones(2, 4, 3, 5)}, "channel_filter", "(2, 4, 3, 5)"),
    ({"channel_filter": torch.ones(2, 4, 2, 2)}, "channel_filter", "(2, 4, 2, 2)"),
    ({"channel_filter": torch.ones(2, 4, 129, 129)}, "channel_filter", "127"),
    ({"channel_filter": torch.ones(1, 4, 3, 3)}, "channel_filter", "(2, 4, 3, 3)"),
    ({"channel_filter": torch.ones(2, 4, 3, 3, dtype=torch.float64)}, "channel_filter", "dtype"),
    ({"spatial_filter": torch.ones(2, 9, 5, 5)}, "spatial_filter", "(2, 9, 5, 6)"),
    ({"stride": 2}, "spatial_filter", "(2, 9, 3, 3)"),
    ({"stride": 0}, "stride", "0"),
    ({"dilation": -1}, "dilation", "-1"),
    ({"combine": "max"}, "combine", "max"),
]


@pytest.mark.parametrize(("changes", "name", "detail"), BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device: str, changes: dict[str, Any], name: str, detail: str) -> None:
    arguments = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in tensors(**changes).items()
    }
    with pytest.raises(RuntimeError) as raised:
        torch.ops.ddf.forward(*arguments.values())
    assert str(raised.value).startswith(f"{name}: expected")
    assert detail in str(raised.value)


def test_wrong_outputs_and_gradients_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"^out: expected shape \(2, 4, 5, 6\).*got \(2, 4, 5, 5\)"):
        torch.ops.ddf.forward_out(*tensors().values(), torch.ones(2, 4, 5, 5))
    with pytest.raises(RuntimeError, match=r"^out: expected a place for each element.*dimension 1"):
        torch.ops.ddf.forward_out(*tensors().values(), torch.ones(2, 1, 5, 6).expand(2, 4, 5, 6))
    with pytest.raises(RuntimeError, match=r"^grad: expected shape \(2, 4, 5, 6\)"):
        torch.ops.ddf.backward(torch.ones(2, 4, 5, 5), *tensors().values(), True, True, True)


@pytest.mark.gpu
def test_tensors_on_different_devices_are_named() -> None:
    for name in ("channel_filter", "spatial_filter"):
        on_gpu = {key: t.cuda() if isinstance(t, Tensor) and key != name else t for key, t in tensors().items()}
        with pytest.raises(RuntimeError, match=f"^{name}: expected the device of features"):
            torch.ops.ddf.forward(*on_gpu.values())


# -------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_opcheck(layout: Callable[[Tensor], Tensor], dtype: torch.dtype, device: str) -> None:
    case = Case((2, 6, 5, 7), 3, Settings(stride=2, combine="add"), dtype, (layout,) * 4, device=device)
    features, channel, spatial, *rest = case.arguments
    leaves = [t.detach().requires_grad_() for t in (features, channel, spatial)]
    torch.library.opcheck(torch.ops.ddf.forward.default, (*leaves, *rest))
    torch.library.opcheck(torch.ops.ddf.backward.default, (case.tensors[3], *case.arguments, True, False, True))
    torch.library.opcheck(torch.ops.ddf.forward_out.default, (*case.arguments, torch.empty_like(case.forward())))


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradcheck_goes_through_autograd(combine: str) -> None:
    case = Case((1, 3, 4, 5), 3, Settings(stride=2, combine=combine), torch.float64)
    leaves = [t.requires_grad_() for t in case.tensors[:3]]
    assert torch.autograd.gradcheck(lambda *t: native.apply(*t, 1, 2, combine), leaves)


def test_second_derivatives_are_refused() -> None:
    case = Case((1, 3, 4, 5), 3, Settings(), torch.float64)
    features = case.tensors[0].requires_grad_()
    (first,) = torch.autograd.grad(native.apply(*case.tensors[:3]).sum(), features, create_graph=True)
    # d(out)/dF depends on neither F nor, here, on anything else that wants a gradient; C does
    channel = case.tensors[1].requires_grad_()
    (first,) = torch.autograd.grad(native.apply(features, channel, case.tensors[2]).sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of ddf"):
        first.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_a_graph_break(dynamic: bool, device: str) -> None:
    def block(features: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        return native.apply(features.relu(), channel, spatial) * 2

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (5, 8):
        case = Case((2, 6, size, size + 2), 3, Settings(), torch.float32, device=device)
        leaves = [t.requires_grad_() for t in case.tensors[:3]]
        got, expected = compiled(*leaves), block(*leaves)
        assert torch.equal(got, expected)
        gradients = [torch.autograd.grad(out.sum(), leaves) for out in (got, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore")
def test_compiles_with_inductor(device: str) -> None:
    torch.compiler.reset()
    case = Case((2, 6, 8, 9), 3, Settings(), torch.float32, device=device)
    features, channel, spatial, _ = case.tensors
    compiled = torch.compile(lambda *t: native.apply(t[0].relu(), *t[1:]) * 2, fullgraph=True)
    expected = native.apply(features.relu(), channel, spatial) * 2
    torch.testing.assert_close(compiled(features, channel, spatial), expected)


def test_exports() -> None:
    class Module(torch.nn.Module):
        def forward(self, features: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
            return native.apply(features, channel, spatial, combine="add")

    case = Case((2, 6, 5, 7), 3, Settings(combine="add"), torch.float32)
    exported = torch.export.export(Module(), tuple(case.tensors[:3]))
    assert any(node.target is torch.ops.ddf.forward.default for node in exported.graph.nodes)
    assert torch.equal(exported.module()(*case.tensors[:3]), case.forward())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype, device: str) -> None:
    case = Case((2, 6, 5, 7), 3, Settings(), torch.float32, device=device)
    leaves = [t.requires_grad_() for t in case.tensors[:3]]
    with torch.autocast(device, dtype=dtype):
        out = native.apply(leaves[0], leaves[1].to(dtype), leaves[2])
    assert out.dtype == dtype
    assert torch.equal(out, native.apply(*(t.to(dtype) for t in leaves)))
    out.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in leaves)
    with torch.autocast(device, dtype=dtype):
        assert native.apply(*(t.double() for t in leaves)).dtype == torch.float64


def test_torch_counts_the_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = Case((2, 6, 5, 7), 3, Settings(stride=2), torch.float32)
    leaves = [t.requires_grad_() for t in case.tensors[:3]]
    macs = 2 * 6 * 3 * 4 * 9
    with FlopCounterMode(display=False) as counter:
        out = native.apply(*leaves, stride=2)
    assert counter.get_total_flops() == 2 * macs
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * macs
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        native.apply_out(*leaves, torch.empty(2, 6, 3, 4), stride=2)
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.filterwarnings("ignore")
def test_fvcore_counts_the_macs() -> None:
    nn = pytest.importorskip("fvcore.nn")

    class Module(torch.nn.Module):
        def forward(self, features: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
            return native.apply(features, channel, spatial, stride=2)

    case = Case((2, 6, 5, 7), 3, Settings(stride=2), torch.float32)
    analysis = nn.FlopCountAnalysis(Module(), tuple(case.tensors[:3]))
    analysis.set_op_handle(**native.fvcore_handles())
    assert analysis.total() == 2 * 6 * 3 * 4 * 9
    assert analysis.by_operator() == {"forward": 2 * 6 * 3 * 4 * 9}


def test_a_gradient_is_not_kept_for_what_needs_none() -> None:
    case = Case((1, 3, 4, 5), 3, Settings(), torch.float32)
    channel = case.tensors[1].requires_grad_()
    native.apply(case.tensors[0], channel, case.tensors[2]).sum().backward()
    assert channel.grad is not None
    assert case.tensors[0].grad is None
    with torch.no_grad():
        assert not native.apply(case.tensors[0], channel, case.tensors[2]).requires_grad


# ---------------------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.gpu
def test_offsets_beyond_32_bits() -> None:
    # 2^31 + 2^21 elements of float16 are 4.3 GB, the output as many.
    n, c, h, w = 1, 2050, 1024, 1024
    features = torch.zeros(n, c, h, w, dtype=torch.float16, device="cuda")
    features[0, -1, -1, -4:] = 1
    channel = torch.ones(n, c, 3, 3, dtype=torch.float16, device="cuda")
    spatial = torch.ones(n, 9, h, w, dtype=torch.float16, device="cuda")
    out = native.apply(features, channel, spatial)
    assert out[0, -1, -2:, -5:].cpu().tolist() == [[1, 2, 3, 3, 2]] * 2
    assert int(out.count_nonzero()) == 10
    by_features, _, by_spatial = torch.ops.ddf.backward(
        features, features, channel, spatial, 1, 1, "mul", True, False, True
    )
    assert by_features[0, -1, -2:, -5:].cpu().tolist() == [[1, 2, 3, 3, 2]] * 2
    assert by_spatial[0, 4, -1, -4:].cpu().tolist() == [1] * 4


@pytest.mark.gpu
def test_runs_on_the_current_stream() -> None:
    case = Case((8, 64, 56, 56), 3, Settings(), torch.float32, device="cuda")
    expected = case.forward().clone()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    target = torch.full_like(expected, torch.nan)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # whatever runs on another stream overtakes this
        case.tensors[0].mul_(2)
        native.apply_out(*case.tensors[:3], target)
    stream.synchronize()
    assert torch.equal(target, expected * 2)


@pytest.mark.gpu
def test_cuda_graph_capture() -> None:
    case = Case((2, 16, 14, 14), 3, Settings(), torch.float32, device="cuda")
    leaves = [t.requires_grad_() for t in case.tensors[:3]]

    def step() -> tuple[Tensor, ...]:
        out = native.apply(*leaves)
        return out, *torch.autograd.grad(out, leaves, case.tensors[3])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].mul_(3)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.gpu
def test_works_on_a_device_that_is_not_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    case = Case((2, 16, 14, 14), 3, Settings(), torch.float32, device="cuda:1")
    with torch.cuda.device(0):
        case.check_forward()
        case.check_backward()
        assert torch.cuda.current_device() == 0


# ----------------------------------------------------------------------------------------------- as `ddf` and its impls


def fresh(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that has loaded nothing."""
    preamble = "import sys, torch; from ops.ddf import ddf, composite; from ops.core import build, native;"
    ones = "ones = torch.ones(1, 2, 3, 3); spatial = torch.ones(1, 9, 3, 3);"
    command = [sys.executable, "-c", f"{preamble} {ones} {code}"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_loading_is_warm() -> None:
    """A second process compiles nothing: it does not even have what runs a compiler."""
    done = fresh("build.subprocess = None; print(ddf(ones, ones, spatial)[0, 0, 1, 1].item())")
    assert (done.stdout, done.stderr) == ("9.0\n", "")


def test_without_a_compiler_ddf_is_plain_pytorch_and_says_so_once() -> None:
    code = "assert torch.equal(ddf(ones, ones, spatial), composite(ones, ones, spatial)); ddf(ones, ones, spatial);"
    done = fresh(f"{code} print(native.missing('cpu'))", CXX="no-such-compiler")
    assert done.stdout == "cannot be built: no C++ compiler: CXX=no-such-compiler is not a program\n"
    assert done.stderr.count("no-such-compiler") == 1
    assert "plain PyTorch is used" in done.stderr


def test_ddf_compiles_whole_from_its_first_call() -> None:
    code = "print(torch.compile(ddf, fullgraph=True, backend='eager')(ones, ones, spatial)[0, 0, 1, 1].item())"
    assert fresh(code).stdout == "9.0\n"


def test_ddf_is_the_native_operator() -> None:
    case = Case((2, 5, 7, 6), 3, Settings(2, 2, "add"), torch.float32)
    features, channel, spatial, dilation, stride, combine = case.arguments
    assert torch.equal(ddf(features, channel, spatial, 3, dilation, stride, combine), case.forward())


@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
def test_ddf_into_a_given_tensor(layout: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((2, 20, 7, 6), 3, Settings(2, 2, "add"), torch.float32)
    features, channel, spatial, dilation, stride, combine = case.arguments
    for missing in ("", "no compiler"):
        out = layout(torch.zeros_like(case.tensors[3]))
        monkeypatch.setattr(native, "find_missing", lambda device, missing=missing: missing)
        assert ddf(features, channel, spatial, 3, dilation, stride, combine, out=out) is out
        torch.testing.assert_close(out, case.forward(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("write", [ddf, ddf_up])
def test_a_kept_tensor_that_is_written_is_refused_in_the_backward_pass(write: Callable[..., Tensor]) -> None:
    scale = 2 if write is ddf_up else 1
    features, channel, spatial = (
        torch.ones(2, 4, 5, 6),
        torch.ones(2, 4 * scale**2, 3, 3),
        torch.ones(2, 9 * scale**2, 5, 6),
    )
    out = torch.ones(2, 4, 5 * scale, 6 * scale)
    product = torch.ones_like(out).requires_grad_() * out
    with torch.no_grad():
        write(features, channel, spatial, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


BAD_OUT = [
    (torch.empty(2, 4, 5, 5), ValueError, r"out: expected shape \(2, 4, 5, 6\), got \(2, 4, 5, 5\)"),
    (torch.empty(2, 4, 5, 6, dtype=torch.float64), TypeError, "out: expected torch.float32 as the features"),
    (torch.empty(2, 1, 5, 6).expand(2, 4, 5, 6), ValueError, "out: expected a place for each element.*dimension 1"),
    (torch.empty(2, 4, 5, 6, device="meta"), ValueError, "out: expected to be on cpu"),
    (torch.empty(2, 4, 5, 6, requires_grad=True), ValueError, "out: expected no gradient to be wanted"),
    ([], TypeError, "out: expected a tensor, got list"),
]


@pytest.mark.parametrize(("out", "error", "text"), BAD_OUT)
def test_wrong_outputs_of_ddf_are_named(out: Any, error: type[Exception], text: str) -> None:
    given = tensors()
    with pytest.raises(error, match=f"^{text}"):
        ddf(given["features"], given["channel_filter"], given["spatial_filter"], out=out)


def test_gradients_by_registration_and_by_the_short_way_in_are_the_same() -> None:
    case = Case((2, 6, 9, 7), 3, Settings(), torch.float32)
    leaves = [t.requires_grad_() for t in case.tensors[:3]]
    grads = []
    for call in (native.apply, lambda *t: torch.ops.ddf.forward(*t, 1, 1, "mul")):
        grads.append(torch.autograd.grad(call(*leaves), leaves, case.tensors[3]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_native_impls_refuse_what_they_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    ops, generator = load(ROOT / "ops" / "ddf.py"), torch.Generator()
    for name in ("ddf_op", "ddf"):
        point = Point(channels=4, height=5, width=6)
        inputs = ops[name].build(point, torch.device("cpu"), generator)
        with torch.no_grad():
            expected, magnitude = (f(inputs.double(), point) for f in (ops[name].apply, ops[name].magnitude))
            out = ops[name].impls["native"].prepare(inputs, point)()
        assert ((out - expected).abs() <= 1e-6 * magnitude).all()
        with pytest.raises(Skip, match="kernel_size is at most 127, not 129"):
            ops[name].impls["native"].prepare(inputs, Point(channels=4, height=5, width=6, kernel_size=129))
        monkeypatch.setattr(native, "missing", lambda device: "cannot be built: no compiler")
        with pytest.raises(Skip, match="native operator: cannot be built: no compiler"):
            ops[name].impls["native"].prepare(inputs, point)
        monkeypatch.undo()


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc what is in use")
def test_calls_leave_nothing_behind() -> None:
    """48 bytes a call, once leaked, kept freed outputs apart, and every call had fresh pages to fault in."""
    code = (
        "import ctypes, torch\n"
        "from ops.core import native\n"
        "native.load()\n"
        "names = 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()\n"
        "Info = type('Info', (ctypes.Structure,), {'_fields_': [(name, ctypes.c_size_t) for name in names]})\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.mallinfo2.restype = Info\n"
        "torch.set_num_threads(1)\n"
        "f, c, s, g = (torch.randn(shape) for shape in ((1, 4, 7, 7), (1, 4, 3, 3), (1, 9, 7, 7), (1, 4, 7, 7)))\n"
        "for call in (\n"
        "    lambda: native.apply(f, c, s),\n"
        "    lambda: native.apply_out(f, c, s, g),\n"
        "    lambda: torch.ops.ddf.backward(g, f, c, s, 1, 1, 'mul', True, True, True),\n"
        "):\n"
        "    for _ in range(100): call()\n"
        "    before = libc.mallinfo2().uordblks\n"
        "    for _ in range(1000): call()\n"
        "    print((libc.mallinfo2().uordblks - before) / 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(float(kept) < 8 for kept in done.stdout.split()), done.stdout
