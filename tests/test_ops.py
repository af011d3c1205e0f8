"""The operators: discovery, seeded inputs, references, impls and closed forms."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import loops
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ops
from ops import Inputs, Op, Point, Skip

#: Whole networks have tests of their own.
FILES = [path for path in ops.op_files() if path.stem not in ("networks", "up_networks")]
OPS: dict[str, Op] = {name: op for path in FILES for name, op in ops.load(path).items()}
IMPLS = [(op, impl) for op in OPS.values() for impl in op.impls.values()]
NAMES = ["conv", "dwconv", "dyfilter", "dyfilter_dw", "ddf_op", "ddf"]
#: Their closed forms have tests of their own.
NEIGHBOURS = ["involution_op", "involution", "dw_weightnet", "condconv", "odconv", "pac", "local_attention", "dcnv4"]
#: The same; their outputs are larger than their inputs.
UPSAMPLERS = [
    *("bilinear", "transposed_conv", "subpixel_conv", "carafe_op", "carafe"),
    *("dysample", "pac_up", "joint_bilateral", "ddf_up_op", "ddf_up"),
]

#: Allowed error relative to the magnitude, in roundings of the dtype; half precision rounds little but the result.
ROUNDINGS = {"float64": 64, "float32": 64, "float16": 4, "bfloat16": 4}
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def build(op: Op, point: Point, seed: int = 0, device: str = "cpu") -> Inputs:
    return op.build(point, torch.device(device), torch.Generator(device).manual_seed(seed))


def leaves(inputs: Inputs) -> list[torch.Tensor]:
    return list(inputs.leaves().values())


def error(op: Op, inputs: Inputs, point: Point, result: torch.Tensor) -> float:
    """Largest error of the result relative to the magnitude, in roundings of the point's dtype."""
    with torch.no_grad():
        value, magnitude = op.apply(inputs.double(), point), op.magnitude(inputs.double(), point)
    assert result.shape == value.shape
    return float(((result.double() - value).abs() / magnitude).max()) / ROUNDING[point.dtype]


# ---------------------------------------------------------------------------------------------------------- discovery


def test_the_operators_are_found() -> None:
    assert set(NAMES + NEIGHBOURS + UPSAMPLERS) == set(OPS)
    assert {name for name, op in OPS.items() if op.combines} >= {"ddf_op", "ddf"}
    assert {"composite", "compiled"} <= set(OPS["ddf_op"].impls)
    assert {"composite", "compiled"} <= set(OPS["ddf"].impls)
    assert [axis.name for axis in OPS["ddf"].extra_axes] == ["head", "se_ratio", "branches", "norm"]


def test_vocabulary_does_not_import_torch() -> None:
    code = "import sys, ops; assert 'torch' not in sys.modules; ops.op_files()"
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


# ------------------------------------------------------------------------------------------------------ seeded inputs


