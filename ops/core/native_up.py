"""The native upsampling operator, `ddf::up_forward`, `ddf::up_forward_out` and `ddf::up_backward`: as `native`, for the
library `ddf_up`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import build, native

__all__ = ["MAX_SCALE", "apply", "apply_out", "fvcore_handles", "load", "missing"]

#: Larger scales are refused; as in csrc/ddf_up/binding.cpp.
MAX_SCALE = 64


def apply(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    scale: int = 2,
    dilation: int = 1,
    combine: str = "mul",
) -> Tensor:
    """The upsampling operator, all branches in one pass; needs `load` to have been called.

    out[n,c,y*s+i,x*s+j] = sum_t combine(S[n,b*k*k+t,y,x], C[n,b*channels+c,t]) * F[n, c, y + dilation*dy_t, x +
    dilation*dx_t], s being the scale and b = i*s + j.

    Args:
        features: F, (N, C, H, W), float32, float64, float16 or bfloat16, of any strides.
        channel_filter: C, (N, s*s*C, k, k), k odd and at most 127.
        spatial_filter: S, (N, s*s*k*k, H, W).
        scale: s, at most 64.
        combine: `mul` or `add`.

    Returns:
        (N, C, H*s, W*s), channels last where the features are; summed in float32, or float64 for float64.

    Raises:
        RuntimeError: if an argument does not fit; the text names it, its shape and what was expected.
    """
    return cast(Tensor, torch.ops.ddf.up_forward(features, channel_filter, spatial_filter, scale, dilation, combine))


def apply_out(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    out: Tensor,
    scale: int = 2,
    dilation: int = 1,
    combine: str = "mul",
) -> Tensor:
    """`apply` into `out`, (N, C, H*s, W*s), which must not overlap the inputs; without gradients.

    Raises:
        As `apply` does.
    """
    torch.ops.ddf.up_forward_out(features, channel_filter, spatial_filter, scale, dilation, combine, out)
    native.tell_written(out)
    return out


@functools.cache
def load() -> build.Library:
    """Builds the library if need be, loads it and registers the operator; the second call does nothing.

    Raises:
        BuildError: if it cannot be built.
    """
    return native.load_library("ddf_up", _register)


def missing(device: str) -> str:
    """Why the operator cannot run on that kind of device; empty where it can. Loads it, if that was not done yet.

    A failed build is also told on stderr, once.
    """
    if torch.compiler.is_compiling():
        from . import traced

        return traced.missing_up(device)
    return find_missing(device)


@functools.cache
def find_missing(device: str) -> str:
    """`missing`, where nothing is being traced."""
    return native.why_missing(device, load, "the upsampling operator cannot be built, so it takes each branch apart")


# --------------------------------------------------------------------------------------------------------- registration


def _register() -> None:
    torch.library.register_fake("ddf::up_forward", _fake_forward)
    torch.library.register_fake("ddf::up_forward_out", _fake_forward_out)
    torch.library.register_fake("ddf::up_backward", _fake_backward)
    torch.library.register_autograd("ddf::up_forward", _differentiate, setup_context=native.keep_inputs)
    torch.library.register_autograd("ddf::up_backward", native.refuse_second_derivative)
    for kind in ("CPU", "CUDA"):
        torch.library.impl("ddf::up_forward", f"Autocast{kind}", functools.partial(_autocast, kind.lower()))
    register_flop_formula(torch.ops.ddf.up_forward)(_forward_flops)
    register_flop_formula(torch.ops.ddf.up_forward_out)(_forward_flops)
    register_flop_formula(torch.ops.ddf.up_backward)(_backward_flops)


def _fake_forward(features: Tensor, *arguments: Any) -> Tensor:
    return native.empty(_check(features, *arguments), features)


def _fake_forward_out(features: Tensor, *arguments: Any) -> None:
    *settings, out = arguments
    native.check_like("out", out, _check(features, *settings), "(N, C, H*scale, W*scale)", features)


def _fake_backward(grad: Tensor, features: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    settings, wanted = arguments[:-3], arguments[-3:]
    native.check_like("grad", grad, _check(features, *settings), "(N, C, H*scale, W*scale)", features)
    tensors = features, *settings[:2]
    return tuple(
        native.empty(like.shape if wants else (0, 0, 0, 0), like) for like, wants in zip(tensors, wanted, strict=True)
    )


def _check(
    features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, scale: int, dilation: int, combine: str
) -> tuple[int, ...]:
    """What the library checks, for tensors without data: returns the shape of the output.

    Raises:
        RuntimeError: with the library's text.
    """
    native.check_features(features, combine)
    if scale < 1 or scale > MAX_SCALE:
        raise RuntimeError(f"scale: expected 1 to {MAX_SCALE}, got {scale}")
    largest = native.MAX_KERNEL_SIZE
    if channel_filter.dim() != 4 or channel_filter.shape[2] % 2 == 0 or channel_filter.shape[2] > largest:
        raise RuntimeError(
            f"channel_filter: expected shape (N, scale^2*C, k, k) with an odd k of at most {largest}, "
            f"got {tuple(channel_filter.shape)}"
        )
    native.check_steps(dilation, 1)
    n, c, h, w = features.shape
    k, branches = channel_filter.shape[2], scale * scale
    native.check_like("channel_filter", channel_filter, (n, branches * c, k, k), "(N, scale^2*C, k, k)", features)
    shape = (n, branches * k * k, h, w)
    native.check_like("spatial_filter", spatial_filter, shape, "(N, scale^2*k*k, H, W)", features)
    return n, c, h * scale, w * scale


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[:3]
    gradients = torch.ops.ddf.up_backward(grad, *ctx.saved_tensors, *ctx.settings, *wanted)
    return *(g if wants else None for g, wants in zip(gradients, wanted, strict=True)), None, None, None


def _autocast(kind: str, *args: Any) -> Tensor:
    """As of `ddf::forward`."""
    with torch.autocast(kind, enabled=False):
        return cast(Tensor, torch.ops.ddf.up_forward(*native.cast_tensors(kind, args)))


# ---------------------------------------------------------------------------------------------------------------- FLOPs


def _macs(features: tuple[int, ...], spatial_filter: tuple[int, ...]) -> int:
    """One multiply-accumulate per tap and output, padding taps included; combining the filters is not counted."""
    return prod(spatial_filter) * features[1]


def _forward_flops(
    features: tuple[int, ...], channel_filter: tuple[int, ...], spatial_filter: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """torch's counter takes a multiply-accumulate for two."""
    return 2 * _macs(features, spatial_filter)


def _backward_flops(
    grad: tuple[int, ...],
    features: tuple[int, ...],
    channel_filter: tuple[int, ...],
    spatial_filter: tuple[int, ...],
    scale: int,
    dilation: int,
    combine: str,
    *wanted: bool,
    **_: Any,
) -> int:
    """Each gradient takes as many multiply-accumulates as the output does."""
    return 2 * _macs(features, spatial_filter) * sum(wanted)


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], Any]]:
    """As `native.fvcore_handles`, of both operators."""

    def forward(inputs: list[Any], outputs: list[Any]) -> int:
        features, spatial_filter = (tuple(inputs[i].type().sizes()) for i in (0, 2))
        return _macs(features, spatial_filter)

    return {**native.fvcore_handles(), "ddf::up_forward": forward}
