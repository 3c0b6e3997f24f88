"""Claims: the sentences of the specification, loaded from ``specs/*.toml`` and validated.

A claim's id is ``chapter.topic.detail``: the name of its file, then its table. Loading refuses everything that
the rules do not allow, so that a typing error in a claim file can never make a claim vanish.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from torch_conformance.errors import UsageError
from torch_conformance.versions import release

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: pytest brings tomli along
    import tomli as tomllib  # type: ignore[no-redef, import-not-found]

__all__ = ["Chapter", "Claim", "ClaimError", "by_id", "load", "select", "tomllib"]

LEVELS = ("must", "may", "myth")
KEYS = {"says", "law", "level", "docs", "url", "torch", "belief", "retired"}
TOPIC = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
DOCS = re.compile(r"[A-Za-z_][\w.]*#[0-9a-f]{10}")
NOT_CHAPTERS = {"changes"}


class ClaimError(UsageError):
    """A claim file that breaks the rules; the message names the file, the claim and the rule."""


@dataclass(frozen=True)
class Claim:
    """One falsifiable sentence about what torch does."""

    id: str
    says: str
    level: str
    law: str | None = None
    belief: str | None = None
    docs: tuple[str, ...] = ()
    url: str | None = None
    torch: SpecifierSet = field(default_factory=SpecifierSet)
    retired: str | None = None

    @property
    def chapter(self) -> str:
        return self.id.partition(".")[0]

    def covers(self, version: str) -> bool:
        """Whether the claim speaks of this torch; a nightly counts as the release that it leads to."""
        return self.torch.contains(release(version), prereleases=True)

    @property
    def cited(self) -> dict[str, set[str]]:
        """Object name to the fingerprints of the sentences that state the claim there."""
        cited: dict[str, set[str]] = {}
        for entry in self.docs:
            name, _, fingerprint = entry.partition("#")
            cited.setdefault(name, set()).add(fingerprint)
        return cited


@dataclass(frozen=True)
class Chapter:
    """One claim file: a title and its claims, in the order in which they read."""

    name: str
    path: Path
    title: str
    claims: tuple[Claim, ...]


def load(folders: Iterable[Path]) -> dict[str, Chapter]:
    """Read every claim file of the folders. Raises `ClaimError` for anything malformed."""
    chapters: dict[str, Chapter] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ClaimError(f"no folder of claim files at {folder}")
        for path in sorted(folder.glob("*.toml")):
            if path.stem in NOT_CHAPTERS:
                continue
            if path.stem in chapters:
                raise ClaimError(f"{path}: a chapter named {path.stem!r} is loaded already")
            chapters[path.stem] = load_chapter(path)
    return chapters


def load_chapter(path: Path) -> Chapter:
    try:
        return read_chapter(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ClaimError(f"{path}: not readable as TOML: {error}") from None


@functools.cache
def read_chapter(path: Path, text: str) -> Chapter:
    table = tomllib.loads(text)
    title = table.pop("title", None)
    if not isinstance(title, str) or not title.strip():
        raise ClaimError(f"{path}: needs a title")
    claims = tuple(parse(path, topic, entry) for topic, entry in table.items())
    if not claims:
        raise ClaimError(f"{path}: holds no claim")
    return Chapter(path.stem, path, title, claims)


def parse(path: Path, topic: str, entry: Any) -> Claim:
    def refuse(rule: str) -> ClaimError:
        return ClaimError(f"{path}: [{topic!r}] {rule}")

    if not isinstance(entry, Mapping):
        raise refuse("is no claim: write it as a table")
    if not TOPIC.fullmatch(topic):
        raise refuse('is no id: lower case, digits, "-" and "." only, in quotes')
    if unknown := sorted(set(entry) - KEYS):
        raise refuse(f"has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}")
    texts = {key: value for key, value in entry.items() if key != "docs"}
    if wrong := sorted(key for key, value in texts.items() if not isinstance(value, str) or not value.strip()):
        raise refuse(f"{wrong[0]} must be a text")
    if "says" not in entry:
        raise refuse("lacks says: the sentence that the tests assert")
    if entry.get("level") not in LEVELS:
        raise refuse(f"level must be one of {', '.join(LEVELS)}")
    if (entry["level"] == "myth") != ("belief" in entry):
        raise refuse('belief and level = "myth" go together: belief is what is false, says the truth')
    docs = entry.get("docs", [])
    if not isinstance(docs, list) or any(not isinstance(d, str) or not DOCS.fullmatch(d) for d in docs):
        raise refuse("docs must be a list of object#fingerprint, ten hex digits each (see the cite command)")
    try:
        versions = SpecifierSet(entry.get("torch", ""))
    except InvalidSpecifier:
        raise refuse(f'torch = {entry["torch"]!r} is no version range such as ">=2.4"') from None
    return Claim(
        id=f"{path.stem}.{topic}",
        says=entry["says"],
        level=entry["level"],
        law=entry.get("law"),
        belief=entry.get("belief"),
        docs=tuple(docs),
        url=entry.get("url"),
        torch=versions,
        retired=entry.get("retired"),
    )


def by_id(chapters: Mapping[str, Chapter]) -> dict[str, Claim]:
    return {claim.id: claim for chapter in chapters.values() for claim in chapter.claims}


def select(claims: Mapping[str, Claim], patterns: Iterable[str]) -> set[str]:
    """Ids that match any of the globs. Raises `UsageError` for a glob that matches none."""
    selected: set[str] = set()
    for pattern in patterns:
        matches = {name for name in claims if fnmatchcase(name, pattern)}
        if not matches:
            raise UsageError(f"no claim matches {pattern!r}; `torch-conformance claims` lists them")
        selected |= matches
    return selected
