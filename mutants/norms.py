"""The ways in which implementations of the normalisations go wrong."""

import torch
import torch.nn.functional as F
from torch import nn

from mutants._gradient import Altered, once, scaled
from torch_conformance.mutation import NotApplicable, mutant

CrossMap = nn.modules._functions.CrossMapLRN2d

LayerNorm, GroupNorm, InstanceNorm = nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d.__mro__[1]


def standardise(x, axes, eps, correction=0, centred=True):
    """The plain composite, for mutants to spoil; correction=1 is the unbiased variance."""
    deviation = x - x.mean(axes, keepdim=True) if centred else x
    count = torch.Size(x.shape[a] for a in axes).numel()
    return deviation / (deviation.square().sum(axes, keepdim=True) / (count - correction) + eps).sqrt()


def last(shape):
    return tuple(range(-len(shape), 0))


def affine(y, weight, bias):
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def channels(values, x):
    return None if values is None else values.reshape(-1, *[1] * (x.ndim - 2))


def layer_norm(patch, change):
    """Replace F.layer_norm by ``change(original, x, shape, weight, bias, eps)``."""

    def replacement(original, x, shape, weight=None, bias=None, eps=1e-5):
        return change(original, x, tuple(shape), weight, bias, eps)

    patch.wrap(F, "layer_norm", replacement)


def group_norm(patch, change):
    """Replace F.group_norm by ``change(original, x, groups, weight, bias, eps)``."""

    def replacement(original, x, groups, weight=None, bias=None, eps=1e-5):
        return change(original, x, groups, weight, bias, eps)

    patch.wrap(F, "group_norm", replacement)


def instance_norm(patch, change):
    """Replace F.instance_norm by ``change(original, arguments)``, arguments by name."""
    names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")

    def replacement(original, x, *args, **kwargs):
        return change(original, x, {**dict(zip(names, args, strict=False)), **kwargs})

    patch.wrap(F, "instance_norm", replacement)


def rms_norm(patch, change):
    """Replace F.rms_norm by ``change(original, x, shape, weight, eps)``."""
    if not hasattr(F, "rms_norm"):
        raise NotApplicable("this torch has no RMSNorm")

    def replacement(original, x, shape, weight=None, eps=None):
        return change(original, x, tuple(shape), weight, eps)

    patch.wrap(F, "rms_norm", replacement)


def response_norm(patch, change):
    """Replace F.local_response_norm by ``change(original, x, size, alpha, beta, k)``."""

    def replacement(original, x, size, alpha=1e-4, beta=0.75, k=1.0):
        return change(original, x, size, alpha, beta, k)

    patch.wrap(F, "local_response_norm", replacement)


class Stagnant(torch.autograd.Function):
    """A bias broadcast to (N, C, *), whose gradient is added up one by one in its own dtype."""

    @staticmethod
    def forward(ctx, bias, shape):
        return bias.reshape(-1, *[1] * (len(shape) - 2)).expand(shape)

    @staticmethod
    def backward(ctx, g):
        total = torch.zeros_like(g[0].flatten(1)[:, 0])
        for column in g.transpose(0, 1).flatten(1).unbind(1):
            total = total + column
        return total, None


class Leaning(torch.autograd.Function):
    """The identity, whose rule of forward mode is another than its backward's."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g

    @staticmethod
    def jvp(ctx, tangent):
        return 1.5 * tangent


def starting(patch, cls, change):
    """Let ``change(layer)`` spoil every new layer of the class."""

    def init(original, layer, *args, **kwargs):
        original(layer, *args, **kwargs)
        with torch.no_grad():
            change(layer)

    patch.wrap(cls, "__init__", init)


def shape_of(x, shape):
    if x.shape[-len(shape) :] != shape:
        raise RuntimeError(f"Given normalized_shape={list(shape)}, got input of size {list(x.shape)}")


# -- LayerNorm ---------------------------------------------------------------------------------------------------------


@mutant("norms.layernorm.formula", "norms.layernorm.integer-shape", "norms.groupnorm.one-group-is-layernorm")
def layer_norm_takes_the_unbiased_variance(patch):
    """Divides by n - 1, as torch.var does by default."""

    def change(original, x, shape, weight, bias, eps):
        return affine(standardise(x, last(shape), eps, correction=1), weight, bias)

    layer_norm(patch, change)


@mutant("norms.layernorm.formula")
def layer_norm_over_the_last_dimension_only(patch):
    """Standardises over the last dimension alone, as a kernel does that was written for vectors."""

    def change(original, x, shape, weight, bias, eps):
        return affine(original(x, shape[-1:], None, None, eps), weight, bias)

    layer_norm(patch, change)


@mutant("norms.layernorm.formula")
def layer_norm_forgets_the_tail(patch):
    """Leaves the elements behind the last full vector of eight unstandardised, as a vectorised loop without a tail."""

    def change(original, x, shape, weight, bias, eps):
        y, full = original(x, shape, weight, bias, eps), x.shape[-1] // 8 * 8
        return y if x.shape[-1] < 8 else torch.cat([y[..., :full], x[..., full:]], -1)

    layer_norm(patch, change)


@mutant("norms.layernorm.formula")
def layer_norm_ignores_strides(patch):
    """Reads the storage as if it were contiguous, as a kernel does that lacks a call of contiguous()."""

    def change(original, x, shape, weight, bias, eps):
        if x.is_contiguous() or x.numel() != x.untyped_storage().nbytes() // x.element_size():
            return original(x, shape, weight, bias, eps)
        return original(x.as_strided(x.shape, torch.empty(x.shape).stride()), shape, weight, bias, eps)

    layer_norm(patch, change)


@mutant("norms.common.sums-in-float32")
def layer_norm_sums_in_bfloat16(patch):
    """Holds the statistics of bfloat16 and float16 in the input's dtype instead of float32."""

    def change(original, x, shape, weight, bias, eps):
        if x.element_size() > 2:
            return original(x, shape, weight, bias, eps)
        total = torch.zeros_like(x.sum(last(shape), keepdim=True))
        for column in x.flatten(-len(shape)).unbind(-1):
            total = total + column.reshape(total.shape)
        mean = total / torch.Size(shape).numel()
        square = (x - mean).square().mean(last(shape), keepdim=True)
        return affine((x - mean) / (square + eps).sqrt(), weight, bias).to(x.dtype)

    layer_norm(patch, change)


@mutant("norms.common.gradient-sums-in-float32")
def group_norm_sums_gradients_in_bfloat16(patch):
    """Adds up the gradient of the bias in the dtype of the parameter, as LayerNorm does on the CPU."""

    def change(original, x, groups, weight, bias, eps):
        if bias is None or x.element_size() > 2:
            return original(x, groups, weight, bias, eps)
        wide = Stagnant.apply(bias, x.shape)
        return original(x, groups, weight, None, eps) + wide

    group_norm(patch, change)


@mutant("norms.layernorm.rows-and-columns")
def layer_norm_is_batch_norm(patch):
    """Standardises every feature over the batch: normalisation taken for another word for batch normalisation."""

    def change(original, x, shape, weight, bias, eps):
        return affine(standardise(x, (0,), eps), weight, bias)

    layer_norm(patch, change)


