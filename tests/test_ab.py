"""Two revisions in one run: what is matched, in which order blocks are taken, and when it stops."""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Runner
from test_cases import LATENCY, selection
from test_revisions import git

from reports import Record
from reports.core.pairs import BASE, LOOKS, NEW
from reports.core.verdict_options import Asked
from reports.core.verdicts import MISSING, SAME, SLOWER
from suites import Case, Declaration
from suites.core import ab
from suites.core.cases import UsageError, expand
from suites.core.processes import WorkerLost
from suites.core.revisions import Revision

DECLARED = {
    "dwconv": Declaration("dwconv", "DwConv", 1, "convolution.py", "fma", False, (), ("torch",), (), {}),
    "ddf_op": Declaration("ddf_op", "DDF Op", 1, "ddf.py", "fma", True, (), ("native", "composite"), (), {}),
}
CASES = {case.id: case for case in expand(selection(axes={"size": [[7, 7]]}), [LATENCY], DECLARED, cores=4)}
ASKED = Asked(0.03, 0.05, None, False, ["terminal"], None, False)


class FakeWorker:
    """Takes `seconds` a call, with a little noise; dies in the block `late`, counted from 0."""

    def __init__(self, server: FakeServer):
        self._server, self._blocks = server, 0

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        server = self._server
        if request["do"] == "begin":
            server.session.begun.append((server.tree.name, request))
            metrics = [
                {"name": "operations", "unit": "1", "value": 1},
                {"name": "floor_bytes", "unit": "B", "value": 8},
            ]
            return {"status": "ok", "metrics": metrics, "clocks": request["clocks"], "settings": {"roof": "fma"}}
        server.session.order.append(server.tree.name)
        if self._blocks == server.session.late.get(server.tree.name):
            raise WorkerLost("crashed", "killed by SIGSEGV")
        self._blocks += 1
        seconds = server.session.seconds[server.tree.name] * math.exp(server.session.spread * random.gauss(0, 1))
        return {"status": "ok", "calls": 1, "values": [seconds] * 5, "readings": {}}

    def close(self) -> int:
        return 0


class FakeServer:
    threads = 1

    def __init__(self, session: FakeSession, tree: Path):
        self.session, self.tree = session, tree

    def fork(self, limit: int = 0) -> FakeWorker:
        return FakeWorker(self)


class FakeSession:
    """Servers whose workers take what `seconds` says, by the name of the tree; what they did is kept."""

    def __init__(
        self, base: float = 1e-3, new: float = 1e-3, spread: float = 0.002, late: dict[str, int] | None = None
    ):
        random.seed(3)
        self.seconds, self.spread, self.late = {BASE: base, NEW: new}, spread, late or {}
        self.begun: list[tuple[str, dict[str, Any]]] = []
        self.order: list[str] = []
        self.alive: list[FakeServer] = []
        self.started: list[str] = []

    def start(self, tree: Path) -> FakeServer:
        self.alive.append(FakeServer(self, tree))
        self.started.append(tree.name)
        return self.alive[-1]

    def stop(self, server: FakeServer) -> None:
        self.alive.remove(server)


class FakePlan:
    def __init__(self, cases: dict[str, Case], settled: tuple[str, ...] = ()):
        self.cases, self._settled, self.declared = list(cases.values()), settled, DECLARED

    def settled(self, case: Case, run: str) -> str | None:
        return "settled" if case.id in self._settled else None

    def memory_limits(self, cases: list[Case]) -> dict[str, int]:
        return {case.id: 0 for case in cases}

    def call_forecast(self, case: Case) -> float:
        return 1e-3


class FakeRevision(Revision):
    """Whose programs are `contents`, by op."""

    def program(self, file: str, library: str) -> dict[str, str]:
        return {"op": self.contents.get(Path(file).stem, "same")}


def revision(name: str, **programs: str) -> Revision:
    made = FakeRevision(name, "c0ffee" * 6, Path(name))
    made.__dict__["contents"] = programs
    return made


def sides(cases: dict[str, Case] = CASES, **programs: str) -> tuple[ab.Side, ab.Side]:
    plans: list[Any] = [FakePlan(cases), FakePlan(cases)]
    server: Any = None
    return ab.Side(BASE, revision(BASE), plans[0], server), ab.Side(NEW, revision(NEW, **programs), plans[1], server)


def wanted(ops: list[str] | None = None, *patterns: str) -> ab.Wanted:
    return ab.Wanted(ops, None, list(patterns))


