"""Devices: what torch reports, what a backend brings, and a probed profile of what each can do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torch_conformance.axes import FLOATING
from torch_conformance.errors import UsageError


@dataclass(frozen=True)
class Profile:
    """What a device can do; probed, or stated by its backend in ``conformance_profile``."""

    name: str
    description: str
    dtypes: tuple[str, ...]
    threads: int | None = None

    def header(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def load_backend(module: str) -> None:
    """Import the module that registers an out-of-tree device. Raises `UsageError` when it cannot be imported."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a vendor's module may raise anything at import
        raise UsageError(f"--backend {module}: cannot be imported: {type(error).__name__}: {error}") from None


def default_devices() -> list[str]:
    """The CPU and the accelerator that torch reports, if any."""
    reported = getattr(torch, "accelerator", None)
    if reported is not None and reported.is_available():
        return ["cpu", reported.current_accelerator().type]
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def probe(name: str) -> Profile:
    """Ask the device what it can do. Raises `UsageError` for a device that torch cannot use."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except Exception as error:  # each backend has its own way of being absent
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"--device {name}: torch {torch.__version__} cannot use it: {first}") from None
    return Profile(
        name=name,
        description=describe(device),
        dtypes=tuple(dtype for dtype in FLOATING if computes(device, getattr(torch, dtype))),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
    )


def computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product and a sum in the dtype come back from the device as they should."""
    try:
        x = torch.tensor([1.5, -2.0, 4.0]).to(device=device, dtype=dtype)
        return bool(((x * x).cpu() == torch.tensor([2.25, 4.0, 16.0], dtype=dtype)).all())
    except Exception:  # an unsupported dtype may raise anything
        return False


def describe(device: torch.device) -> str:
    module = getattr(torch, device.type, None)
    try:
        return str(module.get_device_name(device))  # type: ignore[union-attr]
    except Exception:  # many backends have no such function; their type is description enough
        return device.type


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was asked to, so that its state can be read."""
    module = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(module, "synchronize"):
        module.synchronize()  # type: ignore[union-attr]


def choose_dtypes(profile: Profile, wanted: Sequence[str]) -> tuple[str, ...]:
    """The dtypes of a run on this device: those asked for, else those of its profile."""
    return tuple(wanted) or profile.dtypes
