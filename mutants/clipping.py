"""The ways in which an implementation of gradient clipping goes wrong."""

from torch.nn.utils import clip_grad, convert_parameters

from torch_conformance.mutation import mutant


@mutant("clipping.norm.law")
def norm_of_two_always(patch):
    """Takes the Euclidean norm whatever is asked."""
    patch.source(clip_grad._get_total_norm, "norm_type = float(norm_type)", "norm_type = 2.0")


@mutant("clipping.norm.law")
def norm_adds_norms(patch):
    """Adds the tensors' norms up."""
    patch.source(
        clip_grad._get_total_norm,
        "torch.stack([norm.to(first_device) for norm in norms]), norm_type",
        "torch.stack([norm.to(first_device) for norm in norms]), 1.0",
    )


@mutant("clipping.norm.never-enlarges")
def norm_enlarges(patch):
    """Scales small gradients up to the norm."""
    patch.source(clip_grad._clip_grads_with_norm_, "torch.clamp(clip_coef, max=1.0)", "clip_coef")


@mutant("clipping.norm.eps")
def norm_without_eps(patch):
    """Leaves the 1e-6 out."""
    patch.source(clip_grad._clip_grads_with_norm_, "total_norm + 1e-6", "total_norm")


@mutant("clipping.norm.returns-the-norm-before")
def norm_returned_after(patch):
    """Returns what is left after clipping."""
    patch.source(clip_grad.clip_grad_norm_, "return total_norm", "return total_norm.clamp(max=max_norm)")


@mutant("clipping.norm.in-place")
def norm_out_of_place(patch):
    """Puts new gradients in the old ones' place."""
    patch.source(
        clip_grad._clip_grads_with_norm_,
        "clip_coef = max_norm",
        "for p in parameters:\n        p.grad = None if p.grad is None else p.grad.clone()\n    grads[:] = [p.grad for p in parameters if p.grad is not None]\n    grouped_grads = _group_tensors_by_device_and_dtype([grads])\n    clip_coef = max_norm",  # noqa: E501
    )


@mutant("clipping.norm.any-iterable")
def generators_run_dry(patch):
    """Walks a generator twice."""
    patch.source(clip_grad.clip_grad_norm_, "parameters = list(parameters)", "pass")


@mutant("clipping.norm.nothing-to-clip")
def nothing_to_clip_raises(patch):
    """Stumbles over an empty list."""
    patch.source(clip_grad._get_total_norm, "return torch.tensor(0.0)", "return torch.stack(tensors)")


@mutant("clipping.norm.nonfinite")
def nonfinite_left_alone(patch):
    """Leaves gradients alone when the norm is not finite."""
    patch.source(
        clip_grad._clip_grads_with_norm_,
        "clip_coef = max_norm",
        "if not torch.isfinite(total_norm):\n        return\n    clip_coef = max_norm",
    )


@mutant("clipping.norm.error-if-nonfinite")
def nan_is_no_error(patch):
    """Looks for infinity alone."""
    patch.source(
        clip_grad._get_total_norm, "torch.logical_or(total_norm.isnan(), total_norm.isinf())", "total_norm.isinf()"
    )


@mutant("clipping.norm.several-dtypes")
def norm_of_the_first_dtype(patch):
    """Takes the first dtype's gradients alone into the norm."""
    patch.source(clip_grad._get_total_norm, "grouped_tensors.items()", "list(grouped_tensors.items())[:1]")


@mutant("clipping.norm.in-two-halves")
def halves_differ(patch):
    """Clips by another norm than the public half returns."""
    patch.source(
        clip_grad.clip_grad_norm_,
        "_clip_grads_with_norm_(parameters, max_norm, total_norm, foreach)",
        "_clip_grads_with_norm_(parameters, max_norm, total_norm * 2, foreach)",
    )


@mutant("clipping.norm.counts-nonzeros")
def zero_norm_counts_elements(patch):
    """Counts all elements that are not zero: the myth made true."""

    def norm(original, tensors, norm_type=2.0, *args, **kwargs):
        if norm_type == 0:
            return sum((t != 0).sum() for t in tensors).float()
        return original(tensors, norm_type, *args, **kwargs)

    patch.wrap(clip_grad, "_get_total_norm", norm)


@mutant("clipping.value.law")
def value_clamps_above_only(patch):
    """Clamps from above alone in the loop."""
    patch.source(
        clip_grad.clip_grad_value_, "grad).clamp_(min=-clip_value, max=clip_value)", "grad).clamp_(max=clip_value)"
    )


@mutant("clipping.value.law")
def value_foreach_clamps_at_zero(patch):
    """Clamps at zero from below in the foreach path."""
    patch.source(
        clip_grad.clip_grad_value_,
        "torch._foreach_clamp_min_(cast(list[Tensor], grads), -clip_value)",
        "torch._foreach_clamp_min_(cast(list[Tensor], grads), 0.0)",
    )


