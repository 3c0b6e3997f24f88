"""The norm kernels that are timed: what each one is, how it is built, and the bytes that it must move.

Shared by the pytest-benchmark file, by ``bench`` and by its workers. A worker runs in an interpreter that has
torch and nothing of this package, so this module imports the standard library and, inside functions, torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

Thunk = Callable[[], Any]

NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
PASSES = ("forward-train", "forward-eval", "backward", "forward-backward")
SIZES = ("s", "m", "l")
FORMATS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}
LAYOUTS = tuple(FORMATS)
GROUPS = 32

# ResNet-50 activations (stage 3 at batch 1, stage 2 at batch 4, stage 1 at batch 32) and transformer hidden states
# (width 768 and 1024). In float32: about 200 kB, 1.6 MB and 26 MB (17 MB), from cache to memory on common machines.
_IMAGES: dict[str, tuple[int, ...]] = {"s": (1, 256, 14, 14), "m": (4, 128, 28, 28), "l": (32, 64, 56, 56)}
_HIDDEN: dict[str, tuple[int, ...]] = {"s": (1, 64, 768), "m": (4, 128, 768), "l": (8, 512, 1024)}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "batch_norm": _IMAGES,
    "group_norm": _IMAGES,
    "instance_norm": _IMAGES,
    "layer_norm": _HIDDEN,
    "rms_norm": _HIDDEN,
}
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


class Unsupported(Exception):
    """This torch or device lacks the kernel; the message says what is missing."""


@dataclass(frozen=True, order=True)
class Kernel:
    """One norm at one size, dtype, pass and memory layout."""

    norm: str
    size: str
    dtype: str
    direction: str  # one of PASSES
    layout: str = "contiguous"

    @property
    def name(self) -> str:
        """`layer_norm/m/float32/backward`; the layout is named when it is not contiguous."""
        parts = [self.norm, self.size, self.dtype, self.direction]
        return "/".join(parts + ([self.layout] if self.layout != "contiguous" else []))

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.norm][self.size]

    @classmethod
    def parse(cls, name: str) -> Kernel:
        """The kernel of that name. Raises ValueError when a part is unknown."""
        norm, size, dtype, direction, layout = [*name.split("/"), "contiguous"][:5]
        kernel = cls(norm, size, dtype, direction, layout)
        if name.count("/") > 4 or not (norm in NORMS and size in SIZES and direction in PASSES
                                       and dtype in ITEMSIZE and layout in LAYOUTS):  # fmt: skip
            raise ValueError(f"no such kernel: {name}")
        return kernel


def catalogue(
    sizes: tuple[str, ...] = ("s", "m"),
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    directions: tuple[str, ...] = ("forward-train", "forward-eval", "backward"),
) -> list[Kernel]:
    """Every norm over the given sizes, dtypes and passes, then two image norms in channels_last at float32."""
    kernels = [
        Kernel(norm, size, dtype, direction)
        for norm in NORMS for size in sizes for dtype in dtypes for direction in directions
    ]  # fmt: skip
    kernels += [
        Kernel(norm, sizes[0], "float32", direction, "channels_last")
        for norm in ("batch_norm", "group_norm") for direction in directions
        if "float32" in dtypes
    ]  # fmt: skip
    return kernels


# -- bytes ------------------------------------------------------------------------------------------------------


def minimal_bytes(kernel: Kernel) -> int:
    """The bytes that any implementation of the kernel has to move between the arithmetic units and memory.

    Each tensor crosses once: a forward pass reads x and writes y; a backward pass reads x and the gradient of y
    and writes the gradient of x. A second reading of x for its statistics is not counted, for each slice that
    is normalised (a channel, a row, a group) can stay in cache. Parameters are read once, their gradients
    written once; a forward pass that trains writes its saved statistics, which the backward pass reads, and
    BatchNorm and InstanceNorm then also read and write their running statistics.
    """
    item = ITEMSIZE[kernel.dtype]
    activation = prod(kernel.shape) * item
    parameters = _parameters(kernel) * item
    saved = _statistics(kernel) * item
    running = 2 * kernel.shape[1] * item if kernel.norm in ("batch_norm", "instance_norm") else 0
    forward = 2 * activation + parameters
    train = forward + saved + 2 * running
    backward = 3 * activation + 2 * parameters + saved
    if kernel.direction == "forward-eval":
        return forward + running
    return {"forward-train": train, "backward": backward, "forward-backward": train + backward}[kernel.direction]


def _parameters(kernel: Kernel) -> int:
    """Elements of weight and bias together (RMSNorm has no bias)."""
    if kernel.norm == "rms_norm":
        return kernel.shape[-1]
    return 2 * (kernel.shape[-1] if kernel.norm == "layer_norm" else kernel.shape[1])


def _statistics(kernel: Kernel) -> int:
    """Elements that the forward pass saves for the backward pass: mean and reciprocal deviation of each slice."""
    n, c = kernel.shape[:2]
    slices = {
        "batch_norm": 2 * c,
        "instance_norm": 2 * n * c,
        "group_norm": 2 * n * GROUPS,
        "layer_norm": 2 * prod(kernel.shape[:-1]),
        "rms_norm": prod(kernel.shape[:-1]),
    }
    return slices[kernel.norm]


# -- building ---------------------------------------------------------------------------------------------------


def build(kernel: Kernel, device: str = "cpu", seed: int = 0) -> Thunk:
    """A function of no arguments that runs torch's own kernel once. Raises Unsupported where torch lacks it."""
    generator = _generator(seed)
    module = _module(kernel, device, generator)
    return _run(kernel, module, list(module.parameters()), _input(kernel, device, generator))


