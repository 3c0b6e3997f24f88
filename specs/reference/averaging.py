"""Averages of a model over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def equal(states: Sequence[np.ndarray]) -> np.ndarray:
    """Arithmetic mean of all states so far."""
    return np.mean(states, axis=0)


def exponential(states: Sequence[np.ndarray], decay: float) -> np.ndarray:
    """E_0 = W_0, E_{t+1} = decay E_t + (1 - decay) W_{t+1}."""
    average = np.array(states[0], dtype=float)
    for state in states[1:]:
        average = decay * average + (1 - decay) * state
    return average
