"""Vias: each executes the module that the test holds, and what it cannot express is unsupported in its own words."""

import pytest
import torch
from torch import nn

from torch_conformance.axes import Point, executes_a_subject, spared
from torch_conformance.case import Case, Unsupported
from torch_conformance.marks import since

pytestmark = pytest.mark.skipif(not since("2.4"), reason="executes in eager mode only")
QUICK = ["functional", "vmap", "aot", "export"]


def case(via):
    return Case(Point("cpu", "float32", "contiguous", via), "name", 0)


class Steps(nn.Module):
    """Counts its calls in a buffer, so that running it shows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.weight


@pytest.mark.parametrize("via", ["functional", "aot"])
def test_a_via_runs_the_module_that_the_test_holds(via):
    layer, x = case(via).module(Steps), torch.randn(2, 3)
    before = layer.calls.clone()
    y = layer(x)
    assert torch.equal(y, x * layer.weight)
    assert torch.equal(layer.calls, before + 1)
    y.sum().backward()
    assert torch.allclose(layer.weight.grad, x.sum(0))


@pytest.mark.parametrize("via", QUICK)
def test_every_via_gives_the_same_answer(via):
    layer, x = case(via).module(nn.Linear, 3, 5), torch.randn(2, 3)
    assert torch.allclose(layer(x), x @ layer.weight.T + layer.bias, atol=1e-6)
    assert torch.allclose(case(via).function(torch.tanh)(x), x.tanh())


@pytest.mark.parametrize("via", ["functional", "aot"])
def test_hooks_run_once(via):
    layer, seen = case(via).module(nn.Linear, 3, 5), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer(torch.randn(2, 3))
    assert len(seen) == 1


def test_what_a_via_cannot_express_is_unsupported():
    with pytest.raises(Unsupported, match="via vmap"):
        case("vmap").module(nn.BatchNorm1d, 3)(torch.randn(4, 3))
    with pytest.raises(Unsupported, match="via aot"):
        case("aot").function(lambda x: x + 1 if x.sum() > 0 else x)(torch.randn(4))


def test_an_error_of_the_subject_stays_its_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        case("functional").module(nn.Linear, 3, 5)(torch.randn(2, 4))


def test_an_error_met_while_tracing_is_the_subjects_own():
    with pytest.raises(ValueError, match="between 0 and 1"):
        case("aot").function(nn.functional.dropout)(torch.randn(4), 1.5)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        case("aot").module(nn.BatchNorm1d, 3)(torch.randn(1, 3))


def test_a_costly_via_takes_the_extremes_of_a_test():
    eager, costly = (Point("cpu", "float32", "contiguous", via) for via in ("eager", "compile"))
    cases = [(f"{test}{n}{point.via}", test, point) for test in "ab" for n in (1, 2, 3) for point in (eager, costly)]
    assert spared([*cases, ("c1", "c", costly)]) == {"a2compile", "b2compile"}


def helper(case):
    return case.module(nn.Linear, 3, 5)


def test_only_a_test_that_asks_for_a_subject_has_one():
    assert executes_a_subject(lambda case: helper(case))
    assert executes_a_subject(lambda case: [case.function(f) for f in (torch.add,)])
    assert not executes_a_subject(lambda case: case.tensor(3))
