"""What torch.compile runs while it traces and takes for constant; apart, as the decorator imports the compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import native, native_up


def _missing(device: str) -> str:
    return native.find_missing(device)  # itself cached, and the decorator does not see through a cache


missing: Callable[[str], str] = torch.compiler.assume_constant_result(_missing)


def _missing_up(device: str) -> str:
    return native_up.find_missing(device)


missing_up: Callable[[str], str] = torch.compiler.assume_constant_result(_missing_up)
