"""Announced changes of torch between versions, from ``specs/changes.toml``: what tells an intention from a regression.

A change may carry an example, a few statements whose last expression shows it. Every run evaluates the examples in the
interpreter that it measures, so that a comparison states what both sides really do, not what a list says of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from torch_conformance.claims import tomllib
from torch_conformance.errors import UsageError
from torch_conformance.versions import release

CHANGES = Path(__file__).resolve().parent.parent / "specs" / "changes.toml"
KEYS = {"claims", "since", "until", "also", "what", "url", "excuses", "example"}


class ChangeError(UsageError):
    """A list of changes that breaks the rules."""


@dataclass(frozen=True)
class Change:
    """Something that torch does otherwise since a release.

    ``until`` is the release in which the old behaviour came back, ``also`` names releases in which what the example
    shows moves for other reasons (a name appears, a message is reworded). A change is shown beside what it
    concerns; it excuses a violation only with ``excuses``, which needs ``url``, where it is announced.
    """

    id: str
    claims: tuple[str, ...]
    since: str
    what: str
    until: str | None = None
    url: str | None = None
    excuses: bool = False
    example: str | None = None
    also: tuple[str, ...] = ()

    def lies_between(self, old: str, new: str) -> bool:
        """Whether exactly one of the two versions of torch shows the change."""
        return self.shown_by(old) != self.shown_by(new)

    def explains(self, old: str, new: str) -> bool:
        """Whether what the example shows may differ between the two versions."""
        low, high = sorted((release(old), release(new)))
        moves = [self.since, *self.also, *([self.until] if self.until else [])]
        return any(low < Version(moved) <= high for moved in moves)

    def shown_by(self, version: str) -> bool:
        return Version(self.since) <= release(version) and (
            self.until is None or release(version) < Version(self.until)
        )

    def speaks_of(self, claim: str) -> bool:
        return any(fnmatchcase(claim, pattern) for pattern in self.claims)


@cache
def load(path: Path = CHANGES) -> tuple[Change, ...]:
    """Every change of the list, in its order. Raises `ChangeError` for anything malformed."""
    if not path.exists():
        return ()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ChangeError(f"{path}: not readable as TOML: {error}") from None
    return tuple(parse(path, name, entry) for name, entry in table.items())


def parse(path: Path, name: str, entry: Any) -> Change:
    def refuse(rule: str) -> ChangeError:
        return ChangeError(f"{path}: [{name}] {rule}")

    if not isinstance(entry, dict):
        raise refuse("is no change: write it as a table")
    if unknown := sorted(set(entry) - KEYS):
        raise refuse(f"has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}")
    if missing := sorted({"claims", "since", "what"} - set(entry)):
        raise refuse(f"lacks {missing[0]}")
    if entry.get("excuses") not in (None, True) or (entry.get("excuses") and not entry.get("url")):
        raise refuse("excuses must be true, and needs url: where the change is announced")
    try:
        for version in (entry["since"], entry.get("until", "0"), *entry.get("also", [])):
            Version(version)
        if entry.get("example"):
            compile(entry["example"], name, "exec")
    except (InvalidVersion, SyntaxError, TypeError) as error:
        raise refuse(str(error)) from None
    rest = {key: entry[key] for key in KEYS - {"claims", "also"} if key in entry}
    return Change(name, tuple(entry["claims"]), also=tuple(entry.get("also", ())), **rest)
