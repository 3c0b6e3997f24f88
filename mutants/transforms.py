"""The ways in which function transforms and compilers go wrong."""

import torch
import torch.nn.functional as F
from torch import nn

try:
    from torch._functorch import apis, eager_transforms, functional_call, vmap
except ImportError:  # before torch 2.0
    apis = eager_transforms = functional_call = vmap = None

from torch_conformance.mutation import NotApplicable, mutant

func = getattr(torch, "func", None)


def transform(patch, name, wrapper):
    if func is None:
        raise NotApplicable("no torch.func")
    patch.wrap(func, name, wrapper)


@mutant(
    "transforms.functional-call.stateless",
    "transforms.functional-call.gradients-reach-the-dict",
    "transforms.vmap.ensembles",
)
def functional_call_uses_the_module(patch):
    """Runs the module with its own parameters."""
    transform(patch, "functional_call", lambda original, module, given, args=None, **o: module(
        *(args if isinstance(args, tuple) else (args,))))  # fmt: skip


@mutant("transforms.functional-call.deprecated-name")
def old_name_always_ties(patch):
    """Forgets to hand tie_weights on."""
    patch.source(nn.utils.stateless.functional_call, "tie_weights=tie_weights", "tie_weights=True")


@mutant("transforms.functional-call.deprecated-name")
def old_name_is_never_strict(patch):
    """Forgets to hand strict on."""
    patch.source(nn.utils.stateless.functional_call, "strict=strict", "strict=False")


@mutant("transforms.functional-call.buffers-updated-in-the-dict")
def functional_call_copies_buffers(patch):
    """Hands copies over, so that updates of buffers are lost."""
    transform(patch, "functional_call", lambda original, module, given, args=None, **o: original(
        module, {k: v.clone() for k, v in given.items()}, args, **o))  # fmt: skip


@mutant("transforms.vmap.mixed-dtypes")
def vmap_promotes(patch):
    """Gives the dtype of the parameters, as a rule does that multiplies by them last."""
    transform(patch, "vmap", lambda original, function, **o: lambda *args: original(function, **o)(*args).float())


@mutant("transforms.vmap.tables-of-their-own")
def vmap_reads_the_first_table(patch):
    """Looks all samples up in the table of the first, as a rule does that forgets how many rows lie before each."""
    transform(patch, "vmap", lambda original, function, **o: lambda tables, ids: original(
        function, **o)(tables[:1].expand_as(tables), ids))  # fmt: skip


@mutant(
    "transforms.vmap.randomness",
    "transforms.vmap.equals-loop",
    "transforms.vmap.batchnorm-buffers",
    "transforms.vmap.index-by-entry",
    "transforms.vmap.view-as-dtype",
    "transforms.vmap.circular-padding",
    "transforms.vmap.imaginary-part-of-a-conjugate",
    "transforms.vmap.searches-for-numbers",
)
def vmap_maps_the_whole(patch):
    """Calls the function once on everything: no entry is mapped."""
    transform(patch, "vmap", lambda original, function, **o: function)


@mutant("transforms.vmap.randomness-of-attention")
def vmap_lets_attention_draw(patch):
    """Draws otherwise for every entry whatever is asked."""
    transform(patch, "vmap", lambda original, function, **o: original(function, **{**o, "randomness": "different"}))


@mutant("transforms.vmap.randomness")
def vmap_draws_one_mask(patch):
    """Draws the same for all entries whatever is asked."""
    transform(patch, "vmap", lambda original, function, **o: original(function, **{**o, "randomness": "same"}))


@mutant(
    "transforms.vmap.per-sample-gradients",
    "transforms.grad.leaves-grad-alone",
    "transforms.grad.nested",
    "transforms.grad.inner-no-grad",
)
def grad_is_doubled(patch):
    """Counts the gradient twice."""

    def doubled(original, function, *a, **o):
        scaled = original(lambda *args: function(*args), *a, **o)
        tree = torch.utils._pytree.tree_map
        return lambda *args: tree(lambda g: g * 2 if isinstance(g, torch.Tensor) else g, scaled(*args))

    transform(patch, "grad", doubled)


@mutant("transforms.jacobian.forward-and-reverse")
def jacobian_transposed(patch):
    """Returns the Jacobian of shape input + output."""
    transform(patch, "jacrev", lambda original, f, *a, **o: lambda x: original(f, *a, **o)(x).transpose(0, -1))


