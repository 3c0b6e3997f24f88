"""Optimisers: one step of each as a law, ``law(p, g, state, **options) -> (p, state)``.

``p`` is the parameter, ``g`` its gradient, ``state`` what the optimiser remembers of it (empty before the first step),
under the names of ``state_dict()``. All are `Rounded` arrays of one shape; ``step`` and other scalars are numbers.
Everything is elementwise, so that any number of tensors with the same step count may be laid end to end.
Options bear the names, and take the defaults, that torch documents. Where a law leaves a choice it is said.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from specs.reference.rounded import Rounded, absolute, dot, exact, maximum, sqrt, where

State = dict[str, Any]
Step = tuple[Rounded, State]


def gradient(p: Rounded, g: Rounded, weight_decay: float, maximize: bool, decoupled: bool = False) -> Rounded:
    """The gradient that the step goes by: negated to climb, with the L2 penalty's gradient unless decoupled."""
    g = -g if maximize else g
    return g + p * weight_decay if weight_decay and not decoupled else g


def decayed(p: Rounded, lr: float, weight_decay: float, decoupled: bool = True) -> Rounded:
    """Decoupled weight decay: the parameter shrinks by itself (Loshchilov and Hutter 2019)."""
    return p * (1 - lr * weight_decay) if weight_decay and decoupled else p


def average(old: Any, new: Rounded, keep: float) -> Rounded:
    """Exponential moving average ``keep * old + (1 - keep) * new``."""
    return exact(old) * keep + new * (1 - keep)


def zeros(p: Rounded, *names: str) -> State:
    return {name: Rounded(np.zeros(p.value.shape)) for name in names}


def sgd(p, g, state, *, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False) -> Step:
    """The first buffer is the gradient itself, undampened; lr multiplies the velocity, not the gradient in it."""
    g = gradient(p, g, weight_decay, maximize)
    if not momentum:
        return p - g * lr, state
    buffer = state["momentum_buffer"] * momentum + g * (1 - dampening) if state else g
    return p - (g + buffer * momentum if nesterov else buffer) * lr, {"momentum_buffer": buffer}


