"""Batch normalisation (Ioffe and Szegedy 2015, algorithms 1 and 2), its gradients and its running statistics.

``x`` is (N, C) or (N, C, ...); everything per channel is (C,). ``n`` is the number of values per channel. The scales
are the sums of the magnitudes that the law adds up, so that cancellation is counted where it happens.
"""

import numpy as np


def over_channels(x: np.ndarray) -> tuple[int, ...]:
    """The axes that statistics are taken over: all but the second."""
    return (0, *range(2, x.ndim))


def count(x: np.ndarray) -> int:
    """Values per channel."""
    return x.size // x.shape[1]


def spread(values: np.ndarray | float, x: np.ndarray) -> np.ndarray:
    """Values per channel (C,), or one for all, ready to broadcast against ``x``."""
    return np.reshape(values, (1, -1, *[1] * (x.ndim - 2)))


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean(over_channels(x))


def variance(x: np.ndarray, correction: int = 0) -> np.ndarray:
    """Divided by n - ``correction``: 0 for the biased estimator, 1 for the unbiased one."""
    return x.var(over_channels(x), ddof=correction)


def forward(x, mean, variance, weight, bias, eps) -> np.ndarray:
    """Normalised by the given statistics (C,), then scaled and shifted."""
    root = np.sqrt(spread(variance, x) + eps)
    return (x - spread(mean, x)) / root * spread(weight, x) + spread(bias, x)


def forward_scale(x, mean, variance, weight, bias, eps) -> np.ndarray:
    root = np.sqrt(spread(variance, x) + eps)
    return (abs(x) + spread(mean, x)) / root * abs(spread(weight, x)) + abs(spread(bias, x))


def train(x, weight, bias, eps) -> np.ndarray:
    """Normalised by the statistics of the batch, its variance biased."""
    return forward(x, mean(x), variance(x), weight, bias, eps)


def train_scale(x, weight, bias, eps) -> np.ndarray:
    return forward_scale(x, mean(abs(x)), variance(x), weight, bias, eps)


def update(old: np.ndarray, new: np.ndarray, momentum: float) -> np.ndarray:
    """One step of a running statistic."""
    return (1 - momentum) * old + momentum * new


def train_gradients(x, gradient, weight, eps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of input, weight and bias, through the statistics of the batch."""
    root = np.sqrt(spread(variance(x), x) + eps)
    normalised = (x - spread(mean(x), x)) / root
    inner = gradient - spread(mean(gradient), x) - normalised * spread(mean(gradient * normalised), x)
    return spread(weight, x) / root * inner, *affine_gradients(normalised, gradient)


def affine_gradients(normalised, gradient) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of weight and bias, (C,) each."""
    axes = over_channels(gradient)
    return (gradient * normalised).sum(axes), gradient.sum(axes)


def train_gradient_scales(x, gradient, weight, eps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    root = np.sqrt(spread(variance(x), x) + eps)
    size, g = (abs(x) + spread(mean(abs(x)), x)) / root, abs(gradient)
    inner = g + spread(mean(g), x) + size * spread(mean(g * size), x)
    return abs(spread(weight, x)) / root * inner, *affine_gradients(size, g)


def eval_gradients(x, gradient, mean, variance, weight, eps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of input, weight and bias where the statistics are constants."""
    root = np.sqrt(spread(variance, x) + eps)
    return gradient * spread(weight, x) / root, *affine_gradients((x - spread(mean, x)) / root, gradient)


def eval_gradient_scales(x, gradient, mean, variance, weight, eps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return eval_gradients(abs(x), abs(gradient), -abs(mean), variance, abs(weight), eps)


def train_second_gradients(x, gradient, v, weight, eps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(v * gx)`` for input, output gradient and weight, where gx is the input's gradient."""
    root = np.sqrt(spread(variance(x), x) + eps)
    normalised = (x - spread(mean(x), x)) / root
    m, q = (spread(mean(t * normalised), x) for t in (gradient, v))
    h, k = (t - spread(mean(t), x) - normalised * c for t, c in ((gradient, m), (v, q)))
    scaled = spread(weight, x) / root
    return (
        -scaled / root * (spread(mean(v * h), x) * normalised + q * h + m * k),
        scaled * k,
        (v * h / root).sum(over_channels(x)),
    )


def train_second_scales(x, gradient, v, weight, eps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    root = np.sqrt(spread(variance(x), x) + eps)
    size, g, v = (abs(x) + spread(mean(abs(x)), x)) / root, abs(gradient), abs(v)
    m, q = (spread(mean(t * size), x) for t in (g, v))
    h, k = (t + spread(mean(t), x) + size * c for t, c in ((g, m), (v, q)))
    scaled = abs(spread(weight, x)) / root
    return (
        scaled / root * (spread(mean(v * h), x) * size + q * h + m * k),
        scaled * k,
        (v * h / root).sum(over_channels(x)),
    )
