"""Every check holds where it should, and is shown to fail where it should."""

import math
import os

import numpy as np
import pytest
import torch

from torch_conformance import checks
from torch_conformance.checks import Violation

EPS = 2.0**-23
ONE = torch.ones(3)


def test_close_measures_in_units_of_the_bound():
    assert checks.close(ONE, np.ones(3), k=4) == 0
    assert checks.close(ONE * (1 + 2 * EPS), np.ones(3), k=4) == pytest.approx(0.5)


def test_close_refuses_what_lies_beyond_the_bound():
    with pytest.raises(Violation, match=r"at index \(1,\).*1\.25 of the bound"):
        checks.close(ONE + torch.tensor([0, 5 * EPS, 0]), np.ones(3), k=4)


def test_close_takes_the_scale_elementwise():
    assert checks.close(torch.tensor([0.0, EPS]), [0.0, 0.0], k=2, scale=[1.0, 1.0]) == pytest.approx(0.5)
    with pytest.raises(Violation):
        checks.close(torch.tensor([0.0, EPS]), [0.0, 0.0], k=2, scale=[1.0, 0.25])
    with pytest.raises(ValueError, match=r"a scale of shape \(2, 1\)"):
        checks.close(torch.tensor([0.0, EPS]), [0.0, 0.0], k=2, scale=[[1.0], [1.0]])


def test_close_allows_a_float64_result_twice_the_bound():
    wrong = torch.ones(1, dtype=torch.float64) + 3 * 2.0**-52
    assert checks.close(wrong, [1.0], k=2) == pytest.approx(0.75)
    with pytest.raises(Violation):
        checks.close(wrong, [1.0], k=1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_close_refuses_what_is_not_finite(wrong):
    with pytest.raises(Violation):
        checks.close(torch.tensor([1.0, wrong]), [1.0, 1.0], k=4)
    with pytest.raises(Violation):
        checks.close(torch.tensor([1.0, 1.0]), [1.0, wrong], k=4)
    with pytest.raises(Violation, match=r"at index \(0,\): got 2\.0"):
        checks.close(torch.tensor([2.0, wrong]), [1.0, wrong], k=4)
    assert checks.close(torch.tensor([1.0, wrong]), [1.0, wrong], k=4) == 0


def test_close_refuses_another_shape_and_what_is_no_tensor():
    with pytest.raises(Violation, match="shape"):
        checks.close(ONE, np.ones((3, 1)), k=4)
    with pytest.raises(Violation, match="expected a tensor, got NoneType"):
        checks.close(None, np.ones(3), k=4)


def test_close_lets_no_scale_of_zero_hide_an_error():
    with pytest.raises(Violation):
        checks.close(torch.tensor([1e-30]), [0.0], k=4)


def test_same_compares_bits():
    checks.same(torch.tensor([math.nan, 0.0]), torch.tensor([math.nan, 0.0]))
    for other in (torch.tensor([math.nan, -0.0]), torch.tensor([math.nan, 1e-45])):
        with pytest.raises(Violation, match="1 of 2 elements differ"):
            checks.same(torch.tensor([math.nan, 0.0]), other)
    with pytest.raises(Violation, match=r"1 of 2 elements differ.*index \(1,\): got 2j, expected 1j"):
        checks.same(torch.tensor([1.0, 2j]), torch.tensor([1.0, 1j]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_same_tells_dtypes_and_shapes_apart(dtype):
    checks.same(ONE.to(dtype), ONE.to(dtype))
    for other in (ONE, torch.ones(3, 1, dtype=dtype), torch.zeros(3, dtype=dtype)):
        with pytest.raises(Violation):
            checks.same(ONE.to(dtype), other)


def test_same_reads_any_layout():
    x = torch.arange(12.0).reshape(3, 4)
    checks.same(x.t(), x.t().contiguous())


@pytest.mark.parametrize(("trials", "p"), [(100, 0.3), (1000, 0.5), (40, 0.9)])
def test_binomial_tail_is_the_exact_sum(trials, p):
    law = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    for count in (0, int(trials * p) - 3, min(trials, int(trials * p) + 5), trials):
        exact = sum(law[count:]) if count >= trials * p else sum(law[: count + 1])
        assert checks.binomial_tail(count, trials, p) == pytest.approx(exact, rel=1e-9)


def test_binomial_refuses_only_what_is_too_far_out():
    assert 0 <= checks.binomial(500, 1000, 0.5) < 0.05
    assert checks.binomial(590, 1000, 0.5) < 1
    for count in (600, 400, 0, 1000):
        with pytest.raises(Violation, match="once in"):
            checks.binomial(count, 1000, 0.5)


def test_binomial_is_exact_at_certainty():
    assert checks.binomial(0, 10, 0.0) == 0
    assert checks.binomial(10, 10, 1.0) == 0
    with pytest.raises(Violation):
        checks.binomial(1, 10, 0.0)


def test_binomial_that_could_refute_nothing_is_an_error_of_the_suite():
    with pytest.raises(ValueError, match="take more"):
        checks.binomial(5, 10, 0.5)


def test_raises_wants_the_kind_and_the_words():
    with checks.raises(ValueError, "twice"):
        raise ValueError("given Twice")
    with pytest.raises(Violation, match="without the words"), checks.raises(ValueError, "thrice"):
        raise ValueError("given twice")
    with pytest.raises(Violation, match="TypeError where ValueError is claimed"), checks.raises(ValueError, "x"):
        raise TypeError("x")
    with pytest.raises(Violation, match="no error where ValueError"), checks.raises(ValueError, "x"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_survived_returns_or_names_the_signal():
    assert checks.survived(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        checks.survived(lambda: 1 / 0)
    with pytest.raises(Violation, match="signal 6"):
        checks.survived(os.abort)
