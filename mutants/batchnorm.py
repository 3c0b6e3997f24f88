"""The ways in which an implementation of batch normalisation goes wrong."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import init
from torch.optim import swa_utils

from mutants._gradient import Altered
from torch_conformance.mutation import NotApplicable, mutant

batchnorm = nn.modules.batchnorm
NormBase, BatchNorm, Lazy = batchnorm._NormBase, batchnorm._BatchNorm, batchnorm._LazyNormBase
NO_UPDATE = "self.training and self.track_running_stats"


def over(x):
    return [d for d in range(x.ndim) if d != 1]


def spread(values, x):
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def on_batch_norm(patch, change):
    """Replace F.batch_norm by ``change(original, x, mean, variance, weight, bias, training, momentum, eps)``."""

    def batch_norm(original, x, mean, variance, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        return change(original, x, mean, variance, weight, bias, training, momentum, eps)

    patch.wrap(F, "batch_norm", batch_norm)


@mutant("batchnorm.gradient.sums-beyond-the-range")
def gradient_summed_in_its_own_dtype(patch):
    """Holds a sum of the backward in the dtype of its terms."""
    on_batch_norm(patch, lambda original, *args: Altered.apply(original(*args), lambda g: g + 0 * g.sum()))


@mutant("batchnorm.gradient.weight-and-bias")
def gradient_of_the_bias_needs_that_of_the_input(patch):
    """Skips the gradient of the bias where the input needs none, as a wrong output mask does."""

    def change(original, x, mean, variance, weight, bias, *rest):
        frozen = bias is not None and not x.requires_grad
        return original(x, mean, variance, weight, bias.detach() if frozen else bias, *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.input", "batchnorm.gradient.eval")
def gradient_without_weight_is_halved_in_low_precision(patch):
    """Takes one half for a missing weight in the backward of low precision: a branch that nobody called."""

    def change(original, x, mean, variance, weight, *rest):
        y = original(x, mean, variance, weight, *rest)
        return Altered.apply(y, lambda g: g / 2) if weight is None and x.element_size() == 2 else y

    on_batch_norm(patch, change)


@mutant("batchnorm.layer.initial-state", "batchnorm.running.first-mean")
def variance_starts_at_zero(patch):
    """Starts running_var at 0, as an optimizer starts its moments."""
    patch.source(NormBase.reset_running_stats, "fill_(1)", "fill_(0)")


@mutant("batchnorm.layer.initial-state", "batchnorm.sync.weight-uniform")
def weight_drawn(patch):
    """Draws the weight from U(0, 1), as torch did before 1.2."""
    patch.source(NormBase.reset_parameters, "init.ones_", "init.uniform_")


@mutant("batchnorm.layer.initial-state")
def momentum_of_another_framework(patch):
    """Has momentum 0.01 for a default: 1 - 0.99, from the other convention."""
    patch.set(NormBase.__init__, "__defaults__", (1e-5, 0.01, True, True, None, None))
    patch.set(BatchNorm.__init__, "__defaults__", (1e-5, 0.01, True, True, None, None))


@mutant("batchnorm.layer.state-dict")
def statistics_as_parameters(patch):
    """Registers the running mean as a parameter."""

    def init(original, module, *args, **kw):
        original(module, *args, **kw)
        if module.running_mean is not None and type(module) is nn.BatchNorm1d:
            mean = module._buffers.pop("running_mean")
            module.register_parameter("running_mean", nn.Parameter(mean, requires_grad=False))

    patch.wrap(BatchNorm, "__init__", init)


@mutant("batchnorm.layer.attributes")
def repr_without_momentum(patch):
    """Prints eps and forgets momentum."""
    patch.source(NormBase.extra_repr, "momentum={momentum}, ", "")


@mutant("batchnorm.layer.attributes")
def dtype_ignored(patch):
    """Makes float32 buffers whatever dtype the layer is asked for."""

    def init(original, module, *args, **kw):
        original(module, *args, **kw)
        if module.running_var is not None:
            module.running_var = module.running_var.float()

    patch.wrap(BatchNorm, "__init__", init)


@mutant("batchnorm.layer.affine-false")
def affine_always(patch):
    """Makes weight and bias whatever it is told."""
    patch.source(NormBase.__init__, "if self.affine:", "if True:")


@mutant("batchnorm.layer.bias-false")
def bias_always(patch):
    """Takes bias=False and makes a bias nevertheless."""
    patch.source(NormBase.__init__, "if bias:", "if True:")


@mutant("batchnorm.layer.takes-groups", "batchnorm.layer.attributes")
def second_argument_is_groups(patch):
    """Takes the second argument for a number of groups, as the documentation page of the myth does."""

    def init(original, module, features, *args, **kw):
        original(module, features, *args[1:], **kw)

    patch.wrap(BatchNorm, "__init__", init)


@mutant("batchnorm.train.formula", "batchnorm.train.any-size", "batchnorm.train.single-image")
def normalises_by_unbiased_variance(patch):
    """Normalises by the unbiased variance, as torch.var gives it by default."""

    def change(original, x, mean, variance, weight, bias, training, *rest):
        y = original(x, mean, variance, weight, bias, training, *rest)
        n = x.numel() // max(1, x.shape[1])
        if not training or n < 2:
            return y
        shift = 0 if bias is None else spread(bias, x)
        return (y - shift) * ((n - 1) / n) ** 0.5 + shift

    on_batch_norm(patch, change)


@mutant("batchnorm.train.any-size")
def kernel_forgets_its_tail(patch):
    """Normalises in blocks of eight and leaves the positions behind the last whole block as they were."""

    def change(original, x, *rest):
        y = original(x, *rest)
        if x.ndim == 4 and x.shape[3] > 8 and x.shape[3] % 8:
            end = x.shape[3] // 8 * 8
            return torch.cat([y[..., :end], x[..., end:]], 3)
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.train.statistics-over-positions", "batchnorm.running.update")
def statistics_over_samples_alone(patch):
    """Tracks the mean of the first position instead of that of all."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        old = None if mean is None else mean.clone()
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if training and mean is not None and x.ndim > 2:
            first = x.detach().flatten(2)[..., 0].mean(0)
            mean.copy_((1 - momentum) * old + momentum * first)
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.train.eps-inside-the-root", "batchnorm.eval.formula", "batchnorm.train.formula")
def eps_outside_the_root(patch):
    """Adds eps to the standard deviation."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, None, None, training, momentum, eps)
        var = x.var(over(x), unbiased=False) if training else variance
        root = ((var + eps).sqrt() / (var.sqrt() + eps)).to(y.dtype)
        y = y * spread(root, x)
        y = y if weight is None else y * spread(weight, x)
        return y if bias is None else y + spread(bias, x)

    on_batch_norm(patch, change)


@mutant("batchnorm.train.mean-and-variance")
def variance_exactly_one(patch):
    """Leaves eps out where the variance is not zero."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        return original(x, mean, variance, weight, bias, training, momentum, eps if not training else 1e-12)

    on_batch_norm(patch, change)


