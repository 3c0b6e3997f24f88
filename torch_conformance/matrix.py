"""``mutants``: the kill matrix. Every wrong torch is run against the tests of its claims, in a process of its own.

Torch is imported and the suite collected once; each mutant then gets a fork, so that one that crashes or hangs costs
only itself, and none can leave a trace in another.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_conformance import mutation
from torch_conformance.axes import Axes
from torch_conformance.errors import UsageError
from torch_conformance.mutation import Mutant
from torch_conformance.settings import ROOT

ITSELF = f"torch {torch.__version__}"
BASELINE = Mutant("", (), "Torch as it is.", lambda patch: None)


@dataclass
class Trial:
    """What became of the tests under one mutant.

    killed, survived, crashed or hung; not-applicable: this torch is built otherwise; elsewhere: the claims that the
    mutant names cannot be tested here, for they speak of other versions or devices.
    """

    mutant: str
    claims: tuple[str, ...]
    status: str = "survived"
    detail: str | None = None
    red: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)
    deviating: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        if record["outcome"] != "unsupported" and record["claim"] not in self.judged:
            self.judged.append(record["claim"])
        if record["outcome"] == "deviates" and record["claim"] not in self.deviating:
            self.deviating.append(record["claim"])
        if record["outcome"] == "violated":
            self.red.setdefault(record["claim"], []).append(record["id"])
        elif record["outcome"] == "broken":
            self.broken.append(record["id"])

    def conclude(self, baseline: Trial) -> None:
        """Only what torch as it is does not show counts as a kill, and each claim that can be tested must kill."""
        for claim in list(self.red):
            self.red[claim] = [case for case in self.red[claim] if case not in baseline.red.get(claim, ())]
        testable = [claim for claim in self.claims if claim in baseline.judged]
        spared = [claim for claim in testable if not self.red.get(claim)]
        if not testable and self.status in ("survived", "not-applicable"):
            self.status = "elsewhere"
        elif self.status == "survived" and not spared:
            self.status = "killed"
        elif self.status == "survived":
            self.detail = f"not seen by {', '.join(spared)}"


class Forks:
    """Runs trials in forked children, several at a time, and reads what they report line by line."""

    def __init__(self, run: Any, jobs: int, timeout: float) -> None:
        self.run = run
        self.jobs = jobs
        self.timeout = timeout

    def trials(self, mutants: Iterable[Mutant]) -> Iterator[Trial]:
        waiting, selector = iter(mutants), selectors.DefaultSelector()
        running: dict[int, tuple[Trial, float, bytearray]] = {}
        exhausted = False
        while running or not exhausted:
            while len(running) < self.jobs and not exhausted:
                mutant = next(waiting, None)
                if mutant is None:
                    exhausted = True
                    break
                pid, pipe = self.start(mutant)
                running[pid] = (Trial(mutant.id, mutant.claims), time.monotonic(), bytearray())
                selector.register(pipe, selectors.EVENT_READ, pid)
            for key, _ in selector.select(timeout=0.2):
                data = os.read(key.fd, 1 << 16)
                running[key.data][2].extend(data)
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    yield self.finish(key.data, *running.pop(key.data))
            for pid, (trial, started, _) in running.items():
                if time.monotonic() - started > self.timeout:
                    trial.status, trial.detail = "hung", f"no end within {self.timeout:g} s"
                    os.kill(pid, signal.SIGKILL)

    def start(self, mutant: Mutant) -> tuple[int, int]:
        reader, writer = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            os.close(writer)
            return pid, reader
        status = 1
        try:
            os.close(reader)
            silence()
            with os.fdopen(writer, "w") as out:

                def emit(line: Mapping[str, Any]) -> None:
                    print(json.dumps(line), file=out, flush=True)

                try:
                    self.run(mutant, emit)
                    status = 0
                except BaseException as error:
                    emit({"status": "crashed", "detail": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(status)

    def finish(self, pid: int, trial: Trial, started: float, text: bytearray) -> Trial:
        _, status = os.waitpid(pid, 0)
        for line in text.decode().splitlines():
            message = json.loads(line)
            if "status" in message:
                trial.status, trial.detail = message["status"], message["detail"]
            else:
                trial.add(message)
        if os.WIFSIGNALED(status) and trial.status != "hung":
            trial.status, trial.detail = "crashed", f"signal {os.WTERMSIG(status)}"
        trial.seconds = round(time.monotonic() - started, 3)
        return trial


def silence() -> None:
    """A child speaks through its pipe alone."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(null, stream)


