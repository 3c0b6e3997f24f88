"""The pytest plugin: options, the case of each test, collection rules, verdicts, result file and score card.

Loaded by the suite's ``conftest.py``, or with ``-p torch_conformance.plugin`` for claims and tests of one's own.
Torch is imported only once the options have been read, so that a torch that cannot be imported is one clear line.
"""

from __future__ import annotations

import gc
import json
import linecache
import re
import shlex
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from torch_conformance import results, sources
from torch_conformance.axes import LAYOUTS, VIAS, Axes, Point, executes_a_subject
from torch_conformance.errors import UsageError

if TYPE_CHECKING:
    from torch_conformance.case import Case
    from torch_conformance.deviations import Deviation
    from torch_conformance.explorer import Place
    from torch_conformance.outcomes import Outcome
    from torch_conformance.settings import Settings

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
LETTERS = {"violated": "V", "deviates": "d", "unsupported": "u", "broken": "B"}
CLAIMS = pytest.StashKey[list[str]]()
ENDS_THE_RUN = (pytest.exit.Exception, KeyboardInterrupt)
REPEATABLE = ("device", "backend", "dtype", "via", "deviations", "replace")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torch-conformance", "the executable specification of PyTorch's training semantics")

    def repeatable(flag: str, metavar: str, help: str, **kwargs: Any) -> None:
        group.addoption(flag, action="append", default=[], metavar=metavar, help=help, **kwargs)

    repeatable("--device", "NAME", "repeatable; default: cpu and the accelerator that torch reports, if any")
    repeatable("--backend", "MODULE", "imported first; registers an out-of-tree device")
    repeatable("--dtype", "NAME", "repeatable; default: what the device's profile lists")
    repeatable("--via", "NAME", "repeatable; eager (default), functional, vmap, aot, compile, export")
    repeatable("--claim", "GLOB", "repeatable; run only the tests of these claims, as in 'dropout.*'")
    repeatable("--deviations", "FILE", "repeatable; known violations, beside the project's own", type=Path)
    repeatable("--replace", "NAME=MODULE:OBJECT", "repeatable; judge that object by the claims about torch's")
    group.addoption("--results", metavar="FILE", type=Path, help="write the result file (JSON Lines)")
    group.addoption("--seed", metavar="N", type=int, default=0, help="default 0")
    group.addoption("--threads", metavar="N", type=int, default=1, help="threads of torch on the CPU, default 1")
    group.addoption("--explore", metavar="N", type=int, help="look at N places between the cases of every numeric law")
    group.addoption("--given", metavar="JSON", help='parameters in place of those of the cases, as in {"size": 37}')
    group.addoption("--mutant", metavar="ID", help="run against that wrong torch")
    parser.addini("conformance_specs", "folders with claim files of your own", type="paths", default=[])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claim(*ids): the claims that the test asserts")
    config.addinivalue_line("markers", "axes(dtype=(), layout=(), via=()): what the test ranges over")
    if config.option.help or config.option.markers:
        return
    try:
        import torch  # noqa: F401
    except Exception as error:
        raise pytest.UsageError(f"torch cannot be imported: {type(error).__name__}: {error}".splitlines()[0]) from None
    from torch_conformance import mutation, settings

    try:
        settled = settings.settle(config.option, config.getini("conformance_specs"))
        if config.option.mutant:
            config.add_cleanup(mutation.find(config.option.mutant).apply().close)
        config.pluginmanager.register(Conformance(config, settled), "torch-conformance")
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks are collected only when benchmarks are asked for."""
    asked = config.getoption("benchmark_only", False) or config.getoption("benchmark_enable", False)
    return True if collection_path.name.startswith("bench_") and not asked else None


def seed_name(item: pytest.Function) -> str:
    """The same for all devices, dtypes, layouts and vias, so that they see the same values."""
    return f"{item.nodeid.partition('[')[0]} {parameters(item)}"


def parameters(item: pytest.Function) -> str:
    """The test's own parameters as ``name=value``, the point of the axes left out."""
    callspec = getattr(item, "callspec", None)
    if not callspec:
        return ""
    pairs = callspec.params.items()
    return ",".join(f"{key}={shorten(value, callspec.indices[key])}" for key, value in pairs if key != "case")


