"""The for-loop, the foreach and the fused implementation: one law for every dtype, layout and mixture of parameters."""

import functools
import inspect
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specs.reference import optim as reference
from specs.reference.rounded import Rounded
from test_optim.stepping import (
    ALL,
    FUSED_ON_CPU,
    PATHS,
    USUAL,
    Options,
    as_law,
    build,
    every,
    flat,
    follows,
    give_gradients,
    law_of,
    loops,
    parameters_of,
    remembered,
    walk,
)
from torch_conformance.axes import FLOATING, PRECISE, REDUCED
from torch_conformance.checks import array, eps
from torch_conformance.marks import axes, claim
from torch_conformance.switches import switched

names = pytest.mark.parametrize("name", ALL)
fused = pytest.mark.parametrize("name", FUSED_ON_CPU)
steady = pytest.mark.parametrize("name", [name for name in ALL if name != "ASGD"])  # whose lists lag behind its loop


@claim("optim.paths.low-precision")
@axes(dtype=REDUCED)
@every
def test_low_precision_steps_by_the_law(case, name, path):
    walk(case, name, law_of(case, name), USUAL[name], path)


@claim("optim.paths.low-precision")
@axes(dtype=REDUCED)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", Options(lr=0.3)),
        ("SGD", Options(lr=0.3, momentum=0.7, nesterov=True, weight_decay=0.2)),
        ("Adam", USUAL["AdamW"]),
        ("Adam", Options(lr=0.03, betas=(0.6, 0.8), eps=0.1)),
        ("AdamW", USUAL["Adam"]),
        ("Adagrad", Options(lr=0.03, eps=0.1, maximize=True)),
    ],
    ids=str,
)
def test_the_fused_kernel_knows_its_options_in_low_precision(case, name, options):
    walk(case, name, law_of(case, name), options, "fused")


@claim("optim.paths.complex")
@loops
@names
def test_a_complex_parameter_steps_as_two_real_ones(case, name, path):
    walk(case, name, law_of(case, name), USUAL[name], path, dtype=torch.complex64)


@claim("optim.paths.complex-maximize")
@steady
def test_a_complex_parameter_climbs_as_two_real_ones(case, name):
    parameters = parameters_of(case, [(3,), (2, 5)], torch.complex64)
    optimizer = build(case, name, parameters, "foreach", **USUAL[name] | {"maximize": True})
    give_gradients(case, parameters)
    follows(case, optimizer, parameters, law_of(case, name), USUAL[name] | {"maximize": True})


@claim("optim.paths.other-default-dtype")
@steady
def test_the_default_dtype_does_not_matter(case, name):
    """The second step goes by the counts that the first has left."""
    parameters = parameters_of(case, [(7,), (3, 5)])
    optimizer = build(case, name, parameters, "foreach", **USUAL[name])
    with switched("default dtype", torch.float64):
        for _ in range(2):
            give_gradients(case, parameters)
            follows(case, optimizer, parameters, law_of(case, name), USUAL[name])


@claim("optim.paths.fused-refuses-complex")
@fused
def test_fused_refuses_complex_parameters(case, name):
    parameters = parameters_of(case, [(3,)], torch.complex64)
    with case.raises(RuntimeError, "floating point"):
        optimizer = build(case, name, parameters, "fused")
        give_gradients(case, parameters)
        optimizer.step()


@claim("optim.paths.layouts")
@every
def test_gradients_laid_out_otherwise_than_the_parameter(case, name, path):
    """A transposed parameter with a row-major gradient, and the other way round: elements meet by index."""
    parameters = [case.tensor(9, 33).t().requires_grad_(), case.tensor(33, 9, requires_grad=True)]
    optimizer = build(case, name, parameters, path, **USUAL[name])
    for _ in range(2):
        give_gradients(case, parameters)
        parameters[0].grad = parameters[0].grad.contiguous()
        parameters[1].grad = parameters[1].grad.t().contiguous().t()
        follows(case, optimizer, parameters, law_of(case, name), USUAL[name])


@claim("optim.paths.many-tensors")
@axes(dtype=("float32", "bfloat16"))
@fused
@pytest.mark.parametrize("path", PATHS)
def test_the_last_of_many_parameters_steps_like_the_first(case, name, path):
    parameters = parameters_of(case, [(2,)] * 37 + [(40_009,)])  # more elements than torch gives to one thread
    optimizer = build(case, name, parameters, path, **USUAL[name])
    give_gradients(case, parameters)
    follows(case, optimizer, parameters, law_of(case, name), USUAL[name])


