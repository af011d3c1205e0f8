"""Networks for joint depth upsampling: DDF-Up-Net (Zhou et al., CVPR 2021), and the same with other ways to upsample.

The poster stacks DDF-Up modules of scale 2, guided by features of the image. What it leaves open is chosen simply:
features of the image from two 3x3 convolutions, halved by strided ones; two 3x3 convolutions of the depth before the
modules, a 1x1 convolution behind each, two 3x3 convolutions at the end; what they give is added to the bilinear
upsampling of the depth.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from math import gcd
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Axis, Closure, Costs, Inputs, Op, Point, Skip
from .carafe import Carafe, reassemble
from .core import native, native_up
from .core.closed_forms import held
from .core.networks import count_macs, with_plain_operators
from .core.seeded import drawn, normal
from .ddf import DDFUpPack, FilterNorm, composite, ddf
from .dysample import DySample
from .joint_bilateral import bilateral_filters
from .pac import PacTransposed
from .up_convolution import Subpixel, Transposed

#: Channels of DDF-Up-Net; the others have as many as their parameters, at most its own, allow.
CHANNELS = 16


class _Step(nn.Module):
    """Doubles rows and columns of x (N, C, H, W), guided by features of the image."""

    #: Whether the guide has the resolution of the output, instead of that of x.
    fine = False

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        raise NotImplementedError


class _DDFUp(_Step):
    """DDF-Up, its spatial filters from the guide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pack = DDFUpPack(channels, joint_channels=channels)
        self.operator, self.plain_operator = DDFUpPack.__call__, _by_branches

    def macs(self, x: Tensor) -> dict[str, int]:
        """The application of the filters, a product for each tap and output."""
        return {"dynamic_filter": 4 * x.numel() * self.pack.kernel_size**2}

    def draw(self, generator: torch.Generator) -> None:
        for part in self.pack.modules():
            if isinstance(part, FilterNorm) and isinstance(part.std, Tensor):
                part.std.normal_(0, part.scale, generator=generator)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return cast(Tensor, self.operator(self.pack, x, guide))


def _by_branches(pack: DDFUpPack, x: Tensor, guide: Tensor) -> Tensor:
    """The module in plain PyTorch."""
    branches = zip(pack.channel_branch, pack.spatial_branch, strict=True)
    outs = [pack.apply_filters(composite, x, channel(x), spatial(guide)) for channel, spatial in branches]
    return F.pixel_shuffle(torch.stack(outs, 2).flatten(1, 2), pack.scale_factor)


class _Pac(_Step):
    """Transposed PAC."""

    fine = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pac = PacTransposed(channels, channels, 2)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return cast(Tensor, self.pac(x, guide))


class _JointBilateral(_Step):
    """Joint bilateral upsampling over 3 x 3 pixels."""

    fine = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.operator, self.plain_operator = ddf, composite

    def macs(self, x: Tensor) -> dict[str, int]:
        return {"dynamic_filter": 4 * x.numel() * 9}

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return reassemble(x, bilateral_filters(guide, 2, 3), 3, 2, self.operator)


class _Joined(_Step):
    """What takes no guide reads it beside the features, joined by a 1x1 convolution."""

    def __init__(self, channels: int, upsample: nn.Module) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.upsample = upsample

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        return cast(Tensor, self.upsample(self.join(torch.cat((x, guide), 1))))


#: What doubles rows and columns, by the op that it is, given the channels.
STEPS: dict[str, Callable[[int], _Step]] = {
    "ddf_up": _DDFUp,
    "pac_up": _Pac,
    "joint_bilateral": _JointBilateral,
    "bilinear": lambda c: _Joined(c, nn.Upsample(scale_factor=2, mode="bilinear")),
    "transposed_conv": lambda c: _Joined(c, Transposed(c, c, 2)),
    "subpixel_conv": lambda c: _Joined(c, Subpixel(c, c, 2)),
    "carafe": lambda c: _Joined(c, Carafe(c, kernel_size=5)),
    "dysample": lambda c: _Joined(c, DySample(c, groups=gcd(4, c))),
}


class UpNet(nn.Module):
    """Upsamples depth by a power of 2, in steps of 2, guided by an image.

    Args:
        scale: rows of the image over those of the depth, 2 or more.
        variant: one of `STEPS`.
        channels: of all features.

    Raises:
        ValueError: if scale is no power of 2.
    """

    def __init__(self, scale: int, variant: str, channels: int) -> None:
        super().__init__()
        c, steps = channels, range(scale.bit_length() - 1)
        if len(steps) < 1 or scale != 2 ** len(steps):
            raise ValueError(f"scale: expected a power of 2 of at least 2, got {scale}")
        self.scale = scale
        self.image = nn.Sequential(_conv(3, c), nn.ReLU(), _conv(c, c), nn.ReLU())
        self.depth = nn.Sequential(_conv(1, c), nn.ReLU(), _conv(c, c), nn.ReLU())
        self.steps = nn.ModuleList(STEPS[variant](c) for _ in steps)
        halvings = len(steps) - any(cast(_Step, step).fine for step in self.steps)
        self.halve = nn.ModuleList(nn.Sequential(_conv(c, c, 2), nn.ReLU()) for _ in range(halvings))
        self.mix = nn.ModuleList(nn.Conv2d(c, c, 1) for _ in steps)
        self.last = nn.Sequential(_conv(c, c), nn.ReLU(), _conv(c, 1))

    def forward(self, depth: Tensor, image: Tensor) -> Tensor:
        """Depth (N, 1, H, W) and an image (N, 3, H*scale, W*scale) -> depth of the image's size."""
        return F.interpolate(depth, scale_factor=self.scale, mode="bilinear") + self.last(self.features(depth, image))

    def features(self, depth: Tensor, image: Tensor) -> Tensor:
        """What the last convolutions read, (N, C, H*scale, W*scale)."""
        guides = [self.image(image)]
        for halve in self.halve:
            guides.append(halve(guides[-1]))
        x = self.depth(depth)
        for step, mix in zip(self.steps, self.mix, strict=True):
            x = mix(step(x, guides.pop())).relu()
        return cast(Tensor, x)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1)


