"""The ways in which custom autograd functions go wrong."""

import torch
from torch._functorch import autograd_function
from torch.autograd import Function, function
from torch.autograd.function import BackwardCFunction, FunctionCtx

from torch_conformance.mutation import mutant


def on_backward(patch, change):
    """Let ``change(original, ctx, *gradients)`` stand for the run of a rule."""
    patch.wrap(BackwardCFunction, "apply", change)


def on_apply(patch, change):
    """Let ``change(original, cls, *inputs)`` stand for ``apply``."""
    original = Function.__dict__["apply"].__func__
    patch.set(Function, "apply", classmethod(lambda cls, *a, **k: change(original, cls, *a, **k)))


@mutant("function.forward.called-by-apply", "function.forward.rule-replaces-derivative", "function.backward.gradcheck")
def rule_is_doubled(patch):
    """Runs the rule on twice the gradient."""
    on_backward(patch, lambda o, ctx, *g: o(ctx, *(2 * x if torch.is_tensor(x) else x for x in g)))


@mutant("function.forward.unrecorded")
def forward_is_recorded(patch):
    """Runs forward in the mode of its caller."""

    def apply(original, cls, *args, **kwargs):
        forward = cls.__dict__["forward"].__func__
        cls.forward = staticmethod(lambda *a: torch.enable_grad()(forward)(*a))
        return original(cls, *args, **kwargs)

    on_apply(patch, apply)


@mutant("function.forward.constants")
def everything_is_recorded(patch):
    """Records in every mode."""
    on_apply(patch, lambda o, cls, *a, **k: torch.enable_grad()(o)(cls, *a, **k))


@mutant("function.forward.returns-its-input", "function.ctx.saved-tensors")
def inputs_are_copied(patch):
    """Hands copies to forward."""
    on_apply(patch, lambda o, cls, *a, **k: o(cls, *(x.clone() if torch.is_tensor(x) else x for x in a), **k))


@mutant("function.forward.keeps-the-subclass")
def outputs_are_plain_tensors(patch):
    """Hands plain tensors out."""
    on_apply(patch, lambda o, cls, *a, **k: o(cls, *a, **k).as_subclass(torch.Tensor))


@mutant("function.forward.not-to-be-instantiated")
def objects_can_be_called(patch):
    """Runs apply when an object is called, as the first releases did."""
    patch.set(Function, "__call__", lambda self, *a: type(self).apply(*a))


@mutant("function.forward.must-be-written")
def missing_rule_is_zero(patch):
    """Takes zero for a rule that is missing."""
    patch.source(function._SingleLevelFunction.backward, "raise NotImplementedError(", "return tuple(")


@mutant("function.forward.several-outputs")
def gradients_come_in_reverse(patch):
    """Hands the gradients of the outputs over in reverse."""
    on_backward(patch, lambda o, ctx, *g: o(ctx, *g[::-1]))


@mutant(
    "function.ctx.saved-tensors",
    "function.ctx.saved-tensors-are-checked",
    "function.ctx.saved-tensors-go-through-hooks",
)
def detached_copies_are_saved(patch):
    """Keeps copies in an attribute, where no check and no hook reaches them."""

    def save(self, *tensors):
        self.kept = tuple(None if t is None else t.detach().clone() for t in tensors)

    patch.set(FunctionCtx, "save_for_backward", save)
    patch.set(BackwardCFunction, "saved_tensors", property(lambda self: self.kept))


@mutant("function.ctx.saved-tensors-are-freed")
def saved_tensors_are_kept(patch):
    """Keeps what it saved after backward."""

    def save(self, *tensors):
        self.kept = tensors

    patch.set(FunctionCtx, "save_for_backward", save)
    patch.set(BackwardCFunction, "saved_tensors", property(lambda self: self.kept))


@mutant("function.ctx.needs-input-grad")
def every_input_needs_grad(patch):
    """Says yes for every input."""
    patch.set(BackwardCFunction, "needs_input_grad", property(lambda self: (True, True, True)))


@mutant(
    "function.ctx.mark-dirty",
    "function.ctx.mark-dirty-is-checked",
    "function.ctx.mark-dirty-of-own-views",
    "function.ctx.mark-dirty-of-views",
)
def dirty_tensors_are_forgotten(patch):
    """Does not note what was modified."""
    patch.source(FunctionCtx.mark_dirty, "self.dirty_tensors = args", "pass")


