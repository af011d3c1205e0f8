"""Memory of a call, held against counts by hand, to the byte, and against what autograd says it keeps.

Convolutions are counted with oneDNN off: it copies into layouts that depend on the processor's instruction set, which
no hand can count; without it they are columns and a matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from test_cases import selection
from test_check import IMPLS, made
from torch import Tensor

from ops import Point
from suites import Begun, suites
from suites.core.allocations import Allocations, trace
from suites.core.bench import Bench
from suites.core.plan import Plan
from suites.memory import filter_memory

MEMORY = suites()["memory"]
#: Batch, channels, height, width, kernel size, stride, dilation. Channels enough for DDF's peak to be its application.
SHAPES = [(1, 32, 8, 8, 3, 1, 1), (3, 32, 7, 9, 3, 1, 2), (2, 40, 6, 6, 3, 1, 1), (2, 32, 9, 8, 3, 2, 1)]


#: Ops whose peak with gradients a hand can count.
COUNTED_WITH_GRADIENTS = [("conv", "torch"), ("dwconv", "torch"), ("dyfilter", "composite"), ("ddf_op", "native")]


@pytest.fixture(autouse=True)
def without_onednn() -> Iterator[None]:
    torch._C._set_mkldnn_enabled(False)  # type: ignore[attr-defined]
    yield
    torch._C._set_mkldnn_enabled(True)  # type: ignore[attr-defined]


def gradients(direction: str) -> AbstractContextManager[Any]:
    return torch.set_grad_enabled(direction == "forward_backward")


def bench(file: str, op: str, impl: str, shape: tuple[int, ...], direction: str, dtype: str = "float32") -> Bench:
    axes = dict(zip(("batch", "channels", "height", "width", "kernel_size", "stride", "dilation"), shape, strict=True))
    return made(file, op, impl, direction=direction, dtype=dtype, **axes)


def metrics(begun: Begun) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in begun.metrics}


def by_hand(op: str, impl: str, p: Point) -> int:
    """Most elements held at once, results included."""
    c, taps = p.channels, p.taps
    output, pixels, out_size = p.out_pixels * c, p.out_pixels, p.out_height * p.out_width
    padded = p.batch * c * (p.height + 2 * p.padding) * (p.width + 2 * p.padding)
    if op == "conv":  # the output and the columns, of one sample at a time where they are dilated
        return output + output * taps // (p.batch if p.dilation > 1 else 1)
    if op == "dwconv":  # the outputs of the groups, and what they are joined in
        return 2 * output
    if op == "dyfilter" and p.batch == 1:  # filters, columns, of which one is made contiguous, output
        return pixels * c * c * taps + pixels * c * taps + c * taps + output
    if op == "dyfilter":  # pixels as rows, filters, columns and their transposed copy
        return pixels * c + pixels * c * c * taps + 2 * pixels * c * taps
    if op == "dyfilter_dw":  # filters, padded features, output
        return output * taps + padded + output
    # given filters: the output; or padded features, the tap before and after, and the sum
    application = output if impl == "native" else padded + 3 * output
    if op == "ddf_op":
        return application
    if impl == "fused":  # both filters, the output, and the sums of the features over the one tile
        return p.batch * taps * (c + out_size) + output + p.batch * whole_vectors(c, p)
    # normalising the channel filter: raw, centred, normed and scaled, with variance and spread
    normalising = p.batch * c * (4 * taps + 2)
    return max(normalising, p.batch * taps * (c + out_size) + application)


def whole_vectors(count: int, p: Point) -> int:
    """The elements of the vectors that hold so many."""
    lanes = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 16) // p.itemsize
    return -(-count // lanes) * lanes


def by_hand_with_gradients(op: str, p: Point) -> int:
    """The same with the gradients of all inputs and parameters, the gradient of the output being given."""
    c, taps, features = p.channels, p.taps, p.pixels * p.channels
    output, pixels = p.out_pixels * c, p.out_pixels
    if op == "conv":
        return output + features + c * c * taps + c + output * taps
    if op == "dwconv":  # the gradients of the groups, and what they are joined in
        return output + 2 * (features + c * taps + c)
    if op == "dyfilter":  # what is saved and the output, and the gradients of filters and columns
        rows, contiguous = (0, c * taps) if p.batch == 1 else (pixels * c, 0)
        return rows + contiguous + output + 2 * pixels * c * taps * (c + 1)
    return output + features + p.batch * taps * (c + p.out_height * p.out_width)  # ddf_op


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_the_peak_is_the_hand_count(file: str, op: str, impl: str, shape: tuple[int, ...], dtype: str) -> None:
    with gradients("forward"):
        case = bench(file, op, impl, shape, "forward", dtype)
        found = metrics(MEMORY.begin(case))
    assert found["peak_memory"] == by_hand(op, impl, case.case.point) * case.case.point.itemsize


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-1] == 1])
@pytest.mark.parametrize(
    ("file", "op", "impl"),
    [impl for impl in IMPLS if impl[1:] in COUNTED_WITH_GRADIENTS],
)
def test_the_peak_with_gradients_is_the_hand_count(file: str, op: str, impl: str, shape: tuple[int, ...]) -> None:
    with gradients("forward_backward"):
        case = bench(file, op, impl, shape, "forward_backward")
        found = metrics(MEMORY.begin(case))
    assert found["peak_memory"] == by_hand_with_gradients(op, case.case.point) * case.case.point.itemsize


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_saved_memory_is_what_autograd_keeps(file: str, op: str, impl: str, shape: tuple[int, ...]) -> None:
    with gradients("forward_backward"):
        case = bench(file, op, impl, shape, "forward_backward")
        found = metrics(MEMORY.begin(case))
        assert found["saved_memory"] == kept_by_graph(case)
    saved, peak = found["saved_memory"] or 0, found["peak_memory"] or 0
    output = case.costs.memory["output"]
    assert saved + output <= peak
    nothing = ("conv", "torch"), ("dwconv", "torch"), ("ddf_op", "native"), ("ddf", "fused")
    assert (saved > 0) == ((op, impl) not in nothing)


def kept_by_graph(case: Bench) -> int:
    """Bytes of the tensors that autograd saves, told by its hooks, and of the numbers, which it does not tell of."""
    given = {leaf.untyped_storage().data_ptr() for leaf in case.inputs.leaves().values()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = case.forward()
    kept = sum(size for address, size in sizes.items() if address not in given)
    return kept + 8 * sum(map(saved_numbers, nodes(output.grad_fn)))


def nodes(start: Any) -> set[Any]:
    """Of the graph that a tensor hangs on."""
    found, left = set(), [start]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return found


def saved_numbers(node: Any) -> int:
    """Python numbers that a product or quotient saves, each as a tensor of 8 B."""
    saved = getattr(node, "_saved_other", None)
    return int(isinstance(saved, Tensor) and saved.dim() == 0)


@pytest.mark.parametrize("direction", ["forward", "forward_backward"])
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_each_call_allocates_the_same_from_the_first_on(file: str, op: str, impl: str, direction: str) -> None:
    torch._C._set_mkldnn_enabled(True)  # type: ignore[attr-defined]
    with gradients(direction):
        case = bench(file, op, impl, SHAPES[1], direction)
        call = case.call
        first, second, third = trace(call), trace(call), trace(call)
    assert first == second == third


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_filter_memory_is_that_of_the_filters(file: str, op: str, impl: str, shape: tuple[int, ...]) -> None:
    with gradients("forward"):
        case = bench(file, op, impl, shape, "forward")
        begun = MEMORY.begin(case)
    p, found = case.case.point, metrics(begun)
    elements = {
        "dyfilter": p.out_pixels * p.channels**2 * p.taps,
        "dyfilter_dw": p.out_pixels * p.channels * p.taps,
        "ddf": p.taps * (p.out_pixels + p.batch * p.channels),
    }.get(op, 0)
    assert found["filter_memory"] == found["filter_memory_formula"] == elements * p.itemsize
    assert found["peak_memory_formula"] == (elements + p.out_pixels * p.channels) * p.itemsize
    assert begun.failure == ""


def test_a_wrong_closed_form_of_the_filters_fails() -> None:
    with gradients("forward"):
        case = bench("ddf", "ddf", "native", SHAPES[0], "forward")
        case.costs = replace(case.costs, memory={**case.costs.memory, "filters": 1})
        assert MEMORY.begin(case).failure == "the filters take 3456 B, the closed form gives 1 B"


def test_filters_that_the_call_does_not_allocate_are_not_held() -> None:
    with gradients("forward"):
        case = bench("ddf", "ddf", "native", SHAPES[0], "forward")
        spatial, channel = (f.untyped_storage().nbytes() for f in case.op.filters(case.inputs, case.case.point))
        assert filter_memory(case, trace(case.forward)) == spatial + channel
        assert filter_memory(case, Allocations(0, 0, (spatial, spatial + 1))) == spatial
        assert filter_memory(case, Allocations(0, 0, ())) == 0


def test_an_allocation_may_be_rounded_up() -> None:
    found = Allocations(0, 0, (512, 1024, 2048))
    assert found.holding([500, 500, 1000]) == []
    assert found.holding([500, 500, 1000], rounding=511) == [500, 1000]


@pytest.mark.parametrize(
    ("free", "rate", "status"), [(10**9, 1e16, "does_not_fit"), (10**15, 1e9, "skipped"), (10**15, 1e16, None)]
)
def test_what_is_not_measured_is_told_by_closed_form(free: int, rate: float, status: str | None) -> None:
    """The dense dynamic filter at 224 x 224: 118 GB a sample."""
    bench = made("dynamic_filter", "dyfilter", "composite", batch=1, channels=256, height=224, width=224)
    case, costs = replace(bench.case, suite="memory"), bench.costs
    rates = {"copy": rate, "matmul": rate}
    plan = Plan(selection(), {"memory": MEMORY}, {}, {}, free, rates, {}, [], [case], {case.id: asdict(costs)})
    record = plan.settled(case, "run")
    assert (record and record.status) == status
    if record:
        told = {metric.name: metric.value for metric in record.metrics}
        filters = 224**2 * 256**2 * 9 * 4
        output = 224**2 * 256 * 4
        weights = 256**3 * 9 * 4
        assert told == {
            "memory_needed": filters + 2 * output + weights,
            "filter_memory_formula": filters,
            "peak_memory_formula": filters + output,
        }


def test_what_is_to_spare_goes_by_need_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 B to use, 200 are needed: half of the rest is shared by need, half by head."""
    bench = made("dynamic_filter", "dyfilter_dw", "composite")
    cases = [replace(bench.case, impl=impl) for impl in ("large", "small", "none")]
    costs = {case.id: {"memory": {"all": need}} for case, need in zip(cases, (150, 50, 0), strict=True)}
    monkeypatch.setattr("suites.core.plan.available_memory", lambda: 1250)
    monkeypatch.setattr("suites.core.plan.LEAST", 0)
    plan = Plan(replace(selection(), device="cpu"), {}, {}, {}, 0, {}, {}, [], cases, costs)
    assert list(plan.memory_limits(cases).values()) == [150 + 133 + 300, 50 + 133 + 100, 133]
    assert plan.memory_limits([]) == {}
    monkeypatch.setattr("suites.core.plan.LEAST", 1000)
    assert list(plan.memory_limits(cases).values()) == [150 + 1000 + 300, 50 + 1000 + 100, 1000]


