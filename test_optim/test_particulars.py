"""What else is said of an optimiser: states of older releases, pickles, groups, ranges of options, functions, swaps."""

import copy
import importlib
import pickle
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import nn

from test_optim.stepping import (
    ALL,
    FUSED_ON_CPU,
    PATHS,
    USUAL,
    build,
    flat,
    follows,
    give_gradients,
    law_of,
    parameters_of,
    remembered,
)
from torch_conformance.marks import claim, since
from torch_conformance.switches import switched

names = pytest.mark.parametrize("name", ALL)


def paths_of(name):
    return [path for path in PATHS if path != "fused" or name in FUSED_ON_CPU]


# -- states of other releases and other places -------------------------------------------------------------------------

LATER = {
    "foreach": None, "fused": None, "maximize": False, "capturable": False, "differentiable": False,
    "amsgrad": False, "nesterov": False, "centered": False, "momentum": 0, "decoupled_weight_decay": None,
}  # fmt: skip


@claim("optim.state.older-formats")
@names
def test_a_state_of_an_older_release_loads(case, name):
    """Without the options that came later, and with counts as plain numbers: defaults, and float32 tensors."""
    options = {key: value for key, value in USUAL[name].items() if key not in LATER}
    later = {key: value for key, value in LATER.items() if key in build(case, name, parameters_of(case)).defaults}
    if name in ("RMSprop", "SGD"):
        options |= {"momentum": later.pop("momentum")}
    later["decoupled_weight_decay"] = name == "AdamW"
    parameters = parameters_of(case)
    optimizer = build(case, name, parameters, **options)
    later = {key: value for key, value in later.items() if key in optimizer.defaults}
    for _ in range(2):
        give_gradients(case, parameters)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        for key in later:
            del group[key]
    for state in saved["state"].values():
        for key in {"step", "eta", "mu"} & set(state):
            state[key] = float(state[key])
    (wanted,) = {count.dtype for count in counts(optimizer, "step")} or {torch.float32}
    for default in (torch.float32, torch.bfloat16):
        with switched("default dtype", default):
            optimizer.load_state_dict(copy.deepcopy(saved))
        for key, value in later.items():
            found = optimizer.param_groups[0][key]
            assert found == value or (value is None and found is False), f"{key} is {found}, not {value}"
        places = {count.device.type for count in counts(optimizer, "step")}
        assert all(count.dtype == wanted for count in counts(optimizer, "step"))
        assert places <= {"cpu", case.device.type}, f"the count lies on {places}"
    give_gradients(case, parameters)
    follows(case, optimizer, parameters, law_of(case, name), options)


def counts(optimizer, key):
    found = [state[key] for state in optimizer.state.values() if key in state]
    assert all(isinstance(each, torch.Tensor) for each in found), f"a {key} that is no tensor"
    return found


@claim("optim.state.count-and-default-dtype")
@names
def test_counts_do_not_follow_a_reduced_default_dtype(case, name):
    """float32, and float64 where that is the default dtype; of a fused optimiser always float32."""
    for path in paths_of(name):
        for default in (torch.bfloat16, torch.float64):
            with switched("default dtype", default):
                parameters = parameters_of(case, [(3,), (4,)])
                optimizer = build(case, name, parameters, path, **USUAL[name])
                give_gradients(case, parameters)
                optimizer.step()
                optimizer.load_state_dict(optimizer.state_dict())
            wanted = torch.float64 if default == torch.float64 and path != "fused" else torch.float32
            found = {count.dtype for count in counts(optimizer, "step")}
            assert found <= {wanted}, f"{path} counts in {found} under {default}, not in {wanted}"


