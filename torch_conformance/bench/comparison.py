"""The comparison: launch after launch until every kernel is settled, and what was found."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from torch_conformance.bench import kernels as catalogue
from torch_conformance.bench.kernels import Kernel
from torch_conformance.bench.paired import Interval, Looks, interval, narrowest_rank, verdict, within
from torch_conformance.bench.sides import Launch, Measured, Missing, WorkerFailed
from torch_conformance.errors import UsageError

BETWEEN = (6, 9, 15, 18, 23, 26, 29)  # launches, beside the looks, after which kernels that show nothing are let go
SPREAD_SECONDS = 1.5  # a launch draws for at least so long: other work on the machine pauses within it nearly always
PATIENCE_SECONDS = 4.0  # and so long if it does not, as long as the next launch is importing torch meanwhile
SAME_MISS = 0.05  # how often an interval that says "same" may miss; 6 launches are the fewest that can say it
Progress = Callable[[str], None]


@dataclass
class KernelResult:
    """One kernel's launches and what they say."""

    kernel: Kernel
    launches: list[Measured] = field(default_factory=list)
    interval: Interval | None = None
    verdict: str = "undecided"
    note: str | None = None

    def microseconds(self, side: str) -> float:
        """Median over the launches of the best block, in microseconds a call."""
        best = [min(launch.old if side == "old" else launch.new) for launch in self.launches]
        return median(best) / 1000

    def gigabytes_per_second(self, side: str) -> float:
        return catalogue.minimal_bytes(self.kernel) / self.microseconds(side) / 1000


Curve = list[tuple[int, float]]


def limit_at(curve: Curve, total_bytes: int) -> float | None:
    """GB/s of a copy that moves so many bytes, interpolated between the measured sizes on logarithmic axes."""
    if not curve:
        return None
    if total_bytes <= curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if total_bytes <= x1:
            part = log(total_bytes / x0) / log(x1 / x0)
            return exp(log(y0) + part * (log(y1) - log(y0)))
    return curve[-1][1]


@dataclass
class BenchResult:
    """Everything a comparison found; `to_json` is the form that the gate and its report read."""

    old: dict[str, Any]
    new: dict[str, Any]
    kernels: list[KernelResult]
    missing: list[dict[str, str]]
    limits: dict[str, dict[str, Curve]]  # side -> "copy" or "triad" -> (bytes, GB/s)
    warnings: list[str]
    threshold: float
    resolution: float
    family: float
    launches: int
    seconds: float
    load: tuple[float, float]

    def counts(self, result: KernelResult) -> bool:
        """Whether the kernel counts against NEW: the whole interval lies above the threshold."""
        found = result.interval
        return result.verdict == "slower" and found is not None and found.low > 1 + self.threshold

    def doubtful(self, result: KernelResult) -> bool:
        """Whether a kernel left undecided may yet be slower by more than the threshold."""
        return result.verdict == "undecided" and (result.interval is None or result.interval.high > 1 + self.threshold)

    @property
    def exit_code(self) -> int:
        """1 when a kernel counts as slower, 2 when one cannot be excluded or NEW lacks one that OLD has, else 0."""
        if any(self.counts(result) for result in self.kernels):
            return 1
        lacking = any(entry["side"] == "NEW" for entry in self.missing)
        return 2 if lacking or not self.kernels or any(self.doubtful(result) for result in self.kernels) else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "old": self.old,
            "new": self.new,
            "threshold": self.threshold,
            "resolution": self.resolution,
            "family_coverage": 1 - self.family,
            "launches": self.launches,
            "seconds": round(self.seconds, 1),
            "load_average": list(self.load),
            "warnings": self.warnings,
            "exit_code": self.exit_code,
            "kernels": [self._row(result) for result in self.kernels],
            "missing": self.missing,
            "limits": self.limits,
        }

    def _row(self, result: KernelResult) -> dict[str, Any]:
        kernel, found = result.kernel, result.interval
        row: dict[str, Any] = {
            "name": kernel.name,
            "norm": kernel.norm,
            "size": kernel.size,
            "shape": list(kernel.shape),
            "dtype": kernel.dtype,
            "pass": kernel.direction,
            "layout": kernel.layout,
            "verdict": result.verdict,
            "counts": self.counts(result),
            "note": result.note,
            "bytes": catalogue.minimal_bytes(kernel),
            "ratio": found.ratio if found else None,
            "low": found.low if found else None,
            "high": found.high if found else None,
            "coverage": found.coverage if found else None,
            "pairs": len(result.launches),
        }
        for side in ("old", "new"):
            limit = limit_at(self.limits.get(side, {}).get("copy", []), row["bytes"])
            speed = result.gigabytes_per_second(side) if result.launches else None
            row[f"{side}_microseconds"] = result.microseconds(side) if result.launches else None
            row[f"{side}_gigabytes_per_second"] = speed
            row[f"{side}_fraction_of_copy"] = speed / limit if speed and limit else None
        return row


