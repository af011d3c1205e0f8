"""Decoupled dynamic filters (Zhou et al., CVPR 2021): the filter application `ddf_op` and the whole module `ddf`.

`from ops.ddf import ddf, DDFPack, DDFUpPack, FilterNorm` replaces the authors' package: the same arguments, parameter
names and shapes, so that their checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Axis, Closure, Costs, Inputs, Op, Point, Skip
from .core import native, native_up, published
from .core.closed_forms import applied, combinations, held
from .core.kernels import backward_kernels, kernels
from .core.seeded import fill_convolution, normal, placed
from .core.taps import windows

__all__ = ["DDFPack", "DDFUpPack", "FilterNorm", "ddf", "ddf_up"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mul": torch.mul, "add": torch.add}

# ------------------------------------------------------------------------------------------------------- the operator


class Operator(Protocol):
    """What `ddf` and its impls are called like."""

    def __call__(
        self,
        features: Tensor,
        channel_filter: Tensor,
        spatial_filter: Tensor,
        kernel_size: int = 3,
        dilation: int = 1,
        stride: int = 1,
        kernel_combine: str = "mul",
    ) -> Tensor: ...


def ddf(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    kernel_combine: str = "mul",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Applies at each pixel and channel the filter that its spatial and channel filter combine to.

    out[n,c,y,x] = sum_j combine(S[n,j,y,x], C[n,c,j]) * F[n, c, y*stride + dilation*dy_j, x*stride + dilation*dx_j],
    j over the k x k taps, with zero padding dilation*(k-1)/2. `mul` is the paper's formulation, `add` a variant of the
    authors' package.
    Under autocast all tensors but float64 are cast to its dtype.

    Args:
        features: F, (N, C, H, W), float16, bfloat16, float32 or float64.
        channel_filter: C, (N, C, k, k).
        spatial_filter: S, (N, k*k, Ho, Wo) with Ho = floor((H-1)/stride)+1, likewise Wo.
        kernel_size: k, odd.
        kernel_combine: `mul` or `add`.
        out: receives the result and is returned: of its shape and dtype and any strides, with a place for each element
            and none that an input has; not where gradients are wanted.

    Returns:
        (N, C, Ho, Wo), in the dtype of the features; sums are accumulated in float32, or float64 for float64.

    Raises:
        TypeError, ValueError: if an argument does not fit; the text names it, what it is and what was expected.
    """
    if _served_at_once(features, channel_filter, spatial_filter, kernel_size, out):
        try:
            if out is None:
                return native.apply(features, channel_filter, spatial_filter, dilation, stride, kernel_combine)
            _check_no_gradient(features, channel_filter, spatial_filter, out)
            return native.apply_out(features, channel_filter, spatial_filter, out, dilation, stride, kernel_combine)
        except (RuntimeError, TypeError):
            _check_settings(kernel_size, dilation, stride, kernel_combine)
            _check_filters(features, channel_filter, spatial_filter, kernel_size, stride)
            if out is not None:
                _check_out(out, features, spatial_filter.shape[2:])
            raise
    if isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type):
        features, channel_filter, spatial_filter = _autocast(features, channel_filter, spatial_filter)
    arguments = features, channel_filter, spatial_filter, kernel_size, dilation, stride, kernel_combine
    if out is not None:
        return _apply_into(out, *arguments)
    _check_settings(kernel_size, dilation, stride, kernel_combine)
    _check_filters(features, channel_filter, spatial_filter, kernel_size, stride)
    return _apply_filters(*arguments)


def _served_at_once(
    features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, kernel_size: int, out: Tensor | None
) -> bool:
    """Whether the native operator can check the other arguments: to do so here takes as long as a small case."""
    if torch.compiler.is_compiling() or not (type(features) is type(channel_filter) is type(spatial_filter) is Tensor):
        return False
    if out is not None and type(out) is not Tensor:
        return False
    kind = "cpu" if features.is_cpu else features.device.type  # which takes 0.3 us
    return (
        type(kernel_size) is int
        and channel_filter.dim() == 4
        and channel_filter.shape[3] == kernel_size <= native.MAX_KERNEL_SIZE
        and not torch.is_autocast_enabled(kind)
        and not native.find_missing(kind)
    )


