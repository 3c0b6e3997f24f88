"""The case: what a test is given to make its subject, run it and judge it at one point of the axes."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from torch_conformance import checks, devices, state, vias
from torch_conformance.axes import Point
from torch_conformance.replacements import NotTaken, Replacement

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class Unsupported(pytest.skip.Exception):  # type: ignore[misc, name-defined]
    """The device, the dtype or the version lacks what the test needs; the message is the reason."""


class Case:
    """One test at one point of the axes.

    Values are drawn from ``case.rng``, whose seed comes from the test's name, its parameters and ``--seed``; all dtypes
    and devices see the same values, rounded. Checks record their headroom, so that a case that holds says by how much.
    """

    def __init__(self, point: Point, name: str, seed: int, replacements: Iterable[Replacement] = ()) -> None:
        self.point = point
        self.replacements = {replacement.original: replacement for replacement in replacements}
        self.replaced = False
        self.device = torch.device(point.device)
        self.dtype: torch.dtype = getattr(torch, point.dtype)
        self.layout = point.layout
        self.via = point.via
        self.headroom: float | None = None
        self.seen: list[str] = []
        self.seed = zlib.crc32(f"{seed} {name}".encode())
        self.rng = np.random.default_rng(self.seed)
        torch.default_generator.manual_seed(self.seed)
        if self.device.type != "cpu":
            self.reseed()  # costs a thousand times as much, for it asks every backend

    def reseed(self) -> None:
        """Let the generators of the host and of the device draw the numbers of the case's beginning again."""
        devices.seed(self.device, self.seed)

    # -- subjects ----------------------------------------------------------------------------------------------------

    def tensor(
        self, *shape: int, loc: float = 0.0, spread: float = 1.0, requires_grad: bool = False, dtype: Any = None
    ) -> torch.Tensor:
        """Normal values of this mean and standard deviation, in the case's dtype, layout and device."""
        return self.tensor_of(loc + spread * self.rng.standard_normal(shape), requires_grad=requires_grad, dtype=dtype)

    def tensor_of(self, values: Any, *, requires_grad: bool = False, dtype: Any = None) -> torch.Tensor:
        """These values, rounded to the case's dtype, in its layout and on its device; a leaf."""
        made = torch.as_tensor(np.asarray(values)).to(dtype or self.dtype).to(self.device)
        return devices.lay_out(made, self.layout).detach().requires_grad_(requires_grad)

    def module(self, cls: Callable[..., M], *args: Any, **kwargs: Any) -> M:
        """The layer in the case's dtype on its device, executed by its via, parameters and buffers randomised."""
        if isinstance(cls, type) and issubclass(cls, nn.modules.lazy.LazyModuleMixin):
            kwargs["device"] = self.device  # to move what is not there yet is a promise of its own
        layer = self.replace(cls)(*args, **kwargs)
        layer = devices.moved(layer, self.device, self.dtype)
        self.randomise(layer)
        return vias.module(layer, self)  # type: ignore[no-any-return]

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, executed by the case's via."""
        return vias.function(self.replace(function), self)

    def replace(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What stands in for the class or function in this run: itself, unless ``--replace`` names it."""
        if original not in self.replacements:
            return original
        self.replaced = True

        def adapted(*args: Any, **kwargs: Any) -> Any:
            try:
                return self.replacements[original](*args, **kwargs)
            except NotTaken as error:
                raise self.unsupported(str(error)) from None

        return adapted

    @torch.no_grad()
    def randomise(self, layer: nn.Module) -> None:
        """Move every parameter and buffer away from its default, to values that a trained layer might hold."""
        for name, parameter in layer.named_parameters():
            values = self.rng.standard_normal(tuple(parameter.shape))
            if parameter.ndim > 1:
                values /= math.sqrt(math.prod(parameter.shape[1:]))
            elif name.endswith("weight"):
                values = np.sign(values) * self.rng.uniform(0.5, 1.5, values.shape)
            parameter.copy_(torch.as_tensor(values))
        for name, buffer in layer.named_buffers():
            if not buffer.is_floating_point():
                values = np.floor(self.rng.uniform(3, 9, tuple(buffer.shape)))
            elif "var" in name:
                values = self.rng.uniform(0.5, 2.0, tuple(buffer.shape))
            else:
                values = self.rng.standard_normal(tuple(buffer.shape))
            buffer.copy_(torch.as_tensor(values))

    def draws(self, draw: Callable[[], torch.Tensor], times: int) -> torch.Tensor:
        """The stacked results of so many calls, each done before the next, or a lazy device makes one graph of all."""
        results = []
        for _ in range(times):
            results.append(draw())
            self.synchronise()
        return torch.stack(results)

    def synchronise(self) -> None:
        """Wait until the device has done what it was asked to; a lazy one would grow its graph from step to step."""
        devices.synchronise(self.device)

    # -- checks ------------------------------------------------------------------------------------------------------

    def close(self, actual: torch.Tensor, expected: Any, *, k: float, scale: Any = None) -> None:
        """The result lies within ``k · eps(dtype) · scale`` of the reference; scale defaults to ``|expected|``."""
        self.synchronise()
        found = checks.closeness(actual, expected, k=k, scale=scale)
        self.record(found.headroom)
        found.require(k)

    def same(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Both are alike in dtype, shape and every bit."""
        self.synchronise()
        checks.same(actual, expected)
        self.record(0.0)

    def binomial(self, successes: int | torch.Tensor, trials: int, p: float, *, false_alarm: float = 1e-9) -> None:
        """The count is one of independent draws of probability ``p``; a correct torch fails once in 1/false_alarm."""
        self.record(checks.binomial(int(successes), trials, p, false_alarm=false_alarm))

    def identical(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """The result is the very object; of vias that hand out tensors of their own, every bit is compared."""
        if actual is not expected and self.via in ("eager", "functional"):
            raise checks.Violation("another object, where the very same tensor is claimed")
        self.same(actual, expected)

    @contextmanager
    def raises(
        self, kind: type[BaseException] | tuple[type[BaseException], ...], words: str
    ) -> Iterator[list[BaseException]]:
        """The block raises this error, with a message in which the regex is found (case does not matter)."""
        with checks.raises(kind, words) as caught:
            yield caught
        self.saw(type(caught[0]).__name__)

    def survived(self, act: Callable[[], T]) -> T:
        """What the call returns; it must not end the process. Raises `Unsupported` where it cannot be tried first."""
        if not hasattr(os, "fork"):
            raise self.unsupported("the platform cannot fork, and a crash would end the run")
        return checks.survived(act)

    def backend(self) -> Any:
        """What torch has for the device: ``torch.cuda``, torch itself for the CPU. Raises `Unsupported` for others."""
        found = torch if self.device.type == "cpu" else getattr(torch, self.device.type, None)
        if found is None:
            raise self.unsupported(f"torch has no module torch.{self.device.type}")
        return found

    def rng_state(self) -> torch.Tensor:
        """The state of the device's generator. Raises `Unsupported` where it cannot be read."""
        state = devices.rng_state(self.device)
        if state is None:
            raise self.unsupported(f"neither torch nor a backend shows the state of {self.device.type}'s generator")
        return state

    def saw(self, answer: str) -> None:
        """Put on record which of the answers that a claim allows was given, so that a change of it can be seen."""
        self.seen.append(answer)

    @contextmanager
    def unchanged(self, module: nn.Module | None = None, *, but: Iterable[str] = (), **named: Any) -> Iterator[None]:
        """The block changes exactly what ``but`` names of the module, the tensors and the global state."""
        subjects = {"": module, **named} if module is not None else named
        if "rng" in but:
            self.rng_state()
        self.synchronise()
        with state.changes_only(subjects, but, [self.device]):
            yield
            self.synchronise()

    def unsupported(self, reason: str) -> Unsupported:
        """``raise case.unsupported(reason)``: this device, dtype, version or via cannot express the test."""
        return Unsupported(reason)

    def record(self, headroom: float) -> None:
        self.headroom = max(headroom, self.headroom or 0.0)
