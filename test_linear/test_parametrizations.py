"""Weights computed from others: orthogonal matrices, spectral and weight normalisation, and one's own ones."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from specs.reference import parametrizations as reference
from torch_conformance.axes import PRECISE, VIAS
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
UNEXPORTED = tuple(via for via in VIAS if via != "export")  # an exported program assigns no attribute of its layer


def holder(values, cls=nn.Module):
    module = cls()
    module.weight = nn.Parameter(values)
    return module


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


# -- orthogonal matrices -----------------------------------------------------------------------------------------------

MAPS = {
    "matrix_exp": lambda x: reference.exponential(reference.skew(x))[..., : x.shape[-1]],
    "cayley": lambda x: reference.cayley(reference.skew(x))[..., : x.shape[-1]],
    "householder": reference.householder,
}
maps = pytest.mark.parametrize("how", MAPS)
# Products of matrices of n rows of length 1: n roundings, of half an eps each, an entry in each of about eight products
# (squarings, terms of the polynomial, reflectors, base), and as many for the elimination
PRODUCTS = 8


def tall(x):
    return x if x.shape[-2] >= x.shape[-1] else np.swapaxes(x, -1, -2)


def well_conditioned(case, *shape):
    """Singular values between 1 and 2."""
    u, s, v = np.linalg.svd(case.rng.standard_normal(shape), full_matrices=False)
    return case.tensor_of((u * np.linspace(1, 2, s.shape[-1])) @ v)


def free(case, how, shape):
    """An original value; of Householder's the diagonal holds signs."""
    values = case.rng.standard_normal(shape) / 2
    if how == "householder":
        least = np.arange(min(shape))
        values[least, least] = case.rng.choice([-1, 1], len(least))
    return case.tensor_of(values)


@claim("parametrizations.orthogonal.law")
@maps
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7)], ids=str)
def test_each_map_follows_its_law(case, how, shape):
    for trivial in (True, False):
        layer = holder(well_conditioned(case, *shape))
        assert parametrizations.orthogonal(layer, orthogonal_map=how, use_trivialization=trivial) is layer
        part, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        with torch.no_grad():
            original.copy_(free(case, how, shape))
        q = MAPS[how](tall(array(original)))
        assert hasattr(part, "base") == trivial
        q = array(part.base) @ q if trivial else q
        case.close(layer.weight, q if shape[0] >= shape[1] else q.T, k=PRODUCTS * max(shape), scale=1)


@claim("parametrizations.orthogonal.orthonormal")
@maps
def test_rows_or_columns_are_orthonormal_whatever_is_learnt(case, how):
    for shape in [(5, 5), (7, 3), (3, 7)]:
        layer = parametrizations.orthogonal(holder(case.tensor(*shape)), orthogonal_map=how)
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(free(case, how, shape))
        q = tall(array(layer.weight))
        gram = torch.as_tensor(q.T @ q).to(case.dtype)
        case.close(gram, np.eye(len(gram)), k=2 * PRODUCTS * max(shape), scale=1)  # every entry of q enters twice
        layer.weight.sum().backward()
        assert layer.parametrizations.weight.original.grad.any()


@claim("parametrizations.orthogonal.batches")
@maps
@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 5, 3), (2, 3, 5)], ids=str)
def test_a_batch_of_matrices_is_taken(case, how, shape):
    values = well_conditioned(case, *shape)
    for trivial in (True, False)[: 2 if how == "householder" else 1]:
        layer = parametrizations.orthogonal(holder(values.clone()), orthogonal_map=how, use_trivialization=trivial)
        k = PRODUCTS * max(shape)
        case.close(layer.weight, reference.orthogonalised(array(values)), k=k, scale=2)  # the condition of the weight
        layer.weight = other = well_conditioned(case, *shape)
        case.close(layer.weight, reference.orthogonalised(array(other)), k=k, scale=2)


