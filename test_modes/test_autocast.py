"""Automatic mixed precision: what autocast casts and what it leaves alone, and how the gradient scaler steps."""

import pickle
import subprocess
import sys
import threading
import types
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.axes import UNBATCHED
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since

LOW = torch.bfloat16


def autocast(case, **kwargs):
    return torch.autocast(case.device.type, **{"dtype": LOW, **kwargs})


def cpu_only(case):
    if case.device.type != "cpu":
        raise case.unsupported("the lists of operations are the CPU's")


PRODUCTS = {
    "linear": lambda x, img: F.linear(x, x), "mm": lambda x, img: x.mm(x), "matmul": lambda x, img: x @ x,
    "bmm": lambda x, img: torch.bmm(img[0], img[0]), "addmm": lambda x, img: torch.addmm(x, x, x),
    "baddbmm": lambda x, img: torch.baddbmm(img[0], img[0], img[0]),
    "einsum": lambda x, img: torch.einsum("ij,jk", x, x),
    "conv": lambda x, img: F.conv2d(img, img), "conv_transpose": lambda x, img: F.conv_transpose2d(img, img),
}  # fmt: skip


@claim("amp.autocast.eligible-operations", "amp.autocast.ineligible-dtypes")
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_come_out_in_the_autocast_dtype(case, name):
    if name == "conv_transpose" and not hasattr(torch, "compile"):
        raise case.unsupported("transposed convolutions are autocast on the CPU since torch 2.0")
    x, img = case.tensor(3, 3), case.tensor(2, 2, 3, 3)
    with autocast(case):
        assert PRODUCTS[name](x, img).dtype == LOW
        assert PRODUCTS[name](x.to(LOW), img).dtype == LOW
        assert PRODUCTS[name](x.double(), img.double()).dtype == torch.float64
    assert PRODUCTS[name](x, img).dtype == x.dtype


@claim("amp.autocast.eligible-operations")
@axes(via=UNBATCHED)  # vmap takes attention apart
def test_attention_comes_out_in_the_autocast_dtype(case):
    if not hasattr(F, "scaled_dot_product_attention"):
        raise case.unsupported("scaled_dot_product_attention came with torch 2.0")
    q, layer = case.tensor(1, 2, 3, 4), case.module(nn.MultiheadAttention, 4, 2)
    with autocast(case):
        assert F.scaled_dot_product_attention(q, q, q).dtype == LOW
        assert layer(q[0], q[0], q[0])[0].dtype == LOW


@claim("amp.autocast.value")
@pytest.mark.parametrize("low", [torch.bfloat16])
def test_autocast_rounds_operands_and_result(case, low):
    layer, x = case.module(nn.Linear, 7, 5), case.tensor(3, 7)
    with autocast(case, dtype=low):
        y = layer(x)
    x, w, b = (array(t.to(low)) for t in (x, layer.weight, layer.bias))
    # float32 accumulates, one rounding to bfloat16 at the end, another where the product is rounded before the bias
    case.close(y, x @ w.T + b, k=1.5, scale=abs(x) @ abs(w).T + abs(b))
    case.same(y, F.linear(*(torch.as_tensor(t).to(low).to(case.device) for t in (x, w, b))))


@claim("amp.autocast.parameters-stay", "amp.autocast.backward")
def test_parameters_stay_float32(case):
    layer, x = case.module(nn.Linear, 7, 5), case.tensor(3, 7, requires_grad=True)
    with case.unchanged(layer, x=x), autocast(case):
        y = layer(x)
    gradient = case.tensor(3, 5).to(LOW)
    y.backward(gradient)
    assert {t.dtype for t in (layer.weight, layer.bias, layer.weight.grad, layer.bias.grad, x.grad)} == {torch.float32}
    g, rounded_x, w = (array(t.to(LOW)) for t in (gradient, x, layer.weight))
    # Accumulated in float32 and rounded once; before 2.1 five products and sums of bfloat16 (linear.counts-every-row).
    k = 1 if since("2.1") else 3
    for actual, a, b in ((layer.weight.grad, g.T, rounded_x), (x.grad, g, w)):
        case.same(actual, actual.to(LOW).float())  # computed in bfloat16, then widened
        case.close(actual.to(LOW), a @ b, k=k, scale=abs(a) @ abs(b))


