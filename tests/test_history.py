"""The index of runs, and what a history tells."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Runner
from sample_runs import environment, latency, record
from simulate_history import alarms as alarm_rate
from simulate_history import found as hit_rate

from reports import Metric, Record
from reports.core import change_points as change_point_rules
from reports.core import history_index, history_page
from reports.core.change_points import change_points
from reports.core.history import History, look
from reports.core.history_files import FILES
from reports.core.history_index import Filter, Index, numbers
from reports.core.history_page import as_page
from reports.core.history_plot import draw
from reports.core.history_tables import as_csv, as_json, markdown, terminal
from reports.core.records import RunDirectory, RunError, load_run

HOSTILE = "<script>alert(1)</script> | `x` $y$ [a](b) **c** @team\x1b[31m"
WALL = ["latency_wall"]


def commit(number: int, **changes: Any) -> dict[str, Any]:
    """What `run.json` tells of a commit; all of them have the same second, as in a script."""
    own = {"revision": f"{number:04x}" * 10, "dirty": False, "subject": f"commit {number}"}
    return own | {"committed": "2026-01-02T03:04:05+00:00", "ancestors": number + 1} | changes


def write_run(path: Path, records: Sequence[Record], project: dict[str, Any], **changes: Any) -> Path:
    made = environment(path.name) | {"project": project, "load": path.name} | changes
    directory = RunDirectory.create(path, made)
    for item in records:
        directory.append(item)
    return path


def pair(seconds: float, base: float = 1e-3, **changes: Any) -> list[Record]:
    return [latency("ddf_op", "native", 56, seconds, **changes), latency("dwconv", "torch", 56, base)]


def history_of(folder: Path, ratios: Sequence[float], **changes: Any) -> Path:
    """An index of runs, one a commit, on a machine that takes twice the time from the tenth on."""
    with Index.open(folder / "history.sqlite", create=True) as index:
        for number, ratio in enumerate(ratios):
            speed = 1 if number < 10 else 2
            path = write_run(folder / f"r{number}", pair(1e-3 * ratio * speed, 1e-3 * speed), commit(number), **changes)
            assert index.add(path)
    return folder / "history.sqlite"


def shown(path: Path, **wanted: Any) -> History:
    with Index.open(path) as index:
        return look(str(path), index.series(Filter(**wanted)))


def stepped(count: int = 30, at: int = 20, factor: float = 1.5, noise: float = 0.01) -> list[float]:
    draw = np.random.default_rng(1)
    return [float(np.exp(draw.normal(0, noise))) * (factor if i >= at else 1) for i in range(count)]


# what enters


def test_a_run_enters_once_wherever_it_lies(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", pair(1e-3), commit(0))
    with Index.open(tmp_path / "h", create=True) as index:
        assert index.add(run)
        before = index.count()
        assert not index.add(run)
        shutil.copytree(run, tmp_path / "copy")
        assert not index.add(tmp_path / "copy")
        assert index.count() == before
        assert index.series(Filter(WALL))[0].points[0].runs == ["copy"]


def test_a_run_that_was_continued_takes_its_own_place(tmp_path: Path) -> None:
    one, two = pair(1e-3)
    early = write_run(tmp_path / "early", [two], commit(0))
    late = tmp_path / "late"
    shutil.copytree(early, late)
    RunDirectory.open(late).append(one)
    with Index.open(tmp_path / "h", create=True) as index:
        assert [index.add(early), index.add(late), index.add(early)] == [True, True, False]
        assert index.count()[0] == 1
        assert {series.op for series in index.series(Filter(WALL))} == {"ddf_op", "dwconv"}


def test_times_are_kept_over_the_baseline_of_the_same_run(tmp_path: Path) -> None:
    records = [*pair(3e-3, 2e-3), latency("dwconv", "native", 56, 1e-6), latency("ddf_op", "native", 28, 1.0)]
    found = {(n.record.case, n.metric): n for n in numbers(load_run(write_run(tmp_path / "a", records, commit(0))))}
    ratio = found[records[0].case, "latency_wall_over_dwconv"]
    assert ratio.value == pytest.approx(1.5)
    over = [case for case, metric in found if metric == "latency_wall_over_dwconv"]
    assert over == [records[0].case], "neither the baseline itself nor a case without one beside it"


def test_a_run_is_as_fast_as_its_fastest_process(tmp_path: Path) -> None:
    """Other programs slow some processes, and the median with them."""
    ours, base = pair(3e-3, 2e-3)
    for block in ours.samples[:2]:
        block.values = [7 * value for value in block.values]
    for block in base.samples[1:]:
        block.values = [3 * value for value in block.values]
    found = {n.metric: n.value for n in numbers(load_run(write_run(tmp_path / "a", [ours, base], commit(0))))}
    assert found["latency_wall_over_dwconv"] == pytest.approx(1.5)


def test_numbers_that_are_none_and_cases_that_failed_stay_out(tmp_path: Path) -> None:
    bad = record("latency", "conv", "torch", 7, metrics=[Metric("latency_wall", "s", 1.0)], status="crashed")
    odd = record("latency", "conv", "aten", 7, metrics=[Metric("a", "s", None), Metric("b", "1", 1e400)])
    texts = record("latency", "conv", "cudnn", 7, metrics=[Metric("c", "s", "1e-3")])  # type: ignore[arg-type]
    run = write_run(tmp_path / "a", [bad, odd, texts], commit(0))
    with (run / "records.jsonl").open("a") as file:
        file.write('{"half')
    assert not list(numbers(load_run(run)))


def test_text_that_utf8_does_not_have_enters_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", pair(1e-3), commit(0, subject="HERE"))
    (run / "run.json").write_text((run / "run.json").read_text().replace("HERE", "\\ud800"))
    with Index.open(tmp_path / "h", create=True) as index:
        assert index.add(run)
        assert index.series(Filter(WALL))[0].points[0].subject == "?"


def test_what_compares_two_revisions_is_no_point(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [], commit(0), ab={"looks": 1})
    with Index.open(tmp_path / "h", create=True) as index, pytest.raises(RunError, match="compares two revisions"):
        index.add(run)


def test_rebuilding_takes_what_is_on_disk(tmp_path: Path) -> None:
    path = history_of(tmp_path, [1, 2, 3])
    before = [(p.revision, p.value) for p in shown(path).series[0].points]
    with Index.open(path) as index:
        assert index.rebuild([tmp_path / "r0"]) == {}
    assert [(p.revision, p.value) for p in shown(path).series[0].points] == before
    shutil.rmtree(tmp_path / "r1")
    with Index.open(path) as index:
        assert list(index.rebuild([])) == [tmp_path / "r1"]
    assert [p.value for p in shown(path).series[0].points] == [before[0][1], before[2][1]]


# the file


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not a database, but more than a hundred bytes" * 9, "is no index of a history, or corrupt"),
        (b"", "is no index of a history, or corrupt"),
        ("newer", "was written by a newer version"),
        ("older", "was written by an older version .* `runner.py history rebuild` makes it anew"),
        ("foreign", "is a database of something else"),
        ("garbled", "is corrupt"),
        ("truncated", "is corrupt"),
    ],
)
def test_a_file_that_is_no_index_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes | str, told: str) -> None:
    path = history_of(tmp_path, stepped(40))
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        spoil(path, content)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with pytest.raises(RunError, match=told) as raised, Index.open(path, create=True) as index:
        index.add(write_run(tmp_path / "more", pair(1e-3), commit(99)))
    assert "\n" not in str(raised.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


def spoil(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how in ("newer", "older"):
        data[60:64] = struct.pack(">I", history_index.VERSION + (1 if how == "newer" else -1))
    elif how == "foreign":
        data[68:72] = struct.pack(">I", 7)
    elif how == "garbled":
        data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)


def test_eight_writers_at_once_and_one_killed(tmp_path: Path) -> None:
    runs = {
        writer: [write_run(tmp_path / f"w{writer}-{i}", pair(1e-3 + i), commit(8 * i + writer)) for i in range(6)]
        for writer in range(8)
    }
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(8)
    workers = [fork.Process(target=add_all, args=(tmp_path / "h", runs[w], start, w == 3)) for w in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL if w == 3 else 0 for w in range(8)]
    each = len(list(numbers(load_run(runs[0][0]))))
    with Index.open(tmp_path / "h") as index:
        assert index.count() == (44, 44 * each)
        index.add(runs[3][2])
        assert index.count() == (45, 45 * each)


def add_all(path: Path, runs: Sequence[Path], start: Any, killed: bool) -> None:
    """Adds runs; the one that is killed is killed while it writes its third."""
    real, added = history_index.numbers, []

    def dying(run: Any) -> Any:
        yield from list(real(run))[:5]
        os.kill(os.getpid(), signal.SIGKILL)

    start.wait()
    for run in runs:
        if killed and len(added) == 2:
            history_index.numbers = dying
        with Index.open(path, create=True) as index:
            added.append(index.add(run))


# what leaves


def test_a_step_is_found_at_its_commit_on_the_ratio(tmp_path: Path) -> None:
    history = shown(history_of(tmp_path, stepped()))
    ((series, change),) = history.changes
    assert (change.at, series.metric) == (20, "latency_wall_over_dwconv")
    assert series.after(change).subject == "commit 20"
    assert change.ratio == pytest.approx(1.5, rel=0.02)
    assert change.p is not None
    assert change.p <= 0.05
    alone = shown(tmp_path / "history.sqlite", metrics=WALL, ops=["ddf_op"])
    assert [change.at for _, change in alone.changes] == [10, 20], "without the ratio the machine is in it"


def test_commits_stand_in_their_order_and_runs_of_one_are_one_point(tmp_path: Path) -> None:
    with Index.open(tmp_path / "h", create=True) as index:
        for place, number in enumerate([2, 0, 1, 1, 1]):
            moment = {"started": f"2026-01-02T04:00:{place:02}+00:00"}
            run = write_run(tmp_path / f"r{place}", pair(1e-3 * (1 + place)), commit(number), **moment)
            index.add(run)
        index.add(write_run(tmp_path / "dirty", pair(1.0), commit(1, dirty=True)))
        (series,) = index.series(Filter(WALL, ops=["ddf_op"]))
    assert [(p.subject, p.dirty, p.value, len(p.runs)) for p in series.points] == [
        ("commit 0", False, 2e-3, 1),
        ("commit 1", False, 4e-3, 3),
        ("commit 1", True, 1.0, 1),
        ("commit 2", False, 1e-3, 1),
    ]


def test_devices_threads_and_versions_of_a_case_are_apart(tmp_path: Path) -> None:
    odd = replace(latency("ddf_op", "native", 56, 1e-3), case_version=2)
    more = latency("ddf_op", "native", 56, 1e-3)
    more.settings["threads"] = 8
    with Index.open(tmp_path / "h", create=True) as index:
        for number, records in enumerate([pair(1e-3), [odd], [more]]):
            index.add(write_run(tmp_path / f"r{number}", records, commit(number)))
        other = {"device": {"kind": "cuda", "name": "Example GPU"}}
        index.add(write_run(tmp_path / "gpu", pair(1e-3), commit(3), **other))
        assert len(index.series(Filter(WALL, ops=["ddf_op"]))) == 4
        assert len(index.series(Filter(WALL, ops=["ddf_op"], devices=["*GPU"]))) == 1
        assert [s.op for s in index.series(Filter(WALL, cases=["dwconv/*56:56*"]))] == []
        assert {s.op for s in index.series(Filter(WALL, cases=["*dwconv/*56:56*"]))} == {"dwconv"}
        assert index.series(Filter(WALL, suites=["flops"])) == []


def test_exact_metrics_change_without_a_test(tmp_path: Path) -> None:
    counted = [[record("params", "ddf", "native", metrics=[Metric("params", "1", n)])] for n in (10, 10, 11, 10)]
    with Index.open(tmp_path / "h", create=True) as index:
        for number, records in enumerate(counted):
            index.add(write_run(tmp_path / f"r{number}", records, commit(number)))
    (series,) = shown(tmp_path / "h", metrics=["params"]).series
    assert [(change.at, change.ratio, change.p) for change in series.changes] == [(2, 1.1, None), (3, 10 / 11, None)]


def test_what_else_changed_is_told(tmp_path: Path) -> None:
    with Index.open(tmp_path / "h", create=True) as index:
        for number, ratio in enumerate(stepped(12, 6)):
            software = {"software": {"torch": "2.12" if number < 6 else "2.13"}}
            index.add(write_run(tmp_path / f"r{number}", pair(1e-3 * ratio), commit(number), **software))
    ((_, change),) = shown(tmp_path / "h").changes
    assert change.reason == "torch 2.12, then 2.13"


@pytest.mark.parametrize(
    ("noise", "least"),
    [
        (lambda draw: draw.normal(0, 0.03, 30), 44),
        (lambda draw: 0.02 * draw.standard_t(2, 30), 42),
        # one run in ten takes half as long again, and hides a step of 20 % in every fifth series
        (lambda draw: draw.normal(0, 0.02, 30) + 0.5 * (draw.random(30) < 0.1), 30),
    ],
    ids=["normal", "heavy tails", "disturbed runs"],
)
def test_change_points_err_seldom_and_find_most(noise: Callable[[np.random.Generator], Any], least: int) -> None:
    draw = np.random.default_rng(0)
    step = np.where(np.arange(30) >= 20, np.log(1.2), 0.0)
    called = sum(bool(change_points(np.exp(noise(draw)), 0.03, 0.05)) for _ in range(100))
    found = [change_points(np.exp(noise(draw) + step), 0.03, 0.05) for _ in range(50)]
    hits = sum(any(abs(change.at - 20) <= 1 for change in some) for some in found)
    assert called <= 10, "5 expected at most; 11 or more with 1 % chance"
    assert hits >= least


@pytest.mark.parametrize(("commits", "lasting"), [(30, 0.3), (100, 0.3), (30, 0.6), (100, 0.6)])
def test_noise_that_lasts_over_runs_is_no_change(commits: int, lasting: float) -> None:
    called = alarm_rate(60, commits, lasting)
    assert called <= 0.1, "at most 5 % expected; more than 10 % of 60 has a chance of 3 %"


@pytest.mark.parametrize("lasting", [0.0, 0.6])
def test_a_step_of_half_is_found_in_noise_that_lasts(lasting: float) -> None:
    assert hit_rate(40, 30, lasting, scale=0.03, step=0.5) >= 0.9
    assert hit_rate(40, 30, lasting, scale=0.01, step=0.1) >= 0.9


def test_a_slow_down_that_was_mended_is_two_changes_and_one_odd_run_none() -> None:
    values = np.exp(np.random.default_rng(2).normal(0, 0.01, 30))
    values[10:20] *= 1.5
    assert [change.at for change in change_points(values, 0.03, 0.05)] == [10, 20]
    values[10:20] /= 1.5
    values[15] *= 3
    assert change_points(values, 0.03, 0.05) == []
    assert change_points(np.repeat([1.0, 1.02], 15), 0.03, 0.05) == [], "below the floor"


@pytest.mark.parametrize("commits", [4, 5, 30, 120])
def test_places_are_proposed_as_by_ruptures(commits: int) -> None:
    import ruptures

    draw = np.random.default_rng(commits)
    for _ in range(30):
        pieces = np.repeat(draw.normal(0, 0.1, 6), 20)[:commits] if commits > 30 else np.zeros(commits)
        logs = pieces + draw.normal(0, 0.03, commits)
        penalty = 2 * change_point_rules.PENALTY * np.log(commits) * 0.03**2
        search = ruptures.KernelCPD(kernel="linear", min_size=change_point_rules.FEWEST).fit(logs[:, None])
        assert change_point_rules._proposed(logs, 0.03) == search.predict(pen=penalty)[:-1]


# what is told


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("hostile")
    with Index.open(folder / "h", create=True) as index:
        for number, ratio in enumerate(stepped(12, 6)):
            records = [
                latency("my|op<b>*@team\x1b[31m", "native", 56, 1e-3 * ratio),
                latency("dwconv", "torch", 56, 1e-3),
            ]
            project = commit(number, subject=HOSTILE, revision=f"{number:04x}; rm -rf /")
            index.add(write_run(folder / f"r{number}", records, project, device={"kind": "cpu", "name": HOSTILE}))
    return shown(folder / "h")


def test_markup_in_messages_and_names_stays_text(hostile: History) -> None:
    page = markdown(hostile)
    assert len(hostile.changes) == 1
    assert "<script>" not in page
    assert "<b>" not in page
    assert "\\*\\*c\\*\\*" in page
    assert "my\\|op&lt;b&gt;" in page
    assert "\x1b" not in page + terminal(hostile)
    assert "  git log 0005rmrf..0006rmrf\n" in terminal(hostile)
    rows = [line for line in page.splitlines() if line.startswith("| 000")]
    assert len(rows) == 12
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}


def test_markup_stays_text_in_pictures_and_data(hostile: History) -> None:
    drawn = draw(hostile, "svg")
    assert isinstance(drawn, bytes)
    assert b"<script>" not in drawn
    assert json.loads(as_json(hostile))["series"][0]["device"].startswith("<script>")
    assert len(as_csv(hostile).splitlines()) == 13


# the page


def test_a_page_leads_to_the_reports_of_runs_and_nowhere_else(tmp_path: Path) -> None:
    path = history_of(tmp_path, stepped(12, 6))
    with Index.open(path) as index:
        outside = write_run(tmp_path.parent / f"{tmp_path.name}-outside", pair(1e-3), commit(12))
        (outside / "report.html").write_text("")
        index.add(outside)
    (tmp_path / "r4" / "report.html").write_text("")
    (tmp_path / "r5" / "report.html").symlink_to(outside / "report.html")
    (tmp_path / "r6").rename(tmp_path / "javascript:alert(1)")
    with Index.open(path) as index:
        index.add(tmp_path / "javascript:alert(1)")
    (tmp_path / "javascript:alert(1)" / "report.html").write_text("")
    page = as_page(shown(path), tmp_path / "shown")
    linked = set(re.findall(r'"address":"([^"]+)"', page))
    assert linked == {"../r4/report.html", "../javascript%3Aalert%281%29/report.html"}


def test_a_page_of_very_many_series_draws_those_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_page, "MOST_SERIES", 1)
    page = as_page(
        shown(history_of(tmp_path, stepped(12, 6)), metrics=["max_error", "latency_wall_over_dwconv"]), tmp_path
    )
    assert "2 more series without a change are in the table of series alone." in page
    assert page.count('"marks":[[5.5,"+') == 1
    assert page.count('"marks"') == 1


# the command


def test_the_command_adds_shows_and_rebuilds(runner: Runner, tmp_path: Path) -> None:
    for number, ratio in enumerate(stepped(12, 6)):
        write_run(tmp_path / "runs" / f"r{number}", pair(1e-3 * ratio), commit(number))
    added = runner("history", "rebuild")
    assert (added.returncode, added.stdout.splitlines()[-1]) == (0, "runs/history.sqlite: 12 runs, 144 numbers")
    done = runner("history", "show", "--op", "ddf_op", "--output", "told")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 change in 1 metric of one case over 12 commits, Example CPU.")
    assert "git log 0005000500..0006000600" in done.stdout
    assert sorted(path.name for path in (tmp_path / "told").iterdir()) == sorted(file for file, _ in FILES.values())
    again = runner("history", "add", "runs/r0")
    assert again.stdout.splitlines()[0] == "runs/r0: known already"
    nothing = runner("history", "show", "--metric", "speed")
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "--metric: 'speed' is not one of latency_cold" in nothing.stderr


def test_a_run_that_cannot_be_tracked_is_not_begun(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(b"something else")
    done = runner("--suite", "params", "--op", "conv", "--track", "h", "--output", "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is no index of a history" in done.stderr
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "h").read_bytes() == b"something else"


def test_a_run_is_tracked(runner: Runner, tmp_path: Path) -> None:
    done = runner("--suite", "params", "--op", "conv", "--track", "--output", "out")
    assert done.returncode == 0, done.stderr
    with Index.open(tmp_path / "runs" / "history.sqlite") as index:
        (series,) = index.series(Filter(["params"]))
    assert series.points[0].runs == ["../out"]
    assert len(series.points[0].revision) == 40
    assert series.points[0].committed > 1_700_000_000


# paths


@pytest.mark.parametrize("name", ["run.json", "records.jsonl"])
def test_files_of_a_run_that_lie_elsewhere_are_not_read(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "a", pair(1e-3), commit(0))
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    with Index.open(tmp_path / "h", create=True) as index, pytest.raises(RunError, match="leads out of the folder"):
        index.add(run)


def test_what_a_run_is_called_does_not_lead_out_of_the_folder(runner: Runner, tmp_path: Path) -> None:
    for suite in ("../../escaped", "a/../../../../escaped"):
        run = write_run(tmp_path / f"deep{len(suite)}", [record(suite, "conv", "torch")], commit(0))
        done = runner("report", str(run), "--format", "csv", "--output", "told/here")
        assert (done.returncode, done.stderr.count("leads out of the folder")) == (2, 1)
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("escaped*"))


def test_a_link_in_the_target_does_not_lead_out_of_it(runner: Runner, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", pair(1e-3), commit(0))
    (tmp_path / "elsewhere").mkdir()
    (run / "tables").symlink_to(tmp_path / "elsewhere")
    done = runner("report", str(run), "--format", "csv")
    assert done.returncode == 2
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_index_is_sqlite_and_sound(tmp_path: Path) -> None:
    connection = sqlite3.connect(history_of(tmp_path, [1, 2]))
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    assert mode == "wal"
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