@claim("parametrizations.orthogonal.starts-at-the-q")
@maps
@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7)], ids=str)
def test_the_first_value_is_the_q_of_the_weight(case, how, shape):
    values = well_conditioned(case, *shape)
    for trivial in (True, False)[: 2 if how == "householder" else 1]:
        layer = parametrizations.orthogonal(holder(values.clone()), orthogonal_map=how, use_trivialization=trivial)
        k, q = PRODUCTS * max(shape), reference.orthogonalised(array(values))
        case.close(layer.weight, q, k=k, scale=2)  # the condition of the weight
        layer.weight = other = well_conditioned(case, *shape)
        case.close(layer.weight, reference.orthogonalised(array(other)), k=k, scale=2)
        layer = parametrizations.orthogonal(holder(case.tensor_of(q)), orthogonal_map=how, use_trivialization=trivial)
        case.close(layer.weight, q, k=k, scale=2)


@claim("parametrizations.orthogonal.without-trivialization")
def test_without_the_extra_matrix_the_weight_is_the_map_of_the_old_one(case):
    for how in ("matrix_exp", "cayley"):
        values = case.tensor(5, 5) / 2
        layer = parametrizations.orthogonal(holder(values.clone()), orthogonal_map=how, use_trivialization=False)
        case.same(layer.parametrizations.weight.original.detach(), values)
        case.close(layer.weight, MAPS[how](array(values)), k=PRODUCTS * 5, scale=1)
        with case.raises(NotImplementedError, "use_trivialization=False"):
            layer.weight = values


@claim("parametrizations.orthogonal.default-map")
@pytest.mark.parametrize(
    ("shape", "dtype", "how"),
    [
        ((5, 5), torch.float32, "matrix_exp"),
        ((7, 3), torch.float32, "householder"),
        ((3, 7), torch.float32, "householder"),
        ((2, 4, 4), torch.float32, "matrix_exp"),
        ((2, 2, 4), torch.float32, "householder"),
        ((5, 3), torch.complex64, "matrix_exp"),
    ],
)
def test_the_map_is_chosen_by_shape_and_dtype(case, shape, dtype, how):
    values = case.tensor(*shape).to(dtype) + (1j if dtype.is_complex else 0) * case.tensor(*shape)
    weights = []
    for options in ({}, {"orthogonal_map": how}):
        case.reseed()
        layer = parametrizations.orthogonal(holder(values.clone()), **options)
        with torch.no_grad():
            layer.parametrizations.weight.original.sub_(torch.full(shape, 0.25, device=case.device).tril(-1))
        weights.append(torch.view_as_real(layer.weight) if dtype.is_complex else layer.weight)
        assert hasattr(layer.parametrizations.weight[0], "base"), "trivialization is the default"
    case.same(*(w.detach() for w in weights))


@claim("parametrizations.orthogonal.unitary")
@pytest.mark.parametrize("how", ["matrix_exp", "cayley"])
def test_complex_matrices_become_unitary(case, how):
    for shape in [(4, 4), (5, 3), (3, 5)]:
        values = torch.view_as_complex(case.tensor(*shape, 2))
        layer = parametrizations.orthogonal(holder(values), orthogonal_map=how)
        with torch.no_grad():
            layer.parametrizations.weight.original.copy_(torch.view_as_complex(case.tensor(*shape, 2) / 2))
        q, base = tall(array(layer.weight)), array(layer.parametrizations.weight[0].base)
        wanted = base @ MAPS[how](tall(array(layer.parametrizations.weight.original)))
        gap = torch.view_as_real(torch.as_tensor(np.ascontiguousarray(q)))
        k = 4 * PRODUCTS * max(shape)  # a complex product takes four
        case.close(gap.to(case.dtype), np.stack([wanted.real, wanted.imag], -1), k=k, scale=1)
        gram = q.conj().T @ q
        case.close(torch.as_tensor(np.abs(gram)).to(case.dtype), np.eye(len(gram)), k=2 * k, scale=1)


@claim("parametrizations.orthogonal.errors")
def test_what_cannot_be_made_orthogonal_is_refused(case):
    layer = nn.Linear(5, 3)
    for options, words in [
        ({"name": "nowhere"}, "no parameter or buffer with name 'nowhere'"),
        ({"name": "bias"}, "matrix or batch of matrices"),
        ({"orthogonal_map": "polar"}, "orthogonal_map has to be one of"),
    ]:
        with case.raises(ValueError, words):
            parametrizations.orthogonal(layer, **options)
    with case.raises(ValueError, "complex"):
        parametrizations.orthogonal(holder(torch.zeros(3, 3, dtype=torch.complex64)), orthogonal_map="householder")
    parametrizations.orthogonal(layer)
    with case.raises(ValueError, r"shape torch.Size\(\[3, 5\]\)"):
        layer.weight = torch.zeros(5, 3)


