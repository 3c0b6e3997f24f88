"""The ways in which hooks go wrong: forgotten, run twice, run in the wrong order, or shown the wrong thing."""

import importlib
import inspect
import textwrap

import torch
from torch import nn
from torch.nn.modules import module as module_file
from torch.utils import hooks as hooks_file

from torch_conformance.mutation import NotApplicable, mutant

Module = nn.Module
optimizer_file = importlib.import_module("torch.optim.optimizer")


def fragment(patch, function, *choices):
    """Replace the first fragment that this torch's source holds; each choice is ``(old, new)``."""
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    for old, new in choices:
        if old in text:
            return patch.source(function, old, new)
    raise NotApplicable(f"{function.__qualname__} holds none of {choices}")


def need(owner, name):
    if not hasattr(owner, name):
        raise NotApplicable(f"{owner!r} has no {name}")
    return getattr(owner, name)


def rehook(patch, owner, name, change):
    """Register ``change(hook)`` instead of the hook."""
    need(owner, name)
    patch.wrap(owner, name, lambda original, self, hook, *a, **kw: original(self, change(hook), *a, **kw))


@mutant("hooks.forward.pre-hook")
def pre_hooks_only_look(patch):
    """Drops what a pre-hook returns."""
    rehook(patch, Module, "register_forward_pre_hook", lambda hook: lambda *given: hook(*given) and None)


@mutant("hooks.forward.pre-hook")
def tuples_wrapped_again(patch):
    """Wraps what a pre-hook returns, even where it is a tuple."""
    fragment(
        patch,
        Module._call_impl,
        ("if not isinstance(args_result, tuple):", "if True:"),
        (
            "if not isinstance(result, tuple):\n                            result",
            "if True:\n                            result",
        ),
    )


@mutant("hooks.forward.hook", "hooks.forward.order")
def forward_hooks_only_look(patch):
    """Drops what a forward hook returns."""

    def change(hook):
        def quiet(*given):
            hook(*given)

        return quiet

    rehook(patch, Module, "register_forward_hook", change)


@mutant("hooks.forward.order", "hooks.forward.prepend")
def last_hook_first(patch):
    """Runs hooks like the exits of a stack, last one first."""

    def register(original, module, hook, **options):
        handle = original(module, hook, **options)
        module._forward_pre_hooks.move_to_end(handle.id, last=False)
        return handle

    patch.wrap(Module, "register_forward_pre_hook", register)


@mutant("hooks.forward.prepend")
def prepend_ignored(patch):
    """Puts every hook at the end."""
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        if "prepend" not in inspect.signature(getattr(Module, name)).parameters:
            raise NotApplicable(f"{name} has no prepend")
        patch.wrap(Module, name, lambda original, self, hook, prepend=False, **kw: original(self, hook, **kw))


@mutant("hooks.forward.global-first")
def global_hooks_last(patch):
    """Runs the hooks for all modules after the module's own."""
    fragment(
        patch,
        Module._call_impl,
        (
            "*_global_forward_hooks.items(),\n                *self._forward_hooks.items(),",
            "*self._forward_hooks.items(), *_global_forward_hooks.items(),",
        ),
        (
            "(*_global_forward_hooks.values(), *self._forward_hooks.values())",
            "(*self._forward_hooks.values(), *_global_forward_hooks.values())",
        ),
    )


@mutant("hooks.forward.global-first")
def global_hooks_overlooked(patch):
    """Takes the short way when the module has no hooks of its own."""
    fragment(patch, Module._call_impl, ("or _global_forward_hooks or _global_forward_pre_hooks", ""))


@mutant("hooks.forward.with-kwargs")
def keywords_dropped(patch):
    """Shows an empty dict instead of the keywords."""
    fragment(
        patch,
        Module._call_impl,
        ("hook_result = hook(self, args, kwargs, result)", "hook_result = hook(self, args, {}, result)"),
    )


