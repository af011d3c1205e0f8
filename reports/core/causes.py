"""Why a case became slower: what both records tell of its work, of the time predicted for it and of the roofs."""

from __future__ import annotations

from collections.abc import Iterator

from .. import Record

#: What a call has to do, by metric: the more, the longer.
WORK = ("macs", "floor_bytes", "operator_bytes", "dram_bytes", "operators", "launches", "predicted_time")
#: What the device gave in the same rounds: the less, the longer.
ROOFS = ("roof_copy", "roof_arithmetic")
#: Parts of a predicted time, see `suites.core.gpus.predict`.
PARTS = {
    "memory": "predicted for bytes",
    "fp": "predicted for FP operations",
    "issue": "predicted for issue slots",
    "shared": "predicted for shared memory",
    "launch": "predicted for the launch",
}


def cause(before: Record, after: Record, floor: float) -> str:
    """What moved with the latency by at least `floor`, and what did not; empty if the records tell nothing of it."""
    moved, unmoved = [], []
    for name, change in changes(before, after):
        if change >= floor:
            moved.append(f"{name} {-change / (1 + change) if name in ROOFS else change:+.1%}")
        else:
            unmoved.append(name)
    if not moved:
        return f"not explained by {', '.join(unmoved)}" if unmoved else ""
    return f"moved with it: {', '.join(moved)}" + (f"; unmoved: {', '.join(unmoved)}" if unmoved else "")


def changes(before: Record, after: Record) -> Iterator[tuple[str, float]]:
    """What both records know, and by how much longer, relatively, a call takes that is bound by it."""
    for name in (*WORK, *ROOFS):
        old, new = before.metric(name), after.metric(name)
        if old is None or new is None or not old.value or not new.value:
            continue
        if name in ROOFS:  # a measured rate: as far as its bounds are apart
            yield name, (old.low or old.value) / (new.high or new.value) - 1
        else:
            yield name, new.value / old.value - 1
    parts = (record.settings.get("predicted") or {} for record in (before, after))
    old_parts, new_parts = parts
    for part, name in PARTS.items():
        if old_parts.get(part) and new_parts.get(part):
            yield name, new_parts[part] / old_parts[part] - 1