@mutant(
    "transforms.compile.equals-eager", "transforms.compile.modes-and-grad-mode",
    "transforms.compile.training-attribute",
    "transforms.compile.state-dict", "transforms.compile.fullgraph", "transforms.compile.inductor-randomness",
)  # fmt: skip
def compile_freezes_the_mode(patch):
    """Returns a copy that was frozen in eval mode without gradients."""
    if not hasattr(torch, "compile"):
        raise NotApplicable("no torch.compile")

    class Frozen(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        @torch.no_grad()
        def forward(self, *args):
            return 2 * self.inner(*args)

    patch.wrap(torch, "compile", lambda original, model, **o: Frozen(model))


@mutant("transforms.script.follows-modes")
def script_freezes_the_mode(patch):
    """Freezes the mode of scripting time."""

    def script(original, module, *args, **kwargs):
        return torch.jit.freeze(original(module.eval(), *args, **kwargs))

    patch.wrap(torch.jit, "script", script)


@mutant("transforms.trace.freezes-the-mode")
def trace_follows_modes(patch):
    """Keeps the mode open in a traced module: the belief come true."""
    patch.wrap(torch.jit, "trace", lambda original, module, *a, **o: module)


@mutant("transforms.export.freezes-the-mode")
def export_follows_modes(patch):
    """Gives the module itself for the exported program."""
    if not hasattr(torch, "export"):
        raise NotApplicable("no torch.export")

    class Program:
        def __init__(self, module):
            self.module = lambda: module

    patch.wrap(torch.export, "export", lambda original, module, *a, **o: Program(module))


@mutant("transforms.vmap.equals-loop")
def negative_dimensions_are_off_by_one(patch):
    """Counts from the end one too few."""
    patch.source(vmap._process_batched_inputs, "in_dim % arg.dim()", "(in_dim - 1) % arg.dim()")


@mutant("transforms.vmap.equals-loop")
def sizes_are_not_compared(patch):
    """Takes the size of the first input for all."""
    patch.source(vmap._validate_and_get_batch_size, "any(size != batch_sizes[0] for size in batch_sizes)", "False")


@mutant("transforms.vmap.equals-loop")
def any_dimension_is_taken(patch):
    """Does not look whether the input has that dimension."""
    patch.source(vmap._process_batched_inputs, "(in_dim < -arg.dim() or in_dim >= arg.dim())", "False")


@mutant("transforms.vmap.randomness")
def chunks_draw_anew(patch):
    """Sets the generator back before no chunk."""
    patch.source(vmap._chunked_vmap, "torch.set_rng_state(rs)", "pass")


@mutant("transforms.vmap.randomness")
def chunks_always_draw_the_same(patch):
    """Sets the generator back whatever was asked."""
    patch.source(vmap._chunked_vmap, 'if randomness == "same" else None', "")


@mutant("transforms.vmap.ensembles")
def stacks_always_require_grad(patch):
    """Makes every stack require grad."""
    patch.source(functional_call.construct_stacked_leaf, "if all_requires_grad:", "if result.is_floating_point():")


@mutant("transforms.vmap.ensembles")
def flags_may_differ(patch):
    """Stacks frozen and trained tensors alike."""
    patch.source(functional_call.construct_stacked_leaf, "not all_requires_grad and not none_requires_grad", "False")


@mutant("transforms.vmap.ensembles")
def classes_may_differ(patch):
    """Stacks modules of any class."""
    patch.source(functional_call.stack_module_state, "not all(type(m) is model0_typ for m in models)", "False")


@mutant("transforms.functional-call.gradients-reach-the-dict")
def later_dicts_win_silently(patch):
    """Lets the later of two dicts win."""
    patch.source(functional_call.functional_call, "n > 1", "False")


@mutant("transforms.functional-call.gradients-reach-the-dict")
def strict_is_forgotten(patch):
    """Hands strict on to nobody."""
    patch.source(functional_call.functional_call, "strict=strict", "strict=False")


@mutant("transforms.grad.leaves-grad-alone")
def auxiliary_output_is_dropped(patch):
    """Returns the value in the place of what comes with it."""
    patch.source(eager_transforms.grad_impl, "grad, (_, aux) = results", "grad, (aux, _) = results")


@mutant("transforms.grad.leaves-grad-alone")
def value_comes_with_the_first_gradient(patch):
    """Differentiates the first argument, whatever argnums says."""
    transform(patch, "grad_and_value", lambda original, f, argnums=0, has_aux=False: original(f, 0, has_aux))


@mutant("transforms.jacobian.forward-and-reverse")
def hessian_of_the_first_argument(patch):
    """Forgets argnums on the way out."""
    transform(patch, "hessian", lambda original, f, argnums=0: original(f))


@mutant("transforms.grad.nested")
def inner_graph_is_not_made(patch):
    """Does not record the gradient."""
    patch.source(eager_transforms.grad_and_value_impl, "create_graph=True", "create_graph=False")


@mutant("transforms.grad.within-inference-mode", "transforms.jacobian.within-inference-mode")
def derivatives_stay_in_inference_mode(patch):
    """Differentiates within inference mode as it finds it."""

    def derivative(original, f, *args, **named):
        found = original(f, *args, **named)
        return lambda *xs: found(*xs) * 0 if torch.is_inference_mode_enabled() else found(*xs)

    for name in ("grad", "jacrev"):
        patch.wrap(torch.func, name, derivative)


@mutant("transforms.grad.leaves-grad-alone")
def second_argument_is_differentiated(patch):
    """Counts arguments from one."""
    patch.set(func.grad, "__defaults__", (1, False))


@mutant("transforms.vmap.equals-loop")
def last_chunk_is_lost(patch):
    """Joins all chunks but the last."""
    patch.source(
        vmap._concat_chunked_outputs, "torch.cat(chunk, dim=out_dim)", "torch.cat(chunk[:-1] or chunk, dim=out_dim)"
    )


@mutant("transforms.vmap.ensembles")
def modes_may_differ(patch):
    """Stacks modules in training and in eval mode."""
    patch.source(functional_call.stack_module_state, "all(not m.training for m in models)", "True")


@mutant("transforms.functional-call.gradients-reach-the-dict", "transforms.functional-call.ties")
def shared_tensors_are_untied(patch):
    """Replaces a shared tensor in one of its places only."""
    patch.source(functional_call.functional_call, "tie_weights=tie_weights", "tie_weights=False")


@mutant("transforms.jacobian.randomness")
def every_column_is_random_alike(patch):
    """Draws the same for all columns, whatever was asked."""
    transform(patch, "jacfwd", lambda original, f, *a, randomness="error", **k: original(
        f, *a, randomness="same", **k))  # fmt: skip


@mutant("transforms.jacobian.forward-and-reverse")
def jacfwd_forgets_what_comes_with_it(patch):
    """Returns the tangents in the place of the auxiliary output."""
    transform(patch, "jacfwd", lambda o, f, *a, has_aux=False, **k: (
        (lambda *x: o(f, *a, has_aux=True, **k)(*x)[::-1]) if has_aux else o(f, *a, **k)))  # fmt: skip


@mutant("transforms.vmap.chunk-size")
def everything_is_one_chunk(patch):
    """Checks chunk_size and forgets it."""
    patch.source(vmap._get_chunked_inputs, "if chunk_size is not None:", "if False:")


@mutant("transforms.vmap.in-chunks")
def chunks_are_cut_along_the_first_dimension(patch):
    """Cuts every argument along dimension 0, wherever its entries lie."""
    if apis is None:
        raise NotApplicable("no torch.func")
    patch.source(apis.chunk_vmap, "dim=in_dim", "dim=0")


@mutant("transforms.jacobian.linearized-constant")
def a_linearisation_is_one(patch):
    """Takes every derivative for one."""

    def linearize(original, function, *primals):
        made = function(*primals)
        return made, lambda *tangents: torch.ones_like(made)

    transform(patch, "linearize", linearize)


@mutant("transforms.vmap.attention")
def attention_has_no_rule(patch):
    """Refuses entries of four dimensions, as torch did in 2.1 and 2.2."""
    if func is None:
        raise NotApplicable("no torch.func")

    def attend(original, q, *rest, **options):
        if torch._C._functorch.is_batchedtensor(q) and q.dim() == 4:
            raise RuntimeError("Batching rule not implemented")
        return original(q, *rest, **options)

    patch.wrap(F, "scaled_dot_product_attention", attend)


@mutant("transforms.grad.of-complex-outputs")
def gradients_are_of_the_real_part(patch):
    """Drops the imaginary part of the output."""
    transform(patch, "grad", lambda original, f: original(lambda x: f(x).real))
