"""The suite `networks`: what it counts, and that differences have reasons."""

from __future__ import annotations

import pytest
import torch

from ops import Point
from suites import Case, suites
from suites.core.bench import Bench

NETWORKS = suites()["networks"]
PROCESS = {"threads": 1, "malloc": "default", "tf32": 0}


def begun(variant: str, backbone: str = "resnet50", size: int = 64) -> tuple[dict[str, float | None], str]:
    point = Point(height=size, width=size, extra={"variant": variant})
    case = Case("networks", backbone, "torch", 1, "cpu", point, (), PROCESS, {}, "ops/networks.py")
    with torch.no_grad():
        found = NETWORKS.begin(Bench(case, seed=0, check=True))
    return {metric.name: metric.value for metric in found.metrics}, found.failure


@pytest.mark.parametrize(
    ("variant", "way"), [("base", ""), ("aa", "macs_with_attention"), ("condconv", "macs_with_mixing"), ("ddf", "")]
)
def test_ways_of_counting_differ_where_they_should_and_every_difference_has_a_reason(variant: str, way: str) -> None:
    found, failure = begun(variant)
    assert failure == ""
    assert found["params"] == found["params_formula"]
    for name in ("macs_with_attention", "macs_with_mixing"):
        assert (found[name] > found["macs"]) == (name == way)  # type: ignore[operator]
    assert found["macs_with_normalisation"] > found["macs"]  # type: ignore[operator]
    if way:
        assert found["macs_torch"] == found[way]
    if variant == "base":
        assert found["macs_torch"] == found["macs"]
        assert found["macs_fvcore"] == found["macs_with_normalisation"]


def test_it_is_asked_for_by_name() -> None:
    assert not NETWORKS.default
