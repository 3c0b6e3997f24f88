"""The backward pass: where gradients arrive, what it is given, when it may be repeated, and autograd.grad beside it."""

import inspect
import warnings
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")
EAGER = {"dtype": FLOATING, "via": "eager"}


@claim("autograd.backward.only-leaves-get-grad")
def test_only_leaves_that_require_grad_get_one(case):
    leaf, constant = case.tensor(3, requires_grad=True), case.tensor(3)
    middle = leaf * constant
    with case.unchanged(leaf=leaf, constant=constant, but={"leaf.grad"}):
        middle.sum().backward()
    case.same(leaf.grad, constant)
    assert constant.grad is None


@claim("autograd.backward.changes-only-grad")
@pytest.mark.parametrize("mode", [True, False])
def test_backward_changes_nothing_but_grad(case, mode):
    net = case.module(nn.Sequential, nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 2)).train(mode)
    loss = net(x := case.tensor(7, 3)).sum()
    with case.unchanged(net, x=x, but={f"{name}.grad" for name, _ in net.named_parameters()}):
        loss.backward()


@claim("autograd.backward.non-leaf-grad-not-kept")
def test_a_non_leaf_keeps_no_grad_unless_asked_to(case):
    x = case.tensor(3, requires_grad=True)
    kept, dropped = x * 2, x * 3
    kept.retain_grad()
    (kept * dropped).sum().backward()
    case.same(kept.grad, dropped.detach())
    assert not dropped.retains_grad
    with pytest.warns(UserWarning, match="not a leaf"):
        found = dropped.grad
    assert found is None
    assert kept.retains_grad


@claim("autograd.backward.retained-grad-accumulates")
def test_a_retained_grad_accumulates_like_a_leafs(case):
    y = case.tensor(3, requires_grad=True) * 2
    y.retain_grad()
    for _ in range(2):
        (y * y).sum().backward(retain_graph=True)
    case.same(y.grad, (4 * y).detach())


@claim("autograd.backward.retained-grad-of-a-changed-base")
@pytest.mark.parametrize("through", ["itself", "a view"])
def test_the_retained_grad_is_that_of_the_latest_value(case, through):
    y = case.tensor(3, requires_grad=True) * 2
    y.retain_grad()
    (y if through == "itself" else y[:2]).mul_(5)
    (3 * y).sum().backward()
    case.same(y.grad, torch.full_like(y, 3))


@claim("autograd.backward.non-leaf-grad-is-computed")
def test_gradients_of_non_leaves_are_computed_all_the_same(case):
    seen, x = [], case.tensor(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(gradient.clone()))
    (y * y).sum().backward()
    (gradient,) = seen
    case.same(gradient, (2 * y).detach())


@claim("autograd.backward.retain-grad-edges")
def test_retain_grad_does_nothing_on_leaves_and_refuses_constants(case):
    x = case.tensor(3, requires_grad=True)
    x.retain_grad()
    assert not x.retains_grad
    with case.raises(RuntimeError, "can't retain_grad.*requires_grad=False"):
        case.tensor(3).retain_grad()


@claim("autograd.backward.needs-requires-grad")
def test_backward_needs_something_that_requires_grad(case):
    with case.raises(RuntimeError, "does not require grad and does not have a grad_fn"):
        case.tensor(3).sum().backward()
    with case.raises(RuntimeError, "does not require grad"):
        torch.autograd.grad(case.tensor(3).sum(), case.tensor(3, requires_grad=True))


@claim("autograd.backward.implicit-one")
@axes(**EAGER)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element_starts_with_a_gradient_of_one(case, shape):
    x = case.tensor(*shape, requires_grad=True)
    (x * 1).backward()
    case.same(x.grad, torch.ones_like(x))


@claim("autograd.backward.non-scalar-needs-gradient")
@pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
def test_several_elements_need_a_gradient(case, shape):
    y = case.tensor(*shape, requires_grad=True) * 1
    with case.raises(RuntimeError, "only for scalar outputs"):
        y.backward()
    with case.raises(RuntimeError, "only for scalar outputs"):
        torch.autograd.grad(y, y)


@claim("autograd.backward.implicit-one-is-real")
def test_a_complex_result_needs_a_gradient(case):
    z = torch.tensor(1 + 2j, requires_grad=True)
    with case.raises(RuntimeError, "real scalar|complex"):
        (z * 2).backward()


