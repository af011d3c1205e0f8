"""The native operator: loads its library, and registers with torch what the library leaves to Python.

The library defines `ddf::forward`, `ddf::forward_out` and `ddf::backward`, and for the whole module
`ddf::fused_forward` and `ddf::fused_backward`, with their CPU and CUDA kernels. This module adds the fake kernels that
torch.compile and torch.export trace with, autograd, autocast, and the FLOP formulas.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import build

__all__ = [
    *("MAX_KERNEL_SIZE", "apply", "apply_by", "apply_out", "fused"),
    *("fvcore_handles", "load", "missing"),
]

#: Larger kernels are refused; as in csrc/ddf/ddf.h.
MAX_KERNEL_SIZE = 127

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def apply(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int = 1,
    stride: int = 1,
    combine: str = "mul",
) -> Tensor:
    """The DDF operator; needs `load` to have been called.

    out[n,c,y,x] = sum_j combine(S[n,j,y,x], C[n,c,j]) * F[n, c, y*stride + dilation*dy_j, x*stride + dilation*dx_j]

    Args:
        features: F, (N, C, H, W), float32, float64, float16 or bfloat16, of any strides.
        channel_filter: C, (N, C, k, k), k odd and at most 127.
        spatial_filter: S, (N, k*k, Ho, Wo), Ho = floor((H-1)/stride)+1, likewise Wo.
        combine: `mul` or `add`.

    Returns:
        (N, C, Ho, Wo), channels last where the features are; summed in float32, or float64 for float64.

    Raises:
        RuntimeError: if an argument does not fit; the text names it, its shape and what was expected.
    """
    arguments = features, channel_filter, spatial_filter, dilation, stride, combine
    if _may_be_traced():
        return cast(Tensor, torch.ops.ddf.forward.default(*arguments))
    if not (torch.is_grad_enabled() and _wants_gradient(*arguments[:3])):
        # autograd would do the same after 4 us in Python, as long as a 7 x 7 plane takes
        with _below_autograd():
            return cast(Tensor, _operators().forward(*arguments))
    if torch.is_autocast_enabled(features.device.type) or _transforms_active():
        return cast(Tensor, torch.ops.ddf.forward.default(*arguments))
    return cast(Tensor, _Differentiable.apply(*arguments))


def apply_out(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    out: Tensor,
    dilation: int = 1,
    stride: int = 1,
    combine: str = "mul",
) -> Tensor:
    """`apply` into `out`, (N, C, Ho, Wo), which must not overlap the inputs; without gradients.

    Raises:
        As `apply` does.
    """
    arguments = features, channel_filter, spatial_filter, dilation, stride, combine, out
    wants_gradient = torch.is_grad_enabled() and (out.requires_grad or _wants_gradient(*arguments[:3]))
    if wants_gradient or _may_be_traced():
        torch.ops.ddf.forward_out.default(*arguments)
    else:
        with _below_autograd():
            _operators().forward_out(*arguments)
    tell_written(out)
    return out


def apply_by(
    kernel: str,
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int = 1,
    stride: int = 1,
    combine: str = "mul",
) -> Tensor:
    """`apply` by the CUDA kernel of that name, see `kernels.kernels`; without gradients.

    Raises:
        RuntimeError: as `apply` does, and if the kernel does not serve the case; the text then begins with `kernel:`.
    """
    return torch.ops.ddf.forward_by(features, channel_filter, spatial_filter, dilation, stride, combine, kernel)


def fused(
    features: Tensor,
    spatial_weight: Tensor,
    spatial_bias: Tensor,
    squeeze_weight: Tensor,
    squeeze_bias: Tensor,
    excite_weight: Tensor,
    excite_bias: Tensor,
    channel_std: Tensor,
    spatial_scale: float,
    kernel_size: int,
    dilation: int,
    stride: int,
    head: int,
    combine: str,
) -> Tensor:
    """The whole module in one operator; needs `load` to have been called.

    The spatial filter is a 1x1 convolution of the features, the channel filter relu(squeeze(mean)) through `excite`;
    each is normalised over its taps as by `ops.ddf.FilterNorm`, and both are applied as by `apply`, each head to its
    group of channels. The features are read twice and nothing is kept for the backward pass, which predicts the filters
    anew.

    Args:
        features: (N, C, H, W), of any strides; the parameters are of its dtype.
        spatial_weight, spatial_bias: (head*k*k, C, 1, 1), (head*k*k,).
        squeeze_weight, squeeze_bias: (hidden, C, 1, 1), (hidden,).
        excite_weight, excite_bias: (C*k*k, hidden, 1, 1), (C*k*k,).
        channel_std: what the normalised channel filter is multiplied by, (C*k*k,).
        spatial_scale: the same of the spatial filter.
        kernel_size: k, odd, 3 to 127; on CUDA 3, 5 or 7.
        head: divides C.
        combine: `mul` or `add`.

    Returns:
        (N, C, Ho, Wo), channels last where the features are.

    Raises:
        RuntimeError: if an argument does not fit; the text names it, its shape and what was expected.
    """
    parameters = spatial_weight, spatial_bias, squeeze_weight, squeeze_bias, excite_weight, excite_bias, channel_std
    settings = spatial_scale, kernel_size, dilation, stride, head, combine
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (features, *parameters))
    if wants_gradient or _may_be_traced():
        return cast(Tensor, torch.ops.ddf.fused_forward.default(features, *parameters, *settings))
    with _below_autograd():
        return cast(Tensor, torch.ops.ddf.fused_forward.default(features, *parameters, *settings))


def _wants_gradient(features: Tensor, channel_filter: Tensor, spatial_filter: Tensor) -> bool:
    return features.requires_grad or channel_filter.requires_grad or spatial_filter.requires_grad


def _may_be_traced() -> bool:
    return torch.compiler.is_compiling() or _tracing_state() is not None


def tell_written(out: Tensor) -> None:
    """Lets autograd see that `out` was written, so that one kept for a backward pass is refused there."""
    if not _may_be_traced():
        torch.autograd.graph.increment_version(out)


class _Operators(NamedTuple):
    forward: Any
    forward_out: Any
    backward: Any


@functools.cache
def _operators() -> _Operators:
    """What `torch.ops` takes 0.2 us to find in every call."""
    ddf = torch.ops.ddf
    return _Operators(ddf.forward.default, ddf.forward_out.default, ddf.backward.default)


# Private names, so guarded: a torch without them goes through the registered autograd, or tells of no trace.
_below_autograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)
_tracing_state: Any = getattr(torch._C, "_get_tracing_state", lambda: None)
_transforms_active: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


@functools.cache
def load() -> build.Library:
    """Builds the library if need be, loads it and registers the operator; the second call does nothing.

    Raises:
        BuildError: if it cannot be built.
    """
    return load_library("ddf", _register)


def load_library(op: str, register: Callable[[], None]) -> build.Library:
    """Builds the library of an op if need be, loads it and registers its operators with torch.

    Raises:
        BuildError: if it cannot be built.
    """
    library = build.build(op)
    torch.ops.load_library(str(library.path))
    register()
    return library


def missing(device: str) -> str:
    """Why the operator cannot run on that kind of device; empty where it can. Loads it, if that was not done yet.

    A failed build is also told on stderr, once.
    """
    if torch.compiler.is_compiling():
        from . import traced

        return traced.missing(device)
    return find_missing(device)


@functools.cache
def find_missing(device: str) -> str:
    """`missing`, where nothing is being traced."""
    return why_missing(device, load, "the native operator cannot be built, so plain PyTorch is used")


def why_missing(device: str, load: Callable[[], build.Library], otherwise: str) -> str:
    """Why what `load` loads cannot run on that kind of device; empty where it can.

    Args:
        otherwise: what is told on stderr of a failed build.
    """
    if device not in ("cpu", "cuda"):
        return f"none for {device}"
    try:
        library = load()
    except build.BuildError as error:
        print(f"ddf: {otherwise}: {error}", file=sys.stderr)
        return f"cannot be built: {error}"
    if device == "cuda" and not library.arches:
        return "built without CUDA kernels, for want of nvcc"
    return ""


# --------------------------------------------------------------------------------------------------------- registration


def _register() -> None:
    torch.library.register_fake("ddf::forward", _fake_forward)
    torch.library.register_fake("ddf::forward_out", _fake_forward_out)
    torch.library.register_fake("ddf::forward_by", lambda *arguments: _fake_forward(*arguments[:6]))
    torch.library.register_fake("ddf::backward", _fake_backward)
    torch.library.register_autograd("ddf::forward", _differentiate, setup_context=keep_inputs)
    torch.library.register_autograd("ddf::backward", refuse_second_derivative)
    for kind in ("CPU", "CUDA"):
        torch.library.impl("ddf::forward", f"Autocast{kind}", functools.partial(_autocast, kind.lower()))
        torch.library.impl("ddf::fused_forward", f"Autocast{kind}", functools.partial(_autocast_fused, kind.lower()))
    register_flop_formula(torch.ops.ddf.forward)(_forward_flops)
    register_flop_formula(torch.ops.ddf.forward_out)(_forward_flops)
    register_flop_formula(torch.ops.ddf.backward)(_backward_flops)
    torch.library.register_fake("ddf::fused_forward", _fake_fused_forward)
    torch.library.register_fake("ddf::fused_backward", _fake_fused_backward)
    torch.library.register_autograd("ddf::fused_forward", _differentiate_fused, setup_context=_keep_fused_inputs)
    torch.library.register_autograd("ddf::fused_backward", refuse_second_derivative)
    register_flop_formula(torch.ops.ddf.fused_forward)(_fused_forward_flops)
    register_flop_formula(torch.ops.ddf.fused_backward)(_fused_backward_flops)


def _fake_forward(
    features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, dilation: int, stride: int, combine: str
) -> Tensor:
    return empty(_check(features, channel_filter, spatial_filter, dilation, stride, combine), features)


def _fake_forward_out(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    combine: str,
    out: Tensor,
) -> None:
    shape = _check(features, channel_filter, spatial_filter, dilation, stride, combine)
    check_like("out", out, shape, "(N, C, Ho, Wo)", features)


def _fake_backward(
    grad: Tensor,
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    combine: str,
    want_features: bool,
    want_channel: bool,
    want_spatial: bool,
) -> tuple[Tensor, ...]:
    shape = _check(features, channel_filter, spatial_filter, dilation, stride, combine)
    check_like("grad", grad, shape, "(N, C, Ho, Wo)", features)
    wanted = (features, want_features), (channel_filter, want_channel), (spatial_filter, want_spatial)
    return tuple(empty(like.shape if wants else (0, 0, 0, 0), like) for like, wants in wanted)


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """As the library allocates: channels last where the channels of `like` are adjacent and its pixels are not."""
    channels_last = like.stride(1) == 1 and like.stride(3) != 1
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)


def _fake_fused_forward(features: Tensor, *arguments: Any) -> Tensor:
    return empty(_check_fused(features, *arguments), features)


def _fake_fused_backward(grad: Tensor, features: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *rest, want_features, want_parameters = arguments
    check_like("grad", grad, _check_fused(features, *rest), "(N, C, Ho, Wo)", features)
    by_features = empty(features.shape if want_features else (0, 0, 0, 0), features)
    parameters = rest[: len(FUSED_PARAMETERS)]
    return by_features, *(t.new_empty(t.shape if want_parameters else (0,) * t.dim()) for t in parameters)


#: The parameters of `fused` and their shapes.
FUSED_PARAMETERS = {
    "spatial_weight": "(head*k*k, C, 1, 1)",
    "spatial_bias": "(head*k*k,)",
    "squeeze_weight": "(hidden, C, 1, 1)",
    "squeeze_bias": "(hidden,)",
    "excite_weight": "(C*k*k, hidden, 1, 1)",
    "excite_bias": "(C*k*k,)",
    "channel_std": "(C*k*k,)",
}


def _check_fused(features: Tensor, *arguments: Any) -> tuple[int, ...]:
    """As `_check`, for `fused`."""
    parameters = dict(zip(FUSED_PARAMETERS, arguments, strict=False))
    _, k, dilation, stride, head, combine = arguments[len(parameters) :]
    check_features(features, combine)
    if k < 3 or k % 2 == 0 or k > MAX_KERNEL_SIZE:
        raise RuntimeError(f"kernel_size: expected an odd number from 3 to {MAX_KERNEL_SIZE}, got {k}")
    check_steps(dilation, stride)
    n, c, h, w = features.shape
    if head < 1 or c % head:
        raise RuntimeError(f"head: expected a divisor of the {c} channels, got {head}")
    squeeze = parameters["squeeze_weight"]
    if squeeze.dim() != 4 or squeeze.shape[0] < 1:
        raise RuntimeError(f"squeeze_weight: expected shape (hidden, C, 1, 1), got {tuple(squeeze.shape)}")
    hidden, taps = squeeze.shape[0], k * k
    weights = (head * taps, c, 1, 1), (hidden, c, 1, 1), (c * taps, hidden, 1, 1)
    shapes = *((shape, shape[:1]) for shape in weights), ((c * taps,),)
    for (name, tensor), shape in zip(parameters.items(), (s for pair in shapes for s in pair), strict=True):
        check_like(name, tensor, shape, FUSED_PARAMETERS[name], features)
    return n, c, (h - 1) // stride + 1, (w - 1) // stride + 1


def check_features(features: Tensor, combine: str) -> None:
    if features.dtype not in DTYPES:
        raise RuntimeError(f"features: expected float32, float64, float16 or bfloat16, got {features.dtype}")
    if combine not in ("mul", "add"):
        raise RuntimeError(f"combine: expected mul or add, got {combine!r}")
    if features.dim() != 4 or any(size < 1 for size in features.shape[1:]):
        raise RuntimeError(f"features: expected shape (N, C, H, W), only N may be 0, got {tuple(features.shape)}")


def check_steps(dilation: int, stride: int) -> None:
    for name, value in (("dilation", dilation), ("stride", stride)):
        if value < 1:
            raise RuntimeError(f"{name}: expected at least 1, got {value}")


def _check(
    features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, dilation: int, stride: int, combine: str
) -> tuple[int, ...]:
    """What the library checks, for tensors without data: returns the shape of the output.

    Raises:
        RuntimeError: with the library's text.
    """
    check_features(features, combine)
    if channel_filter.dim() != 4 or channel_filter.shape[2] % 2 == 0 or channel_filter.shape[2] > MAX_KERNEL_SIZE:
        raise RuntimeError(
            f"channel_filter: expected shape (N, C, k, k) with an odd k of at most {MAX_KERNEL_SIZE}, "
            f"got {tuple(channel_filter.shape)}"
        )
    check_steps(dilation, stride)
    n, c, h, w = features.shape
    k = channel_filter.shape[2]
    ho, wo = (h - 1) // stride + 1, (w - 1) // stride + 1
    check_like("channel_filter", channel_filter, (n, c, k, k), "(N, C, k, k)", features)
    check_like("spatial_filter", spatial_filter, (n, k * k, ho, wo), "(N, k*k, Ho, Wo)", features)
    return n, c, ho, wo


def check_like(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str, features: Tensor) -> None:
    if tuple(tensor.shape) != expected:
        raise RuntimeError(f"{name}: expected shape {expected}, {meaning}, got {tuple(tensor.shape)}")
    for what in ("dtype", "device"):
        if getattr(tensor, what) != getattr(features, what):
            raise RuntimeError(
                f"{name}: expected the {what} of features, of shape {tuple(features.shape)}; "
                f"got another, with shape {tuple(tensor.shape)}"
            )


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, ctx.settings = inputs[:3], inputs[3:]
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, channel, spatial, *_ = ctx.needs_input_grad
    by_features, by_channel, by_spatial = _operators().backward(
        grad, *ctx.saved_tensors, *ctx.settings, features, channel, spatial
    )
    wanted = by_features if features else None, by_channel if channel else None, by_spatial if spatial else None
    return *wanted, None, None, None


class _Differentiable(torch.autograd.Function):
    """What is registered with autograd, without the 40 us that torch takes in Python to find it by its schema."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:  # a setup_context of its own would cost 20 us
        with _below_autograd():
            output = cast(Tensor, _operators().forward(*arguments))
        keep_inputs(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a second derivative may be asked for, which is refused by name
            return _differentiate(ctx, grad)
        with _below_autograd():
            return _differentiate(ctx, grad)


def _keep_fused_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = 1 + len(FUSED_PARAMETERS)
    ctx.settings = inputs[tensors:]
    ctx.save_for_backward(*inputs[:tensors])


def _differentiate_fused(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = 1 + len(FUSED_PARAMETERS)
    wanted = ctx.needs_input_grad[:tensors]
    gradients = torch.ops.ddf.fused_backward(grad, *ctx.saved_tensors, *ctx.settings, wanted[0], any(wanted[1:]))
    return *(g if wants else None for g, wants in zip(gradients, wanted, strict=True)), *(None for _ in ctx.settings)


def refuse_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("second derivatives of ddf are not implemented")


def _autocast(kind: str, *args: Any) -> Tensor:
    """Casts as a convolution under autocast does, float64 excepted; the sum is still taken in float32."""
    with torch.autocast(kind, enabled=False):
        return torch.ops.ddf.forward(*cast_tensors(kind, args))


def _autocast_fused(kind: str, *args: Any) -> Tensor:
    with torch.autocast(kind, enabled=False):
        return torch.ops.ddf.fused_forward(*cast_tensors(kind, args))


def cast_tensors(kind: str, args: tuple[Any, ...]) -> list[Any]:
    dtype = torch.get_autocast_dtype(kind)

    def narrows(value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64

    return [value.to(dtype) if narrows(value) else value for value in args]


# ---------------------------------------------------------------------------------------------------------------- FLOPs


def _macs(features: tuple[int, ...], channel_filter: tuple[int, ...], spatial_filter: tuple[int, ...]) -> int:
    """One multiply-accumulate per tap and output, padding taps included; combining the filters is not counted."""
    return prod(spatial_filter) * features[1]


def _forward_flops(
    features: tuple[int, ...], channel_filter: tuple[int, ...], spatial_filter: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """torch's counter takes a multiply-accumulate for two."""
    return 2 * _macs(features, channel_filter, spatial_filter)


def _backward_flops(
    grad: tuple[int, ...],
    features: tuple[int, ...],
    channel_filter: tuple[int, ...],
    spatial_filter: tuple[int, ...],
    dilation: int,
    stride: int,
    combine: str,
    *wanted: bool,
    **_: Any,
) -> int:
    """Each gradient takes as many multiply-accumulates as the output does."""
    return 2 * _macs(features, channel_filter, spatial_filter) * sum(wanted)


def _fused_macs(out: tuple[int, ...], spatial: tuple[int, ...], excite: tuple[int, ...]) -> dict[str, int]:
    """By kind, as `ops.Costs` has them.

    Args:
        out: shape of the output, (N, C, Ho, Wo).
        spatial, excite: shapes of the weights, (head*k*k, C, 1, 1) and (C*k*k, hidden, 1, 1).
    """
    n, c, h, w = out
    return {
        "spatial": n * h * w * spatial[0] * c,
        "squeeze": n * c * excite[1],
        "excite": n * excite[0] * excite[1],
        "dynamic_filter": n * h * w * excite[0],
    }


def _fused_shape(features: tuple[int, ...], stride: int) -> tuple[int, ...]:
    return *features[:2], *((size - 1) // stride + 1 for size in features[2:])


def _fused_forward_flops(*arguments: Any, **_: Any) -> int:
    """Arguments as of `fused`, shapes in place of tensors."""
    features, spatial, excite, stride = (arguments[i] for i in (0, 1, 5, 11))
    return 2 * sum(_fused_macs(_fused_shape(features, stride), spatial, excite).values())


def _fused_backward_flops(grad: tuple[int, ...], *arguments: Any, **_: Any) -> int:
    """Each gradient as many as the output; those of both filters and of the hidden units are always needed.

    That the filters are predicted anew is not counted: no other impl has to.
    """
    spatial, excite = arguments[1], arguments[5]
    features, parameters = arguments[-2:]
    times = {
        "spatial": features + parameters,
        "squeeze": features + parameters,
        "excite": 1 + parameters,
        "dynamic_filter": 2 + features,
    }
    return 2 * sum(times[kind] * macs for kind, macs in _fused_macs(grad, spatial, excite).items())


def fvcore_handles() -> dict[str, Callable[[list[Any], list[Any]], Any]]:
    """What fvcore's FlopCountAnalysis needs to know the operator: `analysis.set_op_handle(**fvcore_handles())`.

    fvcore counts a multiply-accumulate as one.
    """

    def forward(inputs: list[Any], outputs: list[Any]) -> int:
        features, channel_filter, spatial_filter = (tuple(value.type().sizes()) for value in inputs[:3])
        return _macs(features, channel_filter, spatial_filter)

    def fused_forward(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        out, spatial, excite = (tuple(value.type().sizes()) for value in (outputs[0], inputs[1], inputs[5]))
        macs = _fused_macs(out, spatial, excite)
        dynamic = macs.pop("dynamic_filter")
        return Counter({"conv": sum(macs.values()), "dynamic_filter": dynamic})

    return {"ddf::forward": forward, "ddf::fused_forward": fused_forward}