def adam(
    p, g, state, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False,
    decoupled_weight_decay=False,
) -> Step:  # fmt: skip
    """Kingma and Ba 2015; eps outside the root; amsgrad keeps the maximum of the uncorrected second moment."""
    state = state or {"step": 0, **zeros(p, "exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * amsgrad)}
    t, (b1, b2) = state["step"] + 1, betas
    g = gradient(p, g, weight_decay, maximize, decoupled_weight_decay)
    p = decayed(p, lr, weight_decay, decoupled_weight_decay)
    m, v = average(state["exp_avg"], g, b1), average(state["exp_avg_sq"], g * g, b2)
    after = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    if amsgrad:
        v = after["max_exp_avg_sq"] = maximum(state["max_exp_avg_sq"], v)
    return p - m * (lr / (1 - b1**t)) / (sqrt(v) / math.sqrt(1 - b2**t) + eps), after


def adamw(p, g, state, *, weight_decay=1e-2, **options) -> Step:
    return adam(p, g, state, weight_decay=weight_decay, decoupled_weight_decay=True, **options)


def nadam(
    p, g, state, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3, maximize=False,
    decoupled_weight_decay=False, coarseness=1.0,
) -> Step:  # fmt: skip
    """Dozat 2016, with the momentum schedule mu_t = beta1 (1 - 0.96^(t psi) / 2).

    ``coarseness`` is the eps of the dtype in which mu_product is kept, in units of the parameter's eps.
    """
    state = state or {"step": 0, "mu_product": 1.0, **zeros(p, "exp_avg", "exp_avg_sq")}
    t, (b1, b2) = state["step"] + 1, betas
    g = gradient(p, g, weight_decay, maximize, decoupled_weight_decay)
    p = decayed(p, lr, weight_decay, decoupled_weight_decay)
    mu, mu_next = (b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    product = Rounded(state["mu_product"] * mu, state["mu_product"] * mu * coarseness)
    m, v = average(state["exp_avg"], g, b1), average(state["exp_avg_sq"], g * g, b2)
    denominator = sqrt(v / (1 - b2**t)) + eps
    p = (
        p
        - g * (lr * (1 - mu) / (1 - product)) / denominator
        - m * (lr * mu_next / (1 - product * mu_next)) / denominator
    )
    return p, {"step": t, "mu_product": product, "exp_avg": m, "exp_avg_sq": v}


def radam(
    p, g, state, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, maximize=False,
    decoupled_weight_decay=False, coarseness=0.0,
) -> Step:  # fmt: skip
    """Liu et al. 2020: plain momentum until the second moment's variance is tractable (rho > 5), rectified after.

    ``coarseness`` is the eps in which the powers of beta2 are reckoned, in units of the parameter's; 0 for exact ones.
    """
    state = state or {"step": 0, **zeros(p, "exp_avg", "exp_avg_sq")}
    t, (b1, b2) = state["step"] + 1, betas
    g = gradient(p, g, weight_decay, maximize, decoupled_weight_decay)
    p = decayed(p, lr, weight_decay, decoupled_weight_decay)
    m, v = average(state["exp_avg"], g, b1), average(state["exp_avg_sq"], g * g, b2)
    last, corrected = 2 / (1 - b2) - 1, m / (1 - b1**t)
    power, root = (Rounded(b2**t, b2**t * coarseness), sqrt) if coarseness else (b2**t, math.sqrt)
    rho = last - 2 * t * power / (1 - power)
    if getattr(rho, "value", rho) > 5:
        rectified = root((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho))
        corrected = corrected * (rectified * math.sqrt(1 - b2**t) / (sqrt(v) + eps))
    return p - corrected * lr, {"step": t, "exp_avg": m, "exp_avg_sq": v}


def adagrad(
    p, g, state, *, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, maximize=False
) -> Step:
    """Duchi et al. 2011. The state exists from construction on, so that it is never empty."""
    t = state["step"] + 1
    g = gradient(p, g, weight_decay, maximize)
    total = state["sum"] + g * g
    return p - g * (lr / (1 + (t - 1) * lr_decay)) / (sqrt(total) + eps), {"step": t, "sum": total}


def adadelta(p, g, state, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, maximize=False) -> Step:
    """Zeiler 2012; eps inside both roots."""
    state = state or {"step": 0, **zeros(p, "square_avg", "acc_delta")}
    g = gradient(p, g, weight_decay, maximize)
    v = average(state["square_avg"], g * g, rho)
    delta = sqrt(state["acc_delta"] + eps) / sqrt(v + eps) * g
    u = average(state["acc_delta"], delta * delta, rho)
    return p - delta * lr, {"step": state["step"] + 1, "square_avg": v, "acc_delta": u}


def rmsprop(
    p, g, state, *, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False, maximize=False
) -> Step:
    """Hinton's lecture 6; eps outside the root; momentum gathers the normalised gradient, lr multiplies it after."""
    names = ["square_avg"] + ["momentum_buffer"] * (momentum > 0) + ["grad_avg"] * centered
    state = state or {"step": 0, **zeros(p, *names)}
    g = gradient(p, g, weight_decay, maximize)
    v = average(state["square_avg"], g * g, alpha)
    after = {"step": state["step"] + 1, "square_avg": v}
    if centered:
        mean = after["grad_avg"] = average(state["grad_avg"], g, alpha)
        v = v - mean * mean
    move = g / (sqrt(v) + eps)
    if momentum > 0:
        move = after["momentum_buffer"] = state["momentum_buffer"] * momentum + move
    return p - move * lr, after


def adamax(p, g, state, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, maximize=False) -> Step:
    """Kingma and Ba 2015, section 7.1; eps is added to |g| within the maximum."""
    state = state or {"step": 0, **zeros(p, "exp_avg", "exp_inf")}
    t, (b1, b2) = state["step"] + 1, betas
    g = gradient(p, g, weight_decay, maximize)
    m, u = average(state["exp_avg"], g, b1), maximum(state["exp_inf"] * b2, absolute(g) + eps)
    return p - m * (lr / (1 - b1**t)) / u, {"step": t, "exp_avg": m, "exp_inf": u}


def asgd(p, g, state, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, maximize=False) -> Step:
    """Polyak and Juditsky 1992: decaying steps, and beside the parameter its average ``ax`` from step t0 on."""
    state = state or {"step": 0, "eta": lr, "mu": 1.0, **zeros(p, "ax")}
    t, eta, mu = state["step"] + 1, state["eta"], state["mu"]
    g = gradient(p, g, weight_decay, maximize)
    p = p * (1 - lambd * eta) - g * eta
    ax = p if mu == 1 else state["ax"] + (p - state["ax"]) * mu
    after = {"step": t, "eta": lr / (1 + lambd * lr * t) ** alpha, "mu": 1 / max(1, t - t0), "ax": ax}
    return p, after


def rprop(p, g, state, *, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0), maximize=False) -> Step:
    """Riedmiller and Braun 1993 without backtracking: only the sign of the gradient counts; a turn costs one step."""
    state = state or {"step": 0, "prev": zeros(p, "prev")["prev"], "step_size": Rounded(np.full(p.value.shape, lr))}
    g = -g if maximize else g
    turn = np.sign(g.value) * np.sign(state["prev"].value)
    factor = np.where(turn > 0, etas[1], np.where(turn < 0, etas[0], 1.0))
    size = state["step_size"] * factor
    size = Rounded(np.clip(size.value, *step_sizes), size.error + size.value)  # the limits are rounded too
    g = where(turn < 0, 0.0, g)
    return p - size * np.sign(g.value), {"step": state["step"] + 1, "prev": g, "step_size": size}


def sparse_adam(p, g, state, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, maximize=False) -> Step:
    """Adam on the rows that the gradient holds; eps is added before the second bias correction."""
    state = state or {"step": 0, **zeros(p, "exp_avg", "exp_avg_sq")}
    t, (b1, b2) = state["step"] + 1, betas
    g = -g if maximize else g
    m, v = average(state["exp_avg"], g, b1), average(state["exp_avg_sq"], g * g, b2)
    size = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
    return p - m / (sqrt(v) + eps) * size, {"step": t, "exp_avg": m, "exp_avg_sq": v}


def root_mean_square(x: Rounded) -> Rounded:
    """Over all elements: a number of shape (1,)."""
    square = x * x
    flat = Rounded(square.value.reshape(-1), np.broadcast_to(square.error, square.value.shape).reshape(-1))
    return sqrt(dot(flat, 0) / x.value.size)


def adafactor(
    p, g, state, *, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False, tiny=0.0
) -> Step:
    """Shazeer and Stern 2018, on ``(..., n, m)`` or ``(n,)``; ``tiny``, the dtype's eps, stands for eps[0] = None."""
    t = (state["step"] if state else 0) + 1
    floor = tiny if eps[0] is None else eps[0]
    g, keep = (-g if maximize else g), 1 - t**beta2_decay
    alpha = maximum(eps[1], root_mean_square(p)) * min(lr, 1 / math.sqrt(t))
    p, squares, after = decayed(p, lr, weight_decay), g * g, {"step": t}
    if g.value.ndim > 1:
        row, column = dot(squares, -1) / g.value.shape[-1], dot(squares, -2) / g.value.shape[-2]
        row = after["row_var"] = average(state["row_var"], row, keep) if state else row
        column = after["col_var"] = average(state["col_var"], column, keep) if state else column
        estimate = row * column / maximum(dot(row, -2) / g.value.shape[-2], floor)
    else:
        estimate = after["variance"] = average(state["variance"], squares, keep) if state else squares
    update = g / sqrt(maximum(estimate, floor * floor))
    return p - update * (alpha / maximum(1.0, root_mean_square(update) / d)), after


def newton_schulz(
    g: np.ndarray, coefficients: tuple[float, float, float], steps: int, eps: float
) -> tuple[np.ndarray, float]:
    """Muon's quintic iteration on ``(n, m)``: every singular value s becomes a s + b s^3 + c s^5, ``steps`` times over.

    The second result bounds, in Frobenius norm and in units of eps, the error of an implementation that rounds every
    matrix it forms once: a perturbation grows by at most max |a + 3 b s^2 + 5 c s^4|, the slope of the polynomial.
    """
    u, s, v = np.linalg.svd(g, full_matrices=False)
    s = s / max(math.sqrt((s * s).sum()), eps)
    a, b, c = coefficients
    error = 1.5  # the cast, the norm and the division, half an eps each
    for _ in range(steps):
        gram, largest = s * s, s.max()
        slope = np.abs(a + 3 * b * (grid := np.linspace(0, largest, 65)) ** 2 + 5 * c * grid**4).max()
        rounded = np.linalg.norm(gram) * (abs(b) + 2 * abs(c) * largest**2) + np.linalg.norm(b * gram + c * gram**2)
        s = a * s + b * s**3 + c * s**5
        error = slope * error + rounded * largest + np.linalg.norm(s)
    return (u * s) @ v, error


def muon(
    p: np.ndarray, g: Rounded, buffer: Rounded, *, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
    ns_coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7, ns_steps=5, adjust_lr_fn=None,
) -> tuple[np.ndarray, float, Rounded]:  # fmt: skip
    """Jordan et al. 2024, one matrix ``(n, m)``: the new parameter, its error from the iteration's eps, the buffer.

    The buffer is an average: the published sum ``mu B + g`` times 1 - mu, which the iteration does not see.
    """
    buffer = average(buffer, g, momentum)
    direction = average(g, buffer, 1 - momentum) if nesterov else buffer
    n, m = p.shape
    adjusted = lr * (0.2 * math.sqrt(max(n, m)) if adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1, n / m)))
    move, error = newton_schulz(direction.value, ns_coefficients, ns_steps, eps)
    return p * (1 - lr * weight_decay) - adjusted * move, adjusted * error, buffer


def inverse_hessian(moves: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """BFGS estimate from moves s and changes of gradient y, oldest first, ``(pairs, n)`` each: ``(n, n)``.

    It starts from (y's / y'y) I of the latest pair. The second result is the same with all magnitudes added up.
    """
    n, latest = moves.shape[1], (moves[-1], changes[-1])
    estimate = np.eye(n) * (latest[0] @ latest[1]) / (latest[1] @ latest[1])
    size = np.abs(estimate)
    for s, y in zip(moves, changes, strict=True):
        rho = 1 / (s @ y)
        left = np.eye(n) - rho * np.outer(s, y)
        estimate = left @ estimate @ left.T + rho * np.outer(s, s)
        wide = np.eye(n) + np.abs(rho * np.outer(s, y))
        size = wide @ size @ wide.T + np.abs(rho * np.outer(s, s))
    return estimate, size
