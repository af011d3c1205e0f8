"""The executor `ray`: an actor on each device of a Ray cluster, which plans and measures there as a run does here.

Ray places the actors, so that nobody else is given their devices: a GPU each (`num_gpus=1`), or all the exclusive
cores that a node offers as the resource `exclusive_cores`. The driver hands out groups, one at a time to an actor, and
is the only one that writes. What happens between two blocks of samples happens on the node alone.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reports import Json, Record
from suites import Case, Suite, suites
from suites.core import sources
from suites.core.cases import Selection, UsageError, record
from suites.core.executors import LOG, Following, Work
from suites.core.machine import affinity
from suites.core.plan import Plan
from suites.core.processes import ROOT, ServerLost
from suites.core.rig import Batch, Rig

#: The custom resource by which a node offers cores that nothing else uses.
CORES = "exclusive_cores"
ACCELERATOR = "accelerator_type:"
#: Seconds to wait for an actor whose device something else may hold.
PATIENCE = 300.0
#: A group that was lost so often is given up, as it may be what kills devices; so is a device that was lost so often.
MOST_LOSSES = 3
#: Seconds in which the head of the cluster has to take a connection.
ANSWER = 10.0
#: Seconds in which the nodes may tell what their workers printed.
FAREWELL = 10.0
#: What the nodes of one model must share besides the sources.
SOFTWARE = ("python", "torch", "cuda")


# On the node


class Post:
    """The actor's side: one device, for as long as the run lasts.

    Args:
        request: the selection, with op files relative to the sources; when the run began; the node's name; how many
            cores to take, 0 for those that the node has.
    """

    def __init__(self, request: Json) -> None:
        # Ray gives an actor one thread; what counts is what a run without Ray would do.
        os.environ.pop("OMP_NUM_THREADS", None)
        if request["cores"]:
            # From the end: the first ones are where the system and Ray itself are at home.
            os.sched_setaffinity(0, affinity()[-request["cores"] :])
        selection = Selection(**request["selection"])
        selection.op_files = [str(ROOT / file) for file in selection.op_files]
        chosen = {name: suite for name, suite in suites().items() if name in selection.suites}
        self._rig = Rig(selection, chosen, request["began"])
        self._began = request["began"]
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        self._settings = {"node": request["node"], **({"gpu": gpus} if gpus else {})}
        self._cases: dict[str, Case] = {}

    def revision(self) -> str:
        """Of the sources that this process runs."""
        return sources.revision(ROOT)

    def open(self, build: bool) -> Json:
        """Plans on this device; tells its environment, or under `refused` why it cannot be used."""
        steps: list[str] = []
        try:
            self._plan = self._rig.plan(steps.append if build else None)
        except UsageError as error:
            return {"refused": str(error)}
        self._cases = {case.id: case for case in self._plan.cases}
        return {"environment": self._rig.environment(), "steps": steps}

    def plan(self) -> Plan:
        return self._plan

    def measure(self, run: str, ids: list[str]) -> Batch:
        """Measures a group; its records say where and when, in seconds since the run's begin."""
        start = time.time() - self._began
        batch = self._rig.measure(run, [self._cases[name] for name in ids])
        taken = [round(start, 3), round(time.time() - self._began, 3)]
        for made, _ in batch:
            made.settings |= {**self._settings, "taken": taken}
        return batch

    def close(self) -> bytes:
        """Ends all workers and returns what they printed."""
        return self._rig.session.end()


# On the driver


@dataclass(frozen=True)
class Slot:
    """One device that a node offers.

    Args:
        cores: exclusive cores; 0 for a GPU.
        accelerator: Ray's name of the node's accelerators, if it has one.
    """

    node_id: str
    host: str
    accelerator: str
    cores: int
    number: int

    @property
    def node(self) -> str:
        """The node's name in records: its host, and enough of its id to tell two nodes of a host apart."""
        return f"{self.host}-{self.node_id[:8]}"

    @property
    def device(self) -> str:
        return "cpu" if self.cores else "cuda:0"


@dataclass
class Group:
    """Cases that stay together on one device.

    Args:
        lost: why it had to be begun again, each time.
    """

    model: str
    run: str
    cases: list[Case]
    lost: list[str] = field(default_factory=list)


@dataclass
class Device:
    """An actor, and the slot that it holds."""

    slot: Slot
    actor: Any
    model: str = ""
    environment: Json = field(default_factory=dict)