def _autocast(*tensors: Tensor) -> list[Tensor]:
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind)
    return [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def _check_settings(kernel_size: int, dilation: int, stride: int, kernel_combine: str) -> None:
    for name, value in (("kernel_size", kernel_size), ("dilation", dilation), ("stride", stride)):
        if not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
    if kernel_combine not in COMBINE:
        raise ValueError(f"kernel_combine: expected one of {', '.join(COMBINE)}, got {kernel_combine!r}")


def _check_filters(
    features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, kernel_size: int, stride: int, branches: int = 1
) -> None:
    named = {"features": features, "channel_filter": channel_filter, "spatial_filter": spatial_filter}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: expected one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")
        if tensor.dtype != features.dtype:
            raise TypeError(f"{name}: expected {features.dtype} as the features, got {tensor.dtype}")
        if tensor.device != features.device:
            raise ValueError(f"{name}: expected to be on {features.device} as the features, got {tensor.device}")
    if features.dim() != 4 or 0 in features.shape[1:]:
        raise ValueError(f"features: expected shape (N, C, H, W), only N may be 0, got {tuple(features.shape)}")
    n, c, h, w = features.shape
    k = kernel_size
    _check_shape("channel_filter", channel_filter, (n, branches * c, k, k))
    size = (h - 1) // stride + 1, (w - 1) // stride + 1
    _check_shape("spatial_filter", spatial_filter, (n, branches * k * k, *size))


def _check_shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    """Raises if the shape is another; a text among the sizes stands for any number."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(a != b for a, b in zip(shape, expected, strict=True) if isinstance(b, int)):
        raise ValueError(f"{name}: expected shape ({', '.join(map(str, expected))}), got {shape}")


def _apply_into(
    out: Tensor,
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    kernel_combine: str,
) -> Tensor:
    """`ddf` into `out`."""
    tensors = features, channel_filter, spatial_filter
    _check_settings(kernel_size, dilation, stride, kernel_combine)
    _check_filters(*tensors, kernel_size, stride)
    _check_out(out, features, spatial_filter.shape[2:])
    _check_no_gradient(*tensors, out)
    if kernel_size <= native.MAX_KERNEL_SIZE and not native.missing(features.device.type):
        return native.apply_out(*tensors, out, dilation, stride, kernel_combine)
    return out.copy_(composite(*tensors, kernel_size, dilation, stride, kernel_combine))


def _check_no_gradient(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ValueError("out: expected no gradient to be wanted, as under torch.no_grad(), but a tensor requires one")


def _check_out(out: Tensor, features: Tensor, size: tuple[int, ...]) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a tensor, got {type(out).__name__}")
    if out.dtype != features.dtype:
        raise TypeError(f"out: expected {features.dtype} as the features, got {out.dtype}")
    if out.device != features.device:
        raise ValueError(f"out: expected to be on {features.device} as the features, got {out.device}")
    _check_shape("out", out, (*features.shape[:2], *size))
    for dimension, (extent, step) in enumerate(zip(out.shape, out.stride(), strict=True)):
        if extent > 1 and step == 0:
            raise ValueError(f"out: expected a place for each element, got stride 0 in dimension {dimension}")


def _apply_filters(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int,
    dilation: int,
    stride: int,
    kernel_combine: str,
) -> Tensor:
    """What computes `ddf`, its arguments being checked: the native operator, built on first use, else plain PyTorch."""
    if kernel_size <= native.MAX_KERNEL_SIZE and not native.missing(features.device.type):
        return native.apply(features, channel_filter, spatial_filter, dilation, stride, kernel_combine)
    return composite(features, channel_filter, spatial_filter, kernel_size, dilation, stride, kernel_combine)


def composite(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    kernel_combine: str = "mul",
) -> Tensor:
    """`ddf` in plain PyTorch, tap by tap.

    Tap by tap is the fairer baseline: on two cores at batch 1, C = 256, k = 3, against unfold with a product and a sum,
    it took 0.9 : 0.5 ms at 7 x 7, 1.1 : 1.4 at 14, 1.9 : 9.4 at 28, 10 : 49 at 56, 57 : 190 at 112, 260 : 919 at 224.
    """
    combine = COMBINE[kernel_combine]
    accumulator = torch.promote_types(features.dtype, torch.float32)
    out: Tensor | None = None
    for j, read in enumerate(windows(features, kernel_size, stride, dilation)):
        y, x = divmod(j, kernel_size)
        tap = combine(spatial_filter[:, j, None], channel_filter[:, :, y, x, None, None])
        out = tap.to(accumulator) * read if out is None else out.addcmul_(tap, read)
    return cast(Tensor, out).to(features.dtype)


# ------------------------------------------------------------------------------------------ the upsampling operator


class UpOperator(Protocol):
    """What `ddf_up` and its impls are called like."""

    def __call__(
        self,
        features: Tensor,
        channel_filter: Tensor,
        spatial_filter: Tensor,
        scale_factor: int = 2,
        kernel_size: int = 3,
        dilation: int = 1,
        kernel_combine: str = "mul",
    ) -> Tensor: ...


def ddf_up(
    features: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    scale_factor: int = 2,
    kernel_size: int = 3,
    dilation: int = 1,
    kernel_combine: str = "mul",
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Makes s*s pixels of each, s being `scale_factor`, by as many branches, each with filters of its own.

    out[:, :, i::s, j::s] is what `ddf` gives with the filters of branch b = i*s + j. All branches are computed in one
    pass over the features and written where they belong.
    Under autocast all tensors but float64 are cast to its dtype.

    Args:
        features: (N, C, H, W), float16, bfloat16, float32 or float64.
        channel_filter: (N, s*s*C, k, k), those of branch b from b*C on.
        spatial_filter: (N, s*s*k*k, H, W), those of branch b from b*k*k on.
        kernel_size: k, odd.
        kernel_combine: `mul` or `add`.
        out: as of `ddf`.

    Returns:
        (N, C, H*s, W*s), in the dtype of the features; sums are accumulated in float32, or float64 for float64.

    Raises:
        TypeError, ValueError: if an argument does not fit; the text names it, what it is and what was expected.
    """
    if isinstance(features, Tensor) and torch.is_autocast_enabled(features.device.type):
        features, channel_filter, spatial_filter = _autocast(features, channel_filter, spatial_filter)
    tensors = features, channel_filter, spatial_filter
    _check_settings(kernel_size, dilation, 1, kernel_combine)
    _check_scale(scale_factor)
    _check_filters(*tensors, kernel_size, 1, branches=scale_factor**2)
    if out is not None:
        size = features.shape[2] * scale_factor, features.shape[3] * scale_factor
        _check_out(out, features, size)
        _check_no_gradient(*tensors, out)
    if up_refusal(features.device.type, scale_factor, kernel_size):
        upsampled = by_branch(ddf)(*tensors, scale_factor, kernel_size, dilation, kernel_combine)
        return upsampled if out is None else out.copy_(upsampled)
    if out is not None:
        return native_up.apply_out(*tensors, out, scale_factor, dilation, kernel_combine)
    return native_up.apply(*tensors, scale_factor, dilation, kernel_combine)


def up_refusal(device: str, scale_factor: int, kernel_size: int) -> str:
    """Why the native upsampling operator cannot serve; empty where it can."""
    if kernel_size > native.MAX_KERNEL_SIZE:
        return f"kernel_size is at most {native.MAX_KERNEL_SIZE}, not {kernel_size}"
    if scale_factor > native_up.MAX_SCALE:
        return f"scale is at most {native_up.MAX_SCALE}, not {scale_factor}"
    return native_up.missing(device)


def _check_scale(scale_factor: int) -> None:
    if not isinstance(scale_factor, int):
        raise TypeError(f"scale_factor: expected an integer, got {scale_factor!r}")
    if scale_factor < 1:
        raise ValueError(f"scale_factor: expected at least 1, got {scale_factor}")


def by_branch(operator: Operator) -> UpOperator:
    """`ddf_up` by an impl of `ddf`: once for each branch, the results stacked and shuffled.

    With `composite` this is `ddf_up` in plain PyTorch.
    """

    def up(
        features: Tensor,
        channel_filter: Tensor,
        spatial_filter: Tensor,
        scale_factor: int = 2,
        kernel_size: int = 3,
        dilation: int = 1,
        kernel_combine: str = "mul",
    ) -> Tensor:
        filters = (t.unflatten(1, (scale_factor**2, -1)).unbind(1) for t in (channel_filter, spatial_filter))
        outs = [
            operator(features, channel, spatial, kernel_size, dilation, 1, kernel_combine)
            for channel, spatial in zip(*filters, strict=True)
        ]
        return F.pixel_shuffle(torch.stack(outs, 2).flatten(1, 2), scale_factor)

    return up


# -------------------------------------------------------------------------------------------------------- the modules


class FilterNorm(nn.Module):
    """Normalises the k*k taps of each filter to zero mean and a learned or fixed spread.

    y = (x - mean) / (std + 1e-10) * s, with the unbiased std over the taps; s is `std`, learned if `running_std`, else
    gain(nonlinearity)/k; `mean`, if `running_mean`, is learned and added. Half precision is normalised in float32.

    Args:
        in_channels: filters at a pixel (`spatial`) or in a sample (`channel`).
        kernel_size: k, at least 2: one tap alone has no spread.
        filter_type: `spatial`, for (N, in_channels*k*k, H, W), or `channel`, for (N, in_channels*k*k, ...), which is
            returned as (N, in_channels*k*k).

    Raises:
        ValueError: if an argument does not fit; the text names it.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filter_type: str,
        nonlinearity: str = "linear",
        running_std: bool = False,
        running_mean: bool = False,
    ) -> None:
        super().__init__()
        if filter_type not in ("spatial", "channel"):
            raise ValueError(f"filter_type: expected spatial or channel, got {filter_type!r}")
        if in_channels < 1:
            raise ValueError(f"in_channels: expected at least 1, got {in_channels}")
        if kernel_size < 2:
            raise ValueError(f"kernel_size: expected at least 2, as one tap alone has no spread, got {kernel_size}")
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.filter_type = filter_type
        self.scale = nn.init.calculate_gain(cast(Any, nonlinearity)) / kernel_size
        taps = in_channels * kernel_size**2
        self.std = nn.Parameter(torch.randn(taps) * self.scale) if running_std else self.scale
        self.mean = nn.Parameter(torch.randn(taps)) if running_mean else None

    def forward(self, x: Tensor) -> Tensor:
        filters, taps = self.in_channels, self.kernel_size**2
        rest = tuple(x.shape[2:]) if self.filter_type == "spatial" else ()
        wide = x.reshape(x.shape[0], filters, taps, *rest).to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(2, keepdim=True)
        # torch.std over a strided dimension takes ten times as long; the least number keeps the root's gradient finite
        variance = centred.square().sum(2, keepdim=True) / (taps - 1)
        spread = variance.clamp_min(torch.finfo(wide.dtype).tiny).sqrt()
        normed = (centred / (spread + 1e-10)).flatten(1, 2)
        per_tap = (filters * taps, *(1 for _ in rest))
        normed = normed * (self.std.view(per_tap) if isinstance(self.std, Tensor) else self.std)
        if self.mean is not None:
            normed = normed + self.mean.view(per_tap)
        return normed.to(x.dtype)


def _spatial_branch(in_channels: int, kernel_size: int, head: int, nonlinearity: str, stride: int) -> nn.Sequential:
    """(N, in_channels, H, W) -> spatial filters (N, head*k*k, Ho, Wo)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, head * kernel_size**2, 1, stride),
        FilterNorm(head, kernel_size, "spatial", nonlinearity),
    )


