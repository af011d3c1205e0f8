"""The instrument itself: what is known beforehand must come out right."""

from __future__ import annotations

import itertools
import mmap
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from suites.core import clocks, devices, machine
from suites.core.clocks import ColdClock, WallClock
from suites.core.devices import Cpu, open_device
from suites.core.machine import affinity, cpu_caches, describe_machine, parse_list, parse_size
from suites.core.multiply_add import multiply_add
from suites.core.roofs import matmul, roof_clocks


class FakeTime:
    """A clock that only the timed call moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def call_of(self, *seconds: float) -> Callable[[], None]:
        lengths = itertools.cycle(seconds)

        def call() -> None:
            self.now += next(lengths)

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(clocks, "time", fake)
    return fake


def nothing() -> None:
    pass


def test_a_sleep_is_never_shorter_than_it_is() -> None:
    samples = WallClock(lambda: time.sleep(0.005), nothing).block(0.02)
    assert samples.calls == 1
    assert min(samples.values) >= 0.005


def test_a_call_of_known_length_comes_out_exactly(fake: FakeTime) -> None:
    samples = WallClock(fake.call_of(0.003), nothing).block(0.04)
    assert samples.calls == 1
    assert samples.values == pytest.approx([0.003] * len(samples.values))
    assert len(samples.values) == 14  # the least number that fills the block


def test_a_short_call_is_timed_several_at_once(fake: FakeTime) -> None:
    samples = WallClock(fake.call_of(10e-6), nothing).block(0.01)
    assert samples.calls == 10
    assert samples.values == pytest.approx([10e-6] * len(samples.values))


def test_every_sample_is_kept(fake: FakeTime) -> None:
    """An outlier of a hundred times the rest stays among them."""
    samples = WallClock(fake.call_of(*[0.001] * 9, 0.1), nothing).block(1.0)
    assert max(samples.values) == pytest.approx(0.1)
    assert min(samples.values) == pytest.approx(0.001)


def test_a_call_longer_than_its_block_is_one_sample(fake: FakeTime) -> None:
    assert WallClock(fake.call_of(5.0), nothing).block(0.04).values == pytest.approx([5.0])


def test_the_wall_clock_waits_for_the_device(fake: FakeTime) -> None:
    def synchronize() -> None:
        fake.now += 0.001

    assert WallClock(fake.call_of(0.002), synchronize).block(0.01).values[0] == pytest.approx(0.003)


def test_the_cold_clock_flushes_before_each_call_and_outside_the_clock(fake: FakeTime) -> None:
    order: list[str] = []
    spend = fake.call_of(0.002)

    def flush() -> None:
        order.append("flush")
        fake.now += 1.0

    def call() -> None:
        order.append("call")
        spend()

    samples = ColdClock(call, flush).block(5.0)
    assert samples.values == pytest.approx([0.002] * 5)
    assert order == ["call"] + ["flush", "call"] * 5


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux page faults")
def test_page_faults_of_known_number_are_counted() -> None:
    pages = 200

    def touch() -> None:
        with mmap.mmap(-1, pages * mmap.PAGESIZE) as fresh:
            fresh.madvise(mmap.MADV_NOHUGEPAGE)
            for page in range(pages):
                fresh[page * mmap.PAGESIZE] = 1

    found = WallClock(touch, nothing).block(0.02).readings["page_faults"]
    assert pages <= found < pages + 20


@pytest.mark.skipif(sys.platform != "linux", reason="pins processes to a core")
def test_a_core_that_is_shared_shows_as_context_switches_and_waiting() -> None:
    """In processes of their own, on one core: the timed one is descheduled in favour of one that spins beside it."""
    code = (
        "import os, signal, time\n"
        "from suites.core.clocks import WallClock\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "spin = lambda: sum(range(1000))\n"
        "rival = os.fork()\n"
        "while rival == 0: spin()\n"
        "try: readings = WallClock(spin, lambda: None).block(0.5).readings\n"
        "finally: os.kill(rival, signal.SIGKILL)\n"
        "print(readings['context_switches'], readings['core_wait'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    switches, wait = map(float, done.stdout.split())
    assert switches >= 3
    assert 0.2 < wait < 1.5  # half of the time each, where nothing else runs


def test_readings_are_what_was_added_during_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([SimpleNamespace(ru_minflt=100, ru_nivcsw=7), SimpleNamespace(ru_minflt=106, ru_nivcsw=12)])
    fake = SimpleNamespace(getrusage=lambda who: next(counted), RUSAGE_SELF=resource.RUSAGE_SELF)
    clock = WallClock(lambda: time.sleep(0.01), nothing)
    monkeypatch.setattr(clocks, "resource", fake)
    samples = clock.block(0.015)
    assert 0 <= samples.readings.pop("core_wait") < 1
    assert samples.readings == {"page_faults": 6 / len(samples.values), "context_switches": 5}


@pytest.mark.parametrize(("faulting", "calls"), [(0, 5), (20, 25), (10**9, 60)])
def test_the_first_warm_up_ends_when_calls_fault_no_more_pages_in(
    monkeypatch: pytest.MonkeyPatch, faulting: int, calls: int
) -> None:
    """Calls of 10 ms, of which the first ones fault a megabyte in; those that always do are given up."""
    now, made, faulted, spared = 0.0, 0, 0, [0]

    def call() -> None:
        nonlocal now, made, faulted
        now, made, faulted = now + 0.01, made + 1, faulted + 2**20 * (made < faulting)

    monkeypatch.setattr(clocks, "heap", SimpleNamespace(faulted=lambda: faulted, add_pages=spared.append))
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(clocks, "FIRST_WARM_UP", 0.01)
    monkeypatch.setattr(clocks, "LONGEST_WARM_UP", 0.6)
    assert clocks.first_warm_up(call, nothing) == pytest.approx(0.01)
    assert made == pytest.approx(calls, abs=1)
    assert spared[1:] == [4 * 2**20] * min(3, faulting)


def test_a_steady_heap_faults_no_pages() -> None:
    """In a worker of its own: the heap policy is for good."""
    code = (
        "import torch\n"
        "from suites.core.worker import prepare_process\n"
        "from suites.core.clocks import WallClock\n"
        "prepare_process({{'malloc': {policy!r}, 'threads': 1, 'tf32': 0}}, 'cpu')\n"
        "clock = WallClock(lambda: torch.ones(2**24), lambda: None)\n"
        # the least of several: the kernel may move pages of its own accord
        "print(min(clock.block(0.05).readings['page_faults'] for _ in range(5)))\n"
    )
    found = {}
    for policy in ("steady", "default"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(policy=policy)], capture_output=True, text=True, check=True
        )
        found[policy] = float(done.stdout)
    pages = 2**26 / mmap.PAGESIZE
    assert found["steady"] < 10
    # huge pages may stand for many small ones
    assert found["default"] > pages / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_spare_pages_are_there_when_an_allocation_needs_them() -> None:
    code = (
        "import torch\n"
        "from suites.core import heap\n"
        "heap.keep_pages()\n"
        "heap.add_pages({spare})\n"
        "before = heap.faulted()\n"
        "held = torch.ones(2**22)\n"  # 16 MiB
        "print(heap.faulted() - before)\n"
    )
    found = {}
    for spare in (2**20, 2**25):
        done = subprocess.run(
            [sys.executable, "-c", code.format(spare=spare)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found[spare] = int(done.stdout)
    assert found[2**25] < 2**20 < 2**23 < found[2**20]


needs_two_cores = pytest.mark.skipif(sys.platform != "linux" or len(affinity()) < 2, reason="needs Linux and two cores")


def cores_told(code: str) -> tuple[str, str]:
    """What a process of two threads on the first two cores tells of its threads' cores, and what bound ones would."""
    begin = (
        "import os, torch\n"
        "from pathlib import Path\n"
        "os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n"
        "from suites.core import multiply_add, worker\n"
        "def threads(): return set(map(int, os.listdir('/proc/self/task')))\n"
        "assert worker.prepare_process({'malloc': 'default', 'threads': 2, 'tf32': 0}, 'cpu')\n"
    )
    end = "print(*sorted(str(os.sched_getaffinity(thread)) for thread in told), sep=';')\n"
    command = [sys.executable, "-c", begin + code + end]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = affinity()[:2]
    return done.stdout.strip(), f"{{{first}}};{{{second}}}"