@mutant("hooks.forward.with-kwargs")
def replaced_keywords_dropped(patch):
    """Takes the inputs that a pre-hook returns, and not the keywords."""
    fragment(patch, Module._call_impl, ("args, kwargs = args_kwargs_result", "args, _ = args_kwargs_result"))


@mutant("hooks.forward.bad-pre-hook")
def bad_pre_hook_passes(patch):
    """Ignores what it cannot use."""
    fragment(
        patch,
        Module._call_impl,
        (
            "if args_kwargs_result is not None:",
            "if isinstance(args_kwargs_result, tuple) and len(args_kwargs_result) == 2:",
        ),
    )


@mutant("hooks.forward.always-call")
def errors_skip_all_hooks(patch):
    """Lets an error skip every hook."""
    fragment(
        patch,
        Module._call_impl,
        ("if hook_id in self._forward_hooks_always_called and hook_id not in", "if False and hook_id in"),
    )


@mutant("hooks.forward.always-call")
def always_called_twice(patch):
    """Runs a hook again after an error though it had run already."""
    fragment(patch, Module._call_impl, ("called_always_called_hooks.add(hook_id)", "pass"))


@mutant("hooks.forward.global-always-call")
def errors_skip_global_hooks(patch):
    """Lets an error skip the hooks for all modules."""
    fragment(
        patch,
        Module._call_impl,
        ("if hook_id in _global_forward_hooks_always_called and hook_id not in", "if False and hook_id in"),
    )


@mutant("hooks.forward.global-always-call-with-kwargs")
def global_hooks_see_no_keywords(patch):
    """Looks only at the module's own hooks for what they asked for."""
    fragment(patch, Module._call_impl, (" or hook_id in _global_forward_hooks_with_kwargs", ""))


@mutant("hooks.forward.direct-call-bypasses")
def call_bypasses_hooks(patch):
    """Calls forward straight away: the short way of a compiled module."""

    def call(original, module, *args, **kwargs):
        if isinstance(module, nn.Module) and type(module).__name__ == "Affine":
            return module.forward(*args, **kwargs)
        return original(module, *args, **kwargs)

    patch.wrap(Module, "__call__", call)


@mutant("hooks.forward.replaced-output-is-differentiated")
def hooks_under_no_grad(patch):
    """Runs hooks without recording a graph."""

    def change(hook):
        def quiet(module, args, *rest):
            found = hook(module, args, *rest)
            if not isinstance(found, torch.Tensor):
                return found
            return found.detach() + (args[0] - args[0].detach() if not rest else rest[-1] - rest[-1].detach())

        return quiet

    rehook(patch, Module, "register_forward_pre_hook", change)
    rehook(patch, Module, "register_forward_hook", change)


@mutant("hooks.handle.removal", "hooks.forward.order")
def remove_takes_all(patch):
    """Clears the whole register."""

    def remove(original, handle):
        held = handle.hooks_dict_ref()
        if held is not None:
            held.clear()

    patch.wrap(hooks_file.RemovableHandle, "remove", remove)


@mutant("hooks.handle.removal")
def block_does_not_remove(patch):
    """Forgets to remove at the end of the block."""
    patch.set(hooks_file.RemovableHandle, "__exit__", lambda handle, *error: None)


@mutant("hooks.handle.copied")
def copies_lose_hooks(patch):
    """Leaves the hooks out of a copy, as a state_dict does."""

    def restore(original, module, state):
        original(module, {**state, "_forward_hooks": type(state["_forward_hooks"])()})

    patch.wrap(Module, "__setstate__", restore)


def on_backward_hook(patch, change):
    rehook(patch, Module, "register_full_backward_hook", change)


@mutant("hooks.backward.values")
def gradients_swapped(patch):
    """Hands the hook the gradients of outputs and inputs the wrong way round."""
    on_backward_hook(patch, lambda hook: lambda module, into, out: hook(module, out, into))


