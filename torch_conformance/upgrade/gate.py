"""``gate OLD NEW``: may one move from this torch to that one? The suite in both, side by side, and a verdict."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_conformance import results
from torch_conformance.errors import UsageError
from torch_conformance.upgrade import compare, differences, environments, wording
from torch_conformance.upgrade.environments import Environment

ROOT = Path(__file__).resolve().parents[2]
MOST_RESTARTS = 1000  # every crash costs one case; a torch that crashes in more than these is no candidate
EPILOG = """
OLD and NEW are a torch version (2.13.0, or 2.13 for the newest of it), a wheel, or a python executable that has torch.
Versions are installed once and kept under the user's cache folder ($TORCH_CONFORMANCE_CACHE names another); an
executable is taken as it is and never written to. UV_TORCH_BACKEND=cpu takes the CPU builds.

The last line is the verdict: PASS (exit status 0), REGRESSED: ... (1) or CANNOT DECIDE: ... (2).
--out receives gate.json, gate.md, old.jsonl and new.jsonl.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("old", metavar="OLD", help="the torch in use")
    parser.add_argument("new", metavar="NEW", help="the torch to move to")
    default = Path("results-local/gate")
    parser.add_argument("--out", metavar="DIR", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--claim", metavar="GLOB", action="append", default=[], help="repeatable; only these claims")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="default 0")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=1800, help="of the suite, default 1800")
    help = "for timing the norm kernels, default 120; 0 leaves it out"
    parser.add_argument("--kernel-budget", metavar="SECONDS", type=float, default=120, help=help)
    compare.outputs(parser)


def execute(options: argparse.Namespace) -> int:
    out = folder(options.out)
    for number in ("timeout", "kernel_budget"):
        if getattr(options, number) < 0:
            raise UsageError(f"--{number.replace('_', '-')} {getattr(options, number):g}: must not be negative")
    progress = Progress()
    try:
        with progress:
            pair = [environments.prepare(spec, progress.say) for spec in (options.old, options.new)]
    except KeyboardInterrupt:
        return conclude_without(out, "interrupted while the environments were built")
    except environments.NoEnvironment as error:
        write_without(out, f"CANNOT DECIDE: {error}")
        raise
    sides = [Side(name, found, out / f"{name}.jsonl") for name, found in zip(("old", "new"), pair, strict=True)]
    stopped = measure(sides, options, progress)
    refused = [reason for side in sides if (reason := side.refusal())]
    if refused:
        return conclude_without(out, "; ".join(refused))
    comparison = compare.of_files(sides[0].results, sides[1].results, options.specs, options.strict_accuracy)
    comparison.remarks += [remark for side in sides for remark in side.remarks()]
    if stopped:
        comparison.remarks.append(stopped)
    elif options.kernel_budget and not comparison.incomplete:
        time_kernels(comparison, sides, options, progress)
    return conclude(comparison, out, sides[1].environment)


def folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be made: {error.strerror}") from None
    for name in ("gate.json", "gate.md", "old.jsonl", "new.jsonl"):  # nothing of an earlier run may stand for this one
        with contextlib.suppress(FileNotFoundError):
            (path / name).unlink()
    return path


# -- running the suite -------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One interpreter, the suite running in it, and what it has written so far."""

    name: str
    environment: Environment
    results: Path
    process: subprocess.Popen[bytes] | None = None
    read: int = field(default=0, repr=False)
    cases: int = 0
    stopped: bool = False

    @property
    def log(self) -> Path:
        return self.results.with_suffix(".log")

    def start(self, options: argparse.Namespace) -> None:
        words = [str(self.environment.python), "-m", "pytest", f"--rootdir={ROOT}"]
        words += [f"--config-file={ROOT / 'pyproject.toml'}", "-q", "--tb=line", "-p", "no:cacheprovider"]
        words += [f"--results={self.results.absolute()}", f"--seed={options.seed}"]
        words += [f"--claim={glob}" for glob in options.claim]
        if self.environment.survives_crashes:
            words += ["-p", "xdist.plugin", "-n", "1", f"--max-worker-restart={MOST_RESTARTS}"]
        variables = self.environment.variables() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End the run and its worker; what it has written stays, and is incomplete."""
        if self.process is None:
            return
        self.stopped = True
        for signalled, patience in ((signal.SIGTERM, 5.0), (getattr(signal, "SIGKILL", signal.SIGTERM), 5.0)):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signalled) if hasattr(os, "killpg") else self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                return

    def count(self) -> str:
        """How far the run is, from what it has written."""
        with contextlib.suppress(OSError), self.results.open("rb") as written:
            written.seek(self.read)
            content = written.read()
            self.read += len(content)
            self.cases += content.count(b'{"kind": "case"')
        return f"{self.name} {self.environment.torch}: {self.cases} cases"

    def refusal(self) -> str | None:
        """Why the run left no result file at all, in its own words."""
        if self.results.exists():
            return None
        said = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        told = re.findall(r"^ERROR: (?!usage:)(.*)$|error: (.*)$|^\w*(?:Error|Exception): (.*)$", said, re.M)
        line = next((part for match in told for part in match if part), environments.last_line(said))
        return f"{self.name.upper()} (torch {self.environment.torch}) did not run: {line or 'interrupted'}"

    def remarks(self) -> Iterator[str]:
        """What a reader should know of how the run went."""
        if not self.environment.survives_crashes:
            yield f"{self.name.upper()} lacks pytest-xdist: a crash of torch would have ended its run"
        if self.process and not self.stopped and self.process.returncode not in (0, 1):
            yield f"{self.name.upper()}: pytest ended with status {self.process.returncode}; {self.log} says why"


def measure(sides: list[Side], options: argparse.Namespace, progress: Progress) -> str | None:
    """Run the suite in all interpreters at once. Returns why it was stopped before its end, if it was."""
    started = time.monotonic()
    stopped = None
    try:
        with progress:
            for side in sides:
                side.start(options)
            while any(side.running for side in sides):
                progress.say("   ".join(side.count() for side in sides))
                if time.monotonic() - started > options.timeout:
                    stopped = f"stopped after {options.timeout:g} s (--timeout)"
                    break
                time.sleep(0.2)
    except KeyboardInterrupt:
        stopped = "interrupted"
    finally:
        for side in sides:
            if side.running:
                side.stop()
    return stopped


class Progress:
    """One line that is overwritten, on a terminal; a line now and then elsewhere, so that a log shows life."""

    EVERY = 15.0

    def __init__(self) -> None:
        self.is_terminal = sys.stderr.isatty()
        self.started = time.monotonic()
        self.told = self.started

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self.is_terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        now = time.monotonic()
        text = f"{now - self.started:4.0f} s  {line}"[:118]
        if self.is_terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif now - self.told >= self.EVERY:
            self.told = now
            print(text, file=sys.stderr, flush=True)


# -- the kernels -------------------------------------------------------------------------------------------------------


def time_kernels(
    comparison: differences.Comparison, sides: list[Side], options: argparse.Namespace, progress: Progress
) -> None:
    """Join the paired timing of the norm kernels: meaning, accuracy and speed of each on one line."""
    old, new = (side.environment.python for side in sides)
    if old == new:
        comparison.remarks.append("one interpreter on both sides: the kernels are not timed against themselves")
        return
    try:
        from torch_conformance.bench.comparison import compare_kernels

        with progress:
            timed = compare_kernels(old, new, budget_seconds=options.kernel_budget, progress=progress.say)
    except KeyboardInterrupt:
        comparison.remarks.append("interrupted while the kernels were timed: no verdict on speed")
        return
    except (ImportError, UsageError, OSError) as error:
        comparison.remarks.append(f"the kernels were not timed: {error}")
        return
    comparison.remarks += timed.warnings
    comparison.kernels = [*kernel_lines(timed.to_json(), comparison)]


def kernel_lines(timed: dict[str, Any], comparison: differences.Comparison) -> Iterator[dict[str, Any]]:
    for row in timed["kernels"]:
        yield {
            "kernel": row["name"],
            "verdict": "slower" if row["counts"] else "undecided" if row["verdict"] == "undecided" else "same",
            "semantics": semantics(row["norm"], comparison),
            "accuracy": accuracy(row["norm"], row["dtype"], comparison),
            "speed": speed(row),
            **{key: row[key] for key in ("ratio", "low", "high", "pairs", "old_microseconds", "new_microseconds")},
        }
    for entry in timed["missing"]:
        yield {
            "kernel": entry["name"], "verdict": "not compared", "semantics": "-", "accuracy": "-",
            "speed": f"not compared: {entry['reason']}",
        }  # fmt: skip


def concerns(norm: str, case: results.Case) -> bool:
    """Whether the case is about this norm, by its claim, its test or its parameters."""
    text = re.sub(r"[-_]", "", f"{case.claim} {case.test} {case.params}".lower())
    return norm.replace("_", "") in text


def semantics(norm: str, comparison: differences.Comparison) -> str:
    worse = set(comparison.regressed)
    concerned = [case for case in comparison.new.cases if concerns(norm, case)]
    if any(case.claim in worse and case.outcome != "holds" for case in concerned):
        return "regressed"
    return "holds" if any(case.outcome == "holds" for case in concerned) else "no case"


def accuracy(norm: str, dtype: str, comparison: differences.Comparison) -> str:
    """The greatest error of either side, in units of its bound."""
    greatest = []
    for file in (comparison.old, comparison.new):
        cases = [case for case in file.cases if case.dtype == dtype and concerns(norm, case)]
        errors = [case.headroom for case in cases if case.headroom is not None]
        violated = any(case.outcome == "violated" for case in cases)
        greatest.append("violated" if violated else f"{max(errors):.2g}" if errors else "-")
    return " -> ".join(greatest)


def speed(row: dict[str, Any]) -> str:
    if row["ratio"] is None:
        return f"undecided: {row['note'] or 'not measured'}"
    return f"{row['verdict']}: {row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f}, {row['pairs']} pairs)"


# -- the end -----------------------------------------------------------------------------------------------------------


def conclude(comparison: differences.Comparison, out: Path, new: Environment) -> int:
    """Write what was found and print it; the verdict comes last."""
    python = str(new.python)
    document = json.dumps(wording.document(comparison, python), indent=1, ensure_ascii=False)
    compare.save(out / "gate.json", document + "\n")
    compare.save(out / "gate.md", wording.markdown(comparison, python))
    found = wording.text(comparison, python)
    body, _, verdict = found.rpartition("\n")
    print(f"{body.rstrip()}\n\nwritten to {out}: gate.md, gate.json, old.jsonl, new.jsonl\n{verdict}", flush=True)
    return comparison.exit


def conclude_without(out: Path, reason: str) -> int:
    """The end of a gate that has nothing to compare."""
    verdict = f"CANNOT DECIDE: {reason}"
    write_without(out, verdict)
    print(verdict, flush=True)
    return 2


def write_without(out: Path, verdict: str) -> None:
    document = {"schema": 1, "verdict": verdict, "exit": 2, "complete": False, "differences": [], "kernels": []}
    compare.save(out / "gate.json", json.dumps(document, indent=1) + "\n")
    compare.save(out / "gate.md", f"## {verdict}\n")