def _channel_branch(in_channels: int, kernel_size: int, nonlinearity: str, se_ratio: float) -> nn.Sequential:
    """(N, C, H, W) -> channel filters (N, C*k*k), by squeeze and excitation."""
    mid = mid_channels(in_channels, se_ratio)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(in_channels, mid, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(mid, in_channels * kernel_size**2, 1),
        FilterNorm(in_channels, kernel_size, "channel", nonlinearity, running_std=True),
    )


def mid_channels(in_channels: int, se_ratio: float) -> int:
    """Channels between squeeze and excitation; at least one."""
    return max(1, int(in_channels * se_ratio))


class _Pack(nn.Module):
    """What DDFPack and DDFUpPack share: their settings, checked, and the operator run head by head."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        dilation: int,
        stride: int,
        head: int,
        se_ratio: float,
        kernel_combine: str,
    ) -> None:
        super().__init__()
        _check_settings(kernel_size, dilation, stride, kernel_combine)
        if in_channels < 1:
            raise ValueError(f"in_channels: expected at least 1, got {in_channels}")
        if head < 1 or in_channels % head:
            raise ValueError(f"head: expected a divisor of in_channels, {in_channels}, got {head}")
        if se_ratio <= 0:
            raise ValueError(f"se_ratio: expected more than 0, got {se_ratio}")
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.stride = stride
        self.head = head
        self.kernel_combine = kernel_combine

    def apply_filters(self, operator: Operator, x: Tensor, channel_filter: Tensor, spatial_filter: Tensor) -> Tensor:
        """Runs `operator` on each head's group of channels as on a sample of its own.

        Args:
            x: (N, C, H, W); with several heads, anything but a contiguous x is copied.
            channel_filter: (N, C*k*k).
            spatial_filter: (N, head*k*k, Ho, Wo).
        """
        n, c, h, w = x.shape
        k, groups, group = self.kernel_size, n * self.head, c // self.head
        size = spatial_filter.shape[2:]
        out = operator(
            x.reshape(groups, group, h, w),
            channel_filter.reshape(groups, group, k, k),
            spatial_filter.reshape(groups, k * k, *size),
            k,
            self.dilation,
            self.stride,
            self.kernel_combine,
        )
        return out.reshape(n, c, *size)


class DDFPack(_Pack):
    """The DDF module: predicts both filters from x and applies them to x.

    Args:
        in_channels: C.
        kernel_size: k, odd, at least 3.
        head: groups of channels with a spatial filter of their own; divides C.
        se_ratio: width of the channel branch over C.
        nonlinearity: what follows; sets the gain of the filters.

    Raises:
        TypeError, ValueError: if an argument does not fit; the text names it.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "relu",
        kernel_combine: str = "mul",
    ) -> None:
        super().__init__(in_channels, kernel_size, dilation, stride, head, se_ratio, kernel_combine)
        self.spatial_branch = _spatial_branch(in_channels, kernel_size, head, nonlinearity, stride)
        self.channel_branch = _channel_branch(in_channels, kernel_size, nonlinearity, se_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, Ho, Wo), Ho = floor((H-1)/stride)+1."""
        return self.compute(x, ddf)

    def fused(self, x: Tensor) -> Tensor:
        """`forward` by one operator, which predicts and normalises the filters itself.

        It reads x twice and keeps nothing but x for the backward pass.

        Raises:
            RuntimeError: if the operator cannot serve; the text says why.
        """
        reason = self.fused_refusal(x.device.type, x.dtype)
        if reason:
            raise RuntimeError(f"fused: {reason}")
        predict, spatial_norm = cast(tuple[nn.Conv2d, FilterNorm], self.spatial_branch)
        _, squeeze, _, excite, channel_norm = cast(tuple[Any, ...], self.channel_branch)
        return native.fused(
            x,
            predict.weight,
            cast(Tensor, predict.bias),
            squeeze.weight,
            squeeze.bias,
            excite.weight,
            excite.bias,
            channel_norm.std,
            cast(float, spatial_norm.std),
            self.kernel_size,
            self.dilation,
            self.stride,
            self.head,
            self.kernel_combine,
        )

    def fused_refusal(self, device: str, dtype: torch.dtype) -> str:
        """Why `fused` cannot stand for `forward` on that kind of device; empty where it can."""
        if self.kernel_size > native.MAX_KERNEL_SIZE:
            return f"kernel_size is at most {native.MAX_KERNEL_SIZE}, not {self.kernel_size}"
        if device == "cuda" and self.kernel_size > 7:
            return f"kernel_size is 3, 5 or 7 on CUDA, not {self.kernel_size}"
        if device == "cuda" and self.kernel_size > 3 and dtype == torch.float64:
            return f"kernel_size is 3 in float64 on CUDA, not {self.kernel_size}; the module's own call serves it"
        return native.missing(device)

    def compute(self, x: Tensor, operator: Operator) -> Tensor:
        """`forward` with another impl of `ddf`."""
        _check_shape("x", x, ("N", self.in_channels, "H", "W"))
        return self.apply_filters(operator, x, *self.filters(x))

    def filters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channel filter (N, C*k*k) and the spatial filter (N, head*k*k, Ho, Wo)."""
        return self.channel_branch(x), self.spatial_branch(x)


