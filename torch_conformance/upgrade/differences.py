"""What differs between two result files, aligned by claim and case and grouped by cause.

The vocabulary: ``regressed``, ``newly-unsupported``, ``headroom-drift``, ``answer`` (a case still holds, but gives
another of the permitted answers or raises another error), ``announced`` (a listed change that lies between the two
versions), ``signature``, ``state-dict-keys``, ``warning``, ``text-drift``, ``removed``, ``added``, ``newly-supported``,
``fixed``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch_conformance.changes import Change
from torch_conformance.claims import Claim
from torch_conformance.errors import UsageError
from torch_conformance.results import OUTCOMES, Case, Identity, ResultFile

KINDS = (
    "regressed",
    "newly-unsupported",
    "headroom-drift",
    "announced",
    "answer",
    "signature",
    "state-dict-keys",
    "warning",
    "text-drift",
    "removed",
    "added",
    "newly-supported",
    "fixed",
)
FATAL = {"regressed", "newly-unsupported"}
GROWTH = 4.0  # an error that grew by less is no news: another order of summation does as much
NEAR = 0.1  # nor is one that is still below a tenth of what a correct implementation may show
AXES = ("device", "dtype", "layout", "via")
PROVENANCE = {"suite": "suite", "seed": "seed", "devices": "devices", "vias": "vias"}
FIGURES = re.compile(r"[-+]?\d[\w.+-]*|\(.*?\)|'.*?'")
Pair = tuple["Case | None", "Case | None"]


class Incomparable(UsageError):
    """Two result files that have no case in common."""


@dataclass(frozen=True)
class Difference:
    """One line of a comparison: a cause, with its extent and the figures of both sides."""

    kind: str
    subject: str
    """The claim, or the public name where no claim is concerned."""
    old: str
    new: str
    says: str | None = None
    cases: int = 0
    of: int = 0
    extent: str = ""
    id: str = ""
    claims: tuple[str, ...] = ()
    change: Change | None = None
    worse: bool = False
    reason: str | None = None
    """Why a difference that looks worse is none: the change that announces it, or the claim's own range."""


@dataclass
class Comparison:
    """Two result files and what differs between them."""

    old: ResultFile
    new: ResultFile
    differences: list[Difference]
    remarks: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    """One entry a kernel, as the paired timing of the gate gives them; empty without one."""

    @property
    def regressed(self) -> list[str]:
        """The claims that got worse, each once."""
        return sorted({d.subject for d in self.differences if d.worse})

    @property
    def slower(self) -> list[str]:
        return [str(kernel["kernel"]) for kernel in self.kernels if kernel["verdict"] == "slower"]

    @property
    def incomplete(self) -> list[str]:
        return [
            f"{side} is incomplete (it ends after {counted(len(file.cases), 'case')})"
            for side, file in (("OLD", self.old), ("NEW", self.new))
            if not file.complete
        ]

    @property
    def verdict(self) -> str:
        worse = [counted(len(self.regressed), "claim")] * bool(self.regressed)
        worse += [counted(len(self.slower), "slower kernel")] * bool(self.slower)
        if self.incomplete:
            so_far = [f"{', '.join(worse)} regressed so far"] if worse else []
            return f"CANNOT DECIDE: {'; '.join([*self.incomplete, *so_far])}"
        if worse:
            return f"REGRESSED: {', '.join(worse)}"
        if self.undecided:
            return f"CANNOT DECIDE: {'; '.join(self.undecided)}"
        return "PASS"

    @property
    def exit(self) -> int:
        return {"PASS": 0, "REGRESSED": 1}.get(self.verdict.partition(":")[0], 2)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def compare(
    old: ResultFile,
    new: ResultFile,
    claims: Mapping[str, Claim],
    changes: Sequence[Change] = (),
    strict_accuracy: bool = False,
) -> Comparison:
    """Everything that differs. Raises `Incomparable` for files without a case in common."""
    pairs = align(old, new)
    if old.cases and new.cases and not any(a and b for a, b in pairs):
        raise Incomparable(f"{old.path} and {new.path} have no case in common: they measured different things")
    between = [change for change in changes if change.lies_between(old.torch, new.torch)]
    same_values = old.header.get("seed") == new.header.get("seed")
    judge = Judge(claims, between, new.torch, strict_accuracy)
    found = [
        *judge.groups(pair for pair in pairs if same_values or kind_of(*pair) != "headroom-drift"),
        *judge.examples(old, new, changes),
        *judge.surfaces(old, new),
        *judge.warnings(old, new),
        *judge.drifts(old, new),
    ]
    unfinished = {"removed": not new.complete, "added": not old.complete}  # not removed: the run did not get there
    found = [difference for difference in found if not unfinished.get(difference.kind)]
    order = {kind: number for number, kind in enumerate(KINDS)}
    found.sort(key=lambda d: (not d.worse, order[d.kind], d.subject, d.extent, d.new))
    return Comparison(old, new, found, remarks(old, new), undecided(old, new, pairs, claims))