def build_formula(kernel: Kernel, device: str = "cpu", seed: int = 0, compiled: bool = False) -> Thunk:
    """The same law in plain torch operations, as a user would write it, optionally through torch.compile."""
    import torch

    generator = _generator(seed)
    module = _module(kernel, device, generator)
    function = _formula(kernel, module)
    if compiled:
        if not hasattr(torch, "compile"):
            raise Unsupported(f"torch {torch.__version__} has no torch.compile")
        function = torch.compile(function)
    return _run(kernel, function, list(module.parameters()), _input(kernel, device, generator))


def _generator(seed: int) -> Any:
    """Of its own: torch.manual_seed also goes to every accelerator, which took a sixth of the time of building."""
    import torch

    return torch.Generator().manual_seed(seed)


def _input(kernel: Kernel, device: str, generator: Any) -> Any:
    """Normal values that repeat, for drawing all of them would cost more time than the measurement."""
    import torch

    drawn, count = torch.randn(8191, generator=generator), prod(kernel.shape)
    x = drawn.repeat(count // len(drawn) + 1)[:count].view(kernel.shape)
    x = x.to(device=device, dtype=getattr(torch, kernel.dtype), copy=True)
    return x.contiguous(memory_format=getattr(torch, FORMATS[kernel.layout]))


def _module(kernel: Kernel, device: str, generator: Any) -> Any:
    import torch
    from torch import nn

    if kernel.norm == "rms_norm" and not hasattr(nn, "RMSNorm"):
        raise Unsupported(f"torch {torch.__version__} has no RMSNorm")
    channels, width = kernel.shape[1], kernel.shape[-1]
    module = {
        "batch_norm": lambda: nn.BatchNorm2d(channels),
        "instance_norm": lambda: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
        "group_norm": lambda: nn.GroupNorm(GROUPS, channels),
        "layer_norm": lambda: nn.LayerNorm(width),
        "rms_norm": lambda: nn.RMSNorm(width, eps=1e-5),
    }[kernel.norm]()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.5, 1.5, generator=generator)
    return module.to(device=device, dtype=getattr(torch, kernel.dtype)).train(kernel.direction != "forward-eval")


