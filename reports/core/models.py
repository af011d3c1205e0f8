"""A run that was taken on several models of devices: a folder for each below that of the run, and each is a run itself.

Where there is one model, its run is the folder itself, so that it is like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import Json, Run
from .records import RunDirectory, load_run, read_environment


def create(path: Path, head: Json, parts: Mapping[str, Json]) -> dict[str, RunDirectory]:
    """Makes the folders.

    Args:
        head: what `run.json` tells of the run as a whole.
        parts: what it tells of each model, by model.

    Raises:
        RunError: if `path` holds something already or cannot be written.
    """
    if len(parts) == 1:
        return {model: RunDirectory.create(path, {**head, **part}) for model, part in parts.items()}
    folders = _folders(parts)
    RunDirectory.create(path, {**head, "models": folders}, records=False)
    return {
        model: RunDirectory.create(path / folders[model], {**head, "run": f"{head['run']}/{folders[model]}", **part})
        for model, part in parts.items()
    }


def reopen(path: Path) -> dict[str, RunDirectory]:
    """Opens them by model to go on.

    Raises:
        RunError: as `RunDirectory.open` does.
    """
    environment = read_environment(path)
    folders = environment.get("models")
    if folders is None:
        return {str(environment.get("model", "")): RunDirectory.open(path)}
    return {model: RunDirectory.open(path / folder) for model, folder in folders.items()}


def load(path: Path, samples: bool = True) -> list[Run]:
    """Reads the run of each model.

    Raises:
        RunError: as `load_run` does.
    """
    folders = read_environment(path).get("models")
    return [load_run(path / folder, samples) for folder in folders.values()] if folders else [load_run(path, samples)]


def _folders(models: Iterable[str]) -> dict[str, str]:
    """A name for each model's folder: its letters and digits."""
    found: dict[str, str] = {}
    for model in models:
        plain = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-") or "device"
        taken = sum(name == plain or name.startswith(f"{plain}.") for name in found.values())
        found[model] = f"{plain}.{taken + 1}" if taken else plain
    return found