@claim("optim.state.count-goes-on")
@pytest.mark.parametrize("name", [name for name in ALL if name != "SGD"])
def test_counts_go_on_under_a_reduced_default_dtype(case, name):
    """The next number of bfloat16 after 256 is 258."""
    for path in paths_of(name):
        with switched("default dtype", torch.bfloat16):
            (p,) = parameters_of(case, [(3,)])
            optimizer = build(case, name, [p], path, **USUAL[name])
            give_gradients(case, [p])
            optimizer.step()
            optimizer.state[p]["step"] = 255 + optimizer.state[p]["step"]
            optimizer.step()
        assert (count := float(optimizer.state[p]["step"])) == 257, f"{path} counts {count} after 256"


@claim("optim.state.pickled")
@names
def test_an_optimizer_is_pickled_with_its_parameters(case, name):
    """Without its hooks; what comes back steps by the law."""
    parameters = parameters_of(case)
    optimizer = build(case, name, parameters, "foreach", **USUAL[name])
    give_gradients(case, parameters)
    optimizer.step()
    twins, twin = pickle.loads(pickle.dumps((parameters, optimizer)))
    assert twin.param_groups[0]["params"][0] is twins[0]
    assert all(twin.defaults[key] == value for key, value in optimizer.defaults.items())
    for key, value in remembered(optimizer, parameters).items():
        again = remembered(twin, twins)[key]
        assert torch.equal(again, value) if torch.is_tensor(value) else again == value, key
    if since("2.1"):
        for hooks in ("step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre"):
            getattr(twin, f"register_{hooks}_hook")(lambda *_: None).remove()
    twin.load_state_dict(twin.state_dict())
    give_gradients(case, twins)
    follows(case, twin, twins, law_of(case, name), USUAL[name])


@claim("optim.state.containers")
def test_tensors_within_containers_are_cast_too(case):
    """State kept under anything but a parameter is left as it is."""
    p = case.tensor(3, dtype=torch.float64, requires_grad=True)
    whole = torch.zeros(3, dtype=torch.int64, requires_grad=False)
    optimizer = torch.optim.SGD([p, whole], lr=0.5)
    value = case.tensor(3)
    saved = optimizer.state_dict()
    saved["state"] = {
        0: {"list": [value, 2], "tuple": (value,), "dict": {"step": value, "x": value}, "word": 7, "step": value},
        1: {"x": value},
        "own": {"x": value},
    }
    optimizer.load_state_dict(saved)
    state = optimizer.state[p]
    assert state["list"][1] == 2
    assert isinstance(state["tuple"], tuple)
    for cast in (state["list"][0], state["tuple"][0], state["dict"]["x"]):
        case.same(cast, value.double())
    case.same(state["step"], value)
    assert state["word"] == 7
    case.same(optimizer.state[whole]["x"], value)
    assert optimizer.state["own"]["x"] is value


@claim("optim.state.whole-numbers")
def test_whole_numbers_of_a_state_stay_whole(case):
    p = case.tensor(3, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.5)
    saved = optimizer.state_dict()
    seed, mask = torch.tensor([2**24 + 1, 7, 8]), torch.tensor([True, False, True])  # the first is no float32
    saved["state"] = {0: {"seed": seed, "mask": mask}}
    optimizer.load_state_dict(saved)
    case.same(optimizer.state[p]["seed"].cpu(), seed)
    case.same(optimizer.state[p]["mask"].cpu(), mask)


@claim("optim.state.names-kept")
def test_names_stay_where_the_loaded_state_has_none(case):
    layer = nn.Linear(3, 2)
    named = torch.optim.SGD(layer.named_parameters(), lr=0.1)
    named.load_state_dict(torch.optim.SGD(layer.parameters(), lr=0.3).state_dict())
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    assert named.param_groups[0]["lr"] == 0.3


# -- groups and options ------------------------------------------------------------------------------------------------


@claim("optim.groups.refused-later")
def test_a_group_that_is_none_is_refused(case):
    p, q, r = parameters_of(case, [(3,), (4,), (5,)])
    optimizer = torch.optim.SGD([p], lr=0.1)
    with case.raises(TypeError, "must be a dict"):
        optimizer.add_param_group([q])
    with case.raises(ValueError, "non-leaf"):
        optimizer.add_param_group({"params": q * 2})
    assert len(optimizer.param_groups) == 1
    kept = q * 2
    kept.retain_grad()
    optimizer.add_param_group({"params": kept})
    optimizer.add_param_group({"params": (each for each in [r])})
    assert optimizer.param_groups[2]["params"] == [r]


