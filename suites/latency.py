"""Latency: what one call takes, hot, cold, and on the device's own clock, held against the roofs of the same run.

Metrics: `latency_wall` (host clock, the device synchronised on both sides of each call: the method of the authors'
script), `latency_cold` (last-level cache flushed before each call), on CUDA `latency_device` (replays of a captured
graph), `latency_out` (the host clock, into an output of the caller's, where the impl offers it), and with
`--malloc default` alone `latency_default_malloc` (the host clock, page faults and all). The result is checked first: a
wrong one is never timed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports import Metric
from suites import Begun, Suite

if TYPE_CHECKING:
    from suites.core.bench import Bench


class Latency(Suite):
    name = "latency"
    order = 10
    help = "time of one call: hot, cold, on the device; page faults; percent of the measured roof"
    timed = True

    def begin(self, bench: Bench) -> Begun:
        metrics = []
        if bench.check:
            error = bench.max_error()
            metrics.append(Metric("max_error", "1", error, better="less"))
            if not error <= bench.tolerance:
                reason = f"wrong result: error {error:.3g} of the sum of absolute terms, allowed {bench.tolerance:.3g}"
                return Begun(metrics, failure=reason)
        macs = sum(bench.costs.macs.values())
        metrics.append(Metric("macs", "MAC", macs))
        # ops of an older revision, measured by `ab`, tell no more than their MACs
        metrics.append(Metric("operations", "1", getattr(bench.costs, "operations", macs)))
        metrics.append(Metric("floor_bytes", "B", bench.costs.floor_bytes))
        working_set = sum(bench.costs.memory.values())
        clocks = bench.clocks(self.without)
        settings = {"fits_cache": working_set <= bench.device.cache, "working_set": working_set, "roof": bench.op.roof}
        return Begun(metrics, clocks, settings)
