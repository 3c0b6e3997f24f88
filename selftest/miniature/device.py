"""A whole out-of-tree device in pure Python: its memory is the host's, and it lets the CPU compute.

It is the smallest example of a backend for the suite, and the ground of three wrong ones, which break one kernel each.
Needs torch 2.11 or newer, where a backend can be registered from Python (an experimental interface of torch).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "miniature"
EXTENSION = 12  # the number under which DLPack knows devices that it has no name for
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
COMPOSITES = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
Kernel = Callable[..., Any]
conformance_profile = {"kernels": "cpu"}  # what is known of the CPU's kernels shows here, too
NUMBERS = torch.Generator()  # the state of the device's own random numbers
MIXED = ("copy_", "_copy_from", "index", "index_put", "index_put_", "_index_put_impl_")
OVERRIDES: dict[str, Kernel] = {}  # operator name to a kernel(op, *args) of CPU tensors, in place of what op does

aten = torch.ops.aten
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def relabelled(host: torch.Tensor) -> torch.Tensor:
    """A tensor of the device over the memory of a contiguous CPU tensor, which it keeps alive."""
    capsule = torch.utils.dlpack.to_dlpack(host)
    device_type = ctypes.c_int32.from_address(capsule_pointer(capsule, b"dltensor") + 8)  # behind the data pointer
    device_type.value = EXTENSION
    return torch.utils.dlpack.from_dlpack(capsule)


def storage_of(host: torch.Tensor) -> torch.UntypedStorage:
    """The whole storage of a CPU tensor, as one of the device."""
    memory = torch.empty(0, dtype=torch.uint8, device="cpu")
    return relabelled(aten.set_.source_Storage(memory, host.untyped_storage())).untyped_storage()


def set_(tensor: torch.Tensor, storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    """Let the tensor see the storage as ``like`` sees its own. The CPU's kernel for this touches no memory."""
    place = (like.storage_offset(), like.size(), like.stride())
    return aten.set_.source_Storage_storage_offset.redispatch(CPU, tensor, storage, *place)


def host_of(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the memory of a tensor of the device; one that is not initialised has a size but no shape."""
    storage = tensor.untyped_storage()
    if not storage.nbytes():  # the CPU may give it memory
        return aten.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    host = set_(aten.empty([0], dtype=tensor.dtype, device="cpu"), memory, tensor)
    host = aten._conj(host) if tensor.is_conj() else host
    return aten._neg_view(host) if tensor.is_neg() else host


class Call:
    """One call of an operator: what stands on the CPU for each tensor of the device, and the other way round."""

    def __init__(self) -> None:
        self.hosts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # id of the device's tensor to it and its host
        self.storages: dict[int, torch.UntypedStorage] = {}  # address on the CPU to the device's storage there
        self.bases: dict[int, torch.Tensor] = {}  # the same to an argument that lies there
        self.given: dict[int, torch.Tensor] = {}  # id of a CPU tensor among the arguments to what was given

    def down(self, value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        if not isinstance(value, torch.Tensor):
            return value
        host = value
        if value.device.type == NAME:
            value, host = self.hosts.setdefault(id(value), (value, host_of(value)))
            address = host.untyped_storage().data_ptr()
            self.storages[address], self.bases[address] = value.untyped_storage(), value
        self.given[id(host)] = value
        return host

    def up(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in self.given:
            return self.given[id(value)]
        if value.layout is not torch.strided or value.is_nested:
            kind = "nested" if value.is_nested else value.layout
            raise NotImplementedError(f"a {kind} tensor is not supported on this device")
        base = self.bases.get(value.untyped_storage().data_ptr())
        if base is not None and base.dtype == value.dtype:  # in inference mode, too, a view is what its base is
            return aten.as_strided.default.redispatch(CPU, base, value.shape, value.stride(), value.storage_offset())
        return set_(relabelled(aten.empty([0], dtype=value.dtype, device="cpu")), self.storage(value), value)

    def storage(self, host: torch.Tensor) -> torch.UntypedStorage:
        address = host.untyped_storage().data_ptr()
        if not address:
            return storage_of(host)
        if address not in self.storages:
            self.storages[address] = storage_of(host)
        return self.storages[address]

    def follow(self) -> None:
        """Let tensors of the device take the shape and the memory that the CPU gave to what stands for them."""
        for tensor, host in self.hosts.values():
            address, old = host.untyped_storage().data_ptr(), tensor.untyped_storage().data_ptr()
            if (address and address != old) or host.shape != tensor.size() or host.stride() != tensor.stride():
                set_(tensor, self.storage(host), host)


def compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the operator, or what overrides it, on the CPU, over the same memory."""
    name = op._schema.name.removeprefix("aten::")
    if name == "set_":
        return op.redispatch(CPU, *args, **kwargs)
    values, structure = pytree.tree_flatten((args, kwargs))
    refuse_mixed(name, values)
    call = Call()
    args, kwargs = structure.unflatten(map(call.down, values))
    with own_numbers() if torch.Tag.nondeterministic_seeded in op.tags else nullcontext():
        result = OVERRIDES.get(name, plain)(op, *args, **kwargs)
    call.follow()
    return pytree.tree_map(call.up, result)


@contextmanager
def own_numbers() -> Iterator[None]:
    """Let the CPU draw from the device's generator, and leave its own where it was."""
    host = torch.get_rng_state()
    torch.set_rng_state(NUMBERS.get_state())
    try:
        yield
    finally:
        NUMBERS.set_state(torch.get_rng_state())
        torch.set_rng_state(host)


def refuse_mixed(name: str, values: list[Any]) -> None:
    """As a device with memory of its own, take tensors of the host for nothing but copies, indices and numbers."""
    found = {value.device.type for value in values if isinstance(value, torch.Tensor) and value.dim()}
    if len(found) > 1 and name not in MIXED and not name.startswith("_fused_"):  # those take lr from the host
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} was given {sorted(found)}")


