"""The networks: parameters as published, multiply-accumulates, checkpoints, and that they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ops
from ops import Op, Point, Skip
from ops.core import native, networks
from ops.core.networks import VARIANTS

OPS: dict[str, Op] = ops.load(Path(ops.__file__).parent / "networks.py")
EVERY = [(backbone, v.name) for v in VARIANTS.values() for backbone in v.backbones]
#: One of each block, on the backbone that costs least.
EACH = [(v.backbones[0], v.name) for v in VARIANTS.values()]
#: Those whose filters are fixed or applied pixel by pixel, none mixed from kernels.
FIXED = {
    "base",
    "se",
    "bam",
    "cbam",
    "ge",
    "ge_minus",
    "ge_plus",
    "aa",
    "resnext_32x4d",
    "ddf",
    "ddf_add",
    "involution",
}
FIXED |= {"ddf_separable", "involution", "res2net_14w_8s", "res2net_26w_4s"}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def at(variant: str, size: int = 64, batch: int = 2, **axes: str) -> Point:
    return Point(batch=batch, height=size, width=size, extra={"variant": variant}, **axes)


def made(backbone: str, point: Point, device: str = "cpu") -> ops.Inputs:
    return OPS[backbone].build(point, torch.device(device), torch.Generator(device).manual_seed(0))


def parameters(backbone: str, variant: str) -> int:
    return sum(p.numel() for p in networks.build(backbone, variant, device="meta").parameters())


# ----------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("backbone", "variant", "millions"),
    [
        ("resnet18", "base", "11.7"),
        ("resnet18", "ddf_separable", "7.7"),
        ("resnet50", "base", "25.6"),
        ("resnet50", "se", "28.1"),
        ("resnet50", "bam", "25.9"),
        ("resnet50", "cbam", "28.1"),
        ("resnet50", "aa", "25.8"),
        ("resnet50", "resnext_32x4d", "25.0"),
        ("resnet50", "res2net_26w_4s", "25.7"),
        ("resnet50", "ddf", "16.8"),
        ("resnet101", "base", "44.5"),
        ("resnet101", "se", "49.3"),
        ("resnet101", "bam", "44.9"),
        ("resnet101", "cbam", "49.3"),
        ("resnet101", "aa", "45.4"),
        ("resnet101", "ddf", "28.1"),
        # beyond the poster: the papers' and authors' own figures
        ("resnet50", "res2net_14w_8s", "25.06"),
        ("resnet101", "res2net_26w_4s", "45.21"),
        ("resnet50", "involution", "15.54"),
        ("resnet101", "involution", "25.65"),
    ],
)
def test_parameters_round_to_the_published_figure(backbone: str, variant: str, millions: str) -> None:
    digits = len(millions.partition(".")[2])
    assert f"{parameters(backbone, variant) / 1e6:.{digits}f}" == millions


def test_parameters_are_exactly_those_of_the_authors() -> None:
    assert parameters("resnet50", "base") == 25_557_032
    assert parameters("resnet50", "resnext_32x4d") == 25_028_904
    assert parameters("resnet50", "ddf") == parameters("resnet50", "ddf_add") == 16_843_748
    assert parameters("resnet101", "ddf") == 28_146_912


@pytest.mark.parametrize(("backbone", "macs"), [("resnet18", 1814.1), ("resnet50", 4089.2), ("resnet101", 7801.4)])
def test_macs_of_the_plain_networks(backbone: str, macs: float) -> None:
    """In millions, as torchvision publishes them: 1.81, 4.09 and 7.80 G."""
    counted = networks.count_macs(networks.build(backbone, "base", device="meta"))
    assert set(counted) == {"conv", "linear", "normalisation"}
    assert round((counted["conv"] + counted["linear"]) / 1e6, 1) == macs


#: What torch's counter does not see, being done by elementwise operators.
UNSEEN = {"dynamic_filter", "normalisation"}


@pytest.mark.parametrize(("backbone", "variant"), [e for e in EACH if e[1] in FIXED])
def test_torch_counts_the_same(backbone: str, variant: str) -> None:
    network = networks.build(backbone, variant, 64, 64, "meta").eval()
    declared = networks.count_macs(network, 64, 64)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        networks.with_plain_operators(network)(torch.empty(1, 3, 64, 64, device="meta"))
    assert counter.get_total_flops() == 2 * sum(macs for kind, macs in declared.items() if kind not in UNSEEN)


def test_costs_follow_batch_and_direction() -> None:
    op = OPS["resnet50"]
    one, four = op.costs(at("ddf", batch=1)), op.costs(at("ddf", batch=4))
    step = op.costs(at("ddf", batch=1, direction="forward_backward"))
    assert one.params == four.params == step.params
    assert {kind: 4 * macs for kind, macs in one.macs.items()} == dict(four.macs)
    assert step.macs["conv"] == 3 * one.macs["conv"]
    assert step.macs["dynamic_filter"] == 4 * one.macs["dynamic_filter"]
    assert step.floor_bytes > 2 * one.floor_bytes


def test_a_wrong_variant_is_named() -> None:
    with pytest.raises(ValueError, match=r"variant: expected for resnet18 one of base, .*, got 'aa'"):
        networks.build("resnet18", "aa")


# -------------------------------------------------------------------------------------------------------- checkpoints


def official(depths: tuple[int, ...]) -> dict[str, Tensor]:
    """A checkpoint as the authors' ddf_mul_resnet50 and 101 save theirs: its names and shapes, its values drawn."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 2048), "fc.bias": (1000,)}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def conv(name: str, out_channels: int, in_channels: int) -> None:
        shapes.update({f"{name}.weight": (out_channels, in_channels, 1, 1), f"{name}.bias": (out_channels,)})

    norm("bn1", 64)
    before = 64
    for stage, depth in enumerate(depths, 1):
        c = 32 * 2**stage
        for block in range(depth):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (c, before, 1, 1)
            norm(f"{name}.bn1", c)
            conv(f"{name}.conv2.spatial_branch.0", 9, c)
            conv(f"{name}.conv2.channel_branch.1", c // 5, c)
            conv(f"{name}.conv2.channel_branch.3", 9 * c, c // 5)
            shapes[f"{name}.conv2.channel_branch.4.std"] = (9 * c,)
            norm(f"{name}.bn2", c)
            shapes[f"{name}.conv3.weight"] = (4 * c, c, 1, 1)
            norm(f"{name}.bn3", 4 * c)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * c, before, 1, 1)
                norm(f"{name}.downsample.1", 4 * c)
            before = 4 * c
    return {name: torch.full(shape, 1) if not shape else torch.rand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("backbone", "depths", "variant"),
    [("resnet50", (3, 4, 6, 3), "ddf"), ("resnet50", (3, 4, 6, 3), "ddf_add"), ("resnet101", (3, 4, 23, 3), "ddf")],
)
def test_an_official_checkpoint_loads(backbone: str, depths: tuple[int, ...], variant: str) -> None:
    checkpoint = official(depths)
    network = networks.build(backbone, variant, device="meta")
    network.load_state_dict(checkpoint, strict=True, assign=True)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in checkpoint.items())


