"""The surface: signatures, state dict keys and sentences, the same on every call and without a trace left behind."""

from __future__ import annotations

import torch
from torch import nn

from torch_conformance import changes, surface

EVERY_CLAIM = [name for change in changes.load() for name in change.claims]


def test_defaults_are_told_and_annotations_are_not():
    assert surface.signature(nn.Dropout) == "(p=0.5, inplace=False)"


def test_a_builtin_is_told_by_the_first_line_of_its_docstring():
    assert surface.signature(torch.clamp).startswith("clamp(input")


def test_no_address_is_told():
    def function(key=lambda x: x):
        pass

    assert " at 0x" not in surface.signature(function)


def test_a_name_that_is_not_there_is_absent():
    assert surface.collect(["torch.nn.NoSuchLayer"], [])["signatures"] == {"torch.nn.NoSuchLayer": "absent"}


def test_a_class_tells_its_own_methods():
    found = surface.collect(["torch.nn.Module"], [])["signatures"]
    assert found["torch.nn.Module.train"] == "(self, mode=True)"
    assert not any("._" in name for name in found)


def test_keys_of_layers_optimizers_and_schedulers():
    names = ["torch.nn.BatchNorm1d", "torch.optim.Adam", "torch.optim.lr_scheduler.StepLR", "torch.nn.GroupNorm"]
    found = surface.collect(names, [])["state_dict_keys"]
    assert found["torch.nn.BatchNorm1d"] == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert found["torch.nn.GroupNorm"] == ["weight", "bias"]
    assert {"param_groups.betas", "state.exp_avg", "state.step"} <= set(found["torch.optim.Adam"])
    assert "gamma" in found["torch.optim.lr_scheduler.StepLR"]


def test_a_cited_sentence_is_told_as_installed(monkeypatch):
    monkeypatch.setattr(surface.docs, "cited", lambda name: {"0123456789": "It drops."})
    found = surface.collect(["torch.nn.Dropout#0123456789", "torch.nn.Dropout#9876543210"], [])["sentences"]
    assert found == {"torch.nn.Dropout#0123456789": "It drops.", "torch.nn.Dropout#9876543210": None}


def test_the_random_state_and_the_gradient_mode_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    surface.collect(["torch.nn.Linear", "torch.optim.SGD"], EVERY_CLAIM)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_the_same_interpreter_shows_the_same_twice():
    names = ["torch.nn.Linear", "torch.optim.Adam", "torch.nn.Transformer", "torch.utils.checkpoint.checkpoint"]
    assert surface.collect(names, EVERY_CLAIM) == surface.collect(names, EVERY_CLAIM)


def test_only_changes_of_the_claims_give_their_examples():
    found = surface.collect([], ["hooks.tensor.post-accumulate-order", "optim.absent"])["examples"]
    assert set(found) == {"post-accumulate-grad-hook"}


def test_an_example_gives_its_last_value_or_its_error():
    assert surface.run("x = 1\nx + 1") == "2"
    assert surface.run("1 / 0") == "ZeroDivisionError: division by zero"
    assert surface.run("error(lambda: int('a'))") == "ValueError"
    assert surface.run("error(lambda: 1)") == "no error"
