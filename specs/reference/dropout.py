"""Dropout: inverted scaling by the probability of keeping (Srivastava et al. 2014, section 10).

Alpha dropout after Klambauer et al. 2017, section "new dropout technique"; randomised ReLU after Xu et al. 2015.
"""

import numpy as np

SATURATION = -1.0507009873554805 * 1.6732632423543772  # SELU's lower limit, -lambda * alpha


def dropout(x: np.ndarray, kept: np.ndarray, p: float) -> np.ndarray:
    """Output for a mask: ``x`` and ``kept`` (booleans) of one shape; also the gradient, for ``x`` the gradient of y."""
    return np.where(kept, x / (1 - p), 0.0)


def alpha_constants(p: float) -> tuple[float, float]:
    """Scale and shift that keep mean 0 and variance 1 when a share ``p`` is replaced by the saturation value."""
    scale = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
    return scale, -scale * p * SATURATION


def alpha_dropout(x: np.ndarray, kept: np.ndarray, p: float) -> np.ndarray:
    """Output for a mask: ``x`` and ``kept`` (booleans) of one shape."""
    scale, shift = alpha_constants(p)
    return scale * np.where(kept, x, SATURATION) + shift


def alpha_gradient(gradient: np.ndarray, kept: np.ndarray, p: float) -> np.ndarray:
    """Gradient of the input: ``gradient`` (of the output) and ``kept`` of one shape."""
    return np.where(kept, alpha_constants(p)[0] * gradient, 0.0)


def rrelu(x: np.ndarray, lower: float, upper: float) -> np.ndarray:
    """Output in eval mode, with the mean slope for the negative elements of ``x``, of any shape."""
    return np.where(x >= 0, x, x * (lower + upper) / 2)