@claim("optim.groups.names-in-all-or-none")
def test_groups_are_all_with_names_or_all_without(case):
    p, q = parameters_of(case, [(3,), (4,)])
    for first, second in (([p], [("q", q)]), ([("p", p)], [q])):
        optimizer = torch.optim.SGD(first, lr=0.1)
        with case.raises(ValueError, "with names.*without|without names.*with"):
            optimizer.add_param_group({"params": second})
    optimizer = torch.optim.SGD([{"params": [("p", p)]}, {"params": [("q", q)]}], lr=0.1)
    assert [group["param_names"] for group in optimizer.param_groups] == [["p"], ["q"]]


@claim("optim.errors.asgd")
@pytest.mark.parametrize("option", ["lambd", "alpha"])
def test_asgd_refuses_negative_options(case, option):
    with case.raises(ValueError, option):
        torch.optim.ASGD(parameters_of(case, [(3,)]), **{option: -0.5})


@claim("optim.errors.not-a-number")
@names
def test_a_rate_that_is_no_number_is_refused(case, name):
    with case.raises(ValueError, "learning rate"):
        build(case, name, parameters_of(case, [(3,)]), "fixed", lr=float("nan"))


@claim("optim.errors.not-a-number-either")
@pytest.mark.parametrize(
    ("name", "option"), [("SGD", "momentum"), ("SGD", "weight_decay"), ("RMSprop", "momentum"), ("ASGD", "lambd")]
)
def test_another_option_that_is_no_number_is_refused(case, name, option):
    with case.raises(ValueError, "Invalid"):
        build(case, name, parameters_of(case, [(3,)]), "fixed", lr=0.1, **{option: float("nan")})


@claim("optim.zero.sparse")
def test_sparse_gradients_are_zeroed_and_stay_sparse(case):
    for path in ("loop", "foreach"):
        p, q = parameters_of(case, [(5, 3), (4,)])
        optimizer = build(case, "SGD", [p, q], path, lr=0.1)
        p.grad, q.grad = torch.ones_like(p).to_sparse(), torch.ones_like(q)
        optimizer.zero_grad(set_to_none=False)
        assert p.grad.is_sparse, path
        assert not p.grad.to_dense().any(), path
        assert not q.grad.any(), path


ENDS = {
    "lr": (0.0, 0.5), "eps": (0.0, 0.5), "weight_decay": (0.0, 7.0), "momentum": (0.0, 1.5), "alpha": (0.0, 2.0),
    "momentum_decay": (0.0, 2.0), "lr_decay": (0.0, 2.0), "initial_accumulator_value": (0.0, 2.0), "rho": (0.0, 1.0),
    "betas": ((0.0, 0.0), (0.999, 0.999)), "etas": ((0.01, 1.01), (0.99, 9.0)),
}  # fmt: skip
BEYOND = {
    "betas": [(-0.1, 0.9), (0.9, -0.1), (1.0, 0.9), (0.9, 1.0)], "rho": [-0.1, 1.1],
    "etas": [(0.0, 1.2), (1.0, 1.2), (0.5, 1.0)],
}  # fmt: skip
UNCHECKED = {("ASGD", "alpha"), ("ASGD", "eps")}


@claim("optim.errors.options")
@names
def test_ranges_end_where_documented(case, name):
    p = case.tensor(3, requires_grad=True)
    for option in [each for each in ENDS if each in USUAL[name] or each == "lr"]:
        for value in ENDS[option]:
            build(case, name, [p], "fixed", **{"lr": 0.1, option: value})
        for value in BEYOND.get(option, [-0.001]) if (name, option) not in UNCHECKED else []:
            with case.raises(ValueError, "invalid"):
                build(case, name, [p], "fixed", **{"lr": 0.1, option: value})