class KillMatrix:
    """A pytest plugin that takes the place of the run: it hands the collected tests to one fork a mutant."""

    def __init__(self, options: argparse.Namespace, mutants: list[Mutant]) -> None:
        self.options = options
        self.mutants = mutants
        self.trials: list[Trial] = []
        self.baseline = Trial("", ())
        self.emit: Any = None
        self.items: dict[str, list[pytest.Item]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.items = [item for item in session.items if stands_alone(item)]
        for item in session.items:
            for mark in item.iter_markers("claim"):
                for name in mark.args:
                    self.items[name].append(item)
        self.session = session
        forks = Forks(self.run, self.options.jobs, self.options.timeout)
        (self.baseline,) = forks.trials([BASELINE])
        for trial in forks.trials(self.mutants):
            trial.conclude(self.baseline)
            self.trials.append(trial)
            progress(len(self.trials), len(self.mutants), trial)
        return True

    def run(self, mutant: Mutant, emit: Any) -> None:
        """In the child: apply the mutant, run the tests, report every case."""
        config = self.session.config
        self.emit = emit
        chosen = self.session.items if self.options.all or mutant is BASELINE else self.tests_of(mutant)
        try:
            undo = mutant.apply()
        except mutation.NotApplicable as error:
            emit({"status": "not-applicable", "detail": str(error)})
            return
        with undo:
            for place, item in enumerate(chosen, 1):
                config.hook.pytest_runtest_protocol(item=item, nextitem=chosen[place] if chosen[place:] else None)

    def tests_of(self, mutant: Mutant) -> list[pytest.Item]:
        return list(dict.fromkeys(item for name in mutant.claims for item in self.items[name]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        for record in getattr(report, "conformance", ()):
            self.emit({key: record[key] for key in ("claim", "id", "outcome")})


def stands_alone(item: Any) -> bool:
    """Whether the case is eager, or of a test that eager cannot express: other vias would only repeat."""
    mark = item.get_closest_marker("axes")
    return (
        item.callspec.params["case"].via == "eager" or "eager" not in Axes.declared(**mark.kwargs if mark else {}).via
    )


def progress(done: int, total: int, trial: Trial) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{done}/{total}  {trial.mutant}: {trial.status}", end="", file=sys.stderr, flush=True)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="*", metavar="GLOB", help="only these mutants, as in 'dropout.*'")
    parser.add_argument("--list", action="store_true", help="name the mutants and the claims that must kill them")
    parser.add_argument("--all", action="store_true", help="run every test against every mutant: shows cross kills")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the matrix for programs")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=120, help="a mutant's time (default 120)")
    parser.epilog = "Exit status: 0 every mutant is killed and every claim has a killer, 1 not so, 2 bad input."


def execute(options: argparse.Namespace) -> int:
    known = mutation.load()
    patterns = options.pattern or ["*"]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"no mutant matches {pattern!r}; --list names them")
    chosen = [m for name, m in known.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.id}\n    kills: {', '.join(mutant.claims)}\n    {mutant.resembles}")
        return 0
    if not hasattr(os, "fork"):
        raise UsageError("the kill matrix needs a system that can fork")
    if options.json:
        writable(options.json)
    matrix = KillMatrix(options, chosen)
    arguments = [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", "-p", "no:randomly"]
    arguments += [f"--via={name}" for name in ("eager", "aot", "export")]
    if not options.all and options.pattern:
        for name in sorted({claim for mutant in chosen for claim in mutant.claims}):
            arguments += ["--claim", name]
    status = pytest.main([*arguments, "-p", "no:cacheprovider", "-p", "no:terminal"], plugins=[matrix])
    if not matrix.trials:
        raise UsageError(f"the suite could not be collected (pytest's exit status {int(status)})")
    if matrix.baseline.status == "crashed":
        raise UsageError(f"the suite crashes without any mutant: {matrix.baseline.detail}")
    for case in sorted({case for cases in matrix.baseline.red.values() for case in cases}):
        print(f"red without any mutant  {case}: it counts for no kill")
    return conclude(matrix.trials, options, matrix.baseline)


def writable(path: Path) -> None:
    try:
        path.write_text("")
    except OSError as error:
        raise UsageError(f"--json {path}: cannot be written: {error.strerror}") from None


def conclude(trials: list[Trial], options: argparse.Namespace, baseline: Trial) -> int:
    """Print the matrix in short, name what is wrong, write the JSON, and return the exit status.

    Of a claim that torch as it is violates, torch itself is a killer.
    """
    from torch_conformance import claims

    listed = claims.by_id(claims.load([ROOT / "specs"]))
    in_force = [name for name, claim in listed.items() if not claim.retired and name in baseline.judged]
    elsewhere = [name for name, claim in listed.items() if not claim.retired and name not in baseline.judged]
    killers: dict[str, list[str]] = defaultdict(list)
    named = {name for trial in trials for name in trial.claims}
    for name in baseline.deviating:
        if name in named or not options.pattern:
            killers[name].append(ITSELF)
    for trial in trials:
        for name in trial.claims:
            if trial.red.get(name):
                killers[name].append(trial.mutant)
    whole = not options.pattern
    bare = [name for name in in_force if not killers[name]] if whole else []
    unknown = sorted(named - listed.keys())
    failed = [trial for trial in trials if trial.status not in ("killed", "elsewhere")]
    for line in summary(trials, killers, in_force if whole else list(killers)):
        print(line)
    if whole and elsewhere:
        print(f"not testable on this torch and device ({len(elsewhere)}): {', '.join(elsewhere)}")
    for trial in failed:
        print(f"{trial.status}  {trial.mutant}: {trial.detail or 'no test turned red'}")
    for name in bare:
        print(f"no killer  {name}: add to mutants/{name.partition('.')[0]}.py a wrong torch that its tests refuse")
    for name in unknown:
        print(f"unknown claim  {name}: named by a mutant, in no claim file")
    if options.json:
        table = {
            "claims": {name: killers[name] for name in (in_force if whole else killers)},
            "mutants": [asdict(trial) for trial in trials],
            "survivors": [trial.mutant for trial in failed],
            "without_killer": bare,
            "not_testable_here": elsewhere if whole else [],
        }
        options.json.write_text(json.dumps(table, indent=1), encoding="utf-8")
    return int(bool(failed or bare or unknown))


def summary(trials: list[Trial], killers: Mapping[str, list[str]], claims: list[str]) -> Iterator[str]:
    """A line a chapter, and what the kills say about the tests themselves."""
    chapters = list(dict.fromkeys(name.partition(".")[0] for name in claims))
    yield f"\n{'chapter':16}{'claims':>8}{'killed':>8}{'mutants':>9}{'a claim':>9}"
    for chapter in chapters:
        inside = [name for name in claims if name.partition(".")[0] == chapter]
        mutants = {mutant for name in inside for mutant in killers[name] if mutant != ITSELF}
        killed = sum(bool(killers[name]) for name in inside)
        yield f"{chapter:16}{len(inside):>8}{killed:>8}{len(mutants):>9}{len(mutants) / len(inside):>9.2f}"
    counts = Counter(trial.status for trial in trials)
    if itself := sum(ITSELF in names for names in killers.values()):
        yield f"{itself} claims are violated by {ITSELF} itself (deviations.toml): their tests can fail"
    yield f"{len(trials)} mutants: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())
    lone = [t.mutant for t in trials if t.status == "killed" and sum(map(len, t.red.values())) == 1]
    if lone:
        yield f"killed by one case alone ({len(lone)}): {', '.join(lone)}"
    seen: Counter[str] = Counter(name for trial in trials for name, cases in trial.red.items() if cases)
    telling_nothing = [name for name, count in seen.items() if len(trials) > 20 and count > len(trials) / 2]
    if telling_nothing:
        yield f"red under more than half of all mutants, so their red tells little: {', '.join(telling_nothing)}"