class DDFUpPack(_Pack):
    """The DDF-Up module: a DDF for each of the scale_factor^2 pixels that one pixel of x becomes.

    Without a guide (`joint_channels` below 1), a depthwise convolution of x makes one for each branch.

    Args:
        in_channels: C.
        kernel_size: k, odd, at least 3.
        scale_factor: outputs along one side of a pixel.
        head: groups of channels with a spatial filter of their own; divides C.
        dw_kernel_size: of the depthwise convolution, odd; the authors use at least 3.
        joint_channels: channels of the guide.

    Raises:
        TypeError, ValueError: if an argument does not fit; the text names it.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        scale_factor: int = 2,
        dilation: int = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "linear",
        dw_kernel_size: int = 3,
        joint_channels: int = -1,
        kernel_combine: str = "mul",
    ) -> None:
        super().__init__(in_channels, kernel_size, dilation, 1, head, se_ratio, kernel_combine)
        _check_scale(scale_factor)
        if dw_kernel_size % 2 == 0:
            raise ValueError(f"dw_kernel_size: expected an odd number, got {dw_kernel_size}")
        self.scale_factor = scale_factor
        self.guide_channels = joint_channels if joint_channels > 0 else in_channels
        branches = range(scale_factor**2)
        predict = [_spatial_branch(self.guide_channels, kernel_size, head, nonlinearity, stride=1) for _ in branches]
        if joint_channels < 1:
            size = max(dw_kernel_size, 3)
            predict = [
                nn.Sequential(nn.Conv2d(in_channels, in_channels, size, padding=size // 2, groups=in_channels), branch)
                for branch in predict
            ]
        self.spatial_branch = nn.ModuleList(predict)
        self.channel_branch = nn.ModuleList(
            _channel_branch(in_channels, kernel_size, nonlinearity, se_ratio) for _ in branches
        )

    def forward(self, x: Tensor, joint_x: Tensor | None = None) -> Tensor:
        """(N, C, H, W) and the guide (N, joint_channels, H, W) -> (N, C, H*scale_factor, W*scale_factor)."""
        return self.compute(x, joint_x, ddf_up)

    def compute(self, x: Tensor, joint_x: Tensor | None, operator: UpOperator) -> Tensor:
        """`forward` with another impl of `ddf_up`, run on each head's group of channels as on a sample of its own."""
        _check_shape("x", x, ("N", self.in_channels, "H", "W"))
        guide = x if joint_x is None else joint_x
        n, c, h, w = x.shape
        _check_shape("joint_x", guide, (n, self.guide_channels, h, w))
        channel, spatial = self.filters(x, guide)
        groups, k, s = n * self.head, self.kernel_size, self.scale_factor
        out = operator(
            x.reshape(groups, c // self.head, h, w),
            channel.reshape(groups, s * s * (c // self.head), k, k),
            spatial.reshape(groups, s * s * k * k, h, w),
            s,
            k,
            self.dilation,
            self.kernel_combine,
        )
        return out.reshape(n, c, h * s, w * s)

    def filters(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """The channel filters (N, head, scale^2, C/head*k*k) and the spatial filters (N, head, scale^2, k*k, H, W)."""
        pooled = F.adaptive_avg_pool2d(x, 1)  # once for all branches, whose own pooling then changes nothing
        channel = [branch(pooled).unflatten(1, (self.head, -1)) for branch in self.channel_branch]
        spatial = [branch(guide).unflatten(1, (self.head, -1)) for branch in self.spatial_branch]
        return torch.stack(channel, 2), torch.stack(spatial, 2)


# ------------------------------------------------------------------------------------------------------------ the ops


def reference(features: Tensor, channel_filter: Tensor, spatial_filter: Tensor, point: Point, absolute: bool) -> Tensor:
    """The sum over taps, or that of the absolute terms; `spatial_filter` is (N, head*k*k, Ho, Wo)."""
    if absolute:
        features, channel_filter, spatial_filter = features.abs(), channel_filter.abs(), spatial_filter.abs()
    spatial = spatial_filter.unflatten(1, (-1, 1, point.taps))
    channel = channel_filter.flatten(2).unflatten(1, (spatial.shape[1], -1))
    out: Tensor | None = None
    for j, window in enumerate(windows(features, point.kernel_size, point.stride, point.dilation)):
        s, c, read = spatial[:, :, :, j], channel[..., j, None, None], window.unflatten(1, channel.shape[1:3])
        tap = s * c if point.combine == "mul" else s + c
        out = tap * read if out is None else torch.addcmul(out, tap, read)
    return cast(Tensor, out).flatten(1, 2)


#: CUDA kernels of the native operator that can be asked for by name.
KERNELS = tuple(kernel.name for kernel in kernels())


class DDFOp(Op):
    """The operator alone, its filters given."""

    name, title = "ddf_op", "DDF Op"
    combines = True
    extra_axes = (Axis("kernel", "auto", "CUDA kernel of the impl native", choices=("auto", *KERNELS)),)

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], Any]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        n, c, k = point.batch, point.channels, point.kernel_size
        return Inputs(
            {
                "features": normal((n, c, point.height, point.width), point, generator),
                "channel_filter": normal((n, c, k, k), point, generator),
                "spatial_filter": normal((n, k * k, point.out_height, point.out_width), point, generator, 1 / k),
            }
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return reference(**inputs.tensors, point=point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return reference(**inputs.tensors, point=point, absolute=True)

    def costs(self, point: Point) -> Costs:
        """As of any filters that are given, here two, of which each product has both."""
        return applied(point, point.taps * (point.out_pixels + point.batch * point.channels), factors=3)


class AblatedPack(DDFPack):
    """DDFPack with one of its branches, or another normalisation of its filters (the paper's ablations).

    Args:
        branches: `both`, `spatial` or `channel`; the filter of a branch that is missing is neutral: 1, or 0 for `add`.
        norm: `filter_norm`, `batch_norm`, `sigmoid` or `none`.
        arguments, settings: DDFPack's.
    """

    neutral: Tensor

    def __init__(self, *arguments: Any, branches: str, norm: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.branches = branches
        neutral = torch.full((), 1.0 if self.kernel_combine == "mul" else 0.0)
        self.register_buffer("neutral", neutral, persistent=False)
        if norm != "filter_norm":
            self.spatial_branch[1] = _normalisation(norm, self.head * self.kernel_size**2)
            self.channel_branch[4] = _normalisation(norm, self.in_channels * self.kernel_size**2)
        if branches == "spatial":
            del self.channel_branch
        elif branches == "channel":
            del self.spatial_branch

    def filters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (n, c, h, w), taps = x.shape, self.kernel_size**2
        size = (h - 1) // self.stride + 1, (w - 1) // self.stride + 1
        if self.branches == "spatial":
            return self.neutral.expand(n, c * taps), self.spatial_branch(x)
        if self.branches == "channel":
            return self.channel_branch(x).flatten(1), self.neutral.expand(n, self.head * taps, *size)
        return self.channel_branch(x).flatten(1), self.spatial_branch(x)

    def fused_refusal(self, device: str, dtype: torch.dtype) -> str:
        return "the whole module with FilterNorm alone"

    def generated(self, x: Tensor) -> tuple[Tensor, ...]:
        """The filters that are predicted."""
        channel, spatial = self.filters(x)
        return {"both": (channel, spatial), "spatial": (spatial,), "channel": (channel,)}[self.branches]


def _normalisation(norm: str, filters: int) -> nn.Module:
    if norm == "batch_norm":
        return nn.BatchNorm2d(filters)
    return nn.Sigmoid() if norm == "sigmoid" else nn.Identity()


class DDFModule(Op):
    """The whole module, DDFPack, and its ablations."""

    name, title = "ddf", "DDF"
    combines = True
    extra_axes = (
        Axis("head", 1, "groups of channels with a spatial filter of their own"),
        Axis("se_ratio", 0.2, "width of the channel branch over the channels", minimum=0.001),
        Axis("branches", "both", "which filters are predicted", choices=("both", "spatial", "channel")),
        Axis(
            *("norm", "filter_norm", "what normalises the filters"),
            choices=("filter_norm", "batch_norm", "sigmoid", "none"),
        ),
    )

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], Any]]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        head, se_ratio = _extra(point)
        if point.kernel_size == 1:
            raise Skip("FilterNorm needs two taps at least; kernel_size is 1")
        if point.channels % head:
            raise Skip(f"head has to divide the channels; {head} does not divide {point.channels}")

        sizes = point.channels, point.kernel_size, point.stride, point.dilation, head
        settings: dict[str, Any] = {"se_ratio": se_ratio, "kernel_combine": point.combine}
        branches, norm = _ablation(point)
        pack = DDFPack(*sizes, **settings)
        if (branches, norm) != ("both", "filter_norm"):
            pack = AblatedPack(*sizes, branches=branches, norm=norm, **settings)
        placed(pack, point, device)
        for part in pack.modules():
            if isinstance(part, nn.Conv2d):
                fill_convolution(part, generator)
            elif isinstance(part, FilterNorm) and isinstance(part.std, Tensor):
                nn.init.normal_(part.std, std=part.scale, generator=generator)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, std=1 / point.kernel_size, generator=generator)
                nn.init.normal_(part.bias, std=1 / point.kernel_size, generator=generator)
        features = normal((point.batch, point.channels, point.height, point.width), point, generator)
        return Inputs({"features": features}, pack)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=False)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        return self._sum_terms(inputs, point, absolute=True)

    def _sum_terms(self, inputs: Inputs, point: Point, absolute: bool) -> Tensor:
        """The filters by the formulas of the paper, from the parameters alone, and their application."""
        features, pack = inputs["features"], cast(DDFPack, inputs.module)
        neutral = torch.tensor(float(point.combine == "mul"), dtype=features.dtype, device=features.device)
        spatial = neutral.expand(point.batch, _extra(point)[0] * point.taps, point.out_height, point.out_width)
        channel = neutral.expand(point.batch, point.channels, point.taps)
        branches, _ = _ablation(point)
        if branches != "channel":
            predict = cast(nn.Conv2d, pack.spatial_branch[0])
            raw = F.conv2d(features, predict.weight, predict.bias, point.stride).unflatten(1, (-1, point.taps))
            gain = nn.init.calculate_gain("relu") / point.kernel_size
            spatial = _normalised(raw, pack.spatial_branch[1], gain, absolute).flatten(1, 2)
        if branches != "spatial":
            squeeze, excite = (cast(nn.Conv2d, pack.channel_branch[i]) for i in (1, 3))
            hidden = F.linear(features.mean((2, 3)), squeeze.weight.flatten(1), squeeze.bias).relu()
            raw = F.linear(hidden, excite.weight.flatten(1), excite.bias).view(-1, point.channels, point.taps)
            norm = pack.channel_branch[4]
            std = cast(Tensor, norm.std).view(point.channels, point.taps) if isinstance(norm, FilterNorm) else 1.0
            channel = _normalised(raw, norm, std, absolute)
        return reference(features, channel, spatial, point, absolute)

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        features, pack = inputs["features"], cast(DDFPack, inputs.module)
        return pack.generated(features) if isinstance(pack, AblatedPack) else pack.filters(features)

    def costs(self, point: Point) -> Costs:
        """c k^2 + sigma c^2 (1 + k^2) weights (poster, Table 1), biases, and the learned std of the channel filter.

        floor_bytes: two passes over the features x, as pooling has to end before a filter can be applied; the filters f
        are written by the first and read by the second, the parameters p read, the output o written:
        2 x + p + 2 f + o. The backward pass has two as well, as the gradient of the channel filter has to be complete
        before it reaches x through the pooling: the first reads x, f and the gradient of o, and writes that of f; the
        second reads those gradients, f and p, and writes the gradients of x and p: 2 x + 2 o + 4 f + 2 p.
        Without the channel branch one pass does, and the filters can stay on chip: x + p + o, 2 x + 2 p + o backwards.
        """
        head, se_ratio = _extra(point)
        branches, norm = _ablation(point)
        c, taps, mid = point.channels, point.taps, mid_channels(point.channels, se_ratio)
        params = {
            "spatial_branch.0.weight": head * taps * c,
            "spatial_branch.0.bias": head * taps,
            "channel_branch.1.weight": c * mid,
            "channel_branch.1.bias": mid,
            "channel_branch.3.weight": mid * c * taps,
            "channel_branch.3.bias": c * taps,
        }
        learned = {"filter_norm": ("std",), "batch_norm": ("weight", "bias")}.get(norm, ())
        params |= {f"channel_branch.4.{name}": c * taps for name in learned}
        params |= {f"spatial_branch.1.{name}": head * taps for name in learned if norm == "batch_norm"}
        if branches != "both":
            params = {name: count for name, count in params.items() if name.startswith(branches)}
        features, output, parameters = point.pixels * c, point.out_pixels * c, sum(params.values())
        by_branch = {
            "spatial": (taps * point.out_pixels * head, point.out_pixels * c * head * taps),
            "channel": (taps * point.batch * c, point.batch * mid * c * (1 + taps)),
        }
        predicted = [by_branch[branch] for branch in by_branch if branches in ("both", branch)]
        filters, conv = (sum(some) for some in zip(*predicted, strict=True))
        passes, held_filters = (1, 0) if branches == "spatial" else (2, filters)
        elements = passes * features + parameters + 2 * held_filters + output
        if point.backward:
            elements += 2 * features + passes * output + 4 * held_filters + 2 * parameters
        return Costs(
            params=params,
            macs={
                "conv": (3 if point.backward else 1) * conv,
                "dynamic_filter": (2 + len(predicted) if point.backward else 1) * output * taps,
            },
            floor_bytes=elements * point.itemsize,
            memory=held(point, features=features, parameters=parameters, filters=filters, output=output),
            combined=combinations(point, output * taps) if branches == "both" else 0,
        )