@claim("amp.autocast.default-dtype")
def test_bfloat16_is_the_default_of_the_cpu(case):
    cpu_only(case)
    with torch.autocast("cpu"):
        assert (case.tensor(3, 3) @ case.tensor(3, 3)).dtype == torch.bfloat16
        assert torch.get_autocast_cpu_dtype() == torch.bfloat16


@claim("amp.autocast.dtype-given")
def test_another_dtype_may_be_given(case):
    with autocast(case, dtype=torch.float16):
        assert (case.tensor(3, 3) @ case.tensor(3, 3)).dtype == torch.float16
        assert torch.get_autocast_dtype(case.device.type) == torch.float16
        assert torch.is_autocast_enabled(case.device.type)
    assert not torch.is_autocast_enabled(case.device.type)


LOSSES = {
    "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss, "bce_with_logits": F.binary_cross_entropy_with_logits,
    "nll": lambda x, y: F.nll_loss(x, torch.zeros(3, dtype=torch.long, device=x.device)),
    "cross_entropy": lambda x, y: F.cross_entropy(x, torch.zeros(3, dtype=torch.long, device=x.device)),
}  # fmt: skip


@claim("amp.autocast.losses-in-float32")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32(case, name):
    cpu_only(case)
    x, y = case.tensor(3, 5).to(LOW), case.tensor_of(case.rng.uniform(size=(3, 5))).to(LOW)
    with autocast(case):
        loss = LOSSES[name](x, y)
    assert loss.dtype == torch.float32
    case.close(loss, array(LOSSES[name](x.double(), y.double())), k=64)  # 15 terms, each within four roundings


@claim("amp.autocast.widest-type")
def test_mixed_inputs_take_the_widest_type(case):
    low, wide = case.tensor(3, 3).to(LOW), case.tensor(3, 3)
    with autocast(case):
        assert torch.cat([low, wide]).dtype == torch.float32
        assert torch.stack([low, wide]).dtype == torch.float32
        assert torch.cat([low, low]).dtype == LOW
        assert (low + wide).dtype == torch.float32
        assert (low * low).dtype == LOW


OTHERS = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True), "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x[:, :, None].repeat(1, 1, 3)),
    "relu": F.relu, "gelu": F.gelu, "softmax": lambda x: x.softmax(-1), "log_softmax": lambda x: x.log_softmax(-1),
    "dropout": lambda x: F.dropout(x, 0.3), "exp": torch.exp, "sum": torch.sum, "mean": torch.mean,
    "pow": lambda x: x**2, "sigmoid": torch.sigmoid, "tanh": torch.tanh,
}  # fmt: skip


@claim("amp.autocast.others-keep-their-dtype")
@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_keep_their_dtype(case, name):
    cpu_only(case)
    x = case.tensor(4, 6)
    with autocast(case):
        assert OTHERS[name](x).dtype == torch.float32
        assert OTHERS[name](x.to(LOW)).dtype == LOW


@claim("amp.autocast.norm-buffers-stay")
def test_running_statistics_stay_float32(case):
    linear, norm = case.module(nn.Linear, 6, 5), case.module(nn.BatchNorm1d, 5, momentum=0.3)
    before, x = array(norm.running_mean), case.tensor(8, 6)
    with autocast(case), case.unchanged(norm, but={"running_mean", "running_var", "num_batches_tracked"}):
        h = linear(x)
        y = norm(h)
    assert (h.dtype, norm.running_mean.dtype, norm.running_var.dtype) == (LOW, torch.float32, torch.float32)
    assert y.dtype == LOW or case.device.type != "cpu"
    size = abs(array(h)).mean(0) + abs(before)
    case.close(norm.running_mean, 0.7 * before + 0.3 * array(h).mean(0), k=12, scale=size)  # 8 terms, 4 roundings more


