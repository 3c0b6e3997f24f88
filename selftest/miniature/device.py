"""A whole out-of-tree device in pure Python: it keeps its data in CPU tensors and lets the CPU compute.

It is the smallest example of a backend for the suite, and the ground of three wrong ones, which break one kernel each.
Needs torch 2.11 or newer, where a backend can be registered from Python (an experimental interface of torch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "miniature"
Kernel = Callable[..., Any]
OVERRIDES: dict[str, Kernel] = {}  # operator name to a kernel(op, *args) that breaks what op does


class MiniatureTensor(torch.Tensor):
    """A tensor of the device; its data is the CPU tensor ``held``."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> MiniatureTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=f"{NAME}:0",
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(op, *args, **(kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {NAME}"


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the operator, or what overrides it, on the CPU; results stay here unless the caller asked for the CPU."""
    wrappers = {id(t.held): t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, MiniatureTensor)}
    leaves_device = "device" in kwargs and torch.device(kwargs["device"] or NAME).type != NAME
    inner_args, inner_kwargs = pytree.tree_map(to_cpu, (args, kwargs))
    kernel = OVERRIDES.get(op._schema.name.removeprefix("aten::"), call)
    result = kernel(op, *inner_args, **inner_kwargs)
    if leaves_device:
        return result
    if torch.Tag.inplace_view in op.tags:
        with no_dispatch():  # the shell takes the shape and strides that its data took
            op(*args, **kwargs)

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, MiniatureTensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else MiniatureTensor(value)

    return pytree.tree_map(wrap, result)


def call(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


def to_cpu(value: Any) -> Any:
    if isinstance(value, MiniatureTensor):
        return value.held
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


class Module:
    """What ``torch.miniature`` offers."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """The CPU's generator draws all numbers, and torch seeds it anyway."""

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=Module())
FACTORIES = torch.library.Library("_", "IMPL")
FACTORIES.fallback(compute, "PrivateUse1")
