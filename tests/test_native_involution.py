"""The native filters of involution against float64 products, and their registration with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from ddf_by_taps import absolute, assert_rounded
from test_native import DTYPES, LAYOUTS, far_channels, far_samples
from torch import Tensor

from ops import Point, Skip, load
from ops.core import native_involution

Layout = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    native_involution.load()


# ------------------------------------------------------------------------------------------------------------- inputs


def drawn(
    shape: tuple[int, int, int, int], hidden: int, filters: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Arguments of the operator, for features of that shape."""
    c = shape[1]
    generator = torch.Generator().manual_seed(sum(shape) + 31 * hidden + 127 * filters)
    shapes = shape, (hidden, c, 1, 1), (hidden,), (hidden,), (filters, hidden, 1, 1), (filters,)
    return [torch.randn(size, generator=generator).to(dtype) for size in shapes]


def product(weight: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("rc,nchw->nrhw", weight[:, :, 0, 0], x)


def by_products(arguments: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The filters from their definition in float64, and the sum of the absolute terms of each."""
    x, reduce, scale, shift, span, bias = (t.detach().double() for t in arguments)
    hidden = product(reduce, x) * scale[:, None, None] + shift[:, None, None]
    expected = product(span, hidden.relu()) + bias[:, None, None]
    x, reduce, scale, shift, span, bias = absolute(x, reduce, scale, shift, span, bias)
    hidden = product(reduce, x) * scale[:, None, None] + shift[:, None, None]
    return expected, product(span, hidden) + bias[:, None, None]


def check(arguments: list[Tensor], what: str) -> None:
    out = native_involution.predict(*arguments)
    assert out.is_contiguous(), what
    assert_rounded(out, *by_products(arguments), arguments[1].shape[1] + arguments[1].shape[0] + 4, what)


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("shape", "hidden", "filters"),
    [
        ((1, 1, 1, 1), 1, 1),
        ((1, 3, 1, 40), 5, 7),  # fewer rows than are summed at once
        ((2, 33, 7, 7), 9, 20),  # a rest of rows, and of pixels
        ((3, 20, 2, 8), 16, 24),  # one vector of pixels a sample
        ((1, 18, 5, 61), 8, 17),  # a tile for each number of vectors
        ((1, 70, 9, 1), 11, 2),
    ],
)
def test_shapes_at_the_edges_of_the_kernel(shape: tuple[int, int, int, int], hidden: int, filters: int) -> None:
    for layout in LAYOUTS:
        features, *parameters = drawn(shape, hidden, filters)
        check([layout(features), *parameters], f"{shape} {hidden} {filters} {layout.__name__}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kernel(layout: Layout, dtype: torch.dtype) -> None:
    """Parameters are strided or not as well: what is not read in place is copied."""
    features, *parameters = drawn((2, 37, 6, 11), 18, 25, dtype)
    check([layout(features), *parameters], f"{layout.__name__} {dtype}")
    strided = [torch.stack((t, t), -1)[..., 0] for t in parameters]
    check([layout(features), *strided], f"{layout.__name__} {dtype} strided parameters")


@pytest.mark.parametrize("far", [far_samples, far_channels])
def test_offsets_beyond_32_bits(far: Layout) -> None:
    features, *parameters = drawn((2, 3, 5, 6), 4, 9, torch.float16)
    check([far(features), *parameters], far.__name__)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_passed_on_and_stays_at_its_pixel(special: float) -> None:
    arguments = drawn((1, 20, 4, 13), 9, 12)
    clean = native_involution.predict(*arguments)
    arguments[0][0, 7, 2, 5] = special
    out, expected = native_involution.predict(*arguments), by_products(arguments)[0]
    assert torch.equal(out[:, :, 2, 5].isnan(), expected[:, :, 2, 5].isnan())
    assert not out[:, :, 2, 5].isfinite().any()
    out[:, :, 2, 5] = clean[:, :, 2, 5]
    assert torch.equal(out, clean)


def test_empty_batch() -> None:
    assert native_involution.predict(*drawn((0, 5, 6, 7), 3, 9)).shape == (0, 9, 6, 7)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_same_bits_for_any_number_of_threads(layout: Layout) -> None:
    features, *parameters = drawn((2, 40, 20, 21), 16, 36)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native_involution.predict(layout(features), *parameters))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_no_memory_but_the_filters_is_allocated() -> None:
    arguments = drawn((1, 32, 24, 24), 8, 18)
    with torch.profiler.profile(profile_memory=True) as profile:
        out = native_involution.predict(*arguments)
    taken = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert taken == out.numel() * out.element_size()


# -------------------------------------------------------------------------------------------------------------- errors


NAMES = ("features", "reduce_weight", "scale", "shift", "span_weight", "span_bias")

BAD = [
    ({"features": torch.ones(4, 5, 6)}, "features", "(N, C, H, W), only N may be 0, got (4, 5, 6)"),
    ({"features": torch.ones(2, 4, 5, 6, dtype=torch.int32)}, "features", "float32"),
    ({"reduce_weight": torch.ones(3, 4)}, "reduce_weight", "(hidden, C, 1, 1), got (3, 4)"),
    ({"reduce_weight": torch.ones(3, 5, 1, 1)}, "reduce_weight", "(3, 4, 1, 1), (hidden, C, 1, 1), got (3, 5, 1, 1)"),
    ({"scale": torch.ones(4)}, "scale", "(3,), (hidden,), got (4,)"),
    ({"shift": torch.ones(3, dtype=torch.float64)}, "shift", "dtype"),
    ({"span_weight": torch.ones(0, 3, 1, 1)}, "span_weight", "(filters, hidden, 1, 1), got (0, 3, 1, 1)"),
    ({"span_weight": torch.ones(9, 2, 1, 1)}, "span_weight", "(9, 3, 1, 1)"),
    ({"span_bias": torch.ones(3)}, "span_bias", "(9,), (filters,), got (3,)"),
]


@pytest.mark.parametrize(("changes", "name", "detail"), BAD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_are_named(device: str, changes: dict[str, Tensor], name: str, detail: str) -> None:
    given = {**dict(zip(NAMES, drawn((2, 4, 5, 6), 3, 9), strict=True)), **changes}
    with pytest.raises(RuntimeError) as raised:
        native_involution.predict(*(t.to(device) for t in given.values()))
    assert str(raised.value).startswith(f"{name}: expected")
    assert detail in str(raised.value)


# -------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_opcheck(layout: Layout, dtype: torch.dtype) -> None:
    features, *parameters = drawn((2, 3, 4, 5), 4, 9, dtype)
    leaves = [t.detach().requires_grad_() for t in (layout(features), *parameters)]
    torch.library.opcheck(torch.ops.ddf.involution_filters.default, tuple(leaves))


def test_gradients_of_both_orders() -> None:
    leaves = [t.requires_grad_() for t in drawn((2, 3, 2, 3), 4, 5, torch.float64)]
    assert torch.autograd.gradcheck(native_involution.predict, leaves)
    assert torch.autograd.gradgradcheck(native_involution.predict, leaves)


def test_only_the_gradients_asked_for_are_computed() -> None:
    for wanted in range(6):
        leaves = [t.requires_grad_(i == wanted) for i, t in enumerate(drawn((2, 3, 4, 5), 4, 9))]
        native_involution.predict(*leaves).sum().backward()
        assert [t.grad is not None for t in leaves] == [i == wanted for i in range(6)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_without_a_graph_break() -> None:
    def block(features: Tensor, *parameters: Tensor) -> Tensor:
        return native_involution.predict(features.relu(), *parameters) * 2

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (5, 8):
        leaves = [t.requires_grad_() for t in drawn((2, 6, size, size + 2), 3, 9)]
        got, expected = compiled(*leaves), block(*leaves)
        assert torch.equal(got, expected)
        gradients = [torch.autograd.grad(out.sum(), leaves) for out in (got, expected)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast() -> None:
    leaves, dtype = [t.requires_grad_() for t in drawn((2, 6, 5, 7), 4, 9)], torch.bfloat16
    with torch.autocast("cpu", dtype=dtype):
        out = native_involution.predict(leaves[0].to(dtype), *leaves[1:])
    assert torch.equal(out, native_involution.predict(*(t.to(dtype) for t in leaves)))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), leaves))


MACS = 2 * 5 * 7 * (6 * 4 + 4 * 9)


def test_torch_counts_the_flops() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        native_involution.predict(*drawn((2, 6, 5, 7), 4, 9))
    assert counter.get_total_flops() == 2 * MACS


@pytest.mark.filterwarnings("ignore")
def test_fvcore_counts_the_macs() -> None:
    nn = pytest.importorskip("fvcore.nn")

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return native_involution.predict(*tensors)

    analysis = nn.FlopCountAnalysis(Module(), tuple(drawn((2, 6, 5, 7), 4, 9)))
    analysis.set_op_handle(**native_involution.fvcore_handles())
    assert analysis.total() == MACS


# ------------------------------------------------------------------------------------------------------ as the layer's


def prepared(point: Point) -> Any:
    op = load(ROOT / "ops" / "involution.py")["involution"]
    inputs = op.build(point, torch.device("cpu"), torch.Generator().manual_seed(0))
    return inputs, {name: impl.prepare(inputs, point) for name, impl in op.impls.items()}


@pytest.mark.parametrize("backward", [False, True])
def test_the_layer_is_predicted_by_the_operator_where_no_gradient_is_wanted(
    backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Tensor] = []
    predict = native_involution.predict

    def spy(*tensors: Tensor) -> Tensor:
        calls.append(tensors[0])
        return predict(*tensors)

    monkeypatch.setattr(native_involution, "predict", spy)
    inputs, closures = prepared(Point(1, 32, 7, 6, stride=2, direction="forward_backward" if backward else "forward"))
    expected = closures["composite"]()
    assert not calls
    torch.testing.assert_close(closures["native"](), expected)
    assert len(calls) == (0 if backward else 1)
    assert all(torch.equal(read, F.avg_pool2d(inputs["features"], 2, ceil_mode=True)) for read in calls)


def test_what_cannot_be_built_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_involution, "missing", lambda device: "cannot be built: no compiler")
    with pytest.raises(Skip, match="native filters of involution: cannot be built: no compiler"):
        prepared(Point(1, 32, 7, 6))
