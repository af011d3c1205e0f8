"""Baselines: committed numbers that have no noise, which every run is held against.

`<folder>/<suite>/nvcc-<version>.jsonl` has a case a line: its id, version and axes, and values of exact metrics.
Units, and which direction is worse, are the run's, so that the file holds nothing that the code knows.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from .. import Json, Metric, Record, Run
from .compare import compare, is_exact
from .records import RunError
from .verdicts import CHANGED, FLOOR, LEVEL, Comparison, Verdict

#: The setting that names the compiler, and so the file.
COMPILER = "nvcc"


def is_folder(path: Path) -> bool:
    """Whether these are baselines, and no run."""
    return path.is_dir() and not (path / "run.json").is_file() and any(path.glob(f"*/{COMPILER}-*.jsonl"))


def against(
    folder: Path, new: Run, level: float = LEVEL, floor: float = FLOOR, metrics: Collection[str] | None = None
) -> Comparison:
    """Holds a run against the baseline of its compiler, as far as the run was asked for its cases.

    An unknown compiler compares nothing, which the notes say.

    Raises:
        RunError: if a baseline is corrupt, or the run has no case that baselines are kept of.
    """
    found = Comparison("baseline", str(folder), str(new.path), level=level, floor=floor)
    for suite, version in sorted(compilers(new)):
        file = path_of(folder, suite, version)
        own = replace(new, records=[record for record in new.records if record.suite == suite])
        if not file.is_file():
            known = ", ".join(sorted(p.stem.partition("-")[2] for p in file.parent.glob(f"{COMPILER}-*.jsonl")))
            found.notes.append(
                f"Nothing of {suite} is compared: there is no baseline for {COMPILER} {version} (known: "
                f"{known or 'none'}); --update makes one."
            )
            continue
        base = _as_run(file, own)
        if base.records:
            found.verdicts += compare(base, own, floor, level, metrics).verdicts
        known_cases = {record.case for record in base.records}
        found.verdicts += [
            Verdict(record.case, "", "", CHANGED, reason="not in the baseline")
            for record in own.records
            if record.status == "ok" and record.case not in known_cases
        ]
    if found.of(CHANGED):
        found.notes.append(
            f"Whatever has changed is acknowledged by a commit of the new baseline: python runner.py compare {folder} "
            f"{new.path} --update."
        )
    return found


def update(folder: Path, run: Run) -> list[Path]:
    """Writes the run's numbers as the baselines of its compiler; cases that it was not asked for keep theirs.

    Raises:
        RunError: if a file cannot be written or read, or the run has no case that baselines are kept of.
    """
    written = []
    for suite, version in sorted(compilers(run)):
        file = path_of(folder, suite, version)
        own = [record for record in run.records if record.suite == suite and record.status == "ok"]
        lines = {line["case"]: line for line in map(_line, own)}
        old = _read(file) if file.is_file() else []
        lines |= {line["case"]: line for line in old if not _asked_for(line, run)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{json.dumps(line)}\n" for _, line in sorted(lines.items())))
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror}") from None
        written.append(file)
    return written


def compilers(run: Run) -> set[tuple[str, str]]:
    """Suites of a run whose numbers depend on a compiler alone, each with the compiler's version.

    Raises:
        RunError: if there are none.
    """
    found = {(r.suite, str(r.settings[COMPILER])) for r in run.records if r.status == "ok" and COMPILER in r.settings}
    if not found:
        raise RunError(f"{run.path}: no case of it has a baseline; python runner.py --suite resources measures some")
    return found


def path_of(folder: Path, suite: str, version: str) -> Path:
    return folder / suite / f"{COMPILER}-{version}.jsonl"


def _line(record: Record) -> Json:
    exact = {m.name: m.value for m in record.metrics if m.value is not None and is_exact(record, m)}
    return {"case": record.case, "case_version": record.case_version, **record.axes, "metrics": exact}


def _as_run(file: Path, new: Run) -> Run:
    """The baseline as a run like `new`, of the cases that `new` was asked for."""
    metrics = {m.name: m for record in new.records for m in record.metrics}
    fresh = {record.case: record for record in new.records}
    like = new.records[0]
    records = []
    for line in _read(file):
        if not _asked_for(line, new):
            continue
        told = [
            replace(metrics.get(name, Metric(name, "1", None)), value=value, low=None, high=None)
            for name, value in line["metrics"].items()
        ]
        record = replace(fresh.get(line["case"], like), case=line["case"], case_version=line["case_version"])
        records.append(replace(record, status="ok", reason="", metrics=told))
    return Run(file, new.environment, records)


def _asked_for(line: Json, run: Run) -> bool:
    """Whether the run was asked for the case, by the axes that its command line named."""
    selection = run.environment.get("selection") or {}
    axes = selection.get("axes") or {}
    return all(str(line[name]) in map(str, values) for name, values in axes.items() if name in line)


def _read(file: Path) -> list[Json]:
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            _ = line["case"], line["case_version"], line["metrics"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{file} is corrupt: not a baseline") from None
    return lines
