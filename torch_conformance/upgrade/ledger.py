"""``ledger``: the committed summary of each torch version, so that a change of torch or of the suite shows in review.

A line a claim: how many of its cases had which outcome, and the greatest error in units of its bound. Outcomes must be
met exactly; errors may differ between processors, so they count as changed only when they drifted.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from torch_conformance import results
from torch_conformance.errors import UsageError
from torch_conformance.results import ResultFile
from torch_conformance.upgrade import compare
from torch_conformance.upgrade.differences import GROWTH, NEAR

LEDGER = Path(__file__).resolve().parents[2] / "results"
Entry = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit status: 0, or 1 when --check finds a difference, 2 for a result file that is not whole."
    parser.add_argument("results", metavar="RESULTS", nargs="+", type=Path, help="result files, or folders of them")
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs from the ledger")
    parser.add_argument("--ledger", metavar="DIR", type=Path, default=LEDGER, help="default: results/ of the checkout")


def execute(options: argparse.Namespace) -> int:
    measured = {release(file): file for file in sorted(load(options.results), key=started)}
    if not measured:
        raise UsageError("no result file of the CPU, run eagerly: tox -e torch2.13 writes one into results-local")
    if options.check:
        return check(measured, options.ledger)
    for version, file in sorted(measured.items(), key=lambda pair: Version(pair[0])):
        options.ledger.mkdir(parents=True, exist_ok=True)
        compare.save(options.ledger / f"{version}.json", render(summary(file)))
        print(f"{options.ledger / version}.json: {len({case.claim for case in file.cases})} claims, from {file.path}")
    return 0


def check(measured: Mapping[str, ResultFile], ledger: Path) -> int:
    differ = False
    for version, file in measured.items():
        found = [*differences(known(ledger, version), summary(file))]
        differ |= bool(found)
        print(f"torch {version}: {f'{len(found)} lines differ from the ledger' if found else 'as listed'}")
        print("".join(f"  {line}\n" for line in found), end="")
    if differ:
        print("If that is intended, run `tox -e ledger` and commit results/ together with its cause.")
    return int(differ)


def load(paths: Iterable[Path]) -> Iterator[ResultFile]:
    """The whole result files about the CPU, run eagerly; others of a folder are left out."""
    for path in paths:
        for name in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
            file = results.read(name)
            if not file.complete:
                raise UsageError(f"{name}: is incomplete; a ledger is made of whole runs")
            if any(str(word).startswith("--claim") for word in file.header.get("flags", {}).get("arguments", [])):
                raise UsageError(f"{name}: is of selected claims (--claim); a ledger is made of whole runs")
            plain = list(file.header.get("devices", {})) == ["cpu"] and file.header.get("vias", ["eager"]) == ["eager"]
            if plain or not path.is_dir():
                yield file


def started(file: ResultFile) -> str:
    return str(file.header.get("started"))


def release(file: ResultFile) -> str:
    """The version without its build: the CPU and the CUDA build share an entry."""
    return Version(file.torch).public


def summary(file: ResultFile) -> Entry:
    """Claim to outcomes and greatest error, and what the examples of the announced changes gave."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    errors: dict[str, float] = {}
    for case in file.cases:
        outcomes[case.claim][case.outcome] += 1
        if case.headroom is not None:
            errors[case.claim] = max(case.headroom, errors.get(case.claim, 0.0))
    surfaces = file.notes_of("surface")
    return {
        "torch": release(file),
        "suite": file.header.get("suite"),
        "seed": file.header.get("seed"),
        "claims": {
            claim: {**dict(sorted(counts.items())), "error": float(f"{errors[claim]:.2g}")}
            if claim in errors
            else dict(sorted(counts.items()))
            for claim, counts in sorted(outcomes.items())
        },
        "examples": dict(sorted(surfaces[-1].get("examples", {}).items())) if surfaces else {},
    }


def render(entry: Entry) -> str:
    """JSON with a line a claim, so that a diff of two commits reads well."""
    lines = [f" {json.dumps(key)}: {json.dumps(entry[key])}," for key in ("torch", "suite", "seed")]
    for part in ("claims", "examples"):
        inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entry[part].items())
        lines.append(f" {json.dumps(part)}: {{\n{inner}\n }}{',' if part == 'claims' else ''}")
    return "{\n" + "\n".join(lines) + "\n}\n"


def known(ledger: Path, version: str) -> Entry:
    """What the ledger holds of a version. Raises `UsageError` where that is nothing, or not readable."""
    path = ledger / f"{version}.json"
    try:
        entry: Entry = json.loads(path.read_text(encoding="utf-8"))
        entry["claims"], entry["examples"]
    except OSError:
        raise UsageError(f"{path}: the ledger holds nothing of torch {version}; `tox -e ledger` writes it") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}: is no ledger entry; `tox -e ledger` writes it anew") from None
    return entry


def differences(old: Entry, new: Entry) -> Iterator[str]:
    """What a reviewer has to know, a line each."""
    for claim in sorted({*old["claims"], *new["claims"]}):
        a, b = old["claims"].get(claim, {}), new["claims"].get(claim, {})
        before, after = ({k: v for k, v in side.items() if k != "error"} for side in (a, b))
        if before != after:
            yield f"{claim}: {told(before)} -> {told(after)}"
        elif b.get("error", 0.0) > NEAR and b.get("error", 0.0) >= GROWTH * a.get("error", 0.0):
            yield f"{claim}: error {a.get('error', 0.0):g} -> {b['error']:g} of the bound"
    for name in sorted({*old["examples"], *new["examples"]}):
        if old["examples"].get(name) != new["examples"].get(name):
            yield f"example {name}: {old['examples'].get(name)} -> {new['examples'].get(name)}"


def told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "absent"
