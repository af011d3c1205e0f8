"""A run on a Ray cluster: a sweep over three nodes on loopback, through the death of its driver and of a node.

One run serves all tests, since a cluster and its workers take a while to start.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("ray")

import runner
from suites.core import sources
from suites.core.cases import UsageError
from suites.core.fleet import CORES, Group, Slot, given_up, model_of, moved, offered
from suites.core.machine import affinity

#: Groups enough that both devices of a model still have some when the driver goes on and a node is killed.
SWEEP = (
    *("--preset", "quick", "--suite", "latency,params", "--op", "dwconv,ddf_op", "--impl", "torch,composite"),
    *("--resolution", "5,6,7,8,9,10", "--channels", "8", "--seconds", "0.05", "--processes", "1"),
)
#: Types of the nodes' accelerators: two devices of one model share its cases, the third has all of its own.
TYPES = ("alpha", "alpha", "beta")
#: What every node has.
PLAIN = {"num_cpus": 0, "object_store_memory": 80_000_000, "node_ip_address": "127.0.0.1"}
#: With the first, whatever the system, drivers take 127.0.0.1 too for their machine's address.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
#: What a run says once it begins to measure.
MEASURING = "cases, forecast"


@dataclass
class Cluster:
    """Nodes on loopback.

    Args:
        folder: where Ray keeps what it needs, the sources of jobs as well.
        victim: one of the nodes that share a model.
        foreign: the revision of the sources that a further node runs whatever the job brings.
    """

    folder: Path
    running: Any
    victim: Any
    foreign: str


@dataclass
class Sweep:
    """What came of the sweep.

    Args:
        local: status by case of a run without Ray.
        models: by model, its `run.json` and its records.
        before: the lines on disk when the driver was killed, by model.
        lost: part of the id of the node that was killed.
        processors: those on which the nodes' workers may run.
    """

    path: Path
    local: dict[str, str]
    models: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]
    before: dict[str, list[str]]
    lost: str
    processors: set[frozenset[int]]


def lines(path: Path) -> list[str]:
    """Whole lines of all records below a folder, those of one file together."""
    return [line for file in sorted(path.rglob("records.jsonl")) for line in file.read_text().splitlines()]


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processors_of_workers(folder: Path) -> set[frozenset[int]]:
    """Those of each worker, and of the server that it is forked from, which runs below a folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (
                b"suites.core.server" in (process / "cmdline").read_bytes()
                and folder in (process / "cwd").resolve().parents
            ):
                found.add(frozenset(os.sched_getaffinity(int(process.name))))
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    from ray import cluster_utils

    other = tmp_path_factory.mktemp("other")
    sources.pack(ROOT, [], other)
    (other / "ops" / "pac.py").write_text("# another revision\n")
    # A node's processes look in the job's sources first, even before PYTHONPATH, unless a hook has others by then.
    (other / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(other)!r})\nimport suites\n")
    folder = Path(tempfile.mkdtemp(prefix="ddf-"))  # short, as sockets lie in it
    offers = [{**PLAIN, "resources": {CORES: 1, f"accelerator_type:{name}": 1}} for name in (*TYPES, "gamma")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**LOOPBACK, "RAY_TMPDIR": str(folder)}.items():
            patch.setenv(name, value)
        running = cluster_utils.Cluster(initialize_head=True, head_node_args={**offers[2], "include_dashboard": False})
        try:
            victim, _ = running.add_node(**offers[0]), running.add_node(**offers[1])
            running.add_node(**offers[3], env_vars={"PYTHONPATH": str(other)})
            yield Cluster(folder, running, victim, sources.revision(other))
        finally:
            running.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("fleet")
    path, said = folder / "run", folder / "said"
    command = [sys.executable, str(ROOT / "runner.py")]

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        with said.open("wb") as file:
            return subprocess.Popen([*command, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=file)

    fleet = ("--executor", "ray", "--ray-address", cluster.running.address, "--device", "cpu")
    driver = start(*SWEEP, *fleet, "--output", "run")
    victim = cluster.victim.node_id[:8]
    wait_for(lambda: any(victim in line for line in lines(path)), driver, said)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {file.parent.name: file.read_text().splitlines() for file in path.rglob("records.jsonl")}

    driver = start("--resume", "run")
    wait_for(lambda: MEASURING in said.read_text(), driver, said)
    processors = processors_of_workers(cluster.folder)
    cluster.running.remove_node(cluster.victim, allow_graceful=False)
    assert driver.wait(timeout=240) == 0, said.read_text()

    assert start(*SWEEP, "--device", "cpu", "--output", "local").wait(timeout=240) == 0, said.read_text()
    local = {record["case"]: record["status"] for record in map(json.loads, lines(folder / "local"))}
    models = {}
    for file in path.rglob("records.jsonl"):
        environment = json.loads((file.parent / "run.json").read_text())
        models[environment["model"]] = (environment, [json.loads(line) for line in file.read_text().splitlines()])
    return Sweep(path, local, models, before, victim, processors)


@pytest.mark.slow
def test_each_model_has_the_cases_and_statuses_of_a_local_run(sweep: Sweep) -> None:
    assert sorted(model.rpartition(", ")[2] for model in sweep.models) == ["alpha", "beta"]
    for _, records in sweep.models.values():
        assert {record["case"]: record["status"] for record in records} == sweep.local


@pytest.mark.slow
def test_no_record_is_lost_or_repeated(sweep: Sweep) -> None:
    for environment, records in sweep.models.values():
        assert len({record["case"] for record in records}) == len(records) == len(sweep.local)
        folder = environment["run"].rpartition("/")[2]
        kept = (sweep.path / folder / "records.jsonl").read_text().splitlines()
        assert kept[: len(sweep.before[folder])] == sweep.before[folder]
    assert any(sweep.before.values())


@pytest.mark.slow
def test_no_two_measurements_overlap_on_a_node(sweep: Sweep) -> None:
    nodes = set()
    for environment, records in sweep.models.values():
        later = records[len(sweep.before[environment["run"].rpartition("/")[2]]) :]
        for some in (records[: len(records) - len(later)], later):  # each driver counts from its own begin
            for node in {record["settings"]["node"] for record in some}:
                nodes.add(node)
                own = [record for record in some if record["settings"]["node"] == node]
                taken = sorted({tuple(record["settings"]["taken"]) for record in own})
                assert all(first[1] <= second[0] for first, second in itertools.pairwise(taken))
                for record in own:
                    begin, end = record["settings"]["taken"]
                    assert all(begin <= block["time"] <= end for block in record["samples"])
    assert len(nodes) == len(TYPES)


@pytest.mark.slow
def test_a_group_stays_on_one_device_with_its_roofs(sweep: Sweep) -> None:
    for environment, records in sweep.models.values():
        begun = len(sweep.before[environment["run"].rpartition("/")[2]])
        timed = [(i < begun, record) for i, record in enumerate(records) if record["suite"] == "latency"]
        for resolution in {record["height"] for _, record in timed}:
            group = [(early, record) for early, record in timed if record["height"] == resolution]
            assert len(group) == 2
            for early in (True, False):  # the death of the driver can part a group
                own = [record["settings"] for when, record in group if when == early]
                assert len({(settings["node"], *settings["taken"]) for settings in own}) <= 1
            assert all(any(m["name"] == "roof_fraction" for m in record["metrics"]) for _, record in group)


@pytest.mark.slow
def test_the_loss_of_a_node_is_recorded_and_its_group_moved(sweep: Sweep) -> None:
    environment, records = next(found for model, found in sweep.models.items() if model.endswith("alpha"))
    moved_on = [record for record in records if "lost" in record["settings"]]
    assert moved_on
    assert all(sweep.lost in record["settings"]["lost"][0] for record in moved_on)
    assert not any(sweep.lost in record["settings"]["node"] for record in moved_on)
    (lost,) = [told["lost"] for name, told in environment["nodes"].items() if sweep.lost in name]
    assert len(lost) == 1
    assert all(told["machine"]["cpu"] and told["software"]["torch"] for told in environment["nodes"].values())


@pytest.mark.slow
def test_each_model_has_its_tables_and_all_are_compared(sweep: Sweep) -> None:
    folders = [environment["run"].rpartition("/")[2] for environment, _ in sweep.models.values()]
    for folder in folders:
        assert (sweep.path / folder / "tables" / "latency.csv").is_file()
    text = (sweep.path / "devices.md").read_text()
    assert all(model in text for model in sweep.models)


@pytest.mark.slow
def test_a_node_with_other_sources_is_refused(sweep: Sweep, cluster: Cluster) -> None:
    expected = f"is left out: it has the sources {cluster.foreign}, the job is of {sources.revision(ROOT)}"
    for environment, _ in sweep.models.values():
        (note,) = [note for note in environment["warnings"] if "left out" in note]
        assert note.endswith(expected)


@pytest.mark.slow
def test_workers_run_on_the_cores_that_their_node_offers(sweep: Sweep) -> None:
    assert sweep.processors == {frozenset(affinity()[-1:])}
    for environment, records in sweep.models.values():
        assert {told["machine"]["cores"] for told in environment["nodes"].values()} == {1}
        assert {record["threads"] for record in records if record["suite"] == "latency"} == {1}


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    accelerators = {key.replace("type_", "accelerator_type:"): value for key, value in resources.items()}
    return {"NodeID": name, "NodeManagerHostname": name, "Alive": alive, "Resources": accelerators}


NODES = [
    node("head", CPU=4),
    node("big", GPU=2, type_H100=1, exclusive_cores=8),
    node("gone", alive=False, GPU=8, type_A100=1),
    node("plain", exclusive_cores=16),
]


@pytest.mark.parametrize(
    ("device", "accelerators", "found"),
    [
        ("auto", None, [("big", 0, 0), ("big", 0, 1), ("plain", 16, 0)]),
        ("cuda:0", None, [("big", 0, 0), ("big", 0, 1)]),
        ("cpu", None, [("big", 8, 0), ("plain", 16, 0)]),
        ("auto", ["H100"], [("big", 0, 0), ("big", 0, 1)]),
    ],
)
def test_what_a_cluster_offers(device: str, accelerators: list[str] | None, found: list[tuple[str, int, int]]) -> None:
    assert [(slot.host, slot.cores, slot.number) for slot in offered(NODES, device, accelerators)] == found


@pytest.mark.parametrize(
    ("nodes", "device", "accelerators", "says"),
    [
        (NODES, "auto", ["A100"], "--accelerator: 'A100' is not one of H100 here"),
        (NODES[:1], "auto", None, "--executor: no node of the cluster has a GPU or the resource exclusive_cores"),
        (NODES[3:], "cuda:0", None, "--executor: no node of the cluster has a GPU;"),
    ],
)
def test_a_cluster_without_what_is_asked_for(
    nodes: list[dict[str, Any]], device: str, accelerators: list[str] | None, says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        offered(nodes, device, accelerators)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_is(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--suite", "params", "--executor", "ray", "--ray-address", address, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"runner.py: error: --ray-address: nothing answers at {address!r}: ")


@pytest.mark.parametrize(
    ("name", "accelerator", "cores", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 0, "NVIDIA H100 80GB HBM3"),
        ("AMD EPYC", "A", 4, "AMD EPYC, 4 cores, A"),
        ("AMD EPYC", "", 4, "AMD EPYC, 4 cores"),
    ],
)
def test_devices_of_a_model_are_those_that_can_share(name: str, accelerator: str, cores: int, model: str) -> None:
    assert model_of(Slot("id", "host", accelerator, cores, 0), {"device": {"name": name}}) == model


def test_a_group_that_takes_every_device_with_it_is_crashed() -> None:
    from test_schedule import CASES

    group = Group("model", "run", CASES, lost=["a: gone", "b: gone", "c: gone"])
    records = [record for record, _ in given_up(group)]
    assert [record.case for record in records] == [case.id for case in CASES]
    assert {record.status for record in records} == {"crashed"}
    assert records[0].reason.startswith("3 devices were lost while its group was measured: a: gone; b")
    assert moved([(records[0], 1.0)], Group("model", "run", CASES))[0][0] is records[0]
