"""The drop-in for the authors' package: `from ops.ddf import ddf, DDFPack, DDFUpPack, FilterNorm`."""

from __future__ import annotations

import inspect
from typing import Any

import loops
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops import Point
from ops.ddf import DDFPack, DDFUpPack, FilterNorm, ddf

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def operands(
    n: int = 2, c: int = 3, h: int = 5, w: int = 6, k: int = 3, stride: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, channel filter and spatial filter, drawn."""
    generator = torch.Generator().manual_seed(0)
    shapes = (n, c, h, w), (n, c, k, k), (n, k * k, -(-h // stride), -(-w // stride))
    features, channel, spatial = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return features, channel, spatial


def by_loops(features: Tensor, channel: Tensor, spatial: Tensor, **axes: Any) -> Tensor:
    k = channel.shape[2]
    arrays = [t.detach().double().numpy() for t in (features, channel.flatten(2), spatial)]
    return torch.from_numpy(loops.ddf(*arrays, Point(channels=features.shape[1], kernel_size=k, **axes)))


# ------------------------------------------------------------------------------------------------------- the operator


def test_signatures_are_those_of_the_authors() -> None:
    def signature(of: Any) -> list[tuple[str, Any]]:
        """What can be given by position; the authors have nothing that is given by name alone."""
        parameters = inspect.signature(of).parameters.values()
        return [(p.name, p.default) for p in parameters if p.kind is not p.KEYWORD_ONLY]

    need = inspect.Parameter.empty
    assert signature(ddf) == [
        ("features", need),
        ("channel_filter", need),
        ("spatial_filter", need),
        ("kernel_size", 3),
        ("dilation", 1),
        ("stride", 1),
        ("kernel_combine", "mul"),
    ]
    assert signature(DDFPack) == [
        ("in_channels", need),
        ("kernel_size", 3),
        ("stride", 1),
        ("dilation", 1),
        ("head", 1),
        ("se_ratio", 0.2),
        ("nonlinearity", "relu"),
        ("kernel_combine", "mul"),
    ]
    assert signature(DDFUpPack) == [
        ("in_channels", need),
        ("kernel_size", 3),
        ("scale_factor", 2),
        ("dilation", 1),
        ("head", 1),
        ("se_ratio", 0.2),
        ("nonlinearity", "linear"),
        ("dw_kernel_size", 3),
        ("joint_channels", -1),
        ("kernel_combine", "mul"),
    ]
    assert signature(FilterNorm) == [
        ("in_channels", need),
        ("kernel_size", need),
        ("filter_type", need),
        ("nonlinearity", "linear"),
        ("running_std", False),
        ("running_mean", False),
    ]


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize(
    ("k", "stride", "dilation", "h", "w"),
    [(1, 1, 1, 3, 2), (3, 1, 1, 3, 4), (3, 2, 1, 5, 4), (3, 1, 2, 4, 5), (5, 2, 2, 3, 5), (3, 3, 1, 4, 7)],
)
def test_gradients(k: int, stride: int, dilation: int, h: int, w: int, combine: str) -> None:
    leaves = [t.requires_grad_() for t in operands(2, 2, h, w, k, stride)]
    assert torch.autograd.gradcheck(lambda *t: ddf(*t, k, dilation, stride, combine), leaves)


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, combine: str) -> None:
    given_ = operands(dtype=dtype)
    out, expected = ddf(*given_, kernel_combine=combine), by_loops(*given_, combine=combine)
    assert out.dtype == dtype
    scale = by_loops(*(t.abs() for t in given_), combine=combine)
    assert ((out.double() - expected).abs() <= 4 * torch.finfo(dtype).eps * scale).all()


def test_half_precision_accumulates_in_float32() -> None:
    """2048 + 1 is 2048 in float16, so that a sum in float16 would stay there."""
    features, channel, spatial = (torch.ones(shape).half() for shape in ((1, 1, 3, 3), (1, 1, 3, 3), (1, 9, 3, 3)))
    channel[0, 0, 0, 0] = 2048
    assert ddf(features, channel, spatial)[0, 0, 1, 1] == 2056


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_infinities_and_nans_travel_to_the_outputs_that_read_them(bad: float, combine: str) -> None:
    features, channel, spatial = operands(h=7, w=6, stride=2)
    features[0, 1, 0, 0] = features[1, 2, 3, 4] = bad
    out = ddf(features, channel, spatial, stride=2, kernel_combine=combine)
    expected = by_loops(features, channel, spatial, stride=2, combine=combine)
    assert not expected.isfinite().all()
    assert torch.allclose(out, expected, equal_nan=True, rtol=0, atol=1e-12)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_layouts_and_views_give_the_same(combine: str) -> None:
    features, channel, spatial = operands()
    expected = ddf(features, channel, spatial, kernel_combine=combine)
    last = features.contiguous(memory_format=torch.channels_last)
    for s in (spatial, spatial.contiguous(memory_format=torch.channels_last)):
        out = ddf(last, channel, s, kernel_combine=combine)
        assert torch.equal(out, expected)
    wide = torch.zeros(4, 8, 9, 9, dtype=features.dtype)
    part = wide[1:3, 2:5, 1:6, 2:8]
    part.copy_(features)
    assert torch.equal(ddf(part, channel.mT.contiguous().mT, spatial, kernel_combine=combine), expected)


def test_autocast_computes_in_its_dtype() -> None:
    features, channel, spatial = operands(dtype=torch.float32)
    pack = DDFPack(3)
    with torch.autocast("cpu", torch.bfloat16):
        out, packed = ddf(features, channel, spatial.bfloat16()), pack(features)
    assert out.dtype == packed.dtype == torch.bfloat16
    assert torch.equal(out, ddf(features.bfloat16(), channel.bfloat16(), spatial.bfloat16()))
    assert torch.allclose(packed.float(), pack(features), atol=0.1)


F3, C3, S3 = operands(dtype=torch.float32)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([1.0], C3, S3), TypeError, r"features: expected a tensor, got list"),
        ((F3, C3, None), TypeError, r"spatial_filter: expected a tensor, got NoneType"),
        ((F3.long(), C3, S3), TypeError, r"features: .*float32.* got torch.int64"),
        ((F3, C3.double(), S3), TypeError, r"channel_filter: expected torch.float32.*float64"),
        ((F3, C3, S3.to("meta")), ValueError, r"spatial_filter: .*cpu.* got meta"),
        ((F3[0], C3, S3), ValueError, r"features: .*\(N, C, H, W\).* got \(3, 5, 6\)"),
        ((F3[:, :, :0], C3, S3), ValueError, r"features: .* got \(2, 3, 0, 6\)"),
        ((F3, C3[:1], S3), ValueError, r"channel_filter: expected shape \(2, 3, 3, 3\), got \(1, 3, 3, 3\)"),
        ((F3, C3.flatten(2), S3), ValueError, r"channel_filter: expected shape \(2, 3, 3, 3\), got \(2, 3, 9\)"),
        ((F3, C3, S3[:, :8]), ValueError, r"spatial_filter: expected shape \(2, 9, 5, 6\), got \(2, 8, 5, 6\)"),
        ((F3, C3, S3, 3, 1, 2), ValueError, r"spatial_filter: expected shape \(2, 9, 3, 3\), got \(2, 9, 5, 6\)"),
        ((F3, C3, S3, 5), ValueError, r"channel_filter: expected shape \(2, 3, 5, 5\)"),
        ((F3, C3, S3, 4), ValueError, r"kernel_size: expected an odd number, got 4"),
        ((F3, C3, S3, 3.0), TypeError, r"kernel_size: expected an integer, got 3.0"),
        ((F3, C3, S3, 3, 0), ValueError, r"dilation: expected at least 1, got 0"),
        ((F3, C3, S3, 3, 1, -1), ValueError, r"stride: expected at least 1, got -1"),
        ((F3, C3, S3, 3, 1, 1, "max"), ValueError, r"kernel_combine: expected one of mul, add, got 'max'"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ddf(*arguments)


# --------------------------------------------------------------------------------------------------------- FilterNorm


def test_spatial_norm() -> None:
    x = torch.randn(2, 18, 3, 4, dtype=torch.float64)
    norm = FilterNorm(2, 3, "spatial", "relu")
    expected = loops.normalised(x.reshape(2, 2, 9, 3, 4).movedim(2, -1).numpy()) * 2**0.5 / 3
    assert np.allclose(norm(x).reshape(2, 2, 9, 3, 4).movedim(2, -1), expected, rtol=1e-12)
    assert not list(norm.parameters())


def test_channel_norm_with_learned_std_and_mean() -> None:
    x = torch.randn(2, 45, 1, 1, dtype=torch.float64)
    norm = FilterNorm(5, 3, "channel", running_std=True, running_mean=True).double()
    assert {name: p.shape for name, p in norm.named_parameters()} == {"std": (45,), "mean": (45,)}
    out = norm(x)
    assert out.shape == (2, 45)
    expected = loops.normalised(x.reshape(2, 5, 9).numpy()).reshape(2, 45) * norm.std.detach().numpy()
    assert np.allclose(out.detach(), expected + norm.mean.detach().numpy(), rtol=1e-12)


def test_learned_norm_varies_by_tap_of_a_spatial_filter() -> None:
    x = torch.randn(1, 9, 2, 2, dtype=torch.float64)
    norm = FilterNorm(1, 3, "spatial", running_std=True, running_mean=True).double()
    nn.init.constant_(norm.mean, 1.0)
    plain = FilterNorm(1, 3, "spatial")(x) * 3
    assert torch.allclose(norm(x), plain * norm.std.view(1, 9, 1, 1) + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_a_constant_filter_is_zero(dtype: torch.dtype) -> None:
    """1e-10 outside the root keeps it from 0/0, in half precision too, where 1e-10 is 0."""
    assert (FilterNorm(1, 3, "spatial")(torch.full((1, 9, 2, 2), 0.5, dtype=dtype)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_of_half_precision_is_that_of_its_values(dtype: torch.dtype) -> None:
    """Squares of 0.001 would vanish in float16."""
    x = (torch.randn(2, 9, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e-3).to(dtype)
    out, exact = FilterNorm(1, 3, "spatial")(x), FilterNorm(1, 3, "spatial")(x.double())
    assert out.dtype == dtype
    assert torch.allclose(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_gradient_of_a_constant_filter_is_finite() -> None:
    x = torch.full((1, 9, 2, 2), 0.5, requires_grad=True)
    FilterNorm(1, 3, "spatial")(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_norm_adds_its_epsilon_outside_the_root() -> None:
    x = torch.zeros(1, 9, 1, 1, dtype=torch.float64)
    x[0, 0] = 1e-10
    spread = float(x.std(correction=1))
    out = FilterNorm(1, 3, "spatial")(x)
    assert out[0, 0].item() == pytest.approx((1e-10 - 1e-10 / 9) / (spread + 1e-10) / 3)


def test_learned_std_starts_with_a_deviation_of_gain_over_k() -> None:
    norm = FilterNorm(4000, 3, "channel", "relu", running_std=True)
    assert norm.std.std().item() == pytest.approx(2**0.5 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((1, 3, "both"), "filter_type"), ((0, 3, "channel"), "in_channels"), ((1, 1, "spatial"), "k")],
)
def test_bad_arguments_of_the_norm_are_named(arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        FilterNorm(*arguments)


# -------------------------------------------------------------------------------------------------------- the modules


PACK_256 = {
    "spatial_branch.0.weight": (9, 256, 1, 1),
    "spatial_branch.0.bias": (9,),
    "channel_branch.1.weight": (51, 256, 1, 1),
    "channel_branch.1.bias": (51,),
    "channel_branch.3.weight": (2304, 51, 1, 1),
    "channel_branch.3.bias": (2304,),
    "channel_branch.4.std": (2304,),
}
PACK_12_HEADS = {
    "spatial_branch.0.weight": (100, 12, 1, 1),
    "spatial_branch.0.bias": (100,),
    "channel_branch.1.weight": (6, 12, 1, 1),
    "channel_branch.1.bias": (6,),
    "channel_branch.3.weight": (300, 6, 1, 1),
    "channel_branch.3.bias": (300,),
    "channel_branch.4.std": (300,),
}
UP_10_BRANCH = {
    "spatial_branch.{}.0.weight": (10, 1, 5, 5),
    "spatial_branch.{}.0.bias": (10,),
    "spatial_branch.{}.1.0.weight": (9, 10, 1, 1),
    "spatial_branch.{}.1.0.bias": (9,),
    "channel_branch.{}.1.weight": (2, 10, 1, 1),
    "channel_branch.{}.1.bias": (2,),
    "channel_branch.{}.3.weight": (90, 2, 1, 1),
    "channel_branch.{}.3.bias": (90,),
    "channel_branch.{}.4.std": (90,),
}
UP_10_GUIDED_BRANCH = {
    "spatial_branch.{}.0.weight": (50, 7, 1, 1),
    "spatial_branch.{}.0.bias": (50,),
    "channel_branch.{}.1.weight": (2, 10, 1, 1),
    "channel_branch.{}.1.bias": (2,),
    "channel_branch.{}.3.weight": (250, 2, 1, 1),
    "channel_branch.{}.3.bias": (250,),
    "channel_branch.{}.4.std": (250,),
}


def repeated(branch: dict[str, tuple[int, ...]], times: int) -> dict[str, tuple[int, ...]]:
    return {name.format(i): shape for i in range(times) for name, shape in branch.items()}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (DDFPack(256), PACK_256),
        (DDFPack(12, 5, head=4, se_ratio=0.5), PACK_12_HEADS),
        (DDFUpPack(10, dw_kernel_size=5), repeated(UP_10_BRANCH, 4)),
        (DDFUpPack(10, 5, 3, head=2, joint_channels=7), repeated(UP_10_GUIDED_BRANCH, 9)),
    ],
    ids=["pack", "pack-heads", "up", "up-guided"],
)
def test_checkpoints_of_the_authors_load(module: nn.Module, expected: dict[str, tuple[int, ...]]) -> None:
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == expected
    assert {name for name, _ in module.named_parameters()} == set(expected)
    checkpoint = {name: torch.randn(shape) for name, shape in expected.items()}
    module.load_state_dict(checkpoint, strict=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, checkpoint[name])


def test_pack_of_256_channels_has_137532_parameters() -> None:
    assert sum(p.numel() for p in DDFPack(256).parameters()) == 137_532


@pytest.mark.parametrize("c", [1, 2, 4])
def test_few_channels_keep_one_between_squeeze_and_excitation(c: int) -> None:
    assert DDFPack(c).channel_branch[1].out_channels == 1
    assert DDFPack(c)(torch.randn(1, c, 4, 4)).shape == (1, c, 4, 4)


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize(
    ("k", "stride", "dilation", "head", "h", "w"),
    [(3, 1, 1, 1, 5, 4), (3, 2, 1, 2, 7, 5), (5, 2, 2, 3, 6, 9), (7, 3, 1, 6, 8, 8), (9, 1, 1, 1, 3, 3)],
)
def test_pack_is_its_parts(k: int, stride: int, dilation: int, head: int, h: int, w: int, combine: str) -> None:
    pack = DDFPack(6, k, stride, dilation, head, kernel_combine=combine).double()
    x = torch.randn(2, 6, h, w, dtype=torch.float64)
    point = Point(channels=6, kernel_size=k, stride=stride, dilation=dilation, combine=combine)
    parameters = {name: p.detach().numpy() for name, p in pack.named_parameters()}
    channel, spatial = loops.filters_of_pack(x.numpy(), parameters, point)
    expected = loops.ddf(x.numpy(), channel, spatial, point)
    assert np.allclose(pack(x).detach(), expected, rtol=1e-10, atol=1e-10)
    last = pack(x.contiguous(memory_format=torch.channels_last)).detach()
    assert np.allclose(last, expected, rtol=1e-10, atol=1e-10)


def test_pack_trains() -> None:
    torch.manual_seed(0)
    pack, x = DDFPack(16, head=2, se_ratio=0.5), torch.randn(2, 16, 5, 5, requires_grad=True)
    pack(x).square().sum().backward()
    for name, leaf in {"x": x, **dict(pack.named_parameters())}.items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name
        assert leaf.grad.abs().sum() > 0, name


def composed(pack: DDFUpPack, x: Tensor, guide: Tensor, scale: int, combine: str) -> Tensor:
    """DDF-Up from its parameters: one branch for each place (a, b) within a pixel, applied by unfold, head by head."""
    p, k, d, head = dict(pack.named_parameters()), pack.kernel_size, pack.dilation, pack.head
    n, c, h, w = x.shape
    out = torch.empty(n, c, h * scale, w * scale, dtype=x.dtype)
    for i in range(scale**2):
        seen, name = guide, f"spatial_branch.{i}."
        if f"{name}1.0.weight" in p:
            weight = p[f"{name}0.weight"]
            seen = F.conv2d(guide, weight, p[f"{name}0.bias"], padding=weight.shape[2] // 2, groups=c)
            name += "1."
        raw = F.conv2d(seen, p[f"{name}0.weight"], p[f"{name}0.bias"]).view(n, head, 1, k * k, h * w)
        spatial = torch.from_numpy(loops.normalised(raw.movedim(3, -1).detach().numpy())).movedim(-1, 3) / k
        name = f"channel_branch.{i}."
        hidden = F.relu(F.linear(x.mean((2, 3)), p[f"{name}1.weight"].flatten(1), p[f"{name}1.bias"]))
        raw = F.linear(hidden, p[f"{name}3.weight"].flatten(1), p[f"{name}3.bias"]).view(n, c, k * k)
        channel = torch.from_numpy(loops.normalised(raw.detach().numpy())) * p[f"{name}4.std"].view(c, k * k)
        channel = channel.view(n, head, c // head, k * k, 1)
        read = F.unfold(x, k, d, d * (k - 1) // 2).view(n, head, c // head, k * k, h * w)
        combined = spatial * channel if combine == "mul" else spatial + channel
        out[:, :, i // scale :: scale, i % scale :: scale] = (combined * read).sum(3).view(n, c, h, w)
    return out


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("joint_channels", [-1, 3])
@pytest.mark.parametrize(
    ("k", "scale", "dilation", "head", "dw"), [(3, 2, 1, 1, 3), (5, 2, 1, 2, 5), (3, 3, 2, 3, 3), (5, 3, 1, 6, 1)]
)
def test_up_pack_is_its_parts(
    k: int, scale: int, dilation: int, head: int, dw: int, joint_channels: int, combine: str
) -> None:
    up = DDFUpPack(6, k, scale, dilation, head, 0.5, "linear", dw, joint_channels, combine).double()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    guide = torch.randn(2, joint_channels if joint_channels > 0 else 6, 4, 5, dtype=torch.float64)
    out = up(x, guide)
    assert out.shape == (2, 6, 4 * scale, 5 * scale)
    assert torch.allclose(out, composed(up, x, guide, scale, combine), rtol=1e-10, atol=1e-10)
    if joint_channels < 1:
        assert torch.allclose(up(x), composed(up, x, x, scale, combine), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("module", [DDFPack(6, head=2), DDFUpPack(6, 5)], ids=["pack", "up"])
def test_modules_run_in_half_precision(module: nn.Module, dtype: torch.dtype) -> None:
    half = module.to(dtype)
    x = torch.randn(2, 6, 5, 5).to(dtype)
    out = half(x)
    assert out.dtype == dtype
    exact = half.double()(x.double())
    assert ((out.double() - exact).abs() <= 64 * torch.finfo(dtype).eps * exact.abs().max()).all()


def test_empty_batch() -> None:
    assert DDFPack(6, stride=2, head=2)(torch.randn(0, 6, 5, 5)).shape == (0, 6, 3, 3)
    assert DDFUpPack(6)(torch.randn(0, 6, 5, 5)).shape == (0, 6, 10, 10)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: DDFPack(0), ValueError, "^in_channels: expected at least 1, got 0"),
        (lambda: DDFPack(6, 4), ValueError, "^kernel_size: expected an odd number, got 4"),
        (lambda: DDFPack(6, 1), ValueError, "^kernel_size: expected at least 2"),
        (lambda: DDFPack(6, stride=0), ValueError, "^stride"),
        (lambda: DDFPack(6, dilation=1.5), TypeError, "^dilation"),
        (lambda: DDFPack(6, head=4), ValueError, "^head: expected a divisor of in_channels, 6, got 4"),
        (lambda: DDFPack(6, se_ratio=0), ValueError, "^se_ratio"),
        (lambda: DDFPack(6, kernel_combine="sum"), ValueError, "^kernel_combine"),
        (
            lambda: DDFPack(6)(torch.zeros(1, 5, 4, 4)),
            ValueError,
            r"^x: expected shape \(N, 6, H, W\), got \(1, 5, 4, 4\)",
        ),
        (lambda: DDFPack(6)(torch.zeros(6, 4, 4)), ValueError, r"^x: .* got \(6, 4, 4\)"),
        (lambda: DDFUpPack(6, head=5), ValueError, "^head"),
        (lambda: DDFUpPack(6, scale_factor=0), ValueError, "^scale_factor"),
        (lambda: DDFUpPack(6, dw_kernel_size=4), ValueError, "^dw_kernel_size: expected an odd number, got 4"),
        (lambda: DDFUpPack(6)(torch.zeros(1, 5, 4, 4)), ValueError, "^x: "),
        (
            lambda: DDFUpPack(6, joint_channels=3)(torch.zeros(1, 6, 4, 4)),
            ValueError,
            r"^joint_x: expected shape \(1, 3, 4, 4\), got \(1, 6, 4, 4\)",
        ),
        (
            lambda: DDFUpPack(6, joint_channels=3)(torch.zeros(1, 6, 4, 4), torch.zeros(1, 3, 8, 8)),
            ValueError,
            r"^joint_x: expected shape \(1, 3, 4, 4\), got \(1, 3, 8, 8\)",
        ),
    ],
)
def test_bad_arguments_of_the_modules_are_named(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
