"""What an optimiser holds: parameter groups, state, what is saved of them, and what a step may change."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.optimizer import required

from test_optim.stepping import (
    ALL,
    FUSED_ON_CPU,
    USUAL,
    build,
    every,
    flat,
    follows,
    give_gradients,
    law_of,
    loops,
    options_of,
    parameters_of,
    remembered,
)
from torch_conformance.marks import axes, claim

names = pytest.mark.parametrize("name", ALL)
SOME = [(), (3, 11), (3, 7, 1, 3)]


# -- a step ------------------------------------------------------------------------------------------------------------


@claim("optim.step.in-place")
@every
def test_a_step_changes_parameters_in_place_and_nothing_else(case, name, path):
    """Same objects, new versions; gradients keep object, bits and version; no random number, no grad mode."""
    usual = USUAL[name]
    variants = [usual]
    if "maximize" in options_of(getattr(torch.optim, name, object)):
        variants.append({**usual, "maximize": not usual.get("maximize")})
    variants.append({key: value for key, value in usual.items() if key not in ("weight_decay", "maximize")})
    if name == "SGD":
        variants.append({"lr": 0.3, "momentum": 0.7, "nesterov": True})
    for options in variants:
        parameters = parameters_of(case, SOME)
        optimizer = build(case, name, parameters, path, **options)
        for _ in range(2):
            give_gradients(case, parameters)
            named = {f"p{i}": p for i, p in enumerate(parameters)}
            with case.unchanged(**named, but=set(named)):
                optimizer.step()
            assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in parameters)


@claim("optim.step.spoils-older-graphs")
@every
def test_a_step_counts_up_the_version_of_every_parameter(case, name, path):
    parameters, optimizer = trained(case, name, path, 1)
    versions = [p._version for p in parameters]
    give_gradients(case, parameters)
    optimizer.step()
    assert all(p._version > version for p, version in zip(parameters, versions, strict=True))


@claim("optim.step.spoils-older-graphs")
def test_a_graph_from_before_the_step_cannot_go_backward(case):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(case.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = case.tensor(2, 3, dtype=torch.float32)
    first, second = model(x).sum(), model(x).pow(2).sum()
    first.backward()
    optimizer.step()
    with case.raises(RuntimeError, "inplace operation"):
        second.backward()


@claim("optim.step.closure")
@every
def test_the_closure_is_called_once_with_gradients_enabled(case, name, path):
    parameters, seen = parameters_of(case, SOME), []
    optimizer = build(case, name, parameters, path, **USUAL[name])
    loss = case.tensor(1)

    def closure():
        seen.append(torch.is_grad_enabled())
        give_gradients(case, parameters)
        return loss

    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            assert optimizer.step(closure) is loss
            assert torch.is_grad_enabled() == mode
    assert seen == [True, True]
    assert optimizer.step() is None


@claim("optim.step.closure")
@pytest.mark.parametrize("name", ["Adafactor", "Muon", "SparseAdam"])
def test_other_optimizers_call_the_closure_once_with_gradients_enabled(case, name):
    (p,), seen, loss = parameters_of(case, [(3, 5)]), [], case.tensor(1)
    optimizer = build(case, name, [p], "fixed", lr=0.3)

    def closure():
        seen.append(torch.is_grad_enabled())
        give_gradients(case, [p])
        p.grad = p.grad.to_sparse() if name == "SparseAdam" else p.grad
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is loss
    assert seen == [True]
    assert optimizer.step() is None


@claim("optim.step.closure-first")
@every
def test_the_step_goes_by_the_gradients_that_the_closure_leaves(case, name, path):
    parameters = parameters_of(case, SOME)
    optimizer = build(case, name, parameters, path, **USUAL[name])
    give_gradients(case, parameters)
    start, gradients = flat(parameters), [p.grad for p in parameters]

    def closure():
        case.same(flat(parameters), start)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g

    def step(ordinary=optimizer.step):
        for p in parameters:
            p.grad = None
        ordinary(closure)

    optimizer.step = step
    follows(case, optimizer, parameters, law_of(case, name), USUAL[name])


@claim("optim.step.any-leaf")
def test_any_leaf_tensor_can_be_optimised(case):
    plain, constant = case.tensor(5, requires_grad=True), case.tensor(5)
    optimizer = torch.optim.SGD([plain, constant], lr=0.5)
    plain.grad = torch.ones_like(plain)
    with case.unchanged(plain=plain, constant=constant, but={"plain"}):
        optimizer.step()


@claim("optim.step.hooks-once")
@names
def test_hooks_of_a_subclass_run_once(case, name):
    """Also where the base itself is in use."""
    base, seen = type(build(case, name, parameters_of(case, [(3,)]), lr=0.1)), []

    class Mine(base):
        def step(self, closure=None):
            return super().step(closure)

    optimizer = Mine(parameters_of(case, [(3,)]), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"]


@claim("optim.step.keeps-its-name")
def test_a_step_keeps_its_name_and_its_words(case):
    step = torch.optim.Adam.step
    assert (step.__name__, bool(step.__doc__)) == ("step", True)


@claim("optim.step.empty")
@every
def test_a_step_without_any_gradient_does_nothing(case, name, path):
    parameters = parameters_of(case, SOME)
    optimizer = build(case, name, parameters, path, **USUAL[name])
    with case.unchanged(**{f"p{i}": p for i, p in enumerate(parameters)}):
        optimizer.step()


@claim("optim.step.empty-tensors")
@every
def test_tensors_without_elements_are_no_obstacle(case, name, path):
    empty, other = parameters_of(case, [(0, 3), (9,)])
    optimizer = build(case, name, [empty, other], path, **USUAL[name])
    give_gradients(case, [empty, other])
    before = other.detach().clone()
    optimizer.step()
    assert empty.shape == (0, 3)
    assert (other != before).all()


# -- groups ------------------------------------------------------------------------------------------------------------


@claim("optim.groups.own-options")
@every
def test_each_group_steps_by_its_own_options(case, name, path):
    """Options of a group override the constructor's, the others are the constructor's."""
    own, shared = parameters_of(case, [(17,), (5,)]), parameters_of(case, [(9,)])
    halved = {k: v / 2 if isinstance(v, float) and k != "lr" else v for k, v in USUAL[name].items()}
    halved["lr"] = 0.015625
    optimizer = build(case, name, [{"params": own, **halved}, {"params": shared}], path, **USUAL[name])
    for _ in range(2):
        give_gradients(case, [*own, *shared])
        alone = [p.grad for p in shared]
        for p in shared:
            p.grad = None
        follows(case, optimizer, own, law_of(case, name), halved)
        for p, g in zip(shared, alone, strict=True):
            p.grad = g
        for p in own:
            p.grad = None
        follows(case, optimizer, shared, law_of(case, name), USUAL[name])


@claim("optim.groups.missing-options-are-filled")
@names
def test_missing_options_are_filled_with_the_defaults(case, name):
    parameters = parameters_of(case, [(3,), (4,)])
    optimizer = build(
        case, name, [{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:]}], "fixed", **USUAL[name]
    )
    first, second = optimizer.param_groups
    for key, value in USUAL[name].items():
        assert second[key] == value
        assert first[key] == (0.5 if key == "lr" else value)


@claim("optim.groups.added-later")
@every
def test_a_group_may_be_added_later(case, name, path):
    early, late = parameters_of(case, [(17,)]), parameters_of(case, [(9,)])
    optimizer = build(case, name, early, path, **USUAL[name])
    give_gradients(case, early)
    follows(case, optimizer, early, law_of(case, name), USUAL[name])
    if name == "Adagrad":
        raise case.unsupported("Adagrad makes its state at construction; groups added later are another matter")
    optimizer.add_param_group({"params": late[0]})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    early[0].grad = None
    give_gradients(case, late)
    follows(case, optimizer, late, law_of(case, name), USUAL[name])


@claim("optim.groups.adagrad-added-later")
def test_adagrad_steps_a_group_that_was_added_later(case):
    early, late = parameters_of(case, [(17,)]), parameters_of(case, [(9,)])
    optimizer = build(case, "Adagrad", early, lr=0.1)
    optimizer.add_param_group({"params": late})
    give_gradients(case, late)
    optimizer.step()


@claim("optim.groups.no-parameter-twice")
def test_a_parameter_belongs_to_one_group(case):
    p, q = parameters_of(case, [(3,), (4,)])
    with case.raises(ValueError, "more than one parameter group"):
        torch.optim.SGD([{"params": [p]}, {"params": [q, p]}], lr=0.1)
    optimizer = torch.optim.SGD([p], lr=0.1)
    with case.raises(ValueError, "more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1
    with pytest.warns(UserWarning, match="duplicate parameters"):
        torch.optim.SGD([p, p], lr=0.1)


@claim("optim.groups.constructor-errors")
@names
def test_what_is_no_list_of_leaves_is_refused(case, name):
    cls, p = getattr(torch.optim, name), case.tensor(3, requires_grad=True)
    for wrong, kind, words in [
        ([], ValueError, "empty parameter list"),
        ([p * 2], ValueError, "non-leaf"),
        (p, TypeError, "iterable of Tensors"),
        ([1.0], TypeError, "can only optimize Tensors"),
    ]:
        with case.raises(kind, words):
            cls(wrong, lr=0.1)


@claim("optim.groups.base-class")
def test_the_base_class_cannot_be_used_directly(case):
    with case.raises(TypeError, "defaults"):
        torch.optim.Optimizer(parameters_of(case, SOME))
    with case.raises(NotImplementedError, ""):
        torch.optim.Optimizer(parameters_of(case, SOME), {}).step()
    wanted = {"lr": required, "extra": 3}
    with case.raises(ValueError, "required optimization parameter lr"):
        torch.optim.Optimizer(parameters_of(case, SOME), wanted)
    given = torch.optim.Optimizer([{"params": parameters_of(case, SOME), "lr": 0.5}], wanted)
    assert (given.param_groups[0]["lr"], given.param_groups[0]["extra"]) == (0.5, 3)


@claim("optim.groups.iterators")
@pytest.mark.parametrize("name", [*ALL, "SparseAdam"])
def test_a_group_may_hold_an_iterator(case, name):
    parameters = [case.tensor(5, requires_grad=True), case.tensor(3, requires_grad=True)]
    groups = [{"params": iter(parameters[:1])}, {"params": (p for p in parameters[1:])}]
    found = build(case, name, groups, "fixed", lr=0.1).param_groups
    assert [list(map(id, group["params"])) for group in found] == [[id(p)] for p in parameters]


@claim("optim.groups.given-twice")
@names
def test_groups_may_be_given_to_two_optimizers(case, name):
    (p,) = parameters_of(case, [(3,)])
    groups = [{"params": [p]}]
    first, second = (build(case, name, groups, "fixed", lr=lr) for lr in (0.25, 0.125))
    assert [optimizer.param_groups[0]["lr"] for optimizer in (first, second)] == [0.25, 0.125]


@claim("optim.groups.sets")
def test_a_set_is_taken_but_not_within_a_group(case):
    parameters = parameters_of(case, [(3,), (4,)])
    optimizer = torch.optim.SGD(set(parameters), lr=0.1)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in parameters}
    with case.raises(TypeError, "ordered collections"):
        torch.optim.SGD([{"params": set(parameters)}], lr=0.1)


@claim("optim.groups.names")
@names
def test_names_are_kept_and_saved(case, name):
    model = nn.Linear(3, 2)
    optimizer = build(case, name, model.named_parameters(), "fixed", lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    with case.raises(ValueError, "with/without names"):
        build(case, name, [("weight", model.weight), model.bias], "fixed", lr=0.1)
    one, other = [("weight", model.weight)], [model.bias]
    for first, second, words in ((one, other, "without names"), (other, one, "with names")):
        with case.raises(ValueError, f"cannot add param group {words}"):
            build(case, name, [{"params": first}, {"params": second}], "fixed", lr=0.1)


@claim("optim.groups.names-load-by-position")
def test_names_do_not_steer_loading(case):
    first, second = case.module(nn.Linear, 3, 3), case.module(nn.Linear, 3, 3)
    old = torch.optim.SGD([("a", first.weight), ("b", second.weight)], lr=0.1, momentum=0.5)
    new = torch.optim.SGD([("b", second.weight), ("a", first.weight)], lr=0.1, momentum=0.5)
    give_gradients(case, [first.weight, second.weight])
    old.step()
    new.load_state_dict(old.state_dict())
    case.same(new.state[second.weight]["momentum_buffer"], old.state[first.weight]["momentum_buffer"])
    assert new.param_groups[0]["param_names"] == ["a", "b"]


# -- state -------------------------------------------------------------------------------------------------------------


@claim("optim.state.made-at-the-first-step")
@every
def test_state_is_made_at_the_first_step(case, name, path):
    parameters = parameters_of(case, SOME)
    optimizer = build(case, name, parameters, path, **USUAL[name])
    assert len(optimizer.state) == 0 or name == "Adagrad"
    give_gradients(case, parameters)
    optimizer.step()
    assert list(optimizer.state) == parameters


@claim("optim.state.like-the-parameter")
@axes(dtype=("bfloat16", "float64"), layout=("channels_last",))
@every
def test_state_has_dtype_shape_and_strides_of_the_parameter(case, name, path):
    p = case.tensor(2, 3, 5, 4, requires_grad=True)
    optimizer = build(case, name, [p], path, **USUAL[name])
    p.grad = torch.ones_like(p)
    optimizer.step()
    tensors = [v for k, v in optimizer.state[p].items() if torch.is_tensor(v) and v.ndim]
    for tensor in tensors:
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (p.dtype, p.shape, p.stride())
        assert not tensor.requires_grad


@claim("optim.state.step-count-in-float32")
@axes(dtype=("bfloat16", "float64"))
@every
def test_the_step_count_is_a_float32_number(case, name, path):
    """Whatever the parameter's dtype: in bfloat16 a count would stand still at 256."""
    parameters = parameters_of(case, SOME)
    optimizer = build(case, name, parameters, path, **USUAL[name])
    give_gradients(case, parameters)
    optimizer.step()
    for p in parameters:
        step = optimizer.state[p].get("step", torch.tensor(1.0))
        assert (step.dtype, step.ndim, step.item()) == (torch.float32, 0, 1.0)
    assert len({step.data_ptr() for p in parameters if (step := optimizer.state[p].get("step")) is not None}) in (
        0,
        len(parameters),
    )


