"""``explain``: one claim as a lesson."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterator

from torch_conformance import claims, docs, mutation, sources
from torch_conformance.errors import UsageError
from torch_conformance.settings import ROOT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="a claim's id, as `torch-conformance claims` lists them")


def execute(options: argparse.Namespace) -> int:
    known = claims.by_id(claims.load([ROOT / "specs"]))
    if options.id not in known:
        near = difflib.get_close_matches(options.id, known, 3, 0.4)
        raise UsageError(f"no claim named {options.id!r}" + (f"; do you mean {', '.join(near)}?" if near else ""))
    print("\n".join(lesson(known[options.id])))
    return 0


def lesson(claim: claims.Claim) -> Iterator[str]:
    """The lines of the lesson: sentence, law, installed documentation, test, mutants, how to run it."""
    yield f"{claim.id}   {claim.level}, torch {claim.torch or 'any'}"
    if claim.belief:
        yield from section("Many believe", claim.belief)
        yield from section("In truth", claim.says)
    else:
        yield from section("The claim", claim.says)
    if claim.law:
        yield from section("The law", claim.law)
    for name, prints in claim.cited.items():
        found = [docs.cited(name)[p] for p in sorted(prints) if p in docs.cited(name)]
        yield from section(f"The installed {name} says", *(found or ["(no longer in these words: text drift)"]))
    if claim.url:
        yield from section("Stated at", claim.url)
    for test in sources.tests(ROOT):
        if claim.id in test.claims:
            yield f"\nThe test, {test.path.relative_to(ROOT)}"
            yield textwrap.indent(test.text, "    ")
    for wrong in mutation.load().values():
        if claim.id in wrong.claims:
            yield from section(f"The wrong torch that it refuses, {wrong.id}", wrong.resembles)
    yield from section("Run it", f"python -m torch_conformance run --claim {claim.id}")


def section(title: str, *texts: str) -> Iterator[str]:
    yield f"\n{title}"
    for text in texts:
        yield textwrap.indent(textwrap.fill(text, 100), "    ")
