"""In-place operations: version counters, what may be modified, and what backward notices."""

import pytest
import torch
from torch import nn

from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since

pytestmark = axes(via="eager")
MODIFIED = "modified by an inplace operation"


@claim("inplace.version.counts")
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x.zero_(),
        lambda x: x.copy_(x.clone()),
        lambda x: x.__setitem__(0, 2.0),
        lambda x: x.fill_(3.0),
        lambda x: torch.relu_(x),
        lambda x: torch.exp(x, out=x),
        lambda x: x.uniform_(),
        lambda x: x.__iadd__(1),
        lambda x: x.mul_(x.clone()),
        lambda x: x.clamp_(0, 1),
        lambda x: x.masked_fill_(x > 0, 1.0),
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
        lambda x: x.index_add_(0, x.new_zeros(1, dtype=torch.int64), x.new_ones(1)),
        lambda x: x.scatter_(0, x.new_zeros(1, dtype=torch.int64), 1.0),
        lambda x: x.addcmul_(x.clone(), x.clone()),
        lambda x: x.lerp_(x.clone(), 0.3),
        lambda x: x.normal_(),
        lambda x: x.bernoulli_(0.3),
    ],
    ids=[
        *["add_", "zero_", "copy_", "setitem", "fill_", "relu_", "out", "uniform_", "iadd", "mul_", "clamp_"],
        *["masked_fill_", "index_put_", "index_add_", "scatter_", "addcmul_", "lerp_", "normal_", "bernoulli_"],
    ],
)
def test_every_in_place_operation_counts_up_the_version(case, change):
    x = case.tensor(3)
    assert x._version == 0
    change(x)
    assert x._version == 1


@claim("inplace.version.increment")
def test_a_change_behind_the_back_can_be_counted(case):
    x, y = case.tensor(3, requires_grad=True) * 1, case.tensor(2)
    loss = x.square().sum()
    torch.autograd.graph.increment_version([x, y])
    torch.autograd.graph.increment_version(y)
    assert (x._version, y._version) == (1, 2)
    with case.raises(RuntimeError, MODIFIED):
        loss.backward()


@claim("inplace.version.reads-do-not-count")
def test_reading_counts_up_nothing(case):
    x = case.tensor(3, 2, requires_grad=True)
    (x.sum() + x[0].exp().sum() + x.T.sum()).backward()
    x.tolist()
    assert x._version == 0


@claim("inplace.version.shared-by-views")
@pytest.mark.parametrize("view", [lambda x: x[1:], lambda x: x.T, lambda x: x.view(-1), lambda x: x.detach()])
def test_views_share_the_version(case, view):
    x = case.tensor(3, 2)
    alias = view(x)
    alias.add_(alias)
    assert x._version == alias._version == 1
    x.mul_(2)
    assert x._version == alias._version == 2
    assert x.clone()._version == 0


@claim("inplace.version.data-has-its-own")
def test_data_has_a_version_of_its_own(case):
    x = case.tensor(3)
    before = x.clone()
    x.data.mul_(2)
    assert x._version == 0
    case.same(x, 2 * before)


@claim("inplace.saved.modified-raises")
@pytest.mark.parametrize("operation", [torch.exp, torch.square, torch.sigmoid, lambda y: y * y, torch.reciprocal])
def test_backward_refuses_a_saved_tensor_that_was_modified(case, operation):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    z = operation(y)
    y.add_(1)
    z.detach().add_(1)
    with case.raises(RuntimeError, f"{MODIFIED}.*is at version 1; expected version 0"):
        z.sum().backward()
    assert x.grad is None


