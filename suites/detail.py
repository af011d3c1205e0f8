"""Detail: how well depth of low resolution is upsampled with an image, whose edges it shares.

For each variant of `up_net`, networks that differ in what doubles rows and columns, with equally many parameters, are
trained from each seed for as many steps on scenes drawn by code (`suites.core.scenes`), and asked for scenes that none
has seen. Beside them stand bilinear and joint bilateral upsampling without a network, which need no training.

Metrics: `rmse` (m), the root of the mean square error over the test scenes, the mean over seeds, with 95 % bounds by
Student's t; `rmse_edges` (m), the same over pixels next to an edge of the depth; `params`. `settings.pictures` has the
first test scene as the first seed's network sees and upsamples it, PNGs in base64.

Nothing is timed. An op takes part if it makes depth of the inputs `features` and `guide`, or of the first alone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ops import Axis, Inputs, Point
from reports import Metric
from suites import Begun, Case, Suite

if TYPE_CHECKING:
    from torch import Tensor

    from suites.core.bench import Bench

#: Pixels along a side of a training and of a test scene; scenes in a step and of the test.
CROP, SIZE = 64, 128
BATCH, TESTS = 4, 16
RATE = 3e-3
#: Of a core, by scale 8: a guess, for the forecast.
SECONDS_A_STEP = 0.1
#: Steps after which the runner hears that training goes on.
TELLING = 50
#: Seeds of test scenes, which no training draws.
TEST_SEED = 1_000_000
#: Standard deviation, of colours between 0 and 1, by which joint bilateral upsampling compares them.
SIGMA_COLOUR = 0.1
#: Student's t at 97.5 % with one degree of freedom less than there are values.
STUDENT = dict(zip(range(2, 11), (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), strict=True))


class Detail(Suite):
    name = "detail"
    order = 85
    help = "joint depth upsampling by networks of equal size and steps: error and pictures; trains them"
    default = False
    axes = ("kernel_size", "threads")
    ops = ("bilinear", "joint_bilateral", "up_net")
    extra_axes = (
        Axis("steps", 200, "steps of training"),
        Axis("seeds", 3, "networks trained, from seeds of their own, for the interval", choices=tuple(STUDENT)),
    )
    #: One thread: operators as small as these gain little from more, and lose where another program has the cores.
    own_values: ClassVar = {
        "variant": None,
        "scale": (8,),
        "kernel_size": (5,),
        "guide_channels": (3,),
        "threads": (1,),
    }
    #: Plain PyTorch: errors of different implementations would be the same, and nothing has to be compiled.
    impls = ("torch", "composite")
    per_impl = False

    def variations(self, preset: str) -> Sequence[Mapping[str, Any]]:
        if preset == "quick":
            return ({},)
        return tuple({"steps": 5000, "seeds": 5, "scale": scale} for scale in (4, 8, 16))

    def seconds(self, case: Case) -> float:
        steps = case.values["seeds"] * case.values["steps"] if case.op == "up_net" else 0
        return super().seconds(case) + float(steps) * SECONDS_A_STEP

    def begin(self, bench: Bench) -> Begun:
        import torch

        from suites.core import scenes

        case = bench.case.point
        scale = int(case.extra["scale"])
        generator = torch.Generator().manual_seed(TEST_SEED + bench.seed)
        truth, images = scenes.draw_scenes(TESTS, SIZE, generator)
        low, edges = scenes.lowered(truth, scale), near_edges(truth)
        params = sum(bench.op.costs(point_of(case, 1, SIZE)).params.values())
        found: list[Tensor] = []
        for seed in range(int(case.extra["seeds"]) if params else 1):
            upsample = trained(bench, seed)
            with torch.no_grad():
                found.append(torch.cat([upsample(low[i : i + 4], images[i : i + 4]) for i in range(0, TESTS, 4)]))
        metrics = [
            over_seeds(name, [float((out - truth)[mask].square().mean().sqrt()) for out in found])
            for name, mask in (("rmse", torch.ones_like(edges)), ("rmse_edges", edges))
        ]
        metrics.append(Metric("params", "1", params, better="less"))
        shown = {"guide": images[0], "low": low[0], "out": found[0][0], "truth": truth[0]}
        return Begun(metrics, settings={"pictures": {name: png(image) for name, image in shown.items()}})


def point_of(case: Point, batch: int, size: int) -> Point:
    """Where the op upsamples scenes of that size; parameters have a gradient."""
    rows = size // int(case.extra["scale"])
    return replace(case, batch=batch, channels=1, height=rows, width=rows, direction="forward_backward")


def trained(bench: Bench, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """What upsamples depths with images after `steps` steps of Adam from that seed, on other scenes in each step."""
    import torch

    from suites.core import scenes

    case, op = bench.case.point, bench.op
    generator = torch.Generator().manual_seed(bench.seed + seed)
    module = op.build(point_of(case, 1, CROP), torch.device("cpu"), generator).module

    def upsample(low: Tensor, images: Tensor) -> Tensor:
        guide = images / SIGMA_COLOUR if module is None else images
        inputs = Inputs({"features": low, "guide": guide}, module)
        return op.impls[bench.case.impl].prepare(inputs, point_of(case, len(low), images.shape[2]))()

    if module is not None:
        steps = int(case.extra["steps"])
        optimiser = torch.optim.Adam(module.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with torch.enable_grad():
            for step in range(steps):
                if step % TELLING == 0:
                    bench.say(f"{bench.case.id}: seed {seed}, step {step}")
                truth, images = scenes.draw_scenes(BATCH, CROP, generator)
                loss = (upsample(scenes.lowered(truth, int(case.extra["scale"])), images) - truth).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return upsample


def near_edges(depths: Tensor) -> Tensor:
    """Where depth jumps by a quarter of a metre or more within 5 x 5 pixels; (N, 1, H, W), booleans."""
    from torch.nn.functional import max_pool2d

    return max_pool2d(depths, 5, 1, 2) + max_pool2d(-depths, 5, 1, 2) > 0.25


def over_seeds(name: str, values: list[float]) -> Metric:
    """The mean, with 95 % bounds by Student's t where there are several values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Metric(name, "m", mean, better="less")
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = STUDENT[len(values)] * math.sqrt(variance / len(values))
    return Metric(name, "m", mean, mean - half, mean + half, "less")


def png(image: Tensor) -> str:
    """(3, H, W) between 0 and 1, or depth (1, H, W) in metres, near things bright, as a PNG in base64."""
    from matplotlib.image import imsave

    from suites.core import scenes

    if len(image) == 1:
        image = ((scenes.FARTHEST + 0.5 - image) / scenes.FARTHEST).expand(3, -1, -1)
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    buffer = io.BytesIO()
    imsave(buffer, pixels.contiguous().numpy(), format="png")
    return base64.b64encode(buffer.getvalue()).decode()
