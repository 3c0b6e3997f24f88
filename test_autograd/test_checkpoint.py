"""torch.utils.checkpoint: the same outputs and gradients for less memory, and where the two variants differ."""

import contextlib
import gc
import warnings
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import checkpoint as module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim, since
from torch_conformance.switches import switched

pytestmark = [axes(via="eager"), pytest.mark.filterwarnings("ignore:None of the inputs")]
both = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def network(case, *layers):
    return case.module(nn.Sequential, nn.Linear(3, 5), nn.Tanh(), *layers, nn.Linear(5, 2))


def gradients(net, x):
    """All gradients there are, taken away from the network and its input."""
    found = {name: t.grad for name, t in [*net.named_parameters(), ("input", x)]}
    for tensor in [*net.parameters(), x]:
        tensor.grad = None
    return found


@claim("checkpoint.gradient.equals-plain")
@axes(dtype=FLOATING, via="eager")
@both
def test_outputs_and_gradients_are_those_without_it(case, reentrant):
    net, x, g = network(case), case.tensor(7, 3, requires_grad=True), case.tensor(7, 2)
    plain = net(x)
    plain.backward(g)
    expected = gradients(net, x)
    y = checkpoint(net, x, use_reentrant=reentrant)
    case.same(y.detach(), plain.detach())
    y.backward(g)
    for name, found in gradients(net, x).items():
        case.same(found, expected[name])


@claim("checkpoint.gradient.accumulates")
@both
def test_gradients_accumulate(case, reentrant):
    x = case.tensor(5, requires_grad=True)
    for _ in range(2):
        checkpoint(torch.square, x, use_reentrant=reentrant).sum().backward()
    case.close(x.grad, 4 * array(x), k=1)


@claim("checkpoint.gradient.several-inputs-and-outputs")
@both
def test_several_inputs_and_outputs(case, reentrant):
    x, y, constant = (case.tensor(3, requires_grad=r) for r in (True, True, False))

    def function(x, word, y, constant):
        assert word == "word"
        return x * y * constant, 5, (y + constant).exp()

    product, number, power = checkpoint(function, x, "word", y, constant, use_reentrant=reentrant)
    assert number == 5
    (product.sum() + power.sum()).backward()
    vx, vy, vc = array(x), array(y), array(constant)
    case.close(x.grad, vy * vc, k=2)
    case.close(y.grad, vx * vc + np.exp(vy + vc), k=6, scale=abs(vx * vc) + np.exp(vy + vc) * (1 + abs(vy) + abs(vc)))
    assert constant.grad is None


@claim("checkpoint.memory.saves-only-inputs")
@both
def test_only_inputs_are_saved(case, reentrant):
    saved, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        return x.sin().sin().sin().sin()

    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function(x)
        plain = len(saved)
        saved.clear()
        y = checkpoint(function, x, use_reentrant=reentrant)
    assert plain == 4
    assert sum(t.numel() for t in saved) <= x.numel()
    assert all(torch.equal(t.detach(), x.detach()) for t in saved if t.numel())
    y.sum().backward()
    assert x.grad is not None


@claim("checkpoint.memory.recomputes-once")
@both
def test_the_function_runs_again_once_in_backward(case, reentrant):
    calls, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        calls.append(torch.is_grad_enabled())
        return x.exp().sin()

    y = checkpoint(function, x, use_reentrant=reentrant)
    assert calls == [not reentrant]
    y.sum().backward()
    assert calls == [not reentrant, True]


@claim("checkpoint.memory.nothing-stays")
@both
def test_after_backward_nothing_stays(case, reentrant):
    kept, x = [], case.tensor(3, requires_grad=True)

    class Pair(Function):
        @staticmethod
        def forward(ctx, x):
            outputs = 2 * x, 3 * x
            ctx.save_for_backward(x, *outputs)
            kept.append(weakref.ref(outputs[0]))
            return outputs

        @staticmethod
        def backward(ctx, a, b):
            return 2 * a + 3 * b + 0 * ctx.saved_tensors[0]

    checkpoint(lambda x: Pair.apply(x)[0], x, use_reentrant=reentrant).sum().backward()
    gc.collect(1)
    case.same(x.grad, torch.full_like(x, 2))
    assert [reference() for reference in kept] == [None, None]


