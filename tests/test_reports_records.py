"""A run's files: what is written, what survives a kill or a full disk, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sample_runs import environment, latency, record, sample

from reports import SCHEMA_VERSION, Record, Run
from reports.core.records import RunDirectory, RunError, load_run, point_latest


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A run on disk with three records."""
    directory = RunDirectory.create(tmp_path / "run", environment())
    for made in sample().records[:3]:
        directory.append(made)
    return directory.path


def lines(path: Path) -> list[bytes]:
    return (path / "records.jsonl").read_bytes().splitlines(keepends=True)


def test_what_is_stored_is_what_is_loaded(stored: Path) -> None:
    assert load_run(stored) == Run(stored, environment(), sample().records[:3])
    assert RunDirectory.open(stored).recorded() == {made.case for made in sample().records[:3]}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({}, {}),
        ({"samples": [1], "x": [{"samples": [{"values": [2]}]}]}, {}),
        ({"text": ',"samples":[ and , "samples": ['}, {}),
        ({}, {"later": {"a": [{"values": [1]}]}}),
        ({}, {"later": "]}]}"}),
        ({}, {"later": [{"values": [1]}]}),
        ({}, {"later": []}),
    ],
)
def test_samples_can_be_left_out(
    stored: Path, settings: dict[str, Any], after: dict[str, Any], separators: tuple[str, str]
) -> None:
    """Nothing else is, wherever a field of that name or text stands."""
    written = [made.to_json() | {"settings": settings} | after for made in sample().records]
    text = "".join(json.dumps(made, separators=separators) + "\n" for made in written)
    (stored / "records.jsonl").write_text(text)
    read = [made.to_json() for made in load_run(stored, samples=False).records]
    assert read == [made | {"samples": []} for made in written]


def test_a_half_written_line_is_dropped_without_samples_too(stored: Path) -> None:
    with (stored / "records.jsonl").open("ab") as file:
        file.write(lines(stored)[0][:-20])
    assert len(load_run(stored, samples=False).records) == 3


def test_unknown_fields_are_kept(stored: Path) -> None:
    """A field of a later version survives reading and writing, as an axis would."""
    newer = json.loads(lines(stored)[0]) | {"case": "new", "frobnicated": {"deep": [1, None]}, "head": 4}
    with (stored / "records.jsonl").open("a") as file:
        file.write(json.dumps(newer) + "\n")
    read = load_run(stored).records[-1]
    assert read.axes["frobnicated"] == {"deep": [1, None]}
    assert read.to_json() == newer


def test_numbers_that_json_lacks_are_stored_as_null(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", environment())
    wrong = latency("conv", "torch", 7, float("nan"))
    wrong.samples[0].values = [float("inf"), 1.0]
    directory.append(wrong)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(lines(directory.path)[0], parse_constant=refuse)
    assert read["metrics"][0]["value"] is None
    assert read["samples"][0]["values"] == [None, 1.0]


def test_create_takes_an_empty_directory_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty", environment())
    assert load_run(tmp_path / "empty").records == []
    with pytest.raises(RunError, match="empty is not empty"):
        RunDirectory.create(tmp_path / "empty", environment())
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="cannot write"):
            RunDirectory.create(path, environment())


@pytest.mark.parametrize("rest", [b'{"case": "ha', b"{", b"\0\0\0\0", b'{"case": "half", \n'])
def test_half_written_last_line_is_dropped(stored: Path, rest: bytes) -> None:
    before = (stored / "records.jsonl").read_bytes()
    (stored / "records.jsonl").write_bytes(before + rest)

    loaded = load_run(stored)
    assert loaded.records == sample().records[:3]
    assert "half-written" in loaded.environment["warnings"][-1]

    opened = RunDirectory.open(stored)
    assert opened.dropped
    assert (stored / "records.jsonl").read_bytes() == before
    opened.append(sample().records[4])
    assert [made.case for made in load_run(stored).records] == [made.case for made in opened.records()]
    assert not RunDirectory.open(stored).dropped


def test_kill_at_any_byte_loses_no_finished_record(stored: Path) -> None:
    whole = (stored / "records.jsonl").read_bytes()
    ends = [len(b"".join(lines(stored)[:i])) for i in range(4)]
    for size in {0, 1, *ends, *(end - 1 for end in ends[1:]), *range(0, len(whole), 97)}:
        (stored / "records.jsonl").write_bytes(whole[:size])
        opened = RunDirectory.open(stored)
        assert len(opened.records()) == sum(end <= size for end in ends[1:])
        assert opened.dropped == (size not in ends)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{broken\n", "not JSON"),
        (b"\n", "not JSON"),
        (b"[]\n", "no schema_version"),
        (b'{"schema_version": 1}\n', "KeyError"),
        (b'{"schema_version": 1, "metrics": [{"name": "a"}], "samples": []}\n', "TypeError"),
        (b"\xff\xfe\n", "not JSON"),
    ],
)
def test_corrupt_middle_line_is_named(stored: Path, line: bytes, words: str) -> None:
    first, second, third = lines(stored)
    (stored / "records.jsonl").write_bytes(first + line + third)
    for read in (load_run, partial(load_run, samples=False), RunDirectory.open):
        with pytest.raises(RunError, match=rf"records\.jsonl, line 2 is corrupt: .*{words}") as caught:
            read(stored)
        assert "\n" not in str(caught.value)
    assert lines(stored)[0] == first
    assert second not in lines(stored)