@claim("inplace.saved.result-modified")
def test_whether_input_or_result_is_saved_decides(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    z = y.exp()
    y.zero_()
    z.sum().backward(retain_graph=True)  # exp saves its result, not its input
    z.zero_()
    with case.raises(RuntimeError, MODIFIED):
        z.sum().backward()


@claim("inplace.saved.unneeded-may-change")
def test_what_no_backward_needs_may_be_modified(case):
    x = case.tensor(3, requires_grad=True)
    y = x + 1
    z = y + 2
    y.zero_()
    z.sum().backward()
    case.same(x.grad, torch.ones_like(x))


@claim("inplace.saved.view-modified")
def test_backward_notices_a_change_through_a_view(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    z = y.square()
    y[:1].zero_()
    with case.raises(RuntimeError, MODIFIED):
        z.sum().backward()


@claim("inplace.saved.detached-alias-modified")
def test_backward_notices_a_change_through_a_detached_alias(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    z = y.square()
    y.detach().zero_()
    with case.raises(RuntimeError, MODIFIED):
        z.sum().backward()


@claim("inplace.saved.step-between-forward-and-backward")
@pytest.mark.parametrize("path", ["for-loop", "foreach", "fused"])
def test_backward_notices_a_step_after_its_forward(case, path):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(case.device)
    if path == "fused" and not since("2.4"):
        raise case.unsupported(f"torch {torch.__version__} has no fused SGD on the CPU")
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.1, **({"foreach": False} if path == "for-loop" else {path: True})
    )
    loss = net(case.tensor(5, 3, dtype=torch.float32)).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with case.raises(RuntimeError, MODIFIED):
        loss.backward()


@claim("inplace.saved.running-statistics")
def test_backward_notices_running_statistics_that_moved(case):
    layer, x = case.module(nn.BatchNorm1d, 3, momentum=0.5).eval(), case.tensor(4, 3, requires_grad=True)
    y, g = layer(x), case.tensor(4, 3)
    (expected,) = torch.autograd.grad(y, x, g, retain_graph=True)
    layer.train()(7 * case.tensor(5, 3))
    refusal = ""
    try:
        (found,) = torch.autograd.grad(y, x, g)
    except RuntimeError as error:
        refusal = str(error)
    else:
        case.same(found, expected)
    assert not refusal or MODIFIED in refusal


@claim("inplace.saved.data-goes-unnoticed")
def test_a_change_through_data_gives_wrong_gradients_silently(case):
    x = case.tensor(3, requires_grad=True)
    y = x.exp()
    y.data.zero_()
    y.sum().backward()
    case.same(x.grad, torch.zeros_like(x))


@claim("inplace.saved.mutation-allowed")
def test_mutation_of_saved_tensors_can_be_allowed(case):
    x = case.tensor(3, requires_grad=True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        y = x * 2
        z = y.square()
        y.sub_(y.detach(), alpha=2)
        y.mul_(2)
        case.same(y.detach(), x.detach() * -4)
        z.sum().backward()
        y.zero_()
        with case.raises(RuntimeError, "nested"), torch.autograd.graph.allow_mutation_on_saved_tensors():
            pass
    case.close(x.grad, 8 * array(x), k=2)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        z = (x * 2).square()
    with case.raises((RuntimeError, AssertionError), "allow_mutation_on_saved_tensors"):
        z.sum().backward()


@claim("inplace.saved.mutation-allowed")
def test_mutation_by_out_can_be_allowed(case):
    x = case.tensor(3, requires_grad=True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        y = x * 2
        z = y.square()
        torch.neg(y.detach(), out=y.detach())
        z.sum().backward()
    case.close(x.grad, 8 * array(x), k=2)


@claim("inplace.saved.mutation-forgotten")
def test_after_the_context_nothing_is_kept(case):
    x = case.tensor(3, requires_grad=True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors() as kept:
        y = x * 2
        z = y.square()
        y.zero_()
        assert len(kept.cloned) == 1
    assert not any(vars(kept).values())
    assert z.requires_grad


@claim("inplace.saved.mutation-of-lists-allowed")
def test_mutation_by_lists_can_be_allowed(case):
    x = case.tensor(3, requires_grad=True)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        y = x * 2
        z = y.square()
        torch._foreach_zero_([y.detach()])  # the public way to it is a foreach optimizer
        z.sum().backward()
    case.close(x.grad, 8 * array(x), k=2)


@claim("inplace.leaf.refused")
@pytest.mark.parametrize("change", [lambda x: x.add_(1), lambda x: x.zero_(), lambda x: x.__setitem__(0, 2.0)])
def test_a_leaf_that_requires_grad_is_not_modified(case, change):
    x = case.tensor(3, requires_grad=True)
    with case.unchanged(x=x), case.raises(RuntimeError, "leaf Variable that requires grad.*in-place"):
        change(x)


@claim("inplace.leaf.view-refused")
def test_a_view_of_a_leaf_is_not_modified(case):
    x = case.tensor(3, requires_grad=True)
    with case.unchanged(x=x), case.raises(RuntimeError, "view of a leaf Variable.*in-place"):
        x[:1].add_(1)


@claim("inplace.leaf.allowed-in-no-grad")
def test_under_no_grad_a_leaf_is_modified_and_stays_a_leaf(case):
    x = case.tensor(3, requires_grad=True)
    before = x.detach().clone()
    with torch.no_grad():
        x.sub_(0.5)
    case.same(x.detach(), before - 0.5)
    assert x.is_leaf
    assert x.requires_grad
    assert x._version == 1


@claim("inplace.recorded.chain-rule")
def test_an_in_place_operation_is_recorded(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    first = y.grad_fn
    assert y.mul_(3) is y
    assert y.grad_fn is not first
    y.sum().backward()
    case.same(x.grad, torch.full_like(x, 6))


@claim("inplace.recorded.constant-joins-the-graph")
def test_a_constant_joins_the_graph_by_what_is_written_into_it(case):
    x, constant = case.tensor(3, requires_grad=True), case.tensor(5)
    constant[1:4] = x * 2
    assert constant.requires_grad
    assert not constant.is_leaf
    constant.backward(g := case.tensor(5))
    case.same(x.grad, 2 * g[1:4])


@claim("inplace.recorded.overwritten-gets-zero")
def test_what_is_overwritten_gets_no_gradient(case):
    x = case.tensor(5, requires_grad=True)
    y = x * 1
    y[1:3] = 7.0
    y.backward(g := case.tensor(5))
    g[1:3] = 0
    case.same(x.grad, g)


@claim("inplace.recorded.through-a-view")
def test_a_change_through_a_view_reaches_the_base(case):
    x = case.tensor(3, 2, requires_grad=True)
    y = x * 1
    row = y[1]
    row.mul_(3)
    assert type(y.grad_fn).__name__ in ("CopySlices", "CopySlicesBackward")
    y.backward(g := case.tensor(3, 2))
    g[1] *= 3
    case.same(x.grad, g)


@claim("inplace.recorded.base-reaches-the-view")
def test_a_change_of_the_base_reaches_its_views(case):
    x = case.tensor(3, 2, requires_grad=True)
    y = x * 1
    row = y[1]
    y.mul_(3)
    row.sum().backward()
    case.same(x.grad, case.tensor_of([[0.0, 0.0], [3.0, 3.0], [0.0, 0.0]]))


@claim("inplace.recorded.aliases-are-allowed")
def test_a_tensor_with_views_may_be_modified(case):
    x = case.tensor(2, requires_grad=True)
    y = x * 3
    alias = y[:1]
    y.add_(1)
    (y.sum() + alias.sum()).backward()
    case.same(x.grad, case.tensor_of([6.0, 3.0]))


@claim("inplace.recorded.several-outputs")
@pytest.mark.parametrize("split", [lambda y: y.unbind(), lambda y: y.split(1), lambda y: y.chunk(3)])
def test_one_of_several_views_is_not_modified(case, split):
    y = case.tensor(3, 2, requires_grad=True) * 1
    with case.raises(RuntimeError, "is a view and is being modified inplace.*multiple views"):
        split(y)[0].mul_(2)


@claim("inplace.recorded.several-outputs-in-a-list")
@axes(via="eager")
def test_several_views_are_not_modified_in_a_list(case):
    y = case.tensor(3, 2, requires_grad=True) * 1
    with case.raises(RuntimeError, "is a view and is being modified inplace.*multiple views"):
        torch._foreach_mul_(list(y.unbind()), 2)


@claim("inplace.activation.relu")
def test_an_in_place_activation_has_the_gradient_of_the_other(case):
    x, g = case.tensor(3, 17, requires_grad=True), case.tensor(3, 17)
    nn.ReLU(inplace=True)(x * 2).backward(g)
    in_place, x.grad = x.grad, None
    nn.ReLU()(x * 2).backward(g)
    case.same(in_place, x.grad)


@claim("inplace.overlap.refused")
def test_expanded_memory_is_not_written_in_place(case):
    with case.raises(RuntimeError, "single memory location"):
        case.tensor(3, 1).expand(3, 4).mul_(2)