@pytest.mark.parametrize("name", NAMES + NEIGHBOURS + UPSAMPLERS)
def test_inputs_are_the_same_for_one_seed_in_every_layout(name: str) -> None:
    point = Point(batch=2, channels=4, height=5, width=6)
    first, again = build(OPS[name], point), build(OPS[name], point)
    other = build(OPS[name], replace(point, layout="channels_last"))
    for a, b, c, d in zip(leaves(first), leaves(again), leaves(other), leaves(build(OPS[name], point, 1)), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert not torch.equal(a, d)
    assert first["features"].is_contiguous()
    assert other["features"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NAMES + NEIGHBOURS + UPSAMPLERS)
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_gradients_are_asked_for_only_where_the_direction_needs_them(name: str, direction: str) -> None:
    inputs = build(OPS[name], Point(batch=1, channels=4, height=3, width=3, direction=direction, dtype="float16"))
    for leaf in leaves(inputs):
        assert leaf.is_leaf
        assert leaf.requires_grad == (direction == "forward_backward")
        assert leaf.dtype == torch.float16
    assert inputs.module is None or not inputs.module.training


@pytest.mark.parametrize("name", NAMES + NEIGHBOURS + UPSAMPLERS)
def test_outputs_are_of_unit_order(name: str) -> None:
    """Inputs that make half precision overflow or vanish would test nothing."""
    point = Point(batch=2, channels=16, height=14, width=14)
    spread = OPS[name].apply(build(OPS[name], point).double(), point).std()
    assert 0.2 < spread < 5


def test_ddf_skips_what_the_module_cannot_do() -> None:
    with pytest.raises(Skip, match="kernel_size"):
        build(OPS["ddf"], Point(channels=4, kernel_size=1))
    with pytest.raises(Skip, match="head"):
        build(OPS["ddf"], Point(channels=4, extra={"head": 3}))


# --------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ddf"])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_magnitude_is_the_definition_of_absolute_values(name: str, combine: str) -> None:
    point = Point(batch=2, channels=3, height=5, width=4, stride=2, combine=combine, dtype="float64")
    inputs = build(OPS[name], point)
    magnitude = OPS[name].magnitude(inputs, point).detach()
    with torch.no_grad():
        for leaf in leaves(inputs):
            leaf.abs_()
    assert np.allclose(magnitude, loops.expected(name, inputs, point), rtol=1e-13)


@pytest.mark.parametrize("dtype", ROUNDINGS)
@pytest.mark.parametrize(
    ("name", "combine"),
    [
        *itertools.product(NAMES, ["mul", "add"]),
        *((name, "mul") for name in NEIGHBOURS if name != "local_attention"),  # whose neighbours are in no order
        *((name, "mul") for name in UPSAMPLERS if name not in ("bilinear", "joint_bilateral")),  # alike when mirrored
        *((name, "add") for name in ("ddf_up_op", "ddf_up")),
    ],
)
def test_magnitude_shows_a_wrong_tap(name: str, combine: str, dtype: str) -> None:
    """The outputs of a mirrored image, mirrored back, are those of mirrored taps: far beyond the allowed error."""
    point = Point(batch=2, channels=16, height=7, width=7, combine=combine, dtype=dtype)
    op, inputs = OPS[name], build(OPS[name], point)
    mirrored = Inputs({key: t if key == "channel_filter" else t.flip(3) for key, t in inputs.tensors.items()})
    mirrored.module = inputs.module
    with torch.no_grad():
        result = op.apply(mirrored.double(), point).flip(3)
    assert error(op, inputs, point, result) > 4 * ROUNDINGS[dtype]


# -------------------------------------------------------------------------------------------------------------- impls

POINTS = [
    Point(batch=2, channels=6, height=7, width=9, kernel_size=3),
    Point(batch=1, channels=1, height=1, width=1, kernel_size=3),
    Point(batch=2, channels=5, height=8, width=5, kernel_size=5, stride=2, combine="add"),
    Point(batch=1, channels=4, height=9, width=6, kernel_size=3, stride=3, dilation=2),
    Point(batch=1, channels=3, height=6, width=6, kernel_size=7, dilation=2, combine="add"),
]


#: Impls that are skipped on the CPU.
ON_CUDA_ALONE = {"dwconv/cudnn", "dwconv/aten", "ddf_op/paper", "ddf/paper"}
#: Impls that need a further library.
OPTIONAL = {"local_attention/natten", "dcnv4/torchvision", "dcnv4/mmcv"}


def quick_impls() -> list[object]:
    """Those that the CPU serves."""
    return [
        pytest.param(op, impl, id=f"{op.name}/{impl.name}")
        for op, impl in IMPLS
        if not impl.slow_start and f"{op.name}/{impl.name}" not in ON_CUDA_ALONE | OPTIONAL
    ]


def impls_and_devices() -> list[object]:
    on_cuda = [
        pytest.param(op, impl, "cuda", id=f"{op.name}/{impl.name}-cuda", marks=pytest.mark.gpu)
        for op, impl in IMPLS
        if not impl.slow_start
    ]
    return [pytest.param(*p.values, "cpu", id=f"{p.id}-cpu") for p in quick_impls()] + on_cuda  # type: ignore[attr-defined]


@pytest.mark.parametrize(("op", "impl"), [(o, i) for o, i in IMPLS if f"{o.name}/{i.name}" in ON_CUDA_ALONE])
def test_impls_for_cuda_alone_say_so_on_the_cpu(op: Op, impl: ops.Impl) -> None:
    point = Point(channels=4, height=5, width=6)
    with pytest.raises(Skip, match="on CUDA alone"):
        impl.prepare(build(op, point), point)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ROUNDINGS)
