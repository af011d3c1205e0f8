"""The stopping rule, the roofs, and what one lost worker costs, without any real measuring."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from test_cases import DECLARED, LATENCY, selection

from reports import Block, Metric
from suites.core.cases import expand
from suites.core.processes import WorkerLost
from suites.core.schedule import Engine, Outcome, Roofs, Series, roof_metrics

CASES = expand(selection(axes={"size": [[7, 7]]}), [LATENCY], DECLARED, cores=4)


def test_tight_samples_stop_early_but_not_before_the_floor() -> None:
    series = Series(ceiling=100.0)
    for number in range(10):
        assert not series.stop() or number >= 5
        if series.stop():
            break
        series.add([1.0, 1.0001, 0.9999, 1.0, 1.0], 0.04)
    assert series.stop() == "tight"
    assert len(series.widths) == 5


def test_noise_that_more_samples_do_not_narrow_is_a_plateau() -> None:
    """Rounds that disagree with one another: the interval stays as wide however long one goes on."""
    draw = random.Random(1)
    series = Series(ceiling=1e9)
    while not series.stop():
        level = draw.choice([1.0, 1.5])
        series.add([level * draw.uniform(0.99, 1.01) for _ in range(20)], 0.04)
        assert len(series.widths) < 500
    assert series.stop() == "plateau"


def test_the_ceiling_stops_a_slow_call_with_what_it_has() -> None:
    series = Series(ceiling=0.5)
    series.add([3.0], 3.0)
    assert series.stop() == "ceiling"
    assert series.values == [3.0]


class FakeWorker:
    """Answers like a worker; `late` counts the blocks after which it dies."""

    def __init__(self, seconds: float, late: int | None = None):
        self.seconds, self.late, self.blocks, self.closed = seconds, late, 0, False

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        if request["do"] == "begin":
            metrics = [
                {"name": "operations", "unit": "1", "value": 100},
                {"name": "floor_bytes", "unit": "B", "value": 8},
            ]
            return {"status": "ok", "metrics": metrics, "clocks": ["latency_wall"], "settings": {"roof": "fma"}}
        if request["do"] == "roofs":
            return {"status": "ok", "work": {"copy:8": 8, "matmul": 1000.0, "fma": 50.0}}
        self.blocks += 1
        if self.late is not None and self.blocks > self.late:
            raise WorkerLost("crashed", "killed by SIGSEGV")
        return {"status": "ok", "calls": 1, "values": [self.seconds] * 5, "readings": {"page_faults": 0.0}}

    def close(self) -> int:
        self.closed = True
        return 0


class FakePlan:
    """A plan in which everything is open and fits."""

    free = 1000
    suites: ClassVar = {"latency": LATENCY}

    def __init__(self, need: int = 0):
        self._need = need

    def need(self, case: Any) -> int:
        return self._need

    def floor_bytes(self, case: Any) -> int:
        return 8

    def forecast(self, case: Any) -> float:
        return 1.0

    def settled(self, case: Any, run: str) -> None:
        return None

    def memory_limits(self, cases: list[Any]) -> dict[str, int]:
        return {case.id: 0 for case in cases}


def engine(workers: list[FakeWorker], plan: FakePlan | None = None, processes: int = 2) -> Engine:
    supply = iter(workers)
    servers = [SimpleNamespace(fork=lambda limit=0: next(supply)) for _ in range(processes)]
    chosen = selection(processes=processes, axes={"size": [[7, 7]]})
    return Engine(chosen, servers, plan or FakePlan(), "run", 0.0)  # type: ignore[arg-type]


def test_every_process_gives_samples_and_every_worker_is_closed() -> None:
    workers = [FakeWorker(0.5) for _ in range(6)]
    records = [record for record, _ in engine(workers).measure(CASES)]
    assert [record.status for record in records] == ["ok", "ok"]
    assert {block.process for block in records[0].samples} == {0, 1}
    latency = records[0].metric("latency_wall")
    assert latency is not None
    assert (latency.value, latency.low, latency.high) == (0.5, 0.5, 0.5)
    assert records[0].settings["stopped"] == {"latency_wall": ["tight", "tight"]}
    assert all(worker.closed for worker in workers)


def test_a_worker_that_dies_costs_its_case_alone_and_keeps_its_samples() -> None:
    # in the first process both cases, then the roofs, get a worker; which case gets the bad one is drawn at random
    workers = [FakeWorker(0.5, late=2), *(FakeWorker(0.5) for _ in range(5))]
    records = [record for record, _ in engine(workers).measure(CASES)]
    assert sorted(record.status for record in records) == ["crashed", "ok"]
    lost = next(record for record in records if record.status == "crashed")
    assert lost.reason == "killed by SIGSEGV"
    assert len(lost.samples) == 2
    good = next(record for record in records if record.status == "ok")
    assert {block.process for block in good.samples} == {0, 1}


def test_a_group_that_does_not_fit_is_measured_in_waves() -> None:
    workers = [FakeWorker(0.5) for _ in range(8)]
    done = engine(workers, FakePlan(need=300))
    assert [record.status for record, _ in done.measure(CASES)] == ["ok", "ok"]
    assert [len(wave) for wave in done._waves(CASES)] == [1, 1]


def test_a_throttled_block_is_taken_again_and_flagged() -> None:
    class Hot(FakeWorker):
        def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
            answer = super().ask(request, timeout)
            if request["do"] == "block":
                answer["readings"]["throttled"] = ["HwSlowdown"]
            return answer

    workers = [Hot(0.5) for _ in range(3)]
    record = next(record for record, _ in engine(workers, processes=1).measure(CASES[:1]))
    assert record.settings["throttled"] == ["HwSlowdown"]
    rounds = [block.round for block in record.samples]
    assert rounds[:3] == [0, 0, 0]


def test_a_block_that_lost_its_cores_is_taken_again_and_marked() -> None:
    class Shared(FakeWorker):
        def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
            answer = super().ask(request, timeout)
            if request["do"] == "block":
                answer["readings"]["core_wait"] = 0.9 if self.blocks == 1 else 0.1
            return answer

    workers = [Shared(0.5) for _ in range(3)]
    record = next(record for record, _ in engine(workers, processes=1).measure(CASES[:1]))
    assert [(block.round, block.disturbed) for block in record.samples[:3]] == [(0, True), (0, False), (1, False)]


@pytest.mark.parametrize(("copy_seconds", "binding"), [(0.4, "copy"), (0.0001, "arithmetic:fma")])
def test_the_roof_that_takes_longer_binds(copy_seconds: float, binding: str) -> None:
    roofs = Roofs()
    roofs.work = {"copy:8": 8.0, "fma": 50.0}
    roofs.outcome = Outcome(CASES[0])
    for clock, seconds in (("copy:8", copy_seconds), ("fma", 0.1)):
        roofs.outcome.blocks += [
            Block(clock, p, r, 0.0, 1, [seconds] * 3) for p, r in itertools.product(range(2), range(3))
        ]
    metrics = [
        Metric("floor_bytes", "B", 8),
        Metric("operations", "1", 100),
        Metric("latency_wall", "s", 0.8, 0.4, 1.6),
    ]
    settings = {"roof": "fma"}
    found = {metric.name: metric for metric in roof_metrics(metrics, settings, roofs)}
    assert found["roof_copy"].value == pytest.approx(8 / copy_seconds)
    assert found["roof_arithmetic"].value == pytest.approx(500)
    # 100 operations at 500 a second take 0.2 s
    fraction, low, high = (0.5, 0.25, 1.0) if binding == "copy" else (0.25, 0.125, 0.5)
    assert found["roof_fraction"].value == pytest.approx(fraction)
    assert (found["roof_fraction"].low, found["roof_fraction"].high) == pytest.approx((low, high))
    assert settings["roof"] == binding