# -- spectral normalisation --------------------------------------------------------------------------------------------


def of_spectrum(case, *shape, dim=0):
    """A weight whose matrix, with ``dim`` in front, has the singular values 3, 1.5, 0.75, …: a gap of two."""
    front = [shape[dim], *(s for i, s in enumerate(shape) if i != dim)]
    u, s, v = np.linalg.svd(case.rng.standard_normal((front[0], int(np.prod(front[1:])))), full_matrices=False)
    matrix = (u * (3 * 0.5 ** np.arange(len(s)))) @ v
    return case.tensor_of(np.ascontiguousarray(np.moveaxis(matrix.reshape(front), 0, dim)))


DIMENSIONS = [
    (lambda: nn.Linear(5, 4), {}, 0),
    (lambda: nn.Conv2d(3, 4, 2), {}, 0),
    (lambda: nn.ConvTranspose1d(3, 4, 2), {}, 1),
    (lambda: nn.ConvTranspose2d(3, 4, 2), {}, 1),
    (lambda: nn.ConvTranspose3d(3, 4, 2), {}, 1),
    (lambda: nn.Conv1d(3, 4, 2), {"dim": 1}, 1),
    (lambda: nn.ConvTranspose1d(3, 4, 2), {"dim": 0}, 0),
]
dimensions = pytest.mark.parametrize(("make", "options", "dim"), DIMENSIONS)


def matrix_of(weight, dim):
    return np.moveaxis(array(weight), dim, 0).reshape(weight.shape[dim], -1)


def sums(matrix):
    """Roundings of u^T W v: half an eps a term, of sizes that add up to 1.16 sigma for a spectrum of 3, 1.5, 0.75, …"""
    return 0.6 * sum(matrix.shape)


@claim("parametrizations.spectral-norm.outputs-in-front")
@dimensions
def test_the_norm_is_that_of_the_matrix_with_the_outputs_in_front(case, make, options, dim):
    """Estimated at registration: with a gap of two, fifteen iterations leave 2**-60 of the error."""
    layer = make().to(case.device)
    layer.weight.data = weight = of_spectrum(case, *layer.weight.shape, dim=dim)
    assert parametrizations.spectral_norm(layer, **options) is layer
    case.close(layer.eval().weight, array(weight) / 3, k=sums(matrix_of(weight, dim)) + 2)  # weight's own, the quotient


@claim("parametrizations.spectral-norm.outputs-in-front")
def test_a_negative_dimension_counts_from_the_end(case):
    layer = nn.Conv1d(3, 4, 2).to(case.device)
    layer.weight.data = weight = of_spectrum(case, 4, 3, 2, dim=2)
    parametrizations.spectral_norm(layer, dim=-1)
    assert layer.parametrizations.weight[0]._u.shape == (2,)
    case.close(layer.eval().weight, array(weight) / 3, k=sums(matrix_of(weight, 2)) + 2)  # as above


@claim("parametrizations.spectral-norm.complex")
def test_a_complex_weight_is_divided_by_its_norm(case):
    """Turning each row by a phase of its own leaves the singular values."""
    layer, angles = nn.Linear(3, 4).to(case.device), case.tensor(4, 1)
    weight = of_spectrum(case, 4, 3, dim=0) * torch.polar(torch.ones_like(angles), angles)
    layer.weight = nn.Parameter(weight.clone())
    parametrizations.spectral_norm(layer)
    # complex sums have twice the terms; then weight's own and the phases' roundings, and the quotient
    case.close(layer.eval().weight, array(weight) / 3, k=2 * sums(array(weight)) + 5)


@claim("parametrizations.spectral-norm.vectors")
@pytest.mark.parametrize("eps", [None, 7.0])
def test_a_vector_is_divided_by_its_length(case, eps):
    layer = case.module(nn.Linear, 5, 3)
    bias = array(layer.bias).copy()
    parametrizations.spectral_norm(layer, "bias", **({} if eps is None else {"eps": eps}))
    case.close(layer.bias, bias / max(np.linalg.norm(bias), eps or 0), k=5)  # three squares, root and quotient
    assert not list(layer.parametrizations.bias[0].buffers())