@needs_two_cores
def test_the_threads_that_compute_are_bound_to_a_core_each() -> None:
    told, bound = cores_told(
        "a = torch.ones(1024, 1024)\n"
        "def ticks(thread): return int(Path(f'/proc/self/task/{thread}/stat').read_text().split()[13])\n"
        "before = {thread: ticks(thread) for thread in threads()}\n"
        "while max(ticks(thread) - before[thread] for thread in before) < 40: a @ a\n"
        "told = [thread for thread in before if ticks(thread) - before[thread] > 10]\n"
    )
    assert told == bound


@needs_two_cores
def test_each_loop_of_the_roof_has_a_core_though_the_process_is_bound_to_one() -> None:
    told, bound = cores_told(
        "before = threads()\n"
        "call, _ = multiply_add.multiply_add(torch.device('cpu'), torch.float32)\n"
        "call()\n"
        "told = threads() - before\n"
    )
    assert told == bound


def test_threads_have_places_where_they_are_most_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROCESSORS", tuple(range(4)))
    monkeypatch.setattr(machine, "read", lambda path: "")
    monkeypatch.setattr(sys, "platform", "linux")
    assert [len(machine.places(count)) for count in (1, 2, 3, 4, 5)] == [0, 0, 3, 4, 0]


def test_processors_of_one_core_are_one_place_while_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read", lambda path: f"{int(path.parts[5][3:]) % 4},{int(path.parts[5][3:]) % 4 + 4}")
    assert machine._places(range(8), 4) == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
    assert machine._places(range(8), 5) == [{number} for number in range(8)]


