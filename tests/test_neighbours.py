"""The operators beside DDF: closed forms, hard edges, other libraries' kernels, and that wrong results are found."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from test_check import made
from test_memory import gradients
from test_ops import COST_POINTS, NEIGHBOURS, OPS, ROUNDING, ROUNDINGS, build, error
from torch import Tensor

from ops import Point, Skip
from ops.local_attention import neighbours
from suites import suites
from suites.core.bench import relative_error

#: File, op and impl.
IMPLS = [
    ("involution", "involution_op", "native"),
    ("involution", "involution_op", "composite"),
    ("involution", "involution_op", "unfold"),
    ("involution", "involution", "native"),
    ("involution", "involution", "composite"),
    ("involution", "involution", "unfold"),
    ("conditional", "dw_weightnet", "native"),
    ("conditional", "dw_weightnet", "torch"),
    ("conditional", "condconv", "torch"),
    ("conditional", "odconv", "torch"),
    ("pac", "pac", "composite"),
    ("local_attention", "local_attention", "composite"),
    ("deformable", "dcnv4", "composite"),
]

#: The shapes at which kernels break.
EDGES = [
    Point(channels=1, height=1, width=1, kernel_size=15, dilation=8),
    Point(batch=2, channels=1, height=5, width=4, kernel_size=3, dilation=8),
    Point(channels=32, height=1, width=1),
    Point(channels=32, height=6, width=5),
    Point(batch=2, channels=20, height=13, width=11, kernel_size=15),
    Point(channels=16, height=11, width=7, kernel_size=7, stride=3, dilation=2),
    Point(batch=2, channels=3, height=7, width=13, kernel_size=5, stride=3),
    Point(channels=4, height=3, width=4, kernel_size=1, stride=2),
]


# ------------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("channels", [1, 6, 32])
def test_params_are_those_of_the_module(name: str, channels: int) -> None:
    for k in (1, 3):
        module = build(OPS[name], replace(COST_POINTS[0], channels=channels, kernel_size=k)).module
        parameters = {} if module is None else {key: p.numel() for key, p in module.named_parameters()}
        assert OPS[name].costs(Point(channels=channels, kernel_size=k)).params == parameters


@pytest.mark.parametrize(
    ("name", "extra"), [("condconv", {"experts": 3}), ("odconv", {"kernels": 1}), ("odconv", {"kernels": 3})]
)
def test_params_follow_the_number_of_learned_filters(name: str, extra: dict[str, int]) -> None:
    point = Point(channels=6, height=4, width=5, extra=extra)
    inputs = build(OPS[name], point)
    assert inputs.module is not None
    assert OPS[name].costs(point).params == {key: p.numel() for key, p in inputs.module.named_parameters()}
    impl = OPS[name].impls["torch"]
    assert error(OPS[name], inputs, point, impl.prepare(inputs, point)().detach()) <= ROUNDINGS["float32"]
    assert suites()["flops"].begin(made("conditional", name, "torch", extra=extra)).failure == ""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("involution", 256 * 64 + 2 * 64 + 64 * 144 + 144),
        ("dw_weightnet", 256 * 16 + 16 + 16 * 256 + 256 + 256 * 9),
        ("condconv", 8 * 256 * 256 * 9 + 8 * 256 + 8),
        ("odconv", 4 * 256 * 256 * 9 + 256 * 16 + 2 * 16 + 17 * (256 + 256 + 9 + 4)),
        ("pac", 256 * 256 * 9 + 256),
        ("local_attention", 4 * 256 * 257),
        ("dcnv4", 0),
        ("involution_op", 0),
    ],
)
def test_params_at_256_channels_are_those_worked_out_by_hand(name: str, count: int) -> None:
    assert sum(OPS[name].costs(Point()).params.values()) == count


@pytest.mark.parametrize(
    ("name", "per_pixel", "once"),
    [
        ("involution", 256 * 64 + 64 * 144 + 256 * 9, 0),
        ("dw_weightnet", 256 * 9, 2 * 256 * 16 + 256 * 9),
        ("condconv", 256 * 256 * 9, 256 * 8),
        ("odconv", 256 * 256 * 9, 16 * (256 + 256 + 256 + 9 + 4)),
        ("pac", 256 * 256 * 9, 0),
        ("local_attention", 4 * 256 * 256 + 256 * 9, 0),
        ("dcnv4", 256 * 9, 0),
        ("involution_op", 256 * 9, 0),
    ],
)
def test_macs_at_256_channels_are_those_worked_out_by_hand(name: str, per_pixel: int, once: int) -> None:
    point = Point(batch=2, height=7, width=5)
    assert sum(OPS[name].costs(point).macs.values()) == 2 * (35 * per_pixel + once)
    backward = OPS[name].costs(replace(point, direction="forward_backward"))
    assert sum(backward.macs.values()) == 3 * 2 * (35 * per_pixel + once)


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
@pytest.mark.parametrize("stride", [1, 2])
def test_counters_and_closed_form_agree_or_say_why(file: str, op: str, impl: str, stride: int) -> None:
    begun = suites()["flops"].begin(made(file, op, impl, stride=stride))
    assert begun.failure == ""
    found = {metric.name: metric.value for metric in begun.metrics}
    for counter in ("macs_fvcore", "macs_torch"):
        explained = sum(d["macs"] for d in begun.settings["differences"] if d["counter"] == counter)
        assert found[counter] == found["macs"] + explained


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("point", COST_POINTS)
def test_memory_and_floor_are_the_bytes_of_real_tensors(name: str, point: Point) -> None:
    op, inputs = OPS[name], build(OPS[name], point)
    costs = op.costs(point)
    size = {key: t.numel() * t.element_size() for key, t in inputs.leaves().items()}
    given = sum(size[key] for key in inputs.tensors if key not in ("features", "guide"))
    parameters = sum(size.values()) - sum(size[key] for key in inputs.tensors)
    output = op.apply(inputs.double(), point).numel() * point.itemsize
    held = sum(f.untyped_storage().nbytes() for f in op.filters(inputs, point))
    expected = {
        "features": size["features"],
        "guide": size.get("guide", 0),
        "parameters": parameters,
        "given_filters": given,
        "filters": held,
        "output": output,
    }
    assert costs.memory == {key: value for key, value in expected.items() if value}
    again = size["features"] if name in ("dw_weightnet", "condconv", "odconv") else 0  # pooled before it is filtered
    assert costs.floor_bytes == sum(size.values()) + output + again
    both = op.costs(replace(point, direction="forward_backward"))
    assert both.memory == {**costs.memory, "gradients": sum(costs.memory.values())}
    backward = 2 * sum(size.values()) + output * (2 if again else 1)
    assert both.floor_bytes == costs.floor_bytes + backward - (size["bias"] if name == "pac" else 0)


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_filter_memory_is_what_the_closed_form_says(file: str, op: str, impl: str) -> None:
    with gradients("forward"):
        bench = made(file, op, impl, channels=16, height=7, width=6)
        begun = suites()["memory"].begin(bench)
    assert begun.failure == ""
    found = {metric.name: metric.value for metric in begun.metrics}
    assert found["filter_memory"] == bench.costs.memory.get("filters", 0)


# -------------------------------------------------------------------------------------------------------- right results


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_right_results_pass(file: str, op: str, impl: str, direction: str) -> None:
    for dtype in ("float32", "bfloat16"):
        bench = made(file, op, impl, dtype=dtype, direction=direction, stride=2, channels=32)
        assert bench.max_error() <= bench.tolerance


@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
@pytest.mark.parametrize("point", EDGES)
def test_hard_edges(file: str, op: str, impl: str, point: Point) -> None:
    for layout in ("nchw", "channels_last"):
        at = replace(point, layout=layout)
        inputs = build(OPS[op], at)
        with torch.no_grad():
            result = OPS[op].impls[impl].prepare(inputs, at)()
            expected = (compute(inputs.double(), at) for compute in (OPS[op].apply, OPS[op].magnitude))
            assert relative_error(result, *expected) <= ROUNDINGS["float32"] * ROUNDING["float32"]


@pytest.mark.parametrize("name", ["involution_op", "involution", "dw_weightnet"])
def test_native_is_exact_to_rounding(name: str) -> None:
    """The same filters, applied: what differs is a few roundings of a sum."""
    point = Point(batch=2, channels=32, height=28, width=28, kernel_size=7)
    inputs = build(OPS[name], point)
    with torch.no_grad():
        results = [impl.prepare(inputs, point)() for impl in OPS[name].impls.values()]
        magnitude = OPS[name].magnitude(inputs.double(), point)
    for other in results[1:]:
        assert float(((other - results[0]).double().abs() / magnitude).max()) <= 8 * ROUNDING["float32"]


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_what_ignores_its_dilation_is_found(name: str) -> None:
    """A window that is too small gives results far beyond the allowed error."""
    point = Point(batch=1, channels=16, height=9, width=9, dilation=2)
    inputs = build(OPS[name], point)
    wrong = replace(point, dilation=1)
    assert error(OPS[name], inputs, point, OPS[name].apply(inputs.double(), wrong).detach()) > 4 * ROUNDINGS["float32"]


# ------------------------------------------------------------------------------------------------------ neighbourhoods


def test_windows_move_inwards_at_borders() -> None:
    index, exists = neighbours(5, kernel_size=3, stride=1, dilation=1)
    assert index.tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]
    assert exists.all()


def test_dilated_windows_keep_to_pixels_of_one_residue() -> None:
    index, exists = neighbours(6, kernel_size=3, stride=3, dilation=2)
    assert index.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert exists.all()


def test_windows_beyond_a_small_image_are_cut() -> None:
    index, exists = neighbours(2, kernel_size=5, stride=1, dilation=1)
    assert exists.tolist() == [[True, True, False, False, False]] * 2
    assert index[exists].tolist() == [0, 1, 0, 1]


# --------------------------------------------------------------------------------------------------- other libraries


@pytest.mark.parametrize(
    ("op", "impl", "module"),
    [
        ("local_attention", "natten", "natten.functional"),
        ("dcnv4", "torchvision", "torchvision.ops"),
        ("dcnv4", "mmcv", "mmcv.ops"),
    ],
)
def test_libraries_that_are_not_installed_are_skipped(
    op: str, impl: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    point = Point(channels=16, height=9, width=9)
    with pytest.raises(Skip, match=f"{impl} is not installed"):
        OPS[op].impls[impl].prepare(build(OPS[op], point), point)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> None:
    """A module of that name that has the functions."""
    package, _, _ = name.partition(".")
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def na2d(query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """natten's, heads last, for one head and windows that fit, by masked dense attention."""
    _, h, w, heads, c = query.shape
    assert heads == 1
    near = []
    for length in (h, w):
        index, _ = neighbours(length, kernel_size, 1, dilation)
        near.append(F.one_hot(index, length).sum(1).bool())
    mask = torch.einsum("yr,xc->yxrc", *map(Tensor.long, near)).reshape(h * w, h * w).bool()
    flat = (t.reshape(-1, h * w, c) for t in (query, key, value))
    return F.scaled_dot_product_attention(*flat, attn_mask=mask).view(query.shape)


