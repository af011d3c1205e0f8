"""A page for GitHub, `github.md`: fit for a job's summary and for a comment on a pull request.

GitHub takes 1 MiB in a summary and 65,536 characters in a comment, so that long tables are cut and say so. Names chosen
by others stand in code spans: GitHub turns `@name` and `#1` into mentions and links anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from . import Run
from .core.arrange import Arrangement, device_names
from .core.markup import escape, plain
from .core.summary import answers, counts, failures, sentences
from .core.verdict_tables import HEADER, answer, cells, ordered
from .core.verdicts import SAME, Comparison, Verdict

NAME = "github"
ORDER = 49
ON_REQUEST = True
FILE = "github.md"

#: Characters of a page, a little below what a comment takes.
LIMIT = 60_000
_CODE = ("case", "metric", "why")
_CUT = "\nWhat does not fit here is in the run's other files.\n"


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    parts: list[str] = []
    for run, device in zip(runs, device_names(runs), strict=True):
        failed = failures(run)
        word = f"{len(failed)} failed" if failed else "All measured"
        parts.append(f"## ddfbench: {word}\n\n{span(device)}, {len(run.records)} cases: {counts(run)}.\n\n")
        parts += _table(("case", "status", "why"), ([r.case, r.status, r.reason] for r in failed))
        for found in answers(Arrangement([run])):
            lines = [[name, told] for name, told in sentences(found)]
            parts.append(f"### {escape(found.view.title)}\n\n{escape(found.where)}\n\n")
            parts += _table(("case", ""), lines)
    return {FILE: _within(parts)}


def serialize_comparison(comparison: Comparison) -> dict[str, str | bytes]:
    first, *further = answer(comparison)
    parts = [f"## ddfbench {escape(comparison.command)}: {escape(first)}\n\n"]
    parts += [f"{span(comparison.new)} against {span(comparison.base)}.\n\n"]
    parts += [f"{escape(line)}\n\n" for line in further[1:]]
    same = ordered(comparison.of(SAME))
    parts += _rows([v for v in ordered(comparison.verdicts) if v.verdict != SAME])
    notes = [f"- {escape(note)}\n" for note in comparison.notes]
    if same:
        parts += [f"<details><summary>{len(same)} same</summary>\n\n", *_rows(same), "</details>\n\n"]
    return {FILE: _within(parts + notes)}


def span(text: object) -> str:
    """Text as code, whatever is in it, in a line or a cell of a table."""
    flat = plain(text)
    if not flat:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", flat)), default=0) + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}".replace("|", "\\|")


def _rows(verdicts: Sequence[Verdict]) -> list[str]:
    return _table(HEADER, map(cells, verdicts))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table, empty columns left out; nothing if there are no rows."""
    content = [list(row) for row in rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in content)]
    if not kept:
        return []
    head = [f"| {' | '.join(header[i] for i in kept)} |\n", f"|{' --- |' * len(kept)}\n"]
    lines = [
        f"| {' | '.join(span(row[i]) if header[i] in _CODE else escape(row[i]) for i in kept)} |\n" for row in content
    ]
    return [*head, *lines, "\n"]


def _within(parts: Sequence[str]) -> str:
    """As many parts as fit, and a word where some do not."""
    text, opened = "", 0
    for part in parts:
        if len(text) + len(part) > LIMIT:
            return text + "\n</details>\n" * opened + _CUT
        text += part
        opened += part.startswith("<details>") - part.startswith("</details>")
    return text