@claim("amp.autocast.ineligible-dtypes")
def test_integers_keep_their_dtype(case):
    cpu_only(case)
    whole = torch.arange(9, device=case.device).reshape(3, 3)
    with autocast(case):
        assert (whole @ whole).dtype == torch.int64


@claim("amp.autocast.in-place-and-out")
def test_in_place_is_not_autocast(case):
    x = case.tensor(3, 3)
    wanted = torch.zeros(3, 3, device=case.device).addmm_(x, x)
    with autocast(case):
        y = torch.zeros(3, 3, device=case.device)
        case.same(y.addmm_(x, x), wanted)
        case.same(torch.mm(x, x, out=torch.empty(3, 3, device=case.device)), wanted)


@claim("amp.autocast.leaves-modes-alone")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("recording", [True, False])
def test_autocast_leaves_modes_alone(case, training, recording):
    layer = case.module(nn.Sequential, nn.Linear(5, 5), nn.Dropout(0.4)).train(training)
    x = case.tensor(3, 5)
    with torch.set_grad_enabled(recording), case.unchanged(layer, x=x, but={"rng"} if training else ()), autocast(case):
        y = layer(x)
        assert torch.is_grad_enabled() == recording
    assert layer[1].training == training
    assert y.requires_grad == recording
    assert y.dtype == LOW


@claim("amp.autocast.nested-disable")
def test_a_nested_block_switches_it_off(case):
    layer, x = case.module(nn.Linear, 5, 5), case.tensor(3, 5)
    with autocast(case):
        low = layer(x)
        with autocast(case, enabled=False):
            case.same(layer(x), F.linear(x, layer.weight, layer.bias))
            assert layer(x).dtype == torch.float32
            with case.raises(RuntimeError, "dtype|type"):
                layer(low)
            with autocast(case):
                assert layer(low).dtype == LOW
        assert layer(low).dtype == LOW
    assert layer(x).dtype == torch.float32


@claim("amp.autocast.restored-and-thread-local")
def test_the_state_is_restored_and_a_threads_own(case):
    x, seen = case.tensor(3, 3), []
    with case.raises(KeyError, "out"), autocast(case):
        raise KeyError("out")
    assert (x @ x).dtype == torch.float32
    decorated = autocast(case)(lambda: x @ x)
    assert decorated().dtype == LOW
    assert (x @ x).dtype == torch.float32
    with autocast(case):
        thread = threading.Thread(target=lambda: seen.append((x @ x).dtype))
        thread.start()
        thread.join()
    assert seen == [torch.float32]


@claim("amp.autocast.weight-cache")
@axes(via=("eager", "functional"))  # a compiled call shows no graph of its inner steps
@pytest.mark.parametrize("cache", [True, False])
def test_a_weight_is_cast_once(case, cache):
    layer, x = case.module(nn.Linear, 5, 5, bias=False), case.tensor(3, 5).to(LOW)
    with autocast(case, cache_enabled=cache):
        a, b = layer(x), layer(x)
    first, second = (y.grad_fn.next_functions[-1][0].next_functions[0][0] for y in (a, b))
    assert (first is second) == cache
    (a.float().sum() + 2 * b.float().sum()).backward()
    wanted = 3 * array(x).sum(0)[None].repeat(5, 0)
    case.close(layer.weight.grad.to(LOW), wanted, k=6, scale=3 * abs(array(x)).sum(0))  # 3 terms, doubled, added
    with torch.no_grad():
        layer.weight.zero_()
    with autocast(case, cache_enabled=cache):
        assert (layer(x) == 0).all()


@claim("amp.autocast.weight-cache-knows-grad-mode")
@axes(via=("eager", "functional"))
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_weight_cast_without_gradients_gets_its_own_all_the_same(case, mode):
    layer, x = case.module(nn.Linear, 5, 5, bias=False), case.tensor(3, 5).to(LOW)
    with autocast(case):
        with mode():
            layer(x)
        y = layer(x)
    assert y.requires_grad, "the cast of the weight was kept from where nothing is recorded"
    y.float().sum().backward()
    wanted, scale = array(x).sum(0)[None].repeat(5, 0), abs(array(x)).sum(0)
    case.close(layer.weight.grad.to(LOW), wanted, k=4, scale=scale)  # 3 terms


