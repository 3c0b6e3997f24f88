"""The laws of weight and spectral normalisation against values worked by hand."""

import numpy as np

from specs.reference import parametrizations as reference


def test_weight_norm():
    g, v = np.array([[10.0], [2.0]]), np.array([[3.0, 4.0], [0.0, 5.0]])
    np.testing.assert_allclose(reference.weight_norm(g, v, (1,)), [[6.0, 8.0], [0.0, 2.0]], rtol=1e-15)


def test_weight_norm_gradients():
    g, v, gradient = np.array([[10.0]]), np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])
    along, across = reference.weight_norm_gradients(gradient, g, v, (1,))
    np.testing.assert_allclose(along, [[0.6]], rtol=1e-15)
    np.testing.assert_allclose(across, [[2 * 0.64, -2 * 0.48]], rtol=1e-14)


def test_power_iteration_and_spectral_norm():
    w = np.diag([3.0, 1.0])
    u, v = reference.power_iteration(w, np.array([1.0, 0.0]), 4)
    np.testing.assert_allclose([u, v], [[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(reference.spectral_norm(w, u, v), np.diag([1.0, 1 / 3]))
    np.testing.assert_allclose(reference.power_iteration(w, np.array([1.0, 3.0]), 1)[0], np.array([1, 1]) / np.sqrt(2))


def test_spectral_norm_gradient():
    w, u, v = np.diag([2.0, 1.0]), np.array([1.0, 0.0]), np.array([1.0, 0.0])
    gradient = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_allclose(reference.spectral_norm_gradient(gradient, w, u, v), [[-1.0, 1.0], [1.5, 2.0]])


def test_maps_to_orthogonal_matrices():
    turn, angle = np.array([[0.0, -1.0], [1.0, 0.0]]), 0.5
    np.testing.assert_array_equal(reference.skew(np.array([[0.0, 5.0], [angle, 0.0]])), angle * turn)
    np.testing.assert_array_equal(reference.skew(np.array([[0.0], [angle]])), angle * turn)
    rotation = np.cos(angle) * np.eye(2) + np.sin(angle) * turn
    np.testing.assert_allclose(reference.exponential(angle * turn), rotation, atol=1e-15)
    np.testing.assert_allclose(reference.cayley(2 * turn), turn, atol=1e-15)  # (1 + i) / (1 - i) = i
    np.testing.assert_allclose(reference.householder(np.diag([1.0, 1.0])), np.eye(2) * -1)
    x = np.array([[1.0], [1.0]])
    np.testing.assert_allclose(reference.householder(x), [[0.0], [-1.0]], atol=1e-15)


def test_orthogonalised():
    np.testing.assert_allclose(reference.orthogonalised(np.array([[0.0, -2.0], [3.0, 1.0]])), [[0, -1], [1, 0]])
    np.testing.assert_allclose(reference.orthogonalised(np.array([[3.0, 4.0]])), [[0.6, 0.8]])
