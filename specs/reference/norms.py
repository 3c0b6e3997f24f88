"""The normalisations, their analytic gradients, and the magnitudes that their rounding errors grow with.

Layer (Ba et al. 2016), Group (Wu & He 2018), Instance (Ulyanov et al. 2016), RMS (Zhang & Sennrich 2019) and local
response normalisation (Krizhevsky et al. 2012, section 3.3). The first four are one law, applied to other axes.

The formulas are analytic, so that a derivative of any of them is its imaginary part at ``x + 1e-30i v``: see `along`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from specs.reference.rounded import Rounded, dot, sqrt

FLOAT32_EPS = 2.0**-23
STEP = 1e-30


class Gradients(NamedTuple):
    """Gradients of ``sum(g * y)`` in the input (its shape) and in weight and bias (their shapes)."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def standardise(x: np.ndarray, axes: Sequence[int], eps: float, centred: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """``(x - mean) / sqrt(var + eps)`` over the axes, var biased, and that inverse root (axes kept, of length 1)."""
    deviation = x - x.mean(axis=axes, keepdims=True) if centred else x
    inverse = ((deviation**2).mean(axis=axes, keepdims=True) + eps) ** -0.5
    return deviation * inverse, inverse


def standardise_gradient(
    g: np.ndarray, x: np.ndarray, axes: Sequence[int], eps: float, centred: bool = True
) -> np.ndarray:
    """Gradient in x of ``sum(g * standardise(x))``: what g has of the mean and of the direction of x is taken out."""
    hat, inverse = standardise(x, axes, eps, centred)
    mean = g.mean(axis=axes, keepdims=True) if centred else 0.0
    return inverse * (g - mean - hat * (g * hat).mean(axis=axes, keepdims=True))


def magnitude(x: np.ndarray, axes: Sequence[int], eps: float, centred: bool = True) -> np.ndarray:
    """What rounding errors of the standardised x grow with: its terms without their cancellation.

    The difference of x and its mean brings in ``|x| + mean|x|``; the variance is conditioned by
    ``rms(x) / sqrt(var + eps)`` (Chan, Golub, LeVeque 1983), 1 where the mean is 0.
    """
    hat, inverse = standardise(x, axes, eps, centred)
    terms = abs(x) + abs(x).mean(axis=axes, keepdims=True) * centred
    return inverse * terms + abs(hat) * inverse * np.sqrt((x**2).mean(axis=axes, keepdims=True))


def magnitude_gradient(
    g: np.ndarray, x: np.ndarray, axes: Sequence[int], eps: float, centred: bool = True
) -> np.ndarray:
    """The same for `standardise_gradient`."""
    inverse, size = standardise(x, axes, eps, centred)[1], magnitude(x, axes, eps, centred)
    mean = abs(g).mean(axis=axes, keepdims=True) * centred
    return inverse * (abs(g) + mean + size * (abs(g) * size).mean(axis=axes, keepdims=True))


def roundings(terms: int, eps: float) -> float:
    """k for a result over so many terms, in a dtype of this eps.

    A sum of n terms, in whatever order, is n - 1 roundings of half an eps; below float32 it is held in float32 and
    counts for nothing. Six more: the stored mean and root, difference, product with the root, with the weight, bias.
    """
    return 3 + terms / 2 * min(1.0, FLOAT32_EPS / eps)


def last(dims: int) -> tuple[int, ...]:
    """The last so many axes."""
    return tuple(range(-dims, 0))


def layer_norm(x: np.ndarray, dims: int, eps: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """``standardise(x) * weight + bias`` over the last ``dims`` axes; weight and bias of their shape."""
    return standardise(x, last(dims), eps)[0] * weight + bias


def layer_norm_gradients(g: np.ndarray, x: np.ndarray, dims: int, eps: float, weight: np.ndarray) -> Gradients:
    """g and x of one shape."""
    batch = tuple(range(x.ndim - dims))
    hat = standardise(x, last(dims), eps)[0]
    return Gradients(standardise_gradient(g * weight, x, last(dims), eps), (g * hat).sum(batch), g.sum(batch))


def layer_norm_magnitude(x: np.ndarray, dims: int, eps: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return magnitude(x, last(dims), eps) * abs(weight) + abs(bias)


def layer_norm_gradients_magnitude(
    g: np.ndarray, x: np.ndarray, dims: int, eps: float, weight: np.ndarray
) -> Gradients:
    batch, size = tuple(range(x.ndim - dims)), magnitude(x, last(dims), eps)
    return Gradients(magnitude_gradient(g * weight, x, last(dims), eps), (abs(g) * size).sum(batch), abs(g).sum(batch))


def rms_norm(x: np.ndarray, dims: int, eps: float, weight: np.ndarray) -> np.ndarray:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last ``dims`` axes; weight of their shape."""
    return standardise(x, last(dims), eps, centred=False)[0] * weight


