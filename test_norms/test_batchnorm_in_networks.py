"""Batch normalisation among other layers: what it loses, what it folds into, what it saves and loads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import fusion
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from specs.reference import batchnorm as reference
from test_norms.batchnorms import (
    BUFFERS,
    EPS,
    affine,
    close_to_eval,
    close_to_train,
    statistics,
    sums,
)
from torch_conformance.axes import PRECISE, UNBATCHED
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim


@claim("batchnorm.network.bias-before-is-useless")
@axes(dtype=PRECISE)
def test_constant_before_the_layer_is_lost(case):
    layer, x = case.module(nn.BatchNorm1d, 5, eps=EPS), case.tensor(9, 5)
    bias = case.tensor(5, requires_grad=True)
    close_to_train(case, y := layer(x + bias), (x + bias).detach(), *affine(layer), EPS)
    shifted, gradient = array(x + bias), case.tensor(9, 5)
    scale = reference.train_scale(shifted, *affine(layer), EPS)
    law = reference.train(array(x), *affine(layer), EPS)
    case.close(y, law, k=1.5 * sums(case, x) + 7, scale=scale)  # as in training, and the rounding of x + b thrice
    y.backward(gradient)
    size = reference.train_gradient_scales(shifted, array(gradient), array(layer.weight), EPS)[0].sum(0)
    case.close(bias.grad, np.zeros(5), k=5.5 * sums(case, x) + 10, scale=size)  # as in the sum of the gradient


@claim("batchnorm.network.weight-scale-is-lost")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("c", [0.25, 8.0])  # powers of two, so that scaling rounds nothing
def test_scale_of_the_weights_is_lost(case, c):
    layer, linear = case.module(nn.BatchNorm1d, 5, eps=1e-12), case.module(nn.Linear, 7, 5, bias=False)
    x, gradient = case.tensor(9, 7), case.tensor(9, 5)
    ys, grads = [], []
    for scale in (1.0, c):
        weight = (linear.weight.detach() * scale).requires_grad_()
        ys.append(y := layer(h := F.linear(x, weight)))
        y.backward(gradient)
        grads.append(weight.grad)
    least = reference.variance(array(h)).min() / max(1, c * c)  # of both passes, for h is that of the scaled weights
    k = 8 + 3e-12 / least / eps(case.dtype)  # the passes round alike, but eps shifts three roots of the variance
    case.close(ys[1], array(ys[0]), k=k, scale=reference.train_scale(array(h), *affine(layer), 1e-12))
    size = reference.train_gradient_scales(array(h) / c, array(gradient), array(layer.weight), 1e-12)[0]
    case.close(grads[1] * c, array(grads[0]), k=k, scale=size.T @ abs(array(x)))


@claim("batchnorm.network.couples-samples")
def test_output_of_a_sample_depends_on_its_batch(case):
    layer, sample = case.module(nn.BatchNorm1d, 1, eps=EPS, affine=False), case.tensor_of([[1.0]])
    spreads = []
    for n in (4, 256):
        batches = [torch.cat([sample, case.tensor(n - 1, 1)]) for _ in range(16)]
        spreads.append(float(torch.stack([layer(x)[0] for x in batches]).std()))
    assert spreads[0] > 2 * spreads[1] > 0  # the law of large numbers says eight times


@claim("batchnorm.network.accumulation-differs")
def test_micro_batches_are_not_the_large_batch(case):
    layer, linear, x = case.module(nn.BatchNorm1d, 5), case.module(nn.Linear, 5, 5), case.tensor(16, 5)

    def gradient(chunks, *layers):
        linear.zero_grad()
        for chunk in x.chunk(chunks):
            (nn.Sequential(linear, *layers)(chunk) ** 3).sum().backward()
        return linear.weight.grad.clone()

    assert torch.allclose(gradient(4), gradient(1), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(gradient(4, layer), gradient(1, layer), rtol=1e-2, atol=1e-2)


@claim("batchnorm.network.sigmoid-nearly-linear")
@axes(dtype=PRECISE)
def test_sigmoid_is_nearly_linear_around_zero(case):
    x = case.tensor_of(np.linspace(-1, 1, 65))
    gap = abs(array(x.sigmoid()) - (0.5 + array(x) / 4))
    assert (gap <= abs(array(x)) ** 3 / 48 + 2 * eps(case.dtype)).all()
    assert 0.015 < gap.max() < 0.02


@claim("batchnorm.network.sigmoid-gradient-alive")
def test_normalised_input_keeps_the_sigmoid_alive(case):
    def slope(x):
        x = x.detach().requires_grad_()
        return float(torch.autograd.grad(x.sigmoid().sum(), x)[0].mean())

    x = case.tensor(64, 1, loc=20)
    assert slope(case.tensor_of([6.0])) < 0.01 * slope(case.tensor_of([0.0]))
    assert slope(x) < 1e-5
    assert slope(nn.BatchNorm1d(1).to(x)(x)) > 0.15


@claim("batchnorm.network.conditions-least-squares")
def test_normalised_features_condition_least_squares(case):
    x = case.tensor_of(case.rng.standard_normal((256, 2)) * [1, 100])
    before, after = (np.linalg.cond(array(t).T @ array(t)) for t in (x, nn.BatchNorm1d(2).to(x)(x).detach()))
    assert before > 1000
    assert after < 4


@claim("batchnorm.network.checkpoint-updates-twice")
@axes(via=UNBATCHED)  # what checkpoint does to saved tensors, torch.func did not take before 2.5, and never let go
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_updates_twice(case, reentrant):
    layer, x = case.module(nn.BatchNorm1d, 5, momentum=0.7), case.tensor(9, 5, requires_grad=True)
    start, (mean, _) = int(layer.num_batches_tracked), statistics(layer)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert layer.num_batches_tracked == start + 2
    once, size = (
        reference.update(m, reference.mean(f(array(x))), 0.7) for m, f in ((mean, np.array), (abs(mean), abs))
    )
    law = reference.update(once, reference.mean(array(x)), 0.7)
    case.close(layer.running_mean, law, k=2 * (sums(case, x) + 5), scale=0.3 * size + 0.7 * abs(array(x)).mean(0))


@claim("batchnorm.network.vmap-needs-patching")
def test_vmap_needs_buffers_taken_away(case):
    layer, x = case.module(nn.BatchNorm1d, 5, eps=EPS), case.tensor(3, 9, 5, loc=1.5)
    with case.raises(RuntimeError, "batch norm got a batched tensor"):
        torch.func.vmap(layer)(x)
    close_to_eval(case, torch.func.vmap(layer.eval())(x)[1], x[1], *statistics(layer), *affine(layer), EPS)
    torch.func.replace_all_batch_norm_modules_(layer)
    assert layer.running_mean is layer.running_var is layer.num_batches_tracked is None
    assert not layer.track_running_stats
    close_to_train(case, torch.func.vmap(layer.train())(x)[1], x[1], *affine(layer), EPS)


@claim("batchnorm.network.fuses-into-the-layer-before")
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_folds_into_the_one_before(case, kind, bias):
    fuse = fuser(kind)
    first = layer_before(case, kind, bias=bias)
    layer, x = case.module(nn.BatchNorm1d, 5, eps=EPS), case.tensor(6, 4, *[7] * (kind == "conv"))
    for modes in ((True, True), (True, False), (False, True)):
        with case.raises(AssertionError, "eval"):
            fuse(*(each.train(mode) for each, mode in zip((first, layer), modes, strict=True)))
    fused, (h, size) = fuse(first.eval(), layer.eval()), (first(x), magnitudes(first)(x.abs()))
    law = layer(h)
    arguments = (array(layer.running_var), *affine(layer), EPS)
    scale = reference.forward_scale(array(size), abs(array(layer.running_mean)), *arguments)
    # two passes of at most 13 terms each, and seven roundings twice
    case.close(fused(x), array(law), k=28, scale=scale)


@claim("batchnorm.network.fusion-keeps-dtype-and-flag")
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("trains", [True, False])
def test_the_fused_layer_is_as_the_one_before(case, kind, trains):
    first = layer_before(case, kind)
    layer = case.module(nn.BatchNorm1d, 5, eps=EPS).eval()
    fused = fuser(kind)(first.bfloat16().eval().requires_grad_(trains), layer)
    assert fused.weight.requires_grad == trains
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}


@claim("batchnorm.network.fuses-without-affine")
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_layer_without_affine_folds_into_the_one_before(case, kind):
    first = layer_before(case, kind)
    plain, ones = (case.module(nn.BatchNorm1d, 5, eps=EPS, affine=affine).eval() for affine in (False, True))
    ones.load_state_dict(plain.state_dict() | {"weight": torch.ones(5), "bias": torch.zeros(5)})
    fused, wanted = (fuser(kind)(first.eval(), layer) for layer in (plain, ones))
    case.same(fused.weight.detach(), wanted.weight.detach())
    case.same(fused.bias.detach(), wanted.bias.detach())


def layer_before(case, kind, **options):
    return case.module(nn.Linear, 4, 5, **options) if kind == "linear" else case.module(nn.Conv1d, 4, 5, 3, **options)


def fuser(kind):
    return getattr(torch.nn.utils.fusion, f"fuse_{kind}_bn_eval")


def magnitudes(layer):
    """The layer with the magnitudes of its parameters."""
    import copy

    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data.abs_()
    return layer


@claim("batchnorm.network.update-bn")
@pytest.mark.parametrize("training", [True, False])
def test_update_bn_averages_one_pass(case, training):
    layer = case.module(nn.BatchNorm1d, 5, momentum=0.3).train(training)
    xs = [case.tensor(8, 5, loc=i) for i in range(4)]
    with case.unchanged(layer, but=BUFFERS):
        update_bn(xs, layer)
    assert (layer.momentum, layer.training) == (0.3, training)
    assert layer.num_batches_tracked == 4
    k = 4 * (sums(case, xs[0]) + 5)  # four steps of a sum and five roundings each
    case.close(layer.running_mean, np.mean([reference.mean(array(x)) for x in xs], axis=0), k=k, scale=4.0)
    case.close(layer.running_var, np.mean([reference.variance(array(x), 1) for x in xs], axis=0), k=k)


def old_checkpoint(case, metadata):
    """A state_dict from before the counter, with the version of that time or none."""
    old = case.module(nn.BatchNorm1d, 5).state_dict()
    del old["num_batches_tracked"]
    if metadata:
        old._metadata[""]["version"] = 1
    else:
        del old._metadata
    return old


@claim("batchnorm.network.old-checkpoint")
@pytest.mark.parametrize("metadata", [True, False])
def test_old_checkpoint_loads(case, metadata):
    layer, old = case.module(nn.BatchNorm1d, 5), old_checkpoint(case, metadata)
    layer.load_state_dict(old, strict=True)
    case.same(layer.running_var, old["running_var"])
    current = case.module(nn.BatchNorm1d, 5).state_dict()
    del current["num_batches_tracked"]
    with case.raises(RuntimeError, "missing.*num_batches_tracked"):
        layer.load_state_dict(current)


@claim("batchnorm.network.old-checkpoint-counter")
@pytest.mark.parametrize("metadata", [True, False])
def test_old_checkpoint_leaves_the_counter(case, metadata):
    layer = case.module(nn.BatchNorm1d, 5)
    counted = int(layer.num_batches_tracked)
    layer.load_state_dict(old_checkpoint(case, metadata))
    assert int(layer.num_batches_tracked) == counted


@claim("batchnorm.network.old-checkpoint-on-meta")
def test_old_checkpoint_starts_the_counter_of_a_layer_without_storage(case):
    layer, old = nn.BatchNorm1d(5, device="meta"), old_checkpoint(case, metadata=True)
    layer.load_state_dict(old, assign=True)
    assert layer.num_batches_tracked.device.type != "meta"
    case.same(layer.num_batches_tracked, torch.tensor(0))
    case.same(layer.running_var, old["running_var"])


@claim("batchnorm.network.fuses-grouped-transposed")
def test_a_grouped_transposed_convolution_takes_in_the_norm(case):
    layer, norm = nn.ConvTranspose2d(4, 6, 3, groups=2).eval(), nn.BatchNorm2d(6).eval()
    layer, norm = layer.to(case.device, case.dtype), norm.to(case.device, case.dtype)
    x = case.tensor(2, 4, 5, 3)
    with torch.no_grad():
        norm.running_var.mul_(4)
        y = norm(layer(x))
    fused = fusion.fuse_conv_bn_eval(layer, norm, transpose=True)
    # sums of 2 channels by 9 places; the scale goes into the weight or onto the sum
    case.close(fused(x), array(y), k=2 * 2 * 9, scale=abs(array(y)) + 1)
