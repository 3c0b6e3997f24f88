"""Linear and bilinear maps, embeddings, and their analytic gradients."""

import numpy as np


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """``x @ weight.T + bias``: x of shape (*, in), weight (out, in) or (in,), bias (out,) or ()."""
    return x @ weight.T + bias


def linear_gradients(g: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(g * y)`` in x, weight and bias; g of shape (*, out), x of shape (*, in)."""
    rows = g.reshape(-1, g.shape[-1])
    return g @ weight, rows.T @ x.reshape(-1, x.shape[-1]), rows.sum(0)


def bilinear(x1: np.ndarray, x2: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """``x1^T A_k x2 + b_k``: x1 of shape (*, in1), x2 (*, in2), weight (out, in1, in2), bias (out,)."""
    return np.einsum("...i,kij,...j->...k", x1, weight, x2) + bias


def bilinear_gradients(
    g: np.ndarray, x1: np.ndarray, x2: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients in x1, x2, weight and bias; g of shape (N, out), x1 (N, in1), x2 (N, in2)."""
    return (
        np.einsum("nk,kij,nj->ni", g, weight, x2),
        np.einsum("nk,kij,ni->nj", g, weight, x1),
        np.einsum("nk,ni,nj->kij", g, x1, x2),
        g.sum(0),
    )


def windows(
    x: np.ndarray, size: tuple[int, int], stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> np.ndarray:
    """The windows (N, groups, C / groups, h, w, *size) that a convolution sees of x, of shape (N, C, H, W)."""
    padded = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    spans = [dilation * (n - 1) + 1 for n in size]
    seen = np.lib.stride_tricks.sliding_window_view(padded, spans, (2, 3))[:, :, ::stride, ::stride]
    return seen[..., ::dilation, ::dilation].reshape(len(x), groups, -1, *seen.shape[2:4], *size)


def convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **options: int) -> np.ndarray:
    """Sums of the windows' products with weight (out, C / groups, *size), plus bias (out,)."""
    groups = options.get("groups", 1)
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    y = np.einsum("ngchwij,gocij->ngohw", windows(x, weight.shape[2:], **options), filters)
    return y.reshape(len(x), len(weight), *y.shape[3:]) + bias[:, None, None]


def convolution_gradients(
    g: np.ndarray, x: np.ndarray, weight: np.ndarray, **options: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of ``sum(g * y)`` in x, weight and bias."""
    groups = options.get("groups", 1)
    parts = g.reshape(len(g), groups, -1, *g.shape[2:])
    of_weight = np.einsum("ngchwij,ngohw->gocij", windows(x, weight.shape[2:], **options), parts)
    shares = np.einsum("ngohw,gocij->ngchwij", parts, weight.reshape(groups, -1, *weight.shape[1:]))
    places = windows(np.arange(1, x.size + 1).reshape(x.shape), weight.shape[2:], **options)  # zero is the padding
    of_x = np.bincount(places.ravel(), shares.ravel(), x.size + 1)[1:]
    return of_x.reshape(x.shape), of_weight.reshape(weight.shape), g.sum((0, 2, 3))


def embedding_gradient(
    g: np.ndarray, ids: np.ndarray, rows: int, padding: int | None = None, by_frequency: bool = False
) -> np.ndarray:
    """Gradient in a weight of so many rows: g, of shape (*, dim), added up where ids, of shape (*), point.

    The padding row gets none; with ``by_frequency`` every row is divided by how often it was looked up.
    """
    sums = np.zeros((rows, g.shape[-1]))
    np.add.at(sums, ids.reshape(-1), g.reshape(-1, g.shape[-1]))
    if by_frequency:
        sums /= np.maximum(np.bincount(ids.reshape(-1), minlength=rows), 1)[:, None]
    if padding is not None:
        sums[padding] = 0
    return sums


def bounded(rows: np.ndarray, most: float, p: float) -> np.ndarray:
    """Rows whose p-norm exceeds ``most``, scaled back to it."""
    norms = np.linalg.norm(rows, ord=p, axis=-1, keepdims=True)
    return np.where(norms > most, rows * most / np.maximum(norms, most), rows)


def bags(weight: np.ndarray, ids: np.ndarray, starts: np.ndarray, mode: str, factors: np.ndarray) -> np.ndarray:
    """Sum, mean or max of the rows of every bag: ids of shape (n,), factors too, starts (bags,); empty bags are 0."""
    reduce = {"sum": np.sum, "mean": np.mean, "max": np.max}[mode]
    found = np.zeros((len(starts), weight.shape[1]))
    for bag, (start, stop) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        if stop > start:
            found[bag] = reduce(weight[ids[start:stop]] * factors[start:stop, None], axis=0)
    return found


def bag_shares(
    g: np.ndarray, weight: np.ndarray, ids: np.ndarray, starts: np.ndarray, mode: str, padding: int | None = None
) -> np.ndarray:
    """What of g, of shape (bags, dim), each of the n places gets: all in a sum, an equal share in a mean, and in a max,
    column by column, all for the first of the greatest; padding gets nothing and counts for nothing."""
    shares = np.zeros((len(ids), weight.shape[1]))
    for bag, (start, stop) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        places = np.array([place for place in range(start, stop) if ids[place] != padding], dtype=int)
        if mode == "max" and len(places):
            shares[places[weight[ids[places]].argmax(0)], range(weight.shape[1])] = g[bag]
        elif mode != "max":
            shares[places] = g[bag] / (max(len(places), 1) if mode == "mean" else 1)
    return shares
