"""Collection: which cases the tests become, and the rules that every test has to keep."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from torch_conformance.axes import COSTLY, Axes, executes_a_subject, spared
from torch_conformance.items import CASES, claims_of, facts_of, is_empty, is_plain, test_of
from torch_conformance.settings import Settings


class Collecting:
    """The hooks of pytest's collection."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.refused: list[str] = []

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" not in metafunc.fixturenames:
            return
        mark = metafunc.definition.get_closest_marker("axes")
        try:
            axes = Axes.declared(**mark.kwargs) if mark else Axes()
        except ValueError as error:
            self.refused.append(f"{metafunc.definition.nodeid}: {error}")
            axes = Axes()
        own = mark is not None and "via" in mark.kwargs  # such a test executes in its own way
        vias = self.settings.vias if own or executes_a_subject(metafunc.function) else ("eager",)
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
        if not set(COSTLY).isdisjoint(self.settings.vias):
            wanted: list[Any] = [item for item in tests if item not in unwanted]
            unwanted |= spared((item, test_of(item), item.callspec.params["case"]) for item in wanted)
        if self.config.option.claim:
            unwanted |= set(items) - set(tests)
        if self.config.getoption("benchmark_only", False):
            unwanted |= set(tests)
        self.require_parameters([item for item in tests if item not in unwanted])
        if self.config.option.explore:
            self.lay_out_for_exploring(items, unwanted)
        if unwanted:
            self.config.hook.pytest_deselected(items=list(unwanted))
            items[:] = [item for item in items if item not in unwanted]
        share_places(items)
        gc.freeze()  # the tests live to the end, so that looking through them again and again finds nothing

    def require_parameters(self, items: list[Any]) -> None:
        if strange := sorted(set(self.settings.given).difference(*(item.callspec.params for item in items))):
            raise pytest.UsageError(f"--given: no test that is left takes {', '.join(strange)}")

    def lay_out_for_exploring(self, items: list[pytest.Item], unwanted: set[pytest.Item]) -> None:
        """One case stands for all of a test but those of listed deviations; without dtypes there is no numeric law."""
        cases: dict[Any, list[pytest.Item]] = {}
        for item in items:
            if item in unwanted or self.settings.deviation_of(claims_of(item), facts_of(item)):
                continue
            mark = item.get_closest_marker("axes")
            if mark and "dtype" in mark.kwargs and is_plain(item):
                cases.setdefault(test_of(item), []).append(item)
        for first, *others in cases.values():
            first.stash[CASES] = [first, *others]
        unwanted.update(set(items) - {first for first, *_ in cases.values()})

    def require_known_claims(self, item: pytest.Item) -> None:
        place = test_of(item)
        if not claims_of(item):
            raise pytest.UsageError(f'{place} asserts no claim: mark it @claim("chapter.topic.detail")')
        if "case" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{place} asserts a claim, so it must take the fixture case")
        for name in claims_of(item):
            if name not in self.settings.claims or self.settings.claims[name].retired:
                raise pytest.UsageError(f"{place} names {name}, which no claim file in force lists")

    def require_a_test_for_every_claim(self, tests: list[pytest.Item]) -> None:
        """Known only where the whole suite was collected."""
        tested = {name for item in tests for name in claims_of(item)}
        if is_whole(self.config) and (bare := claims_here(self.config, self.settings) - tested):
            raise pytest.UsageError(f"no test asserts {', '.join(sorted(bare))}")


def share_places(items: list[pytest.Item]) -> None:
    """Give all cases of a test the place of the first, for which pytest would look anew in each, at 0.1 ms."""
    places: dict[str, tuple[str, int | None]] = {}
    for item in items:
        if claims_of(item) and isinstance(item.parent, pytest.Module):
            test = test_of(item)
            if test not in places:
                places[test] = item.location[:2]
            vars(item)["location"] = (*places[test], item.name)


def claims_here(config: pytest.Config, settings: Settings) -> set[str]:
    """The claims in force of the chapters that lie below the root, which a project's own suite has to assert."""
    chapters = [c for c in settings.chapters.values() if config.rootpath in c.path.resolve().parents]
    return {claim.id for chapter in chapters for claim in chapter.claims if not claim.retired}


def is_whole(config: pytest.Config) -> bool:
    """Whether every test of the suite was asked for."""
    narrowing = ("explore", "keyword", "markexpr", "ignore", "ignore_glob", "deselect")
    return config.args_source.name == "TESTPATHS" and not any(getattr(config.option, name) for name in narrowing)
