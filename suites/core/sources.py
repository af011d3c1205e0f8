"""The sources that a run needs on another machine: which they are, and what tells one revision from another."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

#: What a worker imports and builds; pyproject.toml marks a checkout, beside which its builds are kept.
PARTS = ("ops", "csrc", "suites", "reports", "pyproject.toml")
#: Folders that nothing of a worker needs: committed results, and what Python keeps.
LEFT_OUT = ("published", "__pycache__")
#: Where the op files of a job lie, each in a folder of its own.
OP_FILES = "op_files"


def files(root: Path) -> Iterator[Path]:
    """The sources of a checkout, in order."""
    for part in PARTS:
        found = sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]
        yield from (path for path in found if path.is_file() and not set(LEFT_OUT) & set(path.parts))


def revision(root: Path) -> str:
    """Names the content of the sources, uncommitted changes included."""
    digest = hashlib.sha256()
    for path in files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def pack(root: Path, op_files: Sequence[str], target: Path) -> list[str]:
    """Copies the sources into a folder, with further op files, whose paths in it are returned."""
    for path in files(root):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    packed = []
    for number, file in enumerate(op_files):
        copy = target / OP_FILES / str(number) / Path(file).name
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
        packed.append(str(copy.relative_to(target)))
    return packed