@claim("parametrizations.spectral-norm.eps")
def test_no_vector_is_divided_by_less_than_eps(case):
    layer = case.module(nn.Linear, 5, 3)
    parametrizations.spectral_norm(layer, eps=100.0, n_power_iterations=1)
    part, w = layer.parametrizations.weight[0], array(layer.parametrizations.weight.original)
    with torch.no_grad():
        part._v.copy_(v := case.tensor(5))
        layer.train().weight  # noqa: B018
    u = w @ array(v) / 100
    case.close(part._u, u, k=7, scale=abs(w) @ abs(array(v)) / 100)  # sums of five, a quotient
    case.close(part._v, w.T @ u / 100, k=12, scale=abs(w).T @ abs(w) @ abs(array(v)) / 1e4)  # and of three


@claim("parametrizations.spectral-norm.assignment")
def test_an_assigned_weight_is_the_new_original(case):
    layer, value = parametrizations.spectral_norm(case.module(nn.Linear, 5, 3)), case.tensor(3, 5)
    layer.weight = value
    case.same(layer.parametrizations.weight.original.detach(), value)


@claim("parametrizations.spectral-norm.defaults")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, utils.spectral_norm], ids=["new", "old"])
def test_weight_is_iterated_once_by_default_and_eps_is_tiny(case, norm):
    weight = case.tensor(4, 3)
    by_default, explicit = (holder(weight.clone(), nn.Identity) for _ in "ab")
    case.reseed()
    norm(by_default)
    case.reseed()
    norm(explicit, "weight", 1, 1e-12, 0)
    for layer in (by_default, explicit):
        layer.train()(torch.zeros(1))
    case.same(by_default.weight.detach(), explicit.weight.detach())
    for ours, theirs in zip(by_default.buffers(), explicit.buffers(), strict=True):
        case.same(ours, theirs)
        case.close(ours.norm(), np.array(1.0), k=8)  # normalised: four squares, root, four quotients


@claim("parametrizations.spectral-norm.errors")
def test_what_has_no_spectral_norm_is_refused(case):
    layer = nn.Linear(5, 3)
    for kind, options, words in [
        (ValueError, {"name": "nowhere"}, "nowhere"),
        (ValueError, {"n_power_iterations": 0}, "n_power_iterations to be positive"),
        (IndexError, {"dim": 2}, "dimension out of range"),
        (IndexError, {"dim": -3}, "dimension out of range"),
    ]:
        with case.raises(kind, words):
            parametrizations.spectral_norm(layer, **options)
    parametrizations.spectral_norm(layer, dim=-2)


# -- spectral normalisation by a hook ----------------------------------------------------------------------------------


@claim("parametrizations.spectral-hook.law")
@dimensions
def test_the_hook_normalises_before_every_forward(case, make, options, dim):
    """In training mode it iterates; in eval mode it goes by the vectors it has."""
    layer = make()
    shape = layer.weight.shape
    x = torch.zeros(1, 5) if isinstance(layer, nn.Linear) else torch.zeros(1, 3, *[4] * (len(shape) - 2))
    assert utils.spectral_norm(layer, n_power_iterations=2, **options) is layer
    with torch.no_grad():
        layer.weight_orig.copy_(of_spectrum(case, *shape, dim=dim))
    w, u = matrix_of(layer.weight_orig, dim), array(layer.weight_u).copy()
    layer.train()(x)
    k = 0.0
    for matrix in (w.T, w) * 2:
        u, v = matrix @ u, u
        length = np.linalg.norm(u)
        # each product adds its sums and amplifies by 3 / its length at most
        u, k = u / length, 3 / length * (k + 0.6 * len(v)) + len(u) / 4 + 1
    case.close(layer.weight_u, u, k=k, scale=1)
    case.close(layer.weight_v, v, k=k, scale=1)
    u, v = array(layer.weight_u), array(layer.weight_v)
    case.close(layer.weight, array(layer.weight_orig) / (u @ w @ v), k=sums(w) * 3 / abs(u @ w @ v) + 1)
    layer.eval()
    with case.unchanged(layer):
        layer(x)
    layer.weight.sum().backward()
    assert layer.weight_orig.grad.any()


