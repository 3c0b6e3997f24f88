"""Clipping of gradients by their common norm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def total_norm(gradients: Sequence[np.ndarray], p: float = 2.0) -> float:
    """The p-norm of all elements as one vector."""
    norms = np.array([np.linalg.norm(g.reshape(-1), p) if g.size else 0.0 for g in gradients])
    return float(np.linalg.norm(norms, p)) if norms.size else 0.0


def coefficient(norm: float, max_norm: float) -> float:
    """What every gradient is multiplied by: never more than one."""
    return min(1.0, max_norm / (norm + 1e-6))