@claim("amp.autocast.weight-cache-knows-dtype")
@axes(via=("eager", "functional"))
def test_a_nested_region_casts_the_weight_to_its_own_dtype(case):
    layer, x = case.module(nn.Linear, 5, 5, bias=False), case.tensor(3, 5)
    with autocast(case):
        layer(x)
        with autocast(case, dtype=torch.float16):
            assert layer(x).dtype == torch.float16


@claim("amp.autocast.prelu")
def test_prelu_takes_what_a_layer_hands_it(case):
    x, slope = case.tensor(3, 5), case.tensor(1)
    with autocast(case):
        y = F.prelu(x.to(LOW), slope)
    case.close(y.to(LOW), np.where(array(x.to(LOW)) > 0, 1.0, array(slope.to(LOW))) * array(x.to(LOW)), k=2)


@claim("amp.autocast.norms-after-products")
@axes(via="eager")
@pytest.mark.parametrize("name", ["LayerNorm", "GroupNorm"])
def test_norms_take_what_a_product_hands_them(case, name):
    layer = case.module(getattr(nn, name), *((6,) if name == "LayerNorm" else (2, 6)))
    x = case.tensor(4, 6).to(LOW)
    with autocast(case):
        y = layer(x)
    wanted = array(layer(x.float()))
    size = abs(array(layer.weight)) * np.sqrt(5) + abs(array(layer.bias))  # no element is further from the mean of six
    case.close(y.to(LOW), wanted, k=4, scale=size)  # parameters, product and sum, each rounded at most once


CHAINS = {
    "tensordot": lambda x, w: torch.tensordot(x, w, ([1], [1])),
    "inner": torch.inner,
    "bilinear": lambda x, w: F.bilinear(x, w, w[None]),
}


@claim("amp.autocast.products-of-products")
@axes(via="eager")
@pytest.mark.parametrize("name", CHAINS)
def test_products_of_products_take_two_dtypes(case, name):
    cpu_only(case)
    x, w = case.tensor(5, 5), case.tensor(5, 5)
    with autocast(case):
        found = CHAINS[name](x.to(LOW), w)
    product = "ni,ij,nj->n" if name == "bilinear" else "ni,ji->nj"
    ours, theirs = array(x.to(LOW)), [array(w)] * (2 if name == "bilinear" else 1)
    law = np.einsum(product, ours, *theirs).reshape(found.shape)
    size = np.einsum(product, abs(ours), *map(abs, theirs)).reshape(found.shape)
    # operands and results are rounded once in each of two products, sums of five terms once a term
    case.close(found.to(LOW), law, k=2 * (3 + 5), scale=size)


@claim("amp.autocast.weight-cache-is-not-refreshed")
@axes(via="eager")
def test_a_weight_that_changes_within_the_region_keeps_its_cast(case):
    layer, x = case.module(nn.Linear, 5, 5, bias=False), case.tensor(3, 5).to(LOW)
    with autocast(case):
        before = layer(x)
        with torch.no_grad():
            layer.weight.zero_()
        case.same(layer(x).detach(), before.detach())
    with autocast(case):
        assert (layer(x) == 0).all()


@claim("amp.autocast.binary-cross-entropy")
def test_binary_cross_entropy_under_autocast(case):
    p = torch.sigmoid(case.tensor(5)).to(LOW)
    with autocast(case):
        if case.device.type == "cpu":
            assert F.binary_cross_entropy(p, p).dtype == torch.float32
        else:
            with case.raises(RuntimeError, "unsafe to autocast"):
                F.binary_cross_entropy(p, p)


