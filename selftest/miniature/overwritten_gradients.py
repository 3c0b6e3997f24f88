"""Overwrites a gradient that is there already, where it should be added to."""

import torch

from selftest.miniature import device
from selftest.miniature.device import conformance_profile  # noqa: F401


def add_(op, total, gradient, **kwargs):
    if type(torch._C._current_autograd_node()).__name__ == "AccumulateGrad":
        return total.copy_(gradient)
    return op(total, gradient, **kwargs)


device.OVERRIDES["add_"] = add_
