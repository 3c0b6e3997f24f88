"""References of recurrent networks, and the running error analysis beneath them, against values worked by hand."""

import numpy as np
import pytest

from specs.reference import recurrent, rounding
from specs.reference.rounding import Rounded, gradients


def one(value):
    return Rounded(np.array([[float(value)]]))


def row(*values):
    return Rounded(np.array(values, dtype=float).reshape(-1, 1))


def test_relu_step_by_hand():
    p = {
        "weight_ih": one(2),
        "weight_hh": one(3),
        "bias_ih": Rounded(np.array([0.5])),
        "bias_hh": Rounded(np.array([1.0])),
    }
    assert recurrent.rnn_relu(one(1), (one(2),), p)[0].value == 2 + 0.5 + 6 + 1


def test_lstm_step_by_hand():
    p = {"weight_ih": row(0, 0, 0, 0), "weight_hh": row(0, 0, 0, 0), "bias_ih": Rounded(np.array([0, 0, 0.5, 0]))}
    h, c = recurrent.lstm(one(0), (one(0), one(4)), p)
    assert c.value == 0.5 * 4 + 0.5 * np.tanh(0.5)
    assert h.value == 0.5 * np.tanh(c.value)


def test_gru_step_by_hand():
    p = {"weight_ih": row(0, 0, 0), "weight_hh": row(0, 0, 2)}
    assert recurrent.gru(one(0), (one(3),), p)[0].value == 0.5 * np.tanh(0.5 * 6) + 0.5 * 3


def test_two_directions_meet_in_the_output():
    p = {
        f"{name}_l0{suffix}": one(w) for suffix in ("", "_reverse") for name, w in (("weight_ih", 1), ("weight_hh", 1))
    }
    x, zeros = Rounded(np.array([1.0, 2.0]).reshape(2, 1, 1)), Rounded(np.zeros((2, 1, 1)))
    y, (end,) = recurrent.network(recurrent.rnn_relu, x, (zeros,), p, 1, 2)
    assert y.value[:, 0].tolist() == [[1, 3], [3, 2]]
    assert end.value.ravel().tolist() == [3, 3]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "gelu", "sqrt", "softmax"])
def test_gradients_are_the_slopes(name):
    function, x = getattr(rounding, name), np.array([[0.3, 1.7, 0.9]])
    seed = np.array([[1.0, -2.0, 0.5]])
    found = gradients([(function(node := Rounded(x)), seed)], [node])[0].value
    for i in range(3):
        step = np.zeros_like(x)
        step[0, i] = 1e-6
        slope = ((function(Rounded(x + step)).value - function(Rounded(x - step)).value) * seed).sum() / 2e-6
        assert abs(slope - found[0, i]) < 1e-8


def test_errors_are_counted():
    a, b = Rounded(np.array([[1.0, -2.0]])), Rounded(np.array([[3.0], [4.0]]))
    assert (a @ b).error == 2 * (3 + 8)
    assert (a * a).error.tolist() == [[1, 4]]
    assert ((a + 1.0) - 1.0).error.tolist() == [[2 + 1, 1 + 2]]
