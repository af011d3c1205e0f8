"""The arithmetic of the CUDA clocks and NVML readings, on a fake device; test_cuda_clocks.py has the real one."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from suites.core import cuda
from suites.core.clocks import Samples
from suites.core.cuda import ColdDeviceClock, DeviceClock, Monitor, Repeated, Watched


class FakeGpu:
    """Runs what is enqueued at once, on a clock of its own, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def enqueue(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now += seconds

    def event(self) -> Any:
        mark = SimpleNamespace(at=0.0)
        mark.record = lambda: setattr(mark, "at", self.now)
        mark.elapsed_time = lambda other: (other.at - mark.at) * 1e3
        return mark


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    monkeypatch.setattr(cuda, "event", gpu.event)
    monkeypatch.setattr(cuda.torch.cuda, "synchronize", lambda: None)
    # each replay takes 2 ms of the host's clock too, so that a block of 20 ms has ten
    monkeypatch.setattr(cuda, "warm_up", lambda call, synchronize, seconds: 0.002)
    return gpu


def test_the_device_clock_divides_a_replay_by_its_calls(gpu: FakeGpu) -> None:
    clock = DeviceClock(Repeated(lambda: gpu.enqueue("replay", 0.002), calls=8))
    samples = clock.block(0.02)
    assert samples.calls == 8
    assert samples.values == pytest.approx([0.002 / 8] * 10)
    assert len(gpu.order) == 11  # one more goes ahead of the first mark


def test_the_cold_clock_leaves_the_flush_out(gpu: FakeGpu) -> None:
    clock = ColdDeviceClock(Repeated(lambda: gpu.enqueue("call", 0.001), 1), lambda: gpu.enqueue("flush", 1.0))
    samples = clock.block(0.02)
    assert samples.values == pytest.approx([0.001] * 10)
    assert gpu.order == ["flush", "call"] * 10


class FakeNvml:
    """What `pynvml` offers, of one device; `broken` functions raise."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, mask: int = 0, broken: tuple[str, ...] = (), compute: tuple[int, ...] = ()):
        self.mask, self.broken, self.asked, self.energy = mask, broken, "", 1000
        self.compute = [SimpleNamespace(pid=pid) for pid in compute]

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlClocksThrottleReasonSwPowerCap": 4,
            "nvmlClocksThrottleReasonHwSlowdown": 8,
            "nvmlInit": None,
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.mask,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetMaxClockInfo": 2000,
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetPowerUsage": 350_000,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetComputeRunningProcesses": self.compute,
            "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=7)],
        }
        if name in self.broken or (name.startswith("nvmlClocks") and name not in answers):
            raise AttributeError(name)
        if name.startswith("nvmlClocks"):
            return answers[name]

        def function(*arguments: Any) -> Any:
            if name == "nvmlDeviceGetHandleByUUID":
                self.asked = arguments[0]
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                self.energy += 5000
                return self.energy
            return answers[name]

        return function


def monitor(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> Monitor:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    return Monitor("123-456")


def test_readings_are_in_base_units(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(mask=4)
    found = monitor(monkeypatch, nvml).read()
    assert nvml.asked == "GPU-123-456"
    assert found == {
        "sm_clock": 1_980_000_000,
        "memory_clock": 1_980_000_000,
        "temperature": 55,
        "power": 350.0,
        "energy": 6.0,
        "throttled": ["SwPowerCap"],
    }


def test_what_the_driver_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage")
    found = monitor(monkeypatch, FakeNvml(broken=broken)).read()
    assert set(found) == {"sm_clock", "memory_clock", "temperature", "throttled"}


def test_processes_are_counted_once_where_the_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = monitor(monkeypatch, FakeNvml(compute=(8, 9, 9), broken=("nvmlDeviceGetGraphicsRunningProcesses",)))
    assert (watching.processes("Compute"), watching.processes("Graphics")) == (2, None)


@pytest.mark.parametrize(
    ("compute", "graphics", "others"),
    [
        (None, 1, None),
        (0, 0, None),  # not even this process is told
        (1, 0, {"compute": 0, "graphics": 0}),
        (3, None, {"compute": 2, "graphics": 0}),
        (1, 2, {"compute": 0, "graphics": 2}),
    ],
)
def test_others_are_those_listed_less_this_process(
    compute: int | None, graphics: int | None, others: dict[str, int] | None
) -> None:
    device = object.__new__(cuda.Cuda)
    device.torch = cuda.torch.device("cpu")
    listed = {"Compute": compute, "Graphics": graphics}
    device._monitor = SimpleNamespace(processes=listed.get)  # type: ignore[assignment]
    assert device.others() == others


def test_a_watched_block_carries_readings_and_mean_power(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = SimpleNamespace(block=lambda seconds: Samples(1, [seconds]))
    samples = Watched(inner, monitor(monkeypatch, FakeNvml(mask=8))).block(0.5)  # type: ignore[arg-type]
    assert samples.values == [0.5]
    assert samples.readings["throttled"] == ["HwSlowdown"]
    assert samples.readings["mean_power"] > 0
    assert "energy" not in samples.readings
