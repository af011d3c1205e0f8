"""The ops of DDF-Up: references and impls against the definition, closed forms against tensors and torch's counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ddf_by_taps import Settings, absolute, forward
from test_ops import ROUNDINGS, build, counted, error

import ops
from ops import Point, Skip

OPS = ops.load(Path(ops.__file__).parent / "upsampling_ddf.py")

POINTS = [
    Point(2, 4, 5, 6, dtype="float64"),
    Point(2, 4, 3, 4, kernel_size=5, dilation=2, combine="add", dtype="float64", extra={"scale": 3}),
    Point(1, 4, 4, 3, dtype="float64", extra={"scale": 1}),
]
MODULE_POINTS = [*POINTS, Point(2, 6, 4, 5, dtype="float64", extra={"guide": "guided", "guide_channels": 3, "head": 2})]


@pytest.mark.parametrize("point", POINTS)
def test_the_reference_of_the_operator_is_the_definition(point: Point) -> None:
    """Branch by branch into every scale-th row and column."""
    op, inputs, scale = OPS["ddf_up_op"], build(OPS["ddf_up_op"], point), int(point.extra.get("scale", 2))
    features, channel, spatial = (inputs[name] for name in ("features", "channel_filter", "spatial_filter"))
    for change, compute in ((list, op.apply), (lambda t: absolute(*t), op.magnitude)):
        f, c, s = change((features, channel, spatial))
        expected = torch.full((*features.shape[:2], point.height * scale, point.width * scale), torch.nan).double()
        for b in range(scale**2):
            own = c[:, b * point.channels :][:, : point.channels], s[:, b * point.taps :][:, : point.taps]
            settings = Settings(1, point.dilation, point.combine)
            expected[:, :, b // scale :: scale, b % scale :: scale] = forward(f, *own, settings)
        torch.testing.assert_close(compute(inputs, point), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ROUNDINGS)
@pytest.mark.parametrize("name", OPS)
def test_every_impl_is_the_reference(name: str, dtype: str, layout: str) -> None:
    for point in MODULE_POINTS:
        small = Point(**{**vars(point), "dtype": dtype, "layout": layout})
        inputs = build(OPS[name], small)
        for impl in OPS[name].impls.values():
            with torch.no_grad():
                result = impl.prepare(inputs, small)()
            # FilterNorm divides by a spread that rounding moves too; and a module rounds its filters
            allowed = ROUNDINGS[dtype] * (1 if name == "ddf_up_op" else 8)
            assert error(OPS[name], inputs, small, result) <= allowed, impl.name


@pytest.mark.parametrize("point", MODULE_POINTS)
@pytest.mark.parametrize("name", OPS)
def test_closed_forms_are_those_of_the_tensors(name: str, point: Point) -> None:
    op, inputs = OPS[name], build(OPS[name], point)
    costs, scale = op.costs(point), int(point.extra.get("scale", 2))
    assert costs.params == {key: t.numel() for key, t in inputs.leaves().items() if key not in inputs.tensors}
    sizes = {key: t.numel() * t.element_size() for key, t in inputs.leaves().items()}
    output = point.pixels * scale**2 * point.channels * point.itemsize
    assert costs.memory["features"] == sizes["features"]
    assert costs.memory["output"] == output
    assert costs.memory.get("guide", 0) == sizes.get("guide", 0)
    both = op.costs(Point(**{**vars(point), "direction": "forward_backward"}))
    assert both.memory == {**costs.memory, "gradients": sum(costs.memory.values())}
    if name == "ddf_up_op":
        assert costs.memory["given_filters"] == sizes["channel_filter"] + sizes["spatial_filter"]
        assert costs.floor_bytes == sum(sizes.values()) + output
        assert both.floor_bytes == costs.floor_bytes + 2 * sum(sizes.values()) + output
        return
    filters = sum(f.numel() * f.element_size() for f in op.filters(inputs, point))
    parameters = sum(costs.params.values()) * point.itemsize
    assert costs.memory["filters"] == filters
    assert costs.memory["parameters"] == parameters
    assert costs.floor_bytes == 2 * sizes["features"] + sizes.get("guide", 0) + parameters + 2 * filters + output
    backward = 2 * (sizes["features"] + sizes.get("guide", 0) + parameters + output) + 4 * filters
    assert both.floor_bytes == costs.floor_bytes + backward


@pytest.mark.parametrize("point", MODULE_POINTS)
@pytest.mark.parametrize("name", OPS)
def test_macs_are_what_torch_counts(name: str, point: Point) -> None:
    macs, output = OPS[name].costs(point).macs, point.pixels * int(point.extra.get("scale", 2)) ** 2 * point.channels
    assert macs.get("conv", 0) == sum(counted(OPS[name], point).values())
    assert macs["dynamic_filter"] == output * point.taps
    both = OPS[name].costs(Point(**{**vars(point), "direction": "forward_backward"})).macs
    assert both == {kind: {"conv": 3, "dynamic_filter": 4}[kind] * count for kind, count in macs.items()}


def test_the_module_skips_what_it_cannot_do() -> None:
    with pytest.raises(Skip, match="kernel_size"):
        build(OPS["ddf_up"], Point(channels=4, kernel_size=1))
    with pytest.raises(Skip, match="head"):
        build(OPS["ddf_up"], Point(channels=4, extra={"head": 3}))