@claim("optim.paths.nan-stays-in-its-element")
@pytest.mark.parametrize(("name", "path"), [pair for pair in every.args[1] if pair[0] != "Rprop"])
def test_nan_stays_in_its_element(case, name, path):
    """Of the gradient: in the parameter, and in what is remembered of it."""
    (parameter,) = parameters_of(case, [(35,)])
    optimizer = build(case, name, [parameter], path, **USUAL[name])
    for _ in range(2):
        give_gradients(case, [parameter])
        parameter.grad[[3, -1]] = torch.nan
        optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if getattr(value, "shape", ()) == parameter.shape]
    for values in (parameter.detach(), *state):
        assert array(values.isnan()).nonzero()[0].tolist() == [3, 34]


@claim("optim.paths.nan-stays-in-its-element")
@loops
def test_rprop_stays_where_the_gradient_is_nan(case, path):
    (parameter,) = parameters_of(case, [(35,)])
    optimizer, before = build(case, "Rprop", [parameter], path, **USUAL["Rprop"]), parameter.detach().clone()
    give_gradients(case, [parameter])
    parameter.grad[[3, -1]] = torch.nan
    optimizer.step()
    assert array(parameter == before).nonzero()[0].tolist() == [3, 34]


@claim("optim.paths.mixed-dtypes")
@every
def test_one_group_holds_parameters_of_several_dtypes(case, name, path):
    dtypes = [torch.float32, torch.float64, torch.float32, torch.float64]
    together, alone = [], []
    for dtype in dtypes:
        p = case.tensor(17, dtype=dtype)
        together.append(p.clone().requires_grad_())
        alone.append([p.clone().requires_grad_()])
    one = build(case, name, together, path, **USUAL[name])
    many = [build(case, name, p, path, **USUAL[name]) for p in alone]
    for _ in range(3):
        give_gradients(case, together[::2])
        give_gradients(case, together[1::2])
        for p, (q,) in zip(together, alone, strict=True):
            q.grad = p.grad.clone()
        for optimizer in [one, *many]:
            optimizer.step()
    for p, (q,) in zip(together, alone, strict=True):
        case.same(p.detach(), q.detach())


@claim("optim.paths.own-step-counts")
@every
def test_each_parameter_counts_its_own_steps(case, name, path):
    """One whose gradient comes late goes the way that it would go alone."""
    together = parameters_of(case, [(17,), (9,)])
    alone = [p.detach().clone().requires_grad_() for p in together]
    optimizers = [build(case, name, parameters, path, **USUAL[name]) for parameters in (together, *zip(alone))]
    for present in (1, 2, 2):
        give_gradients(case, together[:present])
        for p, twin in zip(together[:present], alone, strict=False):
            twin.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    case.same(flat(together), flat(alone))


@claim("optim.paths.default-on-cpu")
@names
def test_on_the_cpu_the_loop_is_the_default(case, name):
    if case.device.type != "cpu":
        raise case.unsupported("elsewhere foreach may be chosen")
    start, results = case.tensor(33), []
    gradients = [case.tensor(33) for _ in range(3)]
    for path in ("fixed", "loop"):
        p = start.clone().requires_grad_()
        optimizer = build(case, name, [p], path, **USUAL[name])
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()
        results.append(p.detach())
    case.same(*results)


@claim("optim.paths.exclusive")
@fused
def test_fused_excludes_foreach_and_differentiable(case, name):
    cls, p = getattr(torch.optim, name), case.tensor(3, requires_grad=True)
    build(case, name, [p], "fused")
    for other in ("foreach", "differentiable"):
        with case.raises(RuntimeError, other):
            cls([p], fused=True, **{other: True})


@claim("optim.paths.fused-loss-scaling")
@axes(dtype=FLOATING)
@fused
def test_fused_unscales_by_the_scale_it_is_handed(case, name):
    parameters = parameters_of(case)
    optimizer = build(case, name, parameters, "fused", **USUAL[name])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    for _ in range(2):
        give_gradients(case, parameters)
        for p in parameters:
            p.grad *= 8  # a power of two: unscaling is exact
        old = [p.grad.clone() for p in parameters]

        def law(p, g, state, **options):
            return law_of(case, name)(p, g * 0.125, state, **options)

        follows(case, optimizer, parameters, law, USUAL[name])
        for p, g in zip(parameters, old, strict=True):
            case.same(p.grad, g / 8)


