"""``compare``: two result files, and what got worse, better or otherwise between them."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from torch_conformance import changes, claims, results
from torch_conformance.errors import UsageError
from torch_conformance.upgrade import differences, wording

SPECS = Path(__file__).resolve().parents[2] / "specs"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status: 0 nothing got worse, 1 something did, 2 cannot compare. "
        "A result file is written by `torch-conformance run --results FILE`."
    )
    parser.add_argument("old", metavar="OLD", type=Path, help="result file of the torch in use")
    parser.add_argument("new", metavar="NEW", type=Path, help="result file of the torch to move to")
    outputs(parser)
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write it for a pull request or a job summary")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write it for machines")


def outputs(parser: argparse.ArgumentParser) -> None:
    """The options that the gate shares."""
    parser.add_argument("--strict-accuracy", action="store_true", help="headroom drift counts as regressed")
    help = "repeatable; further folders of claim files"
    parser.add_argument("--specs", metavar="DIR", type=Path, action="append", default=[], help=help)


def execute(options: argparse.Namespace) -> int:
    comparison = of_files(options.old, options.new, options.specs, options.strict_accuracy)
    if options.json:
        save(options.json, json.dumps(wording.document(comparison), indent=1, ensure_ascii=False) + "\n")
    if options.markdown:
        save(options.markdown, wording.markdown(comparison))
    print(wording.text(comparison))
    return comparison.exit


def of_files(
    old: Path, new: Path, specs: list[Path] | None = None, strict_accuracy: bool = False
) -> differences.Comparison:
    """Compare two result files. Raises `UsageError` where they cannot be read or have nothing in common."""
    known = claims.by_id(claims.load([SPECS, *(specs or [])]))
    return differences.compare(results.read(old), results.read(new), known, changes.load(), strict_accuracy)


def save(path: Path, content: str) -> None:
    """Write the file whole or not at all. Raises `UsageError` where it cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
