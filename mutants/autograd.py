"""The ways in which automatic differentiation goes wrong."""

import contextlib
import gc
import sys
import traceback
import warnings

import torch
import torch.fx.traceback
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad, functional, graph

from mutants._gradient import Altered, scaled
from torch_conformance.mutation import NotApplicable, mutant

Tensor = torch.Tensor
GRADCHECK = sys.modules["torch.autograd.gradcheck"]  # the function of this name hides the module


def leaves(tensors):
    """The leaves that the graph of these tensors ends in."""
    found, nodes = [], [t.grad_fn for t in tensors if t.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [n for n, _ in node.next_functions if n is not None]
    return list({id(t): t for t in found}.values())


def engine(patch, around):
    """Replace the run of the engine by ``around(run, tensors, gradients, retain, create, inputs, **rest)``."""

    def run_backward(original, tensors, gradients, retain, create, inputs, *rest, **options):
        def run(tensors=tensors, gradients=gradients, retain=retain, create=create):
            return original(tensors, gradients, retain, create, inputs, *rest, **options)

        return around(run, tensors, gradients, retain, create)

    patch.wrap(torch.autograd, "_engine_run_backward", run_backward)


def after(patch, change):
    """Apply ``change`` to every leaf after each backward."""

    def around(run, tensors, *_):
        found = leaves(tensors)
        result = run()
        for leaf in found:
            change(leaf)
        return result

    engine(patch, around)


# -- graph -----------------------------------------------------------------------------------------------------------


@mutant("autograd.graph.one-input-suffices")
def all_inputs_must_require_grad(patch):
    """Records only if all inputs require grad: a conjunction for a disjunction."""
    patch.wrap(torch, "cat", lambda o, ts, *a: o(ts, *a) if all(t.requires_grad for t in ts) else o(ts, *a).detach())


@mutant("autograd.graph.nothing-in-no-grad")
def no_grad_does_nothing(patch):
    """Restores the mode on entry, where it should switch it off."""
    patch.source(torch.no_grad.__enter__, "set_grad_enabled(False)", "set_grad_enabled(self.prev)")


@mutant("autograd.graph.requires-grad-defaults")
def parameters_are_frozen_by_default(patch):
    """Takes the default of a tensor for that of a parameter."""
    patch.wrap(nn.Parameter, "__new__", lambda o, cls, data=None, requires_grad=False: o(cls, data, requires_grad))


@mutant("autograd.graph.requires-grad-defaults")
def parameters_always_require_grad(patch):
    """Forgets to hand the flag on."""
    patch.wrap(nn.Parameter, "__new__", lambda o, cls, data=None, requires_grad=True: o(cls, data, True))


@mutant("autograd.graph.floating-or-complex-only")
def integers_require_no_grad_silently(patch):
    """Ignores the request on an integer tensor instead of refusing it."""
    patch.wrap(Tensor, "requires_grad_", lambda o, x, flag=True: o(x, flag) if x.dtype.is_floating_point else x)


@mutant("autograd.graph.leaves")
def constants_are_no_leaves(patch):
    """Calls only those tensors leaves that can get a gradient."""
    patch.set(Tensor, "is_leaf", property(lambda x: x.grad_fn is None and x.requires_grad))


@mutant("autograd.graph.casts-are-operations")
def cast_to_the_own_dtype_copies(patch):
    """Copies although there is nothing to cast."""
    patch.wrap(Tensor, "float", lambda o, x: o(x).clone())


@mutant("autograd.accumulate.shape-dtype-device")
def cast_goes_through_half(patch):
    """Casts by way of half precision."""
    patch.wrap(Tensor, "double", lambda o, x: o(x.half()))


@mutant("autograd.graph.grad-fn-of-recorded-results", "autograd.graph.nodes-lead-to-the-leaves")
def grad_fn_is_hidden(patch):
    """Hides the node, as a wrapper of tensors does that forgets the attribute."""
    patch.set(Tensor, "grad_fn", property(lambda x: None))


@mutant("autograd.graph.rebuilt-at-every-forward")
def first_graph_is_kept(patch):
    """Returns the gradient of the first graph for every later one: a static graph with stale control flow."""
    seen = {}
    patch.wrap(torch.autograd, "grad", lambda o, y, x, *a, **k: seen.setdefault(id(x), o(y, x, *a, **k)))


@mutant("autograd.graph.flag-of-leaves-only")
def freezing_a_result_detaches_it(patch):
    """Detaches a result whose flag is switched off, instead of refusing."""
    patch.wrap(Tensor, "requires_grad_", lambda o, x, f=True: x.detach_() if not f and x.grad_fn else o(x, f))


@mutant("autograd.graph.module-requires-grad")
def only_own_parameters_are_frozen(patch):
    """Does not descend into the children."""
    patch.source(nn.Module.requires_grad_, "self.parameters()", "self.parameters(recurse=False)")


@mutant("autograd.graph.module-requires-grad")
def freezing_drops_the_training_flag(patch):
    """Takes freezing for evaluation."""
    patch.source(nn.Module.requires_grad_, "return self", "return self.train(requires_grad)")


@mutant("autograd.graph.detach-shares-storage")
def detach_copies(patch):
    """Copies, as numpy-minded implementations do."""
    patch.wrap(Tensor, "detach", lambda o, x: o(x).clone())


@mutant("autograd.graph.detach-stops-gradients", "autograd.graph.detach-shares-storage")
def detach_keeps_the_graph(patch):
    """Makes a view and leaves it in the graph."""
    patch.set(Tensor, "detach", lambda x: x.view_as(x))


@mutant("autograd.graph.detach-in-place")
def detach_in_place_returns_another(patch):
    """Returns a detached tensor and leaves the one it was called on in the graph."""
    patch.wrap(Tensor, "detach_", lambda o, x: x.detach())


@mutant("autograd.graph.copies")
def as_tensor_copies(patch):
    """Copies always, as torch.tensor does."""
    patch.wrap(torch, "as_tensor", lambda o, x, *a, **k: o(x, *a, **k).clone())


@mutant("autograd.graph.clone-passes-the-gradient", "autograd.graph.copies")
def clone_leaves_the_graph(patch):
    """Copies out of the graph, as copying in NumPy does."""
    patch.wrap(Tensor, "clone", lambda o, x, **k: o(x.detach(), **k).requires_grad_(x.requires_grad))


@mutant("autograd.graph.numpy-refuses")
def numpy_detaches_silently(patch):
    """Detaches without being asked to."""
    patch.wrap(Tensor, "numpy", lambda o, x, **k: o(x.detach(), **k))


@mutant("autograd.graph.deepcopy-of-leaves-only")
def deepcopy_drops_grad(patch):
    """Forgets the gradient of what it copies."""
    patch.source(Tensor.__deepcopy__, "if self.grad is not None:", "if False:")


@mutant("autograd.graph.item-leaves-the-graph")
def item_stays_a_tensor(patch):
    """Returns a tensor of no dimension, as NumPy indexing does."""
    patch.set(Tensor, "item", lambda x: x)


@mutant("autograd.graph.comparisons-are-constants")
def comparisons_pass_gradients(patch):
    """Lets gradients through a step: a straight-through estimator."""
    patch.wrap(Tensor, "__gt__", lambda o, x, y: o(x, y).to(x.dtype) + 0 * x)


@mutant("autograd.graph.tensor-base-class")
def tensor_derives_from_object(patch):
    """Wraps the tensor in a Python class of its own."""
    patch.set(torch, "Tensor", type("Tensor", (object,), {}))


# -- backward --------------------------------------------------------------------------------------------------------


@mutant("autograd.backward.only-leaves-get-grad", "autograd.backward.changes-only-grad")
def backward_touches_the_leaves(patch):
    """Writes to the leaves themselves, as an optimizer fused into backward does."""
    after(patch, lambda leaf: leaf.data.copy_(leaf.data * 1.5) if leaf.requires_grad else None)


@mutant("autograd.backward.changes-only-grad")
def backward_draws_random_numbers(patch):
    """Draws from the default generator, as stochastic rounding does."""
    engine(patch, lambda run, *_: (torch.rand(1), run())[1])


@mutant("autograd.backward.non-leaf-grad-not-kept")
def every_grad_is_kept(patch):
    """Keeps the gradient of every intermediate result."""

    def product(original, x, y):
        result = original(x, y)
        if result.requires_grad and result.grad_fn is not None:
            result.retain_grad()
        return result

    patch.wrap(Tensor, "__mul__", product)


@mutant("autograd.backward.retained-grad-accumulates", "autograd.backward.non-leaf-grad-not-kept")
def retained_grad_is_overwritten(patch):
    """Overwrites the retained gradient, by a hook that assigns."""
    patch.wrap(Tensor, "retain_grad", lambda o, x: x.register_hook(lambda g: setattr(x, "grad", g.clone())) and None)


@mutant("autograd.backward.non-leaf-grad-is-computed")
def non_leaf_grad_is_not_computed(patch):
    """Computes gradients of non-leaves only where they are retained."""
    patch.wrap(Tensor, "register_hook", lambda o, x, h: o(x, lambda g: h(g) if x.retains_grad else None))


@mutant("autograd.backward.retain-grad-edges")
def retain_grad_ignores_constants(patch):
    """Does nothing on a constant, where it should refuse."""
    patch.wrap(Tensor, "retain_grad", lambda o, x: o(x) if x.requires_grad else None)


@mutant("autograd.backward.needs-requires-grad")
def constants_are_differentiated_to_nothing(patch):
    """Returns without a word where there is nothing to differentiate."""
    engine(patch, lambda run, tensors, *_: run() if any(t.requires_grad for t in tensors) else (None,))


@mutant("autograd.backward.implicit-one")
def implicit_gradient_is_the_value(patch):
    """Starts from the value itself, as in differentiating its square."""
    patch.source(
        torch.autograd._make_grads, "torch.ones_like(out, memory_format=torch.preserve_format)", "out.detach().clone()"
    )


@mutant("autograd.backward.non-scalar-needs-gradient")
def implicit_gradient_of_ones(patch):
    """Differentiates the sum of a non-scalar, as TensorFlow does."""
    patch.source(torch.autograd._make_grads, "if not out_numel_is_1:", "if False:")


@mutant("autograd.backward.implicit-one-is-real")
def implicit_gradient_of_complex(patch):
    """Takes the one of a complex scalar for granted."""
    patch.source(torch.autograd._make_grads, "if not out_dtype.is_floating_point:", "if False:")


@mutant("autograd.backward.vector-jacobian-product", "autograd.accumulate.adds", "autograd.grad.one-tensor-gradient")
def given_gradient_is_ignored(patch):
    """Starts from ones whatever it is given."""
    engine(patch, lambda run, ts, gs, *_: run(gradients=tuple(g if g is None else torch.ones_like(g) for g in gs)))


@mutant("autograd.backward.gradient-must-match")
def given_gradient_is_broadcast(patch):
    """Broadcasts the gradient to the result."""
    patch.source(torch.autograd._make_grads, "if not shape_matches:", "if False:")


@mutant("autograd.backward.several-roots", "autograd.grad.sum-over-outputs")
def only_the_first_root_counts(patch):
    """Starts from the first of several results."""
    engine(patch, lambda run, tensors, gradients, *_: run(tensors=tensors[:1], gradients=gradients[:1]))


@mutant("autograd.backward.every-root-requires-grad")
def constant_roots_are_skipped(patch):
    """Skips roots that require no grad, as the documentation suggests."""

    def around(run, tensors, gradients, *_):
        kept = [i for i, t in enumerate(tensors) if t.requires_grad]
        return run(tensors=tuple(tensors[i] for i in kept), gradients=tuple(gradients[i] for i in kept))

    engine(patch, around)


@mutant(
    "autograd.backward.method-delegates",
    "autograd.backward.inputs-restrict",
    "autograd.backward.inputs-may-be-non-leaves",
)
def method_forgets_inputs(patch):
    """Does not hand inputs on."""
    patch.source(Tensor.backward, "create_graph, inputs=inputs", "create_graph")


@mutant("autograd.backward.method-equals-function")
def method_doubles_the_gradient(patch):
    """Adds the gradient once itself and once by the function."""
    patch.source(Tensor.backward, "self, gradient, retain", "self, None if gradient is None else 2 * gradient, retain")


@mutant("autograd.backward.signatures")
def arguments_are_reordered(patch):
    """Puts a new argument in front of the old ones."""
    patch.set(torch.autograd, "grad", lambda outputs, inputs, allow_unused=None, grad_outputs=None, **rest: None)


@mutant("autograd.backward.grad-variables")
def old_name_is_ignored(patch):
    """Accepts the old name and drops what it is given."""
    patch.source(torch.autograd.backward, "grad_tensors = grad_variables", "grad_tensors = None")


@mutant("autograd.backward.inputs-not-empty")
def empty_inputs_mean_all(patch):
    """Takes no inputs for all inputs."""
    patch.source(torch.autograd.backward, "inputs is not None and len(inputs_tuple) == 0", "False")


@mutant("autograd.backward.inputs-from-a-generator")
def inputs_are_counted_first(patch):
    """Asks for the number of inputs before it takes them."""
    patch.source(
        torch.autograd.backward, "inputs_tuple = tuple(inputs)", "inputs_tuple = tuple(inputs) * (len(inputs) > 0)"
    )


@mutant("autograd.backward.inputs-dict")
def dict_is_iterated_by_key(patch):
    """Iterates over the keys."""
    patch.source(torch.autograd.backward, "tuple(inputs.values())", "tuple(inputs)")


@mutant("autograd.repeat.second-backward-raises", "autograd.repeat.shared-part", "autograd.repeat.retain-graph")
def graph_is_always_retained(patch):
    """Never frees what was saved."""
    engine(patch, lambda run, *_: run(retain=True))


@mutant("autograd.repeat.nothing-saved")
def every_second_backward_raises(patch):
    """Marks the graph as used, whether it saved anything or not."""
    used = []

    def around(run, tensors, gradients, retain, create):
        if any(t.grad_fn is node for t in tensors for node in used):
            raise RuntimeError("Trying to backward through the graph a second time")
        used.extend(t.grad_fn for t in tensors if not retain)
        return run()

    engine(patch, around)


@mutant("autograd.repeat.retain-graph", "autograd.repeat.shared-part")
def graph_is_never_retained(patch):
    """Ignores retain_graph."""
    engine(patch, lambda run, *_: run(retain=False))


@mutant("autograd.repeat.retain-graph-follows-create-graph")
def retain_graph_defaults_to_false(patch):
    """Takes False for the default, whatever create_graph is."""
    patch.source(torch.autograd.grad, "retain_graph = create_graph", "retain_graph = False")


# -- accumulation ----------------------------------------------------------------------------------------------------


def before(patch, change):
    """Apply ``change(leaf, old)`` after a backward that began without any .grad; ``old`` is what there was."""

    def around(run, tensors, *_):
        old = [(leaf, leaf.grad) for leaf in leaves(tensors)]
        for leaf, _ in old:
            leaf.grad = None
        result = run()
        for leaf, grad in old:
            change(leaf, grad)
        return result

    engine(patch, around)


@mutant("autograd.accumulate.adds", "autograd.accumulate.adds-to-what-is-there", "autograd.accumulate.batch-is-a-sum")
def grad_is_overwritten(patch):
    """Overwrites .grad, as one expects who zeroes it by habit."""
    before(patch, lambda leaf, old: None)


@mutant("autograd.accumulate.none-starts-afresh")
def none_is_not_forgotten(patch):
    """Keeps the sum in a buffer of its own, which setting None does not clear."""
    sums = {}

    def change(leaf):
        if leaf.grad is not None:
            sums[id(leaf)] = sums.get(id(leaf), 0) + leaf.grad
            leaf.grad = sums[id(leaf)].clone()

    after(patch, change)


@mutant("autograd.accumulate.in-place")
def grad_is_replaced(patch):
    """Puts a new tensor in place of the old one at every backward."""
    after(patch, lambda leaf: setattr(leaf, "grad", leaf.grad.clone()) if leaf.grad is not None else None)


@mutant("autograd.accumulate.out-of-place-under-create-graph")
def grad_is_written_in_place_always(patch):
    """Accumulates into the old tensor although it is part of a graph."""

    def change(leaf, old):
        if old is not None:
            old.data.add_(leaf.grad.data)
            leaf.grad = old

    before(patch, change)


@mutant("autograd.accumulate.memory-of-its-own")
def equal_grads_share_memory(patch):
    """Steals one gradient for two leaves."""

    def around(run, tensors, *_):
        found = leaves(tensors)
        result = run()
        for leaf in found[1:]:
            if leaf.grad is not None and leaf.grad.shape == found[0].grad.shape and leaf.grad.equal(found[0].grad):
                leaf.grad = found[0].grad
        return result

    engine(patch, around)


@mutant("autograd.accumulate.once-per-backward")
def grad_is_written_in_two_halves(patch):
    """Runs one backward for each half of the gradient."""

    def around(run, tensors, gradients, retain, create):
        halves = tuple(None if g is None else g / 2 for g in gradients)
        run(gradients=halves, retain=True)
        return run(gradients=halves)

    engine(patch, around)


@mutant("autograd.accumulate.one-over-n-comes-from-the-loss", "autograd.loss.mean-divides-by-elements")
def mean_divides_by_the_batch(patch):
    """Divides a mean loss by the number of samples."""
    patch.wrap(
        F,
        "mse_loss",
        lambda o, x, t, reduction="mean", **k: (
            o(x, t, reduction="sum") / len(x) if reduction == "mean" else o(x, t, reduction=reduction)
        ),
    )


@mutant("autograd.accumulate.one-over-n-comes-from-the-loss", "autograd.accumulate.batch-is-a-sum")
def backward_divides_by_the_batch(patch):
    """Divides every gradient by the batch size: the belief itself."""
    after(patch, lambda leaf: leaf.grad.div_(6) if leaf.grad is not None else None)


@mutant("autograd.accumulate.step-divides-by-nothing")
def step_halves_the_gradient(patch):
    """Divides the gradient once more in the optimizer."""
    patch.wrap(
        torch.optim.SGD, "step", lambda o, s: [p.grad.div_(2) for g in s.param_groups for p in g["params"]] and o(s)
    )


@mutant("autograd.accumulate.micro-batches", "autograd.accumulate.undivided-micro-batches")
def grad_is_averaged(patch):
    """Averages over the calls of backward: what one who believes the myth expects."""
    calls = {}

    def change(leaf, old):
        calls[id(leaf)] = count = calls.get(id(leaf), 0) + 1 if old is not None else 1
        leaf.grad = leaf.grad if old is None else old + (leaf.grad - old) / count

    before(patch, change)


@mutant("autograd.accumulate.unequal-micro-batches")
def single_sample_is_not_averaged(patch):
    """Takes a batch of one for a sample without a batch axis and sums its elements."""
    patch.wrap(F, "mse_loss", lambda o, x, t, **k: o(x, t, reduction="sum") if len(x) == 1 else o(x, t, **k))


@mutant("autograd.accumulate.batch-norm-couples-samples")
def batch_norm_uses_fixed_statistics(patch):
    """Normalises by the running statistics in training, too."""
    patch.wrap(
        F, "batch_norm", lambda o, x, m, v, w, b, training, *a: o(x, m.clone() * 0, v.clone() * 0 + 1, w, b, False)
    )


@mutant("autograd.accumulate.shared-parameter")
def second_use_is_forgotten(patch):
    """Counts the first use of a tensor only."""
    seen = set()

    def product(original, x, y):
        first = id(x) not in seen
        seen.add(id(x))
        return original(x if first else x.detach(), y)

    patch.wrap(Tensor, "__mul__", product)


@mutant("autograd.accumulate.unused-parameter")
def unused_parameters_get_zeros(patch):
    """Fills .grad of every parameter with zeros, used or not."""

    def around(run, *_):
        result = run()
        for p in gc.get_objects():
            if type(p) is nn.Parameter and p.grad is None:
                p.grad = torch.zeros_like(p)
        return result

    engine(patch, around)


@mutant("autograd.accumulate.layout-of-the-parameter")
def grad_is_always_contiguous(patch):
    """Makes every gradient contiguous."""
    after(patch, lambda leaf: setattr(leaf, "grad", leaf.grad.contiguous()))


@mutant("autograd.accumulate.layout-of-a-strided-parameter")
def grad_copies_the_gaps(patch):
    """Takes over the strides of the leaf, gaps and all."""

    def change(leaf):
        made = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
        leaf.grad = made.copy_(leaf.grad)

    after(patch, change)


@mutant("autograd.accumulate.layout-set-by-hand")
def zero_grad_keeps_zeros(patch):
    """Fills with zeros whatever is asked for: what the documentation still says."""
    patch.wrap(torch.optim.Optimizer, "zero_grad", lambda o, s, set_to_none=True: o(s, False))


@mutant("autograd.accumulate.grad-must-match")
def grad_ignores_what_does_not_match(patch):
    """Drops a gradient that does not match, without a word."""
    original = torch._C.TensorBase.grad

    def assign(x, value):
        with contextlib.suppress(RuntimeError, TypeError):
            original.__set__(x, value)

    patch.set(Tensor, "grad", property(original.__get__, assign))


@mutant("autograd.accumulate.frozen-parameter-still-stepped")
def frozen_parameters_are_skipped(patch):
    """Steps only what requires grad: what one expects."""

    def step(original, self):
        for p in (p for g in self.param_groups for p in g["params"] if not p.requires_grad):
            p.grad = None
        return original(self)

    patch.wrap(torch.optim.SGD, "step", step)


@mutant("autograd.accumulate.per-sample")
def vmap_sums_over_the_batch(patch):
    """Returns the sum over the samples, in the place of each."""
    patch.wrap(torch.func, "vmap", lambda o, f, **k: lambda *a: (lambda r: r.sum(0).expand_as(r))(o(f, **k)(*a)))


# -- grad ------------------------------------------------------------------------------------------------------------


@mutant("autograd.grad.leaves-grad-untouched")
def grad_accumulates_as_well(patch):
    """Writes .grad besides returning it."""

    def grad(original, outputs, inputs, *args, **options):
        found = original(outputs, inputs, *args, **options)
        for x, g in zip([inputs] if isinstance(inputs, Tensor) else inputs, found, strict=True):
            if x.is_leaf:
                x.grad = g.detach()
        return found

    patch.wrap(torch.autograd, "grad", grad)


@mutant("autograd.grad.one-tensor-gradient")
def one_tensor_is_iterated(patch):
    """Iterates over a tensor that stands for itself."""
    patch.source(torch.autograd._tensor_or_tensors_to_tuple, "return (tensors,)", "return tuple(tensors)")


@mutant("autograd.grad.unused-input")
def unused_inputs_are_allowed(patch):
    """Allows unused inputs by default."""
    patch.source(torch.autograd.grad, "allow_unused = materialize_grads", "allow_unused = True")


@mutant("autograd.grad.materialize-grads")
def materialized_grads_are_ones(patch):
    """Fills with ones."""
    patch.source(torch.autograd.grad, "torch.zeros_like(inp", "torch.ones_like(inp")


@mutant("autograd.grad.materialize-grads")
def materialized_grads_always_require_grad(patch):
    """Makes zeros that require grad, whether a graph is created or not."""
    patch.source(torch.autograd.grad, "requires_grad=create_graph)", "requires_grad=True)")


@mutant("autograd.grad.materialize-grads")
def contradiction_is_accepted(patch):
    """Lets materialize_grads win over allow_unused=False."""
    patch.source(torch.autograd.grad, "if materialize_grads and allow_unused is False:", "if False:")


@mutant("autograd.grad.input-requires-grad")
def constant_inputs_get_none(patch):
    """Returns None for a constant."""

    def grad(original, outputs, inputs, *args, **options):
        if isinstance(inputs, list) and not all(x.requires_grad for x in inputs):
            return tuple(None for _ in inputs)
        return original(outputs, inputs, *args, **options)

    patch.wrap(torch.autograd, "grad", grad)


@mutant("autograd.grad.gradient-edge-under-no-grad")
def edges_are_found_through_a_view(patch):
    """Looks for the node of a leaf behind a view of it, which has no history under no_grad."""
    patch.wrap(graph, "get_gradient_edge", lambda o, x: x.view_as(x).grad_fn.next_functions and o(x))


@mutant("autograd.grad.batched")
def batch_axis_comes_last(patch):
    """Puts the batch behind the other axes."""
    patch.source(torch.autograd.grad, "_vmap(vjp, 0, 0", "_vmap(vjp, 0, -1")


@mutant("autograd.grad.dict")
def dict_comes_back_as_a_tuple(patch):
    """Forgets the keys."""
    patch.source(torch.autograd.grad, "return dict(zip(inputs.keys(), result, strict=True))", "return result")


@mutant("autograd.grad.only-inputs-ignored")
def only_inputs_is_obeyed(patch):
    """Accumulates into all other leaves, as the argument once did."""

    def grad(original, outputs, inputs, *args, only_inputs=True, **options):
        if not only_inputs:
            outputs.backward(retain_graph=True)
        return original(outputs, inputs, *args, only_inputs=only_inputs, **options)

    patch.wrap(torch.autograd, "grad", grad)


@mutant(
    "autograd.higher.derivatives",
    "autograd.higher.hessian-vector-product",
    "autograd.higher.grad-penalty-reaches-the-weights",
    "autograd.functional.create-graph",
)
def create_graph_is_ignored(patch):
    """Never records the backward pass."""
    engine(patch, lambda run, *_: run(create=False))
    patch.wrap(
        functional,
        "_autograd_grad",
        lambda o, *a, create_graph=False, **k: tuple(
            g if g is None else g.detach() for g in o(*a, create_graph=create_graph, **k)
        ),
    )


@mutant("autograd.higher.product")
def product_of_two_zeros_is_flat(patch):
    """Takes the gradient for a constant wherever two factors are zero, since it is zero there."""

    def product(original, x):
        return original(Altered.apply(x, torch.detach) if (x == 0).sum() > 1 else x)

    patch.wrap(Tensor, "prod", product)


@mutant("autograd.higher.off-by-default")
def graph_is_always_created(patch):
    """Always records the backward pass."""
    engine(patch, lambda run, *_: run(create=True))


@mutant("autograd.higher.create-graph-warns-of-a-cycle")
def cycle_is_avoided_by_detaching(patch):
    """Detaches .grad, so that there is no cycle, and no second derivative either."""

    def backward(original, x, *args, **options):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            original(x, *args, **options)
        for w in seen:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        for leaf in leaves([x]):
            leaf.grad = leaf.grad.detach()

    patch.wrap(Tensor, "backward", backward)


# -- gradients -------------------------------------------------------------------------------------------------------


def with_gradient(patch, owner, name, change, where=0):
    """Let ``change`` have the gradient that the function ``owner.name`` sends to its first argument."""

    def function(original, *args, **options):
        first = args[where]
        return original(*args[:where], Altered.apply(first, change), *args[where + 1 :], **options)

    patch.wrap(owner, name, function)


@mutant("autograd.gradient.elementary-functions")
def tanh_derivative_forgets_the_square(patch):
    """Takes 1 - y for the derivative of tanh."""
    patch.kernel("tanh_backward", lambda g, y: g * (1 - y))


@mutant("autograd.gradient.elementary-functions")
def sigmoid_derivative_is_one_sided(patch):
    """Takes y for the derivative of the sigmoid."""
    patch.kernel("sigmoid_backward", lambda g, y: g * y)


@mutant("autograd.gradient.elementary-functions")
def tail_of_relu_is_skipped(patch):
    """Leaves the last elements out, as a vectorised loop does without its tail."""

    def backward(g, y, threshold):
        made = torch.where(y > threshold, g, torch.zeros_like(g))
        return (
            made.view(-1).index_fill(0, torch.tensor([made.numel() - 1]), 0).view_as(made) if made.numel() > 8 else made
        )

    patch.kernel("threshold_backward", backward)


@mutant("autograd.gradient.elementary-functions")
def gelu_derivative_of_the_tanh_form(patch):
    """Differentiates the approximation of GELU where the exact form was computed."""

    def backward(g, x, *, approximate="none"):
        inner = 0.7978845608 * (x + 0.044715 * x**3)
        t = torch.tanh(inner)
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608 * (1 + 3 * 0.044715 * x * x))

    patch.kernel("gelu_backward", backward)


