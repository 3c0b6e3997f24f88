"""Running: each case is made, called with its test, and leaves torch as it found it."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

from torch_conformance import switches
from torch_conformance.case import Case, Unsupported
from torch_conformance.items import CASE, CASES, ENDS_THE_RUN, FOUND, arguments, claims_of, is_plain, seed_name
from torch_conformance.settings import Settings


class Running:
    """The hooks around each test."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.profiles = {profile.name: profile for profile in settings.profiles}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: pytest.Item | None) -> bool | None:
        """A case without fixtures is called straight away: pytest's three phases would cost twice what the case does.

        The last of a module goes the long way, for pytest then ends the fixtures of the module.
        """
        last = nextitem is None or nextitem.parent is not item.parent
        if CASES not in item.stash and (last or not claims_of(item) or not is_plain(item)):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        call = pytest.CallInfo.from_call(lambda: self.run_plain(item), when="call", reraise=ENDS_THE_RUN)
        report = hook.pytest_runtest_makereport(item=item, call=call)
        hook.pytest_runtest_logreport(report=report)
        if report.failed:
            hook.pytest_exception_interact(node=item, call=call, report=report)
        if CASE in item.stash:
            del item.stash[CASE]  # or the generators of all cases would live to the end
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def run_plain(self, item: Any) -> None:
        self.require_support(item)
        if CASES in item.stash:
            self.explore(item)
        else:
            self.call(item, self.settings.seed, self.settings.given)

    def call(self, item: Any, seed: int, given: Mapping[str, Any]) -> None:
        with self.case_of(item, seed) as made:
            item.obj(**{**item.callspec.params, **given, "case": made})

    def explore(self, item: Any) -> None:
        """Look for a place at which the test fails, and fail there as a case would."""
        from torch_conformance import explorer

        def attempt(place: explorer.Place) -> None:
            with suppress(Unsupported):
                self.require_support(place.item)
                self.call(place.item, place.seed, place.given)

        cases, examples = item.stash[CASES], self.settings.examples
        if found := explorer.explore(cases, attempt, examples=examples, seed=self.settings.seed):
            item.stash[FOUND] = found
            self.call(found.item, found.seed, found.given)
            raise AssertionError(f"failed once and not again: {shlex.join(arguments(found.seed, found.given))}")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if claims_of(item):
            self.require_support(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        if not claims_of(item):
            return (yield)
        with self.case_of(item, self.settings.seed) as item.funcargs["case"]:
            item.funcargs.update(self.settings.given)
            return (yield)

    def require_support(self, item: Any) -> None:
        """Raises `Unsupported` where the version, or the device's profile, excludes the case before it is tried."""
        names = claims_of(item)
        if self.settings.covered.isdisjoint(names):
            ranges = " and ".join(sorted({str(self.settings.claims[name].torch) for name in names}))
            raise Unsupported(f"torch {torch.__version__} is outside the claim's range {ranges}")
        point = item.callspec.params["case"]
        if reason := self.profiles[point.device].lacking(point):
            raise Unsupported(reason)

    @contextmanager
    def case_of(self, item: Any, seed: int) -> Iterator[Case]:
        """The item's case; the switches of torch that the test moves are put back, and a test that moves one fails."""
        made = Case(item.callspec.params["case"], seed_name(item), seed, self.settings.replacements)
        item.stash[CASE] = made
        before = switches.read()
        try:
            yield made
        except BaseException:
            switches.restore(before)
            raise
        if moved := switches.restore(before):
            raise switches.Leak(f"the test left {', '.join(moved)} other than it found it")
