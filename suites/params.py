"""Params: learned parameters, counted in the module and by the closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import Metric
from suites import Begun, Suite

if TYPE_CHECKING:
    from suites.core.bench import Bench


class Params(Suite):
    name = "params"
    order = 30
    help = "learned parameters: counted in the module, by closed form, and itemised"
    axes = ("channels", "kernel_size")
    per_impl = False

    def begin(self, bench: Bench) -> Begun:
        module = bench.inputs.module
        counted = 0 if module is None else sum(p.numel() for p in module.parameters())
        parts = dict(bench.costs.params)
        formula = sum(parts.values())
        metrics = [Metric("params", "1", counted, better="less"), Metric("params_formula", "1", formula, better="less")]
        failure = "" if counted == formula else f"the module has {counted} parameters, the closed form gives {formula}"
        return Begun(metrics, settings={"parts": parts}, failure=failure)