@pytest.mark.parametrize(("op", "impl", "device"), impls_and_devices())
def test_impl_gives_the_reference(op: Op, impl: ops.Impl, dtype: str, layout: str, device: str) -> None:
    for point in (replace(p, dtype=dtype, layout=layout) for p in POINTS):
        if point.combine == "add" and not op.combines:
            point = replace(point, combine="mul")
        inputs = build(op, point, device=device)
        with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
            try:
                result = impl.prepare(inputs, point)()
            except Skip:
                assert impl.name == "paper" or f"{op.name}/{impl.name}" in OPTIONAL  # held to their limits elsewhere
                continue
        assert result.dtype == inputs["features"].dtype
        assert error(op, inputs, point, result) <= ROUNDINGS[dtype]


@pytest.mark.parametrize(("op", "impl"), quick_impls())
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_impl_gives_the_gradients_of_the_reference(op: Op, impl: ops.Impl, combine: str) -> None:
    point = Point(batch=2, channels=4, height=7, width=5, stride=2, combine=combine, dtype="float64")
    inputs = build(op, replace(point, direction="forward_backward"))
    result, reference = impl.prepare(inputs, point)(), op.apply(inputs, point)
    slope = torch.randn(reference.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(result, leaves(inputs), slope)
    for gradient, expected in zip(got, torch.autograd.grad(reference, leaves(inputs), slope), strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize(("op", "impl"), quick_impls())
def test_impl_calls_repeat_bit_by_bit(op: Op, impl: ops.Impl) -> None:
    """No call may change the inputs."""
    point = Point(batch=2, channels=4, height=6, width=6)
    call = impl.prepare(build(op, point), point)
    assert torch.equal(call(), call())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "direction"), [("ddf_op", "forward"), ("ddf_op", "forward_backward"), ("ddf", "forward_backward")]
)
def test_compiled_gives_the_reference(name: str, direction: str) -> None:
    op, point = OPS[name], Point(batch=1, channels=4, height=5, width=4, stride=2, combine="add", direction=direction)
    torch.compiler.reset()
    with torch.set_grad_enabled(point.backward):
        inputs = build(op, point)
        result = op.impls["compiled"].prepare(inputs, point)()
        assert error(op, inputs, point, result.detach()) <= ROUNDINGS["float32"]
        if point.backward:
            expected = torch.autograd.grad(op.apply(inputs, point).square().sum(), leaves(inputs))
            for a, b in zip(torch.autograd.grad(result.square().sum(), leaves(inputs)), expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.slow
def test_compiled_is_skipped_where_no_compiler_works() -> None:
    code = """
import torch
from ops import Point, Skip
from ops.ddf import DDFOp
point, op = Point(channels=2, height=3, width=5), DDFOp()
inputs = op.build(point, torch.device("cpu"), torch.Generator().manual_seed(0))
try:
    op.impls["compiled"].prepare(inputs, point)
except Skip as skip:
    print("skipped:", skip)
"""
    root = Path(__file__).resolve().parents[1]
    no_compiler = {"CXX": "no-such-compiler", "PATH": "", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=no_compiler, capture_output=True, text=True, check=True
    )
    assert "skipped: torch.compile fails here" in done.stdout
    assert "compiler" in done.stdout


# ------------------------------------------------------------------------------------------------------- closed forms

COST_POINTS = [
    Point(batch=2, channels=6, height=7, width=9, kernel_size=3),
    Point(batch=3, channels=4, height=8, width=5, kernel_size=5, stride=2, dtype="float16"),
]


def cost_points() -> list[tuple[str, Point]]:
    return [
        *itertools.product(NAMES, COST_POINTS),
        ("ddf", replace(COST_POINTS[0], extra={"head": 3, "se_ratio": 0.5})),
        ("ddf", replace(COST_POINTS[0], extra={"head": 2})),
        *(("ddf", replace(COST_POINTS[0], extra={"branches": name})) for name in ("spatial", "channel")),
        *(("ddf", replace(COST_POINTS[0], extra={"norm": name})) for name in ("batch_norm", "sigmoid", "none")),
    ]


@pytest.mark.parametrize(("name", "point"), cost_points())
def test_params_are_those_of_the_module(name: str, point: Point) -> None:
    module = build(OPS[name], point).module
    parameters = {} if module is None else {key: p.numel() for key, p in module.named_parameters()}
    assert OPS[name].costs(point).params == parameters


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("conv", lambda c, k: c**2 * k**2),
        ("dwconv", lambda c, k: c * k**2),
        ("dyfilter", lambda c, k: c**3 * k**2),
        ("ddf", lambda c, k: c * k**2 + int(0.2 * c) * c * (1 + k**2)),
    ],
)
def test_weights_are_the_forms_of_the_poster(name: str, form: object) -> None:
    for c, k in ((256, 3), (64, 5), (20, 7)):
        params = OPS[name].costs(Point(channels=c, kernel_size=k)).params
        assert sum(n for key, n in params.items() if key.endswith("weight")) == form(c, k)  # type: ignore[operator]