def test_a_checkpoint_of_another_network_does_not_load() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*conv2\.weight"):
        networks.build("resnet50", "base", device="meta").load_state_dict(official((3, 4, 6, 3)), assign=True)


# ------------------------------------------------------------------------------------------------------------ running


def step(network: nn.Module, images: Tensor) -> float:
    """One step of training; the loss."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss = F.cross_entropy(network(images), torch.arange(len(images), device=images.device))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    optimizer.step()
    assert all(p.isfinite().all() for p in network.parameters())
    return float(loss.detach())


@pytest.mark.parametrize(("backbone", "variant"), EACH)
@pytest.mark.parametrize("device", DEVICES)
def test_impls_give_the_reference_and_a_training_step_is_finite(backbone: str, variant: str, device: str) -> None:
    op, point = OPS[backbone], at(variant, size=32, direction="forward_backward")
    inputs = made(backbone, point, device)
    assert not inputs.module.training
    served = 0
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        value, magnitude = op.apply(inputs.double(), point), op.magnitude(inputs.double(), point)
        assert value.shape == (2, 1000)
        assert 0.2 < float(value.std()) < 5
        assert float((value[0] - value[1]).abs().max()) > 0.01  # it depends on the image
        for impl in op.impls.values():
            try:
                result = impl.prepare(inputs, point)()
            except Skip:
                continue
            served += 1
            assert float(((result.double() - value).abs() / magnitude).max()) < 1e-5
    assert served == (2 if variant.startswith("ddf") and not native.missing(device) else 1)
    assert inputs.module is not None
    assert step(networks.with_plain_operators(inputs.module), inputs["images"].detach()) < 20


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_layout_and_dtype_are_those_of_the_point(layout: str) -> None:
    point = at("se", size=32, layout=layout, dtype="bfloat16")
    inputs = made("resnet18", point)
    assert {p.dtype for p in inputs.module.parameters()} == {torch.bfloat16}
    same = made("resnet18", at("se", size=32, dtype="bfloat16"))
    for name, leaf in inputs.leaves().items():
        assert torch.equal(leaf, same.leaves()[name])


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "variant"), EACH)
def test_full_size_on_the_cpu(backbone: str, variant: str) -> None:
    inputs = made(backbone, at(variant, size=224, direction="forward_backward"))
    assert inputs.module is not None
    with torch.no_grad():
        assert inputs.module(inputs["images"]).isfinite().all()
    assert step(inputs.module, inputs["images"].detach()) < 20


@pytest.mark.gpu
@pytest.mark.parametrize(("backbone", "variant"), EVERY)
def test_full_size_on_cuda(backbone: str, variant: str) -> None:
    inputs = made(backbone, at(variant, size=224, direction="forward_backward"), "cuda")
    assert inputs.module is not None
    with torch.no_grad():
        assert inputs.module(inputs["images"]).isfinite().all()
    assert step(inputs.module, inputs["images"].detach()) < 20
