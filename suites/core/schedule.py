"""Measuring a group: its cases side by side, each in a process of its own, in random blocks, in several replicates."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from reports import Block, Json, Metric, Record
from reports.core.intervals import by_process, interval, relative_half_width
from suites import Case, Suite
from suites.core.cases import Selection, record
from suites.core.plan import Plan
from suites.core.processes import Server, Worker, WorkerLost

#: Seconds of one block of calls.
BLOCK_SECONDS = 0.04
#: The interval of the median that is tight enough to stop, relative.
TIGHT = 0.01
#: At least so many rounds and samples a process, if the ceiling allows.
FEWEST_ROUNDS, FEWEST_SAMPLES = 5, 25
#: Twice the samples should narrow the interval to 0.7; where they leave more than this, noise has reached a plateau.
PLATEAU = 0.9
#: How often a block that was disturbed is taken again.
RETRIES = 2
#: The share of a block's time that its threads may wait for a core. Beyond it whole time slices are missing from every
#: call: 0.01 is usual on a quiet machine, 0.5 where another program shares the cores and medians hold, 1 where not.
MOST_WAIT = 0.75
#: Seconds that a roof is sampled in each process.
ROOF_SECONDS = 0.12


@dataclass
class Series:
    """The blocks of one clock in one process, and when it has enough of them.

    Args:
        ceiling: seconds it may take.
    """

    ceiling: float
    values: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    spent: float = 0.0

    def add(self, values: list[float], elapsed: float) -> None:
        self.values += values
        self.spent += elapsed
        self.widths.append(relative_half_width(self.values))

    def stop(self) -> str:
        """Why sampling stops here: `tight`, `plateau` or `ceiling`; empty if it goes on."""
        rounds = len(self.widths)
        if rounds >= FEWEST_ROUNDS and len(self.values) >= FEWEST_SAMPLES:
            if self.widths[-1] <= TIGHT:
                return "tight"
            if rounds >= 2 * FEWEST_ROUNDS and self.widths[-1] > PLATEAU * self.widths[rounds // 2 - 1]:
                return "plateau"
        return "ceiling" if self.spent >= self.ceiling else ""


@dataclass
class Outcome:
    """What became of a case, over its processes."""

    case: Case
    status: str = "ok"
    reason: str = ""
    metrics: list[Metric] = field(default_factory=list)
    settings: Json = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    stopped: dict[str, list[str]] = field(default_factory=dict)
    readings: dict[str, list[float]] = field(default_factory=dict)
    throttled: set[str] = field(default_factory=set)
    processes: int = 0

    def fail(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    def take(self, metric: str, answer: Json, process: int, number: int, when: float) -> bool:
        """Keeps one block's samples and readings; returns whether it was disturbed."""
        values = [float(f"{value:.6g}") for value in answer["values"]]
        readings = dict(answer["readings"])
        throttled = set(readings.pop("throttled", []))
        self.throttled |= throttled
        for name, value in readings.items():
            self.readings.setdefault(name, []).append(value)
        disturbed = bool(throttled) or readings.get("core_wait", 0.0) > MOST_WAIT
        self.blocks.append(Block(metric, process, number, round(when, 3), answer["calls"], values, disturbed))
        return disturbed


@dataclass
class Member:
    """One worker of a group and the clocks it still has to sample."""

    worker: Worker
    outcome: Outcome
    series: dict[str, Series]


