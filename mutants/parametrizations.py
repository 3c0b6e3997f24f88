"""The ways in which weights computed from other tensors go wrong."""

import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from torch_conformance.mutation import NotApplicable, mutant

Orthogonal = parametrizations._Orthogonal
Spectral = parametrizations._SpectralNorm
List = parametrize.ParametrizationList
spectral = utils.spectral_norm
SpectralHook = spectral.__globals__["SpectralNorm"]
SpectralLoading = spectral.__globals__["SpectralNormLoadStateDictPreHook"]
SpectralSaving = spectral.__globals__["SpectralNormStateDictHook"]
WeightHook = utils.weight_norm.__globals__["WeightNorm"]


@mutant("parametrizations.orthogonal.law", "parametrizations.orthogonal.orthonormal")
def cayley_with_a_whole_step(patch):
    """Solves against I - A instead of I - A / 2, as one does who mixes two forms of the Cayley map."""
    patch.source(Orthogonal.forward, "alpha=-0.5", "alpha=-1.0")


@mutant("parametrizations.orthogonal.orthonormal")
def not_skew(patch):
    """Adds the transpose instead of subtracting it."""
    patch.source(Orthogonal.forward, "A = X - X.m", "A = X + X.m")


@mutant("parametrizations.orthogonal.law")
def reads_the_upper_triangle(patch):
    """Takes the other triangle of the free matrix."""
    patch.source(Orthogonal.forward, "X = X.tril()", "X = X.triu()")


@mutant("parametrizations.orthogonal.law")
def forgets_the_extra_matrix(patch):
    """Leaves the base out once the original is away from zero, as in a map without trivialization."""
    patch.source(Orthogonal.forward, "Q = self.base @ Q", "Q = (self.base @ Q) if not X.tril(-1).any() else Q")


@mutant("parametrizations.orthogonal.batches")
def reflectors_over_the_whole_batch(patch):
    """Sums the squares of a reflector over every dimension."""
    patch.source(Orthogonal.forward, "(A * A).sum(dim=-2)", "(A * A).sum(dim=0)")


@mutant("parametrizations.orthogonal.batches")
def signs_of_the_first_matrix(patch):
    """Reads the diagonal of R from the first two dimensions."""
    patch.source(parametrizations._make_orthogonal, "X.diagonal(dim1=-2, dim2=-1)", "X.diagonal(dim1=0, dim2=1)")


@mutant("parametrizations.orthogonal.starts-at-the-q")
def keeps_the_signs_of_lapack(patch):
    """Takes the Q that LAPACK returns, whose R has diagonal entries of either sign."""
    patch.source(parametrizations._make_orthogonal, "Q *= X", "X")


@mutant("parametrizations.orthogonal.starts-at-the-q")
def takes_every_square_for_orthogonal(patch):
    """Skips the QR decomposition of a square weight."""
    patch.source(Orthogonal.right_inverse, "if not _is_orthogonal(Q)", "if False")


@mutant("parametrizations.orthogonal.starts-at-the-q")
def shares_the_base_with_the_original(patch):
    """Keeps an orthogonal weight without copying it, and then overwrites it."""
    patch.source(Orthogonal.right_inverse, "Q = Q.clone()", "Q = Q")


@mutant("parametrizations.orthogonal.without-trivialization")
def assigns_without_trivialization(patch):
    """Takes the assigned value for the inverse of the exponential instead of refusing it."""
    patch.source(Orthogonal.right_inverse, "raise NotImplementedError(", "return Q_init if True else (")


@mutant("parametrizations.orthogonal.default-map")
def cayley_by_default(patch):
    """Chooses the Cayley map for square matrices."""
    patch.source(parametrizations.orthogonal, '"matrix_exp"\n', '"cayley"\n')


@mutant("parametrizations.orthogonal.default-map")
def trivialization_on_request(patch):
    """Makes the extra matrix an option that is off."""
    patch.set(parametrizations.orthogonal, "__kwdefaults__", {"use_trivialization": False})


