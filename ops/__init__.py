"""What is measured: ops, their impls, and the points on the axes at which they are asked for.

This module is the vocabulary and the discovery. It imports no torch, so that the runner can share it; every other plain
file in this folder is one operator family. An op file defines subclasses of `Op` and attaches impls:

    class DwConv(Op):
        name, title = "dwconv", "DwConv"

        def build(self, point, device, generator): ...      # seeded inputs
        def apply(self, inputs, point): ...                 # the reference, in plain differentiable PyTorch
        def magnitude(self, inputs, point): ...             # the sum of the absolute terms of each output
        def costs(self, point): ...                         # closed forms

    @DwConv.impl("torch")
    def _(inputs, point):
        return lambda: inputs.module(inputs["features"])    # exactly what is timed
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Closure = Callable[[], "Tensor"]
AxisValue = int | float | str

DTYPE_BYTES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


class Skip(Exception):
    """Raised by an impl that cannot serve a case; its text is the reason that is recorded."""


@dataclass(frozen=True)
class Axis:
    """A named list of values.

    Args:
        name: as in the command line, records and tables.
        default: the value a case has when nobody asks for another.
        choices: the allowed values, if they can be listed; all values have the type of `default`.
        minimum: least allowed number.
        odd: whether even numbers are refused.
    """

    name: str
    default: AxisValue
    help: str
    choices: tuple[AxisValue, ...] = ()
    minimum: float = 1
    odd: bool = False

    @property
    def allowed(self) -> str:
        """What is allowed, in words for an error message."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        kind = "an odd integer" if self.odd else "an integer" if isinstance(self.default, int) else "a number"
        return f"{kind} of at least {self.minimum:g}"

    def parse(self, text: str) -> AxisValue:
        """Returns the value that `text` stands for.

        Raises:
            ValueError: if it is none of the allowed ones; the text says what is allowed.
        """
        value: AxisValue
        try:
            value = type(self.default)(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {self.allowed}") from None
        if self.choices:
            good = value in self.choices
        else:
            good = isinstance(value, str) or (value >= self.minimum and not (self.odd and int(value) % 2 == 0))
        if not good:
            raise ValueError(f"{text!r} is not {self.allowed}")
        return value


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("batch", 1, "samples in a batch, N"),
        Axis("channels", 256, "channels, C"),
        Axis("height", 56, "rows of a feature map, H"),
        Axis("width", 56, "columns of a feature map, W"),
        Axis("kernel_size", 3, "taps along one side of the filter, k", odd=True),
        Axis("stride", 1, "step between outputs"),
        Axis("dilation", 1, "step between taps"),
        Axis("combine", "mul", "how spatial and channel filter are combined", choices=("mul", "add")),
        Axis("dtype", "float32", "element type", choices=tuple(DTYPE_BYTES)),
        Axis("layout", "nchw", "memory format", choices=("nchw", "channels_last")),
        Axis("direction", "forward", "what is computed", choices=("forward", "forward_backward")),
    )
}

SHAPE_AXES = ("batch", "channels", "height", "width", "kernel_size", "stride", "dilation")
SETTING_AXES = ("dtype", "layout", "direction")


@dataclass(frozen=True)
class Point:
    """A point on the axes: what an op is asked to compute.

    `extra` holds the op's own axes (`Op.extra_axes`) by name.
    """

    batch: int = 1
    channels: int = 256
    height: int = 56
    width: int = 56
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    combine: str = "mul"
    dtype: str = "float32"
    layout: str = "nchw"
    direction: str = "forward"
    extra: Mapping[str, AxisValue] = field(default_factory=dict)

    @property
    def padding(self) -> int:
        """Zeros on each side, so that stride 1 keeps the size."""
        return self.dilation * (self.kernel_size - 1) // 2

    @property
    def out_height(self) -> int:
        return (self.height - 1) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width - 1) // self.stride + 1

    @property
    def pixels(self) -> int:
        """Input pixels of the whole batch."""
        return self.batch * self.height * self.width

    @property
    def out_pixels(self) -> int:
        """Output pixels of the whole batch."""
        return self.batch * self.out_height * self.out_width

    @property
    def taps(self) -> int:
        return self.kernel_size**2

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def backward(self) -> bool:
        return self.direction == "forward_backward"


