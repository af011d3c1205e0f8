"""A case made ready in its worker: inputs, closure, and the check of its result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops import Costs, Inputs, Op, Point, Skip, load
from suites import Case
from suites.core import heap
from suites.core.clocks import Clock
from suites.core.devices import Device, open_device

#: Bound of the error relative to the sum of the absolute terms, by dtype: about four roundings in half precision, where
#: nothing but the result and the filters is rounded. In float32 Winograd and split sums stay an order below.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
#: The same for float32 with TF32 products, whose inputs keep 10 bits of mantissa.
TF32_TOLERANCE = 2e-3
#: Elements that one chunk of the reference may hold.
CHUNK = 2**26


class Bench:
    """What a suite measures in a worker.

    Args:
        case: what to measure.
        seed: draws the inputs; equal seeds give equal inputs to all impls of an op.
        check: whether this process is the one that checks the result.
        clocks: names of those wanted, all of the device's if None.
        slowdown: a real delay added to each call, as a part of its own time; to see what a comparison detects.
        folder: of the run, for files that a suite leaves there; empty where there is none.
        say: passes a line on, by which the runner hears that a long case goes on.
    """

    def __init__(
        self,
        case: Case,
        seed: int,
        check: bool,
        clocks: Collection[str] | None = None,
        slowdown: float = 0.0,
        folder: str = "",
        say: Callable[[str], None] = print,
    ):
        self.case = case
        self.check = check
        self.seed = seed
        self.folder = folder
        self.say = say
        self._wanted = clocks
        self._slowdown = slowdown
        self.device: Device = open_device(case.device)

    @cached_property
    def op(self) -> Op:
        return load(Path(self.case.file))[self.case.op]

    def at(self, point: Point) -> Bench:
        """The same at another point."""
        return Bench(replace(self.case, point=point), self.seed, self.check)

    @cached_property
    def costs(self) -> Costs:
        return self.op.costs(self.case.point)

    @cached_property
    def inputs(self) -> Inputs:
        generator = torch.Generator(self.device.torch).manual_seed(self.seed)
        return self.op.build(self.case.point, self.device.torch, generator)

    @cached_property
    def forward(self) -> Callable[[], Tensor]:
        """The impl's closure."""
        return self.op.impls[self.case.impl].prepare(self.inputs, self.case.point)

    @cached_property
    def call(self) -> Callable[[], Any]:
        """Exactly what is timed: the closure, or with it the gradients of all inputs and parameters."""
        call = self._with_gradients() if self.case.point.backward else self.forward
        return self.device.slowed(call, self._slowdown) if self._slowdown else call

    def clocks(self, without: Collection[str] = ()) -> dict[str, Clock]:
        """The clocks of `call` by metric, but those named, each set up and warmed up."""
        makers = dict(self.device.clocks(self.call))
        if self._out is not None:
            makers["latency_out"] = self.device.clocks(self._out)["latency_wall"]
        if self.case.process["malloc"] == "default":
            makers = {"latency_default_malloc": makers["latency_wall"]}
        return {name: make() for name, make in makers.items() if self._wants(name) and name not in without}

    def _wants(self, clock: str) -> bool:
        return self._wanted is None or clock in self._wanted

    @cached_property
    def _out(self) -> Callable[[], Tensor] | None:
        """The impl's closure that writes into a given output, where it offers one and no gradient is wanted."""
        # ops of an older revision, measured by `ab`, have no such field
        prepare = getattr(self.op.impls[self.case.impl], "prepare_out", None)
        if prepare is None or self.case.point.backward or not self._wants("latency_out"):
            return None
        try:
            call = prepare(self.inputs, self.case.point, torch.empty_like(self.forward()))
        except Skip:
            return None
        return self.device.slowed(call, self._slowdown) if self._slowdown else call

    def _with_gradients(self) -> Callable[[], tuple[Tensor, ...]]:
        leaves = list(self.inputs.leaves().values())
        forward, upstream = self.forward, self.upstream

        def call() -> tuple[Tensor, ...]:
            output = forward()
            return (output, *torch.autograd.grad(output, leaves, upstream))

        return call

    @cached_property
    def upstream(self) -> Tensor:
        """The gradient of the output: seeded, of the output's shape, dtype and layout."""
        generator = torch.Generator(self.device.torch).manual_seed(self.seed + 1)
        output = self.forward().detach()
        return torch.empty_like(output).normal_(generator=generator)

    def max_error(self) -> float:
        """Largest error of the result, and of the gradients, relative to the sum of absolute terms.

        A NaN or infinity that the reference does not have counts as infinite, a result of another shape too.
        """
        if not self.case.point.backward:
            calls = [self.call, self._out] if self._out is not None else [self.call]
            return max(max_error(self.op, self.inputs, self.case, {"output": call()}, None) for call in calls)
        results = self.call()
        named = dict(zip(["output", *self.inputs.leaves()], results, strict=True))
        return max_error(self.op, self.inputs, self.case, named, self.upstream)

    @property
    def tolerance(self) -> float:
        if self.case.process["tf32"] and self.case.point.dtype == "float32":
            return TF32_TOLERANCE
        return TOLERANCE[self.case.point.dtype]