@claim("checkpoint.gradient.modified-input")
@pytest.mark.parametrize("requires_grad", [False, True])
def test_an_input_that_is_modified_is_refused_or_right(case, requires_grad):
    x, other = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=requires_grad) * 1
    changed = array(other) + 2
    y = checkpoint(lambda x, other: other.add_(2) * x, x, other, use_reentrant=False)
    refusal = ""
    try:
        y.sum().backward()
    except RuntimeError as error:
        refusal = str(error)
    else:
        case.close(x.grad, changed, k=1)
    assert not refusal or "modified by an inplace operation" in refusal


@claim("checkpoint.device.is-restored")
def test_the_recomputation_has_the_default_device_of_the_forward(case):
    seen, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        seen.append(torch.empty(1).device.type)
        return x.exp().sin()

    with torch.device("meta"):
        y = checkpoint(function, x, use_reentrant=False)
    with mock.patch("torch.utils._device.CURRENT_DEVICE", None, create=True):  # some releases leave another there
        y.sum().backward()
    assert seen == ["meta", "meta"]


@claim("checkpoint.rng.same-mask")
@both
def test_dropout_draws_the_same_mask_again(case, reentrant):
    x = case.tensor_of(np.ones(101), requires_grad=True)
    y = checkpoint(nn.Dropout(0.3), x, use_reentrant=reentrant)
    torch.rand(7)
    y.sum().backward()
    case.same(x.grad, y.detach())  # of ones, mask times scale is both result and gradient


@claim("checkpoint.rng.same-noise")
@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.3), nn.AlphaDropout(0.3), nn.RReLU(0.1, 0.4)], ids=lambda layer: type(layer).__name__
)
@both
def test_gradients_are_of_the_noise_of_the_forward(case, reentrant, layer, monkeypatch):
    x, g, found = case.tensor(5, 13, requires_grad=True), case.tensor(5, 13), []
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with switched("deterministic algorithms", True):  # memory that nobody wrote to is NaN, not what was there by chance
        for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
            torch.manual_seed(7)
            run(x).backward(g)
            found.append(gradients(layer, x)["input"])
    case.same(found[1], found[0])


def slope_of_cubes(x):
    return torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]


@claim("checkpoint.gradient.within")
def test_the_function_may_take_gradients_itself(case):
    x = case.tensor(5, requires_grad=True)
    checkpoint(slope_of_cubes, x, use_reentrant=False).sum().backward()
    case.close(x.grad, 6 * array(x), k=3)  # a power, two products


@claim("checkpoint.gradient.within-to-the-end")
def test_the_function_may_take_gradients_itself_and_be_recomputed_to_its_end(case):
    x = case.tensor(5, requires_grad=True)
    with module.set_checkpoint_early_stop(False):
        y = checkpoint(slope_of_cubes, x, use_reentrant=False)
    y.sum().backward()
    case.close(x.grad, 6 * array(x), k=3)  # as above


@claim("checkpoint.rng.left-as-it-was")
@both
def test_recomputing_leaves_the_generator_as_it_was(case, reentrant):
    x = case.tensor(101, requires_grad=True)
    before = case.rng_state()
    y = checkpoint(nn.Dropout(0.3), x, use_reentrant=reentrant)
    assert not torch.equal(before, case.rng_state())
    # else the state after the recomputation would be that after the forward, restored or not
    torch.rand(7, device=case.device)
    with case.unchanged(x=x, but={"x.grad"}):
        y.sum().backward()


@claim("checkpoint.rng.not-preserved")
@both
def test_without_preserving_the_mask_is_another(case, reentrant):
    x = case.tensor_of(np.ones(101), requires_grad=True)
    y = checkpoint(nn.Dropout(0.3), x, use_reentrant=reentrant, preserve_rng_state=False)
    before = case.rng_state()
    y.sum().backward()
    assert not torch.equal(x.grad, y.detach())
    assert not torch.equal(before, case.rng_state())


