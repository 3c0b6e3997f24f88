"""Dropout: the identity in eval mode; in train mode a fresh mask, scaled so that the expectation stays."""

import pytest
from torch import nn

from specs.reference import dropout as reference
from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

DROPOUTS = [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout]
SHAPES = {nn.Dropout1d: (5, 3, 7), nn.Dropout2d: (5, 3, 7, 2)}
PROBABILITIES = [0.1, 0.3, 0.8]


def shape_for(cls):
    return SHAPES.get(cls, (5, 3, 7, 2, 3))


@claim("dropout.eval.identity")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("cls", DROPOUTS)
def test_eval_returns_its_input(case, cls):
    layer, x = case.module(cls, p=0.3).eval(), case.tensor(*shape_for(cls))
    before = x.clone()
    y = layer(x)
    assert y is x
    case.same(x, before)


@claim("dropout.eval.gradient-one")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_eval_passes_the_gradient_on(case, cls):
    x, gradient = case.tensor(*shape_for(cls), requires_grad=True), case.tensor(*shape_for(cls))
    (case.module(cls, p=0.3).eval()(x) * 1).backward(gradient)
    case.same(x.grad, gradient)


@claim("dropout.eval.rng-untouched")
@pytest.mark.parametrize("cls", DROPOUTS)
def test_only_training_draws_random_numbers(case, cls):
    layer, x = case.module(cls, p=0.3), case.tensor(*shape_for(cls))
    with case.unchanged(layer.eval(), x=x):
        layer(x)
    with case.unchanged(layer.train(), x=x, but={"rng"}):
        layer(x)


@claim("dropout.eval.scales-nothing")
@pytest.mark.parametrize("p", PROBABILITIES)
def test_inference_scales_nothing(case, p):
    layer, x = case.module(nn.Dropout, p=p), case.tensor(63)
    case.same(layer.eval()(x), x)
    kept = array(y := layer.train()(x)) != 0
    case.close(y[y != 0], array(x)[kept] / (1 - p), k=2)  # 1 / (1 - p) is rounded once, the product once


@claim("dropout.train.survivors-scaled")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"))
@pytest.mark.parametrize("p", PROBABILITIES)
def test_survivors_are_scaled(case, p):
    x = case.tensor(17, 31)
    y = case.module(nn.Dropout, p=p)(x)
    case.close(y, reference.dropout(array(x), array(y) != 0, p), k=2)  # scale and product, half an eps each, doubled


@claim("dropout.train.rate")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_p_is_the_probability_of_zeroing(case, p):
    ones = case.tensor_of([1.0]).expand(10_007)
    case.binomial((case.module(nn.Dropout, p=p)(ones) == 0).sum(), 10_007, p)


@claim("dropout.train.elements-independent")
@pytest.mark.parametrize("apart", [1, 2, 8, 16, 101])
def test_elements_are_dropped_independently(case, apart):
    ones = case.tensor_of([[[1.0]]]).expand(1024 // apart + 1, 2, apart)
    dropped = case.module(nn.Dropout, p=0.3)(ones) == 0
    both = dropped[:, 0] & dropped[:, 1]  # disjoint pairs, so the count is binomial
    case.binomial(both.sum(), both.numel(), 0.09)


@claim("dropout.train.mask-fresh-at-every-call")
def test_every_call_draws_a_mask_of_its_own(case):
    layer, ones = case.module(nn.Dropout, p=0.3), case.tensor_of([1.0]).expand(1009)
    first, second = layer(ones) == 0, layer(ones) == 0
    case.binomial((first & second).sum(), 1009, 0.09)


@claim("dropout.train.gradient-uses-the-mask")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("p", PROBABILITIES)
def test_gradient_uses_the_mask(case, p):
    x, gradient = case.tensor(17, 31, requires_grad=True), case.tensor(17, 31)
    y = case.module(nn.Dropout, p=p)(x)
    y.backward(gradient)
    case.close(x.grad, reference.dropout(array(gradient), array(y) != 0, p), k=2)  # as in the forward
