"""ResNets (He et al., CVPR 2016), written once, and the registry of their variants.

A variant says what stands where the plain network has a 3x3 convolution, a 1x1 convolution, nothing at all:

    variant("resnext_32x4d", backbones=BOTTLENECKS, filter=grouped, width=lambda planes: 2 * planes)

in any file of this folder; all are imported, so that there is no list to edit. The stride of a block is in its 3x3
convolution, as in the networks that the papers compare with. Parameters have the names of torchvision's and timm's
ResNets. At the device `meta` networks are built and counted without memory or arithmetic.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..seeded import clear, fill_convolution

CLASSES = 1000

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Site:
    """Where in a network a part stands: what a variant may know when it makes one.

    Args:
        stage: 1 to 4; 0 is the stem.
        block: within the stage, from 0.
        role: the part's name in its block, as `conv2`.
        in_channels, out_channels: equal for an attention module.
        height, width: of what it reads, for parts whose parameters depend on it.
    """

    stage: int
    block: int
    role: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_size: int = 1
    stride: int = 1

    def conv(self, role: str, out_channels: int, kernel_size: int = 1, stride: int = 1) -> Site:
        """The site of a convolution that reads the same."""
        return replace(self, role=role, out_channels=out_channels, kernel_size=kernel_size, stride=stride)

    def after(self) -> Site:
        """The site of a part that reads what this one writes, and keeps its shape."""
        height, width = (self.height - 1) // self.stride + 1, (self.width - 1) // self.stride + 1
        return replace(self, in_channels=self.out_channels, height=height, width=width, kernel_size=1, stride=1)


Part = Callable[[Site], nn.Module]


def convolution(at: Site, groups: int = 1) -> nn.Module:
    """The plain convolution, without bias."""
    return nn.Conv2d(
        at.in_channels, at.out_channels, at.kernel_size, at.stride, at.kernel_size // 2, groups=groups, bias=False
    )


def normalisation(at: Site) -> nn.Module:
    """The BatchNorm of what the part at this site writes."""
    return nn.BatchNorm2d(at.out_channels)


def planes_wide(planes: int) -> int:
    return planes


@dataclass(frozen=True)
class Variant:
    """A ResNet by what differs from the plain one.

    Args:
        backbones: those it exists for.
        filter: makes each 3x3 convolution of a block, with its stride.
        filter_norm: what normalises the output of a bottleneck's filter.
        pointwise: makes each 1x1 convolution of a block, shortcuts included (role `downsample`).
        planes: of a stage, from those of the plain network.
        width: channels inside a bottleneck, from the planes of its stage (64, 128, 256, 512).
        attention: makes the module between a block's last BatchNorm and the addition.
        after_stage: makes the module behind a stage; None for none.
        stem: makes the strided convolution in front, 3 -> 64 channels.
        classifier: makes the last layer.
        block: makes a whole block; replaces the backbone's own, which is called alike.
    """

    name: str
    backbones: tuple[str, ...]
    filter: Part = convolution
    filter_norm: Part = normalisation
    pointwise: Part = convolution
    planes: Callable[[int], int] = planes_wide
    width: Callable[[int], int] = planes_wide
    attention: Part | None = None
    after_stage: Callable[[Site], nn.Module | None] | None = None
    stem: Part = convolution
    classifier: Callable[[int, int], nn.Module] = nn.Linear
    block: Callable[[Site, int, Variant], nn.Module] | None = None


BOTTLENECKS = ("resnet50", "resnet101")
ALL = ("resnet18", *BOTTLENECKS)
VARIANTS: dict[str, Variant] = {}


def variant(name: str, backbones: tuple[str, ...] = ALL, **parts: Any) -> None:
    """Registers a variant; the parts are those of `Variant`."""
    VARIANTS[name] = Variant(name, backbones, **parts)


variant("base")

# ------------------------------------------------------------------------------------------------------ the backbone


class Block(nn.Module):
    """A residual block: relu(shortcut(x) + attention(body(x)))."""

    def finish(self, at: Site, written: Site, variant: Variant) -> None:
        """Adds the attention module and the shortcut, which is a convolution where the shape changes."""
        self.attention: nn.Module | None = None
        self.downsample: nn.Module | None = None
        if variant.attention is not None:
            self.attention = variant.attention(replace(written.after(), role="attention"))
        if at.stride != 1 or at.in_channels != written.out_channels:
            shortcut = at.conv("downsample", written.out_channels, stride=at.stride)
            self.downsample = nn.Sequential(variant.pointwise(shortcut), normalisation(shortcut))

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def last_norm(self) -> nn.Module:
        """The BatchNorm that ends the body."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.attention is not None:
            out = self.attention(out)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, at: Site, planes: int, variant: Variant) -> None:
        super().__init__()
        first = at.conv("conv1", planes, 3, at.stride)
        second = first.after().conv("conv2", planes, 3)
        self.conv1, self.bn1 = variant.filter(first), variant.filter_norm(first)
        self.conv2, self.bn2 = variant.filter(second), variant.filter_norm(second)
        self.finish(at, second, variant)

    def body(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    @property
    def last_norm(self) -> nn.Module:
        return self.bn2


class Bottleneck(Block):
    """A 1x1 convolution, a strided 3x3 convolution, a 1x1 convolution to four times the planes."""

    expansion = 4

    def __init__(self, at: Site, planes: int, variant: Variant) -> None:
        super().__init__()
        width = variant.width(planes)
        first = at.conv("conv1", width)
        second = first.after().conv("conv2", width, 3, at.stride)
        third = second.after().conv("conv3", planes * self.expansion)
        self.conv1, self.bn1 = variant.pointwise(first), normalisation(first)
        self.conv2, self.bn2 = variant.filter(second), variant.filter_norm(second)
        self.conv3, self.bn3 = variant.pointwise(third), normalisation(third)
        self.finish(at, third, variant)

    def body(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))

    @property
    def last_norm(self) -> nn.Module:
        return self.bn3


