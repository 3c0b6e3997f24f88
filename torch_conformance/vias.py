"""Vias: how a case executes its subject. ``eager`` calls it; the others hand it to a transform or a compiler first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

if TYPE_CHECKING:
    from torch_conformance.case import Case

M = TypeVar("M", bound=nn.Module)


def module(layer: M, case: Case) -> M:
    """The layer, whose calls go by the case's via."""
    if case.via == "eager":
        return layer
    raise case.unsupported(f"via {case.via} is not there yet")


def function(function: Callable[..., Any], case: Case) -> Callable[..., Any]:
    """The function, executed by the case's via."""
    if case.via == "eager":
        return function
    raise case.unsupported(f"via {case.via} is not there yet")