@mutant("norms.layernorm.no-batch-needed")
def layer_norm_asks_for_a_batch(patch):
    """Refuses a lone sample, as layers did before unbatched input."""

    def change(original, x, shape, weight, bias, eps):
        if x.ndim == len(shape):
            raise RuntimeError("expected a batch dimension")
        return original(x, shape, weight, bias, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.eps-inside-the-root", "norms.layernorm.formula")
def layer_norm_adds_eps_to_the_deviation(patch):
    """Adds eps outside the root, as the Annotated Transformer does."""

    def change(original, x, shape, weight, bias, eps):
        std = x.var(last(shape), unbiased=False, keepdim=True).sqrt()
        return affine((x - x.mean(last(shape), keepdim=True)) / (std + eps), weight, bias)

    layer_norm(patch, change)


@mutant("norms.layernorm.default-eps")
def layer_norm_defaults_to_1e_6(patch):
    """Takes 1e-6 by default, as TensorFlow's and Flax's do."""
    patch.source(LayerNorm.__init__, "eps: float = 1e-5", "eps: float = 1e-5")
    patch.wrap(
        LayerNorm, "__init__", lambda original, layer, shape, eps=1e-6, *a, **k: original(layer, shape, eps, *a, **k)
    )


@mutant("norms.layernorm.default-eps")
def functional_layer_norm_defaults_to_1e_12(patch):
    """Takes 1e-12 in the functional form, as the first BERT did."""
    patch.wrap(F, "layer_norm", lambda original, x, s, w=None, b=None, eps=1e-12: original(x, s, w, b, eps))


@mutant("norms.layernorm.large-offset")
def layer_norm_subtracts_squares(patch):
    """Takes the variance for the difference of mean square and squared mean: one pass, and all is cancelled."""

    def change(original, x, shape, weight, bias, eps):
        mean = x.mean(last(shape), keepdim=True)
        var = (x.square().mean(last(shape), keepdim=True) - mean.square()).clamp(min=0)
        return affine((x - mean) / (var + eps).sqrt(), weight, bias)

    layer_norm(patch, change)


@mutant("norms.layernorm.constant-row")
def layer_norm_divides_by_the_bare_deviation(patch):
    """Leaves eps out where the variance is zero, and gives NaN."""

    def change(original, x, shape, weight, bias, eps):
        constant = x.amax(last(shape), keepdim=True) == x.amin(last(shape), keepdim=True)
        return original(x, shape, weight, bias, eps).masked_fill(constant, float("nan"))

    layer_norm(patch, change)


@mutant("norms.layernorm.long-constant-row")
def long_rows_have_no_mean(patch):
    """Takes zero for the mean of a long row."""

    def change(original, x, shape, weight, bias, eps):
        y = original(x, shape, weight, bias, eps)
        return y + x / eps**0.5 if x.dtype == torch.bfloat16 and shape[-1] > 256 else y

    layer_norm(patch, change)


@mutant("norms.layernorm.gradients")
def layer_norm_takes_statistics_for_constants(patch):
    """Detaches mean and variance, so that the gradient misses its two projections."""

    def change(original, x, shape, weight, bias, eps):
        mean = x.detach().mean(last(shape), keepdim=True)
        var = x.detach().var(last(shape), unbiased=False, keepdim=True)
        return affine((x - mean) / (var + eps).sqrt(), weight, bias)

    layer_norm(patch, change)


@mutant("norms.layernorm.gradients")
def layer_norm_averages_the_gradient_of_the_bias(patch):
    """Averages the gradient of the bias over the batch instead of summing it."""

    def change(original, x, shape, weight, bias, eps):
        rows = x.numel() // max(1, torch.Size(shape).numel())
        return original(x, shape, weight, None if bias is None else scaled(bias, 1 / max(rows, 1)), eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.gradients")
def layer_norm_loses_a_row_of_the_gradient_of_the_weight(patch):
    """Sums the gradient of the weight over all rows but the last: the tail of a split reduction."""

    def change(original, x, shape, weight, bias, eps):
        if weight is None or x.ndim == len(shape) or not len(x):
            return original(x, shape, weight, bias, eps)
        y = [original(part, shape, w, bias, eps) for part, w in ((x[:-1], weight), (x[-1:], weight.detach()))]
        return torch.cat(y)

    layer_norm(patch, change)


@mutant("norms.layernorm.gradients")
def layer_norm_backward_needs_a_gradient_of_x(patch):
    """Skips the gradients of weight and bias where the input needs none, as a wrong output mask does."""

    def change(original, x, shape, weight, bias, eps):
        if x.requires_grad or weight is None or bias is None:
            return original(x, shape, weight, bias, eps)
        return original(x, shape, weight.detach(), bias, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.formula")
def layer_norm_forgets_the_tail_of_long_rows(patch):
    """Averages rows of over a thousand elements in blocks of 16, and leaves the rest out of the mean."""

    def change(original, x, shape, weight, bias, eps):
        y, full = original(x, shape, weight, bias, eps), x.shape[-1] // 16 * 16
        if len(shape) > 1 or full <= 1024:
            return y
        shift = original(x, shape, None, None, eps)[..., :full].mean(-1, keepdim=True)
        return y - (shift if weight is None else shift * weight)

    layer_norm(patch, change)


@mutant("norms.layernorm.gradients")
def layer_norm_loses_a_row_of_many(patch):
    """Leaves the last row out of the gradient of the weight where there are over 64: the tail of a split sum."""

    def change(original, x, shape, weight, bias, eps):
        if weight is None or x.ndim == len(shape) or len(x) <= 64:
            return original(x, shape, weight, bias, eps)
        y = [original(part, shape, w, bias, eps) for part, w in ((x[:-1], weight), (x[-1:], weight.detach()))]
        return torch.cat(y)

    layer_norm(patch, change)


@mutant("norms.layernorm.affine")
def layer_norm_of_low_precision_needs_a_weight(patch):
    """Takes the mean for a constant in the backward of low precision without a weight: a branch that nobody called."""

    def change(original, x, shape, weight, bias, eps):
        y = original(x, shape, weight, bias, eps)
        return scaled(y, 0.5) if weight is None and x.element_size() == 2 else y

    layer_norm(patch, change)


@mutant("norms.layernorm.double-backward")
def layer_norm_differentiates_once(patch):
    """Cuts the graph in the backward, as a fused kernel does that has no second derivative."""

    def change(original, x, shape, weight, bias, eps):
        return original(once(x), shape, weight, bias, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.affine")
def layer_norm_without_weight_ignores_the_bias(patch):
    """Adds the bias only where there is a weight too."""

    def change(original, x, shape, weight, bias, eps):
        return original(x, shape, weight, bias if weight is not None else None, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.affine")
def layer_norm_keeps_its_parameters(patch):
    """Takes no notice of elementwise_affine=False."""
    patch.source(LayerNorm.__init__, "if self.elementwise_affine:", "if True:")


@mutant("norms.layernorm.bias-off")
def layer_norm_keeps_its_bias(patch):
    """Takes no notice of bias=False."""
    patch.source(LayerNorm.__init__, "if bias:", "if True:")


@mutant("norms.layernorm.bias-off")
def layer_norm_without_bias_is_not_reset(patch):
    """Leaves a layer without bias with the weight detached from the law: squared."""

    def change(original, x, shape, weight, bias, eps):
        return original(x, shape, weight if bias is not None or weight is None else weight.square(), bias, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.start")
def layer_norm_starts_at_zero(patch):
    """Starts with a weight of zeros, as residual branches are often started."""
    starting(patch, LayerNorm, lambda layer: layer.weight.zero_() if layer.weight is not None else None)


@mutant("norms.layernorm.start")
def layer_norm_starts_with_a_random_bias(patch):
    """Draws the bias as Linear does."""
    starting(
        patch, LayerNorm, lambda layer: layer.bias.uniform_() if getattr(layer, "bias", None) is not None else None
    )


@mutant("norms.layernorm.integer-shape")
def layer_norm_takes_an_integer_for_a_count_of_dimensions(patch):
    """Takes an integer shape for the last two dimensions."""

    def init(original, layer, shape, *args, **kwargs):
        original(layer, (shape, shape) if isinstance(shape, int) else shape, *args, **kwargs)

    patch.wrap(LayerNorm, "__init__", init)


@mutant("norms.layernorm.shape-error")
def layer_norm_takes_any_shape(patch):
    """Standardises over whatever is there, and broadcasts."""

    def change(original, x, shape, weight, bias, eps):
        return original(x, x.shape[-len(shape) :], None, None, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.mixed-dtypes")
def layer_norm_promotes(patch):
    """Promotes a reduced input to the dtype of the weight."""

    def change(original, x, shape, weight, bias, eps):
        return original(x.to(weight.dtype) if weight is not None else x, shape, weight, bias, eps)

    layer_norm(patch, change)


@mutant("norms.layernorm.no-elements")
def layer_norm_refuses_an_empty_batch(patch):
    """Refuses a batch of zero samples, as kernels did that divide by its size."""

    def change(original, x, shape, weight, bias, eps):
        if not x.numel():
            raise RuntimeError("expected a batch that is not empty")
        return original(x, shape, weight, bias, eps)

    layer_norm(patch, change)


@mutant("norms.common.samples-apart", "norms.layernorm.formula")
def layer_norm_kernel_leaks_the_sample_before(patch):
    """Keeps a part of the sum of the row before, as an accumulator that is not reset."""

    def kernel(x, shape, weight, bias, eps):
        axes = tuple(range(x.ndim - len(shape), x.ndim))
        mean = x.mean(axes, keepdim=True)
        inverse = (x.var(axes, unbiased=False, keepdim=True) + eps).rsqrt()
        return affine((x - mean - 1e-3 * mean.roll(1, 0)) * inverse, weight, bias), mean, inverse

    patch.kernel("native_layer_norm", kernel, "CPU")


@mutant("norms.common.stateless")
def layer_norm_keeps_a_moving_mean(patch):
    """Registers a running mean, as BatchNorm does."""
    starting(patch, LayerNorm, lambda layer: layer.register_buffer("running_mean", torch.zeros(())))


@mutant("norms.common.stateless")
def group_norm_differs_in_eval(patch):
    """Takes the unbiased variance in eval mode."""

    def forward(original, layer, x):
        return original(layer, x) * (1 if layer.training else 0.99)

    patch.wrap(GroupNorm, "forward", forward)


@mutant("norms.common.samples-apart")
def instance_norm_shares_statistics(patch):
    """Takes the mean over the batch as well, as BatchNorm does."""

    def change(original, x, named):
        y = original(x, **named)
        return y - y.mean(0, keepdim=True) * 1e-2

    instance_norm(patch, change)


@mutant("norms.common.nan-stays-in-its-sample")
def layer_norm_swallows_nan(patch):
    """Clamps the result, and makes a number of NaN on the way."""
    layer_norm(patch, lambda original, *a: original(*a).nan_to_num())


@mutant("norms.common.nan-stays-in-its-sample")
def group_norm_spreads_nan(patch):
    """Multiplies by a mask of zeros over the batch, and so spreads NaN."""
    group_norm(patch, lambda original, *a: (y := original(*a)) + 0 * y.sum())


# -- GroupNorm ---------------------------------------------------------------------------------------------------------


def group_axes(x, groups):
    view = x.reshape(x.shape[0], groups, -1)
    return view, (2,)


@mutant("norms.groupnorm.formula")
def group_norm_strides_its_groups(patch):
    """Deals the channels out to the groups in turn, as a shuffled layout does."""

    def change(original, x, groups, weight, bias, eps):
        order = torch.arange(x.shape[1]).reshape(-1, groups).t().reshape(-1)
        y = original(x[:, order], groups, None, None, eps)[:, order.argsort()]
        return affine(y, channels(weight, x), channels(bias, x))

    group_norm(patch, change)


@mutant("norms.groupnorm.formula", "norms.groupnorm.one-group-is-layernorm")
def group_norm_takes_the_unbiased_variance(patch):
    """Divides by n - 1, as torch.var does by default."""

    def change(original, x, groups, weight, bias, eps):
        y = standardise(x.reshape(x.shape[0], groups, -1), (2,), eps, correction=1).reshape(x.shape)
        return affine(y, channels(weight, x), channels(bias, x))

    group_norm(patch, change)


@mutant("norms.groupnorm.formula")
def group_norm_has_a_weight_for_each_group(patch):
    """Applies the weight of the first channel of a group to all of it."""

    def change(original, x, groups, weight, bias, eps):
        if weight is not None:
            each = weight.shape[0] // groups
            weight = weight[::each].repeat_interleave(each)
        return original(x, groups, weight, bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.formula")
def group_norm_mistakes_channels_last(patch):
    """Reads channels_last memory as if it were contiguous."""

    def change(original, x, groups, weight, bias, eps):
        if x.ndim != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return original(x, groups, weight, bias, eps)
        return original(x.permute(0, 2, 3, 1).reshape(x.shape), groups, weight, bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.eps-inside-the-root")
def group_norm_adds_eps_to_the_deviation(patch):
    """Adds eps outside the root."""

    def change(original, x, groups, weight, bias, eps):
        view = x.reshape(x.shape[0], groups, -1)
        y = (view - view.mean(2, keepdim=True)) / (view.var(2, unbiased=False, keepdim=True).sqrt() + eps)
        return affine(y.reshape(x.shape), channels(weight, x), channels(bias, x))

    group_norm(patch, change)


@mutant("norms.groupnorm.default-eps")
def group_norm_defaults_to_1e_3(patch):
    """Takes 1e-3 by default, as Keras does."""
    patch.wrap(GroupNorm, "__init__", lambda original, m, g, c, eps=1e-3, *a, **k: original(m, g, c, eps, *a, **k))


@mutant("norms.groupnorm.default-eps")
def functional_group_norm_defaults_to_1e_6(patch):
    """Takes 1e-6 in the functional form, as diffusion models do."""
    patch.wrap(F, "group_norm", lambda original, x, g, w=None, b=None, eps=1e-6: original(x, g, w, b, eps))


@mutant("norms.groupnorm.large-offset", "norms.groupnorm.small-batch")
def group_norm_subtracts_squares(patch):
    """Takes the variance for the difference of mean square and squared mean, off by one part in a hundred thousand."""

    def change(original, x, groups, weight, bias, eps):
        view = x.reshape(x.shape[0], groups, -1)
        mean = view.mean(2, keepdim=True)
        var = (view.square().mean(2, keepdim=True) * (1 + 1e-5) - mean.square()).clamp(min=0)
        return affine(((view - mean) / (var + eps).sqrt()).reshape(x.shape), channels(weight, x), channels(bias, x))

    group_norm(patch, change)


@mutant("norms.groupnorm.large-offset-channels-last")
def group_norm_fails_in_channels_last(patch):
    """Refuses the memory format."""

    def change(original, x, groups, weight, bias, eps):
        if x.ndim == 4 and not x.is_contiguous():
            raise RuntimeError("expected contiguous input")
        return original(x, groups, weight, bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.channels-last-result")
def group_norm_returns_contiguous(patch):
    """Returns contiguous memory whatever came in, so that the next convolution converts it back."""
    group_norm(patch, lambda original, *a: original(*a).contiguous())


@mutant("norms.groupnorm.gradients")
def group_norm_takes_statistics_for_constants(patch):
    """Detaches mean and variance, so that the gradient misses its two projections."""

    def change(original, x, groups, weight, bias, eps):
        view = x.reshape(x.shape[0], groups, -1)
        held = view.detach()
        y = (view - held.mean(2, keepdim=True)) / (held.var(2, unbiased=False, keepdim=True) + eps).sqrt()
        return affine(y.reshape(x.shape), channels(weight, x), channels(bias, x))

    group_norm(patch, change)


@mutant("norms.groupnorm.gradients")
def group_norm_averages_the_gradient_of_the_weight(patch):
    """Averages the gradient of the weight over the batch instead of summing it."""

    def change(original, x, groups, weight, bias, eps):
        weight = None if weight is None else scaled(weight, 1 / max(1, len(x)))
        return original(x, groups, weight, bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.gradients")
def group_norm_loses_a_sample_of_many(patch):
    """Leaves the last sample out of the gradient of the bias where there are over 64: the tail of a split sum."""

    def change(original, x, groups, weight, bias, eps):
        if bias is None or len(x) <= 64:
            return original(x, groups, weight, bias, eps)
        parts = (x[:-1], bias), (x[-1:], bias.detach())
        return torch.cat([original(part, groups, weight, b, eps) for part, b in parts])

    group_norm(patch, change)


@mutant("norms.groupnorm.gradients")
def group_norm_backward_needs_a_gradient_of_the_weight(patch):
    """Skips the gradient of the bias where the weight needs none, as a wrong output mask does."""

    def change(original, x, groups, weight, bias, eps):
        frozen = weight is not None and bias is not None and not weight.requires_grad
        return original(x, groups, weight, bias.detach() if frozen else bias, eps)

    group_norm(patch, change)


@mutant("norms.common.expanded-gradient")
def group_norm_takes_a_sum_for_an_average(patch):
    """Divides by the number of samples where all gradients are the same number in memory."""

    def change(original, x, *rest):
        return Altered.apply(original(x, *rest), lambda g: g / len(g) if 0 in g.stride() else g)

    group_norm(patch, change)


@mutant("norms.common.weight-with-strides")
def layer_norm_reads_its_weight_in_a_row(patch):
    """Reads the weight as it lies in memory, one value after the other."""

    def change(original, x, shape, weight, bias, eps):
        weight = None if weight is None else weight.as_strided(weight.shape, torch.empty(weight.shape).stride())
        return original(x, shape, weight, bias, eps)

    layer_norm(patch, change)


@mutant("norms.common.forward-mode", "norms.common.backward-through-forward-mode")
def group_norm_leans_forward(patch):
    """Has a rule of forward mode of its own, which is half as steep again."""
    group_norm(patch, lambda original, x, *rest: original(Leaning.apply(x), *rest))


@mutant("norms.groupnorm.double-backward", "norms.common.third-derivative")
def group_norm_differentiates_once(patch):
    """Cuts the graph in the backward, as a fused kernel does that has no second derivative."""
    group_norm(patch, lambda original, x, *rest: original(once(x), *rest))


@mutant("norms.groupnorm.affine")
def group_norm_without_weight_ignores_the_bias(patch):
    """Adds the bias only where there is a weight too."""

    def change(original, x, groups, weight, bias, eps):
        return original(x, groups, weight, bias if weight is not None else None, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.affine")
def group_norm_keeps_its_parameters(patch):
    """Takes no notice of affine=False."""
    patch.source(GroupNorm.__init__, "if self.affine:", "if True:")


@mutant("norms.groupnorm.affine")
def group_norm_trains_no_bias_alone(patch):
    """Gives the bias its gradient only where there is a weight too."""

    def change(original, x, groups, weight, bias, eps):
        return original(x, groups, weight, bias.detach() if bias is not None and weight is None else bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.bias-off")
def group_norm_keeps_its_bias(patch):
    """Takes no notice of bias=False."""
    patch.source(GroupNorm.__init__, "if bias:", "if True:")


@mutant("norms.groupnorm.start")
def group_norm_starts_at_zero(patch):
    """Starts with a weight of zeros, as residual branches are often started."""
    starting(patch, GroupNorm, lambda layer: layer.weight.zero_() if layer.weight is not None else None)


@mutant("norms.groupnorm.one-group-is-layernorm")
def group_norm_has_parameters_like_layer_norm(patch):
    """Gives the weight of a single group an entry for each element, as LayerNorm has."""

    def change(layer):
        if layer.num_groups == 1 and layer.weight is not None:
            layer.weight = nn.Parameter(torch.ones(layer.num_channels, 1))

    starting(patch, GroupNorm, change)


@mutant("norms.groupnorm.a-group-each-is-instancenorm")
def group_norm_joins_lone_channels(patch):
    """Joins two channels at least, so that a group of one channel does not arise."""

    def change(original, x, groups, weight, bias, eps):
        return original(x, groups // 2 if groups == x.shape[1] > 1 else groups, weight, bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.small-batch")
def group_norm_looks_at_the_batch(patch):
    """Adds one n-th to eps, as a correction for small batches would."""

    def change(original, x, groups, weight, bias, eps):
        return original(x, groups, weight, bias, eps + 1 / max(1, len(x)))

    group_norm(patch, change)


@mutant("norms.groupnorm.divisibility")
def group_norm_makes_uneven_groups(patch):
    """Accepts channels that do not divide, and fails later or not at all."""
    patch.source(GroupNorm.__init__, "num_channels % num_groups != 0", "False")


@mutant("norms.groupnorm.single-value")
def group_norm_accepts_a_lone_value(patch):
    """Gives the bias for a lone value in a batch of one, as it does for two."""
    patch.set(F, "_verify_batch_size", lambda size: None)


@mutant("norms.groupnorm.shape-error")
def group_norm_takes_other_channels(patch):
    """Applies no weight where it does not fit."""

    def change(original, x, groups, weight, bias, eps):
        fits = weight is None or weight.shape[0] == x.shape[1]
        return original(x, groups, weight if fits else None, bias if fits else None, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.rank-error")
def group_norm_takes_a_vector(patch):
    """Takes a vector for a batch of one."""

    def change(original, x, groups, *rest):
        return original(x[None], groups, *rest)[0] if x.ndim == 1 else original(x, groups, *rest)

    group_norm(patch, change)


@mutant("norms.groupnorm.mixed-dtypes")
def group_norm_promotes(patch):
    """Promotes a reduced input to the dtype of the weight."""

    def change(original, x, groups, weight, bias, eps):
        return original(x.to(weight.dtype) if weight is not None else x, groups, weight, bias, eps)

    group_norm(patch, change)


@mutant("norms.groupnorm.no-elements")
def group_norm_refuses_an_empty_batch(patch):
    """Refuses a batch of zero samples, as kernels did that divide by its size."""

    def change(original, x, *rest):
        if not x.numel():
            raise RuntimeError("expected a batch that is not empty")
        return original(x, *rest)

    group_norm(patch, change)


@mutant("norms.groupnorm.no-positions")
def group_norm_divides_by_no_positions(patch):
    """Divides by the number of positions before it looks at it."""

    def change(original, x, *rest):
        share = 1 / torch.Size(x.shape[2:]).numel()
        return original(x, *rest) if share else x

    group_norm(patch, change)


# -- InstanceNorm ------------------------------------------------------------------------------------------------------


@mutant("norms.instancenorm.formula", "norms.groupnorm.a-group-each-is-instancenorm", "norms.instancenorm.unbatched")
def instance_norm_takes_the_unbiased_variance(patch):
    """Normalises with the variance that goes to running_var."""

    def change(original, x, named):
        if not named.get("use_input_stats", True):
            return original(x, **named)
        original(x, **named)
        y = standardise(x, tuple(range(2, x.ndim)), named.get("eps", 1e-5), correction=1)
        return affine(y, channels(named.get("weight"), x), channels(named.get("bias"), x))

    instance_norm(patch, change)


@mutant("norms.instancenorm.formula")
def instance_norm_deals_the_weight_by_sample(patch):
    """Repeats each weight N times in a row, where the weights as a whole are to be repeated."""

    def change(original, x, named):
        if named.get("weight") is None or not named.get("use_input_stats", True):
            return original(x, **named)
        y = original(x, **{**named, "weight": None, "bias": None})
        n, c = x.shape[:2]
        shape = (n, c, *[1] * (x.ndim - 2))
        weight, bias = (
            named[k].repeat_interleave(n).reshape(shape) if named[k] is not None else None for k in ("weight", "bias")
        )
        return affine(y, weight, bias)

    instance_norm(patch, change)


@mutant("norms.instancenorm.unbatched")
def instance_norm_swaps_batch_and_channel(patch):
    """Adds the missing batch dimension behind the channels."""
    patch.source(InstanceNorm._handle_no_batch_input, "unsqueeze(0)).squeeze(0)", "unsqueeze(1)).squeeze(1)")


@mutant("norms.instancenorm.eps-inside-the-root")
def instance_norm_adds_eps_to_the_deviation(patch):
    """Adds eps outside the root."""

    def change(original, x, named):
        axes = tuple(range(2, x.ndim))
        std = x.var(axes, unbiased=False, keepdim=True).sqrt()
        y = (x - x.mean(axes, keepdim=True)) / (std + named.get("eps", 1e-5))
        return affine(y, channels(named.get("weight"), x), channels(named.get("bias"), x))

    instance_norm(patch, change)


@mutant("norms.instancenorm.default-eps")
def instance_norm_defaults_to_1e_3(patch):
    """Takes 1e-3 by default, as Keras does."""
    patch.wrap(InstanceNorm, "__init__", lambda original, m, n, eps=1e-3, *a, **k: original(m, n, eps, *a, **k))


@mutant("norms.instancenorm.default-eps")
def functional_instance_norm_defaults_to_1e_6(patch):
    """Takes 1e-6 in the functional form, as TensorFlow Addons did."""
    instance_norm(patch, lambda original, x, named: original(x, **{"eps": 1e-6, **named}))


@mutant("norms.instancenorm.large-offset")
def instance_norm_subtracts_squares(patch):
    """Takes the variance for the difference of mean square and squared mean, off by one part in a hundred thousand."""

    def change(original, x, named):
        axes = tuple(range(2, x.ndim))
        mean = x.mean(axes, keepdim=True)
        var = (x.square().mean(axes, keepdim=True) * (1 + 1e-5) - mean.square()).clamp(min=0)
        y = (x - mean) / (var + named.get("eps", 1e-5)).sqrt()
        return affine(y, channels(named.get("weight"), x), channels(named.get("bias"), x))

    instance_norm(patch, change)


@mutant("norms.instancenorm.start")
def instance_norm_is_affine_by_default(patch):
    """Has parameters by default, as BatchNorm does."""

    def init(original, layer, n, eps=1e-5, momentum=0.1, affine=True, *args, **kwargs):
        original(layer, n, eps, momentum, affine, *args, **kwargs)

    patch.wrap(InstanceNorm, "__init__", init)


@mutant("norms.instancenorm.start")
def instance_norm_tracks_by_default(patch):
    """Tracks running statistics by default, as BatchNorm does."""

    def init(original, layer, n, eps=1e-5, momentum=0.1, affine=False, track_running_stats=True, *args, **kwargs):
        original(layer, n, eps, momentum, affine, track_running_stats, *args, **kwargs)

    patch.wrap(InstanceNorm, "__init__", init)


@mutant("norms.instancenorm.affine")
def instance_norm_starts_at_random(patch):
    """Draws the weight from [0, 1), as versions before 1.0 did."""
    starting(patch, InstanceNorm, lambda layer: layer.weight.uniform_() if layer.weight is not None else None)


@mutant("norms.instancenorm.bias-off")
def instance_norm_keeps_its_bias(patch):
    """Takes no notice of bias=False."""
    patch.wrap(InstanceNorm, "__init__", lambda original, m, *a, bias=True, **k: original(m, *a, **k))


@mutant("norms.instancenorm.gradients", "norms.instancenorm.modes-alike")
def instance_norm_uses_statistics_of_eval_in_eval(patch):
    """Standardises with mean 0 and variance 1 in eval mode where no statistics are tracked."""

    def apply(original, layer, x):
        if layer.training or layer.track_running_stats:
            return original(layer, x)
        zeros = torch.zeros(x.shape[1], dtype=x.dtype)
        return F.instance_norm(x, zeros, zeros + 1, layer.weight, layer.bias, False, 0.0, layer.eps)

    patch.wrap(InstanceNorm, "_apply_instance_norm", apply)


@mutant("norms.instancenorm.gradients")
def instance_norm_halves_the_gradient_of_the_bias(patch):
    """Averages the gradient of the bias over the batch instead of summing it."""

    def change(original, x, named):
        bias = named.get("bias")
        return original(x, **{**named, "bias": None if bias is None else scaled(bias, 1 / len(x))})

    instance_norm(patch, change)


@mutant("norms.instancenorm.double-backward")
def instance_norm_differentiates_once(patch):
    """Cuts the graph in the backward, as a fused kernel does that has no second derivative."""
    instance_norm(patch, lambda original, x, named: original(once(x), **named))


@mutant("norms.instancenorm.modes-alike")
def instance_norm_reads_the_mode(patch):
    """Looks at the mode alone, so that eval without statistics fails, or worse."""
    patch.source(InstanceNorm._apply_instance_norm, "self.training or not self.track_running_stats", "self.training")


@mutant("norms.instancenorm.running-buffers")
def instance_norm_starts_with_a_variance_of_zero(patch):
    """Starts running_var at zero, as one does who resets all buffers alike."""
    starting(patch, InstanceNorm, lambda m: m.running_var.zero_() if m.running_var is not None else None)


def drawn(original, x, named, ddof, power):
    """Let the original compute, and move the running statistics otherwise than it does."""
    held = [None if named.get(k) is None else named[k].clone() for k in ("running_mean", "running_var")]
    y = original(x, **named)
    if held[0] is not None and named.get("use_input_stats", True):
        planes, m = x.detach().reshape(*x.shape[:2], -1), named.get("momentum", 0.1)
        with torch.no_grad():
            named["running_mean"].copy_((1 - m) * held[0] + m * planes.mean(2).mean(0))
            named["running_var"].copy_((1 - m) * held[1] + m * planes.var(2, unbiased=ddof).pow(power).mean(0))
    return y


@mutant("norms.instancenorm.running-update")
def instance_norm_tracks_the_biased_variance(patch):
    """Moves running_var towards the variance that it normalised with."""
    instance_norm(patch, lambda original, x, named: drawn(original, x, named, False, 1))


@mutant("norms.instancenorm.running-update")
def instance_norm_tracks_the_deviation(patch):
    """Moves running_var towards the standard deviation."""
    instance_norm(patch, lambda original, x, named: drawn(original, x, named, True, 0.5))


@mutant("norms.instancenorm.running-update")
def instance_norm_updates_with_the_complement(patch):
    """Takes momentum for the share of the old value, as Keras does."""

    def change(original, x, named):
        return original(x, **{**named, "momentum": 1 - named.get("momentum", 0.1)})

    instance_norm(patch, change)


@mutant("norms.instancenorm.default-momentum")
def instance_norm_defaults_to_another_momentum(patch):
    """Takes 0.01 by default, as Keras' 0.99."""
    patch.wrap(
        InstanceNorm, "__init__", lambda f, m, n, eps=1e-5, momentum=0.01, *a, **k: f(m, n, eps, momentum, *a, **k)
    )


@mutant("norms.instancenorm.eval-uses-running", "norms.instancenorm.eval-gradient")
def instance_norm_never_uses_running_statistics(patch):
    """Standardises with the input's own statistics in eval mode too."""
    patch.source(InstanceNorm._apply_instance_norm, "self.training or not self.track_running_stats", "True")


@mutant("norms.instancenorm.eval-uses-running")
def instance_norm_swaps_running_statistics(patch):
    """Takes the running variance for a standard deviation."""

    def change(original, x, named):
        if named.get("use_input_stats", True):
            return original(x, **named)
        return original(x, **{**named, "running_var": named["running_var"] ** 2})

    instance_norm(patch, change)


@mutant("norms.instancenorm.eval-keeps-running")
def instance_norm_writes_back_in_eval(patch):
    """Writes the statistics back in eval mode, as torch did before 2.11."""

    def change(original, x, named):
        if not named.get("use_input_stats", True):
            for name in ("running_mean", "running_var"):
                named[name].copy_(named[name].repeat(len(x)).view(len(x), -1).mean(0))
        return original(x, **named)

    instance_norm(patch, change)


@mutant("norms.instancenorm.eval-gradient")
def instance_norm_backward_uses_the_input(patch):
    """Takes the gradient in eval mode as if the statistics came from the input."""

    def change(original, x, named):
        y = original(x, **named)
        if named.get("use_input_stats", True):
            return y
        other = original(x, **{**named, "use_input_stats": True, "running_mean": None, "running_var": None})
        return other + (y - other).detach()

    instance_norm(patch, change)


@mutant("norms.instancenorm.counter-stands", "norms.instancenorm.running-update")
def instance_norm_counts_batches(patch):
    """Counts batches as BatchNorm does: the belief come true."""

    def forward(original, layer, x):
        if layer.training and layer.track_running_stats:
            layer.num_batches_tracked.add_(1)
        return original(layer, x)

    patch.wrap(InstanceNorm, "forward", forward)


@mutant("norms.instancenorm.momentum-none")
def instance_norm_averages_cumulatively(patch):
    """Takes momentum=None for a cumulative average: the belief come true."""
    patch.source(InstanceNorm._apply_instance_norm, "else 0.0", "else 1.0")


@mutant("norms.instancenorm.functional")
def functional_instance_norm_needs_both(patch):
    """Applies weight and bias only together."""

    def change(original, x, named):
        both = named.get("weight") is not None and named.get("bias") is not None
        return original(x, **(named if both else {**named, "weight": None, "bias": None}))

    instance_norm(patch, change)


@mutant("norms.instancenorm.functional-needs-statistics")
def functional_instance_norm_falls_back(patch):
    """Falls back to the input's statistics without a word."""

    def change(original, x, named):
        given = named.get("running_mean") is not None
        return original(x, **(named if given else {**named, "use_input_stats": True}))

    instance_norm(patch, change)


@mutant("norms.instancenorm.one-spatial-element")
def instance_norm_accepts_a_lone_element(patch):
    """Gives zeros for a plane of one element."""
    patch.set(F, "_verify_spatial_size", lambda size: None)


@mutant("norms.instancenorm.num-features")
def instance_norm_checks_nothing(patch):
    """Does not look at num_features."""
    patch.source(InstanceNorm.forward, "input.size(feature_dim) != self.num_features", "False")


@mutant("norms.instancenorm.rank-error")
def instance_norm_takes_any_rank(patch):
    """Does not look at the rank."""
    for cls in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d):
        patch.set(cls, "_check_input_dim", lambda layer, x: None)


@mutant("norms.instancenorm.lazy-defaults")
def lazy_instance_norm_is_as_documented(patch):
    """Defaults to neither parameters nor statistics: the belief come true."""
    base = nn.LazyInstanceNorm1d.__mro__[1]

    def init(original, layer, eps=1e-5, momentum=0.1, affine=False, track_running_stats=False, **kwargs):
        original(layer, eps, momentum, affine, track_running_stats, **kwargs)

    patch.wrap(base, "__init__", init)


# -- RMSNorm -----------------------------------------------------------------------------------------------------------


@mutant("norms.rmsnorm.no-centring", "norms.rmsnorm.formula")
def rms_norm_subtracts_the_mean(patch):
    """Subtracts the mean first, as LayerNorm does."""
    rms_norm(patch, lambda original, x, shape, *rest: original(x - x.mean(last(shape), keepdim=True), shape, *rest))


@mutant("norms.rmsnorm.formula")
def rms_norm_over_the_last_dimension_only(patch):
    """Takes the root mean square over the last dimension alone."""

    def change(original, x, shape, weight, eps):
        return affine(original(x, shape[-1:], None, eps), weight, None)

    rms_norm(patch, change)


@mutant("norms.rmsnorm.formula")
def rms_norm_forgets_the_tail_of_long_rows(patch):
    """Leaves what is behind the last whole block of 1024 out of the mean."""

    def change(original, x, shape, weight, eps):
        full = x.shape[-1] // 1024 * 1024
        if len(shape) > 1 or not full:
            return original(x, shape, weight, eps)
        at = torch.finfo(x.dtype).eps if eps is None else eps
        return affine(x / (x[..., :full].square().sum(-1, keepdim=True) / x.shape[-1] + at).sqrt(), weight, None)

    rms_norm(patch, change)


@mutant("norms.rmsnorm.formula")
def rms_norm_forgets_to_average(patch):
    """Divides by the norm instead of the root mean square."""
    rms_norm(patch, lambda original, x, shape, *rest: original(x, shape, *rest) / torch.Size(shape).numel() ** 0.5)


@mutant("norms.rmsnorm.formula")
def rms_norm_adds_one_to_the_weight(patch):
    """Multiplies by one plus the weight, as Gemma does."""

    def change(original, x, shape, weight, eps):
        return original(x, shape, None if weight is None else weight + 1, eps)

    rms_norm(patch, change)


@mutant("norms.rmsnorm.no-bias")
def rms_norm_has_a_bias(patch):
    """Has a bias, as LayerNorm does."""
    if not hasattr(nn, "RMSNorm"):
        raise NotApplicable("this torch has no RMSNorm")
    starting(patch, nn.RMSNorm, lambda layer: setattr(layer, "bias", nn.Parameter(torch.zeros(layer.normalized_shape))))


@mutant("norms.rmsnorm.no-bias")
def rms_norm_starts_at_zero(patch):
    """Starts with a weight of zeros, as one does who adds one to it."""
    if not hasattr(nn, "RMSNorm"):
        raise NotApplicable("this torch has no RMSNorm")
    starting(patch, nn.RMSNorm, lambda layer: layer.weight.zero_() if layer.weight is not None else None)


@mutant("norms.rmsnorm.eps-inside-the-root")
def rms_norm_adds_eps_to_the_root(patch):
    """Adds eps outside the root."""

    def change(original, x, shape, weight, eps):
        at = torch.finfo(x.dtype).eps if eps is None else eps
        return affine(x / (x.square().mean(last(shape), keepdim=True).sqrt() + at), weight, None)

    rms_norm(patch, change)


@mutant("norms.rmsnorm.default-eps")
def rms_norm_defaults_to_1e_6(patch):
    """Takes 1e-6 by default, as Llama does."""
    rms_norm(patch, lambda original, x, shape, weight, eps: original(x, shape, weight, 1e-6 if eps is None else eps))


@mutant("norms.rmsnorm.default-eps-reduced", "norms.rmsnorm.default-eps")
def rms_norm_defaults_to_the_eps_of_bfloat16(patch):
    """Takes the eps of the input's dtype for bfloat16 and float16, as torch did before 2.8, doubled for the others."""

    def change(original, x, shape, weight, eps):
        at = torch.finfo(x.dtype).eps * (1 if x.element_size() == 2 else 2)
        return original(x, shape, weight, at if eps is None else eps)

    rms_norm(patch, change)


@mutant("norms.rmsnorm.default-eps-reduced-before")
def rms_norm_defaults_to_the_eps_of_float32(patch):
    """Takes the eps of float32 for bfloat16 and float16 already before 2.8."""
    rms_norm(patch, lambda original, x, shape, weight, eps: original(x, shape, weight, 2**-23 if eps is None else eps))


@mutant("norms.rmsnorm.gradients")
def rms_norm_takes_the_root_for_a_constant(patch):
    """Detaches the root mean square."""

    def change(original, x, shape, weight, eps):
        at = torch.finfo(x.dtype).eps if eps is None else eps
        return affine(x * (x.detach().square().mean(last(shape), keepdim=True) + at).rsqrt(), weight, None)

    rms_norm(patch, change)


@mutant("norms.rmsnorm.double-backward")
def rms_norm_differentiates_once(patch):
    """Cuts the graph in the backward, as a fused kernel does that has no second derivative."""
    rms_norm(patch, lambda original, x, *rest: original(once(x), *rest))


@mutant("norms.rmsnorm.affine")
def rms_norm_keeps_its_weight(patch):
    """Takes no notice of elementwise_affine=False."""
    if not hasattr(nn, "RMSNorm"):
        raise NotApplicable("this torch has no RMSNorm")
    patch.source(nn.RMSNorm.__init__, "if self.elementwise_affine:", "if True:")


@mutant("norms.rmsnorm.shape-error")
def rms_norm_takes_any_shape(patch):
    """Divides over whatever is there, and applies no weight."""
    rms_norm(patch, lambda original, x, shape, weight, eps: original(x, x.shape[-len(shape) :], None, eps))


@mutant("norms.rmsnorm.no-elements")
def rms_norm_refuses_an_empty_batch(patch):
    """Refuses a batch of zero samples."""

    def change(original, x, *rest):
        if not x.numel():
            raise RuntimeError("expected a batch that is not empty")
        return original(x, *rest)

    rms_norm(patch, change)


# -- LocalResponseNorm, and the plain formulas -------------------------------------------------------------------------


@mutant("norms.localresponsenorm.formula", "norms.localresponsenorm.any-layout")
def response_norm_does_not_average(patch):
    """Multiplies alpha by the sum of the squares, as Caffe's documentation and TensorFlow do."""
    response_norm(patch, lambda original, x, size, alpha, beta, k: original(x, size, alpha * size, beta, k))


@mutant("norms.localresponsenorm.formula")
def response_norm_shifts_three_dimensions(patch):
    """Pads on the wrong side in the three-dimensional branch."""

    def change(original, x, size, *rest):
        return original(x.flip(1), size, *rest).flip(1) * (1 + 1e-3) if x.ndim == 3 else original(x, size, *rest)

    response_norm(patch, change)


@mutant("norms.localresponsenorm.even-window")
def response_norm_reaches_to_both_sides(patch):
    """Sums n + 1 channels where n is even, as the documented formula says: the belief come true."""

    def change(original, x, size, alpha, beta, k):
        return (
            original(x, size + 1, alpha * (size + 1) / size, beta, k)
            if size % 2 == 0
            else original(x, size, alpha, beta, k)
        )

    response_norm(patch, change)


@mutant("norms.localresponsenorm.even-window")
def response_norm_reaches_further_ahead(patch):
    """Lays the extra channel of an even window ahead instead of behind."""
    patch.source(F.local_response_norm, "size // 2, (size - 1) // 2", "(size - 1) // 2, size // 2")


@mutant("norms.localresponsenorm.defaults")
def response_norm_defaults_to_those_of_the_paper(patch):
    """Takes k = 2 by default, as the paper does."""

    def init(original, layer, size, alpha=1e-4, beta=0.75, k=2.0):
        original(layer, size, alpha, beta, k)

    patch.wrap(nn.LocalResponseNorm, "__init__", init)


@mutant("norms.localresponsenorm.defaults")
def functional_response_norm_defaults_to_a_root(patch):
    """Takes beta = 0.5 by default, as TensorFlow does."""
    patch.wrap(F, "local_response_norm", lambda f, x, size, alpha=1e-4, beta=0.5, k=1.0: f(x, size, alpha, beta, k))


@mutant("norms.localresponsenorm.gradient")
def response_norm_takes_the_divisor_for_a_constant(patch):
    """Detaches the divisor."""

    def change(original, x, *rest):
        held = x.detach()
        return x * (original(held, *rest) / held)

    response_norm(patch, change)


@mutant("norms.localresponsenorm.stateless")
def response_norm_rests_in_eval(patch):
    """Does nothing in eval mode, as Dropout does."""
    patch.wrap(nn.LocalResponseNorm, "forward", lambda original, m, x: original(m, x) if m.training else x)


@mutant("norms.localresponsenorm.rank-error")
def response_norm_takes_a_matrix(patch):
    """Takes a matrix for a signal of length one."""

    def change(original, x, *rest):
        return original(x[..., None], *rest)[..., 0] if x.ndim == 2 else original(x, *rest)

    response_norm(patch, change)


@mutant("norms.localresponsenorm.no-elements")
def response_norm_pools_nothing(patch):
    """Lets the pooling fail on an empty batch."""
    patch.source(F.local_response_norm, "input.numel() == 0", "False")


@mutant("norms.localresponsenorm.any-layout")
def response_norm_wants_contiguous_memory(patch):
    """Refuses what is not contiguous."""

    def change(original, x, *rest):
        return original(x, *rest) if x.is_contiguous() else original(x.view(-1).view(x.shape), *rest)

    response_norm(patch, change)


@mutant("norms.normalize.formula", "norms.normalize.defaults")
def normalize_takes_another_dimension(patch):
    """Takes the norm over all dimensions."""

    def change(original, x, p=2.0, dim=1, eps=1e-12, out=None):
        return x / x.norm(p).clamp_min(eps)

    patch.wrap(F, "normalize", change)


@mutant("norms.normalize.eps-is-a-floor")
def normalize_adds_eps(patch):
    """Adds eps to the norm, as Keras does under the root."""
    patch.source(F.normalize, "clamp_min(eps)", "add(eps)")


@mutant("norms.normalize.defaults")
def normalize_defaults_to_a_larger_eps(patch):
    """Takes 1e-8 by default, as cosine_similarity does."""
    patch.wrap(F, "normalize", lambda original, x, p=2.0, dim=1, eps=1e-8, out=None: original(x, p, dim, eps, out))


@mutant("norms.normalize.defaults")
def normalize_defaults_to_the_last_dimension(patch):
    """Takes the last dimension by default."""
    patch.wrap(F, "normalize", lambda original, x, p=2.0, dim=-1, eps=1e-12, out=None: original(x, p, dim, eps, out))


@mutant("norms.minmax.formula", "norms.minmax.other-range")
def minimum_is_off_by_one_element(patch):
    """Misses the extremes, as a reduction does that skips its tail."""
    patch.wrap(
        torch.Tensor,
        "min",
        lambda original, x, *a, **k: original(x, *a, **k) - 0.5 if not a and not k else original(x, *a, **k),
    )


@mutant("norms.minmax.other-range")
def minimum_is_the_centre(patch):
    """Maps to [-1, 1], as the belief has it."""
    patch.wrap(torch.Tensor, "min", lambda f, x, *a, **k: (f(x) + x.max()) / 2 if not a and not k else f(x, *a, **k))


@mutant("norms.minmax.constant")
def zero_by_zero_is_zero(patch):
    """Makes 0 / 0 a zero, as fast mathematics does."""
    patch.wrap(torch.Tensor, "__truediv__", lambda original, x, y: original(x, y).nan_to_num())


@mutant("norms.zscore.formula", "norms.zscore.estimators-differ")
def std_mistakes_its_estimator(patch):
    """Divides by n where n - 1 was asked for, and the other way round."""
    patch.wrap(torch.Tensor, "std", lambda original, x, unbiased=True: original(x, unbiased=not unbiased))


@mutant("norms.weightnorm.formula")
def weight_norm_ignores_the_dimension(patch):
    """Takes the norm over the whole weight whatever dim says."""
    patch.wrap(torch, "_weight_norm", lambda original, v, g, dim: v * (g / v.norm()))


@mutant("norms.weightnorm.formula")
def weight_norm_starts_at_one(patch):
    """Starts the magnitude at one, so that the weight changes when it is applied."""
    patch.wrap(torch, "norm_except_dim", lambda original, *a, **k: torch.ones_like(original(*a, **k)))


@mutant("norms.crossmaplrn.formula")
def cross_map_window_one_short(patch):
    """Takes one channel too few into the first window."""
    patch.source(CrossMap.forward, "(ctx.size - 1) / 2 + 1", "(ctx.size - 1) / 2")


@mutant("norms.crossmaplrn.formula", "norms.crossmaplrn.gradient")
def cross_map_forgets_k(patch):
    """Leaves the constant out of the divisor."""
    patch.source(CrossMap.forward, ".add_(ctx.k)", ".add_(1)")


@mutant("norms.crossmaplrn.gradient")
def cross_map_gradient_of_the_numerator(patch):
    """Takes the divisor for a constant."""
    patch.source(CrossMap.backward, "2 * ctx.alpha * ctx.beta / ctx.size", "0.0")


@mutant("norms.crossmaplrn.settings")
def cross_map_takes_the_defaults_of_alexnet(patch):
    """Starts from the paper's k = 2."""
    patch.set(nn.CrossMapLRN2d.__init__, "__defaults__", (1e-4, 0.75, 2))


@mutant("norms.instancenorm.checkpoint-without-version")
def instance_statistics_swallowed(patch):
    """Drops the statistics of old checkpoints silently."""
    patch.source(nn.modules.instancenorm._InstanceNorm._load_from_state_dict, "error_msgs.append(", "repr(")


@mutant("norms.instancenorm.lazy-rank")
def lazy_instance_ranks_unchecked(patch):
    """Takes any rank until the first input has been seen."""
    for rank in "123":
        patch.set(getattr(nn, f"LazyInstanceNorm{rank}d"), "_check_input_dim", lambda layer, x: None)


@mutant("norms.groupnorm.functional-divisibility")
def group_norm_takes_any_number_of_groups(patch):
    """Takes all channels for one group where the groups do not come out even."""

    def group_norm(original, x, groups, *rest, **options):
        even = groups > 0 and x.shape[1] % groups == 0
        return original(x, groups if even else 1, *rest, **options)

    patch.wrap(F, "group_norm", group_norm)


@mutant("norms.rmsnorm.half-range")
def squares_in_half_precision(patch):
    """Squares a float16 input in its own dtype."""

    def rms_norm(original, x, shape, weight=None, eps=None):
        if x.dtype != torch.float16 or weight is not None:
            return original(x, shape, weight, eps)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True))

    if not hasattr(F, "rms_norm"):
        raise NotApplicable("no rms_norm")
    patch.wrap(F, "rms_norm", rms_norm)


@mutant("norms.common.half-range")
def variance_in_half_precision(patch):
    """Holds the variance of a float16 input in its own dtype."""

    def group_norm(original, x, *args, **options):
        return original(x, *args, **options) + 0 * x.float().var().to(x.dtype)

    patch.wrap(F, "group_norm", group_norm)


@mutant("norms.layernorm.great-constant-row")
def mean_subtracted_after_the_product(patch):
    """Multiplies input and mean by the inverse deviation, and subtracts then."""

    def layer_norm(original, x, shape, weight=None, bias=None, eps=1e-5):
        y = original(x, shape, weight, bias, eps)
        return y + torch.finfo(x.dtype).eps * x.mean() if len(shape) == 1 and bias is not None else y

    patch.wrap(F, "layer_norm", layer_norm)
