"""The laws of the normalisations against values worked by hand, and their gradients against their derivatives."""

import numpy as np
import pytest

from specs.reference import norms

RNG = np.random.default_rng(5)
X, G, V = RNG.standard_normal((3, 4, 6, 5))[:, :3]
WEIGHT, BIAS = RNG.standard_normal((2, 6))


def test_layer_norm_by_hand():
    x = np.array([[1.0, 3.0], [2.0, 2.0]])  # means 2 and 2, variances 1 and 0
    y = norms.layer_norm(x, 1, 3.0, np.array([2.0, 4.0]), np.array([1.0, -1.0]))
    assert np.array_equal(y, [[0.0, 1.0], [1.0, -1.0]])


def test_rms_norm_by_hand():
    assert np.allclose(norms.rms_norm(np.array([[1.0, 7.0]]), 1, 0.0, np.ones(2)), [[0.2, 1.4]], rtol=1e-15)


def test_groups_are_neighbours():
    x = np.array([[1.0, 3.0, 10.0, 30.0]])
    y = norms.group_norm(x, 2, 0.0, np.ones(4), np.zeros(4))
    assert np.array_equal(y, [[-1.0, 1.0, -1.0, 1.0]])


def test_instance_statistics_by_hand():
    x = np.array([[[1.0, 3.0]], [[5.0, 5.0]]])  # means 2 and 5, unbiased variances 2 and 0
    assert [v.tolist() for v in norms.instance_statistics(x)] == [[3.5], [1.0]]


def test_windows_by_hand():
    assert norms.window(3, 3).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert norms.window(3, 2).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_local_response_norm_by_hand():
    y = norms.local_response_norm(np.array([[[1.0], [2.0]]]), 1, 3.0, 0.5, 4.0)
    assert np.allclose(y, [[[1 / 7**0.5], [0.5]]], rtol=1e-15)


def test_normalize_by_hand():
    x = np.array([[3.0, 4.0], [0.0, 0.5]])
    assert norms.normalize(x, 2, 1, 1.0).tolist() == [[0.6, 0.8], [0.0, 0.5]]


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm_gradients(groups):
    found = norms.group_norm_gradients(G, X, groups, 0.3, WEIGHT)
    slope = norms.along(lambda x: norms.group_norm(x, groups, 0.3, WEIGHT, BIAS), X, V)
    assert np.isclose((slope * G).sum(), (found.x * V).sum())
    of_weight = norms.along(lambda w: norms.group_norm(X, groups, 0.3, w, BIAS), WEIGHT, BIAS)
    assert np.isclose((of_weight * G).sum(), (found.weight * BIAS).sum())


def test_layer_and_rms_norm_gradients():
    weight = RNG.standard_normal((6, 5))
    found = norms.layer_norm_gradients(G, X, 2, 0.3, weight)
    slope = norms.along(lambda x: norms.layer_norm(x, 2, 0.3, weight, weight), X, V)
    assert np.isclose((slope * G).sum(), (found.x * V).sum())
    slope = norms.along(lambda x: norms.rms_norm(x, 2, 0.3, weight), X, V)
    assert np.isclose((slope * G).sum(), (norms.rms_norm_gradients(G, X, 2, 0.3, weight)[0] * V).sum())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_local_response_norm_gradient(size):
    slope = norms.along(lambda x: norms.local_response_norm(x, size, 0.5, 0.7, 1.3), X, V)
    assert np.isclose((slope * G).sum(), (norms.local_response_norm_gradient(G, X, size, 0.5, 0.7, 1.3) * V).sum())


def test_derivatives_of_every_order():
    """By hand: of ``s / sqrt(s^2 + 3)`` at s = 1, which two opposite values are standardised to."""
    ends = np.array([1.0, -1.0])
    found = norms.derivatives(ends, ends, (0,), 3.0)
    for order, value in enumerate([1 / 2, 3 / 8, -9 / 32, 9 / 128]):
        np.testing.assert_allclose(found[order].value, value * ends, rtol=1e-14)
        assert (found[order].error >= abs(found[order].value)).all()
    for centred in (True, False):
        slope = norms.along(lambda x, c=centred: norms.standardise(x, (1, 2), 0.3, c)[0], X, V)
        np.testing.assert_allclose(norms.derivatives(X, V, (1, 2), 0.3, centred)[1].value, slope, rtol=1e-10)
