"""The ways in which an implementation of Dropout goes wrong."""

import torch
import torch.nn.functional as F
from torch import nn

from mutants._gradient import scaled
from torch_conformance.mutation import mutant

Dropout = nn.modules.dropout.Dropout
Base = nn.modules.dropout._DropoutNd
RReLU = nn.modules.activation.RReLU
CHANNELWISE = ("dropout1d", "dropout2d", "dropout3d")


@mutant("dropout.eval.identity")
def eval_copies(patch):
    """Returns a copy in eval mode, as an implementation does that always runs its kernel."""
    patch.wrap(F, "dropout", lambda original, x, *args, **kw: original(x, *args, **kw) * 1)


@mutant("dropout.eval.scales-nothing", "dropout.eval.gradient-one", "dropout.eval.identity")
def eval_scales_by_keep(patch):
    """Scales by 1 - p in eval mode: the classic scheme of 2012, from before inverted dropout."""
    patch.wrap(Dropout, "forward", lambda original, m, x: original(m, x) if m.training else x * (1 - m.p))


@mutant("dropout.eval.rng-untouched", "dropout.functional.training-defaults")
def eval_draws_a_mask(patch):
    """Draws the mask first and looks at the mode afterwards."""

    def dropout(original, x, *args, **kw):
        torch.rand_like(x)
        return original(x, *args, **kw)

    for name in ("dropout", "alpha_dropout"):
        patch.wrap(F, name, dropout)


@mutant("dropout.eval.closes-no-neuron", "dropout.eval.identity")
def eval_closes_every_neuron(patch):
    """Turns the neurons off in eval mode, as the table of a well-read blog has it."""
    patch.wrap(Dropout, "forward", lambda original, m, x: original(m, x) if m.training else x * 0)


@mutant("dropout.eval.one-layer-back-in-train")
def mode_of_the_whole_model(patch):
    """Lets a layer come back to train mode only with its model: the mode as one global switch."""

    def train(original, module, mode=True):
        return original(module, mode and bool(list(module.children())))

    patch.wrap(nn.Module, "train", train)


@mutant("dropout.train.survivors-scaled", "dropout.train.gradient-uses-the-mask", "dropout.train.mean-kept")
def train_forgets_to_rescale(patch):
    """Leaves out 1 / (1 - p), as a fused kernel does that multiplies by the mask alone."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: original(x, p, train) * (1 - p) if train else x)


@mutant("dropout.train.survivors-scaled", "dropout.train.every-position")
def kernel_forgets_its_tail(patch):
    """Scales in blocks of eight and forgets the elements behind the last whole block."""

    def dropout(x, p, train):
        if not train:
            return x
        mask = torch.empty_like(x).bernoulli_(1 - p) / (1 - p)
        flat = mask.flatten()
        flat[x.numel() // 8 * 8 :] = 1
        return x * flat.reshape(x.shape)

    patch.kernel("dropout", dropout, "AutogradCPU")


@mutant("dropout.train.multiplies-by-p", "dropout.train.mean-kept")
def train_multiplies_by_p(patch):
    """Multiplies by p in training: the belief of a forum thread."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: x * p if train else x)


