"""Autograd: analytic derivatives of the elementary functions and the losses, one formula each, in float64."""

from collections.abc import Callable
from math import pi, sqrt

import numpy as np

Array = np.ndarray


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), for ``x`` of any shape, without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def normal_density(x: Array) -> Array:
    return np.exp(-x * x / 2) / sqrt(2 * pi)


def normal_cdf(x: Array) -> Array:
    """P(Z <= x) by the series of the error function, good to 1e-15 for abs(x) <= 6 (Abramowitz and Stegun 26.2.10)."""
    term = total = x.astype(float)
    for n in range(1, 120):
        term = term * x * x / (2 * n + 1)
        total = total + term
    return 0.5 + normal_density(x) * total


def along(function: Callable[[Array], Array], x: Array, direction: Array | float = 1.0) -> Array:
    """The derivative at x along the direction, by a central difference: good to some 1e-9 of values near one."""
    step = 1e-5 * direction
    return (function(x + step) - function(x - step)) / 2e-5


def erf_inverse(x: Array) -> Array:
    """The y with erf(y) = x, for 0 <= x < 0.9, by Newton's steps: erf bends down, so that none goes too far."""
    y = np.zeros(x.shape)
    for _ in range(8):
        y = y - (2 * normal_cdf(sqrt(2) * y) - 1 - x) * sqrt(pi) / 2 * np.exp(y * y)
    return y


def digamma(x: Array) -> Array:
    """The derivative of log gamma for x > 0: twenty steps up, then the asymptotic series (A&S 6.3.18)."""
    steps = sum(1 / (x + i) for i in range(20))
    x = x + 20
    s = 1 / x**2
    return np.log(x) - 0.5 / x - s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132)))) - steps


def trigamma(x: Array) -> Array:
    """The derivative of digamma for x > 0, likewise (A&S 6.4.12)."""
    steps = sum(1 / (x + i) ** 2 for i in range(20))
    x = x + 20
    s = 1 / x**2
    return (1 + s * (1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - 5 * s / 66))))) / x + s / 2 + steps


def elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


ALPHA, SLOPE, BETA, EXPONENT = 0.7, 0.3, 1.7, 2.6  # parameters of ELU, leaky ReLU, softplus and pow: never the defaults


def bent(x: Array) -> Array:
    """What the approximate form of GELU takes the hyperbolic tangent of."""
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def unbent(x: Array) -> Array:
    """Its derivative."""
    return np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


# name: the function and its derivative
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "exp": (np.exp, np.exp),
    "expm1": (np.expm1, np.exp),
    "log": (np.log, lambda x: 1 / x),
    "log1p": (np.log1p, lambda x: 1 / (1 + x)),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda x: -np.sin(x)),
    "atan": (np.arctan, lambda x: 1 / (1 + x * x)),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x)),
    "rsqrt": (lambda x: x**-0.5, lambda x: -0.5 * x**-1.5),
    "reciprocal": (lambda x: 1 / x, lambda x: -1 / x**2),
    "square": (np.square, lambda x: 2 * x),
    "pow": (lambda x: x**EXPONENT, lambda x: EXPONENT * x ** (EXPONENT - 1)),
    "abs": (np.abs, np.sign),
    "neg": (np.negative, lambda x: np.full_like(x, -1.0)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "leaky_relu": (lambda x: np.where(x > 0, x, SLOPE * x), lambda x: np.where(x > 0, 1.0, SLOPE)),
    "elu": (lambda x: elu(x, ALPHA), lambda x: np.where(x > 0, 1.0, ALPHA * np.exp(np.minimum(x, 0)))),
    "softplus": (lambda x: np.logaddexp(0, BETA * x) / BETA, lambda x: sigmoid(BETA * x)),
    "logsigmoid": (lambda x: -np.logaddexp(0, -x), lambda x: sigmoid(-x)),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
    "gelu": (lambda x: x * normal_cdf(x), lambda x: normal_cdf(x) + x * normal_density(x)),
    "gelu_tanh": (
        lambda x: x * sigmoid(2 * bent(x)),
        lambda x: sigmoid(2 * bent(x)) + x * unbent(x) * 2 * sigmoid(2 * bent(x)) * sigmoid(-2 * bent(x)),
    ),
    "mish": (
        lambda x: x * np.tanh(np.logaddexp(0, x)),
        lambda x: np.tanh(np.logaddexp(0, x)) + x * sigmoid(x) / np.cosh(np.logaddexp(0, x)) ** 2,
    ),
    "exp2": (np.exp2, lambda x: np.log(2) * np.exp2(x)),
    "log2": (np.log2, lambda x: 1 / (np.log(2) * x)),
}


def softmax(x: Array) -> Array:
    """Along the last axis, for ``x`` of any shape."""
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def softmax_gradient(x: Array, g: Array) -> Array:
    """``g`` is the gradient of softmax(x) along the last axis; the gradient of x."""
    s = softmax(x)
    return s * (g - (g * s).sum(-1, keepdims=True))


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_softmax_gradient(x: Array, g: Array) -> Array:
    return g - softmax(x) * g.sum(-1, keepdims=True)