def shorten(value: Any, index: int) -> str:
    """The same text in every run, and another for another value: no address, and nameless functions by their place."""
    text = str(getattr(value, "__name__", None) or value)
    return f"{ADDRESS.sub('', text)}{index}" if "<lambda>" in text or ADDRESS.search(text) else text


class Conformance:
    """The hooks of one session."""

    CASE = pytest.StashKey[Any]()
    CASES = pytest.StashKey[list[Any]]()  # of the test that the item stands for while exploring
    FOUND = pytest.StashKey[Any]()  # the place at which exploring saw it fail

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        import torch

        from torch_conformance.scorecard import Tally

        self.config = config
        self.settings = settings
        self.torch: str = torch.__version__
        self.claims = settings.claims
        self.covered = {name for name, claim in self.claims.items() if claim.covers(torch.__version__)}
        self.deviations = [entry for entry in settings.deviations if entry.speaks_of(torch.__version__)]
        self.profiles = {profile.name: profile for profile in settings.profiles}
        self.is_worker = hasattr(config, "workerinput")
        self.writer: results.Writer | None = None
        if config.option.results and not self.is_worker:
            self.writer = results.Writer(config.option.results)
            self.writer.header(settings.header())
        self.tally = Tally(settings)
        self.started = time.perf_counter()
        self.given = given(config.option.given)
        self.refused: list[str] = []
        self.unmatched: list[str] = []

    # -- collection --------------------------------------------------------------------------------------------------

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" not in metafunc.fixturenames:
            return
        mark = metafunc.definition.get_closest_marker("axes")
        try:
            axes = Axes.declared(**mark.kwargs) if mark else Axes()
        except ValueError as error:
            self.refused.append(f"{metafunc.definition.nodeid}: {error}")
            axes = Axes()
        vias = self.settings.vias if executes_a_subject(metafunc.function) else ("eager",)
        points = [
            point
            for profile in self.settings.profiles
            for point in axes.points(profile.name, self.settings.dtypes, profile.dtypes, vias)
            if point.via in self.settings.vias
        ]
        metafunc.parametrize("case", points, ids=str)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        if self.refused:
            raise pytest.UsageError(self.refused[0])
        tests = [item for item in items if claims_of(item) or "case" in getattr(item, "fixturenames", ())]
        for item in tests:
            self.require_known_claims(item)
        if not session.testsfailed:
            self.require_a_test_for_every_claim(tests)
        unwanted = {item for item in tests if is_empty(item) or not self.settings.selected & set(claims_of(item))}
        if self.config.option.claim:
            unwanted |= set(items) - set(tests)
        self.require_parameters([item for item in tests if item not in unwanted])
        if self.config.option.explore:
            self.lay_out_for_exploring(items, unwanted)
        if unwanted:
            self.config.hook.pytest_deselected(items=list(unwanted))
            items[:] = [item for item in items if item not in unwanted]
        gc.freeze()  # the tests live to the end, so that looking through them again and again finds nothing

    def require_parameters(self, items: list[Any]) -> None:
        if strange := sorted(set(self.given).difference(*(item.callspec.params for item in items))):
            raise pytest.UsageError(f"--given: no test that is left takes {', '.join(strange)}")

    def lay_out_for_exploring(self, items: list[pytest.Item], unwanted: set[pytest.Item]) -> None:
        """One case stands for all of a test but those of listed deviations; without dtypes there is no numeric law."""
        cases: dict[Any, list[pytest.Item]] = {}
        for item in items:
            mark = item.get_closest_marker("axes")
            known = self.deviation_of(claims_of(item), facts_of(item)) if item not in unwanted else None
            if item not in unwanted and mark and "dtype" in mark.kwargs and is_plain(item) and not known:
                cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        for first, *others in cases.values():
            first.stash[self.CASES] = [first, *others]
        unwanted.update(set(items) - {first for first, *_ in cases.values()})

    def require_known_claims(self, item: pytest.Item) -> None:
        place = item.nodeid.partition("[")[0]
        if not claims_of(item):
            raise pytest.UsageError(f'{place} asserts no claim: mark it @claim("chapter.topic.detail")')
        if "case" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{place} asserts a claim, so it must take the fixture case")
        for name in claims_of(item):
            if name not in self.claims or self.claims[name].retired:
                raise pytest.UsageError(f"{place} names {name}, which no claim file in force lists")

    def require_a_test_for_every_claim(self, tests: list[pytest.Item]) -> None:
        """Known only where the whole suite was collected, and for the chapters that lie below its root."""
        if not self.is_whole():
            return
        tested = {name for item in tests for name in claims_of(item)}
        here = [c for c in self.settings.chapters.values() if self.config.rootpath in c.path.resolve().parents]
        bare = [c.id for chapter in here for c in chapter.claims if c.id not in tested and not c.retired]
        if bare:
            raise pytest.UsageError(f"no test asserts {', '.join(bare)}")

    def is_whole(self) -> bool:
        source = self.config.args_source.name
        chosen = self.config.option
        narrowing = ("explore", "keyword", "markexpr", "ignore", "ignore_glob", "deselect")
        return source == "TESTPATHS" and not any(getattr(chosen, name) for name in narrowing)

    # -- running -----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: pytest.Item | None) -> bool | None:
        """A case without fixtures is called straight away: pytest's three phases would cost twice what the case does.

        The last of a module goes the long way, for pytest then ends the fixtures of the module.
        """
        last = nextitem is None or nextitem.parent is not item.parent
        if self.CASES not in item.stash and (last or not claims_of(item) or not is_plain(item)):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        call = pytest.CallInfo.from_call(lambda: self.run_plain(item), when="call", reraise=ENDS_THE_RUN)
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)
        if report.failed:
            item.ihook.pytest_exception_interact(node=item, call=call, report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def run_plain(self, item: Any) -> None:
        self.require_support(item)
        if self.CASES in item.stash:
            self.explore(item)
        else:
            self.call(item, self.settings.seed, self.given)

    def call(self, item: Any, seed: int, given: Mapping[str, Any]) -> None:
        with self.case_of(item, seed) as made:
            item.obj(**{**item.callspec.params, **given, "case": made})

    def explore(self, item: Any) -> None:
        """Look for a place at which the test fails, and fail there as a case would."""
        from torch_conformance import explorer
        from torch_conformance.case import Unsupported

        def attempt(place: explorer.Place) -> None:
            with suppress(Unsupported):
                self.require_support(place.item)
                self.call(place.item, place.seed, place.given)

        cases, examples = item.stash[self.CASES], self.config.option.explore
        if found := explorer.explore(cases, attempt, examples=examples, seed=self.settings.seed):
            item.stash[self.FOUND] = found
            self.call(found.item, found.seed, found.given)
            raise AssertionError(f"failed once and not again: {shlex.join(found.arguments())}")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if claims_of(item):
            self.require_support(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        if not claims_of(item):
            return (yield)
        with self.case_of(item, self.settings.seed) as item.funcargs["case"]:
            item.funcargs.update(self.given)
            return (yield)

    def require_support(self, item: Any) -> None:
        """Raises `Unsupported` where the version, or the device's profile, excludes the case before it is tried."""
        from torch_conformance.case import Unsupported

        names = claims_of(item)
        if self.covered.isdisjoint(names):
            ranges = " and ".join(sorted({str(self.claims[name].torch) for name in names}))
            raise Unsupported(f"torch {self.torch} is outside the claim's range {ranges}")
        point: Point = item.callspec.params["case"]
        if reason := self.profiles[point.device].lacking(point):
            raise Unsupported(reason)

    @contextmanager
    def case_of(self, item: Any, seed: int) -> Iterator[Case]:
        """The item's case; the switches of torch that the test moves are put back, and a test that moves one fails."""
        from torch_conformance import switches
        from torch_conformance.case import Case

        made = Case(item.callspec.params["case"], seed_name(item), seed, self.settings.replacements)
        item.stash[self.CASE] = made
        before = switches.read()
        try:
            yield made
        except BaseException:
            switches.restore(before)
            raise
        if moved := switches.restore(before):
            raise switches.Leak(f"the test left {', '.join(moved)} other than it found it")

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
        from torch_conformance import outcomes

        found = item.stash.get(self.FOUND, None)
        item = found.item if found else item
        made = item.stash.get(self.CASE, None)
        if self.settings.replacements and not (made and made.replaced):
            report.outcome, report.unconcerned, report.longrepr = "passed", True, None
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
        report.conformance = [
            {
                "claim": name,
                **facts,
                "outcome": outcome.name if name in self.covered else "unsupported",
                "headroom": made.headroom if made and outcome.name in ("holds", "violated") else None,
                **shared,
            }
            for name in claims_of(item)
        ]
        if outcome.name == "unsupported":
            report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {outcome.message}")
        report.outcome = {"holds": "passed", "violated": "failed", "broken": "failed"}.get(outcome.name, "skipped")
        if outcome.name == "deviates":
            report.wasxfail = excuse
        if report.outcome == "failed" and (outcome.name == "violated" or call.when == "call"):
            trace = type(item).repr_failure(item, call.excinfo) if outcome.name == "broken" else report.longrepr
            report.longrepr = f"{self.explain(item, call, outcome, found)}\n{trace}".rstrip()

    def excuse(self, outcome: Outcome, names: list[str], facts: dict[str, str]) -> tuple[Outcome, str | None]:
        """A listed deviation that shows as described excuses a violation; one that does not is a violation."""
        import datetime

        from torch_conformance.outcomes import Outcome

        if outcome.name not in ("holds", "violated"):
            return outcome, None
        entry = self.deviation_of(names, facts)
        if entry is None:
            return outcome, None
        message = outcome.message or ""
        if entry.expired(self.torch, datetime.date.today()):
            wrong = f"{entry.source} has expired ({entry.expires}); {message}"
        elif outcome.name == "holds":
            wrong = f"{entry.source} no longer shows: remove it or narrow it"
        elif not entry.describes(message):
            wrong = f"not as {entry.source} describes: {message}"
        else:
            return Outcome("deviates", f"{entry.reason} ({message})"), entry.source
        return Outcome("violated", wrong, outcome.error), entry.source

    def deviation_of(self, names: list[str], facts: dict[str, str]) -> Deviation | None:
        return next((entry for entry in self.deviations if entry.matches(names, facts)), None)

    def explain(self, item: Any, call: pytest.CallInfo[None], outcome: Outcome, found: Place | None) -> str:
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

    def rerun(self, nodeid: Any, found: Place | None) -> str:
        """A command that can be pasted, and runs just this case as it ran here."""
        chosen = self.config.option
        here = str(self.config.cwd_relative_nodeid(nodeid))
        words: list[str] = [sys.executable, "-m", "pytest", here]
        words += found.arguments() if found else ["--seed", str(chosen.seed)]
        for name in REPEATABLE:
            for value in getattr(chosen, name):
                words += [f"--{name}", str(value)]
        if __name__ in self.config.invocation_params.args:
            words += ["-p", __name__]
        if chosen.threads != 1:
            words += ["--threads", str(chosen.threads)]
        if chosen.mutant:
            words += ["--mutant", chosen.mutant]
        return shlex.join(words)

    # -- reporting ---------------------------------------------------------------------------------------------------

    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        name = report.conformance[0]["outcome"] if getattr(report, "conformance", None) else None
        if getattr(report, "unconcerned", False):
            return "unconcerned", "", ""
        if name not in LETTERS:
            return None
        return ("failed" if report.failed else name, LETTERS[name], name.upper())

    def pytest_runtest_logreport(self, report: Any) -> None:
        if self.is_worker:
            return
        if report.when == "???" and not hasattr(report, "conformance"):
            report.conformance = crashed(report.nodeid, self.config.rootpath)
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
        """How the public names that the claims of this run cite look in the installed torch."""
        from torch_conformance import surface

        return surface.collect(entry for name in self.tally.outcomes for entry in self.claims[name].docs)

    def unmatched_deviations(self) -> list[str]:
        """Entries about what ran here that no case matched; known only where the whole suite ran."""
        ran = {"device": [p.name for p in self.settings.profiles], "via": self.settings.vias}
        return [
            entry.source
            for entry in self.deviations
            if self.is_whole()
            and not self.config.option.dtype
            and entry.claim in self.tally.outcomes
            and entry.source not in self.tally.excused
            and all(any(fnmatchcase(v, entry.globs.get(axis, "*")) for v in values) for axis, values in ran.items())
        ]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.tally.cases:
            return
        out = terminalreporter
        out.section("score card")
        for line in self.tally.lines():
            out.line(line)
        if drift := self.tally.drift:
            out.line("")
            out.line(f"text drift: the installed documentation no longer has the cited sentence of {len(drift)} claims")
            for name, cited in drift:
                out.line(f"  {name}  {cited}")
        for source in self.unmatched:
            out.line(f"deviation without a case: {source}: no case matched it; remove it or correct it", red=True)
        out.line("")
        path = self.config.option.results
        out.line(f"result file: {path}" if path else "no result file: --results FILE writes one")


def claims_of(item: pytest.Item) -> list[str]:
    """The claims that the item asserts; none for a test of another kind."""
    if CLAIMS not in item.stash:
        item.stash[CLAIMS] = [name for mark in item.iter_markers("claim") for name in mark.args]
    return item.stash[CLAIMS]


def given(text: str | None) -> dict[str, Any]:
    """The parameters that ``--given`` states; JSON has no tuples, and parameters are no lists."""
    try:
        values = json.loads(text or "{}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    except (ValueError, AttributeError):
        raise UsageError(f"--given {text}: is no JSON object such as {{\"size\": 37}}") from None


def facts_of(item: Any) -> dict[str, str]:
    """Which case it is, as the result file says and deviations match."""
    point: Point = item.callspec.params["case"]
    return {
        "test": item.nodeid.partition("[")[0],
        "device": point.device,
        "dtype": point.dtype,
        "layout": point.layout,
        "via": point.via,
        "params": parameters(item),
    }


def is_plain(item: Any) -> bool:
    """Whether the test takes nothing but its parameters."""
    direct = not any(mark.kwargs.get("indirect") for mark in item.iter_markers("parametrize"))
    return direct and item.callspec.params.keys() >= set(item.fixturenames)


def is_empty(item: Any) -> bool:
    """Whether the axes asked for leave the test no point, for which pytest collects a place holder."""
    return not isinstance(item.callspec.params.get("case"), Point)


def brief(excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
    return ""


def place(call: pytest.CallInfo[None], item: Any) -> str:
    """File, line and code of the test at which the case failed."""
    entries = [e for e in call.excinfo.traceback if e.path == item.path] if call.excinfo else []
    if not entries:
        return str(item.location[0])
    line = entries[-1].lineno + 1
    return f"{item.location[0]}:{line}: {linecache.getline(str(item.path), line).strip()}"


def crashed(nodeid: str, root: Path) -> list[dict[str, Any]]:
    """The lines of a case in which the interpreter died; xdist knows no more of it than its id."""
    path, _, rest = nodeid.partition("::")
    function, _, bracket = rest.partition("[")
    words = [*bracket.rstrip("]").split("-"), "", ""]
    layout, via = ([w for w in words if w in names] for names in (LAYOUTS, VIAS))
    claims = [t.claims for t in sources.tests_in(root / path) if t.name == function]
    return [
        {
            "claim": name,
            "test": f"{path}::{function}",
            "device": words[0],
            "dtype": words[1],
            "layout": (layout or ["contiguous"])[0],
            "via": (via or ["eager"])[0],
            "params": bracket.rstrip("]"),
            "outcome": "violated",
            "headroom": None,
            "message": "the interpreter crashed",
            "error": "crash",
            "deviation": None,
            "seen": None,
            "seconds": 0.0,
            "id": nodeid,
        }
        for names in claims
        for name in names
    ]
