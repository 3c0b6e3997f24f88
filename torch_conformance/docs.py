"""The installed documentation: sentences of docstrings, and fingerprints that say whether a sentence still stands."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from functools import cache
from typing import Any

ROLE = re.compile(r":[\w:+.-]+:`(?:~|!)?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
FENCE = re.compile(r"^\s*(>>>|\.\.\.|::|\.\. )")
ENDS = re.compile(r"(?<=[.!?])[)\]`*_\"']*\s+(?=[\"'(\[`*:]*[A-Z0-9:`*])")
ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|etc|vs|cf|al|Eq|Fig|resp|approx|w\.r\.t)\.$", re.IGNORECASE)


def resolve(name: str) -> Any:
    """The object with this dotted name. Raises `LookupError` if the installed torch has none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            break
        return found
    raise LookupError(f"the installed torch has no object named {name}")


def normalise(text: str) -> str:
    """The sentence with single blanks and without reST roles, as fingerprints are taken of it."""
    return " ".join(ROLE.sub(r"\1", text).replace("``", "`").split())


def fingerprint(sentence: str) -> str:
    return hashlib.sha256(normalise(sentence).encode()).hexdigest()[:10]


def sentences(docstring: str) -> list[str]:
    """Sentences in reading order; headings, code and directives come out as sentences of their own."""
    found: list[str] = []
    for paragraph in paragraphs(inspect.cleandoc(docstring)):
        pending = ""
        for piece in ENDS.split(normalise(paragraph)):
            pending = f"{pending} {piece}".strip()
            if not ABBREVIATIONS.search(pending):
                found.append(pending)
                pending = ""
        if pending:
            found.append(pending)
    return found


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, split where a list item, an argument or a code line begins."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        starts = re.match(r"\s*([-*+] |\d+\. |\w+ ?(\([^)]*\))?: |>>>|\.\. )", line)
        if not line.strip() or starts:
            blocks.append([])
        if line.strip():
            blocks[-1].append(line)
    return [" ".join(block) for block in blocks if block]


@cache
def cited(name: str) -> dict[str, str]:
    """Fingerprint to sentence, for the docstring of the named object (and of its __init__)."""
    try:
        found = resolve(name)
    except LookupError:
        return {}
    texts = [getattr(found, "__doc__", None)]
    if inspect.isclass(found):
        texts.append(found.__init__.__doc__)
    return {fingerprint(s): s for text in texts if text for s in sentences(text)}
