"""How it is measured: suites, and the cases they take.

This module is the vocabulary and the discovery; it imports no torch, so that the runner can share it. Every other
plain file in this folder is one suite: a subclass of `Suite` that names the axes it varies and, in a worker, begins a
case. The machinery (case expansion, processes, clocks, devices, checks) is in `core/`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ops import AXES, SETTING_AXES, SHAPE_AXES, Axis, AxisValue, Costs, Point
from reports import Json, Metric

if TYPE_CHECKING:
    from suites.core.bench import Bench
    from suites.core.clocks import Clock

#: Axes that concern the process which measures, not what the op computes. Threads 0 stands for every core.
PROCESS_AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("threads", 0, "CPU threads", minimum=1),
        Axis(
            "malloc",
            "steady",
            "heap policy: pages kept ready, or the C library's defaults",
            choices=("steady", "default"),
        ),
        Axis("tf32", 0, "whether float32 products may use TF32", choices=(0, 1)),
    )
}


@dataclass(frozen=True)
class Declaration:
    """What an op file declares about one op, read by a worker so that the runner imports no op file."""

    name: str
    title: str
    version: int
    file: str
    roof: str
    combines: bool
    extra_axes: tuple[Axis, ...]
    impls: tuple[str, ...]
    slow_impls: tuple[str, ...]
    #: Folders of csrc by impl, by commas, of those that are built.
    libraries: Mapping[str, str]
    axes: tuple[str, ...] = tuple(AXES)
    resolution: tuple[int, int] | None = None
    #: What an impl chooses from, by impl, a line each.
    kernels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Json) -> Declaration:
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        extra = tuple(Axis(**{**axis, "choices": tuple(axis["choices"])}) for axis in data["extra_axes"])
        return cls(**{**data, **lists, "extra_axes": extra})


@dataclass(frozen=True)
class Case:
    """One op x impl x point on the axes, in one suite, on one device.

    Args:
        device: as torch names it, `cpu` or `cuda:0`.
        axes: names of the axes that apply, the others being left out of the id and of the record.
        process: values of `PROCESS_AXES`.
        defaults: values of the further axes which the id leaves out.
        file: the op file.
    """

    suite: str
    op: str
    impl: str
    version: int
    device: str
    point: Point
    axes: tuple[str, ...]
    process: Mapping[str, AxisValue]
    defaults: Mapping[str, AxisValue]
    file: str

    @property
    def kind(self) -> str:
        """The kind of device, `cpu` or `cuda`."""
        return self.device.partition(":")[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Axis values by name, of the axes that apply."""
        everything = {**asdict(self.point), **self.point.extra, **self.process}
        return {name: everything[name] for name in self.axes}

    @cached_property
    def id(self) -> str:
        """The stable, readable name: unique in a run, the same in every run."""
        values = self.values
        letters = dict(zip(SHAPE_AXES, "nchwksd", strict=True))
        parts = [f"{self.suite}:{self.op}/{self.impl}@{self.kind}"]
        parts += [str(values[name]) for name in SETTING_AXES if name in values]
        parts += ["".join(f"{letters[name]}{values[name]}" for name in SHAPE_AXES if name in values)]
        parts += [str(values["combine"])] if "combine" in values else []
        further = sorted(set(values) - set(AXES))
        parts += [f"{name}={values[name]}" for name in further if values[name] != self.defaults.get(name)]
        return ":".join(part for part in parts if part)

    @property
    def group(self) -> tuple[Any, ...]:
        """Cases with the same group are compared with one another, and measured side by side."""
        shared = [getattr(self.point, name) for name in (*SHAPE_AXES, *SETTING_AXES)]
        return (self.suite, *shared, *self.process.values())

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Case:
        return cls(**{**data, "point": Point(**data["point"]), "axes": tuple(data["axes"])})


@dataclass
class Begun:
    """What a suite hands back when it has begun a case.

    Args:
        metrics: those known already (exact ones, and the result check).
        clocks: what the runner is to sample, by metric name; empty for a suite that times nothing.
        settings: how it was taken.
        failure: why the case is `failed`, if it is.
    """

    metrics: list[Metric] = field(default_factory=list)
    clocks: dict[str, Clock] = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    failure: str = ""


class Suite:
    """One way to measure cases.

    Subclasses set `name`, `help` and `axes`; `timed` suites are repeated in fresh processes and sampled in random
    blocks.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    #: Suites are taken in rising order.
    order: ClassVar[int] = 100
    #: Whether a run without `--suite` takes it.
    default: ClassVar[bool] = True
    #: Axes that matter to it, of `AXES` and `PROCESS_AXES`; an op's own axes always matter.
    axes: ClassVar[tuple[str, ...]] = (*AXES, *PROCESS_AXES)
    #: Ops that it takes where nobody names any, instead of the preset's, which leave them out.
    ops: ClassVar[tuple[str, ...]] = ()
    #: Values of axes that it takes where nobody asks for others, instead of the preset's; None: all that are allowed.
    own_values: ClassVar[Mapping[str, tuple[Any, ...] | None]] = {}
    #: Clocks that it does not sample.
    without: ClassVar[tuple[str, ...]] = ()
    #: Whether each impl is a case of its own; else the first impl stands for the op.
    per_impl: ClassVar[bool] = True
    timed: ClassVar[bool] = False
    #: Measuring time of one of its cases, as a part of `--seconds`.
    ceiling: ClassVar[float] = 1.0
    #: Impls that it takes alone, if not those that are asked for or all.
    impls: ClassVar[tuple[str, ...]] = ()
    #: The kind of device that it takes whatever is asked for; empty: what is asked for.
    device: ClassVar[str] = ""
    #: Axes that no other suite has.
    extra_axes: ClassVar[tuple[Axis, ...]] = ()
    #: Whether it calls impls, so that their libraries have to be built.
    builds_impls: ClassVar[bool] = True
    #: Modules that the fork server imports once for all workers.
    preload: ClassVar[tuple[str, ...]] = ()

    @property
    def at_points(self) -> bool:
        """Whether each of its cases calls the op at the case's own shape."""
        return "batch" in self.axes

    def prepare(self, say: Callable[[str], None]) -> None:
        """In a worker, before any case: builds what all of its cases need; `say` tells each step.

        Raises:
            Exception: if it cannot; the text is told, and its cases will say the same.
        """

    def variations(self, preset: str) -> Sequence[Mapping[str, Any]]:
        """The points that it takes, each by the axes in which it differs from the others' grid, with their values.

        An axis that is asked for is not varied; one that an op does not have is not varied for it.
        """
        return ({},)

    def seconds(self, case: Case) -> float:
        """What a case that is not timed takes besides a few calls, for the forecast of a run."""
        return 0.3

    def by_formula(self, point: Point, costs: Costs) -> list[Metric]:
        """What closed forms tell of a case; told too of a case that need not be measured."""
        return []

    def begin(self, bench: Bench) -> Begun:
        """In the case's worker: measures what is exact, and sets up what is to be sampled.

        Raises:
            ops.Skip: if the case cannot be served; its text is the reason.
        """
        raise NotImplementedError


def suites() -> dict[str, Suite]:
    """The suites by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name == "__init__.py":
            continue
        module = importlib.import_module(f".{path.stem}", __name__)
        for value in vars(module).values():
            declared = isinstance(value, type) and issubclass(value, Suite) and value.__module__ == module.__name__
            if declared and "name" in vars(value):
                found[value.name] = value()
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))
