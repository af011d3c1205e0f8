"""What is told: records, and the formats they are rendered in.

This module is the vocabulary and the discovery; it imports neither torch nor ops nor suites, so that results are
rendered and compared on any laptop. Every other plain file in this folder is one output format, with a function
`serialize`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from .core.verdicts import Comparison

SCHEMA_VERSION = 1

#: Results: what was measured, or why it need not be.
RESULTS = ("ok", "skipped", "does_not_fit")
#: A run with one of these exits with 4.
FAILURES = ("oom", "timeout", "crashed", "failed")
STATUSES = RESULTS + FAILURES

Json = dict[str, Any]


@dataclass
class Metric:
    """One number of a record.

    Args:
        unit: SI base units (`s`, `B`, `B/s`, `W`, ...) or a count (`MAC`, `1`).
        value: None where there is none; `status` and `reason` then say why.
        low, high: 95 % bounds, where the value is an estimate.
        better: `less`, `more`, or None where neither is better.
        status, reason: only where they differ from the record's (an optional counter that is not installed).
    """

    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    better: str | None = None
    status: str | None = None
    reason: str | None = None

    def to_json(self) -> Json:
        return {key: value for key, value in asdict(self).items() if value is not None or key == "value"}


@dataclass
class Block:
    """The samples of one timed block.

    Args:
        process: replicate, counted from 0.
        round: the block's place among the blocks of its case in that process.
        time: seconds since the run began.
        calls: calls in each sample.
        values: seconds per call, one a sample.
        disturbed: whether something else slowed the whole block, and not what is measured: the device was throttled, or
            threads waited for a core. It was then taken again; all are kept.
    """

    metric: str
    process: int
    round: int
    time: float
    calls: int
    values: list[float]
    disturbed: bool = False


@dataclass
class Record:
    """A stored case.

    Args:
        case: the id, unique in a run.
        case_version: raised when the meaning of the op's case changes.
        device: the kind, `cpu` or `cuda`.
        axes: values by axis name; what does not apply to the op is absent. In JSON they stand among the other fields,
            and every field this version does not know is kept here.
        settings: how it was taken.
    """

    run: str
    case: str
    case_version: int
    suite: str
    op: str
    impl: str
    device: str
    axes: Mapping[str, Any]
    status: str
    reason: str = ""
    metrics: list[Metric] = field(default_factory=list)
    samples: list[Block] = field(default_factory=list)
    settings: Json = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def metric(self, name: str) -> Metric | None:
        """The metric of that name, or None."""
        return next((m for m in self.metrics if m.name == name), None)

    def to_json(self) -> Json:
        """One flat JSON object, the axes by name among its fields."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("axes", "metrics", "samples")}
        return {
            **plain,
            **self.axes,
            "metrics": [m.to_json() for m in self.metrics],
            "samples": [asdict(block) for block in self.samples],
        }

    @classmethod
    def from_json(cls, data: Json) -> Record:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: if a field that every record has is missing or is of another shape.
        """
        known = {f.name for f in fields(cls)} - {"axes"}
        plain = {key: value for key, value in data.items() if key in known}
        plain["metrics"] = [Metric(**metric) for metric in data["metrics"]]
        plain["samples"] = [Block(**block) for block in data["samples"]]
        return cls(axes={key: value for key, value in data.items() if key not in known}, **plain)


@dataclass
class Run:
    """One invocation.

    Args:
        path: its directory.
        environment: `run.json`.
        records: in the order they were taken.
    """

    path: Path
    environment: Json
    records: list[Record]

    def suites(self) -> list[str]:
        """Names of the suites that have records, in order of appearance."""
        return list(dict.fromkeys(record.suite for record in self.records))


class Format(Protocol):
    """An output format: a plain file of this folder.

    Args:
        NAME: as in `--format`.
        ORDER: formats are written in rising order, so that a page can show pictures written before it.
        ON_REQUEST: whether it is written only where `--format` names it; False where it is left out.

    A format that tells comparisons as well is a `ComparisonFormat` too.
    """

    NAME: str
    ORDER: int

    def serialize(self, runs: list[Run]) -> dict[str, str | bytes]:
        """Renders runs, from their records alone: contents by path relative to the run's directory."""


class ComparisonFormat(Protocol):
    """An output format that tells comparisons, where `--format` names it."""

    def serialize_comparison(self, comparison: Comparison) -> dict[str, str | bytes]:
        """Renders a comparison: contents by path relative to the folder asked for."""


def formats() -> dict[str, Format]:
    """The output formats by name, in the order they are to be written."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.name != "__init__.py")
    found = [cast(Format, importlib.import_module(f".{name}", __name__)) for name in names]
    return {f.NAME: f for f in sorted(found, key=lambda f: f.ORDER)}


def usual_formats() -> dict[str, Format]:
    """Those that are written where nobody names any."""
    return {name: found for name, found in formats().items() if not getattr(found, "ON_REQUEST", False)}


def comparison_formats() -> dict[str, ComparisonFormat]:
    """The formats that tell comparisons too, by name."""
    return {
        name: cast(ComparisonFormat, found)
        for name, found in formats().items()
        if hasattr(found, "serialize_comparison")
    }
