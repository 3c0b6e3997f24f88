"""The items of pytest as cases: what they assert, at which point of the axes, and what is kept with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from torch_conformance.axes import Point
from torch_conformance.case import Case

ENDS_THE_RUN = (pytest.exit.Exception, KeyboardInterrupt)
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
CLAIMS = pytest.StashKey[list[str]]()
FACTS = pytest.StashKey[dict[str, str]]()
CASE = pytest.StashKey[Case]()
CASES = pytest.StashKey[list[Any]]()
"""While exploring: the cases of the test that the item stands for."""
FOUND = pytest.StashKey[Any]()
"""While exploring: the `explorer.Place` at which the test fails."""


def claims_of(item: pytest.Item) -> list[str]:
    """The claims that the item asserts; none for a test of another kind."""
    if CLAIMS not in item.stash:
        item.stash[CLAIMS] = [name for mark in item.iter_markers("claim") for name in mark.args]
    return item.stash[CLAIMS]


def test_of(item: pytest.Item) -> str:
    """The node id of the test of which the item is a case."""
    return item.nodeid.partition("[")[0]


def facts_of(item: Any) -> dict[str, str]:
    """Which case it is, as the result file says and deviations match."""
    if FACTS not in item.stash:
        point: Point = item.callspec.params["case"]
        item.stash[FACTS] = {
            "test": test_of(item),
            "device": point.device,
            "dtype": point.dtype,
            "layout": point.layout,
            "via": point.via,
            "params": parameters(item),
        }
    facts: dict[str, str] = item.stash[FACTS]
    return facts


def seed_name(item: Any) -> str:
    """The same for all devices, dtypes, layouts and vias, so that they see the same values."""
    facts = facts_of(item)
    return f"{facts['test']} {facts['params']}"


def parameters(item: Any) -> str:
    """The test's own parameters as ``name=value``, the point of the axes left out."""
    pairs, indices = item.callspec.params.items(), item.callspec.indices
    return ",".join(f"{key}={shorten(value, indices[key])}" for key, value in pairs if key != "case")


def arguments(seed: int, given: Mapping[str, Any]) -> list[str]:
    """The options by which pytest calls a case with these values, beside the case's id."""
    return ["--seed", str(seed)] + (["--given", json.dumps(given)] if given else [])


def shorten(value: Any, index: int) -> str:
    """The same text in every run, and another for another value: no address, and nameless functions by their place."""
    text = str(getattr(value, "__name__", None) or value)
    return f"{ADDRESS.sub('', text)}{index}" if "<lambda>" in text or ADDRESS.search(text) else text


def is_plain(item: Any) -> bool:
    """Whether the test takes nothing but its parameters."""
    direct = not any(mark.kwargs.get("indirect") for mark in item.iter_markers("parametrize"))
    return direct and item.callspec.params.keys() >= set(item.fixturenames)


def is_empty(item: Any) -> bool:
    """Whether the axes asked for leave the test no point, for which pytest collects a place holder."""
    return not isinstance(item.callspec.params.get("case"), Point)
