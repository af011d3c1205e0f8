"""The rival in Triton: right by its interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ddf_by_taps
import pytest
import torch
from ddf_by_taps import Settings

import ops.ddf
from ops import Point, Skip

triton = pytest.importorskip("triton", reason="Triton is not installed")

SOURCE = Path(ops.ddf.__file__).with_name("core") / "triton_ddf.py"


def _copy(name: str) -> ModuleType:
    """Another copy of the module: Triton reads its switches where a kernel is declared."""
    spec = importlib.util.spec_from_file_location(name, SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def interpreted() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        return _copy("triton_interpreted")


#: Shape, k, stride, dilation, combine: tails in both directions of the tile, taps that all lie outside, no sample.
CASES = [
    ((2, 5, 7, 9), 3, 1, 1, "mul"),
    ((1, 9, 13, 11), 3, 1, 1, "add"),
    ((2, 4, 8, 12), 5, 2, 1, "mul"),
    ((1, 3, 11, 5), 5, 3, 2, "add"),
    ((2, 6, 5, 5), 3, 1, 3, "mul"),
    ((1, 1, 1, 1), 3, 1, 1, "mul"),
    ((0, 3, 4, 4), 3, 1, 1, "mul"),
    ((2, 8, 3, 2), 1, 1, 1, "add"),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])  # bfloat16 the interpreter cuts off
@pytest.mark.parametrize(("shape", "kernel_size", "stride", "dilation", "combine"), CASES)
def test_interpreted_it_is_right(
    interpreted: Any,
    shape: tuple[int, int, int, int],
    kernel_size: int,
    stride: int,
    dilation: int,
    combine: str,
    dtype: torch.dtype,
    last: bool,
) -> None:
    n, c, h, w = shape
    how = Settings(stride, dilation, combine)
    layout = torch.channels_last if last else torch.contiguous_format
    torch.manual_seed(0)
    features = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
    channel = torch.randn(n, c, kernel_size, kernel_size).to(dtype)
    spatial = torch.randn(n, kernel_size**2, how.size(h), how.size(w)).to(dtype)
    out = interpreted.apply(features, channel, spatial, kernel_size, how.dilation, how.stride, how.combine)
    wide = features.double(), channel.double(), spatial.double()
    magnitude = ddf_by_taps.forward(*ddf_by_taps.absolute(*wide), how)
    assert out.dtype == dtype
    ddf_by_taps.assert_rounded(out, ddf_by_taps.forward(*wide, how), magnitude, 3 * kernel_size**2, "output")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "layout"), [("*fp32", "nchw"), ("*bf16", "channels_last")])
def test_it_compiles_for_a_gpu_that_is_not_here(capability: int, dtype: str, layout: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = _copy("triton_compiled")
    unit = {f"{tensor}_{'x' if layout == 'nchw' else 'c'}": 1 for tensor in "fo"}
    constants = {
        "kernel_size": 3,
        "dilation": 1,
        "stride": 1,
        "multiply": True,
        "accumulator": triton.language.float32,
        "tile_channels": 8,
        "tile_pixels": 128,
        **unit,
    }
    names = module._jit.arg_names
    tensors = ("features", "channel_filter", "spatial_filter", "out")
    signature = {name: "constexpr" if name in constants else dtype if name in tensors else "i32" for name in names}
    given_values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=module._jit, signature=signature, constexprs=given_values)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    assert f".target sm_{capability}" in compiled.asm["ptx"]


def test_without_cuda_or_with_gradients_it_is_skipped_with_the_reason() -> None:
    op = ops.ddf.DDFOp()
    point = Point(channels=4, height=5, width=5)
    inputs = op.build(point, torch.device("cpu"), torch.Generator().manual_seed(0))
    with pytest.raises(Skip, match="triton: runs on CUDA alone"):
        op.impls["triton"].prepare(inputs, point)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [7, 30])
def test_on_a_gpu_it_agrees_with_the_native_operator(size: int, dtype: str, layout: str) -> None:
    op = ops.ddf.DDFOp()
    point = Point(channels=40, height=size, width=size, dtype=dtype, layout=layout)
    inputs = op.build(point, torch.device("cuda"), torch.Generator("cuda").manual_seed(0))
    rival, native = (op.impls[name].prepare(inputs, point)() for name in ("triton", "native"))
    torch.testing.assert_close(rival, native)
    assert rival.stride() == native.stride()
    backward = Point(channels=40, height=size, width=size, direction="forward_backward")
    with pytest.raises(Skip, match="triton: forward alone"):
        op.impls["triton"].prepare(inputs, backward)
