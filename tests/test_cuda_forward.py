"""The CUDA forward kernels, each by its name: on the CPU under emulation, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Runner
from ddf_by_taps import Settings
from test_cuda_on_cpu import (
    OnCpu,
    assert_every_line_ran,
    checked,
    cuda_on_cpu,
    kernels_by_file,
    lines_under_sanitizers,
)
from test_native import Case, channels_last, contiguous, cropped, sliced
from torch import Tensor

from ops.core import native, published
from ops.core.kernels import kernels
from suites.core import emulation

__all__ = ["checked", "cuda_on_cpu"]

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NOT_SUPPORTED, INVALID = 801, 1
Layout = Callable[[Tensor], Tensor]


def named(name: str, base: type[Case], capability: int = 90) -> type[Any]:
    """Cases that the kernel of that name computes, under emulation or on the GPU; "" is the table's choice. For those
    in clusters a GPU is emulated that has a place for each block that channels can be split over."""

    class Named(base):  # type: ignore[misc,valid-type]
        def error(self, out: Tensor) -> int:
            self.kernels.pretend(capability, 16 if "cluster" in name else 2)
            try:
                return int(self.status(out, "cuda_forward_by", name))
            finally:
                self.kernels.pretend(90)

        def forward(self) -> Tensor:
            if self.tensors[0].is_cuda:
                features, channel, spatial, *settings = self.arguments
                return native.apply_by(name, features, channel, spatial, *settings)
            out = torch.full_like(self.tensors[3], torch.nan)
            assert self.error(out) == 0, f"{name} fails at {self.description}"
            return out

    return Named


#: Shapes (N, C, H, W) and stride by kernel: less than a tile, several, tails of each, a side halo.
SHAPES = {
    "rows": [
        ((2, 9, 5, 8), 1),
        ((1, 3, 56, 56), 1),
        ((1, 2, 30, 224), 1),
        ((1, 2, 9, 608), 1),
        ((1, 5, 15, 16), 2),
        ((1, 2, 40, 120), 2),
        ((1, 2, 4, 1200), 2),
    ],
    "planes": [
        ((2, 9, 7, 7), 1),
        ((1, 40, 14, 14), 1),
        ((3, 4, 1, 1), 1),
        ((1, 3, 16, 16), 1),
        ((1, 5, 9, 6), 2),
        ((1, 2, 20, 31), 3),
    ],
    "channels": [
        ((2, 8, 5, 7), 1),
        ((1, 256, 9, 17), 1),
        ((1, 140, 3, 33), 1),
        ((1, 16, 11, 14), 2),
        ((1, 4, 1, 1), 1),
        ((1, 12, 30, 18), 2),
    ],
}
SHAPES["rows_bulk"] = SHAPES["rows"]
#: Whose channels are split over several blocks on any GPU; 11 and 9 parts of them over clusters of fewer.
SHAPES["planes_cluster"] = [
    ((2, 40, 7, 7), 1),
    ((1, 88, 5, 6), 1),
    ((3, 16, 1, 1), 1),
    ((1, 40, 13, 14), 1),
    ((1, 72, 9, 6), 2),
]
SHAPES["channels_cluster"] = [
    ((2, 40, 7, 7), 1),
    ((1, 144, 5, 6), 1),
    ((3, 32, 1, 1), 1),
    ((1, 80, 9, 6), 2),
]
SHAPES["bands"] = [
    ((2, 9, 7, 7), 1),
    ((1, 3, 33, 33), 1),
    ((1, 40, 20, 15), 1),
    ((2, 2, 6, 225), 1),
    ((1, 5, 21, 17), 2),
    ((1, 2, 20, 31), 3),
]
KERNELS_ON = [
    *((name, "cpu") for name in SHAPES),
    *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in SHAPES),
]


def layout_of(name: str) -> Layout:
    return channels_last if name.startswith("channels") else contiguous


@pytest.fixture
def base(request: pytest.FixtureRequest) -> Callable[[str], type[Case]]:
    """What computes on a kind of device; a GPU from before the kernel's architecture has the test skipped."""
    name = request.node.callspec.params["name"]
    (least,) = (kernel.least_arch for kernel in kernels() if kernel.name == name)

    def on(device: str) -> type[Case]:
        if device == "cpu":
            return request.getfixturevalue("cuda_on_cpu")  # type: ignore[no-any-return]
        if torch.cuda.get_device_capability() < divmod(least, 10):
            pytest.skip(f"{name} takes sm_{least} or later")
        return Case

    return on


