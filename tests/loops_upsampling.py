"""Every op that upsamples in float64 loops over its outputs, from its definition, sharing no code with `ops/`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ops import Inputs, Point

Array = np.ndarray[Any, np.dtype[np.float64]]


def interpolated(image: Array, row: float, column: float) -> Array:
    """(C, H, W) -> (C) at a place, constant beyond the border: all pixels, weighed by how near they are."""
    h, w = image.shape[1:]
    near_rows = np.maximum(1 - abs(min(max(row, 0), h - 1) - np.arange(h)), 0)
    near_columns = np.maximum(1 - abs(min(max(column, 0), w - 1) - np.arange(w)), 0)
    return np.einsum("h,chw,w->c", near_rows, image, near_columns)


def near(image: Array, y: int, x: int, k: int) -> Array:
    """(C, H, W) -> the k x k pixels around one, (C, k*k), zero outside."""
    read = np.zeros((len(image), k * k))
    for j in range(k * k):
        row, column = y + j // k - k // 2, x + j % k - k // 2
        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
            read[:, j] = image[:, row, column]
    return read


def filtered(x: Array, filters: Array, k: int, scale: int) -> Array:
    """Filters (N, scale^2 * k*k, H, W), branch by branch."""
    out = np.zeros((*x.shape[:2], x.shape[2] * scale, x.shape[3] * scale))
    for n, _, row, column in np.ndindex(len(x), 1, *out.shape[2:]):
        y, z, branch = row // scale, column // scale, row % scale * scale + column % scale
        own = filters[n, branch * k * k : (branch + 1) * k * k, y, z]
        out[n, :, row, column] = near(x[n], y, z, k) @ own
    return out


def carafe(x: Array, arrays: dict[str, Array], k: int, scale: int) -> Array:
    compressed = np.einsum("oi,nihw->nohw", arrays["compress.weight"][:, :, 0, 0], x)
    compressed = compressed + arrays["compress.bias"][:, None, None]
    weight, bias = arrays["encode.weight"], arrays["encode.bias"]
    filters = np.zeros((len(x), len(bias), *x.shape[2:]))
    for n, _, row, column in np.ndindex(len(x), 1, *x.shape[2:]):
        read = near(compressed[n], row, column, weight.shape[2])
        powers = np.exp(np.einsum("oij,ij->o", weight.reshape(*weight.shape[:2], -1), read) + bias).reshape(-1, k * k)
        filters[n, :, row, column] = (powers / powers.sum(1, keepdims=True)).reshape(-1)
    return filtered(x, filters, k, scale)


def dysample(x: Array, arrays: dict[str, Array], scale: int) -> Array:
    n, c, h, w = x.shape
    weight, bias = arrays["offset.weight"][:, :, 0, 0], arrays["offset.bias"]
    groups = len(bias) // (2 * scale**2)
    out = np.zeros((n, c, h * scale, w * scale))
    for i, group, row, column in np.ndindex(n, groups, h * scale, w * scale):
        branch = row % scale * scale + column % scale
        raw = (weight @ x[i, :, row // scale, column // scale] + bias).reshape(groups, 2, -1)[group, :, branch] / 4
        channels = slice(group * c // groups, (group + 1) * c // groups)
        at = (row + 0.5) / scale - 0.5 + raw[0], (column + 0.5) / scale - 0.5 + raw[1]
        out[i, channels, row, column] = interpolated(x[i, channels], *at)
    return out


def transposed(x: Array, weight: Array, scale: int, padding: int, guide: Array | None = None) -> Array:
    """Each pixel adds to the outputs around it; with a guide, to each by how alike it is to the pixel's own."""
    n, _, h, w = x.shape
    k = weight.shape[2]
    out = np.zeros((n, weight.shape[1], h * scale, w * scale))
    for i, y, z, dy, dx in np.ndindex(n, h, w, k, k):
        row, column = y * scale + dy - padding, z * scale + dx - padding
        if 0 <= row < h * scale and 0 <= column < w * scale:
            alike = 1.0
            if guide is not None:
                alike = np.exp(-((guide[i, :, row, column] - guide[i, :, y * scale, z * scale]) ** 2).sum() / 2)
            out[i, :, row, column] += alike * (x[i, :, y, z] @ weight[:, :, dy, dx])
    return out


def subpixel(x: Array, weight: Array, bias: Array, k: int, scale: int) -> Array:
    n, c, h, w = x.shape
    out = np.zeros((n, c, h * scale, w * scale))
    for i, channel, row, column in np.ndindex(*out.shape):
        o = channel * scale**2 + row % scale * scale + column % scale
        read = near(x[i], row // scale, column // scale, k)
        out[i, channel, row, column] = (weight[o].reshape(c, -1) * read).sum() + bias[o]
    return out


def joint_bilateral(x: Array, guide: Array, k: int, scale: int) -> Array:
    n, c, h, w = x.shape
    out = np.zeros((n, c, h * scale, w * scale))
    for i, _, row, column in np.ndindex(n, 1, h * scale, w * scale):
        total, terms = 0.0, np.zeros(c)
        place = np.array([row + 0.5, column + 0.5]) / scale - 0.5
        for j in range(k * k):
            q = row // scale + j // k - k // 2, column // scale + j % k - k // 2
            if 0 <= q[0] < h and 0 <= q[1] < w:
                mean = guide[i, :, q[0] * scale :, q[1] * scale :][:, :scale, :scale].mean((1, 2))
                unlike = ((guide[i, :, row, column] - mean) ** 2).sum()
                weight = np.exp(-((place - q) ** 2).sum() / (2 * 0.5**2) - unlike / 2)
                total, terms = total + weight, terms + weight * x[i, :, q[0], q[1]]
        out[i, :, row, column] = terms / total
    return out


def expected(name: str, inputs: Inputs, point: Point) -> Array:
    """What the op of that name has to give for float64 inputs."""
    arrays = {key: tensor.detach().numpy() for key, tensor in inputs.leaves().items()}
    x, k, scale = arrays["features"], point.kernel_size, int(point.extra.get("scale", 2))
    if name == "bilinear":
        out = np.zeros((*x.shape[:2], x.shape[2] * scale, x.shape[3] * scale))
        for n, _, row, column in np.ndindex(len(x), 1, *out.shape[2:]):
            out[n, :, row, column] = interpolated(x[n], (row + 0.5) / scale - 0.5, (column + 0.5) / scale - 0.5)
        return out
    if name in ("transposed_conv", "pac_up"):
        padding = scale if name == "pac_up" else scale // 2
        return transposed(x, arrays["weight"], scale, padding, arrays.get("guide")) + arrays["bias"][:, None, None]
    if name == "subpixel_conv":
        return subpixel(x, arrays["0.weight"], arrays["0.bias"], k, scale)
    if name == "carafe_op":
        return filtered(x, arrays["filters"], k, scale)
    if name == "carafe":
        return carafe(x, arrays, k, scale)
    if name == "dysample":
        return dysample(x, arrays, scale)
    if name == "joint_bilateral":
        return joint_bilateral(x, arrays["guide"], k, scale)
    raise ValueError(f"no loops for {name}")
