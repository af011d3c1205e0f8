"""The fused module, `DDFPack.fused`, against the formulas of the paper and the module in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_check import made
from test_native import LAYOUTS, channels_last, contiguous
from torch import Tensor

from ops import Skip
from ops.core import native
from ops.ddf import AblatedPack, DDFPack, composite


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    native.load()


def pack_of(channels: int, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any) -> DDFPack:
    torch.manual_seed(seed)
    return DDFPack(channels, **settings).to(dtype)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def gradients(pack: DDFPack, x: Tensor, call: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """The output, and the gradients of x and of all parameters."""
    leaf = x.detach().requires_grad_()
    out = call(leaf)
    return out.detach(), *torch.autograd.grad(out, [leaf, *pack.parameters()], torch.ones_like(out) + out.detach())


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "axes",
    [
        {"channels": 37, "height": 9, "width": 11},
        {"channels": 36, "height": 30, "width": 31, "head": 3, "stride": 2},  # several tiles; filters left over
        {"channels": 34, "height": 12, "width": 40, "head": 2, "dilation": 2, "combine": "add"},
        {"channels": 18, "height": 13, "width": 12, "kernel_size": 7, "stride": 3},
        {"channels": 5, "height": 1, "width": 1, "kernel_size": 5},
        {"channels": 8, "height": 2, "width": 1000, "stride": 2, "batch": 1},  # tiles across
        {"channels": 24, "height": 40, "width": 50, "batch": 1, "se_ratio": 0.9},
    ],
    ids=str,
)
def test_output_matches_and_gradients_match_the_formulas(axes: dict[str, Any], dtype: str, layout: str) -> None:
    extra = {name: axes[name] for name in ("head", "se_ratio") if name in axes}
    plain = {name: value for name, value in axes.items() if name not in extra}
    for direction in ("forward", "forward_backward"):
        with torch.set_grad_enabled(direction == "forward_backward"):
            case = made("ddf", "ddf", "fused", **plain, extra=extra, dtype=dtype, layout=layout, direction=direction)
            assert case.max_error() <= case.tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_every_kernel_reads_any_strides_in_place(layout: Callable[[Tensor], Tensor], stride: int) -> None:
    pack, x = pack_of(18, stride=stride, head=2), drawn(2, 18, 9, 11)
    for got, expected in zip(
        gradients(pack, layout(x), pack.fused), gradients(pack, x, lambda t: pack.compute(t, composite)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_empty_batch() -> None:
    pack = pack_of(6)
    out, by_x, *rest = gradients(pack, drawn(0, 6, 5, 7), pack.fused)
    assert out.shape == by_x.shape == (0, 6, 5, 7)
    assert all(not g.any() for g in rest)


def test_a_filter_without_spread_is_zero_and_has_the_gradients_of_filter_norm() -> None:
    pack, x = pack_of(6), drawn(1, 6, 4, 4)
    with torch.no_grad():
        pack.spatial_branch[0].weight.zero_()
        pack.spatial_branch[0].bias.zero_()
    got, expected = gradients(pack, x, pack.fused), gradients(pack, x, lambda t: pack.compute(t, composite))
    assert not got[0].any()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_same_bits_in_every_run_and_for_any_number_of_threads(layout: Callable[[Tensor], Tensor]) -> None:
    pack, x = pack_of(70, torch.float32, head=2), layout(drawn(2, 70, 40, 41, dtype=torch.float32))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(pack, x, pack.fused))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# -------------------------------------------------------------------------------------------------------------- errors


def arguments(**changes: Any) -> dict[str, Any]:
    given = {
        "features": torch.ones(2, 4, 5, 6),
        "spatial_weight": torch.ones(18, 4, 1, 1),
        "spatial_bias": torch.ones(18),
        "squeeze_weight": torch.ones(3, 4, 1, 1),
        "squeeze_bias": torch.ones(3),
        "excite_weight": torch.ones(36, 3, 1, 1),
        "excite_bias": torch.ones(36),
        "channel_std": torch.ones(36),
        "spatial_scale": 1.0,
        "kernel_size": 3,
        "dilation": 1,
        "stride": 1,
        "head": 2,
        "combine": "mul",
    }
    return {**given, **changes}


BAD = [
    ({"features": torch.ones(2, 4, 5)}, "features", "(2, 4, 5)"),
    ({"features": torch.ones(2, 4, 5, 6, dtype=torch.int32)}, "features", "float32"),
    ({"spatial_weight": torch.ones(9, 4, 1, 1)}, "spatial_weight", "(18, 4, 1, 1)"),
    ({"spatial_bias": torch.ones(9)}, "spatial_bias", "(18,)"),
    ({"squeeze_weight": torch.ones(3, 4)}, "squeeze_weight", "(3, 4)"),
    ({"squeeze_bias": torch.ones(4)}, "squeeze_bias", "(3,)"),
    ({"excite_weight": torch.ones(36, 4, 1, 1)}, "excite_weight", "(36, 3, 1, 1)"),
    ({"excite_bias": torch.ones(36, dtype=torch.float64)}, "excite_bias", "dtype"),
    ({"channel_std": torch.ones(4)}, "channel_std", "(36,)"),
    ({"kernel_size": 1}, "kernel_size", "1"),
    ({"stride": 0}, "stride", "0"),
    ({"dilation": -1}, "dilation", "-1"),
    ({"head": 3}, "head", "3"),
    ({"combine": "max"}, "combine", "max"),
]


@pytest.mark.parametrize(("changes", "name", "detail"), BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device: str, changes: dict[str, Any], name: str, detail: str) -> None:
    given = arguments(**changes).values()
    with pytest.raises(RuntimeError) as raised:
        torch.ops.ddf.fused_forward(*(v.to(device) if isinstance(v, Tensor) else v for v in given))
    assert str(raised.value).startswith(f"{name}: expected")
    assert detail in str(raised.value)


def test_wrong_gradients_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"^grad: expected shape \(2, 4, 5, 6\)"):
        torch.ops.ddf.fused_backward(torch.ones(2, 4, 5, 5), *arguments().values(), True, True)


def test_what_is_not_fused_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ablated = AblatedPack(4, branches="spatial", norm="filter_norm")
    with pytest.raises(RuntimeError, match=r"^fused: the whole module with FilterNorm alone"):
        ablated.fused(torch.ones(1, 4, 5, 6))
    with pytest.raises(RuntimeError, match=r"^fused: none for meta"):
        DDFPack(4).fused(torch.ones(1, 4, 5, 6, device="meta"))
    for axes, reason in (
        ({"extra": {"norm": "sigmoid"}}, "the whole module with FilterNorm alone"),
        ({"kernel_size": 129, "channels": 1}, "kernel_size is at most 127, not 129"),
    ):
        with pytest.raises(Skip, match=f"^fused operator: {reason}"):
            _ = made("ddf", "ddf", "fused", **axes).forward
    monkeypatch.setattr(native, "missing", lambda device: "")
    assert DDFPack(4, 9).fused_refusal("cuda", torch.float32) == "kernel_size is 3, 5 or 7 on CUDA, not 9"
    assert "kernel_size is 3 in float64 on CUDA, not 5" in DDFPack(4, 5).fused_refusal("cuda", torch.float64)
    assert not DDFPack(4, 7).fused_refusal("cuda", torch.float32)
    assert not DDFPack(4, 3).fused_refusal("cuda", torch.float64)


# -------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
def test_opcheck(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    given = list(arguments(stride=2, combine="add").values())
    tensors = [layout(drawn(2, 4, 5, 6, dtype=dtype)), *(drawn(*t.shape, dtype=dtype) for t in given[1:8])]
    leaves = [t.detach().requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.ddf.fused_forward.default, (*leaves, *given[8:]))
    grad = layout(drawn(2, 4, 3, 3, dtype=dtype))
    for wanted in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(torch.ops.ddf.fused_backward.default, (grad, *tensors, *given[8:], *wanted))


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradcheck_goes_through_autograd(combine: str) -> None:
    pack = pack_of(4, seed=3, stride=2, head=2, se_ratio=0.8, kernel_combine=combine)
    x, parameters = drawn(2, 4, 4, 3).requires_grad_(), list(pack.parameters())
    assert torch.autograd.gradcheck(lambda *_: pack.fused(x), [x, *parameters])


def test_only_the_gradients_asked_for_are_computed() -> None:
    pack, x = pack_of(6), drawn(2, 6, 5, 7)
    both = gradients(pack, x, pack.fused)
    leaf = x.clone().requires_grad_()
    out = pack.requires_grad_(False).fused(leaf)
    (alone,) = torch.autograd.grad(out, leaf, torch.ones_like(out) + out.detach())
    assert torch.equal(alone, both[1])
    out = pack.requires_grad_(True).fused(x)
    parameters = torch.autograd.grad(out, list(pack.parameters()), torch.ones_like(out) + out.detach())
    assert all(torch.equal(a, b) for a, b in zip(parameters, both[2:], strict=True))


def test_second_derivatives_are_refused() -> None:
    pack, x = pack_of(4), drawn(1, 4, 4, 3).requires_grad_()
    (first,) = torch.autograd.grad(pack.fused(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives of ddf"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_a_graph_break_and_exports() -> None:
    pack, x = pack_of(6, torch.float32), drawn(2, 6, 5, 7, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(pack.fused, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(pack, x, compiled), gradients(pack, x, pack.fused), strict=True):
        assert torch.equal(a, b)

    class Fused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pack = pack

        def forward(self, features: Tensor) -> Tensor:
            return self.pack.fused(features)

    exported = torch.export.export(Fused(), (x,))
    assert torch.equal(exported.module()(x), pack.fused(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    pack, x = pack_of(6, torch.float32), drawn(2, 6, 5, 7, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = pack.fused(x)
        with torch.no_grad():
            assert torch.equal(pack.fused(x), out)
    assert out.dtype == dtype
    out.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in (x, *pack.parameters()))
    half = pack_of(6, torch.float32).to(dtype)
    assert torch.equal(out, half.fused(x.to(dtype)))


def test_torch_counts_the_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    pack, x = pack_of(6, stride=2, head=2, se_ratio=0.5), drawn(2, 6, 5, 7).requires_grad_()
    spatial, squeeze, excite, dynamic = 2 * 12 * 18 * 6, 2 * 6 * 3, 2 * 3 * 54, 2 * 12 * 6 * 9
    with FlopCounterMode(display=False) as counter:
        out = pack.fused(x)
    assert counter.get_total_flops() == 2 * (spatial + squeeze + excite + dynamic)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * (2 * (spatial + squeeze + excite) + 3 * dynamic)
