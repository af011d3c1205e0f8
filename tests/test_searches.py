"""Searches by hypothesis, in a file of their own: a machine without hypothesis still runs all other tests.

The native operators and the drop-in `ddf` against float64 loops, and every op's reference against its definition.
"""

from __future__ import annotations

import os

import loops
import numpy as np
import pytest
import torch
from ddf_by_taps import Settings

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from test_ddf_package import by_loops, operands
from test_native import DTYPES, LAYOUTS, Case
from test_native_up import Up, UpCase
from test_ops import NAMES, NEIGHBOURS, OPS, build

from ops import Point
from ops.core import native, native_up
from ops.ddf import ddf

EXAMPLES = int(os.environ.get("DDF_EXAMPLES", "300"))  # of each search of the native operator; fewer where each is slow


# -------------------------------------------------------------------------------------------------- the native operator


@pytest.fixture(scope="module")
def built() -> None:
    native.load()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    k = draw(st.sampled_from(range(1, 16, 2)))
    sizes = st.integers(1, 24 if k < 9 else 12)
    shape = (draw(st.integers(0, 3)), draw(st.sampled_from((1, 2, 5, 16, 37))), draw(sizes), draw(sizes))
    chosen = Settings(draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.sampled_from(("mul", "add"))))
    layouts = tuple(draw(st.sampled_from(LAYOUTS)) for _ in range(4))
    special = draw(st.sampled_from(((), (), (torch.nan,), (torch.inf, -torch.inf), (torch.inf, torch.nan))))
    return Case(shape, k, chosen, draw(st.sampled_from(DTYPES)), layouts, special)


@pytest.mark.usefixtures("built")
@settings(max_examples=EXAMPLES, deadline=None)
@given(cases())
def test_output_matches_loops(case: Case) -> None:
    case.check_forward()


@pytest.mark.usefixtures("built")
@settings(max_examples=EXAMPLES, deadline=None)
@given(cases())
def test_gradients_match_loops(case: Case) -> None:
    case.check_backward()


@pytest.fixture(scope="module")
def built_up() -> None:
    native_up.load()


@st.composite
def up_cases(draw: st.DrawFn) -> UpCase:
    k, scale = draw(st.sampled_from((1, 3, 3, 5, 7))), draw(st.integers(1, 6))
    sizes = st.integers(1, 40 if k * scale < 8 else 6)
    shape = (draw(st.integers(0, 2)), draw(st.sampled_from((1, 2, 5, 16, 37))), draw(st.integers(1, 6)), draw(sizes))
    up = Up(scale, draw(st.integers(1, 4)), draw(st.sampled_from(("mul", "add"))), k)
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(4)]
    special = draw(st.sampled_from(((), (), (torch.nan,), (torch.inf, -torch.inf)))) if shape[0] else ()
    return UpCase(shape, up, draw(st.sampled_from(DTYPES)), layouts, special)


@pytest.mark.usefixtures("built_up")
@settings(max_examples=EXAMPLES // 6, deadline=None)
@given(up_cases())
def test_upsampled_output_matches_loops(case: UpCase) -> None:
    case.check_forward()


@pytest.mark.usefixtures("built_up")
@settings(max_examples=EXAMPLES // 6, deadline=None)
@given(up_cases())
def test_upsampled_gradients_match_loops(case: UpCase) -> None:
    case.check_backward()


# --------------------------------------------------------------------------------------------------------- the drop-in


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 2),
    c=st.integers(1, 4),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    k=st.sampled_from((1, 3, 5, 7)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    combine=st.sampled_from(("mul", "add")),
)
def test_ddf_is_the_definition(
    n: int, c: int, h: int, w: int, k: int, stride: int, dilation: int, combine: str
) -> None:
    given_ = operands(n, c, h, w, k, stride)
    out = ddf(*given_, k, dilation, stride, combine)
    assert out.shape == (n, c, (h - 1) // stride + 1, (w - 1) // stride + 1)
    assert torch.allclose(out, by_loops(*given_, stride=stride, dilation=dilation, combine=combine), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- references


@st.composite
def points(draw: st.DrawFn, name: str) -> Point:
    head = draw(st.integers(1, 2)) if name == "ddf" else 1
    return Point(
        batch=draw(st.integers(1, 2)),
        channels=head * draw(st.integers(1, 3)),
        height=draw(st.integers(1, 7)),
        width=draw(st.integers(1, 7)),
        kernel_size=draw(st.sampled_from((3, 5) if name == "ddf" else (1, 3, 5))),
        stride=draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, 3)),
        combine=draw(st.sampled_from(("mul", "add"))) if OPS[name].combines else "mul",
        dtype="float64",
        extra={"head": head, "se_ratio": draw(st.sampled_from((0.2, 0.5)))} if name == "ddf" else {},
    )


@pytest.mark.parametrize("name", NAMES + NEIGHBOURS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_reference_is_the_definition(name: str, data: st.DataObject) -> None:
    point = data.draw(points(name))
    op, inputs = OPS[name], build(OPS[name], point, data.draw(st.integers(0, 9)))
    magnitude = op.magnitude(inputs, point).detach().numpy()
    reference = op.apply(inputs, point).detach().numpy()
    assert reference.shape == (point.batch, point.channels, point.out_height, point.out_width)
    assert np.all(np.abs(reference) <= magnitude * (1 + 1e-12))
    assert np.all(np.abs(reference - loops.expected(name, inputs, point)) <= 1e-13 * magnitude + 1e-300)
