"""Kernels of other libraries, used where they are installed."""

from __future__ import annotations

import importlib
from typing import Any

from .. import Skip


def library(name: str) -> Any:
    """The module of that name.

    Raises:
        Skip: if it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skip(f"{name.partition('.')[0]} is not installed: {error}") from None