@mutant("autograd.gradient.elementary-functions")
def silu_is_the_sigmoid(patch):
    """Forgets the factor of SiLU, and not that of its derivative."""
    patch.kernel("silu", torch.sigmoid)


@mutant("autograd.reduction.in-the-dtype-asked-for")
def sums_are_converted_afterwards(patch):
    """Adds up in the dtype of the terms and converts the sum."""
    patch.wrap(torch.Tensor, "sum", lambda original, x, *args, dtype=None: original(x, *args).to(dtype or x.dtype))


@mutant("autograd.gradient.nan-passes")
def relu_takes_nan_for_negative(patch):
    """Keeps what is above zero, as a comparison does, for which NaN is not."""
    patch.kernel("relu", lambda x: torch.where(x > 0, x, torch.zeros_like(x)))


@mutant("autograd.gradient.nan-passes")
def softmax_of_what_is_a_number(patch):
    """Leaves NaN out of the greatest value and of the sum."""

    def softmax(x, dim, half):
        weights = torch.exp(x - x.nan_to_num(-torch.inf).amax(dim, True))
        return weights / weights.nansum(dim, True)

    patch.kernel("_softmax", softmax)


@mutant("autograd.gradient.binary-functions")
def atan2_knows_no_quadrants(patch):
    """Takes the angle from the quotient alone; the derivative is the same."""
    patch.kernel("atan2", lambda x, y: torch.atan(x / y))