@mutant("clipping.value.not-recorded")
def value_recorded(patch):
    """Records the clamping."""
    patch.source(clip_grad.clip_grad_value_, "clip_value = float(clip_value)", "torch.set_grad_enabled(True)")


@mutant("clipping.norm.sparse")
def norm_passes_sparse_gradients_over(patch):
    """Takes dense gradients alone, and says nothing of the others."""
    patch.source(clip_grad.clip_grad_norm_, "if p.grad is not None", "if p.grad is not None and not p.grad.is_sparse")


@mutant("clipping.value.in-place")
def value_out_of_place(patch):
    """Puts clamped copies in the gradients' place."""
    patch.source(
        clip_grad.clip_grad_value_,
        "grouped_grads =",
        "for p in parameters:\n        p.grad = None if p.grad is None else p.grad.clone()\n    grads = [p.grad for p in parameters if p.grad is not None]\n    grouped_grads =",  # noqa: E501
    )


@mutant("clipping.vector.round-trip")
def vector_by_columns(patch):
    """Lays matrices out column by column."""
    patch.source(
        convert_parameters.parameters_to_vector,
        "param.view(-1)",
        "param.t().reshape(-1) if param.ndim == 2 else param.view(-1)",
    )


@mutant("clipping.vector.differentiable")
def vector_cut_from_the_graph(patch):
    """Detaches the vector."""
    patch.source(convert_parameters.parameters_to_vector, "param.view(-1)", "param.detach().view(-1)")


@mutant("clipping.vector.wants-a-vector")
def anything_is_a_vector(patch):
    """Makes a vector of whatever it gets."""
    patch.source(
        convert_parameters.vector_to_parameters,
        "if not isinstance(vec, torch.Tensor):",
        "vec = torch.as_tensor(vec)\n    if not isinstance(vec, torch.Tensor):",
    )


@mutant("clipping.norm.order-as-text")
def order_as_number_only(patch):
    """Takes the order as it is given, which the kernels then refuse."""
    patch.source(clip_grad._get_total_norm, "norm_type = float(norm_type)", "norm_type + 0.0")


@mutant("clipping.norm.empty-generator")
def empty_in_silence(patch):
    """Says nothing of a generator that another call has used up."""
    patch.source(clip_grad.clip_grad_norm_, "is_generator and len(parameters) == 0", "False")


@mutant("clipping.norm.deprecated-name")
def old_name_wants_finite_norms(patch):
    """Hands the options of the old name on in another order."""
    patch.source(clip_grad.clip_grad_norm, "norm_type, error_if_nonfinite, foreach", "norm_type, True, foreach")


@mutant("clipping.norm.deprecated-name")
def old_name_knows_the_euclidean_norm_alone(patch):
    """Forgets the norm that is asked for."""
    patch.source(clip_grad.clip_grad_norm, "norm_type, error_if_nonfinite, foreach", "2.0, error_if_nonfinite, foreach")


@mutant("clipping.norm.deprecated-name")
def old_name_takes_everything(patch):
    """Forgets to ask for finite values."""
    patch.source(clip_grad.clip_grad_norm, "norm_type, error_if_nonfinite, foreach", "norm_type, False, foreach")


@mutant("clipping.foreach.devices")
def foreach_falls_back_in_silence(patch):
    """Takes the loop where foreach was asked for and there is none."""
    patch.source(clip_grad.clip_grad_value_, "elif foreach:", "elif False:")


@mutant("clipping.foreach.devices")
def norm_falls_back_in_silence(patch):
    """Takes the loop of norms where foreach was asked for and there is none."""
    patch.source(clip_grad._get_total_norm, "elif foreach:", "elif False:")


@mutant("clipping.value.one-tensor")
def values_of_many_tensors_only(patch):
    """Iterates over a tensor as over a list of its elements."""
    patch.source(clip_grad.clip_grad_value_, "isinstance(parameters, torch.Tensor)", "False")


@mutant("clipping.norm.in-two-halves")
def scaling_of_many_tensors_only(patch):
    """Iterates over a tensor as over a list of its elements when scaling."""
    patch.source(clip_grad._clip_grads_with_norm_, "isinstance(parameters, torch.Tensor)", "False")


@mutant("clipping.norm.in-two-halves")
def norm_of_many_tensors_only(patch):
    """Iterates over a tensor as over a list of its rows when taking the norm: of each element alone the same."""
    patch.source(clip_grad._get_total_norm, "tensors = [tensors]", "tensors = [tensors[1:]]")


@mutant("clipping.value.nothing-to-clip")
def value_wants_a_gradient(patch):
    """Looks at the first gradient, whether there is one or not."""
    patch.source(
        clip_grad.clip_grad_value_,
        "clip_value = float(clip_value)",
        "clip_value = float(clip_value)\n    grads = [p.grad for p in parameters if p.grad is not None]\n    grads[0]",
    )
