"""Losses: the loss of each element, what the reduction divides by, and the gradient of both arguments."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from specs.reference import autograd as reference
from torch_conformance.axes import FLOATING
from torch_conformance.checks import array
from torch_conformance.marks import axes, claim

DELTA = reference.DELTA
CALLS = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": lambda x, t, reduction: F.smooth_l1_loss(x, t, reduction=reduction, beta=DELTA),
    "huber": lambda x, t, reduction: F.huber_loss(x, t, reduction=reduction, delta=DELTA),
    "bce": F.binary_cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "kl_div": F.kl_div,
}
MODULES = {
    "mse": nn.MSELoss,
    "l1": nn.L1Loss,
    "smooth_l1": lambda reduction: nn.SmoothL1Loss(reduction=reduction, beta=DELTA),
    "huber": lambda reduction: nn.HuberLoss(reduction=reduction, delta=DELTA),
    "bce": nn.BCELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
    "kl_div": nn.KLDivLoss,
}
SHAPES = [(3, 43), (1, 1)]


def operands(case, name, shape):
    """Prediction and target within the loss's domain."""
    inside = name in ("bce", "kl_div", "bce_with_logits")
    target = case.tensor_of(case.rng.uniform(0.1, 0.9, shape) if inside else case.rng.standard_normal(shape))
    values = case.rng.uniform(0.1, 0.9, shape) if name == "bce" else case.rng.standard_normal(shape)
    return case.tensor_of(values, requires_grad=True), target


def sizes(name, x, t):
    """Terms of loss and derivative, each taken absolutely."""
    if name in ("mse", "l1", "smooth_l1", "huber"):
        return (abs(x) + abs(t)) ** 2 + abs(x) + abs(t), 2 * (abs(x) + abs(t)) / DELTA + 1
    if name == "bce":
        return 1 - np.log(x) - np.log1p(-x), 1 / (x * (1 - x))
    if name == "bce_with_logits":
        return 1 + 2 * abs(x), 2.0 + 0 * x
    return t * (abs(np.log(t)) + 1 + abs(x)), t


@claim("autograd.loss.each-element")
@axes(dtype=FLOATING, layout=("contiguous", "strided"))
@pytest.mark.parametrize("name", CALLS)
def test_the_loss_of_each_element_and_its_gradient(case, name):
    for shape in SHAPES:
        x, t = operands(case, name, shape)
        g = case.tensor(*shape)
        losses = case.function(CALLS[name])(x, t, reduction="none")
        losses.backward(g)
        value, slope = (f(array(x), array(t)) for f in reference.LOSSES[name])
        value_scale, slope_scale = sizes(name, array(x), array(t))
        case.close(losses, value, k=8, scale=value_scale)  # at most two functions within one eps and six more steps
        case.close(x.grad, array(g) * slope, k=8, scale=abs(array(g)) * slope_scale)


@claim("autograd.loss.reductions")
@axes(dtype=FLOATING)
@pytest.mark.filterwarnings("ignore:reduction. .mean")
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", CALLS)
def test_the_reduction_divides_value_and_gradient(case, name, reduction):
    shape = (2, 3)
    x, t = operands(case, name, shape)
    loss = case.function(CALLS[name])(x, t, reduction=reduction)
    loss.backward()
    divisor = 6 if reduction == "mean" else 1
    value, slope = (f(array(x), array(t)) for f in reference.LOSSES[name])
    value_scale, slope_scale = sizes(name, array(x), array(t))
    case.close(loss, reference.reduce(value, reduction), k=8 + 7, scale=value_scale.sum() / divisor)  # and the sums
    case.close(x.grad, slope / divisor, k=8 + 2, scale=slope_scale / divisor)  # the quotient, by a rounded inverse


@claim("autograd.loss.modules")
@pytest.mark.filterwarnings("ignore:reduction. .mean")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("name", MODULES)
def test_the_module_is_the_function(case, name, reduction):
    x, t = operands(case, name, (3, 7))
    loss = MODULES[name](reduction=reduction)
    case.same(loss(x, t).detach(), CALLS[name](x, t, reduction=reduction).detach())


@claim("autograd.loss.mean-by-default")
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:reduction. .mean")
def test_the_mean_is_the_default(case, name):
    x, t = operands(case, name, (3, 7))
    default = {"smooth_l1": nn.SmoothL1Loss, "huber": nn.HuberLoss}.get(name) or MODULES[name]
    case.same(default()(x, t).detach(), default(reduction="mean")(x, t).detach())
    assert default().reduction == "mean"