def test_natten_is_called_as_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "natten.functional", na2d=na2d)
    op, impl = OPS["local_attention"], OPS["local_attention"].impls["natten"]
    for point in (Point(channels=8, height=9, width=7), Point(batch=2, channels=4, height=10, width=7, dilation=2)):
        inputs = build(op, point)
        with torch.no_grad():
            assert error(op, inputs, point, impl.prepare(inputs, point)()) <= ROUNDINGS["float32"]
    for point in (Point(channels=4, height=9, width=9, stride=2), Point(channels=4, height=5, width=9, dilation=2)):
        with pytest.raises(Skip, match="natten: "):
            impl.prepare(build(op, point), point)


def deform_conv2d(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, settings: tuple[int, int, int, int, int]
) -> Tensor:
    """Modulated deformable convolution of depthwise weights, from its definition in the libraries' documentation."""
    stride, padding, dilation, groups, offset_groups = settings
    n, c, h, w = x.shape
    assert weight.shape[:2] == (c, 1)
    assert groups == c
    k, size = weight.shape[2], offset.shape[2:]
    out = torch.zeros(n, c, *size)
    for tap in range(k * k):
        for g in range(offset_groups):
            at = g * k * k + tap
            y = offset[:, 2 * at] + torch.arange(size[0])[:, None] * stride - padding + dilation * (tap // k)
            z = offset[:, 2 * at + 1] + torch.arange(size[1]) * stride - padding + dilation * (tap % k)
            grid = torch.stack([(2 * z + 1) / w - 1, (2 * y + 1) / h - 1], 3)
            channels = slice(g * c // offset_groups, (g + 1) * c // offset_groups)
            read = F.grid_sample(x[:, channels], grid, align_corners=False)
            out[:, channels] += weight[channels, 0, tap // k, tap % k, None, None] * mask[:, at, None] * read
    return out


def torchvisions(
    x: Tensor, offset: Tensor, weight: Tensor, bias: None, stride: int, padding: int, dilation: int, *, mask: Tensor
) -> Tensor:
    """The groups follow from the shapes."""
    c, taps = x.shape[1], weight.shape[2] * weight.shape[3]
    settings = stride, padding, dilation, c // weight.shape[1], offset.shape[1] // (2 * taps)
    return deform_conv2d(x, offset, mask, weight, settings)


def mmcvs(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: None, *settings: int) -> Tensor:
    return deform_conv2d(x, offset, mask, weight, settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", ["torchvision", "mmcv"])
def test_deformable_convolutions_are_called_as_they_expect(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = {"torchvision": {"deform_conv2d": torchvisions}, "mmcv": {"modulated_deform_conv2d": mmcvs}}
    stand_in(monkeypatch, f"{impl}.ops", **functions[impl])
    for point in (
        Point(channels=32, height=7, width=6),
        Point(batch=2, channels=16, height=9, width=7, kernel_size=5, stride=2, dilation=2),
    ):
        inputs = build(OPS["dcnv4"], point)
        result = OPS["dcnv4"].impls[impl].prepare(inputs, point)()
        assert error(OPS["dcnv4"], inputs, point, result) <= ROUNDINGS["float32"]