# -- alignment ---------------------------------------------------------------------------------------------------------


def align(old: ResultFile, new: ResultFile) -> list[Pair]:
    """Pairs of what is the same case on both sides; one side is None where it has no such case."""
    before, after = by_identity(old.cases), by_identity(new.cases)
    adopt_crashed(before, after)
    adopt_crashed(after, before)
    return [(before.get(identity), after.get(identity)) for identity in {**before, **after}]


def by_identity(cases: Iterable[Case]) -> dict[Identity, Case]:
    """Cases that cannot be told apart count as one, by the worst that was seen of them."""
    found: dict[Identity, Case] = {}
    for case in cases:
        found[case.identity] = max(found.get(case.identity, case), case, key=badness)
    return found


def badness(case: Case) -> tuple[int, float]:
    return OUTCOMES.index(case.outcome), case.headroom or 0.0


def adopt_crashed(crashed: dict[Identity, Case], other: Mapping[Identity, Case]) -> None:
    """Of a case in which the interpreter died only pytest's id is known: find its place by the other side's."""
    places = {(case.claim, case.id): identity for identity, case in other.items()}
    for identity, case in list(crashed.items()):
        place = places.get((case.claim, case.id))
        if case.error == "crash" and place and place not in crashed:
            crashed[place] = replace(crashed.pop(identity), **place._asdict())


# -- what became of one case -------------------------------------------------------------------------------------------


def kind_of(old: Case | None, new: Case | None) -> str | None:
    """The word for what became of a case, or None where nothing did (or nothing can be said of it)."""
    before, after = old.outcome if old else None, new.outcome if new else None
    if "broken" in (before, after):
        return None
    if after == "violated":
        return "regressed" if before != "violated" else None
    if old is None or new is None:
        return "removed" if new is None else "added"
    if after == "deviates":
        return "regressed" if before == "holds" else "newly-supported" if before == "unsupported" else None
    if after == "unsupported":
        return "newly-unsupported" if before != "unsupported" else None
    if before != "holds":
        return "newly-supported" if before == "unsupported" else "fixed"
    if drifted(old, new):
        return "headroom-drift"
    return "answer" if old.seen != new.seen else None


def drifted(old: Case, new: Case) -> bool:
    return (new.headroom or 0.0) > NEAR and (new.headroom or 0.0) >= GROWTH * (old.headroom or 0.0)


def figures(case: Case | None) -> str:
    """The outcome of one side, with what was observed."""
    if case is None:
        return "absent"
    observed = case.message.splitlines()[0] if case.message else ""
    if case.headroom is not None and case.outcome == "holds":
        observed = f"error {case.headroom:.2g} of the bound"
    if case.seen:
        observed = f"{observed}, {case.seen}".lstrip(", ")
    return f"{case.outcome}: {observed}" if observed else case.outcome


def cause(case: Case | None) -> str:
    """The message without its figures, by which cases of one cause are recognised."""
    if case is None:
        return ""
    told = (case.message or case.seen or case.outcome).splitlines()[0]
    return FIGURES.sub("#", told)[:60]


# -- from cases to lines -----------------------------------------------------------------------------------------------


