"""The references of optimisers, schedules, clipping and averages, against values worked by hand."""

import math

import numpy as np
import pytest

from specs.reference import averaging, clipping, line_search, optim, rounded, schedulers
from specs.reference.line_search import Trial
from specs.reference.rounded import Rounded


def one(x):
    return Rounded(np.array([float(x)]))


def steps(law, *gradients, start=1.0, state=None, **options):
    p, state = one(start), state or {}
    for g in gradients:
        p, state = law(p, one(g), state, **options)
    return p.value.item()


@pytest.mark.parametrize(
    ("law", "gradients", "options", "wanted"),
    [
        (optim.sgd, [2], {"lr": 0.25}, 0.5),
        (optim.sgd, [2, 2], {"lr": 0.25, "momentum": 0.5, "dampening": 0.5}, 0.0),  # buffers 2, 0.5·2 + 0.5·2 = 2
        (optim.sgd, [2], {"lr": 0.25, "momentum": 0.5, "nesterov": True}, 0.25),  # 2 + 0.5·2 = 3
        (optim.sgd, [2], {"lr": 0.25, "weight_decay": 2.0, "maximize": True}, 1.0),  # -2 + 2·1 = 0
        (optim.adam, [3], {"lr": 0.5, "eps": 0.0}, 0.5),  # the first step is lr times the sign
        (optim.adam, [3], {"lr": 0.5, "eps": 3.0}, 0.75),  # 3 / (3 + 3)
        (optim.adamw, [3], {"lr": 0.5, "eps": 0.0, "weight_decay": 0.5}, 0.25),  # 0.75 - 0.5
        (optim.radam, [3], {"lr": 0.25}, 0.25),  # not yet rectified: plain momentum
        (optim.adadelta, [3], {"rho": 0.0, "eps": 7.0}, 1 - math.sqrt(7) / 4 * 3),
        (optim.rmsprop, [3], {"lr": 0.25, "alpha": 0.0, "eps": 0.0}, 0.75),
        (optim.adamax, [3], {"lr": 0.25, "eps": 0.0}, 0.75),
        (optim.asgd, [2], {"lr": 0.25, "lambd": 1.0}, 0.25),  # 0.75·1 - 0.5
        (optim.rprop, [2, 5, -1], {"lr": 0.25, "etas": (0.5, 2.0)}, 0.25),  # 0.25, 0.5, and the turn is skipped
        (optim.sparse_adam, [3], {"lr": 0.5, "betas": (0.0, 0.0), "eps": 0.0}, 0.5),
    ],
)
def test_steps(law, gradients, options, wanted):
    assert steps(law, *gradients, **options) == pytest.approx(wanted)


def test_adagrad_decays_from_the_second_step():
    state = {"step": 0, "sum": one(7.0)}
    assert steps(optim.adagrad, 3, 0, state=state, lr=1.0, lr_decay=1.0, eps=1.0) == pytest.approx(1 - 3 / 5)


def test_nadam_first_step():
    mu, after = 0.9 * (1 - 0.5 * 0.96**0.004), 0.9 * (1 - 0.5 * 0.96**0.008)
    wanted = 1 - 0.5 * ((1 - mu) / (1 - mu) + after * 0.1 / (1 - mu * after))
    assert steps(optim.nadam, 3, lr=0.5, eps=0.0) == pytest.approx(wanted)


def test_adafactor_of_equal_gradients_moves_by_the_sign():
    p = Rounded(np.full((2, 3), 2.0))
    moved, state = optim.adafactor(p, Rounded(np.full((2, 3), -5.0)), {}, lr=0.25, tiny=1e-9)
    assert moved.value == pytest.approx(np.full((2, 3), 2.5))  # 2 + max(eps, rms 2) · 0.25
    assert state["row_var"].value == pytest.approx(np.full((2, 1), 25.0))


def test_newton_schulz_of_an_orthogonal_matrix():
    found, _ = optim.newton_schulz(np.eye(2), (2.0, -1.0, 0.0), 1, 0.0)
    s = math.sqrt(0.5)
    assert found == pytest.approx((2 * s - s**3) * np.eye(2))


def test_inverse_hessian_satisfies_the_secant_equation():
    moves, changes = np.array([[1.0, 0.0], [0.5, 1.0]]), np.array([[2.0, 0.5], [1.0, 3.0]])
    assert optim.inverse_hessian(moves, changes)[0] @ changes[-1] == pytest.approx(moves[-1])


