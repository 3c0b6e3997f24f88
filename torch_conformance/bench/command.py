"""`torch-conformance bench`: its options, and the table that a person reads."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch_conformance.bench import kernels as catalogue
from torch_conformance.bench.comparison import BenchResult, Progress, compare_kernels
from torch_conformance.bench.kernels import Kernel
from torch_conformance.errors import UsageError


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
        from torch_conformance.bench import plot

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
    from torch_conformance.upgrade import environments

    return environments.interpreter(spec)


def _progress() -> Progress | None:
    if not sys.stderr.isatty():
        return None
    started = time.monotonic()

    def show(line: str) -> None:
        print(f"\r\033[K{time.monotonic() - started:4.0f} s  {line}", end="", file=sys.stderr, flush=True)

    return show
