"""Checks: every way in which a test may find that torch does otherwise than a claim says.

Each raises `Violation` with the figures, and each is shown by the selftest to fail when it should.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Violation(AssertionError):
    """Torch did otherwise than the claim says."""


def array(tensor: torch.Tensor) -> Array:
    """The tensor's exact values in NumPy float64 (complex128, or its own type where it holds no fractions)."""
    if not isinstance(tensor, torch.Tensor):
        raise Violation(f"expected a tensor, got {type(tensor).__name__}")
    host = tensor.detach().cpu()
    if host.is_complex():
        return host.to(torch.complex128).resolve_conj().numpy()
    return host.double().numpy() if host.is_floating_point() else host.numpy()


def arrays(*tensors: torch.Tensor) -> list[Array]:
    return [array(tensor) for tensor in tensors]


def eps(dtype: torch.dtype) -> float:
    """Distance from 1 to the next number of the dtype."""
    return torch.finfo(dtype).eps


class Closeness(NamedTuple):
    """How far a result lies from its reference, in units of the bound, and what it takes to say where."""

    headroom: float
    values: Array
    wanted: Array
    bound: Array
    dtype: torch.dtype

    def require(self, k: float) -> None:
        """Raises `Violation` beyond the bound."""
        if not self.headroom <= 1:
            raise Violation(f"not within {k:g} eps of the law, {self.worst()}")

    def worst(self) -> str:
        """The element that lies farthest out, in absolute figures, in eps of its value and in units of the bound."""
        error = distance(self.values, self.wanted)
        index = np.unravel_index(int(np.argmax(in_units_of(self.bound, error))), error.shape)
        bound = np.broadcast_to(self.bound, error.shape)[index]
        unit = eps(self.dtype) * abs(self.wanted[index])
        relative = f"{error[index] / unit:.3g} eps of the value, " if unit and np.isfinite(error[index]) else ""
        return (
            f"at index {tuple(map(int, index))}: got {self.values[index].item()!r}, "
            f"the law gives {self.wanted[index].item()!r}; error {error[index]:.3g} = "
            f"{relative}{self.headroom:.3g} of the bound {bound:.3g} ({self.dtype})"
        )


def closeness(actual: torch.Tensor, expected: Any, *, k: float, scale: Any = None) -> Closeness:
    """Measure a result against its reference in units of ``k · eps(dtype) · scale``.

    ``scale`` broadcasts against the result and defaults to ``|expected|``; below it stands the dtype's smallest
    normal number, for no result can be better than that. A float64 result is allowed twice the bound, since the
    reference was rounded in float64 itself. Raises `Violation` for a result that is no tensor, or has another shape.
    """
    values, wanted = array(actual), np.asarray(expected)
    if values.shape != wanted.shape:
        raise Violation(f"shape {values.shape} where the law gives {wanted.shape}")
    info = torch.finfo(actual.dtype)
    reference_too = 2 if info.eps < 1e-15 else 1
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(wanted if scale is None else np.asarray(scale, dtype=float))
        bound = reference_too * (k * info.eps * size + info.tiny)
        ratio = np.abs(values - wanted) / bound
    if ratio.shape != values.shape:
        raise ValueError(f"a scale of shape {size.shape} for a result of shape {values.shape}")
    headroom = float(ratio.max(initial=0.0))
    if not math.isfinite(headroom):
        headroom = float(in_units_of(bound, distance(values, wanted)).max())
    return Closeness(headroom, values, wanted, bound, actual.dtype)


@np.errstate(invalid="ignore", over="ignore")
def distance(values: Array, wanted: Array) -> Array:
    """Absolute errors; where values are not finite, none if both are the same, infinite otherwise."""
    error = np.abs(values - wanted)
    alike = (values == wanted) | (np.isnan(values) & np.isnan(wanted))
    return np.where(alike, 0.0, np.where(np.isnan(error), np.inf, error))


@np.errstate(invalid="ignore", over="ignore")
def in_units_of(bound: Array, error: Array) -> Array:
    return np.divide(error, bound, out=np.zeros(error.shape), where=error != 0)


