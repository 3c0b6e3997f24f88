"""Learning rate schedules in closed form: ``law(t, base, **options)``, the rate of a group in epoch t.

``base`` is the rate that the optimiser was made with; epoch 0 is the one before the first ``scheduler.step()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable


def step(t: int, base: float, *, step_size: int, gamma: float = 0.1) -> float:
    return base * gamma ** (t // step_size)


def multi_step(t: int, base: float, *, milestones: Iterable[int], gamma: float = 0.1) -> float:
    """A milestone listed twice counts twice."""
    return base * gamma ** sum(m <= t for m in milestones)


def constant(t: int, base: float, *, factor: float = 1 / 3, total_iters: int = 5) -> float:
    return base * (factor if t < total_iters else 1)


def linear(t: int, base: float, *, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5) -> float:
    return base * (start_factor + (end_factor - start_factor) * min(t, total_iters) / total_iters)


def exponential(t: int, base: float, *, gamma: float) -> float:
    return base * gamma**t


def polynomial(t: int, base: float, *, total_iters: int = 5, power: float = 1.0) -> float:
    return base * (1 - min(t, total_iters) / total_iters) ** power


def cosine(t: float, base: float, *, T_max: float, eta_min: float = 0.0) -> float:  # noqa: N803
    """Loshchilov and Hutter 2017 without restarts: a full wave of period 2 T_max, which climbs back after T_max."""
    return eta_min + (base - eta_min) * (1 + math.cos(math.pi * t / T_max)) / 2


def warm_restarts(t: int, base: float, *, T_0: int, T_mult: int = 1, eta_min: float = 0.0) -> float:  # noqa: N803
    """The cosine's falling half over T_0 epochs, then anew over T_0 T_mult, T_0 T_mult^2, …"""
    length = T_0
    while t >= length:
        t, length = t - length, length * T_mult
    return cosine(t, base, T_max=length, eta_min=eta_min)


def lambda_(t: int, base: float, *, lr_lambda: Callable[[int], float]) -> float:
    return base * lr_lambda(t)


def multiplicative(t: int, base: float, *, lr_lambda: Callable[[int], float]) -> float:
    return base * math.prod(lr_lambda(i) for i in range(1, t + 1))


def wave(t: int, up: int, down: int) -> tuple[int, float]:
    """Smith 2017: number of the cycle, from 1, and the height of the triangle in it, 0 to 1."""
    cycle, place = divmod(t, up + down)
    return cycle + 1, place / up if place <= up else (up + down - place) / down


def cyclic(
    t: int, base: float, *, base_lr: float, max_lr: float, step_size_up: int = 2000, step_size_down: int | None = None,
    mode: str = "triangular", gamma: float = 1.0,
) -> float:  # fmt: skip
    cycle, height = wave(t, step_size_up, step_size_down or step_size_up)
    shrink = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1), "exp_range": gamma**t}[mode]
    return base_lr + (max_lr - base_lr) * height * shrink


def one_cycle(
    t: int, base: float, *, max_lr: float, total_steps: int, pct_start: float = 0.3, anneal_strategy: str = "cos",
    div_factor: float = 25.0, final_div_factor: float = 1e4, three_phase: bool = False,
) -> float:  # fmt: skip
    """Smith and Topin 2018: up to max_lr, then down (by way of the start in three phases) to the smallest rate."""
    start, end = max_lr / div_factor, max_lr / div_factor / final_div_factor
    rates = [start, max_lr, start, end] if three_phase else [start, max_lr, end]
    return phased(t, rates, total_steps, pct_start, anneal_strategy)


def phased(t: int, values: list[float], total_steps: int, pct_start: float, anneal_strategy: str) -> float:
    """Between the values in turn, each phase to its own last step: p n - 1, 2 p n - 2 with three phases, n - 1."""
    peak = pct_start * total_steps - 1
    ends = [0.0, peak, *[2 * peak] * (len(values) == 4), total_steps - 1.0]
    phase = next(i for i in range(1, len(ends)) if t <= ends[i])
    share = (t - ends[phase - 1]) / (ends[phase] - ends[phase - 1])
    if anneal_strategy == "cos":
        share = (1 - math.cos(math.pi * share)) / 2
    return values[phase - 1] + (values[phase] - values[phase - 1]) * share


def swa(t: int, base: float, *, swa_lr: float, anneal_epochs: int = 10, anneal_strategy: str = "cos") -> float:
    """From the rate at the start to swa_lr within anneal_epochs, constant from then on."""
    share = min(1.0, t / anneal_epochs) if anneal_epochs else 1.0
    if anneal_strategy == "cos":
        share = (1 - math.cos(math.pi * share)) / 2
    return base + (swa_lr - base) * share


def plateau(
    metrics: Iterable[float], base: float, *, mode: str = "min", factor: float = 0.1, patience: int = 10,
    threshold: float = 1e-4, threshold_mode: str = "rel", cooldown: int = 0, min_lr: float = 0.0, eps: float = 1e-8,
) -> list[float]:  # fmt: skip
    """The rate after each metric. Better means better than the best by more than the threshold: an equal one is not."""
    best, bad, resting, rates = math.inf if mode == "min" else -math.inf, 0, 0, []
    down = 1 if mode == "min" else -1
    for metric in metrics:
        limit = best * (1 - down * threshold) if threshold_mode == "rel" else best - down * threshold
        if (metric - limit) * down < 0 or math.isinf(best):
            best, bad = metric, 0
        else:
            bad += 1
        if resting:
            resting, bad = resting - 1, 0
        if bad > patience:
            lower = max(base * factor, min_lr)
            base, resting, bad = lower if base - lower > eps else base, cooldown, 0
        rates.append(base)
    return rates