#: Element types and kernel sizes that all kernels but the general one serve; filters are added at k = 3 alone.
SERVED = [(dtype, k) for dtype in DTYPES for k in (3, 5, 7) if k == 3 or dtype != torch.float64]


def combinations(k: int, i: int) -> tuple[str, ...]:
    """Of the i-th shape: both of the first."""
    if k > 3:
        return ("mul",)
    return ("mul", "add") if i == 0 else (("mul", "add")[i % 2],)


@pytest.mark.parametrize(("dtype", "k"), SERVED)
@pytest.mark.parametrize(("name", "device"), KERNELS_ON)
def test_kernel(base: Callable[[str], type[Case]], name: str, device: str, k: int, dtype: torch.dtype) -> None:
    for i, (shape, stride) in enumerate(SHAPES[name]):
        for combine in combinations(k, i):
            layouts = (layout_of(name),) * 4
            case = named(name, base(device))(shape, k, Settings(stride, 1, combine), dtype, layouts, device=device)
            case.check_forward()


@pytest.mark.parametrize(("name", "device"), KERNELS_ON)
def test_what_is_not_finite_stays_where_it_belongs(base: Callable[[str], type[Case]], name: str, device: str) -> None:
    """Infinite and nan features at the edge do not meet the padding; an infinite filter does, and gives nan."""
    shape, stride = SHAPES[name][0]
    kind, layouts = named(name, base(device)), (layout_of(name),) * 4
    for special in ((torch.nan,), (torch.inf, -torch.inf)):
        for combine in ("mul", "add"):
            settings = Settings(stride, 1, combine)
            kind(shape, 3, settings, torch.float32, layouts, special=special, device=device).check_forward()
    case = kind(shape, 3, Settings(), torch.float32, layouts, device=device)
    case.tensors[2][:, 0] = torch.inf
    out = case.forward().cpu()
    assert out[:, :, 0].isnan().all()
    assert out[:, :, :, 0].isnan().all()
    assert out[:, :, 1:, 1:].isinf().all()


@pytest.mark.parametrize(("name", "device"), KERNELS_ON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_in_every_run(base: Callable[[str], type[Case]], name: str, device: str, dtype: torch.dtype) -> None:
    for shape, stride in SHAPES[name][1:2]:
        case = named(name, base(device))(shape, 3, Settings(stride), dtype, (layout_of(name),) * 4, device=device)
        assert torch.equal(case.forward(), case.forward())


def test_tensors_that_are_not_contiguous_or_aligned(cuda_on_cpu: type[OnCpu]) -> None:
    """A kernel takes them as they are, or leaves them to the general one."""
    shifted = lambda t: t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)  # noqa: E731
    for layout in (sliced, cropped, shifted):
        for shape in ((2, 8, 20, 20), (1, 32, 7, 7)):
            for dtype in (torch.float32, torch.bfloat16):
                kind = named("", cuda_on_cpu)
                kind(shape, 3, Settings(), dtype, (layout, contiguous, contiguous, contiguous)).check_forward()
                kind(shape, 3, Settings(), dtype, (contiguous, contiguous, layout, layout)).check_forward()
    rows = named("rows", cuda_on_cpu)
    rows((1, 3, 20, 20), 3, Settings(), torch.float32, (shifted, *(contiguous,) * 3)).check_forward()
    rows((1, 3, 20, 20), 3, Settings(), torch.bfloat16, (shifted, *(contiguous,) * 3)).check_forward()


@pytest.mark.parametrize("capability", [75, 80, 90])
def test_the_tables_choice_is_right_on_every_architecture(cuda_on_cpu: type[OnCpu], capability: int) -> None:
    for shape in ((1, 32, 7, 7), (1, 4, 17, 20), (1, 2, 12, 120), (1, 2, 9, 13)):
        for layout in (contiguous, channels_last):
            kind = named("", cuda_on_cpu, capability)
            kind(shape, 3, Settings(), torch.float32, (layout,) * 4).check_forward()