@claim("optim.paths.fused-skips-overflow")
@fused
def test_fused_skips_a_step_whose_gradients_overflowed(case, name):
    """Skipped at the first step and later: parameters stay, and what follows is as if the step had not been."""
    parameters, law = parameters_of(case), law_of(case, name)
    optimizer = build(case, name, parameters, "fused", **USUAL[name])
    optimizer.grad_scale = torch.tensor(1.0)
    for overflow, first in [(True, True), (False, True), (True, False), (False, False)]:
        give_gradients(case, parameters)
        optimizer.found_inf = torch.tensor(float(overflow))
        if overflow:
            parameters[0].grad[0] = float("inf")
            old = flat(parameters)
            optimizer.step()
            case.same(flat(parameters), old)
        else:
            start = functools.partial(afresh, law) if first and name != "Adagrad" else law
            follows(case, optimizer, parameters, start, USUAL[name])


def afresh(law, p, g, state, **options):
    """The law from no state at all, whatever a skipped step has left behind."""
    return law(p, g, {}, **options)


def steps_with(case, name, path, lr):
    options = USUAL[name] | {"lr": 0.25}
    parameters = parameters_of(case)
    optimizer = build(case, name, parameters, path, **options | {"lr": lr})
    for _ in range(3):
        give_gradients(case, parameters)
        follows(case, optimizer, parameters, law_of(case, name), options)


tensor_lr = pytest.mark.parametrize(
    ("name", "path"), [*[(n, "loop") for n in ALL], *[(n, "fused") for n in FUSED_ON_CPU]]
)


@claim("optim.options.tensor-lr")
@axes(dtype=PRECISE)
@tensor_lr
def test_lr_may_be_a_tensor(case, name, path):
    steps_with(case, name, path, torch.tensor(0.25, dtype=case.dtype))


@claim("optim.options.tensor-lr-of-lists")
@pytest.mark.parametrize("name", [name for name in ALL if name not in ("Adam", "AdamW", "ASGD")])
def test_foreach_takes_a_tensor_lr(case, name):
    steps_with(case, name, "foreach", torch.tensor(0.25, dtype=case.dtype))


@claim("optim.options.tensor-lr-one-element")
@tensor_lr
def test_a_tensor_lr_may_have_a_dimension(case, name, path):
    steps_with(case, name, path, torch.tensor([0.25], dtype=case.dtype))


@claim("optim.options.tensor-lr-size")
@names
def test_a_tensor_lr_has_one_element(case, name):
    with case.raises(ValueError, "1-element"):
        build(case, name, parameters_of(case), lr=torch.tensor([0.1, 0.2]))


@claim("optim.options.read-at-each-step")
@every
def test_options_changed_between_steps_take_effect(case, name, path):
    """As a scheduler changes them: every number of the group is halved after the first step."""
    parameters, options = parameters_of(case), dict(USUAL[name])
    optimizer = build(case, name, parameters, path, **options)
    for _ in range(3):
        give_gradients(case, parameters)
        follows(case, optimizer, parameters, law_of(case, name), options)
        for key, value in options.items():
            if isinstance(value, float) and key != "alpha" and (name, key) != ("Rprop", "lr"):
                options[key] = optimizer.param_groups[0][key] = value / 2


@claim("optim.options.defaults")
@names
def test_options_have_their_documented_defaults(case, name):
    optimizer, documented = build(case, name, parameters_of(case), "fixed", lr=0.01), {}
    for law in (reference.adam, reference.adamw) if name == "AdamW" else (getattr(reference, name.lower()),):
        parameters = inspect.signature(law).parameters.values()
        documented |= {p.name: p.default for p in parameters if p.default is not p.empty}
    for key in set(documented) & set(optimizer.defaults) - {"lr", "decoupled_weight_decay"}:
        assert optimizer.defaults[key] == documented[key], key


@claim("optim.options.lr-default")
@names
def test_lr_has_its_documented_default(case, name):
    law = reference.adam if name == "AdamW" else getattr(reference, name.lower())
    optimizer = build(case, name, parameters_of(case), "fixed")
    assert optimizer.defaults["lr"] == inspect.signature(law).parameters["lr"].default


