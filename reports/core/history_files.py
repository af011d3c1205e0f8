"""The files of a history, by format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from .history import History
from .history_page import as_page
from .history_plot import draw
from .history_tables import as_csv, as_json, markdown
from .records import RunError, within

#: By format, the name of its file, and what is in it if it is to lie in a folder.
FILES: dict[str, tuple[str, Callable[[History, Path], str | bytes]]] = {
    "markdown": ("history.md", lambda history, _: markdown(history)),
    "html": ("history.html", as_page),
    "csv": ("history.csv", lambda history, _: as_csv(history)),
    "json": ("history.json", lambda history, _: as_json(history)),
    "svg": ("history.svg", lambda history, _: draw(history, "svg")),
    "png": ("history.png", lambda history, _: draw(history, "png")),
}
FORMATS = ("terminal", *FILES)


def write(history: History, formats: Iterable[str], target: Path) -> None:
    """Writes the files of the formats asked for into a folder.

    Raises:
        RunError: if they cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in formats:
            if name in FILES:
                file, render = FILES[name]
                content = render(history, target)
                within(target, file).write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error