@claim("amp.autocast.cuda-lists")
def test_lists_of_cuda(case):
    if case.device.type != "cuda":
        raise case.unsupported("the lists are those of CUDA")
    x = case.tensor(4, 6).half()
    with torch.autocast("cuda"):
        assert (case.tensor(3, 3) @ case.tensor(3, 3)).dtype == torch.float16
        for function in (OTHERS[name] for name in ("softmax", "layer_norm", "sum", "exp", "pow")):
            assert function(x).dtype == torch.float32
        assert F.mse_loss(x, x).dtype == torch.float32


@claim("amp.custom.device-type")
@pytest.mark.parametrize("name", ["custom_fwd", "custom_bwd"])
def test_custom_decorators_need_a_device(case, name):
    with case.raises(TypeError, "device_type"):
        getattr(torch.amp, name)(lambda ctx, x: x)
    with case.raises(ValueError, "device_type"):
        getattr(torch.amp, name)(lambda ctx, x: x, device_type=0)


def backward_of_a_product(seen, device):
    """A backward by custom_bwd, which notes whether autocast is on."""

    @torch.amp.custom_bwd(device_type=device)
    def backward(ctx, g):
        seen.append(torch.is_autocast_enabled(device))
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g

    return staticmethod(backward)


@claim("amp.custom.forward-state")
@pytest.mark.parametrize("cast", [None, torch.float32])
def test_custom_functions_run_in_the_state_declared(case, cast):
    seen, device = [], case.device.type

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type=device, cast_inputs=cast)
        def forward(ctx, x, w):
            seen.append((x.dtype, torch.is_autocast_enabled(device)))
            ctx.save_for_backward(x, w)
            return x @ w

        backward = backward_of_a_product(seen, device)

    x, w = case.tensor(3, 3, requires_grad=True), case.tensor(3, 3, requires_grad=True)
    with autocast(case):
        low = x @ x
        y = Product.apply(low, w)
    assert y.dtype == (torch.float32 if cast else LOW)
    y.sum().backward()
    assert seen == ([(torch.float32, False), False] if cast else [(LOW, True), True])
    seen.clear()
    Product.apply(x, w).sum().backward()
    assert seen == [(torch.float32, False), False]


@claim("amp.custom.setup-context")
def test_custom_functions_may_set_up_their_context_apart(case):
    device, seen = case.device.type, []

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type=device)
        def forward(x, w):
            return x @ w

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        backward = backward_of_a_product(seen, device)

    x, w = case.tensor(3, 3, requires_grad=True), case.tensor(3, 3, requires_grad=True)
    with autocast(case):
        y = Product.apply(x, w)
    y.sum().backward()
    assert seen == [True]


# -- the gradient scaler ---------------------------------------------------------------------------------------------


def scaler_for(case, **kwargs):
    return torch.amp.GradScaler(case.device.type, **{"init_scale": 8.0, "growth_interval": 2, **kwargs})


def parameter(case, gradient=None):
    made = nn.Parameter(case.tensor(5))
    made.grad = None if gradient is None else gradient.clone()
    return made


@claim("amp.scaler.scale")
def test_scale_multiplies(case):
    x, y = case.tensor(3), case.tensor(2)
    assert torch.amp.GradScaler(case.device.type).get_scale() == 65536.0
    scaler = scaler_for(case)
    case.same(scaler.scale(x), x * 8)
    a, (b,) = scaler.scale([x, (y,)])
    case.same(a, x * 8)
    case.same(b, y * 8)


@claim("amp.scaler.step-unscales")
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_step_equals_the_unscaled_step(case, momentum):
    scaler, x = scaler_for(case), case.tensor(5)
    scaled, plain = parameter(case), parameter(case)
    with torch.no_grad():
        plain.copy_(scaled)
    ours, theirs = (torch.optim.SGD([p], lr=0.3, momentum=momentum) for p in (scaled, plain))
    for _ in range(3):
        for p in (scaled, plain):
            p.grad = None
        scaler.scale((scaled * x).sum()).backward()
        (plain * x).sum().backward()
        case.same(scaled.grad, plain.grad * scaler.get_scale())
        assert scaler.step(ours) is None
        theirs.step()
        scaler.update()
        case.same(scaled.grad, plain.grad)  # powers of two divide exactly
        case.same(scaled, plain)


