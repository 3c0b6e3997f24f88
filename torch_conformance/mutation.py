"""Mutation: torch made wrong on purpose, in one small plausible way, and put right again.

A mutant is a function in ``mutants/<chapter>.py``; its docstring says whose mistake it resembles::

    @mutant("dropout.train.scale")
    def rescales_by_p(patch):
        \"\"\"Divides the survivors by p, as one does who takes p for the probability of keeping.\"\"\"
        patch.source(F.dropout, …)

Its id is ``dropout.rescales-by-p``. ``patch`` undoes whatever it did when the mutant is closed.
"""

from __future__ import annotations
import __future__

import ast
import functools
import importlib
import inspect
import textwrap
import types
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch_conformance.errors import UsageError

Install = Callable[["Patch"], None]
ABSENT = object()


class NotApplicable(Exception):
    """The installed torch is built otherwise, so that this mutant cannot be applied to it."""


@dataclass(frozen=True)
class Mutant:
    """A wrong torch: the claims whose tests must refuse it, and how it is installed."""

    id: str
    claims: tuple[str, ...]
    resembles: str
    install: Install

    def apply(self) -> ExitStack:
        """Install it; closing what is returned puts torch right again. Raises `NotApplicable`."""
        with ExitStack() as stack:
            self.install(Patch(stack))
            return stack.pop_all()


REGISTRY: dict[str, Mutant] = {}


def mutant(*claims: str) -> Callable[[Install], Install]:
    """Register the function as a mutant that the tests of these claims must kill."""

    def register(install: Install) -> Install:
        chapter = install.__module__.rpartition(".")[2].replace("_", "-")
        made = Mutant(
            id=f"{chapter}.{install.__name__.replace('_', '-')}",
            claims=claims,
            resembles=inspect.cleandoc(install.__doc__ or ""),
            install=install,
        )
        if not claims or not made.resembles:
            raise UsageError(f"mutant {made.id} must name a claim and say in its docstring whose mistake it resembles")
        if made.id in REGISTRY:
            raise UsageError(f"two mutants are named {made.id}")
        REGISTRY[made.id] = made
        return install

    return register


@functools.cache
def load() -> dict[str, Mutant]:
    """Every mutant of the folder ``mutants``, by id."""
    folder = importlib.import_module("mutants")
    for path in sorted(Path(str(folder.__file__)).parent.glob("[a-z]*.py")):
        importlib.import_module(f"mutants.{path.stem}")
    return REGISTRY


def find(name: str) -> Mutant:
    """Raises `UsageError` for a name that no mutant has."""
    if name not in load():
        raise UsageError(f"no mutant named {name!r}; `torch-conformance mutants --list` names them")
    return REGISTRY[name]


class Patch:
    """What a mutant may do to torch. Every method is undone, in reverse order, when the mutant is closed."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.texts: dict[Any, str] = {}

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of a module, class, function or object."""
        described = inspect.isdatadescriptor(getattr(type(owner), name, None)) or is_switchboard(owner)
        before = getattr(owner, name) if described else vars(owner).get(name, ABSENT)
        setattr(owner, name, value)
        if before is ABSENT:
            self.stack.callback(delattr, owner, name)
        else:
            self.stack.callback(setattr, owner, name, before)

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Replace a function by ``wrapper(original, *args, **kwargs)``."""
        original = inspect.getattr_static(owner, name, None) or getattr(owner, name, None)
        if original is None:
            raise NotApplicable(f"{owner!r} has no {name}")
        static = isinstance(original, staticmethod)
        inner = original.__func__ if static else original

        @functools.wraps(inner)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return wrapper(inner, *args, **kwargs)

        self.set(owner, name, staticmethod(replacement) if static else replacement)

    def source(self, function: Any, old: str, new: str) -> None:
        """Replace a fragment of a Python function's source, in place: every reference to it sees the change."""
        function = inspect.unwrap(getattr(function, "__func__", function))
        text = self.texts.get(function) or textwrap.dedent(inspect.getsource(function))
        if old not in text:
            raise NotApplicable(f"{function.__qualname__} holds no {old!r}")
        before, self.texts[function] = function.__code__, text.replace(old, new)
        function.__code__ = recompile(function, self.texts[function])
        self.stack.callback(setattr, function, "__code__", before)

    def silence(self, function: Any) -> None:
        """Take the warnings out of a Python function."""
        self.source(function, "warnings.warn(", "(lambda *_, **__: None)(")

    def kernel(self, name: str, function: Callable[..., Any], key: str = "CPU") -> None:
        """Replace an aten kernel at a dispatch key: autograd and compiled code see the replacement too."""
        library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl(name, function, key)
        self.stack.callback(getattr(library, "_destroy", lambda: None))


def is_switchboard(owner: Any) -> bool:
    """Whether the object answers for its attributes itself, as torch.backends.cuda.matmul does."""
    return not isinstance(owner, (type, types.ModuleType)) and "__setattr__" in vars(type(owner))


def recompile(function: types.FunctionType, text: str) -> types.CodeType:
    """The code of the changed source, with the free variables and the flags that the function was made with."""
    tree = ast.parse(text)
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    free = function.__code__.co_freevars
    if free:
        outer = ast.parse(f"def outer():\n    {' = '.join(free)} = None\n    return None").body[0]
        assert isinstance(outer, ast.FunctionDef)
        outer.body.insert(1, definition)
        tree.body = [outer]
    lazy = function.__code__.co_flags & __future__.annotations.compiler_flag  # annotations that nobody evaluated
    tree = ast.fix_missing_locations(tree)
    code: types.CodeType = compile(tree, function.__code__.co_filename, "exec", lazy, dont_inherit=True)
    for _ in range(1 + bool(free)):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType))
    if code.co_freevars != free:
        raise NotApplicable(f"{function.__qualname__} closes over {free}, its mutant over {code.co_freevars}")
    return code
