"""Convolutions whose filter depends on the input, drop-ins for nn.Conv2d, and the networks made of them.

Each is from its own paper. All are padded by `dilation * (k-1)/2` and have no bias, as a BatchNorm follows. `macs`
declares what they compute beside their nn.Conv2d and nn.Linear: `conv` or `dynamic_filter` is the application of the
filter, `mixing` what it takes to mix it from learned ones, which most papers leave out of their FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..taps import windows
from .resnet import BOTTLENECKS, Block, Part, Site, Variant, convolution, normalisation, variant


def convolve_samples(x: Tensor, filters: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
    """Convolves each sample with a filter of its own.

    Args:
        x: (N, C, H, W).
        filters: (N, out_channels, C/groups, k, k).

    Returns:
        (N, out_channels, Ho, Wo), Ho = floor((H-1)/stride)+1.
    """
    n, _, h, w = x.shape
    padding = dilation * (filters.shape[-1] - 1) // 2
    out = F.conv2d(x.reshape(1, -1, h, w), filters.flatten(0, 1), None, stride, padding, dilation, groups=n * groups)
    return out.unflatten(1, (n, -1)).squeeze(0)


class Conditional(nn.Module):
    """What these convolutions share: their shape, learned filters of it, and what their application takes.

    Args:
        groups: as in nn.Conv2d.
        filters: how many learned filters there are.

    Raises:
        ValueError: if an argument does not fit; the text names it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        filters: int = 0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups: expected a divisor of {in_channels} and {out_channels} channels, got {groups}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.groups = groups
        self.shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        if filters:
            self.weight = nn.Parameter(torch.empty(filters, *self.shape))
            self.draw(None)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Draws the learned filters; inputs of unit variance give outputs of about that."""
        if "weight" in self._parameters:
            self.weight.normal_(0, self.weight[0, 0].numel() ** -0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, Ho, Wo)."""
        return self.convolve(x, self.filters(x))

    def filters(self, x: Tensor) -> Tensor:
        """The filter of each sample, (N, *shape)."""
        raise NotImplementedError

    def convolve(self, x: Tensor, filters: Tensor) -> Tensor:
        """Applies the filter of each sample, (N, *shape)."""
        return convolve_samples(x, filters, self.stride, self.dilation, self.groups)

    def macs(self, x: Tensor) -> dict[str, int]:
        """See `count_macs`."""
        pixels = x[:, 0, :: self.stride, :: self.stride].numel()
        size = torch.Size(self.shape).numel()
        application = {"conv": pixels * size}
        if "weight" not in self._parameters:
            return application
        return {**application, "mixing": self.weight.numel() * len(x)}


