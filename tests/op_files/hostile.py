"""Operators that go wrong, each in its own way: what a run must survive."""

from __future__ import annotations

import ctypes
import time

import torch

from ops import Costs, Inputs, Op, Point, Skip


class Copying(Op):
    """Copies its features; the hostile ones below derive from it."""

    name = "copying"
    title = "Copying"

    def build(self, point, device, generator):
        shape = (point.batch, point.channels, point.height, point.width)
        features = torch.randn(shape, generator=generator, device=device)
        return Inputs({"features": features.requires_grad_(point.backward)})

    def apply(self, inputs: Inputs, point: Point):
        return inputs["features"] * 1.0

    def magnitude(self, inputs: Inputs, point: Point):
        return inputs["features"].abs()

    def costs(self, point: Point) -> Costs:
        size = point.pixels * point.channels * point.itemsize
        return Costs({}, {}, 2 * size, {"features": size, "output": size})


def copy(inputs, point):
    return lambda: inputs["features"].clone()


class Segfault(Copying):
    name = title = "segfault"


class Hang(Copying):
    name = title = "hang"


class Greedy(Copying):
    name = title = "greedy"


class Wrong(Copying):
    name = title = "wrong"


class Raising(Copying):
    name = title = "raising"


class Skipping(Copying):
    name = title = "skipping"


class LateCrash(Copying):
    """Crashes after the check, in the middle of being measured."""

    name = title = "late_crash"


Copying.impl("torch")(copy)


@Segfault.impl("torch")
def _(inputs, point):
    return lambda: ctypes.string_at(0)


@Hang.impl("torch")
def _(inputs, point):
    return lambda: time.sleep(3600)


@Greedy.impl("torch")
def _(inputs, point):
    def take_all():
        hoard = []
        while True:
            hoard.append(torch.ones(2**28))

    return take_all


@Wrong.impl("torch")
def _(inputs, point):
    return lambda: inputs["features"] * 1.01


@Raising.impl("torch")
def _(inputs, point):
    raise ValueError("no such\nthing")


@Skipping.impl("torch")
def _(inputs, point):
    raise Skip("not for this shape")


@LateCrash.impl("torch")
def _(inputs, point):
    calls = iter(range(30))

    def call():
        if next(calls, None) is None:
            ctypes.string_at(0)
        time.sleep(0.002)
        return inputs["features"].clone()

    return call