class Fleet:
    """The devices of a cluster, see `suites.core.executors.Executor`."""

    def __init__(self, selection: Selection, suites: Mapping[str, Suite]) -> None:
        self._selection = selection
        self._suites = suites
        self._began = time.time()
        self._revision = sources.revision(ROOT)
        self._devices: list[Device] = []
        self._losses: dict[Slot, int] = {}
        self._nodes: dict[str, dict[str, Json]] = {}
        self._plans: dict[str, Plan] = {}
        self._notes: list[str] = []
        self._log: Path | None = None
        self._build = False
        self._stack = ExitStack()

    # Before anything is measured

    def plan(self, say: Callable[[str], None] | None) -> dict[str, Plan]:
        self._connect()
        self._build = say is not None
        slots = offered(ray.nodes(), self._selection.device, self._selection.accelerators)
        tell = say or (lambda line: None)
        tell(f"{len(slots)} devices on {len({slot.node for slot in slots})} nodes of the cluster: planning, building")
        self._open([self._hire(slot) for slot in slots], tell)
        if not self._devices:
            raise UsageError(f"--executor: no device of the cluster can be used: {'; '.join(self._notes)}")
        return self._plans

    def _connect(self) -> None:
        address = self._selection.ray_address or "auto"
        if address != "auto":
            knock(address)
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        op_files = sources.pack(ROOT, self._selection.op_files, folder)
        self._shipped = replace(self._selection, op_files=op_files)
        try:
            ray.init(
                address=address,
                runtime_env={"working_dir": str(folder)},
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = "here" if address == "auto" else f"at {address!r}"
            said = " ".join(str(error).split())[:200]
            raise UsageError(f"--ray-address: no Ray cluster {where}: {said} (docs/fleet.md)") from None
        self._stack.callback(ray.shutdown)

    def _hire(self, slot: Slot) -> Device:
        """Starts the actor of a slot."""
        held = {"resources": {CORES: slot.cores}} if slot.cores else {"num_gpus": 1}
        where = NodeAffinitySchedulingStrategy(slot.node_id, soft=False)
        selection = replace(self._shipped, device=slot.device).to_json()
        request = {"selection": selection, "began": self._began, "node": slot.node, "cores": slot.cores}
        actor = ray.remote(Post).options(num_cpus=0, scheduling_strategy=where, **held).remote(request)
        return Device(slot, actor)

    def _open(self, hired: list[Device], tell: Callable[[str], None]) -> None:
        """Has devices plan, side by side; those that cannot be used are noted."""
        asked = {device.actor.revision.remote(): device for device in hired}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)
        for ref in late:
            self._refuse(asked[ref], f"something else has held its device for {PATIENCE:g} s", tell)
        opening = {}
        for ref in ready:
            device = asked[ref]
            try:
                found = ray.get(ref)
            except RayError as error:
                self._refuse(device, reason_of(error), tell)
                continue
            if found == self._revision:
                opening[device.actor.open.remote(self._build)] = device
            else:
                self._refuse(device, f"it has the sources {found}, the job is of {self._revision}", tell)
        for ref, device in opening.items():
            try:
                self._admit(device, ray.get(ref), tell)
            except RayError as error:
                self._refuse(device, reason_of(error), tell)

    def _admit(self, device: Device, answer: Json, tell: Callable[[str], None]) -> None:
        """Takes a device in, if it can be used beside the others of its model."""
        if "refused" in answer:
            self._refuse(device, answer["refused"], tell)
            return
        device.environment = answer["environment"]
        device.model = model_of(device.slot, device.environment)
        first = next((d for d in self._devices if d.model == device.model), None)
        if first is not None:
            ours, theirs = (tuple(d.environment["software"].get(name) for name in SOFTWARE) for d in (device, first))
            if ours != theirs:
                what = ", ".join(f"{n} {a} for {b}" for n, a, b in zip(SOFTWARE, ours, theirs, strict=True) if a != b)
                self._refuse(device, f"it has {what} of {first.slot.node}", tell)
                return
        if device.model not in self._plans:
            self._plans[device.model] = ray.get(device.actor.plan.remote())
        self._devices.append(device)
        self._nodes.setdefault(device.model, {}).setdefault(device.slot.node, device.environment)
        for line in answer["steps"]:
            tell(f"{device.slot.node}: {line}")

    def _refuse(self, device: Device, reason: str, tell: Callable[[str], None]) -> None:
        note = f"{device.slot.node} is left out: {reason}"
        self._notes.append(note)
        tell(note)
        ray.kill(device.actor)

    # What is told

    def devices(self, model: str) -> int:
        return max(1, sum(device.model == model for device in self._devices))

    def environment(self, model: str) -> Json:
        first = next(device for device in self._devices if device.model == model)
        warnings = [*first.environment["warnings"], *self._notes]
        return {"model": model, **first.environment, "warnings": warnings, "nodes": self.nodes(model)}

    def nodes(self, model: str) -> dict[str, Json]:
        return self._nodes.get(model, {})

    def keep_files(self, folder: Path) -> None:
        self._log = folder / LOG

    # Measuring

    def measure(self, work: Mapping[str, Work], following: Following) -> Iterator[tuple[str, Batch]]:
        """Hands out groups in order, those that were lost first; each device has one at a time."""
        waiting = {m: deque(Group(m, own.run, cases) for cases in own.groups) for m, own in work.items()}
        under_way: dict[Any, tuple[Device, Group]] = {}
        idle = list(self._devices)
        while True:
            for device in [device for device in idle if waiting.get(device.model)]:
                group = waiting[device.model].popleft()
                ids = [case.id for case in next(following([group.cases]))]
                under_way[device.actor.measure.remote(group.run, ids)] = (device, group)
                idle.remove(device)
            if not under_way:
                break
            (ref,), _ = ray.wait(list(under_way), num_returns=1)
            device, group = under_way.pop(ref)
            try:
                batch = ray.get(ref)
            except RayError as error:
                idle += self._lost(device, group, reason_of(error))
                if len(group.lost) < MOST_LOSSES:
                    waiting[group.model].appendleft(group)
                else:
                    yield group.model, given_up(group)
                continue
            idle.append(device)
            del ref  # with it Ray lets go of the records
            yield group.model, moved(batch, group)
        open_groups = {model: len(groups) for model, groups in waiting.items() if groups}
        if open_groups:
            told = ", ".join(f"{count} groups of {model}" for model, count in open_groups.items())
            raise ServerLost(f"no device is left for {told}; --resume goes on")

    def _lost(self, device: Device, group: Group, reason: str) -> list[Device]:
        """Notes the loss of a device; returns one that takes its place, if its node is alive."""
        slot = device.slot
        group.lost.append(f"{slot.node}: {reason}")
        self._devices.remove(device)
        lost = {"time": round(time.time() - self._began, 3), "reason": reason}
        known = self._nodes[device.model][slot.node]
        known["lost"] = [*known.get("lost", []), lost]
        ray.kill(device.actor)
        self._losses[slot] = self._losses.get(slot, 0) + 1
        alive = any(node["Alive"] for node in ray.nodes() if node["NodeID"] == slot.node_id)
        if not alive or self._losses[slot] >= MOST_LOSSES:
            return []
        before = len(self._devices)
        self._open([self._hire(slot)], lambda line: None)
        return self._devices[before:]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if ray.is_initialized():
                self._farewell()

    def _farewell(self) -> None:
        """Has the devices end their workers, and keeps what those printed; those of a busy one end with its actor."""
        closing = {device.actor.close.remote(): device for device in self._devices}
        told, _ = ray.wait(list(closing), num_returns=len(closing), timeout=FAREWELL)
        for ref in told:
            try:
                printed = ray.get(ref)
            except RayError:
                continue
            if self._log is not None and printed:
                with self._log.open("ab") as file:
                    file.write(f"{closing[ref].slot.node}:\n".encode() + printed)


