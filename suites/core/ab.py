"""Two revisions measured in one run: in fresh processes whose blocks alternate, so that drift hits both alike.

A pair is a server of each side's own and, for every case, a few processes of each, two at a time. Their blocks are
taken in quartets, base new new base or new base base new as chance has it. Pairs are what the test counts, see
`reports.core.pairs`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

from ops import Axis, AxisValue, Point
from reports import Json, Record
from reports.core.pairs import BASE, LOOKS, NEW, PAIR, SIDE, case_of, decided, judge_pairs
from reports.core.progress import duration
from reports.core.verdict_options import Asked, asked
from reports.core.verdicts import Comparison
from suites import Case, Declaration, Suite, suites
from suites.core.cases import Selection, UsageError
from suites.core.options import number
from suites.core.plan import Plan, build_libraries, make_plan
from suites.core.processes import Server, Worker
from suites.core.revisions import WORKING_TREE, Revision
from suites.core.schedule import Outcome, Roofs, Taker, measured_record
from suites.core.session import Session

#: Seconds of one block: short, so that both sides see the same drift.
BLOCK_SECONDS = 0.015
#: How often a block that something else disturbed is taken again: each is short, and a pair is worth little without.
RETRIES = 8
#: In a pair each side has so many processes of a case, one after the other: their pages lie differently, which moves a
#: call that fills the last-level cache by some percent for as long as the process lives.
FORKS = 3
#: Quartets of blocks of two processes.
QUARTETS = 2
#: What is measured beside the cases that differ where nothing else runs the same program on both sides.
PLACEBO = ("dwconv", "torch")
#: Seconds that starting a pair of servers takes, and beginning a case on one side, for forecasts alone.
SERVERS, BEGIN = 1.5, 0.1


@dataclass
class Side:
    """One revision, planned.

    Args:
        name: `BASE` or `NEW`.
        server: that planned it, and builds.
        slowdown: a real delay added to each timed call, as a part of its own time.
    """

    name: str
    revision: Revision
    plan: Plan
    server: Server
    slowdown: float = 0.0

    @cached_property
    def cases(self) -> dict[str, Case]:
        """By id, those that can be measured."""
        return {case.id: case for case in self.plan.cases if self.plan.settled(case, "") is None}

    def program(self, case: Case) -> Mapping[str, str]:
        """What decides what the case does: digests of its sources."""
        declared: Declaration = self.plan.declared[case.op]
        return self.revision.program(case.file, declared.libraries.get(case.impl, ""))


@dataclass
class Matched:
    """The cases of two sides, by id.

    Args:
        measured: in order.
        placebos: of these, the ones that run the same program on both sides.
        left_out: why a case is not measured, or cannot be compared.
        only: cases that only one side has, by side.
        threads: of the measuring processes.
    """

    measured: list[str] = field(default_factory=list)
    placebos: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    only: dict[str, list[str]] = field(default_factory=dict)
    threads: AxisValue = 0

    def to_json(self) -> Json:
        return {"placebos": self.placebos, "left_out": self.left_out, "only": self.only}


@dataclass(frozen=True)
class Wanted:
    """Which cases are asked for.

    Args:
        ops, impls: names, or None for all.
        patterns: case ids, parts of them, or patterns with `*`; none for all.
    """

    ops: list[str] | None
    impls: list[str] | None
    patterns: list[str]

    @property
    def named(self) -> bool:
        """Whether someone chose; if not, cases that cannot differ are left out."""
        return bool(self.ops or self.patterns)

    def fits(self, case: Case) -> bool:
        chosen = (self.ops is None or case.op in self.ops) and (self.impls is None or case.impl in self.impls)
        return chosen and (not self.patterns or any(fits(case.id, pattern) for pattern in self.patterns))

    def selection(self, selection: Selection) -> Selection:
        """What to plan: what is asked for, and the placebo beside it."""
        op, impl = PLACEBO
        ops = self.ops and list(dict.fromkeys([*self.ops, op]))
        return replace(selection, ops=ops, impls=self.impls and list(dict.fromkeys([*self.impls, impl])))


@dataclass(frozen=True)
class Request:
    """What `ab` was asked for.

    Args:
        revisions: base and new; empty for the default ones.
        selection: what to plan: what is wanted, and the placebo beside it.
        looks: after how many pairs to look; the last is how many there are at most.
        asked: when a case counts as faster or slower.
        limit: seconds after which no further pair begins; what is there then is looked at.
    """

    revisions: list[str]
    selection: Selection
    wanted: Wanted
    asked: Asked
    looks: tuple[int, ...] = LOOKS
    limit: float = math.inf

    @classmethod
    def of(cls, options: argparse.Namespace, selection: Selection) -> Request:
        """The request of a command line.

        Raises:
            UsageError: if a value is not allowed.
        """
        if len(options.rev) > 2:
            raise UsageError(f"REV: {' '.join(options.rev)!r} are {len(options.rev)} revisions, at most 2 are compared")
        chosen = ["latency"] if options.suite is None else selection.suites
        for name in chosen:
            if not suites()[name].timed:
                raise UsageError(f"--suite: {name!r} has no times to compare; its counts are compared by `compare`")
        wanted = Wanted(selection.ops, selection.impls, options.case or [])
        return cls(
            revisions=[*options.rev, WORKING_TREE][:2] if options.rev else [],
            selection=wanted.selection(replace(selection, suites=chosen)),
            wanted=wanted,
            asked=asked(options),
            looks=LOOKS if options.processes is None else (selection.processes,),
            limit=number("--limit", options.limit, Axis("", math.inf, "", minimum=1)),
        )

    @property
    def suites(self) -> dict[str, Suite]:
        """The chosen suites by name."""
        return {name: suite for name, suite in suites().items() if name in self.selection.suites}


def plan_sides(revisions: Sequence[Revision], request: Request, session: Session) -> tuple[Side, Side]:
    """Reads the declarations of both revisions, in workers that import theirs.

    Raises:
        UsageError: if an op file of a revision cannot be read, or it knows nothing of what is asked for.
    """
    servers = [session.start(revision.tree) for revision in revisions]  # both at once: each takes a second
    base, new = (
        Side(name, revision, _plan(revision, request, server), server)
        for name, revision, server in zip((BASE, NEW), revisions, servers, strict=True)
    )
    return base, new


def _plan(revision: Revision, request: Request, server: Server) -> Plan:
    try:
        plan = make_plan(replace(request.selection), request.suites, server)
    except UsageError as error:
        raise UsageError(f"{error} (in {revision.label})") from None
    if plan.broken:
        raise UsageError(f"revision: {revision.label}: {plan.broken[0].reason}")
    return plan


def build_sides(sides: tuple[Side, Side], cases: list[str], session: Session, say: Callable[[str], None]) -> None:
    """Builds what the cases need in both revisions, each once, and ends the servers that planned."""
    for side in sides:
        build_libraries(side.server, side.plan.declared, [side.cases[case] for case in cases], False, say)
        session.stop(side.server)


def fits(case: str, pattern: str) -> bool:
    """Whether a case id is meant by a part of it, or by a pattern with `*`."""
    return fnmatchcase(case, pattern) or pattern in case


def match(base: Side, new: Side, wanted: Wanted) -> Matched:
    """Which cases are measured: those that are wanted, and a placebo if none of them is one.

    Raises:
        UsageError: if a pattern fits no case.
    """
    for pattern in wanted.patterns:
        if not any(fits(case, pattern) for case in (*base.cases, *new.cases)):
            raise UsageError(f"--case: {pattern!r} fits none of the cases; `runner.py list cases` prints them")
    ids = {side.name: [case.id for case in side.cases.values() if wanted.fits(case)] for side in (base, new)}
    found = Matched(only={BASE: _missing(ids[BASE], new.cases), NEW: _missing(ids[NEW], base.cases)})
    same = []
    for case in (case for case in ids[BASE] if case in new.cases):
        before, after = base.cases[case], new.cases[case]
        if before.version != after.version:
            found.left_out[case] = f"case_version {before.version} against {after.version}: another meaning"
        elif same_program(base, new, case):
            same.append(case)
        else:
            found.measured.append(case)
    found.placebos = same if wanted.named and same else _placebos(base, new, found.measured)
    found.measured += found.placebos
    found.threads = next((base.cases[case].process["threads"] for case in found.measured), 0)
    return found


def same_program(base: Side, new: Side, case: str) -> bool:
    """Whether both sides do the same in a case, by the digests of all that decides it."""
    return case in new.cases and base.program(base.cases[case]) == new.program(new.cases[case])


def _placebos(base: Side, new: Side, measured: list[str]) -> list[str]:
    """One case that runs the same program on both sides, at a point of the measured ones; none if there is none."""
    points = [_shape(base.cases[case]) for case in measured]
    for case in base.cases.values():
        if (case.op, case.impl) == PLACEBO and _shape(case) in points and same_program(base, new, case.id):
            return [case.id]
    return []


def _shape(case: Case) -> Point:
    """The point without what only some ops have."""
    return replace(case.point, combine="", extra={})


def _missing(these: Iterable[str], there: Mapping[str, Case]) -> list[str]:
    return [case for case in these if case not in there]


def compare_sides(
    pairs: Pairs, matched: Matched, request: Request, keep: Callable[[list[Record], float], None], first: int = 0
) -> Comparison:
    """Measures pairs until each case is decided, looking at the planned looks alone, and returns what was found.

    Args:
        keep: called with the two records of each case as soon as they are there, and the seconds they were forecast
            to take.
        first: number of the first pair.
    """
    looks, cases, records = request.looks, list(matched.measured), list[Record]()
    asked = told(pairs.sides, matched, request)
    began = time.monotonic()
    for count in range(looks[-1]):
        for made in pairs.measure(cases, first + count):
            records += made
            keep(made, pair_forecast(pairs.sides, cases) / len(cases))
        cases = [case for case in cases if all(r.status == "ok" for r in records if case_of(r) == case)]
        next_end = (time.monotonic() - began) * (count + 2) / (count + 1)
        last = count + 1 == looks[-1] or not cases or next_end > request.limit
        if last or count + 1 in looks:
            comparison = judge_pairs(asked, records)
            if last or decided(comparison):
                break
    return comparison


def pair_forecast(sides: tuple[Side, Side], cases: Sequence[str]) -> float:
    """Seconds of one pair of these cases."""
    calls = [sides[0].plan.call_forecast(sides[0].cases[case]) for case in cases]
    blocks = 4 * QUARTETS
    return SERVERS + FORKS * sum(2 * (BEGIN + 4 * call) + blocks * (BLOCK_SECONDS + 2 * call) for call in calls)


def announcement(sides: tuple[Side, Side], matched: Matched, looks: Sequence[int]) -> str:
    """What is going to be measured, in one or two lines."""
    base, new = (side.revision.label for side in sides)
    if not matched.measured:
        return f"{base} and {new} run the same programs in all cases; --op or --case measures them all the same"
    pair = pair_forecast(sides, matched.measured)
    count = f"{looks[0]} to {looks[-1]}" if len(looks) > 1 else f"{looks[0]}"
    times = " to ".join(dict.fromkeys(duration(pair * look) for look in (looks[0], looks[-1])))
    placebos = f", {len(matched.placebos)} of them placebos" if matched.placebos else ", none of them a placebo"
    return f"{base} against {new}: {len(matched.measured)} cases{placebos}, {count} pairs of processes, {times}"


def main_clock(case: Case) -> str:
    """The metric that the case is compared by."""
    if case.process["malloc"] == "default":
        return "latency_default_malloc"
    return "latency_device" if case.kind == "cuda" else "latency_wall"


def told(sides: tuple[Side, Side], matched: Matched, request: Request) -> Json:
    """What `run.json` keeps of a comparison besides its environment: all that `reports.core.pairs` asks for."""
    names = {side.name: side.revision.label for side in sides}
    commits = {f"{side.name}_commit": side.revision.commit for side in sides}
    slowdowns = {f"{side.name}_slowdown": side.slowdown for side in sides if side.slowdown}
    asked = {"looks": len(request.looks), "level": request.asked.level, "floor": request.asked.floor}
    return {**names, **commits, **slowdowns, **asked, **matched.to_json()}


@dataclass
class Pairs:
    """Measures pairs.

    Args:
        sides: base and new.
        cases: ids, of cases that both have.
        run: the run's id.
        began: `time.monotonic()` of the run's begin.
        metrics: the clocks to take; None for the device's main one.
    """

    selection: Selection
    session: Session
    sides: tuple[Side, Side]
    run: str
    began: float
    metrics: list[str] | None = None

    def measure(self, cases: Sequence[str], number: int) -> Iterator[list[Record]]:
        """One pair of every case, in random order; yields the two records of each."""
        order = random.Random(f"{self.selection.seed}/{number}")
        servers: dict[str, Server] = {}
        for side in order.sample(self.sides, 2):
            servers[side.name] = self.session.start(side.revision.tree)
        try:
            for server in servers.values():
                _ = server.threads  # waits until it is ready: nothing else is to run beside a block
            for case in order.sample(cases, len(cases)):
                outcomes = {side.name: Outcome(side.cases[case]) for side in self.sides}
                for fork in range(FORKS):
                    self._fork(case, outcomes, number * FORKS + fork, servers, order)
                yield [self._record(outcome, number, name) for name, outcome in outcomes.items()]
        finally:
            for server in servers.values():
                self.session.stop(server)

    def _fork(
        self,
        case: str,
        outcomes: Mapping[str, Outcome],
        process: int,
        servers: Mapping[str, Server],
        order: random.Random,
    ) -> None:
        """One process of each side, and the quartets of their blocks."""
        taker = Taker(self.selection, self.began)
        workers: dict[str, Worker] = {}
        clocks: dict[str, list[str]] = {}
        with ExitStack() as stack:
            limits = self.sides[0].plan.memory_limits([side.cases[case] for side in self.sides])
            for side in order.sample(self.sides, 2):
                worker = workers[side.name] = servers[side.name].fork(limits[case])
                stack.callback(worker.close)
                more = {"clocks": self.metrics or [main_clock(side.cases[case])], "slowdown": side.slowdown}
                clocks[side.name] = taker.begin(outcomes[side.name], worker, process, **more)
            for clock, quartet in itertools.product(clocks[NEW], range(QUARTETS)):
                first, second = order.sample([BASE, NEW], 2)
                for name in (first, second, second, first):
                    if any(outcome.status != "ok" for outcome in outcomes.values()):
                        return
                    taker.block(outcomes[name], workers[name], clock, process, quartet, BLOCK_SECONDS, RETRIES)

    def _record(self, outcome: Outcome, number: int, side: str) -> Record:
        made = measured_record(outcome, self.run, Roofs())
        axes: dict[str, AxisValue] = {**made.axes, PAIR: number, SIDE: side}
        return replace(made, case=f"{made.case}:{PAIR}={number}:{SIDE}={side}", axes=axes)
