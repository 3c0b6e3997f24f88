"""nn.utils.parametrize: tensors computed from others, their cache, copies and removal."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from torch_conformance.checks import array
from torch_conformance.marks import axes, claim


class Exp(nn.Module):
    """Counts its calls, for the cache."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x.exp()

    def right_inverse(self, y):
        return y.log()


class Shift(nn.Module):
    def forward(self, x):
        return x * 3 + 1


class Halve(nn.Module):
    def forward(self, x):
        return x / 2

    def right_inverse(self, y):
        return y * 2


class Product(nn.Module):
    """A weight as the product of two tensors of its shape; ``given`` is what right_inverse returns when set."""

    given = None

    def forward(self, a, b):
        return a * b

    def right_inverse(self, x):
        return (x / 2, torch.full_like(x, 2)) if self.given is None else self.given


class Own(nn.Module):
    """Calls these functions; without the second it has no right_inverse."""

    def __init__(self, forward, right_inverse=None):
        super().__init__()
        self.forward = forward
        if right_inverse:
            self.right_inverse = right_inverse


def double(x):
    return x * 2


def halve(x):
    return x / 2


def linear(case, *parts, name="weight", **options):
    layer = case.module(nn.Linear, 5, 3)
    for part in parts:
        assert parametrize.register_parametrization(layer, name, part, **options) is layer
    return layer


@claim("module.parametrize.computed")
def test_a_parametrised_tensor_is_computed(case):
    layer = linear(case)
    weight = layer.weight
    parametrize.register_parametrization(layer, "weight", Shift())
    original = layer.parametrizations.weight.original
    assert original is weight
    assert "weight" not in dict(layer.named_parameters())
    case.same(layer.weight, original * 3 + 1)
    assert list(layer.state_dict()) == ["bias", "parametrizations.weight.original"]
    assert parametrize.is_parametrized(layer)
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
    assert not parametrize.is_parametrized(nn.Linear(2, 2))
    gradient, x = case.tensor(3, 5), case.tensor(2, 5)
    layer.weight.backward(gradient)
    case.same(original.grad, gradient * 3)
    case.same(layer(x), nn.functional.linear(x, original * 3 + 1, layer.bias))
    with case.raises(KeyError, "already exists|parametriz"):
        layer.register_parameter("weight", nn.Parameter(gradient))


@claim("module.parametrize.computed")
def test_buffers_can_be_parametrised(case):
    layer = nn.Module()
    layer.register_buffer("seen", case.tensor(3))
    before = layer.seen.clone()
    parametrize.register_parametrization(layer, "seen", Shift())
    case.same(layer.seen, before * 3 + 1)
    assert list(dict(layer.named_buffers())) == ["parametrizations.seen.original"]


@claim("module.parametrize.unsaved-buffer")
@axes(via="eager")
def test_what_is_not_saved_stays_so(case):
    layer = nn.Module()
    layer.register_buffer("seen", case.tensor(3), persistent=False)
    parametrize.register_parametrization(layer, "seen", Shift())
    assert not layer.state_dict()


@claim("module.parametrize.chain")
def test_parametrizations_chain(case):
    layer = linear(case, Shift(), Halve())
    original = layer.parametrizations.weight.original
    case.same(layer.weight, (original * 3 + 1) / 2)
    assert len(layer.parametrizations.weight) == 2


@claim("module.parametrize.assignment")
def test_assignment_goes_through_the_right_inverse(case):
    layer, wanted = linear(case, Exp(), Halve()), case.tensor_of(case.rng.uniform(0.5, 2, (3, 5)))
    layer.weight = wanted
    original = layer.parametrizations.weight.original
    case.close(original, np.log(2 * array(wanted)), k=2, scale=1)  # the logarithm of at most 4
    assert isinstance(original, nn.Parameter)
    assert original.requires_grad
    with case.raises((RuntimeError, NotImplementedError), "right_inverse"):
        linear(case, Shift()).weight = wanted


@claim("module.parametrize.cached")
def test_the_cache_holds_within_its_block(case):
    part = Exp()
    layer = linear(case, part)
    part.calls = 0
    assert layer.weight is not layer.weight
    assert part.calls == 2
    with parametrize.cached():
        first = layer.weight
        with parametrize.cached():
            assert layer.weight is first
        assert layer.weight is first
        assert part.calls == 3
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1)
    with parametrize.cached():
        assert not torch.equal(layer.weight, first)
        assert part.calls == 4
    assert layer.weight is not layer.weight