def test_newer_schema_is_refused(stored: Path) -> None:
    first = json.loads(lines(stored)[0])
    newer = json.dumps(first | {"schema_version": SCHEMA_VERSION + 1}) + "\n"
    with (stored / "records.jsonl").open("a") as file:
        file.write(newer)
    with pytest.raises(RunError, match=r"records\.jsonl, line 4 was written by a newer version"):
        load_run(stored)
    (stored / "run.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RunError, match=r"run\.json was written by a newer version"):
        load_run(stored)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{\n "schema_version": 1,\n', "line 3 is corrupt"),
        (b"\xff", "is corrupt"),
        (b"[]", "not an object"),
        (b"{}", "no schema_version"),
        (None, "is not a run"),
    ],
)
def test_bad_run_json_is_one_clear_line(stored: Path, content: bytes | None, words: str) -> None:
    (stored / "run.json").unlink()
    if content is not None:
        (stored / "run.json").write_bytes(content)
    for read in (load_run, RunDirectory.open):
        with pytest.raises(RunError, match=words) as caught:
            read(stored)
        assert "run.json" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_run_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(RunError, match="no such run"):
            load_run(path)


def test_environment_is_replaced_whole(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory.open(stored)
    directory.update_environment(environment() | {"finished": "later"})
    assert load_run(stored).environment["finished"] == "later"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        directory.update_environment({"finished": "never"})
    assert load_run(stored).environment["finished"] == "later"
    assert sorted(path.name for path in stored.iterdir()) == ["records.jsonl", "run.json"]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_full_disk_leaves_what_was_recorded(stored: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """The disk takes 10 bytes of the line and then no more, or takes all and fails to keep them."""
    before = (stored / "records.jsonl").read_bytes()
    directory = RunDirectory.open(stored)
    write = os.write
    taken: list[int] = []

    def little(descriptor: int, data: bytes) -> int:
        if taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(write(descriptor, data[:10]))
        return taken[0]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, little if failing == "write" else full)
        with pytest.raises(RunError, match="No space left on device; what was recorded before is intact"):
            directory.append(sample().records[4])
    assert (stored / "records.jsonl").read_bytes() == before
    directory.append(sample().records[4])
    assert len(load_run(stored).records) == 4


def test_interrupt_in_mid_write_leaves_no_half_line(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (stored / "records.jsonl").read_bytes()
    write = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunDirectory.open(stored).append(sample().records[4])
    assert (stored / "records.jsonl").read_bytes() == before


FILL = """
import sys
from pathlib import Path
from sample_runs import environment, latency
from reports.core.records import RunDirectory, RunError, load_run

directory = RunDirectory.create(Path(sys.argv[1]), environment())
stored = 0
try:
    for stored in range(1000):
        directory.append(latency("conv", "torch", stored + 1, 1.0))
except RunError as error:
    print(error)
assert len(load_run(directory.path).records) == stored > 10, stored
data = (directory.path / "records.jsonl").read_bytes()
assert data.endswith(b"}\\n")
"""


def fill(*command: str) -> subprocess.CompletedProcess[str]:
    """Appends records until nothing more can be written, in a process of its own."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths})


def test_real_write_that_fails_halfway(tmp_path: Path) -> None:
    """The system's limit on the size of a file takes the start of a line and refuses the rest, as a full disk does."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    done = fill(sys.executable, "-c", limit + FILL, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "File too large; what was recorded before is intact" in done.stdout


def test_real_full_disk(tmp_path: Path) -> None:
    """A file system of 64 KiB, mounted where nobody else sees it."""
    unshare = shutil.which("unshare")
    mount = [str(unshare), "--user", "--map-root-user", "--mount", "sh", "-c"]
    small = 'mount -t tmpfs -o size=64k none "$0"'
    if not unshare or subprocess.run([*mount, small, str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = fill(*mount, f'{small} && exec "$1" -c "$2" "$0"/run', str(tmp_path), sys.executable, FILL)
    assert done.returncode == 0, done.stderr
    assert "No space left on device; what was recorded before is intact" in done.stdout


def test_append_waits_for_the_disk(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is on disk whole, in one write, when `append` returns."""
    seen: list[int] = []

    def look(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", look)
    RunDirectory.open(stored).append(sample().records[4])
    assert seen == [(stored / "records.jsonl").stat().st_size]


def test_latest_is_a_relative_link_to_the_newest(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("first", "second"):
        RunDirectory.create(runs / name, environment(name))
        point_latest(runs, runs / name)
        assert os.readlink(runs / "latest") == name
    assert load_run(runs / "latest").environment["run"] == "second"
    assert sorted(path.name for path in runs.iterdir()) == ["first", "latest", "second"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_latest_that_is_no_link_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "latest")
    RunDirectory.create(tmp_path / "first", environment())
    point_latest(tmp_path, tmp_path / "first")
    assert not (tmp_path / "latest").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest"]


def test_a_link_to_a_run_that_is_gone_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("gone")
    RunDirectory.create(tmp_path / "first", environment())
    point_latest(tmp_path, tmp_path / "first")
    assert os.readlink(tmp_path / "latest") == "first"


def test_record_without_a_required_field_is_refused() -> None:
    made = record("latency", "conv", "torch", 7).to_json()
    for name in ("run", "case", "suite", "op", "impl", "device", "status", "metrics", "samples"):
        with pytest.raises((KeyError, TypeError)):
            Record.from_json({key: value for key, value in made.items() if key != name})
