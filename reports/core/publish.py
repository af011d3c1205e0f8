"""Several runs as a static site, and a run as one archive that reproduces it."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import SCHEMA_VERSION, Json, Run
from .. import claims as claims_format
from .. import page as page_format
from .arrange import Arrangement, device_names
from .claims.judge import judge
from .headlines import claims_sentence, device_sentence, headlines
from .records import ENVIRONMENT, RECORDS, RunError
from .sections import run_command, run_name
from .web import Answer, Section, page

#: Every file of an archive has this time, so that two archives of the same runs are equal byte for byte.
_TIME = (1980, 1, 1, 0, 0, 0)
_README = """\
# A reproduction package of ddfbench

runs/<name>/run.json        the environment a run was taken in
runs/<name>/records.jsonl   every case with every sample
runs/<name>/claims.csv      each published claim, what the run says of it, and the command that tests it
runs/<name>/report.html     the report, made from these records alone
manifest.json               the SHA-256 of each file, and the command that takes each run

With a checkout of the revision that manifest.json names, each command takes its run again, and
`python runner.py report runs/<name>` renders these records again.
"""


def publish(runs: Sequence[Run], target: Path) -> None:
    """Writes a site: `index.html`, and a page for each run below `runs/`.

    Raises:
        RunError: if it cannot be written.
    """
    names = folder_names(runs)
    files: dict[str, str | bytes] = {"index.html": _index(runs, names), ".nojekyll": ""}
    for run, name in zip(runs, names, strict=True):
        files |= {f"runs/{name}/{path}": content for path, content in page_format.serialize([run]).items()}
    if len(runs) > 1:
        files["side-by-side.html"] = page_format.serialize(list(runs))["report.html"]
    try:
        for path, content in files.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(_bytes(content))
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error


def bundle(runs: Sequence[Run], target: Path) -> None:
    """Writes an archive of runs with their raw samples, claims with their commands, environment, and a manifest.

    Args:
        target: a file whose name ends in `.zip`.

    Raises:
        RunError: if it cannot be written, or the name ends otherwise.
    """
    if target.suffix != ".zip":
        raise RunError(f"--bundle: {str(target)!r} does not end in .zip")
    files: dict[str, bytes] = {"README.md": _README.encode()}
    names = folder_names(runs)
    try:
        for run, name in zip(runs, names, strict=True):
            for file in (ENVIRONMENT, RECORDS):
                files[f"runs/{name}/{file}"] = (run.path / file).read_bytes()
            made = {**claims_format.serialize([run]), **page_format.serialize([run])}
            files |= {f"runs/{name}/{path}": _bytes(content) for path, content in made.items()}
        files["manifest.json"] = _bytes(json.dumps(_manifest(runs, names, files), indent=1) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, content in sorted(files.items()):
                archive.writestr(zipfile.ZipInfo(path, _TIME), content, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error}") from error


def folder_names(runs: Iterable[Run]) -> list[str]:
    """A folder for each run: its name, numbered where two have the same."""
    names: list[str] = []
    for run in runs:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", run_name(run)).strip("._") or "run"
        taken, number = plain, 2
        while taken in names:
            taken, number = f"{plain}-{number}", number + 1
        names.append(taken)
    return names


def _manifest(runs: Sequence[Run], names: Sequence[str], files: dict[str, bytes]) -> Json:
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [
            {
                "folder": f"runs/{name}",
                "command": run_command(run),
                "project": run.environment.get("project"),
                "device": run.environment.get("device"),
                "software": run.environment.get("software"),
            }
            for run, name in zip(runs, names, strict=True)
        ],
        "files": {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())},
    }


def _index(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The page that leads to the others: what each run found, in its first sentences."""
    answers, links = [], []
    for run, device, name in zip(runs, device_names(list(runs)), names, strict=True):
        found = headlines(Arrangement([run]))
        said = [against.sentence for headline in found[:1] for against in headline.against]
        answers.append(Answer(device_sentence(run, device), [*said, claims_sentence(judge(run))]))
        started = str(run.environment.get("started") or "")[:10]
        links.append((", ".join(filter(None, (run_name(run), device, started))), f"runs/{name}/report.html"))
    if len(runs) > 1:
        links.append(("all runs side by side", "side-by-side.html"))
    return page("ddfbench: published runs", answers, [Section("Runs", links=links)])


def _bytes(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode()
