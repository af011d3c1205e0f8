"""Memory: what one call allocates beyond its inputs and parameters, exact, from the allocators' own events.

Metrics, in bytes:

- `peak_memory`: most held at once during the call, its results included.
- `saved_memory`, direction `forward_backward` alone: what the graph of a forward pass keeps for its backward pass, the
  output not counted unless it is kept too, each storage once. Inputs and parameters were there before.
- `filter_memory`: the generated filters (`Op.filters`), as far as the call allocates them: an impl that keeps its
  filters on chip holds none, and convolutions and `ddf_op`, whose filters are given, generate none.
- `peak_memory_formula`, `filter_memory_formula`: generated filters and, for `peak_memory`, output of a forward pass, by
  closed form; also told of cases that are not measured.
- on CUDA, where `peak_memory` is the allocator's own count: `reserved_memory` and `process_memory`.

Nothing is timed. See `suites.core.allocations` for what is seen and what is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ops import AXES, Costs, Point
from reports import Metric
from suites import Begun, Suite

if TYPE_CHECKING:
    from suites.core.allocations import Allocations
    from suites.core.bench import Bench


class Memory(Suite):
    name = "memory"
    order = 20
    help = "bytes allocated during a call, kept for backward, and of generated filters"
    axes = (*AXES, "threads")
    own_values: ClassVar = {"direction": ("forward", "forward_backward")}

    def by_formula(self, point: Point, costs: Costs) -> list[Metric]:
        return [bytes_of(name, value) for name, value in formulas(point, costs).items()]

    def begin(self, bench: Bench) -> Begun:
        found = bench.device.allocations(bench.call)
        metrics = [bytes_of("peak_memory", found.peak)]
        if bench.case.point.backward:
            metrics.append(bytes_of("saved_memory", bench.device.allocations(lambda: bench.forward().grad_fn).kept))
        filters, formula = filter_memory(bench, found), bench.costs.memory.get("filters", 0)
        metrics.append(bytes_of("filter_memory", filters))
        metrics += [bytes_of(name, value) for name, value in found.further.items()]
        metrics += self.by_formula(bench.case.point, bench.costs)
        wrong = filters not in (0, formula)
        failure = f"the filters take {filters} B, the closed form gives {formula} B" if wrong else ""
        return Begun(metrics, failure=failure)


def filter_memory(bench: Bench, allocated: Allocations) -> int:
    """Bytes of the generated filters that are among a call's allocations, each storage once."""
    storages = [t.untyped_storage() for t in bench.op.filters(bench.inputs, bench.case.point)]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(allocated.holding(list(sizes.values()), bench.device.rounding))


def formulas(point: Point, costs: Costs) -> dict[str, int]:
    """Closed forms by metric: see the top of this file."""
    filters = costs.memory.get("filters", 0)
    found = {"filter_memory_formula": filters}
    if not point.backward and "output" in costs.memory:
        found["peak_memory_formula"] = filters + costs.memory["output"]
    return found


def bytes_of(name: str, value: int) -> Metric:
    return Metric(name, "B", value, better="less")
