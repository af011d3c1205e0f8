"""From what was asked for to the cases that are measured."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ops import AXES, Axis, AxisValue, Point
from reports import Json, Record
from suites import PROCESS_AXES, Case, Declaration, Suite, suites

#: The ops that the suites take when nobody names any, in the order of tables.
DEFAULT_OPS = ("conv", "dwconv", "dyfilter", "dyfilter_dw", "ddf_op", "ddf")

#: Where cases can be measured, see `suites.core.executors`.
EXECUTORS = ("local", "ray")


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
        executor: one of `EXECUTORS`.
        ray_address: of the cluster; None for the one that this machine is part of.
        accelerators: names of accelerator types, or None for whatever the cluster has.
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
    executor: str = "local"
    ray_address: str | None = None
    accelerators: list[str] | None = None

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
    selection: Selection, chosen: Iterable[Suite], declared: Mapping[str, Declaration], cores: int
) -> list[Case]:
    """All cases of a run, those of one group side by side, in the order they are to be measured.

    Raises:
        UsageError: if an op or impl is unknown, or nothing is left to measure.
    """
    pairs = [(suite, op) for suite in chosen for op in _chosen_ops(selection, suite, declared)]
    ops = list({op.name: op for _, op in pairs}.values())
    _check_impls(selection, ops)
    _check_values(selection, [axis for suite, op in pairs for axis in (*op.extra_axes, *suite.extra_axes)])
    cases = [case for suite, op in pairs for case in _op_cases(selection, suite, op, cores)]
    if not cases:
        asked, names = ", ".join(selection.impls or []), ", ".join(op.name for op in ops)
        raise UsageError(f"--impl: {asked} is an impl of none of the ops {names}")
    return [case for group in groups(cases) for case in group]


def groups(cases: Iterable[Case], alone: Container[str] = ()) -> list[list[Case]]:
    """Cases by group, in order of appearance.

    Args:
        alone: suites whose cases are measured one after the other, as nothing of theirs is timed.
    """
    found: dict[Any, list[Case]] = {}
    for case in cases:
        found.setdefault(case.id if case.suite in alone else case.group, []).append(case)
    return list(found.values())


def _chosen_ops(selection: Selection, suite: Suite, declared: Mapping[str, Declaration]) -> list[Declaration]:
    names = selection.ops
    if names is None:
        reserved = {name for other in suites().values() for name in other.ops} - set(DEFAULT_OPS)
        preset = PRESETS[selection.preset].ops or tuple(name for name in declared if name not in reserved)
        own = [op.name for op in declared.values() if op.file in selection.op_files]
        names = list(dict.fromkeys([*(name for name in suite.ops or preset if name in declared), *own]))
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
    if suite.impls:
        chosen = [impl for impl in chosen if impl in suite.impls]
    return chosen if suite.per_impl else chosen[:1]


def _check_values(selection: Selection, axes: list[Axis]) -> None:
    """Each value asked for of an axis that only some ops or suites have is to be allowed by one of them at least."""
    for name, texts in selection.axes.items():
        own = [axis for axis in axes if axis.name == name]
        for text in texts if own else []:
            if not any(_allowed(axis, text) for axis in own):
                choices = list(dict.fromkeys(choice for axis in own for choice in axis.choices))
                allowed = replace(own[0], choices=tuple(choices)).allowed
                raise UsageError(f"--axis {name}: {str(text)!r} is not {allowed}")


def _allowed(axis: Axis, text: Any) -> bool:
    try:
        axis.parse(str(text))
    except ValueError:
        return False
    return True


def _op_cases(selection: Selection, suite: Suite, op: Declaration, cores: int) -> list[Case]:
    """All cases of an op in a suite."""
    names = [
        name
        for name in (*AXES, *PROCESS_AXES)
        if name in suite.axes and name not in ("height", "width", "combine") and (name in op.axes or name not in AXES)
    ]
    if "height" in suite.axes:
        names.append("size")  # last, so that it varies fastest and tables read from small to large
    cases = []
    further = {axis.name for axis in (*op.extra_axes, *suite.extra_axes)}
    known = {*names, *further, *(("combine",) if op.combines else ())}
    for varied in suite.variations(selection.preset):
        if not known.issuperset(varied) or not selection.axes.keys().isdisjoint(varied):
            continue
        lists = {
            name: [varied[name]] if name in varied else _values(selection, suite, op, name, cores) for name in names
        }
        own_lists = _own_values(selection, suite, op, cores) | {
            name: [value] for name, value in varied.items() if name not in names
        }
        cases += [
            _case(selection, suite, op, impl, values, own, cores)
            for values in _grid(lists)
            for own in _grid(own_lists)
            for impl in _impls(selection, suite, op)
        ]
    return list({case.id: case for case in cases}.values())


def _grid(lists: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, by name."""
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _values(selection: Selection, suite: Suite, op: Declaration, name: str, cores: int) -> list[Any]:
    """Values of an axis that every op has: asked for, else the suite's own, else the op's, else the preset's."""
    if name not in selection.axes:
        own = suite.own_values.get(name)
        if own is not None:
            return list(own)
        if name == "size" and op.resolution is not None:
            return [op.resolution]
    return selection.values(name, cores)


def _own_values(selection: Selection, suite: Suite, op: Declaration, cores: int) -> dict[str, list[Any]]:
    """Values of the axes that only some ops have: `combine` and the op's own."""
    combine = {"combine": selection.values("combine", cores)} if op.combines and "combine" in suite.axes else {}
    further = (*op.extra_axes, *suite.extra_axes)
    return {**combine, **{axis.name: _values_of(selection, suite, axis) for axis in further}}


def _values_of(selection: Selection, suite: Suite, axis: Axis) -> list[AxisValue]:
    """Values of an op's own axis: of those asked for the ones that it allows, else the suite's, else the default."""
    if axis.name in selection.axes:
        return [axis.parse(str(text)) for text in selection.axes[axis.name] if _allowed(axis, text)]
    own = suite.own_values.get(axis.name, (axis.default,))
    return list(axis.choices if own is None else own)


def _case(
    selection: Selection,
    suite: Suite,
    op: Declaration,
    impl: str,
    shared: Mapping[str, Any],
    own: Mapping[str, AxisValue],
    cores: int,
) -> Case:
    height, width = shared.get("size", op.resolution or (1, 1))
    process = {
        name: shared.get(name, cores if name == "threads" else axis.default) for name, axis in PROCESS_AXES.items()
    }
    plain = {name: value for name, value in shared.items() if name in AXES}
    further = (*op.extra_axes, *suite.extra_axes)
    extra = {axis.name: own[axis.name] for axis in further}
    point = Point(height=height, width=width, combine=str(own.get("combine", "mul")), extra=extra, **plain)
    applying = [
        name
        for name in (*AXES, *PROCESS_AXES)
        if name in suite.axes and (name in op.axes or name not in AXES) and (name != "combine" or "combine" in own)
    ]
    defaults = {axis.name: axis.default for axis in (*PROCESS_AXES.values(), *op.extra_axes)} | {"threads": cores}
    device = suite.device or selection.device
    return Case(suite.name, op.name, impl, op.version, device, point, (*applying, *extra), process, defaults, op.file)


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
