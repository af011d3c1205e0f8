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


def pooled(features: Array, stride: int) -> Array:
    """Means over stride x stride pixels, fewer at the far borders."""
    n, c, h, w = features.shape
    out = np.zeros((n, c, -(-h // stride), -(-w // stride)))
    for y, x in np.ndindex(*out.shape[2:]):
        out[:, :, y, x] = features[:, :, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride].mean((2, 3))
    return out


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def involution(x: Array, arrays: dict[str, Array], point: Point) -> Array:
    """The statistics of its BatchNorm under `mean` and `variance`."""
    c = point.channels
    group = max(g for g in (1, 2, 4, 8, 16) if c % g == 0)
    raw = np.einsum("oc,nchw->nohw", arrays["reduce.0.weight"][:, :, 0, 0], pooled(x, point.stride))
    scale = arrays["reduce.1.weight"] / np.sqrt(arrays["variance"] + 1e-5)
    shift = arrays["reduce.1.bias"] - arrays["mean"] * scale
    hidden = np.maximum(raw * scale[:, None, None] + shift[:, None, None], 0)
    weight, bias = arrays["span.weight"][:, :, 0, 0], arrays["span.bias"]

    def filter_at(n: int, y: int, x: int) -> Array:
        return np.repeat((weight @ hidden[n, :, y, x] + bias).reshape(-1, point.taps), group, 0)

    return apply(x, point, filter_at)


def conditional(name: str, x: Array, arrays: dict[str, Array], point: Point) -> Array:
    """`dw_weightnet`, `condconv` and `odconv`; the statistics of a BatchNorm under `mean` and `variance`."""
    c, taps, means = point.channels, point.taps, x.mean((2, 3))

    def linear(layer: str, read: Array) -> Array:
        return read @ arrays[f"{layer}.weight"].T + arrays.get(f"{layer}.bias", 0)

    if name == "dw_weightnet":
        activation = sigmoid(linear("expand", linear("squeeze", means)))
        filters = activation[:, :, None] * arrays["generate.weight"].reshape(c, taps)
        return apply(x, point, lambda n, row, column: filters[n])
    weight = arrays["weight"].reshape(-1, c, c, taps)
    if name == "condconv":
        filters = np.einsum("ne,eoit->noit", sigmoid(linear("routing", means)), weight)
        return apply(x, point, lambda n, row, column: filters[n])
    normed = (linear("squeeze", means) - arrays["mean"]) / np.sqrt(arrays["variance"] + 1e-5)
    hidden = np.maximum(normed * arrays["norm.weight"] + arrays["norm.bias"], 0)
    filters = np.einsum("ne,eoit->noit", softmax(linear("over_kernels", hidden)), weight)
    filters = filters * sigmoid(linear("over_inputs", hidden))[:, None, :, None]
    if taps > 1:
        filters = filters * sigmoid(linear("over_taps", hidden))[:, None, None, :]
    if c > 1:
        filters = filters * sigmoid(linear("over_outputs", hidden))[:, :, None, None]
    return apply(x, point, lambda n, row, column: filters[n])


def pac(x: Array, guide: Array, arrays: dict[str, Array], point: Point) -> Array:
    weight = arrays["weight"].reshape(point.channels, point.channels, point.taps)

    def filter_at(n: int, row: int, column: int) -> Array:
        centre = guide[n, :, row * point.stride, column * point.stride]
        squares = (patch(guide[n], point, row, column) - centre[:, None]) ** 2
        return weight * np.exp(-squares.sum(0) / 2)

    return apply(x, point, filter_at) + arrays["bias"][:, None, None]


def neighbours(at: int, length: int, point: Point) -> list[int]:
    """The pixels of the same residue that the window of `at` holds, along one side."""
    alike = list(range(at % point.dilation, length, point.dilation))
    first = min(max(alike.index(at) - point.kernel_size // 2, 0), max(len(alike) - point.kernel_size, 0))
    return alike[first : first + point.kernel_size]


def local_attention(x: Array, arrays: dict[str, Array], point: Point) -> Array:
    n, c, h, w = x.shape
    projected = {
        name: np.einsum("oc,nchw->nohw", arrays[f"{name}.weight"][:, :, 0, 0], x)
        + arrays[f"{name}.bias"][:, None, None]
        for name in ("query", "key_value")
    }
    query, key, value = projected["query"], projected["key_value"][:, :c], projected["key_value"][:, c:]
    out = np.zeros((n, c, -(-h // point.stride), -(-w // point.stride)))
    for i, _, y, z in np.ndindex(n, 1, *out.shape[2:]):
        row, column = y * point.stride, z * point.stride
        near = [(a, b) for a in neighbours(row, h, point) for b in neighbours(column, w, point)]
        logits = np.array([query[i, :, row, column] @ key[i, :, a, b] for a, b in near]) / np.sqrt(c)
        attended = sum(weight * value[i, :, a, b] for weight, (a, b) in zip(softmax(logits), near, strict=True))
        out[i, :, y, z] = arrays["project.weight"][:, :, 0, 0] @ attended + arrays["project.bias"]
    return out


def dcnv4(x: Array, offsets: Array, weights: Array, point: Point) -> Array:
    """What is read at a place is the sum over all pixels, weighed by how near they are."""
    c, (h, w) = point.channels, x.shape[2:]
    group = max(g for g in (1, 2, 4, 8, 16) if c % g == 0)
    out = np.zeros((len(x), c, -(-h // point.stride), -(-w // point.stride)))
    for n, channel, y, z in np.ndindex(*out.shape):
        for j in range(point.taps):
            tap = channel // group * point.taps + j
            row = y * point.stride + point.dilation * (j // point.kernel_size - point.kernel_size // 2)
            column = z * point.stride + point.dilation * (j % point.kernel_size - point.kernel_size // 2)
            near_rows = np.maximum(1 - abs(offsets[n, 2 * tap, y, z] - (np.arange(h) - row)), 0)
            near_columns = np.maximum(1 - abs(offsets[n, 2 * tap + 1, y, z] - (np.arange(w) - column)), 0)
            out[n, channel, y, z] += weights[n, tap, y, z] * (near_rows @ x[n, channel] @ near_columns)
    return out


def statistics(inputs: Inputs) -> dict[str, Array]:
    """`mean` and `variance` of the only BatchNorm, if there is one."""
    buffers = {} if inputs.module is None else dict(inputs.module.named_buffers())
    ends = {"mean": "running_mean", "variance": "running_var"}
    return {key: t.numpy() for key, end in ends.items() for name, t in buffers.items() if name.endswith(end)}


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
    arrays |= statistics(inputs)
    if name == "involution_op":
        repeats = c * taps // arrays["filters"].shape[1]

        def filter_at(n: int, row: int, column: int) -> Array:
            return np.repeat(arrays["filters"][n, :, row, column].reshape(-1, taps), repeats, 0)

        return apply(x, point, filter_at)
    if name == "involution":
        return involution(x, arrays, point)
    if name in ("dw_weightnet", "condconv", "odconv"):
        return conditional(name, x, arrays, point)
    if name == "pac":
        return pac(x, arrays["guide"], arrays, point)
    if name == "local_attention":
        return local_attention(x, arrays, point)
    if name == "dcnv4":
        return dcnv4(x, arrays["offsets"], arrays["weights"], point)
    if name == "ddf":
        return ddf(x, *filters_of_pack(x, arrays, point), point)
    raise ValueError(f"no loops for {name}")