# the instrument


def test_known_allocations_come_out_exactly() -> None:
    def call() -> Tensor:
        first = torch.empty(1000)
        second = torch.empty(7, dtype=torch.float64)
        del first
        third = torch.empty(300, dtype=torch.uint8)
        del second
        return third

    found = trace(call)
    assert found == Allocations(peak=4056, kept=300, sizes=(4000, 56, 300))


def test_what_an_operator_allocates_inside_is_seen() -> None:
    """The columns of a convolution, which no result holds."""
    image, weight = torch.zeros(1, 2, 5, 5), torch.zeros(3, 2, 3, 3)
    found = trace(lambda: torch.nn.functional.conv2d(image, weight))
    assert (found.peak, found.kept) == (4 * (3 * 9 + 2 * 9 * 9), 4 * 3 * 9)


def test_what_was_there_before_does_not_count() -> None:
    held = [torch.empty(1000)]
    assert trace(held.clear) == Allocations(0, 0, ())


@pytest.mark.gpu
@pytest.mark.parametrize(("file", "op", "impl"), IMPLS)
def test_cuda_counts_with_its_own_allocator(file: str, op: str, impl: str) -> None:
    for direction in ("forward", "forward_backward"):
        with gradients(direction):
            case = made(file, op, impl, direction=direction)
            case = Bench(replace(case.case, device="cuda:0"), seed=0, check=True)
            found = metrics(MEMORY.begin(case))
        output = case.costs.memory["output"]
        assert (found["peak_memory"] or 0) >= output
        assert (found["reserved_memory"] or 0) >= (found["peak_memory"] or 0) - 2**21
        assert found["filter_memory"] == case.costs.memory.get("filters", 0)


@pytest.mark.gpu
def test_cuda_known_allocation_comes_out() -> None:
    from suites.core.devices import open_device

    size = 64 * 2**20
    found = open_device("cuda:0").allocations(lambda: torch.empty(size, dtype=torch.uint8, device="cuda:0"))
    assert (found.peak, found.kept) == (size, size)
    assert found.further["reserved_memory"] == size