@mutant("parametrizations.orthogonal.unitary")
def transposes_without_conjugating(patch):
    """Takes the transpose for the adjoint."""
    patch.source(Orthogonal.forward, "X.mH", "X.mT")


@mutant("parametrizations.orthogonal.errors")
def takes_any_shape(patch):
    """Leaves out the check of the shape that is assigned."""
    patch.source(Orthogonal.right_inverse, "Q.shape != self.shape", "False")


@mutant("parametrizations.orthogonal.errors")
def takes_vectors(patch):
    """Checks for no dimensions where fewer than two are meant."""
    patch.source(parametrizations.orthogonal, "weight.ndim < 2", "weight.ndim < 1")


@mutant("parametrizations.spectral-norm.outputs-in-front")
def transposed_convolutions_like_the_others(patch):
    """Normalises a transposed convolution along its inputs."""
    patch.source(parametrizations.spectral_norm, "dim = 1", "dim = 0")


@mutant("parametrizations.spectral-norm.outputs-in-front")
def starts_at_random(patch):
    """Leaves the vectors as they were drawn."""
    patch.source(Spectral.__init__, "self._power_method(weight_mat, 15)", "pass")


@mutant("parametrizations.spectral-norm.complex")
def iterates_by_the_transpose(patch):
    """Iterates by the transpose, where a complex matrix wants its adjoint."""
    patch.source(Spectral._power_method, "weight_mat.H", "weight_mat.mT")


@mutant("parametrizations.spectral-norm.vectors")
def vectors_without_eps(patch):
    """Divides a vector by its length whatever eps says."""
    patch.source(Spectral.forward, "dim=0, eps=self.eps", "dim=0")


@mutant("parametrizations.spectral-norm.eps")
def iterates_without_eps(patch):
    """Hands the default eps to the iteration."""
    patch.source(Spectral._power_method, "eps=self.eps", "eps=1e-12")


@mutant("parametrizations.spectral-norm.assignment")
def assignment_normalises(patch):
    """Stores the normalised value as the original."""
    patch.wrap(Spectral, "right_inverse", lambda original, part, value: value / value.norm())


@mutant("parametrizations.spectral-norm.defaults")
def two_iterations_by_default(patch):
    """Iterates twice an access unless told otherwise."""
    patch.set(parametrizations.spectral_norm, "__defaults__", ("weight", 2, 1e-12, None))


@mutant("parametrizations.spectral-norm.defaults")
def hook_with_a_coarse_eps(patch):
    """Takes the eps of a normalisation layer."""
    patch.set(spectral, "__defaults__", ("weight", 1, 10.0, None))


@mutant("parametrizations.spectral-norm.errors")
def no_iterations(patch):
    """Accepts zero iterations, which freeze the estimate."""
    patch.source(Spectral.__init__, "n_power_iterations <= 0", "n_power_iterations < 0")


@mutant("parametrizations.spectral-norm.errors")
def one_dimension_too_many(patch):
    """Compares the dimension with the number of dimensions by the wrong sign."""
    patch.source(Spectral.__init__, "dim >= ndim", "dim > ndim")


@mutant("parametrizations.spectral-hook.law")
def hook_iterates_in_eval_mode(patch):
    """Goes on iterating in eval mode, as the first release did."""
    patch.source(SpectralHook.__call__, "do_power_iteration=module.training", "do_power_iteration=True")


@mutant("parametrizations.spectral-hook.law")
def hook_iterates_once(patch):
    """Iterates once, whatever it was asked for."""
    patch.source(SpectralHook.compute_weight, "range(self.n_power_iterations)", "range(1)")


@mutant("parametrizations.spectral-hook.registers")
def hook_copies_the_parameter(patch):
    """Registers a copy, which the optimiser does not know."""
    patch.source(SpectralHook.apply, '"_orig", weight)', '"_orig", torch.nn.Parameter(weight.detach().clone()))')


