"""The reference of the autograd chapter, against values worked by hand and against finite differences."""

import numpy as np
import pytest

from specs.reference import autograd as reference


@pytest.mark.parametrize("name", reference.FUNCTIONS)
def test_derivatives_agree_with_central_differences(name):
    function, derivative = reference.FUNCTIONS[name]
    x, step = np.array([0.31, 0.9, 1.7, 2.9]), 1e-6
    np.testing.assert_allclose(
        derivative(x), (function(x + step) - function(x - step)) / (2 * step), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("name", reference.LOSSES)
def test_derivatives_of_losses_agree_with_central_differences(name):
    loss, derivative = reference.LOSSES[name]
    x, t, step = np.array([0.2, 0.85, 0.4]), np.array([0.9, 0.3, 0.35]), 1e-6
    np.testing.assert_allclose(
        derivative(x, t), (loss(x + step, t) - loss(x - step, t)) / (2 * step), rtol=1e-7, atol=1e-9
    )


def test_margins_between_three_classes():
    x = np.array([[0.25, 0.5, 1.0]])
    loss, slopes = reference.multi_margin(x, np.array([1]), np.array([1.0, 2.0, 3.0]), 1.0, 1)
    np.testing.assert_allclose(loss, [2 * (0.75 + 1.5) / 3])
    np.testing.assert_allclose(slopes, [[2 / 3, -4 / 3, 2 / 3]])
    loss, slopes = reference.multi_margin(x, np.array([1]), np.array([1.0, 2.0, 3.0]), 0.5, 2)
    np.testing.assert_allclose(loss, [2 * (0.25**2 + 1) / 3])
    np.testing.assert_allclose(slopes, [[1 / 3, -5 / 3, 4 / 3]])


def test_margins_between_two_labels_and_two_other_classes():
    loss, slopes = reference.multilabel_margin(np.array([[0.1, 0.2, 0.4, 0.8]]), np.array([[True, False, False, True]]))
    np.testing.assert_allclose(loss, [(1.1 + 1.3 + 0.4 + 0.6) / 4])
    np.testing.assert_allclose(slopes, [[-0.5, 0.5, 0.5, -0.5]])


def test_normal_cdf_at_known_points():
    assert reference.normal_cdf(np.array([0.0, 1.0])) == pytest.approx([0.5, 0.8413447460685429], rel=1e-14)


def test_gradient_of_a_line():
    x, w, t = np.array([[1.0, 2.0]]), np.array([[3.0], [1.0]]), np.array([[4.0]])
    np.testing.assert_array_equal(reference.mse_of_line_gradient(x, w, t, 2), [[1.0], [2.0]])


def test_softmax_gradients_of_two_equals():
    x, g = np.zeros((1, 2)), np.array([[1.0, 0.0]])
    np.testing.assert_array_equal(reference.softmax_gradient(x, g), [[0.25, -0.25]])
    np.testing.assert_array_equal(reference.log_softmax_gradient(x, g), [[0.5, -0.5]])


def test_cross_entropy_of_two_equals():
    x, target, weight = np.zeros((1, 2)), np.array([1]), np.array([1.0, 3.0])
    losses, weights = reference.cross_entropy(x, target, weight)
    assert (losses[0], weights[0]) == (pytest.approx(3 * np.log(2)), 3.0)
    np.testing.assert_array_equal(reference.cross_entropy_gradient(x, target, weight), [[1.5, -1.5]])


@pytest.mark.parametrize(("reduction", "value"), [("sum", 10.0), ("mean", 2.5), ("batchmean", 5.0)])
def test_reductions(reduction, value):
    assert reference.reduce(np.array([[1.0, 2.0], [3.0, 4.0]]), reduction) == value


def test_a_derivative_along_a_direction():
    found = reference.along(lambda x: x**2, np.array([1.0, 2.0]), np.array([3.0, -1.0]))
    np.testing.assert_allclose(found, [6.0, -4.0], rtol=1e-9)  # a difference of two numbers good to 1e-15, by 2e-5


def test_gamma_and_error_function_at_known_places():
    half = np.array([0.5])
    # twenty sums of numbers up to 5, half an eps of 2e-16 each
    np.testing.assert_allclose(reference.digamma(half), -np.euler_gamma - 2 * np.log(2), rtol=1e-14)
    np.testing.assert_allclose(reference.trigamma(half), np.pi**2 / 2, rtol=1e-14)
    np.testing.assert_allclose(reference.erf_inverse(half), 0.4769362762044699, rtol=1e-14)


def test_adaptive_softmax_shares_the_last_of_the_head_out():
    head, tail = np.log([[1.0, 2.0, 5.0]]), np.log([[3.0, 7.0]])
    found = reference.adaptive_log_softmax(head, [tail])
    # three logarithms and exponentials of float64, an eps of 2e-16 each
    np.testing.assert_allclose(np.exp(found), [[1 / 8, 2 / 8, 5 / 8 * 0.3, 5 / 8 * 0.7]], rtol=1e-14)