@claim("parametrizations.spectral-hook.registers")
def test_the_hook_keeps_the_original_as_parameter(case):
    layer = nn.Linear(5, 3)
    weight, value = layer.weight, layer.weight.detach().clone()
    utils.spectral_norm(layer)
    assert layer.weight_orig is weight
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight_orig"]
    assert list(layer.state_dict()) == ["bias", "weight_orig", "weight_u", "weight_v"]
    assert not isinstance(layer.weight, nn.Parameter)
    case.same(layer.weight, value)
    for vector, size in ((layer.weight_u, 3), (layer.weight_v, 5)):
        case.close(vector.norm(), np.array(1.0), k=8)  # five squares, root, quotient
        assert vector.shape == (size,)


@claim("parametrizations.spectral-hook.two-forwards")
def test_backward_goes_through_two_forwards(case):
    layer = utils.spectral_norm(case.module(nn.Linear, 5, 3)).train()
    (layer(case.tensor(2, 5)).sum() - layer(case.tensor(2, 5)).sum()).backward()
    assert layer.weight_orig.grad.any()


@claim("parametrizations.spectral-hook.removal")
@axes(via=("eager", "functional", "vmap", "aot"))  # nothing compiles the removal, which computes the weight anew
def test_removal_leaves_the_normalised_weight(case):
    layer = utils.spectral_norm(case.module(nn.Linear, 5, 3)).train()
    layer(case.tensor(2, 5))
    weight, vectors = layer.weight.detach().clone(), (layer.weight_u, layer.weight_v)
    before = [v.clone() for v in vectors]
    assert utils.remove_spectral_norm(layer) is layer
    assert isinstance(layer.weight, nn.Parameter)
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert not layer._forward_pre_hooks
    assert not layer._state_dict_hooks
    case.same(layer.weight.detach(), weight)
    for ours, theirs in zip(vectors, before, strict=True):
        case.same(ours, theirs)
    with case.unchanged(layer):
        layer(case.tensor(2, 5))


@claim("parametrizations.spectral-hook.loads-after-removal")
def test_after_removal_the_layer_loads_its_own_state(case):
    layer, other = (utils.spectral_norm(case.module(nn.Linear, 5, 3)) for _ in "ab")
    for each in (layer, other):
        utils.remove_spectral_norm(each)
    other.load_state_dict(layer.state_dict())
    case.same(other.weight.detach(), layer.weight.detach())


@claim("parametrizations.spectral-hook.several-weights")
@axes(via=UNEXPORTED)
def test_each_weight_has_its_own_hook(case):
    cell, names = case.module(nn.RNNCell, 3, 4), ["weight_ih", "weight_hh"]
    for name in names:
        utils.spectral_norm(cell, name)
        with case.raises(RuntimeError, "two spectral_norm hooks"):
            utils.spectral_norm(cell, name)
    assert {f"{name}_{part}" for name in names for part in ("orig", "u", "v")} <= set(cell.state_dict())
    utils.remove_spectral_norm(cell, "weight_hh")
    assert {"weight_hh", "weight_ih_orig", "weight_ih_u"} <= set(cell.state_dict())
    assert len(cell._forward_pre_hooks) == 1
    assert cell.state_dict()._metadata[""]["spectral_norm"] == {"weight_ih.version": 1}
    cell.weight_ih = None
    cell(case.tensor(2, 3))
    assert cell.weight_ih is not None
    for name in ("weight_hh", "nowhere"):
        with case.raises(ValueError, f"spectral_norm of '{name}' not found"):
            utils.remove_spectral_norm(cell, name)


@claim("parametrizations.spectral-hook.errors")
def test_what_the_hook_cannot_normalise_is_refused(case):
    with case.raises(ValueError, "n_power_iterations to be positive"):
        utils.spectral_norm(nn.Linear(5, 3), n_power_iterations=0)
    with case.raises(ValueError, "is None"):
        utils.spectral_norm(nn.Linear(5, 3, bias=False), "bias")
    with case.raises(ValueError, "uninitialized"):
        utils.spectral_norm(nn.LazyLinear(3))


