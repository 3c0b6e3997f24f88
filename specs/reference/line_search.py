"""The line search of L-BFGS: a step is bracketed, then the bracket narrowed, by cubic interpolation.

Nocedal and Wright 2006, algorithms 3.5 and 3.6, with the safeguards of Schmidt's minFunc. Steps are `Rounded`: what is
tried next follows from what was tried before, so that each step of an implementation can be judged by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specs.reference.rounded import Rounded, maximum, minimum, sqrt

DECREASE, CURVATURE, NARROW = 1e-4, 0.9, 1e-9


@dataclass(frozen=True)
class Trial:
    """The function at one step along the direction: its value there and its derivative by the step."""

    step: Rounded
    value: float
    slope: float


def cubic_minimiser(a: Trial, b: Trial, low: Rounded, high: Rounded) -> Rounded:
    """Where the cubic with these values and slopes is least, within low and high; their middle if it has no minimum."""
    if a.step.value > b.step.value:
        a, b = b, a
    width = b.step - a.step
    bend = a.slope + b.slope - 3 * (Rounded(b.value) - a.value) / width
    square = bend * bend - Rounded(a.slope) * b.slope
    if square.value < 0:
        return (low + high) / 2
    root = sqrt(square)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = b.step - width * ((b.slope + root - bend) / (Rounded(b.slope) - a.slope + 2 * root))
    return minimum(maximum(place, low), high)


def strong_wolfe(
    evaluate: Callable[[Rounded], Trial], start: Trial, step: Rounded, limit: int, size: float = 1.0
) -> Trial:
    """The step that the search ends with, of those that it has ``evaluate`` try; start is the step 0.

    ``size`` is the greatest magnitude in the direction. After the first, at most ``limit`` more steps are tried.
    """

    def descends(trial: Trial) -> bool:
        return trial.value <= start.value + DECREASE * float(trial.step.value) * start.slope

    def is_flat(trial: Trial) -> bool:
        return abs(trial.slope) <= -CURVATURE * start.slope

    before, trial, tried = start, evaluate(step), 0
    while tried < limit:
        if not descends(trial) or (tried > 1 and trial.value >= before.value):
            break
        if is_flat(trial):
            return trial
        if trial.slope >= 0:
            break
        farther = cubic_minimiser(before, trial, trial.step + 0.01 * (trial.step - before.step), trial.step * 10)
        before, trial, tried = trial, evaluate(farther), tried + 1
    else:
        before = start

    ends, stuck = [before, trial], False
    best = 0 if ends[0].value <= ends[1].value else 1
    while tried < limit:
        low, high = sorted((end.step for end in ends), key=lambda end: float(end.value))
        if (high.value - low.value) * size < NARROW:
            break
        step, margin = cubic_minimiser(*ends, low, high), 0.1 * (high - low)
        to_low, to_high = step.value - low.value, high.value - step.value
        beside = min(to_low, to_high) < margin.value
        if beside and (stuck or to_low <= 0 or to_high <= 0):
            step, beside = (high - margin if abs(to_high) < abs(to_low) else low + margin), False
        stuck = bool(beside)
        trial, tried = evaluate(step), tried + 1
        if not descends(trial) or trial.value >= ends[best].value:
            ends[1 - best] = trial
            best = 0 if ends[0].value <= ends[1].value else 1
            continue
        if is_flat(trial):
            return trial
        if trial.slope * (ends[1 - best].step.value - ends[best].step.value) >= 0:
            ends[1 - best] = ends[best]
        ends[best] = trial
    return ends[best]