def compared(session: Any, looks: tuple[int, ...] = LOOKS, limit: float = math.inf) -> tuple[Any, list[Record]]:
    """The comparison of all cases, and the records that were kept."""
    kept: list[Record] = []
    both = sides()
    request = ab.Request([], selection(axes={"size": [[7, 7]]}), wanted(), ASKED, looks, limit)
    pairs = ab.Pairs(request.selection, session, both, "run", 0.0)
    matched = ab.Matched(measured=list(CASES))
    return ab.compare_sides(pairs, matched, request, lambda made, forecast: kept.extend(made)), kept


def test_blocks_alternate_in_quartets_of_either_order() -> None:
    session = FakeSession()
    compared(session, looks=(8,))
    quartets = {tuple(session.order[i : i + 4]) for i in range(0, len(session.order), 4)}
    assert quartets == {(BASE, NEW, NEW, BASE), (NEW, BASE, BASE, NEW)}


def test_each_pair_has_servers_of_its_own_in_either_order() -> None:
    session = FakeSession()
    compared(session, looks=(8,))
    pairs = {tuple(session.started[i : i + 2]) for i in range(0, len(session.started), 2)}
    assert pairs == {(BASE, NEW), (NEW, BASE)}
    assert len(session.started) == 16
    assert not session.alive


def test_a_pair_has_several_processes_of_each_side_and_case() -> None:
    session = FakeSession()
    _, records = compared(session, looks=(8,))
    assert len(session.begun) == 8 * 2 * len(CASES) * ab.FORKS
    for record in records:
        first = record.axes["pair"] * ab.FORKS
        assert {block.process for block in record.samples} == set(range(first, first + ab.FORKS))
        assert len(record.samples) == 2 * ab.QUARTETS * ab.FORKS


def test_results_are_checked_in_the_first_pair_and_one_clock_is_taken() -> None:
    session = FakeSession()
    compared(session, looks=(8,))
    assert sum(request["check"] for _, request in session.begun) == 2 * len(CASES)
    assert {tuple(request["clocks"]) for _, request in session.begun} == {("latency_wall",)}


def test_what_is_decided_early_stops_at_the_first_look() -> None:
    comparison, records = compared(FakeSession(new=1.1e-3))
    assert {v.verdict for v in comparison.verdicts} == {SLOWER}
    assert len(records) == 2 * len(CASES) * LOOKS[0]
    assert len({record.case for record in records}) == len(records)


def test_what_stays_open_goes_on_to_the_last_look() -> None:
    comparison, records = compared(FakeSession(spread=0.3))
    assert {v.verdict for v in comparison.verdicts} == {SAME}
    assert len(records) == 2 * len(CASES) * LOOKS[-1]


def test_the_limit_ends_it_with_what_is_there() -> None:
    _, records = compared(FakeSession(spread=0.3), limit=1e-9)
    assert len(records) == 2 * len(CASES)


def test_a_case_that_crashes_is_missing_and_no_longer_measured() -> None:
    comparison, records = compared(FakeSession(late={NEW: 3}))
    assert {v.verdict for v in comparison.verdicts} == {MISSING}
    assert comparison.exit_code() == 4
    assert len(records) == 2 * len(CASES)
    assert {record.status for record in records if record.axes["side"] == NEW} == {"crashed"}
    assert all(record.samples for record in records)


def test_what_differs_is_measured_and_a_placebo_beside_it() -> None:
    both = sides(ddf="another")
    found = ab.match(*both, wanted())
    by_op = {case: CASES[case].op for case in found.measured}
    assert {op for case, op in by_op.items() if case not in found.placebos} == {"ddf_op"}
    assert [by_op[case] for case in found.placebos] == ["dwconv"]


def test_nothing_is_measured_where_nothing_differs_unless_it_is_named() -> None:
    assert ab.match(*sides(), wanted()).measured == []
    found = ab.match(*sides(), wanted(["dwconv"]))
    assert found.measured == found.placebos != []


def test_a_named_op_gets_a_placebo_that_nobody_named() -> None:
    both = sides(ddf="another")
    found = ab.match(*both, wanted(["ddf_op"]))
    assert {CASES[case].op for case in found.placebos} == {"dwconv"}
    planned = wanted(["ddf_op"]).selection(selection(axes={}))
    assert planned.ops == ["ddf_op", "dwconv"]