@claim("parametrizations.spectral-hook.eps")
def test_the_hook_divides_no_vector_by_less_than_eps(case):
    layer = utils.spectral_norm(case.module(nn.Linear, 5, 3), eps=100.0).train()
    w, u = array(layer.weight_orig), array(layer.weight_u).copy()
    assert np.linalg.norm(u) < 0.5
    assert layer.weight_v.norm() < 0.5
    layer(case.tensor(2, 5))
    case.close(layer.weight_v, w.T @ u / 100, k=5, scale=abs(w).T @ abs(u) / 100)  # sums of three, a quotient
    case.close(layer.weight_u, w @ w.T @ u / 1e4, k=12, scale=abs(w) @ abs(w).T @ abs(u) / 1e4)  # and of five


@claim("parametrizations.spectral-hook.state")
def test_state_is_loaded_as_it_was_saved(case):
    old, new = (utils.spectral_norm(case.module(nn.Linear, 5, 3)) for _ in "ab")
    x = case.tensor(2, 5)
    saved = old.state_dict()
    assert saved._metadata[""]["spectral_norm"] == {"weight.version": 1}
    for state in (saved, dict(saved)):  # a dict of one's own has no metadata
        other = copy.deepcopy(new)
        other.load_state_dict(state)
        case.same(other.eval()(x), old.eval()(x))
    fresh = copy.deepcopy(new)
    with case.raises(RuntimeError, "missing key"):
        fresh.load_state_dict({"bias": saved["bias"], "weight_orig": saved["weight_orig"]})


@claim("parametrizations.spectral-hook.first-format")
def test_state_of_the_first_format_still_loads(case):
    """It held the weight as a buffer and no v, which is solved for, so that the weight comes out as it was."""
    layer, dim = utils.spectral_norm(nn.ConvTranspose1d(3, 4, 1).to(case.device)).eval(), 1
    original, sigma = of_spectrum(case, 3, 4, 1, dim=1), 1.7
    u = np.linalg.svd(matrix_of(original, dim))[0][:, 0]
    state = {"bias": case.tensor(4), "weight_orig": original, "weight_u": case.tensor_of(u), "weight": original / sigma}
    for name in ("weight_orig", "weight", "weight_u"):
        part = {key: value for key, value in state.items() if key != name}
        with case.raises(RuntimeError, f'"{name}"'):
            layer.load_state_dict(part)
        layer.load_state_dict(part, strict=False)
    layer.load_state_dict(dict(state))
    layer(case.tensor(1, 3, 2))
    # v is scaled until u^T W v is sigma, so that of its own errors none is left but those of u^T W v, there and here
    w, v = matrix_of(original, dim), array(layer.weight_v)
    case.close(layer.weight, array(original) / sigma, k=sum(w.shape) * (abs(u) @ abs(w) @ abs(v)) / sigma + 4)


# -- weight normalisation ----------------------------------------------------------------------------------------------


@claim("parametrizations.weight-norm.loads-the-hooks-state")
def test_state_of_the_hook_loads_into_the_parametrization(case):
    old, new, x = case.module(nn.Linear, 5, 3), nn.Sequential(nn.Linear(5, 3)).to(case.device), case.tensor(2, 5)
    utils.weight_norm(old)
    parametrizations.weight_norm(new[0])
    state = {f"0.{key}": value for key, value in old.state_dict().items()}
    new.load_state_dict(state)
    case.same(new(x), old(x))
    new.load_state_dict(new.state_dict())
    case.same(new(x), old(x))
    for half in ("g", "v"):
        with case.raises(RuntimeError, "missing key"):
            new.load_state_dict({key: value for key, value in state.items() if key != f"0.weight_{half}"})


@claim("parametrizations.weight-norm.removal-leaves-nothing")
def test_after_removal_the_layer_is_pickled_like_any_other(case):
    layer = parametrizations.weight_norm(case.module(nn.Linear, 5, 3))
    parametrize.remove_parametrizations(layer, "weight")
    case.same(pickle.loads(pickle.dumps(layer)).weight.detach(), layer.weight.detach())


AXES = {0: (1, 2), 1: (0, 2), 2: (0, 1), None: (0, 1, 2)}


