"""References of attention against values worked by hand."""

import numpy as np

from specs.reference import attention
from specs.reference.rounding import Rounded


def rounded(values):
    return Rounded(np.array(values, dtype=float))


def test_equal_scores_give_the_mean():
    y = attention.attention(rounded([[0, 0]]), rounded([[1, 2], [3, 4]]), rounded([[2.0], [6.0]]))
    assert y.value == 4


def test_scores_are_divided_by_the_root_of_the_width():
    w = attention.weights(rounded([[2, 0, 0, 0]]), rounded([[np.log(3), 0, 0, 0], [0, 0, 0, 0]]))
    assert np.allclose(w.value, [[0.75, 0.25]], rtol=1e-15)


def test_causal_mask_counts_from_the_upper_left():
    shown = np.isfinite(attention.causal(2, 3))
    assert shown.tolist() == [[True, False, False], [True, True, False]]


def test_hidden_keys_weigh_nothing_and_zero_rows_are_shown():
    eye = {"in_proj_weight": rounded(np.tile(np.eye(2), (3, 1))), "out_proj.weight": rounded(np.eye(2))}
    x = rounded([[[1.0, 0.0], [0.0, 1.0]]])
    y, w = attention.multihead(x, x, x, eye, 1, np.array([[0.0, -np.inf], [0.0, -np.inf]]), zero_row=True)
    assert w.value[0, 0, :, 1].tolist() == [0, 0]
    assert np.allclose(w.value[0, 0, 1], [0.5, 0, 0.5])
    assert np.allclose(y.value[0, 1], [0.5, 0])


def test_layer_norm_by_hand():
    p = {"n.weight": rounded([2, 2]), "n.bias": rounded([1, 1])}
    assert np.allclose(attention.layer_norm(rounded([[3, 5]]), p, "n", 0.0).value, [[-1, 3]])
