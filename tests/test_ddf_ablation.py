"""The ablations of the DDF module (Table 3): one branch alone, and other normalisations of the filters."""

from __future__ import annotations

import loops
import numpy as np
import pytest
from test_check import made

from suites import suites

ABLATIONS = [
    *(("both", norm) for norm in ("batch_norm", "sigmoid", "none")),
    *((branches, norm) for branches in ("spatial", "channel") for norm in ("filter_norm", "batch_norm", "sigmoid")),
]


def normalised(raw: np.ndarray, norm: str, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Filters (..., taps): one filter at a place, or C of them in a sample."""
    if norm == "filter_norm":
        scale = arrays[f"{name}.std"].reshape(-1, raw.shape[-1]) if "channel" in name else np.sqrt(2) / 3
        return loops.normalised(raw) * scale
    if norm == "batch_norm":  # statistics 0 and 1
        weight, bias = (arrays[f"{name}.{part}"].reshape(-1, raw.shape[-1]) for part in ("weight", "bias"))
        return raw / np.sqrt(1 + 1e-5) * weight + bias
    return 1 / (1 + np.exp(-raw)) if norm == "sigmoid" else raw


@pytest.mark.parametrize(("branches", "norm"), ABLATIONS)
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_each_is_its_formula(branches: str, norm: str, combine: str) -> None:
    """Filters in NumPy, from the parameters alone; that of a missing branch is 1, or 0 where filters are added."""
    extra = {"branches": branches, "norm": norm}
    bench = made("ddf", "ddf", "composite", dtype="float64", stride=2, combine=combine, extra=extra)
    point, arrays = bench.case.point, {k: t.detach().numpy() for k, t in bench.inputs.leaves().items()}
    x, neutral = arrays["features"], float(combine == "mul")
    n, c, taps = len(x), point.channels, point.taps
    spatial, channel = np.full((n, taps, point.out_height, point.out_width), neutral), np.full((n, c, taps), neutral)
    if branches != "channel":
        weight, bias = arrays["spatial_branch.0.weight"][:, :, 0, 0], arrays["spatial_branch.0.bias"]
        raw = np.einsum("oc,nchw->nhwo", weight, x[:, :, ::2, ::2]) + bias
        spatial = normalised(raw, norm, arrays, "spatial_branch.1").transpose(0, 3, 1, 2)
    if branches != "spatial":
        squeeze, excite = (arrays[f"channel_branch.{i}.weight"][:, :, 0, 0] for i in (1, 3))
        hidden = np.maximum(0, x.mean((2, 3)) @ squeeze.T + arrays["channel_branch.1.bias"])
        raw = (hidden @ excite.T + arrays["channel_branch.3.bias"]).reshape(n, c, taps)
        channel = normalised(raw, norm, arrays, "channel_branch.4")
    expected = loops.ddf(x, channel, spatial, point)
    assert np.allclose(bench.call().numpy(force=True), expected, rtol=1e-12, atol=1e-12)
    assert np.allclose(bench.op.apply(bench.inputs.double(), point).numpy(force=True), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("branches", "norm"), ABLATIONS)
@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
def test_the_suites_serve_them(branches: str, norm: str, direction: str) -> None:
    extra = {"branches": branches, "norm": norm, "head": 2}
    for impl in ("composite", "native"):
        bench = made("ddf", "ddf", impl, direction=direction, extra=extra)
        assert bench.max_error() <= bench.tolerance
        assert suites()["memory"].begin(bench).failure == ""
    bench = made("ddf", "ddf", "composite", extra=extra)
    for name in ("params", "flops"):
        assert suites()[name].begin(bench).failure == ""