@claim("parametrizations.weight-hook.law")
@axes(via=UNEXPORTED)
@pytest.mark.parametrize("dim", [*AXES, "default"])
def test_the_hook_computes_the_weight_before_every_forward(case, dim):
    layer, x = case.module(nn.Conv1d, 3, 5, 4), case.tensor(2, 3, 6)
    weight, axes = layer.weight.detach().clone(), AXES[0 if dim == "default" else dim]
    assert utils.weight_norm(layer, **({} if dim == "default" else {"dim": dim})) is layer
    length = np.sqrt((array(weight) ** 2).sum(axes, keepdims=True))
    terms = weight.numel() / length.size
    case.same(layer.weight_v.detach(), weight)
    case.close(layer.weight_g, length if dim is not None else length.reshape(()), k=terms / 2 + 2)  # squares, root
    case.close(layer.weight, array(weight), k=terms / 2 + 4)  # and a quotient and a product
    with torch.no_grad():
        layer.weight_g.copy_(case.tensor(*layer.weight_g.shape))
    case.close(layer.weight, array(weight), k=terms / 2 + 4)
    layer(x).sum().backward()
    wanted = reference.weight_norm(array(layer.weight_g), array(weight), axes)
    case.close(layer.weight, wanted, k=terms / 2 + 4)
    assert layer.weight_g.grad.any()
    assert layer.weight_v.grad.any()


@claim("parametrizations.weight-hook.registers")
def test_the_hook_replaces_the_parameter_by_two(case):
    layer = utils.weight_norm(case.module(nn.Linear, 5, 3))
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight_g", "weight_v"]
    assert list(layer.state_dict()) == ["bias", "weight_g", "weight_v"]
    layer(case.tensor(2, 5))
    weight = layer.weight
    assert utils.remove_weight_norm(layer) is layer
    assert isinstance(layer.weight, nn.Parameter)
    case.same(layer.weight.detach(), weight.detach())
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert not layer._forward_pre_hooks


@claim("parametrizations.weight-hook.several-weights")
def test_each_weight_has_its_own_norm(case):
    cell = case.module(nn.RNNCell, 3, 4)
    for name in ("weight_ih", "weight_hh"):
        utils.weight_norm(cell, name)
        with case.raises(RuntimeError, "two weight_norm hooks"):
            utils.weight_norm(cell, name)
    utils.remove_weight_norm(cell, "weight_hh")
    assert set(cell.state_dict()) == {"weight_ih_g", "weight_ih_v", "weight_hh", "bias_ih", "bias_hh"}
    assert len(cell._forward_pre_hooks) == 1
    for name in ("weight_hh", "nowhere"):
        with case.raises(ValueError, f"weight_norm of '{name}' not found"):
            utils.remove_weight_norm(cell, name)
    with case.raises(ValueError, "uninitialized"):
        utils.weight_norm(nn.LazyLinear(3))


@claim("parametrizations.weight-hook.deprecated")
def test_the_hook_is_deprecated(case):
    with pytest.warns((FutureWarning, UserWarning), match="deprecated"):
        utils.weight_norm(nn.Linear(2, 2))


# -- parametrizations of one's own -------------------------------------------------------------------------------------


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
    layer, other = linear(case, Own(double)), nn.Linear(5, 3)
    assert isinstance(layer, nn.Linear)
    assert type(layer) is not nn.Linear
    assert type(layer).__name__ == "ParametrizedLinear"
    assert parametrize.type_before_parametrizations(layer) is nn.Linear
    assert parametrize.type_before_parametrizations(other) is nn.Linear
    assert isinstance(layer.parametrizations.weight, parametrize.ParametrizationList)
    parametrize.register_parametrization(layer, "bias", Own(double))
    parametrize.remove_parametrizations(layer, "weight")
    assert parametrize.is_parametrized(layer, "bias")
    assert type(layer).__name__ == "ParametrizedLinear"
    case.same(layer.bias, layer.parametrizations.bias.original * 2)
    parametrize.remove_parametrizations(layer, "bias")
    assert type(layer) is nn.Linear
    assert not hasattr(nn.Linear, "bias")


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


