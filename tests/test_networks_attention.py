"""Borrowed blocks against their papers' formulas, computed in float64 NumPy, element by element where it matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ops.core.networks import attention, augmented, branches, ddf, involution
from ops.core.networks.resnet import Site, convolution

Array = np.ndarray
AT = Site(3, 1, "conv2", 32, 32, 6, 5, 3)


def seeded(module: nn.Module) -> nn.Module:
    """In eval mode and float64, every parameter and statistic drawn."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.5, generator=generator)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.2)
    return module


def drawn(at: Site, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, at.in_channels, at.height, at.width, dtype=torch.float64, generator=generator)


def holds(module: nn.Module, formula: Callable[[Array], Array], at: Site = AT) -> None:
    x = drawn(at)
    with torch.no_grad():
        got = seeded(module)(x).numpy()
    expected = formula(x.numpy())
    assert got.shape == expected.shape
    assert np.allclose(got, expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def weight(layer: nn.Module) -> Array:
    return layer.weight.detach().numpy()


def dense(layer: nn.Module, x: Array) -> Array:
    """A fully connected layer on the last dimension."""
    return x @ weight(layer).T + (0 if layer.bias is None else layer.bias.detach().numpy())


def norm(layer: nn.Module, x: Array) -> Array:
    """BatchNorm on dimension 1."""
    names = ("running_mean", "running_var", "weight", "bias")
    shape = (-1, *(1 for _ in x.shape[2:]))
    mean, variance, scale, shift = (getattr(layer, name).detach().numpy().reshape(shape) for name in names)
    return (x - mean) / np.sqrt(variance + layer.eps) * scale + shift


def conv(layer: nn.Module, x: Array, padding: int = 0, stride: int = 1, dilation: int = 1) -> Array:
    """A convolution, output by output."""
    w = weight(layer)
    o, i, kh, kw = w.shape
    groups = x.shape[1] // i
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height = (padded.shape[2] - dilation * (kh - 1) - 1) // stride + 1
    width = (padded.shape[3] - dilation * (kw - 1) - 1) // stride + 1
    out = np.zeros((len(x), o, height, width))
    for y in range(height):
        for z in range(width):
            rows = slice(y * stride, y * stride + dilation * (kh - 1) + 1, dilation)
            columns = slice(z * stride, z * stride + dilation * (kw - 1) + 1, dilation)
            read = padded[:, :, rows, columns].reshape(len(x), groups, i, kh, kw)
            out[:, :, y, z] = np.einsum("ngiuv,goiuv->ngo", read, w.reshape(groups, -1, i, kh, kw)).reshape(len(x), o)
    if layer.bias is not None:
        out += layer.bias.detach().numpy()[:, None, None]
    return out


def averaged(x: Array, stride: int) -> Array:
    """Means of 3x3 pixels, zeros outside counted."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = range(0, x.shape[2], stride), range(0, x.shape[3], stride)
    return np.stack([np.stack([padded[:, :, y : y + 3, z : z + 3].mean((2, 3)) for z in columns], 2) for y in rows], 2)


# ------------------------------------------------------------------------------------------------- attention modules


def test_squeeze_excite() -> None:
    at = replace(AT, in_channels=128)  # eight hidden units: of two, ReLU may leave none
    module = attention.SqueezeExcite(at)
    first, _, second = module.excite

    def formula(x: Array) -> Array:
        return x * sigmoid(dense(second, relu(dense(first, x.mean((2, 3))))))[:, :, None, None]

    holds(module, formula, at)


@pytest.mark.parametrize(("learned", "excite"), [(False, False), (True, False), (True, True)])
def test_gather_excite(learned: bool, excite: bool) -> None:
    module = attention.GatherExcite(AT, learned, excite)

    def formula(x: Array) -> Array:
        gathered = x.mean((2, 3))
        if learned:
            convolve, normalise = module.gather
            gathered = norm(normalise, (x * weight(convolve)[:, 0]).sum((2, 3)))
        if excite:
            assert module.excite is not None
            _, first, _, second = module.excite
            gathered = dense(second, relu(dense(first, relu(gathered))))
        return x * sigmoid(gathered)[:, :, None, None]

    holds(module, formula)


def test_cbam() -> None:
    module = attention.CBAM(AT)
    first, _, second = module.channels
    convolve, normalise = module.pixels

    def formula(x: Array) -> Array:
        gate = sum(dense(second, relu(dense(first, pooled))) for pooled in (x.mean((2, 3)), x.max((2, 3))))
        x = x * sigmoid(gate)[:, :, None, None]
        return x * sigmoid(norm(normalise, conv(convolve, np.stack([x.max(1), x.mean(1)], 1), padding=3)))

    holds(module, formula)


def test_bam() -> None:
    module = attention.BAM(AT)
    first, normalise, _, second = module.channels
    reduce, n0, _, dilated1, n1, _, dilated2, n2, _, last = module.pixels

    def formula(x: Array) -> Array:
        channels = dense(second, relu(norm(normalise, dense(first, x.mean((2, 3))))))
        pixels = relu(norm(n0, conv(reduce, x)))
        for convolve, n in ((dilated1, n1), (dilated2, n2)):
            pixels = relu(norm(n, conv(convolve, pixels, padding=4, dilation=4)))
        return x * (1 + sigmoid(channels[:, :, None, None] * conv(last, pixels)))

    holds(module, formula)


# ----------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize("stride", [1, 2])
def test_attention_augmented(stride: int) -> None:
    at = replace(AT, stride=stride)
    module = augmented.AttentionAugmented(at)
    holds(module, lambda x: np.concatenate([conv(module.conv, x, 1, stride), attend(module, x, stride)], 1), at)


def test_attention_augmented_at_half_the_resolution() -> None:
    at = replace(AT, height=8, width=8)
    module = augmented.AttentionAugmented(at, pooled=True)

    def formula(x: Array) -> Array:
        attended = doubled(doubled(attend(module, averaged(x, 2), 1), 2), 3)
        return np.concatenate([conv(module.conv, x, 1), attended], 1)

    holds(module, formula, at)


def attend(module: augmented.AttentionAugmented, x: Array, stride: int) -> Array:
    """Pixel by pixel and head by head, logits from differences of places."""
    predicted = conv(module.predict, x, stride=stride)
    n, _, height, width = predicted.shape
    rows, columns = module.rows.detach().numpy(), module.columns.detach().numpy()
    d, e = module.key, module.value
    places = [(y, z) for y in range(height) for z in range(width)]
    out = np.zeros((n, augmented.HEADS * e, height, width))
    for head in range(augmented.HEADS):
        mine = predicted[:, head * (2 * d + e) : (head + 1) * (2 * d + e)]
        q, k, v = mine[:, :d], mine[:, d : 2 * d], mine[:, 2 * d :]
        for y, z in places:
            keys = [k[:, :, r, c] + rows[r - y + height - 1] + columns[c - z + width - 1] for r, c in places]
            logits = np.einsum("nd,pnd->np", q[:, :, y, z], np.stack(keys)) / np.sqrt(d)
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            values = np.stack([v[:, :, r, c] for r, c in places])
            out[:, head * e : (head + 1) * e, y, z] = np.einsum("np,pne->ne", shares, values)
    return conv(module.mix, out)


def doubled(x: Array, axis: int) -> Array:
    """Linear interpolation to twice as many pixels, at quarters between their centres."""
    x = np.moveaxis(x, axis, -1)
    before, after = np.concatenate([x[..., :1], x[..., :-1]], -1), np.concatenate([x[..., 1:], x[..., -1:]], -1)
    out = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], -1).reshape(*x.shape[:-1], -1)
    return np.moveaxis(out, -1, axis)


@pytest.mark.parametrize(("block", "stride"), [(0, 1), (0, 2), (1, 1)])
def test_res2net(block: int, stride: int) -> None:
    at = replace(AT, block=block, stride=stride)
    module = branches.Hierarchy(at, scale=4)

    def formula(x: Array) -> Array:
        outs: list[Array] = []
        for i, (convolve, normalise, _) in enumerate(module.filters):
            part = x[:, 8 * i : 8 * i + 8]
            read = part + outs[-1] if i and block else part
            outs.append(relu(norm(normalise, conv(convolve, read, 1, stride))))
        return np.concatenate([*outs, x[:, 24:] if block else averaged(x[:, 24:], stride)], 1)

    holds(module, formula, at)


def test_resnext() -> None:
    module = convolution(AT, groups=8)

    def formula(x: Array) -> Array:
        groups = [
            np.einsum("nitz,oitz->no", x[:, 4 * g : 4 * g + 4, 1:4, 1:4], weight(module)[4 * g : 4 * g + 4])
            for g in range(8)
        ]
        return np.concatenate(groups, 1)

    x = drawn(AT)
    with torch.no_grad():
        got = seeded(module)(x)[:, :, 2, 2].numpy()
    assert np.allclose(got, formula(x.numpy()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_involution(kernel_size: int, stride: int) -> None:
    at = replace(AT, stride=stride, height=6, width=4)
    module = involution.Involution(32, kernel_size, stride)

    def formula(x: Array) -> Array:
        read = x.reshape(2, 32, 6 // stride, stride, 4 // stride, stride).mean((3, 5))
        filters = conv(module.span, relu(norm(module.reduce[1], conv(module.reduce[0], read))))
        filters = filters.reshape(2, 2, kernel_size, kernel_size, *filters.shape[2:])
        out, reach = np.zeros((2, 32, 6 // stride, 4 // stride)), kernel_size // 2
        padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        for c in range(32):
            for y in range(out.shape[2]):
                for z in range(out.shape[3]):
                    window = padded[:, c, y * stride :, z * stride :][:, :kernel_size, :kernel_size]
                    out[:, c, y, z] = (filters[:, c // 16, :, :, y, z] * window).sum((1, 2))
        return out

    holds(module, formula, at)


def test_involution_of_an_odd_size_has_the_size_of_a_convolution() -> None:
    at = replace(AT, stride=2, height=7, width=5)
    assert involution.Involution(32, stride=2)(drawn(at).float()).shape[2:] == (4, 3)


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("stride", [1, 2])
def test_ddf(combine: str, stride: int) -> None:
    at = replace(AT, stride=stride)
    module = ddf.DDF(at, combine)
    predict = module.spatial_branch[0]
    _, squeeze, _, excite, channel_norm = module.channel_branch

    def standardised(taps: Array) -> Array:
        return (taps - taps.mean(2, keepdims=True)) / (taps.std(2, ddof=1, keepdims=True) + 1e-10)

    def formula(x: Array) -> Array:
        spatial = standardised(conv(predict, x, stride=stride)[:, None])[:, 0] * np.sqrt(2) / 3
        hidden = relu(conv(squeeze, x.mean((2, 3), keepdims=True)))
        channel = standardised(conv(excite, hidden).reshape(2, 32, 9)) * channel_norm.std.detach().numpy().reshape(
            32, 9
        )
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        out = np.zeros((2, 32, *spatial.shape[2:]))
        for y in range(out.shape[2]):
            for z in range(out.shape[3]):
                at_pixel, of_channel = spatial[:, None, :, y, z], channel
                combined = at_pixel * of_channel if combine == "mul" else at_pixel + of_channel
                window = padded[:, :, y * stride : y * stride + 3, z * stride : z * stride + 3].reshape(2, 32, 9)
                out[:, :, y, z] = (combined * window).sum(2)
        return out

    holds(module, formula, at)
