"""The ways in which in-place operations go wrong."""

import torch
from torch import nn
from torch.autograd import graph

from torch_conformance.mutation import mutant

Tensor = torch.Tensor


@mutant("inplace.version.counts", "inplace.version.shared-by-views")
def in_place_goes_by_data(patch):
    """Writes past the version counter."""
    patch.wrap(Tensor, "add_", lambda o, x, *a: o(x.data, *a) is None or x)
    patch.wrap(Tensor, "mul_", lambda o, x, *a: o(x.data, *a) is None or x)


@mutant("inplace.version.counts")
def versions_count_in_twos(patch):
    """Counts an operation twice, once inside and once outside of the kernel."""
    version = torch._C.TensorBase._version
    patch.set(Tensor, "_version", property(lambda x: 2 * version.__get__(x)))


@mutant("inplace.version.reads-do-not-count")
def sums_count(patch):
    """Bumps the version of what it reads."""
    patch.wrap(Tensor, "tolist", lambda o, x: (x.detach().add_(0), o(x))[1])


@mutant("inplace.version.data-has-its-own", "inplace.saved.data-goes-unnoticed")
def data_is_detach(patch):
    """Makes .data an alias that shares the version, as detach does."""
    patch.set(Tensor, "data", property(lambda x: x.detach()))


@mutant("inplace.saved.modified-raises", "inplace.saved.view-modified", "inplace.saved.detached-alias-modified")
def changes_are_not_noticed(patch):
    """Writes without counting, so that backward uses what it finds."""
    for name in ("add_", "zero_"):
        patch.wrap(Tensor, name, lambda o, x, *a: o(x.data, *a) is None or x)


@mutant("inplace.saved.result-modified")
def exp_saves_its_input(patch):
    """Saves the input of the exponential and computes it once more."""
    patch.wrap(Tensor, "exp", lambda o, x: x * (o(x) / x).detach())


@mutant("inplace.saved.unneeded-may-change")
def every_change_is_refused(patch):
    """Refuses in-place operations on whatever has been used."""

    def zero(original, x):
        if x.grad_fn is not None:
            raise RuntimeError("modified by an inplace operation")
        return original(x)

    patch.wrap(Tensor, "zero_", zero)


@mutant("inplace.saved.step-between-forward-and-backward")
def step_goes_by_data(patch):
    """Writes parameters through .data."""

    def step(original, self):
        for p in (p for g in self.param_groups for p in g["params"]):
            p.data = p.data - 0.1 * p.grad

    patch.wrap(torch.optim.SGD, "step", step)


@mutant("inplace.saved.mutation-allowed")
def mutation_is_never_allowed(patch):
    """Does nothing within the context."""
    import contextlib

    patch.set(torch.autograd.graph, "allow_mutation_on_saved_tensors", contextlib.nullcontext)


@mutant("inplace.leaf.refused", "inplace.leaf.view-refused")
def leaves_are_modified(patch):
    """Modifies a leaf as if under no_grad."""
    patch.wrap(Tensor, "add_", lambda o, x, *a: torch.no_grad()(o)(x.detach(), *a))


@mutant("inplace.leaf.allowed-in-no-grad")
def leaves_become_constants(patch):
    """Clears the flag of a leaf that is modified."""
    patch.wrap(Tensor, "sub_", lambda o, x, *a: o(x, *a).requires_grad_(False))


@mutant("inplace.recorded.chain-rule", "inplace.recorded.through-a-view", "inplace.recorded.base-reaches-the-view")
def changes_are_not_recorded(patch):
    """Changes values without telling the graph."""
    patch.wrap(Tensor, "mul_", lambda o, x, y: (o(x.data, y), x)[1])


@mutant("inplace.recorded.constant-joins-the-graph", "inplace.recorded.overwritten-gets-zero")
def writes_are_not_recorded(patch):
    """Writes elements without telling the graph."""
    patch.wrap(Tensor, "__setitem__", lambda o, x, i, v: o(x.data, i, v.detach() if torch.is_tensor(v) else v))


@mutant("inplace.recorded.aliases-are-allowed")
def aliased_tensors_are_refused(patch):
    """Refuses what shares its memory: the belief itself."""
    seen = set()
    patch.wrap(Tensor, "__getitem__", lambda o, x, i: (seen.add(x.data_ptr()), o(x, i))[1])

    def add(original, x, *args):
        if x.data_ptr() in seen:
            raise RuntimeError("storage is referenced by another tensor")
        return original(x, *args)

    patch.wrap(Tensor, "add_", add)


@mutant("inplace.recorded.several-outputs")
def parts_are_copies(patch):
    """Copies the parts, where they should be views."""
    for name in ("unbind", "split", "chunk"):
        patch.wrap(Tensor, name, lambda o, x, *a: tuple(part.clone() for part in o(x, *a)))


@mutant("inplace.recorded.several-outputs-in-a-list")
def lists_are_changed_unrecorded(patch):
    """Changes the memory of the tensors in a list, whatever they are views of."""
    patch.wrap(torch, "_foreach_mul_", lambda o, tensors, *a: o([t.detach() for t in tensors], *a))


@mutant("inplace.activation.relu")
def in_place_relu_forgets_its_mask(patch):
    """Lets the whole gradient pass in place."""
    patch.wrap(nn.functional, "relu", lambda o, x, inplace=False: x + (o(x) - x).detach() if inplace else o(x))


@mutant("inplace.overlap.refused")
def overlapping_memory_is_written(patch):
    """Writes to expanded memory, one element many times."""
    patch.wrap(Tensor, "expand", lambda o, x, *s: o(x, *s).clone())


