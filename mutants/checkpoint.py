"""The ways in which checkpointing goes wrong."""

import torch
from torch.utils import checkpoint as module

from torch_conformance.mutation import mutant

Reentrant = module.CheckpointFunction
Hooks = module._checkpoint_hook


@mutant("checkpoint.gradient.equals-plain", "checkpoint.gradient.several-inputs-and-outputs")
def gradients_are_doubled(patch):
    """Adds the gradients of forward and recomputation."""
    patch.wrap(Reentrant, "backward", lambda o, ctx, *g: o(ctx, *(2 * x if torch.is_tensor(x) else x for x in g)))


@mutant("checkpoint.gradient.accumulates")
def recomputation_clears_grad(patch):
    """Clears the gradients of its inputs before it recomputes."""

    def backward(original, ctx, *gradients):
        for x in ctx.saved_tensors:
            x.grad = None
        return original(ctx, *gradients)

    patch.wrap(Reentrant, "backward", backward)


@mutant(
    "checkpoint.memory.saves-only-inputs",
    "checkpoint.memory.recomputes-once",
    "checkpoint.variant.reentrant-by-default",
)
def nothing_is_checkpointed(patch):
    """Calls the function and keeps everything."""
    patch.wrap(Reentrant, "apply", lambda o, f, preserve, *a: f(*a))


@mutant("checkpoint.gradient.modified-input")
def inputs_are_not_checked(patch):
    """Keeps inputs as they are, past the check of versions."""
    patch.source(module._CheckpointFrame.save_inputs, "_make_saved_tensor(arg, is_output=False)", "arg")


@mutant("checkpoint.device.is-restored")
def default_device_is_forgotten(patch):
    """Recomputes on the default device of backward."""
    patch.source(
        module._checkpoint_without_reentrant_generator,
        "lambda mode: isinstance(mode, DeviceContext)",
        "lambda mode: False",
    )


@mutant("checkpoint.rng.same-mask", "checkpoint.rng.same-noise")
def mask_is_drawn_anew(patch):
    """Does not go back to the random state of the forward."""
    patch.source(Reentrant.backward, "torch.set_rng_state(ctx.fwd_cpu_state)", "pass")


@mutant("checkpoint.rng.left-as-it-was")
def generator_is_not_restored(patch):
    """Recomputes without setting the generator aside."""
    patch.source(Reentrant.backward, "enabled=ctx.preserve_rng_state", "enabled=False")


@mutant("checkpoint.rng.not-preserved")
def state_is_always_preserved(patch):
    """Ignores preserve_rng_state."""
    patch.wrap(Reentrant, "apply", lambda o, f, preserve, *a: o(f, True, *a))


@mutant("checkpoint.batchnorm.updates-twice")
def recomputation_spares_the_statistics(patch):
    """Updates running statistics in forward only: the belief itself."""

    def batch_norm(original, x, mean, var, *rest):
        return original(x, *((mean.clone(), var.clone()) if torch.is_grad_enabled() else (mean, var)), *rest)

    patch.wrap(torch.nn.functional, "batch_norm", batch_norm)


@mutant("checkpoint.autocast.is-restored")
def autocast_is_forgotten(patch):
    """Recomputes in full precision."""
    patch.source(module._get_autocast_kwargs, "torch.is_autocast_enabled('cpu')", "False")


@mutant("checkpoint.grad-mode.nothing-recorded")
def recorded_under_no_grad(patch):
    """Records in every mode."""

    def checkpoint(original, *args, **options):
        with torch.enable_grad():
            return original(*args, **options)

    patch.wrap(Reentrant, "apply", checkpoint)


@mutant("checkpoint.error.passes-on")
def errors_are_renamed(patch):
    """Wraps the error of the function in one of its own."""

    def apply(original, *args):
        try:
            return original(*args)
        except KeyError as error:
            raise RuntimeError("checkpoint failed") from error

    patch.wrap(Reentrant, "apply", apply)


@mutant("checkpoint.variant.reentrant-by-default")
def non_reentrant_by_default(patch):
    """Takes the recommended variant where none is named."""
    patch.source(module.checkpoint, "use_reentrant = True", "use_reentrant = False")


@mutant("checkpoint.variant.autograd-grad")
def autograd_grad_is_let_pass(patch):
    """Does not look at how backward was called."""
    patch.wrap(torch.autograd, "_is_checkpoint_valid", lambda o: True)