@mutant("hooks.backward.values")
def tensors_only(patch):
    """Leaves inputs that are no tensors out of the tuple."""
    on_backward_hook(
        patch, lambda hook: lambda module, into, out: hook(module, tuple(g for g in into if g is not None), out)
    )


@mutant("hooks.backward.replaces", "hooks.backward.order")
def backward_hooks_only_look(patch):
    """Drops what a backward hook returns."""

    def change(hook):
        def quiet(*given):
            hook(*given)

        return quiet

    on_backward_hook(patch, change)


@mutant("hooks.backward.without-input-gradient")
def needs_input_gradients(patch):
    """Fires only when an input requires grad."""
    on_backward_hook(
        patch,
        lambda hook: lambda module, into, out: hook(module, into, out) if any(g is not None for g in into) else None,
    )


@mutant("hooks.backward.order")
def own_backward_hooks_first(patch):
    """Runs the module's own backward hooks before those for all modules."""
    text = inspect.getsource(Module._get_backward_hooks)
    if "full_backward_hooks += self._backward_hooks.values()" not in text:
        raise NotApplicable("_get_backward_hooks is written otherwise")
    patch.source(
        Module._get_backward_hooks,
        "full_backward_hooks += self._backward_hooks.values()",
        "full_backward_hooks[:0] = self._backward_hooks.values()",
    )


@mutant("hooks.backward.bad-return")
def surplus_gradients_dropped(patch):
    """Cuts or fills what a hook returned to the number that it needs."""

    def change(hook):
        def quiet(module, into, out):
            found = hook(module, into, out)
            if not isinstance(found, tuple):
                return found
            return tuple(f if isinstance(f, torch.Tensor) else g for f, g in zip([*found, *into], into, strict=False))

        return quiet

    on_backward_hook(patch, change)


@mutant("hooks.backward.inplace-raises")
def outputs_not_guarded(patch):
    """Hands out outputs that look innocent."""
    patch.wrap(
        hooks_file.BackwardHook,
        "setup_output_hook",
        lambda original, self, result: (
            original(self, result) * 1 if torch.is_tensor(result) else original(self, result)
        ),
    )
    patch.wrap(
        hooks_file.BackwardHook,
        "setup_input_hook",
        lambda original, self, args: tuple(a * 1 if torch.is_tensor(a) else a for a in original(self, args)),
    )


@mutant("hooks.backward.pre-hook", "hooks.backward.pre-hook-without-input-gradient")
def backward_pre_hooks_only_look(patch):
    """Drops what a backward pre-hook returns."""

    def change(hook):
        def quiet(*given):
            hook(*given)

        return quiet

    rehook(patch, Module, "register_full_backward_pre_hook", change)


@mutant("hooks.backward.kinds-do-not-mix")
def kinds_mix(patch):
    """Does not look which kind is there already."""
    for name in ("register_backward_hook", "register_full_backward_hook"):
        function = getattr(Module, name)
        fragment(
            patch,
            function,
            ("if self._is_full_backward_hook is True:", "if False:"),
            ("if self._is_full_backward_hook is False:", "if False:"),
        )


def on_tensor_hook(patch, change):
    patch.wrap(torch.Tensor, "register_hook", lambda original, x, hook: original(x, change(hook)))


@mutant("hooks.tensor.replaces", "hooks.tensor.order", "hooks.tensor.retained-after-hooks", "hooks.node.of-a-leaf")
def tensor_hooks_only_look(patch):
    """Drops what a tensor hook returns."""

    def change(hook):
        def quiet(g):
            hook(g)

        return quiet

    on_tensor_hook(patch, change)


@mutant("hooks.tensor.order")
def tensor_hooks_last_first(patch):
    """Runs the newest hook first."""

    def register(original, x, hook):
        before = list((x._backward_hooks or {}).items())
        if before:
            x._backward_hooks.clear()
        handle = original(x, hook)
        x._backward_hooks.update(before)
        return handle

    patch.wrap(torch.Tensor, "register_hook", register)


