"""Optimisers: each step by its published law, in every implementation, with every option, from any state.

Every step is held against the law from the state that torch itself was in before it, so that errors cannot pile up and
the bound is that of one step: the running error of the law's own operations (specs/reference/rounded.py).
"""

import functools
import inspect

import numpy as np
import pytest
import torch

from specs.reference import optim as reference
from specs.reference.rounded import Rounded
from test_optim.stepping import (
    build,
    follows,
    give_gradients,
    law_of,
    loops,
    parameters_of,
    paths,
    variants,
    walk,
)
from torch_conformance.axes import PRECISE
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim

BETAS = {"lr": 0.03, "betas": (0.6, 0.8), "eps": 0.1}
EXTRAS = {"weight_decay": 0.2, "maximize": True}

# -- laws --------------------------------------------------------------------------------------------------------------


@claim("optim.sgd.law")
@axes(dtype=PRECISE)
@paths
@variants(
    {"lr": 0.3},
    {"lr": 0.3, **EXTRAS},
    {"lr": 0.3, "momentum": 0.7, "dampening": 0.4, "weight_decay": 0.2},
    {"lr": 0.3, "momentum": 0.7, "nesterov": True},
    {"lr": 0.3, "momentum": 0.7, "nesterov": True, **EXTRAS},
    {"lr": 0.3, "momentum": 0.7, "dampening": 0.4, **EXTRAS},
)
def test_sgd(case, path, options):
    walk(case, "SGD", reference.sgd, options, path)


@claim("optim.sgd.first-buffer-undampened")
@paths
def test_the_first_buffer_is_a_copy_of_the_gradient(case, path):
    (p,) = parameters = parameters_of(case, [(17,)])
    optimizer = build(case, "SGD", parameters, path, lr=0.3, momentum=0.7, dampening=0.4)
    give_gradients(case, parameters)
    optimizer.step()
    case.same(optimizer.state[p]["momentum_buffer"], p.grad)
    assert optimizer.state[p]["momentum_buffer"].data_ptr() != p.grad.data_ptr()


@claim("optim.adam.law")
@axes(dtype=PRECISE)
@paths
@variants(BETAS, BETAS | EXTRAS)
def test_adam(case, path, options):
    walk(case, "Adam", reference.adam, options, path)


@claim("optim.adam.amsgrad")
@axes(dtype=PRECISE)
@paths
@variants(BETAS | {"amsgrad": True}, BETAS | EXTRAS | {"amsgrad": True})
def test_amsgrad_keeps_the_uncorrected_maximum(case, path, options):
    parameters = parameters_of(case)
    optimizer = build(case, "Adam", parameters, path, **options)
    for smaller in (1, 4, 16):  # fading gradients: the maximum lies in the past
        give_gradients(case, parameters)
        for p in parameters:
            p.grad /= smaller
        follows(case, optimizer, parameters, reference.adam, options)


@claim("optim.adamw.law")
@axes(dtype=PRECISE)
@paths
@variants(BETAS, BETAS | EXTRAS, BETAS | {"weight_decay": 0.2, "amsgrad": True})
def test_adamw(case, path, options):
    walk(case, "AdamW", reference.adamw, options, path)


def trajectory(case, name, path, **options):
    """Where three steps lead from the same start by the same gradients."""
    generator = np.random.default_rng(case.seed)
    p = case.tensor_of(generator.standard_normal(33), requires_grad=True)
    optimizer = build(case, name, [p], path, **options)
    for _ in range(3):
        p.grad = case.tensor_of(generator.standard_normal(33))
        optimizer.step()
    return p.detach()


@claim("optim.adamw.without-decay-is-adam")
@paths
def test_without_decay_both_are_one(case, path):
    ours, theirs = (trajectory(case, name, path, weight_decay=0.0, **BETAS) for name in ("AdamW", "Adam"))
    case.same(ours, theirs)


@claim("optim.adamw.decay-is-not-the-penalty")
@paths
def test_decoupled_decay_is_not_the_l2_penalty(case, path):
    ours, theirs = (trajectory(case, name, path, weight_decay=0.2, **BETAS) for name in ("AdamW", "Adam"))
    assert (ours - theirs).abs().max() > 1e-3  # three decays by 0.006 of 33 parameters, hardly one of them below 0.1


@claim("optim.adamw.is-adam")
def test_adamw_is_adam_with_a_switch(case):
    assert issubclass(torch.optim.AdamW, torch.optim.Adam)
    ours = trajectory(case, "AdamW", "loop", weight_decay=0.2, **BETAS)
    case.same(ours, trajectory(case, "Adam", "loop", weight_decay=0.2, decoupled_weight_decay=True, **BETAS))