@claim("optim.state.keyed-by-position")
@names
def test_saved_state_is_keyed_by_position(case, name):
    a, b, c = parameters_of(case, [(3,), (4,), (5,)])
    optimizer = build(case, name, [{"params": [a, b]}, {"params": [c]}], "fixed", **USUAL[name])
    give_gradients(case, [a, b, c])
    b.grad = None
    optimizer.step()
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2]]
    assert sorted(saved["state"]) == ([0, 1, 2] if name == "Adagrad" else [0, 2] if optimizer.state[a] else [])
    assert all(group[key] == USUAL[name][key] for group in saved["param_groups"] for key in USUAL[name])


def trained(case, name, path, steps=3):
    parameters = parameters_of(case, SOME)
    optimizer = build(case, name, parameters, path, **USUAL[name])
    for _ in range(steps):
        give_gradients(case, parameters)
        optimizer.step()
    return parameters, optimizer


@claim("optim.state.loaded-apart")
@names
def test_a_loaded_optimizer_steps_on_state_of_its_own(case, name):
    parameters, old = trained(case, name, "fixed")
    before = copy.deepcopy(old.state_dict()["state"])
    others = parameters_of(case, SOME)
    new = build(case, name, others, "fixed", **USUAL[name])
    new.load_state_dict(old.state_dict())
    give_gradients(case, others)
    new.step()
    for index, state in before.items():
        for key, value in state.items():
            now = old.state[parameters[index]][key]
            assert torch.equal(torch.as_tensor(now), torch.as_tensor(value)), f"the step has changed the other's {key}"