@mutant("parametrizations.spectral-hook.registers")
def hook_starts_unnormalised(patch):
    """Draws the first left vector without normalising it."""
    patch.source(SpectralHook.apply, "u = F.normalize(weight.new_empty(h).normal_(0, 1), dim=0, eps=fn.eps)",
                 "u = weight.new_empty(h).normal_(0, 1)")  # fmt: skip


@mutant("parametrizations.spectral-hook.two-forwards")
def hook_shares_its_vectors_with_the_graph(patch):
    """Leaves out the copies, so that the second forward spoils the graph of the first."""
    patch.source(SpectralHook.compute_weight, "u.clone(memory_format=torch.contiguous_format)", "u")
    patch.source(SpectralHook.compute_weight, "v.clone(memory_format=torch.contiguous_format)", "v")


@mutant("parametrizations.spectral-hook.removal")
def removal_leaves_the_original(patch):
    """Puts the unnormalised weight back, as the first release did."""
    patch.source(SpectralHook.remove, "weight = self.compute_weight(module, do_power_iteration=False)",
                 'weight = getattr(module, self.name + "_orig")')  # fmt: skip


@mutant("parametrizations.spectral-hook.removal")
def removal_iterates_once_more(patch):
    """Estimates anew on removal, so that the weight is not the one of the last forward."""
    patch.source(SpectralHook.remove, "do_power_iteration=False", "do_power_iteration=True")


@mutant("parametrizations.spectral-hook.loads-after-removal")
def missing_keys_raise(patch):
    """Meets a key that is missing with a bare KeyError, whatever strict says, as a release of 2019 did."""
    patch.source(SpectralLoading.__call__, "has_missing_keys = True", "raise KeyError(key)")


@mutant("parametrizations.spectral-hook.several-weights")
def one_hook_a_module(patch):
    """Refuses a second weight of the same module."""
    patch.source(SpectralHook.apply, "and hook.name == name", "")


@mutant("parametrizations.spectral-hook.several-weights")
def removes_any_hook(patch):
    """Removes the first hook that it meets."""
    patch.source(utils.remove_spectral_norm, "isinstance(hook, SpectralNorm) and hook.name == name",
                 "isinstance(hook, SpectralNorm)")  # fmt: skip


@mutant("parametrizations.spectral-hook.errors")
def hook_on_nothing(patch):
    """Meets a parameter that is None with whatever error comes next."""
    patch.source(SpectralHook.apply, "if weight is None", "if False")


@mutant("parametrizations.spectral-hook.eps")
def hook_forgets_eps(patch):
    """Keeps the default eps."""
    patch.source(SpectralHook.__init__, "self.eps = eps", "self.eps = 1e-12")


@mutant("parametrizations.spectral-hook.state")
def state_without_version(patch):
    """Saves no version, so that the next format cannot be told from this one."""
    patch.wrap(SpectralSaving, "__call__", lambda *_: None)


@mutant("parametrizations.spectral-hook.state")
def plain_dicts_are_of_the_first_format(patch):
    """Takes every dict without metadata for one of the first format."""
    patch.source(SpectralLoading.__call__, "and weight_key not in state_dict", "and weight_key in state_dict")


@mutant("parametrizations.spectral-hook.first-format")
def first_format_upside_down(patch):
    """Takes the ratio of the two weights the wrong way round."""
    patch.source(SpectralLoading.__call__, "weight_orig / weight", "weight / weight_orig")


@mutant("parametrizations.weight-norm.loads-the-hooks-state")
def state_crosswise(patch):
    """Confuses length and direction of the old format."""
    patch.source(parametrizations.weight_norm, 'f"{prefix}{name}_g"', 'f"{prefix}{name}_v"')


@mutant("parametrizations.weight-norm.removal-leaves-nothing")
def removal_leaves_the_class(patch):
    """Leaves the injected class behind, which cannot be pickled for another reason than the one that is listed."""
    patch.source(parametrize.remove_parametrizations, "module.__class__ = orig_cls", "pass")