@claim("parametrizations.weight-hook.second-derivative")
@axes(dtype=PRECISE)
def test_the_gradient_of_a_normalised_weight_is_differentiable(case):
    """Of the first entry, g v_1 / |v|, by v_1 twice and by v_1 and v_2, at v = (3, 4)."""
    layer = nn.utils.weight_norm(nn.Linear(2, 1, bias=False, device=case.device, dtype=case.dtype))
    with torch.no_grad():
        layer.weight_v.copy_(case.tensor_of([[3.0, 4.0]]))
        layer.weight_g.fill_(1.0)
    y = layer(case.tensor_of([[1.0, 0.0]]))
    (gradient,) = torch.autograd.grad(y.sum(), layer.weight_v, create_graph=True)
    (second,) = torch.autograd.grad(gradient[0, 0], layer.weight_v)
    # -3 v_1 v_2^2 / |v|^5 and v_2 (2 v_1^2 - v_2^2) / |v|^5: a difference of terms below 0.1
    case.close(second, np.array([[-144 / 3125, 8 / 3125]]), k=16, scale=np.full((1, 2), 0.1))


@claim("parametrizations.orthogonal.survives-decay")
def test_weight_decay_leaves_the_columns_orthonormal(case):
    layer = parametrizations.orthogonal(nn.Linear(2, 4, device=case.device, dtype=torch.float64))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)
    layer(case.tensor(3, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    weight = array(layer.weight)
    case.close(case.tensor_of(weight.T @ weight, dtype=torch.float64), np.eye(2), k=32, scale=np.ones((2, 2)))


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


@claim("parametrizations.weight-hook.copied")
@axes(via="eager")
def test_a_layer_under_weight_norm_is_copied(case):
    layer = nn.utils.weight_norm(case.module(nn.Linear, 3, 2))
    x = case.tensor(1, 3)
    case.same(copy.deepcopy(layer)(x), layer(x))


@claim("parametrizations.spectral-hook.copied")
@axes(via="eager")
def test_a_layer_under_spectral_norm_is_copied(case):
    layer, x = nn.utils.spectral_norm(case.module(nn.Linear, 3, 2)), case.tensor(1, 3)
    layer(x)
    case.same(copy.deepcopy(layer).eval()(x), layer.eval()(x))


@claim("parametrizations.spectral-hook.complex")
@axes(via="eager")
def test_the_hook_divides_a_complex_weight_by_its_greatest_singular_value(case):
    options = {"dtype": torch.complex128, "device": case.device}
    layer = nn.utils.spectral_norm(nn.Linear(2, 2, bias=False, **options), n_power_iterations=60)
    with torch.no_grad():
        layer.weight_orig.copy_(torch.tensor([[4, 2j], [2j, 4j]]))
    layer(torch.ones(1, 2, **options))
    # the iteration ends where rounding does; the greatest singular value of a weight of four numbers
    case.close(torch.linalg.svdvals(layer.weight.detach())[0], np.array(1.0), k=64)


@claim("parametrizations.pruning.copied")
@axes(via="eager")
def test_a_pruned_layer_is_copied(case):
    layer, x = case.module(nn.Linear, 3, 2), case.tensor(1, 3)
    prune.l1_unstructured(layer, "weight", 2)
    case.same(copy.deepcopy(layer)(x), layer(x))


@claim("parametrizations.weight-norm.on-meta")
@axes(via="eager")
def test_weight_norm_takes_a_layer_without_memory(case):
    layer = parametrizations.weight_norm(nn.Linear(5, 3, device="meta"))
    assert (layer.weight.device.type, layer.weight.shape) == ("meta", (3, 5))


@claim("parametrizations.pruning.frobenius")
@axes(via="eager")
def test_channels_are_pruned_by_the_norm_of_frobenius(case):
    """Channel 1 has the least sum of squares, 8 beside 9 and 12, and the greatest sum, 8 beside 3 and 6."""
    layer = case.module(nn.Conv2d, 1, 3, (2, 4), bias=False)
    with torch.no_grad():
        layer.weight.copy_(case.tensor_of([[3.0] + 7 * [0], 8 * [1.0], 3 * [2.0] + 5 * [0]]).reshape(3, 1, 2, 4))
    mask = prune.ln_structured(layer, "weight", 1, n="fro", dim=0).weight_mask
    assert mask.flatten(1).any(1).tolist() == [True, False, True]
