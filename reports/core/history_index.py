"""The index of a history: which metric had which value in which run, in one SQLite file.

Runs are the truth and the index is made from them: it can be thrown away and made anew. A run is known by the digest of
its files, and enters in one transaction, so that writers that run at once lose nothing and one that is killed leaves
nothing half-written. What is kept is a number per metric and case, and no samples.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from .. import Json, Metric, Record, Run
from .arrange import PLACE_AXES, number
from .compare import MACHINE, SETTINGS, SOFTWARE, is_exact
from .history import Point, Series
from .pairs import time_of
from .records import ENVIRONMENT, RECORDS, RunError, load_run, within
from .tables import metric_status

#: Raised with the tables, and with what their numbers mean: 2 takes ratios of fastest processes, no longer of medians.
VERSION = 2
#: Marks the file as an index: "ddfb".
APPLICATION = 0x64646662
#: Seconds to wait for other writers.
PATIENCE = 60.0

#: Times are kept as multiples of this op's too, in the same run, which takes out what moves all cases of a run alike:
#: by the first of these impls that is there. It is not our code, so that it stays the same when ours changes.
BASELINE = "dwconv"
BASELINE_IMPLS = ("torch", "cudnn", "aten")

#: Told where it differs between the runs before and after a change, as is `SOFTWARE` and `MACHINE`.
DRIVER = ("driver",)

_SCHEMA = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, identity TEXT NOT NULL UNIQUE, path TEXT NOT NULL,
    started TEXT NOT NULL, revision TEXT NOT NULL, dirty INTEGER NOT NULL, subject TEXT NOT NULL,
    committed INTEGER NOT NULL, ancestors INTEGER NOT NULL, kind TEXT NOT NULL, device TEXT NOT NULL,
    surroundings TEXT NOT NULL, records INTEGER NOT NULL
);
CREATE TABLE cases (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, settings TEXT NOT NULL,
    suite TEXT NOT NULL, op TEXT NOT NULL, impl TEXT NOT NULL, UNIQUE (name, version, settings)
);
CREATE TABLE numbers (
    metric TEXT NOT NULL, caseid INTEGER NOT NULL REFERENCES cases,
    runid INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    unit TEXT NOT NULL, value REAL NOT NULL, low REAL, high REAL, exact INTEGER NOT NULL,
    PRIMARY KEY (metric, caseid, runid)
) WITHOUT ROWID;
CREATE INDEX of_run ON numbers (runid);
"""


class Number(NamedTuple):
    """One metric of one case in a run; see `Metric`."""

    record: Record
    metric: str
    unit: str
    value: float
    low: float | None
    high: float | None
    exact: bool


@dataclass(frozen=True)
class Filter:
    """What to show; None is everything. `cases` are parts of case ids, or patterns with `*`.

    Args:
        metrics: names; None for the default of the device, see `default_metric`.
        last: so many commits of each series.
    """

    metrics: Sequence[str] | None = None
    cases: Sequence[str] | None = None
    suites: Sequence[str] | None = None
    ops: Sequence[str] | None = None
    impls: Sequence[str] | None = None
    devices: Sequence[str] | None = None
    last: int | None = None


def default_metric(kind: str) -> str:
    """On a CPU the time over the baseline's in the same run, since runs drift; on a GPU the device's clock."""
    return "latency_device" if kind == "cuda" else f"latency_wall_over_{BASELINE}"


