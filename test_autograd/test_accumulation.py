"""Accumulation: what is added to .grad, when, in which memory, and where a factor 1/N comes from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import autograd as reference
from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")
EAGER = {"dtype": FLOATING, "via": "eager"}
N, IN, OUT = 6, 3, 2
# Gradients of a line's squared error: IN products for each prediction, N for each gradient, four roundings more.
ROUNDINGS = N + IN + 4


def line(case):
    """Weight (IN, OUT), inputs (N, IN) and targets (N, OUT) of a linear regression."""
    return case.tensor(IN, OUT, requires_grad=True), case.tensor(N, IN), case.tensor(N, OUT)


def judge(case, gradient, w, x, t, divisor):
    values = array(x), array(w), array(t), divisor
    expected, scale = reference.mse_of_line_gradient(*values), reference.mse_of_line_scale(*values)
    case.close(gradient, expected, k=ROUNDINGS, scale=scale)


@claim("autograd.accumulate.adds")
@axes(dtype=FLOATING, layout=("contiguous", "transposed", "strided"), via="eager")
@pytest.mark.parametrize("shape", [(), (1,), (17,), (5, 67)])
def test_backward_adds_to_grad(case, shape):
    x, first, second = case.tensor(*shape, requires_grad=True), case.tensor(*shape), case.tensor(*shape)
    (x * 1).backward(first)
    case.same(x.grad, first)
    (x * 1).backward(second)
    case.close(x.grad, array(first) + array(second), k=1)  # one sum


@claim("autograd.accumulate.adds-to-what-is-there")
def test_backward_adds_to_a_grad_set_by_hand(case):
    x, before, gradient = (case.tensor(5, requires_grad=r) for r in (True, False, False))
    x.grad = before.clone()
    (x * 1).backward(gradient)
    case.close(x.grad, array(before) + array(gradient), k=1)
    x.grad = torch.zeros_like(x)
    (x * 1).backward(gradient)
    case.same(x.grad, gradient)


@claim("autograd.accumulate.none-starts-afresh")
def test_none_starts_afresh(case):
    x, gradient = case.tensor(5, requires_grad=True), case.tensor(5)
    (x * 3).backward(gradient)
    x.grad = None
    (x * 1).backward(gradient)
    case.same(x.grad, gradient)


@claim("autograd.accumulate.in-place")
def test_accumulation_is_in_place(case):
    x = case.tensor(5, requires_grad=True)
    (x * x).sum().backward()
    grad, once = x.grad, x.grad.clone()
    (x * x).sum().backward()
    assert x.grad is grad
    case.same(grad, 2 * once)


@claim("autograd.accumulate.out-of-place-under-create-graph")
@pytest.mark.filterwarnings("ignore:Using backward")
def test_create_graph_accumulates_into_a_new_tensor(case):
    x = case.tensor(5, requires_grad=True)
    (x * x).sum().backward(create_graph=True)
    grad, once = x.grad, x.grad.detach().clone()
    (x * x).sum().backward(create_graph=True)
    assert x.grad is not grad
    case.same(grad.detach(), once)
    case.same(x.grad.detach(), 2 * once)
    x.grad = None


@claim("autograd.accumulate.memory-of-its-own")
def test_grad_shares_memory_with_nothing(case):
    a, b, gradient = (case.tensor(5, requires_grad=r) for r in (True, True, False))
    before = gradient.clone()
    (a + b).backward(gradient)
    a.grad.mul_(3)
    case.same(b.grad, before)
    case.same(gradient, before)
    c = case.tensor(5, requires_grad=True)
    c.backward(gradient)
    c.grad.mul_(3)
    case.same(gradient, before)


@claim("autograd.accumulate.once-per-backward")
@pytest.mark.parametrize("batch", [1, 7])
def test_grad_is_written_once_per_backward_not_once_per_sample(case, batch):
    layer, calls = case.module(nn.Linear, 3, 2), []
    accumulate = layer.weight.expand_as(layer.weight).grad_fn.next_functions[0][0]
    accumulate.register_hook(lambda *_: calls.append(1))
    layer(case.tensor(batch, 3)).square().sum().backward()
    assert calls == [1]


@claim("autograd.accumulate.batch-is-a-sum")
@axes(**EAGER)
def test_the_gradient_of_a_batch_is_the_sum_over_its_samples(case):
    w, x, t = line(case)
    for sample, target in zip(x, t, strict=True):
        (sample @ w - target).square().sum().backward()
    one_by_one, w.grad = w.grad, None
    (x @ w - t).square().sum().backward()
    judge(case, one_by_one, w, x, t, 1)
    judge(case, w.grad, w, x, t, 1)


@claim("autograd.accumulate.one-over-n-comes-from-the-loss")
@axes(**EAGER)
@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", N * OUT)])
def test_one_over_n_comes_from_the_loss(case, reduction, divisor):
    w, x, t = line(case)
    F.mse_loss(x @ w, t, reduction=reduction).backward()
    judge(case, w.grad, w, x, t, divisor)


@claim("autograd.accumulate.step-divides-by-nothing")
def test_the_optimizer_divides_by_nothing(case):
    w, x, t = line(case)
    before, optimizer = w.detach().clone(), torch.optim.SGD([w], lr=0.5)
    (x @ w - t).square().sum().backward()
    gradient = w.grad.clone()
    optimizer.step()
    case.same(w.detach(), before - 0.5 * gradient)  # half of it is exact, so the step rounds once


@claim("autograd.accumulate.micro-batches")
@axes(**EAGER)
@pytest.mark.parametrize("parts", [2, N])
def test_micro_batches_need_their_loss_divided_by_their_number(case, parts):
    w, x, t = line(case)
    for part_x, part_t in zip(x.chunk(parts), t.chunk(parts), strict=True):
        (F.mse_loss(part_x @ w, part_t) / parts).backward()
    judge(case, w.grad, w, x, t, N * OUT)


@claim("autograd.accumulate.undivided-micro-batches")
@pytest.mark.parametrize("parts", [2, 3, N])
def test_undivided_micro_batches_give_a_multiple(case, parts):
    w, x, t = line(case)
    for part_x, part_t in zip(x.chunk(parts), t.chunk(parts), strict=True):
        F.mse_loss(part_x @ w, part_t).backward()
    judge(case, w.grad, w, x, t, N * OUT / parts)


@claim("autograd.accumulate.unequal-micro-batches")
def test_unequal_micro_batches_are_weighted_by_their_size(case):
    w, x, t = line(case)
    for part_x, part_t in zip(x.split([1, 5]), t.split([1, 5]), strict=True):
        (F.mse_loss(part_x @ w, part_t) * (len(part_x) / N)).backward()
    judge(case, w.grad, w, x, t, N * OUT)


@claim("autograd.accumulate.batch-norm-couples-samples")
def test_micro_batches_differ_under_batch_norm(case):
    layer, x, t = case.module(nn.BatchNorm1d, 3).train(), case.tensor(8, 3), case.tensor(8, 3)
    F.mse_loss(layer(x), t).backward()
    whole, layer.weight.grad = layer.weight.grad, None
    for part_x, part_t in zip(x.chunk(2), t.chunk(2), strict=True):
        (F.mse_loss(layer(part_x), part_t) / 2).backward()
    assert (layer.weight.grad - whole).abs().max() > 1e-3 * whole.abs().max()


@claim("autograd.accumulate.shared-parameter")
@axes(**EAGER)
def test_a_parameter_used_twice_gets_the_sum(case):
    w, x = case.tensor(5, requires_grad=True), case.tensor(5)
    (w * x + w * 3).sum().backward()
    case.close(w.grad, array(x) + 3, k=1)


@claim("autograd.accumulate.unused-parameter")
def test_an_unused_parameter_keeps_none(case):
    net = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)]).to(case.device)
    with case.unchanged(net, but={"0.weight.grad", "0.bias.grad"}):
        net[0](case.tensor(4, 3)).sum().backward()
    assert net[1].weight.grad is None


@claim("autograd.accumulate.shape-dtype-device")
@axes(dtype=("float32", "bfloat16", "float16"), via="eager")
def test_grad_is_made_like_its_parameter(case):
    w, x = case.tensor(3, 1, requires_grad=True), case.tensor(4, 3, 7)
    (w.double() * x.double()).sum().backward()
    assert w.grad.dtype == w.dtype
    assert w.grad.device == w.device
    case.close(w.grad, array(x).sum((0, 2))[:, None], k=1)  # summed in float64, then rounded once


@claim("autograd.accumulate.layout-of-the-parameter")
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_grad_has_the_strides_of_a_dense_parameter(case, order):
    w = case.tensor(2, 3, 4, 5).permute(order).detach().requires_grad_()
    (w * 1).backward(gradient := case.tensor(*w.shape))
    assert w.grad.stride() == w.stride()
    case.same(w.grad, gradient)
    (w * 1).backward(gradient)
    assert w.grad.stride() == w.stride()
    case.same(w.grad, 2 * gradient)


@claim("autograd.accumulate.layout-of-a-strided-parameter")
def test_grad_of_a_parameter_with_gaps_is_contiguous(case):
    w = case.tensor(3, 8)[:, ::2].detach().requires_grad_()
    (w * 1).backward(gradient := case.tensor(4, 3).T)
    assert w.grad.is_contiguous()
    case.same(w.grad, gradient)


@claim("autograd.accumulate.layout-set-by-hand")
def test_a_layout_set_by_hand_is_kept_until_none_is_set(case):
    w, gradient = case.tensor(3, 2, requires_grad=True), case.tensor(3, 2)
    w.grad = torch.zeros(2, 3, dtype=case.dtype, device=case.device).T
    (w * 1).backward(gradient)
    assert w.grad.stride() == (1, 3)
    torch.optim.SGD([w], lr=0.1).zero_grad(set_to_none=False)
    (w * 1).backward(gradient)
    assert w.grad.stride() == (1, 3)
    torch.optim.SGD([w], lr=0.1).zero_grad()
    (w * 1).backward(gradient)
    assert w.grad.stride() == (2, 1)
    case.same(w.grad, gradient)


@claim("autograd.accumulate.grad-must-match")
def test_a_grad_set_by_hand_must_match(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "size"):
        x.grad = case.tensor(4)
    with case.raises(RuntimeError, "dtype|type"):
        x.grad = case.tensor(3, dtype=torch.int64)
    with case.raises(RuntimeError, "own grad"):
        x.grad = x
    with case.raises(TypeError, "Tensor or None"):
        x.grad = 3
    assert x.grad is None


@claim("autograd.accumulate.frozen-parameter-still-stepped")
def test_a_parameter_frozen_after_backward_is_still_stepped(case):
    w = case.tensor(3, requires_grad=True)
    w.sum().backward()
    w.requires_grad_(False)
    before, optimizer = w.clone(), torch.optim.SGD([w], lr=0.5)
    optimizer.step()
    case.same(w, before - 0.5)
    optimizer.zero_grad(set_to_none=True)
    with case.unchanged(w=w):
        optimizer.step()


@claim("autograd.accumulate.per-sample")
def test_gradients_of_single_samples_average_to_that_of_the_batch(case):
    w, x, t = line(case)

    def loss(weight, sample, target):
        return F.mse_loss(sample @ weight, target)

    single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(w.detach(), x, t)
    assert single.shape == (N, IN, OUT)
    judge(case, single.mean(0), w, x, t, N * OUT)
    judge(case, single[2], w, x[2:3], t[2:3], OUT)