class CondConv(Conditional):
    """Conditionally parameterized convolution (Yang et al., NeurIPS 2019).

    filter = sum_e r_e W_e with the routing r = sigmoid(R mean(x) + b), R (experts, in_channels); 8 experts, the most of
    the paper's ImageNet models. Sigmoid, not softmax, as there (section 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        experts: int = 8,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, filters=experts)
        self.routing = nn.Linear(in_channels, experts)

    def filters(self, x: Tensor) -> Tensor:
        routing = self.routing(x.mean((2, 3))).sigmoid()
        return (routing @ self.weight.flatten(1)).unflatten(1, self.shape)


class DwWeightNet(Conditional):
    """WeightNet for a depthwise convolution (Ma et al., ECCV 2020).

    filter = G sigmoid(E (R mean(x) + a) + b): R squeezes to max(16, C/16) channels, E expands to M/G C of them, and G
    is grouped, M/G of these for the k*k taps of each channel, without bias. M/G = 1, as in the authors' code (M = G =
    2); each convolution has its own R.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups=in_channels)
        squeezed = max(16, in_channels // 16)
        self.squeeze = nn.Linear(in_channels, squeezed)
        self.expand = nn.Linear(squeezed, out_channels)
        self.generate = nn.Conv2d(out_channels, out_channels * kernel_size**2, 1, groups=out_channels, bias=False)

    def filters(self, x: Tensor) -> Tensor:
        activation = self.expand(self.squeeze(x.mean((2, 3)))).sigmoid()
        return self.generate(activation[:, :, None, None]).view(-1, *self.shape)


class Coefficients(nn.Module):
    """The coefficient prediction of DyNet, (N, in_channels, H, W) -> (N, count): sigmoid(B A mean(x)).

    Two linear layers, as in Dy-ResNet (section 3.3), A to in_channels/4, nothing between them.
    """

    def __init__(self, in_channels: int, count: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(in_channels, max(1, in_channels // 4))
        self.expand = nn.Linear(max(1, in_channels // 4), count)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.squeeze(x.mean((2, 3)))).sigmoid()


class DyNet(Conditional):
    """The dynamic convolution of DyNet (Zhang et al., 2020, arXiv 2004.10694).

    filter[t] = sum_i eta[t,i] W[t,i]: each output channel t mixes `group_size` (g_t, 6 in the paper) filters of its own
    by coefficients eta, which `Coefficients` predicts from the input of the convolution, or of the block it stands in.

    Args:
        predict: whether it predicts its coefficients; else they are given to `forward`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        group_size: int = 6,
        predict: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, filters=group_size)
        self.count = group_size * out_channels
        self.coefficients = Coefficients(in_channels, self.count) if predict else None

    def forward(self, x: Tensor, coefficients: Tensor | None = None) -> Tensor:
        """(N, in_channels, H, W) and coefficients (N, g_t * out_channels) -> (N, out_channels, Ho, Wo)."""
        if coefficients is None:
            assert self.coefficients is not None
            coefficients = self.coefficients(x)
        eta = coefficients.unflatten(1, (-1, self.out_channels)).permute(2, 0, 1)  # a product for each output channel
        filters = torch.bmm(eta, self.weight.flatten(2).transpose(0, 1)).transpose(0, 1)
        return self.convolve(x, filters.unflatten(2, self.shape[1:]))


class Adaptive(nn.Module):
    """Adaptive convolutional kernels (Zamora Esquivel et al., ICCV workshop on neural architects 2019).

    The input defines the weights of a kernel at each pixel, which is applied to the input once more:
    out[o] = sum_{c,j} K[o,c,j] x[c, at tap j], K[o,c,j] = sum_i Q[o,c,j,i] x[c, at tap i], j and i over k x k taps.
    A weight of the kernel reads the channel that it is applied to: read from all, each convolution would have
    in_channels k^2 times the parameters. As both read the same taps, the sum is computed as a 1x1 convolution of the
    products of any two taps, which spares memory and not arithmetic.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size**2, kernel_size**2))
        self.draw(None)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Draws Q; inputs of unit variance give outputs of about that."""
        self.weight.normal_(0, self.weight[0].numel() ** -0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, Ho, Wo)."""
        taps = torch.stack(list(windows(x, self.kernel_size, self.stride, self.dilation)), 2)
        products = (taps[:, :, :, None] * taps[:, :, None]).flatten(1, 3)
        return F.conv2d(products, self.weight.flatten(1)[:, :, None, None])

    def macs(self, x: Tensor) -> dict[str, int]:
        """Kernels generated, k^2 for each weight, and applied."""
        applied = x[:, 0, :: self.stride, :: self.stride].numel() * self.weight[:, :, 0].numel()
        return {"conv": applied * self.kernel_size**2, "dynamic_filter": applied}


class ODConv(Conditional):
    """Omni-dimensional dynamic convolution (Li et al., ICLR 2022).

    filter = sum_i a_w[i] (a_f a_c a_s W_i), attentions over kernels i (softmax), output channels, input channels and
    taps (sigmoid), predicted from relu(norm(A mean(x))), A to max(16, in_channels/16) without bias. The attentions
    other than a_w are shared by the kernels and there is a BatchNorm, as in the authors' code; a depthwise filter has
    no a_f, a 1x1 filter no a_s, a single kernel no a_w. 4 kernels; 1 is the paper's light version.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        kernels: int = 4,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups, filters=kernels)
        hidden = max(16, in_channels // 16)
        self.squeeze = nn.Linear(in_channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        depthwise = groups == in_channels == out_channels
        self.over_inputs = nn.Linear(hidden, in_channels)
        self.over_outputs = None if depthwise else nn.Linear(hidden, out_channels)
        self.over_taps = nn.Linear(hidden, kernel_size**2) if kernel_size > 1 else None
        self.over_kernels = nn.Linear(hidden, kernels) if kernels > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, Ho, Wo)."""
        hidden = self.hidden(x)
        out = self.convolve(x * self.over_inputs(hidden).sigmoid()[:, :, None, None], self.mixed(hidden))
        if self.over_outputs is not None:
            out = out * self.over_outputs(hidden).sigmoid()[:, :, None, None]
        return out

    def filters(self, x: Tensor) -> Tensor:
        """Without the attentions over channels, which scale what is read and written instead."""
        return self.mixed(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """What all attentions are predicted from."""
        return F.relu(self.norm(self.squeeze(x.mean((2, 3)))))

    def mixed(self, hidden: Tensor) -> Tensor:
        filters: Tensor = self.weight
        if self.over_kernels is None:
            filters = filters.expand(len(hidden), *self.shape)
        else:
            filters = (self.over_kernels(hidden).softmax(1) @ filters.flatten(1)).unflatten(1, self.shape)
        if self.over_taps is not None:
            filters = filters * self.over_taps(hidden).sigmoid().view(-1, 1, 1, *self.shape[2:])
        return filters


# ---------------------------------------------------------------------------------------------------------- networks


class DynamicBlock(Block):
    """The block of Dy-ResNet: its convolutions are dynamic, all their coefficients predicted from what it reads.

    Their output channels are halved in number (section 3.3), and with them the block's: its variant has half the
    planes. Stem, shortcuts and classifier are plain.
    """

    def __init__(self, at: Site, planes: int, variant: Variant) -> None:
        super().__init__()
        if at.out_channels == planes:
            first = at.conv("conv1", planes, 3, at.stride)
            sites = [first, first.after().conv("conv2", planes, 3)]
        else:
            first = at.conv("conv1", planes)
            second = first.after().conv("conv2", planes, 3, at.stride)
            sites = [first, second, second.after().conv("conv3", at.out_channels)]
        self.convs = nn.ModuleList(
            DyNet(s.in_channels, s.out_channels, s.kernel_size, s.stride, predict=False) for s in sites
        )
        self.norms = nn.ModuleList(map(normalisation, sites))
        self.counts = [6 * s.out_channels for s in sites]
        self.coefficients = Coefficients(at.in_channels, sum(self.counts))
        self.finish(at, sites[-1], variant)

    def body(self, x: Tensor) -> Tensor:
        coefficients = self.coefficients(x).split(self.counts, 1)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(F.relu(x) if index else x, coefficients[index]))
        return x

    @property
    def last_norm(self) -> nn.Module:
        return self.norms[-1]


def like(make: Callable[..., nn.Module], **settings: int) -> Part:
    """The part that `make` makes at a site."""
    return lambda at: make(at.in_channels, at.out_channels, at.kernel_size, at.stride, **settings)


def depthwise(make: Callable[..., nn.Module]) -> Part:
    return lambda at: make(at.in_channels, at.out_channels, at.kernel_size, at.stride, groups=at.in_channels)


def but_shortcuts(make: Part) -> Part:
    """The same, shortcuts left plain."""
    return lambda at: convolution(at) if at.role == "downsample" else make(at)


variant("condconv", filter=like(CondConv))
variant("dw_condconv", BOTTLENECKS, filter=depthwise(CondConv))
variant("dw_weightnet", BOTTLENECKS, filter=like(DwWeightNet))
variant("dynet", block=DynamicBlock, planes=lambda planes: planes // 2)
variant("adaptive", ("resnet18",), filter=like(Adaptive))
variant("odconv", filter=like(ODConv), pointwise=but_shortcuts(like(ODConv)))