@mutant("hooks.tensor.sums-first")
def hooks_at_every_use(patch):
    """Calls the hook for each use of the tensor, as a hook on the edge would."""
    on_tensor_hook(patch, lambda hook: lambda g: (hook(g / 2), hook(g / 2))[1])


@mutant("hooks.tensor.in-autograd-grad")
def grad_passes_hooks_by(patch):
    """Takes the gradient of what is asked for before its hooks see it."""

    def grad(original, outputs, inputs, *args, **options):
        hooks = inputs._backward_hooks
        kept = dict(hooks)
        hooks.clear()
        try:
            return original(outputs, inputs, *args, **options)
        finally:
            hooks.update(kept)

    patch.wrap(torch.autograd, "grad", grad)


@mutant("hooks.tensor.in-place")
def hooks_move_on(patch):
    """Keeps hooks with the tensor, whatever value it holds."""

    def multiply(original, x, y):
        hooks = list((x._backward_hooks or {}).values())
        (x._backward_hooks or {}).clear()
        original(x, y)
        for hook in hooks:
            x.register_hook(hook)
        return x

    patch.wrap(torch.Tensor, "mul_", multiply)


@mutant("hooks.tensor.needs-requires-grad")
def hooks_on_anything(patch):
    """Registers a hook that can never be called."""

    def register(original, x, hook):
        return (
            original(x, hook)
            if x.requires_grad
            else hooks_file.RemovableHandle(__import__("collections").OrderedDict())
        )

    patch.wrap(torch.Tensor, "register_hook", register)


@mutant("hooks.tensor.bad-return")
def hooks_may_return_anything(patch):
    """Ignores what is no gradient."""

    def change(hook):
        def lenient(g):
            found = hook(g)
            return found if isinstance(found, torch.Tensor) and found.shape == g.shape else None

        return lenient

    on_tensor_hook(patch, change)


@mutant("hooks.tensor.retained-after-hooks")
def retained_before_hooks(patch):
    """Keeps the gradient as it comes, before any hook that is registered later."""

    def retain(original, x):
        x.register_hook(lambda g: setattr(x, "grad", g.clone()))

    patch.wrap(torch.Tensor, "retain_grad", retain)


@mutant("hooks.tensor.post-accumulate")
def post_accumulate_before_the_sum(patch):
    """Calls the hook when the gradient comes, before it is added."""
    need(torch.Tensor, "register_post_accumulate_grad_hook")

    def register(original, x, hook):
        def early(g):
            if x.grad is None:
                x.grad = torch.zeros_like(g)
            hook(x)

        return x.register_hook(early)

    patch.wrap(torch.Tensor, "register_post_accumulate_grad_hook", register)


@mutant("hooks.tensor.post-accumulate-leaves-only")
def post_accumulate_anywhere(patch):
    """Takes any tensor, and whatever the hook returns."""
    need(torch.Tensor, "register_post_accumulate_grad_hook")

    def register(original, x, hook):
        return original(x, lambda p: hook(p) and None) if x.is_leaf and x.requires_grad else None

    patch.wrap(torch.Tensor, "register_post_accumulate_grad_hook", register)


@mutant("hooks.tensor.serialized")
def marks_of_hooks_are_ignored(patch):
    """Warns of every hook, marked or not."""
    patch.source(hooks_file.warn_if_has_hooks, 'if not hasattr(hook, "__torch_unserializable__"):', "if True:")


@mutant("hooks.tensor.serialized")
def hooks_are_lost_in_silence(patch):
    """Warns of no hook."""
    patch.source(hooks_file.warn_if_has_hooks, 'if not hasattr(hook, "__torch_unserializable__"):', "if False:")


@mutant("hooks.node.hooks", "hooks.tensor.replaces")
def products_forget_a_factor(patch):
    """Loses the scale of a multiplication by a number."""
    patch.wrap(torch.Tensor, "__mul__", lambda original, x, y: original(x, y) if torch.is_tensor(y) else x + x * 0)


