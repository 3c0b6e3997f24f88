"""Statistics of paired timings: distribution-free intervals, how often one may look, and the verdict.

The unit is the launch: one fresh process a side, and one log ratio a kernel. Launches are independent; blocks
within a launch are not, for a process keeps an offset of its own (addresses, page placement) all its life.
Nothing is assumed of the launches but independence: the interval is made of order statistics, and its
coverage of the median ratio follows from the binomial distribution alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, exp
from statistics import median

FIRST_SHARE = 2 / 3  # of the error allowed to a kernel, spent at the first look, where most kernels are settled


def miss(n: int, rank: int) -> float:
    """Probability that [x(rank), x(n+1-rank)] of n independent values does not contain their median."""
    return sum(comb(n, i) for i in range(rank)) / float(2 ** (n - 1))


def narrowest_rank(n: int, allowed: float) -> int:
    """The largest rank whose interval misses with at most that probability; 0 when even min..max does so more."""
    rank = 0
    while rank < n // 2 and miss(n, rank + 1) <= allowed:
        rank += 1
    return rank


@dataclass(frozen=True)
class Interval:
    """A ratio new/old with the bounds that hold its median with probability `coverage`."""

    ratio: float
    low: float
    high: float
    coverage: float
    pairs: int


def interval(logs: Sequence[float], rank: int) -> Interval:
    """The interval of that rank (at least 1) of the log ratios, as ratios."""
    ordered = sorted(logs)
    n = len(ordered)
    return Interval(exp(median(ordered)), exp(ordered[rank - 1]), exp(ordered[n - rank]), 1 - miss(n, rank), n)


class Looks:
    """When intervals are looked at, and what each look may cost, so that all looks of all kernels keep `family`.

    `family` is the probability that any interval of the run, at any look, misses; every kernel gets an equal
    part of it (Bonferroni), two thirds of that part go to the first look, half of what is left to the next,
    all that is left to the last.
    """

    def __init__(self, kernels: int, family: float = 0.05) -> None:
        self.allowed = family / max(1, kernels)
        self.spent = 0.0
        first = 2
        while miss(first, 1) > FIRST_SHARE * self.allowed:
            first += 1
        self.schedule = (first, first * 5 // 3, first * 8 // 3)

    def rank(self, n: int, last: bool = False) -> int:
        """Spends this look's part on n launches and returns the rank it buys; 0 when it buys none."""
        left = self.allowed - self.spent
        share = 1.0 if last or n >= self.schedule[-1] else FIRST_SHARE if not self.spent else 0.5
        rank = narrowest_rank(n, share * left)
        self.spent += miss(n, rank) if rank else 0.0
        return rank


def verdict(low: float, high: float, threshold: float, resolution: float) -> str:
    """`slower`, `faster`, `same` or `undecided`, from the bounds of the ratio new/old.

    slower: the whole interval lies above 1 + resolution; faster: below its reciprocal. same: the whole interval
    lies within the threshold, and neither of the two holds. Anything else is undecided.
    """
    if low > 1 + resolution:
        return "slower"
    if high < 1 / (1 + resolution):
        return "faster"
    return "same" if within(low, high, threshold) else "undecided"


def within(low: float, high: float, distance: float) -> bool:
    """Whether the interval lies inside 1 ± distance, the lower side as the reciprocal of the upper."""
    return 1 / (1 + distance) < low <= high < 1 + distance