@claim("optim.state.resumed-bitwise")
@axes(dtype=("float32", "bfloat16"))
@loops
@names
def test_training_resumed_from_a_file_goes_on_bit_by_bit(case, name, path):
    resumes(case, name, path)


@claim("optim.state.resumed-bitwise")
@pytest.mark.parametrize("name", FUSED_ON_CPU)
def test_fused_training_resumed_goes_on_bit_by_bit(case, name):
    resumes(case, name, "fused")


def resumes(case, name, path):
    parameters, optimizer = trained(case, name, path)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    resumed = build(case, name, copies, path, lr=0.7)
    resumed.load_state_dict(torch.load(file))
    for _ in range(2):
        give_gradients(case, parameters)
        for p, q in zip(parameters, copies, strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        resumed.step()
        case.same(flat(copies), flat(parameters))
    after, wanted = remembered(resumed, copies), remembered(optimizer, parameters)
    assert after.keys() == wanted.keys()
    for key, value in wanted.items():
        assert after[key] == value if key == "step" else case.same(after[key], value) is None


@claim("optim.state.loaded-options-win")
@names
def test_loaded_options_replace_those_of_the_constructor(case, name):
    _, old = trained(case, name, "fixed", 1)
    new = build(case, name, parameters_of(case, SOME), "fixed", lr=0.7)
    new.load_state_dict(old.state_dict())
    assert all(new.param_groups[0][key] == value for key, value in USUAL[name].items())
    new.param_groups[0]["lr"] = 5.0
    assert old.param_groups[0]["lr"] == USUAL[name]["lr"]


@claim("optim.state.loads-by-position")
def test_state_is_loaded_by_position_without_a_look_at_shapes(case):
    a, b = parameters_of(case, [(3,), (5,)])
    old = build(case, "SGD", [a, b], lr=0.1, momentum=0.5)
    give_gradients(case, [a, b])
    old.step()
    new = build(case, "SGD", [b, a], lr=0.1, momentum=0.5)
    new.load_state_dict(old.state_dict())
    case.same(new.state[b]["momentum_buffer"], old.state[a]["momentum_buffer"])


@claim("optim.state.loading-errors")
@names
def test_state_of_other_groups_is_refused(case, name):
    one, two = parameters_of(case, [(3,), (4,)])
    saved = build(case, name, [one], "fixed", **USUAL[name]).state_dict()
    with case.raises(ValueError, "doesn't match the size"):
        build(case, name, [one, two], "fixed", **USUAL[name]).load_state_dict(saved)
    with case.raises(ValueError, "different number of parameter groups"):
        build(case, name, [{"params": [one]}, {"params": [two]}], "fixed", **USUAL[name]).load_state_dict(saved)


@claim("optim.state.loading-casts")
@names
@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16])
def test_loaded_state_takes_the_parameters_dtype_but_the_count_does_not(case, name, to):
    parameters, old = trained(case, name, "fixed", 2)
    converted = [p.detach().to(to).requires_grad_() for p in parameters]
    new = build(case, name, converted, "fixed", **USUAL[name])
    new.load_state_dict(old.state_dict())
    for p, q in zip(parameters, converted, strict=True):
        for key, value in old.state[p].items():
            if key == "step":
                case.same(new.state[q][key], value)
            elif torch.is_tensor(value) and value.ndim:
                case.same(new.state[q][key], value.to(to))


