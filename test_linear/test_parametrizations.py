"""Weights that torch computes from others: orthogonal matrices, spectral and weight normalisation, pruning."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from specs.reference import parametrizations as reference
from torch_conformance.axes import FLOATING, PRECISE, VIAS
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
UNEXPORTED = tuple(via for via in VIAS if via != "export")  # an exported program assigns no attribute of its layer


def holder(values, cls=nn.Module):
    module = cls()
    module.weight = nn.Parameter(values)
    return module


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
@axes(dtype=PRECISE, via="eager")
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
@axes(dtype=PRECISE, via="eager")
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
@axes(dtype=FLOATING, via="eager")
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


@claim("parametrizations.weight-norm.named")
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh"])
def test_weight_norm_takes_the_weight_that_is_named(case, name):
    cell = case.module(nn.RNNCell, 3, 4)
    before = {key: value.detach().clone() for key, value in cell.named_parameters()}
    parametrizations.weight_norm(cell, name)
    assert set(cell.parametrizations) == {name}
    assert set(dict(cell.named_parameters(recurse=False))) == set(before) - {name}
    case.close(getattr(cell, name), array(before.pop(name)), k=4 / 2 + 3)  # four squares under a root, as in the law
    for key, value in before.items():
        case.same(getattr(cell, key).detach(), value)


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


@claim("parametrizations.pruning.from-an-iterator")
@axes(via="eager")
def test_global_pruning_takes_an_iterator(case):
    layer = case.module(nn.Linear, 3, 2)
    prune.global_unstructured(iter([(layer, "weight")]), prune.L1Unstructured, amount=2)
    assert layer.weight_mask.sum() == 4


@claim("parametrizations.pruning.importance")
@axes(via="eager")
@pytest.mark.parametrize("name", ["l1_unstructured", "ln_structured", "global_unstructured"])
def test_scores_decide_where_they_are_given(case, name):
    """The scores are greatest where the weights are least."""
    layer = nn.Linear(2, 3, bias=False, device=case.device)
    with torch.no_grad():
        layer.weight.copy_(case.tensor_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    scores = 7 - layer.weight.detach()
    if name == "global_unstructured":
        prune.global_unstructured([(layer, "weight")], prune.L1Unstructured, {(layer, "weight"): scores}, amount=2)
    else:
        options = {"n": 1, "dim": 0} if name == "ln_structured" else {}
        getattr(prune, name)(layer, "weight", 1 if options else 2, **options, importance_scores=scores)
    assert layer.weight.tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]


@claim("parametrizations.pruning.random-channels")
@axes(via="eager")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_whole_channels_are_pruned_at_random(case, dim):
    layer = case.module(nn.Conv1d, 4, 5, 3)
    mask = prune.random_structured(layer, "weight", 2, dim).weight_mask
    channels = mask.movedim(dim, 0).flatten(1)
    assert (channels == channels[:, :1]).all()
    assert channels[:, 0].sum() == mask.shape[dim] - 2
