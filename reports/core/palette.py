"""One colour an op and one marker and line an impl, in every plot of every format.

Colours are Okabe and Ito's, which the colour-blind tell apart, then darker ones of Paul Tol's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .. import Run
from .arrange import OPS

_OP_COLORS = dict(zip(OPS, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7"), strict=True))
_MORE_COLORS = (
    *("#000000", "#882255", "#999933", "#332288", "#777777"),
    *("#44AA99", "#AA4499", "#661100", "#6699CC", "#117733", "#DDCC77"),
)


class Style(NamedTuple):
    """A marker and a line, as matplotlib names them."""

    marker: str
    line: str


_IMPL_STYLES = {
    "": Style("o", "-"),
    "torch": Style("o", "-"),
    "native": Style("s", "-"),
    "composite": Style("v", "--"),
    "compiled": Style("^", "-."),
    "paper": Style("D", ":"),
    "fused": Style("P", "-"),
    "cudnn": Style("X", "-"),
    "aten": Style("d", "--"),
    "triton": Style("<", "-."),
}
_MORE_STYLES = (Style(">", "-"), Style("p", "--"), Style("h", "-."), Style("*", ":"))


def op_colors(runs: Iterable[Run]) -> dict[str, str]:
    """By op, of all that runs have."""
    return colors_of(record.op for run in runs for record in run.records)


def impl_styles(runs: Iterable[Run]) -> dict[str, Style]:
    """By impl, likewise."""
    return styles_of(record.impl for run in runs for record in run.records)


def colors_of(ops: Iterable[str]) -> dict[str, str]:
    """By op, those that the palette does not know in alphabetical order."""
    unknown = sorted(set(ops) - set(OPS))
    return _OP_COLORS | {op: _MORE_COLORS[i % len(_MORE_COLORS)] for i, op in enumerate(unknown)}


def styles_of(impls: Iterable[str]) -> dict[str, Style]:
    """By impl, likewise."""
    unknown = sorted(set(impls) - set(_IMPL_STYLES))
    return _IMPL_STYLES | {impl: _MORE_STYLES[i % len(_MORE_STYLES)] for i, impl in enumerate(unknown)}