@claim("module.parametrize.removal")
@pytest.mark.parametrize("leave", [True, False])
def test_removal_leaves_a_plain_parameter(case, leave):
    layer = linear(case, Shift())
    original, computed = layer.parametrizations.weight.original.detach().clone(), layer.weight.detach().clone()
    assert parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave) is layer
    assert type(layer) is type(case.module(nn.Linear, 5, 3))
    assert type(layer.weight) is nn.Parameter
    assert layer.weight.requires_grad
    case.same(layer.weight.detach(), computed if leave else original)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert not hasattr(layer, "parametrizations")
    with case.raises(ValueError, "parametriz"):
        parametrize.remove_parametrizations(layer, "weight")


class Wider(nn.Module):
    def forward(self, x):
        return torch.cat([x, x])


class Upcast(nn.Module):
    def forward(self, x):
        return x.to(torch.complex64)


@claim("module.parametrize.checked")
def test_parametrizations_are_checked(case):
    layer = case.module(nn.Linear, 5, 3)
    for part, words in [(Wider(), "shape"), (Upcast(), "dtype")]:
        with case.raises(ValueError, words):
            parametrize.register_parametrization(layer, "weight", part)
        assert layer.weight.shape == (3, 5)
        assert layer(case.tensor(2, 5)).shape == (2, 3)
    with case.raises(ValueError, "nowhere.*does not have a parameter, a buffer|nowhere"):
        parametrize.register_parametrization(layer, "nowhere", Shift())
    parametrize.register_parametrization(layer, "bias", Wider(), unsafe=True)
    assert layer.bias.shape == (6,)


@claim("module.parametrize.mode-of-host")
@pytest.mark.parametrize("mode", [True, False])
def test_parametrizations_take_the_mode_of_their_host(case, mode):
    layer = case.module(nn.Linear, 5, 3).train(mode)
    parametrize.register_parametrization(layer, "weight", part := Shift().train(not mode))
    assert part.training is mode
    layer.train(not mode)
    assert part.training is not mode


@claim("parametrizations.several-tensors.registered")
def test_a_weight_may_depend_on_several_tensors(case):
    layer = case.module(nn.Linear, 5, 3)
    weight = layer.weight.detach().clone()
    layer.bias.requires_grad_(False)
    for name in ("weight", "bias"):
        parametrize.register_parametrization(layer, name, Product())
    parts = layer.parametrizations.weight
    assert not hasattr(parts, "original")
    assert [name for name, _ in parts.named_parameters()] == ["original0", "original1"]
    assert all(p.requires_grad for p in parts.parameters())
    assert not any(p.requires_grad for p in layer.parametrizations.bias.parameters())
    case.same(layer.weight.detach(), weight)
    layer.weight.sum().backward()
    case.same(parts.original1.grad, parts.original0.detach())
    layer.register_buffer("buffer", case.tensor(4))
    parametrize.register_parametrization(layer, "buffer", Product())
    assert [name for name, _ in layer.parametrizations.buffer.named_buffers()] == ["original0", "original1"]


@claim("parametrizations.several-tensors.assigned")
def test_assignment_fills_the_very_tensors(case):
    layer, value = linear(case, Product()), case.tensor(3, 5)
    parts = layer.parametrizations.weight
    tensors = parts.original0, parts.original1
    layer.weight = value
    assert parts.original0 is tensors[0]
    assert parts.original1 is tensors[1]
    case.same(parts.original0.detach(), value / 2)
    case.same(layer.weight.detach(), value)
    for given, words in [
        (value, "sequence of tensors. Got"),
        ((value,), "length 2"),
        ((value, value.double()), "dtype"),
        ((value, 1.0), "element 1|tensor 1"),
    ]:
        parts[0].given = given
        with case.raises(ValueError, words):
            layer.weight = value


@claim("parametrizations.several-tensors.removal")
def test_only_the_computed_weight_can_be_left(case):
    layer = linear(case, Product())
    weight = layer.weight.detach().clone()
    with case.raises(ValueError, "leave_parametrized=False"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer.weight) is nn.Parameter
    assert layer.weight.requires_grad
    case.same(layer.weight.detach(), weight)
    layer.register_buffer("buffer", case.tensor(4))
    parametrize.register_parametrization(layer, "buffer", Product())
    parametrize.remove_parametrizations(layer, "buffer")
    assert "buffer" in dict(layer.named_buffers())


@claim("parametrizations.registration.right-inverse")
def test_the_original_is_the_right_inverse_of_the_weight(case):
    """Last parametrization first; the parameter stays the same object, for the optimiser to find."""
    layer = case.module(nn.Linear, 5, 3)
    weight, value = layer.weight, layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Own(double, halve))
    assert layer.parametrizations.weight.original is weight
    case.same(weight.detach(), value / 2)
    case.same(layer.weight.detach(), value)
    with case.raises(RuntimeError, "does not implement right_inverse"):
        linear(case, Own(double)).weight = value

    def refuse(x):
        raise NotImplementedError

    layer = linear(case, Own(double, refuse), Own(halve, refuse))
    case.same(layer.weight, layer.parametrizations.weight.original * 1)


