"""The laws of initialisation against values worked by hand."""

import math

import numpy as np

from specs.reference import init


def test_fans_by_hand():
    assert init.fans((3, 5)) == (5, 3)
    assert init.fans((3, 5, 2, 4)) == (40, 24)


def test_standard_deviations_by_hand():
    assert init.xavier_std((3, 5), 2.0) == 1.0
    assert init.kaiming_std((4, 9), 3.0, "fan_in") == 1.0
    assert init.kaiming_std((4, 9), 3.0, "fan_out") == 1.5
    assert math.isclose(init.leaky_gain(math.sqrt(5)), math.sqrt(1 / 3))


def test_cells_by_hand():
    assert init.uniform_cells(-1.0, 1.0, 4) == [-0.5, 0.0, 0.5]
    assert np.allclose(init.normal_cells(1.0, 2.0, 4), [1 - 2 * 0.6744897501960817, 1, 1 + 2 * 0.6744897501960817])
    assert np.allclose(init.truncated_cells(0.0, 1.0, -3.0, 3.0, 2), [0.0])


def test_counts_by_hand():
    assert init.counts(np.array([[-2.0, 0.5], [0.6, 3.0]]), [0.0, 1.0]).tolist() == [1, 2, 1]


def test_dirac_by_hand():
    assert init.dirac((2, 2, 3), 1).tolist() == [[[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]]
    assert init.dirac((2, 1, 1), 2).tolist() == [[[1]], [[1]]]
