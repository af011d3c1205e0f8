"""Neighbours: DDF beside the filters that one would take instead, at the poster's shapes, by all that they cost.

Metrics of one record: the latency of a call (`suites.latency`, warm), its memory (`suites.memory`), parameters and
multiply-accumulates, so that the cheapest filter of each shape can be told by any of them. All take 3 x 3 taps, and at
14 x 14 also the 7 x 7 of which involution and local attention were published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ops import Costs, Point
from reports import Metric
from suites import Begun
from suites.latency import Latency
from suites.memory import Memory
from suites.params import Params

if TYPE_CHECKING:
    from suites.core.bench import Bench


class _Priced(Latency):
    """Latency, with memory and parameters."""

    default = False
    without = ("latency_cold", "latency_out")
    ceiling = 0.1

    def by_formula(self, point: Point, costs: Costs) -> list[Metric]:
        return [Metric("params", "1", sum(costs.params.values()), better="less"), *Memory().by_formula(point, costs)]

    def begin(self, bench: Bench) -> Begun:
        begun = super().begin(bench)
        held = bench.costs.memory
        begun.settings["filter"] = next((kind for kind in ("given", "predicted") if _KINDS[kind] in held), "learned")
        if bench.check and not begun.failure:
            further = Params().begin(bench), Memory().begin(bench)
            begun.metrics += [metric for other in further for metric in other.metrics]
            begun.failure = "; ".join(filter(None, (other.failure for other in further)))
        return begun


#: The part of `ops.Costs.memory` that an op has whose filters come from there.
_KINDS = {"given": "given_filters", "predicted": "filters"}


class Neighbours(_Priced):
    name = "neighbours"
    order = 70
    help = "DDF beside convolutions, dynamic filters, involution, attention: latency, memory and parameters"
    ops = (
        *("conv", "dwconv", "dyfilter", "dyfilter_dw", "ddf_op", "ddf"),
        *("involution_op", "involution", "dw_weightnet", "condconv", "odconv", "pac", "local_attention", "dcnv4"),
    )

    def variations(self, preset: str) -> Sequence[Mapping[str, Any]]:
        return ({}, {"kernel_size": 7, "size": (14, 14)})