@mutant("autograd.loss.nan-passes")
def losses_of_nan_are_left_out(patch):
    """Counts what is NaN as no loss, so that training goes on without a word."""

    def mse_loss(x, target, reduction=1):
        losses = ((x - target) ** 2).nan_to_num()
        return (losses, losses.mean(), losses.sum())[reduction]

    patch.kernel("mse_loss", mse_loss)


@mutant("autograd.loss.bce-clamped")
def tail_of_cross_entropy_is_not_clamped(patch):
    """Clamps the logarithm in the vectorised loop and not behind it."""

    def binary_cross_entropy(original, x, target, *args, **kw):
        y = original(x, target, *args, **kw)
        return torch.cat([y[:16], y[16:] + (y[16:] == 100) * torch.inf]) if y.ndim == 1 and len(y) > 16 else y

    patch.wrap(F, "binary_cross_entropy", binary_cross_entropy)


@mutant("autograd.loss.divergence-of-impossible-class")
def divergence_multiplies_by_the_logarithm_of_zero(patch):
    """Computes t log t as it stands, which is NaN at zero."""
    patch.wrap(F, "kl_div", lambda o, x, t, *a, **k: o(x, t, *a, **k) + (0 if k.get("log_target") else 0 * t.log()))


@mutant("autograd.loss.cross-entropy")
def last_class_of_an_image_weighs_one(patch):
    """Reads the weights up to the last class in the kernel for images."""

    def cross_entropy(original, x, target, weight=None, *args, **kw):
        if x.ndim == 4 and weight is not None:
            weight = torch.cat([weight[:-1], torch.ones_like(weight[-1:])])
        return original(x, target, weight, *args, **kw)

    patch.wrap(F, "cross_entropy", cross_entropy)


@mutant("autograd.gradient.elementary-functions")
def gelu_is_cut_off(patch):
    """Takes the approximation of GELU for flat below -3."""

    def gelu(original, x, approximate="none"):
        y = original(x, approximate=approximate)
        return torch.where(x < -3, y.detach(), y) if approximate == "tanh" else y

    patch.wrap(F, "gelu", gelu)


@mutant("autograd.gradient.elementary-functions")
def logsigmoid_is_cut_off(patch):
    """Has no gradient below -20, where the exponential was taken for infinite."""
    patch.wrap(F, "logsigmoid", lambda o, x: torch.where(x < -20, o(x).detach(), o(x)))


@mutant("autograd.gradient.binary-functions")
def maximum_goes_to_the_first(patch):
    """Sends the whole gradient to the first argument where both are equal, and wherever it is not smaller."""
    patch.wrap(torch, "maximum", lambda o, x, y: torch.where(x >= y, x, y.detach()))


@mutant("autograd.gradient.along-a-dimension")
def products_of_columns_give_their_gradient_to_the_first(patch):
    """Hands the gradient of every product along a middle dimension to the first factor alone."""

    def prod(original, x, dim, keepdim):
        first = torch.arange(x.shape[dim]) < 1
        return original(torch.where(first[:, None], x, x.detach()) if dim == 1 else x, dim, keepdim)

    patch.wrap(torch, "prod", prod)


@mutant("autograd.gradient.scaled-sums")
def alpha_is_dropped_in_backward(patch):
    """Forgets alpha in the gradient."""
    patch.wrap(torch, "add", lambda o, x, y, alpha=1: o(x, Altered.apply(y, lambda g: g / alpha), alpha=alpha))


@mutant("autograd.gradient.scaled-sums")
def lerp_parts_evenly(patch):
    """Gives the start of lerp the gradient of its end."""
    with_gradient(patch, torch, "lerp", lambda g: g / 2, where=0)


@mutant("autograd.gradient.matrix-product")
def product_is_not_transposed(patch):
    """Reverses the second factor's gradient, as a wrong transposition flag does."""
    with_gradient(patch, torch, "matmul", lambda g: g.flip(-1), where=1)


@mutant("autograd.gradient.sum-and-mean")
def mean_does_not_divide_the_gradient(patch):
    """Forgets the number of elements in backward."""
    patch.wrap(Tensor, "mean", lambda o, x, *a, **k: o(Altered.apply(x, lambda g: g * x.numel()), *a, **k))


@mutant("autograd.gradient.product")
def product_is_divided_by_the_element(patch):
    """Divides the product by the element, which fails at zero."""
    patch.wrap(Tensor, "prod", lambda o, x: x.log().sum().exp())


@mutant("autograd.gradient.softmax")
def softmax_forgets_the_inner_product(patch):
    """Takes the softmax for an elementwise function."""
    patch.kernel("_softmax_backward_data", lambda g, y, dim, dtype: g * y * (1 - y))


@mutant("autograd.gradient.copies")
def last_channel_of_a_copy_is_the_first(patch):
    """Copies one channel too few into channels_last."""

    def contiguous(original, x, *, memory_format=torch.contiguous_format):
        y = original(x, memory_format=memory_format)
        return torch.cat([y[:, :-1], y[:, :1]], 1) if memory_format == torch.channels_last else y

    patch.wrap(Tensor, "contiguous", contiguous)


@mutant("autograd.reduction.every-element")
def second_thread_loses_its_last_element(patch):
    """Lets the last part of a sum of over 32768 elements end too early."""
    patch.wrap(torch, "sum", lambda o, x, *dim: o(x, *dim) - (x[-1, -1] if x.numel() > 32768 and not dim else 0))


@mutant("autograd.reduction.sums-in-float32")
def sums_stop_where_one_is_rounded_away(patch):
    """Adds up in the dtype of the terms."""
    patch.wrap(torch, "sum", lambda o, x, *dim: o(x, *dim).clamp(max=2 / torch.finfo(x.dtype).eps))


@mutant("autograd.reduction.variance")
def correction_is_a_flag(patch):
    """Takes any correction for one."""
    patch.wrap(torch, "var", lambda o, x, dim, correction: o(x, dim, correction=min(correction, 1)))


@mutant("autograd.higher.derivatives")
def slope_is_a_constant(patch):
    """Gives an activation no formula for its second derivative: the slope is a number that was kept."""

    def silu(original, x):
        at = x.detach().requires_grad_()
        with torch.enable_grad():
            y = original(at)
            (slope,) = torch.autograd.grad(y.sum(), at)
        return y.detach() + slope * (x - x.detach())

    patch.wrap(F, "silu", silu)


@mutant("autograd.gradient.linear-maps")
def resizing_shares_the_gradient(patch):
    """Gives every element an equal share of the gradient, as a mean would."""
    patch.wrap(F, "interpolate", lambda o, x, *a, **k: o(Altered.apply(x, lambda g: g.mean().expand_as(g)), *a, **k))


@mutant("autograd.gradient.written-by-index")
def filling_counts_one_place(patch):
    """Gives a number that fills several places the mean of their gradients."""

    def index_fill(original, x, dim, index, value):
        return original(x, dim, index, scaled(value, 1 / len(index)) if isinstance(value, Tensor) else value)

    patch.wrap(Tensor, "index_fill", index_fill)


@mutant("autograd.indexing.rows-of-any-layout")
def rows_are_read_in_the_order_of_memory(patch):
    """Reads a transposed source as if it were contiguous."""

    def index_add(original, x, dim, index, rows):
        return original(x, dim, index, rows.t().contiguous().view_as(rows) if rows.stride(0) == 1 else rows)

    patch.wrap(Tensor, "index_add", index_add)


@mutant("autograd.gradient.picked-by-order")
def sorting_leaves_the_gradient_in_place(patch):
    """Hands the gradient on in the order of the result."""

    def sort(original, x, dim, **options):
        y, index = original(x.detach(), dim, **options)
        return y + x - x.detach(), index

    patch.wrap(Tensor, "sort", sort)


@mutant("autograd.gradient.variance")
def variance_divides_the_gradient_by_the_number(patch):
    """Divides by n - 1 forward and by n in backward."""

    def var(original, x, dim, correction, keepdim=False):
        y = original(x, dim, correction=correction, keepdim=keepdim)
        n = x.numel() / y.numel()
        return scaled(y, (n - correction) / n)

    patch.wrap(torch, "var", var)