@claim("optim.options.sgd-lr-required")
def test_sgd_once_wanted_a_learning_rate(case):
    with case.raises(ValueError, "required optimization parameter lr"):
        torch.optim.SGD(parameters_of(case))


@claim("optim.errors.nesterov")
@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.5, "dampening": 0.1}], ids=str)
def test_nesterov_wants_momentum_and_no_dampening(case, options):
    with case.raises(ValueError, "nesterov"):
        torch.optim.SGD(parameters_of(case), lr=0.1, nesterov=True, **options)


@claim("optim.options.differentiable")
@names
def test_a_differentiable_step_steps_by_the_law(case, name):
    """The parameter is no leaf: an outer graph goes through it, and comes back."""
    outer = case.tensor(33, requires_grad=True)
    parameters = [outer * 1]
    optimizer = build(case, name, parameters, "loop", differentiable=True, **differentiable(name))
    give_gradients(case, parameters)
    follows(case, optimizer, parameters, law_of(case, name), differentiable(name))
    parameters[0].sum().backward()
    assert (outer.grad != 0).all()


@claim("optim.options.differentiable-in-float64")
@axes(dtype="float64", via="eager")
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_differentiable_step_is_as_fine_as_another(case, name):
    leaf, result, g = case.tensor(5, requires_grad=True), case.tensor(5, requires_grad=True) * 1, case.tensor(5)
    with torch.no_grad():
        result.copy_(leaf)
    for p, differentiable in ((leaf, False), (result, True)):
        p.grad = g.clone()
        build(case, name, [p], "loop", lr=0.3, differentiable=differentiable).step()
    # two corrections, a root, two quotients and the sum, each way
    case.close(result, array(leaf), k=16, scale=abs(array(leaf)).max() + 0.3)


def differentiable(name):
    return {key: value for key, value in USUAL[name].items() if key != "amsgrad"}


@claim("optim.options.differentiable-without-foreach")
@names
def test_foreach_refuses_a_differentiable_step(case, name):
    parameters = [case.tensor(33, requires_grad=True) * 1]
    optimizer = build(case, name, parameters, "foreach", differentiable=True, **differentiable(name))
    give_gradients(case, parameters)
    if name == "SGD":
        follows(case, optimizer, parameters, law_of(case, name), differentiable(name))
    else:
        with case.raises(AssertionError, "autograd"):
            optimizer.step()


@claim("optim.options.differentiable-gradient")
@pytest.mark.parametrize("before", [0, 1])
@names
def test_the_gradient_of_a_step_is_the_laws_derivative(case, name, before):
    """With respect to the loss's gradient, at the first step and at the second."""
    law, options, double = law_of(case, name), differentiable(name), torch.float64
    p = case.tensor(33, dtype=double, requires_grad=True) * 1
    optimizer = build(case, name, [p], "loop", differentiable=True, **options)
    for _ in range(before):
        p.grad = case.tensor(33, dtype=double)
        optimizer.step()
    start, known = array(p).copy(), remembered(optimizer, [p])
    state = as_law({k: v.detach().clone() if torch.is_tensor(v) else v for k, v in known.items()})
    p.grad = g = case.tensor(33, dtype=double, requires_grad=True)
    optimizer.step()
    (found,) = torch.autograd.grad(p.sum(), g, allow_unused=True)

    def slope(h):
        above, below = (law(Rounded(start), Rounded(array(g) + x), state, **options)[0].value for x in (h, -h))
        return (above - below) / (2 * h)

    found, h = torch.zeros_like(g) if found is None else found, 2.0**-24  # a kink, of max or sign, is hardly as near
    expected = slope(h)
    # the law's two values are rounded, by some eight roundings each; bias corrections go by step counts in float32
    rounding = 8 * eps(double) * (np.abs(start) + options["lr"]) / h
    error = rounding + 8 * eps(torch.float32) * (np.abs(expected) + options["lr"])
    case.close(found, expected, k=1, scale=error / eps(double))


