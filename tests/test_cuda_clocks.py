"""Clocks and readings on a real CUDA device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

MEBIBYTE = 2**20


@pytest.fixture
def device():  # type: ignore[no-untyped-def]
    from suites.core.cuda import Cuda

    return Cuda("cuda:0")


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def test_a_spin_of_known_length_comes_out_on_every_clock(device) -> None:  # type: ignore[no-untyped-def]
    """Twice the cycles take twice the time, and all three clocks agree on it within a tenth."""
    for name in ("latency_wall", "latency_device", "latency_cold"):
        short, long = (
            median(device.clocks(lambda n=n: torch.cuda._sleep(n))[name]().block(0.1).values)
            for n in (4_000_000, 8_000_000)
        )
        assert long / short == pytest.approx(2.0, rel=0.1), name


def test_a_copy_is_captured_in_a_graph_and_moves_its_bytes(device) -> None:  # type: ignore[no-untyped-def]
    source = torch.ones(512 * MEBIBYTE, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = median(device.clocks(lambda: target.copy_(source))["latency_device"]().block(0.1).values)
    assert "device_clock" not in device.settings()
    assert 5e10 < 2 * source.numel() / seconds < 2e13


def test_a_call_that_cannot_be_captured_is_timed_by_events_and_says_so(device) -> None:  # type: ignore[no-untyped-def]
    one = torch.ones(10, device="cuda")
    samples = device.clocks(lambda: one.sum().item())["latency_device"]().block(0.02)
    assert min(samples.values) > 0
    assert "no graph capture" in device.settings()["device_clock"]


def test_a_cold_copy_of_what_fits_the_cache_is_slower(device) -> None:  # type: ignore[no-untyped-def]
    source = torch.ones(device.cache // 4, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    made = device.clocks(lambda: target.copy_(source))
    hot, cold = (median(made[name]().block(0.1).values) for name in ("latency_device", "latency_cold"))
    assert cold > hot


def test_a_slowed_call_takes_that_part_longer_on_the_device(device) -> None:  # type: ignore[no-untyped-def]
    def spin() -> None:
        torch.cuda._sleep(4_000_000)

    plain, slowed = (
        median(device.clocks(call)["latency_device"]().block(0.1).values) for call in (spin, device.slowed(spin, 0.1))
    )
    assert slowed / plain == pytest.approx(1.1, rel=0.02)


def test_readings_come_with_every_block(device) -> None:  # type: ignore[no-untyped-def]
    readings = device.clocks(lambda: torch.cuda._sleep(1_000_000))["latency_device"]().block(0.05).readings
    assert isinstance(readings["throttled"], list)
    assert 0 < readings.get("temperature", 40) < 120
    assert readings.get("sm_clock", 1) > 0


def test_other_processes_are_counted_or_unknown(device) -> None:  # type: ignore[no-untyped-def]
    others = device.others()
    assert others is None or min(others.values()) >= 0


def test_doctor_examines_the_device(runner) -> None:  # type: ignore[no-untyped-def]
    told = json.loads(runner("doctor", "--device", "cuda", "--format", "json").stdout)
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert states["native operator"] == "ok"
    assert {"driver", "programs on the GPU", "throttling", "noise between processes"} <= set(states)
    assert "workers" not in states


def test_gradients_are_captured_too(device) -> None:  # type: ignore[no-untyped-def]
    from ops import Point, op_files
    from suites import Case
    from suites.core.bench import Bench

    files = {path.stem: str(path) for path in op_files()}
    point = Point(channels=64, height=28, width=28, direction="forward_backward")
    process = {"threads": 2, "malloc": "steady", "tf32": 0}
    bench = Bench(Case("latency", "conv", "torch", 1, "cuda:0", point, (), process, {}, files["convolution"]), 0, True)
    assert bench.max_error() <= bench.tolerance
    assert min(bench.device.clocks(bench.call)["latency_device"]().block(0.02).values) > 0


def test_a_small_run_on_the_device(runner, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = runner(
        "--device", "cuda", "--suite", "latency", "--resolution", "7,14", "--seconds", "0.5", "--output", "out"
    )
    assert done.returncode == 0, done.stderr
    assert "latency_device" in (tmp_path / "out" / "tables" / "latency.csv").read_text()


def test_roofs_are_plausible(device) -> None:  # type: ignore[no-untyped-def]
    from suites.core.roofs import roof_clocks

    made, work = roof_clocks(device, "float32", [256 * MEBIBYTE])
    rates = {name: work[name] / median(clock.block(0.1).values) for name, clock in made.items()}
    assert 5e10 < rates[f"copy:{256 * MEBIBYTE}"] < 2e13
    assert 1e11 < rates["fma"] < 2e14
    assert 1e11 < rates["matmul"] < 1e15
