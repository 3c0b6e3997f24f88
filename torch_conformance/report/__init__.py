"""``report``: result files as a static HTML score card, a page a file and an index; viewing it needs no network."""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_conformance import claims, results
from torch_conformance.claims import Chapter, Claim
from torch_conformance.errors import UsageError
from torch_conformance.results import OUTCOMES, Case, ResultFile
from torch_conformance.upgrade import compare

PLACE = Path(__file__).parent
MOST_REASONS = 4


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Needs jinja2. A result file is written by `torch-conformance run --results FILE`."
    parser.add_argument("results", metavar="RESULTS", nargs="+", type=Path, help="result files, one column each")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for index.html and its pages")
    parser.add_argument(
        "--specs", metavar="DIR", type=Path, action="append", default=[], help="repeatable; further folders of claims"
    )


def execute(options: argparse.Namespace) -> int:
    try:
        import jinja2
    except ImportError:
        raise UsageError("the report needs jinja2: pip install jinja2") from None
    files = [results.read(path) for path in options.results]
    chapters = claims.load([compare.SPECS, *options.specs])
    columns = [*named(files)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PLACE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {options.out}: cannot be made: {error.strerror}") from None
    index = environment.get_template("index.html.j2").render(
        columns=columns, chapters=[*card(chapters, columns)], outcomes=OUTCOMES
    )
    compare.save(options.out / "index.html", index)
    for column in columns:
        page = environment.get_template("page.html.j2").render(
            column=column, chapters=[*card(chapters, [column])], outcomes=OUTCOMES
        )
        compare.save(options.out / column.page, page)
    print(f"{options.out / 'index.html'}: {', '.join(column.name for column in columns)}")
    return 0


class Column:
    """One result file: its name on the page, and its cases by claim."""

    def __init__(self, name: str, file: ResultFile) -> None:
        self.name = name
        self.page = f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}.html"
        self.file = file
        self.counts = Counter(case.outcome for case in file.cases)
        self.cases: dict[str, list[Case]] = defaultdict(list)
        for case in file.cases:
            self.cases[case.claim].append(case)
        surfaces = file.notes_of("surface")
        self.sentences: dict[str, str | None] = surfaces[-1].get("sentences", {}) if surfaces else {}

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def devices(self) -> str:
        return ", ".join(self.file.header.get("devices", {}))

    @property
    def vias(self) -> str:
        return ", ".join(self.file.header.get("vias", []))


def named(files: list[ResultFile]) -> Iterator[Column]:
    """Columns named by version, and by file too where that is not enough."""
    versions = Counter(file.torch for file in files)
    seen: Counter[str] = Counter()
    for file in files:
        name = file.torch if versions[file.torch] == 1 else f"{file.torch} {file.path.stem}"
        seen[name] += 1
        yield Column(name if seen[name] == 1 else f"{name} {seen[name]}", file)


@dataclass(frozen=True)
class Cell:
    """What became of one claim in one result file."""

    outcome: str
    cases: int
    error: float | None
    reasons: tuple[tuple[str, str, int], ...]
    """Outcome, message and number of cases, of whatever did not plainly hold."""
    sentences: tuple[tuple[str, str], ...]
    """The object and its sentence, of the documentation that was installed."""


def card(chapters: dict[str, Chapter], columns: list[Column]) -> Iterator[dict[str, Any]]:
    """Chapter by chapter, the claims with a cell a column; claims that no column ran are left out."""
    listed = {claim.id for chapter in chapters.values() for claim in chapter.claims}
    for chapter in chapters.values():
        rows = [(claim, [cell(claim, column) for column in columns]) for claim in chapter.claims]
        if rows := [row for row in rows if any(row[1])]:
            yield {"name": chapter.name, "title": chapter.title, "rows": rows}
    strangers = sorted({name for column in columns for name in column.cases} - listed)
    if strangers:
        made = [Claim(name, "(no claim file at hand lists this claim)", "must") for name in strangers]
        rows = [(claim, [cell(claim, column) for column in columns]) for claim in made]
        yield {"name": "others", "title": "Other claims", "rows": rows}


def cell(claim: Claim, column: Column) -> Cell | None:
    cases = column.cases.get(claim.id)
    if not cases:
        return None
    errors = [case.headroom for case in cases if case.headroom is not None]
    told = Counter((case.outcome, first_line(case)) for case in cases if case.outcome != "holds")
    cited = [(entry.partition("#")[0], column.sentences.get(entry)) for entry in claim.docs]
    decided = [case.outcome for case in cases if case.outcome != "unsupported"]
    return Cell(
        outcome=results.worst(decided or ["unsupported"]),
        cases=len(cases),
        error=max(errors, default=None),
        reasons=tuple((o, m, n) for (o, m), n in told.most_common(MOST_REASONS)),
        sentences=tuple((name, text) for name, text in cited if text),
    )


def first_line(case: Case) -> str:
    return (case.message or "").splitlines()[0] if case.message else ""