FIRST = [
    (Own(lambda x: 1.0), "must return a tensor"),
    (Own(double, lambda x: 1.0), "must return a tensor or a sequence"),
    (Own(lambda a, b: a * b, lambda x: (x, 1.0)), "element 1"),
    (Own(lambda x: x.float(), lambda x: x.double()), "may not change the dtype"),
    (Own(lambda x: x.double()), "may not change the dtype"),
    (Own(lambda x: x[0]), "may not change the shape"),
]
SECOND = [
    (Own(lambda x: 1.0), "must return a tensor"),
    (Own(lambda x: x.double()), "may not change the dtype"),
    (Own(lambda x: x[0]), "may not change the shape"),
    (Own(double, lambda x: 1.0), "right_inverse must return a tensor"),
    (Own(double, lambda x: x.double()), "same dtype"),
    (Own(double, lambda x: x[0]), "same shape"),
]


@claim("parametrizations.registration.checked")
def test_what_changes_dtype_or_shape_is_refused(case):
    """As the first parametrization and as one more; the module stays as it was."""
    for before, wrong in (((), FIRST), ((Own(double, halve),), SECOND)):
        for part, words in wrong:
            layer = linear(case, *before)
            value = layer.weight.detach().clone()
            with case.raises(ValueError, words):
                parametrize.register_parametrization(layer, "weight", part)
            assert parametrize.is_parametrized(layer) == bool(before)
            assert layer.weight.dtype == torch.float32
            case.same(layer.weight.detach(), value)


@claim("parametrizations.registration.unsafe")
def test_unsafe_registers_unchecked(case):
    layer = linear(case, Own(lambda x: x[0].double()), unsafe=True)
    assert (layer.weight.shape, layer.weight.dtype) == ((5,), torch.float64)
    layer = linear(case, Own(double, halve))
    parametrize.register_parametrization(layer, "weight", Own(lambda x: x[0]), unsafe=True)
    assert layer.weight.shape == (5,)
    assert layer.parametrizations.weight.unsafe
    parametrize.register_parametrization(layer, "weight", Own(double), unsafe=False)
    assert layer.parametrizations.weight.unsafe
    assert not linear(case, Own(double)).parametrizations.weight.unsafe


@claim("parametrizations.registration.assigned-dtype")
def test_an_assigned_value_keeps_the_dtype_of_the_original(case):
    part = Own(double, halve)
    layer, value = linear(case, part), case.tensor(3, 5)
    for given, words in [(1.0, "should return a tensor"), (value.double(), "has dtype")]:
        part.right_inverse = lambda x, given=given: given
        with case.raises(ValueError, words):
            layer.weight = value


@claim("parametrizations.registration.class")
def test_the_class_is_injected_for_this_module_alone(case):
    layer, other = linear(case, Own(double)), case.module(nn.Linear, 5, 3)
    plain = type(other)
    assert isinstance(layer, plain)
    assert type(layer) is not plain
    assert type(layer).__name__ == f"Parametrized{plain.__name__}"
    assert parametrize.type_before_parametrizations(layer) is plain
    assert parametrize.type_before_parametrizations(other) is plain
    assert isinstance(layer.parametrizations.weight, parametrize.ParametrizationList)
    parametrize.register_parametrization(layer, "bias", Own(double))
    parametrize.remove_parametrizations(layer, "weight")
    assert parametrize.is_parametrized(layer, "bias")
    assert type(layer).__name__ == f"Parametrized{plain.__name__}"
    case.same(layer.bias, layer.parametrizations.bias.original * 2)
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is plain
    assert not hasattr(plain, "bias")


@claim("parametrizations.removal.same-parameter")
@pytest.mark.parametrize("leave", [True, False])
def test_removal_keeps_the_parameter_object(case, leave):
    layer = linear(case, Own(double, halve))
    original = layer.parametrizations.weight.original
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave)
    assert layer.weight is original
    layer.register_buffer("buffer", value := case.tensor(4))
    parametrize.register_parametrization(layer, "buffer", Own(double))
    kept = value.clone()
    parametrize.remove_parametrizations(layer, "buffer", leave_parametrized=leave)
    case.same(layer.buffer, kept * (2 if leave else 1))
    assert "buffer" in dict(layer.named_buffers())
    with case.raises(ValueError, "does not have a parametrization on bias"):
        parametrize.remove_parametrizations(layer, "bias")


@claim("parametrizations.module.copied-not-pickled")
def test_a_parametrised_module_is_deep_copied_but_not_pickled(case):
    layer = linear(case, Product())
    model = nn.Sequential(layer, layer)
    twins = copy.deepcopy(model)
    assert twins[0] is twins[1]
    twin = twins[0]
    assert twin is not layer
    case.same(twin.weight, layer.weight)
    with torch.no_grad():
        twin.parametrizations.weight.original0.zero_()
    assert not twin.weight.any()
    assert layer.weight.any()
    with case.raises(RuntimeError, "only supported through state_dict"):
        pickle.dumps(layer)