def test_errors_accumulate_as_the_operations_make_them():
    product = Rounded(3.0) * 2.0 + 1.0
    assert (product.value, product.error) == (7.0, 13.0)  # 6 for the product, 7 for the sum
    assert rounded.sqrt(Rounded(4.0, 1.0)).error == 2.25  # 1 / (2·2) inherited, 2 of its own
    assert (1.0 - Rounded(1.0)).error == 0.0


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (schedulers.step(5, 1.0, step_size=2, gamma=0.5), 0.25),
        (schedulers.multi_step(3, 1.0, milestones=[1, 3, 3], gamma=0.5), 0.125),
        (schedulers.constant(4, 1.0, factor=0.5), 0.5),
        (schedulers.constant(5, 1.0, factor=0.5), 1.0),
        (schedulers.linear(1, 1.0, start_factor=0.5, total_iters=2), 0.75),
        (schedulers.polynomial(2, 1.0, total_iters=4, power=2.0), 0.25),
        (schedulers.cosine(2, 1.0, T_max=4), 0.5),
        (schedulers.cosine(8, 1.0, T_max=4, eta_min=0.5), 1.0),
        (schedulers.warm_restarts(2, 1.0, T_0=2, T_mult=2), 1.0),
        (schedulers.warm_restarts(4, 1.0, T_0=2, T_mult=2), 0.5),
        (schedulers.multiplicative(2, 8.0, lr_lambda=lambda t: 0.5), 2.0),
        (schedulers.cyclic(3, 0.0, base_lr=0, max_lr=1, step_size_up=2), 0.5),
        (schedulers.cyclic(6, 0.0, base_lr=0, max_lr=1, step_size_up=2, mode="triangular2"), 0.5),
        (schedulers.one_cycle(2, 0.0, max_lr=1.0, total_steps=10), 1.0),
        (schedulers.one_cycle(9, 0.0, max_lr=1.0, total_steps=10, div_factor=2.0, final_div_factor=5.0), 0.1),
        (schedulers.swa(2, 1.0, swa_lr=0.5, anneal_epochs=4, anneal_strategy="linear"), 0.75),
    ],
)
def test_schedules(found, wanted):
    assert found == pytest.approx(wanted)


def test_plateau():
    assert schedulers.plateau([1, 1, 1, 1], 8.0, factor=0.5, patience=1) == [8, 8, 4, 4]
    assert schedulers.plateau([1, 2, 2, 2], 8.0, mode="max", factor=0.5, patience=0) == [8, 8, 4, 2]


def test_clipping():
    gradients = [np.array([3.0]), np.array([0.0, 4.0])]
    assert clipping.total_norm(gradients) == 5.0
    assert clipping.total_norm(gradients, math.inf) == 4.0
    assert clipping.coefficient(5.0 - 1e-6, 1.0) == 0.2
    assert clipping.coefficient(0.5, 1.0) == 1.0


def test_averages():
    states = [np.array(v) for v in (1.0, 3.0, 8.0)]
    assert averaging.equal(states) == 4.0
    assert averaging.exponential(states, 0.5) == 5.0


def test_a_square_of_what_cancelled_errs_by_the_square_of_its_error():
    """In bfloat16, 1 + 2^-8 rounds to 1: of 1 + 2^-8 - 1 nothing is left, or all of it."""
    cancelled = (one(1) + 2**-8) - (1 + 2**-8)
    square = cancelled * cancelled
    assert square.value == 0
    assert square.error * rounded.COARSEST >= 2.0**-16


@pytest.mark.parametrize(
    ("a", "b", "within", "wanted"),
    [
        (Trial(one(0), 0.0, -1.0), Trial(one(2), 2 / 3, 3.0), (0, 2), 1.0),  # t^3/3 - t is least at 1
        (Trial(one(2), 2 / 3, 3.0), Trial(one(0), 0.0, -1.0), (0, 2), 1.0),
        (Trial(one(0), 0.0, -1.0), Trial(one(2), 2 / 3, 3.0), (1.5, 2), 1.5),
        (Trial(one(0), 0.0, 1.0), Trial(one(1), 2.0, 4.0), (0, 3), 1.5),  # t^3 + t rises everywhere
    ],
)
def test_the_cubic_is_least_where_it_should(a, b, within, wanted):
    assert line_search.cubic_minimiser(a, b, *map(one, within)).value == pytest.approx(wanted)


def test_the_line_search_of_a_parabola():
    """(t - 1)^2 from 0: 4 is too far and too high, the cubic through both is the parabola, which is flat at 1."""
    tried = []

    def evaluate(step):
        t = step.value.item()
        tried.append(t)
        return Trial(step, (t - 1) ** 2, 2 * (t - 1))

    ended = line_search.strong_wolfe(evaluate, Trial(Rounded(0.0), 1.0, -2.0), Rounded(4.0), limit=9)
    assert tried == pytest.approx([4, 1])
    assert ended.step.value == pytest.approx(1)


def test_a_root_of_what_cancelled_errs_by_the_root_of_its_error():
    root = rounded.sqrt(Rounded(0.0, 4.0))
    assert root.value == 0
    assert root.error * rounded.FINEST == 2 * math.sqrt(rounded.FINEST)