@dataclass(frozen=True)
class Costs:
    """Closed forms of one op at one point, for the whole call with its batch.

    Args:
        params: learned parameters, by part.
        macs: multiply-accumulates by operator kind: `conv` (convolutions, 1x1 included), `linear`, `dynamic_filter`
            (one per tap and output, padding taps included). Biases, filter combination, pooling and normalisation are
            not counted.
        floor_bytes: the bytes that no implementation can avoid to move: each input and parameter read once, each
            result written once.
        memory: bytes that must be held at the same time, by part; `filters` is what the generated filters take, absent
            where none are generated.
        left_out: arithmetic that some count as multiply-accumulates and `macs` leaves out, by kind:
            `attention_products` (of queries, keys and values), `mixing` (of filters from learned ones), `similarities`
            (of guides), `interpolation` (of what is read between pixels), `normalisation` (two for each element).
        combined: products or sums that make one filter of two, as of both filters of a DDF, and on the way back the
            same of what is multiplied by a gradient: no multiply-accumulates, but they keep the same units busy.
    """

    params: Mapping[str, int]
    macs: Mapping[str, int]
    floor_bytes: int
    memory: Mapping[str, int]
    left_out: Mapping[str, int] = field(default_factory=dict)
    combined: int = 0

    @property
    def operations(self) -> int:
        """What is held against the arithmetic roof: `macs`, and `combined`, each as one."""
        return sum(self.macs.values()) + self.combined


@dataclass
class Inputs:
    """The inputs of one case: the same, bit for bit, for all impls of an op at one point and seed.

    Args:
        tensors: by name; the first dimension of each is the batch. What samples share belongs to the module.
        module: holds the parameters, if the op has any; in eval mode.
    """

    tensors: dict[str, Tensor]
    module: nn.Module | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def leaves(self) -> dict[str, Tensor]:
        """Everything a gradient is asked for: the inputs, then the parameters by their names in the module."""
        parameters = {} if self.module is None else dict(self.module.named_parameters())
        return {**self.tensors, **parameters}

    def double(self) -> Inputs:
        """A float64 copy, for the reference."""
        module = None if self.module is None else copy.deepcopy(self.module).double()
        return Inputs({name: t.detach().double() for name, t in self.tensors.items()}, module)

    def samples(self, start: int, stop: int) -> Inputs:
        """Views of the samples from `start` to `stop`; the module is shared."""
        return Inputs({name: t[start:stop] for name, t in self.tensors.items()}, self.module)


@dataclass(frozen=True)
class Impl:
    """One way to compute an op.

    Args:
        prepare: makes the closure that is timed; raises `Skip` where the impl cannot serve the case.
        prepare_out: makes one that writes into an output of the caller's and returns it, or raises `Skip`; None if
            the impl has none.
        slow_start: whether the first call takes long (a compilation); the preset `quick` leaves such impls out.
        library: the folders of csrc that it is built from, by commas, if any; built before anything is measured.
        kernels: what it chooses from, a line each, for `list impls`.
    """

    name: str
    prepare: Callable[[Inputs, Point], Closure]
    slow_start: bool = False
    library: str = ""
    prepare_out: Callable[[Inputs, Point, Tensor], Closure] | None = None
    kernels: tuple[str, ...] = ()


