"""What `run.json` tells of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from reports import SCHEMA_VERSION, Json
from suites.core import findings, machine
from suites.core.plan import Plan

PACKAGES = ("numpy", "fvcore", "triton", "ninja")


def describe(run: str, arguments: list[str], plan: Plan, root: Path, version: str) -> Json:
    """The environment of a run that begins now."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": ["runner.py", *arguments],
        "selection": plan.selection.to_json(),
        "project": {"version": version, **machine.describe_project(root)},
        "machine": machine.describe_machine(),
        "device": plan.device,
        "software": {**plan.software, **packages(), "compiler": machine.describe_compiler()},
        "probe": dict(plan.rates),
        "warnings": findings.warnings(findings.at_once(findings.Host())) + plan.not_built,
    }


def packages() -> dict[str, str | None]:
    """Versions of the packages that matter, None for those that are not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found
