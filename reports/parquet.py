"""Parquet: the tidy table of all suites in one file, `records.parquet`, or the verdicts, `comparison.parquet`.

Needs pyarrow (`pip install ddfbench[parquet]`). The columns are those of the CSV, with their types.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from . import Json, Run
from .core.records import RunError
from .core.tables import rows
from .core.verdicts import Comparison, Verdict

NAME = "parquet"
ORDER = 53
ON_REQUEST = True


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    columns, content = rows(record for run in runs for record in run.records)
    about = {"runs": [run.environment for run in runs]}
    return {"records.parquet": _parquet(columns, content, about)}


def serialize_comparison(comparison: Comparison) -> dict[str, str | bytes]:
    columns = [field.name for field in fields(Verdict)]
    content = [[getattr(verdict, name) for name in columns] for verdict in comparison.verdicts]
    about = {key: value for key, value in comparison.to_json().items() if key != "verdicts"}
    return {"comparison.parquet": _parquet(columns, content, about)}


def _parquet(columns: Sequence[str], content: Sequence[Sequence[Any]], about: Json) -> bytes:
    """A table, `about` in its metadata under the key `ddfbench`.

    Raises:
        RunError: without pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise RunError("the format parquet needs the package pyarrow: pip install pyarrow") from None
    data = {name: pyarrow.array(_typed([row[i] for row in content])) for i, name in enumerate(columns)}
    table = pyarrow.table(data).replace_schema_metadata({"ddfbench": json.dumps(about)})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _typed(values: list[Any]) -> list[Any]:
    """Values of one type: numbers where all are, else texts; None stays."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known) or all(
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 for value in known
    ):
        return values
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return [None if value is None else float(value) for value in values]
    return [None if value is None else str(value).encode(errors="replace").decode() for value in values]