def _run(kernel: Kernel, function: Callable[[Any], Any], parameters: list[Any], x: Any) -> Thunk:
    """Wraps `function` in the kernel's pass, and runs it once so that what cannot run is known now."""
    import torch

    if kernel.direction == "forward-eval":

        def thunk() -> Any:
            with torch.no_grad():
                return function(x)

    else:
        x.requires_grad_()
        upstream = x.detach().flip(-1).contiguous(memory_format=getattr(torch, FORMATS[kernel.layout]))
        wanted = [x, *parameters]
        if kernel.direction == "forward-train":

            def thunk() -> Any:
                return function(x)

        elif kernel.direction == "backward":
            y = function(x)

            def thunk() -> Any:
                return torch.autograd.grad(y, wanted, upstream, retain_graph=True)

        else:

            def thunk() -> Any:
                return torch.autograd.grad(function(x), wanted, upstream)

    try:
        thunk()
    except (RuntimeError, NotImplementedError) as error:
        raise Unsupported(str(error).splitlines()[0]) from error
    return thunk


def _formula(kernel: Kernel, module: Any) -> Callable[[Any], Any]:
    import torch

    weight, eps = module.weight, module.eps
    bias: Any = getattr(module, "bias", None)
    shape = kernel.shape
    if kernel.norm == "rms_norm":
        return lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight
    if kernel.norm == "layer_norm":
        return lambda x: _standardise(x, (-1,), eps) * weight + bias

    w, b = weight.view(1, -1, 1, 1), bias.view(1, -1, 1, 1)
    if kernel.norm == "group_norm":
        grouped = (shape[0], GROUPS, shape[1] // GROUPS, *shape[2:])
        return lambda x: _standardise(x.reshape(grouped), (2, 3, 4), eps).reshape(shape) * w + b

    mean, var = module.running_mean, module.running_var
    if kernel.direction == "forward-eval":
        return lambda x: (x - mean.view(1, -1, 1, 1)) * torch.rsqrt(var.view(1, -1, 1, 1) + eps) * w + b
    axes = (0, 2, 3) if kernel.norm == "batch_norm" else (2, 3)
    count = prod(shape[axis] for axis in axes)

    def train(x: Any) -> Any:
        m, v = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        with torch.no_grad():
            mean.lerp_(m.mean(0).flatten(), module.momentum)
            var.lerp_(v.mean(0).flatten() * (count / (count - 1)), module.momentum)
        return (x - m) * torch.rsqrt(v + eps) * w + b

    return train


def _standardise(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    import torch

    mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps)


# -- the machine's limit ----------------------------------------------------------------------------------------


def build_copy(total_bytes: int, device: str = "cpu") -> Thunk:
    """A copy that reads half of `total_bytes` and writes the other half, in float32."""
    return copy_slices(total_bytes, total_bytes, device)[0]


def build_triad(total_bytes: int, device: str = "cpu") -> Thunk:
    """STREAM's triad, a = b + s·c: reads two thirds of `total_bytes` and writes one third, in float32."""
    return triad_slices(total_bytes, total_bytes, device)[0]


def copy_slices(total_bytes: int, slice_bytes: int, device: str = "cpu") -> list[Thunk]:
    """The copy in equal slices of about `slice_bytes`; run in turn, each finds its part as cold as the whole would."""
    import torch

    arrays = torch.ones(2, max(1, total_bytes // 8), device=device)
    return [
        lambda a=a, b=b: b.copy_(a)  # type: ignore[misc]
        for a, b in _equal_parts(arrays, total_bytes / slice_bytes)
    ]


def triad_slices(total_bytes: int, slice_bytes: int, device: str = "cpu") -> list[Thunk]:
    """The triad in slices, like `copy_slices`."""
    import torch

    arrays = torch.ones(3, max(1, total_bytes // 12), device=device)
    return [
        lambda a=a, b=b, c=c: torch.add(b, c, alpha=1.5, out=a)  # type: ignore[misc]
        for a, b, c in _equal_parts(arrays, total_bytes / slice_bytes)
    ]


def _equal_parts(arrays: Any, count: float) -> Iterator[tuple[Any, ...]]:
    """The arrays' first parts, then their second ones, and so on: about `count`, and one at least."""
    return zip(*(array.tensor_split(max(1, round(count))) for array in arrays), strict=True)
