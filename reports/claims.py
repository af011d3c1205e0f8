"""Claims: `claims.csv`, a row for each claim of the poster and each run."""

from __future__ import annotations

import csv
import io

from . import Run
from .core.arrange import device_names
from .core.claims.judge import judge

NAME = "claims"
ORDER = 15

#: `published`, `ours`, `low` and `high` are in `unit`, which is the poster's.
COLUMNS = (
    *("claim", "source", "statement", "published", "unit", "ours", "low", "high"),
    *("verdict", "reason", "device", "command"),
)


def serialize(runs: list[Run]) -> dict[str, str | bytes]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run, device in zip(runs, device_names(runs), strict=True):
        for judgement in judge(run):
            claim, finding = judgement
            published = (claim.id, claim.source, claim.statement, claim.published, claim.unit)
            numbers = (finding.ours, finding.low, finding.high)
            writer.writerow([*published, *numbers, finding.verdict, judgement.why, device, claim.command])
    return {"claims.csv": text.getvalue()}
