"""Forgets to scale the survivors of Dropout by 1 / (1 - p), forward and backward."""

from selftest.miniature import device
from selftest.miniature.device import conformance_profile  # noqa: F401


def native_dropout(op, x, p, train):
    y, kept = op(x, p, train)
    return (y * (1 - p) if train else y), kept


def native_dropout_backward(op, gradient, kept, scale):
    return op(gradient, kept, 1.0)


device.OVERRIDES["native_dropout"] = native_dropout
device.OVERRIDES["native_dropout_backward"] = native_dropout_backward