@dataclass
class Judge:
    """Groups what differs, and tells what is worse from what was announced."""

    claims: Mapping[str, Claim]
    between: Sequence[Change]
    torch: str
    strict_accuracy: bool

    def groups(self, pairs: Iterable[Pair]) -> Iterator[Difference]:
        every: dict[str, list[Case]] = defaultdict(list)
        grouped: dict[tuple[str, str, str], list[Pair]] = defaultdict(list)
        for old, new in pairs:
            known = new or old
            assert known is not None
            every[known.claim].append(known)
            if kind := kind_of(old, new):
                told = old if kind in ("fixed", "newly-supported", "removed") else new
                grouped[kind, known.claim, cause(told)].append((old, new))
        for (kind, claim, _), members in grouped.items():
            yield self.group(kind, claim, members, every[claim])

    def group(self, kind: str, claim: str, members: list[Pair], every: list[Case]) -> Difference:
        old, new = max(members, key=gravity)
        change, reason = self.excuse(kind, claim)
        fatal = FATAL | ({"headroom-drift"} if self.strict_accuracy else set())
        held = any(a is None or a.outcome != "violated" for a, _ in members)
        return Difference(
            kind=kind,
            subject=claim,
            old=figures(old),
            new=figures(new),
            says=self.says(claim),
            cases=len(members),
            of=len(every),
            extent=extent([new or old for old, new in members if new or old], every),  # type: ignore[misc]
            id=(new or old).id,  # type: ignore[union-attr]
            claims=(claim,),
            change=change,
            worse=kind in fatal and held and reason is None,
            reason=reason,
        )

    def excuse(self, kind: str, claim: str) -> tuple[Change | None, str | None]:
        """The change that explains the difference, and why it is no regression, if it is none."""
        concerned = sorted((c for c in self.between if c.speaks_of(claim)), key=lambda c: not c.excuses)
        change = concerned[0] if concerned else None
        known = self.claims.get(claim)
        if kind == "newly-unsupported" and known and not known.covers(self.torch):
            return change, f"the claim speaks of torch {known.torch} only"
        return change, "announced" if change and change.excuses else None

    def says(self, claim: str) -> str | None:
        return self.claims[claim].says if claim in self.claims else None

    def examples(self, old: ResultFile, new: ResultFile, changes: Sequence[Change]) -> Iterator[Difference]:
        """Announced changes that lie between the versions, as measured; and what moved without announcement."""
        before, after = surface(old).get("examples", {}), surface(new).get("examples", {})
        for change in changes:
            a, b = before.get(change.id, "not measured"), after.get(change.id, "not measured")
            announced = change in self.between
            unannounced = a != b and "not measured" not in (a, b) and not change.explains(old.torch, new.torch)
            unasked = change.example and a == b == "not measured"  # the runs were narrowed to other claims
            if unasked or not (announced or unannounced):
                continue
            claims = tuple(name for name in self.claims if change.speaks_of(name)) or change.claims
            yield Difference(
                kind="announced" if announced else "regressed",
                subject=claims[0],
                old=a,
                new=b if a != b or not announced else f"{b} (the change was not seen)",
                says=change.what
                if announced
                else f"{self.says(claims[0])} (example {change.id} of the list of changes)",
                claims=claims,
                change=change if announced else None,
                worse=not announced,
            )

    def surfaces(self, old: ResultFile, new: ResultFile) -> Iterator[Difference]:
        before, after = surface(old), surface(new)
        for kind, part in (("signature", "signatures"), ("state-dict-keys", "state_dict_keys")):
            a, b = before.get(part, {}), after.get(part, {})
            for name in sorted(set(a) & set(b)):
                if a[name] != b[name]:
                    gone, come = (a[name], b[name]) if kind == "signature" else keys(a[name], b[name])
                    yield Difference(kind, name, gone, come, claims=self.citing(name))

    def citing(self, name: str) -> tuple[str, ...]:
        """The claims that cite the name, or the class of which it is a method."""
        return tuple(
            claim.id
            for claim in self.claims.values()
            if any(name == cited or name.startswith(f"{cited}.") for cited in claim.cited)
        )

    def warnings(self, old: ResultFile, new: ResultFile) -> Iterator[Difference]:
        """Warnings that the suite's own calls raise in the new torch and did not raise in the old."""
        before, after = warned(old), warned(new)
        claims_of: dict[str, set[str]] = defaultdict(set)
        for case in new.cases:
            claims_of[case.test].add(case.claim)
        for key in sorted(set(after) - set(before)):
            category, _ = key
            notes = after[key]
            claims = tuple(sorted({name for note in notes for name in named(note, claims_of)}))
            subject = claims[0] if claims else category
            message = f"{category}: {notes[0].get('message', '')}"
            yield Difference("warning", subject, "silent", message, claims=claims)

    def drifts(self, old: ResultFile, new: ResultFile) -> Iterator[Difference]:
        """Claims whose cited sentences the documentation of one side has and that of the other has not."""
        before, after = surface(old).get("sentences"), surface(new).get("sentences")
        if before is None or after is None:
            known = {(note.get("claim"), note.get("docs")) for note in old.notes_of("drift")}
            for note in new.notes_of("drift"):
                if (note.get("claim"), note.get("docs")) not in known:
                    name = str(note.get("claim"))
                    yield Difference("text-drift", name, "stated", f"{note.get('docs')}: not there", self.says(name))
            return
        for claim in self.claims.values():
            a, b = stated(claim, before), stated(claim, after)
            if a != b and claim.covers(old.torch) and claim.covers(new.torch):
                yield Difference("text-drift", claim.id, a, b, claim.says, claims=(claim.id,))


