"""The steps of `tox -e check`, in two lanes side by side: the tests of the machine, and all else that must be in order.

python .ci/check.py results-local/check.jsonl

Each line of output names its step. A lane ends with its first failure; the exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Step = tuple[str, list[str]]


def lanes(results: str) -> list[list[Step]]:
    quietly = ["-q", "-p", "no:randomly"]
    return [
        [("selftest", ["pytest", "selftest", *quietly, "-n", "logical", "--maxprocesses", "4", "--dist", "worksteal"])],
        [
            ("lint", ["ruff", "check", "."]),
            ("types", ["mypy"]),
            ("suite", ["pytest", *quietly, f"--results={results}"]),
            ("ledger", ["torch_conformance", "ledger", "--check", results]),
        ],
    ]


def run_lane(steps: list[Step]) -> bool:
    return all(run(*step) for step in steps)


def run(name: str, arguments: list[str]) -> bool:
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            print(f"{name:>8} | {line}", end="", flush=True)
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FILE", help="where the suite leaves its result file")
    options = parser.parse_args()
    options.results.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        return 0 if all(pool.map(run_lane, lanes(str(options.results)))) else 1


if __name__ == "__main__":
    sys.exit(main())
