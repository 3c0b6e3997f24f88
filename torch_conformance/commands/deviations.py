"""``deviations``: write the entries for what is violated now, ready to be explained."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from torch_conformance import results
from torch_conformance.commands import run
from torch_conformance.errors import UsageError
from torch_conformance.results import Case

AXES = ("device", "via", "dtype", "layout", "params")
LIFETIME = datetime.timedelta(days=180)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "torch-conformance deviations --update FILE [--results RESULTS] [-- pytest arguments]"
    parser.add_argument("--update", metavar="FILE", type=Path, required=True, help="the deviation file to append to")
    parser.add_argument("--results", metavar="RESULTS", type=Path, help="a result file; without it the suite is run")
    parser.add_argument("arguments", nargs="*", help="for the run, as in: -- --backend torch_npu --device npu")
    parser.epilog = (
        "What the file lists already is left as it stands. Each new entry covers exactly the cases that are violated; "
        "its reason waits for you. Exit status: 0 written (or nothing to write), 2 bad input."
    )


def execute(options: argparse.Namespace) -> int:
    cases = results.read(options.results).cases if options.results else fresh(options)
    entries = list(blocks(cases))
    try:
        with options.update.open("a", encoding="utf-8") as out:
            out.write("".join(entries))
    except OSError as error:
        raise UsageError(f"--update {options.update}: cannot be written: {error.strerror}") from None
    print(f"{len(entries)} entries added to {options.update}: put the reason into each")
    return 0


def fresh(options: argparse.Namespace) -> list[Case]:
    """The cases of a run made now, in which what the file lists already deviates and is not listed again."""
    listed = ["--deviations", str(options.update)] if options.update.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        options.arguments = ["-q", *listed, "--results", str(path), *options.arguments]
        if run.execute(options) not in (0, 1):
            raise UsageError("the suite could not be run, so nothing was written")
        return list(results.read(path).cases)


def blocks(cases: Iterable[Case]) -> Iterator[str]:
    """The entries as TOML, one for each largest set of cases of a test that are all violated."""
    ordered = sorted(cases, key=lambda case: (case.claim, case.test))
    for (claim, test), group in groupby(ordered, key=lambda case: (case.claim, case.test)):
        for fixed, covered in cover(list(group), {}, AXES):
            yield block(claim, {"test": test, **fixed}, covered)


def cover(
    cases: list[Case], fixed: dict[str, str], axes: tuple[str, ...]
) -> Iterator[tuple[dict[str, str], list[Case]]]:
    """Split along one axis after the other until the cases of a part are violated all or none."""
    judged = [case for case in cases if case.outcome in ("holds", "violated")]
    violated = [case for case in judged if case.outcome == "violated"]
    if not violated:
        return
    if len(violated) == len(judged) or not axes:
        yield fixed, violated
        return
    axis, *rest = axes
    for value in dict.fromkeys(getattr(case, axis) for case in judged):
        part = [case for case in judged if getattr(case, axis) == value]
        narrowed = fixed if len(part) == len(judged) else {**fixed, axis: glob(value)}
        yield from cover(part, narrowed, tuple(rest))


def glob(value: str) -> str:
    """A glob that matches this text alone."""
    return re.sub(r"([*?[])", r"[\1]", value)


def block(claim: str, globs: Mapping[str, str], cases: list[Case]) -> str:
    message = (cases[0].message or "").splitlines()[0]
    table = {
        "claim": claim,
        **globs,
        "shows": shape(message),
        "observed": message,
        "reason": "not explained yet",
        "expires": str(datetime.date.today() + LIFETIME),
    }
    return "\n[[deviation]]\n" + "".join(f"{key:8} = {json.dumps(value)}\n" for key, value in table.items())


def shape(message: str) -> str:
    """A regex for violations of this kind: the words before the first figure."""
    return re.escape(re.split(r"[\d(\[]", message, maxsplit=1)[0].strip()) or "."