@claim("parametrizations.module.copies-apart")
@axes(via="eager")
@pytest.mark.parametrize("act", ["register", "remove"])
def test_a_copy_is_parametrised_apart(case, act):
    layer = linear(case, Own(double))
    x, other = case.tensor(2, 5), copy.deepcopy(layer)
    y = layer(x)
    if act == "register":
        parametrize.register_parametrization(other, "bias", nn.Tanh())
    else:
        parametrize.remove_parametrizations(other, "weight")
    case.same(layer(x), y)


class Slotted(nn.Linear):
    __slots__ = ("empty", "mark")


@claim("parametrizations.module.copied-not-pickled")
def test_a_deep_copy_takes_slots_and_an_own_deepcopy_along(case):
    layer = Slotted(5, 3)
    layer.mark = [7]
    parametrize.register_parametrization(layer, "weight", Own(double))
    twin = copy.deepcopy(layer)
    assert twin.mark == [7]
    assert twin.mark is not layer.mark
    assert not hasattr(twin, "empty")

    class Marked(nn.Linear):
        def __deepcopy__(self, memo):
            return "own"

    assert copy.deepcopy(parametrize.register_parametrization(Marked(5, 3), "weight", Own(double))) == "own"


@claim("parametrizations.transfer.all-or-one")
def test_parametrizations_are_transferred_with_their_tensors(case):
    transfer = parametrize.transfer_parametrizations_and_params
    source = linear(case, Own(double), Own(halve))
    parametrize.register_parametrization(source, "bias", Product())
    target = case.module(nn.Linear, 5, 3)
    assert transfer(source, target) is target
    assert target.parametrizations.weight.original is source.parametrizations.weight.original
    assert len(target.parametrizations.weight) == 2
    assert target.parametrizations.bias.original1 is source.parametrizations.bias.original1
    for name in ("weight", "bias"):
        case.same(getattr(target, name).detach(), getattr(source, name).detach())
    one, bare = case.module(nn.Linear, 5, 3), nn.Identity()
    transfer(source, one, "bias")
    assert parametrize.is_parametrized(one, "bias")
    assert not parametrize.is_parametrized(one, "weight")
    transfer(source, bare, tensor_name="weight")
    case.same(bare.weight.detach(), source.weight.detach())
    plain = nn.Linear(5, 3)
    with case.unchanged(one):
        assert transfer(plain, one) is one


@claim("parametrizations.swap.keeps-the-object")
def test_with_swapped_tensors_parametrizations_come_and_go_alike(case):
    """torch.__future__.set_swap_module_params_on_conversion(True): tensors are swapped instead of filled."""
    if not hasattr(torch.__future__, "set_swap_module_params_on_conversion"):
        raise case.unsupported(f"torch {torch.__version__} cannot swap tensors")
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer, value = linear(case, Own(double, halve)), case.tensor(3, 5)
        original = layer.parametrizations.weight.original
        layer.weight = value.clone()
        assert layer.parametrizations.weight.original is original
        assert type(original) is nn.Parameter
        assert original.requires_grad
        case.same(original.detach(), value / 2)
        parametrize.remove_parametrizations(layer, "weight")
        assert layer.weight is original
        case.same(layer.weight.detach(), value)
        layer.bias.requires_grad_(False)
        parametrize.register_parametrization(layer, "bias", Own(double, halve))
        assert not layer.parametrizations.bias.original.requires_grad
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class Halves(nn.Module):
    """A sum of two tensors."""

    def forward(self, one, other):
        return one + other

    def right_inverse(self, weight):
        return weight // 2, weight - weight // 2


@claim("parametrizations.several-tensors.whole-numbers")
@axes(via="eager")
def test_whole_numbers_are_parametrized_by_several_tensors(case):
    module = nn.Module()
    module.table = nn.Parameter(torch.arange(4, device=case.device), requires_grad=False)
    parametrize.register_parametrization(module, "table", Halves())
    assert module.table.tolist() == [0, 1, 2, 3]
    assert not module.parametrizations.table.original1.requires_grad


@claim("parametrizations.registration.recurrent")
@pytest.mark.parametrize("cls", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrent_layer_uses_its_parametrized_weights(case, cls):
    class Zero(nn.Module):
        def forward(self, weight):
            return 0 * weight

    layer, x = case.module(cls, 3, 5, bias=False), case.tensor(4, 2, 3)
    assert layer(x)[0].any()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parametrize.register_parametrization(layer, name, Zero())
    assert not layer(x)[0].any(), "the layer computes with the weights that it had before"
