"""Where groups are measured: on this machine (`local`), or on the devices of a Ray cluster (`ray`).

This is the one interface through which a run starts its workers. What measures is a `suites.core.rig.Rig` in either
case: in this process, or in an actor on each device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from reports import Json
from suites import Case, Suite
from suites.core.cases import Selection, UsageError
from suites.core.plan import Plan
from suites.core.rig import Batch, Rig

Following = Callable[[Iterable[list[Case]]], Iterator[list[Case]]]

#: What workers print.
LOG = "workers.log"


@dataclass(frozen=True)
class Work:
    """What the devices of one model are to measure.

    Args:
        run: id of the run that the records belong to.
    """

    run: str
    groups: list[list[Case]]


class Executor(Protocol):
    """Measures the groups of a run; closing it, as a context, ends all that it has started."""

    def plan(self, say: Callable[[str], None] | None) -> dict[str, Plan]:
        """The plan for each model of device; what they need is built if `say` is given, which is told each step.

        Raises:
            UsageError: if what was asked for cannot be.
        """

    def devices(self, model: str) -> int:
        """How many devices of that model share the work."""

    def environment(self, model: str) -> Json:
        """What `run.json` tells of where a model is measured."""

    def nodes(self, model: str) -> dict[str, Json]:
        """What is known of the nodes by now, by name; empty where there is this machine alone."""

    def measure(self, work: Mapping[str, Work], following: Following) -> Iterator[tuple[str, Batch]]:
        """Measures each model's groups, one at a time on a device; yields model and records as soon as there are some.

        Args:
            following: what groups pass through, one by one, as they are taken up.

        Raises:
            ServerLost: if there is nothing left to measure on.
        """

    def keep_files(self, folder: Path) -> None:
        """Has what workers print written to that folder in the end, and what suites leave, where they can."""

    def __enter__(self) -> Executor: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Local:
    """This machine, one device of it."""

    def __init__(self, selection: Selection, suites: Mapping[str, Suite]) -> None:
        self._rig = Rig(selection, suites, time.time())

    def plan(self, say: Callable[[str], None] | None) -> dict[str, Plan]:
        return {"": self._rig.plan(say)}

    def devices(self, model: str) -> int:
        return 1

    def environment(self, model: str) -> Json:
        return self._rig.environment()

    def nodes(self, model: str) -> dict[str, Json]:
        return {}

    def measure(self, work: Mapping[str, Work], following: Following) -> Iterator[tuple[str, Batch]]:
        for model, own in work.items():
            for group in following(own.groups):
                yield model, self._rig.measure(own.run, group)

    def keep_files(self, folder: Path) -> None:
        self._rig.session.log = folder / LOG
        self._rig.folder = str(folder.resolve())

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rig.__exit__(kind, error, trace)


def executor(selection: Selection, suites: Mapping[str, Suite]) -> Executor:
    """The executor that was asked for.

    Raises:
        UsageError: if it needs a package that is not installed.
    """
    if selection.executor == "local":
        return Local(selection, suites)
    try:
        import ray  # noqa: F401 (only whether it is there)
    except ImportError:
        raise UsageError("--executor: 'ray' needs the package ray, pip install 'ray>=2.40' (docs/fleet.md)") from None
    from suites.core.fleet import Fleet

    return Fleet(selection, suites)