@mutant("hooks.node.multi-grad")
def multi_grad_without_none(patch):
    """Leaves tensors without a gradient out."""
    register = need(torch.autograd.graph, "register_multi_grad_hook")
    if "seen" in inspect.signature(register).parameters:
        raise NotApplicable("register_multi_grad_hook is written otherwise")

    def wrapped(original, tensors, fn, **options):
        if options.get("mode") == "any":
            return original(tensors, lambda g: fn(g * 2), **options)
        return original(tensors, lambda grads: fn([g for g in grads if g is not None]), **options)

    patch.wrap(torch.autograd.graph, "register_multi_grad_hook", wrapped)


def every_step(patch, old, new):
    """Change the wrapper around every optimiser's step, which each class got when its first instance was made."""
    original = torch.optim.Optimizer.profile_hook_step
    patch.source(original, old, new)
    for cls in {torch.optim.SGD, torch.optim.Adam}:
        patch.set(cls, "step", torch.optim.Optimizer.profile_hook_step(getattr(cls.step, "__wrapped__", cls.step)))
        cls.step.hooked = True


@mutant("hooks.optimizer.step-hooks")
def hooks_return_anything(patch):
    """Takes no notice of a result that is no pair."""
    every_step(patch, "raise RuntimeError(", "str(")


@mutant("hooks.optimizer.global-step-hooks")
def global_hooks_after_are_forgotten(patch):
    """Runs the hooks of all optimisers before the step only."""
    every_step(patch, "_global_optimizer_post_hooks.values(),", "*(),")


@mutant("hooks.optimizer.state-dict-hooks")
def prepended_hooks_are_appended(patch):
    """Ignores prepend."""
    patch.source(torch.optim.Optimizer.register_state_dict_pre_hook, "if prepend", "if False")


@mutant("hooks.optimizer.state-dict-hooks")
def loading_hooks_are_prepended(patch):
    """Puts every hook first unless told otherwise."""
    patch.set(torch.optim.Optimizer.register_load_state_dict_post_hook, "__defaults__", (True,))


@mutant("hooks.optimizer.state-dict-hooks")
def hook_results_are_dropped(patch):
    """Saves the dict that was made, whatever a hook returned."""
    patch.source(torch.optim.Optimizer.state_dict, "state_dict = hook_result", "pass")


@mutant("hooks.optimizer.state-dict-hooks")
def loading_hooks_get_the_users_dict(patch):
    """Hands the hooks the user's own dict instead of a copy."""
    patch.source(torch.optim.Optimizer.load_state_dict, "state_dict = state_dict.copy()", "pass")


@mutant("hooks.optimizer.step-hooks")
def post_hooks_before_the_step(patch):
    """Runs all step hooks before the step."""
    rehook(patch, torch.optim.Optimizer, "register_step_pre_hook", lambda hook: lambda o, a, kw: None)


@mutant("hooks.optimizer.step-hooks")
def replaced_arguments_dropped(patch):
    """Shows a pre-hook the arguments, and does not take what it returns."""
    need(torch.optim.Optimizer, "register_step_pre_hook")
    rehook(
        patch, torch.optim.Optimizer, "register_step_pre_hook", lambda hook: lambda o, a, kw: hook(o, a, kw) and None
    )


@mutant("hooks.optimizer.global-step-hooks")
def global_step_hooks_ignored(patch):
    """Runs the hooks of the optimizer alone."""
    need(optimizer_file, "register_optimizer_step_pre_hook")
    patch.wrap(optimizer_file, "register_optimizer_step_pre_hook", lambda original, hook: original(lambda *_: None))


@mutant("hooks.optimizer.state-dict-hooks")
def optimizer_state_hooks_only_look(patch):
    """Drops the mapping that a hook returns."""

    def change(hook):
        def quiet(*given):
            hook(*given)

        return quiet

    for name in ("register_state_dict_post_hook", "register_load_state_dict_pre_hook"):
        rehook(patch, torch.optim.Optimizer, name, change)


