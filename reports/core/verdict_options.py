"""The options of every command that ends in verdicts, and its end: what is printed and written, the exit code."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .records import RunError
from .verdict_tables import FORMATS, TERMINAL, known_formats, terminal, write
from .verdicts import FLOOR, LEVEL, Comparison

EXIT_CODES = """\
exit codes, the first that applies:
  1  a regression: a metric is slower, or an exact one changed for the worse
  2  what was asked for cannot be
  4  a case of BASE has no result in NEW, or failed there
  3  only with --strict: a metric is ambiguous or not comparable, or differs from a baseline
  0  none of these
"""


@dataclass(frozen=True)
class Asked:
    """What the options ask for.

    Args:
        floor: the smallest effect that is called one, relative.
        level: of the family-wise error.
        metrics: names, or None for all.
        formats: of `FORMATS`.
        output: where files go.
        everything: whether the terminal lists what is the same, however much it is.
    """

    floor: float
    level: float
    metrics: list[str] | None
    strict: bool
    formats: list[str]
    output: Path | None
    everything: bool

    def into(self, folder: Path) -> Asked:
        """The same, in the usual formats and those asked for, written to that folder."""
        return replace(self, formats=list(dict.fromkeys([*FORMATS, *self.formats])), output=folder)


def add_options(
    parser: argparse.ArgumentParser, output: str = "folder for comparison.md, .csv, .json and .html"
) -> None:
    """Adds the options that `asked` reads; `output` says what that option means to the command."""
    group = parser.add_argument_group("verdicts")
    group.add_argument("--floor", metavar="PERCENT", help=f"effects below are not called one ({100 * FLOOR:g})")
    group.add_argument(
        "--level", metavar="P", help=f"false alarms are raised in at most this part of comparisons ({LEVEL:g})"
    )
    group.add_argument(
        "--metric", action="append", metavar="NAMES", help="compare these alone (comma list, repeatable)"
    )
    group.add_argument("--strict", action="store_true", help="exit with 3 where not all could be decided")
    group.add_argument("--all", action="store_true", help="list on the terminal what is the same, too")
    group.add_argument(
        "--format",
        action="append",
        metavar="NAMES",
        help=f"of {', '.join(known_formats())} (terminal; with --output, the first {len(FORMATS)})",
    )
    group.add_argument("--output", metavar="DIR", help=output)


def asked(options: argparse.Namespace) -> Asked:
    """What the options ask for.

    Raises:
        RunError: if a value is not allowed, in one line that names the option, the value and what is allowed.
    """
    formats = listed(options.format) or list(FORMATS if options.output is not None else FORMATS[:1])
    known = known_formats()
    for name in formats:
        if name not in known:
            raise RunError(f"--format: {name!r} is not one of {', '.join(known)}")
        if name != TERMINAL and options.output is None:
            raise RunError(f"--output: a folder is needed for the format {name}")
    return Asked(
        floor=number("--floor", options.floor, 100 * FLOOR, "a number of at least 0", lambda x: x >= 0) / 100,
        level=number("--level", options.level, LEVEL, "a number between 0 and 1", lambda x: 0 < x < 1),
        metrics=listed(options.metric),
        strict=options.strict,
        formats=formats,
        output=None if options.output is None else Path(options.output),
        everything=options.all,
    )


def conclude(comparison: Comparison, asked: Asked) -> int:
    """Prints and writes a comparison, and returns its exit code.

    Raises:
        RunError: if a file cannot be written.
    """
    if asked.output is not None:
        write(comparison, asked.formats, asked.output)
    if TERMINAL in asked.formats:
        print(terminal(comparison, asked.everything))
    return comparison.exit_code(asked.strict)


def listed(lists: list[str] | None) -> list[str] | None:
    """The names of an option that takes comma lists and is repeatable; None where it was not given."""
    return None if lists is None else [part.strip() for text in lists for part in text.split(",") if part.strip()]


def number(option: str, text: str | None, default: float, allowed: str, fits: Callable[[float], bool]) -> float:
    """The number that an option has, or its default.

    Raises:
        RunError: if it is none that fits.
    """
    try:
        if text is None:
            return default
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise RunError(f"{option}: {text!r} is not {allowed}")
    return value
