"""The options that say what to measure, and what they ask for: shared by every command that measures."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ops import AXES, Axis
from suites import PROCESS_AXES, suites
from suites.core.cases import EXECUTORS, PRESETS, Selection, UsageError


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that say what to measure; lists are comma-separated, and options can be repeated."""
    what = parser.add_argument_group("what to measure (comma lists, repeatable)")
    what.add_argument("--suite", type=names, action="extend", metavar="NAMES", help="all, or some of: " + suite_help())
    what.add_argument("--preset", default="quick", metavar="NAME", help=preset_help())
    add_device(what)
    what.add_argument("--op", type=names, action="extend", metavar="NAMES", help="ops; see runner.py list ops")
    what.add_argument("--impl", type=names, action="extend", metavar="NAMES", help="impls; see runner.py list impls")
    what.add_argument("--op-file", action="append", default=[], metavar="FILE", help="measure the ops of this file too")
    axes = parser.add_argument_group("axes (comma lists, repeatable)")
    axes.add_argument(
        "--resolution", type=names, action="extend", metavar="SIZES", help="like 7,14,200x300 (rows x columns)"
    )
    for axis in (*AXES.values(), *PROCESS_AXES.values()):
        if axis.name not in ("height", "width"):
            option = "--" + axis.name.replace("_", "-")
            axes.add_argument(option, type=names, action="extend", metavar="LIST", help=f"{axis.help}: {axis.allowed}")
    axes.add_argument(
        "--axis", action="append", default=[], metavar="NAME=LIST", help="an axis that only some ops have"
    )
    how = parser.add_argument_group("how to measure")
    how.add_argument("--processes", metavar="N", help="fresh processes per timed case")
    how.add_argument("--seconds", metavar="S", help="ceiling of the measuring time of one case")
    how.add_argument(
        "--timeout", default="120", metavar="S", help="give a case up that does not answer for so long (120)"
    )
    how.add_argument("--seed", default="0", metavar="N", help="seed of inputs and of the order of blocks (0)")


def add_executor(parser: argparse.ArgumentParser) -> None:
    """The options that say where to measure."""
    where = parser.add_argument_group("where to measure (docs/fleet.md)")
    where.add_argument(
        "--executor", default="local", metavar="NAME", help="local: this machine (default); ray: a Ray cluster"
    )
    where.add_argument("--ray-address", metavar="HOST:PORT", help="of the cluster (the one that this machine is in)")
    where.add_argument(
        "--accelerator",
        type=names,
        action="extend",
        metavar="NAMES",
        help="Ray's accelerator types to measure on (all)",
    )


def with_executor(selection: Selection, options: argparse.Namespace) -> Selection:
    """The selection, measured where the options say.

    Raises:
        UsageError: if there is no such executor, or an option needs another.
    """
    one_of("--executor", options.executor, list(EXECUTORS))
    if options.executor == "local":
        for option, value in (("--ray-address", options.ray_address), ("--accelerator", options.accelerator)):
            if value is not None:
                raise UsageError(f"{option}: only with --executor ray")
    elif selection.device not in ("auto", "cpu", "cuda:0"):
        raise UsageError(f"--device: {selection.device!r} with --executor ray is auto, cpu or cuda: Ray picks the GPUs")
    return replace(
        selection,
        executor=options.executor,
        ray_address=options.ray_address,
        accelerators=options.accelerator,
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, cuda:N")


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def suite_help() -> str:
    return "; ".join(f"{suite.name}{'' if suite.default else ' (on request)'}" for suite in suites().values())


def preset_help() -> str:
    return "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())


def selection_of(options: argparse.Namespace) -> Selection:
    """What the options ask for.

    Raises:
        UsageError: if a value is not allowed.
    """
    preset = PRESETS[one_of("--preset", options.preset, list(PRESETS))]
    for file in options.op_file:
        if not Path(file).is_file():
            raise UsageError(f"--op-file: {file!r} is not a file")
    return Selection(
        suites=chosen_suites(options.suite),
        device=device_of(options),
        preset=options.preset,
        ops=options.op,
        impls=options.impl,
        axes=chosen_axes(options),
        processes=int(number("--processes", options.processes, Axis("", preset.processes, ""))),
        seconds=number("--seconds", options.seconds, Axis("", preset.seconds, "", minimum=0.01)),
        forced=options.impl is not None or options.seconds is not None,
        timeout=number("--timeout", options.timeout, Axis("", 120.0, "", minimum=1)),
        seed=int(number("--seed", options.seed, Axis("", 0, "", minimum=0))),
        op_files=[str(Path(file).resolve()) for file in options.op_file],
    )


def device_of(options: argparse.Namespace) -> str:
    """The device asked for: `auto`, or as torch names it.

    Raises:
        UsageError: if that is not a device's name.
    """
    name: str = options.device
    kind, _, index = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit()))):
        raise UsageError(f"--device: {name!r} is not one of auto, cpu, cuda, cuda:N")
    return "cuda:0" if name == "cuda" else name


def chosen_suites(asked: list[str] | None) -> list[str]:
    known = suites()
    if asked is None:
        return [suite.name for suite in known.values() if suite.default]
    for name in asked:
        one_of("--suite", name, ["all", *known])
    return [name for name in known if name in asked or "all" in asked]


def chosen_axes(options: argparse.Namespace) -> dict[str, list[object]]:
    chosen: dict[str, list[object]] = {}
    for axis in (*AXES.values(), *PROCESS_AXES.values()):
        asked = getattr(options, axis.name, None)
        if asked is not None:
            chosen[axis.name] = [number_or_name("--" + axis.name.replace("_", "-"), text, axis) for text in asked]
    if options.resolution is not None:
        chosen["size"] = [size(text) for text in options.resolution]
    for text in options.axis:
        name, equals, values = text.partition("=")
        if not equals or not names(values):
            raise UsageError(f"--axis: {text!r} is not NAME=LIST")
        if name in AXES or name in PROCESS_AXES:
            raise UsageError(f"--axis: {name!r} has an option of its own, --{name.replace('_', '-')}")
        chosen[name] = list(names(values))
    return chosen


def size(text: str) -> list[int]:
    """Rows and columns: `7` is 7 x 7."""
    rows, by, columns = text.partition("x")
    axis = AXES["height"]
    try:
        return [int(axis.parse(rows)), int(axis.parse(columns if by else rows))]
    except ValueError:
        raise UsageError(f"--resolution: {text!r} is not {axis.allowed}, or two of them like 200x300") from None


def one_of(option: str, value: str, allowed: list[str]) -> str:
    if value not in allowed:
        raise UsageError(f"{option}: {value!r} is not one of {', '.join(allowed)}")
    return value


def number_or_name(option: str, text: str, axis: Axis) -> object:
    try:
        return axis.parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def number(option: str, text: str | None, axis: Axis) -> float:
    value = axis.default if text is None else number_or_name(option, text, axis)
    assert isinstance(value, (int, float))
    return value
