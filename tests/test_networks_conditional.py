"""Conditional convolutions against their papers' formulas, computed in NumPy, and the figures of their networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from ops.core import networks
from ops.core.networks import conditional

Array = np.ndarray
SHAPES = [(5, 1, 1), (6, 2, 1), (7, 1, 2)]  # size, stride, dilation


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def patches(x: Array, k: int, stride: int, dilation: int) -> Array:
    """What each tap reads, (N, C, k, k, Ho, Wo), zeros outside."""
    n, c, h, w = x.shape
    ho, wo = (h - 1) // stride + 1, (w - 1) // stride + 1
    out = np.zeros((n, c, k, k, ho, wo))
    for u in range(k):
        for v in range(k):
            for y in range(ho):
                for z in range(wo):
                    row, column = y * stride + dilation * (u - k // 2), z * stride + dilation * (v - k // 2)
                    if 0 <= row < h and 0 <= column < w:
                        out[:, :, u, v, y, z] = x[:, :, row, column]
    return out


def applied(x: Array, filters: Array, stride: int, dilation: int) -> Array:
    """The filter (N, O, C/groups, k, k) of each sample applied to x."""
    read = patches(x, filters.shape[-1], stride, dilation)
    groups = x.shape[1] // filters.shape[2]
    per_group = filters.shape[1] // groups
    out = [
        np.einsum(
            "ncuv,ncuvyx->nyx", filters[:, o], read[:, o // per_group * filters.shape[2] :][:, : filters.shape[2]]
        )
        for o in range(filters.shape[1])
    ]
    return np.stack(out, 1)


def of(layer: nn.Module | None) -> tuple[Array, Array | float]:
    """Weight, as a matrix, and bias."""
    assert layer is not None
    bias = layer.bias
    return layer.weight.detach().flatten(1).numpy(), 0.0 if bias is None else bias.detach().numpy()  # type: ignore[union-attr, operator]


def affine(layer: nn.Module | None, x: Array) -> Array:
    weight, bias = of(layer)
    return x @ weight.T + bias


def condconv(module: conditional.CondConv, x: Array) -> Array:
    routing = sigmoid(affine(module.routing, x.mean((2, 3))))
    return np.einsum("ne,eocuv->nocuv", routing, module.weight.detach().numpy())


def dw_weightnet(module: conditional.DwWeightNet, x: Array) -> Array:
    activation = sigmoid(affine(module.expand, affine(module.squeeze, x.mean((2, 3)))))
    k = module.kernel_size
    return np.einsum("nc,cuv->ncuv", activation, of(module.generate)[0].reshape(-1, k, k))[:, :, None]


def dynet(module: conditional.DyNet, x: Array) -> Array:
    assert module.coefficients is not None
    predicted = affine(module.coefficients.expand, affine(module.coefficients.squeeze, x.mean((2, 3))))
    eta = sigmoid(predicted).reshape(len(x), -1, module.out_channels)
    return np.einsum("nio,iocuv->nocuv", eta, module.weight.detach().numpy())


def odconv(module: conditional.ODConv, x: Array) -> Array:
    norm, hidden = module.norm, affine(module.squeeze, x.mean((2, 3)))
    mean, variance, gain, shift = (
        t.detach().numpy() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    hidden = np.maximum(0, (hidden - mean) / np.sqrt(variance + norm.eps) * gain + shift)
    inputs, ones = sigmoid(affine(module.over_inputs, hidden)), np.ones((len(x), 1))
    outputs = ones if module.over_outputs is None else sigmoid(affine(module.over_outputs, hidden))
    taps = ones if module.over_taps is None else sigmoid(affine(module.over_taps, hidden))
    kernels = ones
    if module.over_kernels is not None:
        exponentials = np.exp(affine(module.over_kernels, hidden))
        kernels = exponentials / exponentials.sum(1, keepdims=True)
    weight = module.weight.detach().numpy()
    k = weight.shape[-1]
    taps = np.broadcast_to(taps, (len(x), k * k)).reshape(-1, k, k)
    if module.groups > 1:  # a filter of a depthwise convolution reads one channel
        return np.einsum("ni,no,nuv,iocuv->nocuv", kernels, inputs, taps, weight)
    outputs = np.broadcast_to(outputs, (len(x), weight.shape[1]))
    return np.einsum("ni,no,nc,nuv,iocuv->nocuv", kernels, outputs, inputs, taps, weight)


CONDITIONAL: list[tuple[Callable[..., nn.Module], Callable[..., Array]]] = [
    (lambda *at: conditional.CondConv(4, 6, *at), condconv),
    (lambda *at: conditional.CondConv(4, 4, *at, groups=4, experts=3), condconv),
    (lambda *at: conditional.DwWeightNet(4, 4, *at), dw_weightnet),
    (lambda *at: conditional.DyNet(4, 6, *at), dynet),
    (lambda *at: conditional.ODConv(4, 6, *at), odconv),
    (lambda *at: conditional.ODConv(4, 4, *at, groups=4, kernels=1), odconv),
]


def made(
    make: Callable[..., nn.Module], k: int, stride: int, dilation: int, size: int
) -> tuple[nn.Module, torch.Tensor]:
    """A module in float64, no parameter or statistic of which is a special value, and what it reads."""
    torch.manual_seed(k + stride)
    module = make(k, stride, dilation).double().eval()
    for tensor in module.buffers():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module, torch.randn(2, 4, size, size + 1, dtype=torch.float64)


@pytest.mark.parametrize(("make", "formula"), CONDITIONAL)
@pytest.mark.parametrize(("size", "stride", "dilation"), SHAPES)
@pytest.mark.parametrize("k", [1, 3])
def test_filters_are_the_papers_formula(
    make: Callable[..., nn.Module], formula: Callable[..., Array], k: int, size: int, stride: int, dilation: int
) -> None:
    module, x = made(make, k, stride, dilation, size)
    expected = applied(x.numpy(), formula(module, x.numpy()), stride, dilation)
    assert np.allclose(module(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("size", "stride", "dilation"), SHAPES)
def test_adaptive_kernels_are_made_of_what_they_are_applied_to(size: int, stride: int, dilation: int) -> None:
    module, x = made(lambda *at: conditional.Adaptive(4, 5, *at), 3, stride, dilation, size)
    read = patches(x.numpy(), 3, stride, dilation).reshape(2, 4, 9, *((n - 1) // stride + 1 for n in (size, size + 1)))
    kernels = np.einsum("ocji,nciyx->nocjyx", module.weight.detach().numpy(), read)
    assert np.allclose(module(x).detach().numpy(), np.einsum("nocjyx,ncjyx->noyx", kernels, read), rtol=1e-12)


def test_adaptive_kernels_are_counted_by_hand() -> None:
    module, x = made(lambda *at: conditional.Adaptive(4, 5, *at), 3, 2, 1, 6)
    taps = 2 * 3 * 4 * 5 * 4 * 9  # of 2 samples, 3 x 4 pixels, 5 x 4 kernels
    assert module.macs(x) == {"conv": 9 * taps, "dynamic_filter": taps}  # type: ignore[operator]


def test_given_coefficients_are_used() -> None:
    module = conditional.DyNet(4, 6, 3, predict=False).double()
    x, eta = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.zeros(2, 36, dtype=torch.float64)
    eta[:, 6:12] = 1  # the second filter of each output channel
    assert torch.allclose(module(x, eta), nn.functional.conv2d(x, module.weight[1], padding=1))


@pytest.mark.parametrize(("make", "formula"), CONDITIONAL)
def test_they_can_be_trained(make: Callable[..., nn.Module], formula: object) -> None:
    module, x = made(make, 3, 1, 1, 5)
    module.train()(x).square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="kernel_size: expected an odd number, got 2"):
        conditional.CondConv(4, 4, 2)
    with pytest.raises(ValueError, match="groups: expected a divisor of 4 and 6 channels, got 3"):
        conditional.CondConv(4, 6, 3, groups=3)


@pytest.mark.parametrize(
    ("backbone", "variant", "params"),
    [
        # by hand: what a ResNet50 has without its 3x3 convolutions (14,239,784), and
        ("resnet50", "condconv", 14_239_784 + 8 * 11_317_248 + 8 * 3_776 + 16 * 8),  # 8 experts and their routing
        ("resnet50", "dw_condconv", 14_239_784 + 8 * 33_984 + 8 * 3_776 + 16 * 8),
        ("resnet50", "dw_weightnet", 14_239_784 + 3 * 2_704 + 4 * 5_392 + 6 * 10_768 + 3 * 37_920),
    ],
)
def test_parameters_are_counted_by_hand(backbone: str, variant: str, params: int) -> None:
    network = networks.build(backbone, variant, device="meta")
    assert sum(p.numel() for p in network.parameters()) == params


@pytest.mark.parametrize(("backbone", "millions"), [("resnet18", 44.90), ("resnet50", 90.67)])
def test_odconv_networks_have_the_parameters_of_their_paper(backbone: str, millions: float) -> None:
    """Table 1 of the paper, four kernels."""
    network = networks.build(backbone, "odconv", device="meta")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
