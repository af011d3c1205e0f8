"""Joint depth upsampling: the networks, the scenes, and what the suite `detail` tells of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from conftest import Runner
from test_check import made

from ops import Point, load, op_files
from ops.up_networks import STEPS, DDFUpNet, up_net
from reports import Record
from suites import suites
from suites.core import scenes
from suites.detail import near_edges, over_seeds

(OP,) = load(next(path for path in op_files() if path.stem == "up_networks")).values()


# -------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("scale", [4, 8, 16])
def test_the_networks_have_equally_many_parameters(scale: int) -> None:
    size = {variant: sum(p.numel() for p in up_net(scale, variant).parameters()) for variant in STEPS}
    assert max(size.values()) == size["ddf_up"]
    assert min(size.values()) > 0.8 * size["ddf_up"]
    for variant, count in size.items():
        assert sum(OP.costs(Point(extra={"scale": scale, "variant": variant})).params.values()) == count


@pytest.mark.parametrize("scale", [4, 8, 16])
def test_depth_takes_the_size_of_the_image(scale: int) -> None:
    with torch.no_grad():
        depth = DDFUpNet(scale)(torch.ones(2, 1, 3, 2), torch.rand(2, 3, 3 * scale, 2 * scale))
    assert depth.shape == (2, 1, 3 * scale, 2 * scale)


def test_a_scale_that_is_no_power_of_2_is_refused() -> None:
    with pytest.raises(ValueError, match="scale: expected a power of 2"):
        DDFUpNet(6)


@pytest.mark.parametrize(("direction", "dtype"), [("forward", "float32"), ("forward_backward", "float64")])
@pytest.mark.parametrize("variant", list(STEPS))
def test_right_results_pass(variant: str, direction: str, dtype: str) -> None:
    """Gradients in float64: in float32 the sign of what goes into a ReLU may hang on its rounding."""
    extra = {"scale": 4, "variant": variant}
    bench = made("up_networks", "up_net", "torch", direction=direction, dtype=dtype, extra=extra)
    assert bench.max_error() <= bench.tolerance


@pytest.mark.parametrize("variant", ["ddf_up", "carafe", "joint_bilateral"])
def test_our_operators_give_the_same(variant: str) -> None:
    bench = made("up_networks", "up_net", "native", extra={"scale": 4, "variant": variant})
    with torch.no_grad():
        assert bench.max_error() <= bench.tolerance


@pytest.mark.parametrize("variant", list(STEPS))
def test_counters_and_closed_form_agree_or_say_why(variant: str) -> None:
    begun = suites()["flops"].begin(made("up_networks", "up_net", "torch", extra={"scale": 4, "variant": variant}))
    assert begun.failure == ""


# ---------------------------------------------------------------------------------------------------------- the scenes


def test_scenes_are_the_same_for_one_seed() -> None:
    first, again, other = (scenes.draw_scenes(3, 32, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_image_has_every_edge_of_the_depth() -> None:
    depths, images = scenes.draw_scenes(8, 64, torch.Generator().manual_seed(0))
    assert depths.min() >= scenes.NEAREST
    assert depths.max() <= scenes.FARTHEST + 0.5
    jumps, changes = depths.diff(dim=3).abs() > 0.3, images.diff(dim=3).abs().amax(1, keepdim=True) > 0.01
    assert jumps.float().mean() > 0.01
    assert changes[jumps].float().mean() > 0.98  # two things can be of one colour
    assert changes.sum() > 1.5 * jumps.sum()  # stripes have no depth
    assert near_edges(depths)[..., 1:][jumps].all()


def test_a_coarse_sensor_sees_means() -> None:
    depths, _ = scenes.draw_scenes(1, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(scenes.lowered(depths, 4)[0, 0, 1, 0], depths[0, 0, 4:, :4].mean())


# ----------------------------------------------------------------------------------------------------------- the suite


def test_bounds_over_seeds_are_students() -> None:
    found = over_seeds("rmse", [1.0, 2.0, 3.0])
    assert (found.unit, found.value) == ("m", 2.0)
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, rel=1e-3)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-3)
    alone = over_seeds("rmse", [1.0])
    assert (alone.value, alone.low, alone.high) == (1.0, None, None)


def test_the_suite_tells_errors_and_shows_pictures(runner: Runner, tmp_path: Path) -> None:
    options = ("--suite", "detail", "--axis", "steps=2", "--axis", "seeds=2", "--axis", "variant=ddf_up")
    done = runner(*options, "--device", "cpu", "--output", "out")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    records = {(r.op, r.axes.get("variant")): r for r in (Record.from_json(json.loads(line)) for line in lines)}
    assert set(records) == {("bilinear", None), ("joint_bilateral", None), ("up_net", "ddf_up")}
    for (op, _), record in records.items():
        assert record.status == "ok", record.reason
        rmse, edges = record.metric("rmse"), record.metric("rmse_edges")
        assert rmse is not None
        assert edges is not None
        assert 0 < (rmse.value or 0) < (edges.value or 0)
        assert (rmse.low is None) == (op != "up_net")  # what does not learn has no seeds
        assert set(record.settings["pictures"]) == {"guide", "low", "out", "truth"}
        assert base64.b64decode(record.settings["pictures"]["out"]).startswith(b"\x89PNG")
    pictures = [record.settings["pictures"] for record in records.values()]
    assert len({picture["truth"] for picture in pictures}) == 1  # all are asked for the same scenes
    assert len({picture["out"] for picture in pictures}) == 3
    assert {path.name for path in (tmp_path / "out" / "plots").glob("detail-scale*")} == {
        "detail-scale8.png",
        "detail-scale8.svg",
    }
    assert "plots/detail-scale8.png" in (tmp_path / "out" / "report.md").read_text()