@mutant("function.ctx.saved-view-is-freed", "checkpoint.memory.nothing-stays")
def saved_tensors_hold_their_node(patch):
    """Keeps what was saved beside the node: a cycle that nobody breaks."""
    original, kept = FunctionCtx.save_for_backward, []

    def save(self, *tensors):
        kept.append(tensors)
        original(self, *tensors)

    patch.set(FunctionCtx, "save_for_backward", save)


@mutant("function.ctx.mark-non-differentiable")
def non_differentiable_outputs_are_forgotten(patch):
    """Notes the first of the outputs only."""
    patch.source(
        FunctionCtx.mark_non_differentiable, "self.non_differentiable = args", "self.non_differentiable = args[:1]"
    )


@mutant("function.ctx.materialized-zeros")
def gradients_are_always_materialized(patch):
    """Ignores the setting."""
    patch.source(FunctionCtx.set_materialize_grads, "self.materialize_grads = value", "pass")


@mutant("function.ctx.materialized-zeros")
def gradients_are_never_materialized(patch):
    """Inverts the setting."""
    patch.source(FunctionCtx.set_materialize_grads, "= value", "= not value")


@mutant("function.backward.number-of-gradients", "function.backward.trailing-none")
def gradients_are_cut_or_filled(patch):
    """Fills missing gradients with None, and drops those in excess; refuses None."""

    def apply(original, ctx, *gradients):
        found = original(ctx, *gradients)
        found = found if isinstance(found, tuple) else (found,)
        if None in [g for g in found if g is None]:
            raise RuntimeError("None is no gradient")
        return (found + (None,) * 3)[: len(ctx.needs_input_grad)]

    on_backward(patch, apply)


@mutant("function.backward.none-is-no-gradient")
def none_is_zero(patch):
    """Writes zeros for None."""

    def apply(original, ctx, *gradients):
        found = original(ctx, *gradients)
        return (
            tuple(torch.zeros_like(gradients[0]) if g is None else g for g in found)
            if isinstance(found, tuple)
            else found
        )

    on_backward(patch, apply)


@mutant("function.backward.gradient-for-a-constant")
def gradients_of_constants_are_dropped(patch):
    """Drops every gradient that nobody needs."""

    def apply(original, ctx, *gradients):
        found = original(ctx, *gradients)
        pairs = zip(found, ctx.needs_input_grad, strict=False)
        return tuple(g if needed else None for g, needed in pairs) if isinstance(found, tuple) else found

    on_backward(patch, apply)


@mutant("function.backward.shape-is-checked")
def gradients_are_fitted(patch):
    """Brings a gradient of another shape to that of the incoming one."""
    on_backward(patch, lambda o, ctx, g: o(ctx, g).sum() + torch.zeros_like(g))


@mutant("function.backward.type-is-checked")
def numbers_become_tensors(patch):
    """Makes a tensor of a number."""

    def apply(original, ctx, *gradients):
        found = original(ctx, *gradients)
        return torch.full_like(gradients[0], found) if isinstance(found, float) else found

    on_backward(patch, apply)


@mutant("function.backward.error-passes-on")
def errors_are_renamed(patch):
    """Wraps the error of a rule in one of its own."""

    def apply(original, ctx, *gradients):
        try:
            return original(ctx, *gradients)
        except KeyError as error:
            raise RuntimeError("backward failed") from error

    on_backward(patch, apply)


@mutant("function.backward.vjp-is-an-alias")
def both_rules_are_accepted(patch):
    """Takes backward where both are written."""
    name = "_get_user_fn" if hasattr(BackwardCFunction, "_get_user_fn") else "apply"
    patch.source(getattr(BackwardCFunction, name), "vjp_fn is not Function.vjp:", "False:")


@mutant("function.double.backward-is-recorded")
def rules_run_unrecorded(patch):
    """Runs every rule with grad mode off."""
    on_backward(patch, lambda o, ctx, *g: torch.no_grad()(o)(ctx, *g))