@claim("amp.scaler.step-unscales")
def test_step_hands_the_result_through(case):
    class Counting(torch.optim.SGD):
        def step(self, *args, **kwargs):
            return "stepped", args, kwargs

    p = parameter(case, case.tensor(5))
    scaler = scaler_for(case)
    scaler.scale(p.sum())
    assert scaler.step(Counting([p], lr=0.1), 7, extra=3) == ("stepped", (7,), {"extra": 3})


@claim("amp.scaler.unscale-once")
def test_unscale_divides_once(case):
    gradient = case.tensor(5)
    p = parameter(case, gradient * 8)
    before, optimizer, scaler = p.detach().clone(), torch.optim.SGD([p], lr=0.5), scaler_for(case)
    scaler.scale(p.sum())
    scaler.unscale_(optimizer)
    case.same(p.grad, gradient)
    with case.raises(RuntimeError, "unscale_.*already"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    case.same(p.grad, gradient)
    case.same(p.detach(), before.add(gradient, alpha=-0.5))
    with case.raises(RuntimeError, "step.*already"):
        scaler.step(optimizer)
    with case.raises(RuntimeError, "after step"):
        scaler.unscale_(optimizer)
    scaler.update()
    scaler.unscale_(optimizer)


@claim("amp.scaler.unscale-once")
def test_half_gradients_are_not_unscaled(case):
    p = nn.Parameter(case.tensor(5, dtype=torch.float16))
    p.grad, scaler = torch.ones_like(p), scaler_for(case)
    scaler.scale(case.tensor(1))
    with case.raises(ValueError, "FP16"):
        scaler.unscale_(torch.optim.SGD([p], lr=0.1))


@claim("amp.scaler.unscale-once")
def test_nothing_scaled_is_an_error(case):
    scaler, optimizer = scaler_for(case), torch.optim.SGD([parameter(case)], lr=0.1)
    for call in (scaler.update, lambda: scaler.unscale_(optimizer), lambda: scaler.step(optimizer)):
        with case.raises(AssertionError, "_scale is None"):
            call()


@claim("amp.scaler.no-closure")
def test_a_closure_is_for_disabled_scalers_alone(case):
    p = parameter(case, case.tensor(5))
    optimizer, scaler = torch.optim.SGD([p], lr=0.1), scaler_for(case)
    scaler.scale(p.sum())
    with case.raises(RuntimeError, "closure"):
        scaler.step(optimizer, closure=lambda: 7.0)
    assert scaler_for(case, enabled=False).step(optimizer, closure=lambda: 7.0) == 7.0


@claim("amp.scaler.skips-nonfinite", "amp.scaler.update")
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("place", [0, 4])
def test_nonfinite_gradients_skip_the_step(case, bad, place):
    good, poisoned = parameter(case, case.tensor(5)), parameter(case, case.tensor(5))
    optimizer, scaler = torch.optim.Adam([good, poisoned], lr=0.1), scaler_for(case, backoff_factor=0.25)
    poisoned.grad[place] = bad
    scaler.scale(good.sum())
    with case.unchanged(good=good, poisoned=poisoned, but={"good.grad", "poisoned.grad"}):
        assert scaler.step(optimizer) is None
    assert not optimizer.state
    scaler.update()
    assert scaler.get_scale() == 2.0


@claim("amp.scaler.new-scale-of-one-element")
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_new_scale_has_one_element(case, shape):
    scaler = scaler_for(case)
    scaler.scale(case.tensor(3))
    scaler.update(torch.full(shape, 3.0, device=case.device))
    assert scaler.get_scale() == 3.0


@claim("amp.scaler.update")
def test_the_scale_grows_after_good_steps_in_a_row(case):
    p = parameter(case)
    optimizer, seen = torch.optim.SGD([p], lr=0.1), []
    scaler = scaler_for(case, growth_factor=4.0, backoff_factor=0.5)
    for good in (True, False, True, True, True, False, True, True):
        p.grad = torch.full_like(p, 1.0 if good else torch.inf)
        scaler.scale(p.sum())
        scaler.step(optimizer)
        scaler.update()
        seen.append(scaler.get_scale())
    assert seen == [8, 4, 4, 16, 16, 8, 8, 32]
    assert (scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()) == (4.0, 0.5, 2)
    scaler.update(new_scale=5.0)
    assert scaler.get_scale() == 5.0
    scaler.update(new_scale=torch.full((), 3.0, device=case.device))
    assert scaler.get_scale() == 3.0
    for bad, words in ((torch.ones(2), "1-element|new_scale"), (torch.ones((), requires_grad=True), "requires_grad")):
        with case.raises(AssertionError, words):
            scaler.update(new_scale=bad.to(case.device))
    scaler.set_growth_factor(7.0), scaler.set_backoff_factor(0.125), scaler.set_growth_interval(9)
    assert (scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()) == (7.0, 0.125, 9)
    for wrong in ({"growth_factor": 1.0}, {"backoff_factor": 1.0}):
        with case.raises(AssertionError, "factor must be"):
            scaler_for(case, **wrong)
    fresh = torch.amp.GradScaler(case.device.type)
    assert (fresh.get_growth_factor(), fresh.get_backoff_factor(), fresh.get_growth_interval()) == (2.0, 0.5, 2000)


@claim("amp.scaler.several-optimizers")
@pytest.mark.parametrize("first_is_bad", [True, False])
def test_each_optimizer_skips_for_itself(case, first_is_bad):
    good, bad = parameter(case, case.tensor(5)), parameter(case, case.tensor(5) * torch.inf)
    scaler = scaler_for(case)
    scaler.scale(good.sum())
    before = good.detach().clone(), bad.detach().clone()
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in ((bad, good) if first_is_bad else (good, bad))]
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(good, before[0])
    case.same(bad.detach(), before[1])
    assert scaler.get_scale() == 4.0