class Roofs:
    """Samples of the roofs of one group: seconds by clock and process, and the work of one call."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.work: dict[str, float] = {}

    def rate(self, name: str) -> tuple[float, float, float] | None:
        """Work per second (value, low, high) of the roof `name`, or None if it was not measured."""
        if self.outcome is None:
            return None
        samples = by_process(self.outcome.blocks, name)
        if not samples:
            return None
        found = interval(samples)
        return self.work[name] / found.value, self.work[name] / found.high, self.work[name] / found.low


@dataclass
class Taker:
    """Has workers begin cases and take blocks; what goes wrong costs the outcome alone.

    Args:
        began: `time.monotonic()` of the run's begin.
    """

    selection: Selection
    began: float

    def begin(self, outcome: Outcome, worker: Worker, process: int, **more: object) -> list[str]:
        """Has the worker begin the case, its result checked in process 0; returns its clocks.

        Args:
            more: of the request, see `suites.core.worker`.
        """
        case, check = outcome.case.to_json(), process == 0
        request = {"do": "begin", "case": case, "seed": self.selection.seed, "check": check, **more}
        with self.guard(outcome, process):
            answer = worker.ask(request, self.selection.timeout)
            if not outcome.metrics:
                outcome.metrics = [Metric(**metric) for metric in answer.get("metrics", [])]
            outcome.settings |= answer.get("settings", {})
            if answer["status"] == "ok":
                outcome.processes += 1
                return list(answer["clocks"])
            outcome.fail(answer["status"], answer["reason"])
        return []

    def block(
        self, outcome: Outcome, worker: Worker, clock: str, process: int, number: int, seconds: float, retries: int
    ) -> list[float]:
        """One block of samples, taken again if it was disturbed; returns the samples that count."""
        request = {"do": "block", "clock": clock, "seconds": seconds}
        with self.guard(outcome, process):
            for attempt in range(retries + 1):
                start = time.monotonic()
                answer = worker.ask(request, self.selection.timeout)
                if answer["status"] != "ok":
                    outcome.fail(answer["status"], answer["reason"])
                    break
                disturbed = outcome.take(clock, answer, process, number, start - self.began)
                if not disturbed or attempt == retries:
                    return list(answer["values"])
        return []

    @contextmanager
    def guard(self, outcome: Outcome, process: int) -> Iterator[None]:
        """A lost worker costs its case, and no more."""
        try:
            yield
        except WorkerLost as lost:
            where = f" in process {process + 1}" if process else ""
            outcome.fail(lost.status, lost.reason + where)


@dataclass
class Engine:
    """Measures groups of cases.

    Args:
        servers: one per replicate.
        plan: the cases' closed forms, and how much memory there is.
        run: the run's id.
        began: `time.monotonic()` of the run's begin.
        folder: of the run, for files that suites leave there.
    """

    selection: Selection
    servers: list[Server]
    plan: Plan
    run: str
    began: float
    folder: str = ""

    @property
    def taker(self) -> Taker:
        return Taker(self.selection, self.began)

    def measure(self, cases: list[Case]) -> list[tuple[Record, float]]:
        """Measures the cases of one group; returns the record of each, and the seconds it was forecast to take."""
        open_cases = []
        measured = []
        for case in cases:
            settled = self.plan.settled(case, self.run)
            if settled is None:
                open_cases.append(case)
            else:
                measured.append((settled, 0.0))
        for wave in self._waves(open_cases):
            suite = self.plan.suites[wave[0].suite]
            outcomes = [Outcome(case) for case in wave]
            roofs = Roofs()
            for process in range(self.selection.processes if suite.timed else 1):
                self._replicate(suite, outcomes, roofs, process)
            for outcome in outcomes:
                measured.append((measured_record(outcome, self.run, roofs), self.plan.forecast(outcome.case)))
        return measured

    def _waves(self, cases: list[Case]) -> list[list[Case]]:
        """Splits a group that does not fit into memory at once."""
        waves: list[list[Case]] = []
        used = 0
        for case in cases:
            need = 2 * self.plan.need(case)
            if not waves or used + need > self.plan.free:
                waves.append([])
                used = 0
            waves[-1].append(case)
            used += need
        return waves

    def _replicate(self, suite: Suite, outcomes: list[Outcome], roofs: Roofs, process: int) -> None:
        """One fresh process per case: begin all, then blocks in random order until each clock has enough."""
        alive = [outcome for outcome in outcomes if outcome.status == "ok"]
        limits = self.plan.memory_limits([outcome.case for outcome in alive])
        order = random.Random(f"{self.selection.seed}/{process}/{[o.case.id for o in alive]}")
        with ExitStack() as stack:
            members: list[Member] = []
            for outcome in order.sample(alive, len(alive)):
                worker = self.servers[process].fork(limits[outcome.case.id])
                stack.callback(worker.close)
                member = self._begin(outcome, worker, process)
                if member is not None:
                    members.append(member)
            if suite.timed and suite.at_points and members:
                worker = self.servers[process].fork()
                stack.callback(worker.close)
                members += self._begin_roofs(roofs, worker, members, process)
            self._sample(members, order, process)

    def _begin(self, outcome: Outcome, worker: Worker, process: int) -> Member | None:
        clocks = self.taker.begin(outcome, worker, process, folder=self.folder)
        if outcome.status != "ok":
            return None
        ceiling = self.plan.suites[outcome.case.suite].ceiling * self.selection.seconds
        share = ceiling / self.selection.processes / max(1, len(clocks))
        return Member(worker, outcome, {clock: Series(share) for clock in clocks})

    def _begin_roofs(self, roofs: Roofs, worker: Worker, members: list[Member], process: int) -> list[Member]:
        case = members[0].outcome.case
        request = {
            "do": "roofs",
            "device": case.device,
            "dtype": case.point.dtype,
            "process": dict(case.process),
            "copies": sorted({self.plan.floor_bytes(member.outcome.case) for member in members} - {0}),
        }
        roofs.outcome = roofs.outcome or Outcome(case)
        try:
            answer = worker.ask(request, self.selection.timeout)
        except WorkerLost:
            return []  # the cases are measured all the same, and their records have no roof
        if answer["status"] != "ok":
            return []
        roofs.work = answer["work"]
        return [Member(worker, roofs.outcome, {clock: Series(ROOF_SECONDS) for clock in answer["work"]})]

    def _sample(self, members: list[Member], order: random.Random, process: int) -> None:
        """Rounds: one block of every clock that has not enough, in random order, one at a time on the device."""
        number = 0
        while any(member.series for member in members):
            turns = [(member, clock) for member in members for clock in member.series]
            for member, clock in order.sample(turns, len(turns)):
                if clock in member.series:  # the worker may have died in this round
                    self._block(member, clock, process, number)
            number += 1

    def _block(self, member: Member, clock: str, process: int, number: int) -> None:
        outcome, series = member.outcome, member.series[clock]
        start = time.monotonic()
        values = self.taker.block(outcome, member.worker, clock, process, number, BLOCK_SECONDS, RETRIES)
        if outcome.status != "ok":
            member.series.clear()
            return
        series.add(values, time.monotonic() - start)
        why = series.stop()
        if why:
            outcome.stopped.setdefault(clock, []).append(why)
            del member.series[clock]


def measured_record(outcome: Outcome, run: str, roofs: Roofs) -> Record:
    """The record of a case whose processes are done."""
    metrics = outcome.metrics + latencies(outcome) + readings(outcome)
    if outcome.status == "ok":
        metrics += roof_metrics(metrics, outcome.settings, roofs)
    settings = outcome.settings | {"malloc": outcome.case.process["malloc"]}
    if outcome.blocks:
        settings |= {"processes": outcome.processes, "stopped": outcome.stopped}
    if outcome.throttled:
        settings["throttled"] = sorted(outcome.throttled)
    return record(
        outcome.case,
        run,
        outcome.status,
        outcome.reason,
        metrics=metrics,
        samples=outcome.blocks,
        settings=settings,
    )


#: The clocks by metric, the one that papers mean first.
CLOCK_ORDER = ("latency_wall", "latency_device", "latency_cold", "latency_out", "latency_default_malloc")


def latencies(outcome: Outcome) -> list[Metric]:
    """Median and 95 % bounds of every clock."""
    names = list(dict.fromkeys(block.metric for block in outcome.blocks))
    found = []
    known = [name for name in CLOCK_ORDER if name in names]
    for name in dict.fromkeys([*known, *names]):
        estimate = interval(by_process(outcome.blocks, name))
        found.append(Metric(name, "s", estimate.value, estimate.low, estimate.high, better="less"))
    return found


READING_UNITS = {
    "page_faults": "1",
    "context_switches": "1",
    "core_wait": "1",
    "sm_clock": "Hz",
    "memory_clock": "Hz",
    "temperature": "degC",
    "power": "W",
    "mean_power": "W",
}


def readings(outcome: Outcome) -> list[Metric]:
    """Medians over the blocks of what was read beside the clock; low and high are the extremes."""
    return [
        Metric(
            name,
            READING_UNITS.get(name, "1"),
            statistics.median(v),
            min(v),
            max(v),
            "less" if name == "page_faults" else None,
        )
        for name, v in sorted(outcome.readings.items())
    ]


def roof_metrics(metrics: list[Metric], settings: Json, roofs: Roofs) -> list[Metric]:
    """The roofs of the same rounds, and the fraction of the binding one that was reached.

    The roof binds that takes longer: to copy the floor bytes, or to do the operations.
    """
    known = {metric.name: metric for metric in metrics}
    latency = known.get("latency_device") or known.get("latency_wall")
    if latency is None or latency.value is None:
        return []
    floor, operations = known["floor_bytes"].value or 0, known["operations"].value or 0
    found, times = [], {}
    for name, unit, rate, work in (
        ("roof_copy", "B/s", roofs.rate(f"copy:{floor:.0f}"), floor),
        ("roof_arithmetic", "MAC/s", roofs.rate(settings["roof"]), operations),
    ):
        if rate is not None:
            found.append(Metric(name, unit, *rate, better=None))
            times[name] = work / rate[0]
    if times:
        binding = max(times, key=lambda name: times[name])
        settings["roof"] = binding.removeprefix("roof_") + (
            f":{settings['roof']}" if binding == "roof_arithmetic" else ""
        )
        t = times[binding]
        low, high = t / (latency.high or latency.value), t / (latency.low or latency.value)
        found.append(Metric("roof_fraction", "1", t / latency.value, low, high, better="more"))
    return found