@claim("optim.nadam.law")
@axes(dtype=PRECISE)
@loops
@variants(BETAS | {"momentum_decay": 0.3}, BETAS | EXTRAS, BETAS | EXTRAS | {"decoupled_weight_decay": True})
def test_nadam(case, path, options):
    walk(case, "NAdam", law_of(case, "NAdam"), options, path)


LONGER = BETAS | {"betas": (0.6, 0.9)}  # rho exceeds 5 from the sixth step on


@claim("optim.radam.law")
@axes(dtype=PRECISE)
@loops
@variants(LONGER, LONGER | EXTRAS, LONGER | EXTRAS | {"decoupled_weight_decay": True})
def test_radam(case, path, options):
    walk(case, "RAdam", reference.radam, options, path, steps=7)


@claim("optim.adagrad.law")
@axes(dtype=PRECISE)
@paths
@variants(
    {"lr": 0.03, "lr_decay": 0.2, "eps": 0.1},
    {"lr": 0.03, "initial_accumulator_value": 0.3, "eps": 0.1, "weight_decay": 0.2},
    {"lr": 0.03, "lr_decay": 0.2, "eps": 0.1, **EXTRAS},
)
def test_adagrad(case, path, options):
    walk(case, "Adagrad", reference.adagrad, options, path)


@claim("optim.adadelta.law")
@axes(dtype=PRECISE)
@loops
@variants({"lr": 0.3, "rho": 0.7, "eps": 0.1}, {"lr": 0.3, "rho": 0.7, "eps": 0.1, **EXTRAS})
def test_adadelta(case, path, options):
    walk(case, "Adadelta", reference.adadelta, options, path)


RMS = {"lr": 0.03, "alpha": 0.7, "eps": 0.1}


@claim("optim.rmsprop.law")
@axes(dtype=PRECISE)
@loops
@variants(RMS, RMS | EXTRAS, RMS | {"momentum": 0.6}, RMS | EXTRAS | {"centered": True, "momentum": 0.6})
def test_rmsprop(case, path, options):
    walk(case, "RMSprop", reference.rmsprop, options, path)


@claim("optim.rmsprop.centered")
@axes(dtype=PRECISE)
@loops
@variants(RMS | {"centered": True}, RMS | EXTRAS | {"centered": True})
def test_centred_rmsprop(case, path, options):
    walk(case, "RMSprop", reference.rmsprop, options, path)


@claim("optim.rmsprop.constant-gradient")
@axes(dtype=PRECISE)
@loops
def test_centred_rmsprop_of_a_constant_gradient_stays_finite(case, path):
    p = case.tensor(100, requires_grad=True)
    optimizer = build(case, "RMSprop", [p], path, lr=0.25, alpha=0.5, centered=True)
    give_gradients(case, [p])
    for _ in range(60):  # until alpha^n is below half an eps of float64
        optimizer.step()
    assert p.isfinite().all(), f"{int(p.isnan().sum())} of 100 parameters are NaN"


@claim("optim.adamax.law")
@axes(dtype=PRECISE)
@loops
@variants(BETAS, BETAS | EXTRAS)
def test_adamax(case, path, options):
    walk(case, "Adamax", reference.adamax, options, path)


AVERAGED = {"lr": 0.03125, "lambd": 0.1, "alpha": 0.6, "t0": 1}  # lr is exact in float32, in which torch keeps eta


@claim("optim.asgd.law")
@axes(dtype=PRECISE)
@loops
@variants(AVERAGED, AVERAGED | EXTRAS)
def test_asgd(case, path, options):
    walk(case, "ASGD", reference.asgd, options, path, steps=4)


SIGNS = {"lr": 0.3, "etas": (0.4, 1.3), "step_sizes": (0.1, 0.4)}


@claim("optim.rprop.law")
@axes(dtype=PRECISE)
@loops
@variants(SIGNS, {"lr": 0.03, "etas": (0.3, 1.7), "maximize": True})
def test_rprop(case, path, options):
    parameters = parameters_of(case)
    optimizer = build(case, "Rprop", parameters, path, **options)
    for _ in range(4):
        give_gradients(case, parameters)
        parameters[-1].grad[::5] = 0.0  # no sign at all: the step stays as it is, and is not taken
        follows(case, optimizer, parameters, reference.rprop, options)


def sparse(case, size, rows):
    """A sparse gradient of ``size`` rows, these rows stored."""
    values = case.rng.uniform(0.5, 1.5, (len(rows), 3)) * case.rng.choice([-1, 1], (len(rows), 3))
    index = torch.tensor([rows], device=case.device)
    return torch.sparse_coo_tensor(index, case.tensor_of(values), (size, 3))