@claim("optim.options.gradient-of-options")
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_gradients_reach_options_that_are_tensors(case, name):
    """Over two steps: the first from no state, the second from what it left; constants count as plain numbers do."""
    law, double, start = law_of(case, name), torch.float64, case.tensor(33, dtype=torch.float64)
    rules = {"lr": 0.25, "weight_decay": 0.2} | ({} if name == "SGD" else {"beta1": 0.6, "beta2": 0.8})
    fixed = {} if name == "SGD" else {"eps": 0.1}
    gradients = [case.tensor(33, dtype=double) for _ in range(2)]

    def options(values):
        return fixed | ({"betas": tuple(values[b] for b in ("beta1", "beta2"))} if "beta1" in values else {}) | {
            key: value for key, value in values.items() if not key.startswith("beta")
        }  # fmt: skip

    def lawful(values):
        p, state = Rounded(array(start)), {}
        for g in gradients:
            p, state = law(p, Rounded(array(g)), state, **options(values))
        return p

    for wanted in (True, False):
        tensors = {key: torch.tensor(v, dtype=double, requires_grad=wanted) for key, v in rules.items()}
        p = start.clone().requires_grad_() * 1
        optimizer = build(case, name, [p], "loop", differentiable=True, **options(tensors))
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()
        at = lawful(rules)
        case.close(p, at.value, k=1, scale=at.error)
        found = torch.autograd.grad(p.sum(), list(tensors.values())) if wanted else ()
        for key, slope in zip(tensors, found, strict=False):
            fine, coarse = (
                (lawful(rules | {key: rules[key] + h}).value.sum() - lawful(rules | {key: rules[key] - h}).value.sum())
                / (2 * h)
                for h in (2.0**-13, 2.0**-12)
            )
            # a central difference of twice the width is four times as far off; rounding enters by 33 sums over h
            error = abs(fine - coarse) + 2.0**13 * 33 * eps(double) * (1 + np.abs(at.value).max())
            case.close(slope, fine, k=1, scale=error / eps(double))


CAPTURABLE = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "RMSprop", "Rprop", "ASGD"]


@claim("optim.options.capturable-on-cpu")
@loops
@pytest.mark.parametrize("name", CAPTURABLE)
def test_the_cpu_captures_nothing(case, name, path):
    if case.device.type != "cpu":
        raise case.unsupported("the claim is of the CPU")
    parameters = parameters_of(case)
    optimizer = build(case, name, parameters, path, capturable=True)
    give_gradients(case, parameters)
    with case.raises(AssertionError, "capturable"):
        optimizer.step()


TURNED = {  # options that USUAL leaves as they are, or the other way round
    "Adam": {"amsgrad": False, "maximize": True, "weight_decay": 0.0},
    "AdamW": {"amsgrad": True, "maximize": False, "weight_decay": 0.0},
    "NAdam": {"decoupled_weight_decay": True, "maximize": True},
    "RAdam": {"decoupled_weight_decay": True, "maximize": True},
    "RMSprop": {"centered": True, "maximize": True, "weight_decay": 0.0},
    "Rprop": {"maximize": True},
}


@claim("optim.options.capturable")
@loops
@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_step_that_can_be_captured_goes_by_the_law(case, name, path, monkeypatch):
    """The arithmetic of CUDA graphs runs on the CPU too, once the list of devices names it."""
    listed = "_get_capturable_supported_devices"
    modules = [module for key, module in sys.modules.items() if key.startswith("torch.optim.")]
    for module in [module for module in modules if hasattr(module, listed)]:
        monkeypatch.setattr(module, listed, lambda *_, **__: [case.device.type])
    parameters, law = parameters_of(case, [(7,), (), (3, 11)]), law_of(case, name)
    law = functools.partial(law, coarseness=1.0) if name == "RAdam" else law  # its powers are tensors too
    for options in (USUAL[name], USUAL[name] | TURNED.get(name, {"weight_decay": 0.0, "maximize": True})):
        optimizer = build(case, name, parameters, path, capturable=True, **options)
        for _ in range(7 if name == "RAdam" and not options.get("maximize") else 2):
            give_gradients(case, parameters)
            follows(case, optimizer, parameters, law, options)


class Recorder(TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


@claim("optim.paths.chosen")
@every
def test_the_implementation_asked_for_is_the_one_that_runs(case, name, path):
    parameters = parameters_of(case, [(3,), (4,)])
    optimizer = build(case, name, parameters, path, **USUAL[name])
    give_gradients(case, parameters)
    with Recorder() as ran:
        optimizer.step()
    fused = any(each.startswith("_fused_") for each in ran.names)
    foreach = any(each.startswith("_foreach_") and "lerp" not in each for each in ran.names)
    assert (fused, foreach or fused) == {"loop": (False, False), "foreach": (False, True), "fused": (True, True)}[path]
