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
    from suites.core.bench import Bench


class Memory(Suite):
    name = "memory"
    order = 20
    help = "bytes allocated during a call, kept for backward, and of generated filters"
    axes = (*AXES, "threads")
    own_values: ClassVar = {"direction": ("forward", "forward_backward")}

    def by_formula(self, point: Point, costs: Costs) -> list[Metric]:
        filters = costs.memory.get("filters", 0)
        found = [bytes_of("filter_memory_formula", filters)]
        if not point.backward and "output" in costs.memory:
            found.append(bytes_of("peak_memory_formula", filters + costs.memory["output"]))
        return found

    def begin(self, bench: Bench) -> Begun:
        found = bench.device.allocations(bench.call)
        metrics = [bytes_of("peak_memory", found.peak)]
        if bench.case.point.backward:
            metrics.append(bytes_of("saved_memory", bench.device.allocations(lambda: bench.forward().grad_fn).kept))
        filters = found.holding(filter_sizes(bench), bench.device.rounding)
        metrics.append(bytes_of("filter_memory", sum(filters)))
        metrics += [bytes_of(name, value) for name, value in found.further.items()]
        metrics += self.by_formula(bench.case.point, bench.costs)
        formula = bench.costs.memory.get("filters", 0)
        failure = ""
        if filters and sum(filters) != formula:
            failure = f"the filters take {sum(filters)} B, the closed form gives {formula} B"
        return Begun(metrics, failure=failure)


def filter_sizes(bench: Bench) -> list[int]:
    """Bytes of each storage that the op generates filters in."""
    inputs = bench.inputs
    given = {t.untyped_storage().data_ptr() for t in inputs.leaves().values()}
    storages = [t.untyped_storage() for t in bench.op.filters(inputs, bench.case.point)]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return [size for address, size in sizes.items() if address not in given]


def bytes_of(name: str, value: int) -> Metric:
    return Metric(name, "B", value, better="less")
