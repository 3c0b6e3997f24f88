"""Deviations: known violations, listed with reason and expiry, and held strictly.

    [[deviation]]
    claim    = "norms.groupnorm.formula"     # exactly one claim
    shows    = "error .* of the bound"       # regex that the violation's message must match
    reason   = "Welford's update is skipped in the vectorised tail."
    observed = "1.3e-3 where 2e-6 is allowed"
    expires  = "2027-06-30"                  # a date, or a torch range: ">=2.17"
    torch    = ">=2.3,<2.15"                 # optional, as is link
    dtype    = "b*float16"                   # optional globs: test, device, kernels, dtype, layout, via, params

A case that an entry matches must be violated, in the way that the entry describes; if it holds, the entry is out of
date and the case is red. An entry that no case matches is an error.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from torch_conformance.claims import tomllib
from torch_conformance.errors import UsageError
from torch_conformance.versions import release

REQUIRED = ("claim", "shows", "reason", "observed", "expires")
GLOBS = ("test", "device", "kernels", "dtype", "layout", "via", "params")
OPTIONAL = ("link", "torch", *GLOBS)


@dataclass(frozen=True)
class Deviation:
    """One entry: which cases it speaks of, what they show, why, and until when."""

    source: str
    claim: str
    shows: str
    reason: str
    observed: str
    expires: str
    link: str | None = None
    torch: SpecifierSet = field(default_factory=SpecifierSet)
    globs: Mapping[str, str] = field(default_factory=dict)

    def speaks_of(self, version: str) -> bool:
        return self.torch.contains(release(version), prereleases=True)

    def matches(self, case: Mapping[str, str]) -> bool:
        """Whether the entry speaks of this case: its facts, of the device its kind, and whose kernels compute."""
        return all(fnmatchcase(case[key], glob) for key, glob in self.globs.items())

    def describes(self, message: str) -> bool:
        return re.search(self.shows, message, re.DOTALL) is not None

    def expired(self, version: str, today: datetime.date) -> bool:
        try:
            return datetime.date.fromisoformat(self.expires) < today
        except ValueError:
            return SpecifierSet(self.expires).contains(release(version), prereleases=True)


def load(path: Path, claims: Iterable[str]) -> list[Deviation]:
    """Read a deviation file. Raises `UsageError` for anything malformed, an unknown claim included."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not readable as TOML: {error}") from None
    entries = table.pop("deviation", [])
    if table or not isinstance(entries, list):
        raise UsageError(f"{path}: holds [[deviation]] tables only")
    known = set(claims)
    return [parse(f"{path.name}, entry {number}", entry, known) for number, entry in enumerate(entries, 1)]


def parse(source: str, entry: Mapping[str, Any], known: set[str]) -> Deviation:
    if missing := [key for key in REQUIRED if not entry.get(key)]:
        raise UsageError(f"{source}: lacks {', '.join(missing)}")
    if unknown := sorted(set(entry) - {*REQUIRED, *OPTIONAL}):
        raise UsageError(f"{source}: unknown keys {', '.join(unknown)}")
    if wrong := sorted(key for key, value in entry.items() if not isinstance(value, str)):
        raise UsageError(f"{source}: {wrong[0]} must be a text")
    if entry["claim"] not in known:
        raise UsageError(f"{source}: no claim named {entry['claim']}")
    try:
        re.compile(entry["shows"])
        versions = SpecifierSet(entry.get("torch", ""))
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", entry["expires"]):
            SpecifierSet(entry["expires"])
    except (re.error, InvalidSpecifier) as error:
        raise UsageError(f"{source}: {error}") from None
    return Deviation(
        source=source,
        claim=entry["claim"],
        shows=entry["shows"],
        reason=entry["reason"],
        observed=entry["observed"],
        expires=entry["expires"],
        link=entry.get("link"),
        torch=versions,
        globs={key: entry[key] for key in GLOBS if key in entry},
    )
