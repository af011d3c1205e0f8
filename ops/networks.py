"""Whole networks: ResNets for images, each in the variants of `core/networks`, on the axis `variant`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Axis, Closure, Costs, Inputs, Op, Point, Skip
from .core import native, networks
from .core.closed_forms import held
from .core.networks import VARIANTS, ResNet
from .core.seeded import normal, placed

#: What `macs` is the sum of; other arithmetic is `Costs.left_out`.
KINDS = ("conv", "linear", "dynamic_filter")
#: Products that a training step needs for one of the forward pass: each operand that has a gradient adds one.
PRODUCTS = {"dynamic_filter": 4}


class _Network(Op):
    """Images (N, 3, H, W) -> logits (N, 1000), in eval mode."""

    roof = "matmul"
    axes = ("batch", "height", "width", "dtype", "layout", "direction")
    resolution = (224, 224)

    def fvcore_handles(self) -> Mapping[str, Any]:
        return native.fvcore_handles()

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        network = networks.build(self.name, variant_of(point), point.height, point.width, "meta")
        images = normal((point.batch, 3, point.height, point.width), point, generator)
        networks.draw(network, images, generator)
        return Inputs({"images": images}, placed(network, point, device))

    def blank(self, point: Point, device: torch.device) -> Inputs:
        network = networks.build(self.name, variant_of(point), point.height, point.width, "meta")
        networks.clear(network, device)
        images = torch.zeros(point.batch, 3, point.height, point.width, device=device)
        return Inputs({"images": images}, placed(network, point, device))

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        return networks.with_plain_operators(cast(ResNet, inputs.module))(inputs["images"])

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        """The sum of the absolute terms of the last layer.

        Those of all layers would multiply to a bound that anything keeps. BatchNorm keeps activations of unit order,
        so that what the layers before have rounded is of the order of a rounding of these terms.
        """
        network = networks.with_plain_operators(cast(ResNet, inputs.module))
        features = network.features(inputs["images"])
        last = cast(nn.Linear, network.fc)
        return F.linear(features.abs(), last.weight.abs(), last.bias.abs())

    def costs(self, point: Point) -> Costs:
        """Counted layer by layer from shapes alone, at the device `meta`.

        floor_bytes: images x, parameters and statistics p read, logits o written; a backward pass reads x, p and the
        gradient of o, and writes those of x and p: 3 (x + p) + 2 o in all.
        """
        params, counts = counted(self.name, variant_of(point), point.height, point.width)
        macs = {kind: counts[kind] for kind in KINDS if counts[kind]}
        images, logits = point.pixels * 3, point.batch * networks.CLASSES
        read = images + sum(params.values())
        return Costs(
            params=params,
            macs={
                kind: point.batch * count * (PRODUCTS.get(kind, 3) if point.backward else 1)
                for kind, count in macs.items()
            },
            floor_bytes=(3 * read + 2 * logits if point.backward else read + logits) * point.itemsize,
            memory=held(point, images=images, parameters=sum(params.values()), output=logits),
            left_out={kind: point.batch * count for kind, count in counts.items() if kind not in KINDS},
        )


def variant_of(point: Point) -> str:
    return str(point.extra.get("variant", "base"))


@cache
def counted(backbone: str, variant: str, height: int, width: int) -> tuple[Counter[str], Counter[str]]:
    """Parameters by part of the network, and multiply-accumulates for one image by kind."""
    network = networks.build(backbone, variant, height, width, "meta")
    params: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        params[name.partition(".")[0]] += parameter.numel()
    return params, networks.count_macs(network, height, width)


def _variants(backbone: str) -> tuple[Axis, ...]:
    known = tuple(v.name for v in VARIANTS.values() if backbone in v.backbones)
    return (Axis("variant", "base", "what the network has for its 3x3 convolutions", choices=known),)


class ResNet18(_Network):
    name, title = "resnet18", "ResNet18"
    extra_axes = _variants("resnet18")


class ResNet50(_Network):
    name, title = "resnet50", "ResNet50"
    extra_axes = _variants("resnet50")


class ResNet101(_Network):
    name, title = "resnet101", "ResNet101"
    extra_axes = _variants("resnet101")


def _torch(inputs: Inputs, point: Point) -> Closure:
    """All in plain PyTorch."""
    network, images = networks.with_plain_operators(cast(ResNet, inputs.module)), inputs["images"]
    return lambda: network(images)


def _native(inputs: Inputs, point: Point) -> Closure:
    """With our operators where the variant applies filters.

    Raises:
        Skip: if it has none of ours, or they cannot be built.
    """
    network, images = cast(ResNet, inputs.module), inputs["images"]
    if not any(hasattr(module, "plain_operator") for module in network.modules()):
        raise Skip(f"{variant_of(point)} has no operator of ours")
    reason = native.missing(images.device.type)
    if reason:
        raise Skip(f"native operator: {reason}")
    return lambda: network(images)


for _op in (ResNet18, ResNet50, ResNet101):
    _op.impl("torch")(_torch)
    _op.impl("native", library="ddf")(_native)