def _extra(point: Point) -> tuple[int, float]:
    """The point's head and se_ratio."""
    return int(point.extra.get("head", 1)), float(point.extra.get("se_ratio", 0.2))


def _ablation(point: Point) -> tuple[str, str]:
    """The point's branches and norm."""
    return str(point.extra.get("branches", "both")), str(point.extra.get("norm", "filter_norm"))


def _normalised(raw: Tensor, norm: nn.Module, scale: Tensor | float, absolute: bool) -> Tensor:
    """Filters by tap in dimension 2, normalised as the module `norm` does; or the absolute terms.

    Args:
        scale: of FilterNorm.
    """
    if isinstance(norm, FilterNorm):
        return standardised(raw, absolute) * scale
    if isinstance(norm, nn.BatchNorm2d):
        per_tap = raw.shape[1:3] + (1,) * (raw.dim() - 3)
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        weight = (norm.weight / (variance + norm.eps).sqrt()).view(per_tap)
        if absolute:
            return (raw.abs() + mean.view(per_tap).abs()) * weight.abs() + norm.bias.view(per_tap).abs()
        return (raw - mean.view(per_tap)) * weight + norm.bias.view(per_tap)
    if isinstance(norm, nn.Sigmoid):
        return raw.sigmoid() + raw.abs() if absolute else raw.sigmoid()
    return raw.abs() + raw.abs().mean(2, keepdim=True) if absolute else raw