def test_multiply_adds_are_as_many_as_stated() -> None:
    loop = multiply_add(torch.device("cpu"), torch.float32)
    assert loop is not None
    call, macs = loop
    assert macs == sum(call())
    assert macs % torch.get_num_threads() == 0


def test_roofs_state_the_work_of_one_call() -> None:
    device = Cpu()
    made, work = roof_clocks(device, "float32", [1000, 4096])
    assert work["copy:1000"] == 1000
    assert work["matmul"] == 1024**3
    assert set(made) == set(work) >= {"copy:1000", "copy:4096", "matmul", "fma"}
    assert all(min(clock.block(0.001).values) > 0 for clock in made.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_matrix_product_is_one(dtype: torch.dtype) -> None:
    call, macs = matmul(Cpu(), dtype)
    assert call().dtype == dtype
    assert macs == 2**30


def test_there_is_no_device_of_another_name() -> None:
    assert open_device("cpu").describe()["kind"] == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA device"):
            open_device("cuda:0")


def test_the_machine_is_described() -> None:
    found = describe_machine()
    assert found["cores"] >= 1
    assert found["memory"] > 2**28
    assert all(size > 0 for size in cpu_caches().values())


@pytest.mark.parametrize(("text", "size"), [("32K", 32768), ("36608K", 37486592), ("1M", 1048576), ("512", 512)])
def test_sizes_are_read_as_the_kernel_prints_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "numbers"), [("0", {0}), ("0,4", {0, 4}), ("0-2,8", {0, 1, 2, 8})])
def test_lists_are_read_as_the_kernel_prints_them(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


class TickingTime(FakeTime):
    """Every look at the clock takes a microsecond."""

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


@pytest.mark.parametrize("part", [0.01, 0.5])
def test_a_slowed_call_takes_that_part_longer(monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    ticking = TickingTime()
    monkeypatch.setattr(clocks, "time", ticking)
    monkeypatch.setattr(devices, "time", ticking)
    plain = ticking.call_of(0.002)
    slowed = Cpu().slowed(plain, part)
    values = WallClock(slowed, nothing).block(0.05).values
    assert values == pytest.approx([0.002 * (1 + part)] * len(values), rel=2e-3)


def test_a_slowed_call_returns_what_the_call_does() -> None:
    assert Cpu().slowed(lambda: 42, 0.1)() == 42