@claim("amp.scaler.several-optimizers")
def test_several_infinities_make_one_backoff(case):
    parameters = [parameter(case, case.tensor(5) * torch.inf) for _ in range(2)]
    scaler = scaler_for(case)
    scaler.scale(parameters[0].sum())
    optimizers = [torch.optim.SGD([p], lr=0.1) for p in parameters]
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0


@claim("amp.scaler.state-dict")
def test_the_state_travels(case):
    scaler, p = scaler_for(case, growth_factor=3.0, growth_interval=5), parameter(case, case.tensor(5))
    scaler.scale(p.sum())
    scaler.step(torch.optim.SGD([p], lr=0.1))
    scaler.update()
    state = scaler.state_dict()
    assert state == {
        "scale": 8.0,
        "growth_factor": 3.0,
        "backoff_factor": 0.5,
        "growth_interval": 5,
        "_growth_tracker": 1,
    }
    other = scaler_for(case)
    other.load_state_dict(state)
    assert other.state_dict() == state
    with case.raises(RuntimeError, "empty"):
        scaler_for(case).load_state_dict({})
    used = scaler_for(case, init_scale=4.0)
    used.scale(p.sum())
    used.load_state_dict(state)
    assert used.state_dict() == state
    scaler_for(case, enabled=False).load_state_dict(state)


@claim("amp.scaler.pickled")
def test_a_scaler_can_be_pickled(case):
    scaler, p = scaler_for(case, growth_factor=3.0, growth_interval=5), parameter(case, case.tensor(5))
    optimizer = torch.optim.SGD([p], lr=0.1)
    scaler.scale(p.sum())
    scaler.step(optimizer)
    with case.raises(AssertionError, "pickled"):
        pickle.dumps(scaler)
    scaler.update(2.5)
    scaler.step(optimizer)
    scaler.update()
    other = pickle.loads(pickle.dumps(scaler))
    assert other.state_dict() == scaler.state_dict()
    case.same(other.scale(p.detach()), scaler.scale(p.detach()))
    assert pickle.loads(pickle.dumps(scaler_for(case, enabled=False))).is_enabled() is False