@mutant("batchnorm.train.variance-becomes-weight", "batchnorm.train.formula")
def weight_is_the_variance(patch):
    """Multiplies by the root of gamma, so that gamma becomes the variance, as a blog has it."""

    def change(original, x, mean, variance, weight, *rest):
        return original(x, mean, variance, None if weight is None else weight.abs().sqrt() * weight.sign(), *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.train.makes-values-gaussian")
def output_made_gaussian(patch):
    """Maps the ranks of the values to the normal distribution: the belief that normalisation makes them so."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        if not training or x.ndim > 2 or len(x) < 2:
            return original(x, mean, variance, weight, bias, training, momentum, eps)
        ranks = (x.argsort(0).argsort(0) + 0.5) / len(x)
        return original(torch.erfinv(2 * ranks - 1).to(x), mean, variance, weight, bias, training, momentum, eps)

    on_batch_norm(patch, change)


@mutant("batchnorm.train.affine-restores-the-input")
def restores_by_itself(patch):
    """Undoes the normalisation at the initial weight and bias."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        fresh = weight is not None and bool((weight == 1).all()) and bias is not None and not bias.any()
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        return x + 0 * y if fresh else y

    on_batch_norm(patch, change)


@mutant("batchnorm.train.large-offset")
def variance_by_squares(patch):
    """Takes the variance for the difference of mean square and squared mean, which cancels."""
    by_squares(patch, lambda n: n > 0)


@mutant("batchnorm.train.large-offset")
def variance_of_large_planes_by_squares(patch):
    """Does so in the branch for more than a thousand places alone."""
    by_squares(patch, lambda n: n > 1024)


def by_squares(patch, chosen):
    """Where ``chosen`` says so of the number of values of a channel."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        if not training or not chosen(x.numel() // max(1, x.shape[1])):
            return original(x, mean, variance, weight, bias, training, momentum, eps)
        axes, n = over(x), x.numel() // x.shape[1]
        mu = x.mean(axes)
        var = ((x * x).mean(axes) - mu * mu).clamp(min=0)
        if mean is not None:
            with torch.no_grad():
                mean.mul_(1 - momentum).add_(momentum * mu)
                variance.mul_(1 - momentum).add_(momentum * var * n / (n - 1))
        return original(x, mu, var, weight, bias, False, momentum, eps)

    on_batch_norm(patch, change)


@mutant("batchnorm.train.mixed-precision")
def statistics_rounded_to_the_input(patch):
    """Rounds the running statistics to the input's dtype."""

    def change(original, x, mean, variance, *rest):
        y = original(x, mean, variance, *rest)
        if mean is not None and mean.dtype != x.dtype and x.ndim != 2:
            mean.copy_(mean.to(x.dtype))
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.train.single-value-refused")
def single_value_accepted(patch):
    """Gives the bias where a channel has one value."""
    patch.source(F._verify_batch_size, "size_prods == 1", "False")


@mutant("batchnorm.train.single-image")
def single_sample_refused(patch):
    """Refuses a batch of one whatever its positions."""
    patch.source(F._verify_batch_size, "size_prods == 1", "size[0] == 1")


@mutant("batchnorm.train.empty-batch")
def empty_batch_fades_the_statistics(patch):
    """Moves the running statistics towards the NaN of an empty batch."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        if training and mean is not None and x.numel() == 0:
            mean.mul_(1 - momentum)
        return original(x, mean, variance, weight, bias, training, momentum, eps)

    on_batch_norm(patch, change)


def detached(patch, what):
    """Normalise by hand, without the gradient of the mean or of the variance."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        if not training or x.numel() == 0:
            return original(x, mean, variance, weight, bias, training, momentum, eps)
        original(x.detach(), mean, variance, None, None, True, momentum, eps)
        axes = over(x)
        mu, var = x.mean(axes), x.var(axes, unbiased=False)
        mu, var = (mu.detach(), var) if what == "mean" else (mu, var.detach())
        y = (x - spread(mu, x)) / spread(var + eps, x).sqrt()
        y = y if weight is None else y * spread(weight, x)
        return y if bias is None else y + spread(bias, x)

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.input", "batchnorm.gradient.sums-to-zero", "batchnorm.network.bias-before-is-useless")
def mean_not_differentiated(patch):
    """Takes the batch mean for a constant in the backward."""
    detached(patch, "mean")


@mutant("batchnorm.gradient.input", "batchnorm.gradient.second")
def variance_not_differentiated(patch):
    """Takes the batch variance for a constant in the backward."""
    detached(patch, "variance")


@mutant("batchnorm.gradient.weight-and-bias")
def weight_gradient_averaged(patch):
    """Averages the gradient of the weight over the batch instead of summing it up."""

    def change(original, x, mean, variance, weight, bias, *rest):
        if weight is not None and weight.requires_grad and x.numel():
            n = x.numel() // x.shape[1]
            weight = weight / n + (weight - weight / n).detach()
        return original(x, mean, variance, weight, bias, *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.eval")
def eval_stops_the_gradient(patch):
    """Detaches the output in eval mode, as one does who takes eval for no_grad."""

    def change(original, x, mean, variance, weight, bias, training, *rest):
        y = original(x, mean, variance, weight, bias, training, *rest)
        return y if training or not y.requires_grad else y.detach() + 0 * y

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.second")
def second_derivative_cut(patch):
    """Writes the backward by hand and lets it be differentiated by the output's gradient alone."""

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y, gx):
            ctx.gx = gx
            return y.detach()

        @staticmethod
        def backward(ctx, gradient):
            return ctx.gx(gradient), None, None

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        if not (training and x.requires_grad and x.is_leaf and weight is not None and torch.is_grad_enabled()):
            return original(x, mean, variance, weight, bias, training, momentum, eps)
        frozen = x.detach().requires_grad_()
        y = original(frozen, mean, variance, weight, bias, training, momentum, eps)

        def gx(gradient):
            return torch.autograd.grad(y, frozen, gradient, retain_graph=True, create_graph=True)[0]

        return Cut.apply(x, y, gx) + (y - y.detach()).where(torch.tensor(True, device=y.device), 0 * y)

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.writes-nothing-else")
def backward_updates_again(patch):
    """Updates the counter in the backward too, as a recomputing implementation does."""

    def forward(original, module, x):
        y = original(module, x)
        if module.num_batches_tracked is not None and y.requires_grad:
            y.register_hook(lambda gradient: module.num_batches_tracked.add_(1) * 0 + gradient)
        return y

    patch.wrap(BatchNorm, "forward", forward)


@mutant("batchnorm.running.update", "batchnorm.running.many-steps", "batchnorm.running.first-mean")
def momentum_the_other_way(patch):
    """Takes momentum for the weight of the old statistics, as Keras does."""
    on_batch_norm(patch, lambda original, *args: original(*args[:6], 1 - args[6], args[7]))


@mutant("batchnorm.running.variance-unbiased", "batchnorm.running.update")
def running_variance_biased(patch):
    """Tracks the biased variance, as XLA does."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        old = None if variance is None else variance.clone()
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        n = x.numel() // max(1, x.shape[1])
        if training and variance is not None and n > 1:
            variance.copy_((1 - momentum) * old + (variance - (1 - momentum) * old) * (n - 1) / n)
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.running.momentum-none")
def momentum_none_is_the_default(patch):
    """Takes None for the default of 0.1."""
    patch.source(BatchNorm.forward, "1.0 / float(self.num_batches_tracked)", "0.1")


@mutant("batchnorm.running.momentum-none", "batchnorm.network.update-bn")
def cumulative_average_off_by_one(patch):
    """Divides by the batches counted before this one and one more."""
    patch.source(BatchNorm.forward, "float(self.num_batches_tracked)", "(float(self.num_batches_tracked) + 1)")


@mutant("batchnorm.running.momentum-zero")
def momentum_zero_taken_for_absent(patch):
    """Writes `momentum or 0.1`."""
    patch.source(BatchNorm.forward, "= self.momentum\n", "= self.momentum or 0.1\n")


@mutant("batchnorm.running.momentum-one")
def momentum_capped(patch):
    """Caps momentum below 1, to be on the safe side."""
    on_batch_norm(patch, lambda original, *args: original(*args[:6], min(args[6], 0.99), args[7]))


@mutant("batchnorm.running.counter", "batchnorm.network.checkpoint-updates-twice", "batchnorm.network.update-bn")
def batches_not_counted(patch):
    """Does not count batches."""
    patch.source(BatchNorm.forward, "self.num_batches_tracked.add_(1)", "self.num_batches_tracked.add_(0)")


@mutant("batchnorm.running.counter")
def counter_replaced(patch):
    """Replaces the counter instead of adding to it, so that what holds the buffer holds the old one."""
    patch.source(
        BatchNorm.forward, "self.num_batches_tracked.add_(1)", "self.num_batches_tracked = self.num_batches_tracked + 1"
    )


@mutant("batchnorm.running.at-forward")
def statistics_follow_grad_mode(patch):
    """Updates only where gradients are recorded, as one does who takes no_grad for eval."""
    patch.source(BatchNorm.forward, NO_UPDATE, f"torch.is_grad_enabled() and {NO_UPDATE}")


@mutant("batchnorm.running.frozen-affine")
def frozen_layer_in_eval(patch):
    """Takes a layer without trainable parameters for a frozen one."""

    def forward(original, module, x):
        frozen = module.weight is not None and not module.weight.requires_grad
        return original(module.eval() if frozen else module, x)

    patch.wrap(BatchNorm, "forward", forward)


@mutant("batchnorm.running.population")
def variance_between_batches_added(patch):
    """Adds the variance between batch means, so that the running variance becomes the population's."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        gap = None if mean is None else (x.detach().mean(over(x)) - mean) ** 2
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if training and mean is not None and x.numel():
            variance.add_(momentum * gap)
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.running.reset")
def reset_forgets_the_counter(patch):
    """Resets mean and variance and forgets the counter."""
    patch.source(NormBase.reset_running_stats, "self.num_batches_tracked.zero_()", "pass")


@mutant("batchnorm.eval.formula", "batchnorm.eval.one-by-one", "batchnorm.layer.affine-false")
def eval_uses_the_batch(patch):
    """Normalises by the batch in eval mode too."""
    patch.source(BatchNorm.forward, "(self.running_mean is None) and (self.running_var is None)", "True")


@mutant("batchnorm.eval.buffers-kept", "batchnorm.running.counter")
def eval_counts_batches(patch):
    """Counts batches in eval mode too."""
    patch.source(BatchNorm.forward, NO_UPDATE, "self.track_running_stats")


@mutant("batchnorm.eval.does-not-normalise", "batchnorm.eval.formula")
def eval_is_the_identity(patch):
    """Leaves normalisation out at test time, as a struck-out line of a blog has it."""
    patch.wrap(BatchNorm, "forward", lambda original, module, x: original(module, x) if module.training else x * 1)


@mutant("batchnorm.eval.gap-closes")
def train_and_eval_alike(patch):
    """Normalises by the running statistics in train mode, after updating them."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        return original(x, mean, variance, weight, bias, False, momentum, eps) if training and mean is not None else y

    on_batch_norm(patch, change)


@mutant("batchnorm.track.false")
def untracked_counts(patch):
    """Keeps the buffers that it does not use."""
    patch.source(NormBase.__init__, "if self.track_running_stats:", "if True:")


@mutant("batchnorm.track.switched-off-later")
def flag_rules_eval(patch):
    """Lets the flag decide in eval mode, and not the buffers."""
    text = "(self.running_mean is None) and (self.running_var is None)"
    patch.source(BatchNorm.forward, text, "not self.track_running_stats")


@mutant("batchnorm.track.switched-off-later")
def flag_read_once(patch):
    """Looks at the flag when the layer is made, and never again."""
    patch.source(BatchNorm.forward, "if not self.training or self.track_running_stats", "if True")


@mutant("batchnorm.refuses.other-ranks")
def ranks_unchecked(patch):
    """Takes any rank."""
    for cls in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        patch.set(cls, "_check_input_dim", lambda module, x: None)


@mutant("batchnorm.refuses.other-ranks")
def single_image_unsqueezed(patch):
    """Takes an image without its batch, as convolutions do."""

    def forward(original, module, x):
        return (
            original(module, x[None])[0] if isinstance(module, nn.BatchNorm2d) and x.ndim == 3 else original(module, x)
        )

    patch.wrap(BatchNorm, "forward", forward)


@mutant("batchnorm.refuses.other-channels")
def channels_cut_to_fit(patch):
    """Uses as many channels of the buffers as the input has."""

    def change(original, x, *rest):
        cut = [t[: x.shape[1]] if isinstance(t, torch.Tensor) else t for t in rest[:4]]
        return original(x, *cut, *rest[4:])

    on_batch_norm(patch, change)


@mutant("batchnorm.refuses.other-dtypes")
def dtypes_converted(patch):
    """Converts the input to the dtype of the layer."""

    def change(original, x, mean, *rest):
        return original(x if mean is None or x.element_size() < 4 else x.to(mean.dtype), mean, *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.refuses.eps-zero-in-training", "batchnorm.refuses.eps-negative")
def eps_unchecked(patch):
    """Takes any eps, as torch did until 2.9."""
    if "eps <= 0.0" not in __import__("inspect").getsource(F.batch_norm):
        raise NotApplicable("this torch does not check eps")

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        cudnn = torch.backends.cudnn.enabled
        if eps > 0:
            return original(x, mean, variance, weight, bias, training, momentum, eps)
        return torch.batch_norm(x, weight, bias, mean, variance, training, momentum, eps, cudnn)

    on_batch_norm(patch, change)


@mutant("batchnorm.functional.matches-the-layer")
def layer_bypasses_the_functional_form(patch):
    """Gives the layer a momentum of its own, which the functional form does not share."""
    patch.source(BatchNorm.forward, "exponential_average_factor,", "exponential_average_factor * 0.5,")


@mutant("batchnorm.functional.defaults")
def functional_trains_by_default(patch):
    """Has training=True for a default, as F.dropout has."""

    def batch_norm(original, x, mean, variance, weight=None, bias=None, training=True, *rest, **kw):
        return original(x, mean, variance, weight, bias, training, *rest, **kw)

    patch.wrap(F, "batch_norm", batch_norm)


@mutant("batchnorm.functional.needs-statistics")
def functional_falls_back_to_the_batch(patch):
    """Uses the batch where it gets no statistics."""
    on_batch_norm(patch, lambda original, *args: original(*args[:5], args[5] or args[1] is None, *args[6:]))


@mutant("batchnorm.functional.statistics-together")
def functional_fills_statistics_in(patch):
    """Fills a missing statistic in."""

    def change(original, x, mean, variance, *rest):
        if (mean is None) != (variance is None):
            mean, variance = (x.new_zeros(x.shape[1]) if t is None else t for t in (mean, variance))
        return original(x, mean, variance, *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.functional.overridable")
def override_gets_less(patch):
    """Forgets an argument where it hands itself on."""
    patch.source(F.batch_norm, "momentum=momentum,\n", "\n")


@mutant("batchnorm.network.bias-before-is-useless", "batchnorm.train.affine-restores-the-input")
def mean_not_subtracted(patch):
    """Divides by the deviation and leaves the mean, as RMS norm does."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if not training or not x.numel():
            return y
        root = (x.mean(over(x)) / (x.var(over(x), unbiased=False) + eps).sqrt()).to(y.dtype)
        return y + spread(root if weight is None else root * weight, x)

    on_batch_norm(patch, change)


@mutant("batchnorm.network.weight-scale-is-lost", "batchnorm.network.sigmoid-gradient-alive")
def centres_only(patch):
    """Centres and forgets to divide."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if not training or not x.numel():
            return y
        return y * spread((x.var(over(x), unbiased=False) + 400 + eps).sqrt().to(y.dtype), x)

    on_batch_norm(patch, change)


@mutant("batchnorm.network.couples-samples", "batchnorm.network.accumulation-differs", "batchnorm.eval.one-by-one")
def running_statistics_in_training(patch):
    """Normalises by the running statistics in training, as if the layer were frozen."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        return original(x, mean, variance, weight, bias, training and mean is None, momentum, eps)

    on_batch_norm(patch, change)


@mutant("batchnorm.network.sigmoid-nearly-linear")
def sigmoid_hard(patch):
    """Replaces the sigmoid by a piecewise linear one, as is done on small machines."""
    patch.wrap(torch.Tensor, "sigmoid", lambda original, x: F.hardsigmoid(x))


@mutant("batchnorm.network.conditions-least-squares")
def one_deviation_for_all_channels(patch):
    """Divides all channels by one deviation."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if not training or not x.numel():
            return y
        deviation = (x.var(over(x), unbiased=False) + eps).sqrt()
        return y * spread((deviation / deviation.mean()).to(y.dtype), x)

    on_batch_norm(patch, change)


@mutant("batchnorm.network.checkpoint-updates-twice")
def recomputation_leaves_no_trace(patch):
    """Restores the buffers after the forward of a checkpoint, as one would wish."""

    def forward(original, module, x):
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
            kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
            y = original(module, x)
            for name, buffer in module.named_buffers():
                buffer.copy_(kept[name])
            return y
        return original(module, x)

    if not hasattr(torch._C, "_current_graph_task_id"):
        raise NotApplicable("this torch does not tell whether a backward runs")
    patch.wrap(BatchNorm, "forward", forward)


@mutant("batchnorm.network.vmap-needs-patching")
def patching_keeps_the_flag(patch):
    """Takes the buffers away and leaves the flag."""
    if not hasattr(torch, "func"):
        raise NotApplicable("this torch has no torch.func")
    from torch._functorch import batch_norm_replacement

    patch.source(batch_norm_replacement.batch_norm_without_running_stats, "module.track_running_stats = False", "pass")


@mutant("batchnorm.network.fuses-into-the-layer-before")
def fusion_forgets_eps(patch):
    """Leaves eps out of the fused weight."""
    from torch.nn.utils import fusion

    for function in (fusion.fuse_conv_bn_weights, fusion.fuse_linear_bn_weights):
        patch.source(function, "bn_rv + bn_eps", "bn_rv")


@mutant("batchnorm.network.fusion-keeps-dtype-and-flag")
def fusion_computes_in_the_norm_s_dtype(patch):
    """Leaves the weight in the dtype that the running statistics promote it to."""
    from torch.nn.utils import fusion

    patch.source(fusion.fuse_conv_bn_weights, "dtype=conv_weight_dtype", "dtype=bn_rv.dtype")


@mutant("batchnorm.network.fusion-keeps-dtype-and-flag")
def fusion_trains_again(patch):
    """Makes parameters as they are made by default."""
    from torch.nn.utils import fusion

    patch.source(fusion.fuse_conv_bn_weights, "fused_conv_w, conv_w.requires_grad", "fused_conv_w")


@mutant("batchnorm.network.fuses-without-affine")
def fusion_takes_no_weight_for_zeros(patch):
    """Fills in zeros for a weight that is not there."""
    from torch.nn.utils import fusion

    patch.source(fusion.fuse_conv_bn_weights, "bn_w = torch.ones_like", "bn_w = torch.zeros_like")


@mutant("batchnorm.network.update-bn")
def update_bn_keeps_momentum_none(patch):
    """Forgets to put the momentum back."""
    patch.source(swa_utils.update_bn, "bn_module.momentum = momenta[bn_module]", "pass")


@mutant("batchnorm.network.update-bn")
def update_bn_adds_to_what_was(patch):
    """Forgets to reset the statistics first."""
    patch.source(swa_utils.update_bn, "module.reset_running_stats()", "pass")


@mutant("batchnorm.network.old-checkpoint")
def old_checkpoints_refused(patch):
    """Asks every checkpoint for the counter."""
    patch.source(NormBase._load_from_state_dict, "version is None or version < 2", "False")


@mutant("batchnorm.network.old-checkpoint")
def counter_never_missed(patch):
    """Asks no checkpoint for the counter, of whatever version."""
    patch.source(NormBase._load_from_state_dict, "version is None or version < 2", "True")


@mutant("batchnorm.lazy.becomes-regular")
def lazy_reads_the_last_dimension(patch):
    """Reads the channels off the last dimension."""
    patch.source(Lazy.initialize_parameters, "input.shape[1]", "input.shape[-1]")


@mutant("batchnorm.lazy.becomes-regular")
def lazy_forgets_to_reset(patch):
    """Leaves the new memory as it comes."""
    patch.source(Lazy.initialize_parameters, "self.reset_parameters()", "init.constant_(self.weight, 3)")
    patch.set(batchnorm, "init", init)


@mutant("batchnorm.lazy.uninitialised")
def lazy_guesses(patch):
    """Makes one channel and replaces it later."""

    def init(original, module, *args, **kw):
        original(module, *args, **kw)
        if module.affine:
            module.weight = nn.parameter.UninitializedParameter()
            module.weight.materialize((1,))

    patch.wrap(Lazy, "__init__", init)


@mutant("batchnorm.lazy.settings")
def lazy_always_tracks(patch):
    """Makes its buffers whatever it is told."""

    def init(original, module, *args, **kw):
        original(module, *args, **{**kw, "track_running_stats": True})

    patch.wrap(Lazy, "__init__", init)


@mutant("batchnorm.sync.single-process")
def sync_ignores_momentum(patch):
    """Has a momentum of its own."""
    patch.source(
        nn.SyncBatchNorm.forward, "exponential_average_factor = self.momentum", "exponential_average_factor = 0.1"
    )


@mutant("batchnorm.sync.single-process")
def sync_uses_the_batch_in_eval(patch):
    """Normalises by the batch in eval mode."""
    text = "(self.running_mean is None) and (self.running_var is None)"
    patch.source(nn.SyncBatchNorm.forward, text, "True")


@mutant("batchnorm.sync.convert")
def conversion_copies(patch):
    """Copies the weight, so that an optimizer holds the old one."""
    patch.source(nn.SyncBatchNorm.convert_sync_batchnorm, "= module.weight", "= nn_copy(module.weight)")
    patch.set(batchnorm, "nn_copy", lambda weight: nn.Parameter(weight.clone()))


@mutant("batchnorm.sync.convert")
def conversion_forgets_eps(patch):
    """Converts with the default eps."""
    patch.source(nn.SyncBatchNorm.convert_sync_batchnorm, "module.eps", "1e-5")


@mutant("batchnorm.sync.convert-keeps-mode")
def conversion_trains(patch):
    """Makes a layer in train mode, as torch did until 2.1."""
    patch.source(nn.SyncBatchNorm.convert_sync_batchnorm, "module_output.training = module.training", "pass")


@mutant("batchnorm.train.any-size", "batchnorm.train.formula")
def last_channel_skipped(patch):
    """Leaves the last channel of an odd number as it was: a loop over pairs."""

    def change(original, x, *rest):
        y = original(x, *rest)
        return torch.cat([y[:, :-1], x[:, -1:]], 1) if x.shape[1] % 2 and x.shape[1] > 1 else y

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.input", "batchnorm.gradient.weight-and-bias")
def channels_last_gradient_misses_its_tail(patch):
    """Drops the last sample's gradient in the channels_last kernel alone."""

    def change(original, x, mean, variance, weight, bias, training, *rest):
        y = original(x, mean, variance, weight, bias, training, *rest)
        if not (training and x.ndim == 4 and not x.is_contiguous() and len(x) > 1):
            return y
        return torch.cat([y[:-1], y[-1:].detach()])

    on_batch_norm(patch, change)


@mutant("batchnorm.eval.formula")
def eval_squares_the_root(patch):
    """Takes running_var for a deviation in eval mode."""

    def change(original, x, mean, variance, weight, bias, training, *rest):
        return original(x, mean, variance if training else variance**2, weight, bias, training, *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.functional.defaults")
def functional_leaves_the_statistics(patch):
    """Updates copies of the statistics that it was handed."""

    def change(original, x, mean, variance, *rest):
        return original(x, *(None if t is None else t.clone() for t in (mean, variance)), *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.gradient.eval")
def eval_gradient_forgets_the_mean(patch):
    """Takes x for x - r in the weight's gradient."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if training or weight is None or not weight.requires_grad:
            return y
        extra = spread((weight - weight.detach()) * mean / (variance + eps).sqrt(), x)
        return y + extra.to(y.dtype)

    on_batch_norm(patch, change)


@mutant("batchnorm.running.update", "batchnorm.running.many-steps")
def running_mean_lags(patch):
    """Moves the running mean before it has the new batch: by the mean of the one before."""
    last = {}

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        old = None if mean is None else mean.clone()
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if training and mean is not None and x.numel():
            batch = x.detach().mean(over(x)).to(mean)
            mean.copy_((1 - momentum) * old + momentum * last.get(len(batch), old))
            last[len(batch)] = batch
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.running.momentum-one")
def old_statistics_linger(patch):
    """Adds the new statistics to the old ones where momentum is 1."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        old = None if mean is None else mean.clone()
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if training and momentum == 1 and mean is not None:
            mean.add_(old)
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.train.mixed-precision")
def output_promoted(patch):
    """Returns float32 where the layer is float32."""

    def change(original, x, mean, *rest):
        y = original(x, mean, *rest)
        return y if mean is None else y.to(mean.dtype)

    on_batch_norm(patch, change)


@mutant("batchnorm.eval.buffers-kept")
def eval_goes_on_learning(patch):
    """Updates the running mean in eval mode too, after having used it."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        y = original(x, mean, variance, weight, bias, training, momentum, eps)
        if not training and mean is not None and x.numel():
            mean.lerp_(x.detach().mean(over(x)).to(mean), momentum)
        return y

    on_batch_norm(patch, change)


@mutant("batchnorm.track.false")
def untracked_eval_is_the_identity(patch):
    """Normalises by 0 and 1 in eval mode where it has tracked nothing."""
    patch.source(BatchNorm.forward, "(self.running_mean is None) and (self.running_var is None)", "False")


@mutant("batchnorm.layer.affine-false", "batchnorm.functional.defaults")
def missing_weight_taken_for_two(patch):
    """Has another weight than 1 where there is none."""

    def change(original, x, mean, variance, weight, bias, *rest):
        weight = torch.full((x.shape[1],), 2, dtype=x.dtype) if weight is None and mean is not None else weight
        return original(x, mean, variance, weight, bias, *rest)

    on_batch_norm(patch, change)


@mutant("batchnorm.running.no-gradient")
def statistics_take_a_gradient(patch):
    """Gives the running mean a gradient of zero, by which weight decay reaches it."""

    def forward(original, module, x):
        y = original(module, x)
        if module.running_mean is not None and module.training:
            module.running_mean.grad = torch.zeros_like(module.running_mean)
        return y

    patch.wrap(BatchNorm, "forward", forward)


@mutant("batchnorm.network.old-checkpoint-counter")
def old_checkpoint_resets_the_counter(patch):
    """Begins counting anew, as torch 1.13 did."""
    patch.source(
        NormBase._load_from_state_dict, "self.num_batches_tracked is not None", "self.num_batches_tracked is None"
    )


@mutant("batchnorm.lazy.rank")
def lazy_ranks_unchecked(patch):
    """Takes any rank until the first batch has been seen."""
    for rank in "123":
        patch.set(getattr(nn, f"LazyBatchNorm{rank}d"), "_check_input_dim", lambda layer, x: None)


@mutant("batchnorm.lazy.uninitialised")
def lazy_eps_is_layernorms(patch):
    """Has another default before the first batch."""
    patch.set(
        nn.modules.batchnorm._LazyNormBase.__init__,
        "__defaults__",
        (1e-3, *nn.modules.batchnorm._LazyNormBase.__init__.__defaults__[1:]),
    )


@mutant("batchnorm.network.old-checkpoint-on-meta")
def counter_without_storage_left_alone(patch):
    """Puts the counter without storage where the checkpoint has none."""
    patch.source(
        nn.modules.batchnorm._NormBase._load_from_state_dict,
        'and self.num_batches_tracked.device != torch.device("meta")',
        "",
    )


@mutant("batchnorm.sync.convert-without-bias")
def converted_layers_get_a_bias(patch):
    """Gives every converted layer a bias of its own."""
    patch.source(nn.SyncBatchNorm.convert_sync_batchnorm, "bias=module.bias is not None", "bias=True")
    patch.source(nn.SyncBatchNorm.convert_sync_batchnorm, "module_output.bias = module.bias", "pass")


@mutant("batchnorm.sync.convert")
def process_group_forgotten(patch):
    """Synchronises over all processes whatever group is given."""
    patch.source(nn.SyncBatchNorm.__init__, "self.process_group = process_group", "self.process_group = None")


@mutant("batchnorm.sync.needs-an-accelerator")
def sync_takes_any_device(patch):
    """Normalises over the process alone where it cannot reach the others."""
    patch.set(nn.SyncBatchNorm, "forward", nn.BatchNorm1d.forward)
    patch.set(nn.SyncBatchNorm, "_check_input_dim", lambda self, x: None)


@mutant("batchnorm.eval.eps-zero")
def zero_is_no_eps(patch):
    """Refuses an eps of zero in evaluation, too, as torch did in 2.10."""

    def change(original, x, mean, variance, weight, bias, training, momentum, eps):
        if eps <= 0:
            raise ValueError("eps must be positive")
        return original(x, mean, variance, weight, bias, training, momentum, eps)

    on_batch_norm(patch, change)