@mutant("checkpoint.variant.output-without-requires-grad")
def constant_outputs_are_let_pass(patch):
    """Has nothing to say about outputs that require no grad."""
    patch.source(
        Reentrant.backward,
        "if len(outputs_with_grad) == 0:",
        "if not outputs_with_grad:\n        return (None,) * (2 + len(inputs))\n    if False:",
    )


@mutant("checkpoint.variant.keyword-arguments")
def keyword_arguments_are_dropped(patch):
    """Drops keyword arguments without a word."""
    patch.source(module.checkpoint, "if kwargs and use_reentrant:", "if False:")


@mutant("checkpoint.gradient.within")
def checkpoint_is_always_reentrant(patch):
    """Takes the reentrant variant, which runs the function without gradients, whatever is asked for."""
    patch.source(module.checkpoint, "if use_reentrant:", "if True:")


@mutant("checkpoint.sequential.equals-plain", "checkpoint.sequential.last-segment-is-plain")
def last_function_is_left_out(patch):
    """Stops one function early."""
    patch.source(module.checkpoint_sequential, "len(functions) - 1, functions", "len(functions) - 2, functions")


@mutant("checkpoint.sequential.last-segment-is-plain")
def every_segment_but_the_first_is_plain(patch):
    """Checkpoints one segment only."""
    patch.source(module.checkpoint_sequential, "segment_size * (segments - 1), segment_size", "0, segment_size")


@mutant("checkpoint.sequential.preserves-rng")
def sequential_forgets_the_generator(patch):
    """Does not hand preserve_rng_state on."""
    patch.source(module.checkpoint_sequential, "preserve_rng_state=preserve", "preserve_rng_state=True")


@mutant("checkpoint.sequential.unknown-argument")
def sequential_ignores_what_it_does_not_know(patch):
    """Drops unknown arguments."""
    patch.source(module.checkpoint_sequential, "if kwargs:", "if False:")


def non_reentrant(patch, **changed):
    """Call the non-reentrant variant with other arguments."""

    def generator(original, fn, preserve, context, check, debug, early, *args, **kwargs):
        given = {"preserve": preserve, "context": context, "check": check, "early": early} | changed
        return original(fn, given["preserve"], given["context"], given["check"], debug, given["early"], *args, **kwargs)

    patch.wrap(module, "_checkpoint_without_reentrant_generator", generator)


@mutant("checkpoint.determinism.metadata", "checkpoint.determinism.switched-off")
def check_is_always_off(patch):
    """Never compares what was recomputed."""
    non_reentrant(patch, check="none")


@mutant("checkpoint.determinism.switched-off")
def check_is_always_on(patch):
    """Compares although told not to."""
    non_reentrant(patch, check="default")


@mutant("checkpoint.variant.early-stop")
def recomputation_never_stops(patch):
    """Recomputes to the end."""
    non_reentrant(patch, early=False)


@mutant("checkpoint.variant.early-stop-by-argument")
def the_argument_outranks_the_switch(patch):
    """Goes by the argument, whatever set_checkpoint_early_stop says, and by its default."""
    generator = module._checkpoint_without_reentrant_generator
    patch.source(generator, "_enable_checkpoint_early_stop if _enable_checkpoint_early_stop is not None else ", "")


@mutant("checkpoint.variant.early-stop-by-argument")
def early_stop_is_not_handed_on(patch):
    """Stops early, whatever the call asks for."""
    patch.source(module.checkpoint, "determinism_check, debug, early_stop,", "determinism_check, debug, True,")


@mutant("checkpoint.context.of-forward-and-recomputation")
def contexts_are_exchanged(patch):
    """Takes the context of the one for that of the other."""

    def checkpoint(original, *args, context_fn=module.noop_context_fn, **options):
        swapped = module.noop_context_fn if context_fn is module.noop_context_fn else lambda: context_fn()[::-1]
        return original(*args, context_fn=swapped, **options)

    patch.wrap(
        module,
        "_checkpoint_without_reentrant_generator",
        lambda o, f, p, c, *r, **k: o(f, p, lambda: c()[::-1], *r, **k),
    )


@mutant("checkpoint.determinism.number")
def number_is_not_compared(patch):
    """Does not count what was recomputed."""
    patch.wrap(module._CheckpointFrame, "check_recomputed_tensors_match", lambda o, s, gid: None)


