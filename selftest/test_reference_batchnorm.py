"""The laws of batch normalisation, against values worked by hand."""

import numpy as np
import pytest

from specs.reference import batchnorm as reference

X = np.array([[1.0, -2.0], [3.0, 4.0]])  # means 2 and 1, biased variances 1 and 9, unbiased 2 and 18


def test_statistics_are_taken_per_channel():
    assert reference.mean(X).tolist() == [2, 1]
    assert reference.variance(X).tolist() == [1, 9]
    assert reference.variance(X, correction=1).tolist() == [2, 18]
    assert reference.count(np.zeros((2, 3, 4, 5))) == 40
    assert reference.mean(np.arange(12.0).reshape(2, 3, 2)).tolist() == [3.5, 5.5, 7.5]


def test_eps_stands_inside_the_root():
    y = reference.train(X, np.array([2.0, 1.0]), np.array([0.0, 10.0]), eps=7.0)  # roots 8 ** 0.5 and 4
    assert y == pytest.approx(np.array([[-2 / 8**0.5, 9.25], [2 / 8**0.5, 10.75]]), rel=1e-15)


def test_given_statistics_make_an_affine_map():
    y = reference.forward(X, mean=np.array([1.0, 0.0]), variance=np.array([3.0, 15.0]), weight=2.0, bias=1.0, eps=1.0)
    assert y.tolist() == [[1, 0], [3, 3]]


def test_update_moves_by_momentum():
    assert reference.update(np.array([4.0]), np.array([8.0]), 0.25).tolist() == [5.0]


def difference(function, x, direction, step=1e-6):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(7)
    return [rng.standard_normal((4, 3, 2)) for _ in range(4)] + [rng.standard_normal(3) for _ in range(2)]


def test_first_gradients_match_differences(drawn):
    x, g, u, _, weight, w = drawn
    gx, gw, gb = reference.train_gradients(x, g, weight, 0.3)
    by_x = difference(lambda x: (g * reference.train(x, weight, 0.5, 0.3)).sum(), x, u)
    by_w = difference(lambda weight: (g * reference.train(x, weight, 0.5, 0.3)).sum(), weight, w)
    assert ((gx * u).sum(), gw @ w) == pytest.approx((by_x, by_w), rel=1e-7)
    assert gb == pytest.approx(g.sum((0, 2)), rel=1e-15)


def test_eval_gradients_match_differences(drawn):
    x, g, u, _, weight, w = drawn
    mean, var = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0])
    gx, gw, gb = reference.eval_gradients(x, g, mean, var, weight, 0.3)
    by_x = difference(lambda x: (g * reference.forward(x, mean, var, weight, 0.5, 0.3)).sum(), x, u)
    by_w = difference(lambda weight: (g * reference.forward(x, mean, var, weight, 0.5, 0.3)).sum(), weight, w)
    assert ((gx * u).sum(), gw @ w) == pytest.approx((by_x, by_w), rel=1e-7)
    assert gb == pytest.approx(g.sum((0, 2)), rel=1e-15)


def test_second_gradients_match_differences(drawn):
    x, g, u, v, weight, w = drawn
    by_x, by_g, by_w = reference.train_second_gradients(x, g, v, weight, 0.3)

    def first(x=x, g=g, weight=weight):
        return (v * reference.train_gradients(x, g, weight, 0.3)[0]).sum()

    assert (by_x * u).sum() == pytest.approx(difference(lambda x: first(x=x), x, u), rel=1e-6)
    assert (by_g * u).sum() == pytest.approx(difference(lambda g: first(g=g), g, u), rel=1e-6)
    assert by_w @ w == pytest.approx(difference(lambda weight: first(weight=weight), weight, w), rel=1e-6)


def test_scales_bound_the_laws(drawn):
    x, g, _, v, weight, bias = drawn
    pairs = [
        ((reference.train(x, weight, bias, 0.3),), (reference.train_scale(x, weight, bias, 0.3),)),
        (reference.train_gradients(x, g, weight, 0.3), reference.train_gradient_scales(x, g, weight, 0.3)),
        (reference.train_second_gradients(x, g, v, weight, 0.3), reference.train_second_scales(x, g, v, weight, 0.3)),
        (
            reference.eval_gradients(x, g, bias, abs(weight), weight, 0.3),
            reference.eval_gradient_scales(x, g, bias, abs(weight), weight, 0.3),
        ),
    ]
    for laws, scales in pairs:
        for law, scale in zip(laws, scales, strict=True):
            assert (abs(law) <= scale).all()
