"""From what was asked for to the cases that are measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ops import AXES, Axis, AxisValue, Point
from reports import Json, Record
from suites import PROCESS_AXES, Case, Declaration, Suite

#: The ops that the suites take when nobody names any, in the order of tables.
DEFAULT_OPS = ("conv", "dwconv", "dyfilter", "dyfilter_dw", "ddf_op", "ddf")


class UsageError(Exception):
    """What was asked for cannot be; the text is one line that names the option, the value and what is allowed."""


@dataclass(frozen=True)
class Preset:
    """Defaults of a run.

    Args:
        batch: by kind of device.
        sizes: resolutions, rows x columns.
        processes: replicates of each timed case.
        seconds: ceiling of the measuring time of one case.
        slow_impls: whether impls with a slow first call take part without being named.
        longest_call: seconds; a case whose call is forecast to take longer is `skipped` unless asked for.
    """

    help: str
    batch: Mapping[str, int]
    sizes: tuple[tuple[int, int], ...]
    processes: int
    seconds: float
    slow_impls: bool = True
    longest_call: float | None = None
    ops: tuple[str, ...] | None = DEFAULT_OPS
    all_axes: bool = False


SQUARES = tuple((n, n) for n in (7, 14, 28, 56, 112, 224))

PRESETS: Mapping[str, Preset] = {
    # About a minute of it goes to `memory` (nothing timed) and `complexity` (one impl an op, half of `seconds` each).
    "quick": Preset(
        "a few minutes on two cores: resolutions 7 to 56, batch 1 (CPU) or 8 (CUDA)",
        {"cpu": 1, "cuda": 8},
        SQUARES[:4],
        processes=3,
        seconds=3.0,
        slow_impls=False,
        longest_call=2.0,
    ),
    "paper": Preset(
        "the shapes of the paper: batch 32, 256 channels, 7 to 224; hours on a CPU, meant for CUDA",
        {"cpu": 32, "cuda": 32},
        SQUARES,
        processes=5,
        seconds=20.0,
    ),
    "full": Preset(
        "every op, dtype, layout and direction, 7 to 224 and 200x300; meant for CUDA",
        {"cpu": 32, "cuda": 32},
        (*SQUARES, (200, 300)),
        processes=5,
        seconds=20.0,
        ops=None,
        all_axes=True,
    ),
}


@dataclass
class Selection:
    """What one run was asked for, complete: kept in `run.json`, so that `--resume` needs nothing else.

    Args:
        device: as torch names it.
        ops, impls: names, or None for the preset's.
        axes: values by axis name, for those asked for; `size` holds (rows, columns) pairs.
        processes: replicates of each timed case.
        seconds: ceiling of the measuring time of one case.
        forced: whether cases beyond the preset's longest call are measured all the same.
        timeout: seconds after which a case that does not answer is given up.
        op_files: further op files.
    """

    suites: list[str]
    device: str
    preset: str
    ops: list[str] | None
    impls: list[str] | None
    axes: dict[str, list[Any]]
    processes: int
    seconds: float
    forced: bool
    timeout: float
    seed: int
    op_files: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]

    def to_json(self) -> Json:
        return asdict(self)

    def is_shared_axis(self, name: str) -> bool:
        """Whether every op has the axis, as opposed to an op's own."""
        return name == "size" or name in AXES or name in PROCESS_AXES

    def values(self, name: str, cores: int) -> list[Any]:
        """The values of the axis `name`, those of the preset where nobody asked for others."""
        if name in self.axes:
            return self.axes[name]
        preset = PRESETS[self.preset]
        if name == "size":
            return list(preset.sizes)
        if name == "batch":
            return [preset.batch[self.kind]]
        if name == "threads":
            return [cores]
        axis = AXES.get(name) or PROCESS_AXES[name]
        return list(axis.choices) if preset.all_axes and name in AXES and axis.choices else [axis.default]


def expand(
    selection: Selection, suites: Iterable[Suite], declared: Mapping[str, Declaration], cores: int
) -> list[Case]:
    """All cases of a run, those of one group side by side, in the order they are to be measured.

    Raises:
        UsageError: if an op or impl is unknown, or nothing is left to measure.
    """
    ops = _chosen_ops(selection, declared)
    _check_impls(selection, ops)
    cases = [case for suite in suites for case in _suite_cases(selection, suite, ops, cores)]
    if not cases:
        asked, chosen = ", ".join(selection.impls or []), ", ".join(op.name for op in ops)
        raise UsageError(f"--impl: {asked} is an impl of none of the ops {chosen}")
    return cases


