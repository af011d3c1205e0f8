"""Before anything is measured: which cases there are, what each needs and takes, and which need not be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ops import AxisValue, Costs, op_files
from reports import Json, Metric, Record
from suites import PROCESS_AXES, Case, Declaration, Suite
from suites.core.cases import PRESETS, Selection, UsageError, expand, record
from suites.core.machine import available_memory, cores
from suites.core.processes import Server, WorkerLost

#: The part of the roofs that a call is guessed to reach, before anything is known of it.
GUESSED_EFFICIENCY = 0.5
#: Seconds that a worker takes besides its calls: fork, imports, inputs, warm-up.
OVERHEAD = 0.7
#: Calls of a case besides its samples, in each process, and once for the check.
WARM_CALLS, CHECK_CALLS = 4, 8
#: The part of the free host memory that workers may use.
USABLE = 0.8
#: Bytes besides its need that a worker may use however many there are, for libraries and threads.
LEAST = 512 << 20
#: Seconds of silence after which a worker that only reads or builds is given up.
ANSWER_TIMEOUT = 300.0


@dataclass(frozen=True)
class Broken:
    """An op file that cannot be read."""

    file: str
    status: str
    reason: str


@dataclass
class Plan:
    """The cases of a run, with closed forms and forecasts.

    Args:
        device: `run.json`'s description of the device.
        free: bytes that can be allocated on the device.
        rates: `copy` in B/s and `matmul` in MAC/s, a quick look for forecasts alone.
        costs: closed forms by case id, see `ops.Costs`.
        not_built: libraries that could not be built, and why; impls that need them are skipped.
    """

    selection: Selection
    suites: Mapping[str, Suite]
    device: Json
    software: Json
    free: int
    rates: Mapping[str, float]
    declared: Mapping[str, Declaration]
    broken: list[Broken]
    cases: list[Case]
    costs: Mapping[str, Json] = field(default_factory=dict)
    not_built: list[str] = field(default_factory=list)

    def need(self, case: Case) -> int:
        """Bytes that the case must hold at once, by formula; 0 if its op does not say."""
        return int(sum(self.costs.get(case.id, {}).get("memory", {}).values()))

    def floor_bytes(self, case: Case) -> int:
        """Bytes that the case must move, by formula; 0 if its op does not say."""
        return int(self.costs.get(case.id, {}).get("floor_bytes", 0))

    def call_forecast(self, case: Case) -> float:
        """Seconds of one call: its multiply-accumulates and its memory, written and read once, at half the roofs."""
        macs = sum(self.costs.get(case.id, {}).get("macs", {}).values())
        roof = macs / self.rates["matmul"] + 2 * self.need(case) / self.rates["copy"]
        return float(roof / GUESSED_EFFICIENCY)

    def forecast(self, case: Case) -> float:
        """Seconds that the case takes in the run, all processes together."""
        call = self.call_forecast(case)
        if not self.suites[case.suite].timed:
            return self.suites[case.suite].seconds(case) + WARM_CALLS * call
        processes = self.selection.processes
        sampling = max(self.suites[case.suite].ceiling * self.selection.seconds, processes * call)
        return processes * (OVERHEAD + WARM_CALLS * call) + CHECK_CALLS * call + sampling

    def total_forecast(self, cases: Iterable[Case]) -> float:
        """Seconds that these cases take together, those that need no measuring left out."""
        return sum(self.forecast(case) for case in cases if self.settled(case, "") is None)

    def memory_limits(self, cases: list[Case]) -> dict[str, int]:
        """Bytes of host memory that each of these workers may use, so that together they leave some free,
        if they are not too many for `LEAST`.

        0, no limit, on CUDA: its driver maps far more than it uses, and what is scarce is the device's memory.
        """
        if self.selection.kind != "cpu":
            return {case.id: 0 for case in cases}
        needs = {case.id: self.need(case) for case in cases}
        total = sum(needs.values())
        half = max(0, int(USABLE * available_memory()) - total) // 2  # shared alike, and by need
        alike = max(LEAST, half // max(1, len(cases)))
        return {name: need + alike + half * need // max(1, total) for name, need in needs.items()}

    def settled(self, case: Case, run: str) -> Record | None:
        """The record of a case that need not be measured, or None."""
        if not self.suites[case.suite].at_points:
            return None
        need, call = self.need(case), self.call_forecast(case)
        if need > self.free:
            reason = f"needs {need} B by formula, {self.free} B are free"
            return record(case, run, "does_not_fit", reason, metrics=self._by_formula(case))
        longest = PRESETS[self.selection.preset].longest_call
        if longest is not None and not self.selection.forced and call > longest:
            reason = f"one call is forecast to take {call:.1f} s, preset limit {longest:g} s; --seconds measures it"
            return record(case, run, "skipped", reason, metrics=self._by_formula(case))
        return None

    def _by_formula(self, case: Case) -> list[Metric]:
        """What is told of a case that is not measured: the bytes it would need, and what its suite can tell."""
        costs = Costs(**self.costs[case.id])
        needed = Metric("memory_needed", "B", self.need(case), better="less")
        return [needed, *self.suites[case.suite].by_formula(case.point, costs)]

    def broken_records(self, run: str) -> list[Record]:
        """A record in each suite for every op file that cannot be read."""
        kind = self.selection.kind
        return [
            Record(
                run,
                f"{suite}:{Path(b.file).stem}@{kind}",
                1,
                suite,
                Path(b.file).stem,
                "",
                kind,
                {},
                b.status,
                b.reason,
            )
            for b in self.broken
            for suite in self.suites
        ]


def make_plan(
    selection: Selection, suites: Mapping[str, Suite], server: Server, say: Callable[[str], None] | None = None
) -> Plan:
    """Reads the declarations, expands the axes and works out the closed forms, all in workers.

    Args:
        say: if given, the libraries that the cases need are built, and it is called with each step of it.

    Raises:
        UsageError: if the selection names what there is not, or the device cannot be opened.
    """
    device = _open_device(selection, server)
    selection.device = device["name"]
    declared, broken = declare(server, selection.op_files)
    _refuse_unknown_axes(selection, declared.values(), suites.values())
    cases = expand(selection, suites.values(), declared, cores())
    roofs = any(suite.timed for suite in suites.values())
    failed = []
    if say is not None:
        calling = [case for case in cases if suites[case.suite].builds_impls]
        failed = build_libraries(server, declared, calling, roofs, say) + prepare(server, suites.values(), say)
    return Plan(
        selection,
        suites,
        device["device"],
        device["software"],
        device["free"],
        device["rates"],
        declared,
        broken,
        cases,
        _costs(server, cases),
        failed,
    )


def declare(server: Server, further: Iterable[str]) -> tuple[dict[str, Declaration], list[Broken]]:
    """Reads every op file, each in a worker of its own.

    Raises:
        UsageError: if two files define the same op.
    """
    declared: dict[str, Declaration] = {}
    broken: list[Broken] = []
    for file in [*map(str, op_files(server.tree / "ops")), *further]:
        answer = _ask_once(server, {"do": "declare", "file": file})
        if answer["status"] != "ok":
            broken.append(Broken(file, answer["status"], f"{Path(file).name} cannot be read: {answer['reason']}"))
            continue
        for data in answer["ops"]:
            op = Declaration.from_json(data)
            if op.name in declared:
                raise UsageError(f"--op-file: {file} defines the op {op.name!r}, which {declared[op.name].file} has")
            declared[op.name] = op
    return declared, broken


def build_libraries(
    server: Server,
    declared: Mapping[str, Declaration],
    cases: Iterable[Case],
    roofs: bool,
    say: Callable[[str], None],
) -> list[str]:
    """Builds what the cases need, and the roofs if asked for, before anything is timed; tells what cannot be built."""
    named = (declared[case.op].libraries.get(case.impl, "").split(",") for case in cases)
    wanted = {name for names in named for name in names} - {""}
    if roofs:
        wanted.add("roofs")
    if not wanted:
        return []
    answer = _ask_once(server, {"do": "build", "libraries": sorted(wanted)}, say)
    failed: list[str] = answer["failed"] if answer["status"] == "ok" else [answer["reason"]]
    return failed


def prepare(server: Server, suites: Iterable[Suite], say: Callable[[str], None]) -> list[str]:
    """Has suites prepare what their cases need; tells what failed."""
    failed = []
    for suite in suites:
        if type(suite).prepare is not Suite.prepare:
            answer = _ask_once(server, {"do": "prepare", "suite": suite.name}, say)
            failed += [] if answer["status"] == "ok" else [f"{suite.name}: {answer['reason']}"]
    return failed


def _open_device(selection: Selection, server: Server) -> Json:
    process: dict[str, AxisValue] = {name: axis.default for name, axis in PROCESS_AXES.items()} | {"threads": cores()}
    answer = _ask_once(server, {"do": "device", "device": selection.device, "process": process})
    if answer["status"] != "ok":
        raise UsageError(f"--device: {answer['reason'].partition(': ')[2] or answer['reason']}")
    return answer


def _refuse_unknown_axes(selection: Selection, declared: Iterable[Declaration], suites: Iterable[Suite]) -> None:
    own = {axis for op in declared for axis in op.extra_axes} | {axis for suite in suites for axis in suite.extra_axes}
    for name in selection.axes:
        names = sorted({axis.name for axis in own})
        if not selection.is_shared_axis(name) and name not in names:
            raise UsageError(f"--axis: {name!r} is not one of {', '.join(names) or 'no further axes'}")


def _costs(server: Server, cases: list[Case]) -> dict[str, Json]:
    """Closed forms by case id; absent for an op that does not give them, which its own worker will tell."""
    by_op: dict[str, list[Case]] = {}
    for case in cases:
        by_op.setdefault(case.op, []).append(case)
    found: dict[str, Any] = {}
    for some in by_op.values():
        answer = _ask_once(server, {"do": "costs", "cases": [case.to_json() for case in some]})
        if answer["status"] == "ok":
            found |= {case.id: costs for case, costs in zip(some, answer["costs"], strict=True)}
    return found


def _ask_once(server: Server, request: Json, say: Callable[[str], None] | None = None) -> Json:
    worker = server.fork()
    try:
        return worker.ask(request, ANSWER_TIMEOUT, say)
    except WorkerLost as lost:
        return {"status": lost.status, "reason": lost.reason}
    finally:
        worker.close()
