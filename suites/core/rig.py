"""One device made ready to measure: its fork servers, its plan, and the groups that it is given.

A run on this machine has one; a fleet has one in an actor on each device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from reports import Json, Record
from suites import Case, Suite
from suites.core.cases import Selection
from suites.core.environment import describe_node
from suites.core.plan import Plan, make_plan
from suites.core.schedule import Engine
from suites.core.session import Session

#: The records of one group, each with the seconds it was forecast to take.
Batch = list[tuple[Record, float]]


class Rig:
    """Plans and measures on one device.

    Args:
        selection: its `device` becomes the one that was opened.
        began: `time.time()` of the run's begin, from which the times of samples count.
    """

    def __init__(self, selection: Selection, suites: Mapping[str, Suite], began: float) -> None:
        self.selection = selection
        self.suites = suites
        self.session = Session(suites.values())
        self.folder = ""  # of the run, for files that suites leave there
        self._began = time.monotonic() - (time.time() - began)

    def plan(self, say: Callable[[str], None] | None) -> Plan:
        """Works out the cases, and builds what they need if `say` is given; see `make_plan`."""
        self._plan = make_plan(self.selection, self.suites, self.session.start(), say)
        return self._plan

    def environment(self) -> Json:
        """What is told of the node and its device in `run.json`."""
        return describe_node(self._plan)

    def measure(self, run: str, group: list[Case]) -> Batch:
        """Measures the cases of one group side by side.

        Raises:
            ServerLost: if a fork server ended.
        """
        timed = any(suite.timed for suite in self.suites.values())
        self.session.replicate(self.selection.processes if timed else 1)
        engine = Engine(self.selection, self.session.servers, self._plan, run, self._began, self.folder)
        return engine.measure(group)

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session.__exit__(kind, error, trace)