def follows_on_rows(case, optimizer, p, law, options, rows, gradient):
    """The rows that the gradient stores step by the law; all others, and their state, stay bit by bit."""
    rest, old = [i for i in range(len(p)) if i not in rows], p.detach().clone()
    state = {k: v for k, v in optimizer.state[p].items() if v is not None}
    tensors = {k: v.clone() for k, v in state.items() if torch.is_tensor(v) and v.shape == p.shape}
    before = {k: Rounded(array(v)[rows]) for k, v in tensors.items()}
    if "step" in state:
        before["step"] = float(state["step"])
    p.grad = gradient
    optimizer.step()
    wanted, after = law(Rounded(array(old)[rows]), Rounded(array(gradient.to_dense())[rows]), before, **options)
    case.close(p[rows], wanted.value, k=1, scale=wanted.error)
    case.same(p[rest].detach(), old[rest])
    for name, tensor in optimizer.state[p].items():
        if torch.is_tensor(tensor) and tensor.shape == p.shape:
            case.close(tensor[rows], after[name].value, k=1, scale=after[name].error)
            case.same(tensor[rest], tensors.get(name, torch.zeros_like(tensor))[rest])
        elif name == "step":
            assert float(tensor) == after["step"]


ROWS = [[1, 4, 7], [4, 5], [0, 4, 10]]


@claim("optim.sparse.sparse-adam")
@axes(dtype=PRECISE)
@variants(BETAS, BETAS | {"maximize": True})
def test_sparse_adam_touches_stored_rows_only(case, options):
    (p,) = parameters_of(case, [(11, 3)])
    optimizer = build(case, "SparseAdam", [p], "fixed", **options)
    for rows in ROWS:
        follows_on_rows(case, optimizer, p, reference.sparse_adam, options, rows, sparse(case, 11, rows))


@claim("optim.sparse.adagrad-and-sgd")
@axes(dtype=PRECISE)
@loops
@pytest.mark.parametrize("name", ["Adagrad", "SGD"])
def test_adagrad_and_sgd_take_sparse_gradients(case, path, name):
    (p,) = parameters_of(case, [(11, 3)])
    law, options = {"Adagrad": (reference.adagrad, {"lr_decay": 0.2, "eps": 0.1}), "SGD": (reference.sgd, {})}[name]
    options |= {"lr": 0.3, "maximize": True}
    optimizer = build(case, name, [p], path, **options)
    for rows in ROWS:
        follows_on_rows(case, optimizer, p, law, options, rows, sparse(case, 11, rows))


@claim("optim.sparse.sgd-momentum")
@loops
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_sparse_gradients(case, path, nesterov):
    (p,) = parameters_of(case, [(11, 3)])
    dense = p.detach().clone().requires_grad_()
    options = {"lr": 0.3, "momentum": 0.5, "nesterov": nesterov}
    first, second = build(case, "SGD", [p], path, **options), build(case, "SGD", [dense], **options)
    for rows in ROWS:
        p.grad = sparse(case, 11, rows)
        dense.grad = p.grad.to_dense()
        first.step()
        second.step()
    # in each of three steps a product and a sum for the buffer, for nesterov and for the parameter, which moves by
    # less than 0.3 * 1.5 / (1 - 0.5)
    case.close(p, array(dense), k=3 * 6, scale=abs(array(dense)) + 1)


@claim("optim.sparse.duplicates-are-summed")
@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam"])
def test_rows_stored_twice_are_summed_first(case, name):
    (p,) = parameters_of(case, [(5, 3)])
    law = {"Adagrad": reference.adagrad, "SparseAdam": reference.sparse_adam}[name]
    optimizer = build(case, name, [p], "fixed", lr=0.03, eps=0.1)
    once = sparse(case, 5, [1, 3, 4])
    halves = torch.sparse_coo_tensor(torch.cat([once._indices()] * 2, 1), torch.cat([once._values() / 2] * 2), (5, 3))
    follows_on_rows(case, optimizer, p, law, {"lr": 0.03, "eps": 0.1}, [1, 3, 4], halves)


@claim("optim.sparse.others-refuse")
@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adadelta", "RMSprop", "Adamax", "ASGD", "Rprop"])
def test_the_others_refuse_sparse_gradients(case, name):
    (p,) = parameters_of(case, [(5, 3)])
    optimizer = build(case, name, [p], lr=0.03)
    p.grad, old = sparse(case, 5, [1, 3]), p.detach().clone()
    with case.raises(RuntimeError, "sparse gradients"):
        optimizer.step()
    case.same(p.detach(), old)