def standardised(filters: Tensor, absolute: bool) -> Tensor:
    """Zero mean and unit spread over the taps, dimension 2; or the absolute terms, (|x| + mean |x|) / spread.

    Terms, not their difference: where a tap is close to the mean, its rounding error is that of both.
    """
    spread = filters.std(2, keepdim=True) + 1e-10
    if absolute:
        return (filters.abs() + filters.abs().mean(2, keepdim=True)) / spread.detach()
    return (filters - filters.mean(2, keepdim=True)) / spread


@DDFOp.impl(
    "native",
    library="ddf",
    kernels=(*(f"kernel   {row}" for row in kernels()), *(f"backward {row}" for row in backward_kernels())),
)
def _(inputs: Inputs, point: Point) -> Closure:
    need_native(inputs, point)
    kernel = str(point.extra.get("kernel", "auto"))
    return _closure(ddf, inputs, point) if kernel == "auto" else _by_kernel(kernel, inputs, point)


def _by_kernel(kernel: str, inputs: Inputs, point: Point) -> Closure:
    """The closure that has the native operator use that kernel.

    Raises:
        Skip: if it cannot.
    """
    if inputs["features"].device.type != "cuda" or point.backward:
        raise Skip(f"kernel {kernel}: the forward pass on CUDA alone")
    features, channel_filter, spatial_filter = (inputs[t] for t in ("features", "channel_filter", "spatial_filter"))
    settings = point.dilation, point.stride, point.combine
    try:
        native.apply_by(kernel, features, channel_filter, spatial_filter, *settings)
    except RuntimeError as error:
        if not str(error).startswith("kernel:"):
            raise
        raise Skip(str(error).splitlines()[0]) from None
    return lambda: native.apply_by(kernel, features, channel_filter, spatial_filter, *settings)


