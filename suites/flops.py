"""FLOPs: multiply-accumulates by closed form, by fvcore and by torch's counter, side by side.

Both counters run on real tensors and see operators one by one. Their counts are sorted into the kinds of the closed
form (`ops.Costs.macs`); each difference is itemised with its reason, and a remainder that no reason explains is
`failed`.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ops import AXES, Skip
from reports import Json, Metric
from suites import Begun, Suite

if TYPE_CHECKING:
    from suites.core.bench import Bench

#: The kind of the closed form that an operator's count belongs to, by the operator's plain name.
KINDS = {
    "conv": "conv",
    "_convolution": "conv",
    "convolution": "conv",
    "involution_filters": "conv",
    "linear": "linear",
    "addmm": "linear",
    "mm": "linear",
    "matmul": "product",
    "bmm": "product",
    "baddbmm": "product",
    "einsum": "product",
}
#: Operators that are an op by themselves, all kinds in one.
WHOLE_OPS = ("fused_forward",)
#: Counted by fvcore, and by definition not part of `macs`.
NOT_MACS = {
    "adaptive_avg_pool2d": "pooling is not counted",
    "avg_pool2d": "pooling is not counted",
    "upsample_bilinear2d": "interpolation is not counted",
    "grid_sampler": "interpolation is not counted",
    "batch_norm": "normalisation is not counted",
    "layer_norm": "normalisation is not counted",
    "group_norm": "normalisation is not counted",
}


#: Why a counter has more than the closed form, by the kind of `ops.Costs.left_out`.
LEFT_OUT = {
    "attention_products": "the products of attention are not counted",
    "mixing": "the mixing of filters is not counted",
    "normalisation": "normalisation is not counted",
    "similarities": "the comparison of guides is not counted",
    "interpolation": "interpolation is not counted",
}


class Flops(Suite):
    name = "flops"
    order = 40
    help = "multiply-accumulates: closed form, fvcore and torch's counter, differences itemised"
    axes = tuple(name for name in AXES if name not in ("dtype", "layout", "direction"))
    #: The first dispatch mode of a process imports torch._dynamo.
    preload = ("fvcore.nn", "torch.utils.flop_counter", "torch._dynamo")

    def begin(self, bench: Bench) -> Begun:
        if bench.op.impls[bench.case.impl].slow_start:
            raise Skip("the counters do not see into a compiled graph; the impl it is compiled from is counted")
        formula = dict(bench.costs.macs)
        total = sum(formula.values())
        metrics = [Metric("macs", "MAC", total, better="less"), Metric("macs_formula", "MAC", total, better="less")]
        differences: list[Json] = []
        for name, count in (("macs_fvcore", count_fvcore), ("macs_torch", count_torch)):
            try:
                counted, unseen = count(bench)
            except Skip as skip:
                metrics.append(Metric(name, "MAC", None, status="skipped", reason=str(skip)))
                continue
            metrics.append(Metric(name, "MAC", sum(counted.values()), better="less"))
            differences += itemise(name, formula, counted, unseen, bench.case.point.taps, bench.costs.left_out)
        settings: Json = {"parts": formula, "differences": differences}
        unexplained = [d for d in differences if not d["reason"]]
        failure = "; ".join(f"{d['counter']}: {d['macs']:+d} MACs of {d['kind']} unexplained" for d in unexplained)
        return Begun(metrics, settings=settings, failure=failure)


def count_fvcore(bench: Bench) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """MACs by operator name, and how often each operator occurs that fvcore does not count.

    fvcore counts one multiply-accumulate as one flop.

    Raises:
        Skip: if fvcore is not installed.
    """
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError as error:
        raise Skip(f"fvcore is not installed: {error}") from None
    import torch

    class Traced(torch.nn.Module):
        """The closure as a module; the inputs it reads are parameters of the trace."""

        def forward(self, *tensors: Any) -> Any:
            return bench.forward()

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(Traced().eval(), tuple(bench.inputs.tensors.values()))
        analysis.set_op_handle(**bench.op.fvcore_handles())
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        counted = {str(name): int(macs) for name, macs in analysis.by_operator().items()}
        unseen = {plain(name): int(count) for name, count in analysis.unsupported_ops().items()}
    return counted, unseen


def count_torch(bench: Bench) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """MACs by operator name, and how often each operator occurs that torch's counter does not count.

    torch counts a multiply-accumulate as two flops.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    calls: Counter[str] = Counter()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls[plain(str(func))] += 1
            return func(*args, **(kwargs or {}))

    counter = FlopCounterMode(display=False)
    with counter, Seen():  # type: ignore[no-untyped-call]
        bench.forward()
    counted = {plain(str(name)): int(flops) // 2 for name, flops in counter.get_flop_counts().get("Global", {}).items()}
    return counted, {name: count for name, count in calls.items() if name not in counted}


def plain(name: str) -> str:
    """An operator's name without namespace and overload: `aten::mul.Tensor` is `mul`."""
    return name.rpartition("::")[2].removeprefix("aten.").removeprefix("ddf.").partition(".")[0]


def itemise(
    counter: str,
    formula: Mapping[str, int],
    counted: Mapping[str, int],
    unseen: Mapping[str, int],
    taps: int,
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> list[Json]:
    """Every difference between a counter and the closed form, by kind, with its reason; no reason if it has none.

    Args:
        counted: the counter's MACs by operator.
        unseen: calls by operator, of those that it does not count.
        taps: of the filter.
        left_out: what the closed form leaves out, see `ops.Costs`.
    """
    found: list[Json] = []
    by_kind: Counter[str] = Counter()
    for name, macs in counted.items():
        if name in WHOLE_OPS and macs == sum(formula.values()):
            by_kind.update(formula)
        elif name in NOT_MACS and macs:
            found.append({"counter": counter, "kind": name, "macs": macs, "reason": NOT_MACS[name]})
        else:
            by_kind[kind_of(name, formula)] += macs
    differences = {kind: by_kind[kind] - formula.get(kind, 0) for kind in sorted({*formula, *by_kind})}
    for kind, difference in differences.items():
        if difference:
            told = [name for name, macs in left_out.items() if macs == difference]
            reason = reason_for(kind, differences, by_kind[kind], unseen, taps) if not told else LEFT_OUT[told[0]]
            found.append({"counter": counter, "kind": kind, "macs": difference, "reason": reason})
    return found


def kind_of(name: str, formula: Mapping[str, int]) -> str:
    """The kind of the closed form that the operator `name` counts towards.

    Batched products apply dynamic filters where the op has any: each sample or pixel has weights of its own.
    """
    if name in formula:
        return name
    kind = KINDS.get(name, "dynamic_filter" if name in ("forward", "ddf") else name)
    if kind == "product":
        return "dynamic_filter" if "dynamic_filter" in formula else "linear"
    return kind


def reason_for(kind: str, differences: Mapping[str, int], counted: int, unseen: Mapping[str, int], taps: int) -> str:
    """Why a counter differs from the closed form; empty if nothing explains it."""
    if kind in ("conv", "linear") and differences.get("conv", 0) == -differences.get("linear", 0):
        return "a 1x1 convolution done as a matrix product"
    if kind in ("conv", "dynamic_filter") and differences.get("conv", 0) == -differences.get("dynamic_filter", 0):
        return "a convolution with filters of each sample's own, counted as what computes it"
    products = {name: unseen[name] for name in ("mul", "mul_", "addcmul", "addcmul_") if name in unseen}
    unfolded = products and {"im2col", "sum"} <= set(unseen)  # all taps in one product
    if kind == "dynamic_filter" and not counted and (unfolded or sum(products.values()) >= taps):
        listed = ", ".join(f"{count} x {name}" for name, count in products.items())
        return f"the filter is applied by elementwise operators, which this counter does not count ({listed})"
    return ""