@claim("autograd.loss.mean-divides-by-elements")
def test_mean_divides_by_elements_and_batchmean_by_samples(case):
    x, t = operands(case, "kl_div", (4, 3))
    squares, divergence = array(F.mse_loss(x, t, reduction="sum")), array(F.kl_div(x, t, reduction="sum"))
    case.close(F.mse_loss(x, t), squares / 12, k=12)  # the same sum of twelve terms, perhaps in another order
    case.close(F.kl_div(x, t, reduction="batchmean"), divergence / 4, k=1)


@claim("autograd.loss.gradient-of-the-target")
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_the_target_gets_the_opposite_gradient(case, name):
    x, t = case.tensor(3, 7, requires_grad=True), case.tensor(3, 7, requires_grad=True)
    CALLS[name](x, t, reduction="sum").backward()
    case.same(t.grad, -x.grad)


@claim("autograd.loss.kink-at-the-target")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_the_gradient_at_the_target_is_zero(case, name):
    x = case.tensor(17, requires_grad=True)
    CALLS[name](x, x.detach().clone(), reduction="sum").backward()
    case.same(x.grad.abs(), torch.zeros_like(x))


def classes(case):
    """Scores (6, 5), class indices (6,), and the size of the gradient's terms (6, 5)."""
    x, target = case.tensor(6, 5, requires_grad=True), torch.as_tensor(case.rng.integers(0, 5, 6)).to(case.device)
    logs = reference.log_softmax(array(x))
    return x, target, np.exp(logs) * (1 + abs(logs)) + np.eye(5)[array(target)]


@claim("autograd.loss.cross-entropy")
@axes(dtype=FLOATING)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_cross_entropy_is_weighted_by_class(case, reduction):
    x, target, size = classes(case)
    weight = case.tensor_of(case.rng.uniform(0.3, 2, 5))
    losses, weights = reference.cross_entropy(array(x), array(target), array(weight))
    divisor = weights.sum() if reduction == "mean" else 1.0
    loss = F.cross_entropy(x, target, weight=weight, reduction=reduction)
    loss.sum().backward()
    value, terms = (part if reduction == "none" else part.sum() / divisor for part in (losses, losses + weights))
    case.close(loss, value, k=5 + 6 + 6, scale=terms)  # sums over classes, samples and their weights
    gradient = reference.cross_entropy_gradient(array(x), array(target), array(weight)) / divisor
    case.close(x.grad, gradient, k=5 + 6 + 4, scale=size * (weights / divisor)[:, None])  # and four steps more


@claim("autograd.loss.ignored-samples")
@axes(dtype=FLOATING)
def test_ignored_samples_count_for_nothing(case):
    x, target, size = classes(case)
    target[:4] = torch.tensor([4, 2, 4, 0], device=case.device)
    kept = array(target) != 4
    F.cross_entropy(x, target, ignore_index=4).backward()
    gradient = reference.cross_entropy_gradient(array(x), array(target), np.ones(5)) * kept[:, None] / kept.sum()
    case.close(x.grad, gradient, k=5 + 4, scale=(size + 1) / kept.sum())
    assert (x.grad[target == 4] == 0).all()


@claim("autograd.loss.label-smoothing")
@axes(dtype=FLOATING)
def test_label_smoothing_mixes_in_the_uniform_distribution(case):
    x, target, size = classes(case)
    F.cross_entropy(x, target, label_smoothing=0.3).backward()
    wanted = 0.7 * np.eye(5)[array(target)] + 0.3 / 5
    case.close(x.grad, (reference.softmax(array(x)) - wanted) / 6, k=5 + 6, scale=(size + 0.06) / 6)  # two more


@claim("autograd.loss.bad-reduction")
@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_reduction_is_refused(case, name):
    x, t = operands(case, name, (3, 7))
    with case.raises(ValueError, "average is not a valid value for reduction"):
        CALLS[name](x, t, reduction="average")


@claim("autograd.loss.broadcast-warns")
@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_broadcasting_a_target_warns(case, name):
    x, t = case.tensor(3, 1), case.tensor(3)
    with pytest.warns(UserWarning, match="target size"):
        losses = CALLS[name](x, t, reduction="none")
    assert losses.shape == (3, 3)
