"""Writes runs in several formats at once, each in a process of its own: drawing takes as long as all the rest."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable
from pathlib import Path

from .. import Format, Run
from .records import RunError, within


def render(runs: list[Run], target: Path, formats: Iterable[Format]) -> None:
    """Renders runs into the folder `target`.

    Raises:
        RunError: if a format cannot be rendered or written; what is wrong has been printed.
    """
    fork = multiprocessing.get_context("fork")  # the records are handed over as they are in memory
    writers = {output.NAME: fork.Process(target=_write, args=(output, runs, target)) for output in formats}
    for writer in writers.values():
        writer.start()
    for writer in writers.values():
        writer.join()
    failed = [name for name, writer in writers.items() if writer.exitcode]
    if failed:
        raise RunError(f"{target}: {', '.join(failed)} could not be written; the records are intact")


def _write(output: Format, runs: list[Run], target: Path) -> None:
    try:
        for relative, content in output.serialize(runs).items():
            file = within(target, relative)  # names of suites and values of axes are in it
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    except (OSError, RunError) as error:
        sys.exit(f"{output.NAME}: {error}")
