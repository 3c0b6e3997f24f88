"""Replacements: a user's own layer or function in the place of torch's, judged by the claims about the original.

``--replace torch.nn.LayerNorm=package.module:FusedLayerNorm`` hands the replacement to every test that asks its case
for the original. Arguments go to it by name; one that it does not take may only have the original's default value.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch_conformance import docs
from torch_conformance.errors import UsageError

ANY = inspect.signature(lambda *args, **kwargs: None)


class NotTaken(Exception):
    """The replacement has no such argument, so that it cannot be asked to do what the test asks of the original."""


class Replacement:
    """What stands in for one class or function of torch."""

    def __init__(self, name: str, original: Callable[..., Any], own: Callable[..., Any]) -> None:
        self.name = name
        self.original = original
        self.own = own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        positional, named = self.adapt(*args, **kwargs)
        return self.own(*positional, **named)

    def adapt(self, *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as the replacement takes them. Raises `NotTaken` for one that it lacks."""
        law, takes = signature(self.original), signature(self.own).parameters
        given = law.bind(*args, **kwargs).arguments
        if law is ANY or any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            return list(args), kwargs
        required = [p.name for p in takes.values() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        foreign = [name for name in given if name not in takes]
        positional = [given[name] for name in foreign[: len([r for r in required if r not in given])]]
        for name in foreign[len(positional) :]:
            if given[name] != law.parameters[name].default:
                raise NotTaken(f"the replacement of {self.name} takes no {name}={given[name]!r}")
        return positional, {name: value for name, value in given.items() if name in takes}


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """Of a builtin Python knows none: the one at the beginning of its docstring stands for it, or `ANY`."""
    try:
        return inspect.signature(function)
    except ValueError:
        stated = re.match(r"\w+\((.*?)\) *->", inspect.getdoc(function) or "", re.DOTALL)
    try:
        return inspect.signature(eval(f"lambda {' '.join(stated[1].split())}: None")) if stated else ANY
    except (SyntaxError, NameError):
        return ANY


def parse(text: str) -> Replacement:
    """Read ``torch.nn.X=package.module:Y``. Raises `UsageError` for anything else, or what cannot be imported."""
    name, equals, place = text.partition("=")
    module, colon, attribute = place.partition(":")
    if not (equals and colon and module and attribute):
        raise UsageError(f"--replace {text}: write it as torch.nn.LayerNorm=package.module:FusedLayerNorm")
    try:
        original = docs.resolve(name)
        own = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # a user's module may raise anything at import
        raise UsageError(f"--replace {text}: {error}") from None
    if not callable(original) or not callable(own):
        raise UsageError(f"--replace {text}: both sides must be classes, factories or functions")
    return Replacement(name, original, own)