def compare_kernels(
    old: Path,
    new: Path,
    *,
    budget_seconds: float = 220.0,
    threshold: float = 0.05,
    resolution: float = 0.01,
    family: float = 0.05,
    kernels: Sequence[Kernel] | None = None,
    device: str = "cpu",
    threads: int = 1,
    slowdowns: dict[str, float] | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Times the kernels in the interpreters `old` and `new`, in pairs, until each is settled or the budget spent.

    `threshold` and `resolution` are fractions (0.05 is 5 %): above the first, a slower kernel counts against
    `new`; under the second, no difference is called. `family` is the probability that any interval misses.
    `slowdowns` plants slowdowns in `new`, by kernel name, to measure the method itself. Raises UsageError when
    an interpreter cannot be run or has no torch.
    """
    comparison = _Comparison(
        (old, new), list(kernels or catalogue.catalogue()), device, threads, slowdowns or {}, random.Random(seed),
        progress or (lambda line: None), threshold, resolution, Looks(len(kernels or catalogue.catalogue()), family),
    )  # fmt: skip
    started, load = time.monotonic(), _load()
    with contextlib.ExitStack() as cleanup:
        try:
            comparison.run(started + budget_seconds, cleanup)
        except WorkerFailed as failure:
            raise UsageError(f"{failure}; it has to import torch and to run on {device!r}") from failure
    return BenchResult(
        *comparison.about, comparison.results, comparison.missing, comparison.limits,
        build_warnings(*comparison.about), threshold, resolution, family, comparison.done,
        time.monotonic() - started, (load, _load()),
    )  # fmt: skip


class _Comparison:
    """The state of a running comparison."""

    def __init__(
        self, interpreters: tuple[Path, Path], kernels: list[Kernel], device: str, threads: int,
        slowdowns: dict[str, float], shuffle: random.Random, progress: Progress, threshold: float,
        resolution: float, looks: Looks,
    ):  # fmt: skip
        self.interpreters, self.device, self.threads = interpreters, device, threads
        self.slowdowns, self.shuffle, self.progress = slowdowns, shuffle, progress
        self.threshold, self.resolution, self.looks = threshold, resolution, looks
        self.results = [KernelResult(kernel) for kernel in kernels]
        self.open = list(self.results)
        self.missing: list[dict[str, str]] = []
        self.limits: dict[str, dict[str, Curve]] = {}
        self.about: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self.done = 0
        self.cpus = sorted(os.sched_getaffinity(0)) if threads == 1 and hasattr(os, "sched_getaffinity") else []
        self.cpu: int | None = None

    def run(self, deadline: float, cleanup: contextlib.ExitStack) -> None:
        scratch = cleanup.enter_context(tempfile.TemporaryDirectory())
        started = time.monotonic()
        coming = self._start(scratch, cleanup)
        while self.open:
            launch = coming
            try:
                self._begin(launch)
                coming = self._start(scratch, cleanup)
                self._measure_all(launch, coming)
            finally:
                launch.close()
            coming.spread(self.cpus)  # with few kernels open, importing torch takes longer than measuring
            if self.done in BETWEEN:
                self._drop_plainly_same()
            late = time.monotonic() + (time.monotonic() - started) / max(1, self.done) > deadline
            if self.done in self.looks.schedule or late:
                self._look(last=late or self.done >= self.looks.schedule[-1])
            if late or self.done >= self.looks.schedule[-1]:
                break

    def _start(self, scratch: str, cleanup: contextlib.ExitStack) -> Launch:
        elsewhere = [cpu for cpu in self.cpus if cpu != self.cpu] or self.cpus
        launch = Launch(self.interpreters, self.device, self.threads, elsewhere, scratch, self.shuffle)
        cleanup.callback(launch.close)
        return launch

    def _begin(self, launch: Launch) -> None:
        self.about = launch.greetings()
        self.cpu = launch.settle(self.cpus)

    def _measure_all(self, launch: Launch, coming: Launch) -> None:
        """Draws the open kernels in rounds, so that the draws of one kernel lie far apart in time.

        What else uses the machine comes and goes within tenths of a second; a kernel drawn in one go would meet it in
        all draws or in none.
        """
        results = {result.kernel.name: result for result in self.open}
        limits = [] if self.limits else limit_names([result.kernel for result in self.results])
        drawn = {name: Measured() for name in (*limits, *results)}
        unsettled, started = list(drawn), time.monotonic()
        while unsettled:
            self.progress(f"launch {self.done + 1}: {len(unsettled)} of {len(drawn)} kernels to be timed")
            for name in self.shuffle.sample(unsettled, len(unsettled)):
                try:
                    launch.draw(name, drawn[name], self.slowdowns.get(name, 0.0))
                except Missing as missing:
                    self.missing.append({"name": name, "side": missing.label, "reason": str(missing)})
                    self.results.remove(results[name])
                    self.open.remove(results[name])
                    del drawn[name]
                except WorkerFailed as failure:  # the launch is void: a kernel that kills a worker must not bias others
                    if name in limits:
                        raise
                    results[name].note = str(failure)
                    self.open.remove(results[name])
                    return
            passed = time.monotonic() - started
            patient = passed < PATIENCE_SECONDS and not coming.ready()
            unsettled = [
                name
                for name, found in drawn.items()
                if passed < SPREAD_SECONDS or (patient and found.disturbed) or (name in unsettled and not found.settled)
            ]
        for result in self.open:
            result.launches.append(drawn[result.kernel.name])
        self.limits = self.limits or limits_of(drawn)
        self.done += 1

    def _drop_plainly_same(self) -> None:
        """Ends the kernels that show no difference, so that the time goes to those that may.

        A wrong drop can hide a difference, never make one.
        """
        for result in list(self.open):
            if self._judge(result, 0):
                self.open.remove(result)

    def _look(self, last: bool) -> None:
        rank = self.looks.rank(self.done, last)
        for result in list(self.open):
            settled = self._judge(result, rank)
            if settled or last:
                self.open.remove(result)

    def _judge(self, result: KernelResult, rank: int) -> bool:
        """Sets the kernel's interval and verdict; whether more launches could not add to them.

        A difference is called from the interval of `rank`, corrected for all kernels and looks (rank 0: too few
        launches to call one). Sameness is no alarm, so its interval is the 95 % one of this kernel alone.
        """
        logs = [launch.log_ratio for launch in result.launches]
        if not logs:
            return False
        if rank:
            result.interval = interval(logs, rank)
            result.verdict = verdict(result.interval.low, result.interval.high, self.threshold, self.resolution)
            if result.verdict == "slower":
                return not result.interval.low <= 1 + self.threshold < result.interval.high
            if result.verdict == "faster":
                return True
        own = narrowest_rank(len(logs), SAME_MISS)
        result.interval = interval(logs, max(own, 1))
        result.verdict = "undecided"
        if own and within(result.interval.low, result.interval.high, self.threshold):
            result.verdict = "same"
        enough = rank or len(logs) >= self.looks.schedule[0]
        result.note = (
            None if enough else f"{self.looks.schedule[0]} launches are needed to call it; give it more --budget"
        )
        if result.verdict != "same":
            return False
        nothing_seen = enough and result.interval.low <= 1 <= result.interval.high
        return nothing_seen or within(result.interval.ratio, result.interval.ratio, self.resolution)


def limit_names(kernels: Sequence[Kernel]) -> list[str]:
    """Copies and triads at powers of two that enclose the kernels' bytes."""
    sizes = [catalogue.minimal_bytes(kernel) for kernel in kernels]
    exponents = range(min(sizes).bit_length() - 1, max(sizes).bit_length() + 1)
    return [f"{operation}:{2**exponent}" for operation in ("copy", "triad") for exponent in exponents]


def limits_of(drawn: Mapping[str, Measured]) -> dict[str, dict[str, Curve]]:
    """GB/s of the copies and triads among what was drawn, by side and operation."""
    limits: dict[str, dict[str, Curve]] = {"old": {}, "new": {}}
    for name, found in drawn.items():
        operation, _, total = name.partition(":")
        if total:
            for side, blocks in (("old", found.old), ("new", found.new)):
                limits[side].setdefault(operation, []).append((int(total), int(total) / min(blocks)))
    return limits


def build_warnings(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What, beside torch's version, tells the two sides apart and may move times by itself."""
    found = []
    kinds = [side.get("build", "").split()[0] for side in (old, new)]
    if kinds[0] != kinds[1]:
        found.append(
            f"the builds differ: OLD is a {kinds[0]} build of torch, NEW a {kinds[1]} build; that alone moves small "
            "kernels by several per cent, so compare builds of one kind"
        )
    for key, word in (("python", "Python"), ("cpu_capability", "CPU capability")):
        if old.get(key) != new.get(key) and "unknown" not in (old.get(key), new.get(key)):
            found.append(f"{word} differs: OLD has {old.get(key)}, NEW has {new.get(key)}")
    return found


def _load() -> float:
    return round(os.getloadavg()[0], 2)
