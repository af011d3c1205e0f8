"""The native upsampling operator against float64 loops, and its registration with torch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import ROOT
from ddf_by_taps import ROUNDING, Settings, absolute, assert_rounded, backward, forward
from test_native import DEVICES, DTYPES, LAYOUTS, Gradients, channels_last, contiguous, far_samples, sliced
from torch import Tensor

from ops import Point, Skip, load
from ops.core import native_up
from ops.ddf import DDFUpPack, by_branch, composite, ddf, ddf_up

Layout = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    native_up.load()


# ------------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class Up:
    """Settings of the upsampling operator."""

    scale: int = 2
    dilation: int = 1
    combine: str = "mul"
    k: int = 3


class UpCase:
    """Inputs and settings of the upsampling operator."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        up: Up,
        dtype: torch.dtype,
        layouts: Sequence[Layout] = (contiguous,) * 4,
        special: tuple[float, ...] = (),
        device: str = "cpu",
    ) -> None:
        n, c, h, w = shape
        s, k = up.scale, up.k
        generator = torch.Generator().manual_seed(n + 3 * c + 7 * h + 31 * w + 127 * k + 511 * s)
        shapes = ((n, c, h, w), (n, s * s * c, k, k), (n, s * s * k * k, h, w), (n, c, h * s, w * s))
        drawn = [torch.randn(size, generator=generator).to(dtype) for size in shapes]
        for value in special:
            drawn[0].view(-1)[int(torch.randint(drawn[0].numel(), (), generator=generator))] = value
        self.up = up
        self.tensors = [layout(t).to(device) for layout, t in zip(layouts, drawn, strict=True)]
        self.wide = [t.double() for t in drawn]
        self.description = f"{shape} {up} {dtype} {[f.__name__ for f in layouts]} {special}"

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, int, int, str]:
        features, channel, spatial, _ = self.tensors
        return features, channel, spatial, self.up.scale, self.up.dilation, self.up.combine

    def forward(self) -> Tensor:
        return native_up.apply(*self.arguments)

    def backward(self, wanted: tuple[bool, bool, bool] = (True, True, True)) -> Gradients:
        return torch.ops.ddf.up_backward(self.tensors[3], *self.arguments, *wanted)

    def branches(self, wide: list[Tensor]) -> list[tuple[tuple[slice, ...], Tensor, Tensor]]:
        """For each branch: where its outputs are, its channel filter and its spatial filter."""
        s, everything = self.up.scale, slice(None)
        filters = (t.unflatten(1, (s * s, -1)).unbind(1) for t in wide[1:3])
        places = ((everything, everything, slice(b // s, None, s), slice(b % s, None, s)) for b in range(s * s))
        return list(zip(places, *filters, strict=True))

    def loops(self, wide: list[Tensor]) -> Tensor:
        out, settings = torch.full_like(wide[3], torch.nan), Settings(1, self.up.dilation, self.up.combine)
        for place, channel, spatial in self.branches(wide):
            out[place] = forward(wide[0], channel, spatial, settings)
        return out

    def loops_backward(self, wide: list[Tensor]) -> Gradients:
        settings = Settings(1, self.up.dilation, self.up.combine)
        found = [
            backward(wide[3][place], wide[0], channel, spatial, settings)
            for place, channel, spatial in self.branches(wide)
        ]
        features, channel, spatial = (list(some) for some in zip(*found, strict=True))
        return torch.stack(features).sum(0), torch.cat(channel, 1), torch.cat(spatial, 1)

    def check_forward(self) -> None:
        terms = 2 * self.up.k**2
        expected, magnitude = self.loops(self.wide), self.loops(absolute(*self.wide))
        assert_rounded(self.forward().cpu(), expected, magnitude, terms, f"output of {self.description}")

    def check_backward(self) -> None:
        _, c, h, w = self.wide[0].shape
        for name, got, right, size, terms in zip(
            ("features", "channel_filter", "spatial_filter"),
            self.backward(),
            self.loops_backward(self.wide),
            self.loops_backward(absolute(*self.wide)),
            (2 * (self.up.scale * self.up.k) ** 2, 2 * h * w, 2 * c),
            strict=True,
        ):
            assert_rounded(got.cpu(), right, size, terms, f"gradient of {name} of {self.description}")


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize(
    ("shape", "up"),
    [
        ((1, 3, 5, 600), Up()),  # several tiles across
        ((1, 2, 200, 40), Up(dilation=2)),  # several tiles down
        ((1, 70, 9, 9), Up(combine="add")),  # several blocks of channels, and a part of one
        ((1, 2, 2, 3), Up(combine="add", k=13)),  # a kernel larger than the plane
        ((1, 4, 6, 5), Up(dilation=10**15)),  # all taps but the middle one in the padding
        ((1, 20, 1, 1), Up(scale=5)),
        ((1, 1, 40, 1), Up(scale=3)),
        ((1, 16, 96, 96), Up(4)),  # large enough to be stored past the caches
        ((1, 130, 4, 16), Up()),  # channels last: two blocks of channels and a part of one
        ((1, 2, 3, 4), Up(scale=8, k=1)),
    ],
)
def test_shapes_at_the_edges_of_the_kernels(
    shape: tuple[int, int, int, int], up: Up, layout: Layout, device: str
) -> None:
    case = UpCase(shape, up, torch.float32, (layout,) * 4, device=device)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
def test_every_kernel(scale: int, combine: str, layout: Layout, dtype: torch.dtype, device: str) -> None:
    for shape in ((2, 18, 4, 5), (1, 16, 2, 35)):
        case = UpCase(shape, Up(scale, 1, combine), dtype, (layout,) * 4, device=device)
        case.check_forward()
        case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("up", [Up(2, 2, "mul", 5), Up(3, 1, "add", 7), Up(2, 3), Up(1, 1, "mul", 1)])
def test_every_kernel_of_other_taps(up: Up, layout: Layout, device: str) -> None:
    for shape in ((1, 16, 5, 6), (1, 3, 3, 33)):
        case = UpCase(shape, up, torch.float32, (layout,) * 4, device=device)
        case.check_forward()
        case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("width", [6, 40])
@pytest.mark.parametrize("special", [(torch.nan,), (torch.inf, -torch.inf)])
def test_what_is_not_finite_is_passed_on(special: tuple[float, ...], width: int, layout: Layout, device: str) -> None:
    case = UpCase((1, 16, 5, width), Up(), torch.float32, (layout,) * 4, special, device)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_infinite_filters_meet_the_zeros_of_the_padding(combine: str, layout: Layout, device: str) -> None:
    features, channel = torch.ones(1, 16, 3, 3, device=device), torch.ones(1, 64, 3, 3, device=device)
    spatial = torch.ones(1, 36, 3, 3, device=device)
    spatial[0, 9] = torch.inf
    out = native_up.apply(layout(features), channel, spatial, combine=combine)
    padded = torch.nn.functional.pad(features, (1, 1, 1, 1))[:, :, :3, :3]
    assert torch.equal(out[:, :, ::2, 1::2].isnan(), (padded * torch.inf).isnan())
    assert not out[:, :, ::2, ::2].isnan().any()
    assert not out[:, :, 1::2].isnan().any()


def test_offsets_beyond_32_bits_on_the_cpu() -> None:
    case = UpCase((2, 2, 5, 6), Up(), torch.float16, (far_samples,) * 4)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_batch(device: str) -> None:
    case = UpCase((0, 5, 6, 7), Up(3), torch.float32, device=device)
    assert case.forward().shape == (0, 5, 18, 21)
    assert [g.shape for g in case.backward()] == [t.shape for t in case.tensors[:3]]


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_gradients_asked_for_are_computed(device: str) -> None:
    case = UpCase((2, 5, 6, 7), Up(), torch.float32, device=device)
    everything = case.backward()
    for which in range(3):
        for i, gradient in enumerate(case.backward((which == 0, which == 1, which == 2))):
            assert torch.equal(gradient, everything[i]) if i == which else gradient.numel() == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features_layout", [contiguous, channels_last])
def test_output_into_a_given_tensor(features_layout: Layout, layout: Layout, device: str) -> None:
    for width in (7, 48):
        layouts = (features_layout, contiguous, contiguous, contiguous)
        case = UpCase((2, 32, 6, width), Up(), torch.float32, layouts, device=device)
        out = layout(torch.zeros(2, 32, 12, 2 * width)).to(device)
        features, channel, spatial, *rest = case.arguments
        assert native_up.apply_out(features, channel, spatial, out, *rest) is out
        torch.testing.assert_close(out, case.forward(), rtol=1e-5, atol=1e-5)
        order = torch.channels_last if features_layout is channels_last else torch.contiguous_format
        assert case.forward().is_contiguous(memory_format=order)


@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, layout: Layout) -> None:
    case = UpCase((2, 48, 20, 41), Up(), dtype, (layout,) * 4)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append((case.forward(), *case.backward()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_memory_but_the_output_is_allocated() -> None:
    case = UpCase((1, 32, 24, 24), Up(), torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        out = case.forward()
    taken = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert taken == out.numel() * out.element_size()


# -------------------------------------------------------------------------------------------------------------- errors


def tensors(**changes: Any) -> dict[str, Any]:
    given = {
        "features": torch.ones(2, 4, 5, 6),
        "channel_filter": torch.ones(2, 16, 3, 3),
        "spatial_filter": torch.ones(2, 36, 5, 6),
        "scale": 2,
        "dilation": 1,
        "combine": "mul",
    }
    return {**given, **changes}


BAD = [
    ({"features": torch.ones(4, 5, 6)}, "features", "(4, 5, 6)"),
    ({"features": torch.ones(2, 4, 5, 6, dtype=torch.int32)}, "features", "float32"),
    ({"channel_filter": torch.ones(2, 16, 2, 2)}, "channel_filter", "(2, 16, 2, 2)"),
    ({"channel_filter": torch.ones(2, 4, 3, 3)}, "channel_filter", "(2, 16, 3, 3), (N, scale^2*C, k, k)"),
    ({"channel_filter": torch.ones(2, 16, 3, 3, dtype=torch.float64)}, "channel_filter", "dtype"),
    ({"spatial_filter": torch.ones(2, 9, 5, 6)}, "spatial_filter", "(2, 36, 5, 6), (N, scale^2*k*k, H, W)"),
    ({"scale": 3}, "channel_filter", "(2, 36, 3, 3)"),
    ({"scale": 0}, "scale", "1 to 64, got 0"),
    ({"scale": 65}, "scale", "1 to 64, got 65"),
    ({"dilation": -1}, "dilation", "-1"),
    ({"combine": "max"}, "combine", "max"),
]


@pytest.mark.parametrize(("changes", "name", "detail"), BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device: str, changes: dict[str, Any], name: str, detail: str) -> None:
    given = {key: t.to(device) if isinstance(t, Tensor) else t for key, t in tensors(**changes).items()}
    with pytest.raises(RuntimeError) as raised:
        torch.ops.ddf.up_forward(*given.values())
    assert str(raised.value).startswith(f"{name}: expected")
    assert detail in str(raised.value)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_outputs_and_gradients_are_named(device: str) -> None:
    given = [t.to(device) if isinstance(t, Tensor) else t for t in tensors().values()]
    with pytest.raises(RuntimeError, match=r"^out: expected shape \(2, 4, 10, 12\).*got \(2, 4, 5, 6\)"):
        torch.ops.ddf.up_forward_out(*given, torch.ones(2, 4, 5, 6, device=device))
    with pytest.raises(RuntimeError, match=r"^grad: expected shape \(2, 4, 10, 12\)"):
        torch.ops.ddf.up_backward(torch.ones(2, 4, 5, 6, device=device), *given, True, True, True)


def test_outputs_without_a_place_for_each_element_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^out: expected a place for each element.*dimension 1"):
        torch.ops.ddf.up_forward_out(*tensors().values(), torch.ones(2, 1, 10, 12).expand(2, 4, 10, 12))


BAD_CALLS = [
    ({"scale_factor": 0}, ValueError, "scale_factor: expected at least 1, got 0"),
    ({"scale_factor": 2.0}, TypeError, "scale_factor: expected an integer, got 2.0"),
    ({"kernel_size": 4}, ValueError, "kernel_size: expected an odd number, got 4"),
    ({"kernel_combine": "max"}, ValueError, "kernel_combine: expected one of mul, add, got 'max'"),
    ({"kernel_size": 5}, ValueError, r"channel_filter: expected shape \(2, 16, 5, 5\), got \(2, 16, 3, 3\)"),
    ({"spatial_filter": torch.ones(2, 9, 5, 6)}, ValueError, r"spatial_filter: expected shape \(2, 36, 5, 6\)"),
    ({"out": torch.ones(2, 4, 5, 6)}, ValueError, r"out: expected shape \(2, 4, 10, 12\), got \(2, 4, 5, 6\)"),
    ({"out": torch.ones(2, 4, 10, 12, requires_grad=True)}, ValueError, "out: expected no gradient to be wanted"),
]


@pytest.mark.parametrize(("changes", "error", "text"), BAD_CALLS)
def test_wrong_arguments_of_ddf_up_are_named(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    given = {name: t for name, t in tensors().items() if isinstance(t, Tensor)}
    with pytest.raises(error, match=f"^{text}"):
        ddf_up(**{**given, **changes})


# -------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_opcheck(layout: Layout, dtype: torch.dtype, device: str) -> None:
    case = UpCase((2, 3, 4, 5), Up(combine="add"), dtype, (layout,) * 4, device=device)
    features, channel, spatial, *rest = case.arguments
    leaves = [t.detach().requires_grad_() for t in (features, channel, spatial)]
    torch.library.opcheck(torch.ops.ddf.up_forward.default, (*leaves, *rest))
    torch.library.opcheck(torch.ops.ddf.up_backward.default, (case.tensors[3], *case.arguments, True, False, True))
    torch.library.opcheck(torch.ops.ddf.up_forward_out.default, (*case.arguments, torch.empty_like(case.forward())))


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("scale", [2, 3])
def test_gradcheck_goes_through_autograd(scale: int, combine: str) -> None:
    case = UpCase((1, 2, 3, 4), Up(scale, combine=combine), torch.float64)
    leaves = [t.requires_grad_() for t in case.tensors[:3]]
    assert torch.autograd.gradcheck(lambda *t: native_up.apply(*t, scale, 1, combine), leaves)


def test_second_derivatives_are_refused() -> None:
    case = UpCase((1, 3, 4, 5), Up(), torch.float64)
    features, channel = (t.requires_grad_() for t in case.tensors[:2])
    (first,) = torch.autograd.grad(case.forward().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of ddf"):
        first.sum().backward()
    assert channel.grad is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_a_graph_break(dynamic: bool, device: str) -> None:
    def block(features: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        return ddf_up(features.relu(), channel, spatial) * 2

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (5, 8):
        case = UpCase((2, 6, size, size + 2), Up(), torch.float32, device=device)
        leaves = [t.requires_grad_() for t in case.tensors[:3]]
        got, expected = compiled(*leaves), block(*leaves)
        assert torch.equal(got, expected)
        gradients = [torch.autograd.grad(out.sum(), leaves) for out in (got, expected)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device: str) -> None:
    case = UpCase((2, 6, 5, 7), Up(), torch.float32, device=device)
    leaves, dtype = [t.requires_grad_() for t in case.tensors[:3]], torch.bfloat16
    for call in (native_up.apply, ddf_up):
        with torch.autocast(device, dtype=dtype):
            out = call(leaves[0], leaves[1].to(dtype), leaves[2])
        assert out.dtype == dtype
        assert torch.equal(out, native_up.apply(*(t.to(dtype) for t in leaves)))
        gradients = torch.autograd.grad(out.float().sum(), leaves)
        assert all(g.dtype == torch.float32 for g in gradients)


def test_torch_counts_the_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = UpCase((2, 6, 5, 7), Up(3), torch.float32)
    leaves = [t.requires_grad_() for t in case.tensors[:3]]
    macs = 2 * 6 * 15 * 21 * 9
    with FlopCounterMode(display=False) as counter:
        out = native_up.apply(*leaves, 3)
    assert counter.get_total_flops() == 2 * macs
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * macs


@pytest.mark.filterwarnings("ignore")
def test_fvcore_counts_the_macs() -> None:
    nn = pytest.importorskip("fvcore.nn")

    class Module(torch.nn.Module):
        def forward(self, features: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
            return native_up.apply(features, channel, spatial)

    case = UpCase((2, 6, 5, 7), Up(), torch.float32)
    analysis = nn.FlopCountAnalysis(Module(), tuple(case.tensors[:3]))
    analysis.set_op_handle(**native_up.fvcore_handles())
    assert analysis.total() == 2 * 6 * 10 * 14 * 9


# ------------------------------------------------------------------------------------------- as `ddf_up` and its impls


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_ways_compute_the_same_to_rounding(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for up in (Up(), Up(3, 2, "add", 5)):
        case = UpCase((2, 20, 7, 6), up, dtype)
        settings = up.scale, up.k, up.dilation, up.combine
        ways = [by_branch(ddf), ddf_up]
        results = [way(*case.tensors[:3], *settings) for way in ways]
        out = sliced(torch.zeros_like(case.tensors[3]))
        results.append(ddf_up(*case.tensors[:3], *settings, out=out))
        assert results[-1] is out
        with monkeypatch.context() as patched:
            patched.setattr(native_up, "missing", lambda device: "no compiler")
            results.append(ddf_up(*case.tensors[:3], *settings))
            results.append(ddf_up(*case.tensors[:3], *settings, out=torch.empty_like(results[0])))
        expected, magnitude = case.loops(case.wide), case.loops(absolute(*case.wide))
        for result in results:
            assert_rounded(result, expected, magnitude, 2 * up.k**2, case.description)
        # which rounds each filter that it combines
        plain = by_branch(composite)(*case.tensors[:3], *settings).double()
        assert (
            (plain - expected).abs()
            <= 2 * up.k**2 * ROUNDING[torch.float32] * magnitude + 2 * ROUNDING[dtype] * magnitude
        ).all()


@pytest.mark.parametrize("head", [1, 2])
@pytest.mark.parametrize("joint_channels", [-1, 3])
def test_the_module_by_one_operator_is_the_module_by_branch(joint_channels: int, head: int) -> None:
    torch.manual_seed(0)
    pack = DDFUpPack(8, head=head, joint_channels=joint_channels)
    x, guide = torch.randn(2, 8, 5, 6, requires_grad=True), torch.randn(2, joint_channels % 9, 5, 6)
    ways = [pack.compute(x, guide if joint_channels > 0 else None, way) for way in (by_branch(composite), ddf_up)]
    torch.testing.assert_close(ways[0], ways[1], rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), [x, *pack.parameters()]) for out in ways]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_native_impls_refuse_what_they_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    found, generator = load(ROOT / "ops" / "upsampling_ddf.py"), torch.Generator()
    for op in found.values():
        point = Point(channels=4, height=5, width=6)
        inputs = op.build(point, torch.device("cpu"), generator)
        with pytest.raises(Skip, match="kernel_size is at most 127, not 129"):
            op.impls["native"].prepare(inputs, replace(point, kernel_size=129))
        with pytest.raises(Skip, match="scale is at most 64, not 65"):
            op.impls["native"].prepare(inputs, replace(point, extra={"scale": 65}))
        monkeypatch.setattr(native_up, "missing", lambda device: "cannot be built: no compiler")
        with pytest.raises(Skip, match="native upsampling operator: cannot be built: no compiler"):
            op.impls["native"].prepare(inputs, point)
        monkeypatch.undo()


def test_without_a_compiler_ddf_up_says_so_once() -> None:
    code = (
        "import torch; from ops.ddf import ddf_up;"
        "ones = torch.ones(1, 2, 3, 3), torch.ones(1, 8, 3, 3), torch.ones(1, 36, 3, 3);"
        "print(ddf_up(*ones)[0, 0, 2, 2].item() + ddf_up(*ones)[0, 0, 3, 3].item())"
    )
    environment = {**os.environ, "CXX": "no-such-compiler"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "18.0\n"
    assert done.stderr.count("the upsampling operator cannot be built") == 1


def test_layouts_that_differ() -> None:
    """Of features, filters and gradient each in a layout of its own."""
    for layouts in itertools.islice(itertools.permutations(LAYOUTS, 4), 0, None, 7):
        case = UpCase((1, 16, 3, 4), Up(), torch.float32, layouts)
        case.check_forward()
        case.check_backward()