class Index:
    """An index, open. Closes when left.

    Args:
        path: its file.

    Raises:
        RunError: of every method too: if it is no index, a newer version's or corrupt, in one line; it is then left as
            it was.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, create: bool = False) -> Index:
        """Opens an index, or makes it where there is none."""
        if not path.exists():
            if not create:
                raise RunError(f"no such index: {path}; `runner.py history add RUN` makes it")
            _create(path)
        _check_header(path)
        with _told(path):
            connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
        return cls(path, connection)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, path: Path) -> bool:
        """Adds a run, and tells whether it was new.

        A run that has grown since, by --resume, takes the place of what it was.
        """
        run, digest = _load(path)
        with self._transaction() as connection:
            return self._insert(connection, run, digest)

    def rebuild(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Makes the index anew from the runs it knows and those given, in one transaction.

        Returns:
            Runs that are left out, since they are gone or cannot be read, and why.
        """
        left_out: dict[Path, str] = {}
        with self._transaction() as connection:
            known = [self.path.parent / row["path"] for row in connection.execute("SELECT path FROM runs ORDER BY id")]
            for table in ("numbers", "runs", "cases"):
                connection.execute(f"DELETE FROM {table}")
            for path in dict.fromkeys(path.resolve() for path in (*known, *paths)):
                try:
                    run, digest = _load(path)
                except RunError as error:
                    left_out[path] = str(error)
                else:
                    self._insert(connection, run, digest)
        return left_out

    def count(self) -> tuple[int, int]:
        """Runs and numbers in it."""
        query = "SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM numbers) AS numbers"
        (row,) = self._select(query)
        return row["runs"], row["numbers"]

    def metrics(self) -> list[str]:
        """The names there are."""
        return [row["metric"] for row in self._select("SELECT DISTINCT metric FROM numbers ORDER BY metric")]

    def series(self, wanted: Filter) -> list[Series]:
        """The series that fit, their points in the order of the commits."""
        runs = {row["id"]: row for row in self._select("SELECT * FROM runs")}
        cases = {row["id"]: row for row in self._select("SELECT * FROM cases")}
        members: dict[tuple[Any, ...], list[sqlite3.Row]] = {}
        for row in self._select(*_query(wanted)):
            run = runs[row["runid"]]
            if wanted.metrics is not None or row["metric"] == default_metric(run["kind"]):
                key = (run["device"], run["kind"], row["caseid"], row["metric"], row["unit"], bool(row["exact"]))
                members.setdefault(key, []).append(row)
        found = [_series(key, rows, runs, cases, wanted.last) for key, rows in members.items()]
        return sorted(found, key=lambda s: (s.device, s.case, s.version, s.metric, json.dumps(s.settings)))

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with _told(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes; nothing of it is kept if anything in it fails."""
        connection = self._connection
        with _told(self.path):
            (fault,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise sqlite3.DatabaseError(fault)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _insert(self, connection: sqlite3.Connection, run: Run, digest: str) -> bool:
        """Stores a run, within a transaction."""
        known = connection.execute("SELECT id FROM runs WHERE digest = ?", (digest,)).fetchone()
        where = _text(os.path.relpath(run.path.resolve(), self.path.parent.resolve()))
        if known:
            connection.execute("UPDATE runs SET path = ? WHERE id = ?", (where, known["id"]))
            return False
        identity = _identity(run.environment)
        earlier = connection.execute("SELECT id, records FROM runs WHERE identity = ?", (identity,)).fetchone()
        if earlier and earlier["records"] > len(run.records):
            return False  # an earlier state of a run that is there
        connection.execute("DELETE FROM runs WHERE identity = ?", (identity,))
        row = (digest, identity, where, *_described(run.environment), len(run.records))
        marks = ", ".join("?" * len(row))
        runid = connection.execute(f"INSERT INTO runs VALUES (NULL, {marks})", row).lastrowid
        connection.executemany(
            "INSERT OR REPLACE INTO numbers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((n.metric, _caseid(connection, n.record), runid, *n[2:]) for n in numbers(run)),
        )
        return True


# What enters


def numbers(run: Run) -> Iterator[Number]:
    """What an index keeps of a run: the value of each metric, and times as multiples of the baseline's, too."""
    baselines = _baselines(run.records)
    for record in run.records:
        for metric in _measured(record):
            name, bounds = _text(metric.name), (_finite(metric.low), _finite(metric.high))
            value = float(number(metric))
            yield Number(record, name, _text(metric.unit), value, *bounds, is_exact(record, metric))
            base = baselines.get((_place(record), metric.name))
            if base is not None and record.op != BASELINE and metric.unit == "s":
                ratio = _ratio(record, base, metric.name)
                if ratio is not None:
                    yield Number(record, f"{name}_over_{BASELINE}", "1", ratio, None, None, False)


def _ratio(record: Record, base: Record, metric: str) -> float | None:
    """Of the times of two cases of a run, each that of its fastest process, as `ab` takes it and for its reasons.

    Medians, where no samples are kept; None where the baseline has no time.
    """
    ours, theirs = ([block for block in r.samples if block.metric == metric and block.values] for r in (record, base))
    if ours and theirs and all(min(block.values) > 0 for block in (*ours, *theirs)):
        return math.exp(time_of(ours) - time_of(theirs))
    value, divisor = (_finite(found.value) if (found := r.metric(metric)) else None for r in (record, base))
    return value / divisor if value is not None and divisor else None


def _measured(record: Record) -> Iterator[Metric]:
    for metric in record.metrics:
        if _finite(metric.value) is not None and metric_status(record, metric)[0] == "ok":
            yield metric


def _finite(value: object) -> float | None:
    """A number, whatever stands in a file."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _text(value: object) -> str:
    """A text that UTF-8 has, whatever stands in a file."""
    return "" if value is None else str(value).encode(errors="replace").decode()


def _baselines(records: Iterable[Record]) -> dict[tuple[Any, str], Record]:
    """The baseline that has a metric, by place and the metric's name: of the first impl that is there."""
    found: dict[tuple[Any, str], Record] = {}
    candidates = [r for r in records if r.op == BASELINE and r.impl in BASELINE_IMPLS]
    for record in sorted(candidates, key=lambda r: BASELINE_IMPLS.index(r.impl)):
        for metric in _measured(record):
            found.setdefault((_place(record), metric.name), record)
    return found


def _place(record: Record) -> tuple[Any, ...]:
    """Where a case stands on the axes that all ops share, in its suite."""
    axes = [record.axes.get(axis) for axis in (*PLACE_AXES[1:-1], "height", "width")]
    return (record.suite, record.device, *axes, _settings(record))


def _settings(record: Record) -> str:
    """What must be the same for two numbers to be compared, as `compare` has it; as text."""
    taken = {**record.settings, **record.axes}
    return json.dumps({key: taken[key] for key in SETTINGS if taken.get(key) is not None}, sort_keys=True)


def _caseid(connection: sqlite3.Connection, record: Record) -> int:
    """The id of a case, stored where it is new."""
    key = (_text(record.case), _text(record.case_version), _settings(record))
    own = (_text(record.suite), _text(record.op), _text(record.impl))
    connection.execute("INSERT OR IGNORE INTO cases VALUES (NULL, ?, ?, ?, ?, ?, ?)", (*key, *own))
    query = "SELECT id FROM cases WHERE name = ? AND version = ? AND settings = ?"
    return int(connection.execute(query, key).fetchone()["id"])


def _load(path: Path) -> tuple[Run, str]:
    """A run and the digest of its files, which do not change between the two."""
    while True:
        digest = _digest(path)
        run = load_run(path)
        if _digest(path) == digest:
            break
    if "ab" in run.environment:
        raise RunError(f"{path} compares two revisions and is no point of a history")
    return run, digest


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    for name in (ENVIRONMENT, RECORDS):
        with contextlib.suppress(OSError):  # load_run tells what is wrong
            content = within(path, name).read_bytes()
            found.update(b"%d\0" % len(content) + content)
    return found.hexdigest()


def _identity(environment: Json) -> str:
    """Of the invocation: what `run.json` held when it began. The load and the rates of the probe tell two apart."""
    began = {key: value for key, value in environment.items() if key not in ("finished", "warnings")}
    return hashlib.sha256(json.dumps(began, sort_keys=True).encode()).hexdigest()


def _described(environment: Json) -> tuple[Any, ...]:
    """Columns of `runs`, from `started` to `surroundings`."""
    project, device = _part(environment, "project"), _part(environment, "device")
    surroundings = {
        key: value
        for part, keys in (("software", SOFTWARE), ("machine", MACHINE), ("device", DRIVER))
        for key, value in _part(environment, part).items()
        if key in keys
    }
    return (
        _text(environment.get("started")),
        _text(project.get("revision")),
        int(bool(project.get("dirty"))),
        _text(project.get("subject")),
        _seconds(project.get("committed") or environment.get("started")),
        int(_finite(project.get("ancestors")) or 0),
        _text(device.get("kind")),
        _text(device.get("name")),
        json.dumps(surroundings, sort_keys=True),
    )


def _part(environment: Json, name: str) -> Json:
    found = environment.get(name)
    return found if isinstance(found, dict) else {}


def _seconds(moment: object) -> int:
    """Seconds since 1970 of an ISO time, 0 if it is none."""
    try:
        return int(datetime.fromisoformat(str(moment)).timestamp())
    except (ValueError, OverflowError):
        return 0


# What leaves


def _query(wanted: Filter) -> tuple[str, list[Any]]:
    """SQL of the numbers that fit, in the order of their commits, and its values."""
    metrics = wanted.metrics or [default_metric("cpu"), default_metric("cuda")]
    named = {"metric": metrics, "suite": wanted.suites, "op": wanted.ops, "impl": wanted.impls}
    conditions, values = [], list[Any]()
    for column, names in named.items():
        if names is not None:
            conditions.append(f"{column} IN ({', '.join('?' * len(names))})")
            values += names
    for column, patterns in (("name", wanted.cases), ("device", wanted.devices)):
        if patterns is not None:
            conditions.append("(" + " OR ".join([f"{column} GLOB ? OR instr({column}, ?)"] * len(patterns)) + ")")
            values += [value for pattern in patterns for value in (_glob(pattern), pattern)]
    return (
        "SELECT numbers.* FROM numbers JOIN cases ON cases.id = caseid JOIN runs ON runs.id = runid "
        f"WHERE {' AND '.join(conditions)} ORDER BY committed, ancestors, dirty, started, runid",
        values,
    )


def _glob(pattern: str) -> str:
    """A pattern in which only `*` means something."""
    return "".join(f"[{c}]" if c in "[?" else c for c in pattern)


def _series(
    key: tuple[Any, ...],
    numbers: Sequence[sqlite3.Row],
    runs: Mapping[int, sqlite3.Row],
    cases: Mapping[int, sqlite3.Row],
    last: int | None,
) -> Series:
    device, kind, caseid, metric, unit, exact = key
    case = cases[caseid]
    own = (case["name"], case["version"], json.loads(case["settings"]), case["suite"], case["op"], case["impl"])
    points = _points(numbers, runs)
    return Series(device, kind, *own, metric, unit, exact, points[-last:] if last else points)


def _points(numbers: Sequence[sqlite3.Row], runs: Mapping[int, sqlite3.Row]) -> list[Point]:
    """One point for each commit, and for each run that has none; in the order in which they come."""
    groups: dict[tuple[str, bool], list[sqlite3.Row]] = {}
    for row in numbers:
        run = runs[row["runid"]]
        groups.setdefault((run["revision"] or run["digest"], bool(run["dirty"])), []).append(row)
    return [_point(group, [runs[row["runid"]] for row in group]) for group in groups.values()]


def _point(numbers: Sequence[sqlite3.Row], runs: Sequence[sqlite3.Row]) -> Point:
    """The median of some runs of one commit, the lower one of two, with that run's bounds."""
    middle = sorted(numbers, key=lambda row: row["value"])[(len(numbers) - 1) // 2]
    last = runs[-1]
    return Point(
        last["revision"],
        bool(last["dirty"]),
        last["subject"],
        last["committed"],
        middle["value"],
        middle["low"],
        middle["high"],
        [run["path"] for run in runs],
        json.loads(last["surroundings"]),
    )


# The file


def _create(path: Path) -> None:
    """Makes an empty index that takes its name when it is complete, unless another process was first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            connection = sqlite3.connect(fresh, isolation_level=None)
            connection.executescript(
                f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; {_SCHEMA}"
                "PRAGMA journal_mode = WAL;"
            )
            connection.close()
            with contextlib.suppress(FileExistsError):
                os.link(fresh, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _check_header(path: Path) -> None:
    """Looks at the first bytes alone, since to open a file is to SQLite a reason to write.

    They are the file's magic, then at 60 the user version and at 68 the application id (SQLite's file format, 1.3).
    """
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    if len(head) < 100 or not head.startswith(b"SQLite format 3\0"):
        raise RunError(f"{path} is no index of a history, or corrupt; {_REMEDY}")
    version, application = struct.unpack_from(">I", head, 60)[0], struct.unpack_from(">I", head, 68)[0]
    if application != APPLICATION:
        raise RunError(f"{path} is a database of something else; --index names another file")
    if version > VERSION:
        raise RunError(f"{path} was written by a newer version (index {version}, this one reads {VERSION})")
    if version < VERSION:
        raise RunError(f"{path} was written by an older version (index {version}, not {VERSION}); {_REMEDY}")


_REMEDY = "move it away, and `runner.py history rebuild` makes it anew from the runs"


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Says in one line what SQLite says."""
    began = time.monotonic()
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise RunError(f"{path} is held by another process for {time.monotonic() - began:.0f} s already") from error
        raise RunError(f"cannot use {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise RunError(f"{path} is corrupt: {' '.join(str(error).split())}; {_REMEDY}") from error
