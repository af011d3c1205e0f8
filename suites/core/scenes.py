"""Depth scenes drawn by code, and their images: things of plain shapes before a wall, some of them striped.

Every edge of the depth is one of the image, not the other way round: stripes and shadings have no depth of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Metres, of what is nearest and of the wall.
NEAREST, FARTHEST = 1.0, 5.0
THINGS = 8


def draw_scenes(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Depths (count, 1, size, size) in metres and images (count, 3, size, size) between 0 and 1."""
    scenes = [_scene(size, generator) for _ in range(count)]
    depths, images = zip(*scenes, strict=True)
    return torch.stack(depths), torch.stack(images)


def lowered(depths: Tensor, scale: int) -> Tensor:
    """What a coarser sensor sees: the mean over scale x scale pixels."""
    return torch.nn.functional.avg_pool2d(depths, scale)


def _scene(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Things are drawn from far to near, each a slanted plane of one colour."""

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    depth, image = torch.zeros(size, size), torch.zeros(3, size, size)
    for level in torch.linspace(FARTHEST, NEAREST + 0.5, THINGS + 1):
        centre, half, turn = 1.6 * drawn(2) - 0.8, 0.08 + 0.4 * drawn(2), 3.2 * drawn(1)
        across = ((x - centre[0]) * turn.cos() + (y - centre[1]) * turn.sin()) / half[0]
        along = ((y - centre[1]) * turn.cos() - (x - centre[0]) * turn.sin()) / half[1]
        round_, is_wall = bool(drawn(1) < 0.5), bool(level == FARTHEST)
        inside = across.square() + along.square() < 1 if round_ else torch.maximum(across.abs(), along.abs()) < 1
        inside = inside | is_wall
        slant = 0.5 * (drawn(2) - 0.5)
        plane = level + slant[0] * x + slant[1] * y
        colour = drawn(3, 1, 1)
        stripes = 0.25 * (drawn(1) < 0.5) * ((8 + 24 * drawn(1)) * (x + drawn(1) * y)).sin().sign()
        shade = 0.2 * (drawn(1) * x + drawn(1) * y)
        depth = torch.where(inside, plane, depth)
        image = torch.where(inside, (colour + stripes + shade).clamp(0, 1), image)
    return depth[None], image