@claim("optim.state.saving-shares-memory")
def test_a_saved_state_shares_memory_with_the_optimizer(case):
    parameters, optimizer = trained(case, "SGD", "fixed", 1)
    saved = optimizer.state_dict()
    give_gradients(case, parameters)
    optimizer.step()
    case.same(saved["state"][2]["momentum_buffer"], optimizer.state[parameters[2]]["momentum_buffer"])
    assert saved["state"][2]["momentum_buffer"] is optimizer.state[parameters[2]]["momentum_buffer"]


@claim("optim.state.loading-leaves-the-dict-alone")
@names
def test_loading_leaves_the_loaded_dict_alone(case, name):
    _, old = trained(case, name, "fixed", 1)
    saved = copy.deepcopy(old.state_dict())
    keys, groups = list(saved), copy.deepcopy(saved["param_groups"])
    new = build(case, name, parameters_of(case, SOME), "fixed", **USUAL[name])
    new.load_state_dict(saved)
    new.param_groups[0]["lr"] = 5.0
    assert list(saved) == keys
    assert saved["param_groups"] == groups


@claim("optim.state.copied-with-the-optimizer")
@every
def test_a_deep_copy_goes_on_by_itself(case, name, path):
    parameters, optimizer = trained(case, name, path, 2)
    parameters_copy, twin = copy.deepcopy((parameters, optimizer))
    give_gradients(case, parameters_copy)
    old = flat(parameters)
    for p in parameters:
        p.grad = None
    follows(case, twin, parameters_copy, law_of(case, name), USUAL[name])
    case.same(flat(parameters), old)
