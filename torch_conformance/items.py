"""The items of pytest as cases: what they assert, at which point of the axes, and what is kept with them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from torch_conformance.axes import Point
from torch_conformance.case import Case

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
CLAIMS = pytest.StashKey[list[str]]()
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


def is_plain(item: Any) -> bool:
    """Whether the test takes nothing but its parameters."""
    direct = not any(mark.kwargs.get("indirect") for mark in item.iter_markers("parametrize"))
    return direct and item.callspec.params.keys() >= set(item.fixturenames)


def is_empty(item: Any) -> bool:
    """Whether the axes asked for leave the test no point, for which pytest collects a place holder."""
    return not isinstance(item.callspec.params.get("case"), Point)
