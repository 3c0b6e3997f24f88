"""Initial distributions: fans, gains, bounds, and the quantiles that exact counts are taken in."""

import math
from statistics import NormalDist

import numpy as np

GAINS = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight of shape (out, in, *kernel)."""
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def leaky_gain(slope: float) -> float:
    """sqrt(2 / (1 + slope^2)), the gain of a leaky rectifier (He et al. 2015)."""
    return math.sqrt(2 / (1 + slope**2))


def xavier_std(shape: tuple[int, ...], gain: float) -> float:
    """gain * sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010); uniform bounds are sqrt(3) of it."""
    return gain * math.sqrt(2 / sum(fans(shape)))


def kaiming_std(shape: tuple[int, ...], gain: float, mode: str) -> float:
    """gain / sqrt(fan) (He et al. 2015); uniform bounds are sqrt(3) of it."""
    return gain / math.sqrt(fans(shape)[mode == "fan_out"])


def normal_cells(mean: float, std: float, cells: int = 5) -> list[float]:
    """The inner borders of so many intervals of equal probability under a normal distribution."""
    return [NormalDist(mean, std).inv_cdf(i / cells) for i in range(1, cells)]


def uniform_cells(low: float, high: float, cells: int = 5) -> list[float]:
    """The inner borders of so many intervals of equal probability under a uniform distribution."""
    return [low + (high - low) * i / cells for i in range(1, cells)]


def truncated_cells(mean: float, std: float, low: float, high: float, cells: int = 5) -> list[float]:
    """The inner borders of intervals of equal probability under a normal distribution cut off at low and high."""
    normal = NormalDist(mean, std)
    first, last = normal.cdf(low), normal.cdf(high)
    return [normal.inv_cdf(first + (last - first) * i / cells) for i in range(1, cells)]


def counts(values: np.ndarray, borders: list[float]) -> np.ndarray:
    """How many values lie in each of the intervals."""
    return np.bincount(np.searchsorted(borders, values.ravel()), minlength=len(borders) + 1)


def dirac(shape: tuple[int, ...], groups: int) -> np.ndarray:
    """A kernel of shape (out, in, *kernel) that passes the channels of every group on as they are."""
    kernel, each = np.zeros(shape), shape[0] // groups
    for group in range(groups):
        for channel in range(min(each, shape[1])):
            kernel[(group * each + channel, channel, *(size // 2 for size in shape[2:]))] = 1
    return kernel