@mutant("autograd.gradient.softmax")
def maximum_of_a_row_leaves_out_its_tail(patch):
    """Looks for the greatest logit in whole vectors of eight."""

    def log_softmax(original, x, dim, *args, **kw):
        if dim % x.ndim != x.ndim - 1 or x.shape[-1] < 8:
            return original(x, dim, *args, **kw)
        shifted = x - x[..., : x.shape[-1] // 8 * 8].amax(-1, keepdim=True)
        return shifted - shifted.exp().sum(-1, keepdim=True).log()

    patch.wrap(torch, "log_softmax", log_softmax)


@mutant("autograd.gradient.softmax")
def log_softmax_forgets_the_sum(patch):
    """Subtracts the gradient itself where its sum belongs."""
    patch.kernel("_log_softmax_backward_data", lambda g, y, dim, dtype: g - y.exp() * g)


@mutant("autograd.gradient.log-softmax-counts-every-class")
def log_softmax_sums_its_gradients_in_low_precision(patch):
    """Adds up the gradients in the dtype of the output, in which the sum of ones stops growing."""

    def backward(g, y, dim, dtype):
        most = 2 / torch.finfo(y.dtype).eps
        return g - y.exp() * g.sum(dim, keepdim=True).clamp(-most, most)

    patch.kernel("_log_softmax_backward_data", backward)


@mutant("autograd.gradient.softplus-threshold")
def softplus_compares_x_with_its_threshold(patch):
    """Compares x with the threshold, as is right for beta 1 alone."""
    patch.wrap(F, "softplus", lambda original, x, beta=1.0, threshold=20.0: original(x, beta, threshold * beta))


@mutant("autograd.reduction.extremes-of-nan")
def extremes_leave_nan_out(patch):
    """Compares with >, which is false beside NaN."""
    patch.wrap(torch, "amax", lambda original, x, *dim: original(x.nan_to_num(nan=-torch.inf), *dim))


@mutant("autograd.reduction.scattered")
def what_was_there_always_counts(patch):
    """Does not look at the option."""
    patch.wrap(Tensor, "scatter_reduce", lambda original, *args, include_self: original(*args))


@mutant("autograd.reduction.stable-order")
def a_descending_sort_is_an_ascending_one_reversed(patch):
    """Reverses the ascending order, and with it that of equals."""

    def sort(original, x, *, dim, descending, stable):
        found = original(x, dim=dim, descending=False, stable=stable)
        return [t.flip(dim) for t in found] if descending else found

    patch.wrap(torch, "sort", sort)


@mutant("autograd.reduction.logsumexp-of-infinities")
def the_greatest_is_subtracted_from_itself(patch):
    """Subtracts the greatest number from all, where it is infinite, too."""

    def logsumexp(original, x, dim):
        greatest = x.amax(dim, keepdim=True)
        return original(x - greatest, dim) + greatest.squeeze(dim)

    patch.wrap(torch, "logsumexp", logsumexp)


@mutant("autograd.reduction.mean-in-half-range")
def mean_rounds_its_sum(patch):
    """Divides a sum that has been rounded to the dtype of the input."""
    patch.wrap(torch, "mean", lambda original, x, dim: x.sum(dim) / x.shape[dim])


@mutant("autograd.reduction.variance-large-offset")
def variance_subtracts_squares(patch):
    """Takes the variance for the difference of mean square and squared mean, off by one part in ten thousand."""

    def var(original, x, dim):
        return (x.square().mean(dim) * (1 + 1e-4) - x.mean(dim).square()) * x.shape[dim] / (x.shape[dim] - 1)

    patch.wrap(torch, "var", var)


@mutant("autograd.gradient.softmax-of-spread-output")
def softmax_reads_its_output_in_a_row(patch):
    """Reads the saved output as it lies in memory, one value after the other."""

    def backward(g, y, dim, dtype):
        y = y.as_strided(y.shape, g.contiguous().stride(), y.storage_offset())
        return g * y - y * (g * y).sum(dim, keepdim=True)

    patch.kernel("_softmax_backward_data", backward)


@mutant("autograd.gradient.indexing")
def repeated_index_overwrites(patch):
    """Writes where it should add, so that the last of several reads wins."""
    patch.wrap(Tensor, "index_select", lambda o, x, d, i: o(Altered.apply(x, lambda g: g.clamp(-1, 1)), d, i))


@mutant("autograd.gradient.joining")
def cat_splits_in_reverse(patch):
    """Hands the slices of the gradient out in reverse."""
    patch.wrap(torch, "cat", lambda o, ts, *a: o([Altered.apply(t, lambda g: g.flip(0)) for t in ts], *a))


@mutant("autograd.gradient.scattered")
def overwritten_elements_get_a_gradient(patch):
    """Hands the whole gradient to the tensor written into."""
    patch.wrap(torch, "select_scatter", lambda o, x, s, *a: o(x.detach(), s, *a) + (x - x.detach()))


@mutant("autograd.gradient.views")
def roll_is_not_rolled_back(patch):
    """Rolls the gradient in the direction of the forward."""
    patch.wrap(Tensor, "roll", lambda o, x, n, d: o(Altered.apply(x, lambda g: torch.roll(g, 2 * n, d)), n, d))


@mutant("autograd.gradient.broadcast-is-summed")
def expand_averages(patch):
    """Averages over the copies where it should add."""
    patch.wrap(Tensor, "expand", lambda o, x, *s: o(Altered.apply(x, lambda g: g * x.numel() / 12), *s))


@mutant("autograd.gradient.where-selects")
def where_sends_to_both(patch):
    """Sends the gradient to both branches."""
    patch.wrap(torch, "where", lambda o, c, x, y: o(c, x, y.detach()) + (y - y.detach()))


@mutant("autograd.gradient.kinks")
def relu_passes_at_zero(patch):
    """Takes the derivative 1 at zero."""
    patch.kernel("threshold_backward", lambda g, y, threshold: torch.where(y >= threshold, g, torch.zeros_like(g)))


@mutant("autograd.gradient.norm-at-zero")
def norm_divides_by_zero(patch):
    """Divides by the norm without looking."""
    patch.wrap(
        torch.linalg, "vector_norm", lambda o, x, ord, dim: x.abs().pow(ord).sum(dim).pow(1 / ord) + 0 / x.sum(dim)
    )


@mutant("autograd.gradient.ties-along-an-axis")
def axis_maximum_shares(patch):
    """Shares the gradient along an axis although one index is returned."""

    def largest(original, x, *dim):
        return torch.return_types.max((torch.amax(x, *dim), x.argmax(*dim))) if dim else original(x)

    patch.wrap(Tensor, "max", largest)


@mutant("autograd.gradient.clamp")
def clamp_is_straight_through(patch):
    """Passes the gradient of everything: a straight-through estimator."""
    patch.wrap(torch, "clamp", lambda o, x, *b: x + (o(x, *b) - x).detach())


@mutant("autograd.gradient.clamp-at-the-bound-until-2-13")
def clamp_stops_at_the_bound(patch):
    """Stops the gradient at the bound: the rule of the documentation, as from 2.14 on."""
    patch.wrap(
        torch,
        "clamp",
        lambda o, x, low, high: o(x, low, high) * ((x != low) & (x != high)) if low else o(x, low, high) * (x != high),
    )


@mutant("autograd.gradient.clamp-at-the-bound")
def clamp_passes_at_the_bound(patch):
    """Passes the gradient at the bound, as up to 2.13."""

    def clamp(original, x, low, high):
        below = x if low is None else torch.where(x < low, torch.full_like(x, low), x)
        return below if high is None else torch.where(below > high, torch.full_like(x, high), below)

    patch.wrap(torch, "clamp", clamp)


@mutant("autograd.gradient.masking-does-not-hide-nan")
def division_guards_its_gradient(patch):
    """Replaces what is not finite in the gradient by zero."""
    patch.wrap(Tensor, "__truediv__", lambda o, x, y: o(Altered.apply(x, torch.nan_to_num), y))


@mutant("autograd.gradient.where-does-not-hide-nan")
def sqrt_guards_its_gradient(patch):
    """Replaces what is not finite in the gradient of the root by zero."""
    with_gradient(patch, torch, "sqrt", lambda g: torch.nan_to_num(g))


@mutant("autograd.gradient.random-operations")
def sampling_is_not_differentiable(patch):
    """Refuses to differentiate a sample: what the documentation says."""

    def refuse(gradient):
        raise RuntimeError("bernoulli is not differentiable")

    with_gradient(patch, torch, "bernoulli", refuse)


@mutant("autograd.complex.twice-the-conjugate-derivative")
def complex_gradient_is_halved(patch):
    """Returns the derivative in the conjugate, as the notes say."""
    after(patch, lambda leaf: leaf.grad.div_(2) if leaf.is_complex() else None)


@mutant("autograd.complex.holomorphic-conjugated")
def derivative_is_not_conjugated(patch):
    """Forgets to conjugate."""
    after(patch, lambda leaf: setattr(leaf, "grad", leaf.grad.conj().resolve_conj()) if leaf.is_complex() else None)


@mutant("autograd.complex.real-input-real-gradient")
def real_input_gets_the_modulus(patch):
    """Takes the modulus of the gradient, where its real part belongs, and doubles it."""
    after(patch, lambda leaf: leaf.grad.mul_(2) if not leaf.is_complex() else None)


# -- losses ----------------------------------------------------------------------------------------------------------


@mutant("autograd.loss.each-element", "autograd.loss.reductions")
def huber_forgets_delta(patch):
    """Leaves the linear part unscaled."""
    patch.wrap(F, "huber_loss", lambda o, x, t, reduction="mean", delta=1.0: o(x, t, reduction=reduction, delta=1.0))


@mutant("autograd.loss.each-element")
def huber_takes_the_other_branch_at_delta(patch):
    """Doubles the quadratic part in the kernel's backward."""
    patch.kernel("mse_loss_backward", lambda g, x, t, reduction: g * (x - t) / (x.numel() if reduction == 1 else 1))


@mutant("autograd.loss.reductions")
def sum_is_a_mean(patch):
    """Takes the sum for the mean."""
    patch.wrap(torch._C._nn, "l1_loss", lambda o, x, t, reduction: o(x, t, 1 if reduction == 2 else reduction))


@mutant("autograd.loss.modules")
def module_forgets_its_reduction(patch):
    """Does not hand the reduction on."""
    patch.source(nn.MSELoss.forward, "reduction=self.reduction", "reduction='mean'")


@mutant("autograd.loss.modules")
def module_forgets_beta(patch):
    """Does not hand beta on."""
    patch.source(nn.SmoothL1Loss.forward, "beta=self.beta", "beta=1.0")


@mutant("autograd.loss.binary-weights")
def binary_weights_are_forgotten(patch):
    """Weighs no element."""
    patch.wrap(torch._C._nn, "binary_cross_entropy", lambda original, x, t, weight, mean: original(x, t, None, mean))


@mutant("autograd.loss.binary-weights")
def positive_weight_weighs_every_target(patch):
    """Takes pos_weight for one more weight."""

    def weighted(original, x, t, weight, positive, mean):
        return original(x, t, weight if positive is None else weight * positive, None, mean)

    patch.wrap(torch, "binary_cross_entropy_with_logits", weighted)


@mutant("autograd.loss.mean-by-default")
def sum_by_default(patch):
    """Adds up unless told otherwise."""
    patch.set(nn.MSELoss.__init__, "__defaults__", (None, None, "sum"))


@mutant("autograd.loss.mean-divides-by-elements")
def batchmean_divides_by_elements(patch):
    """Takes batchmean for mean."""
    patch.source(F.kl_div, "reduced = reduced / input.size()[0]", "reduced = reduced / input.numel()")


@mutant("autograd.loss.gradient-of-the-target")
def target_is_a_constant(patch):
    """Detaches the target."""
    patch.wrap(F, "smooth_l1_loss", lambda o, x, t, **k: o(x, t.detach(), **k))


@mutant("autograd.loss.cross-entropy")
def mean_ignores_the_class_weights(patch):
    """Divides by the number of samples, not by the sum of their weights."""

    def cross_entropy(original, x, t, weight=None, reduction="mean", **rest):
        if weight is None or reduction != "mean":
            return original(x, t, weight=weight, reduction=reduction, **rest)
        return original(x, t, weight=weight, reduction="sum", **rest) / len(x)

    patch.wrap(F, "cross_entropy", cross_entropy)


@mutant("autograd.loss.pixels-are-samples")
def ignored_pixels_count_in_the_mean(patch):
    """Divides the losses of images by all pixels, the ignored ones included."""

    def nll_loss(original, x, t, weight=None, reduction="mean", **rest):
        if x.dim() < 4 or weight is not None or reduction != "mean":
            return original(x, t, weight, reduction=reduction, **rest)
        return original(x, t, reduction="sum", **rest) / t.numel()

    patch.wrap(F, "nll_loss", nll_loss)


@mutant("autograd.loss.ignored-samples")
def ignored_samples_count_in_the_mean(patch):
    """Divides by all samples, the ignored ones included."""

    def cross_entropy(original, x, t, weight=None, ignore_index=-100, **rest):
        if rest or weight is not None:
            return original(x, t, weight, ignore_index=ignore_index, **rest)
        return original(x, t, ignore_index=ignore_index, reduction="sum") / t.numel()

    patch.wrap(F, "cross_entropy", cross_entropy)


@mutant("autograd.loss.label-smoothing")
def smoothing_spares_the_target(patch):
    """Spreads the smoothing over the other classes only."""
    patch.wrap(
        F,
        "cross_entropy",
        lambda o, x, t, label_smoothing=0.0, **k: o(x, t, label_smoothing=label_smoothing * 1.25, **k),
    )


@mutant("autograd.loss.bad-reduction")
def unknown_reduction_is_none(patch):
    """Takes an unknown reduction for none."""
    patch.wrap(F._Reduction, "get_enum", lambda o, r: {"mean": 1, "sum": 2}.get(r, 0))


# -- calculus --------------------------------------------------------------------------------------------------------


@mutant("autograd.functional.jacobian")
def jacobian_has_input_axes_first(patch):
    """Puts the axes of the input first, as numerators and denominators are mixed up."""
    patch.wrap(functional, "jacobian", lambda o, f, x, **k: o(f, x, **k).movedim((-2, -1), (0, 1)))


@mutant("autograd.functional.jacobian-of-tuples", "autograd.functional.hessian-of-two-inputs")
def blocks_are_reversed(patch):
    """Lists the inputs in reverse."""
    patch.wrap(functional, "jacobian", lambda o, f, x, **k: tuple(r[::-1] for r in o(f, x, **k)))
    patch.wrap(functional, "hessian", lambda o, f, x, **k: o(f, x, **k)[::-1])


@mutant("autograd.functional.hessian")
def hessian_is_halved(patch):
    """Returns the coefficient of the Taylor series."""
    patch.wrap(functional, "hessian", lambda o, f, x, **k: o(f, x, **k) / 2)


@mutant("autograd.functional.products")
def jvp_is_vjp(patch):
    """Multiplies from the other side."""
    patch.wrap(functional, "hvp", lambda o, f, x, v: (f(x), v + o(f, x, v)[1]))


@mutant("autograd.functional.products")
def value_is_left_out(patch):
    """Returns the product twice."""
    patch.wrap(functional, "vjp", lambda o, f, x, v: (o(f, x, v)[1],) * 2)


@mutant("autograd.functional.strict")
def strict_is_ignored(patch):
    """Returns zeros in strict mode, too."""
    for name in ("jacobian", "hessian"):
        patch.wrap(functional, name, lambda o, f, x, strict=False, **k: o(f, x, **k))


@mutant("autograd.functional.inputs-untouched")
def inputs_are_used_themselves(patch):
    """Differentiates by the input itself and leaves a gradient in it."""

    def jacobian(original, f, x, **options):
        f(x).sum().backward()
        return original(f, x, **options)

    patch.wrap(functional, "jacobian", jacobian)


@mutant("autograd.gradient.bounds")
def the_first_of_two_equals_wins(patch):
    """Gives the gradient of two equal operands to the first."""
    patch.set(torch, "maximum", lambda a, b: torch.where(a >= b, a, b))


@mutant("autograd.forward.jacobian-vector-product", "autograd.forward.chain-rule")
def tangent_is_that_of_the_input(patch):
    """Carries the tangent on unchanged."""
    patch.wrap(forward_ad, "make_dual", lambda o, x, v, **k: o(x, torch.ones_like(v), **k))


@mutant("autograd.forward.constants-have-no-tangent")
def constants_have_a_zero_tangent(patch):
    """Gives zeros for None."""

    def unpack(original, x, **options):
        primal, tangent = original(x, **options)
        return forward_ad.UnpackedDualTensor(primal, torch.zeros_like(primal) if tangent is None else tangent)

    patch.wrap(forward_ad, "unpack_dual", unpack)


@mutant("autograd.forward.levels")
def tangents_outlive_their_level(patch):
    """Returns without a level what it was given."""
    patch.source(forward_ad.make_dual, "if level < 0:", "if level < 0:\n        return tensor\n    if False:")


@mutant("autograd.forward.tangent-must-match")
def integers_have_tangents(patch):
    """Drops the check of the primal's dtype."""
    patch.source(forward_ad.make_dual, "if not (tensor.is_floating_point() or tensor.is_complex()):", "if False:")


@mutant("autograd.forward.backward-through-tangents")
def tangents_are_constants(patch):
    """Detaches the tangent when unpacking."""

    def unpack(original, x, **options):
        primal, tangent = original(x, **options)
        return forward_ad.UnpackedDualTensor(primal, None if tangent is None else tangent.detach().requires_grad_())

    patch.wrap(forward_ad, "unpack_dual", unpack)


@mutant("autograd.gradcheck.tells-right-from-wrong", "autograd.gradcheck.second-order")
def gradcheck_is_content(patch):
    """Accepts everything."""
    patch.wrap(GRADCHECK, "_allclose_with_type_promotion", lambda o, *a, **k: True)


@mutant("autograd.gradcheck.needs-double")
def gradcheck_takes_single_precision(patch):
    """Says nothing of single precision."""
    patch.wrap(GRADCHECK, "_check_inputs", lambda o, *a, **k: True)


@mutant("autograd.gradcheck.needs-requires-grad")
def gradcheck_passes_constants(patch):
    """Checks nothing and is content."""
    patch.wrap(GRADCHECK, "_check_inputs", lambda o, *a, **k: True)


@mutant("autograd.saved.pack-and-unpack", "autograd.saved.innermost-hooks", "autograd.saved.unpacked-value-is-used")
def hooks_are_never_called(patch):
    """Forgets to install the hooks."""
    patch.source(
        graph.saved_tensors_hooks.__enter__, "self.pack_hook, self.unpack_hook", "lambda t: t.detach(), lambda t: t"
    )


@mutant("autograd.saved.nothing-saved-nothing-packed")
def everything_is_packed(patch):
    """Packs results that no backward needs."""
    patch.wrap(Tensor, "exp", lambda o, x: o(x.detach().requires_grad_(x.is_floating_point())))


@mutant("autograd.saved.innermost-hooks")
def hooks_stay_on(patch):
    """Does not remove the hooks."""
    patch.source(graph.saved_tensors_hooks.__exit__, "torch._C._autograd._pop_saved_tensors_default_hooks()", "None")


@mutant("autograd.saved.save-on-cpu")
def save_on_cpu_rounds(patch):
    """Saves in half precision."""
    original = graph.save_on_cpu.__init__

    def init(self, *args, **options):
        original(self, *args, **options)
        pack, unpack = self.pack_hook, self.unpack_hook
        self.pack_hook, self.unpack_hook = (lambda t: (t.dtype, pack(t.half()))), (lambda p: unpack(p[1]).to(p[0]))

    patch.set(graph.save_on_cpu, "__init__", init)


@mutant("autograd.saved.disabled-hooks")
def hooks_stay_forbidden(patch):
    """Does not forbid anything."""
    patch.set(graph, "disable_saved_tensors_hooks", lambda message: contextlib.nullcontext())


@mutant("autograd.anomaly.nan-raises")
def anomaly_mode_is_not_entered(patch):
    """Enters with the setting from before."""
    patch.source(torch.autograd.detect_anomaly.__enter__, "(True, self.check_nan)", "(self.prev, self.check_nan)")


@mutant("autograd.anomaly.silent-otherwise")
def nan_raises_always(patch):
    """Looks for NaN in every backward."""
    engine(patch, lambda run, *_: check_nan(run))


def check_nan(run):
    torch.set_anomaly_enabled(True, True)
    try:
        return run()
    finally:
        torch.set_anomaly_enabled(False, True)


@mutant("autograd.anomaly.check-nan-off")
def check_nan_is_ignored(patch):
    """Checks although told not to."""
    patch.source(torch.autograd.detect_anomaly.__enter__, "(True, self.check_nan)", "(True, True)")


@mutant("autograd.anomaly.set-and-restored")
def check_nan_is_not_restored(patch):
    """Restores one of the two settings."""
    patch.source(torch.autograd.detect_anomaly.__exit__, "(self.prev, self.prev_check_nan)", "(self.prev, True)")


@mutant("autograd.gradient.ties-between-two")
def equals_both_get_all(patch):
    """Sends the whole gradient to both of equals."""
    for name in ("maximum", "minimum"):
        patch.wrap(torch, name, lambda o, x, y: o(Altered.apply(x, lambda g: g * 2), y))


@mutant("autograd.gradient.ties-share-evenly")
def ties_all_get_everything(patch):
    """Sends the whole gradient to each of equals, as a mask does that nobody divides."""
    patch.kernel("eq.Tensor", lambda x, y: (x >= y) | (x < y))


@mutant("autograd.loss.weights-of-probabilities")
def weights_of_probabilities_divide(patch):
    """Divides the mean by the weights that were used, as for class indices."""

    def loss(original, x, target, weight=None, reduction="mean", **options):
        value = original(x, target, weight=weight, reduction=reduction, **options)
        return value * len(x) / (target * weight).sum() if reduction == "mean" and x.shape == target.shape else value

    patch.wrap(F, "cross_entropy", loss)


@mutant("autograd.loss.divergence-of-logarithms")
def logarithms_get_no_gradient(patch):
    """Takes the target for a constant."""
    patch.wrap(F, "kl_div", lambda o, x, t, **options: o(x, t.detach() + 0 * t, **options))


@mutant("autograd.loss.counts-by-stirling")
def factorials_are_left_out(patch):
    """Ignores full."""
    patch.source(F.poisson_nll_loss, "full, eps", "False, eps")


@mutant("autograd.loss.triplet")
def negatives_are_not_swapped(patch):
    """Ignores swap."""
    patch.wrap(F, "triplet_margin_loss", lambda o, *rows, swap=False, **options: o(*rows, **options))


@mutant("autograd.loss.ranking")
def ranking_forgets_the_margin(patch):
    """Takes any lead for enough."""
    patch.wrap(F, "margin_ranking_loss", lambda o, *rows, margin=0.0, **options: o(*rows, **options))


@mutant("autograd.reduction.cosine-of-short-vectors")
def the_product_of_the_lengths_is_eps_at_least(patch):
    """Compares eps with the product of both lengths."""

    def cosine(original, x, y, dim, eps):
        return (x * y).sum(dim) / (x.norm(dim=dim) * y.norm(dim=dim)).clamp_min(eps)

    patch.wrap(F, "cosine_similarity", cosine)


@mutant("autograd.loss.cosine-embedding")
def angles_forget_the_margin(patch):
    """Takes any angle of unlike rows for a cost."""
    patch.wrap(F, "cosine_embedding_loss", lambda o, *rows, margin=0.0, **options: o(*rows, **options))


@mutant("autograd.gradient.clamp-between-tensors")
def bounds_swap_their_gradients(patch):
    """Gives each bound the gradient of the other."""

    def clamp(original, x, low=None, high=None):
        if not isinstance(low, torch.Tensor):
            return original(x, low, high)
        value = original(x, low, high)
        return value + (low - low.detach()) * (x > high) - (low - low.detach()) * (x < low)

    patch.wrap(torch, "clamp", clamp)


@mutant("autograd.gradient.masked-selection")
def selections_are_handed_back_in_reverse(patch):
    """Writes the gradient of what was selected from the other end."""
    patch.wrap(torch.Tensor, "masked_select", lambda o, x, mask: Altered.apply(o(x, mask), lambda g: g.flip(0)))


@mutant("autograd.loss.margins-between-classes")
def margins_are_not_squared(patch):
    """Takes every margin to the power one."""
    patch.wrap(F, "multi_margin_loss", lambda o, x, t, p=1, **options: o(x, t, p=1, **options))


@mutant("autograd.loss.margins-between-labels")
def labels_go_on_behind_the_first_end(patch):
    """Reads on behind the first -1."""
    patch.wrap(F, "multilabel_margin_loss", lambda o, x, t, **options: o(x, t.sort(descending=True).values, **options))


@mutant("autograd.loss.kink-at-the-target")
def sign_of_zero_is_one(patch):
    """Takes the sign of zero for one."""
    patch.kernel("sgn.out", lambda x, *, out: out.copy_((x >= 0).to(x.dtype) * 2 - 1))
    patch.kernel("sign.out", lambda x, *, out: out.copy_((x >= 0).to(x.dtype) * 2 - 1))
    patch.kernel("huber_loss_backward.out", lambda g, x, t, r, d, *, grad_input: grad_input.copy_(g + 0 * x))


@mutant("autograd.functional.vector-must-match")
def vector_may_be_left_out(patch):
    """Takes a vector of ones where none is given, whatever the size."""
    patch.wrap(functional, "vjp", lambda o, f, x, v=None: o(f, x, torch.ones_like(f(x)) if v is None else v))


@mutant("autograd.grad.gradient-edge")
def edges_belong_to_the_next_node(patch):
    """Takes the node after the one that is meant."""

    def edge(original, tensor):
        found = original(tensor)
        return found._replace(node=found.node.next_functions[0][0]) if tensor.grad_fn is not None else found

    patch.wrap(graph, "get_gradient_edge", edge)


@mutant("autograd.loss.broadcast-warns")
def broadcasts_in_silence(patch):
    """Says nothing when the target's shape is another than the input's."""
    for loss in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss):
        patch.silence(loss)


