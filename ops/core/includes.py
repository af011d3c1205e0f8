"""Which files of csrc a library is made of; apart from `build`, which imports torch."""

from __future__ import annotations

import re
from pathlib import Path

#: An include of a file of csrc, which is named from there.
INCLUDE = re.compile(rb'^#include "([^"]+)"', re.MULTILINE)


def files_of(csrc: Path, op: str) -> list[Path]:
    """All files of the op's folder, and those that they include from other folders."""
    found = {path for path in (csrc / op).rglob("*") if path.is_file()}
    new = found
    while new:
        named = {name for path in new for name in INCLUDE.findall(path.read_bytes())}
        new = {path for name in named if (path := csrc / name.decode()).is_file()} - found
        found |= new
    return sorted(found)
