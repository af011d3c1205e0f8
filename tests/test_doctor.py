"""Whether a machine is fit: each finding in each of its states, from files and answers made up for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Runner

from suites.core import doctor, findings
from suites.core.cases import UsageError
from suites.core.doctor import as_json, as_text, verdict
from suites.core.findings import OK, PROBLEM, UNKNOWN, WARNING, Finding, Host
from suites.core.processes import WorkerLost

CPU = "sys/devices/system/cpu"
Files = dict[str, str]


def host(root: Path, files: Files, cpus: tuple[int, ...] = (0, 1), system: str = "linux") -> Host:
    """A machine of which these files are all there is to read."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return Host(root, cpus, system, process=100)


def each_cpu(path: str, *texts: str) -> Files:
    return {f"{CPU}/cpu{number}/{path}": text for number, text in enumerate(texts)}


AVAILABLE = "MemTotal: 99999999 kB\nMemAvailable: {} kB"
V2, V1 = {"proc/self/cgroup": "0::/a/b"}, {"proc/self/cgroup": "4:memory:/m\n1:cpu,cpuacct:/a\n0::/"}
QUOTA = "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us"
PERIOD = "sys/fs/cgroup/cpu/a/cpu.cfs_period_us"

AT_ONCE = [
    ("load", {"proc/loadavg": "0.90 0.5 0.1 1/99 1234"}, OK, "average 0.9 on 2 cores"),
    ("load", {"proc/loadavg": "1.00 0.5 0.1 1/99 1234"}, WARNING, "average 1.0 on 2 cores"),
    ("load", {"proc/loadavg": "2.00 0.5 0.1 1/99 1234"}, PROBLEM, "average 2.0 on 2 cores"),
    ("load", {}, UNKNOWN, "no load average"),
    ("load", {"proc/loadavg": "busy"}, UNKNOWN, "not understood"),
    ("governor", each_cpu("cpufreq/scaling_governor", "performance", "performance"), OK, "performance"),
    ("governor", each_cpu("cpufreq/scaling_governor", "performance", "powersave"), WARNING, "performance, powersave"),
    ("governor", {}, UNKNOWN, "no frequency scaling"),
    ("boost", {f"{CPU}/cpufreq/boost": "0"}, OK, "off"),
    ("boost", {f"{CPU}/cpufreq/boost": "1"}, WARNING, "on"),
    ("boost", {f"{CPU}/intel_pstate/no_turbo": "1"}, OK, "off"),
    ("boost", {f"{CPU}/intel_pstate/no_turbo": "0"}, WARNING, "on"),
    ("boost", {}, UNKNOWN, "no boost setting"),
    ("quota", {**V2, "sys/fs/cgroup/a/cpu.max": "max 100000"}, OK, "no bound"),
    ("quota", {**V2, "sys/fs/cgroup/a/cpu.max": "200000 100000"}, OK, "2 cores, 2 are visible"),
    ("quota", {**V2, "sys/fs/cgroup/a/cpu.max": "150000 100000"}, PROBLEM, "1.5 cores, 2 are visible"),
    ("quota", {**V2, "sys/fs/cgroup/cpu.max": "50000 100000"}, PROBLEM, "0.5 cores"),
    ("quota", {**V1, QUOTA: "-1", PERIOD: "100000"}, OK, "no bound"),
    ("quota", {**V1, QUOTA: "25000", PERIOD: "100000"}, PROBLEM, "0.25 cores"),
    ("quota", V2, UNKNOWN, "no control group"),
    ("quota", {"proc/self/cgroup": "nonsense"}, UNKNOWN, "not understood"),
    ("siblings", each_cpu("topology/thread_siblings_list", "0", "1"), OK, "2 processors on 2 cores"),
    ("siblings", each_cpu("topology/thread_siblings_list", "0,2", "1,3"), OK, "2 processors on 2 cores"),
    ("siblings", each_cpu("topology/thread_siblings_list", "0-1", "0-1"), WARNING, "2 processors on 1 cores"),
    ("siblings", {}, UNKNOWN, "no topology"),
    ("memory", {"proc/meminfo": AVAILABLE.format(5 * 2**20)}, OK, "5.0 GiB available"),
    ("memory", {"proc/meminfo": AVAILABLE.format(3 * 2**20)}, WARNING, "3.0 GiB available"),
    ("memory", {"proc/meminfo": AVAILABLE.format(2**19)}, PROBLEM, "0.5 GiB available"),
    ("memory", {"proc/meminfo": "MemTotal: 1 kB"}, UNKNOWN, "no memory"),
    ("huge_pages", {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never"}, OK, "madvise"),
    ("huge_pages", {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"}, WARNING, "always"),
    ("huge_pages", {}, UNKNOWN, "no setting"),
]


@pytest.mark.parametrize(("name", "files", "state", "measured"), AT_ONCE)
def test_what_can_be_read_at_once(tmp_path: Path, name: str, files: Files, state: str, measured: str) -> None:
    look: Callable[[Host], Finding] = getattr(findings, name)
    found = look(host(tmp_path, files))
    assert (found.state, measured in found.measured) == (state, True), found
    assert found.meaning
    assert bool(found.advice) == (state in (WARNING, PROBLEM))


def test_another_system_than_linux_is_warned_of(tmp_path: Path) -> None:
    assert findings.system(host(tmp_path, {})).state == OK
    assert findings.system(host(tmp_path, {}, system="darwin")).state == WARNING


def test_a_run_is_warned_of_what_doctor_finds_at_once(tmp_path: Path) -> None:
    assert findings.warnings(findings.at_once(host(tmp_path, {}))) == []
    found = findings.at_once(host(tmp_path, {"proc/loadavg": "3.0 1 1 1/2 3"}, system="darwin"))
    assert [line.partition(";")[0] for line in findings.warnings(found)] == [
        "system: darwin",
        "load: average 3.0 on 2 cores",
    ]


# Watched


def stat(user: int = 0, idle: int = 0, steal: int = 0) -> str:
    return f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1"


def process(name: str, ticks: int) -> str:
    return f"7 ({name}) R " + " ".join(["0"] * 10) + f" {ticks} 0 0 0"


def watch(root: Path, after: Files, before: Files | None = None) -> dict[str, Finding]:
    here = host(root, {"proc/stat": stat(), "proc/100/stat": process("this", 0)} if before is None else before)
    found = findings.watched(here, 1.0, sleep=lambda seconds: host(root, after) and None)
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize(
    ("user", "state", "measured"),
    [(2, OK, "use 0.02 of 2 cores"), (30, WARNING, "use 0.30 of 2 cores"), (60, PROBLEM, "use 0.60 of 2 cores")],
)
def test_other_programs(tmp_path: Path, user: int, state: str, measured: str) -> None:
    found = watch(tmp_path, {"proc/stat": stat(user, 200 - user)})["other programs"]
    assert (found.state, found.measured) == (state, measured)


def test_this_program_is_not_another_and_the_loudest_are_named(tmp_path: Path) -> None:
    after = {
        "proc/stat": stat(90, 110),
        "proc/100/stat": process("this", 50),
        "proc/200/stat": process("loud (one)", 36),
        "proc/300/stat": process("quiet", 1),
    }
    found = watch(tmp_path, after)["other programs"]
    assert (found.state, found.measured) == (WARNING, "use 0.40 of 2 cores, loud (one) 0.36")


@pytest.mark.parametrize(("ticks", "state"), [(1, OK), (4, WARNING), (10, PROBLEM)])
def test_steal(tmp_path: Path, ticks: int, state: str) -> None:
    found = watch(tmp_path, {"proc/stat": stat(0, 200 - ticks, ticks)})["steal"]
    assert (found.state, found.measured) == (state, f"{ticks / 2:.1f} % of CPU time")


def test_a_machine_that_tells_no_cpu_times(tmp_path: Path) -> None:
    assert {found.state for found in watch(tmp_path, {}, before={}).values()} == {UNKNOWN}
    assert {found.state for found in watch(tmp_path, {}).values()} == {UNKNOWN}  # nothing has passed
    short = "cpu  1 2 3 4"
    assert watch(tmp_path, {"proc/stat": "cpu  1 2 3 104"}, before={"proc/stat": short})["steal"].state == UNKNOWN


@pytest.mark.parametrize(("step", "state"), [(5e-8, OK), (2e-6, WARNING), (1e-3, PROBLEM), (0.0, UNKNOWN)])
def test_timer(tmp_path: Path, step: float, state: str) -> None:
    source = {"sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc"}
    found = findings.timer(host(tmp_path, source), [number // 2 * step for number in range(10)])
    assert found.state == state
    assert ("clock source tsc" in found.measured) == (state != UNKNOWN)


# What workers answer


def blocks(*processes: list[float], switches: int | None = 0, **readings: Any) -> list[list[dict[str, Any]]]:
    """Blocks by process, from the median of each."""
    counted = {} if switches is None else {"context_switches": switches}
    return [[{"values": [m, m, 9.0], "readings": {**counted, **readings}} for m in medians] for medians in processes]


WORKERS = [
    (doctor.compiler("g++ 12"), OK, "g++ 12"),
    (doctor.compiler(None), PROBLEM, "none is found"),
    (doctor.optional_packages({"ninja": "1.13", "fvcore": "0.1"}, None), OK, "ninja 1.13, fvcore 0.1"),
    (doctor.optional_packages({"ninja": None, "fvcore": "0.1"}, "/bin/ninja"), OK, "ninja /bin/ninja"),
    (doctor.optional_packages({"ninja": "1.13", "fvcore": None}, None), WARNING, "fvcore missing"),
    (doctor.optional_packages({"ninja": None, "fvcore": None}, None), PROBLEM, "ninja missing"),
    (doctor.torch_version("2.11.0+cu130"), OK, "2.11.0+cu130"),
    (doctor.torch_version("3.0a0"), UNKNOWN, "not understood"),
    (doctor.torch_version("2.10.1"), PROBLEM, "2.10.1"),
    (doctor.torch_version("main"), UNKNOWN, "not understood"),
    (doctor.native_operator(""), OK, "built and loaded"),
    (doctor.native_operator("cannot be built: no nvcc"), PROBLEM, "no nvcc"),
    (doctor.roofs([], True), OK, "built and loaded"),
    (doctor.roofs(["csrc/ddf cannot", "csrc/roofs cannot be built"], False), WARNING, "csrc/roofs cannot be built"),
    (doctor.roofs([], False), WARNING, "cannot be loaded"),
    (doctor.within(blocks([1.0, 1.04], [2.0, 2.0])), OK, "3.9 % among 2 blocks of a call of 1e+03 ms at best"),
    (doctor.within(blocks([1.0, 1.0], [2.0, 2.2])), WARNING, "9.5 %"),
    (doctor.within(blocks([1.0, 1.0], [1.0, 1.5])), PROBLEM, "40.0 %"),
    (doctor.between(blocks([1.0, 5.0, 1.0], [1.02] * 3, [1.01] * 3)), OK, "2.0 % among 3 processes"),
    (doctor.between(blocks([1.0], [1.1], [1.0])), WARNING, "10.0 %"),
    (doctor.between(blocks([1.0], [1.3], [1.0])), PROBLEM, "30.0 %"),
    (doctor.switches(blocks([1.0], [1.0])), OK, "0 in a block of 40 ms, 0 at most"),
    (doctor.switches(blocks([1.0], [1.0], switches=3)), WARNING, "3 in a block"),
    (doctor.switches(blocks([1.0], [1.0], switches=12)), PROBLEM, "12 in a block"),
    (doctor.switches(blocks([1.0], switches=None)), UNKNOWN, "not counted"),
    (doctor.driver("580.1"), OK, "580.1"),
    (doctor.driver(None), UNKNOWN, "does not tell"),
    (doctor.neighbours({"compute": 0, "graphics": 0}), OK, "0 besides this one, 0 with graphics"),
    (doctor.neighbours({"compute": 0, "graphics": 1}), WARNING, "1 with graphics"),
    (doctor.neighbours({"compute": 2, "graphics": 0}), PROBLEM, "2 besides"),
    (doctor.neighbours(None), UNKNOWN, "does not tell"),
    (doctor.throttling(blocks([1.0], throttled=[])), OK, "none in any block"),
    (doctor.throttling(blocks([1.0], throttled=["HwSlowdown"])), PROBLEM, "HwSlowdown"),
    (doctor.throttling(blocks([1.0])), UNKNOWN, "does not tell"),
    (doctor.workers(WorkerLost("crashed", "killed by SIGSEGV")), PROBLEM, "crashed: killed by SIGSEGV"),
]


@pytest.mark.parametrize(("found", "state", "measured"), WORKERS, ids=lambda value: getattr(value, "name", None))
def test_what_workers_find(found: Finding, state: str, measured: str) -> None:
    assert (found.state, measured in found.measured) == (state, True), found
    assert bool(found.advice) == (state in (WARNING, PROBLEM))


class FakeServer:
    """A server and its workers, which answer from a table; what is missing there kills them."""

    def __init__(self, answers: dict[str, dict[str, Any]]):
        self.answers, self.asked, self.open = answers, [], 0  # type: ignore[var-annotated]

    def fork(self) -> FakeServer:
        self.open += 1
        return self

    def close(self) -> None:
        self.open -= 1

    def ask(self, request: dict[str, Any], timeout: float, say: object = None) -> dict[str, Any]:
        self.asked.append(request["do"])
        if request["do"] not in self.answers:
            raise WorkerLost("crashed", "killed by SIGSEGV")
        return {"status": "ok", **self.answers[request["do"]]}


ANSWERS: dict[str, dict[str, Any]] = {
    "device": {"name": "cuda:0", "device": {"kind": "cuda", "driver": "580.1"}, "software": {"torch": "2.13.0"}},
    "build": {"failed": []},
    "examine": {"native": "", "roofs": True, "others": {"compute": 0, "graphics": 0}},
    "reference": {},
    "block": {"values": [1.0], "readings": {"context_switches": 0, "throttled": []}},
}


def ask_fakes(answers: dict[str, dict[str, Any]]) -> tuple[list[Finding], list[FakeServer]]:
    servers = [FakeServer(answers) for _ in range(3)]
    try:
        return doctor.in_workers(servers, "auto", print), servers  # type: ignore[arg-type]
    finally:
        assert [server.open for server in servers] == [0, 0, 0]


def test_each_server_measures_the_reference_call_and_every_worker_is_closed() -> None:
    found, servers = ask_fakes(ANSWERS)
    assert {finding.state for finding in found} == {OK}
    assert {"programs on the GPU", "throttling", "driver"} < {finding.name for finding in found}
    assert [server.asked.count("block") for server in servers] == [doctor.BLOCKS] * 3
    on_cpu, _ = ask_fakes({**ANSWERS, "device": {**ANSWERS["device"], "device": {"kind": "cpu"}}})
    assert "throttling" not in {finding.name for finding in on_cpu}


@pytest.mark.parametrize("step", ["build", "examine", "reference", "block"])
def test_a_lost_worker_is_a_finding(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = {name: answer for name, answer in ANSWERS.items() if name != step}
    failed = {**ANSWERS, step: {"status": "failed", "reason": "RuntimeError: no"}}
    for answers, says in ((lost, "killed by SIGSEGV"), (failed, "RuntimeError: no")):
        with pytest.raises(WorkerLost, match=says):
            ask_fakes(answers)

    def lose(*arguments: object) -> list[Finding]:
        raise WorkerLost("crashed", "killed by SIGSEGV")

    class NoSession:
        servers: tuple[()] = ()

        def __init__(self, suites: object) -> None: ...
        def __enter__(self) -> NoSession:
            return self

        def __exit__(self, *error: object) -> None: ...
        def replicate(self, count: int) -> None: ...

    monkeypatch.setattr(doctor, "in_workers", lose)
    monkeypatch.setattr(doctor, "Session", NoSession)
    monkeypatch.setattr(doctor, "WATCH_SECONDS", 0.0)
    found = doctor.examine("auto", print)
    assert (found[-1].name, found[-1].state) == ("workers", PROBLEM)


def test_a_device_that_there_is_not_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--device: torch sees none"):
        ask_fakes({"device": {"status": "failed", "reason": "ValueError: torch sees none"}})


# Told


FINE, ODD, BAD = (
    Finding("fine", OK, "as it should be", "nothing"),
    Finding("odd", WARNING, "a bit off", "some noise", "look"),
    Finding("bad", PROBLEM, "far off", "much noise", "stop"),
)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([FINE], "fit to measure"),
        ([FINE, ODD], "fit to measure: 1 warning"),
        ([BAD, ODD, ODD], "not fit to measure: 1 problem, 2 warnings"),
        ([BAD, BAD], "not fit to measure: 2 problems"),
    ],
)
def test_the_verdict(found: list[Finding], words: str) -> None:
    assert verdict(found) == words


def test_text_says_what_to_do_and_json_says_all() -> None:
    assert as_text([FINE, ODD]).splitlines() == [
        "ok       fine  as it should be",
        "warning  odd   a bit off",
        "            some noise",
        "         -> look",
        "fit to measure: 1 warning",
    ]
    told = json.loads(as_json([FINE, BAD]))
    assert told["fit"] is False
    assert [finding["advice"] for finding in told["findings"]] == ["", "stop"]
    assert json.loads(as_json([FINE, ODD]))["fit"] is True


@pytest.mark.parametrize(
    ("found", "arguments", "code"),
    [
        ([FINE], ["--strict"], 0),
        ([ODD], [], 0),
        ([ODD], ["--strict"], 3),
        ([BAD, ODD], ["--strict"], 4),
        ([BAD], [], 4),
    ],
)
def test_exit_codes(found: list[Finding], arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import runner

    asked = []
    monkeypatch.setattr(doctor, "examine", lambda device, say: asked.append(device) or found)
    assert runner.main(["doctor", "--device", "cuda", *arguments]) == code
    assert asked == ["cuda:0"]


def test_this_machine_is_examined(runner: Runner) -> None:
    done = runner("doctor", "--device", "cpu", "--format", "json")
    told = json.loads(done.stdout)
    assert done.returncode == (0 if told["fit"] else 4), done.stderr
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert set(states.values()) <= {OK, WARNING, PROBLEM, UNKNOWN}
    assert states["torch"] == states["native operator"] == states["roofs"] == OK
    assert UNKNOWN not in (states["timer"], states["noise within a process"], states["noise between processes"])
    assert "workers" not in states