@mutant("parametrizations.weight-hook.law")
def hook_computes_once(patch):
    """Computes the weight when it is applied, and never again."""
    patch.wrap(WeightHook, "__call__", lambda *_: None)


@mutant("parametrizations.weight-hook.law")
def hook_along_the_last_dimension(patch):
    """Takes None for the last dimension instead of for all."""
    patch.wrap(utils, "weight_norm", lambda f, m, name="weight", dim=0: f(m, name, 2 if dim is None else dim))


@mutant("parametrizations.weight-hook.registers")
def hook_keeps_the_parameter(patch):
    """Leaves the weight itself among the parameters that the optimiser gets."""

    def apply(original, module, name, dim):
        weight = module._parameters[name]
        made = original(module, name, dim)
        module.register_parameter(name + "_old", weight)
        return made

    patch.wrap(WeightHook, "apply", apply)


@mutant("parametrizations.weight-hook.registers")
def removal_leaves_a_tensor(patch):
    """Puts the computed weight back as a tensor, not as a parameter."""
    patch.source(WeightHook.remove, "Parameter(weight.data)", "weight.data")


@mutant("parametrizations.weight-hook.several-weights")
def one_weight_norm_a_module(patch):
    """Refuses a second weight of the same module."""
    patch.source(WeightHook.apply, "and hook.name == name", "")


@mutant("parametrizations.weight-hook.deprecated")
def deprecated_in_silence(patch):
    """Says nothing of the successor."""
    patch.set(WeightHook, "apply", staticmethod(getattr(WeightHook.apply, "__wrapped__", WeightHook.apply)))


@mutant("parametrizations.several-tensors.registered")
def several_tensors_require_gradients(patch):
    """Makes parameters that require gradients out of frozen ones."""
    patch.source(List.__init__, "Parameter(originali, original.requires_grad)", "Parameter(originali)")
    patch.source(List.__init__, "originali.requires_grad_(original.requires_grad)", "pass")


@mutant("parametrizations.several-tensors.assigned")
def assigns_too_few(patch):
    """Takes a sequence of any length."""
    patch.source(List.right_inverse, "len(value) != self.ntensors", "False")


@mutant("parametrizations.several-tensors.removal")
def removal_detaches(patch):
    """Leaves a buffer where a parameter was computed from."""
    patch.source(parametrize.remove_parametrizations, "Parameter(t) if t.requires_grad else t", "t.detach()")


@mutant("parametrizations.registration.right-inverse")
def right_inverse_in_order_of_registration(patch):
    """Leaves the right_inverse out at registration."""
    patch.source(List.__init__, 'hasattr(module, "right_inverse")', "False")


@mutant("parametrizations.registration.checked")
def checks_the_first_only(patch):
    """Does not look at the parametrizations registered on top of others."""
    patch.source(parametrize.register_parametrization, "if not unsafe:", "if False:")


@mutant("parametrizations.registration.checked")
def checks_no_right_inverse(patch):
    """Checks forward, but not its inverse."""
    patch.source(parametrize.register_parametrization, 'hasattr(parametrization, "right_inverse")', "False")


@mutant("parametrizations.registration.unsafe")
def safe_again(patch):
    """Lets the last registration decide."""
    patch.source(parametrize.register_parametrization, ".unsafe |= unsafe", ".unsafe = unsafe")


@mutant("parametrizations.registration.assigned-dtype")
def assignment_converts(patch):
    """Converts an assigned value to the dtype of the original."""
    patch.source(List.right_inverse, "if value.dtype != self.original.dtype", "if False")


@mutant("parametrizations.registration.class")
def class_restored_too_early(patch):
    """Restores the class with the first parametrization that goes."""
    patch.source(parametrize.remove_parametrizations, "if not is_parametrized(module):", "if True:")