def groups(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases by group, in order of appearance."""
    found: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return list(found.values())


def _chosen_ops(selection: Selection, declared: Mapping[str, Declaration]) -> list[Declaration]:
    names = selection.ops
    if names is None:
        wanted = PRESETS[selection.preset].ops or tuple(declared)
        own = [op.name for op in declared.values() if op.file in selection.op_files]
        names = list(dict.fromkeys([*(name for name in wanted if name in declared), *own]))
    for name in names:
        if name not in declared:
            raise UsageError(f"--op: {name!r} is not one of {', '.join(sorted(declared))}")
    return [declared[name] for name in names]


def _check_impls(selection: Selection, ops: list[Declaration]) -> None:
    known = sorted({impl for op in ops for impl in op.impls})
    for name in selection.impls or []:
        if name not in known:
            raise UsageError(
                f"--impl: {name!r} is not one of {', '.join(known)} (ops {', '.join(op.name for op in ops)})"
            )


def _impls(selection: Selection, suite: Suite, op: Declaration) -> list[str]:
    if selection.impls is not None:
        chosen = [impl for impl in op.impls if impl in selection.impls]
    elif PRESETS[selection.preset].slow_impls:
        chosen = list(op.impls)
    else:
        chosen = [impl for impl in op.impls if impl not in op.slow_impls]
    return chosen if suite.per_impl else chosen[:1]


def _suite_cases(selection: Selection, suite: Suite, ops: list[Declaration], cores: int) -> list[Case]:
    names = [
        name for name in (*AXES, *PROCESS_AXES) if name in suite.axes and name not in ("height", "width", "combine")
    ]
    if "height" in suite.axes:
        names.append("size")  # last, so that it varies fastest and tables read from small to large
    grid = itertools.product(*(_values(selection, suite, name, cores) for name in names))
    points = [dict(zip(names, values, strict=True)) for values in grid]
    return [
        _case(selection, suite, op, impl, point, own, cores)
        for point in points
        for op in ops
        for own in _own_values(selection, suite, op, cores)
        for impl in _impls(selection, suite, op)
    ]


def _values(selection: Selection, suite: Suite, name: str, cores: int) -> list[Any]:
    """Values of an axis that every op has: asked for, else the suite's own, else the preset's."""
    if name in suite.own_values and name not in selection.axes:
        return list(suite.own_values[name])
    return selection.values(name, cores)


def _own_values(selection: Selection, suite: Suite, op: Declaration, cores: int) -> list[dict[str, AxisValue]]:
    """Values of the axes that only some ops have: `combine` and the op's own."""
    combine = {"combine": selection.values("combine", cores)} if op.combines and "combine" in suite.axes else {}
    own = {axis.name: _parsed(axis, selection.axes.get(axis.name, [axis.default])) for axis in op.extra_axes}
    varied = {**combine, **own}
    return [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]


def _parsed(axis: Axis, texts: list[Any]) -> list[AxisValue]:
    try:
        return [axis.parse(str(text)) for text in texts]
    except ValueError as error:
        raise UsageError(f"--axis {axis.name}: {error}") from None


def _case(
    selection: Selection,
    suite: Suite,
    op: Declaration,
    impl: str,
    shared: Mapping[str, Any],
    own: Mapping[str, AxisValue],
    cores: int,
) -> Case:
    height, width = shared.get("size", (1, 1))
    process = {
        name: shared.get(name, cores if name == "threads" else axis.default) for name, axis in PROCESS_AXES.items()
    }
    plain = {name: value for name, value in shared.items() if name in AXES}
    extra = {axis.name: own[axis.name] for axis in op.extra_axes}
    point = Point(height=height, width=width, combine=str(own.get("combine", "mul")), extra=extra, **plain)
    applying = [
        name for name in (*AXES, *PROCESS_AXES) if name in suite.axes and (name != "combine" or "combine" in own)
    ]
    defaults = {axis.name: axis.default for axis in (*PROCESS_AXES.values(), *op.extra_axes)} | {"threads": cores}
    return Case(
        suite.name, op.name, impl, op.version, selection.device, point, (*applying, *extra), process, defaults, op.file
    )


def record(case: Case, run: str, status: str, reason: str = "", **parts: Any) -> Record:
    """A record of that case."""
    return Record(
        run=run,
        case=case.id,
        case_version=case.version,
        suite=case.suite,
        op=case.op,
        impl=case.impl,
        device=case.kind,
        axes=case.values,
        status=status,
        reason=reason,
        **parts,
    )