@mutant("autograd.anomaly.shows-the-forward")
def anomaly_mode_keeps_no_stack(patch):
    """Checks for NaN, and forgets where the forward call was."""
    for module in (traceback, torch.fx.traceback):
        patch.set(module, "format_stack", lambda *_, **__: ["(not kept)"])


@mutant("autograd.loss.settings-handed-on")
def weight_of_the_classes_lost(patch):
    """A loss module that forgets its weight."""
    patch.source(nn.CrossEntropyLoss.forward, "weight=self.weight,", "")


@mutant("autograd.loss.settings-handed-on")
def swap_of_the_triplets_lost(patch):
    """A loss module that forgets an option."""
    patch.source(nn.TripletMarginLoss.forward, "swap=self.swap,", "")


@mutant("autograd.loss.old-reductions")
def reduce_alone_ignored(patch):
    """Looks at the old settings only where both are given."""
    patch.source(
        nn.modules.loss._Loss.__init__,
        "size_average is not None or reduce is not None",
        "size_average is not None and reduce is not None",
    )
    patch.source(
        nn.modules.loss._WeightedLoss.__init__,
        "super().__init__(size_average, reduce, reduction)",
        "super().__init__(size_average, reduce, reduction)",
    )


@mutant("autograd.loss.settings-checked")
def margins_unchecked(patch):
    """Takes a margin of zero, for which every triplet is as good."""
    patch.source(nn.TripletMarginLoss.__init__, "if margin <= 0:", "if margin < 0:")


