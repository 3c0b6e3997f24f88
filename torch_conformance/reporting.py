"""Reporting: the verdict on each case, the result file, and the score card at the end."""

from __future__ import annotations

import datetime
import linecache
import shlex
import sys
import time
import traceback
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_conformance import outcomes, results, sources, surface
from torch_conformance.axes import COSTLY, LAYOUTS, VIAS
from torch_conformance.collecting import claims_here, is_whole
from torch_conformance.items import CASE, FOUND, arguments, claims_of, facts_of
from torch_conformance.outcomes import Outcome
from torch_conformance.scorecard import Tally
from torch_conformance.settings import REPEATABLE, Settings

LETTERS = {"violated": "V", "deviates": "d", "unsupported": "u", "broken": "B"}
PLUGIN = "torch_conformance.plugin"


class Reporting:
    """The hooks by which pytest reports."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.claims = settings.claims
        self.is_worker = hasattr(config, "workerinput")
        self.writer: results.Writer | None = None
        if config.option.results and not self.is_worker:
            self.writer = results.Writer(config.option.results)
            self.writer.header(settings.header())
        self.tally = Tally(settings)
        self.started = time.perf_counter()
        self.unmatched: list[str] = []

    # -- the verdict on a case ---------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        if claims_of(item) and call.excinfo is not None and self.config.getoption("verbose", 0) < 2:
            vars(item)["repr_failure"] = brief  # a traceback costs more than a hundred cases
        report: Any = yield
        ends = call.when == "call" or (call.when == "setup" and call.excinfo is not None)
        if claims_of(item) and (ends or call.excinfo is not None):
            self.conclude(item, call, report)
        return report

    def conclude(self, item: Any, call: pytest.CallInfo[None], report: Any) -> None:
        """Turn pytest's report into the verdict on the case, and attach the lines of the result file."""
        found = item.stash.get(FOUND, None)
        item = found.item if found else item
        made = item.stash.get(CASE, None)
        if self.settings.replacements and not (made and made.replaced):
            report.outcome, report.unconcerned, report.longrepr = "passed", True, None
            if call.when == "setup":  # a setup that passed would let the test run
                report.outcome, report.longrepr = "skipped", (str(item.path), 0, "Skipped: not for this torch")
            return
        outcome = outcomes.judge(call.excinfo.value if call.excinfo else None, item.callspec.params["case"])
        facts = facts_of(item)
        outcome, excuse = self.excuse(outcome, claims_of(item), facts)
        shared = {
            "message": outcome.message,
            "error": outcome.error,
            "deviation": excuse,
            "seen": ", ".join(made.seen) or None if made else None,
            "seconds": round(call.duration, 6),
            "id": item.nodeid,
        }
        headroom = made.headroom if made and outcome.name in ("holds", "violated") else None
        self.attach(report, claims_of(item), outcome, {"headroom": headroom, **shared}, facts)
        if outcome.name == "unsupported":
            report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {outcome.message}")
        if report.outcome == "failed" and (outcome.name == "violated" or call.when == "call"):
            trace = type(item).repr_failure(item, call.excinfo) if outcome.name == "broken" else report.longrepr
            report.longrepr = f"{self.explain(item, call, outcome, found)}\n{trace}".rstrip()
        if call.excinfo and facts["device"] != "cpu" and not self.config.getoption("usepdb", False):
            traceback.clear_frames(call.excinfo.tb)  # memory or unfinished work of this case must not fall to the next

    def attach(
        self, report: Any, names: list[str], outcome: Outcome, shared: dict[str, Any], facts: dict[str, str]
    ) -> None:
        """Give pytest's report the outcome, and a line of the result file for each claim."""
        report.outcome = {"holds": "passed", "violated": "failed", "broken": "failed"}.get(outcome.name, "skipped")
        if outcome.name == "deviates":
            report.wasxfail = shared["deviation"]
        covered = self.settings.covered
        report.conformance = [
            {"claim": name, **facts, "outcome": outcome.name if name in covered else "unsupported", **shared}
            for name in names
        ]

    def excuse(self, outcome: Outcome, names: list[str], facts: dict[str, str]) -> tuple[Outcome, str | None]:
        """A listed deviation that shows as described excuses a violation; one that does not is a violation."""
        entry = self.settings.deviation_of(names, facts)
        if entry is None or outcome.name == "broken" or (outcome.name == "holds" and self.settings.replacements):
            return outcome, None  # what stands in for torch's need not have its faults
        if outcome.name == "unsupported":  # so that the entry is not held for one without a case
            return outcome, entry.source
        message = outcome.message or ""
        if entry.expired(torch.__version__, datetime.date.today()):
            wrong = f"{entry.source} has expired ({entry.expires}); {message}"
        elif outcome.name == "holds":
            wrong = f"{entry.source} no longer shows: remove it or narrow it"
        elif not entry.describes(message):
            wrong = f"not as {entry.source} describes: {message}"
        else:
            return Outcome("deviates", f"{entry.reason} ({message})"), entry.source
        return Outcome("violated", wrong, outcome.error), entry.source

    def explain(self, item: Any, call: pytest.CallInfo[None], outcome: Outcome, found: Any) -> str:
        """What a red case prints: claim, law, figures, place, and the command that runs just this case again."""
        lines = [f"{outcome.name}  {item.nodeid}"]
        for name in claims_of(item):
            claim = self.claims[name]
            lines += [f"claim     {name} ({claim.level})", f"says      {claim.says}"]
            lines += [f"law       {claim.law}"] * bool(claim.law)
        observed = (outcome.message or "").replace("\n", "\n          ")
        lines += [f"observed  {observed}", f"where     {place(call, item)}"]
        lines += [f"rerun     {self.rerun(item.nodeid, found)}"]
        return "\n".join(lines)

    def rerun(self, nodeid: Any, found: Any) -> str:
        """A command that can be pasted, and runs just this case as it ran here."""
        chosen = self.config.option
        here = str(self.config.cwd_relative_nodeid(nodeid))
        words: list[str] = [sys.executable, "-m", "pytest", here]
        words += arguments(found.seed, found.given) if found else arguments(chosen.seed, self.settings.given)
        for name in REPEATABLE:
            for value in getattr(chosen, name):
                words += [f"--{name}", str(value)]
        if PLUGIN in self.config.invocation_params.args:
            words += ["-p", PLUGIN]
        if chosen.threads != 1:
            words += ["--threads", str(chosen.threads)]
        if chosen.mutant:
            words += ["--mutant", chosen.mutant]
        return shlex.join(words)

    # -- what becomes of it ------------------------------------------------------------------------------------------

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        name = report.conformance[0]["outcome"] if getattr(report, "conformance", None) else None
        if getattr(report, "unconcerned", False):
            return "unconcerned", "", ""
        if name not in LETTERS:
            return None
        return ("failed" if report.failed else name, LETTERS[name], name.upper())

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, report: Any) -> None:
        """A case in which the interpreter died is violated, or deviates where that is listed."""
        names, facts = of_a_crash(report.nodeid, self.config.rootpath)
        outcome, excuse = self.excuse(Outcome("violated", "the interpreter crashed", "crash"), names, facts)
        shared = {
            "headroom": None,
            "message": outcome.message,
            "error": "crash",
            "deviation": excuse,
            "seen": None,
            "seconds": 0.0,
            "id": report.nodeid,
        }
        self.attach(report, names, outcome, shared, facts)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.is_worker:
            return
        for record in getattr(report, "conformance", ()):
            self.tally.add(record)
            if self.writer:
                try:
                    self.writer.case(record)
                except results.Unwritable as error:
                    pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        kind = warning_message.category
        if self.writer and issubclass(kind, (DeprecationWarning, FutureWarning, PendingDeprecationWarning)):
            message = str(warning_message.message).splitlines()
            test = nodeid.partition("[")[0]
            self.writer.note("warning", {"test": test, "category": kind.__name__, "message": (message or [""])[0]})

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.is_worker:
            return
        if self.settings.replacements and not self.tally.cases and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        self.unmatched = self.unmatched_deviations()
        if self.unmatched and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.writer:
            for name, cited in self.tally.drift:
                self.writer.note("drift", {"claim": name, "docs": cited})
            self.writer.note("surface", self.surface())
            if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
                seconds = round(time.perf_counter() - self.started, 3)
                self.writer.footer({"cases": self.tally.cases, "counts": dict(self.tally.counts), "seconds": seconds})

    def surface(self) -> dict[str, Any]:
        """How the public names that the claims of this run cite look in the installed torch, and what changed of them.

        A run of a few cases gives the examples of their claims alone: all of them import most of torch, 2 s of it.
        """
        cited = (entry for name in self.tally.outcomes for entry in self.claims[name].docs)
        return surface.collect(cited, self.asked_claims())

    def asked_claims(self) -> set[str]:
        """The claims that the whole suite was asked for; of a part of it, or of a replacement, those that it ran."""
        if self.settings.replacements or not is_whole(self.config):
            return set(self.tally.outcomes)
        return claims_here(self.config, self.settings) & self.settings.selected

    def untouched_claims(self) -> list[str]:
        """Claims asked for without a case here, whose tests speak of other dtypes or vias; known of the whole suite."""
        return sorted(self.asked_claims() - set(self.tally.outcomes))

    def unmatched_deviations(self) -> list[str]:
        """Entries about what ran here that no case matched; known only where the whole suite ran in every case."""
        vias = [via for via in self.settings.vias if via not in COSTLY]
        profiles = self.settings.profiles
        ran = {"device": [p.kind for p in profiles], "kernels": [p.computed_by for p in profiles], "via": vias}
        return [
            entry.source
            for entry in self.settings.deviations
            if is_whole(self.config)
            and not self.config.option.dtype
            and not self.settings.replacements
            and entry.claim in self.tally.outcomes
            and entry.source not in self.tally.excused
            and all(any(fnmatchcase(v, entry.globs.get(axis, "*")) for v in values) for axis, values in ran.items())
        ]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        out = terminalreporter
        if not self.tally.cases:
            for replacement in self.settings.replacements:
                out.line(f"no test that ran asks its case for {replacement.name}", red=True)
            return
        out.section("score card")
        for line in self.tally.lines():
            out.line(line)
        if drift := self.tally.drift:
            out.line("")
            out.line(f"text drift: the installed documentation no longer has the cited sentence of {len(drift)} claims")
            for name, cited in drift:
                out.line(f"  {name}  {cited}")
        if untouched := self.untouched_claims():
            out.line(f"no case for these dtypes and vias: {', '.join(untouched)}")
        for source in self.unmatched:
            out.line(f"deviation without a case: {source}: no case matched it; remove it or correct it", red=True)
        out.line("")
        path = self.config.option.results
        out.line(f"result file: {path}" if path else "no result file: --results=FILE writes one")


def brief(excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
    return ""


def place(call: pytest.CallInfo[None], item: Any) -> str:
    """File, line and code of the test at which the case failed."""
    entries = [e for e in call.excinfo.traceback if e.path == item.path] if call.excinfo else []
    if not entries:
        return str(item.location[0])
    line = entries[-1].lineno + 1
    return f"{item.location[0]}:{line}: {linecache.getline(str(item.path), line).strip()}"


def of_a_crash(nodeid: str, root: Path) -> tuple[list[str], dict[str, str]]:
    """Claims and facts of a case in which the interpreter died; xdist knows no more of it than its id."""
    path, _, rest = nodeid.partition("::")
    function, _, bracket = rest.partition("[")
    words = [*bracket.rstrip("]").split("-"), "", ""]
    layout, via = ([w for w in words if w in names] for names in (LAYOUTS, VIAS))
    facts = {
        "test": f"{path}::{function}",
        "device": words[0],
        "dtype": words[1],
        "layout": (layout or ["contiguous"])[0],
        "via": (via or ["eager"])[0],
        "params": bracket.rstrip("]"),
    }
    return [name for t in sources.tests_in(root / path) if t.name == function for name in t.claims], facts