@mutant("function.double.once-differentiable", "function.double.once-differentiable-several")
def once_differentiable_does_nothing(patch):
    """Returns constants and says nothing."""
    patch.set(torch.autograd._functions if hasattr(torch.autograd, "_functions") else function, "unused", None)
    patch.set(function._functions, "DelayedError", lambda message, n: lambda *g: g[0] if n == 1 else g[::-1])


@mutant("function.double.once-differentiable-silent")
def once_differentiable_always_refuses(patch):
    """Refuses every second derivative: the belief itself."""

    def apply(original, ctx, *gradients):
        found = original(ctx, *gradients)
        return found.requires_grad_() if torch.is_tensor(found) and torch.is_grad_enabled() else found

    on_backward(patch, apply)


@mutant("function.setup.forward-without-ctx", "function.setup.default-arguments", "function.jvp.forward-mode")
def setup_context_is_ignored(patch):
    """Does not look for setup_context."""
    patch.wrap(function, "_is_setup_context_defined", lambda o, f: False)
    original = Function.__dict__["apply"].__func__
    patch.set(Function, "apply", classmethod(lambda cls, x, n=7, *r: original(cls, x, 7, *r)))


@mutant("function.setup.saved-as-returned")
def setup_context_saves_copies(patch):
    """Saves a copy of what it is given, so that nothing is refused."""
    patch.wrap(function.FunctionCtx, "save_for_backward", lambda o, ctx, *t: o(ctx, *(each.clone() for each in t)))


@mutant("function.setup.transforms-need-it")
def transforms_take_any_function(patch):
    """Runs a function without setup_context under a transform by its forward alone."""

    def apply(original, cls, *args, **kwargs):
        if torch._C._are_functorch_transforms_active():
            return args[0] * args[1]
        return original(cls, *args, **kwargs)

    on_apply(patch, apply)


@mutant("function.jvp.saves-tensors-only")
def anything_is_saved_for_forward(patch):
    """Saves whatever it is given."""
    patch.set(FunctionCtx, "save_for_forward", lambda self, *anything: setattr(self, "saved_for_forward", ()))


@mutant("function.vmap.generated-rule", "function.setup.transforms-need-it")
def transforms_double_the_result(patch):
    """Adds the result of every level of a transform."""
    patch.wrap(function, "custom_function_call", lambda o, cls, *a: 2 * o(cls, *a))


@mutant("function.vmap.needs-a-rule")
def rules_are_never_generated(patch):
    """Ignores generate_vmap_rule."""
    patch.wrap(autograd_function, "has_overridden_vmap_rule", lambda o, f: not f.generate_vmap_rule)


@mutant("function.vmap.own-rule")
def batch_size_is_wrong(patch):
    """Reports the size of the wrong axis."""
    patch.wrap(autograd_function, "VmapInfo", lambda o, batch_size, randomness: o(batch_size + 1, randomness))


@mutant("function.ctx.mark-dirty")
def nodes_are_named_like_their_class(patch):
    """Names the node of a function without saying that it is its backward."""
    patch.source(function.FunctionMeta.__init__, 'name + "Backward"', "name")


@mutant("function.forward.returns-its-input", "function.ctx.mark-dirty-of-constants")
def forward_is_shielded_from_its_inputs(patch):
    """Copies what forward returns, so that no output is an input."""
    on_apply(patch, lambda o, cls, *a, **k: copied(o(cls, *a, **k)))


def copied(found):
    return found.clone() if torch.is_tensor(found) else found


@mutant("function.forward.not-to-be-instantiated")
def instances_are_made_in_silence(patch):
    """Says nothing to who makes an object."""
    patch.silence(Function.__init__)


@mutant("function.forward.must-be-written")
def missing_forward_is_the_identity(patch):
    """Returns the input where no forward is written."""
    patch.source(function._SingleLevelFunction.forward, "raise NotImplementedError(", "return args[-1] if args else (")


@mutant("function.ctx.saved-tensors")
def last_tensor_is_not_saved(patch):
    """Loses the last of several."""
    patch.source(FunctionCtx.save_for_backward, "= tensors", "= tensors[:2]")


@mutant("function.ctx.mark-dirty")
def dirty_tensors_become_constants(patch):
    """Notes a modified input as an output without gradient."""
    patch.source(FunctionCtx.mark_dirty, "self.dirty_tensors = args", "self.non_differentiable = args")


