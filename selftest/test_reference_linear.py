"""The laws of linear maps and embeddings against values worked by hand."""

import numpy as np

from specs.reference import linear


def test_linear_by_hand():
    y = linear.linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]), np.array([0.5, -1.0]))
    assert y.tolist() == [[11.5, 16.0]]


def test_linear_gradients_by_hand():
    g, x, weight = np.array([[2.0], [3.0]]), np.array([[1.0, 0.0], [4.0, 5.0]]), np.array([[6.0, 7.0]])
    found = linear.linear_gradients(g, x, weight)
    assert [v.tolist() for v in found] == [[[12.0, 14.0], [18.0, 21.0]], [[14.0, 15.0]], [5.0]]


def test_bilinear_by_hand():
    y = linear.bilinear(np.array([1.0, 2.0]), np.array([3.0]), np.array([[[4.0], [5.0]]]), np.array([0.5]))
    assert y.tolist() == [42.5]


def test_bilinear_gradients_by_hand():
    found = linear.bilinear_gradients(
        np.array([[2.0]]), np.array([[1.0, 2.0]]), np.array([[3.0]]), np.array([[[4.0], [5.0]]])
    )
    assert [v.tolist() for v in found] == [[[24.0, 30.0]], [[28.0]], [[[6.0], [12.0]]], [2.0]]


def test_convolution_by_hand():
    x, weight, bias = np.arange(1.0, 10).reshape(1, 1, 3, 3), np.array([[[[1.0, 10.0]]]]), np.array([0.5])
    assert linear.convolution(x, weight, bias)[0, 0].tolist() == [[21.5, 32.5], [54.5, 65.5], [87.5, 98.5]]
    assert linear.convolution(x, weight, bias, dilation=2)[0, 0].tolist() == [[31.5], [64.5], [97.5]]
    strided = linear.convolution(x, weight, bias, stride=2, padding=1)
    assert strided[0, 0].tolist() == [[0.5, 0.5], [40.5, 65.5], [0.5, 0.5]]
    grouped = linear.convolution(x[:, :, :2, :2].reshape(1, 2, 1, 2), weight.repeat(2, 0), np.array([0.5, 1]), groups=2)
    assert grouped.ravel().tolist() == [21.5, 55.0]


def test_convolution_gradients_by_hand():
    g, x, weight = np.array([[[[2.0, 3.0]]]]), np.array([[[[1.0, 4.0, 5.0]]]]), np.array([[[[6.0, 7.0]]]])
    found = linear.convolution_gradients(g, x, weight)
    assert [v.ravel().tolist() for v in found] == [[12.0, 32.0, 21.0], [14.0, 23.0], [5.0]]


def test_embedding_gradient_by_hand():
    g, ids = np.array([[1.0], [2.0], [4.0]]), np.array([1, 1, 0])
    assert linear.embedding_gradient(g, ids, 3).tolist() == [[4.0], [3.0], [0.0]]
    assert linear.embedding_gradient(g, ids, 3, padding=0, by_frequency=True).tolist() == [[0.0], [1.5], [0.0]]


def test_bounded_by_hand():
    rows = np.array([[3.0, 4.0], [0.3, 0.4]])
    assert np.allclose(linear.bounded(rows, 1.0, 2), [[0.6, 0.8], [0.3, 0.4]], rtol=1e-15)


def test_bags_by_hand():
    weight, ids, starts = np.array([[1.0], [2.0], [4.0]]), np.array([0, 2, 1]), np.array([0, 2, 2])
    for mode, expected in (("sum", [5, 0, 2]), ("mean", [2.5, 0, 2]), ("max", [4, 0, 2])):
        assert linear.bags(weight, ids, starts, mode, np.ones(3)).ravel().tolist() == expected


def test_shares_of_a_bag_by_hand():
    weight, ids, starts = np.array([[1.0], [2.0], [4.0]]), np.array([0, 2, 1, 0]), np.array([0, 2, 2])
    g = np.array([[6.0], [7.0], [8.0]])
    for mode, padding, expected in (
        ("sum", None, [6, 6, 8, 8]),
        ("mean", None, [3, 3, 4, 4]),
        ("max", None, [0, 6, 8, 0]),
        ("mean", 0, [0, 6, 8, 0]),
        ("max", 2, [6, 0, 8, 0]),
    ):
        assert linear.bag_shares(g, weight, ids, starts, mode, padding).ravel().tolist() == expected
