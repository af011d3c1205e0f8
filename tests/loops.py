"""Every operator in float64 loops over samples and pixels, from its definition, sharing no code with `ops/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ops import Inputs, Point

Array = np.ndarray[Any, np.dtype[np.float64]]


def patch(features: Array, point: Point, y: int, x: int) -> Array:
    """(C, H, W) -> what the taps read for the output (y, x), (C, k*k), zero outside."""
    k, height, width = point.kernel_size, features.shape[1], features.shape[2]
    read = np.zeros((len(features), k * k))
    for j in range(k * k):
        row = y * point.stride + point.dilation * (j // k - k // 2)
        column = x * point.stride + point.dilation * (j % k - k // 2)
        if 0 <= row < height and 0 <= column < width:
            read[:, j] = features[:, row, column]
    return read


def apply(features: Array, point: Point, filter_at: Callable[[int, int, int], Array]) -> Array:
    """Applies at each output the filter that `filter_at(n, y, x)` gives, (C, k*k) depthwise or (C, C, k*k) dense."""
    n, c, h, w = features.shape
    out = np.zeros((n, c, -(-h // point.stride), -(-w // point.stride)))
    for i, _, y, x in np.ndindex(n, 1, *out.shape[2:]):
        weighted = filter_at(i, y, x) * patch(features[i], point, y, x)
        out[i, :, y, x] = weighted.reshape(c, -1).sum(1)
    return out


def ddf(features: Array, channel: Array, spatial: Array, point: Point) -> Array:
    """Decoupled dynamic filters; `spatial` (N, head*k*k, Ho, Wo) gives each group of channels its own."""
    c = features.shape[1]
    head = spatial.shape[1] // point.taps

    def filter_at(i: int, y: int, x: int) -> Array:
        s = spatial[i, :, y, x].reshape(head, 1, point.taps)
        f = channel[i].reshape(head, c // head, point.taps)
        return (s * f if point.combine == "mul" else s + f).reshape(c, point.taps)

    return apply(features, point, filter_at)


def normalised(filters: Array) -> Array:
    """FilterNorm over the last dimension, without its factor."""
    centred = filters - filters.mean(-1, keepdims=True)
    return centred / (np.sqrt((centred**2).sum(-1, keepdims=True) / (filters.shape[-1] - 1)) + 1e-10)


def filters_of_pack(features: Array, parameters: dict[str, Array], point: Point) -> tuple[Array, Array]:
    """The channel filter (N, C, k*k) and spatial filter (N, head*k*k, Ho, Wo) that a DDFPack predicts."""
    s = point.stride
    predict = parameters["spatial_branch.0.weight"][:, :, 0, 0]
    raw = np.einsum("oc,nchw->nhwo", predict, features[:, :, ::s, ::s]) + parameters["spatial_branch.0.bias"]
    by_filter = raw.reshape(*raw.shape[:3], -1, point.taps)
    spatial = (normalised(by_filter) * np.sqrt(2) / point.kernel_size).reshape(raw.shape).transpose(0, 3, 1, 2)
    squeeze, excite = parameters["channel_branch.1.weight"][..., 0, 0], parameters["channel_branch.3.weight"][..., 0, 0]
    hidden = np.maximum(features.mean((2, 3)) @ squeeze.T + parameters["channel_branch.1.bias"], 0)
    raw = (hidden @ excite.T + parameters["channel_branch.3.bias"]).reshape(len(features), -1, point.taps)
    return normalised(raw) * parameters["channel_branch.4.std"].reshape(-1, point.taps), spatial


def expected(name: str, inputs: Inputs, point: Point) -> Array:
    """What the op of that name has to give for float64 inputs."""
    arrays = {key: tensor.detach().numpy() for key, tensor in inputs.leaves().items()}
    x, c, taps, s = arrays["features"], point.channels, point.taps, point.stride
    if name in ("conv", "dwconv"):
        weight = arrays["weight"].reshape(c, -1, taps) if name == "conv" else arrays["weight"].reshape(c, taps)
        return apply(x, point, lambda n, y, x: weight) + arrays["bias"][:, None, None]
    if name in ("dyfilter", "dyfilter_dw"):
        shape = (c, c, taps) if name == "dyfilter" else (c, taps)
        weight = arrays["weight"][:, :, 0, 0]
        return apply(x, point, lambda n, row, column: (weight @ x[n, :, row * s, column * s]).reshape(shape))
    if name == "ddf_op":
        return ddf(x, arrays["channel_filter"].reshape(*x.shape[:2], taps), arrays["spatial_filter"], point)
    if name == "ddf":
        return ddf(x, *filters_of_pack(x, arrays, point), point)
    raise ValueError(f"no loops for {name}")
