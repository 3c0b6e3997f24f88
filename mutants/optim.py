"""The ways in which an implementation of the optimisers goes wrong."""

import inspect

import torch
from torch.optim import (
    adadelta,
    adagrad,
    adam,
    adamax,
    asgd,
    lbfgs,
    nadam,
    optimizer,
    radam,
    rmsprop,
    rprop,
    sgd,
    sparse_adam,
)

from torch_conformance.mutation import NotApplicable, mutant

Optimizer = optimizer.Optimizer


def optional(name):
    """A module of torch.optim that not every version has."""
    found = getattr(torch.optim, name, None)
    if found is None:
        raise NotApplicable(f"torch.optim has no {name}")
    return found


@mutant("optim.sgd.law")
def sgd_dampens_by_momentum(patch):
    """Dampens by 1 - momentum, as an average would."""
    patch.source(sgd._single_tensor_sgd, "alpha=1 - dampening", "alpha=1 - momentum")


@mutant("optim.sgd.law")
def sgd_nesterov_looks_back(patch):
    """Takes the buffer twice instead of gradient and buffer."""
    patch.source(
        sgd._multi_tensor_sgd,
        "torch._foreach_add_(device_grads, bufs, alpha=momentum)",
        "device_grads = torch._foreach_mul(bufs, 1 + momentum)",
    )


@mutant("optim.sgd.law")
def sgd_fused_ignores_decay(patch):
    """Leaves the decay out of the fused kernel's arguments."""

    def sgd_(original, *args, weight_decay, **kwargs):
        return original(*args, weight_decay=0.0, **kwargs)

    patch.wrap(torch, "_fused_sgd_", sgd_)


@mutant("optim.sgd.first-buffer-undampened")
def sgd_first_buffer_dampened(patch):
    """Starts the buffer at zero, so that the first gradient is dampened: the textbook's momentum."""
    patch.source(sgd._single_tensor_sgd, "buf = grad.detach().clone()", "buf = grad.detach() * (1 - dampening)")


@mutant("optim.sgd.first-buffer-undampened")
def sgd_first_buffer_aliases(patch):
    """Keeps the gradient itself as the first buffer, and spoils it at the next step."""
    patch.source(sgd._single_tensor_sgd, "buf = grad.detach().clone()", "buf = grad.detach()")


@mutant("optim.adam.law")
def adam_eps_inside_the_root(patch):
    """Adds eps under the root, as TensorFlow does."""
    patch.source(
        adam._single_tensor_adam,
        "(exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps)",
        "((exp_avg_sq + eps).sqrt() / bias_correction2_sqrt)",
    )


@mutant("optim.adam.law")
def adam_foreach_forgets_second_correction(patch):
    """Leaves the second moment uncorrected in the foreach path."""
    patch.source(
        adam._multi_tensor_adam,
        "bias_correction2_sqrt = [bc**0.5 for bc in bias_correction2]",
        "bias_correction2_sqrt = [1.0 for bc in bias_correction2]",
    )


@mutant("optim.adam.law")
def adam_fused_swaps_betas(patch):
    """Hands the fused kernel the betas the wrong way round."""

    def adam_(original, *args, beta1, beta2, **kwargs):
        return original(*args, beta1=beta2, beta2=beta1, **kwargs)

    patch.wrap(torch, "_fused_adam_", adam_)


@mutant("optim.adam.amsgrad")
def amsgrad_forgets_the_maximum(patch):
    """Takes the present moment where the greatest is due."""
    patch.source(
        adam._multi_tensor_adam,
        "exp_avg_sq_sqrt = torch._foreach_sqrt(device_max_exp_avg_sqs)",
        "exp_avg_sq_sqrt = torch._foreach_sqrt(device_exp_avg_sqs)",
    )


@mutant("optim.adam.amsgrad")
def amsgrad_of_corrected_moments(patch):
    """Takes the maximum of the present moment and itself: the state stays zero."""
    patch.source(
        adam._single_tensor_adam,
        "torch.maximum(max_exp_avg_sqs[i], exp_avg_sq, out=max_exp_avg_sqs[i])",
        "max_exp_avg_sqs[i].copy_(exp_avg_sq)",
    )


@mutant("optim.adamw.law", "optim.adamw.decay-is-not-the-penalty")
def adamw_penalises(patch):
    """Adds the decay to the gradient, as Adam does."""
    patch.source(adam._single_tensor_adam, "if decoupled_weight_decay:", "if False:")


@mutant("optim.adamw.law")
def adamw_decays_without_lr(patch):
    """Shrinks by the decay alone, whatever the rate."""
    patch.source(adam._multi_tensor_adam, "1 - lr * weight_decay", "1 - weight_decay")


@mutant("optim.adamw.law")
def adamw_default_decay_zero(patch):
    """Makes AdamW with Adam's default, no decay."""

    def init(original, self, params, *args, weight_decay=0.0, **kwargs):
        original(self, params, *args, weight_decay=weight_decay, **kwargs)

    patch.wrap(torch.optim.AdamW, "__init__", init)


@mutant("optim.adamw.without-decay-is-adam")
def adamw_slower_without_decay(patch):
    """Lets AdamW add an eps of its own."""

    def init(original, self, params, *args, eps=1e-8, **kwargs):
        original(self, params, *args, eps=eps * 1.5, **kwargs)

    patch.wrap(torch.optim.AdamW, "__init__", init)


@mutant("optim.adamw.is-adam")
def adamw_stands_alone(patch):
    """Derives AdamW from the base class, as before 2.7."""
    patch.set(torch.optim, "AdamW", type("AdamW", (Optimizer,), dict(vars(torch.optim.AdamW))))


@mutant("optim.nadam.law")
def nadam_schedule_late(patch):
    """Takes the momentum of this step where that of the next is due."""
    patch.source(nadam._single_tensor_nadam, "(step + 1) * momentum_decay", "step * momentum_decay")


@mutant("optim.nadam.law")
def nadam_foreach_counts_twice(patch):
    """Multiplies mu into the next product twice, as 1.13 did in its loop."""
    patch.source(
        nadam._multi_tensor_nadam, "_get_value(mu_product) * mu_next", "_get_value(mu_product) * mu_next * mu_next"
    )


@mutant("optim.radam.law")
def radam_never_rectifies(patch):
    """Leaves the rectification out once the variance is tractable."""
    patch.source(radam._single_tensor_radam, "* _compute_rect()", "* 1.0")


@mutant("optim.radam.law")
def radam_threshold_four(patch):
    """Rectifies from rho above 4 on, as the paper's text says and its code does not."""
    patch.source(radam._single_tensor_radam, "if rho_t > 5.0:", "if rho_t > 4.0:")


@mutant("optim.adagrad.law")
def adagrad_decays_from_the_first(patch):
    """Decays the rate at the first step already."""
    patch.source(adagrad._single_tensor_adagrad, "(step - 1) * lr_decay", "step * lr_decay")