@mutant("inplace.saved.mutation-allowed")
def originals_are_lost(patch):
    """Clones nothing before a tensor is changed."""
    patch.source(
        graph._CloneArgBeforeMutateMode.__torch_dispatch__, "ctx.original[handle].clone()", "ctx.original[handle]"
    )


@mutant("inplace.saved.mutation-allowed")
def allowance_may_nest(patch):
    """Lets a second allowance begin within the first."""
    patch.source(graph.allow_mutation_on_saved_tensors, "if _allow_mutation_on_saved_tensors_enabled:", "if False:")


@mutant("inplace.version.counts")
def masked_filling_is_not_counted(patch):
    """Fills by way of the raw memory."""
    patch.wrap(Tensor, "masked_fill_", lambda o, x, *a: o(x.data, *a) is None or x)


@mutant("inplace.version.counts")
def zeroing_is_not_counted(patch):
    """Zeroes by way of the raw memory."""
    patch.wrap(Tensor, "zero_", lambda o, x: o(x.data) is None or x)


@mutant("inplace.recorded.chain-rule")
def in_place_returns_a_copy(patch):
    """Returns a copy of what it changed."""
    patch.wrap(Tensor, "mul_", lambda o, x, *a, **k: o(x, *a, **k).clone())


@mutant("inplace.activation.relu")
def in_place_relu_is_leaky(patch):
    """Lets a little of the negative side through."""
    patch.wrap(torch, "relu_", lambda o, x: torch._C._nn.leaky_relu_(x, 0.01))


@mutant("inplace.saved.mutation-allowed")
def only_out_arguments_are_cloned(patch):
    """Looks for what is written among the arguments named out alone."""
    patch.source(
        graph._CloneArgBeforeMutateMode.__torch_dispatch__,
        "arg.alias_info is not None and arg.alias_info.is_write",
        "arg.is_out",
    )


@mutant("inplace.saved.mutation-allowed")
def clones_are_never_used(patch):
    """Unpacks the tensor itself, changed or not."""
    mode = graph._CloneArgBeforeMutateMode.__torch_dispatch__
    patch.source(mode, "ctx.cloned[handle] = ", "ctx.unused = ")
    patch.source(mode, "del ctx.original[handle]", "pass")


@mutant("inplace.saved.mutation-allowed")
def context_outlives_its_block(patch):
    """Keeps what it remembered after the block, and lets backward use it."""
    patch.source(graph._AllowMutationOnSavedContext.clear, "self.cloned.clear()", "return")
    patch.source(
        graph.allow_mutation_on_saved_tensors,
        "_allow_mutation_on_saved_tensors_enabled = False",
        "_allow_mutation_on_saved_tensors_enabled = None or True",
    )


@mutant("inplace.version.shared-by-views", "inplace.saved.detached-alias-modified")
def detached_aliases_count_for_themselves(patch):
    """Gives a detached tensor a version of its own, as .data has."""
    patch.wrap(Tensor, "detach", lambda o, x: o(x).data)


@mutant("inplace.recorded.through-a-view", "inplace.recorded.base-reaches-the-view", "inplace.saved.view-modified")
def indexing_copies(patch):
    """Copies the row, as fancy indexing does."""
    patch.wrap(Tensor, "__getitem__", lambda o, x, i: o(x, i).clone())


@mutant("inplace.leaf.allowed-in-no-grad")
def update_is_out_of_place(patch):
    """Returns the difference and leaves the leaf as it was."""
    patch.wrap(Tensor, "sub_", lambda o, x, y: x.detach() - y)


@mutant("inplace.recorded.overwritten-gets-zero")
def overwritten_elements_pass_gradients(patch):
    """Writes the values, and passes the whole gradient as if nothing had been written."""
    patch.wrap(Tensor, "__setitem__", lambda o, x, i, v: o(x.data, i, v) if not torch.is_tensor(v) else o(x, i, v))


@mutant("inplace.version.increment")
def first_version_alone_is_incremented(patch):
    """Counts up the first of several tensors."""
    patch.source(graph.increment_version, "_increment_version(tensor)", "_increment_version([*tensor][:1])")


@mutant("inplace.version.increment", "inplace.version.counts")
def versions_are_always_zero(patch):
    """Tells nothing of what was counted."""
    patch.set(Tensor, "_version", property(lambda x: 0))


@mutant("inplace.recorded.several-outputs", "inplace.leaf.view-refused")
def changes_of_views_are_made_elsewhere(patch):
    """Changes a copy where the view must not be changed."""
    for name in ("mul_", "add_"):
        patch.wrap(Tensor, name, lambda o, x, *a, **k: o(x.detach().clone() if x._is_view() else x, *a, **k))


@mutant("inplace.saved.mutation-of-lists-allowed")
def lists_are_changed_without_a_copy(patch):
    """Copies what is saved before a tensor changes, and forgets the tensors in a list."""

    def dispatch(original, mode, function, types, args=(), kwargs=None):
        if "foreach" in str(function):
            return function(*args, **kwargs or {})
        return original(mode, function, types, args, kwargs)

    patch.wrap(graph._CloneArgBeforeMutateMode, "__torch_dispatch__", dispatch)


@mutant("inplace.saved.mutation-forgotten")
def copies_are_kept(patch):
    """Keeps the copies when the context is left."""
    patch.source(graph.allow_mutation_on_saved_tensors, "ctx.clear()", "pass")