@mutant("autograd.loss.linear-cross-entropy")
def linear_loss_forgets_its_bias(patch):
    """Leaves the bias of the layer out."""
    if not hasattr(nn, "LinearCrossEntropyLoss"):
        raise NotApplicable("no LinearCrossEntropyLoss")
    patch.source(nn.LinearCrossEntropyLoss.forward, "linear_bias=linear_bias", "linear_bias=None")


@mutant("autograd.loss.weighted-elements")
def weighted_mean_divides_by_the_count(patch):
    """Divides the weighted sum by the number of elements."""
    patch.source(
        F.mse_loss, "torch.sum(weighted_squared_errors) / torch.sum(weight)", "torch.mean(weighted_squared_errors)"
    )


@mutant("autograd.functional.strict")
def strict_is_never_checked(patch):
    """Checks nothing with strict=True."""
    patch.source(torch.autograd.functional._check_requires_grad, "if not strict:", "if True:")


@mutant("autograd.functional.strict")
def linear_functions_pass_strict(patch):
    """Finds nothing wrong with a constant Jacobian."""
    patch.source(
        torch.autograd.functional._check_requires_grad,
        "if not inp.requires_grad:",
        'if not inp.requires_grad and input_type != "jacobian":',
    )


@mutant("autograd.functional.vector-must-match")
def lengths_are_not_compared(patch):
    """Compares the sizes of as many vectors as there are."""
    patch.source(torch.autograd.functional._validate_v, "len(other) != len(v)", "False")


@mutant("autograd.forward.levels")
def outside_a_level_is_one(patch):
    """Unpacks a tangent whatever level is asked for."""
    patch.source(torch.autograd.forward_ad.unpack_dual, "if level < 0:", "level = 0\n    if level < 0:")


@mutant("autograd.forward.tangent-must-match")
def whole_tangents_are_taken(patch):
    """Takes a tangent of any dtype."""
    patch.source(torch.autograd.forward_ad.make_dual, "tangent.is_floating_point() or tangent.is_complex()", "True")


@mutant("autograd.anomaly.set-and-restored")
def check_nan_is_off_by_default(patch):
    """Checks for NaN only if told to."""
    patch.set(torch.autograd.set_detect_anomaly.__init__, "__defaults__", (False,))


@mutant("autograd.loss.smooth-l1-without-beta")
def smooth_l1_slopes_at_zero(patch):
    """Takes zero for negative where beta is zero."""

    def loss(original, x, target, *args, beta=1.0, **named):
        return original(x - 1e-30 if beta == 0 else x, target, *args, beta=beta, **named)

    patch.wrap(F, "smooth_l1_loss", loss)


@mutant("autograd.loss.bce-target-range")
def targets_are_brought_into_range(patch):
    """Brings targets into the range instead of refusing them."""
    clamped = lambda original, x, t, *args, **named: original(x, t.clamp(0, 1), *args, **named)  # noqa: E731
    patch.wrap(F, "binary_cross_entropy", clamped)


# -- faults of single statements -------------------------------------------------------------------------------------


@mutant("autograd.backward.inputs-not-empty")
def grad_takes_no_inputs(patch):
    """Returns no gradients where none are asked for."""
    patch.source(
        torch.autograd.grad,
        "if len(inputs_tuple) == 0:",
        "if len(inputs_tuple) == 0:\n        return ()\n    if False:",
    )


@mutant("autograd.grad.unused-input")
def unused_inputs_are_allowed_by_default(patch):
    """Returns None where nobody said that it may."""
    patch.source(torch.autograd.grad, "allow_unused = materialize_grads", "allow_unused = True")


@mutant("autograd.grad.materialize-grads")
def zeros_are_constants(patch):
    """Makes zeros that require no grad, whatever create_graph says."""
    patch.source(torch.autograd.grad, "requires_grad=create_graph", "requires_grad=False")


@mutant("autograd.grad.materialize-grads")
def contradicting_arguments_are_taken(patch):
    """Lets the one argument win over the other."""
    patch.source(torch.autograd.grad, "if materialize_grads and allow_unused is False:", "if False:")


@mutant("autograd.grad.only-inputs-ignored")
def only_inputs_is_ignored_silently(patch):
    """Ignores the argument without a warning."""
    patch.source(torch.autograd.grad, "if not only_inputs:", "if False:")


@mutant("autograd.grad.batched")
def shapes_of_batches_are_not_compared(patch):
    """Leaves it to the engine to notice another shape."""
    patch.source(
        torch.autograd._make_grads,
        "if is_grads_batched:\n                    raise",
        "if False:\n                    raise",
    )
    patch.source(torch.autograd._make_grads, "is_grads_batched=True", "batched")


@mutant("autograd.backward.gradient-must-match")
def anything_may_be_a_gradient(patch):
    """Takes what is no tensor for None."""
    patch.source(torch.autograd._make_grads, "raise TypeError(", "new_grads.append(None) or len(")


@mutant("autograd.backward.grad-variables")
def old_and_new_name_may_both_be_given(patch):
    """Lets the new name win."""
    patch.source(torch.autograd.backward, "if grad_tensors is None:", "if True:")


@mutant("autograd.backward.inputs-restrict")
def one_tensor_is_no_list_of_inputs(patch):
    """Iterates over the one tensor that was named."""
    patch.source(torch.autograd.backward, "isinstance(inputs, (torch.Tensor, graph.GradientEdge))", "False")


@mutant("autograd.repeat.retain-graph-follows-create-graph")
def backward_frees_what_create_graph_recorded(patch):
    """Takes False for the default in backward as well."""
    patch.source(torch.autograd.backward, "retain_graph = create_graph", "retain_graph = False")


@mutant("autograd.higher.off-by-default")
def graphs_are_created_by_default(patch):
    """Records every gradient."""
    patch.set(Tensor.backward, "__defaults__", (None, None, True, None))


@mutant("autograd.graph.deepcopy-of-leaves-only")
def results_are_copied_too(patch):
    """Copies the result of an operation as if it were a leaf."""
    patch.source(Tensor.__deepcopy__, "if not self.is_leaf:", "if False:")


@mutant("autograd.functional.products")
def second_products_are_halved(patch):
    """Multiplies by the vector twice over, and halves too much."""
    patch.wrap(functional, "vhp", lambda o, f, x, v, **k: (f(x), o(f, x, v / 2, **k)[1]))


@mutant("autograd.functional.create-graph")
def results_are_always_detached(patch):
    """Cuts the graph off in any case."""
    patch.source(functional._grad_postprocess, "if not create_graph:", "if True:")


@mutant("autograd.functional.products")
def results_are_never_detached(patch):
    """Leaves the graph on in any case."""
    patch.source(functional._grad_postprocess, "if not create_graph:", "if False:")


@mutant("autograd.functional.inputs-untouched")
def inputs_are_made_to_require_grad(patch):
    """Switches the flag of the inputs themselves."""
    patch.source(
        functional._grad_preprocess, "inp.detach().requires_grad_(need_graph)", "inp.requires_grad_(need_graph)"
    )


@mutant("autograd.functional.hessian")
def larger_results_have_a_hessian(patch):
    """Takes the first element of a function with several."""
    patch.source(
        functional.hessian,
        "if out.nelement() != 1:",
        "if out.nelement() != 1:\n            return out[0]\n        if False:",
    )


@mutant("autograd.functional.strict")
def unused_inputs_pass_the_products(patch):
    """Fills in zeros with strict=True."""
    patch.source(functional._fill_in_zeros, "if strict:", "if False:")


@mutant("autograd.gradcheck.tells-right-from-wrong")
def gradcheck_always_raises(patch):
    """Raises also where it should return False."""
    patch.source(GRADCHECK.gradcheck, "if not raise_exception:", "if False:")


@mutant("autograd.gradcheck.second-order")
def gradgradcheck_is_gradcheck(patch):
    """Checks the first derivative once more."""
    patch.set(torch.autograd, "gradgradcheck", torch.autograd.gradcheck)


@mutant("autograd.saved.disabled-hooks")
def hooks_stay_disabled(patch):
    """Forbids hooks for ever."""
    patch.source(graph.disable_saved_tensors_hooks, "torch._C._autograd._saved_tensors_hooks_enable()", "None")


@mutant("autograd.saved.unpacked-value-is-used")
def what_was_packed_is_used(patch):
    """Unpacks by no function of the user."""
    patch.source(
        graph.saved_tensors_hooks.__init__,
        "self.unpack_hook = unpack_hook",
        "self.unpack_hook = lambda packed: packed / 3",
    )


@mutant("autograd.anomaly.set-and-restored")
def anomaly_mode_stays_on(patch):
    """Leaves the setting as it is at the end of the block."""
    patch.source(
        torch.autograd.detect_anomaly.__exit__, "torch.set_anomaly_enabled(self.prev, self.prev_check_nan)", "pass"
    )


@mutant("autograd.anomaly.set-and-restored")
def anomaly_mode_waits_for_its_block(patch):
    """Takes effect when entered, not when called."""
    patch.source(torch.autograd.set_detect_anomaly.__init__, "torch.set_anomaly_enabled(mode, check_nan)", "pass")


@mutant("autograd.anomaly.nan-raises")
def anomaly_mode_is_entered_in_silence(patch):
    """Says nothing of its cost."""
    patch.silence(torch.autograd.detect_anomaly.__init__)


@mutant("autograd.graph.module-requires-grad")
def frozen_modules_stay_frozen(patch):
    """Takes every call for a freeze."""
    patch.source(nn.Module.requires_grad_, "p.requires_grad_(requires_grad)", "p.requires_grad_(False)")


@mutant("autograd.grad.gradient-edge")
def constants_have_an_edge(patch):
    """Returns an edge of nothing for a constant."""
    patch.source(
        graph.get_gradient_edge,
        "if not tensor.requires_grad:",
        "if not tensor.requires_grad:\n        return None\n    if False:",
    )


@mutant("autograd.saved.pack-and-unpack")
def everything_is_packed_twice(patch):
    """Packs once to look at it and once to keep it."""
    patch.source(
        graph.saved_tensors_hooks.__init__,
        "self.pack_hook = pack_hook",
        "self.pack_hook = lambda t: (pack_hook(t), pack_hook(t))[1]",
    )


@mutant("autograd.functional.jacobian", "autograd.functional.jacobian-of-tuples")
def basis_is_not_normal(patch):
    """Multiplies by vectors of length two where it vectorises."""
    patch.source(functional._construct_standard_basis_for, ".fill_(1)", ".fill_(2)")


@mutant("autograd.loss.settings-handed-on")
def delta_of_the_module_lost(patch):
    """A loss module that forgets where its linear part begins."""
    patch.source(nn.HuberLoss.forward, "delta=self.delta", "delta=1.0")


@mutant("autograd.loss.settings-checked")
def any_power_of_the_margin_is_taken(patch):
    """Takes a power for which there is no kernel."""
    patch.source(nn.MultiMarginLoss.__init__, "if p != 1 and p != 2:", "if False:")


@mutant("autograd.grad.from-an-edge")
def edges_start_from_two(patch):
    """Starts from something else than the gradient one."""
    patch.source(torch.autograd._make_grads, "torch.ones(", "2 * torch.ones(")


@mutant("autograd.grad.from-an-edge")
def edges_of_any_size_start_from_one(patch):
    """Takes an edge of several elements for one with a single element."""
    patch.source(torch.autograd._make_grads, "all(o == 1 for o in out_size)", "True")


@mutant("autograd.saved.disabled-hooks")
def inner_block_allows_hooks_again(patch):
    """Allows hooks at the end of the inner of two blocks."""
    patch.source(graph.disable_saved_tensors_hooks, "if maybe_prev_message is None:", "if True:")


@mutant("autograd.loss.old-reductions")
def old_reductions_mean_nothing(patch):
    """Takes the old settings and forgets them."""
    patch.source(F.smooth_l1_loss, "size_average is not None or reduce is not None", "False")


@mutant("autograd.gradient.softmax-in-another-dtype")
def softmax_is_cast_afterwards(patch):
    """Computes in the dtype of the input, and casts what it found."""
    patch.source(F.softmax, "input.softmax(dim, dtype=dtype)", "input.softmax(dim).to(dtype)")


@mutant("autograd.gradient.softmax-in-another-dtype")
def softmin_forgets_its_dtype(patch):
    """Answers in the dtype of the input."""
    patch.source(F.softmin, "(-input).softmax(dim, dtype=dtype)", "(-input).softmax(dim)")


@mutant("autograd.loss.old-reductions")
def old_reductions_alone_are_overlooked(patch):
    """Looks at size_average only, so that reduce alone chooses nothing."""
    patch.source(F.cosine_embedding_loss, "size_average is not None or reduce is not None", "size_average is not None")


