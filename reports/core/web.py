"""Self-contained pages: the template of `reports/pages` with style, scripts and data inside, no request to anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import Json

PAGES = Path(__file__).resolve().parents[1] / "pages"


@dataclass
class Section:
    """A part of a page, in this order.

    Args:
        lead: what the points are about.
        points: sentences, each with the name that it begins with, which may be empty.
        text: paragraphs.
        figures: see `core.figures`.
        tables: see `core.page_data`; each with a title, which may be empty.
        facts: rows of words that stay as they are, the first one their header.
        commands: for a shell.
        links: text and address.
    """

    title: str
    lead: str = ""
    points: list[tuple[str, str]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    figures: list[Json] = field(default_factory=list)
    tables: list[tuple[str, Json]] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Answer:
    """What a page says first.

    Args:
        subject: of what, a device for one.
        sentences: the first one is the most important.
        warnings: what to know before believing them.
    """

    subject: str
    sentences: list[str]
    warnings: list[str] = field(default_factory=list)


def page(title: str, answers: Sequence[Answer], sections: Sequence[Section], cases: Sequence[Json] = ()) -> str:
    """Renders one page; whatever is put in stays text.

    Args:
        cases: see `core.page_data`; figures and tables speak of them by index.
    """
    data = {
        "cases": list(cases),
        "figures": [figure for section in sections for figure in section.figures],
        "tables": [table for section in sections for _, table in section.tables],
    }
    return _environment().get_template("page.html").render(title=title, answers=answers, sections=sections, data=data)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The filter `tojson` escapes <, >, & and ' for a script element; JSON has no NaN.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals["own_file"] = _own_file
    return environment


def _own_file(name: str) -> Markup:
    """A style or script of that folder, as it is."""
    return Markup((PAGES / name).read_text(encoding="utf-8"))
