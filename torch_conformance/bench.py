"""`bench OLD NEW`: paired timing of the norm kernels in two interpreters, and a verdict for each kernel.

Two fresh workers, one an interpreter, share one CPU and take turns on the same inputs in blocks of about 2 ms,
in the orders ABBA and BAAB. Such a launch gives one log ratio a kernel; launches are repeated until the
interval of every kernel says enough, or the budget is spent. docs/benchmarks.md has the reasons and the
measured error rates.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import itertools
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from torch_conformance import kernels as catalogue
from torch_conformance.errors import UsageError
from torch_conformance.kernels import Kernel
from torch_conformance.paired import Interval, Looks, interval, narrowest_rank, verdict, within

WORKER = Path(__file__).with_name("bench_worker.py")
SAMPLE_NS = 400_000
QUADS = (3, 6)  # at least, at most; more are run until each side's two best blocks agree
AGREE = 1.01
FEW = 20  # kernels; with fewer open, importing torch takes longer than measuring, and is given all CPUs
EARLY = (6, 9)  # launches after which kernels that show nothing at all are let go
SAME_MISS = 0.05  # how often an interval that says "same" may miss; 6 launches are the fewest that can say it
START_SECONDS = 120
REPLY_SECONDS = 60
# glibc otherwise decides, process by process, between reusing an output's memory and mapping it anew at each call:
# a factor of 3 that has nothing to do with torch.
MALLOC = ":".join(
    f"glibc.malloc.{name}"
    for name in ("hugetlb=1", "mmap_threshold=33554432", "trim_threshold=4294967296", "top_pad=67108864")
)
Progress = Callable[[str], None]


# -- one side ---------------------------------------------------------------------------------------------------


class WorkerFailed(Exception):
    """A worker died, hung, or answered with an error."""


class Side:
    """A worker process: started without waiting, asked by one JSON line, answering by one."""

    def __init__(
        self, label: str, interpreter: Path, device: str, threads: int, cpus: Sequence[int], env: dict[str, str]
    ):
        self.label = label
        command = [str(interpreter), str(WORKER), "--device", device, "--threads", str(threads)]
        command += ["--cpus", ",".join(map(str, cpus))] if cpus else []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._pending = b""
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=env, bufsize=0
            )
        except OSError as error:
            raise UsageError(f"{label}: cannot run {interpreter}: {error.strerror}") from error

    def greeting(self) -> dict[str, Any]:
        """What the worker says of itself once torch is imported."""
        return self._reply(START_SECONDS)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The reply to a request. Raises WorkerFailed when there is none, or it is an error."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            raise WorkerFailed(f"{self.label}: the worker died ({self._last_words()})") from None
        reply = self._reply(REPLY_SECONDS)
        if "error" in reply:
            raise WorkerFailed(f"{self.label}: {reply['error']}")
        return reply

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            if pipe:
                pipe.close()

    def _reply(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout
        deadline = time.monotonic() + seconds
        while b"\n" not in self._pending:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise WorkerFailed(f"{self.label}: the worker gave no answer in {seconds:.0f} s")
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                raise WorkerFailed(f"{self.label}: the worker died ({self._last_words()})")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _last_words(self) -> str:
        self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else f"exit status {self.process.returncode}, no message"


class Launch:
    """A fresh pair of workers. It imports torch while the launch before it is measured, on the other CPUs."""

    def __init__(
        self, interpreters: tuple[Path, Path], device: str, threads: int, cpus: Sequence[int], env: dict[str, str],
        shuffle: random.Random,
    ):  # fmt: skip
        labels = [("OLD", interpreters[0]), ("NEW", interpreters[1])]
        shuffle.shuffle(labels)
        started: dict[str, Side] = {}
        try:
            for label, interpreter in labels:
                started[label] = Side(label, interpreter, device, threads, cpus, env)
        except UsageError:
            for side in started.values():
                side.close()
            raise
        self.sides = (started["OLD"], started["NEW"])
        self.shuffle = shuffle

    def greetings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.sides[0].greeting(), self.sides[1].greeting()

    def settle(self, cpus: Sequence[int]) -> int | None:
        """Moves both sides to the CPU, of a few tried, of which most can be had; returns it."""
        if len(cpus) < 1:
            return None
        tried = self.shuffle.sample(list(cpus), min(4, len(cpus)))
        shares = {}
        for cpu in tried:
            self.sides[0].ask("bind", cpu=cpu)
            shares[cpu] = round(self.sides[0].ask("probe", seconds=0.015)["share"], 1)
        best = max(tried, key=lambda cpu: shares[cpu])
        for side in self.sides:
            side.ask("bind", cpu=best)
        return best

    def measure(self, name: str, slowdown: float = 0.0, quads: tuple[int, int] = QUADS) -> Measured:
        """Times one kernel on both sides, in turns."""
        rough = []
        for side, planted in zip(self.sides, (0.0, slowdown), strict=True):
            reply = side.ask("build", kernel=name, slowdown=planted)
            if "unsupported" in reply:
                raise Missing(side.label, reply["unsupported"])
            rough.append(reply["ns"])
        calls = max(1, round(SAMPLE_NS / max(rough)))
        blocks: tuple[list[float], list[float]] = ([], [])
        for quad in range(quads[1]):
            first = self.shuffle.randrange(2)
            for turn in (first, 1 - first, 1 - first, first):
                blocks[turn].append(self.sides[turn].ask("block", calls=calls, copy=quad)["ns"])
            if quad + 1 >= quads[0] and all(agree(side) for side in blocks):
                break
        return Measured(*blocks)

    def close(self) -> None:
        for side in self.sides:
            side.close()


class Missing(Exception):
    """One side lacks the kernel."""

    def __init__(self, label: str, reason: str):
        super().__init__(f"{label}: {reason}")
        self.label = label


@dataclass(frozen=True)
class Measured:
    """Block times of one kernel in one launch, in ns a call."""

    old: list[float]
    new: list[float]

    @property
    def log_ratio(self) -> float:
        return log(min(self.new) / min(self.old))


def agree(blocks: Sequence[float]) -> bool:
    """Whether the two best blocks of one side are alike: a stopping rule blind to the other side."""
    best = sorted(blocks)[:2]
    return best[1] <= AGREE * best[0]


# -- results ----------------------------------------------------------------------------------------------------


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


# -- the comparison ---------------------------------------------------------------------------------------------


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
        env = worker_environment(cleanup.enter_context(tempfile.TemporaryDirectory()), self.threads)
        started = time.monotonic()
        coming: Launch | None = None
        while self.open:
            launch, coming = coming or self._start(env, cleanup), None
            try:
                self._begin(launch)
                if len(self.open) > FEW:
                    coming = self._start(env, cleanup)
                self._measure_all(launch)
            finally:
                launch.close()
            if self.done in EARLY and self.done < self.looks.schedule[0]:
                self._drop_plainly_same()
            late = time.monotonic() + (time.monotonic() - started) / max(1, self.done) > deadline
            if self.done in self.looks.schedule or late:
                self._look(last=late or self.done >= self.looks.schedule[-1])
            if late or self.done >= self.looks.schedule[-1]:
                break
        if coming:
            coming.close()

    def _start(self, env: dict[str, str], cleanup: contextlib.ExitStack) -> Launch:
        elsewhere = [cpu for cpu in self.cpus if cpu != self.cpu or len(self.open) <= FEW] or self.cpus
        launch = Launch(self.interpreters, self.device, self.threads, elsewhere, env, self.shuffle)
        cleanup.callback(launch.close)
        return launch

    def _begin(self, launch: Launch) -> None:
        self.about = launch.greetings()
        self.cpu = launch.settle(self.cpus)

    def _measure_all(self, launch: Launch) -> None:
        if not self.limits:
            self.limits = measure_limits(launch, [result.kernel for result in self.results])
        measured: list[tuple[KernelResult, Measured]] = []
        for position, result in enumerate(self.shuffle.sample(self.open, len(self.open))):
            name = result.kernel.name
            self.progress(f"launch {self.done + 1}, kernel {position + 1} of {len(self.open)}: {name}")
            try:
                measured.append((result, launch.measure(name, self.slowdowns.get(name, 0.0))))
            except Missing as missing:
                self.missing.append({"name": name, "side": missing.label, "reason": str(missing)})
                self.results.remove(result)
                self.open.remove(result)
            except WorkerFailed as failure:  # the launch is void: a kernel that kills a worker must not bias others
                result.note = str(failure)
                self.open.remove(result)
                return
        for result, pair in measured:
            result.launches.append(pair)
        self.done += 1

    def _drop_plainly_same(self) -> None:
        """Ends the kernels that show nothing at all, so that the time goes to those that may.

        A wrong drop can hide a difference, never make one.
        """
        for result in list(self.open):
            self._judge(result, 0)
            if result.verdict == "same" and result.interval and _beside_one(result.interval, self.resolution / 2):
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
        result.note = (
            None if rank else f"{self.looks.schedule[0]} launches are needed to call it; give it more --budget"
        )
        return result.verdict == "same" and _beside_one(result.interval, self.resolution)


def _beside_one(found: Interval, distance: float) -> bool:
    """Whether the ratio lies within that distance of 1."""
    return within(found.ratio, found.ratio, distance)


def measure_limits(launch: Launch, kernels: Sequence[Kernel]) -> dict[str, dict[str, Curve]]:
    """Copy and triad of both sides at powers of two that enclose the kernels' bytes."""
    sizes = [catalogue.minimal_bytes(kernel) for kernel in kernels]
    exponents = range(min(sizes).bit_length() - 1, max(sizes).bit_length() + 1)
    limits: dict[str, dict[str, Curve]] = {"old": {}, "new": {}}
    for operation in ("copy", "triad"):
        for total in (2**exponent for exponent in exponents):
            pair = launch.measure(f"{operation}:{total}", quads=(2, 3))
            for side, blocks in (("old", pair.old), ("new", pair.new)):
                limits[side].setdefault(operation, []).append((total, total / min(blocks)))
    return limits


