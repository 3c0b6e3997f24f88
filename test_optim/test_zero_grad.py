"""zero_grad and the training loop: what is cleared, by whom, and what the next step makes of it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from test_optim.stepping import USUAL, build, every, give_gradients, loops, parameters_of
from torch_conformance.checks import array
from torch_conformance.marks import claim


def model_of(case):
    return nn.Sequential(case.module(nn.Linear, 5, 4), nn.Tanh(), case.module(nn.Linear, 4, 3))


def clear(what, **options):
    """Without the option where none is given: its default is part of the claim."""
    what.zero_grad(**options)


def with_gradients(case):
    model = model_of(case)
    give_gradients(case, list(model.parameters()))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


who = pytest.mark.parametrize("who", ["optimizer", "model"])


@claim("optim.zero.none-by-default")
@who
def test_by_default_gradients_become_none(case, who):
    model, optimizer = with_gradients(case)
    clear(optimizer if who == "optimizer" else model)
    assert all(p.grad is None for p in model.parameters())


@claim("optim.zero.none-by-default")
def test_a_gradient_that_was_cleared_is_made_anew(case):
    model, optimizer = with_gradients(case)
    old = [p.grad for p in model.parameters()]
    clear(optimizer)
    model(case.tensor(2, 5)).sum().backward()
    assert all(p.grad is not None and p.grad is not g for p, g in zip(model.parameters(), old, strict=True))


@claim("optim.zero.zeros-by-default-before-2")
@who
def test_before_2_gradients_became_zero_by_default(case, who):
    model, optimizer = with_gradients(case)
    clear(optimizer if who == "optimizer" else model)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@claim("optim.zero.set-to-none")
@who
def test_gradients_become_none_when_asked(case, who):
    model, optimizer = with_gradients(case)
    clear(optimizer if who == "optimizer" else model, set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


@claim("optim.zero.keeps-the-tensor")
@every
def test_zeroing_keeps_the_gradients_tensor(case, name, path):
    parameters = parameters_of(case) + parameters_of(case, [(9,)], torch.float16)  # of both dtypes
    optimizer = build(case, name, parameters, path, **USUAL[name])
    give_gradients(case, parameters)
    tensors = [p.grad for p in parameters]
    clear(optimizer, set_to_none=False)
    for p, tensor in zip(parameters, tensors, strict=True):
        assert p.grad is tensor
        case.same(p.grad, torch.zeros_like(p))


@claim("optim.zero.keeps-the-tensor")
def test_the_models_zeroing_keeps_the_gradients_tensor(case):
    model, _ = with_gradients(case)
    tensors = [p.grad for p in model.parameters()]
    clear(model, set_to_none=False)
    for p, tensor in zip(model.parameters(), tensors, strict=True):
        assert p.grad is tensor
        case.same(p.grad, torch.zeros_like(p))


@claim("optim.zero.cuts-the-graph")
@who
def test_zeroing_cuts_a_gradient_from_its_graph(case, who):
    """After backward(create_graph=True) the gradient is part of a graph, which zeroing must let go of."""
    model, optimizer = with_gradients(case)
    model.zero_grad(set_to_none=True)
    model(case.tensor(2, 5)).pow(3).sum().backward(create_graph=True)
    clear(optimizer if who == "optimizer" else model, set_to_none=False)
    for p in model.parameters():
        assert p.grad.grad_fn is None
        assert not p.grad.requires_grad
        assert not p.grad.any()


@claim("optim.zero.cuts-the-graph")
@who
def test_a_zeroed_gradient_needs_none_of_its_own(case, who):
    """A gradient put there by hand may be a leaf that asks for gradients; the zeros do not."""
    model, optimizer = with_gradients(case)
    for p in model.parameters():
        p.grad.requires_grad_()
    clear(optimizer if who == "optimizer" else model, set_to_none=False)
    assert not any(p.grad.requires_grad or p.grad.any() for p in model.parameters())


@claim("optim.zero.touches-gradients-only")
@who
@pytest.mark.parametrize("set_to_none", [True, False])
def test_only_gradients_are_touched(case, who, set_to_none):
    model, optimizer = with_gradients(case)
    optimizer.step()
    give_gradients(case, list(model.parameters()))
    changes = {f"{name}.grad" for name, _ in model.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict())
    with case.unchanged(model, but=changes):
        clear(optimizer if who == "optimizer" else model, set_to_none=set_to_none)
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]


@claim("optim.zero.scope-of-the-optimizer")
@loops
@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_optimizer_clears_its_own_parameters(case, path, set_to_none):
    """In every group, frozen ones and those outside the model; no others."""
    model, outside = model_of(case), case.tensor(3, requires_grad=True)
    mine, others = [*model[0].parameters(), outside], list(model[2].parameters())
    give_gradients(case, [*mine, *others])
    mine[0].requires_grad_(False)
    kept = [p.grad.clone() for p in others]
    optimizer = build(case, "SGD", [{"params": mine[:1]}, {"params": mine[1:]}], path, lr=0.1)
    clear(optimizer, set_to_none=set_to_none)
    assert all(p.grad is None if set_to_none else not p.grad.any() for p in mine)
    for p, g in zip(others, kept, strict=True):
        case.same(p.grad, g)


@claim("optim.zero.scope-of-the-model")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_model_clears_its_own_parameters(case, set_to_none):
    """In no optimiser, frozen or shared with another module: all of its own; none outside."""
    model, outside = model_of(case), case.tensor(3, requires_grad=True)
    model.shared = model[0]
    give_gradients(case, [*model.parameters(), outside])
    model[2].weight.requires_grad_(False)
    kept = outside.grad.clone()
    clear(model, set_to_none=set_to_none)
    assert all(p.grad is None if set_to_none else not p.grad.any() for p in model.parameters())
    case.same(outside.grad, kept)


@claim("optim.zero.both-alike-on-the-same-parameters")
@pytest.mark.parametrize("set_to_none", [True, False])
def test_both_do_the_same_to_the_same_parameters(case, set_to_none):
    left, optimizer = with_gradients(case)
    right = copy.deepcopy(left)
    for p, q in zip(left.parameters(), right.parameters(), strict=True):
        q.grad = p.grad.clone()
    clear(optimizer, set_to_none=set_to_none)
    clear(right, set_to_none=set_to_none)
    for p, q in zip(left.parameters(), right.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == set_to_none
        case.same(*((p.grad, q.grad) if p.grad is not None else (p, q)))


@claim("optim.zero.not-always-the-same")
def test_the_two_are_not_the_same(case):
    model = model_of(case)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    give_gradients(case, list(model.parameters()))
    clear(optimizer, set_to_none=True)
    assert [p.grad is None for p in model.parameters()] == [True, True, False, False]
    give_gradients(case, list(model.parameters()))
    clear(model, set_to_none=True)
    assert [p.grad is None for p in model.parameters()] == [True] * 4


# -- None and zeros in the next step -----------------------------------------------------------------------------------


@claim("optim.step.none-is-skipped")
@every
def test_a_parameter_without_gradient_is_skipped(case, name, path):
    """No decay, no momentum, no state, no count: at the first step and after others."""
    parameters = moved, still = parameters_of(case, [(17,), (9,)])
    optimizer = build(case, name, parameters, path, **USUAL[name])
    for begun in (False, True):
        give_gradients(case, parameters if begun else [moved])
        if begun:
            optimizer.step()
        still.grad = None
        before = copy.deepcopy(optimizer.state.get(still, {}))
        with case.unchanged(still=still, moved=moved, but={"moved"}):
            optimizer.step()
        after = optimizer.state.get(still, {})
        assert begun or name == "Adagrad" or not after
        for key, value in after.items():
            case.same(value, before[key]) if torch.is_tensor(value) else None


@claim("optim.step.zeros-are-a-step")
@every
def test_a_zero_gradient_is_a_step_like_any_other(case, name, path):
    """Weight decay shrinks the parameter and momentum carries it on."""
    if name == "Rprop":
        raise case.unsupported("Rprop moves by signs alone, and zero has none")
    (p,) = parameters = parameters_of(case, [(17,)])
    optimizer = build(case, name, parameters, path, **USUAL[name])
    for _ in range(2):
        p.grad, before = torch.zeros_like(p), p.detach().clone()
        optimizer.step()
        assert (p != before).all()
        give_gradients(case, parameters)
        optimizer.step()


# -- the loop ----------------------------------------------------------------------------------------------------------


@claim("optim.loop.equals-numpy")
@pytest.mark.parametrize("batches", [1, 3])
def test_the_canonical_loop_is_gradient_descent(case, batches):
    """zero_grad, forward, loss, backward, step, on least squares: w -= lr 2/N X^T (X w - y), batch by batch."""
    layer, n = case.module(nn.Linear, 3, 1, bias=False).double(), 12
    x, y = case.tensor(n, 3, dtype=torch.float64), case.tensor(n, 1, dtype=torch.float64)
    optimizer, w = torch.optim.SGD(layer.parameters(), lr=0.05), array(layer.weight).copy()
    for _ in range(4):
        for xs, ys in zip(x.chunk(batches), y.chunk(batches), strict=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(layer(xs), ys).backward()
            optimizer.step()
            w -= 0.05 * 2 / len(xs) * (array(xs) @ w.T - array(ys)).T @ array(xs)
    # a step is a contraction here, so that each leaves the n + 3 roundings of its sums, at most
    case.close(layer.weight, w, k=4 * batches * (n + 3), scale=np.abs(w) + np.abs(array(x)).max() ** 2)


@claim("optim.loop.zero-grad-anywhere")
@pytest.mark.parametrize("place", ["before forward", "after forward", "after step"])
def test_where_zero_grad_stands_does_not_matter(case, place):
    """Anywhere between step and the next backward."""
    start, x = model_of(case), case.tensor(4, 8, 5)

    def train(place):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.7)
        for xs in x:
            if place == "before forward":
                optimizer.zero_grad()
            loss = model(xs).pow(2).mean()
            if place == "after forward":
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if place == "after step":
                optimizer.zero_grad()
        return list(model.parameters())

    for p, q in zip(train(place), train("before forward"), strict=True):
        case.same(p.detach(), q.detach())


@claim("optim.loop.without-zero-grad-gradients-add")
def test_without_zero_grad_gradients_add_up(case):
    layer, x = case.module(nn.Linear, 3, 1), case.tensor(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    layer(x).sum().backward()
    once = layer.weight.grad.clone()
    optimizer.step()
    case.same(layer.weight.grad, once)
    layer(x).sum().backward()
    case.same(layer.weight.grad, once * 2)  # doubling is exact


@claim("optim.loop.no-division-by-the-batch")
@pytest.mark.parametrize("n", [1, 4, 16])
def test_the_step_does_not_divide_by_the_batch(case, n):
    layer, x = case.module(nn.Linear, 3, 1, bias=False), case.tensor(n, 3)
    optimizer, before = torch.optim.SGD(layer.parameters(), lr=0.5), layer.weight.detach().clone()
    layer(x).sum().backward()
    gradient = layer.weight.grad.clone()
    optimizer.step()
    case.same(layer.weight.detach(), before - 0.5 * gradient)  # the product is exact
    case.close(gradient, array(x).sum(0, keepdims=True), k=n, scale=np.abs(array(x)).sum(0, keepdims=True))  # n terms


@claim("optim.loop.frozen-parameters-follow-stale-gradients")
@every
def test_a_frozen_parameter_with_a_gradient_is_stepped(case, name, path):
    (p,) = parameters = parameters_of(case, [(17,)])
    optimizer = build(case, name, parameters, path, **USUAL[name])
    give_gradients(case, parameters)
    p.requires_grad_(False)
    before = p.clone()
    optimizer.step()
    assert (p != before).all()
    p.grad = None
    with case.unchanged(p=p):
        optimizer.step()


@claim("optim.loop.frozen-before-backward-stays")
def test_a_parameter_frozen_from_the_start_stays(case):
    model = model_of(case)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3, momentum=0.5)
    model(case.tensor(2, 5)).sum().backward()
    changing = {n for n, p in model.named_parameters() if n.startswith("2")}
    with case.unchanged(model, but=changing):
        optimizer.step()
