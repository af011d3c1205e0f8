"""`runner.py history`: add runs to the index, show what it has, make it anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .history import History, look
from .history_files import FILES, FORMATS, write
from .history_index import Filter, Index
from .history_tables import terminal
from .records import ENVIRONMENT, INDEX, RunError
from .verdict_options import listed, number
from .verdicts import FLOOR, LEVEL

#: Where runs are, and the index beside them, unless --index says otherwise.
DEFAULT = Path("runs") / INDEX


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands with their options."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="add|show|rebuild")
    described = {
        "add": "add runs to the index, which is made where there is none",
        "show": "a metric over commits, and where it moved",
        "rebuild": "make the index anew from the runs it knows and those beside it",
    }
    add, show, rebuild = (
        commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False)
        for name, what in described.items()
    )
    add.add_argument("run", nargs="+", metavar="RUN", help="folders of runs")
    rebuild.add_argument("run", nargs="*", metavar="RUN", help="further folders of runs")
    for command in (add, show, rebuild):
        command.add_argument("--index", metavar="FILE", default=str(DEFAULT), help=f"the index ({DEFAULT})")
    for option, what in (
        ("--metric", "names (latency_device on a GPU, else latency_wall_over_dwconv: over depthwise convolution's)"),
        ("--case", "case ids, parts or patterns of them"),
        ("--suite", "names"),
        ("--op", "names"),
        ("--impl", "names"),
        ("--device", "names of devices, parts or patterns of them"),
    ):
        show.add_argument(option, action="append", metavar="NAMES", help=what)
    show.add_argument("--last", metavar="N", help="the last N commits of each case alone")
    show.add_argument("--floor", metavar="PERCENT", help=f"effects below are not called one ({100 * FLOOR:g})")
    show.add_argument("--level", metavar="P", help=f"of the error over all that is shown ({LEVEL:g})")
    show.add_argument("--format", action="append", metavar="NAMES", help=f"of {', '.join(FORMATS)}")
    show.add_argument("--output", metavar="DIR", help="folder for the files of the history, in all formats")


def carry_out(options: argparse.Namespace) -> bool:
    """Does what the options say, and tells whether all runs could be read.

    Raises:
        RunError: if it cannot be done.
    """
    command: Callable[[argparse.Namespace], bool] = {"add": _add, "show": _show, "rebuild": _rebuild}[options.what]
    return command(options)


def _add(options: argparse.Namespace) -> bool:
    with Index.open(Path(options.index), create=True) as index:
        for run in options.run:
            print(f"{run}: {'added' if index.add(Path(run)) else 'known already'}")
        print(_counted(index))
    return True


def _rebuild(options: argparse.Namespace) -> bool:
    path = Path(options.index)
    beside = sorted(found.parent for found in path.parent.glob(f"*/{ENVIRONMENT}") if not found.parent.is_symlink())
    with Index.open(path, create=True) as index:
        left_out = index.rebuild([*beside, *map(Path, options.run)])
        for reason in left_out.values():
            print(f"left out: {reason}", file=sys.stderr)
        print(_counted(index))
    return not left_out


def _counted(index: Index) -> str:
    runs, numbers = index.count()
    return f"{index.path}: {runs} runs, {numbers:,} numbers"


def _show(options: argparse.Namespace) -> bool:
    formats = listed(options.format) or list(FORMATS if options.output is not None else FORMATS[:1])
    for name in formats:
        if name not in FORMATS:
            raise RunError(f"--format: {name!r} is not one of {', '.join(FORMATS)}")
        if name in FILES and options.output is None:
            raise RunError(f"--output: a folder is needed for the format {name}")
    level = number("--level", options.level, LEVEL, "a number between 0 and 1", lambda x: 0 < x < 1)
    floor = number("--floor", options.floor, 100 * FLOOR, "a number above 0", lambda x: x > 0) / 100
    last = number("--last", options.last, 0, "a whole number of at least 1", lambda x: x >= 1 and x == int(x))
    wanted = Filter(
        metrics=listed(options.metric),
        cases=listed(options.case),
        suites=listed(options.suite),
        ops=listed(options.op),
        impls=listed(options.impl),
        devices=listed(options.device),
        last=int(last) or None,
    )
    with Index.open(Path(options.index)) as index:
        series = index.series(wanted)
        if not series:
            raise RunError(_nothing(index, wanted))
    history = look(options.index, series, level, floor)
    _tell(history, formats, options.output)
    return True


def _tell(history: History, formats: list[str], output: str | None) -> None:
    if output is not None:
        write(history, formats, Path(output))
    if "terminal" in formats:
        print(terminal(history))


def _nothing(index: Index, wanted: Filter) -> str:
    """Why there is nothing to show."""
    known = index.metrics()
    unknown = [name for name in wanted.metrics or () if name not in known]
    if unknown:
        return f"--metric: {unknown[0]!r} is not one of {', '.join(known)}"
    hint = "" if wanted.metrics else "; --metric names another metric: " + ", ".join(known)
    return f"{index.path}: nothing of its {index.count()[0]} runs fits{hint}"
