"""What `compare` names as the cause of a slower case."""

from __future__ import annotations

from typing import Any

import pytest
from sample_runs import record

from reports import Metric, Record
from reports.core.causes import cause

FLOOR = 0.03
PREDICTED = {"memory": 2e-5, "fp": 1e-5, "issue": 3e-5, "shared": 0.0, "launch": 5e-7, "bound_by": "issue"}


def told(operator_bytes: float = 4e6, copy: float = 1e10, **predicted: float) -> Record:
    metrics = [
        Metric("latency_wall", "s", 1e-3),
        Metric("macs", "MAC", 9e6),
        Metric("operator_bytes", "B", operator_bytes),
        Metric("roof_copy", "B/s", copy, 0.95 * copy, 1.05 * copy),
    ]
    settings: dict[str, Any] = {"predicted": PREDICTED | predicted}
    return record("profile", "ddf_op", "native", metrics=metrics, settings=settings)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (told(operator_bytes=6e6), "moved with it: operator_bytes +50.0%; unmoved: macs, roof_copy, predicted for"),
        (told(issue=4.5e-5), "moved with it: predicted for issue slots +50.0%; unmoved: macs, operator_bytes"),
        (told(memory=3e-5, fp=2e-5), "moved with it: predicted for bytes +50.0%, predicted for FP operations +100.0%"),
        (told(launch=1e-6), "moved with it: predicted for the launch +100.0%"),
        (told(copy=0.5e10), "moved with it: roof_copy -44.7%;"),
        (told(copy=0.92e10), "not explained by macs, operator_bytes, roof_copy, predicted for bytes"),  # bounds overlap
        (told(operator_bytes=1e6), "not explained by macs, operator_bytes"),  # less work slows nothing
    ],
)
def test_what_moved_is_told_and_what_did_not(after: Record, says: str) -> None:
    assert cause(told(), after, FLOOR).startswith(says)


def test_what_only_one_side_knows_explains_nothing() -> None:
    bare = record("latency", "ddf_op", "native", metrics=[Metric("latency_wall", "s", 1e-3)])
    assert cause(bare, told(), FLOOR) == cause(told(), bare, FLOOR) == ""