def worker_environment(scratch: str, threads: int) -> dict[str, str]:
    """The environment that both sides run in."""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    inherited = env.get("GLIBC_TUNABLES")
    env["GLIBC_TUNABLES"] = f"{inherited}:{MALLOC}" if inherited else MALLOC
    if env.pop("PYTHONDONTWRITEBYTECODE", None):  # every launch would compile torch's sources again
        env["PYTHONPYCACHEPREFIX"] = scratch
    return env


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


# -- text -------------------------------------------------------------------------------------------------------


def lines(result: BenchResult) -> Iterator[str]:
    """The table that a person reads, worst first."""
    for label, about in (("OLD", result.old), ("NEW", result.new)):
        yield f"{label}  torch {about['torch']} ({about['build']}), Python {about['python']}, {about['executable']}"
    yield from (f"warning: {warning}" for warning in result.warnings)
    yield ""
    yield (
        f"{'kernel':<50}{'old µs':>9}{'new µs':>9}{'ratio':>7}  {'interval':<15}{'pairs':>5}  "
        f"{'GB/s':>11}  {'of copy':>9}  verdict"
    )
    order = ("slower", "undecided", "faster", "same")
    rows = result.to_json()["kernels"]
    for row in sorted(rows, key=lambda row: (order.index(row["verdict"]), -(row["ratio"] or 9), row["name"])):
        yield _line(row, result.threshold)
    for entry in result.missing:
        yield f"{entry['name']:<50}not compared: {entry['reason']}"
    yield ""
    yield summary(result)


