"""Closed forms that several ops share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import Point


def held(point: Point, **elements: int) -> dict[str, int]:
    """`Costs.memory`: bytes by part, from elements by part; a backward pass holds a gradient beside each element."""
    parts = {name: count * point.itemsize for name, count in elements.items()}
    return {**parts, "gradients": sum(parts.values())} if point.backward else parts
