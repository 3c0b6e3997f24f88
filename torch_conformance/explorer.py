"""``--explore N``: Hypothesis looks between the listed cases of every numeric law.

A test that ranges over dtypes is tried at N places more: one of its cases is drawn with another seed, and a parameter
whose listed values are three numbers or more takes any value between the smallest and the largest. Listed are those of
the cases that differ in nothing else, for values that are listed in pairs may need each other. What is found is shrunk,
and printed as a command; listed as a parameter it becomes a fixed case. Cases alone decide a plain run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_conformance.errors import UsageError
from torch_conformance.items import ENDS_THE_RUN

try:
    import hypothesis
    from hypothesis import strategies
except ImportError:
    raise UsageError("--explore needs Hypothesis: pip install hypothesis") from None

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Place:
    """A listed case, the seed of its values, and the parameters that stand in for the listed ones."""

    item: Any
    seed: int
    given: dict[str, Any] = field(default_factory=dict)


def explore(items: Sequence[Any], attempt: Callable[[Place], None], *, examples: int, seed: int) -> Place | None:
    """Try that many places of a test, of which ``items`` are the cases; the simplest at which it fails, or nothing.

    ``attempt`` raises where the test fails.
    """
    failed: list[Place] = []

    @functools.cache
    def places(item: Any) -> strategies.SearchStrategy[Place]:
        given = strategies.fixed_dictionaries({}, optional=ranges(items, item))
        return strategies.builds(Place, strategies.just(item), strategies.integers(0, LARGEST_SEED), given)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(strategies.sampled_from(items).flatmap(places))
    def search(place: Place) -> None:
        try:
            attempt(place)
        except BaseException:
            failed.append(place)
            raise

    try:
        search()
    except BaseException as error:
        if not failed or isinstance(error, ENDS_THE_RUN):
            raise
        return failed[-1]  # Hypothesis ends with the simplest
    return None


def ranges(items: Sequence[Any], item: Any) -> dict[str, strategies.SearchStrategy[Any]]:
    """Name to values of the parameters of this case that may take others than listed."""
    found = {name: between(listed(items, item, name)) for name in item.callspec.params}
    return {name: values for name, values in found.items() if values is not None}


def listed(items: Sequence[Any], item: Any, name: str) -> list[Any]:
    """The different values of a parameter, in those cases of a test that are like this one in all others."""

    def others(case: Any) -> dict[str, str]:
        return {key: repr(value) for key, value in case.callspec.params.items() if key != name}

    wanted = others(item)
    values = [case.callspec.params[name] for case in items if others(case) == wanted]
    return list({repr(value): value for value in values}.values())


def between(values: Sequence[Any]) -> strategies.SearchStrategy[Any] | None:
    """Any value between the listed ones, if they are three numbers or more, or three tuples of as many integers."""
    kinds = {type(value) for value in values}
    if len(values) < 3 or len(kinds) > 1:
        return None
    if kinds == {int}:
        return strategies.integers(min(values), max(values))
    if kinds == {float} and all(abs(value) < float("inf") for value in values):
        return strategies.floats(min(values), max(values))
    if kinds == {tuple} and len({len(value) for value in values}) == 1:
        places = [between(list(set(column))) for column in zip(*values, strict=True)]
        if places and all(place is not None for place in places):
            return strategies.tuples(*places)
    return None
