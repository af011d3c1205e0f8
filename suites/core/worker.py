"""The worker's side: answers the runner's requests, one JSON object a line, until the runner hangs up.

Requests (`do`):
    declare    read an op file: its ops, impls and axes
    costs      closed forms of cases
    build      build libraries, saying each step
    prepare    have a suite build what its cases need, saying each step
    device     describe the device and its free memory
    examine    tell what can be loaded, and who else uses the device
    begin      build a case's inputs, check its result, set up its clocks
    roofs      set up the clocks of the roofs
    reference  set up the clock of the call by which `doctor` judges noise
    block      take one block of samples
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ops import Op, Skip, load
from reports import Json
from suites import Case, suites
from suites.core import heap
from suites.core.clocks import Clock
from suites.core.machine import bind_threads, threads

#: Elements that torch gives a thread at least.
GRAIN = 2**15


class Worker:
    """What one worker process has begun.

    Args:
        say: passes a line on to the runner while a request is under way.
    """

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.clocks: dict[str, Clock] = {}
        self._say = say

    def answer(self, request: Json) -> Json:
        """Does what is asked; a failure of any kind becomes a status and a reason."""
        handler: Callable[[Json], Json] = getattr(self, "do_" + request["do"])
        try:
            return {"status": "ok", **handler(request)}
        except Skip as skip:
            return {"status": "skipped", "reason": str(skip)}
        except Exception as error:
            return {"status": status_of(error), "reason": one_line(error)}

    def do_declare(self, request: Json) -> Json:
        return {"ops": [declaration(op, request["file"]) for op in load(Path(request["file"])).values()]}

    def do_costs(self, request: Json) -> Json:
        cases = [Case.from_json(data) for data in request["cases"]]
        ops = load(Path(cases[0].file))
        return {"costs": [asdict(ops[case.op].costs(case.point)) for case in cases]}

    def do_device(self, request: Json) -> Json:
        from suites.core.devices import best_device, open_device
        from suites.core.roofs import probe

        name = best_device() if request["device"] == "auto" else request["device"]
        prepare_process(request["process"], name)
        device = open_device(name)
        rates = probe(device)
        return {
            "name": name,
            "device": device.describe(),
            "free": device.free_memory(),
            "rates": rates,
            "software": software(),
        }

    def do_build(self, request: Json) -> Json:
        from ops.core.build import BuildError, build

        failed = []
        for name in request["libraries"]:
            try:
                build(name, progress=lambda line: self._say(f"{name}: {line}"))  # noqa: B023 (called at once)
            except BuildError as error:
                failed.append(f"csrc/{name} cannot be built: {one_line(error)}")
        return {"failed": failed}

    def do_prepare(self, request: Json) -> Json:
        name = request["suite"]
        suites()[name].prepare(lambda line: self._say(f"{name}: {line}"))
        return {}

    def do_examine(self, request: Json) -> Json:
        from ops.core import native
        from suites.core.devices import open_device
        from suites.core.multiply_add import library

        device = open_device(request["device"])
        return {
            "native": native.missing(device.torch.type),
            "roofs": library() is not None,
            "others": device.others(),
        }

    def do_begin(self, request: Json) -> Json:
        import torch

        from suites.core.bench import Bench

        case = Case.from_json(request["case"])
        suite = suites()[case.suite]
        bound = prepare_process(case.process, case.kind, bind=suite.timed)
        torch.set_grad_enabled(case.point.backward)
        more = {name: request[name] for name in ("clocks", "slowdown", "folder") if name in request}
        bench = Bench(case, seed=request["seed"], check=request["check"], say=self._say, **more)
        begun = suite.begin(bench)
        self.clocks = begun.clocks
        settings = {**bench.device.settings(), "bound": bound, **begun.settings}
        answer = {"metrics": [m.to_json() for m in begun.metrics], "clocks": list(self.clocks), "settings": settings}
        return {**answer, "status": "failed", "reason": begun.failure} if begun.failure else answer

    def do_roofs(self, request: Json) -> Json:
        from suites.core.devices import open_device
        from suites.core.roofs import roof_clocks

        prepare_process(request["process"], request["device"])
        self.clocks, work = roof_clocks(open_device(request["device"]), request["dtype"], request["copies"])
        return {"work": work}

    def do_reference(self, request: Json) -> Json:
        from suites.core.devices import open_device
        from suites.core.roofs import reference

        prepare_process(request["process"], request["device"])
        device = open_device(request["device"])
        self.clocks = {"reference": device.clocks(reference(device))[device.main_clock]()}
        return {}

    def do_block(self, request: Json) -> Json:
        return asdict(self.clocks[request["clock"]].block(request["seconds"]))


def prepare_process(process: Mapping[str, Any], device: str, bind: bool = True) -> bool:
    """Applies the values of `PROCESS_AXES` to this process, before it allocates anything.

    Args:
        bind: whether its threads are to be bound, which starts them: for nothing where nothing is timed.

    Returns:
        Whether its threads are bound to cores, as they are if they are to do the computing.
    """
    import torch

    if process["malloc"] == "steady":
        heap.keep_pages()
    torch.set_num_threads(process["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(process["tf32"])
    torch.backends.cudnn.benchmark = True
    if device != "cpu" or not bind:
        return False
    others = threads()  # the main one, and those of a pool that computes nothing here
    torch.zeros(GRAIN * process["threads"])  # starts those that compute beside the main one
    computing = [os.getpid(), *sorted(threads() - others)]
    return len(computing) == process["threads"] and bind_threads(computing)


def declaration(op: Op, file: str) -> Json:
    """What `suites.Declaration` holds, as JSON."""
    return {
        "name": op.name,
        "title": op.title,
        "version": op.version,
        "file": file,
        "roof": op.roof,
        "combines": op.combines,
        "extra_axes": [asdict(axis) for axis in op.extra_axes],
        "impls": list(op.impls),
        "slow_impls": [impl.name for impl in op.impls.values() if impl.slow_start],
        "libraries": {impl.name: impl.library for impl in op.impls.values() if impl.library},
        "axes": list(op.axes),
        "resolution": op.resolution,
        "kernels": {impl.name: impl.kernels for impl in op.impls.values() if impl.kernels},
    }


def software() -> Json:
    """Versions of what computes."""
    import platform

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "torch_build": " ".join(torch.__config__.show().split()),
    }


def status_of(error: BaseException) -> str:
    """The status of a case that raised `error`: out of memory, a poisoned CUDA context, or plainly failed."""
    import torch

    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
        return "oom"
    return "crashed" if "CUDA error" in text or "device-side assert" in text else "failed"


def one_line(error: BaseException) -> str:
    """Type and message, in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}" if text else type(error).__name__


def serve(link: socket.socket) -> None:
    """Answers requests until the runner hangs up. After a poisoned context the process ends with its answer."""

    def send(message: Json) -> None:
        link.sendall(json.dumps(message).encode() + b"\n")

    worker = Worker(say=lambda line: send({"say": line}))
    with link, link.makefile("rb") as requests:
        for line in requests:
            answer = worker.answer(json.loads(line))
            send(answer)
            if answer["status"] == "crashed":
                return
