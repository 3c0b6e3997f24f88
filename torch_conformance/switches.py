"""Torch's global switches: read before a test, restored after it, so that no case can colour the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
}


class Leak(RuntimeError):
    """A test left a global switch other than it found it: the suite's fault, not torch's."""


@contextmanager
def switched(name: str, value: Any) -> Iterator[None]:
    """The switch of this name stands at the value within the block, and as before after it."""
    getter, setter = SWITCHES[name]
    before = getter()
    setter(value)
    try:
        yield
    finally:
        setter(before)


def read() -> dict[str, Any]:
    return {name: getter() for name, (getter, _) in SWITCHES.items()}


def restore(before: dict[str, Any]) -> list[str]:
    """Put every switch back, and return the names of those that had moved."""
    moved = [name for name, value in read().items() if value != before[name]]
    for name in moved:
        SWITCHES[name][1](before[name])
    return moved