def test_a_named_kernel_runs_or_refuses(cuda_on_cpu: type[OnCpu]) -> None:
    def error(
        name: str,
        shape: tuple[int, ...],
        k: int = 3,
        capability: int = 90,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> int:
        layouts = (layout_of(name),) * 4
        case = named(name, cuda_on_cpu, capability)(shape, k, Settings(**settings), dtype, layouts)
        return int(case.error(torch.full_like(case.tensors[3], torch.nan)))

    assert error("rows", (1, 2, 8, 8)) == 0
    assert error("planes_cluster", (1, 40, 7, 7)) == error("channels_cluster", (1, 40, 7, 7)) == 0
    for refused in (
        error("rows", (1, 2, 8, 8), dilation=2),
        error("rows", (1, 2, 8, 8), k=9),
        error("rows", (1, 2, 8, 8), stride=3),
        error("rows", (1, 2, 8, 9)),  # no whole vectors
        error("rows_bulk", (1, 2, 8, 8), capability=80),
        error("planes", (1, 2, 33, 33)),
        error("channels", (1, 6, 8, 8)),
        error("planes_cluster", (1, 40, 7, 7), capability=80),
        error("planes_cluster", (1, 8, 7, 7)),  # one block has all channels
        error("channels_cluster", (1, 40, 7, 7), capability=80),
        error("channels_cluster", (1, 8, 7, 7)),
        error("channels_cluster", (1, 64, 2, 40)),  # tiles beside one another
    ):
        assert refused == NOT_SUPPORTED
    for name in SHAPES:  # what a build would take longest for
        shape, stride = SHAPES[name][0]
        assert error(name, shape, 5, stride=stride) == 0
        assert error(name, shape, 5, stride=stride, combine="add") == NOT_SUPPORTED
        assert error(name, shape, 7, dtype=torch.float64, stride=stride) == NOT_SUPPORTED
    for k, dtype, combine in ((5, torch.float32, "add"), (7, torch.float64, "mul")):
        for layout in (contiguous, channels_last):  # the general kernel serves it
            named("", cuda_on_cpu)((1, 4, 9, 8), k, Settings(1, 1, combine), dtype, (layout,) * 4).check_forward()
    assert error("no_such_kernel", (1, 2, 8, 8)) == INVALID


# ------------------------------------------------------------------------------------------------- sanitizers, checker


@pytest.mark.slow
def test_values_under_sanitizers_with_every_line_of_the_forward_kernels(tmp_path: Path) -> None:
    """The other tests of this file, of the published kernels too, but for those of the checker."""
    lines = lines_under_sanitizers(__file__, tmp_path)
    elsewhere = {"strips.cuh", "walk.cuh", "backward.cu", "module.cuh", "module_backward.cuh"}  # each in its own file
    assert_every_line_ran(lines, set(kernels_by_file(emulation.CSRC / "ddf" / "cuda")) - elsewhere)


def look(case: OnCpu, checker: emulation.Checked, name: str) -> None:
    """Runs the kernel of that name, or the published ones as `paper`, under the checker."""
    entry, kernel = ("cuda_paper_forward", None) if name == "paper" else ("cuda_forward_by", name)
    features, channel, spatial, out = case.tensors
    out = torch.full_like(out, torch.nan)
    case.kernels.pretend(90, 16 if "cluster" in name else 2)
    with checker.watch({"features": features, "channel": channel, "spatial": spatial, "out": out}):
        case.kernels.forward(features, channel, spatial, out, **case.options, entry=entry, kernel=kernel)
    case.forward = lambda: out  # type: ignore[method-assign]
    case.check_forward()


#: By kernel, what the checker sees of it beyond float32 and k = 3: element type and kernel size.
CHECKED = [
    *((name, torch.float32, 3) for name in (*SHAPES, "paper")),
    *((name, torch.bfloat16, 3) for name in SHAPES),
    *((name, torch.float32, 5) for name in (*SHAPES, "paper")),
    *((name, torch.float16, 3) for name in SHAPES),
    *((name, torch.float64, 3) for name in SHAPES),
    *((name, torch.bfloat16, 7) for name in SHAPES),
    ("paper", torch.float64, 3),
]
PAPER_SHAPES = [((1, 5, 14, 17), 1), ((2, 33, 5, 7), 1), ((1, 3, 20, 15), 2)]


@pytest.mark.parametrize(("name", "dtype", "k"), CHECKED)
def test_checker_finds_no_race(
    checked: tuple[type[OnCpu], emulation.Checked], name: str, dtype: torch.dtype, k: int
) -> None:
    kind, checker = checked
    for i, (shape, stride) in enumerate(SHAPES.get(name, PAPER_SHAPES)):
        layouts = (layout_of(name),) * 4
        combine = "add" if i % 2 and (k == 3 or name == "paper") else "mul"
        look(kind(shape, k, Settings(stride, 1, combine), dtype, layouts), checker, name)
        assert not checker.races()
        assert {t.buffer for t in checker.traffic()} == {"features", "channel", "spatial", "out"}


@pytest.mark.parametrize("name", ["rows", "planes", "planes_cluster", "channels", "channels_cluster", "paper"])
def test_checker_finds_the_race_of_every_kernel_without_its_barriers(
    checked: tuple[type[OnCpu], emulation.Checked], name: str
) -> None:
    kind, checker = checked
    for shape, stride in SHAPES.get(name, PAPER_SHAPES)[:2]:
        case = kind(shape, 3, Settings(stride), torch.float32, (layout_of(name),) * 4)
        with case.kernels.without_barriers(block=True, warp=True, cluster=True), pytest.raises(AssertionError):
            look(case, checker, name)
        launched = {t.kernel for t in checker.traffic()}
        assert {race.kernel for race in checker.races() if race.memory == "shared"} == launched != set()
        across = {race.kernel for race in checker.races() if (race.between, race.memory) == ("blocks", "shared")}
        assert across == (launched if "cluster" in name else set())


#: Of Table 2: sides of planes of 256 channels; a batch of 32, on a GPU of 132 multiprocessors.
RESOLUTIONS = (7, 14, 28, 56, 112, 224)
BATCH, CHANNELS, MULTIPROCESSORS = 32, 256, 132
#: How often the spatial filter is read where a sample is split by channels to fill that GPU, and there are no clusters.
SPLIT = {(80, 7): 4, (80, 14): 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("capability", "layout"), [(80, contiguous), (90, contiguous), (90, channels_last)])
def test_checker_counts_the_traffic_at_the_multiprocessors(
    checked: tuple[type[OnCpu], emulation.Checked], capability: int, layout: Layout, dtype: torch.dtype
) -> None:
    """What blocks fetch, each its own, over what has to move, in whole sectors: of at most seven blocks of a sample."""
    kind, checker = checked
    for size in RESOLUTIONS:
        if capability == 80 and size in (28, 56):
            continue  # as for 90
        tensors = [layout(torch.zeros(1, c, size, size, dtype=dtype)) for c in (CHANNELS, 9, CHANNELS)]
        out = tensors[-1].fill_(torch.nan)
        features, spatial, outs = (t.expand(BATCH, -1, -1, -1) for t in tensors)  # one sample for all
        channel = torch.zeros(BATCH, CHANNELS, 3, 3, dtype=dtype)
        buffers = dict(zip(("features", "spatial", "out"), tensors, strict=True))
        kind.kernels.pretend(capability, MULTIPROCESSORS)
        with kind.kernels.some_blocks(BATCH, 7), checker.watch(buffers, traffic_alone=True):
            kind.kernels.forward(features, channel, spatial, outs, entry="cuda_forward_by", kernel="")
        kind.kernels.pretend(90)
        written = int((~out.isnan()).sum()) * out.element_size()
        fetched = {t.buffer: t.fetched * 32 / written for t in checker.traffic()}
        (kernel,) = {t.kernel.partition("_kernel<")[0] for t in checker.traffic()}
        assert fetched["features"] <= 1.5, (kernel, size, fetched)
        assert fetched["out"] <= 1.05, (kernel, size, fetched)
        assert fetched["spatial"] * CHANNELS / 9 <= 1.05 * SPLIT.get((capability, size), 1), (kernel, size, fetched)


def test_checker_stops_bulk_copies_without_barriers(checked: tuple[type[OnCpu], emulation.Checked]) -> None:
    """A thread then waits for arrivals that the first has not set up."""
    kind, checker = checked
    case = kind(SHAPES["rows_bulk"][0][0], 3, Settings(), torch.float32)
    for seed in range(5):
        case.kernels.seed(seed)
        with (
            case.kernels.without_barriers(block=True),
            pytest.raises(emulation.EmulationError, match="mbarrier is used before it is set up"),
        ):
            look(case, checker, "rows_bulk")


# --------------------------------------------------------------------------------------- the table


def test_the_table_is_listed_and_ends_with_the_general_kernel(runner: Runner) -> None:
    rows = kernels()
    assert {row.name for row in rows} == {*SHAPES, "general"}
    assert rows[-1].name == "general"
    assert rows[-1].layout == "any"
    lines = runner("list", "impls", "--op", "ddf_op").stdout.splitlines()
    start = lines.index("ddf_op       native")
    assert [line.split()[:2] for line in lines[start + 1 :][: len(rows)]] == [["kernel", row.name] for row in rows]


# --------------------------------------------------------------------------------------------- the published kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize(
    ("shape", "k", "stride", "dilation"),
    [
        ((1, 5, 14, 14), 3, 1, 1),
        ((2, 3, 17, 33), 3, 1, 2),
        ((1, 34, 16, 15), 1, 1, 1),
        ((2, 33, 5, 7), 3, 1, 1),
        ((1, 3, 20, 15), 3, 2, 1),
        ((1, 2, 6, 6), 13, 1, 1),
        ((1, 40, 3, 3), 5, 3, 2),
    ],
)
def test_published_kernels(
    cuda_on_cpu: type[OnCpu],
    shape: tuple[int, int, int, int],
    k: int,
    stride: int,
    dilation: int,
    combine: str,
    dtype: torch.dtype,
) -> None:
    class Paper(cuda_on_cpu):  # type: ignore[misc,valid-type]
        def forward(self) -> Tensor:
            out = torch.zeros_like(self.tensors[3])
            assert self.status(out, "cuda_paper_forward") == 0
            return out

    Paper(shape, k, Settings(stride, dilation, combine), dtype).check_forward()