@claim("checkpoint.batchnorm.updates-twice")
@both
def test_batch_norm_updates_its_statistics_twice(case, reentrant):
    layer, x = case.module(nn.BatchNorm1d, 3, momentum=0.3).train(), case.tensor(7, 3, requires_grad=True)
    before, count = array(layer.running_mean).copy(), int(layer.num_batches_tracked)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert int(layer.num_batches_tracked) == count + 2
    mean = array(x).mean(0)
    once = 0.7 * before + 0.3 * mean
    size = abs(before) + abs(array(x)).mean(0)
    case.close(
        layer.running_mean, 0.7 * once + 0.3 * mean, k=12, scale=size
    )  # sums of seven, five steps in two updates


@claim("checkpoint.autocast.is-restored")
@both
def test_the_recomputation_runs_under_the_same_autocast(case, reentrant):
    seen, x = [], case.tensor(3, 3, requires_grad=True, dtype=torch.float32)

    def function(x):
        y = x @ x
        seen.append(y.dtype)
        return y.exp()

    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        y = checkpoint(function, x, use_reentrant=reentrant)
    y.float().sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]


@claim("checkpoint.grad-mode.nothing-recorded")
@both
def test_under_no_grad_it_is_a_plain_call(case, reentrant):
    x = case.tensor(3, requires_grad=True)
    with torch.no_grad():
        y = checkpoint(torch.exp, x, use_reentrant=reentrant)
    assert not y.requires_grad
    case.same(y, x.detach().exp())


@claim("checkpoint.error.passes-on")
@both
def test_an_error_in_the_function_passes_on(case, reentrant):
    def function(x):
        raise KeyError("mine")

    with case.raises(KeyError, "mine"):
        checkpoint(function, case.tensor(3, requires_grad=True), use_reentrant=reentrant)
    gc.collect(1)  # where torch leaves hooks behind, they go with the traceback


@claim("checkpoint.error.leaves-nothing-behind")
@both
def test_an_error_leaves_no_hook_behind(case, reentrant):
    def function(x):
        raise KeyError("mine")

    x = case.tensor(3, requires_grad=True)
    try:
        checkpoint(function, x, use_reentrant=reentrant)
    except KeyError:  # while it is handled, its traceback keeps alive what the call left unfinished
        loss = x.square().sum()
    try:
        loss.backward()
    finally:
        gc.collect(1)
    case.close(x.grad, 2 * array(x), k=1)


# -- where the variants differ ---------------------------------------------------------------------------------------


@claim("checkpoint.variant.reentrant-by-default")
def test_the_default_warns_and_is_reentrant(case):
    x = case.tensor(3, requires_grad=True)
    with pytest.warns(UserWarning, match="use_reentrant"):
        y = checkpoint(torch.exp, x)
    assert type(y.grad_fn).__name__ == "CheckpointFunctionBackward"
    with pytest.warns(UserWarning, match="use_reentrant"):
        checkpoint_sequential([torch.exp, torch.sin], 2, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint(torch.exp, x, use_reentrant=False)
        checkpoint(torch.exp, x, use_reentrant=True)


@claim("checkpoint.variant.autograd-grad")
def test_only_the_non_reentrant_variant_works_with_autograd_grad(case):
    x = case.tensor(3, requires_grad=True)
    (found,) = torch.autograd.grad(checkpoint(torch.square, x, use_reentrant=False).sum(), x)
    case.close(found, 2 * array(x), k=1)
    with case.raises(RuntimeError, r"(incompatible|not compatible) with \.grad\(\)"):
        torch.autograd.grad(checkpoint(torch.square, x, use_reentrant=True).sum(), x)
    with case.raises(RuntimeError, "incompatible|not compatible"):
        checkpoint(torch.square, x, use_reentrant=True).sum().backward(inputs=[x])


@claim("checkpoint.variant.input-without-requires-grad")
def test_the_reentrant_variant_needs_an_input_that_requires_grad(case):
    layer, x = case.module(nn.Linear, 3, 2), case.tensor(4, 3)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        y = checkpoint(layer, x, use_reentrant=True)
    assert not y.requires_grad
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    case.close(layer.weight.grad, np.tile(array(x).sum(0), (2, 1)), k=4, scale=abs(array(x)).sum(0))


@claim("checkpoint.variant.output-without-requires-grad")
def test_the_reentrant_variant_needs_an_output_that_requires_grad(case):
    x = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "none of output has requires_grad"):
        checkpoint(lambda x: x.detach() * 2, x, use_reentrant=True).sum().backward()
    assert not checkpoint(lambda x: x.detach() * 2, x, use_reentrant=False).requires_grad