@mutant("function.ctx.mark-non-differentiable")
def everything_stays_differentiable(patch):
    """Marks nothing."""
    patch.source(FunctionCtx.mark_non_differentiable, "self.non_differentiable = args", "pass")


@mutant("function.backward.vjp-is-an-alias")
def vjp_is_never_called(patch):
    """Looks for backward alone."""
    patch.source(
        BackwardCFunction._get_user_fn,
        "return vjp_fn if vjp_fn is not Function.vjp else backward_fn",
        "return backward_fn",
    )


@mutant("function.double.once-differentiable")
def once_differentiable_records(patch):
    """Runs the rule recorded, and so lets it be differentiated twice."""
    patch.source(function.once_differentiable, "with torch.no_grad():", "if True:")


@mutant("function.double.once-differentiable")
def gradients_that_require_grad_are_overlooked(patch):
    """Looks at the mode alone, and returns constants."""
    patch.source(function.once_differentiable, "if not requires_grad:", "if True:")


@mutant("function.double.once-differentiable-silent")
def any_tensor_counts_as_one_that_requires_grad(patch):
    """Refuses where a tensor comes in at all."""
    patch.source(
        function.once_differentiable,
        "isinstance(arg, torch.Tensor) and arg.requires_grad",
        "isinstance(arg, torch.Tensor)",
    )


@mutant("function.setup.default-arguments")
def defaults_are_not_filled_in(patch):
    """Shows setup_context the arguments that were given."""
    patch.source(Function.apply.__func__, "args, kwargs = bind_default_args(cls.forward, *args, **kwargs)", "pass")


@mutant("function.setup.forward-without-ctx")
def setup_context_gets_no_output(patch):
    """Calls setup_context before the output is there."""
    original = Function.__dict__["apply"].__func__

    def apply(cls, *args, **kwargs):
        setup = cls.__dict__.get("setup_context")
        if setup is not None:
            cls.setup_context = staticmethod(lambda ctx, inputs, output: None)
        return original(cls, *args, **kwargs)

    patch.set(Function, "apply", classmethod(apply))


@mutant("function.setup.transforms-need-it")
def transforms_lack_a_clear_refusal(patch):
    """Lets a function without setup_context into a transform."""
    patch.source(Function.apply.__func__, "if not is_setup_ctx_defined:", "if False:")


@mutant("function.jvp.forward-mode")
def missing_jvp_is_zero(patch):
    """Takes zero for the tangent where no jvp is written."""
    patch.source(
        function._SingleLevelFunction.jvp,
        "raise NotImplementedError(",
        "return torch.zeros_like(grad_inputs[0]) if grad_inputs else (",
    )


@mutant("function.jvp.saves-tensors-only")
def words_are_saved_for_forward(patch):
    """Checks nothing that is saved for forward mode."""
    patch.source(FunctionCtx.save_for_forward, "isinstance(tensor, torch.Tensor) or tensor is None", "True")


@mutant("function.vmap.own-rule")
def rule_sees_no_axes(patch):
    """Tells the rule that nothing is batched along another axis than the first."""
    patch.source(
        autograd_function.custom_function_call_vmap_helper,
        "vmap_function(info, in_dims",
        "vmap_function(info, tuple(d and 0 for d in in_dims)",
    )


@mutant("function.vmap.needs-a-rule")
def one_of_two_rules_is_chosen(patch):
    """Takes the function's own rule where both are there."""
    patch.source(
        autograd_function.custom_function_call_vmap, "if has_overridden_vmap_rule(autograd_function):", "if False:"
    )


@mutant("function.forward.nested")
def nested_outputs_lose_their_structure(patch):
    """Returns what the engine returned, in a row."""
    patch.set(function, "_unflatten", lambda flat, proto: flat)


@mutant("function.vmap.generated-rule-without-gradient")
def generated_rules_get_zeros(patch):
    """Makes zeros of gradients that nobody sent."""
    patch.source(
        autograd_function.vmapify_autograd_function,
        "autograd_function.backward(wrapped_ctx, *grad_outputs)",
        "autograd_function.backward(wrapped_ctx, *(torch.zeros(()) if g is None else g for g in grad_outputs))",
    )
