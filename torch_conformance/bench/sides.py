"""The two sides of a comparison: worker processes, and the launch that times a kernel in both by turns."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from torch_conformance.errors import UsageError

WORKER = Path(__file__).with_name("worker.py")
SAMPLE_NS = 300_000
DRAWS = (5, 10)  # at least, at most, until each side's two best agree
AGREE = 1.01
DISTURBED = 1.05
START_SECONDS = 120
REPLY_SECONDS = 60
# glibc otherwise decides, process by process, between reusing an output's memory and mapping it anew at each call:
# a factor of 3 that has nothing to do with torch.
MALLOC = ":".join(
    f"glibc.malloc.{name}"
    for name in ("hugetlb=1", "mmap_threshold=33554432", "trim_threshold=4294967296", "top_pad=67108864")
)


class WorkerFailed(Exception):
    """A worker died, hung, or answered with an error."""


class Side:
    """A worker process: started without waiting, asked by one JSON line, answering by one."""

    def __init__(self, label: str, interpreter: Path, device: str, threads: int, cpus: Sequence[int], scratch: str):
        self.label = label
        command = [str(interpreter), str(WORKER), "--device", device, "--threads", str(threads), "--bytecode", scratch]
        command += ["--cpus", ",".join(map(str, cpus))] if cpus else []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._pending = b""
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                env=worker_environment(threads), bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"{label}: cannot run {interpreter}: {error.strerror}") from error

    def greeting(self) -> dict[str, Any]:
        """What the worker says of itself once torch is imported."""
        return self._reply(START_SECONDS)

    def ready(self) -> bool:
        """Whether torch is imported and the greeting waits to be read; so is a side that died meanwhile."""
        assert self.process.stdout
        return bool(select.select([self.process.stdout], [], [], 0)[0])

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

    def keep_to(self, cpus: Sequence[int]) -> None:
        """Moves every thread of the worker, for torch starts its own; from outside, for it may still be importing."""
        with contextlib.suppress(FileNotFoundError):  # it has died, as the next request will tell
            for thread in os.listdir(f"/proc/{self.process.pid}/task"):
                with contextlib.suppress(ProcessLookupError):  # the thread has ended
                    os.sched_setaffinity(int(thread), cpus)

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
        self, interpreters: tuple[Path, Path], device: str, threads: int, cpus: Sequence[int], scratch: str,
        shuffle: random.Random,
    ):  # fmt: skip
        labels = [("OLD", interpreters[0]), ("NEW", interpreters[1])]
        shuffle.shuffle(labels)
        started: dict[str, Side] = {}
        try:
            for label, interpreter in labels:
                started[label] = Side(label, interpreter, device, threads, cpus, scratch)
        except UsageError:
            for side in started.values():
                side.close()
            raise
        self.sides = (started["OLD"], started["NEW"])
        self.shuffle = shuffle

    def greetings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.sides[0].greeting(), self.sides[1].greeting()

    def ready(self) -> bool:
        return all(side.ready() for side in self.sides)

    def spread(self, cpus: Sequence[int]) -> None:
        """Lets both sides use all of the CPUs, for what is left of importing torch."""
        for side in self.sides if cpus else ():
            side.keep_to(cpus)

    def settle(self, cpus: Sequence[int]) -> int | None:
        """Moves both sides to the CPU, of a few tried, of which most can be had; returns it."""
        if len(cpus) < 1:
            return None
        tried = self.shuffle.sample(list(cpus), min(4, len(cpus)))
        shares = {}
        for cpu in tried:
            self.sides[0].keep_to([cpu])
            shares[cpu] = round(self.sides[0].ask("probe", seconds=0.015)["share"], 1)
        best = max(tried, key=lambda cpu: shares[cpu])
        for side in self.sides:
            side.keep_to([best])
        return best

    def draw(self, name: str, found: Measured, slowdown: float = 0.0) -> None:
        """Builds the kernel anew on both sides and adds two blocks of each, in turns. Raises Missing."""
        for side in self.shuffle.sample(self.sides, 2):
            reply = side.ask("build", kernel=name)
            if "unsupported" in reply:
                raise Missing(side.label, reply["unsupported"])
        if not found.calls:
            rough = max(side.ask("rough")["ns"] for side in self.sides)
            found.calls = max(1, round(SAMPLE_NS / rough))
        first = self.shuffle.randrange(2)
        for turn in (first, 1 - first, 1 - first, first):
            planted = slowdown if turn else 0.0
            (found.old, found.new)[turn].append(
                self.sides[turn].ask("block", calls=found.calls, slowdown=planted)["ns"]
            )

    def close(self) -> None:
        for side in self.sides:
            side.close()


class Missing(Exception):
    """One side lacks the kernel."""

    def __init__(self, label: str, reason: str):
        super().__init__(f"{label}: {reason}")
        self.label = label


@dataclass
class Measured:
    """Block times of one kernel in one launch, in ns a call: two of a draw."""

    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    calls: int = 0

    @property
    def settled(self) -> bool:
        """Whether more draws would hardly find a better best: a rule blind to the other side."""
        least, most = DRAWS
        drawn = len(self.old) // 2
        return drawn >= most or (drawn >= least and agree(self.old) and agree(self.new))

    @property
    def disturbed(self) -> bool:
        """Whether most draws of a side met other work on the machine, so that its best may have met some, too."""
        return any(median(best_of_draws(blocks)) > DISTURBED * min(blocks) for blocks in (self.old, self.new))

    @property
    def log_ratio(self) -> float:
        """A quarter of it from each side's best draw, the rest from the median of the paired draws.

        The first errs where one side alone met a quiet moment or a lucky address, the second where few draws were
        undisturbed; docs/benchmarks.md has the errors of both and of mixtures.
        """
        pairs = [log(new / old) for old, new in zip(best_of_draws(self.old), best_of_draws(self.new), strict=True)]
        return (log(min(self.new) / min(self.old)) + 3 * median(pairs)) / 4


def best_of_draws(blocks: Sequence[float]) -> list[float]:
    return list(map(min, blocks[::2], blocks[1::2]))


def agree(blocks: Sequence[float]) -> bool:
    """Whether the best blocks of two draws, of two blocks each, are alike.

    Blocks of one draw agree in any case, for they share its addresses and its moment.
    """
    best = sorted(best_of_draws(blocks))[:2]
    return best[1] <= AGREE * best[0]


def worker_environment(threads: int) -> dict[str, str]:
    """The environment that both sides run in."""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    inherited = env.get("GLIBC_TUNABLES")
    env["GLIBC_TUNABLES"] = f"{inherited}:{MALLOC}" if inherited else MALLOC
    return env