def mse_of_line_gradient(x: Array, w: Array, t: Array, divisor: float) -> Array:
    """Gradient in ``w`` (in, out) of the sum of (x w - t)^2 over ``divisor``; ``x`` (N, in), ``t`` (N, out)."""
    return 2 / divisor * x.T @ (x @ w - t)


def mse_of_line_scale(x: Array, w: Array, t: Array, divisor: float) -> Array:
    """The same with every term taken absolutely: what the rounding errors are measured by."""
    return 2 / divisor * abs(x).T @ (abs(x) @ abs(w) + abs(t))


# name: the loss of each element and its derivative in x, for prediction x and target t
DELTA = 0.6  # of Huber's and the smooth L1 loss: never the default
LOSSES: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]] = {
    "mse": (lambda x, t: (x - t) ** 2, lambda x, t: 2 * (x - t)),
    "l1": (lambda x, t: abs(x - t), lambda x, t: np.sign(x - t)),
    "smooth_l1": (
        lambda x, t: np.where(abs(x - t) < DELTA, (x - t) ** 2 / (2 * DELTA), abs(x - t) - DELTA / 2),
        lambda x, t: np.clip((x - t) / DELTA, -1, 1),
    ),
    "huber": (
        lambda x, t: np.where(abs(x - t) < DELTA, (x - t) ** 2 / 2, DELTA * (abs(x - t) - DELTA / 2)),
        lambda x, t: np.clip(x - t, -DELTA, DELTA),
    ),
    "bce": (lambda x, t: -(t * np.log(x) + (1 - t) * np.log1p(-x)), lambda x, t: (x - t) / (x * (1 - x))),
    "bce_with_logits": (lambda x, t: np.logaddexp(0, -x) + (1 - t) * x, lambda x, t: sigmoid(x) - t),
    "kl_div": (lambda x, t: t * (np.log(t) - x), lambda x, t: -t + 0 * x),
    "soft_margin": (lambda x, t: np.logaddexp(0, -t * x), lambda x, t: -t * sigmoid(-t * x)),
    "hinge_embedding": (
        lambda x, t: np.where(t == 1, x, np.maximum(DELTA - x, 0)),
        lambda x, t: np.where(t == 1, 1.0, -1.0 * (x < DELTA)),
    ),
    "poisson_nll": (lambda x, t: np.exp(x) - t * x, lambda x, t: np.exp(x) - t),
}


def multi_margin(x: Array, target: Array, weight: Array, margin: float, p: int) -> tuple[Array, Array]:
    """Loss of each sample (N,) and gradient (N, C); ``x`` (N, C), ``target`` (N,), ``weight`` (C,), ``p`` 1 or 2."""
    rows = np.arange(len(x))
    within = np.maximum(margin - x[rows, target][:, None] + x, 0)
    within[rows, target] = 0
    shares = weight[target][:, None] / x.shape[1]
    slopes = shares * p * np.sign(within) * within ** (p - 1)
    slopes[rows, target] = -slopes.sum(1)
    return (shares * within**p).sum(1), slopes


def multilabel_margin(x: Array, chosen: Array) -> tuple[Array, Array]:
    """Loss of each sample (N,) and its gradient (N, C); ``x`` (N, C), ``chosen`` (N, C), true for a sample's labels."""
    pairs = chosen[:, :, None] & ~chosen[:, None, :]  # a label, and a class that is none
    within = np.maximum(1 - x[:, :, None] + x[:, None, :], 0) * pairs
    active = np.sign(within)
    return within.sum((1, 2)) / x.shape[1], (active.sum(1) - active.sum(2)) / x.shape[1]


def reduce(losses: Array, reduction: str) -> Array:
    """``losses`` of any shape; "batchmean" divides the sum by the length of the first axis."""
    if reduction == "none":
        return losses
    return losses.sum() / {"sum": 1, "mean": losses.size, "batchmean": len(losses)}[reduction]


def cross_entropy(x: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """Loss (N,) before any reduction and each sample's weight (N,); ``x`` (N, C), ``target`` (N,), ``weight`` (C,)."""
    rows = np.arange(len(x))
    return -weight[target] * log_softmax(x)[rows, target], weight[target]


def cross_entropy_gradient(x: Array, target: Array, weight: Array) -> Array:
    """Gradient (N, C) in ``x`` of the sum of the losses."""
    return weight[target][:, None] * (softmax(x) - np.eye(x.shape[1])[target])


def adaptive_log_softmax(head: Array, tails: list[Array]) -> Array:
    """Log probabilities (n, classes) by logits: those of the head (n, first + tails), the last shared out by the tails.

    Logits of a tail are of shape (n, classes in it).
    """
    head, *tails = (y - np.log(np.exp(y).sum(1, keepdims=True)) for y in (head, *tails))
    first = head.shape[1] - len(tails)
    return np.concatenate([head[:, :first], *(head[:, [first + i]] + y for i, y in enumerate(tails))], 1)