@mutant("autograd.loss.linear-cross-entropy")
def linear_cross_entropy_always_means(patch):
    """Does not hand the reduction on."""
    if not hasattr(nn, "LinearCrossEntropyLoss"):
        raise NotApplicable("no LinearCrossEntropyLoss")
    patch.source(nn.LinearCrossEntropyLoss.forward, "reduction=self.reduction", 'reduction="mean"')


@mutant("autograd.gradcheck.options")
def gradcheck_sends_gradients_always(patch):
    """Leaves out the run in which some gradients are undefined."""
    patch.set(GRADCHECK, "_test_undefined_backward_mode", lambda *a: True)


@mutant("autograd.gradcheck.options")
def gradcheck_takes_tangents_of_any_dtype(patch):
    """Does not compare dtypes."""
    name = "_get_analytical_jacobian_forward_ad"
    patch.source(getattr(GRADCHECK, name), "check_grad_dtypes\n", "False\n")


@mutant("autograd.gradcheck.arguments")
def gradcheck_takes_overlapping_inputs(patch):
    """Perturbs several elements at once where they share memory."""
    patch.source(GRADCHECK._check_inputs, "st > 0 or sz <= 1", "True")


@mutant("autograd.gradcheck.batched")
def gradcheck_tries_no_batch(patch):
    """Takes the options for batches and does nothing with them."""
    patch.set(GRADCHECK, "_test_batched_grad", lambda *a: True)


@mutant("autograd.gradcheck.second-order-options")
def gradgradcheck_keeps_its_own_tolerance(patch):
    """Checks by the usual steps, whatever eps was asked for."""
    patch.source(GRADCHECK.gradgradcheck, "eps=eps", "eps=1e-6")


@mutant("autograd.functional.strategies")
def forward_mode_forgets_unused_inputs(patch):
    """Leaves out the zeros of an output that an input does not reach."""
    patch.source(functional._jacfwd, "torch.zeros_like(primal)", "torch.ones_like(primal)")


@mutant("autograd.graph.nodes-are-nodes")
def own_functions_have_no_nodes(patch):
    """Counts the nodes of torch's own functions alone."""
    patch.source(graph.Node.__subclasshook__, "torch.autograd.function.BackwardCFunction", "()")


@mutant("autograd.graph.memory-budget")
def any_budget_is_taken(patch):
    """Takes a percentage for a share."""
    if not hasattr(graph, "region_activation_memory_budget"):
        raise NotApplicable("no memory budgets")
    patch.source(graph.region_activation_memory_budget, "0.0 <= budget <= 1.0", "0.0 <= budget <= 100.0")


@mutant("autograd.graph.logged")
def only_roots_are_logged(patch):
    """Names the nodes that backward starts from, and no other."""
    patch.source(graph._register_logging_hooks_on_whole_graph, "iter_graph(grad_fns)", "grad_fns")


@mutant("autograd.graph.edges-of-own-functions")
def edges_own_nothing(patch):
    """Hands out the node alone, which does not keep the graph behind it."""
    patch.source(graph.get_gradient_edge, "ownership_token=token", "ownership_token=None")


@mutant("autograd.gradcheck.jacobians")
def analytical_jacobian_is_doubled(patch):
    """Sends 2 backwards where 1 is meant."""
    patch.source(GRADCHECK.get_analytical_jacobian, "return jacobians1", "return [2 * each for each in jacobians1]")


@mutant("autograd.backward.retained-grad-of-a-changed-base")
def retained_gradients_are_of_the_old_value(patch):
    """Keeps the gradient of the value that the tensor had when it was asked to."""

    def retain(original, tensor):
        tensor.register_hook(lambda gradient: setattr(tensor, "grad", gradient))

    patch.wrap(torch.Tensor, "retain_grad", retain)


@mutant("autograd.loss.ctc-without-input")
def ctc_reads_one_step_at_least(patch):
    """Reads the first step of an input without steps."""

    def loss(original, log_probs, targets, input_lengths, *rest, **options):
        return original(log_probs, targets, input_lengths.clamp(min=2), *rest, **options)

    patch.wrap(F, "ctc_loss", loss)


@mutant("autograd.loss.ctc-zero-infinity")
def ctc_keeps_its_infinity(patch):
    """Forgets that infinite losses are to be zero."""

    def loss(original, *args, zero_infinity=False, **options):
        return original(*args, **options)

    patch.wrap(F, "ctc_loss", loss)


@mutant("autograd.loss.ctc-negative-lengths")
def ctc_takes_lengths_for_zero(patch):
    """Takes a length below zero for zero."""

    def loss(original, log_probs, targets, *lengths, **options):
        return original(log_probs, targets, *(length.clamp(min=0) for length in lengths), **options)

    patch.wrap(F, "ctc_loss", loss)


@mutant("autograd.loss.gaussian-variance-of-all")
def gaussian_loss_wants_a_variance_for_each(patch):
    """Refuses a variance of another shape."""

    def loss(original, x, target, variance, *rest, **options):
        if variance.shape != x.shape:
            raise ValueError("var is of incorrect size")
        return original(x, target, variance, *rest, **options)

    patch.wrap(F, "gaussian_nll_loss", loss)


@mutant("autograd.gradient.log-softmax-of-columns")
def columns_share_a_maximum(patch):
    """Subtracts the greatest value of all columns from each."""

    def log_softmax(original, x, dim, *rest, **options):
        if x.dtype not in (torch.bfloat16, torch.float16) or dim in (-1, x.dim() - 1):
            return original(x, dim, *rest, **options)
        shifted = x - x.amax()
        return shifted - shifted.exp().sum(dim, keepdim=True).log()

    patch.wrap(torch, "log_softmax", log_softmax)


@mutant("autograd.gradient.aminmax")
def aminmax_is_detached(patch):
    """Gives the values without their graph."""

    def aminmax(original, x, **options):
        low, high = original(x.detach(), **options)
        return low.requires_grad_(), high.requires_grad_()

    patch.wrap(torch, "aminmax", aminmax)


@mutant("autograd.gradient.atan2-at-the-origin")
def atan2_divides_by_the_square(patch):
    """Divides by the squared distance, zero or not."""

    class Angle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y, x):
            ctx.save_for_backward(y, x)
            return y.atan2(x)

        @staticmethod
        def backward(ctx, gradient):
            y, x = ctx.saved_tensors
            return gradient * x / (x * x + y * y), -gradient * y / (x * x + y * y)

    patch.wrap(torch, "atan2", lambda original, y, x: Angle.apply(y, x))


@mutant("autograd.gradient.hardswish-at-its-bounds")
def hardswish_is_a_parabola_up_to_its_bounds(patch):
    """Gives the slope of the parabola at the bounds, too."""

    def hardswish(original, x, *rest):
        return torch.where((x < -3) | (x > 3), original(x), x * (x + 3) / 6)

    patch.wrap(F, "hardswish", hardswish)


@mutant("autograd.gradient.softshrink-nan")
def softshrink_takes_nan_for_small(patch):
    """Keeps what is beyond the threshold, and takes the rest for zero."""
    patch.wrap(F, "softshrink", lambda original, x, *rest: original(torch.nan_to_num(x), *rest))


@mutant("autograd.gradient.shuffled-channels")
def shuffled_channels_are_detached(patch):
    """Shuffles without a graph."""

    def shuffle(original, x, groups):
        return original(x.detach(), groups) + 0 * x

    patch.wrap(F, "channel_shuffle", shuffle)


@mutant("autograd.gradient.long-norm-in-low-precision")
def norms_stop_growing(patch):
    """Adds up powers in the dtype of the input."""

    def norm(original, x, order=2, *rest, **options):
        if x.dtype != torch.bfloat16:
            return original(x, order, *rest, **options)
        return (x.abs() ** order).cumsum(0)[:256][-1] ** (1 / order)

    patch.wrap(torch.linalg, "vector_norm", norm)


@mutant("autograd.gradient.norm-in-half-range")
def powers_in_half_precision(patch):
    """Takes powers in float16."""

    def norm(original, x, order=2, *rest, **options):
        return (x.abs() ** order).sum() ** (1 / order) if x.dtype == torch.float16 else original(x, order, *rest)

    patch.wrap(torch.linalg, "vector_norm", norm)


@mutant("autograd.gradient.hardtanh-range")
def hardtanh_swaps_nothing(patch):
    """Clamps by whatever bounds it is given."""
    patch.wrap(F, "hardtanh", lambda original, x, low=-1.0, high=1.0, *rest, **options: x.clamp(low, high))


@mutant("autograd.gradient.pool-of-infinite-norm")
def infinite_norm_is_a_power(patch):
    """Takes a root of infinite order of an average, which is one."""

    def pool(original, x, order, *rest, **options):
        found = original(x, order, *rest, **options)
        return found / found if order == float("inf") else found

    patch.wrap(F, "lp_pool1d", pool)


@mutant("autograd.loss.margin-weights-of-classes")
def margin_loss_takes_any_weights(patch):
    """Fills up weights that are missing."""

    def loss(original, x, target, p=1, margin=1.0, weight=None, **options):
        if weight is not None and len(weight) < x.shape[-1]:
            weight = F.pad(weight, (0, x.shape[-1] - len(weight)), value=1.0)
        return original(x, target, p, margin, weight, **options)

    patch.wrap(F, "multi_margin_loss", loss)


@mutant("autograd.gradient.lerp-by-a-number")
def lerp_promotes_by_its_weight(patch):
    """Gives the dtype of the weight, dimension or none."""
    patch.wrap(torch, "lerp", lambda original, x, y, weight: original(x, y, weight).to(weight.dtype))


@mutant("autograd.gradient.variance-of-one")
def variance_of_one_is_zero(patch):
    """Divides by one where n - 1 is zero."""

    def var(original, x, *rest, **options):
        return original(x, unbiased=False) if x.numel() == 1 else original(x, *rest, **options)

    patch.wrap(torch, "var", var)


@mutant("autograd.gradient.trace-of-tall")
def trace_runs_on_below(patch):
    """Steps through the memory of the matrix to its end."""
    patch.wrap(torch, "trace", lambda original, x: x.flatten()[:: x.shape[1] + 1].sum())


@mutant("autograd.gradient.picked-from-the-end")
def take_along_dim_counts_from_the_start(patch):
    """Refuses negative indices."""

    def take_along_dim(original, x, index, *rest, **options):
        if (index < 0).any():
            raise RuntimeError("an index is out of bounds")
        return original(x, index, *rest, **options)

    patch.wrap(torch, "take_along_dim", take_along_dim)


@mutant("autograd.gradient.cropped-to-nothing")
def padding_leaves_one(patch):
    """Wants something to be left."""

    def pad(original, x, padding, *rest, **options):
        found = original(x, padding, *rest, **options)
        if found.numel() == 0:
            raise RuntimeError("negative padding resulted in an output size of zero")
        return found

    patch.wrap(F, "pad", pad)


@mutant("autograd.gradient.transposed-convolution-in-bfloat16")
def transposed_convolution_forgets_its_transpose(patch):
    """Takes the path of the ordinary convolution in bfloat16."""

    def conv(original, x, w, *rest, **options):
        return original(x, w, *rest, **options) if x.dtype != torch.bfloat16 else F.conv1d(x, w.transpose(0, 1))

    patch.wrap(F, "conv_transpose1d", conv)


@mutant("autograd.gradient.aminmax-of-a-number")
def aminmax_keeps_an_axis_that_is_none(patch):
    """Keeps the axis that a number has not."""

    def aminmax(original, x, **options):
        found = original(x, **options)
        return tuple(t[None] for t in found) if options.get("keepdim") and x.dim() == 0 else found

    patch.wrap(torch, "aminmax", aminmax)


@mutant("autograd.gradient.norm-of-zero-matrix")
def norm_of_two_axes_is_a_root(patch):
    """Takes the root of a sum of squares where axes are named."""

    def norm(original, x, *args, dim=None, **options):
        return original(x, *args, dim=dim, **options) if dim is None else (x * x).sum(dim).sqrt()

    patch.wrap(torch, "norm", norm)


@mutant("autograd.gradient.cumprod-in-another-dtype")
def cumprod_wants_one_dtype(patch):
    """Has no derivative beside zeros where the dtypes differ."""

    def cumprod(original, x, dim, dtype=None):
        if dtype not in (None, x.dtype) and (x == 0).any():
            x = x.detach()
        return original(x, dim, dtype=dtype)

    patch.wrap(torch, "cumprod", cumprod)


@mutant("autograd.gradient.other-than-nan")
def what_is_not_a_number_shares_the_gradient(patch):
    """Gives a number half of the gradient, as if NaN were its equal."""

    def greater(original, x, y):
        odd = x.isnan() != y.isnan()
        return original(*(Altered.apply(t, lambda g: torch.where(odd, g / 2, g)) for t in (x, y)))

    for name in ("fmax", "fmin"):
        patch.wrap(torch, name, greater)


@mutant("autograd.gradient.convolution-bias-dtype")
def convolution_casts_its_bias(patch):
    """Casts the bias to the dtype of the input."""
    patch.wrap(F, "conv1d", lambda original, x, w, bias=None, *a: original(x, w, bias.to(x.dtype), *a))