@claim("autograd.backward.vector-jacobian-product")
@axes(**EAGER)
@pytest.mark.parametrize("columns", [1, 4])
def test_backward_multiplies_by_the_transposed_jacobian(case, columns):
    x, a, v = case.tensor(7, columns, requires_grad=True), case.tensor(5, 7), case.tensor(5, columns)
    (a @ x).backward(v)
    case.close(x.grad, array(a).T @ array(v), k=5, scale=abs(array(a)).T @ abs(array(v)))  # sums of five products


@claim("autograd.backward.gradient-must-match")
def test_the_gradient_must_have_the_shape_of_the_result(case):
    y = case.tensor(3, 2, requires_grad=True) * 1
    for gradient in (case.tensor(2, 3), case.tensor(3), case.tensor(3, 1), case.tensor(1, 3, 2)):
        with case.raises(RuntimeError, "mismatch in shape|size"):
            y.backward(gradient)
    with case.raises(RuntimeError, "complex"):
        y.backward(torch.ones(3, 2, dtype=torch.complex64, device=case.device))
    with case.raises(TypeError, "Tensors or None"):
        torch.autograd.backward([y], ["ones"])


@claim("autograd.backward.several-roots")
def test_backward_from_several_roots_adds_their_gradients(case):
    x, v = case.tensor(5, requires_grad=True), case.tensor(5)
    torch.autograd.backward([x * 2, (x * x).sum()], [v, None])
    case.close(x.grad, 2 * array(v) + 2 * array(x), k=2, scale=2 * abs(array(v)) + 2 * abs(array(x)))  # one sum, twice


@claim("autograd.backward.every-root-requires-grad")
def test_every_root_must_require_grad(case):
    x = case.tensor(5, requires_grad=True)
    for gradient in (None, case.tensor(3)):
        with case.raises(RuntimeError, "element 1 of tensors does not require grad"):
            torch.autograd.backward([x.sum(), case.tensor(3)], [None, gradient])
    assert x.grad is None


@claim("autograd.backward.method-delegates")
def test_the_method_hands_everything_to_autograd_backward(case, monkeypatch):
    given = []
    x, v = case.tensor(3, requires_grad=True), case.tensor(3)
    y = x * 1
    monkeypatch.setattr(torch.autograd, "backward", lambda *args, **kwargs: given.append((args, kwargs)))
    y.backward(v, True, True, inputs=[x])
    ((args, kwargs),) = given
    assert args[0] is y
    assert args[1] is v
    assert args[2:] == (True, True)
    assert kwargs == {"inputs": [x]}


@claim("autograd.backward.method-equals-function")
def test_method_and_function_give_the_same_gradient(case):
    x, v = case.tensor(3, requires_grad=True), case.tensor(3)
    torch.autograd.backward(x.sin(), v)
    by_function, x.grad = x.grad, None
    x.sin().backward(v)
    case.same(x.grad, by_function)


@claim("autograd.backward.signatures")
def test_arguments_may_be_given_by_position(case):
    backward = ["tensors", "grad_tensors", "retain_graph", "create_graph", "grad_variables", "inputs"]
    grad = ["outputs", "inputs", "grad_outputs", "retain_graph", "create_graph", "only_inputs", "allow_unused"]
    assert list(inspect.signature(torch.autograd.backward).parameters)[:6] == backward
    assert list(inspect.signature(torch.autograd.grad).parameters)[:7] == grad
    method = ["self", "gradient", "retain_graph", "create_graph", "inputs"]
    assert list(inspect.signature(torch.Tensor.backward).parameters)[:5] == method