def knock(address: str) -> None:
    """Finds out whether anything answers there, which Ray takes minutes for.

    Raises:
        UsageError: if nothing does, or it is no address.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"--ray-address: nothing answers at {address!r}: {error} (docs/fleet.md)") from None


def offered(nodes: list[Json], device: str, accelerators: list[str] | None) -> list[Slot]:
    """The devices that the living nodes of a cluster offer.

    Args:
        nodes: as `ray.nodes()` tells them.
        device: `cpu`, `cuda:0` or `auto`: the GPUs of nodes that have some, the exclusive cores of the others.
        accelerators: names of Ray's accelerator types, None for any.

    Raises:
        UsageError: if there is none.
    """
    found: list[Slot] = []
    types: set[str] = set()
    for node in nodes:
        resources = node["Resources"]
        own = [name.removeprefix(ACCELERATOR) for name in sorted(resources) if name.startswith(ACCELERATOR)]
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get(CORES, 0))
        if not node["Alive"] or not (gpus or cores):
            continue
        types |= set(own)
        if accelerators is not None and not set(own) & set(accelerators):
            continue
        name = (node["NodeID"], node["NodeManagerHostname"], ", ".join(own))
        if gpus and device != "cpu":
            found += [Slot(*name, 0, number) for number in range(gpus)]
        elif cores and device in ("cpu", "auto"):
            found.append(Slot(*name, cores, 0))
    for asked in accelerators or []:
        if asked not in types:
            raise UsageError(f"--accelerator: {asked!r} is not one of {', '.join(sorted(types)) or 'none'} here")
    if not found:
        wanted = {"cpu": f"the resource {CORES}", "cuda:0": "a GPU"}.get(device, f"a GPU or the resource {CORES}")
        raise UsageError(f"--executor: no node of the cluster has {wanted}; docs/fleet.md says how to start nodes")
    return found


def model_of(slot: Slot, environment: Json) -> str:
    """What devices that share the work have in common: the device's name, with its cores or accelerator type."""
    name = str(environment["device"]["name"])
    cores = f"{slot.cores} cores" if slot.cores else ""
    return ", ".join(
        filter(None, (name, cores, "" if slot.accelerator in re.findall(r"\w+", name) else slot.accelerator))
    )


def moved(batch: Batch, group: Group) -> Batch:
    """The records, which tell where their group had been lost before."""
    for made, _ in batch if group.lost else []:
        made.settings["lost"] = list(group.lost)
    return batch


def given_up(group: Group) -> Batch:
    """Records of a group whose device is lost whenever it is measured."""
    reason = f"{len(group.lost)} devices were lost while its group was measured: {'; '.join(group.lost)}"
    settings = {"lost": list(group.lost)}
    made: list[Record] = [record(case, group.run, "crashed", reason, settings=settings) for case in group.cases]
    return [(item, 0.0) for item in made]


def reason_of(error: BaseException) -> str:
    """The first line of what Ray says, without the trace of the other side."""
    text = str(getattr(error, "cause", None) or error)
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"
