"""What this machine can detect: comparisons whose truth is known, measured as real ones are.

A trial of the kind `ab` measures the present operators on both sides, the new side slowed by a real delay inside the
timed closure, or by none; one of the kind `compare` takes two separate runs of the same operators. What came of each
goes to a ledger (`reports.core.calibration`), so that trials add up over days.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ops import Axis
from reports import Record, Run
from reports.core.calibration import Trial
from reports.core.compare import compare
from reports.core.pairs import BASE, LOOKS, NEW
from reports.core.verdict_options import Asked, asked
from suites.core import ab
from suites.core.cases import Selection, UsageError, groups
from suites.core.options import names, number
from suites.core.plan import Plan, make_plan
from suites.core.revisions import Revision
from suites.core.schedule import Engine
from suites.core.session import Session

#: What is measured unless something else is named: the operator and its baseline, small and larger.
OPS, IMPLS, SIZES = ["dwconv", "ddf_op"], ["torch", "native"], [[14, 14], [56, 56]]
#: Delays tried, in percent.
DELAYS = "0,1,2,5,10"
KINDS = ("ab", "compare")
#: Processes of each of two separate runs, and the seconds of a case in one.
PROCESSES, SECONDS = 7, 2.0
#: A trial of pairs stops after so many seconds; undecided cases are then what they are.
LIMIT = 90.0


@dataclass(frozen=True)
class Request:
    """What `calibrate` was asked for.

    Args:
        delays: parts by which the new side is slowed.
        trials: of each delay, and of separate runs.
        kinds: of `KINDS`.
        comparison: how each trial of pairs is measured and judged.
    """

    delays: tuple[float, ...]
    trials: int
    kinds: tuple[str, ...]
    comparison: ab.Request

    @classmethod
    def of(cls, options: argparse.Namespace, selection: Selection) -> Request:
        """The request of a command line.

        Raises:
            UsageError: if a value is not allowed.
        """
        delays = tuple(_delay(text) for text in names(options.delay))
        kinds = tuple(options.kind or KINDS)
        for kind in kinds:
            if kind not in KINDS:
                raise UsageError(f"--kind: {kind!r} is not one of {', '.join(KINDS)}")
        chosen = replace(
            selection,
            suites=["latency"],
            ops=selection.ops or OPS,
            impls=selection.impls or (IMPLS if selection.ops is None else None),
            axes={"size": SIZES, **selection.axes},
        )
        looks = LOOKS if options.processes is None else (selection.processes,)
        wanted = ab.Wanted(chosen.ops, chosen.impls, [])
        limit = number("--limit", options.limit, Axis("", LIMIT, "", minimum=1))
        trials = int(number("--trials", options.trials, Axis("", 1, "")))
        return cls(delays, trials, kinds, ab.Request([], chosen, wanted, asked(options), looks, limit))

    @property
    def selection(self) -> Selection:
        return self.comparison.selection

    def schedule(self) -> list[tuple[str, float]]:
        """Kind and delay of every trial, in random order, so that a change of the machine's mood hits all alike."""
        one = [("ab", delay) for delay in self.delays if "ab" in self.kinds]
        one += [("compare", 0.0)] if "compare" in self.kinds else []
        return random.Random(self.selection.seed).sample(one * self.trials, len(one) * self.trials)


def _delay(text: str) -> float:
    return number("--delay", text, Axis("", 0.0, "", minimum=0)) / 100


@dataclass
class Calibration:
    """Takes trials.

    Args:
        tree: the folder whose operators are compared with themselves.
        revision: of the project, for the ledger.
        say: called with each step of a build.
    """

    request: Request
    tree: Path
    revision: str | None
    say: Callable[[str], None]

    def trial(self, kind: str, delay: float) -> Trial:
        """One trial, not yet in the ledger."""
        began = time.monotonic()
        trial = self._pairs(delay) if kind == "ab" else self._separate_runs()
        trial.seconds = round(time.monotonic() - began, 1)
        trial.time = datetime.now(UTC).isoformat(timespec="seconds")
        return trial

    def _pairs(self, delay: float) -> Trial:
        request, same = self.request.comparison, Revision("", "", self.tree)
        with Session(request.suites.values()) as session:
            base, new = ab.plan_sides((same, same), request, session)
            ab.build_sides((base, new), list(base.cases), session, self.say)
            new.slowdown = delay
            pairs = ab.Pairs(request.selection, session, (base, new), "calibrate", time.monotonic())
            matched = ab.Matched(measured=[case for case in base.cases if case in new.cases])
            comparison = ab.compare_sides(pairs, matched, request, keep_nothing)
        trial = self._empty("ab", delay, base.plan)
        trial.take(comparison)
        return trial

    def _separate_runs(self) -> Trial:
        runs = [self._run(name) for name in (BASE, NEW)]
        (_, base), (plan, new) = runs
        trial = self._empty("compare", 0.0, plan)
        trial.take(compare(base, new, self._asked.floor, self._asked.level))
        return trial

    def _run(self, name: str) -> tuple[Plan, Run]:
        selection = replace(self.request.selection, processes=PROCESSES, seconds=SECONDS)
        suites = self.request.comparison.suites
        with Session(suites.values()) as session:
            plan = make_plan(selection, suites, session.start(self.tree), self.say)
            while len(session.servers) < PROCESSES:
                session.start(self.tree)
            engine = Engine(selection, session.servers, plan, name, time.monotonic())
            records = [record for cases in groups(plan.cases) for record, _ in engine.measure(cases)]
        return plan, Run(Path(name), {"device": plan.device}, records)

    @property
    def _asked(self) -> Asked:
        return self.request.comparison.asked

    def _empty(self, kind: str, delay: float, plan: Plan) -> Trial:
        threads = plan.cases[0].process["threads"]
        return Trial(
            kind,
            str(plan.device["name"]),
            int(threads),
            delay,
            self._asked.level,
            self._asked.floor,
            revision=self.revision,
        )


def keep_nothing(records: Sequence[Record], forecast: float) -> None:
    """The samples of a trial are not kept: its ledger entry says what they came to."""
