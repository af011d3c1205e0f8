"""Networks: parameters and multiply-accumulates of whole networks, in every variant, by every usual way of counting.

For each network, at 224 x 224 unless other resolutions are asked for:

- `params`, counted in the module, and `params_formula`;
- `macs`: convolutions, linear layers and applied dynamic filters, by closed form;
- `macs_with_attention`, `macs_with_mixing`, `macs_with_normalisation`: with the products of attention, with the mixing
  of filters, with two for each element that a BatchNorm writes (`ops.Costs.left_out`);
- `macs_fvcore`, `macs_torch`: as these count, each difference from `macs` itemised.

Nothing is timed: the suites `latency` and `memory` take the same ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from reports import Metric
from suites import Begun, Suite
from suites.flops import Flops
from suites.params import Params

if TYPE_CHECKING:
    from suites.core.bench import Bench

#: Metrics by the kind of arithmetic that they count beside `macs`.
WITH = {
    "attention_products": "macs_with_attention",
    "mixing": "macs_with_mixing",
    "normalisation": "macs_with_normalisation",
}


class Networks(Suite):
    name = "networks"
    order = 60
    help = "parameters and multiply-accumulates of whole networks, by every usual way of counting"
    default = False
    axes = ("batch", "height", "width")
    ops = ("resnet18", "resnet50", "resnet101")
    own_values: ClassVar = {"batch": (1,), "variant": None}
    per_impl = False
    preload = Flops.preload

    def begin(self, bench: Bench) -> Begun:
        bench.inputs = bench.op.blank(bench.case.point, bench.device.torch)
        params, macs = Params().begin(bench), Flops().begin(bench)
        total, left_out = sum(bench.costs.macs.values()), bench.costs.left_out
        counted = {metric.name: metric for metric in macs.metrics}
        ways = [Metric(name, "MAC", total + left_out.get(kind, 0), better="less") for kind, name in WITH.items()]
        counters = [counted[name] for name in ("macs_fvcore", "macs_torch")]
        return Begun(
            [*params.metrics, counted["macs"], *ways, *counters],
            settings={
                "params": params.settings["parts"],
                "left_out": dict(left_out),
                **macs.settings,
            },
            failure="; ".join(filter(None, (params.failure, macs.failure))),
        )
