"""The list of claims, made of the poster's tables (`reports/poster/*.csv`) and sentences."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path

from ..units import digits
from . import Claim, Rule
from .rules import ABOUT, LATENCY_FACTOR, RATIO_FACTOR, Cited, Count, Figure, Nothing, Order
from .table1 import Grows, Parameters

FOLDER = Path(__file__).resolve().parents[2] / "poster"

_OPS = {"Conv": "conv", "DwConv": "dwconv", "DyFilter": "dyfilter", "DDF": "ddf", "DDF Op": "ddf_op"}
_TITLES = {op: title for title, op in _OPS.items()} | {"dyfilter_dw": "the depthwise DyFilter"}
#: Of Table 2: whose order is a claim, and whose ratio.
_ORDERED = (("ddf_op", "dwconv"), ("ddf", "conv"))
_RATIOS = (*_ORDERED, ("ddf", "ddf_op"))
_MILLION, _GIGA, _MILLISECOND = 10**6, 10**9, 1e-3
#: Other variants that a network might be, where its own figures do not agree or nobody says what it is.
_READINGS = {
    ("resnet18", "ddf"): ("ddf_separable",),
    ("resnet50", "res2net_14w_8s"): ("res2net_26w_4s",),
}
_ACCURACY = "accuracy is cited: it takes training on ImageNet, which this suite never does"


@lru_cache(maxsize=1)
def claims() -> tuple[Claim, ...]:
    """All claims, in the order of the poster.

    Raises:
        ValueError, KeyError: if a table is not what it should be.
    """
    tables = (_table1(), _table2(), _memory_figure(), _table3(), _networks(4, "filter"), _networks(5, "variant"))
    return tuple(chain(*tables, _text()))


def unclaimed() -> list[str]:
    """The cells that are not the poster's own and carry no claim: `time of DwConv`."""
    cells = ((row, column) for row in rows(1) for column in ("params", "time", "space"))
    return [f"{column} of {row['filter']}" for row, column in cells if _assumed(row, column)]