def follows_with_betas(case, name, betas, meant):
    """Three steps with these betas follow the law with those that they stand for."""
    parameters, options = parameters_of(case), USUAL[name] | {"betas": betas}
    optimizer = build(case, name, parameters, **options)
    for _ in range(3):
        give_gradients(case, parameters)
        follows(case, optimizer, parameters, law_of(case, name), options | {"betas": meant})


@claim("optim.options.tensor-betas")
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_may_be_tensors(case, name):
    betas, parameters = (torch.tensor(0.5), torch.tensor(0.75)), parameters_of(case)
    follows_with_betas(case, name, betas, (0.5, 0.75))
    for wrong, words in [
        ((0.5, torch.tensor(0.5)), "both floats or both Tensors"),
        ((torch.tensor(0.5), 0.5), "both floats or both Tensors"),
    ]:
        with case.raises(ValueError, words):
            build(case, name, parameters, "fixed", betas=wrong)
    with case.raises(ValueError, "capturable"):
        build(case, name, parameters, "foreach", betas=betas)
    build(case, name, parameters, "foreach", betas=betas, capturable=True)


@claim("optim.options.long-tensor-betas")
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_may_be_vectors_of_one(case, name):
    follows_with_betas(case, name, (torch.tensor([0.5]), torch.tensor([0.75])), (0.5, 0.75))


@claim("optim.options.whole-betas")
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_beta_may_be_a_whole_number(case, name):
    follows_with_betas(case, name, (0, 0.75), (0.0, 0.75))


@claim("optim.options.tensor-lr-foreach")
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_foreach_wants_capturable_for_a_tensor_lr(case, name):
    build(case, name, parameters_of(case), "foreach", lr=torch.tensor(0.1), capturable=True)
    with case.raises(ValueError, "capturable"):
        build(case, name, parameters_of(case), "foreach", lr=torch.tensor(0.1))


# -- the functional form -----------------------------------------------------------------------------------------------


@claim("optim.functional.defaults")
@names
def test_the_function_behind_a_step_steps_alike_by_default(case, name):
    """torch.optim.adam.adam and its kin, called without the options that have defaults."""
    modules = [importlib.import_module(f"torch.optim.{each}") for each in {name.lower(), "adam"}]
    function = getattr(importlib.import_module(f"torch.optim.{name.lower()}"), name.lower())
    parameters, calls = parameters_of(case, [(7,), (3, 5)]), []
    optimizer = build(case, name, parameters, "fixed", **USUAL[name])

    def spying(original):
        def spy(*args, **kwargs):
            calls.append((copy.deepcopy([list(each) for each in args]), kwargs))
            return original(*args, **kwargs)

        return spy

    give_gradients(case, parameters)
    optimizer.step()
    give_gradients(case, parameters)
    with ExitStack() as stack:
        for module in modules:  # AdamW calls adam, from 2.7 on
            for key in {name.lower(), "adam"} & vars(module).keys():
                stack.enter_context(mock.patch.object(module, key, spying(getattr(module, key))))
        optimizer.step()
    lists, options = calls[0]
    optional = {"foreach", "capturable", "differentiable", "fused", "has_complex", "has_sparse_grad",
                "grad_scale", "found_inf", "decoupled_weight_decay"}  # fmt: skip
    with torch.no_grad():
        function(*lists, **{k: v for k, v in options.items() if k not in optional})
    case.same(flat(lists[0]), flat(parameters))


# -- parameters and state swapped in -----------------------------------------------------------------------------------


def swapped(case, optimizer, parameters, state):
    swap = getattr(torch.optim, "swap_in_optimizer_params_and_state", None)
    if swap is None:
        raise case.unsupported(f"torch {torch.__version__} swaps no parameters in")
    return swap(optimizer, parameters, state)


def begun(case):
    parameters = parameters_of(case, [(3,), (4,), (5,)])
    options = USUAL["Adam"]
    optimizer = build(case, "Adam", [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.5}], **options)
    give_gradients(case, parameters)
    optimizer.step()
    return parameters, optimizer