@claim("checkpoint.variant.keyword-arguments")
def test_only_the_non_reentrant_variant_takes_keyword_arguments(case):
    x, y = case.tensor(3, requires_grad=True), case.tensor(3, requires_grad=True)
    checkpoint(lambda x, *, factor: x * factor, x, factor=y, use_reentrant=False).sum().backward()
    case.same(x.grad, y.detach())
    case.same(y.grad, x.detach())
    with case.raises(ValueError, "Unexpected keyword arguments: factor"):
        checkpoint(lambda x, *, factor: x * factor, x, factor=y, use_reentrant=True)


@claim("checkpoint.variant.nested-structures")
def test_tensors_in_structures_get_gradients_in_the_non_reentrant_variant(case):
    x = case.tensor(3, requires_grad=True)
    checkpoint(lambda d: d["x"][0] * 2, {"x": [x]}, use_reentrant=False).sum().backward()
    case.same(x.grad, torch.full_like(x, 2))


@claim("checkpoint.variant.retain-graph")
@both
def test_a_retained_graph_is_recomputed_for_every_backward(case, reentrant):
    calls, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        calls.append(1)
        return x.exp()

    y = checkpoint(function, x, use_reentrant=reentrant).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert len(calls) == 3
    case.close(x.grad, 2 * np.exp(array(x)), k=3)
    with case.raises(RuntimeError, "second time|already.*freed|unpack.*twice|has already been"):
        y.backward()


@claim("checkpoint.variant.double-backward")
def test_the_non_reentrant_variant_can_be_differentiated_twice(case):
    x = case.tensor(3, requires_grad=True)
    y = checkpoint(lambda x: x**3, x, use_reentrant=False)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    case.close(second, 6 * array(x), k=4)


@claim("checkpoint.variant.early-stop")
def test_the_non_reentrant_variant_stops_when_it_has_what_it_needs(case):
    events, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        y = x.sin().exp()
        events.append("end")
        return y + 1

    def run(reentrant):
        events.clear()
        checkpoint(function, x, use_reentrant=reentrant).sum().backward()
        return len(events)

    assert run(reentrant=False) == 1
    assert run(reentrant=True) == 2
    with module.set_checkpoint_early_stop(False):
        y = checkpoint(function, x, use_reentrant=False)
    events.clear()
    y.sum().backward()
    assert events == ["end"]
    assert run(reentrant=False) == 1


@claim("checkpoint.variant.early-stop-by-argument")
@pytest.mark.parametrize("globally", [None, True, False])
def test_the_call_may_forbid_an_early_stop(case, globally):
    events, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        y = x.sin().exp()
        events.append("end")
        return y + 1

    for early_stop in (True, False):
        with module.set_checkpoint_early_stop(globally) if globally is not None else contextlib.nullcontext():
            y = checkpoint(function, x, use_reentrant=False, early_stop=early_stop)
        events.clear()
        y.sum().backward()
        assert (events == []) is (early_stop if globally is None else globally)


@claim("checkpoint.variant.nests")
def test_the_non_reentrant_variant_nests(case):
    x = case.tensor(5, requires_grad=True)

    def inner(x):
        return x.sin().exp()

    def outer(x):
        return checkpoint(inner, x.cos(), use_reentrant=False).square()

    checkpoint(outer, x, use_reentrant=False).sum().backward()
    nested, x.grad = x.grad, None
    inner(x.cos()).square().sum().backward()
    case.same(nested, x.grad)