@heap.large_given_back()
def max_error(op: Op, inputs: Inputs, case: Case, results: dict[str, Tensor], upstream: Tensor | None) -> float:
    """Compares results with the float64 reference, a few samples at a time.

    Args:
        results: `output`, and with `upstream` the gradients by the names of `Inputs.leaves`.
        upstream: gradient of the output, or None for the forward direction.
    """
    batch = case.point.batch
    elements = max((t[:1].numel() for t in inputs.tensors.values()), default=1) * case.point.taps
    step = max(1, CHUNK // max(1, elements))
    module = None if inputs.module is None else copy.deepcopy(inputs.module).double()
    errors = [0.0]
    shared: dict[str, tuple[Tensor, Tensor]] = {}
    for start in range(0, max(1, batch), step):
        rows = slice(start, start + step)
        chunk = Inputs({name: t[rows].detach().double() for name, t in inputs.tensors.items()}, module)
        slope = None if upstream is None else upstream[rows].double()
        for name, (value, scale) in _reference(op, chunk, case, slope).items():
            if name == "output" or name in inputs.tensors:
                errors.append(relative_error(results[name][rows], value, scale))
            else:  # a parameter: its gradient is the sum over all samples
                before = shared.get(name, (0, 0))
                shared[name] = (value + before[0], scale + before[1])
    errors += [relative_error(results[name], value, scale) for name, (value, scale) in shared.items()]
    if len(results["output"]) != batch:
        return float("inf")
    return max(errors)


def _reference(op: Op, inputs: Inputs, case: Case, slope: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Expected values and their scales: of the output and, if `slope` is given, of the gradients."""
    if slope is None:
        with torch.no_grad():
            return {"output": (op.apply(inputs, case.point), op.magnitude(inputs, case.point))}
    with torch.enable_grad():
        leaves = {name: leaf.requires_grad_() for name, leaf in inputs.leaves().items()}
        output, magnitude = op.apply(inputs, case.point), op.magnitude(inputs, case.point)
        gradients = torch.autograd.grad(output, list(leaves.values()), slope)
        # The derivative of a sum of absolute products is the sum of the absolute terms of the gradient; the largest
        # expected value stands in where that derivative cancels (normalised filters).
        scales = torch.autograd.grad(magnitude, list(leaves.values()), slope.abs(), allow_unused=True)
    expected = {"output": (output.detach(), magnitude.detach())}
    for name, gradient, scale in zip(leaves, gradients, scales, strict=True):
        largest = gradient.abs().amax() if gradient.numel() else gradient.sum()
        expected[name] = (gradient, largest + (0 if scale is None else scale.abs()))
    return expected


def relative_error(result: Tensor, expected: Tensor, scale: Tensor) -> float:
    """Largest |result - expected| / scale; infinite where the shapes differ or a NaN stands on one side only."""
    if result.shape != expected.shape:
        return float("inf")
    if not result.numel():
        return 0.0
    result = result.detach().double()
    difference = (result - expected).abs()
    same = (result == expected) | (result.isnan() & expected.isnan())
    tiny = torch.finfo(torch.float64).tiny
    error = torch.where(same, 0.0, difference / scale.clamp_min(tiny))
    return float(torch.where(error.isnan(), float("inf"), error).amax())
