"""Grad modes: no_grad, enable_grad, set_grad_enabled and inference_mode, as contexts, functions and decorators."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from torch_conformance.axes import FLOATING
from torch_conformance.marks import axes, claim

pytestmark = axes(via="eager")
MODES = {
    "no_grad": (torch.no_grad, False),
    "enable_grad": (torch.enable_grad, True),
    "set_grad_enabled(False)": (lambda: torch.set_grad_enabled(False), False),
    "set_grad_enabled(True)": (lambda: torch.set_grad_enabled(True), True),
    "inference_mode": (torch.inference_mode, False),
}
OFF = {name: make for name, (make, enabled) in MODES.items() if not enabled}


def modes(chosen=MODES):
    return pytest.mark.parametrize("make", list(chosen.values()), ids=list(chosen))


@claim("gradmode.no-grad.results-require-no-grad")
@modes(OFF)
def test_results_require_no_grad_and_inputs_still_do(case, make):
    x, w = case.tensor(3, requires_grad=True), nn.Parameter(case.tensor(3))
    with make():
        for result in (x * w, x.exp(), x[[0, 2]], torch.cat([x, w]), x.sum(), x.clone(), x.detach()[1:]):
            assert not result.requires_grad
            assert result.grad_fn is None
            assert result.is_leaf
        assert x.requires_grad
        assert w.requires_grad


@claim("gradmode.no-grad.same-values")
@axes(dtype=FLOATING, via="eager")
@modes(OFF)
def test_values_are_the_same_bit_by_bit(case, make):
    net = case.module(nn.Sequential, nn.Linear(5, 17), nn.Tanh(), nn.LayerNorm(17), nn.Linear(17, 3))
    x = case.tensor(7, 5)
    recorded = net(x)
    with make():
        silent = net(x)
    case.same(silent, recorded.detach())


@claim("gradmode.no-grad.saves-nothing")
@modes(OFF)
def test_nothing_is_saved_for_backward(case, make):
    net, x, packed = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval(), case.tensor(5, 3), []
    net.to(case.device, case.dtype)
    with saved_tensors_hooks(lambda t: packed.append(t.shape) or t, lambda t: t):
        with make():
            net(x)
        assert packed == []
        net(x)
    assert packed != []


@claim("gradmode.no-grad.not-eval")
@modes(OFF)
def test_layers_stay_in_training_mode(case, make):
    net, x = case.module(nn.Sequential, nn.BatchNorm1d(3), nn.Dropout(0.3)).train(), case.tensor(67, 3)
    changes = {"rng", "0.running_mean", "0.running_var", "0.num_batches_tracked"}
    grad_mode = torch.is_grad_enabled()
    with case.unchanged(net, x=x, but=changes), make():
        y = net(x)
    assert (y == 0).any()
    assert net.training
    assert torch.is_grad_enabled() == grad_mode


@claim("gradmode.no-grad.factories-keep-their-flag")
@modes({name: make for name, make in OFF.items() if name != "inference_mode"})
def test_factories_are_not_affected(case, make):
    with make():
        assert torch.zeros(3, requires_grad=True).requires_grad
        assert torch.rand(3, requires_grad=True).requires_grad
        assert nn.Parameter(torch.zeros(3)).requires_grad
        assert nn.Linear(3, 2).weight.requires_grad
        assert torch.zeros(3).requires_grad_().requires_grad


@claim("gradmode.no-grad.results-are-constants")
def test_results_may_be_used_later_as_constants(case):
    x = case.tensor(3, requires_grad=True)
    with torch.no_grad():
        constant = x * 2
    (constant * x).sum().backward()
    case.same(x.grad, constant)


@claim("gradmode.no-grad.backward-works-inside")
def test_backward_works_inside(case):
    x = case.tensor(3, requires_grad=True)
    loss = (x * x).sum()
    with torch.no_grad():
        loss.backward()
        assert not torch.is_grad_enabled()
    case.same(x.grad, 2 * x.detach())
    assert not x.grad.requires_grad


@claim("gradmode.no-grad.manual-update")
def test_a_manual_update_needs_no_grad(case):
    w = case.tensor(3, requires_grad=True)
    (w * w).sum().backward()
    before = w.detach().clone()
    with case.unchanged(w=w), case.raises(RuntimeError, "leaf Variable that requires grad"):
        w -= 0.25 * w.grad
    with torch.no_grad():
        w -= 0.25 * w.grad
    case.same(w.detach(), before - 0.5 * before)
    assert w.is_leaf
    assert w.requires_grad


@claim("gradmode.no-grad.views-keep-the-flag")
@modes(OFF)
@pytest.mark.parametrize("view", [lambda x: x[1:], lambda x: x.view(-1), lambda x: x.expand(2, 3)])
def test_a_view_keeps_the_flag_but_is_cut_off(case, make, view):
    x = case.tensor(3, requires_grad=True)
    with make():
        part = view(x)
    assert part.requires_grad
    assert part.grad_fn is None
    part.sum().backward()
    assert x.grad is None
    assert part.grad is None


@claim("gradmode.no-grad.views-are-not-modified-outside")
def test_a_view_made_under_no_grad_is_not_modified_outside(case):
    x = case.tensor(3, requires_grad=True) * 1
    with torch.no_grad():
        view = x[1:]
    with case.unchanged(view=view), case.raises(RuntimeError, "view was created in no_grad mode"):
        view.mul_(2)


@claim("gradmode.no-grad.in-place-result")
def test_an_in_place_change_under_no_grad_is_not_differentiated(case):
    x = case.tensor(3, requires_grad=True)
    y = x * 2
    with torch.no_grad():
        y.mul_(5)
    assert y.requires_grad
    y.sum().backward()
    case.same(x.grad, torch.full_like(x, 2))


@claim("gradmode.no-grad.forward-mode-goes-on")
def test_no_grad_does_not_stop_forward_mode(case):
    x, v = case.tensor(3), case.tensor(3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        with torch.no_grad():
            case.same(forward_ad.unpack_dual(dual * 2).tangent, 2 * v)
        with torch.inference_mode():
            assert forward_ad.unpack_dual(dual * 2).tangent is None


# -- contexts, functions and decorators ------------------------------------------------------------------------------


@claim("gradmode.context.sets-and-restores")
@modes()
@pytest.mark.parametrize("outside", [True, False])
def test_the_context_sets_the_mode_and_restores_it(case, make, outside):
    make, enabled = make
    with torch.set_grad_enabled(outside):
        with make():
            assert torch.is_grad_enabled() == enabled
        assert torch.is_grad_enabled() == outside
    assert torch.is_grad_enabled()


@claim("gradmode.context.restores-after-an-error")
@modes()
@pytest.mark.parametrize("outside", [True, False])
def test_an_error_restores_the_mode_and_passes_on(case, make, outside):
    with torch.set_grad_enabled(outside):
        with case.raises(KeyError, "mine"), make[0]():
            raise KeyError("mine")
        assert torch.is_grad_enabled() == outside
        assert not torch.is_inference_mode_enabled()


@claim("gradmode.context.nests")
def test_contexts_nest(case):
    x = case.tensor(3, requires_grad=True)
    with torch.no_grad():
        with torch.enable_grad():
            assert (x * 2).requires_grad
            with torch.no_grad():
                assert not (x * 2).requires_grad
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


@claim("gradmode.context.reusable")
@pytest.mark.parametrize("cls", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_context_can_be_entered_again(case, cls):
    context = cls()
    for outside in (True, False):
        with torch.set_grad_enabled(outside):
            with context:
                assert torch.is_grad_enabled() == (cls is torch.enable_grad)
                assert torch.is_inference_mode_enabled() == (cls is torch.inference_mode)
            assert torch.is_grad_enabled() == outside
            assert not torch.is_inference_mode_enabled()


@claim("gradmode.set-grad-enabled.entered-later")
def test_set_grad_enabled_sets_again_when_it_is_entered(case):
    for mode in (True, False):
        context = torch.set_grad_enabled(mode)
        torch.set_grad_enabled(not mode)
        with context:
            assert torch.is_grad_enabled() == mode
        assert torch.is_grad_enabled()


@claim("gradmode.context.entered-not-made")
@pytest.mark.parametrize("cls", [torch.no_grad, torch.inference_mode])
def test_making_a_context_changes_nothing_until_it_is_entered(case, cls):
    cls()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@claim("gradmode.set-grad-enabled.at-once")
def test_set_grad_enabled_acts_at_once_when_called(case):
    x = case.tensor(3, requires_grad=True)
    try:
        torch.set_grad_enabled(False)
        assert not (x * 2).requires_grad
        torch.set_grad_enabled(True)
        assert (x * 2).requires_grad
    finally:
        torch.set_grad_enabled(True)


@claim("gradmode.set-grad-enabled.decorator")
@pytest.mark.parametrize("mode", [True, False])
def test_set_grad_enabled_decorates_without_acting_at_once(case, mode):
    @torch.set_grad_enabled(mode)
    def inside():
        return torch.is_grad_enabled()

    assert torch.is_grad_enabled()
    assert inside() is mode
    with torch.no_grad():
        assert inside() is mode
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


@claim("gradmode.decorator.function")
@modes()
def test_a_decorated_function_runs_in_the_mode(case, make):
    make, enabled = make

    def inside(a, *, b):
        """Its words."""
        return torch.is_grad_enabled(), a, b

    decorated = make()(inside)
    torch.set_grad_enabled(True)
    for outside in (True, False):
        with torch.set_grad_enabled(outside):
            assert decorated(1, b=2) == (enabled, 1, 2)
            assert torch.is_grad_enabled() == outside
    assert decorated.__name__ == "inside"
    assert decorated.__doc__ == "Its words."


@claim("gradmode.decorator.without-parentheses")
@pytest.mark.parametrize("cls", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_decorators_need_no_parentheses(case, cls):
    @cls
    def inside():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.set_grad_enabled(cls is not torch.enable_grad):
        assert inside() == (cls is torch.enable_grad, cls is torch.inference_mode)


@claim("gradmode.decorator.error")
@modes()
def test_an_error_in_a_decorated_function_restores_the_mode(case, make):
    def inside():
        raise KeyError("mine")

    decorated = make[0]()(inside)
    torch.set_grad_enabled(True)
    with torch.no_grad():
        with case.raises(KeyError, "mine"):
            decorated()
        assert not torch.is_grad_enabled()


@claim("gradmode.decorator.recursion")
def test_a_decorated_function_may_call_itself(case):
    @torch.no_grad()
    def inside(depth):
        return [torch.is_grad_enabled()] + (inside(depth - 1) if depth else [])

    assert inside(2) == [False] * 3
    assert torch.is_grad_enabled()


@claim("gradmode.decorator.generator")
@modes()
def test_a_decorated_generator_runs_in_the_mode_and_yields_out_of_it(case, make):
    make, enabled = make
    seen = []

    def inside():
        seen.append(torch.is_grad_enabled())
        got = yield 1
        seen.append(torch.is_grad_enabled())
        try:
            yield got
        except KeyError:
            seen.append(torch.is_grad_enabled())
        yield 3
        return 4

    decorated = make()(inside)
    torch.set_grad_enabled(True)
    for outside in (True, False):
        seen.clear()
        with torch.set_grad_enabled(outside):
            generator = decorated()
            assert next(generator) == 1
            assert torch.is_grad_enabled() == outside
            assert generator.send(2) == 2
            assert torch.is_grad_enabled() == outside
            assert generator.throw(KeyError) == 3
            assert torch.is_grad_enabled() == outside
            with pytest.raises(StopIteration) as stop:
                next(generator)
            assert stop.value.value == 4
            assert seen == [enabled] * 3
            assert torch.is_grad_enabled() == outside


@claim("gradmode.decorator.generator-closed")
def test_closing_a_decorated_generator_runs_its_end_in_the_mode(case):
    seen = []

    @torch.no_grad()
    def inside():
        try:
            yield 1
        finally:
            seen.append(torch.is_grad_enabled())

    generator = inside()
    next(generator)
    generator.close()
    assert seen == [False]
    assert torch.is_grad_enabled()
    with pytest.raises(StopIteration):
        next(generator)


@claim("gradmode.decorator.coroutine")
def test_a_decorated_coroutine_runs_outside_of_the_mode(case):
    @torch.no_grad()
    async def double(x):
        return 2 * x

    waiting = double(case.tensor(3, requires_grad=True))
    with pytest.raises(StopIteration) as end:
        waiting.send(None)
    assert end.value.value.requires_grad


@claim("gradmode.decorator.class-deprecated")
def test_decorating_a_class_warns_and_covers_its_construction(case):
    class Plain:
        def __init__(self):
            self.made = torch.is_grad_enabled()

        def later(self):
            return torch.is_grad_enabled()

    with pytest.warns((UserWarning, FutureWarning), match="[Dd]ecorating classes is deprecated"):
        decorated = torch.no_grad()(Plain)
    made = decorated()
    assert isinstance(made, Plain)
    assert made.made is False
    assert made.later() is True


@claim("gradmode.threads.local")
@modes(OFF)
def test_a_new_thread_starts_with_grad_mode_on(case, make):
    seen = []

    def look():
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        torch.set_grad_enabled(False)

    with make():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [(True, False)]
    assert torch.is_grad_enabled()


# -- inference mode --------------------------------------------------------------------------------------------------


@claim("gradmode.inference.flags")
@pytest.mark.parametrize("mode", [True, False])
def test_inference_mode_sets_its_flag(case, mode):
    with torch.inference_mode(mode):
        assert torch.is_inference_mode_enabled() == mode
        assert torch.is_grad_enabled() == (not mode)
        assert case.tensor(3).is_inference() == mode
    assert not torch.is_inference_mode_enabled()
    assert not case.tensor(3).is_inference()


@claim("gradmode.inference.decorator-mode")
@pytest.mark.parametrize("mode", [True, False])
def test_a_decorated_function_runs_in_the_inference_mode_given(case, mode):
    @torch.inference_mode(mode)
    def inside():
        return torch.is_inference_mode_enabled()

    assert inside() is mode
    assert inside() is mode
    assert not torch.is_inference_mode_enabled()


@claim("gradmode.inference.no-version")
def test_an_inference_tensor_has_no_version(case):
    with torch.inference_mode():
        x = case.tensor(3)
        x.add_(1)
    with case.raises(RuntimeError, "do not track version counter"):
        x._version  # noqa: B018
    assert x.is_inference()


@claim("gradmode.inference.not-modified-outside")
def test_an_inference_tensor_is_not_modified_outside(case):
    with torch.inference_mode():
        x = case.tensor(3)
    with case.raises(RuntimeError, "Inplace update to inference tensor"):
        x.add_(1)
    with case.raises(RuntimeError, "inference tensor"):
        x.requires_grad_()


@claim("gradmode.inference.not-saved-for-backward")
def test_an_inference_tensor_is_not_saved_for_backward(case):
    with torch.inference_mode():
        constant = case.tensor(3)
    w = case.tensor(3, requires_grad=True)
    with case.raises(RuntimeError, "Inference tensors cannot be saved for backward"):
        w * constant
    (w + constant).sum().backward()
    case.same(w.grad, torch.ones_like(w))


@claim("gradmode.inference.clone-is-normal")
def test_a_clone_made_outside_is_a_normal_tensor(case):
    with torch.inference_mode():
        x = case.tensor(3)
        assert x.clone().is_inference()
    copy = x.clone()
    assert not copy.is_inference()
    w = copy.requires_grad_()
    (w * w).sum().backward()
    case.same(w.grad, 2 * x.clone())


@claim("gradmode.inference.normal-tensors-inside")
def test_normal_tensors_stay_normal_inside(case):
    x = case.tensor(3)
    with torch.inference_mode():
        x.add_(1)
        assert not x.is_inference()
        assert not x[1:].is_inference()
        assert (x * 2).is_inference()
    assert x._version == 1


@claim("gradmode.inference.enable-grad-inside")
def test_enable_grad_inside_records_nothing(case):
    x = case.tensor(3, requires_grad=True)
    with torch.inference_mode():
        with torch.enable_grad():
            assert not (x * 2).requires_grad
        with torch.inference_mode(False):
            assert (x * 2).requires_grad
        assert torch.is_inference_mode_enabled()


@claim("gradmode.inference.forgets-no-flag")
def test_inference_mode_keeps_the_flags_of_its_inputs(case):
    layer, x = case.module(nn.Linear, 3, 2), case.tensor(4, 3)
    with case.unchanged(layer, x=x), torch.inference_mode():
        layer(x)
    F.mse_loss(layer(x), case.tensor(4, 2)).backward()
    assert layer.weight.grad is not None


# -- further switches of the engine ----------------------------------------------------------------------------------

SWITCHES = {
    "set_multithreading_enabled": "_is_multithreading_enabled",
    "_force_original_view_tracking": "_is_view_replay_enabled",
    "enforce_grad_layout_policy": "_is_grad_layout_enforcement_enabled",
}


@claim("gradmode.switches.act-and-restore")
@pytest.mark.parametrize("name", SWITCHES)
def test_switches_act_at_once_and_give_back_what_was(case, name):
    switch, state = getattr(torch.autograd.grad_mode, name, None), getattr(torch._C, SWITCHES[name], None)
    if switch is None:
        raise case.unsupported(f"torch {torch.__version__} has no {name}")
    usual = state()
    for mode in (not usual, usual):
        held = switch(mode)
        assert state() is mode, f"{name}({mode}) left {state()}"
        with held, switch(usual):
            assert state() is usual
        assert state() is usual, f"after {name}({mode}) it is {state()}"
        with held.clone():
            assert state() is mode
        assert state() is usual
        if "__call__" in vars(switch):
            decorated = switch(mode)(state)
            assert state() is usual, f"decorating by {name}({mode}) left {state()}"
            assert decorated() is mode
            assert state() is usual


@claim("gradmode.switches.grad-layout")
def test_gradients_take_the_parameters_strides_unless_told_otherwise(case):
    contiguous = case.tensor(4, 2, 3)

    class Given(torch.autograd.Function):
        forward = staticmethod(lambda ctx, x: x * 2)
        backward = staticmethod(lambda ctx, g: contiguous.clone())

    for options, strides in (((), (1, 12, 4)), ((True,), (1, 12, 4)), ((False,), (6, 3, 1))):
        p = case.tensor(2, 3, 4).permute(2, 0, 1).requires_grad_()
        with torch.autograd.enforce_grad_layout_policy(*options):
            Given.apply(p).sum().backward()
        case.same(p.grad, contiguous)
        assert p.grad.stride() == strides, f"{options} gives {p.grad.stride()}"


@claim("gradmode.switches.versions-preserved")
def test_a_version_counter_is_put_back_on_request(case):
    preserve, x = torch.autograd._unsafe_preserve_version_counter, case.tensor(3)
    w = case.tensor(3, requires_grad=True)
    y = w * x
    x.add_(1), x.sub_(1)
    with case.raises(RuntimeError, "modified by an inplace operation"):
        y.sum().backward()
    y, version, kept = w * x, x._version, x.clone()
    with preserve(x):
        x.zero_()
        assert x._version > version
    assert x._version == version
    y.sum().backward()
    case.same(w.grad, torch.zeros_like(kept))