@mutant("checkpoint.determinism.values-are-not-checked")
def values_of_the_forward_are_used(patch):
    """Keeps the values of the forward beside the recomputation."""
    patch.wrap(module, "_checkpoint_without_reentrant_generator", lambda o, *a, **k: iter((None,)))


@mutant("checkpoint.variant.retain-graph", "checkpoint.variant.nests", "checkpoint.variant.double-backward")
def unpacking_doubles(patch):
    """Returns something else than what was saved."""
    patch.wrap(
        torch.autograd.graph.saved_tensors_hooks,
        "__init__",
        lambda o, s, pack, unpack: o(s, pack, lambda h: 2 * unpack(h)),
    )


@mutant("checkpoint.variant.input-without-requires-grad", "checkpoint.variant.nested-structures")
def non_reentrant_runs_unrecorded(patch):
    """Runs the forward of either variant unrecorded, when no argument itself requires grad."""

    def checkpoint(original, function, *args, **options):
        if any(torch.is_tensor(a) and a.requires_grad for a in args):
            return original(function, *args, **options)
        with torch.no_grad():
            return original(function, *args, **options)

    patch.source(
        module.checkpoint, "ret = function(*args, **kwargs)", "ret = torch.no_grad()(function)(*args, **kwargs)"
    )


@mutant("checkpoint.error.leaves-nothing-behind")
def hooks_outlive_an_error(patch):
    """Does not tell the recomputation's hooks that the function failed: torch up to 2.11."""
    patch.source(module.checkpoint, "gen.throw(e)", "pass")


@mutant("checkpoint.sequential.variant")
def sequential_is_always_reentrant(patch):
    """Does not hand use_reentrant on."""
    patch.source(module.checkpoint_sequential, "use_reentrant=use_reentrant", "use_reentrant=True")


@mutant("checkpoint.selective.saves-what-is-named")
def policy_is_turned_round(patch):
    """Keeps what the list does not name."""
    patch.source(module._CachingTorchDispatchMode.__torch_dispatch__, "if policy in (", "if policy not in (")


@mutant("checkpoint.selective.saves-what-is-named")
def flags_are_taken_for_policies(patch):
    """Reads True as a wish to recompute."""
    patch.wrap(module, "_policy_from_bool", lambda o, b: o(not b))


@mutant("checkpoint.selective.saves-what-is-named")
def only_the_first_result_is_kept(patch):
    """Counts no calls, so that all calls of an operation share one place."""
    patch.source(module._CachingTorchDispatchMode.__torch_dispatch__, "self.func_counter[key] += 1", "pass")


@mutant("checkpoint.selective.checks-its-cache")
def kept_results_are_not_checked(patch):
    """Never compares the version of a kept result."""
    patch.source(module._VersionWrapper.get_val, "self.val._version != self.version", "False")


@mutant("checkpoint.selective.checks-its-cache")
def permission_to_modify_is_ignored(patch):
    """Checks the version whatever was allowed."""
    patch.source(module._VersionWrapper.get_val, "and not allow_cache_entry_mutation", "")


@mutant("checkpoint.selective.checks-its-cache")
def modification_is_allowed_by_default(patch):
    """Takes the unsafe choice for the default."""
    patch.set(module.create_selective_checkpoint_contexts, "__defaults__", (True,))


@mutant("checkpoint.selective.second-backward")
def second_recomputation_starts_at_one(patch):
    """Goes on counting where the last recomputation stopped."""
    patch.source(module._CachedTorchDispatchMode.__torch_dispatch__, "elif entry is _CONSUMED:", "elif False:")


@mutant("checkpoint.determinism.debug")
def debug_argument_is_ignored(patch):
    """Says nothing more with debug=True."""
    patch.source(
        module._checkpoint_without_reentrant_generator,
        "if _checkpoint_debug_enabled is not None else debug",
        "if _checkpoint_debug_enabled is not None else False",
    )


@mutant("checkpoint.determinism.debug")
def debug_argument_beats_the_block(patch):
    """Lets the argument win over the block."""
    patch.source(
        module._checkpoint_without_reentrant_generator,
        "_checkpoint_debug_enabled if _checkpoint_debug_enabled is not None else debug",
        "debug or _checkpoint_debug_enabled",
    )


@mutant("checkpoint.variant.reentrant-by-default")
def default_is_taken_in_silence(patch):
    """Takes a variant that nobody named, and says nothing."""
    patch.silence(module.checkpoint)