def _line(row: dict[str, Any], threshold: float) -> str:
    if row["ratio"] is None:
        return f"{row['name']:<50}undecided: {row['note'] or 'not measured'}"
    fractions = [row[f"{side}_fraction_of_copy"] for side in ("old", "new")]
    share = " ".join(f"{fraction:4.0%}" for fraction in fractions if fraction is not None)
    words = row["verdict"]
    if words == "same":
        words = f"same within {100 * max(row['high'] - 1, 1 / row['low'] - 1):.1f} %"
    elif row["counts"]:
        words = f"slower by more than {100 * threshold:g} %"
    return (
        f"{row['name']:<50}{row['old_microseconds']:>9.1f}{row['new_microseconds']:>9.1f}{row['ratio']:>7.3f}  "
        f"{row['low']:.3f}..{row['high']:<8.3f}{row['pairs']:>5}  "
        f"{row['old_gigabytes_per_second']:>5.1f} {row['new_gigabytes_per_second']:>5.1f}  {share:>9}  {words}"
        + (f" ({row['note']})" if row["note"] and row["verdict"] == "undecided" else "")
    )


def summary(result: BenchResult) -> str:
    """One line: how many of each verdict, how sure, how long."""
    tally = {
        word: sum(entry.verdict == word for entry in result.kernels)
        for word in ("slower", "faster", "same", "undecided")
    }
    counting = sum(result.counts(entry) for entry in result.kernels)
    parts = [f"{count} {word}" for word, count in tally.items()]
    if result.missing:
        parts.append(f"{len(result.missing)} not compared")
    return (
        f"{len(result.kernels)} kernels: {', '.join(parts)}; "
        f"{counting} slower by more than {100 * result.threshold:g} %. "
        f"All that is called slower or faster holds together with {100 * (1 - result.family):g} %. "
        f"{result.launches} launches a side, {result.seconds:.0f} s, load {result.load[0]:g} to {result.load[1]:g}."
    )