@claim("amp.scaler.step-unscales")
def test_an_optimizer_may_unscale_for_itself(case):
    class Own(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self):
            return float(self.grad_scale or 1), float(self.found_inf)

    p, scaler = parameter(case, case.tensor(5)), scaler_for(case)
    scaler.scale(p.sum())
    optimizer = Own([p], lr=0.1)
    assert scaler.step(optimizer) == (8.0, 0.0)
    assert not hasattr(optimizer, "grad_scale")
    with case.raises(RuntimeError, "step.*already"):
        scaler.step(optimizer)


@claim("amp.scaler.disabled")
def test_a_disabled_scaler_does_nothing(case):
    scaler, p, x = scaler_for(case, enabled=False), parameter(case, case.tensor(5) * torch.nan), case.tensor(3)
    assert scaler.scale(x) is x
    scaler.unscale_(optimizer := torch.optim.SGD([p], lr=0.1))
    scaler.step(optimizer)
    scaler.update()
    assert torch.isnan(p).all()
    assert (scaler.get_scale(), scaler.is_enabled(), scaler.state_dict()) == (1.0, False, {})


@claim("amp.tf32.defaults")
def test_defaults_of_tf32(case):
    code = "from torch.backends import cuda, cudnn; print(cuda.matmul.allow_tf32, cudnn.allow_tf32)"
    code = "import torch; " + code
    if case.device.type != "cuda":
        raise case.unsupported("these are switches of CUDA")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True"]


@claim("amp.autocast.to-float32")
@pytest.mark.filterwarnings("ignore:.*autocast.*not supported")
def test_autocast_to_float32_leaves_float32_as_it_is(case):
    x = case.tensor(3, 3)
    wanted = x @ x
    with torch.autocast(case.device.type, dtype=torch.float32):
        case.same(x @ x, wanted)


@claim("amp.autocast.refusals")
def test_autocast_says_what_it_does_not_take(case):
    for wrong, kind, words in ((torch.device("cpu"), ValueError, "type `str`"), ("nowhere", RuntimeError, "nowhere")):
        with case.raises(kind, words):
            torch.autocast(wrong)
    for dtype in (torch.float64, torch.float32, torch.int8):
        with pytest.warns(UserWarning, match="CPU.*not supported. Disabling autocast"):
            made = torch.autocast("cpu", dtype=dtype)
        with made:
            assert not torch.is_autocast_enabled("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autocast("cpu", dtype=torch.float64, enabled=False)
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            made = torch.autocast("cuda")
        with made:
            assert not torch.is_autocast_enabled("cuda")
    with case.raises(ZeroDivisionError, ""), torch.autocast("cpu"):
        raise ZeroDivisionError
    assert not torch.is_autocast_enabled("cpu")


@claim("amp.autocast.decorates-callables")
def test_autocast_decorates_callables_alone(case):
    with case.raises(TypeError, "requires a callable, but got int"):
        torch.autocast(case.device.type)(5)


@claim("amp.custom.casts-structures")
def test_custom_forward_casts_what_holds_tensors(case):
    device, low, seen = case.device.type, case.tensor(3).to(LOW), {}
    given = {"x": low, "list": [low, (low, "text")], "double": low.double(), "whole": low.long(), "raw": b"raw",
             "array": np.ones(2), "none": None, "number": 3}  # fmt: skip

    @torch.amp.custom_fwd(device_type=device, cast_inputs=torch.float32)
    def forward(ctx, held, *, key):
        seen.update(held, key=key)

    with autocast(case):
        forward(types.SimpleNamespace(), given, key=low)
    assert [seen[k].dtype for k in ("x", "double", "whole", "key")] == [
        torch.float32, torch.float64, torch.int64, torch.float32]  # fmt: skip
    first, (second, text) = seen["list"]
    assert (type(seen["list"]), first.dtype, second.dtype, text) == (list, torch.float32, torch.float32, "text")
    assert type(seen["list"][1]) is tuple
    assert (seen["raw"], seen["none"], seen["number"]) == (b"raw", None, 3)
    assert seen["array"] is given["array"]
    case.same(first, low.float())