class Op:
    """What is computed: closed forms, seeded inputs, a reference, and impls.

    Subclasses set `name` (as in the command line), `title` (as in tables and plots), and raise `version` when the
    meaning of a case changes, which makes older records incomparable.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int] = 1
    #: Which roof its arithmetic is held against: a matrix product, or a plain multiply-add loop.
    roof: ClassVar[str] = "fma"
    #: Whether `combine` means anything to it.
    combines: ClassVar[bool] = False
    #: Which of `AXES` mean anything to it (`combine` only if `combines`).
    axes: ClassVar[tuple[str, ...]] = tuple(AXES)
    #: Further axes beyond `AXES`.
    extra_axes: ClassVar[tuple[Axis, ...]] = ()
    #: The resolution (rows, columns) at which it is measured where nobody asks for others, if not the preset's.
    resolution: ClassVar[tuple[int, int] | None] = None
    impls: ClassVar[dict[str, Impl]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.impls = {}

    @classmethod
    def impl(
        cls, name: str, *, slow_start: bool = False, library: str = "", kernels: tuple[str, ...] = ()
    ) -> Callable[[Callable[[Inputs, Point], Closure]], Callable[[Inputs, Point], Closure]]:
        """Attaches the decorated function, which makes the timed closure, as the impl `name`."""

        def attach(prepare: Callable[[Inputs, Point], Closure]) -> Callable[[Inputs, Point], Closure]:
            cls.impls[name] = Impl(name, prepare, slow_start, library, kernels=kernels)
            return prepare

        return attach

    @classmethod
    def out(
        cls, name: str
    ) -> Callable[[Callable[[Inputs, Point, Tensor], Closure]], Callable[[Inputs, Point, Tensor], Closure]]:
        """Attaches the decorated function to the impl `name`, as its `prepare_out`."""

        def attach(
            prepare: Callable[[Inputs, Point, Tensor], Closure],
        ) -> Callable[[Inputs, Point, Tensor], Closure]:
            cls.impls[name] = replace(cls.impls[name], prepare_out=prepare)
            return prepare

        return attach

    def build(self, point: Point, device: torch.device, generator: torch.Generator) -> Inputs:
        """Draws the inputs from `generator`, which lives on `device`, in the point's dtype and layout."""
        raise NotImplementedError

    def blank(self, point: Point, device: torch.device) -> Inputs:
        """Inputs of which only shapes matter, for what counts; an op whose drawing takes long leaves it out."""
        import torch

        return self.build(point, device, torch.Generator(device))

    def apply(self, inputs: Inputs, point: Point) -> Tensor:
        """The reference: plain differentiable PyTorch, called with float64 inputs."""
        raise NotImplementedError

    def magnitude(self, inputs: Inputs, point: Point) -> Tensor:
        """The sum of the absolute terms of each output, what errors are relative to; called with float64 inputs."""
        raise NotImplementedError

    def costs(self, point: Point) -> Costs:
        """Closed forms; see `Costs`."""
        raise NotImplementedError

    def filters(self, inputs: Inputs, point: Point) -> tuple[Tensor, ...]:
        """Generates the filters that the op generates, as its impls do; none if it generates none.

        They are what `filter_memory` looks for among the allocations of a call.
        """
        return ()

    def fvcore_handles(self) -> Mapping[str, Callable[[list[Any], list[Any]], Any]]:
        """How fvcore is to count operators it does not know: `FlopCountAnalysis.set_op_handle`'s arguments."""
        return {}


def op_files(folder: Path = Path(__file__).parent) -> list[Path]:
    """The op files of a package like this one: every plain file beside its `__init__`."""
    return sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")


def load(path: Path) -> dict[str, Op]:
    """Imports one op file, of this package or anyone's, and returns the ops it defines, by name.

    Raises:
        Whatever the file raises; nothing else is affected by that.
    """
    path = path.resolve()
    if path.parent == Path(__file__).resolve().parent:
        module = importlib.import_module(f".{path.stem}", __name__)
    else:
        name = f"op_file_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    found = [
        value()
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Op)
        and value.__module__ == module.__name__
        and "name" in vars(value)
    ]
    return {op.name: op for op in found}