def test_ddf_at_256_channels_has_137532_parameters() -> None:
    assert sum(OPS["ddf"].costs(Point(channels=256)).params.values()) == 137_532


def counted(op: Op, point: Point) -> dict[str, int]:
    """Convolutions and matrix products that torch's own counter sees, in MACs."""
    inputs = build(op, point)
    with FlopCounterMode(display=False) as counter:
        out = op.impls["torch" if "torch" in op.impls else "composite"].prepare(inputs, point)()
        if point.backward:
            out.sum().backward()
    return {str(kernel): flops // 2 for kernel, flops in counter.get_flop_counts().get("Global", {}).items()}


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize(("name", "point"), cost_points())
def test_macs_are_what_torch_counts(name: str, point: Point, direction: str) -> None:
    """Convolutions by torch's counter; filter applications, which it does not know, one per tap and output."""
    point = replace(point, direction=direction, dtype="float32")
    op, macs = OPS[name], OPS[name].costs(point).macs
    seen = counted(op, point)
    applied = point.batch * point.channels * point.out_height * point.out_width * point.taps
    if name == "dyfilter":
        assert macs["dynamic_filter"] == seen["aten.bmm"]
        assert macs["conv"] == sum(seen.values()) - seen["aten.bmm"]
        return
    if name == "dwconv" and point.backward:
        # torch's counter takes the backward of a depthwise convolution for that of a dense one
        assert macs["conv"] == 3 * seen["aten.convolution"]
    else:
        assert macs.get("conv", 0) == sum(seen.values())
    products = {"dyfilter_dw": (1, 3), "ddf_op": (1, 4), "ddf": (1, 4)}.get(name, (0, 0))[point.backward]
    if point.backward and point.extra.get("branches", "both") != "both":
        products -= 1  # one filter is neutral, and has no gradient
    assert macs.get("dynamic_filter", 0) == products * applied


@pytest.mark.parametrize(("name", "point"), cost_points())
def test_memory_and_floor_are_the_bytes_of_real_tensors(name: str, point: Point) -> None:
    op, inputs = OPS[name], build(OPS[name], point)
    costs = op.costs(point)
    size = {key: t.numel() * t.element_size() for key, t in inputs.leaves().items()}
    output = op.apply(inputs.double(), point).numel() * point.itemsize
    parameters = sum(size.values()) - sum(t.numel() * point.itemsize for t in inputs.tensors.values())
    given = size.get("channel_filter", 0) + size.get("spatial_filter", 0)
    assert costs.memory["features"] == size["features"]
    assert costs.memory["output"] == output
    assert costs.memory.get("parameters", 0) == parameters
    assert ("filters" in costs.memory) == (name not in ("conv", "dwconv", "ddf_op"))
    assert costs.memory.get("given_filters", 0) == given
    held = sum(f.untyped_storage().nbytes() for f in op.filters(inputs, point))
    assert costs.memory.get("filters", 0) == held
    if name == "ddf":
        assert inputs.module is not None
        branches = point.extra.get("branches", "both")
        spatial = 0
        if branches != "channel":
            spatial = inputs.module.spatial_branch(inputs["features"]).numel()  # type: ignore[operator, union-attr]
        channel = 0 if branches == "spatial" else point.batch * point.channels * point.taps
        assert costs.memory["filters"] == (spatial + channel) * point.itemsize
        passes, moved = (1, 0) if branches == "spatial" else (2, costs.memory["filters"])
        assert costs.floor_bytes == passes * size["features"] + output + parameters + 2 * moved
    else:
        assert costs.floor_bytes == sum(size.values()) + output
    both = op.costs(replace(point, direction="forward_backward"))
    assert both.memory == {**costs.memory, "gradients": sum(costs.memory.values())}
    if point.extra.get("branches") == "spatial":  # in one pass, the filters on chip
        assert both.floor_bytes == costs.floor_bytes + 2 * size["features"] + output + 2 * parameters
        return
    filters = costs.memory.get("filters", 0)
    backward = {
        "conv": 2 * sum(size.values()) - size.get("bias", 0) + output,
        "ddf": 2 * size["features"] + 2 * output + 4 * filters + 2 * parameters,
    }
    backward["dwconv"] = backward["conv"]
    assert both.floor_bytes == costs.floor_bytes + backward.get(name, 2 * sum(size.values()) + output)


@pytest.mark.parametrize(("name", "forward", "both"), [("ddf_op", 18, 63), ("dwconv", 9, 27), ("involution_op", 9, 27)])
def test_operations_of_an_output_are_those_of_the_loops(name: str, forward: int, both: int) -> None:
    """At k = 3: two filters take a product more a tap, their gradients two."""
    for direction, expected in (("forward", forward), ("forward_backward", both)):
        costs = OPS[name].costs(Point(batch=2, channels=32, height=5, width=7, direction=direction))
        assert costs.operations == expected * 2 * 32 * 5 * 7


def test_floors_are_those_worked_out_by_hand() -> None:
    """MB at N = 32, C = 256, k = 3, float32; the module without biases and learned std, which the figures leave out."""
    table = {
        "ddf_op": (3.56, 13.4, 52.6, 209, 837, 3346),
        "dwconv": (3.22, 12.9, 51.4, 206, 822, 3288),
        "ddf": (6.05, 20.8, 80.0, 317, 1263, 5049),
    }
    for name, row in table.items():
        for resolution, printed in zip((7, 14, 28, 56, 112, 224), row, strict=True):
            costs = OPS[name].costs(Point(batch=32, channels=256, height=resolution, width=resolution))
            left_out = sum(n for key, n in costs.params.items() if not key.endswith("weight")) if name == "ddf" else 0
            digits = 2 - math.floor(math.log10(printed)) if printed < 1000 else 0
            assert round((costs.floor_bytes - 4 * left_out) / 1e6, digits) == pytest.approx(printed)


def test_dense_dynamic_filters_at_224_take_118_gigabytes() -> None:
    costs = OPS["dyfilter"].costs(Point(channels=256, height=224, width=224))
    assert costs.memory["filters"] == 224**2 * 256**2 * 9 * 4
    assert costs.memory["filters"] == pytest.approx(118e9, rel=5e-3)