@claim("optim.sparse.sparse-adam-options")
def test_sparse_adam_refuses_bad_options(case):
    p = case.tensor(5, 3, requires_grad=True)
    build(case, "SparseAdam", [p], "fixed", lr=0.3, betas=(0.0, 0.0))
    for option, values in {
        "lr": (0.0, -0.1),
        "eps": (0.0,),
        "betas": [(1, 0.9), (0.9, 1), (-0.1, 0.9), (0.9, -0.1)],
    }.items():
        for value in values:
            with case.raises(ValueError, "Invalid"):
                build(case, "SparseAdam", [p], "fixed", **{option: value})
    with case.raises(ValueError, "requires dense parameter"):
        build(case, "SparseAdam", [p.detach().to_sparse().requires_grad_()], "fixed")


@claim("optim.options.defaults")
def test_sparse_adam_has_its_documented_defaults(case):
    documented = inspect.signature(reference.sparse_adam).parameters
    for option, default in build(case, "SparseAdam", parameters_of(case), "fixed").defaults.items():
        assert default == documented[option].default, option


@claim("optim.sparse.sparse-adam-complex")
def test_sparse_adam_steps_complex_parameters_as_real_ones_or_refuses(case):
    (real,) = parameters_of(case, [(2, 2)])
    p = torch.view_as_complex(real.detach().clone()).requires_grad_()
    row, gradient = torch.tensor([[1]], device=case.device), case.tensor(1, 2)
    try:
        optimizer = build(case, "SparseAdam", [p], "fixed", lr=0.03)
    except ValueError:
        return
    p.grad = torch.sparse_coo_tensor(row, torch.view_as_complex(gradient), (2,))
    real.grad = torch.sparse_coo_tensor(row, gradient, (2, 2))
    optimizer.step()
    build(case, "SparseAdam", [real], "fixed", lr=0.03).step()
    case.close(torch.view_as_real(p.detach()), array(real), k=8, scale=abs(array(real)) + 0.03)  # one step of the law


@claim("optim.sparse.sparse-adam-no-list")
def test_sparse_adam_refuses_a_tensor_for_a_list(case):
    with case.raises((TypeError, ValueError), "iterable|non-leaf"):
        build(case, "SparseAdam", case.tensor(3, requires_grad=True), "fixed", lr=0.03)


@claim("optim.sparse.sparse-adam-no-rows")
def test_a_gradient_without_rows_changes_nothing(case):
    (p,) = parameters_of(case, [(5, 3)])
    old, nowhere = p.detach().clone(), torch.empty(1, 0, dtype=torch.int64, device=case.device)
    p.grad = torch.sparse_coo_tensor(nowhere, case.tensor(0, 3), (5, 3))
    build(case, "SparseAdam", [p], "fixed", lr=0.03).step()
    case.same(p.detach(), old)


@claim("optim.sparse.sparse-adam-refuses-dense")
def test_sparse_adam_refuses_dense_gradients(case):
    (p,) = parameters = parameters_of(case, [(5, 3)])
    optimizer = build(case, "SparseAdam", [p], "fixed", lr=0.03)
    give_gradients(case, parameters)
    with case.raises(RuntimeError, "dense gradients"), case.unchanged(p=p):
        optimizer.step()


# -- laws that see the whole tensor ------------------------------------------------------------------------------------

FACTORED = {"lr": 0.3, "beta2_decay": -0.6, "eps": (1e-3, 0.2), "d": 1.1, "weight_decay": 0.2}


@claim("optim.adafactor.law")
@axes(dtype=PRECISE)
@loops
@variants(FACTORED, FACTORED | {"maximize": True, "eps": (None, 2.5), "d": 3.0, "weight_decay": 0.0}, {"lr": 0.7})
def test_adafactor(case, path, options):
    parameters = parameters_of(case, [(7, 5), (17,), (2, 3, 5), (1, 9)])
    optimizer = build(case, "Adafactor", parameters, path, **options)
    law = functools.partial(reference.adafactor, tiny=eps(case.dtype))
    for _ in range(3):
        give_gradients(case, parameters)
        before = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in parameters]
        old = [array(p.clone()) for p in parameters]
        optimizer.step()
        for p, start, state in zip(parameters, old, before, strict=True):
            known = {k: float(v) if k == "step" else Rounded(array(v)) for k, v in state.items()}
            wanted, after = law(Rounded(start), Rounded(array(p.grad)), known, **options)
            # 2: torch takes roots of sums of squares and squares them again
            case.close(p, wanted.value, k=2, scale=wanted.error)
            assert set(optimizer.state[p]) == set(after)
            assert float(optimizer.state[p]["step"]) == after.pop("step")
            for name, value in after.items():
                case.close(optimizer.state[p][name], value.value, k=2, scale=value.error)


