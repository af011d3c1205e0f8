"""What a call does, operator by operator: times by torch's profiler, bytes by the tensors that each is given and gives.

An operator is what reaches torch's dispatcher: on a CPU one kernel or a few, on CUDA one or more launches, which are
told by name beside it. The profiler costs some microseconds an operator, so that its times add up to more than a call
takes; the suite's clock tells what it takes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import profile  # torch.profiler would import the compiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reports import Json

__all__ = ["CALLS", "Profiled", "profiled", "trace_name"]

#: Calls that are profiled, after as many that are not.
CALLS = 5


class Profiled:
    """What was seen of some calls.

    Args:
        operators: for each, `name`, `calls` in one call, `time` of these in seconds, `bytes` of all tensors in and out;
            the longest first. On CUDA `time` is the device's.
        kernels: on CUDA, `name`, `calls` and `time` of each kernel that ran, the longest first.
    """

    def __init__(self, operators: list[Json], kernels: list[Json]):
        self.operators, self.kernels = operators, kernels


def profiled(call: Callable[[], Any], device: str, trace: Path | None = None) -> Profiled:
    """Profiles some calls.

    Args:
        device: kind of it, `cpu` or `cuda`.
        trace: where to write what happened when, for Perfetto (ui.perfetto.dev).
    """
    with _Seen() as seen:
        call()
    settings: dict[str, Any] = {"use_device": "cuda"} if device == "cuda" else {}
    for _ in range(CALLS):
        call()
    with profile(**settings) as profiler:
        for _ in range(CALLS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    events = list(profiler.function_events or ())
    attribute = "device_time_total" if device == "cuda" else "cpu_time_total"
    times: Counter[str] = Counter()
    for event in _outermost(events, set(seen.bytes)):
        times[event.name] += getattr(event, attribute) / 1e6 / CALLS
    operators = [
        {"name": name, "calls": seen.calls[name], "time": float(f"{times[name]:.4g}"), "bytes": size}
        for name, size in seen.bytes.items()
        if size
    ]
    return Profiled(sorted(operators, key=lambda row: (-row["time"], row["name"])), _kernels(events))


def trace_name(case: str) -> str:
    """The file of a case's trace, relative to the run."""
    return f"traces/{re.sub(r'[^A-Za-z0-9.=]+', '-', case)}.json"


class _Seen(TorchDispatchMode):
    """Counts calls and bytes by operator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        moved = [args, kwargs, result]
        if func._schema.is_mutable:
            moved = [args, kwargs]  # what is written is among them
        elif any(returned.alias_info for returned in func._schema.returns):
            moved = []  # a view
        self.calls[name] += 1
        self.bytes[name] += sum(t.numel() * t.element_size() for t in tree_leaves(moved) if isinstance(t, torch.Tensor))
        return result


def _outermost(events: list[Any], names: set[str]) -> Iterator[Any]:
    """Events of these names that are within no other of them."""
    for event in events:
        parent = event.cpu_parent
        while parent is not None and parent.name not in names:
            parent = parent.cpu_parent
        if event.name in names and parent is None:
            yield event


def _kernels(events: list[Any]) -> list[Json]:
    found: dict[str, Json] = {}
    for event in events:
        if event.device_type.name == "CUDA":
            row = found.setdefault(event.name, {"name": event.name, "calls": 0.0, "time": 0.0})
            row["calls"] += 1 / CALLS
            row["time"] += event.device_time_total / 1e6 / CALLS
    return sorted(found.values(), key=lambda row: (-row["time"], row["name"]))
