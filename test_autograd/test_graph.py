"""The graph: what is recorded, which tensors are leaves, and how a tensor leaves the graph again."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")  # the graph itself is the subject: nothing here could be executed otherwise


@claim("autograd.graph.one-input-suffices")
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
def test_an_operation_is_recorded_if_any_input_requires_grad(case, flags):
    a, b = (case.tensor(3, requires_grad=flag) for flag in flags)
    for result in (a * b, torch.cat([a, b]), torch.addcmul(a, a, b)):
        assert result.requires_grad == any(flags)
        assert (result.grad_fn is not None) == any(flags)


@claim("autograd.graph.nothing-in-no-grad")
def test_nothing_is_recorded_with_grad_mode_off(case):
    a = case.tensor(3, requires_grad=True)
    with torch.no_grad():
        result = a * 2
    assert not result.requires_grad
    assert result.grad_fn is None


@claim("autograd.graph.requires-grad-defaults")
def test_parameters_require_grad_and_tensors_do_not(case):
    assert not torch.empty(3).requires_grad
    assert not torch.tensor([1.5]).requires_grad
    assert nn.Parameter(case.tensor(3)).requires_grad
    assert not nn.Parameter(case.tensor(3), requires_grad=False).requires_grad
    assert torch.zeros(3, requires_grad=True).requires_grad
    assert all(p.requires_grad for p in nn.Linear(3, 2).parameters())


@claim("autograd.graph.floating-or-complex-only")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_only_floating_and_complex_tensors_may_require_grad(case, dtype):
    whole = torch.ones(3, dtype=dtype, device=case.device)
    with case.raises(RuntimeError, "floating.point"):
        whole.requires_grad_()
    with case.raises(RuntimeError, "floating.point"):
        whole.requires_grad = True
    with case.raises(RuntimeError, "floating.point"):
        torch.ones(3, dtype=dtype, device=case.device, requires_grad=True)
    assert not whole.requires_grad
    assert torch.ones(3, dtype=torch.complex64).requires_grad_().requires_grad


@claim("autograd.graph.leaves")
def test_leaves_are_what_the_user_made_and_what_requires_no_grad(case):
    made, constant = case.tensor(3, requires_grad=True), case.tensor(3)
    assert made.is_leaf
    assert constant.is_leaf
    assert (constant * 2).is_leaf
    assert not (made * 2).is_leaf
    assert (made * 2).detach().is_leaf
    assert (constant * 2).requires_grad_().is_leaf


@claim("autograd.graph.casts-are-operations")
def test_a_cast_makes_a_non_leaf_unless_there_is_nothing_to_cast(case):
    made = case.tensor(3, requires_grad=True, dtype=torch.float32)
    assert made.float() is made
    assert made.to(case.device) is made
    cast = made.double()
    assert not cast.is_leaf
    cast.backward(weights := torch.tensor([0.5, -1.5, 2.0], dtype=torch.float64, device=case.device))
    case.same(made.grad, weights.float())


@claim("autograd.graph.grad-fn-of-recorded-results")
def test_only_recorded_results_have_a_grad_fn(case):
    made, constant = case.tensor(3, requires_grad=True), case.tensor(3)
    assert made.grad_fn is None
    assert (constant * 2).grad_fn is None
    assert type((made * 2).grad_fn).__name__ == "MulBackward0"
    assert (made * 2).grad_fn.name() == "MulBackward0"


@claim("autograd.graph.nodes-lead-to-the-leaves")
def test_the_nodes_lead_from_the_result_to_its_leaves(case):
    a, b = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    (product, _), (constant, _) = (a * b + case.tensor(3)).grad_fn.next_functions
    assert constant is None
    assert [node.variable is leaf for (node, _), leaf in zip(product.next_functions, (a, b), strict=True)] == [True] * 2


@claim("autograd.graph.rebuilt-at-every-forward")
def test_the_gradient_is_that_of_the_branch_taken(case):
    x = case.tensor(3, requires_grad=True)
    for k, slope in enumerate([2.0, -3.0, 0.5]):
        y = x
        for _ in range(k):
            y = y * slope
        (gradient,) = torch.autograd.grad(y.sum(), x)
        case.same(gradient, torch.full_like(x, slope**k))


@claim("autograd.graph.flag-of-leaves-only")
def test_only_the_flag_of_a_leaf_can_be_switched_off(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "only change requires_grad flags of leaf"):
        (x * 2).requires_grad_(False)
    with case.raises(RuntimeError, "only change requires_grad flags of leaf"):
        (x * 2).requires_grad = False
    assert (x * 2).requires_grad_(True).requires_grad
    assert x.requires_grad_(False) is x
    assert not x.requires_grad


@claim("autograd.graph.module-requires-grad")
@pytest.mark.parametrize("mode", [True, False])
def test_module_requires_grad_sets_every_parameter(case, mode):
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(case.device).train(mode)
    parameters = dict(net.named_parameters())
    with case.unchanged(net, but={f"{name}.requires_grad" for name in parameters}):
        assert net.requires_grad_(False) is net
    net(case.tensor(4, 3, requires_grad=True)).sum().backward()
    assert all(p.grad is None for p in parameters.values())
    assert net.requires_grad_() is net
    assert all(p.requires_grad for p in parameters.values())


@claim("autograd.graph.detach-shares-storage")
def test_detach_shares_storage_and_history_of_changes(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    free = y.detach()
    assert free is not y
    assert free.is_leaf
    assert not free.requires_grad
    assert free.grad_fn is None
    assert y.requires_grad
    assert free.data_ptr() == y.data_ptr()
    free.mul_(3)
    case.same(y.detach(), free)
    assert y._version == free._version == 1


@claim("autograd.graph.detach-stops-gradients")
def test_no_gradient_passes_a_detached_tensor(case):
    x = case.tensor(5, requires_grad=True)
    (x.detach() * x).sum().backward()
    case.same(x.grad, x.detach())


@claim("autograd.graph.detach-in-place")
def test_detach_in_place_makes_the_tensor_itself_a_leaf(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    assert y.detach_() is y
    assert y.is_leaf
    assert not y.requires_grad
    with case.raises(RuntimeError, "view"):
        (x * 2)[:2].detach_()


@claim("autograd.graph.copies")
def test_which_copies_stay_in_the_graph(case):
    y = case.tensor(3, requires_grad=True) * 2
    copied = torch.as_tensor(array(y)), torch.tensor(y.tolist())
    assert all(c.is_leaf and not c.requires_grad for c in copied)
    assert torch.as_tensor(y) is y
    clone = y.clone()
    assert clone.grad_fn is not None
    assert clone.data_ptr() != y.data_ptr()
    with pytest.warns(UserWarning, match="clone"):
        plain = torch.tensor(y)
    assert plain.is_leaf
    assert not plain.requires_grad
    assert plain.data_ptr() != y.data_ptr()
    case.same(plain, y.detach())


@claim("autograd.graph.clone-passes-the-gradient")
def test_the_gradient_passes_a_clone_as_it_comes(case):
    x, weights = case.tensor(3, 5, requires_grad=True), case.tensor(3, 5)
    x.clone().backward(weights)
    case.same(x.grad, weights)


@claim("autograd.graph.numpy-refuses")
def test_numpy_refuses_a_tensor_that_requires_grad(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, r"requires grad.*detach\(\)"):
        x.cpu().numpy()
    assert isinstance(x.detach().cpu().numpy(), np.ndarray)
    assert isinstance(x.numpy(force=True), np.ndarray)


@claim("autograd.graph.deepcopy-of-leaves-only")
def test_only_leaves_can_be_deep_copied(case):
    x = case.tensor(3, requires_grad=True)
    x.grad = case.tensor(3)
    made = copy.deepcopy(x)
    case.same(made, x)
    case.same(made.grad, x.grad)
    assert made.requires_grad
    assert made.data_ptr() != x.data_ptr()
    assert made.grad.data_ptr() != x.grad.data_ptr()
    with case.raises(RuntimeError, "only.*leaves|graph leaves"):
        copy.deepcopy(x * 2)


@claim("autograd.graph.item-leaves-the-graph")
def test_summing_losses_keeps_their_history_and_summing_items_does_not(case):
    x = case.tensor(3, requires_grad=True)
    kept = plain = 0
    for _ in range(3):
        loss = (x * x).sum()
        kept, plain = kept + loss, plain + loss.item()
    assert kept.requires_grad
    assert isinstance(plain, float)
    kept.backward()
    case.close(x.grad, 6 * array(x), k=3)  # three products 2x, two sums of them


@claim("autograd.graph.comparisons-are-constants")
def test_results_without_a_derivative_require_no_grad(case):
    x = case.tensor(3, requires_grad=True)
    for result in (x > 0, x.argmax(), x.long(), x.shape[0] + torch.zeros_like(x), x.isnan()):
        assert not result.requires_grad


@claim("autograd.graph.tensor-base-class")
def test_tensor_derives_from_a_base_written_in_c(case):
    (base,) = torch.Tensor.__bases__
    assert base is not object
    assert base.__module__ == "torch._C"
    assert issubclass(torch.Tensor, object)
    assert issubclass(nn.Parameter, torch.Tensor)


@claim("autograd.graph.deepcopy-of-parameters")
@axes(via="eager")
def test_a_deep_copy_of_a_parameter_has_its_gradient(case):
    weight = nn.Parameter(case.tensor(3))
    weight.grad = case.tensor(3)
    made = copy.deepcopy(weight)
    assert made.grad is not None, "the gradient is lost"
    case.same(made.grad, weight.grad)


@claim("autograd.graph.deepcopy-of-attributes")
@axes(via="eager")
def test_a_deep_copy_of_a_parameter_has_its_attributes(case):
    weight = nn.Parameter(case.tensor(3))
    weight.group = "frozen"
    assert getattr(copy.deepcopy(weight), "group", "the attribute is lost") == "frozen"


@claim("autograd.graph.deepcopy-of-shared-memory")
@pytest.mark.parametrize("kind", ["tensor", "parameter"])
def test_what_shares_memory_is_copied_as_sharing_it(case, kind):
    whole = case.tensor(4)
    whole = whole if kind == "tensor" else nn.Parameter(whole)
    copied, part = copy.deepcopy([whole, whole.detach()[:2]])
    part.fill_(7)
    assert copied[:2].tolist() == [7, 7], "each has memory of its own"