@mutant("parametrizations.removal.same-parameter")
def removal_makes_a_new_parameter(patch):
    """Registers a new parameter, which the optimiser does not know."""
    patch.source(parametrize.remove_parametrizations, "_register_parameter_or_buffer(module, tensor_name, original)",
                 "_register_parameter_or_buffer(module, tensor_name, type(original)(original.detach()))")  # fmt: skip


@mutant("parametrizations.module.copied-not-pickled")
def copies_without_slots(patch):
    """Copies the dictionary alone."""
    patch.source(parametrize._inject_new_class, "if hasattr(self, slot)", "if False")


@mutant("parametrizations.transfer.all-or-one")
def transfers_everything(patch):
    """Transfers all parametrizations, whatever was named."""
    patch.source(parametrize.transfer_parametrizations_and_params, "if tensor_name is None else [tensor_name]", "")


@mutant("parametrizations.transfer.all-or-one")
def transfers_the_first_tensor_only(patch):
    """Stops after the first of several tensors."""
    patch.source(parametrize.transfer_parametrizations_and_params, "num = num + 1", "num = num + 2")


@mutant("parametrizations.swap.keeps-the-object")
def swaps_in_a_tensor(patch):
    """Swaps a plain tensor into the parameter's place."""
    patch.source(parametrize._maybe_set, "not isinstance(src, Parameter)", "False")


@mutant("parametrizations.swap.keeps-the-object")
def swaps_requires_grad_away(patch):
    """Makes every swapped parameter require gradients."""
    patch.source(parametrize._maybe_set, "requires_grad=dest.requires_grad", "requires_grad=True")


@mutant("parametrizations.registration.recurrent")
def recurrent_layer_keeps_its_list_of_weights(patch):
    """Hands the kernel the weights that the layer was made with."""
    if not hasattr(nn.RNNBase, "_weights_have_changed"):
        raise NotApplicable("this torch does so already")
    patch.set(nn.RNNBase, "_weights_have_changed", lambda layer: False)


@mutant("parametrizations.several-tensors.whole-numbers")
def several_tensors_require_gradients_at_first(patch):
    """Makes each of several tensors a parameter that requires gradients, and lets it have its flag afterwards."""
    patch.source(List.__init__, "Parameter(originali, original.requires_grad)", "Parameter(originali)")


@mutant("parametrizations.weight-norm.on-meta")
def weight_norm_wants_memory(patch):
    """Has no kernel for the meta device, as torch until 2.2."""

    def weight_norm(original, v, g, *rest):
        if v.is_meta:
            raise NotImplementedError("no kernel for Meta")
        return original(v, g, *rest)

    patch.wrap(torch, "_weight_norm", weight_norm)


@mutant("parametrizations.pruning.frobenius")
def channels_are_pruned_by_their_sum(patch):
    """Takes the sum of the magnitudes, whatever norm was asked for."""
    patch.wrap(prune, "_compute_norm", lambda original, t, n, dim: t.abs().transpose(0, dim).flatten(1).sum(1))


@mutant("parametrizations.weight-norm.named")
def first_weight_is_normalised(patch):
    """Takes the first weight that there is, whatever the name."""
    patch.wrap(parametrizations, "weight_norm", lambda original, module, name="weight", dim=0: original(
        module, next(iter(dict(module.named_parameters()))), dim))  # fmt: skip


@mutant("parametrizations.pruning.importance")
def scores_for_nothing(patch):
    """Takes scores and prunes by the weights."""
    patch.source(prune.BasePruningMethod.apply, "compute_mask(importance_scores,", "compute_mask(orig,")


@mutant("parametrizations.pruning.importance")
def scores_of_all_for_nothing(patch):
    """Takes scores of several parameters and prunes by their values."""
    patch.source(prune.global_unstructured, "importance_scores.get((module, name), ", "importance_scores.get(None, ")


@mutant("parametrizations.pruning.random-channels")
def random_channels_of_the_first_dimension(patch):
    """Forgets along which dimension the channels lie."""
    patch.source(prune.RandomStructured.compute_mask, "make_mask(t, self.dim, ", "make_mask(t, 0, ")
