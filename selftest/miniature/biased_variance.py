"""Moves the running variance towards the biased variance of the batch, as XLA's kernel does."""

from selftest.miniature import device
from selftest.miniature.device import conformance_profile  # noqa: F401


def native_batch_norm(op, x, weight, bias, running_mean, running_var, training, momentum, eps):
    before = None if running_var is None else running_var.clone()
    result = op(x, weight, bias, running_mean, running_var, training, momentum, eps)
    if training and before is not None:
        n, kept = x.numel() // x.shape[1], (1 - momentum) * before
        running_var.copy_(kept + (running_var - kept) * (n - 1) / n)
    return result


device.OVERRIDES["native_batch_norm"] = native_batch_norm
