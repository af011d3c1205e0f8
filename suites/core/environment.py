"""What `run.json` tells of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from reports import SCHEMA_VERSION, Json
from suites.core import findings, machine
from suites.core.cases import Selection
from suites.core.plan import Plan

PACKAGES = ("numpy", "fvcore", "triton", "ninja")


def describe(run: str, arguments: list[str], plan: Plan, root: Path, version: str) -> Json:
    """The environment of a run that begins now."""
    return {**describe_run(run, arguments, plan.selection, root, version), **describe_node(plan)}


def describe_run(run: str, arguments: list[str], selection: Selection, root: Path, version: str) -> Json:
    """Its part that was decided where the run was started."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": ["runner.py", *arguments],
        "selection": selection.to_json(),
        "project": {"version": version, **machine.describe_project(root)},
    }


def describe_node(plan: Plan) -> Json:
    """Its part that is told where the device is."""
    return {
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
