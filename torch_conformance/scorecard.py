"""The score card: a tally of a session's cases, and its text at the end of the run."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from torch_conformance import docs
from torch_conformance.outcomes import OUTCOMES
from torch_conformance.settings import Settings

LEAST = 3


class Tally:
    """What became of a session's cases, chapter by chapter. A case that asserts several claims counts once for each."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cases = 0
        self.counts: Counter[str] = Counter()
        self.chapters: dict[str, Counter[str]] = defaultdict(Counter)
        self.outcomes: dict[str, set[str]] = defaultdict(set)
        self.excused: set[str] = set()
        self.nearest: list[tuple[float, str, str]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        outcome = record["outcome"]
        self.cases += 1
        self.counts[outcome] += 1
        self.chapters[record["claim"].partition(".")[0]][outcome] += 1
        self.outcomes[record["claim"]].add(outcome)
        if record.get("deviation"):
            self.excused.add(record["deviation"])
        if outcome == "holds" and record["headroom"]:
            heapq.heappush(self.nearest, (record["headroom"], record["claim"], record["id"]))
            if len(self.nearest) > LEAST:
                heapq.heappop(self.nearest)

    @cached_property
    def drift(self) -> list[tuple[str, str]]:
        """Once the run has ended: claims that ran, and citations whose sentence the documentation no longer has."""
        return [
            (name, f"{cited}#{'|'.join(sorted(prints))}")
            for name in sorted(self.outcomes)
            for cited, prints in self.settings.claims[name].cited.items()
            if self.settings.claims[name].covers(torch.__version__) and not prints & set(docs.cited(cited))
        ]

    def lines(self) -> Iterator[str]:
        """The score card as text."""
        yield from self.provenance()
        yield ""
        yield f"{'chapter':34}{'claims':>8}" + "".join(f"{name:>13}" for name in OUTCOMES)
        for name, chapter in self.settings.chapters.items():
            if name in self.chapters:
                claims = sum(claim.id in self.outcomes for claim in chapter.claims)
                yield self.row(chapter.title, claims, self.chapters[name])
        yield self.row("all", len(self.outcomes), self.counts)
        if self.nearest:
            yield ""
            yield "least headroom (observed error / bound)"
            for headroom, claim, case in sorted(self.nearest, reverse=True):
                yield f"  {headroom:.2f}  {claim}  {case}"

    def provenance(self) -> Iterator[str]:
        settings = self.settings
        for profile in settings.profiles:
            dtypes = [name for name in profile.dtypes if name in settings.dtypes]
            yield f"torch {torch.__version__} on {profile.name} ({profile.description}): {', '.join(dtypes)}"
            yield from (f"  {profile.name} lacks {what}" for what in profile.lacks)
        yield f"via {', '.join(settings.vias)}; seed {settings.seed}; {self.cases} cases of {len(self.outcomes)} claims"

    @staticmethod
    def row(title: str, claims: int, counts: Counter[str]) -> str:
        return f"{title:34}{claims:>8}" + "".join(f"{counts[name] or '-':>13}" for name in OUTCOMES)