# -- determinism -----------------------------------------------------------------------------------------------------


def changing(*results):
    """A function that does something else at every call."""
    steps = iter(results)
    return lambda x: next(steps)(x)


@claim("checkpoint.determinism.metadata")
def test_another_shape_in_the_recomputation_is_noticed(case):
    function = changing(lambda x: x.exp(), lambda x: x[:2].exp())
    y = checkpoint(function, case.tensor(3, requires_grad=True), use_reentrant=False)
    with case.raises((RuntimeError, AssertionError), "different metadata"):
        y.sum().backward()


@claim("checkpoint.determinism.number")
@pytest.mark.parametrize("more", [True, False])
def test_another_number_of_saved_tensors_is_noticed(case, more):
    results = [lambda x: x.exp(), lambda x: x.sin().sin().exp()]
    function = changing(*(results if more else results[::-1]))
    with module.set_checkpoint_early_stop(False):
        y = checkpoint(function, case.tensor(3, requires_grad=True), use_reentrant=False)
    with case.raises((RuntimeError, AssertionError), "different number of tensors|more tensors during recomputation"):
        y.sum().backward()


@claim("checkpoint.determinism.switched-off")
def test_the_check_can_be_switched_off(case):
    x = case.tensor(3, requires_grad=True)
    function = changing(lambda x: x.double().exp(), lambda x: x.exp())
    y = checkpoint(function, x, use_reentrant=False, determinism_check="none")
    y.sum().backward()
    case.close(x.grad, np.exp(array(x)), k=2)
    with case.raises(ValueError, "determinism_check"):
        checkpoint(torch.exp, x, use_reentrant=False, determinism_check="sometimes")


@claim("checkpoint.determinism.values-are-not-checked")
def test_other_values_go_unnoticed(case):
    x = case.tensor(3, requires_grad=True)
    function = changing(lambda x: x.exp(), lambda x: (x + 1).exp())
    checkpoint(function, x, use_reentrant=False).sum().backward()
    case.close(x.grad, np.exp(array(x) + 1), k=2, scale=np.exp(array(x) + 1) * (2 + abs(array(x))))  # the sum rounds


@claim("checkpoint.context.of-forward-and-recomputation")
def test_context_fn_gives_a_context_to_each_run(case):
    events, x = [], case.tensor(3, requires_grad=True)

    class Named:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            events.append(self.name)

        def __exit__(self, *_):
            events.append("end")

    y = checkpoint(torch.exp, x, use_reentrant=False, context_fn=lambda: (Named("forward"), Named("recompute")))
    assert events == ["forward", "end"]
    y.sum().backward()
    assert events == ["forward", "end", "recompute", "end"]
    with case.raises(ValueError, "context_fn"):
        checkpoint(torch.exp, x, use_reentrant=True, context_fn=lambda: (Named(""), Named("")))


@claim("checkpoint.context.errors-pass")
def test_a_context_that_holds_an_error_back_is_refused(case):
    def function(x):
        raise KeyError("mine")

    def contexts():
        return contextlib.suppress(KeyError), contextlib.nullcontext()

    with case.raises(RuntimeError, "suppressed an exception"):
        checkpoint(function, case.tensor(3, requires_grad=True), use_reentrant=False, context_fn=contexts)


@claim("checkpoint.group.recomputes-once")
def test_backward_calls_of_one_group_recompute_once(case):
    calls, x = [], case.tensor(3, requires_grad=True)

    def function(x):
        calls.append(1)
        return x.sin(), x.exp()

    for together in (True, False):
        calls.clear()
        y, z = checkpoint(function, x, use_reentrant=False)
        with module.GraphExecGroup() if together else contextlib.nullcontext() as group:
            y.sum().backward()
            z.sum().backward()
        assert len(calls) == (2 if together else 3)
        assert isinstance(group, module.GraphExecGroup) is together
    case.close(x.grad, 2 * (np.cos(array(x)) + np.exp(array(x))), k=8)  # two functions, three sums of four
    with module.GraphExecGroup(), case.raises(RuntimeError, "cannot be nested"), module.GraphExecGroup():
        pass