@mutant("hooks.registration.hooks")
def registration_hooks_only_look(patch):
    """Drops what a registration hook returns."""
    for kind in ("parameter", "buffer", "module"):
        name = f"register_module_{kind}_registration_hook"
        need(module_file, name)
        patch.wrap(module_file, name, lambda original, hook: original(lambda *given: hook(*given) and None))


@mutant("hooks.backward.keeps-the-type")
def outputs_become_a_plain_tuple(patch):
    """Rebuilds the outputs as a tuple."""
    patch.source(hooks_file.BackwardHook._apply_on_tensors, "type(args) is tuple", "True")


@mutant("hooks.node.multi-grad-under-no-grad")
def leaf_is_found_in_the_mode_at_hand(patch):
    """Looks for a leaf's node through a view that no_grad does not record."""
    graph = torch.autograd.graph
    as_it_is = "torch.set_grad_enabled(torch.is_grad_enabled())"
    patch.source(graph._get_grad_fn_or_grad_acc, "torch.enable_grad()", as_it_is)


@mutant("hooks.backward.bad-return")
def number_of_gradients_is_not_checked(patch):
    """Takes whatever number a hook returns."""
    patch.source(hooks_file.BackwardHook._set_user_hook, "len(out) != len(res)", "False")


@mutant("hooks.node.multi-grad")
def multi_grad_calls_back_too_early(patch):
    """Calls back with the last gradient but one."""
    patch.source(
        torch.autograd.graph.register_multi_grad_hook,
        "curr_count == nb_calls - 1",
        "curr_count == max(nb_calls - 2, 0)",
    )


@mutant("hooks.backward.order")
def backward_hooks_go_first_by_default(patch):
    """Puts every full backward hook first."""
    patch.set(Module.register_full_backward_hook, "__defaults__", (True,))


@mutant("hooks.handle.leaves-nothing")
def options_of_a_hook_stay(patch):
    """Removes the hook, and not what was noted of it."""
    patch.source(hooks_file.RemovableHandle.remove, "del extra_dict[self.id]", "pass")


@mutant("hooks.handle.leaves-nothing")
def pickled_handles_hold_nothing(patch):
    """Brings a handle back without the register that it belongs to."""
    patch.source(hooks_file.RemovableHandle.__setstate__, "if state[0] is None:", "if True:")


@mutant("hooks.handle.leaves-nothing")
def loaded_handles_take_used_numbers(patch):
    """Numbers new hooks without regard to those that were loaded."""
    patch.source(hooks_file.RemovableHandle.__setstate__, "self.id = state[1]", "self.id = state[1] + 1")


@mutant("hooks.backward.old-kind")
def old_hooks_are_told_nothing(patch):
    """Calls an old hook without a warning of what it misses."""
    patch.set(Module, "_maybe_warn_non_full_backward_hook", lambda self, inputs, result, grad_fn: None)


@mutant("hooks.backward.old-kind")
def old_hooks_of_single_operations_are_warned_of(patch):
    """Warns where nothing is missing."""
    patch.source(
        Module._maybe_warn_non_full_backward_hook,
        "inputs_grad_fn != next_functions",
        "inputs_grad_fn == next_functions",
    )


@mutant("hooks.node.multi-grad")
def unknown_modes_mean_nothing(patch):
    """Registers nothing for a mode that it does not know."""
    patch.source(
        torch.autograd.graph.register_multi_grad_hook, "if mode not in supported_modes:", "handles = ()\n    if False:"
    )


@mutant("hooks.backward.without-recording")
def backward_hooks_want_a_node(patch):
    """Looks for the node of its own function where nothing is recorded."""
    patch.source(
        hooks_file.BackwardHook._apply_on_tensors, "requires_grad and torch.is_grad_enabled()", "requires_grad"
    )
