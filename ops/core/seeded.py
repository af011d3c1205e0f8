"""Seeded inputs and parameters, in the dtype and layout that a point asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .. import Point

Module = TypeVar("Module", bound=nn.Module)


def dtype_of(point: Point) -> torch.dtype:
    """The torch dtype of the point's element type."""
    dtype: torch.dtype = getattr(torch, point.dtype)
    return dtype


def memory_format_of(point: Point) -> torch.memory_format:
    """The torch memory format of the point's layout."""
    return torch.channels_last if point.layout == "channels_last" else torch.contiguous_format


def normal(shape: Sequence[int], point: Point, generator: torch.Generator, std: float = 1.0) -> Tensor:
    """A leaf of that shape, (N, C, H, W), drawn from a normal distribution; the same values in every layout."""
    drawn = torch.empty(shape, dtype=dtype_of(point), device=generator.device).normal_(0, std, generator=generator)
    return drawn.contiguous(memory_format=memory_format_of(point)).requires_grad_(point.backward)


def placed(module: Module, point: Point, device: torch.device) -> Module:
    """The module in eval mode on that device, its parameters in the dtype and layout of the point."""
    module.to(device=device, dtype=dtype_of(point))
    for parameter in module.parameters():
        if parameter.dim() == 4:  # nn.Module.to refuses a layout for all that have five dimensions
            parameter.data = parameter.data.contiguous(memory_format=memory_format_of(point))
    return module.eval().requires_grad_(point.backward)


def empty_convolution(make: Callable[[], nn.Conv2d], point: Point, device: torch.device) -> nn.Conv2d:
    """The convolution that `make` constructs, `placed`, its parameters allocated but not drawn.

    Drawing the default initialisation first would take seconds for the 151 million weights of a dynamic filter.
    """
    with torch.device("meta"):
        conv = make()
    # not Module.to_empty, which imports torch's symbolic shapes: half a second in every worker
    for name, parameter in conv.named_parameters():
        setattr(conv, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype_of(point), device=device)))
    return placed(conv, point, device)


def clear(module: nn.Module, device: torch.device) -> None:
    """Gives a module that was built at the device `meta` parameters on another, all 0."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.zeros_like(parameter, device=device)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.zeros_like(buffer, device=device))


def drawn(make: Callable[[], Module], point: Point, device: torch.device, generator: torch.Generator) -> Module:
    """The layer that `make` constructs, `placed`, its parameters drawn, so that what it predicts is of unit order.

    A module with parameters of its own draws them in a method `draw(generator)`.
    """
    with torch.device("meta"):
        layer = make()
    clear(layer, device)
    with torch.no_grad():
        for part in layer.modules():
            if hasattr(part, "draw"):
                cast(Any, part).draw(generator)
            elif isinstance(part, nn.Conv2d | nn.Linear):
                fill_convolution(part, generator)
            elif isinstance(part, nn.modules.batchnorm._BatchNorm):
                for tensor, mean in ((part.weight, 1), (part.bias, 0), (part.running_mean, 0)):
                    cast(Tensor, tensor).normal_(mean, 0.1, generator=generator)
                cast(Tensor, part.running_var).fill_(1)
    return placed(layer, point, device)


@torch.no_grad()
def fill_convolution(conv: nn.Conv2d | nn.Linear, generator: torch.Generator, gain: float = 1.0) -> None:
    """Draws weight and bias; inputs of unit variance give outputs of a variance about `gain` squared.

    The same values in every layout: they are drawn in the order of a contiguous weight.
    """
    fan_in = conv.weight[0].numel()
    weight = conv.weight
    if not weight.is_contiguous():
        weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    conv.weight.copy_(weight.normal_(0, gain * fan_in**-0.5, generator=generator))
    if conv.bias is not None:
        conv.bias.normal_(0, 0.1, generator=generator)