@mutant("optim.adagrad.law")
def adagrad_foreach_overwrites(patch):
    """Keeps the last square instead of the sum in the foreach path."""
    patch.source(
        adagrad._multi_tensor_adagrad,
        "torch._foreach_addcmul_(",
        "torch._foreach_zero_(device_state_sums); torch._foreach_addcmul_(",
    )


@mutant("optim.adadelta.law")
def adadelta_eps_outside(patch):
    """Adds eps after the root."""
    patch.source(
        adadelta._single_tensor_adadelta, "std = square_avg.add(eps).sqrt_()", "std = square_avg.sqrt().add_(eps)"
    )


@mutant("optim.adadelta.law")
def adadelta_foreach_scales_its_memory(patch):
    """Remembers moves without the rate's share of their mean."""
    patch.source(
        adadelta._multi_tensor_adadelta,
        "torch._foreach_addcmul_(device_acc_deltas, deltas, deltas, value=1 - rho)",
        "torch._foreach_addcmul_(device_acc_deltas, deltas, deltas, value=rho)",
    )


@mutant("optim.rmsprop.law")
def rmsprop_eps_inside(patch):
    """Adds eps under the root, as TensorFlow does."""
    patch.source(rmsprop._single_tensor_rmsprop, "avg = square_avg.sqrt()", "avg = (square_avg + eps).sqrt() - eps")


@mutant("optim.rmsprop.law")
def rmsprop_rate_within_the_buffer(patch):
    """Multiplies by the rate before the buffer, as TensorFlow does: the buffer differs."""
    patch.source(
        rmsprop._single_tensor_rmsprop,
        "buf.mul_(momentum).addcdiv_(grad, avg)",
        "buf.mul_(momentum).addcdiv_(grad, avg, value=0.5)",
    )


@mutant("optim.rmsprop.centered")
def rmsprop_centres_by_the_square(patch):
    """Takes the mean off instead of its square."""
    patch.source(
        rmsprop._single_tensor_rmsprop,
        "square_avg.addcmul(grad_avg, grad_avg, value=-1)",
        "square_avg.sub(grad_avg.abs() * 0.1)",
    )


@mutant("optim.adamax.law")
def adamax_without_eps(patch):
    """Leaves eps out of the maximum."""
    patch.source(adamax._single_tensor_adamax, "grad.abs().add_(eps)", "grad.abs()")


@mutant("optim.adamax.law")
def adamax_foreach_forgets_decay(patch):
    """Never lets the maximum decay."""
    patch.source(
        adamax._multi_tensor_adamax,
        "torch._foreach_mul_(grouped_exp_infs, beta2)",
        "torch._foreach_mul_(grouped_exp_infs, 1.0)",
    )


@mutant("optim.asgd.law")
def asgd_averages_from_the_start(patch):
    """Averages from the first step on, whatever t0."""
    patch.source(asgd._single_tensor_asgd, "max(1, step - t0)", "max(1, step)")


@mutant("optim.asgd.law")
def asgd_decays_by_the_penalty(patch):
    """Leaves lambd out of the parameter's decay."""
    patch.source(asgd._single_tensor_asgd, "param.mul_(1 - lambd * eta_value)", "param.mul_(1)")


@mutant("optim.rprop.law")
def rprop_steps_at_a_turn(patch):
    """Takes the step although the sign has turned."""
    patch.source(rprop._single_tensor_rprop, "grad[sign.eq(etaminus)] = 0", "pass")


@mutant("optim.rprop.law")
def rprop_never_clamps(patch):
    """Lets steps grow and shrink without limit."""
    patch.source(rprop._multi_tensor_rprop, "step_size.clamp_(step_size_min, step_size_max)", "pass")


@mutant("optim.sparse.sparse-adam")
def sparse_adam_reads_all_as_first(patch):
    """Corrects every step as if it were the first."""
    patch.source(torch.optim._functional.sparse_adam, "step = state_steps[i]", "step = 1")


@mutant("optim.sparse.duplicates-are-summed")
def sparse_adam_without_coalescing(patch):
    """Takes rows stored twice as two gradients."""
    patch.source(
        torch.optim._functional.sparse_adam,
        "grad = grad.coalesce()",
        "grad = grad.new(grad._indices()[:, :3], grad._values()[:3], grad.size()).coalesce()",
    )


@mutant("optim.sparse.adagrad-and-sgd")
def adagrad_sparse_ignores_maximize(patch):
    """Descends along sparse gradients even when asked to climb."""
    patch.source(
        adagrad._single_tensor_adagrad,
        "grad if not maximize else -grad",
        "grad if not maximize or grad.is_sparse else -grad",
    )


@mutant("optim.sparse.others-refuse")
def others_densify(patch):
    """Makes sparse gradients dense in silence."""

    def init_group(original, self, group, *args):
        for p in group["params"]:
            if p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.to_dense()
        return original(self, group, *args)

    for name in ("Adam", "NAdam", "RAdam", "Adadelta", "RMSprop", "Adamax", "ASGD", "Rprop"):
        patch.wrap(getattr(torch.optim, name), "_init_group", init_group)