@mutant("checkpoint.variant.keyword-arguments")
def keyword_arguments_are_refused(patch):
    """Refuses keyword arguments in either variant."""
    patch.source(module.checkpoint, "if kwargs and use_reentrant:", "if kwargs:")


@mutant("checkpoint.determinism.switched-off")
def unknown_checks_are_off(patch):
    """Takes any word that it does not know for none."""
    patch.source(
        module._checkpoint_without_reentrant_generator,
        "raise ValueError(",
        "metadata_fn = lambda _: None\n        len(",
    )


@mutant("checkpoint.determinism.metadata")
def shapes_are_not_compared(patch):
    """Compares dtypes and devices alone."""
    patch.source(
        module._CheckpointFrame.check_recomputed_tensors_match, "x_meta != self.metadata_fn(recomputed_x)", "False"
    )


@mutant("checkpoint.variant.input-without-requires-grad")
def constants_are_checkpointed_in_silence(patch):
    """Says nothing where no input requires grad."""
    patch.set(module, "check_backward_validity", lambda inputs: None)


@mutant("checkpoint.gradient.several-inputs-and-outputs")
def gradients_are_paired_with_the_first_outputs(patch):
    """Takes the incoming gradients in order, whichever outputs they belong to."""
    patch.source(
        Reentrant.backward, "args_with_grad.append(args[i])", "args_with_grad.append(args[len(args_with_grad)])"
    )


@mutant("checkpoint.memory.recomputes-once", "checkpoint.memory.saves-only-inputs")
def reentrant_forward_is_recorded(patch):
    """Keeps recording in forward what backward records again."""
    patch.source(Reentrant.forward, "with torch.no_grad():", "with torch.enable_grad():")


@mutant("checkpoint.variant.early-stop")
def early_stop_does_not_obey_the_block(patch):
    """Looks at the argument alone."""
    patch.source(module.set_checkpoint_early_stop, "_enable_checkpoint_early_stop = enable", "pass")


@mutant("checkpoint.rng.left-as-it-was")
def non_reentrant_generator_is_not_restored(patch):
    """Recomputes the other variant without setting the generator aside."""
    patch.source(module._checkpoint_without_reentrant_generator, "enabled=preserve_rng_state", "enabled=False")


@mutant("checkpoint.sequential.equals-plain")
def segments_overlap(patch):
    """Runs the first function of the rest a second time."""
    patch.source(module.checkpoint_sequential, "run_function(end + 1,", "run_function(max(end, 0),")


@mutant("checkpoint.rng.devices")
def the_cpu_counts_as_an_accelerator(patch):
    """Keeps the state of the CPU among those of the accelerators."""
    states = [torch.get_rng_state()]
    patch.wrap(torch.utils.checkpoint, "get_device_states", lambda o, *a: (["cpu"], states) if len(a) > 2 else o(*a))


@mutant("checkpoint.selective.saves-what-is-named")
def every_call_gets_the_first_result(patch):
    """Does not tell the calls of one operation apart when it looks for what was kept."""
    patch.source(module._CachedTorchDispatchMode.__torch_dispatch__, "self.func_counter[key] += 1", "pass")


@mutant("checkpoint.gradient.within-to-the-end")
def what_was_not_saved_is_always_a_mismatch(patch):
    """Counts what the forward's own backward had released as a difference of the two runs."""
    patch.source(module._recomputation_hook.__init__, "ignore_saved_mismatch = True", "ignore_saved_mismatch = False")


@mutant("checkpoint.context.errors-pass")
def errors_held_back_are_forgotten(patch):
    """Returns nothing where the context held back the error."""
    patch.source(module._checkpoint_without_reentrant_generator, "if forward_context_suppressed_exc:", "if False:")
    patch.source(
        module.checkpoint, "except StopIteration as stop:", "except StopIteration as stop:\n                return None"
    )


@mutant("checkpoint.group.recomputes-once")
def groups_are_never_entered(patch):
    """Recomputes for every backward, in a group or not."""
    patch.source(module.GraphExecGroup.__enter__, "torch._C._set_graph_exec_group(self)", "pass")


@mutant("checkpoint.selective.recomputes-the-same")
def operations_of_their_own_are_run(patch):
    """Runs what the recomputation meets for the first time."""
    patch.source(
        module._CachedTorchDispatchMode.__torch_dispatch__,
        "if func_storage is None:",
        "if func_storage is None:\n        return func(*args, **(kwargs or {}))\n    if False:",
    )
