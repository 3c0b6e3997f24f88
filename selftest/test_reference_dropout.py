"""The laws of dropout, against values worked by hand."""

import numpy as np
import pytest

from specs.reference import dropout as reference


def test_survivors_of_dropout_are_scaled_and_the_others_zero():
    y = reference.dropout(np.array([3.0, -6.0, 9.0]), np.array([True, True, False]), 0.25)
    assert y.tolist() == [4.0, -8.0, 0.0]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_alpha_dropout_keeps_mean_zero_and_variance_one(p):
    scale, shift = reference.alpha_constants(p)
    dropped = scale * reference.SATURATION + shift
    assert (1 - p) * shift + p * dropped == pytest.approx(0, abs=1e-15)
    assert (1 - p) * (scale**2 + shift**2) + p * dropped**2 == pytest.approx(1, rel=1e-15)


def test_saturation_is_the_limit_of_selu():
    assert pytest.approx(-1.7580993408473766, rel=1e-15) == reference.SATURATION


def test_alpha_dropout_scales_and_shifts():
    scale, shift = reference.alpha_constants(0.5)
    y = reference.alpha_dropout(np.array([2.0, 7.0]), np.array([True, False]), 0.5)
    assert y.tolist() == [2 * scale + shift, reference.SATURATION * scale + shift]
    gradient = reference.alpha_gradient(np.array([2.0, 7.0]), np.array([True, False]), 0.5)
    assert gradient.tolist() == [2 * scale, 0.0]


def test_rrelu_takes_the_mean_slope_below_zero():
    assert reference.rrelu(np.array([-4.0, 0.0, 4.0]), 0.25, 0.75).tolist() == [-2.0, 0.0, 4.0]
