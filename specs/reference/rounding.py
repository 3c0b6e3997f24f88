"""Running error analysis: values that carry the rounding error of a correct implementation, and their gradients.

A `Rounded` holds a value in float64 and, in units of eps, a first-order bound on the error with which a correct
implementation may compute it in a narrower dtype (Higham, Accuracy and Stability of Numerical Algorithms, section
3.3): every operation passes on the errors of its operands and adds roundings of its own, one eps each. That is twice
the half eps of a single rounding, for an implementation may split any operation in two (multiply by a reciprocal,
scale first). Every operation also remembers its operands and its derivative, so that a law written as a formula
yields its gradients by the chain rule, with bounds of their own.

Where many steps follow each other that bound grows with the product of the sizes of their derivatives, and hides
what `sharpened` shows: the same first-order error, but each step's own roundings weighed by the derivative of the
result with respect to that step, all steps after it taken together (Bauer 1974; Linnainmaa 1976).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np


class Rounded:
    """``value`` (float64 array), ``error`` (same shape, in eps) and the operands with their derivatives."""

    __array_ufunc__ = None
    inherits = True

    def __init__(self, value: np.ndarray, error: np.ndarray | float = 0.0, operands: Sequence[Operand] = ()) -> None:
        self.value = np.asarray(value)
        self.error = error if isinstance(error, np.ndarray) else np.full(self.value.shape, error)
        self.own = self.error
        if not Rounded.inherits:
            self.error = np.zeros(self.value.shape)
        self.operands = tuple(operands)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def T(self) -> Rounded:  # noqa: N802
        """The last two axes exchanged."""
        return self.swapaxes(-1, -2)

    def __add__(self, other: Rounded | float) -> Rounded:
        a, b = self, exact(other)
        value = a.value + b.value
        return Rounded(value, a.error + b.error + abs(value), [(a, lambda g: g), (b, lambda g: g)])

    def __sub__(self, other: Rounded | float) -> Rounded:
        return self + -exact(other)

    def __neg__(self) -> Rounded:
        return Rounded(-self.value, self.error, [(self, lambda g: -g)])

    def __mul__(self, other: Rounded | float) -> Rounded:
        a, b = self, exact(other)
        value = a.value * b.value
        error = abs(a.value) * b.error + a.error * abs(b.value) + abs(value)
        return Rounded(value, error, [(a, lambda g: g * leaf(b)), (b, lambda g: g * leaf(a))])

    def __truediv__(self, other: Rounded | float) -> Rounded:
        a, b = self, exact(other)
        value = a.value / b.value
        error = a.error / abs(b.value) + abs(value) * (b.error / abs(b.value) + 1)
        made = Rounded(value, error)
        quotient = leaf(made)  # in place of made, which would hold itself
        made.operands = ((a, lambda g: g / leaf(b)), (b, lambda g: -(g * quotient / leaf(b))))
        return made

    def __matmul__(self, other: Rounded) -> Rounded:
        a, b = self, other
        size_a, size_b, length = abs(a.value), abs(b.value), a.shape[-1]
        error = size_a @ b.error + a.error @ size_b + length * (size_a @ size_b)
        return Rounded(a.value @ b.value, error, [(a, lambda g: g @ leaf(b).T), (b, lambda g: leaf(a).T @ g)])

    def __getitem__(self, index: object) -> Rounded:
        def back(g: Rounded) -> Rounded:
            value, error = np.zeros(self.shape), np.zeros(self.shape)
            np.add.at(value, index, g.value)
            np.add.at(error, index, g.error)
            return Rounded(value, error)

        return Rounded(self.value[index], self.error[index], [(self, back)])

    def swapaxes(self, one: int, other: int) -> Rounded:
        one, other = (axis - self.value.ndim if axis >= 0 else axis for axis in (one, other))
        value, error = self.value.swapaxes(one, other), self.error.swapaxes(one, other)
        return Rounded(value, error, [(self, lambda g: g.swapaxes(one, other))])

    def reshape(self, *shape: int) -> Rounded:
        value, error = self.value.reshape(shape), self.error.reshape(shape)
        return Rounded(value, error, [(self, lambda g: g.reshape(*g.shape[: len(g.shape) - value.ndim], *self.shape))])

    def sum(self, axis: int) -> Rounded:
        """The sum along the axis, which is kept: as many roundings as terms, in whatever order."""
        error = self.error.sum(axis, keepdims=True) + self.shape[axis] * abs(self.value).sum(axis, keepdims=True)
        return Rounded(self.value.sum(axis, keepdims=True), error, [(self, lambda g: g + Rounded(0 * self.value))])

    def mean(self, axis: int) -> Rounded:
        return self.sum(axis) * (1 / self.shape[axis])


Operand = tuple[Rounded, Callable[[Rounded], Rounded]]


def exact(value: Rounded | np.ndarray | float) -> Rounded:
    return value if isinstance(value, Rounded) else Rounded(np.asarray(value, dtype=float))


def leaf(node: Rounded) -> Rounded:
    """The same value and error, without the operands."""
    return Rounded(node.value, node.error)


def elementwise(x: Rounded, value: np.ndarray, slope: Rounded) -> Rounded:
    """A library function within two eps of its value (tanh, exp, erf), with its derivative."""
    error = abs(slope.value) * x.error + 2 * abs(value)
    return Rounded(value, error, [(x, lambda g: g * slope)])


def tanh(x: Rounded) -> Rounded:
    made = elementwise(x, np.tanh(x.value), Rounded(1 - np.tanh(x.value) ** 2))
    slope = exact(1.0) - leaf(made) * leaf(made)
    made.operands = ((x, lambda g: g * slope),)
    return made


def sigmoid(x: Rounded) -> Rounded:
    value = 1 / (1 + np.exp(-x.value))
    made = elementwise(x, value, Rounded(value * (1 - value)))
    slope = leaf(made) * (exact(1.0) - leaf(made))
    made.operands = ((x, lambda g: g * slope),)
    return made


def relu(x: Rounded) -> Rounded:
    """``max(x, 0)``; the error passes on also where ``x`` is negative, for a rounding may carry it over 0."""
    on = x.value > 0
    return Rounded(np.where(on, x.value, 0), x.error, [(x, lambda g: g * Rounded(on * 1.0))])


def gelu(x: Rounded) -> Rounded:
    """``x Phi(x)`` with the normal distribution function."""
    phi = 0.5 * (1 + np.vectorize(math.erf)(x.value / math.sqrt(2)))
    density = np.exp(-(x.value**2) / 2) / math.sqrt(2 * math.pi)
    size = abs(x.value * density)  # bounds the cancellation in 1 + erf
    slope = Rounded(phi + x.value * density, 4 * (0.5 + size) + (2 * density + x.value**2 * density) * x.error)
    error = abs(slope.value) * x.error + 4 * abs(x.value) * 0.5 + 2 * size
    return Rounded(x.value * phi, error, [(x, lambda g: g * slope)])


def sqrt(x: Rounded) -> Rounded:
    made = elementwise(x, np.sqrt(x.value), Rounded(0.5 / np.sqrt(x.value)))
    root = leaf(made)
    made.operands = ((x, lambda g: g * 0.5 / root),)
    return made


def masked(x: Rounded, mask: np.ndarray) -> Rounded:
    """The exact mask added, in which ``-inf`` takes a place out."""
    value = x.value + mask
    error = np.where(np.isfinite(value), x.error + abs(np.where(np.isfinite(value), value, 0)), 0)
    return Rounded(value, error, [(x, lambda g: g)])


def softmax(x: Rounded) -> Rounded:
    """Along the last axis, shifted by its greatest value; ``-inf`` gets the weight 0."""
    shifted = x.value - x.value.max(-1, keepdims=True)
    finite = np.isfinite(shifted)
    powers = np.exp(shifted)
    relative = np.where(finite, x.error + abs(np.where(finite, shifted, 0)) + 2, 0)
    value = powers / powers.sum(-1, keepdims=True)
    of_sum = (value * relative).sum(-1, keepdims=True) + x.shape[-1]
    made = Rounded(value, value * (relative + of_sum + 1))
    p = leaf(made)
    made.operands = ((x, lambda g: p * (g - (p * g).sum(-1))),)
    return made


def concatenate(parts: Sequence[Rounded], axis: int = -1) -> Rounded:
    ends = np.cumsum([part.shape[axis] for part in parts])
    operands: list[Operand] = []
    for part, end in zip(parts, ends, strict=True):
        within = [slice(None)] * part.value.ndim
        within[axis] = slice(int(end) - part.shape[axis], int(end))
        place = (..., *within)
        operands.append((part, lambda g, place=place: Rounded(g.value[place], g.error[place])))
    value = np.concatenate([part.value for part in parts], axis)
    return Rounded(value, np.concatenate([part.error for part in parts], axis), operands)


def stack(parts: Sequence[Rounded]) -> Rounded:
    """Along a new first axis."""
    return concatenate([part.reshape(1, *part.shape) for part in parts], 0)


def gradients(outputs: Iterable[tuple[Rounded, np.ndarray]], inputs: Sequence[Rounded]) -> list[Rounded]:
    """Gradients of the sum of ``output * seed`` with respect to each input, in its shape."""
    pairs = list(outputs)
    arrived = {}
    for output, seed in pairs:
        add(arrived, output, Rounded(np.asarray(seed, dtype=float)))
    for node in reversed(sorted_by_use([output for output, _ in pairs])):
        for operand, back in node.operands:
            add(arrived, operand, to_shape(back(arrived[id(node)]), operand.shape))
    return [arrived.get(id(node), Rounded(np.zeros(node.shape))) for node in inputs]


def add(arrived: dict[int, Rounded], node: Rounded, part: Rounded) -> None:
    arrived[id(node)] = leaf(arrived[id(node)] + part) if id(node) in arrived else leaf(part)


def to_shape(gradient: Rounded, shape: tuple[int, ...], leading: int = 0) -> Rounded:
    """Summed over the axes, after the leading ones, along which the operand was broadcast."""
    while len(gradient.shape) > len(shape) + leading:
        rest = gradient.shape[:leading] + gradient.shape[leading + 1 :]
        gradient = gradient.sum(leading).reshape(*rest)
    for axis, size in enumerate(shape, leading):
        if size == 1 and gradient.shape[axis] != 1:
            gradient = gradient.sum(axis)
    return gradient


def sorted_by_use(outputs: Sequence[Rounded]) -> list[Rounded]:
    """Every node, after all of its operands."""
    order: list[Rounded] = []
    seen: set[int] = set()
    waiting = [(output, False) for output in outputs]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting.extend((operand, False) for operand, _ in node.operands)
    return order


@contextmanager
def own_errors() -> Iterator[None]:
    """What is computed here holds the roundings of each step alone, as `sharpened` takes them."""
    Rounded.inherits = False
    try:
        yield
    finally:
        Rounded.inherits = True


def sharpened(result: Rounded) -> Rounded:
    """The result of a law computed within `own_errors`, with the sum of all roundings that lead to each element.

    A rounding of a step reaches the result with the derivative by that step; its size is that step's own error.
    Costs one backward pass for all elements of the result together, whose number is therefore best kept small.
    """
    count = result.value.size
    nodes = sorted_by_use([result])
    active: set[int] = set()
    for node in nodes:
        if node.own.any() or any(id(operand) in active for operand, _ in node.operands):
            active.add(id(node))
    arrived = {id(result): np.eye(count).reshape(count, *result.shape)}
    total = np.zeros(count)
    with own_errors():
        for node in reversed(nodes):
            if (slopes := arrived.pop(id(node), None)) is None:
                continue
            total += (abs(slopes) * node.own).reshape(count, -1).sum(1)
            for operand, back in node.operands:
                if id(operand) in active:
                    part = to_shape(back(Rounded(slopes)), operand.shape, 1).value
                    arrived[id(operand)] = arrived.get(id(operand), 0) + part
    return Rounded(result.value, total.reshape(result.shape))
