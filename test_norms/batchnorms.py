"""What the tests of batch normalisation share: inputs, and how close to the law a result must lie."""

import pytest
import torch
from torch import nn

from specs.reference import batchnorm as reference
from torch_conformance.checks import array, eps

CLASSES = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
INPUTS = [
    (nn.BatchNorm1d, (9, 5)),
    (nn.BatchNorm1d, (6, 5, 3)),
    (nn.BatchNorm2d, (4, 5, 3, 2)),
    (nn.BatchNorm3d, (3, 5, 3, 2, 2)),
]
BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}
EPS = 0.3  # large enough to show where it stands
inputs = pytest.mark.parametrize(("cls", "shape"), INPUTS, ids=lambda v: str(v) if isinstance(v, tuple) else None)


def sums(case, x):
    """Roundings of a sum over a channel: half an eps for each term; low precision is summed in float32 at least."""
    return x.numel() // x.shape[1] / 2 * min(1.0, eps(torch.float32) / eps(case.dtype))


def affine(layer):
    """Weight and bias in float64, 1 and 0 where there is none."""
    return (d if t is None else array(t) for t, d in ((layer.weight, 1.0), (layer.bias, 0.0)))


def statistics(layer):
    return array(layer.running_mean).copy(), array(layer.running_var).copy()


def close_to_train(case, y, x, weight, bias, eps):
    # Mean and variance cost a sum each, the latter half of it under the root; eleven roundings of half an eps follow
    law, scale = (f(array(x), weight, bias, eps) for f in (reference.train, reference.train_scale))
    case.close(y, law, k=1.5 * sums(case, x) + 5.5, scale=scale)


def close_to_eval(case, y, x, mean, variance, weight, bias, eps):
    # The root of a sum, its inverse, weight, product and shift: seven roundings of half an eps at most
    settings = (variance, weight, bias, eps)
    scale = reference.forward_scale(array(x), abs(mean), *settings)
    case.close(y, reference.forward(array(x), mean, *settings), k=3.5, scale=scale)


def close_to_updated(case, layer, before, x, momentum):
    """Running statistics against one update of those before, for each a sum and five roundings of half an eps."""
    x, k = array(x), sums(case, x) + 5
    mean, variance, size = reference.mean(x), reference.variance(x, correction=1), reference.mean(abs(x))
    sizes = size, variance + (k * eps(case.dtype) * size) ** 2 / eps(case.dtype)
    running = (layer.running_mean, layer.running_var)
    for actual, old, new, size in zip(running, before, (mean, variance), sizes, strict=True):
        law = reference.update(old, new, momentum)
        case.close(actual, law, k=k, scale=(1 - momentum) * abs(old) + momentum * size)


def no_longer_tracks(case, layer, x):
    layer.track_running_stats = False
    with case.unchanged(layer, x=x):
        close_to_train(case, layer(x), x, *affine(layer), EPS)
    close_to_eval(case, layer.eval()(x), x, *statistics(layer), *affine(layer), EPS)