@pytest.mark.parametrize("size", [5, 16])
def test_published_kernels_sum_with_compensation(cuda_on_cpu: type[OnCpu], size: int) -> None:
    case = cuda_on_cpu((1, 2, size, size), 3, Settings(), torch.float32)
    for tensor in case.tensors[:2]:
        tensor.fill_(1)
    case.tensors[2].zero_()
    for tap, value in ((0, 1.0), (1, 1e8), (4, 1.0), (7, -1e8)):
        case.tensors[2][:, tap] = value
    out = torch.zeros_like(case.tensors[3])
    assert case.status(out, "cuda_paper_forward") == 0
    assert (out[:, :, 1:-1, 1:-1] == 2).all()  # a plain sum gives 0


def test_published_kernels_refuse_what_they_cannot_serve(cuda_on_cpu: type[OnCpu]) -> None:
    def error(k: int, dilation: int, size: int, dtype: torch.dtype = torch.float32, layout: Layout = contiguous) -> int:
        case = cuda_on_cpu((1, 2, size, size), k, Settings(1, dilation), dtype, (layout,) * 4)
        out = torch.zeros_like(case.tensors[3])
        return case.status(out, "cuda_paper_forward")

    def needed(k: int, dilation: int, size: int) -> int:
        return published.shared_elements(size, size, k, dilation, 1)

    for k, dilation, size, fits in ((13, 1, 6, True), (15, 1, 6, False), (3, 7, 14, True), (3, 8, 14, False)):
        assert error(k, dilation, size) == (0 if fits else NOT_SUPPORTED)
        assert (needed(k, dilation, size) <= published.SHARED_ELEMENTS) == fits
    assert error(3, 8, 13) == 0  # not on the fast path
    assert error(3, 1, 14, torch.float16) == error(3, 1, 14, layout=channels_last) == NOT_SUPPORTED


def test_published_kernels_say_why_not() -> None:
    def refusal(device: str = "cuda", dtype: torch.dtype = torch.float32, contiguous: bool = True, k: int = 3) -> str:
        features: Any = SimpleNamespace(
            device=torch.device(device),
            dtype=dtype,
            requires_grad=False,
            is_contiguous=lambda: contiguous,
            shape=(1, 4, 20, 20),
        )
        return published.refusal(features, k, 1, 1)

    assert "CUDA alone" in refusal(device="cpu")
    assert "not float16" in refusal(dtype=torch.float16)
    assert "NCHW alone" in refusal(contiguous=False)
    assert "overrun" in refusal(k=15)