def gravity(pair: Pair) -> tuple[float, str]:
    """By what one case stands for its group: the greatest error, and the same case every time."""
    case = pair[1] or pair[0]
    assert case is not None
    return case.headroom or 0.0, case.id


def extent(members: list[Case], every: list[Case]) -> str:
    """What the cases of a group have in common that not all cases of the claim have."""
    parts = []
    for axis in AXES:
        values = {getattr(case, axis) for case in members}
        if values != {getattr(case, axis) for case in every}:
            parts.append(" and ".join(sorted(values)))
    common = set.intersection(*(parameters(case) for case in members))
    of_all = set.intersection(*(parameters(case) for case in every))
    return ", ".join([*parts, *sorted(common - of_all)])


def parameters(case: Case) -> set[str]:
    return set(filter(None, re.split(r",(?=[A-Za-z_]\w*=)", case.params)))


def surface(file: ResultFile) -> dict[str, Any]:
    notes = file.notes_of("surface")
    return notes[-1] if notes else {}


def keys(old: list[str], new: list[str]) -> tuple[str, str]:
    """The keys that only one side has."""
    gone, come = [k for k in old if k not in new], [k for k in new if k not in old]
    if not gone and not come:
        return f"in the order {', '.join(old)}", f"in the order {', '.join(new)}"
    return ", ".join(gone) or "-", ", ".join(come) or "-"


def warned(file: ResultFile) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Warnings by category and message, figures and addresses left out."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for note in file.notes_of("warning"):
        message = re.sub(r"0x[0-9a-f]+|\d+|/\S+", "#", str(note.get("message", "")))
        found[str(note.get("category")), message].append(note)
    return found


def named(note: Mapping[str, Any], claims_of: Mapping[str, set[str]]) -> set[str]:
    return {str(note["claim"])} if note.get("claim") else claims_of.get(str(note.get("test")), set())


def stated(claim: Claim, sentences: Mapping[str, str | None]) -> str:
    """The cited sentences that the documentation has."""
    found = [f"{entry.partition('#')[0]}: {sentences[entry]}" for entry in claim.docs if sentences.get(entry)]
    return " | ".join(found) or "no cited sentence"


# -- what cannot be decided --------------------------------------------------------------------------------------------


def remarks(old: ResultFile, new: ResultFile) -> list[str]:
    """What was not the same on both sides, so that a reader can weigh the rest."""
    found = []
    for key, name in PROVENANCE.items():
        a, b = shown(old.header.get(key)), shown(new.header.get(key))
        if a != b:
            found.append(f"the two runs differ in {name}: {a} and {b}")
    if old.header.get("seed") != new.header.get("seed"):
        found.append("with different seeds the cases see different values, so their accuracy is not compared")
    return found


def shown(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, (dict, list)) else str(value)


def undecided(old: ResultFile, new: ResultFile, pairs: list[Pair], claims: Mapping[str, Claim]) -> list[str]:
    """Why no verdict can be given, beyond a file that is incomplete."""
    found = []
    broken = {case.claim for pair in pairs for case in pair if case and case.outcome == "broken"}
    if broken:
        found.append(f"the suite itself failed in {counted(len(broken), 'claim')} ({', '.join(sorted(broken)[:3])})")
    in_force = {case.claim for case in old.cases if case.claim not in claims or claims[case.claim].covers(new.torch)}
    if unmeasured := in_force - {case.claim for case in new.cases}:
        found.append(f"{counted(len(unmeasured), 'claim')} measured in OLD only ({', '.join(sorted(unmeasured)[:3])})")
    if not old.cases or not new.cases:
        found.append(f"{'OLD' if not old.cases else 'NEW'} holds no case")
    return found
