"""``claims``: every claim of the specification, as a list for people or as JSON for programs."""

from __future__ import annotations

import argparse
import json
import textwrap
from fnmatch import fnmatchcase

from torch_conformance import claims
from torch_conformance.settings import ROOT


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="GLOB", help="only these ids, as in 'dropout.*'")
    parser.add_argument("--json", action="store_true", help="a list of objects, one a claim")


def execute(options: argparse.Namespace) -> int:
    chapters = claims.load([ROOT / "specs"])
    chosen = claims.select(claims.by_id(chapters), [options.pattern])
    if options.json:
        print(json.dumps([as_json(c) for c in claims.by_id(chapters).values() if c.id in chosen], indent=1))
        return 0
    for chapter in chapters.values():
        listed = [claim for claim in chapter.claims if fnmatchcase(claim.id, options.pattern)]
        if listed:
            print(f"\n{chapter.title} ({len(listed)})")
        for claim in listed:
            print(f"  {claim.id}  {claim.level}  torch {claim.torch or 'any'}{'  retired' * bool(claim.retired)}")
            print(textwrap.indent(textwrap.fill(claim.says, 100), "      "))
    return 0


def as_json(claim: claims.Claim) -> dict[str, object]:
    return {
        "id": claim.id,
        "level": claim.level,
        "torch": str(claim.torch),
        "says": claim.says,
        "law": claim.law,
        "belief": claim.belief,
        "docs": list(claim.docs),
        "url": claim.url,
        "retired": claim.retired,
    }