@claim("autograd.backward.grad-variables")
def test_grad_variables_is_a_deprecated_name_of_grad_tensors(case):
    x, v = case.tensor(3, requires_grad=True), case.tensor(3)
    with pytest.warns((UserWarning, FutureWarning), match="grad_tensors"):
        torch.autograd.backward(x * 1, grad_variables=v)
    case.same(x.grad, v)
    with case.raises(RuntimeError, "both passed"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.autograd.backward(x * 1, v, grad_variables=v)


@claim("autograd.backward.inputs-restrict")
@pytest.mark.parametrize("wrap", [list, tuple, lambda tensors: tensors[0]], ids=["list", "tuple", "tensor"])
def test_inputs_restricts_what_gets_a_gradient(case, wrap):
    w, b = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    with case.unchanged(w=w, b=b, but={"w.grad"}):
        (w * 2 + b).sum().backward(inputs=wrap([w]))
    case.same(w.grad, torch.full_like(w, 2))


@claim("autograd.backward.inputs-may-be-non-leaves")
def test_inputs_may_name_a_non_leaf(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    (y * y).sum().backward(inputs=[y])
    case.same(y.grad, (2 * y).detach())
    assert x.grad is None


@claim("autograd.backward.inputs-not-empty")
def test_inputs_must_not_be_empty(case):
    y = case.tensor(3, requires_grad=True).sum()
    with case.raises(RuntimeError, "cannot be empty"):
        y.backward(inputs=[])
    with case.raises((RuntimeError, ValueError), "empty|at least one|non-empty"):
        torch.autograd.grad(y, [])


@claim("autograd.backward.inputs-from-a-generator")
def test_inputs_may_come_from_a_generator(case):
    layer, x = case.module(nn.Linear, 3, 2), case.tensor(4, 3, requires_grad=True)
    layer(x).sum().backward(inputs=layer.parameters())
    case.same(layer.bias.grad, torch.full_like(layer.bias, 4))
    assert layer.weight.grad is not None
    assert x.grad is None


@claim("autograd.backward.inputs-dict", "autograd.grad.dict")
def test_inputs_may_be_a_dict(case):
    layer = case.module(nn.Linear, 3, 2)
    loss = layer(case.tensor(4, 3)).square().sum()
    found = torch.autograd.grad(loss, dict(layer.named_parameters()), retain_graph=True)
    loss.backward(inputs={"weight": layer.weight})
    assert list(found) == ["weight", "bias"]
    case.same(found["weight"], layer.weight.grad)
    assert layer.bias.grad is None
    for call in (torch.autograd.backward, torch.autograd.grad):
        with case.raises((TypeError, RuntimeError), "must be a dict|have to be Tensors"):
            call(loss, inputs=UserDict(weight=layer.weight))


# -- repeating -------------------------------------------------------------------------------------------------------


@claim("autograd.repeat.second-backward-raises")
@pytest.mark.parametrize("operation", [torch.exp, torch.square, torch.sigmoid, lambda x: x @ x.T, lambda x: x / 3 * x])
def test_a_second_backward_raises_where_tensors_were_saved(case, operation):
    x = case.tensor(3, 3, requires_grad=True)
    loss = operation(x).sum()
    loss.backward()
    first = x.grad.clone()
    with case.raises(RuntimeError, "backward through the graph a second time"):
        loss.backward()
    case.same(x.grad, first)


@claim("autograd.repeat.nothing-saved")
@pytest.mark.parametrize(
    "operation", [lambda x: x + 1, lambda x: x.T, lambda x: -x, lambda x: x[1:], lambda x: x.sum(0)]
)
def test_a_graph_that_saved_nothing_can_be_traversed_again(case, operation):
    x = case.tensor(3, 3, requires_grad=True)
    loss = operation(x).sum()
    loss.backward()
    once = x.grad.clone()
    loss.backward()
    case.same(x.grad, 2 * once)


@claim("autograd.repeat.retain-graph")
def test_retain_graph_allows_one_more_backward_each(case):
    x = case.tensor(3, requires_grad=True)
    loss = x.exp().sum()
    for times in (1, 2, 3):
        loss.backward(retain_graph=times < 3)
        case.close(x.grad, times * np.exp(array(x)), k=4)  # the exponential within one eps, two sums
    with case.raises(RuntimeError, "second time"):
        loss.backward()


@claim("autograd.repeat.retain-graph-follows-create-graph")
def test_create_graph_alone_keeps_the_graph(case):
    x = case.tensor(3, requires_grad=True)
    loss = x.exp().sum()
    torch.autograd.grad(loss, x, create_graph=True)
    torch.autograd.grad(loss, x, create_graph=True, retain_graph=False)
    with case.raises(RuntimeError, "second time"):
        torch.autograd.grad(loss, x)
    loss = x.exp().sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss.backward(create_graph=True)
    loss.backward()


@claim("autograd.repeat.shared-part")
def test_two_losses_that_share_a_part_need_retain_graph_on_the_first(case):
    x = case.tensor(3, requires_grad=True)
    shared = x.exp()
    shared.sum().backward()
    with case.raises(RuntimeError, "second time"):
        (shared * 2).sum().backward()
    x.grad, shared = None, x.exp()
    shared.sum().backward(retain_graph=True)
    (shared * 2).sum().backward()
    case.close(x.grad, 3 * np.exp(array(x)), k=3)  # the exponential within one eps, one sum


# -- autograd.grad ---------------------------------------------------------------------------------------------------


@claim("autograd.grad.leaves-grad-untouched")
def test_grad_returns_gradients_and_touches_none(case):
    x, w = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    w.grad = case.tensor(3)
    y = x * w
    with case.unchanged(x=x, w=w):
        found = torch.autograd.grad((y * y).sum(), [y, w, x])
    assert isinstance(found, tuple)
    case.same(found[0], 2 * y.detach())
    case.close(found[1], 2 * array(x) ** 2 * array(w), k=3)  # y, 2y and the product: three roundings
    case.close(found[2], 2 * array(w) ** 2 * array(x), k=3)


@claim("autograd.grad.sum-over-outputs")
def test_grad_adds_the_gradients_of_all_outputs(case):
    x, v = case.tensor(3, requires_grad=True), case.tensor(3)
    (found,) = torch.autograd.grad((x * 2, (x * x).sum()), x, grad_outputs=(v, None))
    case.close(found, 2 * array(v) + 2 * array(x), k=2, scale=2 * abs(array(v)) + 2 * abs(array(x)))


@claim("autograd.grad.one-tensor-gradient")
def test_grad_outputs_may_be_one_tensor(case):
    x, v = case.tensor(3, requires_grad=True), case.tensor(3)
    case.same(torch.autograd.grad(x * 1, x, v)[0], v)
    case.same(torch.autograd.grad([x * 1], [x], [v])[0], v)


@claim("autograd.grad.unused-input")
def test_an_unused_input_is_an_error_unless_allowed(case):
    x, unused = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "not have been used in the graph"):
        torch.autograd.grad(x.sum(), [x, unused])
    with case.raises(RuntimeError, "not have been used in the graph"):
        torch.autograd.grad(x.sum(), [x, unused], allow_unused=False)
    found = torch.autograd.grad(x.sum(), [x, unused], allow_unused=True)
    case.same(found[0], torch.ones_like(x))
    assert found[1] is None


@claim("autograd.grad.materialize-grads")
@pytest.mark.parametrize("create_graph", [False, True])
def test_materialize_grads_makes_zeros_of_unused_inputs(case, create_graph):
    x, unused = case.tensor(3, requires_grad=True), case.tensor(3, 2, requires_grad=True)
    found = torch.autograd.grad((x * x).sum(), [x, unused], materialize_grads=True, create_graph=create_graph)
    case.same(found[0].detach(), 2 * x.detach())
    case.same(found[1].detach(), torch.zeros_like(unused))
    assert found[1].requires_grad == create_graph
    with case.raises(ValueError, "allow_unused"):
        torch.autograd.grad(x.sum(), [x, unused], materialize_grads=True, allow_unused=False)


@claim("autograd.grad.input-requires-grad")
@pytest.mark.parametrize("allow_unused", [False, True])
def test_an_input_must_require_grad(case, allow_unused):
    x, constant = case.tensor(3, requires_grad=True), case.tensor(3)
    with case.raises(RuntimeError, "does not require grad"):
        torch.autograd.grad((x * constant).sum(), [x, constant], allow_unused=allow_unused)


@claim("autograd.grad.gradient-edge")
def test_an_edge_of_the_graph_stands_for_its_tensor(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    loss, edges = y.square().sum(), [torch.autograd.graph.get_gradient_edge(t) for t in (x, y)]
    by_edge = torch.autograd.grad(loss, edges, retain_graph=True)
    for found, expected in zip(by_edge, torch.autograd.grad(loss, [x, y]), strict=True):
        case.same(found, expected)
    with case.raises(RuntimeError, "requires? grad"):
        torch.autograd.graph.get_gradient_edge(case.tensor(3))


@claim("autograd.grad.gradient-edge-under-no-grad")
def test_under_no_grad_a_leaf_has_its_edge(case):
    x = case.tensor(3, requires_grad=True)
    with torch.no_grad():
        edge = torch.autograd.graph.get_gradient_edge(x)
    case.same(torch.autograd.grad((x * 3).sum(), [edge])[0], torch.full_like(x, 3))


@claim("autograd.grad.from-an-edge")
@axes(dtype=FLOATING)
def test_an_edge_of_the_graph_may_be_the_root(case):
    x, g = case.tensor(3, requires_grad=True), case.tensor(3)
    one, several = (torch.autograd.graph.get_gradient_edge(t) for t in ((x * 3).sum(), x * 2))
    case.same(torch.autograd.grad(one, x)[0], torch.full_like(x, 3))
    torch.autograd.backward(several, g)
    case.same(x.grad, 2 * g)
    with case.raises(RuntimeError, "only for scalar outputs"):
        torch.autograd.grad(several, x)
    with case.raises(RuntimeError, "mismatch in shape"):
        torch.autograd.grad(several, x, g[:2])


@claim("autograd.grad.batched")
def test_a_batch_of_gradients_gives_a_batch_of_products(case):
    x, unused, v = case.tensor(5, requires_grad=True), case.tensor(2, requires_grad=True), case.tensor(4, 5)
    found, nothing = torch.autograd.grad(x.sin(), [x, unused], v, is_grads_batched=True, allow_unused=True)
    assert nothing is None
    case.close(found, array(v) * np.cos(array(x)), k=2)  # cosine within one eps, one product
    with case.raises(RuntimeError, "is_grads_batched"):
        torch.autograd.grad(x * 1, x, case.tensor(4, 3), is_grads_batched=True)


@claim("autograd.grad.batched-zeros")
def test_zeros_for_an_unused_input_are_a_batch(case):
    x, unused, v = case.tensor(5, requires_grad=True), case.tensor(2, requires_grad=True), case.tensor(4, 5)
    found = torch.autograd.grad(x * 3, [x, unused], v, is_grads_batched=True, materialize_grads=True)
    assert [tuple(g.shape) for g in found] == [(4, 5), (4, 2)]


@claim("autograd.grad.only-inputs-ignored")
def test_only_inputs_is_ignored_with_a_warning(case):
    x, w = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    with pytest.warns((UserWarning, FutureWarning), match="only_inputs"):
        (found,) = torch.autograd.grad((x * w).sum(), x, only_inputs=False)
    case.same(found, w.detach())
    assert w.grad is None


# -- higher derivatives ----------------------------------------------------------------------------------------------


@claim("autograd.higher.derivatives")
@axes(**EAGER)
def test_create_graph_makes_gradients_differentiable(case):
    x = case.tensor(5, requires_grad=True)
    v = array(x)
    (first,) = torch.autograd.grad((x**4).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), x)
    case.close(first.detach(), 4 * v**3, k=5)  # a power within two eps, two products
    case.close(second.detach(), 12 * v**2, k=6)  # one product more
    case.close(third, 24 * v, k=7)


@claim("autograd.higher.off-by-default")
def test_without_create_graph_gradients_are_constants(case):
    x = case.tensor(5, requires_grad=True)
    (first,) = torch.autograd.grad((x**3).sum(), x)
    assert not first.requires_grad
    (x**3).sum().backward()
    assert not x.grad.requires_grad


@claim("autograd.higher.hessian-vector-product")
@axes(**EAGER)
def test_a_gradient_of_a_gradient_times_a_vector_is_a_hessian_product(case):
    x, a, v = case.tensor(4, requires_grad=True), case.tensor(4, 4), case.tensor(4)
    (first,) = torch.autograd.grad((x * (a @ x)).sum(), x, create_graph=True)
    (product,) = torch.autograd.grad(first, x, v)
    symmetric = array(a) + array(a).T
    scale = (abs(array(a)) + abs(array(a)).T) @ abs(array(v))
    case.close(product, symmetric @ array(v), k=6, scale=scale)  # sums of four products, and one sum of the two parts


@claim("autograd.higher.product")
@axes(**EAGER)
@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_the_second_derivative_of_a_product_leaves_two_factors_out(case, zeros):
    values, v = case.rng.uniform(0.5, 2, 5), case.tensor(5)
    values[:zeros] = 0
    x = case.tensor_of(values, requires_grad=True)
    (first,) = torch.autograd.grad(x.prod(), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x, v)
    hessian = np.array([[np.prod(np.delete(array(x), [i, j])) * (i != j) for j in range(5)] for i in range(5)])
    # at most seven products in each term, one with v, and a sum of four
    case.close(second, hessian @ array(v), k=12, scale=hessian @ abs(array(v)))


@claim("autograd.higher.removable-singularities")
@pytest.mark.parametrize(("name", "at", "law"), [("sinc", 0.0, -(np.pi**2) / 3), ("power", 1.5, 0.0)])
def test_second_derivatives_at_removable_singularities(case, name, at, law):
    x = case.tensor_of([at], requires_grad=True)
    y = torch.sinc(x) if name == "sinc" else torch.zeros_like(x) ** x
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    case.close(second, np.array([law]), k=8)  # pi squared by a third, in a formula of a few steps


@claim("autograd.higher.grad-penalty-reaches-the-weights")
def test_a_penalty_on_the_gradient_trains_the_weights(case):
    w, x = case.tensor(5, requires_grad=True), case.tensor(5, requires_grad=True)
    (gradient,) = torch.autograd.grad((w * x * x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    case.close(w.grad, 8 * array(w) * array(x) ** 2, k=8)  # the gradient 2wx in three roundings, five more


@claim("autograd.higher.create-graph-warns-of-a-cycle")
def test_backward_with_create_graph_warns_and_grad_does_not(case):
    x = case.tensor(3, requires_grad=True)
    torch.set_warn_always(True)  # else the warning comes once in a process
    try:
        with pytest.warns(UserWarning, match="reference cycle"):
            (x**3).sum().backward(create_graph=True)
    finally:
        torch.set_warn_always(False)
    assert x.grad.requires_grad
    x.grad = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autograd.grad((x**3).sum(), x, create_graph=True)


@claim("autograd.higher.power-at-zero")
@pytest.mark.parametrize("order", ["base", "exponent"])
def test_mixed_derivatives_of_a_power_at_exponent_zero(case, order):
    x, e = case.tensor_of([2.0], requires_grad=True), case.tensor_of([0.0], requires_grad=True)
    first, second = (x, e) if order == "base" else (e, x)
    (gradient,) = torch.autograd.grad((x**e).sum(), first, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), second)
    case.close(found, np.array([0.5]), k=4)


@claim("autograd.higher.ldexp")
def test_gradient_of_a_mantissa(case):
    x = case.tensor(3, requires_grad=True)
    torch.ldexp(x, torch.tensor([-1, 0, 3], dtype=torch.int32, device=case.device)).sum().backward()
    case.close(x.grad, np.array([0.5, 1.0, 8.0]), k=1)


@claim("autograd.higher.mish-far-out")
@axes(via="eager")
def test_second_derivative_of_mish_far_out(case):
    x = case.tensor_of([800.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(nn.functional.mish(x), x, create_graph=True)
    (found,) = torch.autograd.grad(gradient, x)
    case.close(found, np.zeros(1), k=1, scale=1)


@claim("autograd.higher.normalize-at-zero")
@axes(via="eager")
def test_second_derivative_of_a_normalised_zero(case):
    x = case.tensor_of([0.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad((nn.functional.normalize(x, dim=0, eps=0.5) ** 2).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), x)
    case.close(found, np.array([8.0, 8.0]), k=4)


@claim("autograd.higher.cosine-of-zero")
@axes(via="eager")
def test_second_derivative_of_the_cosine_of_zero(case):
    x, y = case.tensor_of([[0.0, 0.0]], requires_grad=True), case.tensor_of([[3.0, 4.0]])
    (gradient,) = torch.autograd.grad(nn.functional.cosine_similarity(x, y, eps=0.5), x, create_graph=True)
    (found,) = torch.autograd.grad(gradient.sum(), x)
    case.close(found, np.zeros((1, 2)), k=0)


@claim("autograd.higher.logcumsumexp-of-nothing")
@axes(via="eager")
def test_second_derivative_of_logcumsumexp_after_minus_infinity(case):
    x = case.tensor_of([-np.inf, 0.3, 1.1], requires_grad=True)
    (gradient,) = torch.autograd.grad(x.logcumsumexp(0)[2], x, create_graph=True)
    (found,) = torch.autograd.grad(gradient[1], x)
    share = 1 / (1 + np.exp(array(x)[2] - array(x)[1]))
    # two exponentials of differences of rounded sums of exponentials, twice over; shares are below one
    case.close(found, share * (1 - share) * np.array([0.0, 1.0, -1.0]), k=32, scale=1)
