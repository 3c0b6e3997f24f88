"""The ways in which an implementation of Dropout goes wrong."""

import torch
import torch.nn.functional as F
from torch import nn

from torch_conformance.mutation import mutant

Dropout = nn.modules.dropout.Dropout


@mutant("dropout.eval.identity")
def eval_copies(patch):
    """Returns a copy in eval mode, as an implementation does that always runs its kernel."""
    patch.wrap(F, "dropout", lambda original, x, *args, **kw: original(x, *args, **kw) * 1)


@mutant("dropout.eval.scales-nothing", "dropout.eval.gradient-one", "dropout.eval.identity")
def eval_scales_by_keep(patch):
    """Scales by 1 - p in eval mode: the classic scheme of 2012, from before inverted dropout."""
    patch.wrap(Dropout, "forward", lambda original, m, x: original(m, x) if m.training else x * (1 - m.p))


@mutant("dropout.eval.rng-untouched")
def eval_draws_a_mask(patch):
    """Draws the mask first and looks at the mode afterwards."""

    def forward(original, module, x):
        torch.rand_like(x)
        return original(module, x)

    patch.wrap(Dropout, "forward", forward)


@mutant("dropout.train.survivors-scaled", "dropout.train.gradient-uses-the-mask")
def train_forgets_to_rescale(patch):
    """Leaves out 1 / (1 - p), as a fused kernel does that multiplies by the mask alone."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: original(x, p, train) * (1 - p) if train else x)


@mutant("dropout.train.rate")
def p_is_the_probability_of_keeping(patch):
    """Takes p for the probability of keeping, as TensorFlow 1 did."""
    patch.wrap(F, "dropout", lambda original, x, p, train, *_: original(x, 1 - p, train))


@mutant("dropout.train.elements-independent")
def mask_shared_by_rows(patch):
    """Draws the mask of one row and broadcasts it: the layout of a per-channel kernel."""

    def dropout(original, x, p, train, inplace):
        return x * original(torch.ones_like(x[:1]), p, train) if train else x

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.mask-fresh-at-every-call")
def mask_drawn_once(patch):
    """Seeds the generator at every call, so that the mask is drawn once for all."""

    def dropout(original, x, p, train, inplace):
        torch.manual_seed(0)
        return original(x, p, train)

    patch.wrap(F, "dropout", dropout)


@mutant("dropout.train.gradient-uses-the-mask")
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
