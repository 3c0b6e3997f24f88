"""A wrong gradient behind a right result, for the mutants of every chapter."""

import torch


class Altered(torch.autograd.Function):
    """The identity, with a gradient that ``change`` makes of what it gets."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


def scaled(x, factor):
    """The identity, with a gradient multiplied by the factor."""
    return Altered.apply(x, lambda g: g * factor)


def once(x):
    """The identity, whose backward cuts the graph: what comes after can be differentiated only once."""
    return Altered.apply(x, torch.detach)
