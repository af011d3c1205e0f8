"""Markdown that shows any text as what it is, whoever chose the name of an op."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
#: What may need escaping: most cells are numbers and pass by quickly.
_SUSPECT = re.compile(r"[\\`*\[\]|~$&<>_\n\r\t\v\f]")


def plain(text: object) -> str:
    """Text on one line without control characters, so that it cannot steer a terminal or break a file."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def short_names(cases: Iterable[str]) -> dict[str, str]:
    """Case ids without the parts that all of them have."""
    parts = {case: case.split(":") for case in cases}
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    return {case: ":".join(part for part in found if part not in common) or case for case, found in parts.items()}


def escape(text: object) -> str:
    """Text that stays text, in a line that begins with other words and in a cell of a table."""
    known = str(text)
    if known.isprintable() and not _SUSPECT.search(known):
        return known
    flat = plain(known).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", flat)


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """A table of plain texts; the last `numbers` columns are set to the right."""
    words = len(header) - numbers
    lines = [_line(map(escape, header)), _line(["---"] * words + ["---:"] * numbers)]
    return "\n".join([*lines, *(_line(map(escape, row)) for row in rows)]) + "\n"


def code(text: str) -> str:
    """A block of code, fenced so that nothing in it can end it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
