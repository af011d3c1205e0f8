"""The CUDA kernels of the DDF operator and of the upsampling one, called with tensors of the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from . import CSRC, EmulationError, compile_kernels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SOURCES", "UP_SOURCES", "Kernels", "ModuleParams", "Params", "UpKernels", "UpParams", "View"]

SOURCES = tuple(sorted((CSRC / "ddf").rglob("*.cu")))
UP_SOURCES = tuple(sorted((CSRC / "ddf_up").rglob("*.cu")))

DTYPES = ("torch.float32", "torch.float64", "torch.float16", "torch.bfloat16")


class View(ctypes.Structure):
    """As in csrc/ddf/ddf.h."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 4))

    @classmethod
    def of(cls, tensor: Tensor | None) -> View:
        return cls() if tensor is None else cls(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.stride()))


class Params(ctypes.Structure):
    """As in csrc/ddf/ddf.h."""

    _fields_ = (
        ("dtype", ctypes.c_int),
        ("combine", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("kernel_size", "stride", "dilation")),
        *((name, View) for name in ("features", "channel", "spatial", "out")),
        *((name, View) for name in ("grad_features", "grad_channel", "grad_spatial")),
        ("work", ctypes.c_void_p),
    )


class ModuleParams(ctypes.Structure):
    """As in csrc/ddf/ddf.h; the parameters in the order of `ops.core.native.FUSED_PARAMETERS`."""

    _fields_ = (
        ("params", Params),
        ("head", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("spatial_scale", ctypes.c_double),
        ("backward", ctypes.c_bool),
        ("parameters", View * 7),
        ("grad_parameters", View * 7),
    )


class UpParams(Params):
    """As in csrc/ddf_up/up.h."""

    _fields_ = (("scale", ctypes.c_int64),)


class Kernels:
    """The operator's kernels in one library.

    Args:
        kind: how they are built, one of `emulation.KINDS`.
        path: the library, if it is built already.
    """

    sources: ClassVar[tuple[Path, ...]] = SOURCES

    def __init__(self, kind: str, path: Path | None = None) -> None:
        self.path = path or compile_kernels(self.sources, kind)
        self.library = ctypes.CDLL(str(self.path))
        self._error_string = self.library._ZN3ddf17cuda_error_stringEi
        self._error_string.restype = ctypes.c_char_p

    def seed(self, seed: int) -> None:
        """Begins the order of threads, blocks and copies anew."""
        self.library.cuda_on_cpu_seed(ctypes.c_uint(seed))

    def pretend(self, capability: int, multiprocessors: int = 2) -> None:
        """Has kernels find a GPU of this compute capability, as 90, and so many multiprocessors."""
        self.library.cuda_on_cpu_gpu(capability, multiprocessors)

    @contextmanager
    def some_blocks(self, parts: int, most: int) -> Iterator[None]:
        """Runs of each grid, inside, only the first of so many equal parts, and of that at most so many blocks, spread
        evenly, or one cluster where that has more."""
        self.library.cuda_on_cpu_blocks(ctypes.c_uint(parts), ctypes.c_uint(most))
        try:
            yield
        finally:
            self.library.cuda_on_cpu_blocks(ctypes.c_uint(1), ctypes.c_uint(2**32 - 1))

    @contextmanager
    def without_barriers(self, block: bool = False, warp: bool = False, cluster: bool = False) -> Iterator[None]:
        """Leaves out every __syncthreads (`block`), every __syncwarp (`warp`), every barrier of a cluster, inside."""
        self.library.cuda_on_cpu_barriers(not block, not warp, not cluster)
        try:
            yield
        finally:
            self.library.cuda_on_cpu_barriers(1, 1, 1)

    def forward(
        self,
        features: Tensor,
        channel: Tensor,
        spatial: Tensor,
        out: Tensor,
        *,
        stride: int = 1,
        dilation: int = 1,
        combine: str = "mul",
        entry: str = "cuda_forward",
        kernel: str | None = None,
    ) -> None:
        """Computes `out`.

        Args:
            entry: the function of csrc/ddf/ddf.h that launches the kernels.
            kernel: its name, for an entry that takes one.

        Raises:
            EmulationError: if a launch fails; the text is the emulation's.
        """
        self.call(entry, self.params(features, channel, spatial, out, stride, dilation, combine), kernel)

    def backward(
        self,
        grad: Tensor,
        features: Tensor,
        channel: Tensor,
        spatial: Tensor,
        gradients: Sequence[Tensor | None],
        *,
        stride: int = 1,
        dilation: int = 1,
        combine: str = "mul",
        kernel: str = "",
    ) -> Tensor:
        """Computes the gradients of features, channel and spatial filter that are wanted, by the kernels of that name,
        "" for the table's choice; raises as `forward`. Returns the scratch memory, which began full of nan."""
        p = self.params(features, channel, spatial, grad, stride, dilation, combine)
        p.grad_features, p.grad_channel, p.grad_spatial = map(View.of, gradients)
        work = self.work_for(p, kernel)
        self.call("cuda_backward_by", p, kernel)
        return work

    def work_for(self, params: Params, kernel: str) -> Tensor:
        """Scratch memory for a backward pass, full of nan."""
        arguments = kernel.encode(), ctypes.byref(params), 0
        work = self._nan_bytes(self._bytes("cuda_backward_work_bytes_by", "PKcRKNS_6ParamsEi", *arguments))
        params.work = work.data_ptr()
        return work

    def _bytes(self, entry: str, signature: str, *arguments: object) -> int:
        function = getattr(self.library, f"_ZN3ddf{len(entry)}{entry}E{signature}")
        function.restype = ctypes.c_int64
        return int(function(*arguments))

    @staticmethod
    def _nan_bytes(count: int) -> Tensor:
        """All bits set: nan in every element type. Aligned to 64, as torch aligns all it allocates."""
        import torch

        return torch.full((count,), 255, dtype=torch.uint8)

    def module(self, *arguments: Any, **named: Any) -> list[Tensor]:
        """Computes `out` by the fused module; or `gradients`, of the features and the parameters, where they are given,
        from that of the output. Takes what `module_params` does, raises as `forward`. Returns the scratch memory, which
        began full of nan."""
        p, rooms = self.module_params(*arguments, **named)
        self.call_module(p)
        return list(rooms.values())

    def module_params(
        self,
        features: Tensor,
        parameters: Sequence[Tensor],
        out: Tensor,
        spatial_scale: float,
        kernel_size: int,
        dilation: int,
        stride: int,
        head: int,
        combine: str,
        gradients: Sequence[Tensor | None] = (),
    ) -> tuple[ModuleParams, dict[str, Tensor]]:
        """What `call_module` is told for `module`, and the scratch memory of the call, full of nan."""
        n, c, k = *features.shape[:2], kernel_size
        shapes = {"channel": (n, c, k, k), "spatial": (n, head * k * k, *out.shape[2:])}
        shapes |= {f"grad_{name}": shape for name, shape in shapes.items()}
        rooms = {name: features.new_full(shape, float("nan")) for name, shape in shapes.items()}
        p = ModuleParams()
        p.params = self.params(features, rooms["channel"], rooms["spatial"], out, stride, dilation, combine)
        p.head, p.hidden, p.spatial_scale, p.backward = head, parameters[2].shape[0], spatial_scale, bool(gradients)
        p.parameters = (View * 7)(*map(View.of, parameters))
        if gradients:
            p.params.grad_features = View.of(gradients[0])
            p.params.grad_channel, p.params.grad_spatial = (View.of(rooms[f"grad_{n}"]) for n in ("channel", "spatial"))
            p.grad_parameters = (View * 7)(*map(View.of, gradients[1:]))
        work = self._nan_bytes(self._bytes("cuda_module_work_bytes", "RKNS_12ModuleParamsEi", ctypes.byref(p), 0))
        p.params.work = work.data_ptr()
        return p, {"work": work, **rooms}

    def call_module(self, params: ModuleParams) -> None:
        """Runs the fused module, its way back where `params.backward`; raises as `forward`."""
        entry = "cuda_module_backward" if params.backward else "cuda_module_forward"
        function = getattr(self.library, f"_ZN3ddf{len(entry)}{entry}ERKNS_12ModuleParamsEiPv")
        error = function(ctypes.byref(params), 0, None)
        if error:
            raise EmulationError(self._error_string(error).decode())

    @staticmethod
    def params(
        features: Tensor, channel: Tensor, spatial: Tensor, out: Tensor, stride: int, dilation: int, combine: str
    ) -> Params:
        """What the functions of csrc/ddf/ddf.h are told; `out` is the gradient of the output on the way back."""
        p = Params()
        p.dtype = DTYPES.index(str(features.dtype))
        p.combine = ("mul", "add").index(combine)
        p.batch, p.channels, p.height, p.width = features.shape
        p.out_height, p.out_width = out.shape[2:]
        p.kernel_size, p.stride, p.dilation = channel.shape[2], stride, dilation
        p.features, p.channel, p.spatial, p.out = map(View.of, (features, channel, spatial, out))
        return p

    def call(self, entry: str, params: Params, kernel: str | None = None) -> None:
        """Calls a function of csrc/ddf/ddf.h, as `status`; raises as `forward`."""
        error = self.status(entry, params, kernel)
        if error:
            raise EmulationError(self._error_string(error).decode())

    def status(self, entry: str, params: Params, kernel: str | None = None) -> int:
        """The cudaError_t of a function of csrc that takes (params, device, stream), after the name of a
        kernel where one is given."""
        kind = type(params).__name__
        arguments = f"{'' if kernel is None else 'PKc'}RKNS_{len(kind)}{kind}EiPv"
        function = getattr(self.library, f"_ZN3ddf{len(entry)}{entry}E{arguments}")
        name = [] if kernel is None else [kernel.encode()]
        return int(function(*name, ctypes.byref(params), 0, None))


class UpKernels(Kernels):
    """The upsampling operator's kernels in one library."""

    sources = UP_SOURCES

    def upsample(
        self,
        features: Tensor,
        channel: Tensor,
        spatial: Tensor,
        out: Tensor,
        *,
        dilation: int = 1,
        combine: str = "mul",
    ) -> None:
        """Computes `out`, whose size tells the scale; raises as `forward`."""
        self.call("cuda_up_forward", self.up_params(features, channel, spatial, out, dilation, combine))

    def upsample_backward(
        self,
        grad: Tensor,
        features: Tensor,
        channel: Tensor,
        spatial: Tensor,
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
        *,
        dilation: int = 1,
        combine: str = "mul",
    ) -> None:
        """Computes the gradients of features, channel and spatial filter that are wanted; raises as `forward`."""
        p = self.up_params(features, channel, spatial, grad, dilation, combine)
        p.grad_features, p.grad_channel, p.grad_spatial = map(View.of, gradients)
        self.call("cuda_up_backward", p)

    @classmethod
    def up_params(
        cls, features: Tensor, channel: Tensor, spatial: Tensor, out: Tensor, dilation: int, combine: str
    ) -> UpParams:
        """What the functions of csrc/ddf_up/up.h are told; `out` is the gradient of the output on the way back."""
        shared = cls.params(features, channel, spatial, out, 1, dilation, combine)
        p = UpParams.from_buffer_copy(bytes(shared) + bytes(ctypes.sizeof(UpParams) - ctypes.sizeof(shared)))
        p.out_height, p.out_width = features.shape[2:]
        p.scale = out.shape[2] // features.shape[2]
        return p
