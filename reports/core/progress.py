"""Progress of a run: a bar with a forecast on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from .. import Record
from .units import quantity


class Identified(Protocol):
    @property
    def id(self) -> str: ...


#: A case; what one is, is the business of whoever measures.
Named = TypeVar("Named", bound=Identified)


class Progress:
    """Tells of each record as it is written.

    Args:
        cases: how many there will be.
        forecast: seconds that they are forecast to take together.
    """

    def __init__(self, cases: int, forecast: float):
        self._cases, self._forecast, self._foreseen = cases, forecast, 0.0
        self._count = 0
        self._began = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            # The case comes last and is cut, so that a narrow terminal has room for how far the run is.
            columns = (
                BarColumn(16),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TaskProgressColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
                TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), expand=True)
            self._task = self._bar.add_task("measuring", total=self._cases, left=duration(self._forecast) + " left")
            self._bar.start()
        else:
            print(f"{self._cases} cases, forecast {duration(self._forecast)}", file=sys.stderr, flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def following(self, groups: Iterable[list[Named]]) -> Iterator[list[Named]]:
        """Hands on groups of cases, and shows each while it is measured."""
        for group in groups:
            if self._bar is not None:
                more = f" and {len(group) - 1} beside it" if len(group) > 1 else ""
                self._bar.update(self._task, description=group[0].id + more)
            yield group

    def done(self, batch: list[tuple[Record, float]]) -> None:
        """Tells of records that were written together, each with the seconds it was forecast to take."""
        self._foreseen += sum(forecast for _, forecast in batch)
        left = duration(self.left()) + " left"
        for record, _ in batch:
            self._count += 1
            line = f"{record.case}  {outcome(record)}"
            if self._bar is None:
                print(f"[{self._count}/{self._cases}] {line}  ({left})", file=sys.stderr, flush=True)
            else:
                self._bar.console.print(line, highlight=False, markup=False)
                self._bar.update(self._task, completed=self._count, left=left)

    def left(self) -> float:
        """Seconds still to go: the forecast of what remains, corrected by how the forecast has held so far."""
        elapsed = time.monotonic() - self._began
        factor = elapsed / self._foreseen if self._foreseen else 1.0
        return max(0.0, self._forecast - self._foreseen) * factor


def outcome(record: Record) -> str:
    """What a record says, in a few words: its first estimate, or its status and reason."""
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    shown = next((m for m in record.metrics if m.low is not None), None) or next(iter(record.metrics), None)
    if shown is None or shown.value is None:
        return "ok"
    return f"{shown.name} {quantity(shown.name, shown.unit, shown.value)}"


def duration(seconds: float) -> str:
    """Minutes and seconds, like `2m05s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
