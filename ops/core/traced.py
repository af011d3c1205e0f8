"""What torch.compile runs while it traces and takes for constant; apart, as the decorator imports the compiler."""

from __future__ import annotations

import torch

from . import native

missing = torch.compiler.assume_constant_result(native.find_missing)
