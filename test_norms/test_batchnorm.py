"""Batch normalisation: by the batch in training, by the running statistics in evaluation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import batchnorm as reference
from test_norms.batchnorms import (
    BUFFERS,
    CLASSES,
    EPS,
    INPUTS,
    affine,
    close_to_eval,
    close_to_train,
    close_to_updated,
    inputs,
    no_longer_tracks,
    statistics,
    sums,
)
from test_norms.freezing import frozen, the_others_keep_theirs
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

SIZES = [1, 3, 7, 15, 17, 31, 33, 63, 65, 129, 271]  # around the widths of vector registers


# -- the layer ---------------------------------------------------------------------------------------------------------


@claim("batchnorm.layer.initial-state")
@pytest.mark.parametrize("cls", [*CLASSES, nn.SyncBatchNorm])
def test_new_layer(case, cls):
    layer = cls(5)
    expected = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in expected.items():
        case.same(getattr(layer, name).detach(), torch.full((5,), value))
    case.same(layer.num_batches_tracked, torch.tensor(0))
    assert (layer.eps, layer.momentum, layer.affine, layer.track_running_stats) == (1e-5, 0.1, True, True)


@claim("batchnorm.layer.state-dict")
@pytest.mark.parametrize("cls", CLASSES)
def test_state_dict_of_the_layer(case, cls):
    layer = case.module(cls, 5)
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(layer.state_dict()) == names
    assert [name for name, _ in layer.named_parameters()] == names[:2]
    assert [name for name, _ in layer.named_buffers()] == names[2:]


@claim("batchnorm.layer.attributes")
@pytest.mark.parametrize("cls", CLASSES)
def test_layer_keeps_and_shows_its_settings(case, cls):
    layer = cls(5, 0.25, 0.75, False, False, dtype=torch.float64)
    assert (layer.num_features, layer.eps, layer.momentum) == (5, 0.25, 0.75)
    assert (layer.affine, layer.track_running_stats, layer.training) == (False, False, True)
    assert cls(5, dtype=torch.float64).weight.dtype == cls(5, dtype=torch.float64).running_var.dtype == torch.float64
    assert not hasattr(layer, "_backend")
    for text in ("5", "eps=0.25", "momentum=0.75", "affine=False", "track_running_stats=False"):
        assert text in repr(layer)


@claim("batchnorm.layer.affine-false")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@inputs
def test_without_affine_the_layer_only_normalises(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS, affine=False), case.tensor(*shape, loc=1.5)
    assert layer.weight is None
    assert layer.bias is None
    mean, variance = statistics(layer)
    close_to_train(case, layer(x), x, 1.0, 0.0, EPS)
    layer.running_mean.copy_(torch.as_tensor(mean))
    layer.running_var.copy_(torch.as_tensor(variance))
    close_to_eval(case, layer.eval()(x), x, mean, variance, 1.0, 0.0, EPS)


@claim("batchnorm.layer.bias-false")
@pytest.mark.parametrize("cls", [*CLASSES, nn.SyncBatchNorm])
@pytest.mark.parametrize("lazy", [True, False])
def test_without_bias_the_layer_learns_a_weight(case, cls, lazy):
    if lazy and cls is nn.SyncBatchNorm:
        raise case.unsupported("there is no lazy SyncBatchNorm")
    x = case.tensor(*dict(INPUTS).get(cls, (9, 5)), loc=1.5)
    options = {"eps": EPS, "bias": False, "device": case.device}
    layer = getattr(nn, f"Lazy{cls.__name__}")(**options) if lazy else cls(5, **options)
    layer(x)
    case.randomise(layer)
    assert "bias" not in layer.state_dict()
    assert "bias=False" in repr(layer)
    close_to_train(case, layer(x), x, array(layer.weight), 0.0, EPS)


@claim("batchnorm.layer.takes-groups")
@pytest.mark.parametrize("cls", CLASSES)
def test_second_argument_is_eps(case, cls):
    layer, x = cls(5, 4, device=case.device), case.tensor(*dict(INPUTS)[cls], loc=1.5)
    assert layer.eps == 4
    close_to_train(case, layer(x), x, 1.0, 0.0, 4)


# -- training ----------------------------------------------------------------------------------------------------------


@claim("batchnorm.train.formula")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last", "transposed", "strided", "expanded"))
@inputs
def test_training_normalises_by_the_batch(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS), case.tensor(*shape, loc=1.5, spread=2)
    close_to_train(case, layer(x), x, *affine(layer), EPS)


@claim("batchnorm.train.any-size")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("n", SIZES)
def test_training_at_every_size(case, n):
    for shape in ((3, n, 2, 1), (2, 2, 1, n), (n + 1, 2, 1, 1)):
        layer, x = case.module(nn.BatchNorm2d, shape[1], eps=EPS, momentum=0.7), case.tensor(*shape, loc=1.5)
        before = statistics(layer)
        close_to_train(case, layer(x), x, *affine(layer), EPS)
        close_to_updated(case, layer, before, x, 0.7)
        x.requires_grad_()
        mean, variance = statistics(layer.eval())
        close_to_eval(case, layer(x), x, mean, variance, *affine(layer), EPS)


def trains_by_the_law(case, layer, *shape):
    """One step forward and back: output, running statistics and gradients."""
    x, gradient = case.tensor(*shape, loc=0.5, requires_grad=True), case.tensor(*shape)
    before = statistics(layer)
    y = layer(x)
    y.backward(gradient)
    close_to_train(case, y, x, *affine(layer), EPS)
    close_to_updated(case, layer, before, x, 0.7)
    close_to_train_gradients(case, layer, x, gradient)


@claim("batchnorm.train.any-size", "batchnorm.gradient.input")
@axes(dtype=("float32", "bfloat16"), layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("n", [1, 2])
def test_training_in_every_thread(case, n):
    layer = case.module(nn.BatchNorm2d, 67, eps=EPS, momentum=0.7)
    with switched("threads", n):
        trains_by_the_law(case, layer, 4, 67, 13, 11)


@claim("batchnorm.train.any-size", "batchnorm.gradient.input")
@axes(dtype=FLOATING)
def test_many_samples_of_one_place(case):
    trains_by_the_law(case, case.module(nn.BatchNorm1d, 3, eps=EPS, momentum=0.7), 601, 3)


@claim("batchnorm.train.statistics-over-positions")
@axes(dtype=PRECISE)
@inputs
def test_statistics_are_taken_over_all_positions(case, cls, shape):
    layer, x = case.module(cls, 5, momentum=1.0), case.tensor(*shape, loc=1.5)
    layer(x)
    n = math.prod(shape) // 5
    rows = array(x).swapaxes(0, 1).reshape(5, n)
    case.close(layer.running_mean, rows.sum(1) / n, k=n / 2 + 5, scale=abs(rows).mean(1))  # as in any update
    if len(shape) > 2:
        assert (abs(array(layer.running_mean) - array(x)[..., 0].mean(0).reshape(5, -1)[:, 0]) > 1e-4).any()


@claim("batchnorm.train.eps-inside-the-root")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("value", [1e-3, 0.7, 10.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_eps_stands_inside_the_root(case, value, spread):
    layer, x = case.module(nn.BatchNorm1d, 5, eps=value), case.tensor(9, 5, spread=spread)
    mean, variance = statistics(layer)
    close_to_eval(case, layer.eval()(x), x, mean, variance, *affine(layer), value)
    close_to_train(case, layer.train()(x), x, *affine(layer), value)


@claim("batchnorm.train.mean-and-variance")
@axes(dtype=PRECISE)
def test_output_has_mean_zero_and_variance_nearly_one(case):
    spreads = np.array([0.0, 0.1, 1.0, 30.0])
    x = case.tensor_of(case.rng.standard_normal((15, 4)) * spreads + 2)
    y = case.module(nn.BatchNorm1d, 4, eps=EPS, affine=False)(x)
    variance = reference.variance(array(x))
    size = reference.mean(reference.train_scale(array(x), 1.0, 0.0, EPS))
    k = 3 * sums(case, x) + 11  # as in the formula, and doubled by the square
    case.close(y.mean(0), np.zeros(4), k=k, scale=size)
    case.close((y * y).mean(0), variance / (variance + EPS), k=k, scale=size**2)


@claim("batchnorm.train.variance-becomes-weight")
@axes(dtype=PRECISE)
def test_weight_is_the_standard_deviation(case):
    layer, x = case.module(nn.BatchNorm1d, 4, eps=1e-8), case.tensor(15, 4)
    weight, bias = affine(layer)
    y, size = layer(x), reference.mean(reference.train_scale(array(x), weight, bias, 1e-8))
    k = 3 * sums(case, x) + 11  # as in the formula, and doubled by the square
    case.close(y.mean(0), bias, k=k, scale=size)
    variance = reference.variance(array(x))
    case.close(y.var(0, unbiased=False), weight**2 * variance / (variance + 1e-8), k=k, scale=size**2)
    assert (abs(reference.variance(array(y)) - abs(weight)) > 1e-3).any()


@claim("batchnorm.train.makes-values-gaussian")
def test_two_values_remain_two(case):
    coins = case.rng.permutation(np.repeat([0.0, 1.0], [4, 11]))
    x = case.tensor_of(np.stack([coins, case.rng.permutation(np.linspace(0.25, 2, 15) ** 3)], 1))
    y = case.module(nn.BatchNorm1d, 2, eps=EPS)(x)
    assert len(y[:, 0].unique()) == 2
    order, rank = array(x)[:, 1].argsort(), array(y)[:, 1].argsort()
    assert rank.tolist() in (order.tolist(), order[::-1].tolist())
    skewness = [abs(((v - v.mean()) ** 3).mean() / v.std() ** 3) for v in (array(x)[:, 1], array(y)[:, 1])]
    assert skewness[0] == pytest.approx(skewness[1], rel=1e-4)
    assert skewness[1] > 0.1


@claim("batchnorm.train.affine-restores-the-input")
@axes(dtype=PRECISE)
def test_affine_parameters_can_restore_the_input(case):
    layer, x = case.module(nn.BatchNorm1d, 5, eps=EPS), case.tensor(15, 5, loc=1.5)
    root, mean = np.sqrt(reference.variance(array(x)) + EPS), reference.mean(array(x))
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(root))
        layer.bias.copy_(torch.as_tensor(mean))
    scale = reference.train_scale(array(x), root, mean, EPS)
    case.close(layer(x), array(x), k=1.5 * sums(case, x) + 6.5, scale=scale)  # two roundings more: weight and bias
    layer.reset_parameters()
    assert (abs(array(layer(x)) - array(x)) > 0.1).any()


@claim("batchnorm.train.large-offset")
@axes(dtype=PRECISE, layout=("contiguous", "channels_last", "transposed"))
@pytest.mark.parametrize(("offset", "plane"), [(1e3, (3, 3)), (-1e4, (3, 3)), (1e5, (3, 3)), (1e4, (29, 23))], ids=str)
def test_large_offset_costs_its_own_rounding(case, offset, plane):
    layer, x = case.module(nn.BatchNorm2d, 5, eps=1e-4, momentum=0.7), case.tensor(2, 5, *plane, loc=offset)
    before = statistics(layer)
    close_to_train(case, layer(x), x, *affine(layer), 1e-4)
    close_to_updated(case, layer, before, x, 0.7)


@claim("batchnorm.train.mixed-precision")
@axes(dtype=REDUCED, layout=("contiguous", "channels_last", "transposed"))
@inputs
def test_float32_layer_takes_low_precision_input(case, cls, shape):
    layer = case.module(cls, 5, eps=EPS, momentum=0.7).float()
    x, gradient = case.tensor(*shape, loc=1.5, requires_grad=True), case.tensor(*shape)
    before = statistics(layer)
    y = layer(x)
    y.backward(gradient)
    assert y.dtype == x.grad.dtype == case.dtype
    finer = eps(torch.float32) / eps(case.dtype)  # in float32, then rounded twice, if x - mu is stored on the way
    law, scale = (f(array(x), *affine(layer), EPS) for f in (reference.train, reference.train_scale))
    k = 1.5 * reference.count(array(x)) / 2 + 5.5
    case.close(y, law, k=1, scale=abs(law) + k * finer * scale)
    case.dtype = torch.float32
    close_to_updated(case, layer, before, x, 0.7)
    close_to_train_gradients(case, layer, x, gradient, finer=finer)


@claim("batchnorm.train.mixed-precision")
@axes(dtype=REDUCED, layout=("contiguous", "channels_last"))
@inputs
def test_float32_layer_takes_low_precision_input_in_eval(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS).float().eval(), case.tensor(*shape, loc=1.5)
    settings = (array(layer.running_var), *affine(layer), EPS)
    law = reference.forward(array(x), array(layer.running_mean), *settings)
    scale = reference.forward_scale(array(x), abs(array(layer.running_mean)), *settings)
    finer = eps(torch.float32) / eps(case.dtype)
    case.close(layer(x), law, k=1, scale=abs(law) + 3.5 * finer * scale)  # as in training


@claim("batchnorm.train.single-value-refused")
@pytest.mark.parametrize("cls", CLASSES)
def test_one_value_per_channel_is_refused_in_training(case, cls):
    layer, x = case.module(cls, 5, eps=EPS), case.tensor(1, 5, *[1] * (len(dict(INPUTS)[cls]) - 2))
    with case.raises(ValueError, "more than 1 value per channel"):
        layer(x)
    mean, variance = statistics(layer)
    close_to_eval(case, layer.eval()(x), x, mean, variance, *affine(layer), EPS)


@claim("batchnorm.train.single-image")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize(("cls", "shape"), [(c, (1, *s[1:])) for c, s in INPUTS[1:]], ids=str)
def test_one_image_is_enough_for_training(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS), case.tensor(*shape, loc=1.5)
    close_to_train(case, layer(x), x, *affine(layer), EPS)


@claim("batchnorm.train.empty-batch")
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_comes_back_empty(case, cls, training):
    layer, x = case.module(cls, 5).train(training), case.tensor(0, *dict(INPUTS)[cls][1:], requires_grad=True)
    with case.unchanged(layer, but={"num_batches_tracked"} if training else set()):
        y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


# -- gradients ---------------------------------------------------------------------------------------------------------


def close_to_train_gradients(case, layer, x, gradient, finer=None):
    """Gradients of input, weight and bias; ``finer`` is the eps of float32, where that computes a coarser gradient.

    Five steps of the latter may be stored in the input's dtype, at half an eps each: ``k`` is 2.5, and float32's share.
    """
    weight, _ = affine(layer)
    arguments = (array(x), array(gradient), weight, EPS)
    laws, scales = reference.train_gradients(*arguments), reference.train_gradient_scales(*arguments)
    # Sums: two means, x-hat twice, the variance under three roots; then some twenty roundings of half an eps
    n = sums(case, x)
    if finer is None:
        case.close(x.grad, laws[0], k=4.5 * n + 10, scale=scales[0])
    else:
        case.close(x.grad, laws[0], k=2.5 + (4.5 * n + 10) * finer, scale=scales[0])
    if layer.weight is not None:
        case.close(layer.weight.grad, laws[1], k=2.5 * n + 6, scale=scales[1])  # its sum, x-hat's and half a variance
        # The sums along one dimension and then along the other, if both are stored in the dtype of what they add up
        stored = 0 if finer is None else 1 / finer
        case.close(layer.bias.grad, laws[2], k=n + 1 + stored, scale=scales[2])


@claim("batchnorm.gradient.input", "batchnorm.gradient.weight-and-bias")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last", "transposed", "strided"))
@inputs
def test_training_gradients(case, cls, shape):
    layer = case.module(cls, 5, eps=EPS)
    x, gradient = case.tensor(*shape, loc=0.5, requires_grad=True), case.tensor(*shape)
    layer(x).backward(gradient)
    close_to_train_gradients(case, layer, x, gradient)


@claim("batchnorm.gradient.input", "batchnorm.gradient.weight-and-bias")
@axes(dtype=FLOATING, layout="channels_last")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("contiguous", ["input", "gradient"])
def test_gradients_laid_out_otherwise_than_the_input(case, contiguous, training):
    layer = case.module(nn.BatchNorm2d, 5, eps=EPS).train(training)
    x, gradient = case.tensor(4, 5, 3, 2, loc=0.5), case.tensor(4, 5, 3, 2)
    x, gradient = (x.contiguous(), gradient) if contiguous == "input" else (x, gradient.contiguous())
    layer(x.requires_grad_()).backward(gradient)
    (close_to_train_gradients if training else close_to_eval_gradients)(case, layer, x, gradient)


@claim("batchnorm.gradient.input")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@inputs
def test_training_gradients_without_affine(case, cls, shape):
    layer = case.module(cls, 5, eps=EPS, affine=False)
    x, gradient = case.tensor(*shape, loc=0.5, requires_grad=True), case.tensor(*shape)
    layer(x).backward(gradient)
    close_to_train_gradients(case, layer, x, gradient)


@claim("batchnorm.gradient.input", "batchnorm.gradient.weight-and-bias")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize("n", SIZES)
def test_training_gradients_at_every_size(case, n):
    for shape in ((3, 3, 1, n + 1), (3, n, 2, 1)):
        layer = case.module(nn.BatchNorm2d, shape[1], eps=EPS)
        x, gradient = case.tensor(*shape, loc=0.5, requires_grad=True), case.tensor(*shape)
        layer(x).backward(gradient)
        close_to_train_gradients(case, layer, x, gradient)


@claim("batchnorm.gradient.input", "batchnorm.gradient.weight-and-bias")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("training", [True, False])
@frozen
def test_what_needs_no_gradient_gets_none(case, frozen, training):
    layer, g = case.module(nn.BatchNorm1d, 5, eps=EPS).train(training), case.tensor(9, 5)
    x = case.tensor(9, 5, requires_grad=True)
    the_others_keep_theirs(layer, x, g, frozen)


@claim("batchnorm.gradient.input", "batchnorm.gradient.weight-and-bias")
@axes(layout="channels_last")
@pytest.mark.parametrize("training", [True, False])
@frozen
def test_what_needs_no_gradient_gets_none_in_channels_last(case, frozen, training):
    layer, g = case.module(nn.BatchNorm2d, 5, eps=EPS).train(training), case.tensor(4, 5, 3, 2)
    x = case.tensor(4, 5, 3, 2, requires_grad=True)
    the_others_keep_theirs(layer, x, g, frozen)


@claim("batchnorm.gradient.sums-beyond-the-range")
@axes(dtype=("float16",), layout=("contiguous", "channels_last"))
def test_sums_may_exceed_the_range_of_their_terms(case):
    layer = case.module(nn.BatchNorm2d, 3, eps=EPS)
    x = case.tensor(2, 3, 21, 19, requires_grad=True)
    gradient = case.tensor(2, 3, 21, 19, loc=150, spread=25).contiguous()  # whatever the layout of x
    layer(x).backward(gradient)
    assert array(gradient).sum((0, 2, 3)).min() > torch.finfo(torch.float16).max
    arguments = (array(x), array(gradient), array(layer.weight), EPS)
    law, scale = reference.train_gradients(*arguments)[0], reference.train_gradient_scales(*arguments)[0]
    case.close(x.grad, law, k=4.5 * sums(case, x) + 10, scale=scale)


@claim("batchnorm.gradient.sums-to-zero")
@axes(dtype=PRECISE)
@inputs
def test_input_gradient_sums_to_zero(case, cls, shape):
    layer, x, gradient = case.module(cls, 5, eps=EPS), case.tensor(*shape, requires_grad=True), case.tensor(*shape)
    layer(x).backward(gradient)
    over = reference.over_channels(array(x))
    scale = reference.train_gradient_scales(array(x), array(gradient), array(layer.weight), EPS)[0].sum(over)
    case.close(x.grad.sum(over), np.zeros(5), k=5.5 * sums(case, x) + 10, scale=scale)  # as above, and one sum more


def close_to_eval_gradients(case, layer, x, gradient):
    """Gradients of input, weight and bias where the statistics are constants."""
    arguments = (array(x), array(gradient), *statistics(layer), next(affine(layer)), EPS)
    laws, scales = reference.eval_gradients(*arguments), reference.eval_gradient_scales(*arguments)
    case.close(x.grad, laws[0], k=2.5, scale=scales[0])  # sum, root, inverse, weight, product: half an eps each
    if layer.weight is not None:
        case.close(layer.weight.grad, laws[1], k=sums(case, x) + 3, scale=scales[1])  # as above, x - r, and the sum
        case.close(layer.bias.grad, laws[2], k=sums(case, x) + 1, scale=scales[2])


@claim("batchnorm.gradient.eval")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last", "transposed", "strided"))
@inputs
def test_eval_gradients(case, cls, shape):
    layer = case.module(cls, 5, eps=EPS).eval()
    x, gradient = case.tensor(*shape, loc=0.5, requires_grad=True), case.tensor(*shape)
    layer(x).backward(gradient)
    close_to_eval_gradients(case, layer, x, gradient)


@claim("batchnorm.gradient.eval")
@axes(dtype=FLOATING)
@inputs
def test_eval_gradients_without_affine(case, cls, shape):
    layer = case.module(cls, 5, eps=EPS, affine=False).eval()
    x, gradient = case.tensor(*shape, loc=0.5, requires_grad=True), case.tensor(*shape)
    layer(x).backward(gradient)
    close_to_eval_gradients(case, layer, x, gradient)


@claim("batchnorm.gradient.second")
@axes(dtype=PRECISE, layout=("contiguous", "channels_last"))
@pytest.mark.parametrize(("cls", "shape"), [(nn.BatchNorm1d, (6, 5)), (nn.BatchNorm2d, (2, 3, 2, 2))], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_second_gradients(case, cls, shape, training):
    layer = case.module(cls, shape[1], eps=EPS).train(training)
    x, gradient, v = (case.tensor(*shape, requires_grad=True) for _ in range(3))
    (first,) = torch.autograd.grad(layer(x), x, gradient, create_graph=True)
    found = torch.autograd.grad(first, (x, gradient, layer.weight), v, allow_unused=True)
    xs, gs, vs, weight = array(x), array(gradient), array(v), array(layer.weight)
    if training:
        laws = reference.train_second_gradients(xs, gs, vs, weight, EPS)
        scales = reference.train_second_scales(xs, gs, vs, weight, EPS)
    else:
        root = reference.spread(np.sqrt(array(layer.running_var) + EPS), xs)
        laws = [np.zeros_like(xs), vs * reference.spread(weight, xs) / root]
        laws += [(vs * gs / root).sum(reference.over_channels(xs))]
        scales = [1.0, abs(laws[1]), (abs(vs * gs) / root).sum(reference.over_channels(xs))]
    for actual, law, scale in zip(found, laws, scales, strict=True):
        actual = torch.zeros_like(x) if actual is None else actual
        # Products of three terms as in the first gradient, each with its sums and roundings, over one root more
        case.close(actual, law, k=14 * sums(case, x) + 30, scale=scale)


@claim("batchnorm.gradient.writes-nothing-else")
@pytest.mark.parametrize("training", [True, False])
def test_backward_writes_gradients_alone(case, training):
    layer, x = case.module(nn.BatchNorm2d, 5).train(training), case.tensor(4, 5, 3, 2, requires_grad=True)
    y = layer(x)
    with case.unchanged(layer, x=x, but={"weight.grad", "bias.grad", "x.grad"}):
        y.backward(case.tensor(4, 5, 3, 2))


# -- running statistics ------------------------------------------------------------------------------------------------


@claim("batchnorm.running.update")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last", "transposed", "strided"))
@inputs
@pytest.mark.parametrize("momentum", [0.3, 0.9])
def test_running_statistics_move_by_momentum(case, cls, shape, momentum):
    layer, x = case.module(cls, 5, momentum=momentum), case.tensor(*shape, loc=1.5, spread=2)
    before = statistics(layer)
    layer(x)
    close_to_updated(case, layer, before, x, momentum)


@claim("batchnorm.running.variance-unbiased")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("n", [2, 3, 8])
def test_running_variance_is_unbiased(case, n):
    layer, x = case.module(nn.BatchNorm1d, 5, momentum=1.0), case.tensor(n, 5)
    layer(x)
    unbiased = reference.variance(array(x)) * n / (n - 1)
    case.close(layer.running_var, unbiased, k=n / 2 + 5, scale=unbiased + reference.mean(abs(array(x))) ** 2)


@claim("batchnorm.running.many-steps")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("momentum", [0.3, 0.8])
def test_running_statistics_after_many_steps(case, momentum):
    layer = case.module(nn.BatchNorm1d, 5, momentum=momentum)
    (mean, variance), batches = statistics(layer), [case.tensor(8, 5, loc=i / 4) for i in range(12)]
    sizes = abs(mean), variance
    for x in batches:
        layer(x)
        mean, size = (
            reference.update(r, reference.mean(f(array(x))), momentum) for r, f in ((mean, np.array), (sizes[0], abs))
        )
        variance = reference.update(variance, reference.variance(array(x), 1), momentum)
        sizes = size, variance
    k = (sums(case, batches[0]) + 5) / momentum  # each step's own, and what the earlier ones have faded to
    case.close(layer.running_mean, mean, k=k, scale=sizes[0])
    case.close(layer.running_var, variance, k=k, scale=2 * sizes[1])


@claim("batchnorm.running.first-mean")
@axes(dtype=PRECISE)
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_first_running_mean_is_momentum_times_the_mean(case, momentum):
    layer, x = case.module(nn.BatchNorm1d, 5, momentum=momentum), case.tensor(8, 5, loc=1.5)
    layer.reset_running_stats()
    layer(x)
    close_to_updated(case, layer, (np.zeros(5), np.ones(5)), x, momentum)


@claim("batchnorm.running.momentum-none")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.BatchNorm3d])
def test_momentum_none_averages_all_batches(case, cls):
    layer = case.module(cls, 5, momentum=None)
    layer.reset_running_stats()
    xs = [case.tensor(*dict(INPUTS)[cls], loc=i / 4) for i in range(5)]
    for x in xs:
        layer(x)
    k = 5 * (sums(case, xs[0]) + 5)  # five steps of a sum and five roundings each
    means, sizes = (np.mean([reference.mean(f(array(x))) for x in xs], axis=0) for f in (np.array, abs))
    case.close(layer.running_mean, means, k=k, scale=sizes)
    case.close(layer.running_var, np.mean([reference.variance(array(x), 1) for x in xs], axis=0), k=k)


@claim("batchnorm.running.momentum-none")
@axes(dtype=PRECISE)
def test_momentum_none_weighs_by_the_counter(case):
    layer, x = case.module(nn.BatchNorm1d, 5, momentum=None), case.tensor(8, 5, loc=1.5)
    before, counted = statistics(layer), int(layer.num_batches_tracked)
    layer(x)
    close_to_updated(case, layer, before, x, 1 / (counted + 1))


@claim("batchnorm.running.momentum-zero")
@pytest.mark.parametrize("cls", [*CLASSES])
def test_momentum_zero_freezes_the_statistics(case, cls):
    layer, x = case.module(cls, 5, eps=EPS, momentum=0.0), case.tensor(*dict(INPUTS)[cls], loc=1.5)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    close_to_train(case, layer(x), x, *affine(layer), EPS)
    case.same(layer.running_mean, before["running_mean"])
    case.same(layer.running_var, before["running_var"])
    assert layer.num_batches_tracked == before["num_batches_tracked"] + 1


@claim("batchnorm.running.momentum-one")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", [*CLASSES])
def test_momentum_one_keeps_the_last_batch(case, cls):
    layer = case.module(cls, 5, momentum=1.0)
    first, last = (case.tensor(*dict(INPUTS)[cls], loc=loc) for loc in (5, 1.5))
    layer(first)
    before = statistics(layer)
    layer(last)
    close_to_updated(case, layer, before, last, 1.0)


@claim("batchnorm.running.counter")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_counter_grows_by_one(case, momentum):
    layer, x = case.module(nn.BatchNorm1d, 5, momentum=momentum), case.tensor(9, 5)
    counter, start = layer.num_batches_tracked, int(layer.num_batches_tracked)
    for _ in range(3):
        layer(x)
    layer.eval()(x)
    assert layer.num_batches_tracked is counter
    case.same(counter.cpu(), torch.tensor(start + 3))


@claim("batchnorm.running.at-forward")
@inputs
@pytest.mark.parametrize("grad", [True, False])
def test_training_forward_changes_the_buffers_alone(case, cls, shape, grad):
    layer, x = case.module(cls, 5), case.tensor(*shape)
    with torch.set_grad_enabled(grad), case.unchanged(layer, x=x, but=BUFFERS):
        layer(x)


@claim("batchnorm.running.no-gradient")
def test_running_statistics_are_not_trained(case):
    layer, x = case.module(nn.BatchNorm1d, 5), case.tensor(9, 5)
    layer(x).pow(3).sum().backward()
    with case.unchanged(layer, but={"weight", "bias"}), torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.1 * (parameter.grad + 0.3 * parameter)
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in layer.buffers())


@claim("batchnorm.running.frozen-affine")
def test_frozen_parameters_do_not_freeze_the_statistics(case):
    layer, x = case.module(nn.BatchNorm1d, 5).requires_grad_(False), case.tensor(9, 5)
    with case.unchanged(layer, x=x, but=BUFFERS):
        assert not layer(x).requires_grad


@claim("batchnorm.running.population")
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_not_the_populations(case, momentum):
    layer, batches = case.module(nn.BatchNorm1d, 3, momentum=momentum), [case.tensor(8, 3, loc=9 * i) for i in range(5)]
    layer.reset_running_stats()
    for x in batches:
        layer(x)
    population = np.concatenate([array(x) for x in batches])
    assert (array(layer.running_var) < population.var(0) / 9).all()  # the variance between the batches is missing
    if momentum is not None:
        assert (abs(array(layer.running_mean) - population.mean(0)) > 1).all()  # the last batches weigh most


@claim("batchnorm.running.reset")
@pytest.mark.parametrize("cls", CLASSES)
def test_reset_puts_the_start_back(case, cls):
    layer, fresh = case.module(cls, 5), cls(5).to(case.dtype)
    with case.unchanged(layer, but=BUFFERS):
        layer.reset_running_stats()
    with case.unchanged(layer, but=BUFFERS | {"weight", "bias"}):
        layer.reset_parameters()
    for name, value in fresh.state_dict().items():
        case.same(layer.state_dict()[name].cpu(), value)


# -- eval mode ---------------------------------------------------------------------------------------------------------


@claim("batchnorm.eval.formula")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last", "transposed", "strided", "expanded"))
@inputs
def test_eval_normalises_by_the_running_statistics(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS).eval(), case.tensor(*shape, loc=1.5, spread=2)
    close_to_eval(case, layer(x), x, *statistics(layer), *affine(layer), EPS)


@claim("batchnorm.eval.buffers-kept")
@inputs
@pytest.mark.parametrize("momentum", [0.3, None])
def test_eval_changes_nothing(case, cls, shape, momentum):
    layer, x = case.module(cls, 5, momentum=momentum).eval(), case.tensor(*shape)
    with case.unchanged(layer, x=x):
        layer(x)


@claim("batchnorm.eval.one-by-one")
@axes(dtype=PRECISE)
@inputs
def test_eval_takes_samples_one_by_one(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS).eval(), case.tensor(*shape, loc=1.5)
    close_to_eval(
        case, torch.cat([layer(x[i : i + 1]) for i in range(len(x))]), x, *statistics(layer), *affine(layer), EPS
    )
    layer.train()
    assert not torch.allclose(layer(x)[:2], layer(x[:2]), rtol=1e-3)


@claim("batchnorm.eval.does-not-normalise")
def test_eval_normalises_too(case):
    layer, x = case.module(nn.BatchNorm1d, 5, eps=EPS, momentum=1.0, affine=False), case.tensor(9, 5, loc=30, spread=5)
    layer(x)
    y = layer.eval()(x)
    assert y.abs().max() < 5 < x.abs().max()
    close_to_eval(case, y, x, *statistics(layer), 1.0, 0.0, EPS)


@claim("batchnorm.eval.gap-closes")
@axes(dtype=PRECISE)
def test_train_and_eval_agree_once_the_statistics_do(case):
    layer, x = case.module(nn.BatchNorm1d, 5, eps=EPS, momentum=1.0), case.tensor(9, 5, loc=1.5)
    young, trained = layer.eval()(x), layer.train()(x)
    assert not torch.allclose(young, trained, rtol=1e-3)
    layer.running_var.mul_(8 / 9)  # the biased variance
    mean, variance = reference.mean(array(x)), reference.variance(array(x))
    scale = reference.train_scale(array(x), *affine(layer), EPS)
    law = reference.forward(array(x), mean, variance, *affine(layer), EPS)
    case.close(layer.eval()(x), law, k=1.5 * sums(case, x) + 7, scale=scale)  # as in training, and three more
    case.close(trained, law, k=1.5 * sums(case, x) + 5.5, scale=scale)


@claim("batchnorm.track.false")
@axes(dtype=FLOATING, layout=("contiguous", "channels_last"))
@inputs
def test_untracked_layers_use_the_batch_in_both_modes(case, cls, shape):
    layer, x = case.module(cls, 5, eps=EPS, track_running_stats=False), case.tensor(*shape, loc=1.5)
    assert layer.running_mean is layer.running_var is layer.num_batches_tracked is None
    assert list(layer.state_dict()) == ["weight", "bias"]
    with case.unchanged(layer, x=x):
        y = layer(x)
    case.same(layer.eval()(x), y)
    close_to_train(case, y, x, *affine(layer), EPS)


@claim("batchnorm.track.switched-off-later")
@pytest.mark.parametrize("cls", CLASSES)
def test_tracking_switched_off_later(case, cls):
    layer, x = case.module(cls, 5, eps=EPS), case.tensor(*dict(INPUTS)[cls], loc=1.5)
    no_longer_tracks(case, layer, x)


# -- refusals ----------------------------------------------------------------------------------------------------------


@claim("batchnorm.refuses.other-ranks")
@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize(("cls", "ranks"), list(zip(CLASSES, [(2, 3), (4,), (5,)], strict=True)))
def test_other_ranks_are_refused(case, cls, ranks, lazy):
    there = {"device": case.device}
    make = (lambda: getattr(nn, f"Lazy{cls.__name__}")(**there)) if lazy else lambda: cls(3, **there)
    for rank in range(1, 7):
        if rank in ranks:
            assert make()(case.tensor(*[3] * rank)).ndim == rank
        else:
            with case.raises((ValueError, IndexError), rf"expected {ranks[0]}D.*got {rank}D|out of range"):
                make()(case.tensor(*[3] * rank))


@claim("batchnorm.refuses.other-channels")
@pytest.mark.parametrize("setting", ["plain", "eval", "untracked", "bare"])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_other_channels_are_refused(case, setting, channels):
    keywords = {"untracked": {"track_running_stats": False}, "bare": {"affine": False}}.get(setting, {})
    layer = case.module(nn.BatchNorm1d, 5, **keywords).train(setting != "eval")
    with case.raises(RuntimeError, f"should contain {channels} elements? not 5"):
        layer(case.tensor(9, channels))


@claim("batchnorm.refuses.other-dtypes")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")], ids=str)
def test_other_dtypes_are_refused(case, training, dtypes):
    of_layer, of_input = (getattr(torch, name) for name in dtypes)
    layer, x = case.module(nn.BatchNorm1d, 5).to(of_layer).train(training), case.tensor(9, 5, dtype=of_input)
    with case.raises(RuntimeError, "dtype|scalar type"):
        layer(x)


@claim("batchnorm.refuses.eps-zero-in-training")
@pytest.mark.parametrize("value", [0.0, -1e-9])
def test_eps_must_be_positive_in_training(case, value):
    with case.raises(ValueError, "eps must be positive"):
        case.module(nn.BatchNorm1d, 5, eps=value)(case.tensor(9, 5))


@claim("batchnorm.refuses.eps-negative")
@pytest.mark.parametrize("training", [True, False])
def test_eps_must_not_be_negative(case, training):
    with case.raises(ValueError, "eps must be (positive|non-negative)"):
        case.module(nn.BatchNorm1d, 5, eps=-1e-9).train(training)(case.tensor(9, 5))


# -- functional form ---------------------------------------------------------------------------------------------------


@claim("batchnorm.functional.matches-the-layer")
@inputs
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_affine", [True, False])
def test_functional_form_matches_the_layer(case, cls, shape, training, with_affine):
    layer = case.module(cls, 5, eps=EPS, momentum=0.7, affine=with_affine).train(training)
    x, mean, variance = case.tensor(*shape, loc=1.5), layer.running_mean.clone(), layer.running_var.clone()
    y = case.function(F.batch_norm)(x, mean, variance, layer.weight, layer.bias, training, 0.7, EPS)
    case.same(y, layer(x))
    case.same(mean, layer.running_mean)
    case.same(variance, layer.running_var)


@claim("batchnorm.functional.defaults")
@axes(dtype=PRECISE)
def test_functional_defaults(case):
    layer, x = case.module(nn.BatchNorm1d, 5), case.tensor(9, 5, loc=1.5)
    running = (layer.running_mean, layer.running_var)
    before = statistics(layer)
    with case.unchanged(layer, x=x):
        y = case.function(F.batch_norm)(x, *running)
    close_to_eval(case, y, x, *before, 1.0, 0.0, 1e-5)
    y = case.function(F.batch_norm)(x, *running, training=True)
    close_to_train(case, y, x, 1.0, 0.0, 1e-5)
    close_to_updated(case, layer, before, x, 0.1)


@claim("batchnorm.functional.defaults")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("given", ["weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
def test_functional_form_takes_either_parameter(case, given, training):
    layer, x = case.module(nn.BatchNorm1d, 5), case.tensor(9, 5, loc=1.5)
    values = {given: getattr(layer, given).detach()}
    weight, bias = (array(values[n]) if n in values else d for n, d in (("weight", 1.0), ("bias", 0.0)))
    before = statistics(layer)
    y = F.batch_norm(x, layer.running_mean, layer.running_var, **values, training=training, eps=EPS)
    if training:
        close_to_train(case, y, x, weight, bias, EPS)
    else:
        close_to_eval(case, y, x, *before, weight, bias, EPS)


@claim("batchnorm.functional.needs-statistics")
def test_functional_form_needs_statistics_in_eval(case):
    x = case.tensor(9, 5, loc=1.5)
    close_to_train(case, case.function(F.batch_norm)(x, None, None, training=True, eps=EPS), x, 1.0, 0.0, EPS)
    with case.raises(RuntimeError, "running_mean must be defined in evaluation"):
        case.function(F.batch_norm)(x, None, None)
    layer = case.module(nn.BatchNorm1d, 5).eval()
    layer.running_mean = None  # the variance alone is not taken for an untracked layer
    with case.raises(RuntimeError, "running_mean"):
        layer(x)


@claim("batchnorm.functional.statistics-together")
def test_functional_form_takes_both_statistics_or_none(case):
    for given in ((case.tensor(5), None), (None, case.tensor(5).abs())):
        with case.raises((ValueError, RuntimeError), "running_mean|running_var"):
            F.batch_norm(case.tensor(9, 5), *given, training=True)


class Spy(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, args, kwargs


@claim("batchnorm.functional.overridable")
def test_functional_form_can_be_overridden(case):
    spy = case.tensor(9, 5).as_subclass(Spy)
    settings = {"weight": 1, "bias": 2, "training": True, "momentum": 0.7, "eps": EPS}
    function, positional, named = F.batch_norm(spy, None, None, **settings)
    assert function is F.batch_norm
    assert (positional[0] is spy, positional[1:], named) == (True, (None, None), settings)


@claim("batchnorm.gradient.one-sample-strides")
@axes(via="eager")
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_one_sample_laid_out_by_rows(case, training):
    """One image of height, width and channels, as it comes from a file."""
    layer, g = case.module(nn.BatchNorm2d, 3).train(training), case.tensor(1, 3, 5, 4)
    layer(case.tensor(5, 4, 3).permute(2, 0, 1)[None]).backward(g)
    case.close(layer.bias.grad, array(g).sum((0, 2, 3)), k=20, scale=abs(array(g)).sum((0, 2, 3)))  # 20 terms


@claim("batchnorm.gradient.sequences-as-images")
@axes(via="eager")
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_sequences_taken_for_images(case, training):
    """Features last, as a recurrent layer gives them, moved to the place of the channels."""
    layer, gradient = case.module(nn.BatchNorm2d, 3, eps=EPS).train(training), case.tensor(4, 3, 5, 1)
    x = case.tensor(4, 5, 3, loc=0.5).transpose(1, 2)[..., None].requires_grad_()
    layer(x).backward(gradient)
    (close_to_train_gradients if training else close_to_eval_gradients)(case, layer, x, gradient)


@claim("batchnorm.running.counted-as-change")
@axes(via="eager")
def test_backward_notices_running_statistics_that_moved(case):
    layer, x = case.module(nn.BatchNorm1d, 5).eval(), case.tensor(9, 5, requires_grad=True)
    y = layer(x)
    layer.train()(case.tensor(9, 5, loc=3))
    with case.raises(RuntimeError, "modified by an inplace operation"):
        y.sum().backward()


@claim("batchnorm.eval.eps-zero")
@axes(via="eager")
def test_evaluation_needs_no_eps(case):
    layer, x = case.module(nn.BatchNorm1d, 3, eps=0.0, affine=False).eval(), case.tensor(4, 3)
    layer.running_mean.copy_(case.tensor_of([1.0, -2.0, 0.5]))
    layer.running_var.copy_(case.tensor_of([4.0, 0.25, 9.0]))
    mean, deviation = np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.5, 3.0])
    # a root, its inverse, two products and a difference, in either order
    case.close(layer(x), (array(x) - mean) / deviation, k=5, scale=(abs(array(x)) + abs(mean)) / deviation)