# -- the command ------------------------------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Paired timing of the norm kernels in two interpreters."
    parser.epilog = (
        "Verdicts: slower or faster when the whole interval lies beyond the resolution; same within x %; undecided. "
        "A slower kernel counts when its whole interval lies above the threshold. "
        "Exit status: 0 no kernel counts as slower, 1 one does, 2 cannot decide."
    )
    parser.add_argument("old", metavar="OLD", help="a torch version (2.13.0) or a python executable")
    parser.add_argument("new", metavar="NEW", help="the same, for the other side")
    parser.add_argument("--budget", type=float, default=220, metavar="SECONDS",
                        help="stop after so long, ready or not (default 220)")  # fmt: skip
    parser.add_argument("--threshold", type=float, default=5, metavar="PERCENT",
                        help="a kernel counts when its whole interval lies above this (default 5)")  # fmt: skip
    parser.add_argument("--resolution", type=float, default=1, metavar="PERCENT",
                        help="no difference smaller than this is called (default 1)")  # fmt: skip
    parser.add_argument("--kernel", action="append", metavar="GLOB", help="only these, e.g. 'layer_norm/*'; repeatable")
    parser.add_argument("--sizes", default="s,m", help="of s (200 kB), m (1.6 MB), l (26 MB); default s,m")
    parser.add_argument("--device", default="cpu", help="where the kernels run (default cpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw throughput over size, old against new")
    parser.add_argument("--list", action="store_true", help="list the kernels and do nothing else")


def execute(options: argparse.Namespace) -> int:
    chosen = _chosen(options)
    if options.list:
        print("\n".join(kernel.name for kernel in chosen))
        return 0
    for name in ("budget", "threshold", "resolution"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name} {getattr(options, name):g}: must be positive")
    for path in (options.json, options.plot):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}")
    result = compare_kernels(
        _interpreter(options.old), _interpreter(options.new), budget_seconds=options.budget,
        threshold=options.threshold / 100, resolution=options.resolution / 100, kernels=chosen,
        device=options.device, progress=_progress(),
    )  # fmt: skip
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print("\n".join(lines(result)))
    if options.json:
        options.json.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    if options.plot:
        from torch_conformance import plot

        options.plot.write_text(plot.throughput(result.to_json()), encoding="utf-8")
    return result.exit_code


def _chosen(options: argparse.Namespace) -> list[Kernel]:
    sizes = tuple(options.sizes.split(","))
    if unknown := set(sizes) - set(catalogue.SIZES):
        raise UsageError(
            f"--sizes {options.sizes}: no size {sorted(unknown)[0]!r}; there are {', '.join(catalogue.SIZES)}"
        )
    dtypes = ("float32", "bfloat16") if options.device == "cpu" else ("float32", "bfloat16", "float16")
    every = catalogue.catalogue(sizes, dtypes)
    globs = options.kernel or ["*"]
    for glob in globs:
        if not any(fnmatch.fnmatch(kernel.name, glob) for kernel in every):
            raise UsageError(f"--kernel {glob}: matches no kernel; `bench OLD NEW --list` shows them")
    return [kernel for kernel in every if any(fnmatch.fnmatch(kernel.name, glob) for glob in globs)]


def _interpreter(spec: str) -> Path:
    path = Path(spec)
    if os.sep in spec or path.is_file():
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise UsageError(f"{spec}: no such executable; give a torch version (2.13.0) or a python executable")
        return (
            path.absolute()
        )  # not resolved: a virtual environment's python is a link, and knows itself by its own name
    from torch_conformance import environments

    return environments.interpreter(spec)


def _progress() -> Progress | None:
    if not sys.stderr.isatty():
        return None
    started = time.monotonic()

    def show(line: str) -> None:
        print(f"\r\033[K{time.monotonic() - started:4.0f} s  {line}", end="", file=sys.stderr, flush=True)

    return show
