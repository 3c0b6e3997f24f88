"""A comparison as text for the terminal, as Markdown for a pull request, and as JSON for machines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from torch_conformance.results import ResultFile
from torch_conformance.upgrade.differences import Comparison, Difference, counted

TITLES = {
    "regressed": "regressed",
    "newly-unsupported": "newly unsupported",
    "headroom-drift": "headroom drift: still holds, but the error grew",
    "announced": "changes that lie between the two versions, as measured",
    "answer": "another of the permitted answers",
    "signature": "signatures and defaults",
    "state-dict-keys": "keys of state dicts",
    "warning": "new warnings",
    "text-drift": "the documentation says otherwise",
    "removed": "cases of the old side only",
    "added": "cases of the new side only",
    "newly-supported": "newly supported",
    "fixed": "fixed",
}
BRIEF = {"removed", "added", "newly-supported", "fixed"}
Python = tuple[str, str]


def headline(found: Difference) -> str:
    """The cause with its extent: ``norms.groupnorm.gradient, bfloat16, channels_last: 14 of 60 cases``."""
    name = ", ".join(filter(None, [found.subject, found.extent]))
    cases = f"{found.cases} of {counted(found.of, 'case')}" if found.cases < found.of else counted(found.cases, "case")
    return f"{name}: {cases}" if found.cases else name


def rerun(found: Difference, file: ResultFile, python: str = "python") -> str | None:
    """The command that runs one case of the group again, from a checkout or from the installed package."""
    if not found.id:
        return None
    words = [python, "-m", "torch_conformance", "run", found.id, "--seed", str(file.header.get("seed", 0))]
    for option, values in (("--device", file.header.get("devices", {})), ("--via", file.header.get("vias", []))):
        for value in values if list(values) not in (["cpu"], ["eager"]) else []:
            words += [option, str(value)]
    return shlex.join(words)


def sides(comparison: Comparison) -> tuple[str, str]:
    """How the two sides are called: by their versions, or by their files where the versions are the same."""
    old, new = comparison.old, comparison.new
    return (old.torch, new.torch) if old.torch != new.torch else (f"{old.torch} (old)", f"{new.torch} (new)")


def explained(found: Difference) -> Iterator[tuple[str, str]]:
    """What explains the difference: reason, change and where it is announced, further claims that it concerns."""
    if found.reason and found.reason != "announced":
        yield "reason", found.reason
    if found.change:
        if found.change.what != found.says:
            yield "change", found.change.what
        until = f", until {found.change.until}" if found.change.until else ""
        yield "since", f"torch {found.change.since}{until}"
        if found.change.url:
            yield "where", found.change.url
    if further := [claim for claim in found.claims if claim != found.subject]:
        yield "claims", ", ".join(further[:4]) + (f" and {len(further) - 4} more" if len(further) > 4 else "")


# -- terminal ----------------------------------------------------------------------------------------------------------


def text(comparison: Comparison, python: str = "python") -> str:
    """The comparison for the terminal; the verdict is its last line."""
    old, new = sides(comparison)
    lines = [f"torch {old} -> {new}: {common(comparison)}"]
    lines += [f"note: {remark}" for remark in comparison.remarks]
    for (worse, kind), group in grouped(comparison):
        title = TITLES[kind] if worse or kind != "regressed" else "regressed, as announced"
        members = list(group)
        lines += ["", f"{title} ({len(members)})"]
        for found in members:
            lines += [f"  {headline(found)}"]
            lines += [f"      {line}" for line in body(found, comparison, old, new, python)]
    lines += kernels(comparison)
    return "\n".join([*lines, "", comparison.verdict])


def common(comparison: Comparison) -> str:
    old, new = len(comparison.old.cases), len(comparison.new.cases)
    return counted(old, "case") if old == new else f"{old} and {counted(new, 'case')}"


def grouped(comparison: Comparison) -> Any:
    return groupby(comparison.differences, key=lambda d: (d.worse, d.kind))


def body(found: Difference, comparison: Comparison, old: str, new: str, python: str) -> Iterator[str]:
    if found.says:
        yield found.says
    if found.kind in BRIEF and not found.worse:
        yield f"{found.old} -> {found.new}"
        return
    width = max(len(old), len(new), 6)
    yield f"{old:{width}}  {found.old}"
    yield f"{new:{width}}  {found.new}"
    for label, value in explained(found):
        yield f"{label:{width}}  {value}"
    if command := rerun(found, comparison.new, python):
        yield f"{'rerun':{width}}  {command}"


def kernels(comparison: Comparison) -> list[str]:
    if not comparison.kernels:
        return []
    lines = ["", "norm kernels: meaning, accuracy (least headroom, old -> new), speed (time new / old)"]
    width = max(len(str(k["kernel"])) for k in comparison.kernels)
    for k in comparison.kernels:
        lines.append(f"  {k['kernel']:{width}}  {k['semantics']:10}  {k['accuracy']:16}  {k['speed']}")
    return lines


# -- Markdown ----------------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison, python: str = "python") -> str:
    """The comparison for a pull request or a job summary."""
    old, new = sides(comparison)
    lines = [f"## torch {old} → {new}: {comparison.verdict}", "", f"{common(comparison)}.", ""]
    lines += [f"> {remark}" for remark in [*comparison.incomplete, *comparison.remarks]] + [""]
    for (worse, kind), group in grouped(comparison):
        members = list(group)
        title = TITLES[kind] if worse or kind != "regressed" else "regressed, as announced"
        table = [f"| what | {cell(old)} | {cell(new)} |", "| --- | --- | --- |"]
        table += [row(found, comparison, python) for found in members]
        lines += section(f"{title[0].upper()}{title[1:]} ({len(members)})", table, opened=worse)
    if comparison.kernels:
        table = ["| kernel | meaning | accuracy | speed |", "| --- | --- | --- | --- |"]
        table += [
            f"| `{k['kernel']}` | {k['semantics']} | {cell(k['accuracy'])} | {cell(k['speed'])} |"
            for k in comparison.kernels
        ]
        lines += section("Norm kernels", table, opened=bool(comparison.slower))
    return "\n".join([*lines, f"**{comparison.verdict}**", ""])


def section(title: str, table: list[str], opened: bool) -> list[str]:
    """What got worse stands open; the rest is folded away, so that a pull request stays readable."""
    if opened:
        return [f"### {title}", "", *table, ""]
    return [f"<details><summary>{title}</summary>", "", *table, "", "</details>", ""]


def row(found: Difference, comparison: Comparison, python: str) -> str:
    what = [f"**{cell(headline(found))}**"]
    what += [cell(found.says)] if found.says else []
    what += [f"{label}: {cell(value)}" for label, value in explained(found)]
    if found.worse and (command := rerun(found, comparison.new, python)):
        what.append(f"`{cell(command)}`")
    return f"| {'<br>'.join(what)} | {cell(found.old)} | {cell(found.new)} |"


def cell(value: str) -> str:
    escaped = value.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


# -- JSON --------------------------------------------------------------------------------------------------------------


def document(comparison: Comparison, python: str = "python") -> dict[str, Any]:
    """The comparison as plain data, schema 1."""
    return {
        "schema": 1,
        "verdict": comparison.verdict,
        "exit": comparison.exit,
        "regressed": comparison.regressed,
        "slower": comparison.slower,
        "complete": not comparison.incomplete,
        "remarks": comparison.remarks,
        "undecided": comparison.undecided,
        "old": side(comparison.old),
        "new": side(comparison.new),
        "differences": [entry(found, comparison, python) for found in comparison.differences],
        "kernels": comparison.kernels,
    }


def side(file: ResultFile) -> dict[str, Any]:
    return {"file": str(file.path), "complete": file.complete, "cases": len(file.cases), **file.header}


def entry(found: Difference, comparison: Comparison, python: str) -> dict[str, Any]:
    change = found.change
    return {
        "kind": found.kind,
        "worse": found.worse,
        "subject": found.subject,
        "claims": list(found.claims),
        "says": found.says,
        "cases": found.cases,
        "of": found.of,
        "extent": found.extent,
        "old": found.old,
        "new": found.new,
        "reason": found.reason,
        "rerun": rerun(found, comparison.new, python),
        "change": change and {"id": change.id, "since": change.since, "what": change.what, "url": change.url},
    }