def rms_norm_gradients(
    g: np.ndarray, x: np.ndarray, dims: int, eps: float, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients in x and in weight."""
    hat = standardise(x, last(dims), eps, centred=False)[0]
    batch = tuple(range(x.ndim - dims))
    return standardise_gradient(g * weight, x, last(dims), eps, centred=False), (g * hat).sum(batch)


def rms_norm_gradients_magnitude(
    g: np.ndarray, x: np.ndarray, dims: int, eps: float, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    batch, size = tuple(range(x.ndim - dims)), magnitude(x, last(dims), eps, centred=False)
    return magnitude_gradient(g * weight, x, last(dims), eps, centred=False), (abs(g) * size).sum(batch)


def grouped(x: np.ndarray, groups: int) -> np.ndarray:
    """(N, C, *) as (N, groups, C / groups, *): channels that lie side by side form a group."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def per_channel(values: np.ndarray, ndim: int) -> np.ndarray:
    """(C,) as (C, 1, …), to broadcast against (N, C, *) of so many dimensions."""
    return values.reshape(-1, *[1] * (ndim - 2))


def over_groups(law: Callable[..., np.ndarray], groups: int, *arrays: np.ndarray, eps: float) -> np.ndarray:
    """The law applied within every sample and group of arrays of shape (N, C, *)."""
    views = [grouped(a, groups) for a in arrays]
    return law(*views, last(views[0].ndim - 2), eps).reshape(arrays[0].shape)


def group_norm(x: np.ndarray, groups: int, eps: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x of shape (N, C, *), standardised within every sample and group; weight and bias of shape (C,)."""
    hat = over_groups(lambda x, axes, eps: standardise(x, axes, eps)[0], groups, x, eps=eps)
    return hat * per_channel(weight, x.ndim) + per_channel(bias, x.ndim)


def group_norm_gradients(g: np.ndarray, x: np.ndarray, groups: int, eps: float, weight: np.ndarray) -> Gradients:
    """g and x of one shape (N, C, *)."""
    hat = over_groups(lambda x, axes, eps: standardise(x, axes, eps)[0], groups, x, eps=eps)
    batch = (0, *range(2, x.ndim))
    inner = over_groups(standardise_gradient, groups, g * per_channel(weight, x.ndim), x, eps=eps)
    return Gradients(inner, (g * hat).sum(batch), g.sum(batch))


def group_norm_magnitude(x: np.ndarray, groups: int, eps: float, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    size = over_groups(magnitude, groups, x, eps=eps)
    return size * abs(per_channel(weight, x.ndim)) + abs(per_channel(bias, x.ndim))


def group_norm_gradients_magnitude(
    g: np.ndarray, x: np.ndarray, groups: int, eps: float, weight: np.ndarray
) -> Gradients:
    size, batch = over_groups(magnitude, groups, x, eps=eps), (0, *range(2, x.ndim))
    inner = over_groups(magnitude_gradient, groups, g * per_channel(weight, x.ndim), x, eps=eps)
    return Gradients(inner, (abs(g) * size).sum(batch), abs(g).sum(batch))


def instance_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and unbiased variances of shape (C,) that running statistics move to: averages over the samples."""
    planes = x.reshape(*x.shape[:2], -1)
    return planes.mean(2).mean(0), planes.var(2, ddof=1).mean(0)


def standardise_with(
    x: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float, weight: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """x of shape (N, C, *) standardised by given statistics of shape (C,)."""
    mean, inverse, weight, bias = (per_channel(v, x.ndim) for v in (mean, (var + eps) ** -0.5, weight, bias))
    return (x - mean) * inverse * weight + bias


def window(channels: int, size: int) -> np.ndarray:
    """(C, C) of zeros and ones: row c marks the channels that c is divided by, ``size // 2`` before it and the rest
    of exactly ``size`` from it on, as far as they exist."""
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    return ((distance >= -(size // 2)) & (distance <= (size - 1) // 2)).astype(float)


def response(x: np.ndarray, size: int, alpha: float, k: float) -> np.ndarray:
    """``k + alpha / size * sum of squares in the window``, of shape (N, C, *) like x."""
    return k + alpha / size * np.einsum("cd,nd...->nc...", window(x.shape[1], size), x**2)


def local_response_norm(x: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    """x of shape (N, C, *), divided by the power beta of the response of the channels around each."""
    return x * response(x, size, alpha, k) ** -beta


def local_response_norm_gradient(
    g: np.ndarray, x: np.ndarray, size: int, alpha: float, beta: float, k: float, sign: float = 1.0
) -> np.ndarray:
    """g and x of one shape; with absolute values and ``sign=-1`` the magnitude of its terms."""
    divisor = response(x, size, alpha, k)
    inner = np.einsum("cd,nc...->nd...", window(x.shape[1], size), g * x * divisor ** (-beta - 1))
    return g * divisor**-beta - sign * 2 * alpha * beta / size * x * inner


def normalize(x: np.ndarray, p: float, axis: int, eps: float) -> np.ndarray:
    """``x / max(||x||_p, eps)`` along the axis."""
    return x / np.maximum(np.linalg.norm(x, ord=p, axis=axis, keepdims=True), eps)


def along(law: Callable[[np.ndarray], np.ndarray], x: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Derivative of an analytic law at x in the direction v, exact to rounding (Squire & Trapp 1998)."""
    return np.asarray(law(x + 1j * STEP * v)).imag / STEP


def derivatives(
    x: np.ndarray, v: np.ndarray, axes: Sequence[int], eps: float, centred: bool = True
) -> tuple[Rounded, Rounded, Rounded, Rounded]:
    """``d^k/dt^k standardise(x + t v)`` at t = 0 for k = 0 to 3.

    The deviation ``d + t e`` is linear in t and ``var + eps`` a square ``q``, so that the inverse root ``h = q^-1/2``
    has ``h' = -q'/2 q^-3/2``, ``h'' = 3/4 q'^2 q^-5/2 - q''/2 q^-3/2``,
    ``h''' = 9/4 q' q'' q^-5/2 - 15/8 q'^3 q^-7/2``.
    """
    count = math.prod(x.shape[axis] for axis in axes)

    def mean(a: Rounded) -> Rounded:
        total = dot(a, tuple(axes))
        return Rounded(total.value / count, total.error / count)

    d, e = (Rounded(a) - mean(Rounded(a)) if centred else Rounded(a) for a in (x, v))
    q, slope, bend = mean(d * d) + eps, mean(2 * d * e), mean(2 * e * e)
    h = 1 / sqrt(q)
    first = -slope / 2 * h / q
    second = 3 / 4 * slope * slope * h / q / q - bend / 2 * h / q
    third = 9 / 4 * slope * bend * h / q / q - 15 / 8 * slope * slope * slope * h / q / q / q
    return d * h, d * first + e * h, d * second + 2 * e * first, d * third + 3 * e * second