def rows(table: int) -> list[dict[str, str]]:
    """The rows of a table of the poster, as printed."""
    (path,) = FOLDER.glob(f"table{table}_*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _assumed(row: dict[str, str], column: str) -> bool:
    return row["source"] in ("assumed", f"assumed for {column}")


def _table1() -> Iterator[Claim]:
    for row in rows(1):
        for column in ("params", "time", "space"):
            if not _assumed(row, column):
                for name, statement, suite, rule in _costs(_OPS[row["filter"]], column, row[column]):
                    id, statement = f"table1-{column}-{name}", f"{row['filter']} {statement}"
                    command = _command(suite, _OPS[row["filter"]])
                    yield Claim(id, "Table 1", column, statement, row[column], "", rule, command)


def _costs(op: str, column: str, cell: str) -> Iterator[tuple[str, str, str, Rule]]:
    """What one cell of Table 1 claims: the end of an id, a statement, the suite that tests it, and the rule."""
    if column == "params":
        yield op, "has so many parameters", "params", Parameters(op, cell)
    elif column == "time":
        yield f"{op}-macs", "takes so many MACs", "complexity", Grows(("macs",), op, "n,c,k", cell)
        for along in ("n", "c", "k"):
            rule = Grows(("latency_device", "latency_wall"), op, along, cell)
            yield f"{op}-latency-{along}", f"takes time that grows so with {along}", "complexity", rule
    elif cell == "-":
        yield f"{op}-filters", "generates no filters", "memory", Nothing("filter_memory", "memory", op)
    else:
        filters = Grows(("filter_memory",), op, "n,c,k", cell)
        yield f"{op}-filters", "generates filters of so many bytes", "complexity", filters
        for along in ("n", "c", "k"):
            # held against the closed form of filters and output, as no filter does without its output
            rule = Grows(("peak_memory",), op, along, cell)
            yield (
                f"{op}-peak-{along}",
                f"takes memory, beside its output, that grows so with {along}",
                "complexity",
                rule,
            )


def _table2() -> Iterator[Claim]:
    def ratio(row: dict[str, str], over: str, under: str) -> Fraction:
        return Fraction(row[over]) / Fraction(row[under])

    for over, under in _ORDERED:
        for row in rows(2):
            at, published = f"{row['resolution']}×{row['resolution']}", ratio(row, over, under)
            slower = published > 1
            statement = f"{_TITLES[over]} is {'slower' if slower else 'faster'} than {_TITLES[under]} at {at}"
            statement += f" ({row[over]} against {row[under]} ms)"
            rule = Order("latency_wall", over, under, (int(row["resolution"]),), conceded=slower)
            command = _command("latency", over, under) + f" --resolution {row['resolution']}"
            id = f"table2-order-{over}-{under}-{row['resolution']}"
            yield Claim(id, "Table 2", "order", statement, digits(float(published)), "1", rule, command)
    for over, under in _RATIOS:
        for row in rows(2):
            size, published = int(row["resolution"]), ratio(row, over, under)
            statement = f"{_TITLES[over]} takes so many times {_TITLES[under]} at {size}×{size}"
            figure = Figure(published, 1.0, RATIO_FACTOR, size, over, under)
            command = _as_published(size, over, under)
            id = f"table2-ratio-{over}-{under}-{size}"
            yield Claim(id, "Table 2", "ratio", statement, digits(float(published)), "1", figure, command)
    for op in ("conv", "dwconv", "ddf", "ddf_op"):
        for row in rows(2):
            size = int(row["resolution"])
            figure = Figure(Fraction(row[op]), _MILLISECOND, LATENCY_FACTOR, size, op)
            id, statement = f"table2-latency-{op}-{size}", f"{_TITLES[op]} takes so long at {size}×{size}"
            yield Claim(id, "Table 2", "latency", statement, row[op], "ms", figure, _as_published(size, op))


def _memory_figure() -> Iterator[Claim]:
    """Of the figure only its title is left; the order is that of Table 1's space row."""
    for over, under in (("dyfilter_dw", "dyfilter"), ("ddf", "dyfilter_dw")):
        statement = f"{_TITLES[over]} takes less memory than {_TITLES[under]} (order from Table 1, space)"
        yield _less(f"figure-memory-{over}-{under}", "memory figure", statement, "memory", "peak_memory", over, under)
    statement = "DDF takes about the memory of DwConv (order from Table 1, space)"
    id = "figure-memory-ddf-dwconv"
    yield _less(id, "memory figure", statement, "memory", "peak_memory", "ddf", "dwconv", limit=ABOUT)


def _text() -> Iterator[Claim]:
    lighter = "“lighter-weight than a standard convolution”: DDF"
    yield _less("text-lighter-params", "text", f"{lighter} has fewer parameters", "params", "params", "ddf", "conv")
    yield _less("text-lighter-macs", "text", f"{lighter} takes fewer MACs", "flops", "macs", "ddf", "conv")
    statement = "“Dynamic filters [...] further increasing the computational costs”: more MACs than Conv"
    yield _less("text-dynamic-macs", "text", statement, "flops", "macs", "conv", "dyfilter")
    statement = "“depthwise convolution reduce the computational costs”: fewer MACs than Conv"
    yield _less("text-depthwise-macs", "text", statement, "flops", "macs", "dwconv", "conv")
    statement = "“Fast”: DDF takes less time than the depthwise DyFilter (against Conv see Table 2)"
    yield _less("text-fast", "text", statement, "latency", "latency_wall", "ddf", "dyfilter_dw")
    statement = "“small memory footprint”: DDF takes about the memory of Conv"
    yield _less("text-small-memory", "text", statement, "memory", "peak_memory", "ddf", "conv", limit=ABOUT)
    statement = "“Consistent improvements on different tasks”"
    yield Claim("text-improvements", "text", "accuracy", statement, "", "", Cited(_ACCURACY), "")


def _table3() -> Iterator[Claim]:
    for row in rows(3):
        branches = [name for name in ("spatial", "channel") if row[name] == "yes"]
        name = "-".join(branches) or "base"
        statement = f"ResNet50 with {' and '.join(branches) or 'no'} branch: top-1 and top-5 accuracy"
        published = f"{row['top1']} / {row['top5']}"
        yield Claim(f"table3-{name}-accuracy", "Table 3", "accuracy", statement, published, "%", Cited(_ACCURACY), "")


def _networks(table: int, column: str) -> Iterator[Claim]:
    """Tables 4 and 5: a row a network; an empty cell is no claim."""
    for row in rows(table):
        backbone, variant = row["backbone"], row[column]
        source = f"Table {table}" + (" (model zoo)" if row.get("source") == "zoo" else "")
        for metric, cell, scale, unit in (("params", "params_m", _MILLION, "M"), ("macs", "flops_g", _GIGA, "GMAC")):
            if row[cell]:
                readings = _READINGS.get((backbone, variant), ())
                rule = Count(metric, backbone, variant, Decimal(row[cell]), scale, readings)
                id, statement = f"table{table}-{backbone}-{variant}-{metric}", f"{metric} of {backbone} with {variant}"
                yield Claim(id, source, metric, statement, row[cell], unit, rule, _command("networks"))
        for cell in ("top1", "top1_rerun"):
            if row.get(cell):
                id = f"table{table}-{backbone}-{variant}-{cell}"
                statement = f"{cell.replace('_', ', ')} of {backbone} with {variant}"
                yield Claim(id, source, "accuracy", statement, row[cell], "%", Cited(_ACCURACY), "")


def _less(
    id: str, source: str, statement: str, suite: str, metric: str, over: str, under: str, limit: float = 1.0
) -> Claim:
    """An order over all resolutions of Table 2."""
    sizes = (None,) if metric == "params" else tuple(int(row["resolution"]) for row in rows(2))
    rule = Order(metric, over, under, sizes, limit=limit)
    published = f"< {limit:g}"
    return Claim(id, source, "order", statement, published, "1", rule, _command(suite, over, under))


def _command(suite: str, *ops: str) -> str:
    return f"python runner.py --suite {suite}" + (f" --op {','.join(ops)}" if ops else "")


def _as_published(size: int, *ops: str) -> str:
    impls = dict.fromkeys("torch" if op in ("conv", "dwconv") else "paper" for op in ops)
    options = f"--device cuda --preset paper --op {','.join(ops)} --impl {','.join(impls)} --resolution {size}"
    return f"python runner.py --suite latency {options}"
