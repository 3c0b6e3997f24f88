"""``--explore N``: Hypothesis looks between the listed cases of every numeric law.

A test that ranges over dtypes is tried at N places more: one of its cases is drawn with another seed, and a parameter
whose listed values are three numbers or more takes any value between the smallest and the largest. What is found is
shrunk, and printed as a command; listed as a parameter it becomes a fixed case. Cases alone decide a plain run.
"""

from __future__ import annotations

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
    found = {name: between(listed(items, name)) for name in items[0].callspec.params}
    ranges = {name: values for name, values in found.items() if values is not None}
    failed: list[Place] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    @hypothesis.given(
        strategies.builds(
            Place,
            strategies.sampled_from(items),
            strategies.integers(0, LARGEST_SEED),
            strategies.fixed_dictionaries({}, optional=ranges),
        )
    )
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


def listed(items: Sequence[Any], name: str) -> list[Any]:
    """The different values that the cases give to a parameter."""
    values = {repr(value): value for value in (item.callspec.params[name] for item in items)}
    return list(values.values())


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
