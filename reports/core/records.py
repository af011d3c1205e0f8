"""A run's files on disk: `run.json`, its environment, and `records.jsonl`, one record a line, only ever appended to."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import SCHEMA_VERSION, Json, Record, Run

ENVIRONMENT = "run.json"
RECORDS = "records.jsonl"
#: The index of runs, beside them; see `history_index`.
INDEX = "history.sqlite"
_SAMPLES = re.compile(rb',\s?"samples":\s?\[')
#: The last block of samples, with which a record ends.
_BLOCK = re.compile(rb'\{"metric":[^\[\]{}]*\[[^\[\]{}]*\]\}\]\}\n')


class RunError(Exception):
    """A run that cannot be created, read or written; the text is one line for the user."""


class RunDirectory:
    """The directory of a run that is being taken.

    Args:
        path: the directory.
        environment: the content of `run.json`.
        dropped: whether `open` found a half-written last record and removed it.
    """

    def __init__(self, path: Path, environment: Json, dropped: bool = False) -> None:
        self.path = path
        self.environment = environment
        self.dropped = dropped

    @classmethod
    def create(cls, path: Path, environment: Json, records: bool = True) -> RunDirectory:
        """Makes the directory, with its parents, or takes an empty one.

        Args:
            records: whether it is to have any; else the runs below it have them.

        Raises:
            RunError: if it holds something already or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise RunError(f"{path} is not empty; name a new or empty directory, or continue a run with --resume")
            directory = cls(path, environment)
            directory.update_environment(environment)
            if records:
                (path / RECORDS).touch()
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Opens a run to continue it; a half-written last record, left by a kill, is removed from the file.

        Raises:
            RunError: if it is not a run, or not one that this version can read.
        """
        environment = read_environment(path)
        _, whole, size = _read_records(within(path, RECORDS))
        if whole < size:
            try:
                os.truncate(path / RECORDS, whole)
            except OSError as error:
                raise RunError(f"cannot write {path / RECORDS}: {error.strerror}") from error
        return cls(path, environment, dropped=whole < size)

    def append(self, record: Record) -> None:
        """Stores one record, on disk when this returns; after a failure the file is as it was before.

        Raises:
            RunError: if it cannot be written, a full disk for one.
        """
        line = _to_line(record.to_json())
        try:
            descriptor = os.open(self.path / RECORDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"cannot write {self.path / RECORDS}: {error.strerror}") from error
        try:
            _append(descriptor, line)
        except OSError as error:
            raise RunError(
                f"cannot write {self.path / RECORDS}: {error.strerror}; what was recorded before is intact, "
                f"continue with --resume {self.path}"
            ) from error
        finally:
            os.close(descriptor)

    def update_environment(self, environment: Json) -> None:
        """Replaces `run.json` at once: a reader sees the old or the new one, never a part.

        Raises:
            RunError: if it cannot be written.
        """
        target = self.path / ENVIRONMENT
        fresh = target.with_suffix(".json.new")
        text = json.dumps({"schema_version": SCHEMA_VERSION, **environment}, indent=2, ensure_ascii=False)
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise RunError(f"cannot write {target}: {error.strerror}") from error
        self.environment = environment

    def update_nodes(self, nodes: Json) -> None:
        """Adds to `run.json` what is known of nodes by now, by name.

        Raises:
            RunError: if it cannot be written.
        """
        if nodes:
            self.update_environment({**self.environment, "nodes": {**self.environment.get("nodes", {}), **nodes}})

    def records(self) -> list[Record]:
        """The records on disk, in the order they were taken."""
        return _read_records(within(self.path, RECORDS))[0]

    def recorded(self) -> set[str]:
        """The ids of the cases on disk."""
        return {record.case for record in self.records()}


def load_run(path: Path, samples: bool = True) -> Run:
    """Reads a run. A half-written last record is left out, which the run's warnings then say.

    Args:
        samples: whether to read them too. They are nearly all of the file, and only `report.html` needs them.

    Raises:
        RunError: if there is no such run, a file is corrupt (named, with the line), or a newer version wrote it.
    """
    environment = read_environment(path)
    if "models" in environment:
        below = ", ".join(str(path / folder) for folder in environment["models"].values())
        raise RunError(f"{path} holds a run for each of several devices: name one of {below}")
    with _no_collection():
        records, whole, size = _read_records(within(path, RECORDS), samples)
    if whole < size:
        note = f"the last line of {RECORDS} is half-written and was left out"
        environment["warnings"] = [*environment.get("warnings", []), note]
    return Run(path, environment, records)


def within(folder: Path, relative: str) -> Path:
    """A file of a folder, by a path that someone else chose.

    Raises:
        RunError: if it lies elsewhere: an absolute path, one with `..`, a link that leads out.
    """
    file = folder / relative
    try:
        inside = file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a null byte
        inside = False
    if not inside:
        raise RunError(f"{folder}: {relative!r} leads out of the folder")
    return file


def point_latest(runs_dir: Path, run_path: Path) -> None:
    """Makes the relative link `latest` in `runs_dir` point to a run; leaves alone a `latest` that is no link."""
    latest = runs_dir / "latest"
    if latest.exists() and not latest.is_symlink():
        return
    fresh = runs_dir / f".latest.{os.getpid()}"
    # A convenience: a file system without links must not cost the run.
    with contextlib.suppress(OSError):
        fresh.symlink_to(os.path.relpath(run_path, runs_dir), target_is_directory=True)
        fresh.replace(latest)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the collector of cycles away from what is made: records are very many objects and hold no cycle.

    Otherwise walking over them, again and again, takes a third of the time of reading and rendering a large run.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _append(descriptor: int, line: bytes) -> None:
    """Writes a line and waits until it is on disk; whatever stops that, the file gets its former size back."""
    size = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _to_line(data: Json) -> bytes:
    """One line of strict JSON; numbers it has no word for (NaN, infinity) become null."""
    try:
        text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(data), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def read_environment(path: Path) -> Json:
    """The content of `run.json`.

    Raises:
        RunError: if there is no such run, or it cannot be read.
    """
    if not path.is_dir():
        raise RunError(f"no such run: {path}")
    file = within(path, ENVIRONMENT)
    try:
        environment = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is not a run: it has no {ENVIRONMENT}") from None
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise RunError(f"{file}, line {error.lineno} is corrupt: {error.msg}") from error
    except ValueError as error:
        raise RunError(f"{file} is corrupt: {error}") from error
    if not isinstance(environment, dict):
        raise RunError(f"{file} is corrupt: not an object")
    _check_version(environment, str(file))
    return environment


def _read_records(file: Path, samples: bool = True) -> tuple[list[Record], int, int]:
    """The records of a file, its bytes up to the end of the last whole line, and its size in bytes.

    The newline is the mark of a finished line, so the last line is half-written if it has none or is no JSON.
    """
    records: list[Record] = []
    whole = 0
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    content = json.loads(line) if samples else _without_samples(line)
                except ValueError as error:
                    if not stream.read(1):
                        break
                    raise RunError(f"{file}, line {number} is corrupt: not JSON") from error
                records.append(_record(content, f"{file}, line {number}"))
                whole += len(line)
    except FileNotFoundError:
        return [], 0, 0
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error
    return records, whole, size


def _without_samples(line: bytes) -> Any:
    """The object of a line without its samples, which stand last and are not looked at.

    In JSON the mark cannot occur within a text, whose quotes are escaped; where it is not the key it seems, what stands
    before it is no object, and the whole line is read, as it is where anything else stands last.
    """
    mark = _SAMPLES.search(line)
    if mark and (line[mark.end() :] == b"]}\n" or _BLOCK.match(line, line.rfind(b"{"))):
        with contextlib.suppress(ValueError):
            return json.loads(line[: mark.start()] + b',"samples":[]}')
    content = json.loads(line)
    return {**content, "samples": []} if isinstance(content, dict) else content


def _record(content: Any, place: str) -> Record:
    _check_version(content, place)
    try:
        return Record.from_json(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{place} is corrupt: {type(error).__name__} {error}") from error


def _check_version(content: Any, place: str) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise RunError(f"{place} is corrupt: no schema_version")
    if version > SCHEMA_VERSION:
        raise RunError(f"{place} was written by a newer version (schema {version}, this one reads {SCHEMA_VERSION})")