def plain(op: Any, *args: Any, **kwargs: Any) -> Any:
    return op(*args, **kwargs)


def resize_(op: Any, x: torch.Tensor, size: list[int], **kwargs: Any) -> torch.Tensor:
    """Memory that was lent cannot grow: take new memory."""
    grown = aten.empty(size, dtype=x.dtype, device="cpu")
    if grown.numel() <= x.untyped_storage().nbytes() // x.element_size():
        return op(x, size, **kwargs)
    aten.copy_(grown.view(-1)[: x.numel()], x.reshape(-1))
    return aten.set_.source_Tensor(x, grown)


def copy_from(op: Any, source: torch.Tensor, to: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What ``copy_`` asks of a device, which has to resolve lazy conjugates itself."""
    return aten.copy_(to, source)


def efficient_zero(op: Any, size: list[int], **kwargs: Any) -> torch.Tensor:
    """A tensor of zeros that has no memory is an offer, and this device has no use for it."""
    return aten.zeros(size, **kwargs)


OVERRIDES["resize_"] = resize_
OVERRIDES["_efficientzerotensor"] = efficient_zero
OVERRIDES["_copy_from"] = copy_from
OVERRIDES["remainder"] = lambda op, *args, **kwargs: torch.remainder(*args, **kwargs)  # its op takes no Python number
OVERRIDES["convolution_overrideable"] = lambda op, *args: aten.convolution(*args)
OVERRIDES["convolution_backward_overrideable"] = lambda op, gradient, x, weight, *rest: aten.convolution_backward(
    gradient, x, weight, [weight.shape[0]], *rest
)


class Module:
    """What ``torch.miniature`` offers."""

    _initialized = True  # torch.utils.checkpoint keeps the generator only of a device that says so
    device = nullcontext

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
        NUMBERS.manual_seed(seed + 1)  # other numbers than the CPU draws, as on any device

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return NUMBERS.get_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        NUMBERS.set_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def load_storage(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """For torch.load: the storage of a file, on the device if it was saved from there."""
    if not location.startswith(NAME):
        return None
    return storage_of(aten.set_.source_Storage(aten.empty([0], dtype=torch.uint8, device="cpu"), storage))


def clone_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """For copy.deepcopy: torch itself would ask the device for an allocator, which Python cannot register."""
    if storage.device.type != NAME:
        return clone_elsewhere(storage)
    seen = relabelled(aten.empty([0], dtype=torch.uint8, device="cpu"))
    return aten.clone(aten.set_.source_Storage(seen, storage)).untyped_storage()


def kernels_before_the_fallback() -> list[Any]:
    """Operators that torch would make of others, if nothing were registered but what takes all that is left.

    Those that the CPU has a kernel for are computed by it: GroupNorm, for one, takes a memory layout that the composite
    refuses. Convolutions are there for a device to override.
    """
    own = set(torch._C._dispatch_get_registrations_for_dispatch_key("CPU"))
    composite = {name for key in COMPOSITES for name in torch._C._dispatch_get_registrations_for_dispatch_key(key)}
    chosen = own & composite | {f"aten::{name}" for name in OVERRIDES if name.endswith("overrideable")}
    chosen |= {"aten::empty_strided", "aten::_copy_from"}  # by name, or torch.tensor() fails under a dispatch mode
    return [operator(name) for name in sorted(chosen) if name.startswith("aten::")]


def operator(name: str) -> Any:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(aten, packet), overload or "default")


_setup_privateuseone_for_python_backend(NAME, backend_module=Module())
clone_elsewhere = torch.UntypedStorage.clone
torch.serialization.register_package(9, lambda storage: None, load_storage)
torch.UntypedStorage.clone = clone_storage  # type: ignore[method-assign]
KERNELS = [torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")]
KERNELS[0].fallback(compute, "PrivateUse1")
for kernel in kernels_before_the_fallback():
    KERNELS[1].impl(kernel, functools.partial(compute, kernel), "PrivateUse1")
for lazy in ("Conjugate", "Negative"):
    KERNELS[1].impl("_copy_from", torch.library.fallthrough_kernel, lazy)
