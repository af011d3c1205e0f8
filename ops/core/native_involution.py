"""The native filters of involution, `ddf::involution_filters`: as `native`, for the library `involution`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import build, native

__all__ = ["fvcore_handles", "load", "missing", "predict"]


def predict(
    features: Tensor, reduce_weight: Tensor, scale: Tensor, shift: Tensor, span_weight: Tensor, span_bias: Tensor
) -> Tensor:
    """Two 1x1 convolutions, the first with its normalisation and ReLU, in one pass; needs `load` to have been called.

    out = span(relu(scale * reduce(features) + shift)). The hidden units are kept nowhere; the backward pass, in plain
    PyTorch, computes them anew.

    Args:
        features: (N, C, H, W), float32, float64, float16 or bfloat16, of any strides; all others are of its dtype.
        reduce_weight: (hidden, C, 1, 1).
        scale, shift: (hidden,), a BatchNorm in eval mode as one product and one sum.
        span_weight, span_bias: (filters, hidden, 1, 1), (filters,).

    Returns:
        (N, filters, H, W), contiguous; summed in float32, or float64 for float64.

    Raises:
        RuntimeError: if an argument does not fit; the text names it, its shape and what was expected.
        NotImplementedError: if the features are not on a CPU.
    """
    arguments = features, reduce_weight, scale, shift, span_weight, span_bias
    return cast(Tensor, torch.ops.ddf.involution_filters.default(*arguments))


@functools.cache
def load() -> build.Library:
    """Builds the library if need be, loads it and registers the operator; the second call does nothing.

    Raises:
        BuildError: if it cannot be built.
    """
    return native.load_library("involution", _register)


@functools.cache
def missing(device: str) -> str:
    """Why the operator cannot run on that kind of device; empty where it can. Loads it, if that was not done yet.

    A failed build is also told on stderr, once.
    """
    if device != "cpu":
        return f"none for {device}"
    return native.why_missing(device, load, "the filters of involution cannot be predicted natively")


# --------------------------------------------------------------------------------------------------------- registration


def _register() -> None:
    torch.library.register_fake("ddf::involution_filters", _fake)
    torch.library.register_autograd("ddf::involution_filters", _differentiate, setup_context=_keep_inputs)
    torch.library.impl("ddf::involution_filters", "AutocastCPU", _autocast)
    register_flop_formula(torch.ops.ddf.involution_filters)(_flops)


def _fake(
    features: Tensor, reduce_weight: Tensor, scale: Tensor, shift: Tensor, span_weight: Tensor, span_bias: Tensor
) -> Tensor:
    """Checks as the library does, with its texts."""
    native.check_features(features, "mul")
    for name, weight, meaning in (
        ("reduce_weight", reduce_weight, "(hidden, C, 1, 1)"),
        ("span_weight", span_weight, "(filters, hidden, 1, 1)"),
    ):
        if weight.dim() != 4 or weight.shape[0] < 1:
            raise RuntimeError(f"{name}: expected shape {meaning}, got {tuple(weight.shape)}")
    n, c, h, w = features.shape
    hidden, filters = reduce_weight.shape[0], span_weight.shape[0]
    native.check_like("reduce_weight", reduce_weight, (hidden, c, 1, 1), "(hidden, C, 1, 1)", features)
    native.check_like("scale", scale, (hidden,), "(hidden,)", features)
    native.check_like("shift", shift, (hidden,), "(hidden,)", features)
    native.check_like("span_weight", span_weight, (filters, hidden, 1, 1), "(filters, hidden, 1, 1)", features)
    native.check_like("span_bias", span_bias, (filters,), "(filters,)", features)
    return features.new_empty(n, filters, h, w)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, reduce_weight, scale, shift, span_weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    by_channel = scale[:, None, None]
    sums = F.conv2d(features, reduce_weight)
    hidden = torch.addcmul(shift[:, None, None], sums, by_channel).relu()
    inwards = any(wanted[:4])
    grad_hidden, grad_span, grad_bias = _through(grad, hidden, span_weight, (inwards, *wanted[4:]))
    if not inwards:
        return None, None, None, None, grad_span, grad_bias
    grad_normalised = torch.ops.aten.threshold_backward(grad_hidden, hidden, 0)
    grad_features, grad_reduce, _ = _through(
        grad_normalised * by_channel, features, reduce_weight, (wanted[0], wanted[1], False)
    )
    grad_scale = (grad_normalised * sums).sum((0, 2, 3)) if wanted[2] else None
    grad_shift = grad_normalised.sum((0, 2, 3)) if wanted[3] else None
    return grad_features, grad_reduce, grad_scale, grad_shift, grad_span, grad_bias


def _through(grad: Tensor, read: Tensor, weight: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of a 1x1 convolution: of what it read, of its weight and of its bias."""
    settings = [len(weight)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    return torch.ops.aten.convolution_backward(grad, read, weight, *settings, wanted)


def _autocast(*args: Tensor) -> Tensor:
    """As of `ddf::forward`."""
    with torch.autocast("cpu", enabled=False):
        return predict(*native.cast_tensors("cpu", args))


# ---------------------------------------------------------------------------------------------------------------- FLOPs


def _macs(features: tuple[int, ...], reduce_weight: tuple[int, ...], span_weight: tuple[int, ...]) -> int:
    """Of both convolutions; normalisation is not counted."""
    return features[0] * prod(features[2:]) * (prod(reduce_weight) + prod(span_weight))


def _flops(
    features: tuple[int, ...],
    reduce_weight: tuple[int, ...],
    scale: tuple[int, ...],
    shift: tuple[int, ...],
    span_weight: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    """torch's counter takes a multiply-accumulate for two."""
    return 2 * _macs(features, reduce_weight, span_weight)


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], Any]]:
    """As `native.fvcore_handles`, of both operators."""

    def filters(inputs: list[Any], outputs: list[Any]) -> int:
        return _macs(*(tuple(inputs[i].type().sizes()) for i in (0, 1, 4)))

    return {**native.fvcore_handles(), "ddf::involution_filters": filters}