@claim("optim.swap.steps-the-others")
def test_within_the_block_other_parameters_are_stepped(case):
    parameters, optimizer = begun(case)
    others = [p.detach().clone().requires_grad_() for p in parameters]
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1]["lr"] = 0.25
    twins, twin = copy.deepcopy((parameters, optimizer))
    twin.param_groups[1]["lr"] = 0.25
    lists, state = [group["params"] for group in optimizer.param_groups], optimizer.state
    with (
        case.unchanged(**{f"p{i}": p for i, p in enumerate(parameters)}),
        swapped(case, optimizer, dict(zip("abc", others, strict=True)), saved),
    ):
        assert [group["lr"] for group in optimizer.param_groups] == [USUAL["Adam"]["lr"], 0.25]
        give_gradients(case, others)
        for p, q in zip(others, twins, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        optimizer.param_groups[0]["extra"] = 7
    twin.step()
    case.same(flat(others), flat(twins))
    assert float(saved["state"][0]["step"]) == 2
    case.same(saved["state"][2]["exp_avg"], twin.state[twins[2]]["exp_avg"])
    assert optimizer.state is state
    assert all(group["params"] is each for group, each in zip(optimizer.param_groups, lists, strict=True))
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert "extra" not in optimizer.param_groups[0]
    assert float(state[parameters[0]]["step"]) == 1


@claim("optim.swap.restores-after-an-error")
def test_an_error_within_the_block_restores_too(case):
    parameters, optimizer = begun(case)
    state = optimizer.state
    with (
        case.raises(ZeroDivisionError, ""),
        swapped(case, optimizer, dict(enumerate(parameters)), optimizer.state_dict()),
    ):
        raise ZeroDivisionError
    assert optimizer.state is state
    assert optimizer.param_groups[0]["params"][0] is parameters[0]


@claim("optim.swap.checked")
def test_what_does_not_fit_is_refused(case):
    parameters, optimizer = begun(case)
    given, saved = dict(enumerate(parameters)), optimizer.state_dict()
    groups = saved["param_groups"]
    p = parameters[0]
    fresh = torch.optim.SGD([p], lr=0.1)
    for subject, inputs, state, words in [
        (fresh, {0: p}, fresh.state_dict(), "initialized"),
        (optimizer, given, [saved], "state_dict"),
        (optimizer, given, saved | {"state": [1]}, "a dict mapping"),
        (optimizer, given, saved | {"state": {p: {}}}, "packed parameter ids"),
        (optimizer, given, saved | {"state": {0: 7}}, "to be dictionaries"),
        (optimizer, given, saved | {"state": saved["state"] | {9: {}}}, "extra keys"),
        (optimizer, given, saved | {"param_groups": tuple(groups)}, "a list of param-group"),
        (optimizer, given, saved | {"param_groups": groups[:1]}, "number of parameter groups"),
        (optimizer, given, saved | {"param_groups": [groups[0], 7]}, "to be a dictionary"),
        (optimizer, given, saved | {"param_groups": [groups[0], groups[1] | {"params": (2,)}]}, "packed parameter ids"),
        (optimizer, given, saved | {"param_groups": [groups[0], groups[1] | {"params": [p]}]}, "packed parameter ids"),
        (optimizer, given, saved | {"param_groups": [groups[0], groups[1] | {"params": []}]}, "number of params"),
        (optimizer, given, saved | {"param_groups": [groups[0], groups[1] | {"own": 1}]}, "own"),
        (optimizer, given, saved | {"param_groups": [groups[0], {"params": [2]}]}, "only in live"),
        (optimizer, {0: p}, saved, "ordering"),
    ]:
        with case.raises(RuntimeError, words), swapped(case, subject, inputs, state):
            pytest.fail(f"swapped in what should be refused with {words!r}")
    with swapped(case, optimizer, given, saved):
        pass
