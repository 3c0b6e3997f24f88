"""Weight and spectral normalisation (Salimans and Kingma 2016; Miyato et al. 2018). ``w`` is a matrix (out, in)."""

import numpy as np


def weight_norm(g: np.ndarray, v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Weight of the shape of ``v``; its lengths are taken over ``axes``, ``g`` broadcasts against them."""
    return g * v / np.sqrt((v * v).sum(axes, keepdims=True))


def weight_norm_gradients(
    gradient: np.ndarray, g: np.ndarray, v: np.ndarray, axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of ``g`` and ``v`` for the gradient of the weight."""
    length = np.sqrt((v * v).sum(axes, keepdims=True))
    along = (gradient * v).sum(axes, keepdims=True) / length
    return along, g / length * (gradient - v / length * along)


def power_iteration(w: np.ndarray, v: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """Left and right singular vectors (out,) and (in,), after so many iterations from ``v`` (in,)."""
    for _ in range(times):
        u = w @ v / np.linalg.norm(w @ v)
        v = w.T @ u / np.linalg.norm(w.T @ u)
    return u, v


def spectral_norm(w: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The weight over its estimated largest singular value."""
    return w / (u @ w @ v)


def spectral_norm_gradient(gradient: np.ndarray, w: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Gradient of ``w`` for that of the normalised weight."""
    sigma = u @ w @ v
    return (gradient - (gradient * w).sum() / sigma * np.outer(u, v)) / sigma
