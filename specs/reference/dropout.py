"""Dropout: inverted scaling by the probability of keeping (Srivastava et al. 2014, section 10)."""

import numpy as np


def dropout(x: np.ndarray, kept: np.ndarray, p: float) -> np.ndarray:
    """Output for a mask: ``x`` and ``kept`` (booleans) of one shape; also the gradient, for ``x`` the gradient of y."""
    return np.where(kept, x / (1 - p), 0.0)