@claim("optim.adafactor.no-elements")
@loops
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_adafactor_steps_beside_a_parameter_without_elements(case, path, shape):
    empty, full = parameters = parameters_of(case, [shape, (5,)])
    optimizer, old = build(case, "Adafactor", parameters, path, lr=0.3), array(full.clone())
    give_gradients(case, parameters)
    optimizer.step()
    assert empty.shape == shape
    law = reference.adafactor(Rounded(old), Rounded(array(full.grad)), {}, lr=0.3, tiny=eps(case.dtype))[0]
    case.close(full, law.value, k=2, scale=law.error)  # 2: as above


@claim("optim.adafactor.eps-of-each-dtype")
@loops
@pytest.mark.parametrize("order", ["bfloat16 first", "float32 first", "float32 alone"])
def test_adafactor_takes_the_eps_of_each_parameters_dtype(case, path, order):
    """Gradients so small that the floor decides: next to a bfloat16 parameter a float32 one must keep its own."""
    dtypes = {"b": [torch.bfloat16, torch.float32], "f": [torch.float32, torch.bfloat16]}[order[0]]
    dtypes = dtypes[:1] if order.endswith("alone") else dtypes
    parameters = [case.tensor(9, dtype=dtype, requires_grad=True) for dtype in dtypes]
    optimizer = build(case, "Adafactor", parameters, path, lr=0.3)
    for p in parameters:
        p.grad = torch.full_like(p, 1e-8)
    old = [array(p.clone()) for p in parameters]
    optimizer.step()
    for p, start in zip(parameters, old, strict=True):
        law = reference.adafactor(Rounded(start), Rounded(array(p.grad)), {}, lr=0.3, tiny=eps(p.dtype))[0]
        case.close(p, law.value, k=2, scale=law.error)  # 2: as above


CUBIC = (1.5, -0.5, 0.0)


@claim("optim.muon.law")
@axes(dtype=PRECISE)
@variants(
    {"lr": 0.3, "momentum": 0.7, "weight_decay": 0.2, "ns_steps": 1},
    {"lr": 0.3, "momentum": 0.7, "nesterov": False, "ns_steps": 1, "adjust_lr_fn": "match_rms_adamw"},
    {"lr": 0.3, "momentum": 0.7, "ns_steps": 3, "ns_coefficients": CUBIC, "adjust_lr_fn": "original"},
    {"lr": 0.3, "weight_decay": 0.0, "ns_steps": 2, "ns_coefficients": CUBIC, "eps": 100.0},
)
def test_muon(case, options):
    parameters = parameters_of(case, [(9, 1), (2, 5), (5, 5)])
    optimizer = build(case, "Muon", parameters, "fixed", **options)
    for _ in range(3):
        give_gradients(case, parameters)
        before = [optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)).clone() for p in parameters]
        old = [array(p.clone()) for p in parameters]
        optimizer.step()
        for p, start, buffer in zip(parameters, old, before, strict=True):
            wanted, rough, buffer = reference.muon(start, Rounded(array(p.grad)), Rounded(array(buffer)), **options)
            case.close(optimizer.state[p]["momentum_buffer"], buffer.value, k=1, scale=buffer.error)
            # the iteration runs in bfloat16; the parameter itself is rounded thrice
            case.close(
                p, wanted, k=3, scale=np.abs(start) + np.abs(wanted) + rough * eps(torch.bfloat16) / eps(p.dtype)
            )


@claim("optim.muon.momentum-kept")
@axes(dtype=("bfloat16", "float32"))
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_keeps_its_momentum_as_it_was(case, nesterov):
    """A matrix in bfloat16 is a copy of the buffer only where one is made."""
    (p,) = parameters_of(case, [(3, 5)])
    optimizer = build(case, "Muon", [p], "fixed", lr=0.3, momentum=15 / 16, nesterov=nesterov)
    give_gradients(case, [p])
    optimizer.step()
    case.close(optimizer.state[p]["momentum_buffer"], array(p.grad) / 16, k=1)  # one rounding; a norm far from one


@claim("optim.muon.only-matrices")
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), ()])
def test_muon_takes_matrices_only(case, shape):
    with case.raises(ValueError, "2D"):
        build(case, "Muon", [case.tensor(*shape, requires_grad=True)], "fixed")
