"""Devices: what torch reports, what a backend brings, and a probed profile of what each can do."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from torch_conformance.axes import DTYPES, FLOATING, LAYOUTS, Point
from torch_conformance.errors import UsageError

M = TypeVar("M", bound=nn.Module)
ENTRY_POINTS = "torch_conformance.backends"
BACKENDS: list[ModuleType] = []  # what was imported beside torch, the last first


@dataclass(frozen=True)
class Profile:
    """What a device can do: probed, or stated by its backend in ``conformance_profile``."""

    name: str
    description: str
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...] = LAYOUTS
    autograd: bool = True
    seeded: bool = True
    threads: int | None = None
    kernels: str | None = None

    @property
    def kind(self) -> str:
        """The kind of device, whichever of several it is."""
        return self.name.partition(":")[0]

    @property
    def computed_by(self) -> str:
        """The kind of device whose kernels compute for it, and show their deviations here: mostly its own."""
        return self.kernels or self.kind

    def header(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def lacks(self) -> list[str]:
        """What a complete device has and this one has not."""
        missing = [name for name in FLOATING if name not in self.dtypes]
        missing += [f"layout {name}" for name in LAYOUTS if name not in self.layouts]
        return (
            missing + ["autograd"] * (not self.autograd) + ["random numbers that follow the seed"] * (not self.seeded)
        )

    def lacking(self, point: Point) -> str | None:
        """Why no case can run at this point, or nothing."""
        if point.dtype not in self.dtypes:
            return f"device {self.name} does not compute in {point.dtype}"
        if point.layout not in self.layouts:
            return f"device {self.name} has no layout {point.layout}"
        return None


def load_backend(module: str) -> dict[str, Any]:
    """Import the module that registers an out-of-tree device, and return the profile that it states, or {}.

    Raises `UsageError` when it cannot be imported or states something unknown.
    """
    try:
        backend = importlib.import_module(module)
    except Exception as error:  # a vendor's module may raise anything at import
        raise UsageError(f"--backend {module}: cannot be imported: {type(error).__name__}: {error}") from None
    BACKENDS.insert(0, backend)
    stated = getattr(backend, "conformance_profile", {})
    if unknown := sorted(set(stated) - {"dtypes", "layouts", "autograd", "seeded", "description", "kernels"}):
        raise UsageError(f"--backend {module}: conformance_profile knows no {unknown[0]!r}")
    return dict(stated)


def load_installed(device: str) -> dict[str, Any]:
    """Load the installed backend that is named like the device in the entry points, if there is one."""
    wanted = device.partition(":")[0]
    found = importlib.metadata.entry_points(group=ENTRY_POINTS, name=wanted)
    return {key: value for entry in found for key, value in load_backend(entry.module).items()}


def default_devices() -> list[str]:
    """The CPU and the accelerator that torch reports, if any."""
    reported = getattr(torch, "accelerator", None)
    if reported is not None and reported.is_available():
        return ["cpu", reported.current_accelerator().type]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def probe(name: str, stated: Sequence[dict[str, Any]] = ()) -> Profile:
    """Ask the device what it can do; what its backend states goes before. Raises `UsageError` if it is absent."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except Exception as error:  # each backend has its own way of being absent
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "" if BACKENDS else "; the module that registers a device is named by --backend"
        raise UsageError(f"--device {name}: torch {torch.__version__} cannot use it: {first}{hint}") from None
    facts: dict[str, Any] = {
        "description": describe(device),
        "dtypes": tuple(dtype for dtype in DTYPES if works(computes, device, getattr(torch, dtype))),
        "layouts": tuple(layout for layout in LAYOUTS if works(arranges, device, layout)),
        "autograd": works(differentiates, device),
        "seeded": works(repeats, device),
    }
    for statement in stated:
        facts.update({key: tuple(value) if isinstance(value, list) else value for key, value in statement.items()})
    return Profile(name=name, threads=torch.get_num_threads() if device.type == "cpu" else None, **facts)


def works(test: Callable[..., bool], *args: Any) -> bool:
    """Whether the device passes; one that lacks something may raise anything."""
    try:
        return bool(test(*args))
    except Exception:
        return False


def computes(device: torch.device, dtype: torch.dtype) -> bool:
    x = torch.tensor([1.5, -2.0, 4.0]).to(dtype).to(device)
    return bool(((x * x).cpu() == torch.tensor([2.25, 4.0, 16.0], dtype=dtype)).all())


def arranges(device: torch.device, layout: str) -> bool:
    x = torch.arange(16.0).reshape(2, 2, 2, 2).to(device)
    laid, wanted = lay_out(x, layout), lay_out(x.cpu(), layout)
    return laid.stride() == wanted.stride() and bool((laid.cpu() == wanted).all())


def differentiates(device: torch.device) -> bool:
    x = torch.tensor([1.5, -2.0]).to(device).requires_grad_()
    torch.autograd.backward((x * x).sum())
    return x.grad is not None and bool((x.grad.cpu() == torch.tensor([3.0, -4.0])).all())


def repeats(device: torch.device) -> bool:
    drawn = []
    for _ in range(2):
        seed(device, 7)
        drawn.append(torch.rand(4, device=device).cpu())
    return torch.equal(*drawn)


def offered(device: torch.device, name: str) -> Callable[..., Any] | None:
    """What the device's module in torch has under this name or, where torch has no such module, its backend."""
    inside = getattr(torch, device.type, None)
    found = [getattr(module, name, None) for module in ([inside] if inside else BACKENDS)]
    return next((function for function in found if callable(function)), None)


def describe(device: torch.device) -> str:
    try:
        return str(offered(device, "get_device_name")(device))  # type: ignore[misc]
    except Exception:  # many backends have no such function
        return platform.machine() if device.type == "cpu" else device.type


def seed(device: torch.device, number: int) -> None:
    """Seed all generators of torch and, where torch does not know the device's own, that of its backend."""
    torch.manual_seed(number)
    if not hasattr(torch, device.type) and (manual_seed := offered(device, "manual_seed")):
        manual_seed(number)


def rng_state(device: torch.device) -> torch.Tensor | None:
    """The state of the device's generator; none where it cannot be read."""
    if device.type == "cpu":
        return torch.get_rng_state()
    get_rng_state = offered(device, "get_rng_state")
    return None if get_rng_state is None else torch.as_tensor(get_rng_state(*which(device))).cpu()


def moved(layer: M, device: torch.device, dtype: torch.dtype) -> M:
    """The layer, moved. What was one parameter stays one, though torch makes new ones for most foreign devices."""
    if device.type == "cpu":
        return layer.to(device=device, dtype=dtype)
    owned = [(module._parameters, name) for module in layer.modules() for name in module._parameters]
    before = [parameters[name] for parameters, name in owned]
    layer = layer.to(device=device, dtype=dtype)
    after: dict[int, nn.Parameter | None] = {}
    for (parameters, name), old in zip(owned, before, strict=True):
        parameters[name] = after.setdefault(id(old), parameters[name])
    return layer


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to, so that its state can be read; a lazy one begins here."""
    if device.type != "cpu" and (synchronize := offered(device, "synchronize") or offered(device, "sync")):
        synchronize(*which(device))


def which(device: torch.device) -> list[torch.device]:
    """The argument that tells one of several devices from the current one."""
    return [device] if device.index is not None else []


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The values in another memory layout, where the rank has such a one; ``expanded`` repeats the first row."""
    if layout == "contiguous" or tensor.ndim == 0:
        return tensor
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        padded = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype, device=tensor.device)
        return padded[..., 1::2].copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    raise ValueError(f"no layout named {layout!r}")
