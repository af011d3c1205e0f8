"""Convolutions, whose filters are the same at every pixel: the dense `conv` and the depthwise `dwconv`."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Closure, Costs, Inputs, Op, Point, Skip
from .core.closed_forms import held
from .core.seeded import empty_convolution, fill_convolution, normal


class _Convolution(Op):
    """nn.Conv2d with bias: features (N, C, H, W) -> (N, C, Ho, Wo)."""

    def groups(self, point: Point) -> int:
        """How many groups the channels are split in."""
        raise NotImplementedError

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        c = point.channels

        def make() -> nn.Conv2d:
            return nn.Conv2d(
                c, c, point.kernel_size, point.stride, point.padding, point.dilation, groups=self.groups(point)
            )

        conv = empty_convolution(make, point, device)
        fill_convolution(conv, generator)
        return Inputs({"features": normal((point.batch, c, point.height, point.width), point, generator)}, conv)

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(nn.Conv2d, inputs.module)
        return self._convolve(inputs["features"], conv.weight, cast(Tensor, conv.bias), point)

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        conv = cast(nn.Conv2d, inputs.module)
        return self._convolve(inputs["features"].abs(), conv.weight.abs(), cast(Tensor, conv.bias).abs(), point)

    def _convolve(self, features: Tensor, weight: Tensor, bias: Tensor, point: Point) -> Tensor:
        return F.conv2d(features, weight, bias, point.stride, point.padding, point.dilation, self.groups(point))

    def costs(self, point: Point) -> Costs:
        """c^2 k^2 weights, or c k^2 depthwise (poster, Table 1), and c biases.

        floor_bytes: features x, weight w and bias b read, output o written; a backward pass reads x, w and the gradient
        of o, and writes those of x, w and b: 3 (x + w) + 2 (b + o) in all.
        """
        c, products = point.channels, 3 if point.backward else 1
        weight = c * c // self.groups(point) * point.taps
        features, output = point.pixels * c, point.out_pixels * c
        elements = 3 * (features + weight) + 2 * (c + output) if point.backward else features + weight + c + output
        return Costs(
            params={"weight": weight, "bias": c},
            macs={"conv": products * point.out_pixels * weight},
            floor_bytes=elements * point.itemsize,
            memory=held(point, features=features, parameters=weight + c, output=output),
        )


class Conv(_Convolution):
    name, title = "conv", "Conv"
    roof = "matmul"

    def groups(self, point: Point) -> int:
        return 1


class DwConv(_Convolution):
    name, title = "dwconv", "DwConv"

    def groups(self, point: Point) -> int:
        return point.channels


@Conv.impl("torch")
@DwConv.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    """nn.Conv2d, as the authors time it: cuDNN on CUDA, oneDNN on the CPU."""
    conv, features = cast(nn.Conv2d, inputs.module), inputs["features"]
    return lambda: conv(features)


@DwConv.impl("cudnn")
def _(inputs: Inputs, point: Point) -> Closure:
    """cuDNN alone, in place in either layout; the bias is added to its result, as torch does where it picks cuDNN."""
    conv, features, bias = _on_cuda(inputs, "cuDNN")
    if not torch.backends.cudnn.is_available():
        raise Skip("cuDNN: not in this torch")
    settings = (point.padding,) * 2, (point.stride,) * 2, (point.dilation,) * 2, point.channels
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    per_channel = bias.view(1, -1, 1, 1)
    return lambda: torch.cudnn_convolution(features, conv.weight, *settings, benchmark, False, tf32).add_(per_channel)


@DwConv.impl("aten")
def _(inputs: Inputs, point: Point) -> Closure:
    """torch's own depthwise kernel; it has one for NCHW alone, and copies channels-last features into that first."""
    conv, features, bias = _on_cuda(inputs, "ATen's depthwise kernel")
    largest = max(point.pixels, point.out_pixels) * point.channels
    if largest > MAX_ATEN_ELEMENTS:
        raise Skip(f"ATen's depthwise kernel: at most {MAX_ATEN_ELEMENTS} elements, not {largest}")
    settings = (point.stride,) * 2, (point.padding,) * 2, (point.dilation,) * 2
    convolve = torch.ops.aten._conv_depthwise2d.default
    return lambda: convolve(features, conv.weight, (point.kernel_size,) * 2, bias, *settings)


#: It counts elements in 32 bits.
MAX_ATEN_ELEMENTS = 2**31 - 1


def _on_cuda(inputs: Inputs, what: str) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """The module, the features and the bias.

    Raises:
        Skip: if they are not on a CUDA device.
    """
    features, conv = inputs["features"], cast(nn.Conv2d, inputs.module)
    if features.device.type != "cuda":
        raise Skip(f"{what}: on CUDA alone")
    return conv, features, cast(Tensor, conv.bias)
