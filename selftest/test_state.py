"""The state witness sees every kind of change, and says by name what changed."""

import pytest
import torch
from torch import nn

from torch_conformance import state
from torch_conformance.checks import Violation


def layer():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def watch(module, *but, **named):
    return state.changes_only({"": module, **named}, but)


def replace_weight(m):
    m[0].weight = nn.Parameter(m[0].weight.detach().clone())


CHANGES = {
    "0.weight": lambda m: m[0].weight.data.mul_(2),
    "1.running_mean": lambda m: m[1].running_mean.add_(1),
    "1.num_batches_tracked": lambda m: m[1].num_batches_tracked.add_(0),
    "0.bias.grad": lambda m: setattr(m[0].bias, "grad", torch.zeros(3)),
    "0.bias.requires_grad": lambda m: m[0].bias.requires_grad_(False),
    "1.training": lambda m: m[1].eval(),
    "1.hooks": lambda m: m[1].register_forward_hook(lambda *a: None),
    "rng": lambda m: torch.rand(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_its_name(name):
    m = layer()
    with pytest.raises(Violation, match=f"changed {name}, which must stay"), watch(m):
        CHANGES[name](m)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_named_is_allowed(name):
    m = layer()
    with watch(m, name):
        CHANGES[name](m)


def test_a_change_that_is_named_must_happen():
    with pytest.raises(Violation, match=r"left 0\.weight as it was, which must change"), watch(layer(), "0.weight"):
        pass


def test_a_new_object_with_the_same_values_is_a_change():
    m = layer()
    with pytest.raises(Violation, match=r"0\.weight"), watch(m):
        replace_weight(m)


def test_grad_mode_is_watched():
    before = torch.is_grad_enabled()
    try:
        with pytest.raises(Violation, match="grad mode"), watch(layer()):
            torch.set_grad_enabled(False)
    finally:
        torch.set_grad_enabled(before)


def test_tensors_are_watched_by_the_name_they_are_given():
    x = torch.zeros(2)
    with pytest.raises(Violation, match="changed x,"), state.changes_only({"x": x}, ()):
        x[0] = 1


def test_nothing_changed_is_no_violation():
    m, x = layer().eval(), torch.randn(2, 3)
    with watch(m, x=x):
        m(x)
