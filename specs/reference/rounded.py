"""Running error analysis: float64 values that carry the rounding error which a lower precision may have made in them.

A law written with `Rounded` numbers yields its value and, beside it, a bound on the error of any implementation that
follows the same formula (Higham 2002, section 3.3). The error counts in units of eps: every operation adds one eps of
its result (half for rounding it, half for rounding a hyperparameter that takes part) to what its operands bring along.
"""

from __future__ import annotations

from typing import Any

import numpy as np

COARSEST, FINEST = 2.0**-7, 2.0**-52  # the eps of bfloat16 and of float64, which all others lie between


class Rounded:
    """``value`` and ``error``, float64 arrays that broadcast; |computed - value| <= eps * error.

    To first order, but for products: where both operands cancelled, the product of their errors is all there is.
    """

    __array_ufunc__ = None  # let NumPy scalars and arrays on the left defer to the operators below

    def __init__(self, value: Any, error: Any = 0.0) -> None:
        self.value = np.asarray(value, dtype=float)
        self.error = np.asarray(error, dtype=float)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error)

    def __add__(self, other: Any) -> Rounded:
        b = exact(other)
        value = self.value + b.value
        return Rounded(value, self.error + b.error + np.abs(value))

    def __mul__(self, other: Any) -> Rounded:
        b = exact(other)
        value = self.value * b.value
        inherited = self.error * np.abs(b.value) + np.abs(self.value) * b.error + COARSEST * self.error * b.error
        return Rounded(value, inherited + np.abs(value))

    def __truediv__(self, other: Any) -> Rounded:
        b = exact(other)
        value = self.value / b.value
        return Rounded(value, (self.error + np.abs(value) * b.error) / np.abs(b.value) + np.abs(value))

    def __sub__(self, other: Any) -> Rounded:
        return self + -exact(other)

    def __rsub__(self, other: Any) -> Rounded:
        return exact(other) - self

    __radd__, __rmul__ = __add__, __mul__

    def __rtruediv__(self, other: Any) -> Rounded:
        return exact(other) / self

    def __getitem__(self, index: Any) -> Rounded:
        return Rounded(self.value[index], np.broadcast_to(self.error, self.value.shape)[index])


def exact(x: Any) -> Rounded:
    """The number itself, free of error unless it brings one along."""
    return x if isinstance(x, Rounded) else Rounded(x)


def sqrt(x: Rounded) -> Rounded:
    """An error in x comes out divided by twice the root; next to zero it cannot exceed the root of the error."""
    value = np.sqrt(x.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        inherited = np.where(x.error == 0, 0.0, x.error / (2 * value))
    return Rounded(value, np.minimum(inherited, np.sqrt(x.error / FINEST)) + value)


def absolute(x: Rounded) -> Rounded:
    return Rounded(np.abs(x.value), x.error)


def maximum(x: Any, y: Any) -> Rounded:
    a, b = exact(x), exact(y)
    return Rounded(np.maximum(a.value, b.value), np.maximum(a.error, b.error))


def minimum(x: Any, y: Any) -> Rounded:
    return -maximum(-exact(x), -exact(y))


def where(condition: Any, x: Any, y: Any) -> Rounded:
    a, b = exact(x), exact(y)
    return Rounded(np.where(condition, a.value, b.value), np.where(condition, a.error, b.error))


def dot(x: Rounded, axis: int | tuple[int, ...]) -> Rounded:
    """Sum along an axis or several, kept: n terms in any order carry at most n eps of the sum of their magnitudes."""
    value = x.value.sum(axis, keepdims=True)
    length = np.prod(np.take(x.value.shape, axis))
    errors = np.broadcast_to(x.error, x.value.shape).sum(axis, keepdims=True)
    return Rounded(value, errors + length * np.abs(x.value).sum(axis, keepdims=True))