def close(actual: torch.Tensor, expected: Any, *, k: float, scale: Any = None) -> float:
    """Return the headroom used (0 exact, 1 at the bound). Raises `Violation` beyond the bound."""
    found = closeness(actual, expected, k=k, scale=scale)
    found.require(k)
    return found.headroom


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bit patterns as integers, so that NaN equals itself and -0.0 is not 0.0."""
    host = tensor.detach().cpu()
    if host.is_complex():
        host = torch.view_as_real(host.resolve_conj())
    if not host.is_floating_point():
        return host
    return host.contiguous().reshape(-1).view(INTEGERS[host.element_size()]).reshape(host.shape)


def same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises `Violation` unless both are alike in dtype, shape and every bit."""
    for name, tensor in (("result", actual), ("expected", expected)):
        if not isinstance(tensor, torch.Tensor):
            raise Violation(f"{name} is no tensor but {type(tensor).__name__}")
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        raise Violation(
            f"got {actual.dtype} of shape {tuple(actual.shape)}, "
            f"expected {expected.dtype} of shape {tuple(expected.shape)}"
        )
    different = bits(actual) != bits(expected)
    if actual.is_complex():
        different = different.any(-1)
    if different.any():
        index = tuple(int(i) for i in different.nonzero()[0])
        raise Violation(
            f"not equal bit by bit: {int(different.sum())} of {different.numel()} elements differ, the first at "
            f"index {index}: got {actual[index].item()!r}, expected {expected[index].item()!r}"
        )


def binomial_tail(successes: int, trials: int, p: float) -> float:
    """Probability that a binomial count lies at least as far out as ``successes``, on its own side of the mean."""
    if p in (0.0, 1.0):
        return float(successes == trials * p)
    if successes < trials * p:
        successes, p = trials - successes, 1 - p
    log_combinations = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    log_first = log_combinations + successes * math.log(p) + (trials - successes) * math.log1p(-p)
    counts = np.arange(successes, trials, dtype=float)
    ratios = (trials - counts) / (counts + 1) * (p / (1 - p))
    return min(1.0, math.exp(log_first) * (1 + float(np.cumprod(ratios).sum())))


def binomial(successes: int, trials: int, p: float, *, false_alarm: float = 1e-9) -> float:
    """Exact two-sided test that the count is one of ``trials`` independent draws of probability ``p``.

    A correct torch fails it with a probability of at most ``false_alarm``. Returns the headroom used, on the scale
    of log probability. Raises `Violation` for a count too far out, `ValueError` for too few trials to refute anything.
    """
    if 0 < p < 1 and 2 * max(p, 1 - p) ** trials > false_alarm:
        raise ValueError(f"{trials} trials at p = {p} cannot refute anything at {false_alarm:g}: take more")
    tail = min(1.0, 2 * binomial_tail(int(successes), trials, p))
    if tail < false_alarm:
        raise Violation(
            f"{successes} of {trials} ({successes / trials:.4f}) where probability {p:.4g} is claimed: "
            f"a correct implementation does so once in {1 / tail if tail else math.inf:.3g} runs"
        )
    return math.log(tail) / math.log(false_alarm)


@contextmanager
def raises(kind: type[BaseException] | tuple[type[BaseException], ...], words: str) -> Iterator[list[BaseException]]:
    """Raises `Violation` unless the block raises ``kind`` with a message in which the regex ``words`` is found.

    Yields a list that holds the error once it was raised.
    """
    names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    caught: list[BaseException] = []
    try:
        yield caught
    except kind as error:
        if not re.search(words, str(error), re.IGNORECASE | re.DOTALL):
            raise Violation(f"{type(error).__name__} without the words /{words}/: {str(error)[:200]}") from error
        caught.append(error.with_traceback(None))  # whose frames would hold the error, and it them
    except Exception as error:
        raise Violation(f"{type(error).__name__} where {names} is claimed: {str(error)[:200]}") from error
    else:
        raise Violation(f"no error where {names} with the words /{words}/ is claimed")


def survived(act: Callable[[], T]) -> T:
    """What the call returns. It is tried in a fork first: raises `Violation` if that ends the process."""
    if not (child := os.fork()):
        faulthandler.disable()
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise Violation(f"the call ended the process with signal {os.WTERMSIG(status)}")
    return act()
