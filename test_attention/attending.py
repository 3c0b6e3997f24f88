"""What the tests of attention share: sizes, masks, bounds, and a look at which kernel runs."""

import functools
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from specs.reference.rounding import Rounded
from torch_conformance.checks import array
from torch_conformance.marks import since

WIDTH, HEADS, FEEDS = 6, 2, 5


def sdpa(case, *args, **kwargs):
    return case.function(F.scaled_dot_product_attention)(*args, **kwargs)


def rounded(*tensors):
    return [Rounded(array(tensor)) for tensor in tensors]


def parameters(layer):
    return {name: Rounded(array(parameter)) for name, parameter in layer.named_parameters()}


def within(case, actual, wanted):
    """Within the bound of the running error analysis, which counts every rounding: so k is 1."""
    case.close(actual, wanted.value, k=1, scale=wanted.error)


def hidden(case, *shape):
    """A boolean mask, True with probability 0.3, but not of the first key."""
    mask = case.rng.uniform(size=shape) < 0.3
    mask[..., 0] = False
    return torch.as_tensor(mask).to(case.device)


def padding_mask(case, *shape):
    """A mask of keys with floats, or where torch is too old to take one, with booleans."""
    return case.tensor(*shape) if since("2.0") else hidden(case, *shape)


def additive(mask):
    return np.where(mask.cpu().numpy(), -np.inf, 0.0) if mask.dtype == torch.bool else array(mask)


KINDS = ["none", "positions", "keys", "positions and keys", "positions by floats", "keys by floats"]


def mask_by(case, kind):
    """What draws the masks: floats or booleans."""
    if kind == "keys by floats" and not since("2.0"):
        raise case.unsupported("masks of keys are boolean before torch 2.0")
    return case.tensor if "floats" in kind else functools.partial(hidden, case)


class Calls:
    """Counts the calls of a fused kernel."""

    def __init__(self, patch, name="_transformer_encoder_layer_fwd"):
        self.count, original = 0, getattr(torch, name)

        def counted(*args, **kwargs):
            self.count += 1
            return original(*args, **kwargs)

        patch.setattr(torch, name, counted)


@contextmanager
def surroundings(how):
    """What is switched on or off around the call."""
    mha = getattr(torch.backends, "mha", None)
    with torch.set_grad_enabled(how in ("gradients", "frozen", "input needs gradient")):
        if how == "switched off":
            mha.set_fastpath_enabled(False)
        yield
        if how == "switched off":
            mha.set_fastpath_enabled(True)
