"""The emulation of CUDA on the CPU, and its checker: what is right passes, and each kind of fault is caught."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from suites.core import emulation

pytestmark = pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))

FAULTS = ROOT / "tests" / "faults.cu"
SEEDS = range(20)

IN = torch.randn(4096, generator=torch.Generator().manual_seed(0))
THREADS = torch.arange(64)
ROUNDS = IN[:192].view(3, 64)
PAIRS = IN[:512].view(2, 2, 2, 64).flip(2)  # by round and cluster; of its two blocks each has the other one's

#: What the right form of each kernel in faults.cu leaves at the start of its output.
EXPECTED: dict[str, Tensor] = {
    "block_barrier": IN[:64].flip(0),
    "second_barrier": ROUNDS.flip(1)[0] + ROUNDS.flip(1)[1] + ROUNDS.flip(1)[2],
    "warp_barrier": IN[THREADS ^ 1],
    "barrier_of_the_warp_alone": IN[THREADS ^ 32],
    "shuffle_for_a_barrier": IN[THREADS ^ 1] + IN[THREADS ^ 2],
    "blocks_apart": IN[:256],
    "atomic_sum": IN[:256].sum()[None],
    "last_block": IN[:256],
    "shared_bounds": IN[:64],
    "dynamic_bounds": IN[:64],
    "global_bounds": IN[:64],
    "whole_output": IN[:64],
    "unset_tile": IN[:64],
    "coalesced": IN[:64],
    "banks": IN[:1024].view(32, 32).t().flatten(),
    "traffic": IN[:1024].view(4, 4, 64).sum(1).flatten(),
    "aligned": IN[:256],
    "same_barrier_for_all": IN[:64],
    "whole_mask": IN[:64] + IN[THREADS ^ 1],
    "awaited_copy": IN[:64],
    "copy_after_all_have_read": ROUNDS.flip(1)[0] + ROUNDS.flip(1)[1] + ROUNDS.flip(1)[2],
    "awaited_bulk_copy": IN[:384].view(6, 64).flip(1).sum(0),
    "arrivals_of_all": IN[:64],
    "cluster_barrier": PAIRS[0].flip(2).flatten(),
    "second_cluster_barrier": PAIRS.sum(0).flatten(),
    "cluster_has_begun": PAIRS[0].flatten(),
    "cluster_is_there": PAIRS[0].flatten(),
    "awaited_cluster": IN[:256],
    "cluster_of_all": IN[:256],
    "cluster_bounds": PAIRS[0].flatten(),
}

Ran = Callable[..., Tensor]


@pytest.fixture(scope="module")
def checked() -> emulation.Checked:
    return emulation.Checked(emulation.compile_kernels([FAULTS], "checked"))


@pytest.fixture(scope="module")
def ran(checked: emulation.Checked) -> Ran:
    """Runs a kernel, right or not, under the checker, and returns its output; RuntimeError says what the launch did."""

    def run(name: str, right: bool, seed: int = 1) -> Tensor:
        checked.library.cuda_on_cpu_seed(seed)
        out = torch.full((4096,), torch.nan)
        out[4095] = 0
        if name == "atomic_sum":
            out[0] = 0
        with checked.watch({"in": IN, "out": out}):
            pointers = ctypes.c_void_p(IN.data_ptr()), ctypes.c_void_p(out.data_ptr())
            error = checked.library.run(name.encode(), int(right), *pointers)
        if error:
            checked.library.why.restype = ctypes.c_char_p
            raise RuntimeError(checked.library.why(error).decode())
        return out

    return run


def unchanged(out: Tensor, name: str) -> bool:
    expected = EXPECTED[name]
    return torch.allclose(out[: len(expected)], expected, atol=1e-5)


def line_of(text: str, kernel: str) -> int:
    """The number of the first line with this text in a kernel of faults.cu."""
    lines = FAULTS.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if f" {kernel}(" in line)
    return next(i for i in range(begin, len(lines)) if text in lines[i]) + 1


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_right_passes_in_every_order(checked: emulation.Checked, ran: Ran, name: str) -> None:
    for seed in SEEDS:
        assert unchanged(ran(name, True, seed), name), seed
        assert not checked.races()


@pytest.mark.parametrize(
    ("name", "between", "memory", "text"),
    [
        ("block_barrier", "block", "shared", "= tile["),
        ("second_barrier", "block", "shared", "+= tile["),
        ("warp_barrier", "warp", "shared", "= tile["),
        ("barrier_of_the_warp_alone", "block", "shared", "= tile["),
        ("shuffle_for_a_barrier", "warp", "shared", "= tile["),
        ("blocks_apart", "blocks", "out", "a.out["),
        ("atomic_sum", "blocks", "out", "a.out[0] +="),
        ("last_block", "blocks", "out", "+= a.out["),
        ("copy_after_all_have_read", "block", "shared", "+= tile["),
        ("awaited_bulk_copy", "block", "shared", "+= tile["),
        ("cluster_barrier", "blocks", "shared", "= tile["),
        ("second_cluster_barrier", "blocks", "shared", "+= other["),
    ],
)
def test_races_are_found_whatever_the_order(
    checked: emulation.Checked, ran: Ran, name: str, between: str, memory: str, text: str
) -> None:
    place = f"faults.cu:{line_of(text, name)}"
    for seed in SEEDS:
        ran(name, False, seed)
        found = [r for r in checked.races() if (r.between, r.memory) == (between, memory)]
        assert any(place in r.places for r in found), (seed, checked.races())
        assert all(r.kernel == f"{name}<false>" for r in found)


@pytest.mark.parametrize(
    "name", ["block_barrier", "second_barrier", "warp_barrier", "whole_output", "unset_tile", "awaited_copy"]
)
def test_what_is_unset_or_too_early_shows_in_the_output(ran: Ran, name: str) -> None:
    assert not any(unchanged(ran(name, False, seed), name) for seed in SEEDS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("same_barrier_for_all", r"__syncthreads is reached at line \d+ by some threads and at \d+ by others"),
        ("whole_mask", r"stuck: .* waits in __syncthreads at line \d+; .* waits in a warp operation at line \d+;"),
        ("arrivals_of_all", r"stuck: thread \(\d+,0,0\) of block \(0,0,0\) waits in an mbarrier"),
        ("cluster_has_begun", r"thread .* asks for the memory of a block that may not have begun"),
        ("cluster_is_there", r"thread .* returns, and the memory of another block that it used may be gone"),
        ("awaited_cluster", r"thread .* returns before it has waited for the cluster"),
        ("cluster_of_all", r"stuck: thread .* of block \([13],0,0\) waits in the cluster's barrier"),
    ],
)
def test_barriers_that_cannot_be_met_fail_the_launch(ran: Ran, name: str, said: str) -> None:
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=said):
            ran(name, False, seed)
    assert unchanged(ran(name, True), name)  # the emulation has recovered


def reads(checked: emulation.Checked, memory: str) -> emulation.Site:
    return next(s for s in checked.sites() if (s.memory, s.direction) == (memory, "read"))


def test_sectors_of_a_request(checked: emulation.Checked, ran: Ran) -> None:
    """64 neighbouring floats are two requests of 4 sectors; at a distance of 8 each float is a sector of its own."""
    ran("coalesced", True)
    right = reads(checked, "global")
    assert (right.requests, right.units, right.least) == (2, 8, 8)
    ran("coalesced", False)
    wrong = reads(checked, "global")
    assert (wrong.requests, wrong.units, wrong.least) == (2, 64, 8)
    assert wrong.place == f"faults.cu:{line_of('a.in[', 'coalesced')}"


def test_bank_conflicts(checked: emulation.Checked, ran: Ran) -> None:
    """A column of a square tile is 32 words of one bank; with a column more, 32 banks."""
    ran("banks", True)
    assert checked.shared()["banks<true>"] == {
        "requests": 64, "wavefronts": 64, "least_wavefronts": 64, "unset_reads": 0, "bytes": 32 * 33 * 4 + 256,
    }  # fmt: skip
    ran("banks", False)
    assert checked.shared()["banks<false>"]["wavefronts"] == 32 + 32 * 32
    assert (reads(checked, "shared").units, reads(checked, "shared").least) == (32 * 32, 32)


def test_reads_of_what_nothing_has_written(checked: emulation.Checked, ran: Ran) -> None:
    """In steps of two bytes: one float of the tile."""
    ran("awaited_bulk_copy", True)
    assert checked.shared()["awaited_bulk_copy<true>"]["unset_reads"] == 0
    ran("unset_tile", False)
    assert checked.shared()["unset_tile<false>"]["unset_reads"] == 2


def test_traffic_of_blocks(checked: emulation.Checked, ran: Ran) -> None:
    """Four blocks that read 1024 of 4096 floats: each its part, or each all."""
    ran("traffic", True)
    assert checked.over_floor()["traffic<true>", "in"] == 0.25
    ran("traffic", False)
    assert checked.over_floor()["traffic<false>", "in"] == 1.0
    (wrong,) = [t for t in checked.traffic() if t.buffer == "in"]
    assert (wrong.fetched, wrong.touched) == (4 * 128, 128)


@pytest.mark.parametrize("name", ["coalesced", "banks", "traffic", "second_barrier", "awaited_bulk_copy", "last_block"])
def test_counts_do_not_depend_on_the_order(checked: emulation.Checked, ran: Ran, name: str) -> None:
    counts = []
    for seed in SEEDS:
        ran(name, True, seed)
        counts.append((checked.sites(), checked.traffic(), checked.shared()))
    for other in counts[1:]:
        assert other == counts[0]


# ----------------------------------------------------------------------------------------------------------- sanitizers

#: Runs kernels of a library in a process without torch: KERNEL RIGHT ...
ALONE = """
import array, ctypes, sys
library = ctypes.CDLL(sys.argv[1])
for name, right in zip(sys.argv[2::2], sys.argv[3::2]):
    memory = [ctypes.create_string_buffer(4096 * 4 + 16) for _ in range(2)]
    begins = [-(-ctypes.addressof(m) // 16) * 16 for m in memory]
    error = library.run(name.encode(), int(right), *map(ctypes.c_void_p, begins))
    assert error == 0, (name, error)
"""


def run_sanitized(*kernels: str) -> subprocess.CompletedProcess[str]:
    sanitizer = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not Path(sanitizer.stdout.strip()).is_absolute():
        pytest.skip("no address sanitizer for g++")
    library = emulation.compile_kernels([FAULTS], "address")
    environment = {**os.environ, "LD_PRELOAD": sanitizer.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["GCOV_PREFIX"] = os.devnull  # no counts
    command = [sys.executable, "-c", ALONE, str(library), *kernels]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_sanitizers_pass_what_is_right() -> None:
    done = run_sanitized(*(word for name in EXPECTED for word in (name, "1")))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "said", "text"),
    [
        ("shared_bounds", "heap-buffer-overflow", "= from["),
        ("dynamic_bounds", "heap-buffer-overflow", "tile[threadIdx.x + "),
        ("cluster_bounds", "heap-buffer-overflow", "other[threadIdx.x + "),
        ("global_bounds", "heap-buffer-overflow", "= a.in["),
        ("aligned", "load of misaligned address", None),
    ],
)
def test_sanitizers_name_the_line(name: str, said: str, text: str | None) -> None:
    done = run_sanitized(name, "0")
    assert done.returncode != 0
    assert said in done.stderr
    if text:
        assert re.search(rf"{name}.* \S*faults.cu:{line_of(text, name)}\b", done.stderr), done.stderr


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text('#include "ddf/device.cuh"\n__global__ void kernel() { __shared__ float tile[2]; }\n')
    with pytest.raises(emulation.EmulationError, match="shared_memory_is_declared_by_DDF_SHARED"):
        emulation.compile_kernels([source], "plain", cache=tmp_path)
