"""ResNets with other filters and blocks: `resnet` is the backbone, every other file a family of variants."""

from __future__ import annotations

import importlib
from pathlib import Path

from ..seeded import clear
from .resnet import BACKBONES, CLASSES, VARIANTS, ResNet, Variant, build, count_macs, draw, with_plain_operators

__all__ = [
    "BACKBONES",
    "CLASSES",
    "VARIANTS",
    "ResNet",
    "Variant",
    "build",
    "clear",
    "count_macs",
    "draw",
    "with_plain_operators",
]

for path in sorted(Path(__file__).parent.glob("*.py")):
    if path.name != "__init__.py":
        importlib.import_module(f".{path.stem}", __name__)