@mutant("autograd.gradient.negative-differences")
def diff_of_negative_order_is_none(patch):
    """Returns the input where the order is negative."""
    patch.wrap(torch, "diff", lambda original, x, n=1, **options: original(x, n=max(n, 0), **options))


@mutant("autograd.loss.margin-weights-with-strides")
def margin_weights_are_read_in_a_row(patch):
    """Reads weights as they lie in memory, one after the other."""

    def loss(original, x, target, p=1, margin=1.0, weight=None, **options):
        weight = weight.as_strided(weight.shape, (1,), weight.storage_offset())
        return original(x, target, p, margin, weight, **options)

    patch.wrap(F, "multi_margin_loss", loss)


@mutant("autograd.forward.softmax-of-nothing")
def softmax_subtracts_the_greatest_of_none(patch):
    """Asks for the greatest element of none."""
    for name in ("softmax", "log_softmax"):
        patch.wrap(F, name, lambda original, x, dim: original(x - x.amax(dim, keepdim=True).detach(), dim))


@mutant("autograd.gradient.residuals")
def residuals_are_detached(patch):
    """Leaves the residuals out of the graph, as torch did until 2.6."""

    def lstsq(original, a, b, **options):
        found = original(a, b, **options)
        return type(found)((found[0], found[1].detach(), *found[2:]))

    patch.wrap(torch.linalg, "lstsq", lstsq)


def full_at_256(gradient):
    """What adding ones in bfloat16 comes to."""
    return gradient.clamp(max=256)


@mutant("autograd.gradient.enlarged-in-low-precision")
def interpolation_adds_up_in_low_precision(patch):
    """Adds up gradients in the dtype of the input."""
    patch.wrap(F, "interpolate", lambda original, x, *a, **o: original(Altered.apply(x, full_at_256), *a, **o))


@mutant("autograd.gradient.gathered-in-low-precision")
def gathering_adds_up_in_low_precision(patch):
    """Adds up gradients in the dtype of the input."""
    patch.wrap(Tensor, "gather", lambda original, x, *rest: original(Altered.apply(x, full_at_256), *rest))


@mutant("autograd.gradient.long-products-in-low-precision")
def products_add_up_in_low_precision(patch):
    """Adds up products in the dtype of the factors."""
    for name in ("dot", "mv"):
        patch.wrap(torch, name, lambda original, x, y: original(x, y).clamp(max=256))


@mutant("autograd.gradient.fractional-ratios")
def ratios_beyond_the_second_are_dropped(patch):
    """Takes the first two ratios, as torch did until 2.0."""

    def pool(original, x, kernel_size, output_size=None, output_ratio=None, *rest, **options):
        ratio = output_ratio[:2] if isinstance(output_ratio, tuple) else output_ratio
        return original(x, kernel_size, output_size, ratio, *rest, **options)

    patch.wrap(F, "fractional_max_pool2d", pool)


@mutant("autograd.reduction.averages-at-the-border")
def averages_always_count_the_padding(patch):
    """Does not look at the option."""
    patch.wrap(F, "avg_pool2d", lambda original, *args, **options: original(*args))


@mutant("autograd.reduction.greatest-of-nan")
def pools_leave_nan_out(patch):
    """Compares with >, which is false beside NaN."""
    patch.wrap(F, "max_pool2d", lambda original, x, *rest, **options: original(x.nan_to_num(-9), *rest, **options))


@mutant("autograd.reduction.adaptive-windows")
def adaptive_windows_end_where_the_next_begin(patch):
    """Rounds the end of a window down, too."""

    def pool(original, x, size):
        by_rows, by_columns = (
            [slice(n * i // m, n * (i + 1) // m) for i in range(m)] for n, m in zip(x.shape[2:], size, strict=True)
        )
        means = [x[:, :, rows, columns].mean((2, 3)) for rows in by_rows for columns in by_columns]
        return torch.stack(means, -1).view(*x.shape[:2], *size)

    patch.wrap(F, "adaptive_avg_pool2d", pool)


@mutant("autograd.gradient.pools-average-in-low-precision")
def adaptive_averages_add_up_in_low_precision(patch):
    """Adds up in the dtype of the input, where the sum of ones ends at 256."""
    for name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
        patch.wrap(F, name, lambda original, x, size: original(x, size) / 4)


@mutant("autograd.graph.deepcopy-of-shared-memory")
def copies_have_memory_of_their_own(patch):
    """Copies every tensor by itself, as it does a parameter."""
    patch.wrap(Tensor, "__deepcopy__", lambda original, t, memo: t.detach().clone().requires_grad_(t.requires_grad))


@mutant("autograd.gradcheck.second-look")
def the_second_look_takes_another_step(patch):
    """Leaves eps at its default where fast mode looks again, as torch did until 2.2."""
    patch.source(GRADCHECK._run_slow_mode_and_get_error, "outputs, eps=eps,", "outputs, eps=1e-3,")


@mutant("autograd.gradient.unread-result")
def results_are_multiplied_by_zero(patch):
    """Adds what the result holds, times zero."""

    def baddbmm(original, x, a, b, *, beta=1, alpha=1, out=None):
        return original(x, a, b, beta=beta, alpha=alpha) if out is None else out.mul_(0).add_(a @ b, alpha=alpha)

    patch.wrap(torch, "baddbmm", baddbmm)


@mutant("autograd.gradient.copied-columns")
def narrow_copy_reads_memory_in_order(patch):
    """Takes every tensor for contiguous."""

    def narrow_copy(original, x, *rest):
        return original(
            x.as_strided(x.shape, torch.empty_like(x, memory_format=torch.contiguous_format).stride()), *rest
        )

    patch.wrap(torch, "narrow_copy", narrow_copy)


@mutant("autograd.gradient.scattered-in-low-precision")
def scattering_adds_up_in_low_precision(patch):
    """Adds up in the dtype of the input."""
    patch.wrap(Tensor, "scatter_add", lambda original, *a: original(*a).clamp(max=512))


@mutant("autograd.complex.magnitude-in-range", "autograd.complex.reciprocal-in-range")
def complex_numbers_are_squared(patch):
    """Takes squares of the real and the imaginary part."""

    def squares(z):
        return z.real * z.real + z.imag * z.imag

    patch.wrap(Tensor, "abs", lambda original, z: squares(z).sqrt() if z.is_complex() else original(z))
    patch.wrap(torch, "reciprocal", lambda original, z: z.conj() / squares(z) if z.is_complex() else original(z))


@mutant("autograd.complex.magnitude-gradient", "autograd.complex.magnitude-at-zero", "autograd.complex.angle-gradient")
def directions_are_divided_by_squares(patch):
    """Differentiates the root of a sum of squares, and the quotient of the two parts."""
    patch.wrap(Tensor, "abs", lambda original, z: (z.real * z.real + z.imag * z.imag).sqrt())
    patch.wrap(Tensor, "angle", lambda original, z: torch.atan(z.imag / z.real))


@mutant("autograd.complex.resolved-conjugate")
def conjugates_are_resolved_in_whole_vectors(patch):
    """Leaves the numbers behind the last whole vector as they were."""

    def resolve(original, z):
        n = len(z) // 8 * 8
        return torch.cat([original(z[:n]), original(z[n:].conj())])

    patch.wrap(Tensor, "resolve_conj", resolve)


@mutant("autograd.complex.arcs-far")
def arcs_are_logarithms(patch):
    """Takes the formulas by their letters, squares included."""
    patch.wrap(torch, "asin", lambda original, z: -1j * (1j * z + (1 - z * z).sqrt()).log())
    patch.wrap(torch, "atan", lambda original, z: 0.5j * ((1 - 1j * z) / (1 + 1j * z)).log())


@mutant("autograd.complex.quotient-in-range")
def quotients_are_divided_by_squares(patch):
    """Multiplies by the conjugate of the divisor and divides by its square."""
    patch.wrap(Tensor, "__truediv__", lambda original, z, w: original(z * w.conj(), (w * w.conj()).real))


@mutant("autograd.complex.sigmoid-far")
def the_sigmoid_is_a_quotient_of_exponentials(patch):
    """Divides the exponential by itself plus one."""
    patch.wrap(torch, "sigmoid", lambda original, z: z.exp() / (1 + z.exp()))


@mutant("autograd.gradient.complex-exponent")
def logarithms_are_of_the_magnitude(patch):
    """Takes the logarithm of a negative base for that of its magnitude."""
    patch.wrap(
        torch,
        "pow",
        lambda original, base, z: original(base, z.detach()) * torch.exp((z - z.detach()) * base.abs().log()),
    )


@mutant("autograd.functional.complex-jacobian")
def complex_rows_are_derivatives(patch):
    """Gives the derivatives where gradients, their conjugates, are due."""
    patch.wrap(functional, "jacobian", lambda original, f, x, **k: original(f, x, **k).conj())


@mutant("autograd.gradient.enlarged-bytes")
def bytes_are_resized_without_weights(patch):
    """Takes the nearest element of an image of bytes."""

    def interpolate(original, x, size, *, mode, antialias):
        return (
            original(x, size, mode="nearest")
            if x.dtype == torch.uint8
            else original(x, size, mode=mode, antialias=antialias)
        )

    patch.wrap(F, "interpolate", interpolate)


@mutant("autograd.complex.truth")
def truth_is_that_of_the_real_part(patch):
    """Drops the imaginary part before it asks."""
    patch.wrap(Tensor, "bool", lambda original, z: original(z.real if z.is_complex() else z))


@mutant("autograd.indexing.truth")
def truth_is_the_lowest_bit(patch):
    """Holds whole numbers for flags already."""
    patch.wrap(Tensor, "bool", lambda original, x: original(x if x.is_floating_point() else x % 2))


@mutant("autograd.gradient.repeated-in-low-precision")
def repeating_adds_up_in_low_precision(patch):
    """Adds up gradients in the dtype of the input."""
    patch.wrap(Tensor, "repeat_interleave", lambda original, x, *rest: original(Altered.apply(x, full_at_256), *rest))


@mutant("autograd.complex.exponential-at-infinity")
def exponentials_are_magnitude_and_angle(patch):
    """Multiplies the magnitude by cosine and sine, infinity by zero."""
    patch.wrap(Tensor, "exp", lambda original, z: torch.polar(original(z.real), z.imag))


@mutant("autograd.gradient.ldexp-beyond-powers")
def ldexp_takes_the_power_first(patch):
    """Multiplies by the power of two, which is infinity or zero, as torch until 2.10."""
    patch.wrap(torch, "ldexp", lambda original, m, n: m * torch.pow(2.0, n))


@mutant("autograd.gradient.long-count-in-low-precision")
def counts_stop_growing(patch):
    """Counts in bfloat16, in which 256 + 1 is 256."""
    patch.wrap(torch.linalg, "vector_norm", lambda original, x, order: original(x, order).clamp(max=256))


@mutant("autograd.gradient.index-add-of-another-shape")
def index_add_expands(patch):
    """Expands what it adds to the shape of the places."""

    def index_add(original, x, dim, index, source):
        source = source if source.dim() == x.dim() else source[:, None]
        return original(x, dim, index, source.expand(len(index), *x.shape[1:]))

    patch.wrap(Tensor, "index_add", index_add)


@mutant("autograd.complex.log-sum-far")
def complex_sums_are_of_exponentials(patch):
    """Takes the logarithm of the sum of the exponentials."""
    patch.wrap(torch, "logaddexp", lambda original, x, y: (x.exp() + y.exp()).log())


@mutant("autograd.gradient.norm-of-one")
def one_number_is_squared(patch):
    """Takes the root of the power of a single number, too."""
    patch.wrap(torch.linalg, "vector_norm", lambda original, x, order, dim: (x.abs() ** order).sum(dim) ** (1 / order))


@mutant("autograd.gradient.gelu-in-low-precision")
def gelu_rounds_every_step(patch):
    """Rounds the hyperbolic tangent to the dtype of the input, as torch did in 1.13."""

    def gelu(original, x, approximate):
        return x / 2 * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))

    patch.wrap(F, "gelu", gelu)


@mutant("autograd.gradient.sorter-in-range")
def sorters_are_clamped(patch):
    """Takes the last place for one behind it."""

    def searchsorted(original, sequence, values, sorter):
        return original(sequence, values, sorter=sorter.clamp(max=len(sequence) - 1))

    patch.wrap(torch, "searchsorted", searchsorted)


@mutant("autograd.loss.adaptive-softmax")
def tails_of_one_width(patch):
    """Divides by div_value once, however rare the cluster."""
    patch.source(nn.AdaptiveLogSoftmaxWithLoss.__init__, "self.div_value ** (i + 1)", "self.div_value")


@mutant("autograd.loss.adaptive-softmax")
def head_never_has_a_bias(patch):
    """Takes head_bias and forgets it."""
    patch.source(nn.AdaptiveLogSoftmaxWithLoss.__init__, "bias=self.head_bias", "bias=False")


@mutant("autograd.distance.pairwise")
def distance_with_eps_of_its_own(patch):
    """Hands p and keepdim on and leaves eps out."""
    patch.source(nn.PairwiseDistance.forward, "self.eps, self.keepdim", "1e-6, self.keepdim")