#: The block and the blocks of the four stages.
BACKBONES: Mapping[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """A ResNet for images (N, 3, height, width) -> logits (N, 1000).

    Args:
        height, width: of the images. Any others will do for a variant without a part that depends on them.
    """

    def __init__(self, backbone: str, variant: Variant, height: int = 224, width: int = 224) -> None:
        super().__init__()
        block, depths = BACKBONES[backbone]
        make = variant.block or block
        at = Site(0, 0, "conv1", 3, 64, height, width, kernel_size=7, stride=2)
        self.conv1, self.bn1 = variant.stem(at), normalisation(at)
        at = replace(at.after(), stride=2).after()  # the pooling
        for stage, depth in enumerate(depths, 1):
            planes = variant.planes(64 * 2 ** (stage - 1))
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                at = replace(at, stage=stage, block=index, out_channels=planes * block.expansion, stride=stride)
                blocks.append(make(at, planes, variant))
                at = at.after()
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            behind = variant.after_stage and variant.after_stage(replace(at, role="after_stage"))
            if behind is not None:
                setattr(self, f"after{stage}", behind)
        self.fc = variant.classifier(at.out_channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the last layer reads, (N, C): the mean over all pixels."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            if hasattr(self, f"after{stage}"):
                x = getattr(self, f"after{stage}")(x)
        return x.mean((2, 3))


def build(backbone: str, name: str, height: int = 224, width: int = 224, device: str | torch.device = "cpu") -> ResNet:
    """The variant `name` of a backbone, drawn by PyTorch's defaults.

    Raises:
        ValueError: if there is none; the text says which there are.
    """
    known = [v.name for v in VARIANTS.values() if backbone in v.backbones]
    if name not in known:
        raise ValueError(f"variant: expected for {backbone} one of {', '.join(known)}, got {name!r}")
    with torch.device(device):
        return ResNet(backbone, VARIANTS[name], height, width)


# ---------------------------------------------------------------------------------------------------------- counting


@torch.no_grad()
def count_macs(network: nn.Module, height: int = 224, width: int = 224) -> Counter[str]:
    """Multiply-accumulates for one image, by kind, of a network at the device `meta`.

    Convolutions count as `conv`, nn.Linear as `linear`. Other arithmetic is declared by the module that does it, in
    `macs(x)`, given what it reads: by kind, without that of its nn.Conv2d and nn.Linear, which are counted by
    themselves. A convolution or linear layer with a method `macs` is counted by that alone. A BatchNorm counts as
    `normalisation`, two for each element, as thop and fvcore have it: to scale and to shift.
    """
    macs: Counter[str] = Counter()

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if hasattr(module, "macs"):
            macs.update(cast(Any, module).macs(inputs[0]))
        elif isinstance(module, nn.Conv2d):
            macs["conv"] += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs["linear"] += output[0].numel() * module.in_features
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            macs["normalisation"] += 2 * output[0].numel()

    counted = with_plain_operators(network).eval()
    for module in counted.modules():
        module.register_forward_hook(count)
    counted(torch.empty(1, 3, height, width, device="meta"))
    return macs


def with_plain_operators(network: N) -> N:
    """A network of the same parameters that applies filters in plain PyTorch instead of by an operator of ours.

    A module that has such an operator calls it as `operator`, and has `plain_operator`, which computes the same.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    plain = copy.deepcopy(network, cast(Any, shared))
    for module in plain.modules():
        if hasattr(module, "plain_operator"):
            module.operator = module.plain_operator
    return plain


# ---------------------------------------------------------------------------------------------------- seeded networks


@torch.no_grad()
def draw(network: nn.Module, images: Tensor, generator: torch.Generator) -> None:
    """Draws all parameters of a network that was built at the device `meta`, in float32 where the generator lives.

    As in a trained network, the scale of each BatchNorm is that of what it reads, here with `images` (N, 3, H, W), and
    a block adds little to its shortcut: a random network of full gain would amplify a rounding error in each block, by
    10^4 in fifty layers, and one whose filters are products of activations would overflow. A module with parameters of
    its own draws them in a method `draw(generator)`.
    """
    clear(network, generator.device)
    for parameter in network.parameters():
        parameter.fill_(torch.nan)  # until it is drawn, so that one left out is noticed
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in network.modules():
        if hasattr(module, "draw"):
            cast(Any, module).draw(generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fill_convolution(module, generator)
        elif module in norms:
            cast(Tensor, module.weight).normal_(1, 0.1, generator=generator)
            cast(Tensor, module.bias).normal_(0, 0.1, generator=generator)
    for module in network.modules():
        if isinstance(module, Block):
            cast(Tensor, module.last_norm.weight).mul_(0.2)

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """One variance for all channels, as the few values of one may happen to be tiny; means of a tenth of it."""
        scale = float(inputs[0].square().mean().sqrt())
        cast(Tensor, norm.running_mean).normal_(0, 0.1 * scale, generator=generator)
        cast(Tensor, norm.running_var).fill_(scale**2)

    measured = with_plain_operators(network.eval())
    for module in measured.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(measure)
    measured(images.float())
