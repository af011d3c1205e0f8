"""Closed forms that several ops share."""

from __future__ import annotations

from collections.abc import Mapping

from .. import Costs, Point


def applied(point: Point, filters: int, factors: int = 2, left_out: Mapping[str, int] | None = None) -> Costs:
    """The costs of applying filters that are given: no parameters; one MAC a tap and output, and for the gradient of
    each factor of a product another.

    floor_bytes: features x and filters f read, output o written; a backward pass reads x, f and the gradient of o, and
    writes those of x and f: 3 (x + f) + 2 o in all.

    Args:
        filters: elements of all that is given besides the features.
        factors: of a product, the features among them; two filters are `combined` into one for each.
    """
    features, output = point.pixels * point.channels, point.out_pixels * point.channels
    read, products = features + filters, output * point.taps
    return Costs(
        params={},
        macs={"dynamic_filter": (1 + factors if point.backward else 1) * products},
        floor_bytes=(3 * read + 2 * output if point.backward else read + output) * point.itemsize,
        memory=held(point, features=features, given_filters=filters, output=output),
        left_out=left_out or {},
        combined=combinations(point, products) * (factors - 2),
    )


def combinations(point: Point, products: int) -> int:
    """`Costs.combined` of two filters: one for each tap and output; on the way back anew, for the gradient of the
    features, and one that the gradients of both filters share.

    Args:
        products: taps and outputs.
    """
    return (3 if point.backward else 1) * products


def held(point: Point, **elements: int) -> dict[str, int]:
    """`Costs.memory`: bytes by part, from elements by part; a backward pass holds a gradient beside each element."""
    parts = {name: count * point.itemsize for name, count in elements.items()}
    return {**parts, "gradients": sum(parts.values())} if point.backward else parts
