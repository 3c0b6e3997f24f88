"""How often `torch-conformance bench` is wrong: A/A runs, planted slowdowns, and two saved benchmark files beside it.

    python scripts/bench_power.py --runs 20 --burners 1 --out power.jsonl

Every run compares an interpreter with itself. In every second run some kernels of NEW are slowed by a planted
busy loop of 3, 5, 10 and 20 %; all other kernels are equal by construction, so that each call on them is false.
Results are appended to --out, one line a run, and the table is made of all lines there: an interrupted series
goes on where it stopped. `--naive N` adds N runs of pytest-benchmark, each compared with the one before it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from torch_conformance.bench import kernels  # noqa: E402
from torch_conformance.bench.comparison import compare_kernels  # noqa: E402

PLANTS = (0.03, 0.05, 0.10, 0.20)
LIMIT = 0.05  # of the naive rule: pytest-benchmark's --benchmark-compare-fail=min:5%
BURN = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with its parent
NAIVE = "x1 and not /l/ and float32 and (forward-train or forward-eval) and test_kernel"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the interpreter (default: this one)")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--naive", type=int, default=0, metavar="N", help="runs of pytest-benchmark for contrast")
    parser.add_argument("--plants", type=int, default=2, metavar="N", help="kernels slowed by each amount (default 2)")
    parser.add_argument("--burners", type=int, default=0, metavar="N", help="processes that keep a core busy meanwhile")
    parser.add_argument("--budget", type=float, default=220, metavar="SECONDS", help="of one run (default 220)")
    parser.add_argument("--out", type=Path, default=Path("power.jsonl"))
    options = parser.parse_args()
    with burning(options.burners), options.out.open("a", encoding="utf-8") as out:
        for number in range(options.runs):
            record = compare(options, options.plants if number % 2 else 0)
            out.write(json.dumps(record) + "\n")
            out.flush()
            print(f"run {number + 1} of {options.runs}: {record['seconds']:.0f} s, {record['tally']}", file=sys.stderr)
        for number in range(options.naive):
            out.write(json.dumps({"naive": saved_benchmark(options.python)}) + "\n")
            out.flush()
            print(f"saved benchmark {number + 1} of {options.naive}", file=sys.stderr)
    records = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
    print("\n".join(table(records)))
    return 0


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """Other processes that load a core each."""
    others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def compare(options: argparse.Namespace, plants: int) -> dict[str, object]:
    """One run, with that many kernels slowed by each amount."""
    names = [kernel.name for kernel in kernels.catalogue()]
    planted = dict(zip(random.sample(names, plants * len(PLANTS)), PLANTS * plants, strict=True))
    result = compare_kernels(options.python, options.python, budget_seconds=options.budget, slowdowns=planted)
    found = result.to_json()
    words = [row["verdict"] for row in found["kernels"]]
    return {
        "seconds": found["seconds"], "load": found["load_average"], "launches": found["launches"],
        "burners": options.burners, "exit_code": found["exit_code"],
        "tally": {word: words.count(word) for word in ("slower", "faster", "same", "undecided")},
        "kernels": [
            {**{key: row[key] for key in ("name", "ratio", "low", "high", "coverage", "pairs", "verdict", "counts")},
             "planted": planted.get(row["name"], 0.0)}
            for row in found["kernels"]
        ],
    }  # fmt: skip


def saved_benchmark(python: Path) -> dict[str, float]:
    """What pytest-benchmark saves of one run: the minimum of each kernel, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "saved.json"
        command = [str(python), "-m", "pytest", "-q", "-p", "no:randomly", "test_norms/bench_norms.py"]
        command += ["--benchmark-only", f"--benchmark-json={saved}", "-k", NAIVE, "--device", "cpu"]
        env = dict(os.environ, OMP_NUM_THREADS="1")
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if not saved.exists() or not saved.stat().st_size:
            raise SystemExit(f"pytest-benchmark saved nothing: {done.stdout[-2000:]}")
        return {entry["name"]: entry["stats"]["min"] for entry in json.loads(saved.read_text())["benchmarks"]}


def table(records: list[dict]) -> Iterator[str]:
    """The figures as Markdown."""
    runs = [record for record in records if "kernels" in record]
    naive = [record["naive"] for record in records if "naive" in record]
    ratios = [later[name] / earlier[name] for earlier, later in pairwise(naive) for name in earlier if name in later]
    yield "| | bench OLD NEW | two saved files, min, 5 % |"
    yield "| --- | --- | --- |"
    null = [row for run in runs for row in run["kernels"] if not row["planted"]]
    false = [row for row in null if is_call(row)]
    alarms = [ratio for ratio in ratios if ratio > 1 + LIMIT or ratio < 1 / (1 + LIMIT)]
    rates = part(len(false), len(null)), part(len(alarms), len(ratios))
    yield f"| equal kernels called slower or faster | {rates[0]} | {rates[1]} |"
    wrong = sum(any(is_call(row) and not row["planted"] for row in run["kernels"]) for run in runs)
    yield f"| runs with such a false call | {part(wrong, len(runs))} | |"
    undecided = [row for row in null if row["verdict"] == "undecided"]
    yield f"| equal kernels undecided | {part(len(undecided), len(null))} | |"
    many = sum(run["tally"]["undecided"] > 2 for run in runs)
    yield f"| runs with more than 2 undecided | {part(many, len(runs))} | |"
    for amount in PLANTS:
        rows = [row for run in runs for row in run["kernels"] if row["planted"] == amount]
        called = part(sum(row["verdict"] == "slower" for row in rows), len(rows))
        seen = part(sum(ratio * (1 + amount) > 1 + LIMIT for ratio in ratios), len(ratios))
        yield f"| {amount:.0%} planted, called slower | {called} | {seen} |"
        yield f"| {amount:.0%} planted, counts above 5 % | {part(sum(row['counts'] for row in rows), len(rows))} | |"
    covered = [row for row in null if row["ratio"]]
    inside = sum(row["low"] <= 1 <= row["high"] for row in covered)
    expected = sum(row["coverage"] for row in covered) / max(1, len(covered))
    yield f"| intervals that hold 1 (said: {expected:.1%}) | {part(inside, len(covered))} | |"
    if runs:
        seconds = sorted(run["seconds"] for run in runs)
        loads = sorted(load for run in runs for load in run["load"])
        yield f"| seconds a run, median (worst) | {seconds[len(seconds) // 2]:.0f} ({seconds[-1]:.0f}) | |"
        yield f"| load average, least to most | {loads[0]:g} to {loads[-1]:g} | |"


def is_call(row: dict) -> bool:
    return row["verdict"] in ("slower", "faster")


def part(some: int, whole: int) -> str:
    return f"{some} of {whole}" + (f" ({some / whole:.1%})" if whole else "")


if __name__ == "__main__":
    sys.exit(main())