def _need_no_kernel(point: Point) -> None:
    """Raises:
    Skip: if a kernel is asked for by name.
    """
    if point.extra.get("kernel", "auto") != "auto":
        raise Skip("kernel: those named are the impl native's")


@DDFOp.out("native")
def _(inputs: Inputs, point: Point, out: Tensor) -> Closure:
    _need_no_kernel(point)
    features, channel_filter, spatial_filter = (inputs[t] for t in ("features", "channel_filter", "spatial_filter"))
    k, dilation, stride, combine = point.kernel_size, point.dilation, point.stride, point.combine
    return lambda: ddf(features, channel_filter, spatial_filter, k, dilation, stride, combine, out=out)


@DDFOp.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    _need_no_kernel(point)
    return _closure(composite, inputs, point)


@DDFOp.impl("compiled", slow_start=True)
def _(inputs: Inputs, point: Point) -> Closure:
    _need_no_kernel(point)
    return _started(_closure(torch.compile(composite, dynamic=False), inputs, point), point)


def _closure(operator: Operator, inputs: Inputs, point: Point) -> Closure:
    features, channel_filter, spatial_filter = (inputs[t] for t in ("features", "channel_filter", "spatial_filter"))
    settings = point.kernel_size, point.dilation, point.stride, point.combine
    return lambda: operator(features, channel_filter, spatial_filter, *settings)