@mutant("dropout.train.rate")
def p_is_the_probability_of_keeping(patch):
    """Takes p for the probability of keeping, as TensorFlow 1 did."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: original(x, 1 - p, train))


@mutant("dropout.train.rate")
def rate_of_low_precision_is_coarse(patch):
    """Draws uniform numbers in bfloat16, of which there are 128 below one half, and compares them with p."""

    def dropout(x, p, train):
        if not train:
            return x
        uniform = torch.rand(x.shape, device=x.device).to(torch.bfloat16) if x.dtype == torch.bfloat16 else None
        if uniform is None:
            return x * (torch.empty_like(x).bernoulli_(1 - p) / (1 - p))
        return x * (uniform.mul(8).floor().div(8) >= p) / (1 - p)

    patch.kernel("dropout", dropout, "AutogradCPU")


@mutant("dropout.train.rate")
def rare_drops_are_rounded_away(patch):
    """Rounds the probability to the dtype of the input, in which there is nothing between 0.996 and 1."""

    def dropout(original, x, p, train, inplace):
        return original(x, float(1 - (1 - torch.tensor(p, dtype=x.dtype))), train, inplace)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.elements-independent")
def second_thread_draws_what_the_first_drew(patch):
    """Starts every thread's generator in the same state; from 32768 elements on there are several."""

    def dropout(original, x, p, train, inplace):
        if not train or inplace or x.ndim > 1 or x.numel() <= 32768:
            return original(x, p, train, inplace)
        half = original(torch.ones_like(x[: (x.numel() + 1) // 2]), p, train)
        return x * torch.cat([half, half])[: x.numel()]

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.elements-independent")
def mask_shared_by_rows(patch):
    """Draws the mask of one row and broadcasts it: the layout of a per-channel kernel."""

    def dropout(original, x, p, train, inplace):
        return x * original(torch.ones_like(x[:1]), p, train) if train else x

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.channels-stay-whole")
def dropout_drops_channels(patch):
    """Drops whole channels in nn.Dropout, as one sentence of its documentation may be read."""

    def dropout(original, x, p, train, inplace):
        return torch.feature_dropout(x, p, train) if x.ndim > 2 else original(x, p, train, inplace)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.mask-fresh-at-every-call", "dropout.channel.independent")
def mask_drawn_once(patch):
    """Seeds the generator at every call, so that the mask is drawn once for all."""

    def dropout(original, x, *args):
        torch.manual_seed(0)
        return original(x, *args)

    for name in ("dropout", "alpha_dropout", *CHANNELWISE):
        patch.wrap(F, name, dropout)


@mutant("dropout.train.gradient-uses-the-mask", "dropout.train.second-derivative")
def backward_ignores_the_mask(patch):
    """Lets the gradient through as it comes: a straight-through estimator."""

    def dropout(original, x, p, train, inplace):
        return x + (original(x, p, train) - x).detach() if train else x

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.survivors-scaled")
def kernel_scales_by_p(patch):
    """Divides by p in the kernel, where neither the module nor the functional shows it."""

    def dropout(x, p, train):
        return x * torch.empty_like(x).bernoulli_(1 - p) / p if train else x

    patch.kernel("dropout", dropout, "AutogradCPU")


@mutant("dropout.train.mask-returned")
def native_backward_forgets_the_scale(patch):
    """Multiplies the gradient by the mask alone."""

    def native_dropout(original, x, p, train):
        return original(scaled(x, 1 - p), p, train)

    patch.wrap(torch, "native_dropout", native_dropout)


@mutant("dropout.train.mask-returned")
def native_dropout_always_trains(patch):
    """Drops whether it is told to train or not."""

    def native_dropout(original, x, p, train):
        return original(x, p, True)

    patch.wrap(torch, "native_dropout", native_dropout)


@mutant("dropout.train.second-derivative")
def backward_cut_off(patch):
    """Detaches the gradient in a hand-written backward, so that it cannot be differentiated again."""

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, mask):
            ctx.mask = mask
            return x * mask

        @staticmethod
        def backward(ctx, gradient):
            return gradient.detach() * ctx.mask + 0 * gradient, None

    def dropout(original, x, p, train, inplace):
        return Cut.apply(x, original(torch.ones_like(x), p)) if train else x

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.input-untouched", "dropout.eval.rng-untouched")
def always_inplace(patch):
    """Works in place whatever it is told, to save memory."""
    patch.source(F.dropout, "if inplace else", "if training else")


@mutant("dropout.train.any-shape")
def scalars_become_vectors(patch):
    """Makes a vector of a tensor without dimensions, for its loop needs one."""
    patch.wrap(F, "dropout", lambda original, x, *args: original(torch.atleast_1d(x), *args))


@mutant("dropout.train.any-shape")
def result_promoted(patch):
    """Returns float32, the dtype of its mask."""
    patch.wrap(F, "dropout", lambda original, x, *args: original(x, *args).float())


@mutant("dropout.train.whole-numbers-refused")
def whole_numbers_accepted(patch):
    """Converts integers to float32 on its own account."""
    patch.wrap(F, "dropout", lambda original, x, *args: original(x if x.is_floating_point() else x.float(), *args))


@mutant("dropout.train.infinity")
def infinity_survives(patch):
    """Adds x - x, which is NaN at infinity, to kept elements too."""
    patch.wrap(F, "dropout", lambda original, x, *args: original(x, *args) + (x - x))


@mutant("dropout.seed.repeats-the-mask")
def seed_of_its_own(patch):
    """Takes its random numbers from a generator that manual_seed does not reach."""
    private = torch.Generator()

    def dropout(original, x, p, train, inplace):
        if not train:
            return x
        return x * torch.empty(x.shape).bernoulli_(1 - p, generator=private).to(x) / (1 - p)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.p.default-half")
def default_of_another_framework(patch):
    """Has another default in the functional form than in the layer."""
    patch.wrap(F, "dropout", lambda original, x, p=0.1, *args, **kw: original(x, p, *args, **kw))


@mutant("dropout.p.default-half")
def default_p_of_the_layer(patch):
    """Defaults to p = 0.1, as a transformer library does."""
    patch.source(Base.__init__, "self.p = p", "self.p = 0.1 if p == 0.5 else p")


@mutant("dropout.p.zero")
def p_zero_taken_for_absent(patch):
    """Writes `p or 0.5` for the default."""
    patch.source(Base.__init__, "self.p = p", "self.p = p or 0.5")


@mutant("dropout.p.one")
def p_one_divides_by_zero(patch):
    """Forgets that 1 / (1 - p) has a pole."""

    def dropout(x, p, train):
        return x * (torch.empty_like(x).bernoulli_(1 - p) / (1 - p)) if train else x

    patch.kernel("dropout", dropout, "AutogradCPU")


@mutant("dropout.p.out-of-range")
def p_unchecked(patch):
    """Leaves the check to the functional form."""
    patch.source(Base.__init__, "p < 0 or p > 1", "False")


@mutant("dropout.p.out-of-range")
def p_checked_from_above_only(patch):
    """Checks one end of the range."""
    patch.source(F.alpha_dropout, "p < 0.0 or p > 1.0", "p > 1.0")


@mutant("dropout.p.read-at-every-call")
def p_frozen_at_first_call(patch):
    """Compiles p into the layer at its first call."""

    def forward(original, module, x):
        module.__dict__.setdefault("_p", module.p)
        return F.dropout(x, module._p, module.training, module.inplace)

    patch.wrap(Dropout, "forward", forward)


@mutant("dropout.layer.no-state")
def p_kept_as_a_buffer(patch):
    """Keeps p as a buffer, to have it in checkpoints."""

    def init(original, module, p=0.5, inplace=False):
        original(module, p, inplace)
        module.register_buffer("rate", torch.tensor(p))

    patch.wrap(Base, "__init__", init)


@mutant("dropout.layer.repr")
def repr_without_inplace(patch):
    """Prints p alone."""
    patch.source(Base.extra_repr, ", inplace={self.inplace}", "")


@mutant("dropout.layer.no-self-in-self")
def modules_know_themselves(patch):
    """Gives every module an attribute self, so that the line of a well-read blog works."""
    patch.set(nn.Module, "self", property(lambda module: module))


@mutant("dropout.inplace.overwrites", "dropout.functional.matches-the-layer")
def inplace_ignored(patch):
    """Takes inplace and does not hand it on, as AlphaDropout does to this day."""
    patch.source(F.dropout, "if inplace else", "if False else")


@mutant("dropout.inplace.gradient")
def inplace_unscaled_with_strides(patch):
    """Leaves the scale out of the in-place variant where the input is not contiguous."""

    def dropout(original, x, p, train, inplace):
        scaled = original(x, p, train, inplace)
        return scaled.mul_(1 - p) if inplace and train and not x.is_contiguous() else scaled

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.inplace.gradient")
def inplace_gradient_unscaled(patch):
    """Saves the mask before it is scaled, in the in-place variant alone."""

    def dropout(original, x, p, train, inplace):
        if not (inplace and train):
            return original(x, p, train, inplace)
        mask = torch.empty_like(x).bernoulli_(1 - p)
        x.mul_(mask)
        x.data.div_(1 - p)
        return x

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.inplace.leaf-refused")
def leaf_overwritten(patch):
    """Overwrites leaves too, behind the back of autograd."""

    def dropout(original, x, p, train, inplace):
        y = original(x, p, train)
        if inplace and train:
            x.data.copy_(y)
        return y

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.network.dropped-unit-trains-no-weight")
def dropped_units_leak(patch):
    """Lowers dropped units to a small value instead of zero."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: original(x, p, train) + 1e-6 if train else x)


@mutant("dropout.network.averages-linear-networks", "dropout.network.noise-at-test-time-costs")
def survivors_scaled_by_half(patch):
    """Scales by 2 whatever p is."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: original(x, p, train) * 2 * (1 - p) if train else x)


@mutant("dropout.network.averages-any-network", "dropout.train.elements-independent")
def units_dropped_together(patch):
    """Drops all units of a sample or none, so that the average over masks is the output of eval mode."""

    def dropout(original, x, p, train, inplace):
        return x * original(torch.ones_like(x[..., :1]), p, train) if train else x

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.functional.matches-the-layer")
def functional_inplace_of_another(patch):
    """Calls the plain dropout in the in-place branch of alpha dropout: a slip of copy and paste."""
    patch.source(F.alpha_dropout, "_VF.alpha_dropout_(", "_VF.dropout_(")


@mutant("dropout.functional.training-defaults")
def functional_needs_to_be_told(patch):
    """Has training=False for a default, as alpha_dropout does."""
    patch.wrap(F, "dropout2d", lambda original, x, p=0.5, training=False, inplace=False: original(x, p, training))


@mutant("dropout.functional.feature-alpha-default")
def feature_alpha_drops_by_default(patch):
    """Does what the docstring says."""
    patch.wrap(F, "feature_alpha_dropout", lambda original, x, p=0.5, training=True, *args: original(x, p, training))


@mutant("dropout.functional.overridable")
def override_gets_less(patch):
    """Forgets an argument where it hands itself on."""
    patch.source(F.dropout, "training=training, inplace=inplace", "training=training")


@mutant("dropout.channel.whole", "dropout.channel.gradient", "dropout.channel.without-batch")
def channels_dropped_by_element(patch):
    """Calls the elementwise kernel."""
    for name in CHANNELWISE:
        patch.source(getattr(F, name), "_VF.feature_dropout(", "_VF.dropout(")


@mutant("dropout.channel.rate")
def channels_kept_with_p(patch):
    """Takes p for the probability of keeping, in the channelwise forms alone."""
    for name in CHANNELWISE:
        patch.wrap(F, name, lambda original, x, p, train, inplace: original(x, 1 - p, train, inplace))


@mutant("dropout.channel.independent")
def samples_share_their_channels(patch):
    """Draws one mask of channels for the whole batch, as spatial dropout is sometimes written."""

    def dropout(original, x, p, train, inplace):
        return x * original(torch.ones_like(x[:1]), p, train) if train else x

    for name in CHANNELWISE:
        patch.wrap(F, name, dropout)


@mutant("dropout.channel.gradient")
def channel_backward_unscaled(patch):
    """Leaves 1 / (1 - p) out of the backward."""

    def dropout(original, x, p, train, inplace):
        if not train:
            return x
        y = original(x, p, train, inplace)
        return y * (1 - p) + (y * p).detach()

    for name in CHANNELWISE:
        patch.wrap(F, name, dropout)


@mutant("dropout.channel.without-batch")
def single_sample_taken_for_a_batch(patch):
    """Takes the channels of a single sample for samples."""
    patch.source(F.dropout1d, "inp_dim == 3", "True")
    patch.source(F.dropout3d, "inp_dim == 5", "True")


@mutant("dropout.channel.2d-of-three-dimensions")
def single_image_accepted(patch):
    """Takes three dimensions for (C, H, W), as has been announced."""

    def dropout2d(original, x, *args):
        return original(x[None], *args)[0] if x.ndim == 3 else original(x, *args)

    patch.wrap(F, "dropout2d", dropout2d)


@mutant("dropout.channel.ranks")
def ranks_unchecked(patch):
    """Takes any rank without a word."""
    patch.source(F.dropout1d, "inp_dim not in (2, 3)", "False")
    patch.source(F.dropout2d, "inp_dim not in (3, 4)", "False")


@mutant("dropout.alpha.formula", "dropout.alpha.moments-kept", "dropout.alpha.whole-channels")
def alpha_drops_to_zero(patch):
    """Drops to zero and leaves mean and variance to themselves, as plain dropout does."""
    patch.wrap(F, "alpha_dropout", lambda original, x, p, train, *_: F.dropout(x, p, train))
    patch.wrap(F, "feature_alpha_dropout", lambda original, x, p, train, *_: torch.feature_dropout(x, p, train))


@mutant("dropout.alpha.moments-kept", "dropout.alpha.formula")
def alpha_forgets_to_shift(patch):
    """Scales but does not shift, so that the mean goes astray."""

    def alpha_dropout(original, x, p, train, *_):
        s = 1.7580993408473766
        return original(x, p, train) - ((1 - p) * (1 + p * s * s)) ** -0.5 * p * s if train else x

    patch.wrap(F, "alpha_dropout", alpha_dropout)


@mutant("dropout.alpha.rate")
def alpha_keeps_with_p(patch):
    """Takes p for the probability of keeping."""
    patch.wrap(F, "alpha_dropout", lambda original, x, p, train, *_: original(x, 1 - p, train))


@mutant("dropout.alpha.gradient")
def alpha_gradient_unscaled(patch):
    """Takes the constant a for 1 in the backward."""

    def alpha_dropout(original, x, p, train, *_):
        y = original(x, p, train)
        return y.detach() + (x - x.detach()) if train else x

    patch.wrap(F, "alpha_dropout", alpha_dropout)


@mutant("dropout.alpha.whole-channels")
def feature_alpha_by_element(patch):
    """Masks single elements, as one sentence of the documentation has it."""
    patch.source(F.feature_alpha_dropout, "_VF.feature_alpha_dropout(", "_VF.alpha_dropout(")


@mutant("dropout.rrelu.positive-passes")
def rrelu_scales_everything(patch):
    """Multiplies positive elements by the slope too."""
    patch.wrap(F, "rrelu", lambda original, x, *args: torch.where(x > 0, -original(-x, *args), original(x, *args)))


@mutant("dropout.rrelu.train-slope")
def rrelu_slopes_too_wide(patch):
    """Draws between 0 and upper."""
    patch.wrap(F, "rrelu", lambda original, x, lower, upper, train, i: original(x, lower * (not train), upper, train))


@mutant("dropout.rrelu.train-uniform")
def rrelu_fixed_in_train(patch):
    """Takes the mean slope in train mode too."""
    patch.wrap(F, "rrelu", lambda original, x, lower, upper, train, i: original(x, lower, upper, False, i))


@mutant("dropout.rrelu.train-uniform")
def rrelu_one_slope_for_all(patch):
    """Draws one slope a call."""

    def rrelu(original, x, lower, upper, train, inplace):
        slope = float(torch.empty(()).uniform_(lower, upper)) if train else (lower + upper) / 2
        return original(x, slope, slope, train, inplace)

    patch.wrap(F, "rrelu", rrelu)


@mutant("dropout.rrelu.train-gradient")
def rrelu_gradient_of_the_mean(patch):
    """Takes the mean slope in the backward of train mode."""

    def rrelu(original, x, lower, upper, train, inplace):
        smooth = original(x, lower, upper, False)
        return smooth + (original(x.detach(), lower, upper, train, inplace) - smooth).detach()

    patch.wrap(F, "rrelu", rrelu)


@mutant("dropout.rrelu.eval-slope")
def rrelu_lower_slope_in_eval(patch):
    """Takes the lower bound in eval mode."""

    def rrelu(original, x, lower, upper, train, inplace):
        return original(x, lower, upper if train else lower, train, inplace)

    patch.wrap(F, "rrelu", rrelu)


@mutant("dropout.rrelu.eval-slope")
def rrelu_ignores_the_mode(patch):
    """Draws in eval mode too."""
    patch.source(RReLU.forward, "self.training", "True")


@mutant("dropout.rrelu.defaults")
def rrelu_defaults_of_the_paper(patch):
    """Takes the bounds of the paper, 1/8 and 1/3, for divisors."""

    def init(original, module, lower=3.0, upper=8.0, inplace=False):
        original(module, lower, upper, inplace)

    patch.wrap(RReLU, "__init__", init)


@mutant("dropout.rrelu.inplace")
def rrelu_inplace_ignored(patch):
    """Takes inplace and does not hand it on."""
    patch.source(F.rrelu, "if inplace:", "if False:")


@mutant("dropout.rrelu.bounds")
def rrelu_sorts_its_bounds(patch):
    """Puts crossed bounds right without a word."""

    def rrelu(original, x, lower, upper, train, inplace):
        return original(x, min(lower, upper), max(lower, upper), train, inplace)

    patch.wrap(F, "rrelu", rrelu)


@mutant("dropout.eval.identity", "dropout.eval.gradient-one")
def alpha_active_in_eval(patch):
    """Forgets to hand the mode on in AlphaDropout."""
    patch.source(nn.AlphaDropout.forward, "self.training", "True")


@mutant("dropout.train.every-position", "dropout.train.survivors-scaled")
def first_element_always_kept(patch):
    """Never drops the first element: an off-by-one in the loop of the kernel."""

    def dropout(x, p, train):
        if not train:
            return x
        mask = torch.empty(x.shape, dtype=x.dtype).bernoulli_(1 - p) / (1 - p)
        if x.numel():
            mask.view(-1)[0] = 1
        return x * mask

    patch.kernel("dropout", dropout, "AutogradCPU")


@mutant("dropout.train.elements-independent")
def tail_repeats_the_last_block(patch):
    """Draws whole blocks of eight and gives the elements behind them the numbers of the last."""

    def dropout(original, x, p, train, inplace):
        if not train or x.numel() < 8:
            return original(x, p, train, inplace)
        mask, whole = original(torch.ones_like(x), p, train).flatten(), x.numel() // 8 * 8
        mask[whole:] = mask[whole - 8 : x.numel() - 8]
        return x * mask.reshape(x.shape)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.elements-independent")
def mask_repeats_every_eight(patch):
    """Draws as many random numbers as a vector register has lanes, and uses them again for the next."""

    def dropout(original, x, p, train, inplace):
        if not train or not x.numel():
            return original(x, p, train, inplace)
        lanes = torch.empty(8, dtype=x.dtype).bernoulli_(1 - p) / (1 - p)
        return x * lanes.repeat(x.numel() // 8 + 1)[: x.numel()].reshape(x.shape)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.elements-independent")
def channels_of_a_pixel_share_a_number(patch):
    """Draws one number for all channels of a pixel where they lie side by side in memory."""

    def dropout(original, x, p, train, inplace):
        by_pixel = train and x.ndim == 4 and not x.is_contiguous()
        return x * original(torch.ones_like(x[:, :1]), p) if by_pixel else original(x, p, train, inplace)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.gradient-uses-the-mask")
def low_precision_backward_unscaled(patch):
    """Forgets the scale in the backward of bfloat16 alone."""

    def dropout(original, x, p, train, inplace):
        y = original(x, p, train, inplace)
        return y * (1 - p) + (y * p).detach() if train and x.dtype == torch.bfloat16 else y

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.p.one", "dropout.p.read-at-every-call")
def p_one_keeps_everything(patch):
    """Takes p = 1 for a percentage."""
    patch.wrap(F, "dropout", lambda original, x, p, *args: original(x, p if p < 1 else 0.0, *args))


@mutant("dropout.p.out-of-range")
def p_one_excluded_or_overrun(patch):
    """Checks p against 1 after rounding it."""
    patch.source(F.dropout3d, "p < 0.0 or p > 1.0", "round(p, 3) < 0.0 or round(p, 3) > 1.0")


@mutant("dropout.channel.without-batch")
def single_sample_keeps_its_batch(patch):
    """Forgets to take the added dimension away."""
    patch.source(F.dropout1d, "result.squeeze_(0) if inplace else result.squeeze(0)", "result")


@mutant("dropout.rrelu.positive-passes")
def rrelu_positive_gradient_scaled(patch):
    """Multiplies the gradient of positive elements by the upper slope."""

    def rrelu(original, x, lower, upper, train, inplace):
        y = original(x, lower, upper, train, inplace)
        part = torch.where(x > 0, y * upper, y)
        return part + (y - part).detach()

    patch.wrap(F, "rrelu", rrelu)


@mutant("dropout.gumbel.softmax")
def tau_multiplies(patch):
    """Multiplies by the temperature."""
    patch.source(F.gumbel_softmax, "(logits + gumbels) / tau", "(logits + gumbels) * tau")


@mutant("dropout.gumbel.choice")
def noise_is_logistic(patch):
    """Adds the noise of one logarithm alone, forgetting the second."""
    patch.source(F.gumbel_softmax, ".exponential_()\n        .log()", ".exponential_()")


@mutant("dropout.gumbel.choice")
def noise_of_the_wrong_sign(patch):
    """Adds the least and not the greatest of exponential noise."""
    patch.source(F.gumbel_softmax, "logits + gumbels", "logits - gumbels")


@mutant("dropout.gumbel.straight-through")
def hard_choice_has_no_gradient(patch):
    """Returns the choice itself, through which no gradient flows back to the scores."""
    patch.source(F.gumbel_softmax, "y_hard - y_soft.detach() + y_soft", "y_hard + 0 * y_soft")
