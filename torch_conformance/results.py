"""Result files: JSON Lines, schema 1, appended as a run goes, so that a run that dies loses nothing it had found.

A file is a header, then cases and notes in any order, then a footer. Without the footer it is *incomplete*: it can be
read, says so, and must never be passed off as whole.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from packaging.version import InvalidVersion, Version

from torch_conformance.errors import UsageError

SCHEMA = 1
OUTCOMES = ("holds", "deviates", "unsupported", "violated", "broken")  # best to worst


class ResultError(UsageError):
    """A result file that cannot be written or read; the message names the file and what is wrong with it."""


class Unwritable(ResultError):
    """The path cannot be written, or the disk is full."""


class Unreadable(ResultError):
    """There is no such file, or it cannot be opened."""


class MissingHeader(ResultError):
    """The file is empty, or its first line is no header."""


class WrongSchema(ResultError):
    """The header is of a schema that this version does not read."""


class ForeignLine(ResultError):
    """A line that no run writes at its place."""


class WrongFooter(ResultError):
    """The footer counts other cases than the file holds: lines were lost or added."""


class Identity(NamedTuple):
    """What makes two cases of two files the same case."""

    claim: str
    test: str
    device: str
    dtype: str
    layout: str
    via: str
    params: str

    def __str__(self) -> str:
        return f"{self.claim}  {self.test}[{self.device}-{self.dtype}-{self.layout}-{self.via}] {self.params}".rstrip()


@dataclass(frozen=True)
class Case:
    """One test at one point of the axes, for one of the claims that it asserts.

    ``seen`` is what the test saw where the claim leaves a choice: the types of the errors raised, the answer given.
    """

    claim: str
    test: str
    device: str
    dtype: str
    layout: str
    via: str
    params: str
    outcome: str
    headroom: float | None = None
    message: str | None = None
    error: str | None = None
    deviation: str | None = None
    seen: str | None = None
    seconds: float = 0.0
    id: str = ""

    @property
    def identity(self) -> Identity:
        return Identity(self.claim, self.test, self.device, self.dtype, self.layout, self.via, self.params)

    @property
    def chapter(self) -> str:
        return self.claim.partition(".")[0]


TEXTS = (*Identity._fields, "outcome")
OPTIONAL_TEXTS = ("message", "error", "deviation", "seen", "id")
KNOWN = {f.name for f in fields(Case)}
HEADER_TYPES: dict[str, type] = {"devices": dict, "flags": dict, "vias": list}
JSON_TYPES: dict[type, str] = {dict: "object", list: "array"}


@dataclass
class ResultFile:
    """What a result file holds. ``notes`` are the lines of every other kind, as they were written."""

    path: Path
    header: dict[str, Any]
    cases: list[Case] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    footer: dict[str, Any] | None = None

    @property
    def complete(self) -> bool:
        return self.footer is not None

    @property
    def torch(self) -> str:
        """The version of torch that was measured."""
        return str(self.header["torch"])

    def notes_of(self, kind: str) -> list[dict[str, Any]]:
        return [note for note in self.notes if note["kind"] == kind]


class Writer:
    """Writes a result file line by line, each line handed to the operating system before the method returns.

    An existing file is replaced only when the header has been written. Raises `Unwritable` where the path cannot be
    written, and later when the disk is full.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.file: BinaryIO | None = None
        try:
            if self.path.is_dir():
                raise IsADirectoryError(0, "is a folder")
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise self.unwritable(error) from None

    def header(self, facts: Mapping[str, Any]) -> None:
        """Begin the file. ``kind`` and ``schema`` are added."""
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        except OSError as error:
            raise self.unwritable(error) from None
        self.file = os.fdopen(descriptor, "wb", buffering=0)
        try:
            self.line({"kind": "header", "schema": SCHEMA, **facts})
            os.chmod(name, 0o666 & ~umask())
            os.replace(name, self.path)
        except BaseException as error:
            self.close()
            os.unlink(name)
            if isinstance(error, OSError):
                raise self.unwritable(error) from None
            raise

    def case(self, record: Mapping[str, Any]) -> None:
        self.line({"kind": "case", **record})

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """A line of another kind, such as ``warning`` or ``surface``; readers keep kinds that they do not know."""
        self.line({"kind": kind, **facts})

    def footer(self, facts: Mapping[str, Any]) -> None:
        """End the file: from now on it is whole."""
        self.line({"kind": "footer", **facts})
        self.close()

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None

    def line(self, record: Mapping[str, Any]) -> None:
        if self.file is None:
            raise ValueError("a result file begins with its header and ends with its footer")
        text = json.dumps({key: portable(value) for key, value in record.items()}, ensure_ascii=False) + "\n"
        pending = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while pending:
                pending = pending[self.file.write(pending) :]
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> Unwritable:
        return Unwritable(f"{self.path}: cannot be written: {error.strerror or error}")


def umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def portable(value: Any) -> Any:
    """JSON knows no infinity and no NaN; they are written as the words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path | str) -> ResultFile:
    """Read a result file, whole or incomplete. Raises a `ResultError` for anything that no run leaves behind."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read: {error.strerror}") from None
    *whole, rest = content.split(b"\n")
    records = [parse(path, number, line) for number, line in enumerate(whole, 1)]
    if rest and (last := tolerate(rest)):
        records.append(last)
    if not records:
        raise MissingHeader(f"{path}: {'ends within its header' if content else 'is empty'}: no run got this far")
    found = ResultFile(path, header_of(path, records[0]))
    for number, record in enumerate(records[1:], 2):
        add(found, number, record)
    if found.footer is not None:
        check_footer(found)
    return found


def parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if isinstance(record, dict) and isinstance(record.get("kind"), str):
        return record
    if number == 1:
        raise MissingHeader(f"{path}: is no result file: it does not begin with a header")
    raise ForeignLine(f"{path}:{number}: is no line of a result file: {shown(line)}")


def shown(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text[:57] + "..." if len(text) > 60 else text or "an empty line"


def tolerate(rest: bytes) -> dict[str, Any] | None:
    """The last line, which has no end: a run may have been killed within it."""
    try:
        record = json.loads(rest)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def header_of(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    if record["kind"] != "header":
        raise MissingHeader(f"{path}: does not begin with a header but with a line of kind {record['kind']!r}")
    if record.get("schema") != SCHEMA:
        raise WrongSchema(f"{path}: is of schema {record.get('schema')!r}; this version reads schema {SCHEMA}")
    try:
        Version(record["torch"])
    except (KeyError, TypeError, InvalidVersion):
        raise MissingHeader(f"{path}: the header does not say which torch was measured") from None
    for key, kind in HEADER_TYPES.items():
        if not isinstance(record.get(key, kind()), kind):
            raise MissingHeader(f"{path}: {key} of the header must be a JSON {JSON_TYPES[kind]}")
    return record


def add(found: ResultFile, number: int, record: dict[str, Any]) -> None:
    def foreign(reason: str) -> ForeignLine:
        return ForeignLine(f"{found.path}:{number}: {reason}")

    if found.footer is not None:
        raise foreign("stands after the footer; were two files joined?")
    kind = record["kind"]
    if kind == "header":
        raise foreign("is a second header; were two files joined?")
    if kind == "footer":
        found.footer = record
    elif kind == "case":
        if wrong := faults(record):
            raise foreign(f"is no case: {wrong}")
        found.cases.append(Case(**{key: value for key, value in record.items() if key in KNOWN}))
    elif kind == "surface" and (part := crooked(record)):
        raise foreign(f"{part} of the surface is not as a run writes it")
    else:
        found.notes.append(record)


def faults(record: Mapping[str, Any]) -> str | None:
    """What keeps the record from being a case, or nothing."""
    for key in TEXTS:
        if not isinstance(record.get(key), str):
            return f"{key} must be a text"
    if record["outcome"] not in OUTCOMES:
        return f"outcome {record['outcome']!r} is unknown"
    for key in OPTIONAL_TEXTS:
        if not isinstance(record.get(key), (str, type(None))):
            return f"{key} must be a text or null"
    headroom = record.get("headroom")
    if headroom is not None and (isinstance(headroom, bool) or not isinstance(headroom, (int, float))):
        return "headroom must be a number or null"
    return None


def crooked(record: Mapping[str, Any]) -> str | None:
    """The part of a surface that no run writes so, or nothing."""
    for part, kind in (("signatures", str), ("examples", str), ("state_dict_keys", list)):
        entries = record.get(part, {})
        if not isinstance(entries, dict) or not all(isinstance(entry, kind) for entry in entries.values()):
            return part
        if not all(isinstance(word, str) for entry in entries.values() for word in entry):
            return part
    return None


def check_footer(found: ResultFile) -> None:
    assert found.footer is not None
    stated = found.footer.get("cases")
    if stated != len(found.cases):
        raise WrongFooter(f"{found.path}: the footer counts {stated} cases, the file holds {len(found.cases)}")
    counts, told = Counter(case.outcome for case in found.cases), found.footer.get("counts") or {}
    if not isinstance(told, dict) or {k: v for k, v in told.items() if v} != dict(counts):
        raise WrongFooter(f"{found.path}: the footer's counts of outcomes are not those of the file's cases")


def worst(outcomes: Iterable[str]) -> str:
    """The worst of the outcomes, by which a claim is judged that has several cases."""
    return max(outcomes, key=OUTCOMES.index)
