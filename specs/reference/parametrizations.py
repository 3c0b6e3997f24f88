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


def skew(x: np.ndarray) -> np.ndarray:
    """Lower triangle of a tall ``x`` (..., n, k), widened to a square by zeros, minus its conjugate transpose."""
    n, k = x.shape[-2:]
    square = np.concatenate([np.tril(x), np.zeros((*x.shape[:-2], n, n - k))], axis=-1)
    return square - np.conj(np.swapaxes(square, -1, -2))


def exponential(a: np.ndarray) -> np.ndarray:
    """Of a skew-Hermitian matrix, by the eigenvectors of the Hermitian ``i a``."""
    angles, vectors = np.linalg.eigh(1j * a)
    power = (vectors * np.exp(-1j * angles)[..., None, :]) @ np.conj(np.swapaxes(vectors, -1, -2))
    return power if np.iscomplexobj(a) else power.real


def cayley(a: np.ndarray) -> np.ndarray:
    one = np.eye(a.shape[-1])
    return np.linalg.solve(one - a / 2, one + a / 2)


def householder(x: np.ndarray) -> np.ndarray:
    """First k columns of the product of the reflectors in a tall ``x`` (n, k), by the signs on its diagonal."""
    n, k = x.shape
    q = np.eye(n)
    for j in range(k):
        w = np.eye(n)[j] + np.tril(x, -1)[:, j]
        q = q @ (np.eye(n) - 2 * np.outer(w, w) / (w @ w))
    return q[:, :k] * np.diagonal(x)


def orthogonalised(w: np.ndarray) -> np.ndarray:
    """The Q of ``w = Q R`` whose R has a positive diagonal; for a wide matrix that of its transpose."""
    if w.shape[-2] < w.shape[-1]:
        return np.swapaxes(orthogonalised(np.swapaxes(w, -1, -2)), -1, -2)
    q, r = np.linalg.qr(w)
    diagonal = np.diagonal(r, axis1=-2, axis2=-1)
    return q * (diagonal / np.abs(diagonal))[..., None, :]
