"""What backward leaves in .grad where some of input, weight and bias need no gradient."""

import pytest
import torch

frozen = pytest.mark.parametrize("frozen", ["x", "weight", "bias", "x weight", "x bias", "weight bias"])


def the_others_keep_theirs(layer, x, gradient, frozen):
    """Frozen leaves get none, and every other one the very gradient that it gets beside them."""
    leaves = {"x": x, "weight": layer.weight, "bias": layer.bias}
    layer(x).backward(gradient)
    full = {name: leaf.grad for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        leaf.grad = None
        leaf.requires_grad_(name not in frozen.split())
    layer(x).backward(gradient)
    for name, leaf in leaves.items():
        assert leaf.grad is None if name in frozen.split() else torch.equal(leaf.grad, full[name])