@mutant("optim.sparse.sparse-adam-refuses-dense")
def sparse_adam_takes_dense(patch):
    """Turns dense gradients into sparse ones in silence."""

    def step(original, self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not p.grad.is_sparse:
                    p.grad = p.grad.to_sparse()
        return original(self, closure)

    patch.wrap(sparse_adam.SparseAdam, "step", step)


@mutant("optim.adafactor.law")
def adafactor_averages_by_sums(patch):
    """Takes sums over rows where means are due."""
    patch.source(optional("_adafactor")._single_tensor_adafactor, ".div_(grad.size(-1))", ".div_(1)")


@mutant("optim.adafactor.law")
def adafactor_clips_at_one(patch):
    """Clips at one whatever d."""
    patch.source(
        optional("_adafactor")._multi_tensor_adafactor,
        "((update.numel() ** 0.5) * d)",
        "((update.numel() ** 0.5) * 1.0)",
    )


@mutant("optim.adafactor.eps-of-each-dtype")
def adafactor_eps_of_float64(patch):
    """Takes float64's eps for every dtype."""
    patch.source(optional("_adafactor")._single_tensor_adafactor, "torch.finfo(param.dtype).eps", "0.0")


@mutant("optim.muon.law")
def muon_scales_by_the_wrong_side(patch):
    """Scales the rate by columns over rows."""
    patch.source(optional("_muon")._adjust_lr, "max(1, A / B)", "max(1, B / A)")


@mutant("optim.muon.law")
def muon_couples_decay(patch):
    """Decays by the weight decay alone, whatever the rate."""
    patch.source(optional("_muon")._single_tensor_muon, "1 - lr * weight_decay", "1 - weight_decay")


@mutant("optim.muon.momentum-kept")
def muon_normalises_what_it_is_given(patch):
    """Brings the buffer itself to norm one, of which bfloat16() then makes a copy too late."""
    patch.source(
        optional("_muon")._zeropower_via_newtonschulz,
        "ortho_grad = grad.bfloat16()",
        "ortho_grad = grad.div_(grad.norm().clamp(min=eps)).bfloat16()",
    )


@mutant("optim.muon.only-matrices")
def muon_takes_vectors(patch):
    """Does not look at the shape."""
    patch.source(optional("Muon").__init__, "if p.ndim != 2:", "if False:")


@mutant("optim.paths.low-precision", "optim.sgd.law")
def fused_skips_the_tail(patch):
    """Leaves the last element out, as a vectorised loop without its tail does."""

    def kernel(original, params, *args, **kwargs):
        last = [p.reshape(-1)[-1:].clone() for p in params]
        original(params, *args, **kwargs)
        for p, value in zip(params, last, strict=True):
            if p.is_contiguous() and p.ndim:
                p.view(-1)[-1:] = value

    patch.wrap(torch, "_fused_sgd_", kernel)
    patch.wrap(torch, "_fused_adam_", kernel)


@mutant("optim.paths.nan-stays-in-its-element")
def greatest_moment_ignores_nan(patch):
    """Takes the greater of two by a comparison, in which NaN is never greater."""

    def maximum(original, greatest, moments):
        for one, other in zip(greatest, moments, strict=True):
            one.copy_(torch.fmax(one, other))

    patch.wrap(torch, "_foreach_maximum_", maximum)


@mutant("optim.paths.many-tensors")
def foreach_loses_the_last_of_many(patch):
    """Launches a kernel for every 32 tensors, and none for the rest."""

    def lists(original, params, *args, **kwargs):
        kept = [p.clone() for p in params[len(params) // 32 * 32 :]] if len(params) > 32 else []
        original(params, *args, **kwargs)
        for p, value in zip(params[len(params) - len(kept) :], kept, strict=True):
            p.copy_(value)

    patch.wrap(adam, "_multi_tensor_adam", lists)


@mutant("optim.paths.complex")
def complex_as_magnitude(patch):
    """Squares complex gradients as they are, without taking them apart."""
    patch.source(
        adam._single_tensor_adam,
        "exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)",
        "exp_avg_sq.mul_(beta2).addcmul_(grad, grad.flip(-1) if has_complex else grad, value=1 - beta2)",
    )


@mutant("optim.paths.fused-refuses-complex")
def fused_takes_anything(patch):
    """Leaves the check for dtypes out, and the kernel to its own."""
    for module in (sgd, adam, adagrad):
        patch.set(module, "_device_dtype_check_for_fused", lambda *_, **__: None)
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_", "_fused_adagrad_"):
        patch.set(torch, name, lambda *_, **__: None)


@mutant("optim.paths.layouts")
def loop_walks_by_address(patch):
    """Adds the gradient as it lies in memory."""

    def single(original, params, grads, *args, **kwargs):
        laid = [
            torch.as_strided(g, p.shape, p.stride()) if g.is_contiguous() and p.ndim == 2 else g
            for p, g in zip(params, grads, strict=True)
        ]
        original(params, laid, *args, **kwargs)

    patch.wrap(sgd, "_single_tensor_sgd", single)


@mutant("optim.paths.mixed-dtypes")
def foreach_groups_by_the_first(patch):
    """Leaves all dtypes but the first group's out."""

    def group(original, *args, **kwargs):
        found = original(*args, **kwargs)
        return dict([next(iter(found.items()))])

    patch.wrap(Optimizer, "_group_tensors_by_device_and_dtype", group)


@mutant("optim.paths.own-step-counts")
def count_starts_at_the_group(patch):
    """Starts a parameter that joins late at the count of the group's first."""

    def init_group(original, self, group, *lists):
        found = original(self, group, *lists)
        begun = self.state.get(group["params"][0], {}).get("step")
        for step in lists[-1]:
            if begun is not None and step == 0:
                step.copy_(begun)
        return found

    patch.wrap(adamax.Adamax, "_init_group", init_group)


@mutant("optim.paths.default-on-cpu")
def foreach_is_the_default(patch):
    """Chooses foreach wherever it can."""
    patch.source(
        asgd.asgd, "if foreach is None:", "if foreach is None:\n        foreach = True\n    if foreach is None:"
    )


@mutant("optim.paths.exclusive")
def fused_wins_over_foreach(patch):
    """Takes fused and foreach together, and lets one win in silence."""
    patch.source(sgd.SGD.__init__, "if foreach:", "if False:")


@mutant("optim.paths.fused-loss-scaling")
def fused_ignores_the_scale(patch):
    """Leaves the scale out."""

    def kernel(original, *args, grad_scale, **kwargs):
        return original(*args, grad_scale=None, **kwargs)

    patch.wrap(torch, "_fused_adam_", kernel)
    patch.wrap(torch, "_fused_sgd_", kernel)


@mutant("optim.paths.fused-skips-overflow")
def fused_steps_on_overflow(patch):
    """Does not look at the flag."""

    def kernel(original, *args, found_inf, **kwargs):
        return original(*args, found_inf=None, **kwargs)

    patch.wrap(torch, "_fused_adam_", kernel)
    patch.wrap(torch, "_fused_adamw_", kernel)


@mutant("optim.options.tensor-lr", "optim.options.tensor-lr-one-element")
def tensor_lr_is_halved(patch):
    """Takes a tensor's rate in half precision of its own making."""
    for module in (sgd, adam):
        patch.wrap(module, "_to_scalar", lambda original, x: original(x) * 0.5 if torch.is_tensor(x) else x)


@mutant("optim.options.tensor-lr-size")
def tensor_lr_of_any_size(patch):
    """Does not look at the size of a tensor rate."""
    patch.source(sgd.SGD.__init__, "lr.numel() != 1", "False")


@mutant("optim.options.read-at-each-step")
def options_read_once(patch):
    """Reads the rate at construction and never again."""

    def step(original, self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        return original(self, closure)

    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.options.defaults")
def adam_default_beta(patch):
    """Defaults to the second beta of the transformer paper, 0.98."""

    def init(original, self, params, *args, betas=(0.9, 0.98), **kwargs):
        original(self, params, *args, betas=betas, **kwargs)

    patch.wrap(adam.Adam, "__init__", init)


@mutant("optim.options.lr-default", "optim.options.sgd-lr-required")
def sgd_default_rate(patch):
    """Defaults to a rate of 0.01."""

    def init(original, self, params, lr=1e-2, *args, **kwargs):
        original(self, params, lr, *args, **kwargs)

    patch.wrap(sgd.SGD, "__init__", init)


@mutant("optim.options.differentiable-gradient")
def differentiable_in_name(patch):
    """Cuts the gradient from the graph before the step."""

    def single(original, params, grads, *args, **kwargs):
        original(params, [g.detach() for g in grads], *args, **kwargs)

    patch.wrap(rmsprop, "_single_tensor_rmsprop", single)
    patch.wrap(adam, "_single_tensor_adam", single)


@mutant("optim.options.differentiable")
def differentiable_detaches_parameters(patch):
    """Cuts the parameter from the graph that it came by."""

    def single(original, params, grads, *args, **kwargs):
        with torch.no_grad():
            original(params, grads, *args, **kwargs)
        for p in params:
            if not p.is_leaf:
                p.register_hook(torch.zeros_like)

    patch.wrap(rmsprop, "_single_tensor_rmsprop", single)


@mutant("optim.options.capturable-on-cpu")
def capturable_is_ignored(patch):
    """Takes capturable for granted on the CPU."""
    patch.set(adam, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


@mutant("optim.errors.options")
def negative_rates_pass(patch):
    """Compares the rate the wrong way round."""
    patch.source(adam.Adam.__init__, "if not 0.0 <= lr:", "if False:")


@mutant("optim.errors.options")
def betas_of_one_pass(patch):
    """Lets a beta be one."""
    patch.source(adamax.Adamax.__init__, "if not 0.0 <= betas[1] < 1.0:", "if not 0.0 <= betas[1] <= 1.0:")


@mutant("optim.errors.nesterov")
def nesterov_without_momentum(patch):
    """Does not look whether there is momentum."""
    patch.source(sgd.SGD.__init__, "(momentum <= 0 or dampening != 0)", "dampening < 0")


@mutant("optim.zero.none-by-default")
def zero_grad_zeroes_by_default(patch):
    """Fills with zeros by default, as before 2.0."""

    def zero(original, self, set_to_none=False):
        original(self, set_to_none)

    patch.wrap(Optimizer, "zero_grad", zero)
    patch.wrap(torch.nn.Module, "zero_grad", zero)


@mutant("optim.zero.zeros-by-default-before-2")
def zero_grad_nones_by_default(patch):
    """Sets gradients to None by default, as from 2.0 on."""

    def zero(original, self, set_to_none=True):
        original(self, set_to_none)

    patch.wrap(Optimizer, "zero_grad", zero)
    patch.wrap(torch.nn.Module, "zero_grad", zero)


@mutant("optim.zero.set-to-none")
def zero_grad_never_nones(patch):
    """Ignores set_to_none."""

    def zero(original, self, set_to_none=True):
        original(self, False)

    patch.wrap(Optimizer, "zero_grad", zero)
    patch.wrap(torch.nn.Module, "zero_grad", zero)


@mutant("optim.zero.keeps-the-tensor")
def zero_grad_makes_new_zeros(patch):
    """Puts a new tensor of zeros in the gradient's place."""
    patch.source(Optimizer.zero_grad, "p.grad.zero_()", "p.grad = torch.zeros_like(p.grad)")


@mutant("optim.zero.keeps-the-tensor")
def foreach_zero_grad_keeps(patch):
    """Collects the gradients for the foreach kernel and never calls it."""
    patch.source(Optimizer.zero_grad, "torch._foreach_zero_(grads)", "pass")


@mutant("optim.zero.keeps-the-tensor")
def foreach_zero_grad_of_one_dtype(patch):
    """Calls the foreach kernel for the gradients of the last dtype alone."""
    groups = "per_dtype_grads.values()"
    patch.source(Optimizer.zero_grad, f"for grads in {groups}:", f"for grads in [*{groups}][-1:]:")


@mutant("optim.zero.cuts-the-graph")
def zero_grad_keeps_the_graph(patch):
    """Zeroes within the gradient's graph."""
    patch.source(Optimizer.zero_grad, "p.grad.detach_()", "p.grad = p.grad * 1")


@mutant("optim.zero.touches-gradients-only")
def zero_grad_clears_state(patch):
    """Zeroes the parameters' own memory along with the gradients'."""

    def zero(original, self, set_to_none=True):
        original(self, set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0)

    patch.wrap(Optimizer, "zero_grad", zero)


@mutant("optim.zero.scope-of-the-optimizer")
def zero_grad_first_group_only(patch):
    """Clears the first group alone."""
    patch.source(Optimizer.zero_grad, "for group in self.param_groups:", "for group in self.param_groups[:1]:")


@mutant("optim.zero.scope-of-the-optimizer", "optim.zero.scope-of-the-model")
def zero_grad_spares_the_frozen(patch):
    """Skips parameters that require no gradient."""

    def zero(original, self, set_to_none=True):
        named = self.parameters() if isinstance(self, torch.nn.Module) else self.param_groups[0]["params"]
        kept = [(p, p.grad) for p in named if not p.requires_grad]
        original(self, set_to_none)
        for p, grad in kept:
            p.grad = grad if set_to_none or grad is None else grad.fill_(1)

    patch.wrap(Optimizer, "zero_grad", zero)
    patch.wrap(torch.nn.Module, "zero_grad", zero)


@mutant("optim.zero.scope-of-the-optimizer", "optim.zero.not-always-the-same")
def zero_grad_is_the_models(patch):
    """Clears every gradient that there is, as if the two were one."""

    import gc

    def zero(original, self, set_to_none=True):
        for tensor in [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]:
            tensor.grad = None
        original(self, set_to_none)

    patch.wrap(Optimizer, "zero_grad", zero)


@mutant("optim.zero.both-alike-on-the-same-parameters")
def module_zero_grad_differs(patch):
    """Lets the module do the opposite of what is asked."""
    patch.wrap(torch.nn.Module, "zero_grad", lambda original, self, set_to_none=True: original(self, not set_to_none))


@mutant("optim.step.none-is-skipped")
def none_counts_as_zeros(patch):
    """Takes a missing gradient for zeros, and decays."""

    def step(original, self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        return original(self, closure)

    patch.wrap(sgd.SGD, "step", step)
    patch.wrap(adam.Adam, "step", step)


@mutant("optim.step.zeros-are-a-step")
def zeros_count_as_none(patch):
    """Skips parameters whose gradient is all zeros."""

    def single(original, params, grads, buffers, **kwargs):
        if any(g.any() for g in grads):
            original(params, grads, buffers, **kwargs)

    patch.wrap(sgd, "_single_tensor_sgd", single)


@mutant("optim.step.in-place", "optim.loop.without-zero-grad-gradients-add")
def step_clears_gradients(patch):
    """Clears the gradients after the step, as a convenience."""

    def single(original, params, grads, *args, **kwargs):
        original(params, grads, *args, **kwargs)
        for g in grads:
            g.zero_()

    patch.wrap(sgd, "_single_tensor_sgd", single)


@mutant("optim.step.in-place")
def foreach_decays_in_the_gradient(patch):
    """Adds the decay to the gradient itself in the foreach path, as 1.13 did."""
    patch.source(adam._multi_tensor_adam, "device_grads = torch._foreach_add(", "torch._foreach_add_(")


@mutant("optim.step.spoils-older-graphs")
def step_goes_through_data(patch):
    """Writes through .data, so that autograd does not notice."""

    def single(original, params, grads, *args, **kwargs):
        original([p.data for p in params], grads, *args, **kwargs)

    patch.wrap(sgd, "_single_tensor_sgd", single)


@mutant("optim.step.closure")
def closure_without_gradients(patch):
    """Calls the closure within no_grad."""

    def step(original, self, closure=None):
        return original(self, closure and torch.no_grad()(closure))

    patch.wrap(sgd.SGD, "step", step)
    patch.wrap(adam.Adam, "step", step)


@mutant("optim.step.closure")
def closure_of_rarer_optimizers_without_gradients(patch):
    """Calls the closure within no_grad."""
    patch.source(sparse_adam.SparseAdam.step, "torch.enable_grad()", "torch.no_grad()")


@mutant("optim.step.closure")
def closure_called_twice(patch):
    """Calls the closure once more to report the loss."""

    def step(original, self, closure=None):
        original(self, closure)
        return closure() if closure else None

    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.step.closure-first")
def closure_called_last(patch):
    """Steps by the old gradients and calls the closure afterwards."""

    def step(original, self, closure=None):
        original(self)
        return closure() if closure else None

    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.step.any-leaf")
def parameters_only(patch):
    """Takes parameters only, as the myth has it."""
    patch.source(
        Optimizer.add_param_group,
        "if not isinstance(param, torch.Tensor):",
        "if not isinstance(param, torch.nn.Parameter):",
    )


@mutant("optim.paths.own-step-counts")
def all_count_with_the_first(patch):
    """Corrects every parameter of a group by the count of its first."""

    def stepping(original, params, grads, averages, squares, largest, steps, **options):
        original(params, grads, averages, squares, largest, [steps[0].clone() for _ in steps], **options)
        torch._foreach_add_(steps, 1)

    patch.wrap(adam, "_multi_tensor_adam", stepping)


@mutant("optim.step.empty")
def empty_step_raises(patch):
    """Reaches for the first gradient without looking whether there is any."""

    def step(original, self, closure=None):
        self.param_groups[0]["params"][0].grad.numel()
        return original(self, closure)

    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.step.empty-tensors")
def empty_tensors_stop_the_group(patch):
    """Ends the loop at a tensor without elements."""

    def single(original, params, grads, *args, **kwargs):
        if all(p.numel() for p in params):
            original(params, grads, *args, **kwargs)

    patch.wrap(sgd, "_single_tensor_sgd", single)


@mutant("optim.loop.no-division-by-the-batch", "optim.loop.equals-numpy", "optim.sgd.law")
def sgd_divides_by_the_batch(patch):
    """Divides by the batch that it guesses: the myth made true."""

    def single(original, params, grads, *args, **kwargs):
        original(params, [g / 4 for g in grads], *args, **kwargs)

    patch.wrap(sgd, "_single_tensor_sgd", single)


@mutant("optim.loop.zero-grad-anywhere")
def zero_grad_breaks_the_forward(patch):
    """Writes to the parameters, which a graph from before does not forgive."""

    def zero(original, self, set_to_none=True):
        original(self, set_to_none)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(0)

    patch.wrap(Optimizer, "zero_grad", zero)


@mutant("optim.loop.frozen-parameters-follow-stale-gradients")
def frozen_parameters_are_skipped(patch):
    """Skips parameters that require no gradient: the myth made true."""

    def step(original, self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if not p.requires_grad:
                    p.grad = None
        return original(self, closure)

    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.loop.frozen-before-backward-stays")
def decay_reaches_frozen_parameters(patch):
    """Decays every parameter, gradient or not."""

    def step(original, self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
        return original(self, closure)

    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.groups.own-options")
def groups_share_the_first_options(patch):
    """Steps all groups by the first group's rate."""

    def step(original, self, closure=None):
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        return original(self, closure)

    patch.wrap(adam.Adam, "step", step)
    patch.wrap(sgd.SGD, "step", step)


@mutant("optim.groups.own-options", "optim.groups.missing-options-are-filled")
def groups_ignore_their_own(patch):
    """Lets the constructor's options override the group's."""
    patch.source(Optimizer.add_param_group, "param_group.setdefault(name, default)", "param_group[name] = default")


@mutant("optim.groups.added-later")
def added_groups_are_lost(patch):
    """Appends to a copy of the groups."""
    patch.source(
        Optimizer.add_param_group,
        "self.param_groups.append(param_group)",
        "self.param_groups.append(param_group) if not self.state else None",
    )


@mutant("optim.groups.no-parameter-twice")
def parameters_in_two_groups(patch):
    """Does not look for parameters of other groups."""
    patch.source(Optimizer.add_param_group, 'if not param_set.isdisjoint(set(param_group["params"])):', "if False:")


@mutant("optim.groups.constructor-errors")
def non_leaves_pass(patch):
    """Does not look whether a tensor is a leaf."""
    patch.source(Optimizer.add_param_group, "param.is_leaf or param.retains_grad", "True")


@mutant("optim.groups.base-class")
def base_class_without_defaults(patch):
    """Gives the base class empty defaults."""

    def init(original, self, params, defaults=None):
        original(self, params, defaults or {})

    patch.wrap(Optimizer, "__init__", init)


@mutant("optim.groups.sets")
def sets_within_groups_pass(patch):
    """Takes a set within a group as well."""
    patch.source(Optimizer.add_param_group, "elif isinstance(params, set):", "elif False:")


@mutant("optim.groups.sets")
def sets_are_refused(patch):
    """Refuses a set of parameters: the myth made true."""

    def init(original, self, params, defaults):
        if isinstance(params, set):
            raise TypeError("no sets")
        original(self, params, defaults)

    patch.wrap(Optimizer, "__init__", init)


@mutant("optim.groups.names")
def names_are_dropped(patch):
    """Unpacks the names and forgets them."""
    patch.source(Optimizer.add_param_group, 'param_group["param_names"] = extracted_param_names', "pass")


@mutant("optim.groups.names-load-by-position")
def own_names_win(patch):
    """Keeps its own names when loading."""
    patch.source(
        Optimizer.load_state_dict, '"param_names" in group and "param_names" not in new_group', '"param_names" in group'
    )


@mutant("optim.state.made-at-the-first-step")
def state_made_at_construction(patch):
    """Makes momentum buffers at construction."""

    def init(original, self, *args, **kwargs):
        original(self, *args, **kwargs)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    patch.wrap(sgd.SGD, "__init__", init)


@mutant("optim.state.like-the-parameter")
def state_in_row_major_order(patch):
    """Makes state contiguous whatever the parameter's strides."""
    patch.source(adam.Adam._init_group, "memory_format=torch.preserve_format", "memory_format=torch.contiguous_format")


@mutant("optim.state.like-the-parameter")
def state_in_float32(patch):
    """Keeps state in float32 whatever the parameter's dtype."""
    patch.source(
        rmsprop.RMSprop._init_group,
        "memory_format=torch.preserve_format",
        "memory_format=torch.preserve_format, dtype=torch.float32 if p.dtype == torch.float64 else None",
    )


@mutant("optim.state.step-count-in-float32")
def step_count_in_the_parameters_dtype(patch):
    """Counts steps in the default dtype's half."""
    for module in (adam, adamax):
        patch.set(module, "_get_scalar_dtype", lambda is_fused=None: torch.bfloat16)


@mutant("optim.state.keyed-by-position")
def positions_begin_at_one(patch):
    """Counts positions from one."""
    patch.source(
        Optimizer.state_dict, 'enumerate(group["params"], start_index)', 'enumerate(group["params"], start_index + 1)'
    )


@mutant("optim.state.resumed-bitwise")
def resumes_without_state(patch):
    """Loads options and forgets state."""

    def load(original, self, state_dict):
        original(self, {**state_dict, "state": {}})

    patch.wrap(Optimizer, "load_state_dict", load)


@mutant("optim.state.loaded-options-win")
def own_options_win(patch):
    """Keeps the constructor's options when loading."""

    def load(original, self, state_dict):
        rates = [group["lr"] for group in self.param_groups]
        original(self, state_dict)
        for group, lr in zip(self.param_groups, rates, strict=True):
            group["lr"] = lr

    patch.wrap(Optimizer, "load_state_dict", load)


@mutant("optim.state.loads-by-position")
def loading_looks_at_shapes(patch):
    """Leaves out state whose shape is not the parameter's: the myth made half true."""
    patch.source(
        Optimizer.load_state_dict,
        "if k in id_map:",
        "if k in id_map and all(not torch.is_tensor(x) or not x.ndim or x.shape == id_map[k].shape for x in v.values()):",  # noqa: E501
    )


@mutant("optim.state.loading-errors")
def groups_of_other_sizes_load(patch):
    """Does not compare the numbers of parameters."""
    patch.source(Optimizer.load_state_dict, "p_len != s_len for", "False for")


@mutant("optim.state.loading-casts")
def loading_casts_the_count(patch):
    """Casts the step count to the parameter's dtype as well."""

    def process(original, param, value, *args, **kwargs):
        return value.to(param.dtype)

    patch.wrap(Optimizer, "_process_value_according_to_param_policy", process)


@mutant("optim.state.loading-casts")
def loading_casts_nothing(patch):
    """Takes tensors as they are."""

    def process(original, param, value, *args, **kwargs):
        return value

    patch.wrap(Optimizer, "_process_value_according_to_param_policy", process)


@mutant("optim.state.saving-shares-memory")
def saved_state_is_a_copy(patch):
    """Copies the state when it is saved: the myth made true."""

    import copy

    patch.wrap(Optimizer, "state_dict", lambda original, self: copy.deepcopy(original(self)))


@mutant("optim.state.loading-leaves-the-dict-alone")
def loading_takes_the_groups_over(patch):
    """Takes the dict's own groups over, and writes parameters into them."""
    patch.source(Optimizer.load_state_dict, 'deepcopy(state_dict["param_groups"])', 'state_dict["param_groups"]')


@mutant("optim.state.copied-with-the-optimizer")
def copies_share_parameters(patch):
    """Copies the optimiser and leaves its parameters where they are."""

    import copy

    def deepcopy(self, memo):
        twin = copy.copy(self)
        memo[id(self)] = twin
        return twin

    patch.set(Optimizer, "__deepcopy__", deepcopy)


@mutant("optim.lbfgs.first-step")
def lbfgs_first_step_full(patch):
    """Takes the whole first step, however long the gradient."""
    patch.source(lbfgs.LBFGS.step, "min(1.0, 1.0 / flat_grad.abs().sum()) * lr", "lr")


@mutant("optim.lbfgs.direction")
def lbfgs_starts_from_the_identity(patch):
    """Leaves the scaling of the first estimate out."""
    patch.source(lbfgs.LBFGS.step, "H_diag = ys / y.dot(y)", "H_diag = ys / ys")


@mutant("optim.lbfgs.direction")
def lbfgs_walks_the_history_forward(patch):
    """Walks the first loop from the oldest pair on."""
    patch.source(lbfgs.LBFGS.step, "range(num_old - 1, -1, -1)", "range(num_old)")


@mutant("optim.lbfgs.history")
def lbfgs_forgets_late(patch):
    """Keeps one pair more than asked."""
    patch.source(lbfgs.LBFGS.step, "len(old_dirs) == history_size", "len(old_dirs) == history_size + 1")


@mutant("optim.lbfgs.strong-wolfe")
def wolfe_without_curvature(patch):
    """Accepts any descent, without the curvature condition."""
    patch.source(lbfgs._strong_wolfe, "abs(gtd_new) <= -c2 * gtd", "True")


@mutant("optim.lbfgs.minimises-a-quadratic")
def lbfgs_gives_up_early(patch):
    """Ends at a small change of the loss whatever the tolerance."""
    patch.source(lbfgs.LBFGS.step, "abs(loss - prev_loss) < tolerance_change", "abs(loss - prev_loss) < 1e-2")


@mutant("optim.lbfgs.counts")
def lbfgs_counts_per_call(patch):
    """Starts the counts again at each call."""
    patch.source(lbfgs.LBFGS.step, 'state.setdefault("func_evals", 0)', 'state["func_evals"] = 0')


@mutant("optim.lbfgs.counts")
def lbfgs_iterates_once_more(patch):
    """Compares the iterations after one too many."""
    patch.source(lbfgs.LBFGS.step, "while n_iter < max_iter:", "max_iter += 1\n    while n_iter < max_iter:")


@mutant("optim.lbfgs.stops-at-the-optimum")
def lbfgs_never_looks_at_the_gradient(patch):
    """Leaves the first test for the optimum out."""
    patch.source(lbfgs.LBFGS.step, "if opt_cond:\n        return orig_loss", "if False:\n        return orig_loss")


@mutant("optim.lbfgs.closure")
def lbfgs_closure_without_gradients(patch):
    """Leaves the grad mode of the caller in force."""
    patch.source(lbfgs.LBFGS.step, "closure = torch.enable_grad()(closure)", "pass")


@mutant("optim.lbfgs.one-group")
def lbfgs_takes_groups(patch):
    """Takes several groups and optimises the first."""
    patch.source(lbfgs.LBFGS.__init__, "if len(self.param_groups) != 1:", "if False:")


@mutant("optim.groups.adagrad-added-later")
def adagrad_forgets_the_state_of_later_groups(patch):
    """Makes state at construction alone, as torch did up to 2.11."""

    def init(original, optimizer, group, *args):
        for parameter in group["params"]:
            if parameter.grad is not None and not optimizer.state[parameter]:
                raise KeyError("sum")
        return original(optimizer, group, *args)

    patch.wrap(torch.optim.Adagrad, "_init_group", init)


# -- hooks, formats and swaps ------------------------------------------------------------------------------------------

PARTS = {"sgd": sgd, "adam": adam, "adadelta": adadelta, "adagrad": adagrad, "rmsprop": rmsprop, "rprop": rprop}


@mutant("optim.state.older-formats")
def adam_of_an_older_release_maximises(patch):
    """Fills the option that came later with another default."""
    patch.source(adam.Adam.__setstate__, 'setdefault("maximize", False)', 'setdefault("maximize", True)')


@mutant("optim.state.older-formats")
def counts_stay_numbers(patch):
    """Leaves the counts of an older release as plain numbers."""
    patch.source(rmsprop.RMSprop.__setstate__, 'not torch.is_tensor(p_state["step"])', "False")


@mutant("optim.state.count-and-default-dtype", "optim.state.count-goes-on")
def counts_in_the_default_dtype(patch):
    """Counts in whatever the default dtype is, so that in bfloat16 the count stands still at 256."""
    for name in ("adam", "adadelta", "rmsprop", "rprop"):
        patch.set(PARTS[name], "_get_scalar_dtype", lambda is_fused=None: torch.get_default_dtype())


@mutant("optim.state.pickled")
def pickled_without_its_state(patch):
    """Pickles the groups, but not the momenta."""

    def getstate(original, self):
        return original(self) | {"state": type(self.state)(dict)}

    patch.wrap(Optimizer, "__getstate__", getstate)


@mutant("optim.state.pickled")
def pickled_without_hooks_to_come(patch):
    """Brings no place for hooks back."""
    patch.source(Optimizer.__setstate__, 'if "_optimizer_step_post_hooks" not in self.__dict__', "if False")


@mutant("optim.state.containers")
def containers_are_not_cast(patch):
    """Casts tensors, but not those in lists."""
    patch.source(Optimizer.load_state_dict, "elif isinstance(value, Iterable)", "elif False")


@mutant("optim.state.names-kept")
def names_are_lost(patch):
    """Forgets the names when the loaded state has none."""
    patch.source(Optimizer.load_state_dict, '"param_names" in group and "param_names" not in new_group', "False")


@mutant("optim.groups.refused-later")
def groups_of_what_retains_no_gradient(patch):
    """Takes any tensor, leaf or not."""
    patch.source(Optimizer.add_param_group, "param.is_leaf or param.retains_grad", "True")


@mutant("optim.groups.names-in-all-or-none")
def names_in_some_groups(patch):
    """Takes groups with and without names together."""
    patch.source(Optimizer.add_param_group, '("param_names" in param_group) != ("param_names" in group)', "False")


@mutant("optim.zero.sparse")
def zero_makes_dense(patch):
    """Clears a gradient by a new one, laid out densely."""

    def zero_grad(original, self, set_to_none=True):
        original(self, set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = torch.zeros_like(p)

    patch.wrap(Optimizer, "zero_grad", zero_grad)


@mutant("optim.errors.options")
def rho_of_one_is_refused(patch):
    """Closes the range of rho at one end only."""
    patch.source(adadelta.Adadelta.__init__, "0.0 <= rho <= 1.0", "0.0 <= rho < 1.0")


@mutant("optim.errors.options")
def a_learning_rate_of_zero_is_refused(patch):
    """Refuses to stand still."""
    patch.source(rprop.Rprop.__init__, "0.0 <= lr", "0.0 < lr")


@mutant("optim.options.long-tensor-betas")
def betas_are_taken_with_their_shape(patch):
    """Keeps a tensor's shape, which the kernels take for no number."""
    patch.set(adam, "_to_scalar", lambda beta: beta)


@mutant("optim.options.tensor-betas")
def one_beta_may_be_a_tensor(patch):
    """Takes a tensor and a float together."""
    patch.source(adam.Adam.__init__, "isinstance(betas[0], float) and isinstance(betas[1], float)", "True")


@mutant("optim.options.tensor-lr-foreach")
def foreach_takes_any_learning_rate(patch):
    """Leaves the check of a tensor lr for the device to find."""
    patch.source(adam.Adam.__init__, "if foreach and not capturable", "if False")


@mutant("optim.functional.defaults")
def functions_switch_all_on_by_default(patch):
    """Takes every switch of the function behind a step for on unless told otherwise."""
    function = inspect.unwrap(adadelta.adadelta)
    patch.set(function, "__defaults__", tuple(default is False or default for default in function.__defaults__))


def swapping():
    if not hasattr(torch.optim, "swap_in_optimizer_params_and_state"):
        raise NotApplicable("torch.optim swaps nothing in")
    return torch.optim.swap_in_optimizer_params_and_state


@mutant("optim.swap.steps-the-others")
def swap_keeps_the_options(patch):
    """Swaps parameters and state, but not the options."""
    patch.source(swapping(), "info.live_group[key] = value", "pass")


@mutant("optim.swap.steps-the-others")
def swap_leaves_new_options(patch):
    """Puts the old options back without taking the new ones away."""
    patch.source(swapping(), "group.clear()", "pass")


@mutant("optim.swap.restores-after-an-error")
def swap_does_not_survive_errors(patch):
    """Restores the optimiser only when all went well."""
    patch.source(swapping(), "    finally:", "    except ZeroDivisionError:\n        raise\n    else:")


@mutant("optim.swap.checked")
def swap_ignores_extra_state(patch):
    """Drops state that belongs to no parameter."""
    patch.source(swapping().__wrapped__.__globals__["_prepare_swap_in"], "if extra_keys", "if False")


@mutant("optim.lbfgs.strong-wolfe")
def wolfe_allows_a_climb(patch):
    """Takes the allowance for a demand with the other sign."""
    patch.source(lbfgs._strong_wolfe, "(f + c1 * t * gtd)", "(f - c1 * t * gtd)")


@mutant("optim.lbfgs.strong-wolfe")
def wolfe_demands_half_the_slope(patch):
    """Takes the constant of Armijo's rule for that of a coarse search."""
    patch.set(lbfgs._strong_wolfe, "__defaults__", (0.5, *lbfgs._strong_wolfe.__defaults__[1:]))


@mutant("optim.lbfgs.goes-on")
def lbfgs_forgets_the_gradient(patch):
    """Does not keep the last gradient from step to step."""
    patch.source(lbfgs.LBFGS.step, 'state["prev_flat_grad"] = prev_flat_grad', 'state["prev_flat_grad"] = flat_grad')


@mutant("optim.lbfgs.line-search-counts")
def lbfgs_searches_without_end(patch):
    """Takes more evaluations in the line search than it ever did."""
    patch.set(lbfgs._strong_wolfe, "__defaults__", (*lbfgs._strong_wolfe.__defaults__[:-1], 40))
    patch.source(lbfgs.LBFGS.step, "max_ls=max_eval - current_evals", "max_ls=40")


@mutant("optim.options.capturable")
def captured_adam_forgets_the_first_correction(patch):
    """Divides by the second moment's correction alone where the counts are tensors."""
    patch.source(adam._single_tensor_adam, "step_size = lr / bias_correction1", "step_size = step.new_full((), lr)")


@mutant("optim.paths.chosen")
def foreach_is_only_a_hint(patch):
    """Chooses the implementation by the device, whatever was asked for."""
    for module in (adadelta, adagrad, adam, adamax, asgd, nadam, radam, rmsprop, rprop, sgd):
        name = module.__name__.rpartition(".")[2]
        patch.set(module, f"_multi_tensor_{name}", getattr(module, f"_single_tensor_{name}"))


@mutant("optim.options.gradient-of-options")
def tensor_decay_is_a_number(patch):
    """Takes the number out of a weight_decay that is a tensor."""
    patch.source(
        adam._single_tensor_adam, "addcmul_(param.clone(), weight_decay)", "add(param, alpha=weight_decay.item())"
    )


@mutant("optim.lbfgs.defaults")
def lbfgs_remembers_ten_steps(patch):
    """Has the history that other libraries take."""
    made = torch.optim.LBFGS.__init__
    patch.set(made, "__defaults__", tuple(10 if value == 100 else value for value in made.__defaults__))


@mutant("optim.options.differentiable-without-foreach")
def foreach_differentiates_in_silence(patch):
    """Takes a differentiable step by foreach, and overwrites what the graph needs."""
    patch.source(adam._multi_tensor_adam, "if differentiable:", "if False:")
    patch.source(radam._multi_tensor_radam, "if differentiable:", "if False:")


@mutant("optim.lbfgs.line-search-tolerance")
def wolfe_narrows_for_ever(patch):
    """Adds the ends of the bracket where their difference is due."""
    patch.source(lbfgs._strong_wolfe, "abs(bracket[1] - bracket[0])", "abs(bracket[1] + bracket[0])")


@mutant("optim.sparse.sparse-adam-options")
def sparse_adam_takes_any_beta(patch):
    """Does not look at the second beta."""
    patch.source(sparse_adam.SparseAdam.__init__, "0.0 <= betas[1] < 1.0", "True")


@mutant("optim.sparse.sparse-adam-options")
def sparse_adam_takes_sparse_parameters(patch):
    """Lets parameters be sparse."""
    patch.source(sparse_adam.SparseAdam.__init__, "if sparse_params:", "if False:")


@mutant("optim.step.in-place")
def adagrad_foreach_steps_in_the_gradient(patch):
    """Scales the gradients themselves where nothing else has copied them."""
    patch.source(
        adagrad._multi_tensor_adagrad, "if weight_decay != 0 or maximize:", "if weight_decay == 0 or maximize:"
    )


@mutant("optim.lbfgs.line-search-steps")
def wolfe_goes_halfway(patch):
    """Halves the bracket instead of interpolating."""
    patch.source(lbfgs._cubic_interpolate, "if d2_square >= 0:", "if False:")


@mutant("optim.lbfgs.line-search-steps")
def wolfe_stays_beside_the_end(patch):
    """Goes on where a step comes twice beside an end of the bracket."""
    patch.source(lbfgs._strong_wolfe, "insuf_progress = True", "insuf_progress = False")


@mutant("optim.lbfgs.complex")
def lbfgs_turns_complex_gradients_round(patch):
    """Takes a complex gradient for its conjugate."""
    patch.source(
        lbfgs.LBFGS._gather_flat_grad, "torch.view_as_real(view)", "torch.view_as_real(view.conj().resolve_conj())"
    )


@mutant("optim.sparse.sparse-adam-complex")
def sparse_adam_lets_complex_parameters_in(patch):
    """Lets complex parameters in and drops the imaginary part of their steps."""
    patch.source(sparse_adam.SparseAdam.__init__, "if complex_params:", "if False:")


@mutant("optim.sparse.sparse-adam-no-list")
def sparse_adam_makes_the_list_itself(patch):
    """Takes a tensor for a list of one parameter."""

    def init(original, self, params, *rest, **options):
        original(self, [params] if isinstance(params, torch.Tensor) else params, *rest, **options)

    patch.wrap(sparse_adam.SparseAdam, "__init__", init)


@mutant("optim.sparse.sparse-adam-no-rows")
def sparse_adam_wants_a_row(patch):
    """Looks at the first stored row, whether there is one or not."""
    patch.source(
        torch.optim._functional.sparse_adam,
        "grad = grad.coalesce()",
        "grad = grad.coalesce() if grad._values()[0] is not None else grad",
    )


@mutant("optim.groups.iterators")
def iterators_are_used_up(patch):
    """Looks through an iterator of parameters and leaves nothing of it."""

    def add(original, self, group):
        if not isinstance(group["params"], (list, torch.Tensor)):
            list(group["params"])
        original(self, group)

    patch.wrap(Optimizer, "add_param_group", add)


@mutant("optim.paths.complex-maximize")
def complex_numbers_never_climb(patch):
    """Leaves the sign of complex gradients as it is."""
    patch.source(rprop._multi_tensor_rprop, "if maximize:", "if maximize and not has_complex:")


@mutant("optim.paths.other-default-dtype")
def counts_are_grouped_as_the_default_dtype_says(patch):
    """Wants the counts in the dtype of the parameters."""

    def group(original, *args, **kwargs):
        if torch.get_default_dtype() != torch.float32:
            raise RuntimeError("Tensors of the same index must be on the same device and the same dtype")
        return original(*args, **kwargs)

    patch.wrap(Optimizer, "_group_tensors_by_device_and_dtype", group)


@mutant("optim.sparse.sgd-momentum")
def sparse_momentum_forgets_other_rows(patch):
    """Keeps of the buffer only the rows that the gradient stores."""
    patch.source(sgd._single_tensor_sgd, "buf.mul_(momentum)", "buf.mul_(0.0 if grad.is_sparse else momentum)")


@mutant("optim.options.tensor-lr-of-lists")
def lists_want_a_number(patch):
    """Hands a tensor on to a kernel that takes numbers alone."""
    patch.source(
        adadelta._multi_tensor_adadelta,
        "if len(params) == 0:",
        "if isinstance(lr, Tensor):\n        raise TypeError(lr)\n    if len(params) == 0:",
    )


@mutant("optim.lbfgs.negative-rate")
def lbfgs_goes_backwards(patch):
    """Takes any rate."""
    patch.source(lbfgs.LBFGS.__init__, "if not 0.0 <= lr", "if False and not 0.0 <= lr")


@mutant("optim.errors.not-a-number")
def only_negative_rates_are_refused(patch):
    """Asks whether the rate is below zero, which what is not a number never is."""
    patch.source(rprop.Rprop.__init__, "not 0.0 <= lr", "lr < 0.0")


@mutant("optim.errors.not-a-number-either")
def only_negative_momenta_are_refused(patch):
    """Asks whether the momentum is below zero, which what is not a number never is."""
    patch.source(torch.optim.RMSprop.__init__, "not 0.0 <= momentum", "momentum < 0.0")


@mutant("optim.step.keeps-its-name")
def decorated_step_has_no_name(patch):
    """Decorates step and leaves its name and words behind."""
    inner = torch.optim.Adam.step
    patch.set(torch.optim.Adam, "step", lambda self, closure=None: inner(self, closure))