@DDFOp.impl("triton", slow_start=True)
def _(inputs: Inputs, point: Point) -> Closure:
    _need_no_kernel(point)
    if inputs["features"].device.type != "cuda":
        raise Skip("triton: runs on CUDA alone")
    if point.backward:
        raise Skip("triton: forward alone")
    try:
        from .core import triton_ddf
    except ImportError as error:
        raise Skip(f"triton: {error}") from None
    return _closure(triton_ddf.apply, inputs, point)


@DDFOp.impl("paper", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    _need_no_kernel(point)
    _need_published(inputs, point)
    return _closure(published.apply, inputs, point)


@DDFModule.impl("native", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    need_native(inputs, point)
    features, pack = inputs["features"], cast(DDFPack, inputs.module)
    return lambda: pack(features)


@DDFModule.impl("fused", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    features, pack = inputs["features"], cast(DDFPack, inputs.module)
    reason = pack.fused_refusal(features.device.type, features.dtype)
    if reason:
        raise Skip(f"fused operator: {reason}")
    return lambda: pack.fused(features)


@DDFModule.impl("composite")
def _(inputs: Inputs, point: Point) -> Closure:
    features, pack = inputs["features"], cast(DDFPack, inputs.module)
    return lambda: pack.compute(features, composite)


@DDFModule.impl("compiled", slow_start=True)
def _(inputs: Inputs, point: Point) -> Closure:
    features, pack = inputs["features"], cast(DDFPack, inputs.module)
    compute = torch.compile(pack.compute, dynamic=False)
    return _started(lambda: compute(features, composite), point)


@DDFModule.impl("paper", library="ddf")
def _(inputs: Inputs, point: Point) -> Closure:
    _need_published(inputs, point)
    features, pack = inputs["features"], cast(DDFPack, inputs.module)
    return lambda: pack.compute(features, published.apply)


def _need_published(inputs: Inputs, point: Point) -> None:
    """Raises:
    Skip: if the published kernels cannot serve the case.
    """
    reason = published.refusal(inputs["features"], point.kernel_size, point.dilation, point.stride)
    if reason:
        raise Skip(f"published kernels: {reason}")


def need_native(inputs: Inputs, point: Point) -> None:
    """Without it `ddf` would fall back to plain PyTorch.

    Raises:
        Skip: if the native operator cannot serve the case.
    """
    reason = native.missing(inputs["features"].device.type)
    if reason:
        raise Skip(f"native operator: {reason}")
    if point.kernel_size > native.MAX_KERNEL_SIZE:
        raise Skip(f"native operator: kernel_size is at most {native.MAX_KERNEL_SIZE}, not {point.kernel_size}")


def _started(closure: Closure, point: Point) -> Closure:
    """Calls the closure once, which compiles it.

    Raises:
        Skip: if no compiler works here.
    """
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import GPUTooOldForTriton, TritonMissing

    try:
        with torch.set_grad_enabled(point.backward):
            closure()
    except (BackendCompilerFailed, GPUTooOldForTriton, TritonMissing) as error:
        raise Skip(f"torch.compile fails here: {str(error).splitlines()[0]}") from error
    return closure
