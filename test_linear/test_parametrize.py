"""nn.utils.parametrize: tensors computed from others, their cache, their removal; weight and spectral norm by it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from specs.reference import parametrizations as reference
from torch_conformance.axes import FLOATING
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


def linear(case, *parts):
    layer = case.module(nn.Linear, 5, 3)
    for part in parts:
        parametrize.register_parametrization(layer, "weight", part)
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
    assert type(layer) is nn.Linear
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


DIRECTIONS = {0: (1, 2), 1: (0, 2), 2: (0, 1), None: (0, 1, 2)}


def weight_normed(case, dim):
    layer = case.module(nn.Conv1d, 3, 5, 4)
    weight = layer.weight.detach().clone()
    parametrizations.weight_norm(layer, dim=dim)
    return layer, weight, layer.parametrizations.weight.original0, layer.parametrizations.weight.original1


@claim("module.weight-norm.formula")
@axes(dtype=FLOATING, via="eager")
@pytest.mark.parametrize("dim", DIRECTIONS)
def test_weight_norm_splits_length_and_direction(case, dim):
    layer, weight, g, v = weight_normed(case, dim)
    terms = weight.numel() // g.numel()
    lengths = tuple(size if axis == dim else 1 for axis, size in enumerate(weight.shape))
    assert g.shape == (lengths if dim is not None else ())
    case.close(layer.weight, array(weight), k=terms / 2 + 3)  # the sum of squares under a root, root, quotient, product
    with torch.no_grad():
        g.copy_(case.tensor(*g.shape))
    case.close(layer.weight, reference.weight_norm(array(g), array(v), DIRECTIONS[dim]), k=terms / 2 + 3)


@claim("module.weight-norm.gradient")
@axes(dtype=("float32", "float64"), via="eager")
@pytest.mark.parametrize("dim", DIRECTIONS)
def test_weight_norm_gradients(case, dim):
    layer, _, g, v = weight_normed(case, dim)
    gradient = case.tensor(*v.shape)
    layer.weight.backward(gradient)
    wanted = reference.weight_norm_gradients(array(gradient), array(g), array(v), DIRECTIONS[dim])
    sizes = reference.weight_norm_gradients(abs(array(gradient)), abs(array(g)), abs(array(v)), DIRECTIONS[dim])
    terms = v.numel() // g.numel()
    case.close(
        g.grad, wanted[0].reshape(g.shape), k=1.5 * terms + 3, scale=sizes[0].reshape(g.shape)
    )  # the sum of products, and that of the norm
    length = np.sqrt((array(v) ** 2).sum(DIRECTIONS[dim], keepdims=True))
    scale = abs(array(g)) / length * (abs(array(gradient)) + abs(array(v)) / length * sizes[0])
    case.close(v.grad, wanted[1], k=2.5 * terms + 8, scale=scale)  # that sum, and the norm to the third power


@claim("module.weight-norm.last-dimension")
def test_weight_norm_takes_the_last_dimension(case):
    layer = parametrizations.weight_norm(nn.Linear(3, 5), dim=-1)
    assert layer.parametrizations.weight.original0.shape == (1, 3)


def spectral_normed(case, iterations=1, mode=False):
    layer = parametrizations.spectral_norm(case.module(nn.Linear, 5, 3), n_power_iterations=iterations).train(mode)
    part = layer.parametrizations.weight[0]
    with torch.no_grad():
        part._v.copy_(nn.functional.normalize(case.tensor(5), dim=0))
        part._u.copy_(nn.functional.normalize(array_product(layer, part), dim=0))
    return layer, part, layer.parametrizations.weight.original


def array_product(layer, part):
    return layer.parametrizations.weight.original @ part._v


@claim("module.spectral-norm.formula")
@axes(dtype=("float32", "float64"), via="eager")
def test_spectral_norm_divides_by_the_estimate(case):
    layer, part, original = spectral_normed(case)
    w, u, v = array(original), array(part._u), array(part._v)
    sizes = abs(u) @ abs(w) @ abs(v) / (u @ w @ v)
    case.close(
        layer.weight, reference.spectral_norm(w, u, v), k=10, scale=abs(w) / (u @ w @ v) * sizes
    )  # sums of 5 and 3


@claim("module.spectral-norm.iterates-in-training")
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_spectral_norm_iterates_in_training(case, iterations, grad):
    layer, part, original = spectral_normed(case, iterations, mode=True)
    u, v = reference.power_iteration(array(original), array(part._v), iterations)
    with torch.set_grad_enabled(grad):
        layer(case.tensor(2, 5))
    gap = np.linalg.norm(array(original), 2) / np.linalg.norm(array(original) @ v)
    case.close(part._u, u, k=20 * iterations, scale=gap**2)  # two normalised sums of 5 terms an iteration
    case.close(part._v, v, k=20 * iterations, scale=gap**2)
    with torch.set_grad_enabled(grad), case.unchanged(layer.eval()):
        layer(case.tensor(2, 5))


@claim("module.spectral-norm.gradient")
@axes(dtype=("float32", "float64"), via="eager")
def test_spectral_norm_gradient(case):
    layer, part, original = spectral_normed(case)
    gradient = case.tensor(3, 5)
    layer.weight.backward(gradient)
    w, u, v, given = array(original), array(part._u), array(part._v), array(gradient)
    sigma = u @ w @ v
    sizes = abs(u) @ abs(w) @ abs(v) / sigma
    scale = (abs(given) + (abs(given) * abs(w)).sum() / sigma * abs(np.outer(u, v))) / sigma * sizes
    case.close(
        original.grad, reference.spectral_norm_gradient(given, w, u, v), k=40, scale=scale
    )  # 15 terms, twice sigma