def test_cases_are_named_by_parts_and_patterns() -> None:
    both = sides(ddf="another")
    for pattern in ("ddf_op/native", "latency:ddf_op/native@*", *(case for case in CASES if "ddf_op/native" in case)):
        found = ab.match(*both, wanted(None, pattern))
        assert [CASES[case].impl for case in found.measured if case not in found.placebos] == ["native"]
    with pytest.raises(UsageError, match="--case: 'dddf' fits none"):
        ab.match(*both, wanted(None, "dddf"))


def test_cases_of_one_side_alone_are_told() -> None:
    fewer = dict(list(CASES.items())[1:])
    base, new = sides(ddf="another")
    new = ab.Side(NEW, new.revision, FakePlan(fewer), new.server)  # type: ignore[arg-type]
    assert ab.match(base, new, wanted()).only == {BASE: [next(iter(CASES))], NEW: []}


# The whole command


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with two commits, the second of which changes what `dwconv` and `conv` are; the first is
    of before costs told their operations."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("ops", "csrc", "suites", "reports"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "published"))
    for name in ("runner.py", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    costs = root / "ops" / "__init__.py"
    today = costs.read_text()
    costs.write_text(today.replace("def operations(self)", "def another(self)"))
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "as it was")
    costs.write_text(today)
    file = root / "ops" / "convolution.py"
    file.write_text(file.read_text().replace("return lambda: conv(features)", "return lambda: 2 * conv(features)"))
    git(root, "commit", "-qam", "wrong")
    return root


def run(clone: Path, folder: Path, *arguments: str, command: str = "ab") -> subprocess.CompletedProcess[str]:
    command_line = [sys.executable, str(clone / "runner.py"), command, *arguments]
    return subprocess.run(command_line, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


SMALL = (
    "--op",
    "dwconv",
    "--impl",
    "torch",
    "--resolution",
    "7",
    "--channels",
    "4",
    "--device",
    "cpu",
    "--processes",
    "1",
)


def test_a_wrong_result_in_the_new_revision_is_missing(clone: Path, tmp_path: Path) -> None:
    done = run(clone, tmp_path, "HEAD~1", "HEAD", *SMALL, "--output", "out")
    assert done.returncode == 4, done.stderr
    assert "wrong result" in done.stdout
    for name in ("run.json", "records.jsonl", "comparison.md", "comparison.csv", "comparison.json"):
        assert (tmp_path / "out" / name).stat().st_size, name
    before = (tmp_path / "out" / "comparison.csv").read_text()
    again = run(clone, tmp_path, "out", "--output", "again", command="report")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "comparison.csv").read_text() == before
    both = run(clone, tmp_path, "out", "out", "--output", "both", command="report")
    assert "is reported alone" in both.stderr
    told = json.loads((tmp_path / "out" / "run.json").read_text())["ab"]
    assert told["base_commit"] == git(clone, "rev-parse", "HEAD~1")
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {(r["side"], r["status"]) for r in records} == {("base", "ok"), ("new", "failed")}


def test_one_pair_of_the_same_program_is_ambiguous(clone: Path, tmp_path: Path) -> None:
    """The harness, of the second commit, measures the operators of the first on both sides."""
    done = run(clone, tmp_path, "HEAD~1", "HEAD~1", *SMALL, "--strict")
    assert done.returncode == 3, done.stderr
    assert "placebo" in done.stdout
    assert "6" in done.stdout  # pairs that would decide
    assert "not calibrated" in done.stdout


def test_without_a_change_there_is_nothing_to_measure(clone: Path, tmp_path: Path) -> None:
    done = run(clone, tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "run the same programs" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-such-revision",), "revision: 'no-such-revision' is not a commit"),
        (("a", "b", "c"), "REV: 'a b c' are 3 revisions"),
        (("HEAD", "--suite", "params"), "--suite: 'params' has no times"),
        (("HEAD", "--floor", "x"), "--floor: 'x' is not"),
        (("HEAD", "--limit", "0"), "--limit: '0' is not"),
    ],
)
def test_bad_input_is_one_line(runner: Runner, arguments: tuple[str, ...], said: str) -> None:
    done = runner("ab", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("runner.py: error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_options_become_a_request() -> None:
    options = argparse.Namespace(
        rev=["HEAD"], suite=None, case=None, limit="90", processes="10", floor="5", level=None, metric=None,
        strict=True, all=False, format=None, output=None,
    )  # fmt: skip
    found = ab.Request.of(options, selection(processes=10, axes={}))
    assert (found.revisions, found.looks, found.limit, found.asked.floor) == (["HEAD", "."], (10,), 90.0, 0.05)
    options.processes = None
    assert ab.Request.of(options, selection(axes={})).looks == LOOKS
