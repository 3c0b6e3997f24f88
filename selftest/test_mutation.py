"""Every mutant can be applied and leaves no trace; the fork runner tells killed, surviving, crashed and hung apart."""

import argparse
import importlib
import inspect
import os
import pkgutil
import time
import types
from contextlib import suppress

import pytest
import torch

from torch_conformance import claims, matrix, mutation
from torch_conformance.mutation import Mutant, NotApplicable
from torch_conformance.settings import ROOT

PACKAGES = ("torch.nn", "torch.optim", "torch.autograd", "torch.utils.checkpoint", "torch.amp")
MUTANTS = mutation.load()


@pytest.fixture(scope="module")
def places():
    """Every module and class in which a mutant may leave something behind."""
    found = [torch, torch.Tensor, torch._C._VariableFunctionsClass, torch.serialization, torch.random]
    for package in map(importlib.import_module, PACKAGES):
        names = [m.name for m in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}.")]
        wanted = [name for name in names if not name.startswith(("torch.nn.intrinsic", "torch.nn.qa", "torch.nn.quan"))]
        modules = [package, *map(importlib.import_module, wanted)]
        found += modules
        found += [
            c for module in modules for c in vars(module).values() if inspect.isclass(c) and "torch" in c.__module__
        ]
    return list({id(place): place for place in found}.values())


def picture(places):
    """Identity of every attribute, and of the code and the defaults behind every function."""
    return {
        (id(place), name): (id(value), *behind(value))
        for place in places
        for name, value in vars(place).items()
        if not name.startswith("__") and not isinstance(value, property)
    }


def behind(value):
    inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    if not isinstance(inner, types.FunctionType):
        return []
    inner = inspect.unwrap(inner)
    return [inner.__code__, inner.__defaults__, inner.__kwdefaults__]


def test_every_mutant_leaves_torch_as_it_was(places, monkeypatch):
    kernels = {}
    original = mutation.Patch.kernel

    def kernel(patch, name, *args):
        full = f"aten::{name}"
        kernels.setdefault(full, torch._C._dispatch_dump(full))
        original(patch, name, *args)

    monkeypatch.setattr(mutation.Patch, "kernel", kernel)

    def moved_by(mutants):
        before = picture(places)
        for mutant in mutants:
            with suppress(NotApplicable):
                mutant.apply().close()
        after = picture(places)
        moved = {key for key in before | after if before.get(key) != after.get(key)}
        return moved | {name for name, dump in kernels.items() if torch._C._dispatch_dump(name) != dump}

    moved = moved_by(MUTANTS.values())
    culprits = [mutant.id for mutant in MUTANTS.values() if moved_by([mutant])] if moved else []
    assert (moved, culprits) == (set(), [])


def test_every_mutant_names_claims_that_exist():
    known = claims.by_id(claims.load([ROOT / "specs"]))
    assert {(m.id, c) for m in MUTANTS.values() for c in m.claims if c not in known} == set()


def test_every_mutant_says_in_a_sentence_whose_mistake_it_is():
    assert [m.id for m in MUTANTS.values() if not m.resembles.endswith((".", "?"))] == []


def test_source_changes_the_function_that_everyone_holds():
    def double(x):
        return x * 2

    held = double
    with mutation.ExitStack() as stack:
        patch = mutation.Patch(stack)
        patch.source(double, "x * 2", "x * 3")
        assert held(5) == 15
        patch.source(double, "3", "3 + 1")
        assert held(5) == 16
    assert held(5) == 10


def test_source_keeps_what_a_method_closes_over():
    class Base:
        def value(self):
            return 1

    class Child(Base):
        def value(self):
            return super().value() + 1

    with mutation.ExitStack() as stack:
        mutation.Patch(stack).source(Child.value, "+ 1", "+ 41")
        assert Child().value() == 42
    assert Child().value() == 2


def test_a_default_is_put_back():
    def f(x=1):
        return x

    with mutation.ExitStack() as stack:
        mutation.Patch(stack).set(f, "__defaults__", (2,))
        assert f() == 2
    assert f() == 1


def test_source_of_another_torch_is_not_applicable():
    def f(x):
        return x

    with mutation.ExitStack() as stack, pytest.raises(NotApplicable, match="holds no"):
        mutation.Patch(stack).source(f, "return y", "return z")


def record(outcome, claim="a.b"):
    return {"claim": claim, "id": f"test_{claim}", "outcome": outcome}


BASELINE = matrix.Trial("", (), judged=["a.b"])
RUNS = {
    "killed": lambda emit: emit(record("violated")),
    "survived": lambda emit: emit(record("holds")),
    "crashed": lambda emit: os.abort(),
    "hung": lambda emit: time.sleep(60),
}


def test_forks_tell_every_end_apart():
    forks = matrix.Forks(lambda mutant, emit: RUNS[mutant.id](emit), jobs=2, timeout=2)
    trials = list(forks.trials(Mutant(name, ("a.b",), "-", lambda patch: None) for name in RUNS))
    for trial in trials:
        trial.conclude(BASELINE)
    assert {trial.mutant: trial.status for trial in trials} == {name: name for name in RUNS}


def test_only_what_the_right_torch_does_not_show_is_a_kill():
    trial = matrix.Trial("m", ("a.b",))
    trial.add(record("violated"))
    trial.conclude(matrix.Trial("", (), judged=["a.b"], red={"a.b": ["test_a.b"]}))
    assert trial.status == "survived"


def test_every_claim_that_a_mutant_names_must_refuse_it():
    trial = matrix.Trial("m", ("a.b", "a.c"))
    trial.add(record("violated"))
    trial.add(record("holds", "a.c"))
    trial.conclude(matrix.Trial("", (), judged=["a.b", "a.c"]))
    assert (trial.status, trial.detail) == ("survived", "not seen by a.c")


def test_a_claim_that_cannot_be_tested_here_needs_no_killer_here():
    trial = matrix.Trial("m", ("a.b",))
    trial.add(record("unsupported"))
    trial.conclude(matrix.Trial("", ()))
    assert trial.status == "elsewhere"


def test_a_survivor_makes_the_matrix_fail(capsys):
    trial = matrix.Trial("dropout.m", ("dropout.eval.identity",))
    baseline = matrix.Trial("", (), judged=["dropout.eval.identity"])
    trial.conclude(baseline)
    options = argparse.Namespace(pattern=["dropout.m"], json=None)
    assert matrix.conclude([trial], options, baseline) == 1
    assert "survived  dropout.m" in capsys.readouterr().out


def test_a_changed_function_evaluates_no_annotation_that_the_original_did_not():
    text = "def outer():\n    def inner(x: Missing): return x\n    return inner(1)\n"
    made = {}
    exec("from __future__ import annotations\n" + text, made)
    function = made["outer"]
    function.__code__ = mutation.recompile(function, text.replace("return x", "return x + 1"))
    assert function() == 2
