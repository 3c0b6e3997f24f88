"""Hooks on modules, tensors, graph nodes and optimizers: when they run, what they see and what they may change."""

import copy
import importlib
import io
import pickle
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_file

from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")


class Affine(nn.Module):
    """Takes tensors and others by place and by name; linear, so that gradients are exact."""

    def forward(self, x, factor=2.0, *, shift=0.0):
        return x * factor + shift


class Failing(nn.Module):
    def forward(self, x, shift=0.0):
        raise ArithmeticError("on purpose")


class Two(nn.Module):
    """Two inputs that matter, and two outputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x, text, y):
        return x * self.weight + 2 * y, x + 4 * y


# -- Forward -------------------------------------------------------------------------------------------------------


@claim("hooks.forward.pre-hook")
@pytest.mark.parametrize("returned", ["None", "tensor", "tuple"])
def test_pre_hooks_replace_inputs(case, returned):
    layer, x, seen = Affine(), case.tensor(3), []
    other = case.tensor(3)
    answer = {"None": None, "tensor": other, "tuple": (other, 5.0)}[returned]

    def hook(module, args):
        seen.append((module, args))
        return answer

    layer.register_forward_pre_hook(hook)
    y = layer(x, 3.0, shift=1.0)
    assert [module for module, _ in seen] == [layer]
    assert seen[0][1] == (x, 3.0)
    assert seen[0][1][0] is x
    wanted = {"None": x * 3.0 + 1, "tensor": other * 2.0 + 1, "tuple": other * 5.0 + 1}[returned]
    case.same(y, wanted)


@claim("hooks.forward.hook")
@pytest.mark.parametrize("replaces", [True, False])
def test_forward_hooks_replace_the_output(case, replaces):
    layer, x, seen, other = Affine(), case.tensor(3), [], case.tensor(2)

    def hook(module, args, output):
        seen.append((module, args, output))
        return other if replaces else None

    layer.register_forward_hook(hook)
    y = layer(x, 3.0, shift=1.0)
    assert len(seen) == 1
    assert seen[0][0] is layer
    assert seen[0][1] == (x, 3.0)
    case.same(seen[0][2], x * 3.0 + 1)
    assert y is (other if replaces else seen[0][2])


@claim("hooks.forward.order")
def test_hooks_run_in_the_order_of_registration(case):
    layer, x, order = Affine(), case.tensor_of([1.0]), []

    def note(name, change):
        return lambda module, *given: order.append(name) or change(given[-1])

    layer.register_forward_pre_hook(note("a", lambda args: (args[0] + 1,)))
    first = layer.register_forward_pre_hook(note("b", lambda args: args[0] * 10))
    layer.register_forward_hook(note("c", lambda y: y + 1))
    layer.register_forward_hook(note("d", lambda y: y * 10))
    case.same(layer(x), case.tensor_of([410.0]))  # ((1 + 1) · 10 · 2 + 1) · 10
    assert order == ["a", "b", "c", "d"]
    first.remove()
    case.same(layer(x), case.tensor_of([50.0]))
    assert order[4:] == ["a", "c", "d"]


@claim("hooks.forward.prepend")
@pytest.mark.parametrize("kind", ["forward_pre_hook", "forward_hook"])
def test_hooks_can_be_put_first(case, kind):
    layer, order = Affine(), []
    register = getattr(layer, f"register_{kind}")
    for name, prepend in [("a", False), ("b", True), ("c", False), ("d", True)]:
        register(lambda *_, name=name: order.append(name), prepend=prepend)
    layer(case.tensor(1))
    assert order == ["d", "b", "a", "c"]


@claim("hooks.forward.global-first")
def test_hooks_for_all_modules_run_first(case):
    order = []
    model = nn.Sequential(Affine(), Affine())
    model[0].register_forward_pre_hook(lambda *_: order.append("own before"))
    model[0].register_forward_hook(lambda *_: order.append("own after"))
    before = module_file.register_module_forward_pre_hook(lambda module, args: order.append(("before", module)))
    after = module_file.register_module_forward_hook(lambda module, args, y: order.append(("after", module)))
    with before, after:
        model(case.tensor(1))
    first, second = model
    expected = [("before", model), ("before", first), "own before", ("after", first), "own after"]
    assert order == [*expected, ("before", second), ("after", second), ("after", model)]
    model(case.tensor(1))
    assert len(order) == 10


@claim("hooks.forward.global-first")
def test_hooks_for_all_modules_may_replace(case):
    layer, x = Affine(), case.tensor(3)
    with module_file.register_module_forward_pre_hook(lambda module, args: args[0] + 1):
        case.same(layer(x), (x + 1) * 2.0 + 0.0)
    with module_file.register_module_forward_hook(lambda module, args, y: y * 3):
        case.same(layer(x), (x * 2.0 + 0.0) * 3)


@claim("hooks.forward.with-kwargs")
def test_keywords_are_shown_on_request(case):
    layer, x, seen = Affine(), case.tensor(3), []
    layer.register_forward_pre_hook(lambda m, args, kwargs: (args, {"shift": kwargs["shift"] + 1}), with_kwargs=True)
    layer.register_forward_pre_hook(lambda *given: seen.append(len(given)))
    layer.register_forward_hook(lambda m, args, kwargs, y: seen.append(kwargs) or y * 3, with_kwargs=True)
    layer.register_forward_hook(lambda *given: seen.append(len(given)))
    case.same(layer(x, shift=1.0), (x * 2.0 + 2.0) * 3)
    assert seen == [2, {"shift": 2.0}, 3]


@claim("hooks.forward.bad-pre-hook")
@pytest.mark.parametrize("answer", [5, (1,), [(), {}]], ids=str)
def test_a_pre_hook_with_keywords_returns_a_pair(case, answer):
    layer = Affine()
    layer.register_forward_pre_hook(lambda *_: answer, with_kwargs=True)
    with case.raises(RuntimeError, "pre-hook must return None or a tuple"):
        layer(case.tensor(3))


@claim("hooks.forward.always-call")
def test_some_hooks_run_after_an_error(case):
    layer, x, seen = Failing(), case.tensor(3), []
    layer.register_forward_hook(lambda *_: seen.append("usual"))
    layer.register_forward_hook(lambda m, args, y: seen.append((m, args, y)), always_call=True)
    layer.register_forward_hook(lambda m, args, kw, y: seen.append((kw, y)), always_call=True, with_kwargs=True)
    with case.raises(ArithmeticError, "on purpose"):
        layer(x, shift=2.0)
    assert len(seen) == 2
    assert seen[0] == (layer, (x,), None)
    assert seen[1] == ({"shift": 2.0}, None)
    layer.register_forward_hook(lambda *_: {}["missing"], always_call=True, prepend=True)
    with pytest.warns(UserWarning, match="silenced"), case.raises(ArithmeticError, "on purpose"):
        layer(x)
    assert len(seen) == 4


@claim("hooks.forward.always-call")
def test_always_called_hooks_run_once(case):
    layer, seen = Affine(), []

    def fails(*_):
        raise ArithmeticError("on purpose")

    layer.register_forward_hook(lambda *_: seen.append("early"), always_call=True)
    handle = layer.register_forward_hook(fails)
    late = layer.register_forward_hook(lambda *_: seen.append("late"), always_call=True)
    with case.raises(ArithmeticError, "on purpose"):
        layer(case.tensor(1))
    assert seen == ["early", "late"]
    handle.remove()
    layer(case.tensor(1))
    late.remove()
    layer(case.tensor(1))
    assert seen == ["early", "late"] * 2 + ["early"]


@claim("hooks.forward.global-always-call")
def test_some_hooks_for_all_modules_run_after_an_error(case):
    layer, x, seen = Failing(), case.tensor(3), []
    with module_file.register_module_forward_hook(lambda m, args, y: seen.append((m, args, y)), always_call=True):
        with case.raises(ArithmeticError, "on purpose"):
            layer(x)
        Affine()(x)
    assert seen[0] == (layer, (x,), None)
    assert len(seen) == 2
    with case.raises(ArithmeticError, "on purpose"):
        layer(x)
    assert len(seen) == 2


@claim("hooks.forward.global-always-call-with-kwargs")
def test_hooks_for_all_modules_see_keywords_after_an_error(case):
    seen = []
    register = module_file.register_module_forward_hook
    with register(lambda m, args, kwargs, y: seen.append(kwargs), with_kwargs=True, always_call=True):
        Affine()(case.tensor(3), shift=1.0)
        assert seen == [{"shift": 1.0}]
        with warnings.catch_warnings(), case.raises(ArithmeticError, "on purpose"):
            warnings.simplefilter("ignore")
            Failing()(case.tensor(3), shift=2.0)
    assert seen[1:] == [{"shift": 2.0}], "the hook was not called with the keyword arguments"


@claim("hooks.forward.direct-call-bypasses")
def test_forward_itself_runs_no_hook(case):
    layer, x, seen = Affine(), case.tensor(3, requires_grad=True), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.forward(x).sum().backward()
    assert seen == []
    layer(x).sum().backward()
    assert seen == ["before", "after", "backward"]


@claim("hooks.forward.replaced-output-is-differentiated")
def test_gradients_flow_through_hooks(case):
    layer, x = Affine(), case.tensor(3, requires_grad=True)
    layer.register_forward_pre_hook(lambda m, args: args[0] * 4)
    layer.register_forward_hook(lambda m, args, y: y * 8)
    layer(x).backward(gradient := case.tensor(3))
    case.same(x.grad, gradient * 64)


@claim("hooks.handle.removal")
def test_handles_remove_their_hook(case):
    layer, seen, x = Affine(), [], case.tensor(1)
    handles = [layer.register_forward_hook(lambda *_, i=i: seen.append(i)) for i in range(3)]
    handles[1].remove()
    handles[1].remove()
    layer(x)
    assert seen == [0, 2]
    with layer.register_forward_hook(lambda *_: seen.append("within")):
        layer(x)
    layer(x)
    assert seen == [0, 2, 0, 2, "within", 0, 2]


def quiet(*_):
    """A hook that can be pickled."""


def sizes(layer):
    """How much each register of the module holds."""
    return {name: len(value) for name, value in vars(layer).items() if isinstance(value, dict)}


@claim("hooks.handle.leaves-nothing")
@pytest.mark.parametrize("travel", [lambda pair: pair, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_nothing_of_a_removed_hook_stays(case, travel):
    layer = Affine()
    empty = sizes(layer)
    options = {"with_kwargs": True, "always_call": True}
    handles = [layer.register_forward_hook(quiet, **options), layer.register_forward_pre_hook(quiet, with_kwargs=True)]
    other, others = travel((layer, handles))
    assert sizes(other) == sizes(layer) != empty
    late = other.register_forward_hook(quiet)
    for handle in others:
        handle.remove()
    assert sizes(other) == {**empty, "_forward_hooks": 1}
    late.remove()
    assert sizes(other) == empty


@claim("hooks.handle.copied")
def test_copies_keep_their_hooks(case):
    layer, seen, x = Affine(), [], case.tensor(1)
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    twin = copy.deepcopy(layer)
    handle.remove()
    layer(x)
    assert seen == []
    twin(x)
    assert seen == [1]


# -- Backward of modules -------------------------------------------------------------------------------------------


def two(case, *, x_grad=True, y_grad=True):
    layer = case.module(Two)
    x, y = case.tensor(3, requires_grad=x_grad), case.tensor(3, requires_grad=y_grad)
    return layer, x, y, [case.tensor(3), case.tensor(3)]


@claim("hooks.backward.values")
@pytest.mark.parametrize("y_grad", [True, False])
def test_backward_hooks_see_gradients(case, y_grad):
    layer, x, y, given = two(case, y_grad=y_grad)
    seen = []
    layer.register_full_backward_hook(lambda module, into, out: seen.append((module, into, out)))
    torch.autograd.backward(layer(x, "text", y), given)
    assert len(seen) == 1
    assert seen[0][0] is layer
    assert len(seen[0][1]) == 3
    into, out = seen[0][1:]
    case.same(into[0], given[0] * layer.weight + given[1])
    assert into[1] is None
    if y_grad:
        case.same(into[2], given[0] * 2 + given[1] * 4)
    else:
        assert into[2] is None or not into[2].any()
    case.same(out[0], given[0])
    case.same(out[1], given[1])
    case.same(x.grad, into[0])


@claim("hooks.backward.values")
def test_unused_outputs_have_no_gradient(case):
    layer, x, y, given = two(case)
    seen = []
    layer.register_full_backward_hook(lambda module, into, out: seen.append(out))
    layer(x, "text", y)[1].backward(given[1])
    assert len(seen) == 1
    assert seen[0][0] is None or not seen[0][0].any()
    case.same(seen[0][1], given[1])


@claim("hooks.backward.replaces")
def test_backward_hooks_replace_input_gradients(case):
    layer, x, y, given = two(case)
    source, new = case.tensor(3, requires_grad=True), case.tensor(3)
    layer.register_full_backward_hook(lambda module, into, out: (new, None, into[2] * 2))
    torch.autograd.backward(layer(source * 4, "text", y), given)
    case.same(source.grad, new * 4)
    case.same(y.grad, (given[0] * 2 + given[1] * 4) * 2)
    case.same(layer.weight.grad, given[0] * (source * 4).detach())
    single = Affine()
    single.register_full_backward_hook(lambda module, into, out: (into[0] * 8,))
    single(x).backward(given[0])
    case.same(x.grad, given[0] * 16)


@claim("hooks.backward.without-input-gradient")
def test_backward_hooks_fire_without_input_gradients(case):
    layer, x, y, given = two(case, x_grad=False, y_grad=False)
    seen = []
    layer.register_full_backward_hook(lambda module, into, out: seen.append((into, out)))
    torch.autograd.backward(layer(x, "text", y)[0], given[0])
    assert len(seen) == 1
    assert seen[0][0] == (None, None, None)
    case.same(seen[0][1][0], given[0])
    case.same(layer.weight.grad, given[0] * x)
    handle = layer.register_full_backward_hook(lambda module, into, out: into)
    layer(x, "text", y)[0].backward(given[0])
    handle.remove()
    layer.register_full_backward_hook(lambda module, into, out: (x, None, None))
    with case.raises(RuntimeError, "None for all gradients"):
        layer(x, "text", y)[0].backward(given[0])


@claim("hooks.backward.order")
def test_backward_hooks_run_in_order(case):
    layer, x, order = Affine(), case.tensor_of([1.0], requires_grad=True), []

    def note(name, change):
        return lambda module, into, out: order.append(name) or (change(into[0]),)

    layer.register_full_backward_hook(note("a", lambda g: g + 1))
    handle = layer.register_full_backward_hook(note("b", lambda g: g * 8))
    layer.register_full_backward_hook(note("first", lambda g: g + 2), prepend=True)
    with module_file.register_module_full_backward_hook(note("all", lambda g: g * 4)):
        layer(x).sum().backward()
    assert order == ["all", "first", "a", "b"]
    case.same(x.grad, case.tensor_of([88.0]))  # ((2 · 4 + 2) + 1) · 8
    handle.remove()
    layer(x).sum().backward()
    assert order[4:] == ["first", "a"]


@claim("hooks.backward.bad-return")
@pytest.mark.parametrize("wrong", ["many", "few", "number"])
def test_backward_hooks_return_one_gradient_each(case, wrong):
    layer, x, y, given = two(case)
    g = case.tensor(3)
    answer = {"many": (g, None, g, g), "few": (g,), "number": (1.0, None, 2.0)}[wrong]
    layer.register_full_backward_hook(lambda *_: answer)
    with case.raises((RuntimeError, TypeError), "hook|got \\d|number of|expected|invalid gradient"):
        torch.autograd.backward(layer(x, "text", y), given)


@claim("hooks.backward.inplace-raises")
@pytest.mark.parametrize("which", ["input", "output"])
def test_nothing_is_changed_in_place_beside_backward_hooks(case, which):
    class Inside(nn.Module):
        def forward(self, x):
            return x.mul_(2) if which == "input" else x * 2

    layer = Inside()
    layer.register_full_backward_hook(lambda *_: None)
    with case.raises(RuntimeError, "view and is being modified inplace"):
        layer(case.tensor(3, requires_grad=True) * 1).add_(1)


@claim("hooks.backward.pre-hook")
def test_backward_pre_hooks_replace_output_gradients(case):
    layer, x, y, given = two(case)
    seen = []
    layer.register_full_backward_pre_hook(lambda module, out: seen.append(out) or (out[0] * 2, out[1] * 4))
    layer.register_full_backward_hook(lambda module, into, out: seen.append(out))
    torch.autograd.backward(layer(x, "text", y), given)
    case.same(seen[0][0], given[0])
    case.same(seen[1][1], given[1] * 4)
    case.same(layer.weight.grad, given[0] * 2 * x)
    case.same(y.grad, given[0] * 2 * 2 + given[1] * 4 * 4)


@claim("hooks.backward.pre-hook")
def test_backward_pre_hooks_have_an_order(case):
    layer, x, order = Affine(), case.tensor_of([1.0], requires_grad=True), []
    for name, change, prepend in [("a", 1, False), ("b", 2, True)]:
        layer.register_full_backward_pre_hook(
            lambda m, out, name=name, change=change: order.append(name) or (out[0] * 4 + change,), prepend=prepend
        )
    with module_file.register_module_full_backward_pre_hook(lambda m, out: order.append("all")):
        layer(x).sum().backward()
    assert order == ["all", "b", "a"]
    case.same(x.grad, case.tensor_of([50.0]))  # ((1 · 4 + 2) · 4 + 1) · 2


@claim("hooks.backward.pre-hook-without-input-gradient")
def test_backward_pre_hooks_act_without_input_gradients(case):
    layer, x, y, given = two(case, x_grad=False, y_grad=False)
    layer.register_full_backward_pre_hook(lambda module, out: (out[0] * 2, out[1]))
    layer(x, "text", y)[0].backward(given[0])
    case.same(layer.weight.grad, given[0] * 2 * x)


@claim("hooks.backward.pre-hook-alone-warns-not")
def test_a_backward_pre_hook_alone_warns_of_nothing(case):
    layer, x, y, given = two(case, x_grad=False, y_grad=False)
    layer.register_full_backward_pre_hook(lambda module, out: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(x, "text", y)[0].backward(given[0])
    assert not caught


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Pairing(nn.Module):
    def forward(self, x):
        return Pair(x * 2, x * 3)


@claim("hooks.backward.keeps-the-type")
def test_backward_hooks_keep_a_named_tuple(case):
    layer = Pairing()
    layer.register_full_backward_hook(lambda *_: None)
    assert isinstance(layer(case.tensor(3, requires_grad=True)), Pair)


@claim("hooks.backward.kinds-do-not-mix")
@pytest.mark.parametrize("first", ["old", "full"])
def test_old_and_full_backward_hooks_do_not_mix(case, first):
    layer = Affine()
    kinds = {"old": layer.register_backward_hook, "full": layer.register_full_backward_hook}
    kinds.pop(first)(lambda *_: None)
    with case.raises(RuntimeError, "cannot use both regular backward hooks and full"):
        next(iter(kinds.values()))(lambda *_: None)


@claim("hooks.backward.old-kind")
@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda x: x * 2 * 3, "multiple autograd Nodes"),
        (lambda x: (x * 3, x * 2), "different autograd Nodes"),
        (lambda x: {"y": x * 3}, "does not return a single Tensor"),
        (lambda x: x.square(), None),
    ],
    ids=["chain", "pair", "dict", "single"],
)
def test_old_hooks_see_the_last_operation(case, forward, words):
    layer, seen, x = nn.Identity(), [], case.tensor(3, requires_grad=True) * 1
    layer.forward = forward
    layer.register_backward_hook(lambda module, into, out: seen.append((into[0], out[0])))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        y = layer(x)
    y = y["y"] if isinstance(y, dict) else y[0] if isinstance(y, tuple) else y
    y.backward(gradient := case.tensor(3))
    ((into, out),) = seen
    case.same(out, gradient)
    case.same(into, gradient * (3 if words else 2 * x.detach()))
    told = [str(warning.message) for warning in told]
    assert len(told) == bool(words)
    assert not words or words in told[0]


# -- Tensors and nodes ---------------------------------------------------------------------------------------------


@claim("hooks.tensor.replaces")
@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("replaces", [True, False])
def test_tensor_hooks_replace_the_gradient(case, leaf, replaces):
    x, gradient, seen = case.tensor(3, requires_grad=True), case.tensor(3), []
    middle = x if leaf else x * 4
    middle.register_hook(lambda g: seen.append(g) or (g * 8 if replaces else None))
    (middle * 2).backward(gradient)
    assert len(seen) == 1
    case.same(seen[0], gradient * 2)
    case.same(x.grad, gradient * 2 * (1 if leaf else 4) * (8 if replaces else 1))


@claim("hooks.tensor.order")
def test_tensor_hooks_run_in_order(case):
    x, order = case.tensor_of([1.0], requires_grad=True), []
    x.register_hook(lambda g: order.append("a") or g + 1)
    handle = x.register_hook(lambda g: order.append("b") or g * 8)
    x.register_hook(lambda g: order.append("c"))
    (x * 2).backward()
    assert order == ["a", "b", "c"]
    case.same(x.grad, case.tensor_of([24.0]))
    handle.remove()
    (x * 2).backward()
    assert order[3:] == ["a", "c"]
    case.same(x.grad, case.tensor_of([27.0]))


@claim("hooks.tensor.sums-first")
@pytest.mark.parametrize("leaf", [True, False])
def test_tensor_hooks_see_the_sum(case, leaf):
    x, seen = case.tensor(3, requires_grad=True), []
    middle = x if leaf else x * 1
    middle.register_hook(lambda g: seen.append(g))
    a, b = case.tensor(3), case.tensor(3)
    torch.autograd.backward([middle * 2, middle * 4], [a, b])
    assert len(seen) == 1
    case.close(seen[0], array_sum(a, b), k=1, scale=array_sum(a.abs(), b.abs()))  # one addition of exact products


def array_sum(a, b):
    return 2 * a.double().cpu().numpy() + 4 * b.double().cpu().numpy()


@claim("hooks.tensor.in-autograd-grad")
def test_tensor_hooks_run_in_autograd_grad(case):
    y, seen, gradient = case.tensor(3, requires_grad=True) * 4, [], case.tensor(3)
    y.register_hook(lambda g: seen.append(g) or g * 8)
    (found,) = torch.autograd.grad(y * 2, y, gradient)
    assert len(seen) == 1
    case.same(found, gradient * 16)


@claim("hooks.tensor.in-place")
def test_hooks_stay_with_the_value_they_were_registered_for(case):
    x, seen, gradient = case.tensor(3, requires_grad=True), [], case.tensor(3)
    y = x * 2
    y.register_hook(lambda g: seen.append(g) or g * 8)
    y.mul_(4)
    y.register_hook(lambda g: seen.append(g))
    y.backward(gradient)
    case.same(seen[0], gradient)
    case.same(seen[1], gradient * 4)
    case.same(x.grad, gradient * 64)


@claim("hooks.tensor.needs-requires-grad")
def test_hooks_need_a_gradient(case):
    with case.raises(RuntimeError, "doesn't require gradient"):
        case.tensor(3).register_hook(lambda g: g)


@claim("hooks.tensor.bad-return")
@pytest.mark.parametrize("wrong", ["shape", "number"])
def test_tensor_hooks_return_a_gradient(case, wrong):
    x = case.tensor(3, requires_grad=True)
    x.register_hook(lambda g: g[:2] if wrong == "shape" else 1.0)
    with case.raises((RuntimeError, TypeError), "size|shape|expected|tensor|variable"):
        x.sum().backward()


@claim("hooks.tensor.retained-after-hooks")
@pytest.mark.parametrize("retained_first", [True, False])
def test_retained_gradients_are_those_after_hooks(case, retained_first):
    middle, gradient = case.tensor(3, requires_grad=True) * 4, case.tensor(3)
    steps = [middle.retain_grad, lambda: middle.register_hook(lambda g: g * 8)]
    for step in steps if retained_first else steps[::-1]:
        step()
    middle.register_hook(lambda g: g * 2)
    middle.backward(gradient)
    case.same(middle.grad, gradient * 16)


@claim("hooks.tensor.post-accumulate")
def test_post_accumulate_hooks_come_after_the_sum(case):
    x, seen, gradient = case.tensor(3, requires_grad=True), [], case.tensor(3)
    x.grad = case.tensor(3)
    total = x.grad + gradient * 6
    x.register_hook(lambda g: g * 2)
    handle = x.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.clone())))
    torch.autograd.backward([x * 1, x * 2], [gradient, gradient])
    assert len(seen) == 1
    assert seen[0][0] is x
    case.same(x.grad, seen[0][1])
    case.close(x.grad, total.double().cpu().numpy(), k=4, scale=abs(array_sum(gradient, gradient)) + 4)  # sums
    handle.remove()
    x.sum().backward()
    assert len(seen) == 1


@claim("hooks.tensor.post-accumulate")
def test_a_step_may_run_within_backward(case):
    layer = case.module(nn.Linear, 5, 3)
    twin, x = copy.deepcopy(layer), case.tensor(4, 5)
    optimizers = {p: torch.optim.SGD([p], lr=0.5) for p in layer.parameters()}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in layer.parameters():
        p.register_post_accumulate_grad_hook(step)
    layer(x).square().sum().backward()
    twin(x).square().sum().backward()
    torch.optim.SGD(twin.parameters(), lr=0.5).step()
    for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
        assert p.grad is None
        case.same(p.detach(), q.detach())


@claim("hooks.tensor.post-accumulate-leaves-only")
def test_post_accumulate_hooks_are_for_leaves(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "leaf"):
        (x * 1).register_post_accumulate_grad_hook(lambda p: None)
    with case.raises(RuntimeError, "require gradient|requires? grad"):
        case.tensor(3).register_post_accumulate_grad_hook(lambda p: None)
    x.register_post_accumulate_grad_hook(lambda p: p.grad)
    with case.raises(RuntimeError, "None"):
        x.sum().backward()


@claim("hooks.tensor.on-a-stale-view-with-hooks")
def test_a_second_hook_on_a_view_sees_the_gradient_of_its_new_value(case):
    y, seen = case.tensor(2, requires_grad=True) * 2, []
    view = y[0]
    view.register_hook(lambda g: None)
    y.mul_(3)
    view.register_hook(lambda g: seen.append(g.item()))
    (view * 5).backward()
    assert seen == [5.0]


@claim("hooks.tensor.serialized")
@pytest.mark.parametrize("marked", [False, True])
def test_saving_a_tensor_with_hooks_warns_unless_they_are_marked(case, marked):
    x = case.tensor(3, requires_grad=True)
    x.register_hook(torch.utils.hooks.unserializable_hook(lambda g: g) if marked else lambda g: g)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.save(x, io.BytesIO())
    assert any("hook" in str(warning.message) for warning in told) is not marked


@claim("hooks.node.hooks")
def test_nodes_have_hooks_of_their_own(case):
    x, gradient, order = case.tensor(3, requires_grad=True), case.tensor(3), []
    y = x * 4
    y.grad_fn.register_hook(lambda into, out: order.append(("after", out[0])) or (into[0] * 8, None))
    handle = y.grad_fn.register_prehook(lambda out: order.append(("before", out[0])) or (out[0] * 2,))
    y.backward(gradient, retain_graph=True)
    assert [name for name, _ in order] == ["before", "after"]
    case.same(order[0][1], gradient)
    case.same(order[1][1], gradient * 2)
    case.same(x.grad, gradient * 64)
    handle.remove()
    x.grad = None
    y.backward(gradient)
    case.same(x.grad, gradient * 32)


@claim("hooks.node.of-a-leaf")
def test_the_node_of_a_leaf_gets_what_the_hooks_of_the_leaf_return(case):
    x, gradient, seen = case.tensor(3, requires_grad=True), case.tensor(3), []
    y = x * 2
    y.grad_fn.next_functions[0][0].register_hook(lambda _, out: seen.append(out[0].clone()))
    x.register_hook(lambda g: g * 8)
    y.backward(gradient)
    case.same(seen[0], gradient * 16)
    case.same(x.grad, gradient * 16)


@claim("hooks.node.multi-grad")
def test_multi_grad_hooks_wait_for_all(case):
    a, b, c = (case.tensor(3, requires_grad=True) for _ in range(3))
    seen, gradient = [], case.tensor(3)
    handle = torch.autograd.graph.register_multi_grad_hook((a, b, c), seen.append)
    (a * 2 + b * 4).backward(gradient)
    assert len(seen) == 1
    assert seen[0][2] is None
    case.same(seen[0][0], gradient * 2)
    case.same(seen[0][1], gradient * 4)
    handle.remove()
    a.sum().backward()
    assert len(seen) == 1


@claim("hooks.node.multi-grad")
def test_multi_grad_hooks_may_take_the_first(case):
    a, b = (case.tensor(3, requires_grad=True) for _ in range(2))
    seen = []
    try:
        torch.autograd.graph.register_multi_grad_hook((a, b), seen.append, mode="any")
    except TypeError:
        raise case.unsupported(f"torch {torch.__version__} has no mode any") from None
    (a * 2 + b * 2).backward(gradient := case.tensor(3))
    assert len(seen) == 1
    case.same(seen[0], gradient * 2)
    with case.raises(ValueError, "mode"):
        torch.autograd.graph.register_multi_grad_hook((a, b), seen.append, mode="some")


@claim("hooks.node.multi-grad-of-the-root")
def test_multi_grad_hooks_fire_where_backward_starts(case):
    x, seen = case.tensor(3, requires_grad=True), []
    loss = (2 * x).sum()
    torch.autograd.graph.register_multi_grad_hook((loss,), seen.append)
    loss.backward()
    assert len(seen) == 1


@claim("hooks.node.multi-grad-under-no-grad")
def test_multi_grad_hooks_are_registered_under_no_grad(case):
    x, seen = case.tensor(3, requires_grad=True), []
    with torch.no_grad():
        torch.autograd.graph.register_multi_grad_hook((x,), seen.append)
    (x * 2).sum().backward()
    assert len(seen) == 1


@claim("hooks.tensor.on-a-stale-view")
def test_a_hook_on_a_view_of_a_changed_base(case):
    base = case.tensor(4, requires_grad=True).clone()
    view = base[:2]
    base.mul_(2)
    case.survived(lambda: view.register_hook(lambda gradient: None))


# -- Optimizers ----------------------------------------------------------------------------------------------------


def optimizer_of(case):
    parameter = nn.Parameter(case.tensor(3))
    parameter.grad = case.tensor(3)
    return parameter, torch.optim.SGD([parameter], lr=0.5)


@claim("hooks.optimizer.step-hooks")
def test_step_hooks_surround_the_step(case):
    parameter, optimizer = optimizer_of(case)
    before, seen = parameter.detach().clone(), []

    def note(optimizer, args, kwargs):
        seen.append((optimizer, args, kwargs, parameter.detach().clone()))

    handles = [optimizer.register_step_pre_hook(note), optimizer.register_step_post_hook(note)]
    optimizer.step()
    assert [entry[0] for entry in seen] == [optimizer] * 2
    assert len(seen) == 2
    case.same(seen[0][3], before)
    case.same(seen[1][3], parameter.detach())
    assert not torch.equal(seen[0][3], seen[1][3])
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 2


@claim("hooks.optimizer.step-hooks")
def test_step_hooks_get_the_arguments_and_may_change_them(case):
    (_, optimizer), seen = optimizer_of(case), []
    optimizer.register_step_post_hook(lambda *given: seen.append(given))
    first = optimizer.register_step_pre_hook(lambda *given: seen.append(given))
    optimizer.step(closure=None)
    assert seen == [(optimizer, (optimizer,), {"closure": None})] * 2
    first.remove()
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((*args, lambda: 7), {}))
    assert optimizer.step() == 7
    assert len(seen[-1][1]) == 2
    for wrong in (7, (1, 2, 3)):
        with (
            optimizer.register_step_pre_hook(lambda *_, wrong=wrong: wrong),
            case.raises(RuntimeError, "must return None or a tuple"),
        ):
            optimizer.step()


@claim("hooks.optimizer.global-step-hooks")
def test_hooks_of_all_optimizers_enclose_those_of_one(case):
    (_, first), (_, second) = optimizer_of(case), optimizer_of(case)
    order, file = [], importlib.import_module("torch.optim.optimizer")
    for kind in ("post", "pre"):
        getattr(first, f"register_step_{kind}_hook")(lambda *_, kind=kind: order.append(kind))
    before = file.register_optimizer_step_pre_hook(lambda o, *_: order.append(("before", o)))
    after = file.register_optimizer_step_post_hook(lambda o, *_: order.append(("after", o)))
    with before, after:
        first.step()
        second.step()
    first.step()
    assert order[:4] == [("before", first), "pre", "post", ("after", first)]
    assert order[4:] == [("before", second), ("after", second), "pre", "post"]


@claim("hooks.optimizer.state-dict-hooks")
@pytest.mark.parametrize("kind", ["state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"])
def test_state_dict_hooks_of_optimizers_run_in_order_until_removed(case, kind):
    (_, optimizer), seen = optimizer_of(case), []
    saved = optimizer.state_dict()
    register = getattr(optimizer, f"register_{kind}_hook")
    handles = [
        register(lambda *given: seen.append((1, *given))),
        register(lambda *given: seen.append((2, *given))),
        register(lambda *given: seen.append((0, *given)), prepend=True),
        register(lambda *given: seen.append((3, *given)), prepend=False),
    ]

    def run():
        optimizer.load_state_dict(saved) if kind.startswith("load") else optimizer.state_dict()

    run()
    assert [each[0] for each in seen] == [0, 1, 2, 3]
    for _, *given in seen:
        assert given == ([optimizer] if kind in ("state_dict_pre", "load_state_dict_post") else [optimizer, saved])
    for handle in handles:
        handle.remove()
    run()
    assert len(seen) == 4


@claim("hooks.optimizer.state-dict-hooks")
def test_hooks_may_replace_what_is_saved_and_what_is_loaded(case):
    (_, optimizer), order = optimizer_of(case), []
    plain, mine = optimizer.state_dict(), {"mine": True}
    optimizer.register_state_dict_post_hook(lambda *_: mine)
    assert optimizer.state_dict() is mine

    def slower(optimizer, state):
        assert state is not mine
        state.clear()  # a shallow copy: the user's dict stays
        return {**plain, "param_groups": [{**plain["param_groups"][0], "lr": 0.25}]}

    optimizer.register_load_state_dict_pre_hook(slower)
    optimizer.register_load_state_dict_post_hook(lambda o: order.append(o.param_groups[0]["lr"]))
    optimizer.load_state_dict(mine)
    assert order == [0.25]
    assert mine == {"mine": True}
    assert plain["param_groups"][0]["lr"] == 0.5


# -- Registration --------------------------------------------------------------------------------------------------


@claim("hooks.registration.hooks")
@pytest.mark.parametrize("kind", ["parameter", "buffer", "module"])
def test_registration_hooks_see_what_is_registered(case, kind):
    make = {
        "parameter": lambda: nn.Parameter(case.tensor(2)),
        "buffer": lambda: case.tensor(2),
        "module": lambda: nn.ReLU(),
    }[kind]
    model, old, new, seen = nn.Module(), make(), make(), []
    register = getattr(module_file, f"register_module_{kind}_registration_hook")
    with register(lambda module, name, value: seen.append((module, name, value)) or new):
        place(model, kind, old)
    assert len(seen) == 1
    assert seen[0][0] is model
    assert seen[0][1] == "x"
    assert seen[0][2] is old
    assert model.x is new
    place(other := nn.Module(), kind, old)
    assert other.x is old
    assert len(seen) == 1


def place(model, kind, value):
    if kind == "buffer":
        model.register_buffer("x", value)
    else:
        model.x = value


class Collecting(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return self.kind({"a": 2 * x}) if self.kind is dict else self.kind([2 * x])


@claim("hooks.backward.collections-of-outputs")
@axes(via="eager")
@pytest.mark.parametrize("kind", [list, dict])
def test_a_full_backward_hook_fires_for_collections(case, kind):
    layer, seen = Collecting(kind), []
    layer.register_full_backward_hook(lambda *_: seen.append("fired"))
    layer(case.tensor(3, requires_grad=True))["a" if kind is dict else 0].sum().backward()
    assert seen == ["fired"]


@claim("hooks.registration.inserted")
@axes(via="eager")
def test_registration_hooks_see_what_is_inserted(case):
    children, inserted, seen = nn.ModuleList([nn.ReLU()]), nn.Tanh(), []
    with module_file.register_module_module_registration_hook(lambda module, name, value: seen.append(value)):
        children.insert(0, inserted)
    assert inserted in seen, "the hook was not called"


@claim("hooks.backward.without-recording")
@axes(via="eager")
def test_full_backward_hooks_leave_a_forward_under_no_grad_alone(case):
    layer, x, seen = case.module(nn.Linear, 3, 2), case.tensor(4, 3, requires_grad=True), []
    with torch.no_grad():
        plain = layer(x)
        layer.register_full_backward_hook(lambda *_: seen.append("fired"))
        y = layer(x)
    case.same(y, plain)
    assert not y.requires_grad
    assert not seen