class Counted(TorchDispatchMode):
    """Notes the operations that are computed within it."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))


def sines(x):
    return x.sin().exp().sin()


def sines_and_a_sum(x):
    return x.sin().exp().sin().add(x, alpha=3).exp()


@claim("checkpoint.selective.saves-what-is-named")
@pytest.mark.parametrize("form", ["list", "function", "flag"])
def test_what_is_named_is_not_computed_again(case, form):
    x, sin, asked, results = case.tensor(3, requires_grad=True), torch.ops.aten.sin.default, [], []

    def policy(context, op, *args, **kwargs):
        asked.append(context.is_recompute)
        results.append(getattr(context, "op_output", None))
        if form == "flag":
            return op is sin
        return module.CheckpointPolicy.MUST_SAVE if op is sin else module.CheckpointPolicy.PREFER_RECOMPUTE

    def contexts():
        return module.create_selective_checkpoint_contexts([sin] if form == "list" else policy)

    y = checkpoint(sines_and_a_sum, x, use_reentrant=False, context_fn=contexts)
    with Counted() as counted:
        y.sum().backward()
    assert [counted.names.count(name) for name in ("sin", "exp")] == [0, 2]
    assert form == "list" or asked[:3] == [False] * 3
    if since("2.12") and form != "list":
        case.same(results[0], x.detach().sin())
    (plain,) = torch.autograd.grad(sines_and_a_sum(twin := x.detach().requires_grad_()).sum(), twin)
    case.same(x.grad, plain)
    with case.raises(ValueError, "OpOverload|pass in"):
        module.create_selective_checkpoint_contexts([torch.ops.aten.sin])
    with case.raises(TypeError, "function or a list"):
        module.create_selective_checkpoint_contexts(3)


@claim("checkpoint.selective.checks-its-cache")
@pytest.mark.parametrize("allowed", [None, False, True])
def test_a_kept_result_is_not_modified(case, allowed):
    x, options = case.tensor(3, requires_grad=True), {} if allowed is None else {"allow_cache_entry_mutation": allowed}

    def contexts():
        return module.create_selective_checkpoint_contexts([torch.ops.aten.sin.default], **options)

    y = checkpoint(lambda x: x.sin().mul_(2).exp(), x, use_reentrant=False, context_fn=contexts)
    if allowed:
        y.sum().backward()
        return
    with case.raises(RuntimeError, "has been mutated"):
        y.sum().backward()


@claim("checkpoint.selective.recomputes-the-same")
@pytest.mark.parametrize("again", [torch.cos, lambda x: (x.detach().sin(), x.sin())[1]], ids=["another", "once more"])
def test_an_operation_that_was_not_run_before_is_refused(case, again):
    x, runs = case.tensor(3, requires_grad=True), []

    def changing(x):
        runs.append(x)
        return (x.sin() if len(runs) == 1 else again(x)).exp()

    def contexts():
        return module.create_selective_checkpoint_contexts([torch.ops.aten.sin.default])

    y = checkpoint(changing, x, use_reentrant=False, context_fn=contexts)
    with case.raises(RuntimeError, "not found in storage"):
        y.sum().backward()


@claim("checkpoint.selective.second-backward")
def test_a_second_backward_is_refused_or_right(case):
    x = case.tensor(3, requires_grad=True)

    def contexts():
        return module.create_selective_checkpoint_contexts([torch.ops.aten.sin.default])

    y = checkpoint(sines, x, use_reentrant=False, context_fn=contexts)
    y.sum().backward(retain_graph=True)
    first = x.grad.clone()
    try:
        y.sum().backward()
    except RuntimeError as error:
        refusal = str(error)
        case.saw("refused")
    else:
        refusal = ""
        case.same(x.grad, 2 * first)
    assert not refusal or "allowed to backward once" in refusal


@claim("checkpoint.determinism.debug")
@pytest.mark.parametrize(
    ("argument", "override", "told"), [(True, None, True), (False, True, True), (True, False, False)]
)
def test_debugging_names_the_operations(case, argument, override, told):
    x = case.tensor(3, requires_grad=True)
    function = changing(lambda x: x.sin().cos(), lambda x: x.sin().neg())
    without_frames_of_cpp = mock.patch("platform.machine", return_value="")  # finding their names takes a second
    with warnings.catch_warnings(), module.set_checkpoint_debug_enabled(override), without_frames_of_cpp:
        warnings.simplefilter("ignore")
        y = checkpoint(function, x, use_reentrant=False, debug=argument)
        with case.raises(module.CheckpointError, "") as caught:
            y.sum().backward()
    message = str(caught[0])
    assert ("aten.cos" in message and "aten.neg" in message) is told


# -- sequential ------------------------------------------------------------------------------------------------------


@claim("checkpoint.sequential.equals-plain")
@both
@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_sequential_is_the_plain_sequence(case, reentrant, segments):
    net = network(case, nn.LayerNorm(5), nn.Tanh())
    x, g = case.tensor(7, 3, requires_grad=True), case.tensor(7, 2)
    plain = net(x)
    plain.backward(g)
    expected = gradients(net, x)
    for functions in (net, list(net)):
        y = checkpoint_sequential(functions, segments, x, use_reentrant=reentrant)
        case.same(y.detach(), plain.detach())
        y.backward(g)
        for name, found in gradients(net, x).items():
            case.same(found, expected[name])


@claim("checkpoint.sequential.variant")
def test_sequential_hands_on_the_variant(case):
    x = case.tensor(3, requires_grad=True)
    (found,) = torch.autograd.grad(checkpoint_sequential([torch.square, torch.neg], 2, x, use_reentrant=False).sum(), x)
    case.close(found, -2 * array(x), k=1)
    with case.raises(RuntimeError, "incompatible|not compatible"):
        torch.autograd.grad(checkpoint_sequential([torch.square, torch.neg], 2, x, use_reentrant=True).sum(), x)


@claim("checkpoint.sequential.last-segment-is-plain")
@both
def test_all_segments_but_the_last_run_again(case, reentrant):
    calls, x = [], case.tensor(3, requires_grad=True)

    def named(i):
        return lambda x: calls.append(i) or x.exp() * 0.1

    y = checkpoint_sequential([named(i) for i in range(5)], 2, x, use_reentrant=reentrant)
    assert calls == [0, 1, 2, 3, 4]
    y.sum().backward()
    assert calls[5:] == [0, 1]


@claim("checkpoint.sequential.preserves-rng")
@both
@pytest.mark.parametrize("preserve", [True, False, None])
def test_sequential_hands_on_preserve_rng_state(case, reentrant, preserve):
    x = case.tensor_of(np.ones(101), requires_grad=True)
    options = {} if preserve is None else {"preserve_rng_state": preserve}
    y = checkpoint_sequential([nn.Dropout(0.3), nn.Identity()], 2, x, use_reentrant=reentrant, **options)
    torch.rand(7)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()) == (preserve is not False)


@claim("checkpoint.sequential.unknown-argument")
def test_sequential_refuses_unknown_arguments(case):
    with case.raises((ValueError, TypeError), "Unexpected keyword arguments: factor"):
        checkpoint_sequential([torch.exp], 1, case.tensor(3), use_reentrant=False, factor=2)


@claim("checkpoint.rng.devices")
def test_tensors_of_the_cpu_have_no_device_states(case):
    from torch.utils.checkpoint import get_device_states, set_device_states

    x, before = case.tensor(3).cpu(), torch.get_rng_state()
    for given in ((), (x,), ([x, (x,)], {"x": x}), (x, 5, "text")):
        assert get_device_states(*given) == ([], [])
    set_device_states([], [])
    case.same(torch.get_rng_state(), before)
