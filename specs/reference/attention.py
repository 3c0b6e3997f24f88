"""Attention (Vaswani et al. 2017): scaled dot products, heads, and the layers of the Transformer, batch first.

Shapes: N samples, H heads, L queries, S keys, E features. Masks are additive arrays that broadcast to (N, H, L, S),
with ``-inf`` where a query must not attend. Parameters go by the names that torch gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from specs.reference.rounding import Rounded, concatenate, masked, relu, softmax, sqrt

Parameters = Mapping[str, Rounded]


def causal(queries: int, keys: int) -> np.ndarray:
    """(L, S): query i attends to the keys up to i, counted from the upper left corner."""
    return np.where(np.tril(np.ones((queries, keys))) > 0, 0.0, -np.inf)


def weights(q: Rounded, k: Rounded, mask: np.ndarray | None = None, scale: float | None = None) -> Rounded:
    """(..., L, S): softmax of the scaled products of q (..., L, E) and k (..., S, E)."""
    scores = q @ k.T * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return softmax(scores if mask is None else masked(scores, mask))


def attention(
    q: Rounded, k: Rounded, v: Rounded, mask: np.ndarray | None = None, scale: float | None = None
) -> Rounded:
    """(..., L, Ev), for q (..., L, E), k (..., S, E) and v (..., S, Ev)."""
    return weights(q, k, mask, scale) @ v


def linear(x: Rounded, weight: Rounded, bias: Rounded | None) -> Rounded:
    return x @ weight.T if bias is None else x @ weight.T + bias


def split(x: Rounded, heads: int) -> Rounded:
    """(N, L, E) to (N, H, L, E / H)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def with_row(x: Rounded, row: Rounded) -> Rounded:
    """(N, S, E) with one more row behind the others, the same for every sample."""
    return concatenate([x, row + Rounded(np.zeros((x.shape[0], 1, x.shape[2])))], 1)


def multihead(
    q: Rounded, k: Rounded, v: Rounded, p: Parameters, heads: int,
    mask: np.ndarray | None = None, zero_row: bool = False,
) -> tuple[Rounded, Rounded]:  # fmt: skip
    """Output (N, L, E) and weights (N, H, L, S) for q (N, L, E), k (N, S, kdim) and v (N, S, vdim).

    ``bias_k`` and ``bias_v`` among the parameters, and ``zero_row``, each add one key and value that no mask hides.
    """
    width = q.shape[-1]
    for i, name in enumerate("qkv"):
        rows = slice(i * width, (i + 1) * width)
        weight = p["in_proj_weight"][rows] if "in_proj_weight" in p else p[f"{name}_proj_weight"]
        x = linear((q, k, v)[i], weight, p["in_proj_bias"][rows] if "in_proj_bias" in p else None)
        q, k, v = (x if name == which else old for which, old in zip("qkv", (q, k, v), strict=True))
    if "bias_k" in p:
        k, v = with_row(k, p["bias_k"]), with_row(v, p["bias_v"])
    if zero_row:
        nothing = Rounded(np.zeros((1, 1, width)))
        k, v = with_row(k, nothing), with_row(v, nothing)
    if mask is not None:
        added = k.shape[1] - mask.shape[-1]
        mask = np.concatenate([mask, np.zeros((*mask.shape[:-1], added))], -1)
    w = weights(split(q, heads), split(k, heads), mask)
    y = (w @ split(v, heads)).swapaxes(1, 2).reshape(*q.shape)
    return linear(y, p["out_proj.weight"], p.get("out_proj.bias")), w


def layer_norm(x: Rounded, p: Parameters, name: str, eps: float) -> Rounded:
    centred = x - x.mean(-1)
    y = centred / sqrt((centred * centred).mean(-1) + eps) * p[f"{name}.weight"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def below(p: Parameters, name: str) -> Parameters:
    return {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}


def feed_forward(x: Rounded, p: Parameters, activation: Callable[[Rounded], Rounded]) -> Rounded:
    inner = activation(linear(x, p["linear1.weight"], p.get("linear1.bias")))
    return linear(inner, p["linear2.weight"], p.get("linear2.bias"))


def residual(
    x: Rounded, block: Callable[[Rounded], Rounded], norm: Callable[[Rounded], Rounded], first: bool
) -> Rounded:
    """Around the block: the norm before it (pre-norm), or after the sum (post-norm)."""
    return x + block(norm(x)) if first else norm(x + block(x))


def encoder_layer(
    x: Rounded, p: Parameters, heads: int, eps: float, *, norm_first: bool = False,
    activation: Callable[[Rounded], Rounded] = relu, mask: np.ndarray | None = None,
) -> Rounded:  # fmt: skip
    """(N, L, E), for x of that shape."""

    def attend(x: Rounded) -> Rounded:
        return multihead(x, x, x, below(p, "self_attn"), heads, mask)[0]

    x = residual(x, attend, lambda x: layer_norm(x, p, "norm1", eps), norm_first)
    return residual(x, lambda x: feed_forward(x, p, activation), lambda x: layer_norm(x, p, "norm2", eps), norm_first)


def decoder_layer(
    x: Rounded, memory: Rounded, p: Parameters, heads: int, eps: float, *, norm_first: bool = False,
    activation: Callable[[Rounded], Rounded] = relu, mask: np.ndarray | None = None,
    memory_mask: np.ndarray | None = None,
) -> Rounded:  # fmt: skip
    """(N, L, E), for x of that shape and memory (N, S, E)."""

    def attend(x: Rounded) -> Rounded:
        return multihead(x, x, x, below(p, "self_attn"), heads, mask)[0]

    def look_up(x: Rounded) -> Rounded:
        return multihead(x, memory, memory, below(p, "multihead_attn"), heads, memory_mask)[0]

    x = residual(x, attend, lambda x: layer_norm(x, p, "norm1", eps), norm_first)
    x = residual(x, look_up, lambda x: layer_norm(x, p, "norm2", eps), norm_first)
    return residual(x, lambda x: feed_forward(x, p, activation), lambda x: layer_norm(x, p, "norm3", eps), norm_first)
