"""The state witness: everything that a call may change, taken before and after.

State is named as users name it: ``weight``, ``0.running_mean``, ``weight.grad``, ``0.training``,
``weight.requires_grad``, ``rng`` (the default generators), ``grad mode``. A tensor is told apart by its bits, its
version counter and whether it is the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torch_conformance.checks import Violation, bits
from torch_conformance.devices import rng_state

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


class Frozen:
    """A tensor's state at one moment. Holds the tensor, so that no other object can take over its identity."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.bits = bits(tensor).clone()
        self.version = None if tensor.is_inference() else tensor._version

    def differs(self, other: Frozen) -> bool:
        return (
            self.tensor is not other.tensor
            or self.version != other.version
            or self.bits.shape != other.bits.shape
            or not torch.equal(self.bits, other.bits)
        )


def observe(subjects: Mapping[str, Any], devices: Iterable[torch.device]) -> dict[str, Any]:
    """Name to state of everything the subjects hold, and of the global state beside them."""
    states = [rng_state(device) for device in {torch.device("cpu"), *devices}]
    seen: dict[str, Any] = {"grad mode": torch.is_grad_enabled(), "rng": [s for s in states if s is not None]}
    for name, subject in subjects.items():
        seen.update(observe_one(name, subject))
    return seen


def observe_one(prefix: str, subject: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(subject, torch.Tensor):
        yield from observe_tensor(prefix, subject)
    elif isinstance(subject, nn.Module):
        for name, module in subject.named_modules(prefix=prefix):
            yield dotted(name, "training"), module.training
            yield dotted(name, "hooks"), tuple(tuple(getattr(module, hooks, ())) for hooks in HOOKS)
        for name, tensor in [*subject.named_parameters(prefix), *subject.named_buffers(prefix)]:
            yield from observe_tensor(name, tensor)
    else:
        raise TypeError(f"cannot observe a {type(subject).__name__}: give modules and tensors")


def observe_tensor(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield name, Frozen(tensor)
    yield f"{name}.requires_grad", tensor.requires_grad
    if tensor.is_leaf:
        yield f"{name}.grad", None if tensor.grad is None else Frozen(tensor.grad)


def dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Names of what appeared, vanished or changed."""
    changed = set(before) ^ set(after)
    for name in set(before) & set(after):
        old, new = before[name], after[name]
        if isinstance(old, Frozen) and isinstance(new, Frozen):
            different = old.differs(new)
        elif name == "rng":
            different = any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
        else:
            different = type(old) is not type(new) or old != new
        if different:
            changed.add(name)
    return changed


@contextmanager
def changes_only(
    subjects: Mapping[str, Any], but: Iterable[str], devices: Iterable[torch.device] = ()
) -> Iterator[None]:
    """Raises `Violation` unless the block changes exactly what ``but`` names, no more and no less."""
    before = observe(subjects, devices)
    yield
    changed, allowed = differences(before, observe(subjects, devices)), set(but)
    if wrong := sorted(changed - allowed):
        raise Violation(f"changed {', '.join(wrong)}, which must stay as it was")
    if missing := sorted(allowed - changed):
        raise Violation(f"left {', '.join(missing)} as it was, which must change")