class DDFUpNet(UpNet):
    """Stacked DDF-Up modules of scale 2, for 4, 8, 16 or any other power of 2."""

    def __init__(self, scale: int, channels: int = CHANNELS) -> None:
        super().__init__(scale, "ddf_up", channels)


def up_net(scale: int, variant: str) -> UpNet:
    """The network of that variant whose parameters are at most those of DDFUpNet, and as many as its width allows."""
    if variant == "ddf_up":
        return DDFUpNet(scale)
    return UpNet(scale, variant, equal_channels(scale, variant))


@cache
def equal_channels(scale: int, variant: str) -> int:
    """The most channels with which a variant has no more parameters than DDFUpNet."""

    def size(variant: str, channels: int) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in UpNet(scale, variant, channels).parameters())

    return bisect_right(range(1, 4 * CHANNELS), size("ddf_up", CHANNELS), key=lambda channels: size(variant, channels))


class JointUpsampling(Op):
    """A network for joint depth upsampling: depth (N, 1, H, W) and its image -> depth of the image's size."""

    name, title = "up_net", "Joint upsampling net"
    roof = "matmul"
    axes = ("batch", "height", "width", "dtype", "layout", "direction")
    resolution = (16, 16)
    extra_axes = (
        Axis("scale", 8, "rows of the image over those of the depth", choices=(2, 4, 8, 16)),
        Axis("variant", "ddf_up", "what doubles rows and columns, step by step", choices=tuple(STEPS)),
    )

    def fvcore_handles(self) -> Mapping[str, Any]:
        return native_up.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        scale, variant = _settings(point)
        network = drawn(lambda: up_net(scale, variant), point, device, generator)
        size = point.height, point.width
        return Inputs(
            {
                "features": normal((point.batch, 1, *size), point, generator),
                "guide": normal((point.batch, 3, *(scale * length for length in size)), point, generator),
            },
            network,
        )

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        network = with_plain_operators(cast(UpNet, inputs.module))
        return cast(Tensor, network(inputs["features"], inputs["guide"]))

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        """The sum of the absolute terms of the last convolution, and of what is added to it.

        Those of all layers would multiply to a bound that anything keeps.
        """
        network, depth = with_plain_operators(cast(UpNet, inputs.module)), inputs["features"]
        before = network.last[:2](network.features(depth, inputs["guide"]))
        last = cast(nn.Conv2d, network.last[2])
        terms = F.conv2d(before.abs(), last.weight.abs(), cast(Tensor, last.bias).abs(), padding=1)
        return terms + F.interpolate(depth.abs(), scale_factor=network.scale, mode="bilinear")

    def costs(self, point: Point) -> Costs:
        """Counted layer by layer from shapes alone, at the device `meta`.

        floor_bytes: depth and image x and parameters p read, depth o written; a backward pass reads x, p and the
        gradient of o, and writes those of x and p: 3 (x + p) + 2 o in all.
        """
        scale, variant = _settings(point)
        params, macs = _counted(scale, variant, point.height, point.width)
        factors = 3 if variant == "ddf_up" else 2  # of a product with a dynamic filter
        products = {"conv": 3, "dynamic_filter": 1 + factors} if point.backward else {}
        depth, output = point.pixels, point.pixels * scale**2
        read = depth + 3 * output + sum(params.values())
        return Costs(
            params=params,
            macs={kind: point.batch * count * products.get(kind, 1) for kind, count in macs.items()},
            floor_bytes=(3 * read + 2 * output if point.backward else read + output) * point.itemsize,
            memory=held(point, features=depth, guide=3 * output, parameters=sum(params.values()), output=output),
        )


def _settings(point: Point) -> tuple[int, str]:
    """The point's scale and variant."""
    return int(point.extra.get("scale", 8)), str(point.extra.get("variant", "ddf_up"))


class _OfImage(nn.Module):
    """A network that is given the image alone, for what only shapes matter to."""

    def __init__(self, network: UpNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        scale = self.network.scale
        return cast(Tensor, self.network(image[:, :1, ::scale, ::scale], image))


@cache
def _counted(scale: int, variant: str, height: int, width: int) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Parameters by part of the network, and multiply-accumulates for one depth map of that size by kind."""
    with torch.device("meta"):
        network = up_net(scale, variant)
    params: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        params[name.partition(".")[0]] += parameter.numel()
    return params, count_macs(_OfImage(network), height * scale, width * scale)


@JointUpsampling.impl("torch")
def _(inputs: Inputs, point: Point) -> Closure:
    """All in plain PyTorch."""
    network = with_plain_operators(cast(UpNet, inputs.module))
    return lambda: cast(Tensor, network(inputs["features"], inputs["guide"]))


@JointUpsampling.impl("native", library="ddf,ddf_up")
def _(inputs: Inputs, point: Point) -> Closure:
    """With our operators where the variant applies filters.

    Raises:
        Skip: if it has none of ours, or they cannot be built.
    """
    network = cast(UpNet, inputs.module)
    if not any(hasattr(module, "plain_operator") for module in network.modules()):
        raise Skip(f"{_settings(point)[1]} has no operator of ours")
    device = inputs["features"].device.type
    reason = native.missing(device) or native_up.missing(device)
    if reason:
        raise Skip(f"native operator: {reason}")
    return lambda: cast(Tensor, network(inputs["features"], inputs["guide"]))
